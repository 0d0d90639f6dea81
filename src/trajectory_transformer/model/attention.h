/* Causal attention of one head of one sequence, forward and backward. It is computed from copies that stay in the
 * second-level cache. Scores above the diagonal, and columns that no row sees, are not computed. Which weights are dropped
 * is determined by counters and recomputed in the backward pass. */
#pragma once

#include "random.h"

#define LN_2 0.6931471805599453f
#define STEP (MR > LANES ? NR : LANES) /* columns of weights are computed in multiples of this, which MR divides */

typedef struct { /* the same fields as in attention.py */
    int64_t batch, heads, time, width; /* width: of a head */
    int64_t columns;                   /* number of positions that any row sees */
    const int32_t *column;             /* (columns) these positions, ascending */
    const int32_t *counts;             /* (time) number of these that each row sees, the first ones; at least 1 */
    int64_t strides[3][3];             /* of query, key and value: floats to the next sequence, head and position */
    const float *query, *key, *value;
    float *output; /* (batch, time, heads, width), like all below */
    float *log_sums; /* (batch, heads, time) base-2 logarithm of each row's sum of exponentials */
    const float *output_gradient;
    float *query_gradient, *key_gradient, *value_gradient;
    double dropout; /* probability, in [0, 1) */
    uint64_t seed;
    int64_t threads;
} Attention;

/* ---- dropout ---- */

/* The random key of a row's attention weights; number: of the head, sequence * heads + head. */
static inline uint64_t row_key(const Attention *a, int64_t number, int64_t row) {
    return mix(mix(a->seed) + (uint64_t)(number * a->time + row));
}

/* ---- products ---- */

/* sums[r][v] += over d of a[r * row + d * step] * b[d * next + v * LANES …] */
static inline __attribute__((always_inline)) void multiply_add(const float *a, int64_t row, int64_t step, const float *b, int64_t next,
                                                           int depth, const int vectors, vec sums[MR][2]) {
    vec s[MR][2];
    UNROLL for (int r = 0; r < MR; r++) s[r][0] = sums[r][0], s[r][1] = sums[r][1];
    for (int d = 0; d < depth; d++, a += step, b += next) {
        vec b0 = load(b), b1 = vectors == 2 ? load(b + LANES) : b0;
        KEEP(b0);
        if (vectors == 2) KEEP(b1);
        UNROLL for (int r = 0; r < MR; r++) {
            const vec x = broadcast(a[r * row]);
            s[r][0] += x * b0;
            if (vectors == 2) s[r][1] += x * b1;
        }
    }
    UNROLL for (int r = 0; r < MR; r++) sums[r][0] = s[r][0], sums[r][1] = s[r][1];
}

static inline __attribute__((always_inline)) void multiply(const float *a, int64_t row, int64_t step, const float *b, int64_t next,
                                                           int depth, const int vectors, vec sums[MR][2]) {
    UNROLL for (int r = 0; r < MR; r++) sums[r][0] = sums[r][1] = (vec){0};
    multiply_add(a, row, step, b, next, depth, vectors, sums);
}

/* out (rows, width), ld apart = product of MR rows of a with b (depth, padded width), each row times its factor. */
static void multiply_rows(const float *a, int64_t row, int64_t step, const float *b, int64_t padded, int depth, const float *factors,
                          float *out, int64_t ld, int rows, int64_t width) {
    vec sums[MR][2];
    float line[2 * LANES];
    for (int64_t w = 0; w < padded; w += NR) {
        if (padded - w > LANES) multiply(a, row, step, b + w, padded, depth, 2, sums);
        else multiply(a, row, step, b + w, padded, depth, 1, sums);
        const int64_t here = width - w < NR ? width - w : NR;
        for (int r = 0; r < rows; r++) {
            const vec f = broadcast(factors[r]);
            if (here == NR) {
                store(out + r * ld + w, sums[r][0] * f);
                store(out + r * ld + w + LANES, sums[r][1] * f);
            } else {
                store(line, sums[r][0] * f);
                store(line + LANES, sums[r][1] * f);
                memcpy(out + r * ld + w, line, sizeof(float) * here);
            }
        }
    }
}

/* out (MR, columns, rounded up to STEP) = a (MR, width) times panels of NR columns, each (width, NR) */
static void multiply_panels(const float *a, int64_t padded, const float *panels, int64_t width, int columns, float *out, int64_t ld) {
    vec sums[MR][2];
    for (int j = 0; j < columns; j += NR, panels += width * NR)
        if (columns - j > STEP || STEP == NR) {
            multiply(a, padded, 1, panels, NR, width, 2, sums);
            UNROLL for (int r = 0; r < MR; r++) store(out + r * ld + j, sums[r][0]), store(out + r * ld + j + LANES, sums[r][1]);
        } else {
            multiply(a, padded, 1, panels, NR, width, 1, sums);
            UNROLL for (int r = 0; r < MR; r++) store(out + r * ld + j, sums[r][0]);
        }
}

/* ---- one head ---- */

typedef struct { /* strides: floats from one position to the next */
    int64_t number;                   /* sequence * heads + head */
    const float *query, *key, *value; /* (time, width) */
    int64_t strides[3];               /* of these */
    float *output;                    /* (time, width) */
    float *log_sums;                  /* (time) */
    const float *output_gradient;     /* (time, width) */
    int64_t output_stride;            /* of the output and its gradient */
    float *query_gradient, *key_gradient, *value_gradient; /* (time, width) */
    int64_t gradient_stride;                               /* of these */
} Head;

typedef struct {
    int64_t rows, columns, width; /* padded: rounded up to MR, NR and LANES */
    float *query, *key, *value, *gradient; /* (rows or columns, width); keys and values of the visible columns only */
    float *key_panels, *value_panels;
    float *weights, *gradients; /* (rows, columns); in the forward pass, (MR, columns) */
    float *sums;                /* (rows) products of the output and its gradient */
} Scratch;

/* Place the arrays of a pass from address at on. Returns the number of floats that they take. */
static size_t lay_out(Scratch *s, const Attention *a, int backward, float *at) {
    const float *begin = at;
    s->rows = round_up(a->time, MR), s->columns = round_up(a->columns, NR), s->width = round_up(a->width, LANES);
    s->query = at, at += s->rows * s->width;
    s->key = at, at += backward ? s->columns * s->width : 0;
    s->value = at, at += backward ? 0 : s->columns * s->width;
    s->gradient = at, at += backward ? s->rows * s->width : 0;
    s->key_panels = at, at += s->columns * s->width;
    s->value_panels = at, at += backward ? s->columns * s->width : 0;
    s->weights = at, at += (backward ? s->rows : MR) * s->columns;
    s->gradients = at, at += backward ? s->rows * s->columns : 0;
    s->sums = at, at += round_up(s->rows, LANES);
    return round_up(at - begin, 1024);
}

/* Rows of from, or those of which, times factor; padded by zeros. */
static void copy_rows(const float *from, int64_t stride, const int32_t *which, int64_t rows, int64_t width, float factor, float *to,
                      int64_t padded_rows, int64_t padded) {
    for (int64_t r = 0; r < rows; r++, to += padded) {
        const float *row = from + (which ? which[r] : r) * stride;
        for (int64_t w = 0; w < padded; w += LANES) store(to + w, load_some(row + w, width - w) * broadcast(factor));
    }
    memset(to, 0, sizeof(float) * padded * (padded_rows - rows));
}

/* The transpose of these rows, in panels of NR columns. */
static void pack_panels(const float *from, int64_t stride, const int32_t *which, int64_t rows, int64_t width, float *to, int64_t padded_rows) {
    for (int64_t first = 0; first < padded_rows; first += LANES) {
        float *panel = to + first / NR * NR * width + first % NR;
        for (int64_t w = 0; w < width; w += LANES) {
            vec x[LANES];
            UNROLL for (int r = 0; r < LANES; r++)
                x[r] = first + r < rows ? load_some(from + which[first + r] * stride + w, width - w) : (vec){0};
            transpose(x);
            for (int i = 0; i < LANES && w + i < width; i++) store(panel + (w + i) * NR, x[i]);
        }
    }
}

static inline int max_seen(const Attention *a, int64_t row) { /* columns that any of MR rows sees */
    return a->counts[row + MR - 1 < a->time ? row + MR - 1 : a->time - 1];
}

/* Scale of queries: 1 / sqrt(width), and 1 / ln 2, so that exp(score) is 2 to the power of the scaled score. */
static float query_factor(const Attention *a) { return (float)(1.0 / (sqrt((double)a->width) * 0.6931471805599453)); }

static void attend(const Attention *a, const Scratch *s, const Head *h) {
    const uint32_t threshold = threshold_of(a->dropout);
    const float keep = (float)(1.0 - a->dropout);
    copy_rows(h->query, h->strides[0], NULL, a->time, a->width, query_factor(a), s->query, s->rows, s->width);
    pack_panels(h->key, h->strides[1], a->column, a->columns, a->width, s->key_panels, s->columns);
    copy_rows(h->value, h->strides[2], a->column, a->columns, a->width, 1.0f, s->value, s->columns, s->width);
    for (int64_t row = 0; row < a->time; row += MR) {
        const int seen = max_seen(a, row), rows = a->time - row < MR ? a->time - row : MR;
        float factors[MR] = {0};
        multiply_panels(s->query + row * s->width, s->width, s->key_panels, a->width, seen, s->weights, s->columns);
        for (int r = 0; r < rows; r++) {
            float *x = s->weights + r * s->columns;
            const int n = a->counts[row + r], whole = n / LANES * LANES;
            const ivec last = first_lanes(n - whole);
            vec most = broadcast(-INFINITY), sum = {0};
            for (int j = 0; j < whole; j += LANES) most = larger(load(x + j), most);
            if (n > whole) most = larger(choose(last, load(x + whole), most), most);
            const float highest = largest(most);
            const vec top = broadcast(highest);
            const uint64_t key = row_key(a, h->number, row + r);
            for (int j = 0; j < round_up(seen, LANES); j += LANES) {
                vec e = power_of_two(load(x + j) - top);
                if (j >= whole) e = j == whole ? choose(last, e, (vec){0}) : (vec){0};
                sum += e;
                if (threshold) e = (vec)((ivec)e & kept_lanes(key, j, threshold));
                store(x + j, e);
            }
            const float all = total(sum);
            factors[r] = 1.0f / (all * keep);
            h->log_sums[row + r] = highest + log2f(all);
        }
        multiply_rows(s->weights, s->columns, 1, s->value, s->width, seen, factors,
                      h->output + row * h->output_stride, h->output_stride, rows, a->width);
    }
}

static void attend_backwards(const Attention *a, const Scratch *s, const Head *h) {
    const int64_t ld = h->gradient_stride;
    const uint32_t threshold = threshold_of(a->dropout);
    const vec more = broadcast((float)(1.0 / (1.0 - a->dropout)));
    const float scale = (float)(1.0 / sqrt((double)a->width));
    float factors[MR];
    copy_rows(h->query, h->strides[0], NULL, a->time, a->width, query_factor(a), s->query, s->rows, s->width);
    copy_rows(h->key, h->strides[1], a->column, a->columns, a->width, 1.0f, s->key, s->columns, s->width);
    pack_panels(h->key, h->strides[1], a->column, a->columns, a->width, s->key_panels, s->columns);
    pack_panels(h->value, h->strides[2], a->column, a->columns, a->width, s->value_panels, s->columns);
    copy_rows(h->output_gradient, h->output_stride, NULL, a->time, a->width, 1.0f, s->gradient, s->rows, s->width);
    for (int64_t r = 0; r < a->time; r++) {
        const float *output = h->output + r * h->output_stride, *gradient = s->gradient + r * s->width;
        vec sum = {0};
        for (int64_t w = 0; w < a->width; w += LANES) sum += load_some(output + w, a->width - w) * load(gradient + w);
        s->sums[r] = total(sum);
    }
    for (int r = 0; r < MR; r++) factors[r] = scale;
    for (int64_t row = 0; row < s->rows; row += MR) {
        const int seen = max_seen(a, row), rows = a->time - row < MR ? a->time - row : MR;
        float *weights = s->weights + row * s->columns, *gradients = s->gradients + row * s->columns;
        multiply_panels(s->query + row * s->width, s->width, s->key_panels, a->width, seen, weights, s->columns);
        multiply_panels(s->gradient + row * s->width, s->width, s->value_panels, a->width, seen, gradients, s->columns);
        for (int r = 0; r < MR; r++, weights += s->columns, gradients += s->columns) {
            const int n = r < rows ? a->counts[row + r] : 0, whole = n / LANES * LANES;
            const ivec last = first_lanes(n - whole);
            const vec top = broadcast(r < rows ? h->log_sums[row + r] : 0.0f), sum = broadcast(r < rows ? s->sums[row + r] : 0.0f);
            const uint64_t row_s = row_key(a, h->number, row + r);
            for (int j = 0; j < round_up(seen, STEP); j += LANES) {
                vec p = power_of_two(smaller(load(weights + j) - top, (vec){0}));
                if (j >= whole) p = j == whole ? choose(last, p, (vec){0}) : (vec){0};
                vec g = load(gradients + j) * more, z = p * more;
                if (threshold) {
                    const ivec kept = kept_lanes(row_s, j, threshold);
                    g = (vec)((ivec)g & kept), z = (vec)((ivec)z & kept);
                }
                store(weights + j, z);
                store(gradients + j, p * (g - sum));
            }
        }
        multiply_rows(s->gradients + row * s->columns, s->columns, 1, s->key, s->width, seen, factors, h->query_gradient + row * ld, ld,
                      rows, a->width);
    }
    for (int64_t t = 0, column = 0; t < a->time; t++) /* gradients of positions that no row sees are 0 */
        if (column < a->columns && a->column[column] == t) column++;
        else memset(h->key_gradient + t * ld, 0, sizeof(float) * a->width), memset(h->value_gradient + t * ld, 0, sizeof(float) * a->width);
    float ones[MR], keys[MR];
    for (int r = 0; r < MR; r++) ones[r] = 1.0f, keys[r] = LN_2;
    float *block = s->key_panels; /* (MR, width) gradients, in memory that is no longer needed */
    int64_t row = 0;
    for (int64_t column = 0; column < a->columns; column += MR) {
        while (a->counts[row] <= column) row++;
        const int64_t first = row / MR * MR;
        const int depth = s->rows - first, columns = a->columns - column < MR ? a->columns - column : MR;
        for (int which = 0; which < 2; which++) {
            const float *x = (which ? s->gradients : s->weights) + first * s->columns + column;
            const float *y = (which ? s->query : s->gradient) + first * s->width;
            multiply_rows(x, 1, s->columns, y, s->width, depth, which ? keys : ones, block, a->width, columns, a->width);
            float *to = which ? h->key_gradient : h->value_gradient;
            for (int c = 0; c < columns; c++)
                memcpy(to + a->column[column + c] * ld, block + c * a->width, sizeof(float) * a->width);
        }
    }
}
