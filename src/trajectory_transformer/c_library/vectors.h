/* Vectors of this processor's width, by GCC's and Clang's vector extensions, and functions on them. */
#pragma once

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#if defined(__AVX__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
#define LANES 16
#elif defined(__AVX__)
#define LANES 8
#else
#define LANES 4
#endif
#if defined(__AVX512F__) || defined(__aarch64__)
#define REGISTERS 32 /* vector registers, half of which hold sums */
#else
#define REGISTERS 16
#endif
#define MR (REGISTERS / 4) /* rows of a register tile; its columns (NR) are two vectors */
#define NR (2 * LANES)
#define UNROLL _Pragma("GCC unroll 16")
#define QUARTER (LANES / 4) /* slots of a page whose keys are stored together */

typedef float vec __attribute__((vector_size(4 * LANES), aligned(4)));
typedef int32_t ivec __attribute__((vector_size(4 * LANES), aligned(4)));

static inline vec load(const float *p) { return *(const vec *)p; }
static inline void store(float *p, vec x) { *(vec *)p = x; }
/* Load or store a vector, or only its first lanes if fewer numbers are left. */
static inline vec load_some(const float *p, int64_t left) {
    if (left >= LANES) return load(p);
    vec x = {0};
    memcpy(&x, p, sizeof(float) * left);
    return x;
}
static inline void store_some(float *p, vec x, int64_t left) {
    if (left >= LANES) store(p, x);
    else memcpy(p, &x, sizeof(float) * left);
}
static inline vec broadcast(float x) { return x - (vec){0}; }
static inline ivec first_lanes(int n) { /* true in the first n lanes */
    ivec lane;
    for (int i = 0; i < LANES; i++) lane[i] = i;
    return lane < ((ivec){0} + n);
}
static inline int all_true(ivec mask) { /* whether a comparison is true in all lanes */
    int32_t both = -1;
    for (int i = 0; i < LANES; i++) both &= mask[i];
    return both;
}
static inline vec repeat4(const float *p) { /* p[0] … p[3], repeated */
#if LANES == 16
    return (vec)_mm512_broadcast_f32x4(_mm_loadu_ps(p));
#elif LANES == 8
    return (vec)_mm256_broadcast_ps((const __m128 *)p);
#else
    return load(p);
#endif
}
#if LANES == 16
static inline vec choose(ivec mask, vec a, vec b) {
    return (vec)_mm512_mask_blend_ps(_mm512_movepi32_mask((__m512i)mask), (__m512)b, (__m512)a);
}
static inline vec larger(vec a, vec b) { return (vec)_mm512_max_ps((__m512)b, (__m512)a); } /* a NaN in a stays one */
static inline vec smaller(vec a, vec b) { return (vec)_mm512_min_ps((__m512)b, (__m512)a); }
static inline vec add_where_less(vec sum, vec x, vec y, vec more) { /* where x < y */
    return (vec)_mm512_mask_add_ps((__m512)sum, _mm512_cmp_ps_mask((__m512)x, (__m512)y, _CMP_LT_OQ), (__m512)sum, (__m512)more);
}
static inline vec times_two_to(vec x, vec n) { return (vec)_mm512_scalef_ps((__m512)x, (__m512)n); }
static inline vec reciprocal(vec x) {
    const vec y = (vec)_mm512_rcp14_ps((__m512)x);
    return y * (broadcast(2.0f) - x * y);
}
#else
#if LANES == 8
static inline vec choose(ivec mask, vec a, vec b) { return (vec)_mm256_blendv_ps((__m256)b, (__m256)a, (__m256)mask); }
static inline vec larger(vec a, vec b) { return (vec)_mm256_max_ps((__m256)b, (__m256)a); } /* a NaN in a stays one */
static inline vec smaller(vec a, vec b) { return (vec)_mm256_min_ps((__m256)b, (__m256)a); }
static inline vec reciprocal(vec x) {
    const vec y = (vec)_mm256_rcp_ps((__m256)x);
    return y * (broadcast(2.0f) - x * y);
}
#else
static inline vec choose(ivec mask, vec a, vec b) { return (vec)((mask & (ivec)a) | (~mask & (ivec)b)); }
static inline vec larger(vec a, vec b) { return choose(b > a, b, a); } /* a NaN in a stays one */
static inline vec smaller(vec a, vec b) { return choose(b < a, b, a); }
static inline vec reciprocal(vec x) { return broadcast(1.0f) / x; }
#endif
static inline vec add_where_less(vec sum, vec x, vec y, vec more) { return sum + (vec)((ivec)more & (x < y)); }
static inline vec times_two_to(vec x, vec n) { /* x 2^n, for integers n from -126 to 127 */
    const vec shifted = n + broadcast(12582912.0f + 127.0f);
    return x * (vec)((ivec)shifted << 23);
}
#endif
#if defined(__x86_64__)
#define KEEP(x) __asm__("" : "+v"(x)) /* keep x in a register: compilers would reload it for each use */
#else
#define KEEP(x) ((void)0)
#endif
static inline int round_up(int n, int to) { return (n + to - 1) / to * to; }

#define HUGE_PAGE (1 << 21)

static void *allocate(size_t bytes) {
    void *p = NULL;
    if (posix_memalign(&p, bytes < HUGE_PAGE ? 64 : HUGE_PAGE, bytes ? bytes : 64)) return NULL;
#if defined(MADV_HUGEPAGE)
    if (bytes >= HUGE_PAGE) madvise(p, bytes, MADV_HUGEPAGE); /* fewer address translations */
#endif
    return p;
}
static void *allocate_zeros(size_t bytes) {
    void *p = allocate(bytes);
    return p ? memset(p, 0, bytes) : p;
}

#if defined(__clang__)
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (ivec){__VA_ARGS__})
#endif

/* Transpose LANES rows of LANES numbers: each round moves the highest bit of the row's index to the end of the column's,
 * and that of the column's to the end of the row's. */
static inline void transpose(vec x[LANES]) {
#if LANES == 16
#define LOWER_HALVES(a, b) SHUFFLE(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23)
#define UPPER_HALVES(a, b) SHUFFLE(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31)
#elif LANES == 8
#define LOWER_HALVES(a, b) SHUFFLE(a, b, 0, 8, 1, 9, 2, 10, 3, 11)
#define UPPER_HALVES(a, b) SHUFFLE(a, b, 4, 12, 5, 13, 6, 14, 7, 15)
#else
#define LOWER_HALVES(a, b) SHUFFLE(a, b, 0, 4, 1, 5)
#define UPPER_HALVES(a, b) SHUFFLE(a, b, 2, 6, 3, 7)
#endif
    vec y[LANES];
    UNROLL for (int round = 1; round < LANES; round *= 2) {
        UNROLL for (int i = 0; i < LANES / 2; i++) {
            y[2 * i] = LOWER_HALVES(x[i], x[i + LANES / 2]);
            y[2 * i + 1] = UPPER_HALVES(x[i], x[i + LANES / 2]);
        }
        UNROLL for (int i = 0; i < LANES; i++) x[i] = y[i];
    }
}

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

/* Sums of four neighbouring lanes each: first those of a, then those of b, of c and of d. */
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
    const vec sums = EVEN(ab, cd) + ODD(ab, cd); /* the first sums of a, b, c and d, then the second ones, … */
#if LANES == 16
    return SHUFFLE(sums, sums, 0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
#elif LANES == 8
    return SHUFFLE(sums, sums, 0, 4, 1, 5, 2, 6, 3, 7);
#else
    return sums;
#endif
}

/* Elementary functions: relative error of exponential and power_of_two 2e-7, absolute error of gelu 3e-7 |x| */

static inline vec exponential(vec x) { /* x is clipped to [-87, 88]: smaller results would be denormal, which is slow */
    const vec magic = broadcast(12582912.0f); /* 1.5 * 2^23: adding it rounds to an integer */
    x = smaller(larger(x, broadcast(-87.0f)), broadcast(88.0f));
    const vec n = (x * broadcast(1.44269504f) + magic) - magic;
    const vec r = x - n * broadcast(0.693359375f) + n * broadcast(2.12194440e-4f);
    vec p = broadcast(1.9875691500e-4f);
    p = p * r + broadcast(1.3981999507e-3f);
    p = p * r + broadcast(8.3334519073e-3f);
    p = p * r + broadcast(4.1665795894e-2f);
    p = p * r + broadcast(1.6666665459e-1f);
    p = p * r + broadcast(5.0000001201e-1f);
    p = p * r * r + r + broadcast(1.0f);
    return times_two_to(p, n);
}

/* 2^x for x up to 0; x is clipped to at least -125: smaller results would be denormal, which is slow. */
static inline vec power_of_two(vec x) {
    x = larger(x, broadcast(-125.0f));
#if LANES == 16
    const vec r = (vec)_mm512_reduce_ps((__m512)x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
    const vec n = x; /* times_two_to takes its floor */
#else
    const vec magic = broadcast(12582912.0f), n = (x - broadcast(0.5f) + magic) - magic, r = x - n;
#endif
    vec p = broadcast(1.8775767e-3f);
    p = p * r + broadcast(8.9893406e-3f);
    p = p * r + broadcast(5.5826318e-2f);
    p = p * r + broadcast(2.4015361e-1f);
    p = p * r + broadcast(6.9315308e-1f);
    p = p * r + broadcast(9.9999994e-1f);
    return times_two_to(p, n);
}

/* The normal distribution function: 1/2 + x p(x²) / q(x²), with an error of 1e-8 before rounding for |x| up to 5.2,
 * constant beyond; the coefficients were fitted by reweighted least squares (Lawson). */
static inline vec normal_below(vec x) {
    const vec y = smaller(larger(x, broadcast(-5.2f)), broadcast(5.2f)), t = y * y;
    vec p = broadcast(1.267963930e-10f), q = broadcast(5.211033890e-5f);
    p = p * t + broadcast(-2.287771403e-8f);
    q = q * t + broadcast(1.639691696e-3f);
    p = p * t + broadcast(2.954100866e-6f);
    q = q * t + broadcast(2.719494579e-2f);
    p = p * t + broadcast(1.379413485e-4f);
    q = q * t + broadcast(2.485095504e-1f);
    p = p * t + broadcast(4.298390481e-3f);
    q = q * t + broadcast(1.0f);
    p = p * t + broadcast(3.265103355e-2f);
    p = p * t + broadcast(3.989422156e-1f);
    return y * p * reciprocal(q) + broadcast(0.5f);
}

static inline vec gelu(vec x) { return x * normal_below(x); }

static inline vec gelu_new(vec x) { /* tanh(y) = 1 - 2 / (exp(2y) + 1) */
    vec y = broadcast(0.7978845608f) * (x + broadcast(0.044715f) * x * x * x);
    return x - x / (exponential(broadcast(2.0f) * y) + broadcast(1.0f));
}

static inline vec selu(vec x) {
    const vec scale = broadcast(1.0507009873f), alpha = broadcast(1.6732632423f);
    return scale * choose(x > broadcast(0.0f), x, alpha * (exponential(x) - broadcast(1.0f)));
}

enum { GELU, RELU, SELU, GELU_NEW };

static void activate(int kind, float *x, int n) {
    for (int i = 0; i < n; i += LANES) {
        vec v = load(x + i);
        if (kind == GELU) v = gelu(v);
        else if (kind == RELU) v = choose(v < broadcast(0.0f), broadcast(0.0f), v);
        else if (kind == SELU) v = selu(v);
        else v = gelu_new(v);
        store(x + i, v);
    }
}
