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

/* All layers for rows of which each sees only slots of earlier rows, its own block's included. */
static void run_block(Decoder *d, int thread, int team, const Row *rows, int n, const Run *runs, const int *band_runs) {
    float *x = d->shares[thread].x, *normed = d->shares[thread].normed;
    const int width = d->width;
    embed(d, rows, n, x);
    add_and_normalize(d, NULL, x, n, normed);
    for (int l = 0; l < d->layers; l++) {
        for (int t = thread; t < d->threads; t += team) {
            const Share *share = &d->shares[t];
            const Layer *layer = &share->layers[l];
            expect_writes(d, share, l, rows, n);
            multiply(&layer->project, normed, width, n, share->projected, layer->project.n);
            attention(d, share, l, rows, n, runs, band_runs);
            multiply(&layer->output, share->seen, layer->output.k, n, d->partial[0] + (size_t)t * BLOCK * width, width);
        }
        meet(d, team);
        add_and_normalize(d, d->partial[0], x, n, normed);
        for (int t = thread; t < d->threads; t += team) {
            const Share *share = &d->shares[t];
            const Layer *layer = &share->layers[l];
            multiply(&layer->up, normed, width, n, share->hidden, layer->up.n);
            activate(d->activation, share->hidden, n * layer->up.n);
            multiply(&layer->down, share->hidden, layer->up.n, n, d->partial[1] + (size_t)t * BLOCK * width, width);
        }
        meet(d, team);
        add_and_normalize(d, d->partial[1], x, n, normed);
    }
    int wanted = 0, which[BLOCK];
    for (int r = 0; r < n; r++)
        if (rows[r].logits >= 0) {
            if (wanted < r) memcpy(normed + (size_t)wanted * width, normed + (size_t)r * width, sizeof(float) * width);
            which[wanted++] = r;
        }
    for (int t = thread; t < d->threads && wanted; t += team) {
        const Share *share = &d->shares[t];
        if (!share->logits) continue;
        const Matrix *head = &share->heads_out[rows[which[0]].position % d->transition_dim];
        multiply(head, normed, width, wanted, share->out, head->n);
        for (int w = 0; w < wanted; w++)
            memcpy(d->logits + (size_t)rows[which[w]].logits * d->vocab + share->first_logit, share->out + (size_t)w * head->n,
                   sizeof(float) * share->logits);
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
            if (p >= row->num_pages) { run = NULL; continue; }
            const int filled = p == row->num_pages - 1 ? row->last_filled : row->filled[p];
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

static int run(Decoder *d, const Row *rows, int n, int sequences) {
    if (sequences > d->logits_capacity) {
        free(d->logits), d->logits = malloc(sizeof(float) * sequences * d->vocab), d->logits_capacity = sequences;
        if (!d->logits) return NO_MEMORY;
    }
    const int blocks = (n + BLOCK - 1) / BLOCK, size = round_up((n + blocks - 1) / blocks, BAND), bands = BLOCK / BAND;
    int most = 0, widest = 0; /* of pages: of all rows together, of one row */
    for (int r = 0; r < n; r++) {
        most += rows[r].num_pages;
        if (rows[r].num_pages > widest) widest = rows[r].num_pages;
    }
    Run *runs = malloc(sizeof(Run) * (most + 1));
    int *band_runs = malloc(sizeof(int) * (blocks * bands + 1));
    if (!runs || !band_runs) return NO_MEMORY;
    d->score_width = widest * LANES;
    band_runs[0] = 0;
    for (int b = 0; b < blocks; b++)
        for (int i = 0; i < bands; i++) {
            const int first = b * size + i * BAND, end = (b + 1) * size < n ? (b + 1) * size : n;
            const int m = end - first < BAND ? end - first : BAND, at = band_runs[b * bands + i];
            band_runs[b * bands + i + 1] = at + (m > 0 ? find_runs(rows + first, m, runs + at) : 0);
        }
    const double start = omp_get_wtime();
    /* Threads that meet so often need a core each. Where they have to share them with others, one does better. */
    const int wanted = d->alone ? 1 : d->threads;
#pragma omp parallel num_threads(wanted) if (wanted > 1)
    {
        const int team = omp_get_num_threads();
        for (int b = 0; b < blocks; b++)
            if (b * size < n)
                run_block(d, omp_get_thread_num(), team, rows + b * size, n - b * size < size ? n - b * size : size, runs,
                          band_runs + b * bands);
    }
    d->seconds[0] += omp_get_wtime() - start;
    /* Now and then a thread has to wait; again and again it does where others want its core. */
    if (d->alone) d->alone--;
    else if (atomic_exchange(&d->stalls, 0)) d->strain += 16;
    else if (d->strain) d->strain--;
    if (d->strain > 64) d->strain = 48, d->alone = 256;
    free(runs), free(band_runs);
    return OK;
}
