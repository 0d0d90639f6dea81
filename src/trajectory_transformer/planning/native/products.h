/* Matrix products of a few rows with weights that were packed in advance. */
#pragma once

#include "vectors.h"

#define DEPTH 128 /* rows of a matrix used at once, so few that they and the inputs stay in the cache */

/* Packed weights: panels of NR columns, each [DEPTH][NR]; panels of the first DEPTH rows come first. */
typedef struct {
    int k, n; /* rows, and columns rounded up to NR */
    float *panels, *bias;
} Matrix;

/* Number of rows of the panels that begin at a row. */
static inline int depth_of(const Matrix *m, int row) { return m->k - row < DEPTH ? m->k - row : DEPTH; }

/* Pack a matrix with k rows and n columns from weight [outputs][stride], as torch stores it. Column j is output
 * columns[j], row i is input inputs[i]; -1 stands for zeros. The panels are written to *panels, which is advanced
 * behind them. */
static Matrix pack(const float *weight, const float *bias, int stride, const int *columns, int n, const int *inputs, int k, float **panels) {
    Matrix m = {k, round_up(n, NR), *panels, allocate_zeros(sizeof(float) * round_up(n, NR))};
    *panels += (size_t)m.n * k;
    for (int j = 0; j < n; j++) {
        if (columns[j] < 0) continue;
        for (int i = 0; i < k; i++) {
            const int first = i / DEPTH * DEPTH;
            float *panel = m.panels + (size_t)first * m.n + (size_t)(j / NR) * depth_of(&m, first) * NR;
            if (inputs[i] >= 0) panel[(i - first) * NR + j % NR] = weight[(size_t)columns[j] * stride + inputs[i]];
        }
        if (bias) m.bias[j] = bias[columns[j]];
    }
    return m;
}

#define LINE 64 /* bytes of a cache line */

/* Memory to prefetch during a product: the same part of some pages. */
typedef struct {
    float *const *pages;
    size_t part, lines; /* the part's offset in floats, and its length in cache lines */
    int num_pages, page;
    size_t line;
} Stream;

/* Address of the next cache lines to prefetch, or NULL at the end. */
static inline const char *next_lines(Stream *s, int lines) {
    if (s->page == s->num_pages) return NULL;
    const char *at = (const char *)(s->pages[s->page] + s->part) + s->line * LINE;
    s->line += lines;
    if (s->line >= s->lines) s->line = 0, s->page++;
    return at;
}

/* Some steps of a tile, an even number. Meanwhile cache lines of the next weights, and of the stream, are prefetched:
 * one of each for two steps; more or fewer were slower in measurements. */
static inline __attribute__((always_inline)) void multiply_steps(const float *restrict w, const float *restrict x, int ldx, int steps,
                                                                 vec sum[MR][2], const char *weights, const char *soon, const int ahead) {
    const size_t ld = ldx;
    const float *restrict later = x + 3 * ld; /* rows from the fourth on: saves registers for addresses */
    for (int i = 0; i < steps; i += 2, w += 2 * NR, x += 2, later += 2, weights += LINE, soon += LINE) {
        __builtin_prefetch(weights, 0, 2);
        if (ahead) __builtin_prefetch(soon, 0, 2);
#pragma GCC unroll 2
        for (int j = 0; j < 2; j++) {
            vec w0 = load(w + j * NR), w1 = load(w + j * NR + LANES);
            KEEP(w0);
            KEEP(w1);
#pragma GCC unroll 8
            for (int r = 0; r < MR; r++) {
                const vec b = broadcast(r < 3 ? x[r * ld + j] : later[(r - 3) * ld + j]);
                sum[r][0] += b * w0;
                sum[r][1] += b * w1;
            }
        }
    }
}

#define STEPS 64 /* steps of a tile at once */

/* A tile of a product: out (MR, NR) = from + x (MR, depth) @ panel. Rows of from are ldf apart; next: weights to
 * prefetch. */
static inline __attribute__((always_inline)) void multiply_tile(const float *w, const float *x, int ldx, int depth, const float *from,
                                                                int ldf, float *out, int ldo, const char *next, Stream *stream) {
    vec sum[MR][2];
#pragma GCC unroll 8
    for (int r = 0; r < MR; r++) sum[r][0] = load(from + (size_t)r * ldf), sum[r][1] = load(from + (size_t)r * ldf + LANES);
    for (int i = 0; i < depth; i += STEPS, next += STEPS / 2 * LINE) {
        const int steps = depth - i < STEPS ? depth - i : STEPS;
        const char *soon = next_lines(stream, steps / 2);
        if (soon) multiply_steps(w + i * NR, x + i, ldx, steps, sum, next, soon, 1);
        else multiply_steps(w + i * NR, x + i, ldx, steps, sum, next, next, 0);
    }
#pragma GCC unroll 8
    for (int r = 0; r < MR; r++) store(out + (size_t)r * ldo, sum[r][0]), store(out + (size_t)r * ldo + LANES, sum[r][1]);
}

/* out (rows, m.n) = x (rows, m.k) @ m + bias for rows rounded up to MR */
static void multiply(const Matrix *m, const float *x, int ldx, int rows, float *out, int ldo, Stream *stream) {
    if (rows == 0) return;
    const float *w = m->panels;
    for (int first = 0, depth; first < m->k; first += depth) {
        depth = depth_of(m, first);
        const size_t panel_floats = (size_t)depth * NR, share = panel_floats * MR / round_up(rows, MR);
        for (int column = 0; column < m->n; column += NR, w += panel_floats) {
            const float *next = w + panel_floats; /* each tile prefetches its share of the next panel */
            for (int row = 0; row < rows; row += MR, next += share) {
                float *o = out + (size_t)row * ldo + column;
                const float *a = x + (size_t)row * ldx + first;
                multiply_tile(w, a, ldx, depth, first ? o : m->bias + column, first ? ldo : 0, o, ldo, (const char *)next, stream);
            }
        }
    }
}
