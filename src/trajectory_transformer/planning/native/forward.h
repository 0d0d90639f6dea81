/* All layers for some rows, by a team of threads. */
#pragma once

#include <omp.h>
#include <sched.h>

#include "attention.h"

static void embed(const Decoder *d, const Row *rows, int n, float *x) {
    for (int r = 0; r < n; r++) {
        const int dimension = rows[r].position % d->transition_dim;
        const float *e = d->embeddings + ((size_t)dimension * d->vocab + rows[r].token) * d->width;
        const float *p = d->positions + (size_t)rows[r].position * d->width;
        for (int i = 0; i < d->width; i += LANES) store(x + r * d->width + i, load(e + i) + load(p + i));
    }
}

/* x += the sum of all partial results, if there are any; then out = x without its mean, of unit variance. The norms'
 * weights and biases are part of the products that follow. */
static inline __attribute__((always_inline)) void normalize_rows(const Decoder *d, const float *partial, float *x, int n, float *out,
                                                                 const int width) {
    const int padding = width - d->embd;
    const float inverse = 1.0f / d->embd;
    for (int r = 0; r < n; r++, x += width, out += width) {
        vec sum = {0}, squares = {0};
#pragma GCC unroll 8
        for (int i = 0; i < width; i += LANES) {
            vec v = load(x + i);
            for (int t = 0; partial && t < d->threads; t++) v += load(partial + ((size_t)t * BLOCK + r) * width + i);
            store(x + i, v);
            sum += v;
        }
        const float mean = total(sum) * inverse;
#pragma GCC unroll 8
        for (int i = 0; i < width; i += LANES) {
            const vec c = load(x + i) - all(mean);
            squares += c * c;
        }
        const float variance = (total(squares) - padding * mean * mean) * inverse;
        const vec scale = all(1.0f / sqrtf(variance + d->eps));
#pragma GCC unroll 8
        for (int i = 0; i < width; i += LANES) store(out + i, (load(x + i) - all(mean)) * scale);
    }
}

static void add_and_normalize(const Decoder *d, const float *partial, float *x, int n, float *out) {
    if (d->width == 128) normalize_rows(d, partial, x, n, out, 128);
    else normalize_rows(d, partial, x, n, out, d->width);
}

#if defined(__x86_64__)
#define PAUSE() __builtin_ia32_pause()
#else
#define PAUSE() ((void)0)
#endif
#define STAYS (1 << 20) /* bytes that stay in a core's own cache by themselves */
#define PATIENCE 1e-3 /* seconds: who has not come by then is not running */

/* Wait until the whole team is here. */
static void meet(Decoder *d, int team) {
    if (team == 1) return;
    const int phase = atomic_load(&d->phase);
    if (atomic_fetch_add(&d->waiting, 1) == team - 1) {
        atomic_store(&d->waiting, 0);
        atomic_store(&d->phase, phase + 1);
        return;
    }
    const double start = omp_get_wtime();
    for (int i = 1, late = 0; atomic_load(&d->phase) == phase; i++) {
        if (late) sched_yield();
        else PAUSE();
        if (!late && i % 256 == 0 && omp_get_wtime() - start > PATIENCE) late = 1, atomic_fetch_add(&d->stalls, 1);
    }
}

/* Which pages the rows of a band see, and which of them together. Relatives stand side by side. */
static int find_runs(const Row *rows, int n, Run *runs) {
    int found = 0;
    for (int p = 0, more = 1; more; p++) {
        more = 0;
        Run *run = NULL;
        for (int r = 0; r < n; r++) {
            const Row *row = &rows[r];
            if (p * LANES >= row->seen) { run = NULL; continue; }
            const int filled = seen_of_page(row, p);
            more = 1;
            if (!run || run->page != row->pages[p]) {
                run = &runs[found++];
                *run = (Run){row->pages[p], p, r, 0, 0};
            }
            run->rows++;
            if (filled > run->filled) run->filled = filled;
        }
    }
    return found;
}

/* Rows of a block whose logits are wanted. In the last layer the others have nothing to do but to be remembered. */
typedef struct {
    int n, which[BLOCK], band_runs[BLOCK / BAND + 1];
    Row rows[BLOCK];
    Run *runs;
} Wanted;

static int find_wanted(const Row *rows, int n, Wanted *wanted) {
    wanted->n = 0, wanted->runs = NULL;
    for (int r = 0; r < n; r++)
        if (rows[r].logits >= 0) wanted->which[wanted->n] = r, wanted->rows[wanted->n++] = rows[r];
    return wanted->n;
}

static int find_wanted_runs(Wanted *wanted) {
    int pages = 0;
    for (int w = 0; w < wanted->n; w++) pages += pages_for(wanted->rows[w].seen);
    wanted->runs = malloc(sizeof(Run) * (pages + 1));
    wanted->band_runs[0] = 0;
    for (int i = 0; i < BLOCK / BAND && wanted->runs; i++) {
        const int first = i * BAND, m = wanted->n - first < BAND ? wanted->n - first : BAND, at = wanted->band_runs[i];
        wanted->band_runs[i + 1] = at + (m > 0 ? find_runs(wanted->rows + first, m, wanted->runs + at) : 0);
    }
    return wanted->runs ? OK : NO_MEMORY;
}

/* The wanted ones among some rows of floats come first. */
static void compact(const Wanted *wanted, float *values, int width) {
    for (int w = 0; w < wanted->n; w++)
        if (wanted->which[w] > w) memcpy(values + (size_t)w * width, values + (size_t)wanted->which[w] * width, sizeof(float) * width);
}

/* A share's keys and values in one layer, unless all of them are so few that they stay near by themselves. */
static Stream stream_of(const Decoder *d, const Share *share, int layer, const Block *block) {
    const size_t page = page_floats(d), head = CHUNK * page;
    const int far = sizeof(float) * page * block->num_pages * share->heads * d->layers > STAYS;
    return (Stream){block->pages, (layer * d->heads + share->first_head) * head, sizeof(float) * page / LINE, head,
                    block->num_pages, far ? share->heads : 0, 0, 0};
}

/* All layers for rows of which each sees only slots of earlier rows, its own block's included. */
static void run_block(Decoder *d, int thread, int team, const Block *block, const Run *runs, const Block *next) {
    float *x = d->shares[thread].x, *normed = d->shares[thread].normed;
    const int width = d->width, *band_runs = block->band_runs;
    const Row *rows = block->rows;
    int n = block->n;
    Wanted wanted;
    Stream stream = {0};
    const int all_wanted = find_wanted(rows, n, &wanted) == n;
    if (!all_wanted && find_wanted_runs(&wanted) != OK) atomic_store(&d->failed, 1), wanted.n = 0;
    embed(d, rows, n, x);
    add_and_normalize(d, NULL, x, n, normed);
    for (int l = 0; l < d->layers; l++) {
        const int last = l == d->layers - 1;
        if (last && !all_wanted) rows = wanted.rows, n = wanted.n, runs = wanted.runs, band_runs = wanted.band_runs;
        for (int t = thread; t < d->threads; t += team) {
            const Share *share = &d->shares[t];
            const Layer *layer = &share->layers[l];
            multiply(&layer->project, normed, width, block->n, share->projected, layer->project.n, &stream);
            remember(d, share, l, block->rows, block->n);
            if (last && !all_wanted) compact(&wanted, share->projected, layer->project.n);
            attention(d, share, l, rows, n, runs, band_runs);
            multiply(&layer->output, share->seen, layer->output.k, n, d->partial[0] + (size_t)t * BLOCK * width, width, &stream);
        }
        if (last && !all_wanted) compact(&wanted, x, width);
        meet(d, team);
        add_and_normalize(d, d->partial[0], x, n, normed);
        for (int t = thread; t < d->threads; t += team) {
            const Share *share = &d->shares[t];
            const Layer *layer = &share->layers[l];
            stream = last ? stream_of(d, share, 0, next) : stream_of(d, share, l + 1, block);
            multiply(&layer->up, normed, width, n, share->hidden, layer->up.n, &stream);
            activate(d->activation, share->hidden, n * layer->up.n);
            multiply(&layer->down, share->hidden, layer->up.n, n, d->partial[1] + (size_t)t * BLOCK * width, width, &stream);
        }
        meet(d, team);
        add_and_normalize(d, d->partial[1], x, n, normed);
    }
    for (int t = thread; t < d->threads && n; t += team) {
        const Share *share = &d->shares[t];
        if (!share->logits) continue;
        const Matrix *head = &share->heads_out[rows[0].position % d->transition_dim];
        multiply(head, normed, width, n, share->out, head->n, &stream);
        for (int r = 0; r < n; r++)
            memcpy(d->logits + (size_t)rows[r].logits * d->logit_width + share->first_logit, share->out + (size_t)r * head->n,
                   sizeof(float) * share->logits);
    }
    free(wanted.runs);
}

/* The pages that the rows of a block see; the same page of neighbouring bands is taken once. */
static void find_pages(const Decoder *d, Block *block, const Run *runs, int32_t *seen) {
    const int bands = (block->n + BAND - 1) / BAND;
    block->num_pages = 0;
    for (int i = 0; i < d->score_width / LANES; i++) seen[i] = -1;
    for (const Run *run = runs + block->band_runs[0]; run < runs + block->band_runs[bands]; run++)
        if (seen[run->place] != run->page) {
            seen[run->place] = run->page;
            block->pages[block->num_pages++] = page_of(d, 0, 0, run->page);
        }
}

static int run(Decoder *d, const Row *rows, int n, int sequences) {
    if (sequences > d->logits_capacity) {
        free(d->logits), d->logits = allocate(sizeof(float) * sequences * d->logit_width), d->logits_capacity = sequences;
        if (!d->logits) return NO_MEMORY;
        for (size_t i = 0; i < (size_t)sequences * d->logit_width; i++) d->logits[i] = -INFINITY;
    }
    const int most = (n + BLOCK - 1) / BLOCK, size = round_up((n + most - 1) / most, BAND), bands = BLOCK / BAND;
    const int num_blocks = (n + size - 1) / size;
    int pages = 0, widest = 0; /* of all rows together, of one row */
    for (int r = 0; r < n; r++) {
        const int own = pages_for(rows[r].seen);
        pages += own;
        if (own > widest) widest = own;
    }
    Run *runs = malloc(sizeof(Run) * (pages + 1));
    int *band_runs = malloc(sizeof(int) * (num_blocks * bands + 1));
    Block *blocks = malloc(sizeof(Block) * num_blocks);
    float **addresses = malloc(sizeof(float *) * (pages + 1));
    int32_t *seen = malloc(sizeof(int32_t) * (widest + 1));
    const int ready = runs && band_runs && blocks && addresses && seen;
    if (ready) d->score_width = widest * LANES, band_runs[0] = 0;
    for (int b = 0, found = 0; b < num_blocks && ready; b++) {
        const int first = b * size;
        Block *block = &blocks[b];
        *block = (Block){rows + first, n - first < size ? n - first : size, band_runs + b * bands, addresses + found, 0};
        for (int i = 0; i < bands; i++) {
            const int left = block->n - i * BAND, at = band_runs[b * bands + i];
            band_runs[b * bands + i + 1] = at + (left > 0 ? find_runs(block->rows + i * BAND, left < BAND ? left : BAND, runs + at) : 0);
        }
        find_pages(d, block, runs, seen);
        found += block->num_pages;
    }
    const double start = omp_get_wtime();
    /* Threads that meet so often need a core each. Where they have to share them with others, one does better. */
    const int wanted = !ready ? 0 : d->alone ? 1 : d->threads;
#pragma omp parallel num_threads(wanted) if (wanted > 1)
    {
        const int team = omp_get_num_threads();
        for (int b = 0; b < num_blocks && ready; b++)
            run_block(d, omp_get_thread_num(), team, &blocks[b], runs, &blocks[b + 1 < num_blocks ? b + 1 : 0]);
    }
    d->seconds[0] += omp_get_wtime() - start;
    /* Now and then a thread has to wait; again and again it does where others want its core. */
    if (d->alone) d->alone--;
    else if (atomic_exchange(&d->stalls, 0)) d->strain += 16;
    else if (d->strain) d->strain--;
    if (d->strain > 64) d->strain = 48, d->alone = 256;
    free(runs), free(band_runs), free(blocks), free(addresses), free(seen);
    return !ready || atomic_exchange(&d->failed, 0) ? NO_MEMORY : OK;
}
