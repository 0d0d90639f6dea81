/* Sampling of tokens and estimation of rewards for many rows, as ../sampling.py does. */
#pragma once

#include "decoder.h"

/* Index of the largest logit, the first of equal ones; x is padded to LANES with -INFINITY. */
static int most_likely(const float *x, int n) {
    vec top = broadcast(-INFINITY);
    for (int i = 0; i < n; i += LANES) top = larger(top, load(x + i));
    const float max = largest(top);
    for (int i = 0; i < n; i++)
        if (x[i] == max) return i;
    return 0;
}

/* Replace logits x (padded to LANES) by probabilities; those more than e^87 times smaller than the largest become 0. */
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

/* Logarithm of the sum of exp(x), for logits (padded); terms more than e^87 times smaller than the largest are left
 * out. */
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

/* out[j] = sum of weights[i] (1 if weights is NULL) over all i with x[i] < some[j], for several vectors of j */
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

/* out[j] = sum of weights[i] (1 if weights is NULL) over all i with x[i] < x[j] */
static void sums_below(const float *x, const float *weights, int n, float *out) {
    int j = 0;
    for (; j + 3 * LANES < n; j += 4 * LANES) sums_below_some(x, weights, n, x + j, out + j, 4);
    if (j + 2 * LANES < n) sums_below_some(x, weights, n, x + j, out + j, 3);
    else if (j + LANES < n) sums_below_some(x, weights, n, x + j, out + j, 2);
    else if (j < n) sums_below_some(x, weights, n, x + j, out + j, 1);
}

/* Replace logits (padded) by the cumulative distribution of the tokens that the filters leave. No filter: k 0, cdf
 * below 0. */
static void filter(float *x, int n, int k, float cdf, float *scratch) {
    float *p = scratch, *below = scratch + round_up(n, LANES);
    if (cdf >= 0) {
        memcpy(p, x, sizeof(float) * n);
        softmax(p, n);
        sums_below(p, p, n, below);
        /* least: of all tokens, always dropped; most: of the tokens whose cumulative probability is below cdf */
        vec least = broadcast(INFINITY), most = broadcast(-INFINITY);
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

/* Sample a token from a cumulative distribution (padded) by inverting it at a number in [0, 1). */
static int draw(const float *cumulative, int n, float uniform) {
    const vec at = broadcast(uniform * cumulative[n - 1]);
    ivec passed = {0};
    for (int i = 0; i < n - 1; i += LANES) passed -= first_lanes(n - 1 - i) & (load(cumulative + i) <= at);
    int token = 0;
    for (int i = 0; i < LANES; i++) token += passed[i];
    return token;
}

/* Estimate a reward or value from its token's logits and the bins' centers: the mean, or, if fraction is not negative,
 * the center where the cumulative probability reaches it. The stop token, the last one, is left out. NaN if the
 * probabilities are. */
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

/* Estimates of the reward and the value, see estimate. */
typedef struct {
    const float *centers; /* (2, vocab - 1) */
    float fraction;
    float *found[2];      /* (rows) each */
    float *probabilities; /* (rows, vocab - 1) of the value's bins, or NULL */
} Estimates;

/* A sampling request: tokens (rows, count) to draw by uniforms (environments, count, own), own rows of each
 * environment. With estimates, the last two tokens, reward and value, are the most likely ones instead, and are
 * estimated. */
typedef struct {
    const float *uniforms;
    int64_t strides[3];
    int own, count, k;
    float temperature, cdf;
    int64_t *tokens;
    const Estimates *estimates;
    float *log_likelihoods; /* (rows), or NULL: log-probabilities of drawn tokens, before filters, are added to it */
} SamplingRequest;

/* Draw token i of some rows, by a team of threads; parents: the indices of these rows in a generation. */
static int draw_tokens(const Decoder *d, const Generation *g, const int64_t *parents, const int64_t *rows, int n, const SamplingRequest *sampling,
                       int i, int team, int64_t *drawn) {
    const int vocab = d->vocab, padded = d->logit_width, estimated = sampling->estimates ? i - (sampling->count - 2) : -1;
    const int likeliest = sampling->k == 1 || estimated >= 0;
    const Estimates *estimates = estimated >= 0 ? sampling->estimates : NULL;
    int *place = malloc(sizeof(int) * g->num_sequences), *wanted = malloc(sizeof(int) * n), *top = malloc(sizeof(int) * n), num_wanted = 0;
    float *cumulative = likeliest ? NULL : allocate(sizeof(float) * n * padded), *expected = malloc(sizeof(float) * n);
    float *normalizers = sampling->log_likelihoods ? malloc(sizeof(float) * n) : NULL;
    const int spread = estimated == 1 && estimates->probabilities; /* the distribution of the value is wanted */
    float *shares = spread ? malloc(sizeof(float) * n * (vocab - 1)) : NULL;
    const int ready = place && wanted && top && expected && (likeliest || cumulative) && (normalizers || !sampling->log_likelihoods) &&
                      (shares || !spread);
    for (int s = 0; s < g->num_sequences && ready; s++) place[s] = -1;
    for (int r = 0; r < n && ready; r++) {
        const int s = g->sequence_of_row[parents[r]];
        if (place[s] < 0) wanted[num_wanted] = s, place[s] = num_wanted++;
    }
    const int few = likeliest ? 128 : 8; /* up to so many sequences one thread is faster */
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
            if (spread) memcpy(shares + (size_t)w * (vocab - 1), scratch, sizeof(float) * (vocab - 1));
        }
    }
    const int64_t *strides = sampling->strides;
    for (int r = 0; r < n && ready; r++) {
        const int w = place[g->sequence_of_row[parents[r]]];
        const int64_t row = rows[r], at = row / sampling->own * strides[0] + i * strides[1] + row % sampling->own * strides[2];
        drawn[r] = likeliest ? top[w] : draw(cumulative + (size_t)w * padded, vocab, sampling->uniforms[at]);
        sampling->tokens[row * sampling->count + i] = drawn[r];
        if (estimates) estimates->found[estimated][row] = expected[w];
        if (spread) memcpy(estimates->probabilities + (size_t)row * (vocab - 1), shares + (size_t)w * (vocab - 1), sizeof(float) * (vocab - 1));
        if (normalizers) sampling->log_likelihoods[row] += g->logits[(size_t)wanted[w] * padded + drawn[r]] - normalizers[w];
    }
    free(place), free(wanted), free(top), free(cumulative), free(expected), free(normalizers), free(shares);
    return ready ? OK : NO_MEMORY;
}
