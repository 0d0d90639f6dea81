/* A whole transformer block, forward and backward, for training on a CPU: see block.py. Each thread computes one sequence
 * at a time, ROWS positions at once where they are independent, so that what passes from one step to the next stays in the
 * cache. Sequences are divided into groups, whose gradients of weights are summed in order: no result depends on the number
 * of threads. */
#include "attention.h"

#include <omp.h>

#define ROWS 64   /* positions at once, a multiple of MR */
#define DEPTH 128 /* rows of packed weights used at once, so few that they stay in the first-level cache */
#define PADDED 16 /* rows of saved numbers are padded to a multiple of this, which MR divides */
#define GROUPS 16 /* at most; each has gradients of its own of all weights */

enum { QUERY, KEY, VALUE, PROJECTION, UP, DOWN, MATRICES };

typedef struct {
    float *weight[MATRICES], *bias[MATRICES], *norm_weight[2], *norm_bias[2];
} Parameters; /* or their gradients */

typedef struct { /* the same fields as in block.py; width D = heads * attention.width, a multiple of NR */
    Attention attention; /* sizes, mask, dropout of attention weights, threads; its pointers are not used */
    double epsilon[2];   /* of the norms before attention and MLP */
    double dropout; /* probability that a number that attention or MLP adds is dropped, in [0, 1) */
    uint64_t seeds[2];
    float *parameters; /* weight and bias, as torch stores them, of each matrix in its order, then of the norms */
    const float *x;  /* (batch, time, D) */
    float *out;      /* (batch, time, D) */
    float *saved;    /* (batch, saved_size): see Saved */
    const float *out_gradient; /* (batch, time, D) */
    float *x_gradient;         /* (batch, time, D) */
    float *gradients;          /* of the parameters */
    Parameters p;              /* set by tt_block */
} Block;

/* What the forward pass leaves to the backward pass, for one sequence. */
typedef struct {
    float *projected; /* (rows, 3 D) queries, keys, values */
    float *attended;  /* (rows, D) */
    float *middle;    /* (rows, D) x and what attention added */
    float *up;        /* (rows, 4 D) before GELU */
    float *log_sums;  /* (heads, time) */
} Saved;

static int64_t width_of(const Block *b) { return b->attention.heads * b->attention.width; }
static int64_t padded_time(const Block *b) { return round_up(b->attention.time, PADDED); }

/* Numbers that Saved takes for a sequence, as in block.py. */
static int64_t saved_size(const Block *b) { return padded_time(b) * 9 * width_of(b) + b->attention.heads * b->attention.time; }

static Saved saved_of(const Block *b, int64_t sequence) {
    const int64_t rows = padded_time(b), width = width_of(b);
    float *at = b->saved + sequence * saved_size(b);
    return (Saved){at, at + rows * 3 * width, at + rows * 4 * width, at + rows * 5 * width, at + rows * 9 * width};
}

/* Inputs and outputs of the matrices; those of query, key and value are used as one, of 3 D outputs. */
static int64_t inputs_of(int matrix, int64_t width) { return matrix == DOWN ? 4 * width : width; }
static int64_t outputs_of(int matrix, int64_t width) { return matrix == UP ? 4 * width : width; }

/* Place parameters from address at on. Returns how many numbers they are. */
static size_t lay_out_parameters(Parameters *p, int64_t width, float *at) {
    const float *begin = at;
    for (int m = 0; m < MATRICES; m++) {
        p->weight[m] = at, at += outputs_of(m, width) * inputs_of(m, width);
        p->bias[m] = at, at += outputs_of(m, width);
    }
    for (int n = 0; n < 2; n++) {
        p->norm_weight[n] = at, at += width;
        p->norm_bias[n] = at, at += width;
    }
    return at - begin;
}

/* ---- products ---- */

/* Pack weights (outputs, inputs) into panels of NR columns: of outputs, or, for the product with a gradient, of inputs.
 * The panels begin at row first of depth rows. */
static void pack(const float *weight, int64_t outputs, int64_t inputs, int of_inputs, float *panels, int64_t first, int64_t depth) {
    for (int64_t o = 0; o < outputs; o += LANES)
        for (int64_t i = 0; i < inputs; i += LANES) {
            vec x[LANES];
            UNROLL for (int r = 0; r < LANES; r++) x[r] = load(weight + (o + r) * inputs + i);
            if (!of_inputs) transpose(x);
            const int64_t column = of_inputs ? i : o, row = first + (of_inputs ? o : i);
            float *to = panels + column / NR * NR * depth + row * NR + column % NR;
            UNROLL for (int r = 0; r < LANES; r++) store(to + r * NR, x[r]);
        }
}

static inline void load_tile(const float *from, int64_t stride, vec sums[MR][2]) {
    UNROLL for (int r = 0; r < MR; r++) sums[r][0] = load(from + r * stride), sums[r][1] = load(from + r * stride + LANES);
}
static inline void store_tile(float *to, int64_t stride, vec sums[MR][2]) {
    UNROLL for (int r = 0; r < MR; r++) store(to + r * stride, sums[r][0]), store(to + r * stride + LANES, sums[r][1]);
}

/* out (rows, columns) = a (rows, depth) @ panels + bias, for rows rounded up to MR */
static void product(const float *a, int64_t lda, const float *panels, int64_t depth, const float *bias, float *out, int64_t ldo, int64_t rows,
                    int64_t columns) {
    vec sums[MR][2];
    for (int64_t d = 0; d < depth; d += DEPTH)
        for (int64_t j = 0; j < columns; j += NR)
            for (int64_t r = 0; r < rows; r += MR) {
                if (d) load_tile(out + r * ldo + j, ldo, sums);
                else UNROLL for (int i = 0; i < MR; i++) {
                    sums[i][0] = bias ? load(bias + j) : (vec){0};
                    sums[i][1] = bias ? load(bias + j + LANES) : (vec){0};
                }
                multiply_add(a + r * lda + d, lda, 1, panels + j * depth + d * NR, NR, depth - d < DEPTH ? depth - d : DEPTH, 2, sums);
                store_tile(out + r * ldo + j, ldo, sums);
            }
}

/* weight (outputs, inputs) += gradient (rows, outputs) transposed @ x (rows, inputs), and bias (outputs) += the sum of rows */
static void add_gradients(const float *gradient, int64_t ldg, const float *x, int64_t ldx, int64_t rows, int64_t outputs, int64_t inputs,
                          float *weight, float *bias) {
    vec sums[MR][2];
    for (int64_t i = 0; i < inputs; i += NR)
        for (int64_t o = 0; o < outputs; o += MR) {
            load_tile(weight + o * inputs + i, inputs, sums);
            multiply_add(gradient + o, 1, ldg, x + i, ldx, rows, 2, sums);
            store_tile(weight + o * inputs + i, inputs, sums);
        }
    for (int64_t o = 0; o < outputs; o += LANES) {
        vec sum = load(bias + o);
        for (int64_t r = 0; r < rows; r++) sum += load(gradient + r * ldg + o);
        store(bias + o, sum);
    }
}

/* ---- norms, residuals ---- */

typedef struct {
    float mean, scale;
} Moments;

static Moments moments_of(const float *x, int64_t width, double epsilon) {
    vec sum = {0}, squares = {0};
    for (int64_t w = 0; w < width; w += LANES) sum += load(x + w);
    const float mean = total(sum) / width;
    for (int64_t w = 0; w < width; w += LANES) {
        const vec y = load(x + w) - broadcast(mean);
        squares += y * y;
    }
    return (Moments){mean, 1.0f / sqrtf(total(squares) / width + (float)epsilon)};
}

static void normalise(const Block *b, int which, const float *x, int64_t rows, float *out) {
    const int64_t width = width_of(b);
    for (int64_t r = 0; r < rows; r++, x += width, out += width) {
        const Moments m = moments_of(x, width, b->epsilon[which]);
        for (int64_t w = 0; w < width; w += LANES)
            store(out + w, (load(x + w) - broadcast(m.mean)) * broadcast(m.scale) * load(b->p.norm_weight[which] + w) + load(b->p.norm_bias[which] + w));
    }
}

/* out = other + the gradient of x, given that of the normalised x; adds those of the norm's weight and bias. */
static void normalise_backwards(const Block *b, int which, const float *gradient, const float *x, const float *other, int64_t rows, float *out,
                                float *weight, float *bias) {
    const int64_t width = width_of(b);
    for (int64_t r = 0; r < rows; r++, x += width, gradient += width, other += width, out += width) {
        const Moments m = moments_of(x, width, b->epsilon[which]);
        vec sum = {0}, products = {0};
        for (int64_t w = 0; w < width; w += LANES) {
            const vec y = (load(x + w) - broadcast(m.mean)) * broadcast(m.scale), g = load(gradient + w);
            store(weight + w, load(weight + w) + g * y);
            store(bias + w, load(bias + w) + g);
            const vec weighted = g * load(b->p.norm_weight[which] + w);
            sum += weighted, products += weighted * y;
        }
        const vec mean = broadcast(total(sum) / width), slope = broadcast(total(products) / width), scale = broadcast(m.scale);
        for (int64_t w = 0; w < width; w += LANES) {
            const vec y = (load(x + w) - broadcast(m.mean)) * scale, weighted = load(gradient + w) * load(b->p.norm_weight[which] + w);
            store(out + w, load(other + w) + scale * (weighted - mean - y * slope));
        }
    }
}

/* out = other (0 if NULL) + x after dropout, of n numbers from index first on of an array with this seed */
static void add_kept(const Block *b, int which, int64_t first, const float *other, const float *x, int64_t n, float *out) {
    const uint32_t threshold = threshold_of(b->dropout);
    const vec more = broadcast((float)(1.0 / (1.0 - b->dropout)));
    for (int64_t i = 0; i < n; i += LANES) {
        vec y = load(x + i);
        if (threshold) y = (vec)((ivec)(y * more) & kept_numbers(b->seeds[which], first + i, threshold));
        store(out + i, other ? load(other + i) + y : y);
    }
}

/* ---- one sequence ---- */

typedef struct { /* of a thread */
    Scratch attention;
    float *normal;    /* (ROWS, D) */
    float *added;     /* (ROWS, D) what is added to the residual stream, or its gradient */
    float *active;    /* (ROWS, wide) after GELU */
    float *up;        /* (ROWS, wide) gradient before GELU */
    float *middle;    /* (rows, D) gradient */
    float *attended;  /* (rows, D) gradient */
    float *projected; /* (rows, 3 D) gradient */
} Work;

/* 4 D and a few more: were rows a power of two apart, they would compete for the same lines of the cache. */
static int64_t wide(const Block *b) { return 4 * width_of(b) + LANES; }

static size_t lay_out_work(Work *w, const Block *b, int backward, float *at) {
    const float *begin = at;
    const int64_t width = width_of(b), rows = backward ? padded_time(b) : 0;
    at += lay_out(&w->attention, &b->attention, backward, at);
    w->normal = at, at += ROWS * width;
    w->added = at, at += ROWS * width;
    w->active = at, at += ROWS * wide(b);
    w->up = at, at += backward ? ROWS * wide(b) : 0;
    w->middle = at, at += rows * width;
    w->attended = at, at += rows * width;
    w->projected = at, at += rows * 3 * width;
    return round_up(at - begin, 1024);
}

static Head head_of(const Block *b, const Saved *s, const Work *w, int64_t sequence, int64_t head) {
    const int64_t width = width_of(b), at = head * b->attention.width;
    return (Head){
        .number = sequence * b->attention.heads + head,
        .query = s->projected + at,
        .key = s->projected + width + at,
        .value = s->projected + 2 * width + at,
        .strides = {3 * width, 3 * width, 3 * width},
        .output = s->attended + at,
        .log_sums = s->log_sums + head * b->attention.time,
        .output_gradient = w->attended + at,
        .output_stride = width,
        .query_gradient = w->projected + at,
        .key_gradient = w->projected + width + at,
        .value_gradient = w->projected + 2 * width + at,
        .gradient_stride = 3 * width,
    };
}

/* Panels of all weights, in the order of the enumeration; those of query, key and value are joined. */
static const float *panels_of(const float *panels, int matrix, int64_t width) {
    return panels + (matrix == QUERY ? 0 : matrix == PROJECTION ? 3 : matrix == UP ? 4 : 8) * width * width;
}

static void pack_all(const Block *b, int of_inputs, float *panels) {
    const int64_t width = width_of(b);
    for (int m = 0; m < MATRICES; m++) {
        float *to = (float *)panels_of(panels, m < PROJECTION ? QUERY : m, width);
        const int64_t inputs = inputs_of(m, width), outputs = outputs_of(m, width);
        if (m >= PROJECTION) pack(b->p.weight[m], outputs, inputs, of_inputs, to, 0, of_inputs ? outputs : inputs);
        else if (of_inputs) pack(b->p.weight[m], outputs, inputs, 1, to, m * width, 3 * width);
        else pack(b->p.weight[m], outputs, inputs, 0, to + m * width * width, 0, width);
    }
}

#define FOR_EACH_PART(...)                                                                     \
    for (int64_t first = 0; first < time; first += ROWS) {                                     \
        const int64_t rows = time - first < ROWS ? time - first : ROWS;                        \
        __VA_ARGS__                                                                            \
    }

static void forward(const Block *b, const float *panels, const Work *w, int64_t sequence) {
    const int64_t time = b->attention.time, width = width_of(b), at = sequence * time * width;
    const Saved s = saved_of(b, sequence);
    const float *x = b->x + at;
    float *out = b->out + at;
    FOR_EACH_PART({
        normalise(b, 0, x + first * width, rows, w->normal);
        for (int m = QUERY; m <= VALUE; m++)
            product(w->normal, width, panels + m * width * width, width, b->p.bias[m], s.projected + first * 3 * width + m * width, 3 * width,
                    rows, width);
    })
    for (int64_t head = 0; head < b->attention.heads; head++) {
        const Head h = head_of(b, &s, w, sequence, head);
        attend(&b->attention, &w->attention, &h);
    }
    FOR_EACH_PART({
        float *middle = s.middle + first * width;
        float *up = s.up + first * 4 * width;
        product(s.attended + first * width, width, panels_of(panels, PROJECTION, width), width, b->p.bias[PROJECTION], w->added, width, rows, width);
        add_kept(b, 0, at + first * width, x + first * width, w->added, rows * width, middle);
        normalise(b, 1, middle, rows, w->normal);
        product(w->normal, width, panels_of(panels, UP, width), width, b->p.bias[UP], up, 4 * width, rows, 4 * width);
        for (int64_t r = 0; r < rows; r++)
            for (int64_t i = 0; i < 4 * width; i += LANES) store(w->active + r * wide(b) + i, gelu(load(up + r * 4 * width + i)));
        product(w->active, wide(b), panels_of(panels, DOWN, width), 4 * width, b->p.bias[DOWN], w->added, width, rows, width);
        add_kept(b, 1, at + first * width, middle, w->added, rows * width, out + first * width);
    })
    const size_t rest = sizeof(float) * (padded_time(b) - time) * width; /* no output depends on what was in memory before */
    memset(s.projected + time * 3 * width, 0, 3 * rest);
    memset(s.attended + time * width, 0, rest);
    memset(s.middle + time * width, 0, rest);
    memset(s.up + time * 4 * width, 0, 4 * rest);
}

/* GELU of x, and gradient times its derivative: the normal distribution function at x, plus x times the normal density. */
static void gelu_backwards(const float *x, float *gradient, float *active, int64_t n) {
    for (int64_t i = 0; i < n; i += LANES) {
        const vec v = load(x + i), below = normal_below(v);
        const vec density = broadcast(0.3989422804f) * exponential(broadcast(-0.5f) * v * v);
        store(active + i, v * below);
        store(gradient + i, load(gradient + i) * (below + v * density));
    }
}

static void backward(const Block *b, const float *panels, const Work *w, const Parameters *g, int64_t sequence) {
    const int64_t time = b->attention.time, width = width_of(b), at = sequence * time * width, ld = wide(b);
    const Saved s = saved_of(b, sequence);
    FOR_EACH_PART({
        const float *gradient = b->out_gradient + at + first * width;
        const float *x = s.middle + first * width;
        float *middle = w->middle + first * width;
        add_kept(b, 1, at + first * width, NULL, gradient, rows * width, w->added);
        product(w->added, width, panels_of(panels, DOWN, width), width, NULL, w->up, ld, rows, 4 * width);
        for (int64_t r = 0; r < rows; r++) gelu_backwards(s.up + (first + r) * 4 * width, w->up + r * ld, w->active + r * ld, 4 * width);
        add_gradients(w->added, width, w->active, ld, rows, width, 4 * width, g->weight[DOWN], g->bias[DOWN]);
        normalise(b, 1, x, rows, w->normal);
        add_gradients(w->up, ld, w->normal, width, rows, 4 * width, width, g->weight[UP], g->bias[UP]);
        product(w->up, ld, panels_of(panels, UP, width), 4 * width, NULL, w->added, width, rows, width);
        normalise_backwards(b, 1, w->added, x, gradient, rows, middle, g->norm_weight[1], g->norm_bias[1]);
        add_kept(b, 0, at + first * width, NULL, middle, rows * width, w->added);
        add_gradients(w->added, width, s.attended + first * width, width, rows, width, width, g->weight[PROJECTION], g->bias[PROJECTION]);
        product(w->added, width, panels_of(panels, PROJECTION, width), width, NULL, w->attended + first * width, width, rows, width);
    })
    for (int64_t head = 0; head < b->attention.heads; head++) {
        const Head h = head_of(b, &s, w, sequence, head);
        attend_backwards(&b->attention, &w->attention, &h);
    }
    FOR_EACH_PART({
        const float *x = b->x + at + first * width;
        const float *projected = w->projected + first * 3 * width;
        normalise(b, 0, x, rows, w->normal);
        for (int m = QUERY; m <= VALUE; m++)
            add_gradients(projected + m * width, 3 * width, w->normal, width, rows, width, width, g->weight[m], g->bias[m]);
        product(projected, 3 * width, panels_of(panels, QUERY, width), 3 * width, NULL, w->added, width, rows, width);
        normalise_backwards(b, 0, w->added, x, w->middle + first * width, rows, b->x_gradient + at + first * width, g->norm_weight[0],
                            g->norm_bias[0]);
    })
}

/* size: bytes of the caller's Block. Returns 0 on success, 1 if memory is short, 2 if the caller's Block differs. */
int tt_block(Block *b, size_t size, int backwards) {
    if (size != sizeof(Block)) return 2;
    Work w;
    Parameters g;
    const int64_t width = width_of(b), batch = b->attention.batch, threads = b->attention.threads;
    const int64_t groups = batch < GROUPS ? batch : GROUPS;
    const size_t packed = 12 * width * width, floats = lay_out_work(&w, b, backwards, NULL), weights = lay_out_parameters(&g, width, NULL);
    float *panels = allocate(sizeof(float) * (packed + floats * threads));
    float *gradients = backwards ? allocate_zeros(sizeof(float) * weights * groups) : NULL;
    if (!panels || (backwards && !gradients)) {
        free(panels);
        free(gradients);
        return 1;
    }
    lay_out_parameters(&b->p, width, b->parameters);
    pack_all(b, backwards, panels);
#pragma omp parallel num_threads(threads) private(w, g)
    {
        lay_out_work(&w, b, backwards, panels + packed + floats * omp_get_thread_num());
        if (!backwards) {
#pragma omp for schedule(dynamic, 1)
            for (int64_t i = 0; i < batch; i++) forward(b, panels, &w, i);
        } else {
#pragma omp for schedule(dynamic, 1)
            for (int64_t group = 0; group < groups; group++) {
                lay_out_parameters(&g, width, gradients + weights * group);
                for (int64_t i = batch * group / groups; i < batch * (group + 1) / groups; i++) backward(b, panels, &w, &g, i);
            }
#pragma omp for schedule(static)
            for (size_t i = 0; i < weights; i += LANES) {
                vec sum = {0};
                for (int64_t group = 0; group < groups; group++) sum += load(gradients + weights * group + i);
                store(b->gradients + i, sum);
            }
        }
    }
    free(panels);
    free(gradients);
    return 0;
}
