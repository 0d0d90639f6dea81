/* Matrix products of a few rows with weights that are packed once. */
#pragma once

#include "vectors.h"

/* Packed weights are panels of NR columns, each [k][NR]. */
typedef struct {
    int k, n; /* rows, and columns rounded up to NR */
    float *panels, *bias;
} Matrix;

/* weight is [n][k], as torch keeps it; columns[j] of the result are taken in order; -1 is a column of zeros. The panels
 * go where *panels points to, which moves on behind them. */
static Matrix pack(const float *weight, const float *bias, int stride, const int *columns, int n, const int *inputs, int k, float **panels) {
    Matrix m = {k, round_up(n, NR), *panels, allocate_zeros(sizeof(float) * round_up(n, NR))};
    *panels += (size_t)m.n * k;
    for (int j = 0; j < n; j++) {
        if (columns[j] < 0) continue;
        float *to = m.panels + (size_t)(j / NR) * k * NR + j % NR;
        for (int i = 0; i < k; i++)
            if (inputs[i] >= 0) to[i * NR] = weight[(size_t)columns[j] * stride + inputs[i]];
        if (bias) m.bias[j] = bias[columns[j]];
    }
    return m;
}

#define LINE 64 /* bytes that come from memory together */

/* What will be wanted soon: the same part of some pages. */
typedef struct {
    float *const *pages;
    size_t part, lines; /* where the part begins, in floats; how long it is, in lines */
    int num_pages, page;
    size_t line;
} Stream;

/* So many lines of it, or NULL at its end. */
static inline const char *take(Stream *s, int lines) {
    if (s->page == s->num_pages) return NULL;
    const char *at = (const char *)(s->pages[s->page] + s->part) + s->line * LINE;
    s->line += lines;
    if (s->line >= s->lines) s->line = 0, s->page++;
    return at;
}

/* A tile of the product. Meanwhile lines of the weights that come next, and of the stream, come nearer, of each half as
 * many as it has steps: more or fewer were slower when measured. */
static inline __attribute__((always_inline)) void multiply_tile(const float *restrict w, const float *restrict x, int ldx, int steps,
                                                                vec sum[MR][2], const char *weights, const char *soon, const int ahead) {
#pragma GCC unroll 2
    for (int i = 0; i < steps; i++) {
        const vec w0 = load(w + i * NR), w1 = load(w + i * NR + LANES);
        if (i % 2 == 0) __builtin_prefetch(weights + (size_t)i / 2 * LINE, 0, 2);
        else if (ahead) __builtin_prefetch(soon + (size_t)i / 2 * LINE, 0, 2);
#pragma GCC unroll 8
        for (int r = 0; r < MR; r++) {
            const vec b = all(x[r * ldx + i]);
            sum[r][0] += b * w0;
            sum[r][1] += b * w1;
        }
    }
}

#define STEPS 64 /* of a tile at once */

/* out (rows, m.n) = x (rows, m.k) @ m + bias for rows rounded up to MR */
static void multiply(const Matrix *m, const float *restrict x, int ldx, int rows, float *restrict out, int ldo, Stream *stream) {
    if (rows == 0) return;
    const size_t panel_floats = (size_t)m->k * NR, share = panel_floats * MR / round_up(rows, MR);
    for (int panel = 0; panel < m->n / NR; panel++) {
        const float *w = m->panels + panel * panel_floats, *next = w + panel_floats;
        const vec bias0 = load(m->bias + panel * NR), bias1 = load(m->bias + panel * NR + LANES);
        for (int row = 0; row < rows; row += MR, next += share) {
            vec sum[MR][2];
#pragma GCC unroll 8
            for (int r = 0; r < MR; r++) sum[r][0] = bias0, sum[r][1] = bias1;
            for (int i = 0; i < m->k; i += STEPS) {
                const int steps = m->k - i < STEPS ? m->k - i : STEPS;
                const float *a = x + (size_t)row * ldx + i;
                const char *weights = (const char *)next + i / 2 * LINE, *soon = take(stream, steps / 2);
                if (soon) multiply_tile(w + i * NR, a, ldx, steps, sum, weights, soon, 1);
                else multiply_tile(w + i * NR, a, ldx, steps, sum, weights, soon, 0);
            }
#pragma GCC unroll 8
            for (int r = 0; r < MR; r++) {
                float *o = out + (size_t)(row + r) * ldo + panel * NR;
                store(o, sum[r][0]);
                store(o + LANES, sum[r][1]);
            }
        }
    }
}
