/* Dropout and GELU, forward and backward, for training on a CPU: see elementwise.py. */
#include "random.h"

#include <omp.h>

/* Loop over the vectors of all chunks, in parallel, each chunk in one thread. left: numbers from here to the end of the chunk. */
#define FOR_EACH_VECTOR(threads, n, ...)                                                                    \
    _Pragma("omp parallel for schedule(static) num_threads(threads)") for (int64_t chunk = 0; chunk < (n + CHUNK - 1) / CHUNK; chunk++) { \
        const int64_t first = chunk * CHUNK, here = n - first < CHUNK ? n - first : CHUNK;                  \
        for (int64_t i = 0; i < here; i += LANES) {                                                         \
            const int64_t at = first + i;                                                                   \
            const int64_t left = here - i;                                                                  \
            __VA_ARGS__                                                                                     \
        }                                                                                                   \
    }

/* Set each number to 0 with probability dropout, else divide it by 1 - dropout. */
void tt_dropout(const float *x, float *out, int64_t n, double dropout, uint64_t seed, int threads) {
    const uint32_t threshold = threshold_of(dropout);
    const vec more = broadcast((float)(1.0 / (1.0 - dropout)));
    FOR_EACH_VECTOR(threads, n, {
        const ivec kept = kept_numbers(seed, at, threshold);
        store_some(out + at, (vec)((ivec)(load_some(x + at, left) * more) & kept), left);
    })
}

void tt_gelu(const float *x, float *out, int64_t n, int threads) {
    FOR_EACH_VECTOR(threads, n, { store_some(out + at, gelu(load_some(x + at, left)), left); })
}

/* Derivative of GELU: the normal distribution function at x, plus x times the normal density at x. */
void tt_gelu_backward(const float *gradient, const float *x, float *out, int64_t n, int threads) {
    FOR_EACH_VECTOR(threads, n, {
        const vec v = load_some(x + at, left);
        const vec density = broadcast(0.3989422804f) * exponential(broadcast(-0.5f) * v * v);
        store_some(out + at, load_some(gradient + at, left) * (normal_below(v) + v * density), left);
    })
}
