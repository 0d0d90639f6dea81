/* Decoding: given and sampled tokens are appended to rows. */
#pragma once

#include "forward.h"
#include "sampling.h"
#include "sequences.h"

/* Append tokens[r] to rows parents[r] of a generation: make the resulting distinct sequences, and the work that
 * computes them. They are sequences base, base + 1, … of another generation, and belong to its rows places[r]. Returns
 * their number, or -1 without memory. */
static int branch(Decoder *d, Generation *from, const int64_t *parents, int n, const int64_t *tokens, Generation *to, int base,
                  const int64_t *places, Row *work) {
    const int place = from->position % d->transition_dim, stored = place != d->transition_dim - 1;
    int32_t *siblings = malloc(sizeof(int32_t) * n), *order = malloc(sizeof(int32_t) * n);
    int32_t *count = calloc(from->num_sequences + 1, sizeof(int32_t));
    int found = 0, ready = siblings && order && count;
    if (ready) { /* siblings become neighbours, because they share most pages */
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
            siblings[s] = parent->child, parent->child = s;
            int32_t copied = -1;
            Sequence *child = copy_into(d, to, base + s, parent);
            parent->extended = 1; /* by this child, or later by the child's children */
            if (stored) ready = add_slot(d, child, &copied) == OK;
            work[s] = make_row(child, tokens[r], from->position, stored, copied, base + s);
            work[s].added = continue_transition(d, child, parent, tokens[r], place);
            work[s].predicted = continue_prediction(d, child, parent, from->position);
            work[s].transition = mlp_due(d, place) < 0 ? NULL : child->transition;
        }
        to->sequence_of_row[places[r]] = base + s;
    }
    free(siblings), free(order), free(count);
    return ready ? found : -1;
}

/* A decoding request: tokens to append to each row. First a given one, or none; then sampled ones; then each row is
 * copied into several candidates, and tokens are sampled for each candidate. Requests with candidates must have given
 * and sampled tokens. */
typedef struct {
    const int64_t *given; /* (rows), or NULL */
    const SamplingRequest *drawn, *of_candidates; /* or NULL */
    int candidates; /* for each row; 1 without of_candidates */
} DecodingRequest;

/* Number of tokens of a sampling request that are appended: the last estimated one is not, because its successor is not
 * needed. */
static inline int num_appended(const SamplingRequest *sampling) { return sampling ? sampling->count - !!sampling->estimates : 0; }
static inline int num_tokens(const DecodingRequest *request) {
    return !!request->given + num_appended(request->drawn) + num_appended(request->of_candidates);
}

/* Rows that one thread decodes together, and their distinct sequences; rows of a sequence are in the same group. */
typedef struct {
    int first_row, rows, first_sequence, sequences;
} Group;

/* Divide rows into groups of about equal size; rows of a sequence stay together. order: all rows by sequence. */
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

/* Rows of a call that one thread continues, and their indices in the generation that they have reached. */
typedef struct {
    int n;
    int64_t *rows, *places;
    Generation *in;
} RowSet;

static RowSet make_row_set(int n, Generation *in) { return (RowSet){n, malloc(sizeof(int64_t) * n), malloc(sizeof(int64_t) * n), in}; }
static void free_row_set(RowSet *set) { free(set->rows), free(set->places); }

/* Sample the tokens of a set of rows from token index at on. Intermediate sequences alternate between two generations;
 * the last ones stay there or, if end is not NULL, become sequences base, base + 1, … of end. */
static int draw_remaining(Decoder *d, Scratch *s, RowSet *set, const SamplingRequest *sampling, int at,
                          Generation *const intermediate[2], Generation *end, int base, double *sampling_seconds) {
    const int n = set->n, last = num_appended(sampling) - 1;
    int64_t *drawn = malloc(sizeof(int64_t) * n), *own = malloc(sizeof(int64_t) * n);
    Row *work = malloc(sizeof(Row) * n);
    int status = drawn && own && work ? OK : NO_MEMORY;
    for (int r = 0; r < n && status == OK; r++) own[r] = r;
    for (; at < sampling->count && status == OK && !interrupted(d); at++) {
        const double began = omp_get_wtime();
        Generation *to = end && at == last ? end : intermediate[at % 2];
        status = draw_tokens(d, set->in, set->places, set->rows, n, sampling, at, 1, drawn);
        if (status == OK && at <= last && to != end) status = reserve(d, to, n);
        *sampling_seconds += omp_get_wtime() - began;
        if (status != OK || at > last) break;
        const int64_t *places = to == end ? set->rows : own;
        const int found = branch(d, set->in, set->places, n, drawn, to, to == end ? base : 0, places, work);
        if (found < 0) status = NO_MEMORY;
        else run_alone(d, s, work, found, to->logits);
        if (to != end) to->num_sequences = found, to->position = set->in->position + 1;
        memcpy(set->places, places, sizeof(int64_t) * n);
        set->in = to;
    }
    free(drawn), free(own), free(work);
    return status == OK && *d->stop ? INTERRUPTED : status;
}

/* Sample the tokens of a set's candidates, in groups so small that the pages that they see stay in the cache. */
static int draw_candidates(Decoder *d, Scratch *s, const RowSet *beams, const DecodingRequest *request, int base,
                           double *sampling_seconds) {
    const int n = beams->n, candidates = request->candidates, most = (n * candidates + BLOCK - 1) / BLOCK;
    Generation *intermediate[2];
    for (int i = 0, found = 0; i < 3 && found < 2; i++)
        if (&s->intermediate[i] != beams->in) intermediate[found++] = &s->intermediate[i];
    Group *groups = malloc(sizeof(Group) * most);
    int64_t *order = malloc(sizeof(int64_t) * n);
    const int num_groups = groups && order ? make_groups(beams->in, n, most, groups, order) : 0;
    int status = num_groups ? OK : NO_MEMORY;
    for (const Group *group = groups; group < groups + num_groups && status == OK; group++) {
        RowSet set = make_row_set(group->rows * candidates, beams->in);
        status = set.rows && set.places ? OK : NO_MEMORY;
        for (int r = 0; r < set.n && status == OK; r++) {
            const int64_t beam = order[group->first_row + r / candidates];
            set.rows[r] = beams->rows[beam] * candidates + r % candidates, set.places[r] = beam;
        }
        const int first = (base + group->first_row) * candidates;
        if (status == OK) status = draw_remaining(d, s, &set, request->of_candidates, 0, intermediate, &d->next, first, sampling_seconds);
        free_row_set(&set);
    }
    free(groups), free(order);
    return status;
}

/* Decode all tokens of a group: the first one, which work describes, then the sampled ones. */
static int decode_group(Decoder *d, Scratch *s, const Group *group, const int64_t *rows, const Row *work, const DecodingRequest *request,
                        double *sampling_seconds) {
    Generation *first = num_tokens(request) > 1 ? &d->first : &d->next, *end = request->of_candidates ? NULL : &d->next;
    Generation *const intermediate[2] = {&s->intermediate[0], &s->intermediate[1]};
    run_alone(d, s, work + group->first_sequence, group->sequences, first->logits);
    if (!request->drawn) return OK;
    RowSet set = make_row_set(group->rows, first);
    int status = set.rows && set.places ? OK : NO_MEMORY;
    if (status == OK) {
        memcpy(set.rows, rows, sizeof(int64_t) * set.n), memcpy(set.places, rows, sizeof(int64_t) * set.n);
        status = draw_remaining(d, s, &set, request->drawn, !request->given, intermediate, end, group->first_row, sampling_seconds);
    }
    if (status == OK && request->of_candidates) status = draw_candidates(d, s, &set, request, group->first_row, sampling_seconds);
    free_row_set(&set);
    return status;
}

/* Prepare memory for a request: keep the pages of the rows that it continues, and release all others. */
static int prepare(Decoder *d, const int64_t *parents, int rows, const DecodingRequest *request) {
    const int length = num_tokens(request), own = length - num_appended(request->of_candidates), candidates = rows * request->candidates;
    if (d->newest.position + length > d->block_size) return TOO_LONG;
    /* Each row may begin new pages, and diverge from other rows twice. */
    const int needed = rows * (own / LANES + 3) + (request->of_candidates ? candidates * (num_appended(request->of_candidates) / LANES + 3) : 0);
    int status = release_unused_pages(d, &d->newest, parents, rows, needed);
    if (status == OK) status = reserve(d, &d->next, candidates);
    return status == OK && length > 1 ? reserve(d, &d->first, rows) : status;
}

/* Append tokens to n rows of the last call; the rows of this call are their candidates. */
static int decode(Decoder *d, const int64_t *parents, int n, const DecodingRequest *request) {
    const int length = num_tokens(request), prepared = prepare(d, parents, n, request), candidates = n * request->candidates;
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
    if (ready && !request->given) ready = draw_tokens(d, &d->newest, parents, all, n, request->drawn, 0, team, drawn) == OK;
    d->seconds[1] += omp_get_wtime() - began;
    const int found = ready ? branch(d, &d->newest, parents, n, request->given ? request->given : drawn, to, 0, all, work) : -1;
    if (found >= 0) {
        d->next.num_sequences = candidates; /* an upper bound: each group reserves a sequence for each of its rows */
        to->num_sequences = found, to->position = d->newest.position + 1;
        num_groups = make_groups(to, n, most, groups, order);
    }
    began = omp_get_wtime();
    double sampling_seconds = 0, used = 0;
    atomic_int taken = 0, failed = !num_groups;
    team = num_groups > 1 ? team : 1;
#pragma omp parallel num_threads(team) if (team > 1) reduction(+ : sampling_seconds, used)
    {
        Scratch *own = &d->scratch[omp_get_thread_num()];
        used -= thread_seconds();
        for (int g; (g = atomic_fetch_add(&taken, 1)) < num_groups && !interrupted(d);)
            if (decode_group(d, own, &groups[g], order + groups[g].first_row, work, request, &sampling_seconds) != OK) failed = 1;
        used += thread_seconds();
        barrier(d, omp_get_num_threads());
    }
    const double took = omp_get_wtime() - began;
    d->seconds[0] += took - sampling_seconds / team, d->seconds[1] += sampling_seconds / team;
    if (team > 1) update_team_loss(d, took, used);
    free(work), free(groups), free(all), free(order), free(drawn);
    if (*d->stop) return INTERRUPTED;
    if (failed) return NO_MEMORY;
    const Generation newest = d->newest;
    d->next.position = newest.position + length, d->next.num_rows = candidates;
    d->newest = d->next, d->next = newest;
    return OK;
}
