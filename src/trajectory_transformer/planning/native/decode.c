/* Decoding many beams of a Trajectory Transformer on a CPU: see ../native_decoder.py.
 *
 * Rows are tokens that are computed together. What a row may attend to is a list of pages in one pool of keys and
 * values, so beams share what they have in common and nothing is ever copied. Threads divide heads and hidden units
 * among them, not rows: each keeps its share of all weights in its own cache, and partial sums meet twice a layer.
 * A row's numbers do not depend on the rows beside it.
 */
#include <math.h>
#include <omp.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if defined(__AVX__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
#define LANES 16
#define MR 8 /* rows of a register tile; its columns are two vectors */
#elif defined(__AVX__)
#define LANES 8
#define MR 4
#else
#define LANES 4
#define MR 8
#endif
#define NR (2 * LANES)
#define QUARTER (LANES / 4) /* slots of a page whose keys lie together */
#define BLOCK 64 /* rows that pass through all layers together */
#define BAND 16  /* rows whose attention is computed together */
#define CHUNK 64  /* pages that the pool grows by */

typedef float vec __attribute__((vector_size(4 * LANES), aligned(4)));
typedef int32_t ivec __attribute__((vector_size(4 * LANES), aligned(4)));

static inline vec load(const float *p) { return *(const vec *)p; }
static inline void store(float *p, vec x) { *(vec *)p = x; }
static inline vec all(float x) { return x - (vec){0}; }
static inline vec repeat4(const float *p) { /* p[0] … p[3], again and again */
#if LANES == 16
    return (vec)_mm512_broadcast_f32x4(_mm_loadu_ps(p));
#elif LANES == 8
    return (vec)_mm256_broadcast_ps((const __m128 *)p);
#else
    return load(p);
#endif
}
static inline vec choose(ivec mask, vec a, vec b) { return (vec)((mask & (ivec)a) | (~mask & (ivec)b)); }
static inline vec larger(vec a, vec b) { return choose(a > b, a, b); }
static inline int round_up(int n, int to) { return (n + to - 1) / to * to; }

static void *allocate(size_t bytes) {
    void *p = NULL;
    return posix_memalign(&p, 64, bytes ? bytes : 64) ? NULL : p;
}
static void *allocate_zeros(size_t bytes) {
    void *p = allocate(bytes);
    return p ? memset(p, 0, bytes) : p;
}

/* ---- elementary functions; relative error of exp 2e-7, absolute error of erf 2e-7 (Abramowitz & Stegun 7.1.26) ---- */

static inline vec exponential(vec x) {
    const vec magic = all(12582912.0f); /* 1.5 * 2^23: adding it rounds to an integer */
    x = larger(x, all(-87.0f));
    x = choose(x > all(88.0f), all(88.0f), x);
    vec shifted = x * all(1.44269504f) + magic, n = shifted - magic;
    vec r = x - n * all(0.693359375f) + n * all(2.12194440e-4f);
    vec p = all(1.9875691500e-4f);
    p = p * r + all(1.3981999507e-3f);
    p = p * r + all(8.3334519073e-3f);
    p = p * r + all(4.1665795894e-2f);
    p = p * r + all(1.6666665459e-1f);
    p = p * r + all(5.0000001201e-1f);
    p = p * r * r + r + all(1.0f);
    return (vec)((ivec)p + ((ivec)shifted << 23));
}

static inline vec gelu(vec x) {
    vec a = (vec)((ivec)(x * all(0.70710678f)) & 0x7fffffff);
    vec t = all(1.0f) / (all(1.0f) + all(0.3275911f) * a);
    vec p = all(1.061405429f);
    p = p * t + all(-1.453152027f);
    p = p * t + all(1.421413741f);
    p = p * t + all(-0.284496736f);
    p = p * t + all(0.254829592f);
    vec erf = all(1.0f) - p * t * exponential(-a * a);
    erf = (vec)((ivec)erf | ((ivec)x & (int32_t)0x80000000));
    return all(0.5f) * x * (all(1.0f) + erf);
}

static inline vec gelu_new(vec x) { /* tanh(y) = 1 - 2 / (exp(2y) + 1) */
    vec y = all(0.7978845608f) * (x + all(0.044715f) * x * x * x);
    return x - x / (exponential(all(2.0f) * y) + all(1.0f));
}

static inline vec selu(vec x) {
    const vec scale = all(1.0507009873f), alpha = all(1.6732632423f);
    return scale * choose(x > all(0.0f), x, alpha * (exponential(x) - all(1.0f)));
}

enum { GELU, RELU, SELU, GELU_NEW };

static void activate(int kind, float *x, int n) {
    for (int i = 0; i < n; i += LANES) {
        vec v = load(x + i);
        if (kind == GELU) v = gelu(v);
        else if (kind == RELU) v = larger(v, all(0.0f));
        else if (kind == SELU) v = selu(v);
        else v = gelu_new(v);
        store(x + i, v);
    }
}

/* ---- products: packed weights are panels of NR columns, each [k][NR] ---- */

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

/* ---- the model ---- */

typedef struct {
    Matrix project, output, up, down; /* one thread's share */
} Layer;

typedef struct {
    int first_head, heads; /* of this thread */
    Layer *layers;
    Matrix *heads_out; /* for each dimension, this thread's columns of the logits */
    int first_logit, logits;
    float *x, *normed, *projected, *seen, *hidden, *scores, *out;
} Share;

/* Slots come in pages of LANES. A sequence sees the first few slots of each of its pages: sequences that branch off in
 * the middle of a page see what was there before, and go on in a page of their own. */
typedef struct {
    int32_t *pages;
    uint8_t *filled; /* slots of each page that this sequence sees */
    int num_pages;
    int extended; /* whether some child has continued in the last page */
    int child;    /* first of its children among the newest sequences, while those are made */
} Sequence;

typedef struct {
    int layers, heads, head_dim, embd, hidden, vocab, transition_dim, block_size, activation, threads;
    int head_size, width; /* head_dim and embd rounded up */
    float eps;
    float *embeddings, *positions; /* (transition_dim, vocab, width), (block_size, width) */
    Share *shares;
    float *partial[2]; /* (threads, BLOCK, width), used in turn */
    float **chunks; /* each (layer, head, CHUNK, 2, …): keys (key_at) and values (LANES, head_size) of a page */
    int num_chunks, used_pages, score_width;
    /* the newest distinct sequences, and which of them each row of the last call is */
    int position, num_sequences;
    Sequence *sequences, *previous;
    int32_t *page_lists, *previous_lists;
    uint8_t *filled_lists, *previous_filled;
    int sequence_capacity, previous_capacity, logits_capacity;
    float *logits; /* (sequences, vocab) after the newest sequences */
    int32_t *sequence_of_row;
} Decoder;

typedef struct {
    int32_t token, position;
    int32_t page, lane; /* where it is stored; page -1 if later tokens may not see it */
    int32_t logits;     /* which row of the result, or -1 */
    const int32_t *pages;
    const uint8_t *filled;
    int32_t num_pages, last_filled; /* last_filled stands for filled[num_pages - 1] */
} Row;

typedef struct {
    int32_t page, place; /* which page, and the how-manyth it is of each of these rows */
    int16_t first, rows; /* rows of a band that see it */
    int32_t filled;      /* the most that one of them sees */
} Run;

enum { OK, NO_MEMORY, TOO_LONG, TOO_FEW_THREADS };

static inline float *page_of(const Decoder *d, int layer, int head, int page) {
    const size_t floats = 2 * (size_t)d->head_size * LANES;
    return d->chunks[page / CHUNK] + ((size_t)(layer * d->heads + head) * CHUNK + page % CHUNK) * floats;
}

static void embed(const Decoder *d, const Row *rows, int n, float *x) {
    for (int r = 0; r < n; r++) {
        const int dimension = rows[r].position % d->transition_dim;
        const float *e = d->embeddings + ((size_t)dimension * d->vocab + rows[r].token) * d->width;
        const float *p = d->positions + (size_t)rows[r].position * d->width;
        for (int i = 0; i < d->width; i += LANES) store(x + r * d->width + i, load(e + i) + load(p + i));
    }
}

#if defined(__clang__)
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (ivec){__VA_ARGS__})
#endif

static inline float total(vec x) {
#if LANES == 16
    x += SHUFFLE(x, x, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7);
    x += SHUFFLE(x, x, 4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11);
#elif LANES == 8
    x += SHUFFLE(x, x, 4, 5, 6, 7, 0, 1, 2, 3);
#endif
    return (x[0] + x[1]) + (x[2] + x[3]);
}

static inline float largest(vec x) {
#if LANES == 16
    x = larger(x, SHUFFLE(x, x, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7));
    x = larger(x, SHUFFLE(x, x, 4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11));
#elif LANES == 8
    x = larger(x, SHUFFLE(x, x, 4, 5, 6, 7, 0, 1, 2, 3));
#endif
    const float a = x[0] > x[1] ? x[0] : x[1], b = x[2] > x[3] ? x[2] : x[3];
    return a > b ? a : b;
}

/* x += the sum of all threads' partial results, if there are any; then out = x without its mean, of unit variance. The
 * norms' weights and biases are part of the products that follow. */
static void add_and_normalize(const Decoder *d, const float *partial, float *x, int n, float *out) {
    const int width = d->width, padding = width - d->embd;
    for (int r = 0; r < n; r++, x += width, out += width) {
        vec sum = {0}, squares = {0};
        for (int i = 0; i < width; i += LANES) {
            vec v = load(x + i);
            for (int t = 0; partial && t < d->threads; t++) v += load(partial + ((size_t)t * BLOCK + r) * width + i);
            store(x + i, v);
            sum += v;
        }
        const float mean = total(sum) / d->embd;
        for (int i = 0; i < width; i += LANES) {
            const vec c = load(x + i) - all(mean);
            squares += c * c;
        }
        const float variance = (total(squares) - padding * mean * mean) / d->embd;
        const vec scale = all(1.0f / sqrtf(variance + d->eps));
        for (int i = 0; i < width; i += LANES) store(out + i, (load(x + i) - all(mean)) * scale);
    }
}

/* Where dimension i of the key in a page's slot is. A vector holds four dimensions of QUARTER keys, so that a key is
 * written in few pieces, and a page that is not full is not read whole. */
static inline int key_at(int slot, int i) { return (i / 4 * 4 + slot / QUARTER) * LANES + slot % QUARTER * 4 + i % 4; }

/* Sums of four neighbours each: all of a, all of b, all of c, all of d. */
static inline vec sums_of_four(vec a, vec b, vec c, vec d) {
#if LANES == 16
#define EVEN(a, b) SHUFFLE(a, b, 0, 2, 16, 18, 4, 6, 20, 22, 8, 10, 24, 26, 12, 14, 28, 30)
#define ODD(a, b) SHUFFLE(a, b, 1, 3, 17, 19, 5, 7, 21, 23, 9, 11, 25, 27, 13, 15, 29, 31)
#elif LANES == 8
#define EVEN(a, b) SHUFFLE(a, b, 0, 2, 8, 10, 4, 6, 12, 14)
#define ODD(a, b) SHUFFLE(a, b, 1, 3, 9, 11, 5, 7, 13, 15)
#else
#define EVEN(a, b) SHUFFLE(a, b, 0, 2, 4, 6)
#define ODD(a, b) SHUFFLE(a, b, 1, 3, 5, 7)
#endif
    const vec ab = EVEN(a, b) + ODD(a, b), cd = EVEN(c, d) + ODD(c, d);
    const vec sums = EVEN(ab, cd) + ODD(ab, cd); /* the first of a, b, c and d, then their second ones, … */
#if LANES == 16
    return SHUFFLE(sums, sums, 0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
#elif LANES == 8
    return SHUFFLE(sums, sums, 0, 4, 1, 5, 2, 6, 3, 7);
#else
    return sums;
#endif
}

/* Scores of some rows against the keys in some quarters of a page. */
static inline __attribute__((always_inline)) void score(const float *restrict q, int ldq, const float *restrict page, int size,
                                                        float *restrict scores, int ld, const int rows, const int quarters) {
    vec sum[4][4], other[4];
#pragma GCC unroll 4
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int g = 0; g < 4; g++) sum[r][g] = (vec){0};
#pragma GCC unroll 4
    for (int g = 0; g < 4; g++) other[g] = (vec){0};
    for (int i = 0; i < size; i += 8) { /* for one row two chains of additions, so that they need not wait */
#pragma GCC unroll 4
        for (int r = 0; r < rows; r++) {
            const vec b = repeat4(q + r * ldq + i);
#pragma GCC unroll 4
            for (int g = 0; g < quarters; g++) sum[r][g] += b * load(page + (i + g) * LANES);
        }
#pragma GCC unroll 4
        for (int r = 0; r < rows; r++) {
            const vec b = repeat4(q + r * ldq + i + 4);
#pragma GCC unroll 4
            for (int g = 0; g < quarters; g++) {
                vec *chain = rows == 1 ? &other[g] : &sum[r][g];
                *chain += b * load(page + (i + 4 + g) * LANES);
            }
        }
    }
#pragma GCC unroll 4
    for (int r = 0; r < rows; r++) {
        if (rows == 1)
#pragma GCC unroll 4
            for (int g = 0; g < 4; g++) sum[r][g] += other[g];
        store(scores + (size_t)r * ld, sums_of_four(sum[r][0], sum[r][1], sum[r][2], sum[r][3]));
    }
}

/* Add to some rows' results their weights times a page's values; columns come in pairs of vectors. */
static inline __attribute__((always_inline)) void combine(const float *restrict weights, int ld, const float *restrict page,
                                                          int filled, int size, float *restrict out, int ldo, const int rows) {
    for (int part = 0; part < size; part += NR) {
        const int second = part + LANES < size ? LANES : 0;
        const float *value = page + part;
        vec sum[4][2], other[4][2];
#pragma GCC unroll 4
        for (int r = 0; r < rows; r++) {
            sum[r][0] = load(out + (size_t)r * ldo + part), sum[r][1] = load(out + (size_t)r * ldo + part + second);
            other[r][0] = other[r][1] = (vec){0};
        }
        int l = 0;
        for (; l + 2 <= filled; l += 2, value += 2 * size) {
            const vec v0 = load(value), v1 = load(value + second), v2 = load(value + size), v3 = load(value + size + second);
#pragma GCC unroll 4
            for (int r = 0; r < rows; r++) {
                const vec a = all(weights[r * ld + l]), b = all(weights[r * ld + l + 1]);
                sum[r][0] += a * v0, sum[r][1] += a * v1;
                other[r][0] += b * v2, other[r][1] += b * v3;
            }
        }
        if (l < filled) {
            const vec v0 = load(value), v1 = load(value + second);
#pragma GCC unroll 4
            for (int r = 0; r < rows; r++) {
                const vec a = all(weights[r * ld + l]);
                sum[r][0] += a * v0, sum[r][1] += a * v1;
            }
        }
#pragma GCC unroll 4
        for (int r = 0; r < rows; r++) {
            float *o = out + (size_t)r * ldo + part;
            store(o, sum[r][0] + other[r][0]);
            if (second) store(o + LANES, sum[r][1] + other[r][1]);
        }
    }
}

/* Scores to weights, not yet divided by their sum, which is returned; slots that the row does not see get weight 0. */
static inline float soften(const Row *row, float *scores) {
    vec top = all(-INFINITY), mass = {0};
    ivec lane;
    for (int l = 0; l < LANES; l++) lane[l] = l;
    const int last = row->num_pages - 1;
    for (int p = 0; p <= last; p++) {
        const int n = p == last ? row->last_filled : row->filled[p];
        vec s = load(scores + p * LANES);
        if (n < LANES) store(scores + p * LANES, s = choose(lane < ((ivec){0} + n), s, all(-1e30f)));
        top = larger(top, s);
    }
    const vec max = all(largest(top));
    for (int p = 0; p <= last; p++) {
        const int n = p == last ? row->last_filled : row->filled[p];
        vec e = exponential(load(scores + p * LANES) - max);
        if (n < LANES) e = choose(lane < ((ivec){0} + n), e, all(0.0f));
        store(scores + p * LANES, e);
        mass += e;
    }
    return total(mass);
}

#define FOR_ROWS(run, call)                                                        \
    for (int r = (run)->first, end = r + (run)->rows; r < end;) {                  \
        if (end - r >= 4) { enum { ROWS = 4 }; call; r += 4; }                     \
        else if (end - r >= 2) { enum { ROWS = 2 }; call; r += 2; }                \
        else { enum { ROWS = 1 }; call; r += 1; }                                  \
    }

/* One head of one layer. */
static inline __attribute__((always_inline)) void attend(const Decoder *d, int layer, int head, const Row *rows, int n, const Run *runs,
                                                         int num_runs, const float *q, int ldq, float *scores, float *out, int ldo,
                                                         const int size) {
    float scale[BAND];
    const int ld = d->score_width;
    for (const Run *run = runs; run < runs + num_runs; run++) {
        const float *keys = page_of(d, layer, head, run->page);
#define SCORE(quarters) \
    FOR_ROWS(run, score(q + (size_t)r * ldq, ldq, keys, size, scores + (size_t)r * ld + run->place * LANES, ld, ROWS, quarters))
        if (run->filled <= QUARTER) SCORE(1)
        else if (run->filled <= 2 * QUARTER) SCORE(2)
        else if (run->filled <= 3 * QUARTER) SCORE(3)
        else SCORE(4)
#undef SCORE
    }
    for (int r = 0; r < n; r++) {
        scale[r] = 1.0f / soften(&rows[r], scores + (size_t)r * ld);
        for (int i = 0; i < size; i += LANES) store(out + (size_t)r * ldo + i, (vec){0});
    }
    for (const Run *run = runs; run < runs + num_runs; run++) {
        const float *values = page_of(d, layer, head, run->page) + size * LANES;
        FOR_ROWS(run,
                 combine(scores + (size_t)r * ld + run->place * LANES, ld, values, run->filled, size, out + (size_t)r * ldo, ldo, ROWS))
    }
    for (int r = 0; r < n; r++)
        for (int i = 0; i < size; i += LANES) store(out + (size_t)r * ldo + i, load(out + (size_t)r * ldo + i) * all(scale[r]));
}

static void attention(const Decoder *d, const Share *share, int layer, const Row *rows, int n, const Run *runs, const int *band_runs) {
    const int size = d->head_size, columns = share->heads * size, ldp = share->layers[layer].project.n;
    for (int h = 0; h < share->heads; h++) {
        const int head = share->first_head + h;
        for (int r = 0; r < n; r++)
            if (rows[r].page >= 0) {
                const float *key = share->projected + (size_t)r * ldp + columns + h * size, *value = key + columns;
                float *page = page_of(d, layer, head, rows[r].page);
                for (int i = 0; i < size; i += 4) memcpy(page + key_at(rows[r].lane, i), key + i, sizeof(float) * 4);
                memcpy(page + (LANES + rows[r].lane) * size, value, sizeof(float) * size);
            }
        for (int r = 0; r < n; r += BAND) {
            const int first = band_runs[r / BAND], num = band_runs[r / BAND + 1] - first, m = n - r < BAND ? n - r : BAND;
            const float *q = share->projected + (size_t)r * ldp + h * size;
            float *out = share->seen + (size_t)r * columns + h * size;
            if (size == 32) attend(d, layer, head, rows + r, m, runs + first, num, q, ldp, share->scores, out, columns, 32);
            else attend(d, layer, head, rows + r, m, runs + first, num, q, ldp, share->scores, out, columns, size);
        }
    }
}

/* All layers for rows of which each sees only slots of earlier rows, its own block's included. */
static void run_block(const Decoder *d, int thread, const Row *rows, int n, const Run *runs, const int *band_runs) {
    Share *share = &d->shares[thread];
    const int width = d->width;
    float *mine[2] = {d->partial[0] + (size_t)thread * BLOCK * width, d->partial[1] + (size_t)thread * BLOCK * width};
    embed(d, rows, n, share->x);
    add_and_normalize(d, NULL, share->x, n, share->normed);
    for (int l = 0; l < d->layers; l++) {
        const Layer *layer = &share->layers[l];
        multiply(&layer->project, share->normed, width, n, share->projected, layer->project.n);
        attention(d, share, l, rows, n, runs, band_runs);
        multiply(&layer->output, share->seen, layer->output.k, n, mine[0], width);
#pragma omp barrier
        add_and_normalize(d, d->partial[0], share->x, n, share->normed);
        multiply(&layer->up, share->normed, width, n, share->hidden, layer->up.n);
        activate(d->activation, share->hidden, n * layer->up.n);
        multiply(&layer->down, share->hidden, layer->up.n, n, mine[1], width);
#pragma omp barrier
        add_and_normalize(d, d->partial[1], share->x, n, share->normed);
    }
    int wanted = 0, which[BLOCK];
    for (int r = 0; r < n; r++)
        if (rows[r].logits >= 0) {
            if (wanted < r) memcpy(share->normed + (size_t)wanted * width, share->normed + (size_t)r * width, sizeof(float) * width);
            which[wanted++] = r;
        }
    if (!wanted || !share->logits) return;
    const Matrix *head = &share->heads_out[rows[which[0]].position % d->transition_dim];
    multiply(head, share->normed, width, wanted, share->out, head->n);
    for (int w = 0; w < wanted; w++)
        memcpy(d->logits + (size_t)rows[which[w]].logits * d->vocab + share->first_logit, share->out + (size_t)w * head->n,
               sizeof(float) * share->logits);
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
    int complete = 1;
#pragma omp parallel num_threads(d->threads)
    for (int b = 0; b < blocks; b++) {
        const int first = b * size;
        if (omp_get_num_threads() != d->threads) complete = 0;
        else if (first < n)
            run_block(d, omp_get_thread_num(), rows + first, n - first < size ? n - first : size, runs, band_runs + b * bands);
    }
    free(runs), free(band_runs);
    return complete ? OK : TOO_FEW_THREADS;
}

/* ---- sequences ---- */

static int reserve_sequences(Decoder *d, int n) {
    if (n <= d->sequence_capacity) return OK;
    free(d->sequences), free(d->page_lists), free(d->filled_lists);
    d->sequences = malloc(sizeof(Sequence) * n);
    d->page_lists = malloc(sizeof(int32_t) * n * d->block_size), d->filled_lists = malloc((size_t)n * d->block_size);
    d->sequence_capacity = n;
    return d->sequences && d->page_lists && d->filled_lists ? OK : NO_MEMORY;
}

/* Room for one more page. */
static int add_page(Decoder *d) {
    if (d->used_pages == d->num_chunks * CHUNK) {
        float **chunks = realloc(d->chunks, sizeof(float *) * (d->num_chunks + 1));
        if (!chunks) return NO_MEMORY;
        d->chunks = chunks;
        chunks[d->num_chunks] = allocate_zeros(sizeof(float) * 2 * CHUNK * d->layers * d->heads * d->head_size * LANES);
        if (!chunks[d->num_chunks]) return NO_MEMORY;
        d->num_chunks++;
    }
    d->used_pages++;
    return OK;
}

/* A sequence that begins as a copy of another; its lists have room for a whole window. */
static void copy(Sequence *to, const Sequence *from, int32_t *pages, uint8_t *filled) {
    *to = *from;
    to->pages = memcpy(pages, from->pages, sizeof(int32_t) * from->num_pages);
    to->filled = memcpy(filled, from->filled, from->num_pages);
    to->child = -1;
}

/* Give a sequence one more slot: behind the last if there is room on its page, and nobody has taken it. */
static int add_slot(Decoder *d, Sequence *s) {
    if (s->num_pages && !s->extended && s->filled[s->num_pages - 1] < LANES) {
        s->filled[s->num_pages - 1]++;
    } else {
        if (add_page(d) != OK) return NO_MEMORY;
        s->pages[s->num_pages] = d->used_pages - 1, s->filled[s->num_pages++] = 1;
    }
    s->extended = 0;
    return OK;
}

static Row make_row(const Sequence *s, int token, int position, int stored, int logits) {
    const int last = s->num_pages - 1, filled = s->num_pages ? s->filled[last] : 0;
    return (Row){token, position, stored ? s->pages[last] : -1, filled - 1, logits, s->pages, s->filled, s->num_pages, filled};
}

/* Continue row parents[r] of the last call by tokens[r]; rows that do the same are computed once. */
int tt_step(Decoder *d, const int64_t *parents, int rows, const int64_t *tokens) {
    if (d->position >= d->block_size) return TOO_LONG;
    const int stored = d->position % d->transition_dim != d->transition_dim - 1;
    int32_t *old_of_row = d->sequence_of_row;
    Sequence *old = d->sequences;
    int32_t *old_pages = d->page_lists;
    uint8_t *old_filled = d->filled_lists;
    const int old_capacity = d->sequence_capacity;
    d->sequences = d->previous, d->page_lists = d->previous_lists, d->filled_lists = d->previous_filled;
    d->sequence_capacity = d->previous_capacity;
    d->previous = old, d->previous_lists = old_pages, d->previous_filled = old_filled, d->previous_capacity = old_capacity;
    for (int s = 0; s < d->num_sequences; s++) old[s].child = -1;
    int32_t *siblings = malloc(sizeof(int32_t) * rows), *new_of_row = malloc(sizeof(int32_t) * rows);
    int32_t *order = malloc(sizeof(int32_t) * rows), *count = calloc(d->num_sequences + 1, sizeof(int32_t));
    Row *work = malloc(sizeof(Row) * rows);
    int status = siblings && new_of_row && order && count && work ? reserve_sequences(d, rows) : NO_MEMORY, n = 0;
    if (status == OK) { /* relatives side by side: they share most of what they attend to */
        for (int r = 0; r < rows; r++) count[old_of_row[parents[r]] + 1]++;
        for (int s = 0; s < d->num_sequences; s++) count[s + 1] += count[s];
        for (int r = 0; r < rows; r++) order[count[old_of_row[parents[r]]]++] = r;
    }
    for (int i = 0; i < rows && status == OK; i++) {
        const int r = order[i];
        Sequence *parent = &old[old_of_row[parents[r]]];
        int s = parent->child;
        while (s >= 0 && work[s].token != tokens[r]) s = siblings[s];
        if (s < 0) {
            s = n++;
            Sequence *child = &d->sequences[s];
            siblings[s] = parent->child, parent->child = s;
            copy(child, parent, d->page_lists + (size_t)s * d->block_size, d->filled_lists + (size_t)s * d->block_size);
            parent->extended = 1; /* by this child, or to be by its children */
            if (stored) status = add_slot(d, child);
            work[s] = make_row(child, tokens[r], d->position, stored, s);
        }
        new_of_row[r] = s;
    }
    if (status == OK) {
        status = run(d, work, n, n);
        d->position++;
        d->num_sequences = n;
    }
    free(siblings), free(old_of_row), free(order), free(count), free(work);
    d->sequence_of_row = new_of_row;
    return status;
}

/* Logits (rows, vocab) after row parents[r] of the last call. */
void tt_logits(const Decoder *d, const int64_t *parents, int rows, float *out) {
    for (int r = 0; r < rows; r++)
        memcpy(out + (size_t)r * d->vocab, d->logits + (size_t)d->sequence_of_row[parents[r]] * d->vocab, sizeof(float) * d->vocab);
}

/* ---- sampling: sampling.py's choose, for many rows ---- */

static int most_likely(const float *x, int n) {
    int best = 0;
    for (int i = 1; i < n; i++)
        if (x[i] > x[best]) best = i;
    return best;
}

/* x (padded to LANES) to probabilities; what is at or below -1000 gets none, unless everything is. */
static void softmax(float *x, int n) {
    vec top = all(-INFINITY), mass = {0};
    for (int i = n; i < round_up(n, LANES); i++) x[i] = -INFINITY;
    for (int i = 0; i < n; i += LANES) top = larger(top, load(x + i));
    const float max = largest(top);
    for (int i = 0; i < n; i += LANES) {
        const vec v = load(x + i), e = choose(v < all(max - 87.0f), all(0.0f), exponential(v - all(max)));
        store(x + i, e), mass += e;
    }
    const vec scale = all(1.0f / total(mass));
    for (int i = 0; i < n; i += LANES) store(x + i, load(x + i) * scale);
}

/* out[j]: the sum of weights[i] (1 if there are none) over all i that come before j, or are j, in ascending order of x */
static void sums_up_to(const float *x, const float *weights, int n, float *out) {
    for (int j = 0; j < n; j += LANES) {
        const vec xj = load(x + j);
        ivec at;
        for (int l = 0; l < LANES; l++) at[l] = j + l;
        vec sum = {0};
        for (int i = 0; i < n; i++) {
            const vec xi = all(x[i]);
            const ivec before = (xi < xj) | ((xi == xj) & (((ivec){0} + i) <= at));
            sum += choose(before, all(weights ? weights[i] : 1.0f), all(0.0f));
        }
        store(out + j, sum);
    }
}

/* Logits (padded) to the cumulative distribution of what the filters leave. k 0 and cdf below 0 stand for none. */
static void filter(float *x, int n, int k, float cdf, float *scratch) {
    if (cdf >= 0) {
        float *p = scratch, *below = scratch + round_up(n, LANES), cutoff = INFINITY, last = -INFINITY;
        memcpy(p, x, sizeof(float) * n);
        softmax(p, n);
        sums_up_to(p, p, n, below);
        for (int i = 0; i < n; i++) {
            if (below[i] < cdf && p[i] > last) last = p[i];
            if (p[i] < cutoff) cutoff = p[i]; /* at least the least likely is dropped */
        }
        if (last > cutoff) cutoff = last;
        for (int i = 0; i < n; i++)
            if (p[i] <= cutoff) x[i] = -1000.0f;
    }
    if (k && k < n) {
        float *rank = scratch, cutoff = -INFINITY;
        for (int i = n; i < round_up(n, LANES); i++) x[i] = -INFINITY;
        sums_up_to(x, NULL, n, rank);
        for (int i = 0; i < n; i++)
            if ((int)rank[i] == n - k + 1) cutoff = x[i];
        for (int i = 0; i < n; i++)
            if (x[i] < cutoff) x[i] = -INFINITY;
    }
    softmax(x, n);
    for (int i = 1; i < n; i++) x[i] += x[i - 1];
}

static int draw(const float *cumulative, int n, float uniform) {
    int token = 0;
    while (token < n - 1 && cumulative[token] <= uniform * cumulative[n - 1]) token++;
    return token;
}

static int sample(Decoder *d, const int64_t *parents, int rows, const float *uniforms, int stride, float temperature, int k,
                  float cdf, int64_t *tokens) {
    const int n = d->vocab, padded = round_up(n, LANES);
    float *cumulative = NULL;
    if (k != 1) {
        cumulative = allocate(sizeof(float) * d->num_sequences * padded);
        if (!cumulative) return NO_MEMORY;
#pragma omp parallel num_threads(d->threads)
        {
            float scratch[2 * padded];
#pragma omp for
            for (int s = 0; s < d->num_sequences; s++) {
                float *x = cumulative + (size_t)s * padded;
                for (int i = 0; i < n; i++) x[i] = d->logits[(size_t)s * n + i] / temperature;
                filter(x, n, k, cdf, scratch);
            }
        }
    }
    for (int r = 0; r < rows; r++) {
        const int s = d->sequence_of_row[parents ? parents[r] : r];
        tokens[r] = k == 1 ? most_likely(d->logits + (size_t)s * n, n) : draw(cumulative + (size_t)s * padded, n, uniforms[(size_t)r * stride]);
    }
    free(cumulative);
    return OK;
}

/* Sample count tokens (count, rows) behind row parents[r] of the last call; uniforms: (rows, count). */
int tt_extend(Decoder *d, const int64_t *parents, int rows, const float *uniforms, int count, float temperature, int k, float cdf,
              int64_t *tokens) {
    int64_t *same = malloc(sizeof(int64_t) * rows);
    int status = same ? OK : NO_MEMORY;
    for (int r = 0; r < rows && status == OK; r++) same[r] = r;
    for (int i = 0; i < count && status == OK; i++, tokens += rows) {
        const int64_t *from = i ? same : parents;
        status = sample(d, from, rows, uniforms + i, count, temperature, k, cdf, tokens);
        if (status == OK) status = tt_step(d, from, rows, tokens);
    }
    free(same);
    return status;
}

typedef struct {
    const int64_t *tokens; /* of this transition */
    int length, first_child, next_sibling, sequence, last_row;
} Node;

/* Begin anew with whole sequences (rows, time) from position 0. Transitions that several of them begin with are computed
 * once. */
int tt_encode(Decoder *d, const int64_t *tokens, int rows, int time) {
    if (time > d->block_size) return TOO_LONG;
    const int dim = d->transition_dim, levels = (time + dim - 1) / dim, most = rows * levels + 1;
    Node *nodes = malloc(sizeof(Node) * most);
    Sequence *paths = malloc(sizeof(Sequence) * most);
    int32_t *pages = malloc(sizeof(int32_t) * most * d->block_size);
    uint8_t *filled = malloc((size_t)most * d->block_size);
    Row *work = malloc(sizeof(Row) * (size_t)rows * time);
    int status = nodes && paths && pages && filled && work ? OK : NO_MEMORY;
    if (status == OK) status = reserve_sequences(d, rows);
    free(d->sequence_of_row);
    d->sequence_of_row = malloc(sizeof(int32_t) * rows);
    d->used_pages = 0;
    int num_nodes = 1, num_rows = 0, leaves = 0;
    if (status == OK) nodes[0] = (Node){NULL, 0, -1, -1, -1, 0}, paths[0] = (Sequence){pages, filled, 0, 0, -1};
    for (int r = 0; r < rows && status == OK; r++) {
        int at = 0;
        for (int level = 0; level < levels && status == OK; level++) {
            const int length = time - level * dim < dim ? time - level * dim : dim;
            const int64_t *part = tokens + (size_t)r * time + level * dim;
            int next = nodes[at].first_child;
            while (next >= 0 && memcmp(nodes[next].tokens, part, sizeof(int64_t) * length)) next = nodes[next].next_sibling;
            if (next < 0) {
                next = num_nodes++;
                Sequence *path = &paths[next];
                copy(path, &paths[at], pages + (size_t)next * d->block_size, filled + (size_t)next * d->block_size);
                paths[at].extended = 1;
                for (int i = 0; i < length && status == OK; i++) {
                    if (i < dim - 1) status = add_slot(d, path);
                    work[num_rows++] = make_row(path, part[i], level * dim + i, i < dim - 1, -1);
                }
                nodes[next] = (Node){part, length, -1, nodes[at].first_child, -1, num_rows - 1};
                nodes[at].first_child = next;
            }
            at = next;
        }
        if (nodes[at].sequence < 0) {
            nodes[at].sequence = work[nodes[at].last_row].logits = leaves;
            copy(&d->sequences[leaves], &paths[at], d->page_lists + (size_t)leaves * d->block_size,
                 d->filled_lists + (size_t)leaves * d->block_size);
            leaves++;
        }
        d->sequence_of_row[r] = nodes[at].sequence;
    }
    if (status == OK) {
        status = run(d, work, num_rows, leaves);
        d->position = time, d->num_sequences = leaves;
    }
    free(nodes), free(paths), free(pages), free(filled), free(work);
    return status;
}

/* ---- making and freeing ---- */

/* weights: embeddings (transition_dim, vocab, embd), positions (block_size, embd), heads (transition_dim, vocab, embd),
 * their biases (transition_dim, vocab); then for each layer weight and bias of query, key, value, output, up, down.
 * shape: layers, heads, embd, hidden, vocab, transition_dim, block_size, activation, threads. */
Decoder *tt_create(const int *shape, float eps, const float **weights) {
    Decoder *d = calloc(1, sizeof(Decoder));
    d->layers = shape[0], d->heads = shape[1], d->embd = shape[2], d->hidden = shape[3], d->vocab = shape[4];
    d->transition_dim = shape[5], d->block_size = shape[6], d->activation = shape[7];
    d->threads = shape[8] < d->heads ? shape[8] : d->heads;
#pragma omp parallel num_threads(d->threads)
#pragma omp single
    d->threads = omp_get_num_threads(); /* fewer where a limit is set, one inside another parallel region */
    d->eps = eps, d->head_dim = d->embd / d->heads;
    d->head_size = round_up(d->head_dim, LANES > 8 ? LANES : 8), d->width = round_up(d->embd, NR);
    const int size = d->head_size, rows = BLOCK;
    d->embeddings = allocate_zeros(sizeof(float) * d->transition_dim * d->vocab * d->width);
    d->positions = allocate_zeros(sizeof(float) * d->block_size * d->width);
    for (int i = 0; i < d->transition_dim * d->vocab; i++)
        memcpy(d->embeddings + (size_t)i * d->width, weights[0] + (size_t)i * d->embd, sizeof(float) * d->embd);
    for (int i = 0; i < d->block_size; i++)
        memcpy(d->positions + (size_t)i * d->width, weights[1] + (size_t)i * d->embd, sizeof(float) * d->embd);
    for (int i = 0; i < 2; i++) d->partial[i] = allocate_zeros(sizeof(float) * d->threads * rows * d->width);
    d->shares = calloc(d->threads, sizeof(Share));
    int *residual = malloc(sizeof(int) * d->width), *columns = malloc(sizeof(int) * (3 * d->heads * size + d->hidden + d->vocab + NR));
    for (int i = 0; i < d->width; i++) residual[i] = i < d->embd ? i : -1;
    const int hidden_panels = (d->hidden + NR - 1) / NR, logit_panels = (d->vocab + NR - 1) / NR;
    for (int t = 0; t < d->threads; t++) {
        Share *s = &d->shares[t];
        s->first_head = t * d->heads / d->threads, s->heads = (t + 1) * d->heads / d->threads - s->first_head;
        const int first_hidden = t * hidden_panels / d->threads * NR;
        int end = (t + 1) * hidden_panels / d->threads * NR;
        const int hidden = (end < d->hidden ? end : d->hidden) - first_hidden;
        s->first_logit = t * logit_panels / d->threads * NR, end = (t + 1) * logit_panels / d->threads * NR;
        s->logits = (end < d->vocab ? end : d->vocab) - s->first_logit;
        s->layers = calloc(d->layers, sizeof(Layer));
        const int own = s->heads * size;
        for (int l = 0; l < d->layers; l++) {
            const float **w = weights + 4 + 12 * l;
            /* query, key and value of this thread's heads, behind each other; one matrix from three */
            float *joined = allocate_zeros(sizeof(float) * 3 * d->embd * d->embd), *bias = allocate(sizeof(float) * 3 * d->embd);
            for (int part = 0; part < 3; part++) {
                memcpy(joined + (size_t)part * d->embd * d->embd, w[2 * part], sizeof(float) * d->embd * d->embd);
                memcpy(bias + part * d->embd, w[2 * part + 1], sizeof(float) * d->embd);
            }
            for (int j = 0; j < 3 * own; j++) {
                const int part = j / own, head = s->first_head + j % own / size, i = j % size;
                columns[j] = i < d->head_dim ? part * d->embd + head * d->head_dim + i : -1;
            }
            s->layers[l].project = pack(joined, bias, d->embd, columns, 3 * own, residual, d->width);
            free(joined), free(bias);
            for (int j = 0; j < own; j++)
                columns[j] = j % size < d->head_dim ? (s->first_head + j / size) * d->head_dim + j % size : -1;
            s->layers[l].output = pack(w[6], t ? NULL : w[7], d->embd, residual, d->width, columns, own);
            for (int j = 0; j < hidden; j++) columns[j] = first_hidden + j;
            s->layers[l].up = pack(w[8], w[9], d->embd, columns, hidden, residual, d->width);
            for (int j = hidden; j < s->layers[l].up.n; j++) columns[j] = -1;
            s->layers[l].down = pack(w[10], t ? NULL : w[11], d->hidden, residual, d->width, columns, s->layers[l].up.n);
        }
        s->heads_out = calloc(d->transition_dim, sizeof(Matrix));
        for (int j = 0; j < s->logits; j++) columns[j] = s->first_logit + j;
        for (int i = 0; i < d->transition_dim && s->logits; i++)
            s->heads_out[i] = pack(weights[2] + (size_t)i * d->vocab * d->embd, weights[3] + i * d->vocab, d->embd, columns,
                                   s->logits, residual, d->width);
        s->x = allocate_zeros(sizeof(float) * rows * d->width), s->normed = allocate_zeros(sizeof(float) * rows * d->width);
        s->projected = allocate_zeros(sizeof(float) * rows * round_up(3 * own, NR));
        s->seen = allocate_zeros(sizeof(float) * rows * own);
        s->hidden = allocate_zeros(sizeof(float) * rows * round_up(hidden, NR));
        s->scores = allocate_zeros(sizeof(float) * BAND * d->block_size * LANES);
        s->out = allocate_zeros(sizeof(float) * rows * round_up(s->logits, NR));
    }
    free(residual), free(columns);
    return d;
}

void tt_destroy(Decoder *d) {
    for (int t = 0; t < d->threads; t++) {
        Share *s = &d->shares[t];
        for (int l = 0; l < d->layers; l++) {
            Matrix *all_of[] = {&s->layers[l].project, &s->layers[l].output, &s->layers[l].up, &s->layers[l].down};
            for (int i = 0; i < 4; i++) free(all_of[i]->panels), free(all_of[i]->bias);
        }
        for (int i = 0; i < d->transition_dim; i++) free(s->heads_out[i].panels), free(s->heads_out[i].bias);
        free(s->layers), free(s->heads_out), free(s->x), free(s->normed), free(s->projected), free(s->seen);
        free(s->hidden), free(s->scores), free(s->out);
    }
    for (int i = 0; i < d->num_chunks; i++) free(d->chunks[i]);
    free(d->chunks), free(d->partial[0]), free(d->partial[1]), free(d->shares);
    free(d->embeddings), free(d->positions), free(d->sequences), free(d->previous), free(d->page_lists);
    free(d->previous_lists), free(d->filled_lists), free(d->previous_filled), free(d->logits), free(d->sequence_of_row), free(d);
}
