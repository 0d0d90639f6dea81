/* The numerical embedding: MLPs of a transition's real values, whose outputs are added to the embeddings of the tokens
 * that predict its action, reward and value; see ../../model/numerical_embedding.py. */
#pragma once

#include "decoder.h"

#define WEIGHTS_OF_NUMBERS (1 + 2 * 2 * NUMBER_LAYERS)

/* Copy and pack the weights: the tokens' values (transition_dim, vocab); then for each MLP weight and bias of each
 * layer. */
static void pack_numbers(Decoder *d, int hidden, const float **weights) {
    const size_t values = (size_t)d->transition_dim * d->vocab;
    const int units = round_up(hidden, NR), inputs = round_up(d->acted, 2), widest = units > inputs ? units : inputs;
    const int most = widest > d->width ? widest : d->width;
    int *columns = malloc(sizeof(int) * most), *rows = malloc(sizeof(int) * most);
    float *panels = d->number_weights = allocate_zeros(sizeof(float) * 2 * units * ((size_t)inputs + units + d->width));
    d->token_values = memcpy(allocate(sizeof(float) * values), weights[0], sizeof(float) * values);
    for (int kind = 0; kind < 2; kind++) {
        const int sizes[NUMBER_LAYERS + 1] = {kind ? d->acted : d->observed, hidden, hidden, d->embd};
        for (int l = 0; l < NUMBER_LAYERS; l++) {
            const float **w = weights + 1 + 2 * (NUMBER_LAYERS * kind + l);
            const int depth = l ? units : round_up(sizes[0], 2), n = sizes[l + 1];
            for (int i = 0; i < depth; i++) rows[i] = i < sizes[l] ? i : -1;
            for (int j = 0; j < n; j++) columns[j] = j;
            d->numbers[kind][l] = pack(w[0], w[1], sizes[l], columns, n, rows, depth, &panels);
        }
    }
    free(columns), free(rows);
    for (int t = 0; t < d->threads; t++)
        for (int i = 0; i < 2; i++) d->scratch[t].numbers[i] = allocate_zeros(sizeof(float) * BLOCK * most);
}

static void free_numbers(Decoder *d) {
    for (int kind = 0; kind < 2; kind++)
        for (int l = 0; l < NUMBER_LAYERS; l++) free(d->numbers[kind][l].bias);
    for (int t = 0; t < d->threads; t++) free(d->scratch[t].numbers[0]), free(d->scratch[t].numbers[1]);
    free(d->number_weights), free(d->token_values);
}

/* The MLP to evaluate when the token at index place completes its input: 0 the observation's, 1 that of observation and
 * action, -1 none. */
static inline int mlp_due(const Decoder *d, int place) { return place == d->observed - 1 ? 0 : place == d->acted - 1 ? 1 : -1; }
/* Whether a numerical embedding is added to the token at index place of a transition. */
static inline int has_numbers(const Decoder *d, int place) { return d->observed && place >= d->observed - 1; }

/* Evaluate one MLP for the transitions of up to BLOCK rows; its output goes to each row's added (width). */
static void evaluate_numbers(const Decoder *d, const Scratch *s, int kind, const Row *rows, int n) {
    const Matrix *m = d->numbers[kind];
    float *x = s->numbers[0], *next = s->numbers[1];
    Stream none = {0};
    for (int r = 0; r < n; r++)
        for (int i = 0; i < m->k; i++)
            x[r * m->k + i] = i < (kind ? d->acted : d->observed) ? d->token_values[(size_t)i * d->vocab + rows[r].transition[i]] : 0;
    for (int l = 0; l < NUMBER_LAYERS; l++) {
        multiply(&m[l], x, m[l].k, n, next, m[l].n, &none);
        if (l < NUMBER_LAYERS - 1) activate(RELU, next, n * m[l].n);
        float *done = x;
        x = next, next = done;
    }
    for (int r = 0; r < n; r++) memcpy(rows[r].added, x + (size_t)r * d->width, sizeof(float) * d->width);
}

/* Set a sequence's present transition to that of the sequence before, plus one token at index place. Returns the vector
 * to add to that token's embedding, or NULL; if an MLP is due, it must still be evaluated into that vector. */
static float *continue_transition(const Decoder *d, Sequence *s, const Sequence *before, int64_t token, int place) {
    if (!d->observed) return NULL;
    memcpy(s->transition, before->transition, sizeof(int64_t) * place);
    s->transition[place] = token;
    if (!has_numbers(d, place)) return NULL;
    if (mlp_due(d, place) < 0) memcpy(s->added, before->added, sizeof(float) * d->width);
    return s->added;
}
