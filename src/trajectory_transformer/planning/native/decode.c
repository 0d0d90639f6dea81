/* Decoding many beams of a Trajectory Transformer on a CPU: see ../native_decoder.py.
 *
 * Rows are tokens that are computed together. What a row may attend to is a list of pages in one pool of keys and
 * values, so beams share what they have in common; a page is copied only where sequences part in its middle. Threads
 * divide the rows among them, and a row's numbers depend neither on the rows beside it nor on the number of threads.
 */
#include "forward.h"
#include "sampling.h"
#include "sequences.h"

/* Continue some rows of a generation, each by a token, behind what another one has; rows that do the same are computed once. */
static int step(Decoder *d, Generation *from, const int64_t *parents, int rows, const int64_t *tokens, Generation *to) {
    if (from->position >= d->block_size) return TOO_LONG;
    const int stored = from->position % d->transition_dim != d->transition_dim - 1, already = to->num_sequences;
    int32_t *siblings = malloc(sizeof(int32_t) * rows), *order = malloc(sizeof(int32_t) * rows);
    int32_t *count = calloc(from->num_sequences + 1, sizeof(int32_t)), *new_of_row = to->sequence_of_row + to->num_rows;
    Row *work = malloc(sizeof(Row) * rows);
    int status = siblings && order && count && work ? OK : NO_MEMORY, n = 0;
    if (status == OK) { /* relatives side by side: they share most of what they attend to */
        for (int r = 0; r < rows; r++) count[from->sequence_of_row[parents[r]] + 1]++;
        for (int s = 0; s < from->num_sequences; s++) count[s + 1] += count[s], from->sequences[s].child = -1;
        for (int r = 0; r < rows; r++) order[count[from->sequence_of_row[parents[r]]]++] = r;
    }
    for (int i = 0; i < rows && status == OK; i++) {
        const int r = order[i];
        Sequence *parent = &from->sequences[from->sequence_of_row[parents[r]]];
        int s = parent->child;
        while (s >= 0 && work[s].token != tokens[r]) s = siblings[s];
        if (s < 0) {
            s = n++;
            Sequence *child = &to->sequences[already + s];
            siblings[s] = parent->child, parent->child = s;
            int32_t copied = -1;
            copy(child, parent, to->page_lists + (size_t)(already + s) * list_length(d));
            parent->extended = 1; /* by this child, or to be by its children */
            if (stored) status = add_slot(d, child, &copied);
            work[s] = make_row(child, tokens[r], from->position, stored, copied, already + s);
        }
        new_of_row[r] = already + s;
    }
    if (status == OK) {
        status = run(d, work, n, to->logits, 1);
        to->position = from->position + 1, to->num_sequences += n, to->num_rows += rows;
    }
    free(siblings), free(order), free(count), free(work);
    return status;
}

static int swap_newest(Decoder *d, int status) {
    const Generation newest = d->newest;
    if (status == OK) d->newest = d->next, d->next = newest;
    return status;
}

/* Continue row parents[r] of the last call by tokens[r]. */
int tt_step(Decoder *d, const int64_t *parents, int rows, const int64_t *tokens) {
    int status = sweep(d, &d->newest, parents, rows);
    if (status == OK) status = make_room(d, &d->next, rows);
    if (status == OK) status = step(d, &d->newest, parents, rows, tokens, &d->next);
    return swap_newest(d, status);
}

/* Logits (rows, vocab) after row parents[r] of the last call. */
void tt_logits(const Decoder *d, const int64_t *parents, int rows, float *out) {
    for (int r = 0; r < rows; r++) {
        const float *logits = d->newest.logits + (size_t)d->newest.sequence_of_row[parents[r]] * d->logit_width;
        memcpy(out + (size_t)r * d->vocab, logits, sizeof(float) * d->vocab);
    }
}

/* Seconds spent in the model and in sampling so far. */
void tt_seconds(const Decoder *d, double *out) { memcpy(out, d->seconds, sizeof(d->seconds)); }

/* Sample tokens (rows, count) behind rows parents[r] of the last call, which belong to so many environments in turn;
 * uniforms (environments, count, rows of each) lie strides apart. Environments that fill the team's blocks get all their
 * tokens before the next ones: what they attend to stays nearer. */
int tt_extend(Decoder *d, const int64_t *parents, int rows, int environments, const float *uniforms, const int64_t *strides, int count,
              float temperature, int k, float cdf, int64_t *tokens) {
    const int own = rows / environments, filling = (d->threads * BLOCK + own - 1) / own, most = filling * own < rows ? filling * own : rows;
    int64_t *same = malloc(sizeof(int64_t) * most), *drawn = malloc(sizeof(int64_t) * most);
    float *u = malloc(sizeof(float) * most);
    int status = same && drawn && u ? OK : NO_MEMORY;
    if (status == OK) status = sweep(d, &d->newest, parents, rows);
    if (status == OK) status = make_room(d, &d->next, rows);
    for (int r = 0; r < most && status == OK; r++) same[r] = r;
    for (int first = 0; first < rows && status == OK; first += most) {
        const int n = rows - first < most ? rows - first : most;
        Generation *from = &d->newest, *to;
        for (int i = 0; i < count && status == OK; i++, from = to) {
            const int64_t *continued = i ? same : parents + first;
            to = i == count - 1 ? &d->next : &d->between[i % 2];
            for (int r = 0; r < n; r++) u[r] = uniforms[(first + r) / own * strides[0] + i * strides[1] + (first + r) % own * strides[2]];
            status = to == &d->next ? OK : make_room(d, to, n);
            if (status == OK) status = sample(d, from, continued, n, u, temperature, k, cdf, drawn);
            if (status == OK) status = step(d, from, continued, n, drawn, to);
            for (int r = 0; r < n; r++) tokens[(size_t)(first + r) * count + i] = drawn[r];
        }
    }
    free(same), free(drawn), free(u);
    return swap_newest(d, status);
}

typedef struct {
    const int64_t *tokens; /* of this transition */
    int length, parent, first_child, next_sibling, sequence, first_row;
} Node;

/* Where a path of transitions begins a page of its own with a copy of its parent's last one: the tokens on that are to be
 * stored in both. */
static void store_further(Decoder *d, const Node *nodes, int parent, int level, const Row *row, Row *work, int *num_further) {
    const int stored = d->transition_dim - 1, end = row->seen - 1;
    for (int i = end - row->slot; i < end; i++) {
        int node = parent;
        for (int up = level - 1 - i / stored; up > 0; up--) node = nodes[node].parent;
        Row *before = &work[nodes[node].first_row + i % stored];
        d->further[*num_further] = (Further){row->page, before->further};
        before->further = (*num_further)++;
    }
}

/* Begin anew with whole sequences (rows, time) from position 0. Transitions that several of them begin with are computed
 * once. */
int tt_encode(Decoder *d, const int64_t *tokens, int rows, int time) {
    if (time > d->block_size) return TOO_LONG;
    const int dim = d->transition_dim, levels = (time + dim - 1) / dim, most = rows * levels + 1;
    Node *nodes = malloc(sizeof(Node) * most);
    Sequence *paths = malloc(sizeof(Sequence) * most);
    int32_t *pages = malloc(sizeof(int32_t) * most * list_length(d));
    Row *work = malloc(sizeof(Row) * (size_t)rows * time);
    d->further = malloc(sizeof(Further) * most * LANES);
    int status = nodes && paths && pages && work && d->further ? OK : NO_MEMORY;
    Generation *newest = &d->newest;
    if (status == OK) status = make_room(d, newest, rows);
    d->used_pages = d->num_free = 0;
    int num_nodes = 1, num_rows = 0, num_further = 0, leaves = 0;
    if (status == OK) nodes[0] = (Node){NULL, 0, -1, -1, -1, -1, 0}, paths[0] = (Sequence){pages, 0, 0, -1};
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
                copy(path, &paths[at], pages + (size_t)next * list_length(d));
                paths[at].extended = 1;
                nodes[next] = (Node){part, length, at, -1, nodes[at].first_child, -1, num_rows};
                for (int i = 0; i < length && status == OK; i++) {
                    int32_t copied = -1;
                    if (i < dim - 1) status = add_slot(d, path, &copied);
                    work[num_rows] = make_row(path, part[i], level * dim + i, i < dim - 1, -1, -1);
                    if (copied >= 0) store_further(d, nodes, at, level, &work[num_rows], work, &num_further);
                    num_rows++;
                }
                nodes[at].first_child = next;
            }
            at = next;
        }
        if (nodes[at].sequence < 0) {
            nodes[at].sequence = work[nodes[at].first_row + nodes[at].length - 1].logits = leaves;
            copy(&newest->sequences[leaves], &paths[at], newest->page_lists + (size_t)leaves * list_length(d));
            leaves++;
        }
        newest->sequence_of_row[r] = nodes[at].sequence;
    }
    if (status == OK) {
        status = run(d, work, num_rows, newest->logits, 0);
        newest->position = time, newest->num_sequences = leaves, newest->num_rows = rows;
    }
    free(nodes), free(paths), free(pages), free(work), free(d->further);
    d->further = NULL;
    return status;
}

/* ---- making and freeing ---- */

/* weights: embeddings (transition_dim, vocab, embd), positions (block_size, embd), heads (transition_dim, vocab, embd),
 * their biases (transition_dim, vocab); then for each layer weight and bias of query, key, value, output, up, down.
 * shape: layers, heads, embd, hidden, vocab, transition_dim, block_size, activation, threads. */
Decoder *tt_create(const int *shape, float eps, const float **weights) {
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
        const float **w = weights + 4 + 12 * l;
        for (int part = 0; part < 3; part++) { /* one matrix from query, key and value, behind each other */
            memcpy(joined + (size_t)part * d->embd * d->embd, w[2 * part], sizeof(float) * d->embd * d->embd);
            memcpy(bias + part * d->embd, w[2 * part + 1], sizeof(float) * d->embd);
        }
        for (int j = 0; j < 3 * own; j++) {
            const int part = j / own, head = j % own / size, i = j % size;
            columns[j] = i < d->head_dim ? part * d->embd + head * d->head_dim + i : -1;
        }
        d->layers[l].project = pack(joined, bias, d->embd, columns, 3 * own, residual, d->width, &panels);
        d->layers[l].output = pack(w[6], w[7], d->embd, residual, d->width, columns, own, &panels); /* of queries' columns */
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
        s->seen = allocate_zeros(sizeof(float) * BLOCK * own), s->hidden = allocate_zeros(sizeof(float) * BLOCK * units);
        s->scores = allocate_zeros(sizeof(float) * BLOCK * pages * LANES), s->out = allocate_zeros(sizeof(float) * BLOCK * out);
        s->wanted = malloc(sizeof(Tile) * BLOCK * pages);
    }
    know(d);
    return d;
}

void tt_destroy(Decoder *d) {
    for (int l = 0; l < d->num_layers; l++)
        free(d->layers[l].project.bias), free(d->layers[l].output.bias), free(d->layers[l].up.bias), free(d->layers[l].down.bias);
    for (int i = 0; i < d->transition_dim; i++) free(d->heads_out[i].bias);
    for (int t = 0; t < d->threads; t++) {
        Scratch *s = &d->scratch[t];
        free(s->x), free(s->normed), free(s->projected), free(s->seen), free(s->hidden), free(s->scores), free(s->out), free(s->wanted);
    }
    for (int i = 0; i < d->num_chunks; i++) free(d->chunks[i]);
    free_generation(&d->newest), free_generation(&d->next), free_generation(&d->between[0]), free_generation(&d->between[1]);
    free(d->chunks), free(d->free_pages), free(d->known), free(d->weights), free(d->layers), free(d->heads_out), free(d->scratch);
    free(d->embeddings), free(d->positions), free(d);
}
