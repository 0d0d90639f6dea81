/* Attention of rows to the pages that they see; rows that see the same page are computed together. */
#pragma once

#include "decoder.h"

/* Offset of dimension i of the key in a page's slot. A vector holds four dimensions of QUARTER keys, so that a key is
 * written in few pieces, and only the used part of a page is read. */
static inline int key_at(int slot, int i) { return (i / 4 * 4 + slot / QUARTER) * LANES + slot % QUARTER * 4 + i % 4; }

#define ROWS_AT_ONCE (REGISTERS / 8) /* rows whose scores are computed together */
#define CHAINS (REGISTERS / 16) /* independent partial sums of a row's result, each over every CHAINS-th slot */

/* Scores of some rows for the keys in the first quarters of a page. */
static inline __attribute__((always_inline)) void score(const float *restrict q, int ldq, const float *restrict page, int size,
                                                        float *restrict scores, int ld, const int rows, const int quarters) {
    const int some = rows < ROWS_AT_ONCE ? rows : ROWS_AT_ONCE;
    for (int first = 0; first < rows; first += some, q += some * ldq, scores += (size_t)some * ld) {
        vec sum[ROWS_AT_ONCE][4];
#pragma GCC unroll 4
        for (int r = 0; r < some; r++)
#pragma GCC unroll 4
            for (int g = 0; g < 4; g++) sum[r][g] = (vec){0};
        for (int i = 0; i < size; i += 4) {
            vec keys[4];
#pragma GCC unroll 4
            for (int g = 0; g < quarters; g++) {
                keys[g] = load(page + (i + g) * LANES);
                KEEP(keys[g]);
            }
#pragma GCC unroll 4
            for (int r = 0; r < some; r++) {
                const vec b = repeat4(q + r * ldq + i);
#pragma GCC unroll 4
                for (int g = 0; g < quarters; g++) sum[r][g] += b * keys[g];
            }
        }
#pragma GCC unroll 4
        for (int r = 0; r < some; r++)
            store(scores + (size_t)r * ld, sums_of_four(sum[r][0], sum[r][1], sum[r][2], sum[r][3]));
    }
}

/* Add a slot's values, times the rows' weights for it, to pairs of vectors. */
static inline __attribute__((always_inline)) void add_values(const float *restrict weights, int ld, const float *value, int second,
                                                             vec (*sum)[2], const int rows) {
    vec v0 = load(value), v1 = load(value + second);
    KEEP(v0);
    KEEP(v1);
#pragma GCC unroll 4
    for (int r = 0; r < rows; r++) {
        const vec a = broadcast(weights[r * ld]);
        sum[r][0] += a * v0, sum[r][1] += a * v1;
    }
}

/* Add a page's values, times the rows' weights for them, to the rows' results; columns are processed in pairs of
 * vectors. */
static inline __attribute__((always_inline)) void combine(const float *restrict weights, int ld, const float *restrict page,
                                                          int filled, int size, float *restrict out, int ldo, const int rows) {
    for (int part = 0; part < size; part += NR) {
        const int second = part + LANES < size ? LANES : 0;
        const float *value = page + part;
        vec sum[CHAINS][4][2] = {0};
#pragma GCC unroll 4
        for (int r = 0; r < rows; r++) {
            const float *o = out + (size_t)r * ldo + part;
            sum[0][r][0] = load(o), sum[0][r][1] = load(o + second);
        }
        int l = 0;
#pragma GCC unroll 4
        for (; l + CHAINS <= filled; l += CHAINS)
#pragma GCC unroll 2
            for (int c = 0; c < CHAINS; c++, value += size) add_values(weights + l + c, ld, value, second, sum[c], rows);
        if (l < filled) add_values(weights + l, ld, value, second, sum[0], rows);
#pragma GCC unroll 4
        for (int r = 0; r < rows; r++) {
            float *o = out + (size_t)r * ldo + part;
#pragma GCC unroll 2
            for (int c = 1; c < CHAINS; c++) sum[0][r][0] += sum[c][r][0], sum[0][r][1] += sum[c][r][1];
            store(o, sum[0][r][0]);
            if (second) store(o + LANES, sum[0][r][1]);
        }
    }
}

/* A row's scores for its last page, and the mask of the slots that it sees there. */
static inline float *last_scores(const Row *row, float *scores) { return scores + (pages_for(row->seen) - 1) * LANES; }
static inline ivec last_page_mask(const Row *row) { return first_lanes((row->seen - 1) % LANES + 1); }

/* The largest of a row's scores; NaN if one is NaN. */
static inline float top_score(const Row *row, float *scores) {
    vec top = broadcast(-INFINITY);
    float *const last = last_scores(row, scores);
    for (const float *s = scores; s < last; s += LANES) top = larger(load(s), top);
    return largest(larger(choose(last_page_mask(row), load(last), broadcast(-INFINITY)), top));
}

/* Replace a row's scores by 2^(score - top), the numerators of its softmax, and return their sum, the denominator.
 * Slots that the row does not see get 0. */
static inline float exponentiate_scores(const Row *row, float *scores, float top) {
    vec mass = {0};
    const vec max = broadcast(top);
    float *const last = last_scores(row, scores);
    for (float *s = scores; s < last; s += LANES) {
        const vec e = power_of_two(load(s) - max);
        store(s, e);
        mass += e;
    }
    const vec e = choose(last_page_mask(row), power_of_two(load(last) - max), broadcast(0.0f));
    store(last, e);
    return total(mass + e);
}

#define OF_TILE(tile, call)                                 \
    do {                                                    \
        if ((tile)->rows == 4) { enum { ROWS = 4 }; call; } \
        else if ((tile)->rows == 2) { enum { ROWS = 2 }; call; } \
        else { enum { ROWS = 1 }; call; }                   \
    } while (0)

/* Progress of prefetching the keys, or the values, of a head: number of floats of a tile's page. */
typedef struct {
    const Tile *tile;
    int floats;
} PrefetchPosition;

static inline const Tile *next_page(const Tile *tile, const Tile *end) {
    const Tile *next = tile;
    while (next < end && next->page == tile->page) next++;
    return next;
}

/* Prefetch some lines of the page after a tile's page: two for each row of the tile, because its time grows with its
 * rows. */
static inline __attribute__((always_inline)) void prefetch_next_page(PrefetchPosition *fetched, const Tile *tile, const Tile *end, size_t part,
                                                              const int size, const int rows) {
    const int line = LINE / sizeof(float);
    if (fetched->tile <= tile) *fetched = (PrefetchPosition){next_page(tile, end), 0};
    if (fetched->tile == end) return;
    const float *from = fetched->tile->page + part + fetched->floats;
#pragma GCC unroll 8
    for (int i = 0; i < 2 * rows; i++) __builtin_prefetch(from + i * line, 0, 3);
    fetched->floats += 2 * rows * line;
    if (fetched->floats >= size * LANES) *fetched = (PrefetchPosition){next_page(fetched->tile, end), 0};
}

/* Attention of a block's rows in one head of one layer. */
static inline __attribute__((always_inline)) void attend(size_t part, const Block *block, const float *q, int ldq,
                                                         float *scores, float *out, int ldo, const int size) {
    float top[BLOCK], scale[BLOCK];
    const int ld = block->score_width, n = block->n;
    const Tile *const end = block->tiles + block->num_tiles;
    PrefetchPosition next_keys = {block->tiles, 0}, next_values = next_keys;
    for (const Tile *tile = block->tiles; tile < end; tile++) {
        OF_TILE(tile, prefetch_next_page(&next_keys, tile, end, part, size, ROWS));
        const int r = tile->first, quarters = (tile->filled + QUARTER - 1) / QUARTER;
        const float *keys = tile->page + part;
        float *to = scores + (size_t)r * ld + tile->place * LANES;
        if (quarters == 4) OF_TILE(tile, score(q + (size_t)r * ldq, ldq, keys, size, to, ld, ROWS, 4));
        else if (quarters == 3) OF_TILE(tile, score(q + (size_t)r * ldq, ldq, keys, size, to, ld, ROWS, 3));
        else if (quarters == 2) OF_TILE(tile, score(q + (size_t)r * ldq, ldq, keys, size, to, ld, ROWS, 2));
        else OF_TILE(tile, score(q + (size_t)r * ldq, ldq, keys, size, to, ld, ROWS, 1));
    }
    /* All maxima first, so that the rows' latencies overlap. */
    for (int r = 0; r < n; r++) top[r] = top_score(&block->rows[r], scores + (size_t)r * ld);
    for (int r = 0; r < n; r++) {
        scale[r] = 1.0f / exponentiate_scores(&block->rows[r], scores + (size_t)r * ld, top[r]);
        for (int i = 0; i < size; i += LANES) store(out + (size_t)r * ldo + i, (vec){0});
    }
    for (const Tile *tile = block->tiles; tile < end; tile++) {
        OF_TILE(tile, prefetch_next_page(&next_values, tile, end, part + size * LANES, size, ROWS));
        const int r = tile->first;
        const float *weights = scores + (size_t)r * ld + tile->place * LANES, *values = tile->page + part + size * LANES;
        float *to = out + (size_t)r * ldo;
        if (tile->filled == LANES) OF_TILE(tile, combine(weights, ld, values, LANES, size, to, ldo, ROWS));
        else OF_TILE(tile, combine(weights, ld, values, tile->filled, size, to, ldo, ROWS));
    }
    for (int r = 0; r < n; r++)
        for (int i = 0; i < size; i += LANES) store(out + (size_t)r * ldo + i, load(out + (size_t)r * ldo + i) * broadcast(scale[r]));
}

/* Mark a token's slot as not finite: its key becomes NaN, its values 0. Rows that do not see the slot still multiply
 * its values by 0, so these must be finite; rows that see it get NaN from the key. */
static void mark_not_finite(float *keys, float *values, int slot, int size) {
    for (int i = 0; i < size; i++) keys[key_at(slot, i)] = NAN, values[i] = 0.0f;
}

/* Copy the first slots of a page; other threads may write to the other slots meanwhile. */
static void copy_slots(float *to, const float *from, int slots, int size) {
    const int whole = slots / QUARTER * LANES, rest = slots % QUARTER * 4;
    for (int i = 0; i < size * LANES; i += 4 * LANES) memcpy(to + i, from + i, sizeof(float) * (whole + rest));
    memcpy(to + size * LANES, from + size * LANES, sizeof(float) * slots * size);
}

static void store_token(float *page, int slot, const float *key, const float *value, int size) {
    float *kept = page + (LANES + slot) * size;
    ivec finite = (vec){0} == (vec){0};
    for (int i = 0; i < size; i += 4) memcpy(page + key_at(slot, i), key + i, sizeof(float) * 4);
    for (int i = 0; i < size; i += LANES) {
        const vec v = load(value + i);
        store(kept + i, v);
        finite &= v - v == (vec){0};
    }
    if (!all_true(finite)) mark_not_finite(page, kept, slot, size);
}

/* Store keys and values of the rows, except value tokens, which later tokens do not see. */
static void store_keys_values(const Decoder *d, const Scratch *scratch, int layer, const Block *block) {
    const int size = d->head_size, columns = d->heads * size, ldp = d->layers[layer].project.n;
    for (int r = 0; r < block->n; r++) {
        const Row *row = &block->rows[r];
        if (row->page < 0) continue;
        for (int h = 0; h < d->heads; h++) {
            const float *key = scratch->projected + (size_t)r * ldp + columns + h * size, *value = key + columns;
            float *page = page_of(d, layer, h, row->page);
            if (row->copied >= 0) copy_slots(page, page_of(d, layer, h, row->copied), row->slot, size);
            store_token(page, row->slot, key, value, size);
            for (int f = row->first_extra; f >= 0; f = d->extra_pages[f].next)
                store_token(page_of(d, layer, h, d->extra_pages[f].page), row->slot, key, value, size);
        }
    }
}

/* Attention outputs of a block's rows, into scratch->attended; their queries are the first columns of
 * scratch->projected. */
static void attention(const Decoder *d, const Scratch *scratch, int layer, const Block *block) {
    const int size = d->head_size, columns = d->heads * size, ldp = d->layers[layer].project.n;
    for (int h = 0; h < d->heads; h++) {
        const size_t part = part_of_page(d, layer, h);
        const float *q = scratch->projected + h * size;
        float *out = scratch->attended + h * size;
        if (size == 32) attend(part, block, q, ldp, scratch->scores, out, columns, 32);
        else attend(part, block, q, ldp, scratch->scores, out, columns, size);
    }
}
