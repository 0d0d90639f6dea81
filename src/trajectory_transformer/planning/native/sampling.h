/* Drawing tokens: what ../sampling.py does, for many rows. */
#pragma once

#include "decoder.h"

/* The first of the largest of some logits, which are padded. */
static int most_likely(const float *x, int n) {
    vec top = broadcast(-INFINITY);
    for (int i = 0; i < n; i += LANES) top = larger(top, load(x + i));
    const float max = largest(top);
    for (int i = 0; i < n; i++)
        if (x[i] == max) return i;
    return 0;
}

/* x (padded to LANES) to probabilities; what is e^87 times less likely than the likeliest gets none. */
static void softmax(float *x, int n) {
    vec top = broadcast(-INFINITY), mass = {0};
    for (int i = n; i < round_up(n, LANES); i++) x[i] = -INFINITY;
    for (int i = 0; i < n; i += LANES) top = larger(top, load(x + i));
    const float max = largest(top);
    for (int i = 0; i < n; i += LANES) {
        const vec v = load(x + i), e = choose(v < broadcast(max - 87.0f), broadcast(0.0f), exponential(v - broadcast(max)));
        store(x + i, e), mass += e;
    }
    const vec scale = broadcast(1.0f / total(mass));
    for (int i = 0; i < n; i += LANES) store(x + i, load(x + i) * scale);
}

/* The logarithm of the sum of exp(x), for logits (padded); what is e^87 times less likely than the likeliest adds nothing. */
static float log_sum_exp(const float *x, int n) {
    vec top = broadcast(-INFINITY), mass = {0};
    for (int i = 0; i < n; i += LANES) top = larger(top, load(x + i));
    const float max = largest(top);
    for (int i = 0; i < n; i += LANES) {
        const vec v = load(x + i);
        mass += choose(v < broadcast(max - 87.0f), broadcast(0.0f), exponential(v - broadcast(max)));
    }
    return max + logf(total(mass));
}

/* out[j]: the sum of weights[i] (1 if there are none) over all i with x[i] < x[j], for so many vectors of j */
static inline __attribute__((always_inline)) void sums_below_some(const float *x, const float *weights, int n, const float *some,
                                                                  float *out, const int vectors) {
    vec sum[4] = {{0}};
    for (int i = 0; i < n; i++) {
        const vec xi = broadcast(x[i]), weight = broadcast(weights ? weights[i] : 1.0f);
#pragma GCC unroll 4
        for (int j = 0; j < vectors; j++) sum[j] = add_where_less(sum[j], xi, load(some + j * LANES), weight);
    }
#pragma GCC unroll 4
    for (int j = 0; j < vectors; j++) store(out + j * LANES, sum[j]);
}

static void sums_below(const float *x, const float *weights, int n, float *out) {
    int j = 0;
    for (; j + 3 * LANES < n; j += 4 * LANES) sums_below_some(x, weights, n, x + j, out + j, 4);
    if (j + 2 * LANES < n) sums_below_some(x, weights, n, x + j, out + j, 3);
    else if (j + LANES < n) sums_below_some(x, weights, n, x + j, out + j, 2);
    else if (j < n) sums_below_some(x, weights, n, x + j, out + j, 1);
}

/* Logits (padded) to the cumulative distribution of what the filters leave. k 0 and cdf below 0 stand for none. */
static void filter(float *x, int n, int k, float cdf, float *scratch) {
    float *p = scratch, *below = scratch + round_up(n, LANES);
    if (cdf >= 0) {
        memcpy(p, x, sizeof(float) * n);
        softmax(p, n);
        sums_below(p, p, n, below);
        vec least = broadcast(INFINITY), most = broadcast(-INFINITY); /* of all, which is dropped at least; of those below the cutoff */
        for (int i = 0; i < n; i += LANES) {
            const ivec mine = first_lanes(n - i);
            const vec v = load(p + i);
            least = smaller(least, choose(mine, v, broadcast(INFINITY)));
            most = larger(most, choose(mine & (load(below + i) + v < broadcast(cdf)), v, broadcast(-INFINITY)));
        }
        const float lowest = -largest(-least), highest = largest(most), cutoff = lowest > highest ? lowest : highest;
        for (int i = 0; i < n; i++)
            if (p[i] <= cutoff) x[i] = -1000.0f;
    }
    if (k && k < n) {
        float cutoff = INFINITY; /* the k-th largest */
        for (int i = 0; i < round_up(n, LANES); i++) p[i] = i < n ? -x[i] : INFINITY;
        sums_below(p, NULL, n, below);
        for (int i = 0; i < n; i++)
            if (below[i] < k && x[i] < cutoff) cutoff = x[i];
        for (int i = 0; i < n; i++)
            if (x[i] < cutoff) x[i] = -INFINITY;
    }
    softmax(x, n);
    for (int i = 1; i < n; i++) x[i] += x[i - 1];
}

/* The token whose share of a cumulative distribution (padded) a number in [0, 1) falls into. */
static int draw(const float *cumulative, int n, float uniform) {
    const vec at = broadcast(uniform * cumulative[n - 1]);
    ivec passed = {0};
    for (int i = 0; i < n - 1; i += LANES) passed -= first_lanes(n - 1 - i) & (load(cumulative + i) <= at);
    int token = 0;
    for (int i = 0; i < LANES; i++) token += passed[i];
    return token;
}

/* The estimate of a reward or value from its token's logits and the bins' centers: their mean, or where the
 * cumulative probability reaches a fraction, if that is not negative. The stop token, the last one, stands for nothing. NaN if
 * they are no distribution. */
static float estimate(const float *logits, int n, const float *centers, float fraction, float *probabilities) {
    const int bins = n - 1;
    memcpy(probabilities, logits, sizeof(float) * n);
    softmax(probabilities, n);
    if (fraction < 0) {
        vec sums = {0};
        int i = 0;
        for (; i + LANES <= bins; i += LANES) sums += load(probabilities + i) * load(centers + i);
        float sum = total(sums);
        for (; i < bins; i++) sum += probabilities[i] * centers[i];
        return sum;
    }
    float mass = 0, reached = probabilities[0];
    int bin = 0;
    for (int i = 0; i < bins; i++) mass += probabilities[i];
    while (bin < bins - 1 && reached < fraction * mass) reached += probabilities[++bin];
    return isnan(mass) ? NAN : centers[bin];
}

/* Estimates (rows) of what each of two tokens stands for, from what their bins (2, vocab - 1) do: see expect. */
typedef struct {
    const float *centers;
    float fraction;
    float *found[2];
} Estimates;

/* How tokens (rows, count) are drawn, and where they go; uniforms (environments, count, own rows of each) lie strides apart.
 * Where estimates are wanted, the last two tokens are the likeliest without a draw, and the estimates are of them. */
typedef struct {
    const float *uniforms;
    int64_t strides[3];
    int own, count, k;
    float temperature, cdf;
    int64_t *tokens;
    const Estimates *estimates;
    float *log_likelihoods; /* (rows), or NULL: to which the log-probabilities of the drawn tokens are added, without any filter */
} SamplingRequest;

/* Draw the i-th token of some rows, by a team of threads; parents are these rows' numbers in a generation. */
static int draw_tokens(const Decoder *d, const Generation *g, const int64_t *parents, const int64_t *rows, int n, const SamplingRequest *sampling,
                       int i, int team, int64_t *drawn) {
    const int vocab = d->vocab, padded = d->logit_width, estimated = sampling->estimates ? i - (sampling->count - 2) : -1;
    const int likeliest = sampling->k == 1 || estimated >= 0;
    const Estimates *estimates = estimated >= 0 ? sampling->estimates : NULL;
    int *place = malloc(sizeof(int) * g->num_sequences), *wanted = malloc(sizeof(int) * n), *top = malloc(sizeof(int) * n), num_wanted = 0;
    float *cumulative = likeliest ? NULL : allocate(sizeof(float) * n * padded), *expected = malloc(sizeof(float) * n);
    float *normalizers = sampling->log_likelihoods ? malloc(sizeof(float) * n) : NULL;
    const int ready = place && wanted && top && expected && (likeliest || cumulative) && (normalizers || !sampling->log_likelihoods);
    for (int s = 0; s < g->num_sequences && ready; s++) place[s] = -1;
    for (int r = 0; r < n && ready; r++) {
        const int s = g->sequence_of_row[parents[r]];
        if (place[s] < 0) wanted[num_wanted] = s, place[s] = num_wanted++;
    }
    const int few = likeliest ? 128 : 8; /* sequences that one thread samples by itself */
#pragma omp parallel num_threads(team) if (team > 1 && num_wanted > few)
    {
        float scratch[2 * padded];
#pragma omp for
        for (int w = 0; w < num_wanted; w++) {
            const float *logits = g->logits + (size_t)wanted[w] * padded;
            if (likeliest) top[w] = most_likely(logits, vocab);
            else {
                float *x = cumulative + (size_t)w * padded;
                for (int j = 0; j < vocab; j++) x[j] = logits[j] / sampling->temperature;
                filter(x, vocab, sampling->k, sampling->cdf, scratch);
            }
            if (normalizers) normalizers[w] = log_sum_exp(logits, vocab);
            if (estimates) expected[w] = estimate(logits, vocab, estimates->centers + estimated * (vocab - 1), estimates->fraction, scratch);
        }
    }
    const int64_t *strides = sampling->strides;
    for (int r = 0; r < n && ready; r++) {
        const int w = place[g->sequence_of_row[parents[r]]];
        const int64_t row = rows[r], at = row / sampling->own * strides[0] + i * strides[1] + row % sampling->own * strides[2];
        drawn[r] = likeliest ? top[w] : draw(cumulative + (size_t)w * padded, vocab, sampling->uniforms[at]);
        sampling->tokens[row * sampling->count + i] = drawn[r];
        if (estimates) estimates->found[estimated][row] = expected[w];
        if (normalizers) sampling->log_likelihoods[row] += g->logits[(size_t)wanted[w] * padded + drawn[r]] - normalizers[w];
    }
    free(place), free(wanted), free(top), free(cumulative), free(expected), free(normalizers);
    return ready ? OK : NO_MEMORY;
}
