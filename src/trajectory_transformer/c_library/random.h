/* Counter-based random bits: no state is stored, and they do not depend on the order of computation. */
#pragma once

#include "vectors.h"

typedef uint32_t uvec __attribute__((vector_size(4 * LANES), aligned(4)));

static inline uint64_t mix(uint64_t x) { /* SplitMix64's finaliser */
    x += 0x9e3779b97f4a7c15u;
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
    x = (x ^ x >> 27) * 0x94d049bb133111ebu;
    return x ^ x >> 31;
}

/* Threshold of kept_lanes for a probability: random numbers below it mean dropped. */
static inline uint32_t threshold_of(double dropout) { return (uint32_t)(dropout * 4294967296.0); }

/* Dropout mask, all bits set where a weight is kept, of weights first to first + LANES - 1 of a key. Their indices are
 * hashed with the key by two rounds of multiplication (Wellons' lowbias32); the upper half of the key is mixed in
 * between. */
static inline ivec kept_lanes(uint64_t key, int first, uint32_t threshold) {
    uvec x;
    for (int i = 0; i < LANES; i++) x[i] = i;
    x = (x + (uint32_t)first) ^ (uint32_t)key;
    x ^= x >> 16;
    x *= 0x7feb352du;
    x ^= (x >> 15) ^ ((uvec){0} + (uint32_t)(key >> 32));
    x *= 0x846ca68bu;
    x ^= x >> 16;
    return (ivec)(x >= (uvec){0} + threshold);
}

#define CHUNK 4096 /* consecutive numbers of an array that share a random key */

/* Dropout mask of the LANES numbers of an array from index on, which is a multiple of LANES. */
static inline ivec kept_numbers(uint64_t seed, int64_t index, uint32_t threshold) {
    return kept_lanes(mix(mix(seed) + (uint64_t)(index / CHUNK)), (int)(index % CHUNK), threshold);
}
