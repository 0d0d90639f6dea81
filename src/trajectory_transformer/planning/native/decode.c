/* Decoding many beams of a Trajectory Transformer on a CPU: see ../native_decoder.py.
 *
 * Rows are tokens that are computed together. What a row may attend to is a list of pages in one pool of keys and
 * values, so beams share what they have in common; a page is copied only where sequences part in its middle. Threads
 * divide the rows among them, and a row's numbers depend neither on the rows beside it nor on the number of threads.
 */
#include "forward.h"
#include "sampling.h"
#include "sequences.h"

/* Sequences that continue some rows of a generation by a token each, equal ones as one, and the work that makes them. They
 * stand in another generation behind base others, and belong to its rows places[r]. Returns how many they are, or -1. */
static int branch(Decoder *d, Generation *from, const int64_t *parents, int n, const int64_t *tokens, Generation *to, int base,
                  const int64_t *places, Row *work) {
    const int stored = from->position % d->transition_dim != d->transition_dim - 1;
    int32_t *siblings = malloc(sizeof(int32_t) * n), *order = malloc(sizeof(int32_t) * n);
    int32_t *count = calloc(from->num_sequences + 1, sizeof(int32_t));
    int found = 0, ready = siblings && order && count;
    if (ready) { /* relatives side by side: they share most of what they attend to */
        for (int r = 0; r < n; r++) count[from->sequence_of_row[parents[r]] + 1]++;
        for (int s = 0; s < from->num_sequences; s++) count[s + 1] += count[s];
        for (int r = 0; r < n; r++) order[count[from->sequence_of_row[parents[r]]]++] = r;
    }
    for (int i = 0; i < n && ready; i++) {
        const int r = order[i];
        Sequence *parent = &from->sequences[from->sequence_of_row[parents[r]]];
        int s = parent->child;
        while (s >= 0 && work[s].token != tokens[r]) s = siblings[s];
        if (s < 0) {
            s = found++;
            Sequence *child = &to->sequences[base + s];
            siblings[s] = parent->child, parent->child = s;
            int32_t copied = -1;
            copy(child, parent, to->page_lists + (size_t)(base + s) * list_length(d));
            parent->extended = 1; /* by this child, or to be by its children */
            if (stored) ready = add_slot(d, child, &copied) == OK;
            work[s] = make_row(child, tokens[r], from->position, stored, copied, base + s);
        }
        to->sequence_of_row[places[r]] = base + s;
    }
    free(siblings), free(order), free(count);
    return ready ? found : -1;
}

/* Rows that one thread decodes, and their sequences after the first token: rows that share one are in the same group. */
typedef struct {
    int first_row, rows, first_sequence, sequences;
} Group;

/* So many tokens of a group: first what is in work, then what is drawn. */
static int decode_group(Decoder *d, Scratch *s, const Group *group, const int64_t *rows, const Row *work, int length,
                        const Drawing *drawing, double *sampling) {
    const int n = group->rows;
    run_alone(d, s, work + group->first_sequence, group->sequences, length > 1 ? d->first.logits : d->next.logits);
    if (length == 1) return OK;
    int64_t *local = malloc(sizeof(int64_t) * n), *drawn = malloc(sizeof(int64_t) * n);
    Row *own = malloc(sizeof(Row) * n);
    int status = local && drawn && own ? OK : NO_MEMORY;
    for (int r = 0; r < n && status == OK; r++) local[r] = r;
    Generation *from = &d->first;
    for (int i = 1; i < length && status == OK; i++) {
        const int last = i == length - 1;
        Generation *to = last ? &d->next : &s->between[i % 2];
        const int64_t *parents = i == 1 ? rows : local;
        const double began = omp_get_wtime();
        if (!last) status = make_room(d, to, n);
        if (status == OK) status = draw_tokens(d, from, parents, rows, n, drawing, i - length + drawing->count, 1, drawn);
        *sampling += omp_get_wtime() - began;
        if (status != OK) break;
        const int found = branch(d, from, parents, n, drawn, to, last ? group->first_row : 0, last ? rows : local, own);
        if (found < 0) status = NO_MEMORY;
        else run_alone(d, s, own, found, to->logits);
        if (!last) to->num_sequences = found, to->position = from->position + 1;
        from = to;
    }
    free(local), free(drawn), free(own);
    return status;
}

/* Groups of about as many rows, in which sequences are not divided; order: all rows, those of a sequence side by side. */
static int make_groups(const Generation *g, int n, int groups, Group *group, int64_t *order) {
    const int num_sequences = g->num_sequences;
    int32_t *ends = calloc(num_sequences + 1, sizeof(int32_t));
    if (!ends) return 0;
    for (int r = 0; r < n; r++) ends[g->sequence_of_row[r] + 1]++;
    for (int s = 0; s < num_sequences; s++) ends[s + 1] += ends[s];
    int made = 0;
    for (int s = 0, begins = 0, row = 0; s < num_sequences; s++) {
        if (ends[s + 1] < (int64_t)n * (made + 1) / groups) continue;
        group[made++] = (Group){row, ends[s + 1] - row, begins, s + 1 - begins};
        row = ends[s + 1], begins = s + 1;
    }
    for (int r = 0; r < n; r++) order[ends[g->sequence_of_row[r]]++] = r;
    free(ends);
    return made;
}

/* Room for some rows of the last call and what comes behind them, and for nothing else. */
static int prepare(Decoder *d, const int64_t *parents, int rows, int length) {
    if (d->newest.position + length > d->block_size) return TOO_LONG;
    int status = sweep(d, &d->newest, parents, rows, rows * (length / LANES + 3)); /* each may begin pages, and part from others twice */
    if (status == OK) status = make_room(d, &d->next, rows);
    return status == OK && length > 1 ? make_room(d, &d->first, rows) : status;
}

/* Continue n rows of the last call, by a given token each or none, then by what is drawn or nothing. */
static int go_on(Decoder *d, const int64_t *parents, int n, const int64_t *given, const Drawing *drawing) {
    const int length = (given ? 1 : 0) + (drawing ? drawing->count : 0), prepared = prepare(d, parents, n, length);
    if (prepared != OK) return prepared;
    int team = team_size(d);
    const int turns = (n + team * GROUP - 1) / (team * GROUP), most = n > MR ? turns * team : 1;
    Generation *to = length > 1 ? &d->first : &d->next;
    Row *work = malloc(sizeof(Row) * n);
    Group *groups = malloc(sizeof(Group) * most);
    int64_t *all = malloc(sizeof(int64_t) * n), *order = malloc(sizeof(int64_t) * n), *drawn = malloc(sizeof(int64_t) * n);
    int ready = work && groups && all && order && drawn, num_groups = 0;
    for (int r = 0; r < n && ready; r++) all[r] = r;
    double began = omp_get_wtime();
    if (ready && !given) ready = draw_tokens(d, &d->newest, parents, all, n, drawing, 0, team, drawn) == OK;
    d->seconds[1] += omp_get_wtime() - began;
    const int found = ready ? branch(d, &d->newest, parents, n, given ? given : drawn, to, 0, all, work) : -1;
    if (found >= 0) {
        to->num_sequences = found, to->position = d->newest.position + 1;
        num_groups = make_groups(to, n, most, groups, order);
    }
    began = omp_get_wtime();
    double sampling = 0, used = 0;
    atomic_int taken = 0, failed = !num_groups;
    team = num_groups > 1 ? team : 1;
#pragma omp parallel num_threads(team) if (team > 1) reduction(+ : sampling, used)
    {
        Scratch *own = &d->scratch[omp_get_thread_num()];
        used -= time_used();
        for (int g; (g = atomic_fetch_add(&taken, 1)) < num_groups;)
            if (decode_group(d, own, &groups[g], order + groups[g].first_row, work, length, drawing, &sampling) != OK) failed = 1;
        used += time_used();
        meet(d, omp_get_num_threads());
    }
    const double took = omp_get_wtime() - began;
    d->seconds[0] += took - sampling / team, d->seconds[1] += sampling / team;
    if (team > 1) judge(d, took, used);
    free(work), free(groups), free(all), free(order), free(drawn);
    if (failed) return NO_MEMORY;
    const Generation newest = d->newest;
    d->next.position = newest.position + length, d->next.num_sequences = length > 1 ? n : found;
    d->newest = d->next, d->next = newest;
    return OK;
}

/* Continue row parents[r] of the last call by tokens[r]. */
int tt_step(Decoder *d, const int64_t *parents, int rows, const int64_t *tokens) { return go_on(d, parents, rows, tokens, NULL); }

/* Logits after a row of the last call. */
static void copy_logits(const Decoder *d, int64_t row, float *out) {
    memcpy(out, d->newest.logits + (size_t)d->newest.sequence_of_row[row] * d->logit_width, sizeof(float) * d->vocab);
}

/* Logits (rows, vocab) after row parents[r] of the last call. */
void tt_logits(const Decoder *d, const int64_t *parents, int rows, float *out) {
    for (int r = 0; r < rows; r++) copy_logits(d, parents[r], out + (size_t)r * d->vocab);
}

/* Seconds spent in the model and in sampling so far. */
void tt_seconds(const Decoder *d, double *out) { memcpy(out, d->seconds, sizeof(d->seconds)); }

/* Sample tokens (rows, count) behind rows parents[r] of the last call, which belong to so many environments in turn; where
 * there are such, behind given tokens of theirs. Where predicted (rows, 2, vocab) is wanted, one more token follows, which is
 * the likeliest: it gets the logits that say so, and those behind it. */
int tt_extend(Decoder *d, const int64_t *parents, int rows, const int64_t *given, int environments, const float *uniforms,
              const int64_t *strides, int count, float temperature, int k, float cdf, int64_t *tokens, float *predicted) {
    const Drawing drawing = {uniforms, strides, rows / environments, count + !!predicted, k, temperature, cdf, tokens, predicted};
    const int status = go_on(d, parents, rows, given, &drawing);
    for (int r = 0; r < rows && predicted && status == OK; r++) copy_logits(d, r, predicted + (2 * (size_t)r + 1) * d->vocab);
    return status;
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
    if (status == OK) status = sweep(d, newest, NULL, 0, 0);
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
        status = run_together(d, work, num_rows, newest->logits);
        newest->position = time, newest->num_sequences = leaves;
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
        s->wanted = malloc(sizeof(Tile) * BLOCK * pages), s->tiles = malloc(sizeof(Tile) * BLOCK * pages);
        s->pages = malloc(sizeof(float *) * BLOCK * pages);
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
        free(s->tiles), free(s->pages), free_generation(&s->between[0]), free_generation(&s->between[1]);
    }
    for (int i = 0; i < d->num_chunks; i++) free(d->chunks[i]);
    free_generation(&d->newest), free_generation(&d->first), free_generation(&d->next);
    free(d->chunks), free(d->free_pages), free(d->known), free(d->weights), free(d->layers), free(d->heads_out), free(d->scratch);
    free(d->embeddings), free(d->positions), free(d);
}
