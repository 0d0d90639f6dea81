/* Decoding of many beams of a Trajectory Transformer on a CPU: the functions that decoder.py and search.py call.  Rows
 * are tokens that are computed together. Each row has a list of the pages, in one pool of keys and values, that it
 * attends to, so beams share the pages of common tokens; a page is copied only if sequences diverge in the middle of
 * it. Rows are divided among threads, and a row's result depends neither on other rows nor on the number of threads. */
#include "search.h"

/* Append tokens[r] to row parents[r] of the last call. */
int tt_step(Decoder *d, const int64_t *parents, int rows, const int64_t *tokens) {
    if (check_rows(d, parents, rows) != OK) return BAD_ROW;
    if (check_tokens(d, tokens, rows) != OK) return BAD_TOKEN;
    begin_call(d);
    return end_call(d, decode(d, parents, rows, &(DecodingRequest){.given = tokens, .candidates = 1}));
}

/* Logits (rows, vocab) of the token that follows row parents[r] of the last call. */
int tt_logits(const Decoder *d, const int64_t *parents, int rows, float *out) {
    if (check_rows(d, parents, rows) != OK) return BAD_ROW;
    for (int r = 0; r < rows; r++) {
        const int sequence = d->newest.sequence_of_row[parents[r]];
        memcpy(out + (size_t)r * d->vocab, d->newest.logits + (size_t)sequence * d->logit_width, sizeof(float) * d->vocab);
    }
    return OK;
}

/* Seconds spent in the model and in sampling so far. */
void tt_seconds(const Decoder *d, double *out) { memcpy(out, d->seconds, sizeof(d->seconds)); }

/* Append given tokens (rows), unless NULL, and then sampled tokens (rows, count) to rows parents[r] of the last call;
 * rows of the same environment are adjacent. The log-probabilities of the sampled tokens are added to log_likelihoods
 * (rows), unless NULL. */
int tt_extend(Decoder *d, const int64_t *parents, int rows, const int64_t *given, int environments, const float *uniforms,
              const int64_t *strides, int count, float temperature, int k, float cdf, int64_t *tokens, float *log_likelihoods) {
    if (check_rows(d, parents, rows) != OK) return BAD_ROW;
    if (given && check_tokens(d, given, rows) != OK) return BAD_TOKEN;
    const SamplingRequest sampling = {uniforms, {strides[0], strides[1], strides[2]}, rows / environments, count, k, temperature, cdf,
                                      tokens, NULL, log_likelihoods};
    begin_call(d);
    return end_call(d, decode(d, parents, rows, &(DecodingRequest){given, &sampling, NULL, 1}));
}

/* Start over with whole sequences (rows, time) from position 0. */
int tt_encode(Decoder *d, const int64_t *tokens, int rows, int time) {
    begin_call(d);
    return end_call(d, encode(d, tokens, rows, time));
}

/* Find the plans of some environments. size: bytes of the caller's Search. */
int tt_search(Decoder *d, const Search *search, size_t size) {
    if (size != sizeof(Search)) return LAYOUT_MISMATCH;
    begin_call(d);
    return end_call(d, search_plans(d, search));
}

/* ---- construction and destruction ---- */

#define SHAPE_ENTRIES 12
#define WEIGHTS_OF_LAYER 12
#define OTHER_WEIGHTS 4

/* weights: embeddings (transition_dim, vocab, embd), positions (block_size, embd), heads (transition_dim, vocab, embd),
 * their biases (transition_dim, vocab); then for each layer weight and bias of query, key, value, output, up, down;
 * then the weights of pack_numbers, if there is a numerical embedding. shape: layers, heads, embd, hidden, vocab,
 * transition_dim, block_size, activation, threads, hidden units of the numerical embedding or 0, observation_dim,
 * whether the numerical embedding has dynamics.
 * Returns NULL if the caller gives another number of entries or weights. */
Decoder *tt_create(const int *shape, int num_entries, float eps, const float **weights, int num_weights) {
    if (num_entries != SHAPE_ENTRIES) return NULL;
    const int of_trunk = OTHER_WEIGHTS + WEIGHTS_OF_LAYER * shape[0];
    if (num_weights != of_trunk + (shape[9] ? weights_of_numbers(shape[11]) : 0)) return NULL;
    Decoder *d = calloc(1, sizeof(Decoder));
    d->num_layers = shape[0], d->heads = shape[1], d->embd = shape[2], d->hidden = shape[3], d->vocab = shape[4];
    d->transition_dim = shape[5], d->block_size = shape[6], d->activation = shape[7], d->threads = shape[8];
    d->eps = eps, d->head_dim = d->embd / d->heads;
    d->logit_width = round_up(d->vocab, LANES);
    d->head_size = round_up(d->head_dim, LANES > 8 ? LANES : 8), d->width = round_up(d->embd, NR);
    const int size = d->head_size;
    d->embeddings = allocate_zeros(sizeof(float) * d->transition_dim * d->vocab * d->width);
    d->positions = allocate_zeros(sizeof(float) * d->block_size * d->width);
    for (int i = 0; i < d->transition_dim * d->vocab; i++)
        memcpy(d->embeddings + (size_t)i * d->width, weights[0] + (size_t)i * d->embd, sizeof(float) * d->embd);
    for (int i = 0; i < d->block_size; i++)
        memcpy(d->positions + (size_t)i * d->width, weights[1] + (size_t)i * d->embd, sizeof(float) * d->embd);
    const int own = d->heads * size, units = round_up(d->hidden, NR), most = own > d->hidden ? own : d->hidden;
    int *columns = malloc(sizeof(int) * (3 * most + d->vocab + d->width + NR)), *residual = malloc(sizeof(int) * d->width);
    for (int i = 0; i < d->width; i++) residual[i] = i < d->embd ? i : -1;
    const size_t of_layer = (size_t)d->width * (round_up(3 * own, NR) + own + 2 * units);
    const size_t of_heads = (size_t)d->width * d->transition_dim * round_up(d->vocab, NR);
    float *panels = d->weights = allocate_zeros(sizeof(float) * (d->num_layers * of_layer + of_heads));
    float *joined = allocate_zeros(sizeof(float) * 3 * d->embd * d->embd), *bias = allocate(sizeof(float) * 3 * d->embd);
    d->layers = calloc(d->num_layers, sizeof(Layer)), d->heads_out = calloc(d->transition_dim, sizeof(Matrix));
    for (int l = 0; l < d->num_layers; l++) {
        const float **w = weights + OTHER_WEIGHTS + WEIGHTS_OF_LAYER * l;
        for (int part = 0; part < 3; part++) { /* query, key and value are joined to one matrix */
            memcpy(joined + (size_t)part * d->embd * d->embd, w[2 * part], sizeof(float) * d->embd * d->embd);
            memcpy(bias + part * d->embd, w[2 * part + 1], sizeof(float) * d->embd);
        }
        for (int j = 0; j < 3 * own; j++) {
            const int part = j / own, head = j % own / size, i = j % size;
            columns[j] = i < d->head_dim ? part * d->embd + head * d->head_dim + i : -1;
        }
        d->layers[l].project = pack(joined, bias, d->embd, columns, 3 * own, residual, d->width, &panels);
        /* The inputs are padded as the queries are: columns begins with theirs. */
        d->layers[l].output = pack(w[6], w[7], d->embd, residual, d->width, columns, own, &panels);
        for (int j = 0; j < units; j++) columns[j] = j < d->hidden ? j : -1;
        d->layers[l].up = pack(w[8], w[9], d->embd, columns, d->hidden, residual, d->width, &panels);
        d->layers[l].down = pack(w[10], w[11], d->hidden, residual, d->width, columns, units, &panels);
    }
    for (int j = 0; j < d->vocab; j++) columns[j] = j;
    for (int i = 0; i < d->transition_dim; i++)
        d->heads_out[i] = pack(weights[2] + (size_t)i * d->vocab * d->embd, weights[3] + i * d->vocab, d->embd, columns, d->vocab,
                               residual, d->width, &panels);
    free(residual), free(columns), free(joined), free(bias);
    d->scratch = calloc(d->threads, sizeof(Scratch));
    const int pages = pages_for(d->block_size), out = d->width > d->heads_out[0].n ? d->width : d->heads_out[0].n;
    for (int t = 0; t < d->threads; t++) {
        Scratch *s = &d->scratch[t];
        s->x = allocate_zeros(sizeof(float) * BLOCK * d->width), s->normed = allocate_zeros(sizeof(float) * BLOCK * d->width);
        s->projected = allocate_zeros(sizeof(float) * BLOCK * d->layers[0].project.n);
        s->attended = allocate_zeros(sizeof(float) * BLOCK * own), s->hidden = allocate_zeros(sizeof(float) * BLOCK * units);
        s->scores = allocate_zeros(sizeof(float) * BLOCK * pages * LANES), s->out = allocate_zeros(sizeof(float) * BLOCK * out);
        s->wanted = malloc(sizeof(Tile) * BLOCK * pages), s->tiles = malloc(sizeof(Tile) * BLOCK * pages);
        s->pages = malloc(sizeof(float *) * BLOCK * pages);
    }
    if (shape[9]) {
        d->observed = shape[10], d->acted = d->transition_dim - 2, d->predicts = shape[11];
        pack_numbers(d, shape[9], weights + of_trunk);
    }
    precompute_first_layer(d);
    d->stop = calloc(1, sizeof(atomic_int));
    d->workers = calloc(d->threads, sizeof(Decoder));
    for (int t = 0; t < d->threads; t++) {
        memcpy(&d->workers[t], d, sizeof(Decoder));
        d->workers[t].threads = 1, d->workers[t].scratch = &d->scratch[t];
    }
    return d;
}

static void free_state(Decoder *d) {
    for (int i = 0; i < d->num_chunks; i++) free(d->chunks[i]);
    free(d->chunks), free(d->free_pages);
    free_generation(&d->newest), free_generation(&d->first), free_generation(&d->next);
}

void tt_destroy(Decoder *d) {
    for (int t = 0; t < d->threads; t++) free_state(&d->workers[t]);
    free_state(d);
    if (d->observed) free_numbers(d);
    for (int l = 0; l < d->num_layers; l++)
        free(d->layers[l].project.bias), free(d->layers[l].output.bias), free(d->layers[l].up.bias), free(d->layers[l].down.bias);
    for (int i = 0; i < d->transition_dim; i++) free(d->heads_out[i].bias);
    for (int t = 0; t < d->threads; t++) {
        Scratch *s = &d->scratch[t];
        free(s->x), free(s->normed), free(s->projected), free(s->attended), free(s->hidden), free(s->scores), free(s->out), free(s->wanted);
        free(s->tiles), free(s->pages);
        for (int i = 0; i < 3; i++) free_generation(&s->intermediate[i]);
    }
    free(d->workers), free(d->first_layer_cache), free(d->weights), free(d->layers), free(d->heads_out), free(d->scratch);
    free(d->embeddings), free(d->positions), free(d->stop), free(d);
}
