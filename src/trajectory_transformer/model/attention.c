/* Causal attention with dropout, forward and backward, for training on a CPU: see attention.py. Each thread computes one
 * head of one sequence at a time, and no result depends on the number of threads. */
#include "attention.h"

#include <omp.h>

static Head head_of(const Attention *a, int64_t number) {
    const int64_t sequence = number / a->heads, head = number % a->heads;
    const int64_t at = (sequence * a->time * a->heads + head) * a->width; /* of outputs and gradients */
    const int64_t *strides[3] = {a->strides[0], a->strides[1], a->strides[2]};
    return (Head){
        .number = number,
        .query = a->query + sequence * strides[0][0] + head * strides[0][1],
        .key = a->key + sequence * strides[1][0] + head * strides[1][1],
        .value = a->value + sequence * strides[2][0] + head * strides[2][1],
        .strides = {strides[0][2], strides[1][2], strides[2][2]},
        .output = a->output + at,
        .log_sums = a->log_sums + number * a->time,
        .output_gradient = a->output_gradient + at,
        .output_stride = a->heads * a->width,
        .query_gradient = a->query_gradient + at,
        .key_gradient = a->key_gradient + at,
        .value_gradient = a->value_gradient + at,
        .gradient_stride = a->heads * a->width,
    };
}

/* size: bytes of the caller's Attention. Returns 0 on success, 1 if memory is short, 2 if the caller's Attention
 * differs. */
int tt_attention(const Attention *a, size_t size, int backward) {
    if (size != sizeof(Attention)) return 2;
    Scratch s;
    const size_t floats = lay_out(&s, a, backward, NULL);
    float *memory = allocate(sizeof(float) * floats * a->threads);
    if (!memory) return 1;
#pragma omp parallel num_threads(a->threads) private(s)
    {
        lay_out(&s, a, backward, memory + floats * omp_get_thread_num());
#pragma omp for schedule(dynamic, 1)
        for (int64_t i = 0; i < a->batch * a->heads; i++) {
            const Head h = head_of(a, i);
            if (backward) attend_backwards(a, &s, &h);
            else attend(a, &s, &h);
        }
    }
    free(memory);
    return 0;
}

/* For tests: kept (batch, heads, time, columns), 1 where a weight is kept, else 0. */
void tt_kept_weights(const Attention *a, uint8_t *kept) {
    for (int64_t i = 0; i < a->batch * a->heads; i++)
        for (int64_t row = 0; row < a->time; row++) {
            const uint64_t key = row_key(a, i, row);
            for (int64_t c = 0; c < a->columns; c++) *kept++ = kept_lanes(key, c / LANES * LANES, threshold_of(a->dropout))[c % LANES] != 0;
        }
}
