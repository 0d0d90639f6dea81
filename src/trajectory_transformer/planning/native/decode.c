/* Decoding many beams of a Trajectory Transformer on a CPU: see ../native_decoder.py.
 *
 * Rows are tokens that are computed together. What a row may attend to is a list of pages in one pool of keys and
 * values, so beams share what they have in common; a page is copied only where sequences part in its middle. Threads divide heads and hidden units
 * among them, not rows: each keeps its share of all weights in its own cache, and partial sums meet twice a layer.
 * A row's numbers do not depend on the rows beside it.
 */
#include "forward.h"
#include "sampling.h"
#include "sequences.h"

/* Continue row parents[r] of the last call by tokens[r]; rows that do the same are computed once. */
int tt_step(Decoder *d, const int64_t *parents, int rows, const int64_t *tokens) {
    if (d->position >= d->block_size) return TOO_LONG;
    const int dimension = d->position % d->transition_dim, stored = dimension != d->transition_dim - 1;
    int32_t *old_of_row = d->sequence_of_row;
    Sequence *old = d->sequences;
    int32_t *old_pages = d->page_lists;
    const int old_capacity = d->sequence_capacity;
    d->sequences = d->previous, d->page_lists = d->previous_lists, d->sequence_capacity = d->previous_capacity;
    d->previous = old, d->previous_lists = old_pages, d->previous_capacity = old_capacity;
    for (int s = 0; s < d->num_sequences; s++) old[s].child = -1;
    int32_t *siblings = malloc(sizeof(int32_t) * rows), *new_of_row = malloc(sizeof(int32_t) * rows);
    int32_t *order = malloc(sizeof(int32_t) * rows), *count = calloc(d->num_sequences + 1, sizeof(int32_t));
    Row *work = malloc(sizeof(Row) * rows);
    int status = siblings && new_of_row && order && count && work ? reserve_sequences(d, rows) : NO_MEMORY, n = 0;
    if (status == OK) { /* relatives side by side: they share most of what they attend to */
        for (int r = 0; r < rows; r++) count[old_of_row[parents[r]] + 1]++;
        for (int s = 0; s < d->num_sequences; s++) count[s + 1] += count[s];
        for (int r = 0; r < rows; r++) order[count[old_of_row[parents[r]]]++] = r;
    }
    for (int i = 0; i < rows && status == OK; i++) {
        const int r = order[i];
        Sequence *parent = &old[old_of_row[parents[r]]];
        int s = parent->child;
        while (s >= 0 && work[s].token != tokens[r]) s = siblings[s];
        if (s < 0) {
            s = n++;
            Sequence *child = &d->sequences[s];
            siblings[s] = parent->child, parent->child = s;
            int32_t copied = -1;
            copy(child, parent, d->page_lists + (size_t)s * d->block_size);
            parent->extended = 1; /* by this child, or to be by its children */
            if (stored) status = add_slot(d, child, &copied);
            work[s] = make_row(child, tokens[r], d->position, stored, copied, s);
        }
        new_of_row[r] = s;
    }
    if (status == OK) {
        status = run(d, work, n, n);
        d->position++;
        d->num_sequences = n;
    }
    free(siblings), free(old_of_row), free(order), free(count), free(work);
    d->sequence_of_row = new_of_row;
    return status;
}

/* Logits (rows, vocab) after row parents[r] of the last call. */
void tt_logits(const Decoder *d, const int64_t *parents, int rows, float *out) {
    for (int r = 0; r < rows; r++)
        memcpy(out + (size_t)r * d->vocab, d->logits + (size_t)d->sequence_of_row[parents[r]] * d->logit_width, sizeof(float) * d->vocab);
}

/* Seconds spent in the model and in sampling so far. */
void tt_seconds(const Decoder *d, double *out) { memcpy(out, d->seconds, sizeof(d->seconds)); }

/* Sample tokens (rows, count) behind rows parents[r] of the last call, which belong to so many environments in turn;
 * uniforms (environments, count, rows of each) lie strides apart. */
int tt_extend(Decoder *d, const int64_t *parents, int rows, int environments, const float *uniforms, const int64_t *strides, int count,
              float temperature, int k, float cdf, int64_t *tokens) {
    int64_t *same = malloc(sizeof(int64_t) * rows), *drawn = malloc(sizeof(int64_t) * rows);
    float *u = malloc(sizeof(float) * rows);
    int status = same && drawn && u ? OK : NO_MEMORY;
    for (int r = 0; r < rows && status == OK; r++) same[r] = r;
    for (int i = 0; i < count && status == OK; i++) {
        const int64_t *from = i ? same : parents;
        const int own = rows / environments;
        for (int r = 0; r < rows; r++) u[r] = uniforms[r / own * strides[0] + i * strides[1] + r % own * strides[2]];
        status = sample(d, from, rows, u, temperature, k, cdf, drawn);
        if (status == OK) status = tt_step(d, from, rows, drawn);
        for (int r = 0; r < rows; r++) tokens[(size_t)r * count + i] = drawn[r];
    }
    free(same), free(drawn), free(u);
    return status;
}

typedef struct {
    const int64_t *tokens; /* of this transition */
    int length, first_child, next_sibling, sequence, last_row;
} Node;

/* Begin anew with whole sequences (rows, time) from position 0. Transitions that several of them begin with are computed
 * once. */
int tt_encode(Decoder *d, const int64_t *tokens, int rows, int time) {
    if (time > d->block_size) return TOO_LONG;
    const int dim = d->transition_dim, levels = (time + dim - 1) / dim, most = rows * levels + 1;
    Node *nodes = malloc(sizeof(Node) * most);
    Sequence *paths = malloc(sizeof(Sequence) * most);
    int32_t *pages = malloc(sizeof(int32_t) * most * d->block_size);
    Row *work = malloc(sizeof(Row) * (size_t)rows * time);
    int status = nodes && paths && pages && work ? OK : NO_MEMORY;
    if (status == OK) status = reserve_sequences(d, rows);
    free(d->sequence_of_row);
    d->sequence_of_row = malloc(sizeof(int32_t) * rows);
    d->used_pages = 0;
    int num_nodes = 1, num_rows = 0, leaves = 0;
    if (status == OK) nodes[0] = (Node){NULL, 0, -1, -1, -1, 0}, paths[0] = (Sequence){pages, 0, 0, -1};
    for (int r = 0; r < rows && status == OK; r++) {
        int at = 0;
        for (int level = 0; level < levels && status == OK; level++) {
            const int length = time - level * dim < dim ? time - level * dim : dim;
            const int64_t *part = tokens + (size_t)r * time + level * dim;
            int next = nodes[at].first_child;
            while (next >= 0 && memcmp(nodes[next].tokens, part, sizeof(int64_t) * length)) next = nodes[next].next_sibling;
            if (next < 0) {
                next = num_nodes++;
                Sequence *path = &paths[next];
                copy(path, &paths[at], pages + (size_t)next * d->block_size);
                paths[at].extended = 1;
                for (int i = 0; i < length && status == OK; i++) {
                    int32_t copied = -1;
                    if (i < dim - 1) status = add_slot(d, path, &copied);
                    work[num_rows++] = make_row(path, part[i], level * dim + i, i < dim - 1, copied, -1);
                }
                nodes[next] = (Node){part, length, -1, nodes[at].first_child, -1, num_rows - 1};
                nodes[at].first_child = next;
            }
            at = next;
        }
        if (nodes[at].sequence < 0) {
            nodes[at].sequence = work[nodes[at].last_row].logits = leaves;
            copy(&d->sequences[leaves], &paths[at], d->page_lists + (size_t)leaves * d->block_size);
            leaves++;
        }
        d->sequence_of_row[r] = nodes[at].sequence;
    }
    if (status == OK) {
        status = run(d, work, num_rows, leaves);
        d->position = time, d->num_sequences = leaves;
    }
    free(nodes), free(paths), free(pages), free(work);
    return status;
}

/* ---- making and freeing ---- */

/* weights: embeddings (transition_dim, vocab, embd), positions (block_size, embd), heads (transition_dim, vocab, embd),
 * their biases (transition_dim, vocab); then for each layer weight and bias of query, key, value, output, up, down.
 * shape: layers, heads, embd, hidden, vocab, observation_dim, transition_dim, block_size, activation, threads. */
Decoder *tt_create(const int *shape, float eps, const float **weights) {
    Decoder *d = calloc(1, sizeof(Decoder));
    d->layers = shape[0], d->heads = shape[1], d->embd = shape[2], d->hidden = shape[3], d->vocab = shape[4];
    d->observation_dim = shape[5], d->transition_dim = shape[6], d->block_size = shape[7], d->activation = shape[8];
    d->threads = shape[9] < d->heads ? shape[9] : d->heads;
    d->eps = eps, d->head_dim = d->embd / d->heads;
    d->logit_width = round_up(d->vocab, LANES);
    d->head_size = round_up(d->head_dim, LANES > 8 ? LANES : 8), d->width = round_up(d->embd, NR);
    const int size = d->head_size, rows = BLOCK;
    d->embeddings = allocate_zeros(sizeof(float) * d->transition_dim * d->vocab * d->width);
    d->positions = allocate_zeros(sizeof(float) * d->block_size * d->width);
    for (int i = 0; i < d->transition_dim * d->vocab; i++)
        memcpy(d->embeddings + (size_t)i * d->width, weights[0] + (size_t)i * d->embd, sizeof(float) * d->embd);
    for (int i = 0; i < d->block_size; i++)
        memcpy(d->positions + (size_t)i * d->width, weights[1] + (size_t)i * d->embd, sizeof(float) * d->embd);
    for (int i = 0; i < 2; i++) d->partial[i] = allocate_zeros(sizeof(float) * d->threads * rows * d->width);
    d->shares = calloc(d->threads, sizeof(Share));
    int *residual = malloc(sizeof(int) * d->width), *columns = malloc(sizeof(int) * (3 * d->heads * size + d->hidden + d->vocab + NR));
    for (int i = 0; i < d->width; i++) residual[i] = i < d->embd ? i : -1;
    const int hidden_panels = (d->hidden + NR - 1) / NR, logit_panels = (d->vocab + NR - 1) / NR;
    for (int t = 0; t < d->threads; t++) {
        Share *s = &d->shares[t];
        s->first_head = t * d->heads / d->threads, s->heads = (t + 1) * d->heads / d->threads - s->first_head;
        const int first_hidden = t * hidden_panels / d->threads * NR;
        int end = (t + 1) * hidden_panels / d->threads * NR;
        const int hidden = (end < d->hidden ? end : d->hidden) - first_hidden;
        s->first_logit = t * logit_panels / d->threads * NR, end = (t + 1) * logit_panels / d->threads * NR;
        s->logits = (end < d->vocab ? end : d->vocab) - s->first_logit;
        s->layers = calloc(d->layers, sizeof(Layer));
        const int own = s->heads * size, units = round_up(hidden, NR);
        const size_t of_layer = (size_t)d->width * (round_up(3 * own, NR) + own + 2 * units);
        const size_t of_heads = (size_t)d->width * d->transition_dim * round_up(s->logits, NR);
        float *panels = s->weights = allocate_zeros(sizeof(float) * (d->layers * of_layer + of_heads));
        for (int l = 0; l < d->layers; l++) {
            const float **w = weights + 4 + 12 * l;
            /* query, key and value of this thread's heads, behind each other; one matrix from three */
            float *joined = allocate_zeros(sizeof(float) * 3 * d->embd * d->embd), *bias = allocate(sizeof(float) * 3 * d->embd);
            for (int part = 0; part < 3; part++) {
                memcpy(joined + (size_t)part * d->embd * d->embd, w[2 * part], sizeof(float) * d->embd * d->embd);
                memcpy(bias + part * d->embd, w[2 * part + 1], sizeof(float) * d->embd);
            }
            for (int j = 0; j < 3 * own; j++) {
                const int part = j / own, head = s->first_head + j % own / size, i = j % size;
                columns[j] = i < d->head_dim ? part * d->embd + head * d->head_dim + i : -1;
            }
            s->layers[l].project = pack(joined, bias, d->embd, columns, 3 * own, residual, d->width, &panels);
            free(joined), free(bias);
            for (int j = 0; j < own; j++)
                columns[j] = j % size < d->head_dim ? (s->first_head + j / size) * d->head_dim + j % size : -1;
            s->layers[l].output = pack(w[6], t ? NULL : w[7], d->embd, residual, d->width, columns, own, &panels);
            for (int j = 0; j < hidden; j++) columns[j] = first_hidden + j;
            s->layers[l].up = pack(w[8], w[9], d->embd, columns, hidden, residual, d->width, &panels);
            for (int j = hidden; j < s->layers[l].up.n; j++) columns[j] = -1;
            s->layers[l].down = pack(w[10], t ? NULL : w[11], d->hidden, residual, d->width, columns, s->layers[l].up.n, &panels);
        }
        s->heads_out = calloc(d->transition_dim, sizeof(Matrix));
        for (int j = 0; j < s->logits; j++) columns[j] = s->first_logit + j;
        for (int i = 0; i < d->transition_dim && s->logits; i++)
            s->heads_out[i] = pack(weights[2] + (size_t)i * d->vocab * d->embd, weights[3] + i * d->vocab, d->embd, columns,
                                   s->logits, residual, d->width, &panels);
        s->x = allocate_zeros(sizeof(float) * rows * d->width), s->normed = allocate_zeros(sizeof(float) * rows * d->width);
        s->projected = allocate_zeros(sizeof(float) * rows * round_up(3 * own, NR));
        s->seen = allocate_zeros(sizeof(float) * rows * own);
        s->hidden = allocate_zeros(sizeof(float) * rows * round_up(hidden, NR));
        s->scores = allocate_zeros(sizeof(float) * BAND * d->block_size * LANES);
        s->out = allocate_zeros(sizeof(float) * rows * round_up(s->logits, NR));
    }
    free(residual), free(columns);
    return d;
}

void tt_destroy(Decoder *d) {
    for (int t = 0; t < d->threads; t++) {
        Share *s = &d->shares[t];
        for (int l = 0; l < d->layers; l++) {
            Matrix *all_of[] = {&s->layers[l].project, &s->layers[l].output, &s->layers[l].up, &s->layers[l].down};
            for (int i = 0; i < 4; i++) free(all_of[i]->bias);
        }
        for (int i = 0; i < d->transition_dim; i++) free(s->heads_out[i].bias);
        free(s->weights), free(s->layers), free(s->heads_out), free(s->x), free(s->normed), free(s->projected), free(s->seen);
        free(s->hidden), free(s->scores), free(s->out);
    }
    for (int i = 0; i < d->num_chunks; i++) free(d->chunks[i]);
    free(d->chunks), free(d->partial[0]), free(d->partial[1]), free(d->shares);
    free(d->embeddings), free(d->positions), free(d->sequences), free(d->previous), free(d->page_lists);
    free(d->previous_lists), free(d->logits), free(d->sequence_of_row), free(d);
}
