/* The numerical embedding: MLPs of a transition's real values, whose outputs are added to the embeddings of the tokens
 * that predict its action, reward and value, and to the last layer's output where the next observation is predicted; see
 * ../../model/numerical_embedding.py. */
#pragma once

#include "decoder.h"

static inline int num_mlps(int predicts) { return 2 + predicts; }
static inline int weights_of_numbers(int predicts) { return 1 + 2 * NUMBER_LAYERS * num_mlps(predicts); }
static inline int inputs_of(const Decoder *d, int kind) { return kind ? d->acted : d->observed; }

/* Copy and pack the weights: the tokens' values (transition_dim, vocab); then for each MLP weight and bias of each
 * layer. */
static void pack_numbers(Decoder *d, int hidden, const float **weights) {
    const size_t values = (size_t)d->transition_dim * d->vocab;
    const int units = round_up(hidden, NR), inputs = round_up(d->acted, 2), widest = units > inputs ? units : inputs;
    const int predicted = predicted_floats(d), last = predicted > d->width ? predicted : d->width;
    const int most = widest > last ? widest : last;
    int *columns = malloc(sizeof(int) * most), *rows = malloc(sizeof(int) * most);
    float *panels = d->number_weights = allocate_zeros(sizeof(float) * units * (num_mlps(d->predicts) * ((size_t)inputs + units) + 2 * d->width + predicted));
    d->token_values = memcpy(allocate(sizeof(float) * values), weights[0], sizeof(float) * values);
    for (int kind = 0; kind < num_mlps(d->predicts); kind++) {
        const int sizes[NUMBER_LAYERS + 1] = {inputs_of(d, kind), hidden, hidden, kind == 2 ? predicted : d->embd};
        for (int l = 0; l < NUMBER_LAYERS; l++) {
            const float **w = weights + 1 + 2 * (NUMBER_LAYERS * kind + l);
            const int depth = l ? units : round_up(sizes[0], 2), n = sizes[l + 1];
            for (int i = 0; i < depth; i++) rows[i] = i < sizes[l] ? i : -1;
            for (int j = 0; j < n; j++) columns[j] = j;
            if (kind == 2 && l == NUMBER_LAYERS - 1) /* each dimension's outputs are padded to the width */
                for (int j = 0; j < n; j++) columns[j] = j % d->width < d->embd ? j / d->width * d->embd + j % d->width : -1;
            d->numbers[kind][l] = pack(w[0], w[1], sizes[l], columns, n, rows, depth, &panels);
        }
    }
    free(columns), free(rows);
    for (int t = 0; t < d->threads; t++)
        for (int i = 0; i < 2; i++) d->scratch[t].numbers[i] = allocate_zeros(sizeof(float) * BLOCK * most);
}

static void free_numbers(Decoder *d) {
    for (int kind = 0; kind < num_mlps(d->predicts); kind++)
        for (int l = 0; l < NUMBER_LAYERS; l++) free(d->numbers[kind][l].bias);
    for (int t = 0; t < d->threads; t++) free(d->scratch[t].numbers[0]), free(d->scratch[t].numbers[1]);
    free(d->number_weights), free(d->token_values);
}

/* The MLP to evaluate at the token at index place: 0 the observation's and 1 that of observation and action, when their
 * inputs are complete, 2 that of the next observation at the end of a transition, -1 none. */
static inline int mlp_due(const Decoder *d, int place) {
    return place == d->observed - 1 ? 0 : place == d->acted - 1 ? 1 : d->predicts && place == d->transition_dim - 1 ? 2 : -1;
}
/* The dimension of an observation that the token at index place predicts, or -1. */
static inline int predicted_dimension(const Decoder *d, int place) {
    const int next = (place + 1) % d->transition_dim;
    return d->predicts && next < d->observed ? next : -1;
}
/* Whether a numerical embedding is added to the token at index place of a transition. */
static inline int has_numbers(const Decoder *d, int place) { return d->observed && place >= d->observed - 1; }

/* Evaluate one MLP for the transitions of up to BLOCK rows; its output goes to each row's added (width), or to predicted
 * (observed, width). */
static void evaluate_numbers(const Decoder *d, const Scratch *s, int kind, const Row *rows, int n) {
    const Matrix *m = d->numbers[kind];
    float *x = s->numbers[0], *next = s->numbers[1];
    Stream none = {0};
    for (int r = 0; r < n; r++)
        for (int i = 0; i < m->k; i++)
            x[r * m->k + i] = i < inputs_of(d, kind) ? d->token_values[(size_t)i * d->vocab + rows[r].transition[i]] : 0;
    for (int l = 0; l < NUMBER_LAYERS; l++) {
        multiply(&m[l], x, m[l].k, n, next, m[l].n, &none);
        if (l < NUMBER_LAYERS - 1) activate(RELU, next, n * m[l].n);
        float *done = x;
        x = next, next = done;
    }
    const int size = kind == 2 ? predicted_floats(d) : d->width;
    for (int r = 0; r < n; r++) memcpy(kind == 2 ? rows[r].predicted : rows[r].added, x + (size_t)r * size, sizeof(float) * size);
}

/* What the transition before a token predicts of the next observation (observed, width), for the token at a position, or
 * NULL; from the sequence before, unless the MLP is due. */
static float *continue_prediction(const Decoder *d, Sequence *s, const Sequence *before, int position) {
    const int place = position % d->transition_dim;
    if (predicted_dimension(d, place) < 0 || position < d->transition_dim - 1) return NULL;
    if (mlp_due(d, place) != 2) memcpy(s->predicted, before->predicted, sizeof(float) * predicted_floats(d));
    return s->predicted;
}

/* Add to the last layer's output (n, width) of rows of one position what the transitions before them predict. */
static void add_predictions(const Decoder *d, const Row *rows, int n, float *out) {
    const int dimension = n ? predicted_dimension(d, rows->position % d->transition_dim) : -1;
    for (int r = 0; r < n && dimension >= 0; r++, out += d->width)
        for (int i = 0; i < d->width && rows[r].predicted; i += LANES)
            store(out + i, load(out + i) + load(rows[r].predicted + (size_t)dimension * d->width + i));
}

/* Set a sequence's present transition to that of the sequence before, plus one token at index place. Returns the vector
 * to add to that token's embedding, or NULL; if an MLP is due, it must still be evaluated into that vector. */
static float *continue_transition(const Decoder *d, Sequence *s, const Sequence *before, int64_t token, int place) {
    if (!d->observed) return NULL;
    memcpy(s->transition, before->transition, sizeof(int64_t) * place);
    s->transition[place] = token;
    if (!has_numbers(d, place)) return NULL;
    if (place != d->observed - 1 && place != d->acted - 1) memcpy(s->added, before->added, sizeof(float) * d->width);
    return s->added;
}
