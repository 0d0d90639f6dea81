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

/* Which pages the rows of a band see, and which of them together: first page first, and of each the larger tiles first,
 * so that what is done next is easily guessed. Relatives stand side by side. */
static int find_tiles(const Decoder *d, const Row *rows, int n, Tile *tiles) {
    int found = 0;
    for (int p = 0, more = 1; more; p++) {
        Tile ones[BAND], twos[BAND / 2];
        int num_ones = 0, num_twos = 0;
        more = 0;
        for (int r = 0, end; r < n; r = end) {
            end = r + 1;
            if (p * LANES >= rows[r].seen) continue;
            more = 1;
            while (end < n && p * LANES < rows[end].seen && rows[end].pages[p] == rows[r].pages[p]) end++;
            for (int first = r, size; first < end; first += size) {
                size = end - first >= 4 ? 4 : end - first >= 2 ? 2 : 1;
                Tile *tile = size == 4 ? &tiles[found++] : size == 2 ? &twos[num_twos++] : &ones[num_ones++];
                *tile = (Tile){page_of(d, 0, 0, rows[r].pages[p]), p, 0, first, size};
                for (int i = first; i < first + size; i++)
                    if (seen_of_page(&rows[i], p) > tile->filled) tile->filled = seen_of_page(&rows[i], p);
            }
        }
        memcpy(tiles + found, twos, sizeof(Tile) * num_twos), found += num_twos;
        memcpy(tiles + found, ones, sizeof(Tile) * num_ones), found += num_ones;
    }
    return found;
}

/* The tiles of all bands of a block, from the first one's place on; returns where the next block's go. */
static int find_band_tiles(const Decoder *d, Block *block, Tile *tiles, int *band_tiles, int at) {
    block->tiles = tiles, block->band_tiles = band_tiles;
    band_tiles[0] = at;
    for (int r = 0; r < block->n; r += BAND) {
        at += find_tiles(d, block->rows + r, block->n - r < BAND ? block->n - r : BAND, tiles + at);
        *++band_tiles = at;
    }
    return at;
}

/* Rows of a block whose logits are wanted. In the last layer the others have nothing to do but to be remembered. */
typedef struct {
    int which[BLOCK], band_tiles[BLOCK / BAND + 1];
    Row rows[BLOCK];
    Tile *tiles;
    Block block;
} Wanted;

static int find_wanted(const Block *block, Wanted *wanted) {
    int n = 0;
    wanted->tiles = NULL;
    for (int r = 0; r < block->n; r++)
        if (block->rows[r].logits >= 0) wanted->which[n] = r, wanted->rows[n++] = block->rows[r];
    wanted->block = (Block){wanted->rows, n};
    return n;
}

static int find_wanted_tiles(const Decoder *d, Wanted *wanted) {
    int pages = 0;
    for (int w = 0; w < wanted->block.n; w++) pages += pages_for(wanted->rows[w].seen);
    wanted->tiles = malloc(sizeof(Tile) * (pages + 1));
    if (!wanted->tiles) return NO_MEMORY;
    find_band_tiles(d, &wanted->block, wanted->tiles, wanted->band_tiles, 0);
    return OK;
}

/* The wanted ones among some rows of floats come first. */
static void compact(const Wanted *wanted, float *values, int width) {
    for (int w = 0; w < wanted->block.n; w++)
        if (wanted->which[w] > w) memcpy(values + (size_t)w * width, values + (size_t)wanted->which[w] * width, sizeof(float) * width);
}

/* A share's keys and values in one layer, unless all of them are so few that they stay near by themselves. */
static Stream stream_of(const Decoder *d, const Share *share, int layer, const Block *block) {
    const size_t page = sizeof(float) * page_floats(d);
    const int far = page * block->num_pages * share->heads * d->layers > STAYS;
    return (Stream){block->pages, part_of_page(d, layer, share->first_head), page / LINE, part_of_page(d, 0, 1), block->num_pages,
                    far ? share->heads : 0, 0, 0};
}

/* All layers for rows of which each sees only slots of earlier rows, its own block's included. */
static void run_block(Decoder *d, int thread, int team, const Block *all, const Block *next) {
    float *x = d->shares[thread].x, *normed = d->shares[thread].normed;
    const int width = d->width;
    const Block *block = all;
    int n = all->n;
    Wanted wanted;
    Stream stream = {0};
    const int all_wanted = find_wanted(all, &wanted) == n;
    if (!all_wanted && find_wanted_tiles(d, &wanted) != OK) atomic_store(&d->failed, 1), wanted.block.n = 0;
    embed(d, all->rows, n, x);
    add_and_normalize(d, NULL, x, n, normed);
    for (int l = 0; l < d->layers; l++) {
        const int last = l == d->layers - 1;
        if (last && !all_wanted) block = &wanted.block, n = block->n;
        for (int t = thread; t < d->threads; t += team) {
            const Share *share = &d->shares[t];
            const Layer *layer = &share->layers[l];
            multiply(&layer->project, normed, width, all->n, share->projected, layer->project.n, &stream);
            remember(d, share, l, all->rows, all->n);
            if (last && !all_wanted) compact(&wanted, share->projected, layer->project.n);
            attention(d, share, l, block);
            multiply(&layer->output, share->seen, layer->output.k, n, d->partial[0] + (size_t)t * BLOCK * width, width, &stream);
        }
        if (last && !all_wanted) compact(&wanted, x, width);
        meet(d, team);
        add_and_normalize(d, d->partial[0], x, n, normed);
        for (int t = thread; t < d->threads; t += team) {
            const Share *share = &d->shares[t];
            const Layer *layer = &share->layers[l];
            stream = last ? stream_of(d, share, 0, next) : stream_of(d, share, l + 1, all);
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
        const Matrix *head = &share->heads_out[block->rows[0].position % d->transition_dim];
        multiply(head, normed, width, n, share->out, head->n, &stream);
        for (int r = 0; r < n; r++)
            memcpy(d->logits + (size_t)block->rows[r].logits * d->logit_width + share->first_logit, share->out + (size_t)r * head->n,
                   sizeof(float) * share->logits);
    }
    free(wanted.tiles);
}

/* The pages that the rows of a block see; the same page of neighbouring bands is taken once. */
static void find_pages(const Decoder *d, Block *block, float **seen) {
    const Tile *end = block->tiles + block->band_tiles[(block->n + BAND - 1) / BAND];
    for (int i = 0; i < d->score_width / LANES; i++) seen[i] = NULL;
    for (const Tile *tile = block->tiles + block->band_tiles[0]; tile < end; tile++)
        if (seen[tile->place] != tile->page) block->pages[block->num_pages++] = seen[tile->place] = tile->page;
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
    Tile *tiles = malloc(sizeof(Tile) * (pages + 1));
    int *band_tiles = malloc(sizeof(int) * num_blocks * (bands + 1));
    Block *blocks = malloc(sizeof(Block) * num_blocks);
    float **addresses = malloc(sizeof(float *) * (pages + 1)), **seen = malloc(sizeof(float *) * (widest + 1));
    const int ready = tiles && band_tiles && blocks && addresses && seen;
    if (ready) d->score_width = widest * LANES;
    for (int b = 0, at = 0, found = 0; b < num_blocks && ready; b++) {
        const int first = b * size;
        blocks[b] = (Block){rows + first, n - first < size ? n - first : size, .pages = addresses + found};
        at = find_band_tiles(d, &blocks[b], tiles, band_tiles + b * (bands + 1), at);
        find_pages(d, &blocks[b], seen);
        found += blocks[b].num_pages;
    }
    const double start = omp_get_wtime();
    /* Threads that meet so often need a core each. Where they have to share them with others, one does better. */
    const int wanted = !ready ? 0 : d->alone ? 1 : d->threads;
#pragma omp parallel num_threads(wanted) if (wanted > 1)
    {
        const int team = omp_get_num_threads();
        for (int b = 0; b < num_blocks && ready; b++)
            run_block(d, omp_get_thread_num(), team, &blocks[b], &blocks[b + 1 < num_blocks ? b + 1 : 0]);
    }
    d->seconds[0] += omp_get_wtime() - start;
    /* Now and then a thread has to wait; again and again it does where others want its core. */
    if (d->alone) d->alone--;
    else if (atomic_exchange(&d->stalls, 0)) d->strain += 16;
    else if (d->strain) d->strain--;
    if (d->strain > 64) d->strain = 48, d->alone = 256;
    free(tiles), free(band_tiles), free(blocks), free(addresses), free(seen);
    return !ready || atomic_exchange(&d->failed, 0) ? NO_MEMORY : OK;
}
