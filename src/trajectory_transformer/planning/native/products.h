/* Matrix products of a few rows with weights that are packed once. */
#pragma once

#include "vectors.h"

/* Packed weights are panels of NR columns, each [k][NR]. */
typedef struct {
    int k, n; /* rows, and columns rounded up to NR */
    float *panels, *bias;
} Matrix;

/* weight is [n][k], as torch keeps it; columns from[j] of the result are taken in order; -1 is a column of zeros. */
static Matrix pack(const float *weight, const float *bias, int stride, const int *columns, int n, const int *inputs, int k) {
    Matrix m = {k, round_up(n, NR), NULL, NULL};
    m.panels = allocate_zeros(sizeof(float) * m.n * k);
    m.bias = allocate_zeros(sizeof(float) * m.n);
    for (int j = 0; j < n; j++) {
        if (columns[j] < 0) continue;
        float *to = m.panels + (size_t)(j / NR) * k * NR + j % NR;
        for (int i = 0; i < k; i++)
            if (inputs[i] >= 0) to[i * NR] = weight[(size_t)columns[j] * stride + inputs[i]];
        if (bias) m.bias[j] = bias[columns[j]];
    }
    return m;
}

/* out (rows, m.n) = x (rows, m.k) @ m + bias for rows rounded up to MR */
static void multiply(const Matrix *m, const float *restrict x, int ldx, int rows, float *restrict out, int ldo) {
    const int k = m->k;
    for (int panel = 0; panel < m->n / NR; panel++) {
        const float *w = m->panels + (size_t)panel * k * NR;
        const vec bias0 = load(m->bias + panel * NR), bias1 = load(m->bias + panel * NR + LANES);
        for (int row = 0; row < rows; row += MR) {
            const float *a = x + (size_t)row * ldx;
            vec sum[MR][2];
#pragma GCC unroll 8
            for (int r = 0; r < MR; r++) sum[r][0] = bias0, sum[r][1] = bias1;
#pragma GCC unroll 2
            for (int i = 0; i < k; i++) {
                const vec w0 = load(w + i * NR), w1 = load(w + i * NR + LANES);
#pragma GCC unroll 8
                for (int r = 0; r < MR; r++) {
                    const vec b = all(a[r * ldx + i]);
                    sum[r][0] += b * w0;
                    sum[r][1] += b * w1;
                }
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
