/* Encoding of whole sequences as a tree of transitions. */
#pragma once

#include "forward.h"
#include "sequences.h"

/* A transition that one or several sequences have after the same transitions before. */
typedef struct {
    const int64_t *tokens;
    int length, parent, first_child, next_sibling, sequence, first_row;
} Node;

/* Handle a path that begins its own copy of its parent's last page: the parent's tokens on that page are stored in the
 * copy too. */
static void store_in_extra_page(Decoder *d, const Node *nodes, int parent, int level, const Row *row, Row *work, int *num_extra_pages) {
    const int stored = d->transition_dim - 1, end = row->seen - 1;
    for (int i = end - row->slot; i < end; i++) {
        int node = parent;
        for (int up = level - 1 - i / stored; up > 0; up--) node = nodes[node].parent;
        Row *before = &work[nodes[node].first_row + i % stored];
        d->extra_pages[*num_extra_pages] = (ExtraPage){row->page, before->first_extra};
        before->first_extra = (*num_extra_pages)++;
    }
}

/* Numerical embeddings of all nodes' transitions: added (nodes, 2, width), the outputs of both MLPs. */
static void evaluate_nodes(const Decoder *d, const Node *nodes, int num_nodes, float *added) {
    Row rows[BLOCK];
    for (int kind = 0; kind < 2; kind++)
        for (int node = 1, n = 0; node < num_nodes; node++) {
            if (nodes[node].length >= (kind ? d->acted : d->observed))
                rows[n++] = (Row){.transition = nodes[node].tokens, .added = added + (2 * (size_t)node + kind) * d->width};
            if (n && (n == BLOCK || node == num_nodes - 1)) evaluate_numbers(d, d->scratch, kind, rows, n), n = 0;
        }
}

/* Predictions of the next observation by the last whole transition of each leaf of level levels - 1. place: index of the
 * leaves' last tokens. */
static void predict_leaves(const Decoder *d, const Generation *g, const Node *nodes, int num_nodes, int place, Row *work) {
    Row rows[BLOCK];
    for (int node = 1, n = 0; node < num_nodes; node++) {
        const int before = place == d->transition_dim - 1 ? node : nodes[node].parent; /* 0: no transition before */
        if (nodes[node].sequence >= 0 && before > 0) {
            rows[n] = (Row){.transition = nodes[before].tokens, .predicted = g->sequences[nodes[node].sequence].predicted};
            work[nodes[node].first_row + nodes[node].length - 1].predicted = rows[n++].predicted;
        }
        if (n && (n == BLOCK || node == num_nodes - 1)) evaluate_numbers(d, d->scratch, 2, rows, n), n = 0;
    }
}

/* Start over with whole sequences (rows, time) from position 0. Leading transitions that several of them share are
 * computed once. */
static int encode(Decoder *d, const int64_t *tokens, int rows, int time) {
    if (time > d->block_size) return TOO_LONG;
    if (check_tokens(d, tokens, (size_t)rows * time) != OK) return BAD_TOKEN;
    const int dim = d->transition_dim, levels = (time + dim - 1) / dim, most = rows * levels + 1;
    Node *nodes = malloc(sizeof(Node) * most);
    Sequence *paths = malloc(sizeof(Sequence) * most);
    int32_t *pages = malloc(sizeof(int32_t) * most * list_length(d));
    Row *work = malloc(sizeof(Row) * (size_t)rows * time);
    d->extra_pages = malloc(sizeof(ExtraPage) * most * LANES);
    float *added = allocate(d->observed ? sizeof(float) * most * 2 * d->width : 1); /* (nodes, 2, width) */
    int status = nodes && paths && pages && work && added && d->extra_pages ? OK : NO_MEMORY;
    Generation *newest = &d->newest;
    if (status == OK) status = reserve(d, newest, rows);
    if (status == OK) status = release_unused_pages(d, newest, NULL, 0, 0);
    int num_nodes = 1, num_rows = 0, num_extra_pages = 0, leaves = 0;
    if (status == OK) nodes[0] = (Node){NULL, 0, -1, -1, -1, -1, 0}, paths[0] = (Sequence){.pages = pages, .child = -1};
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
                    if (has_numbers(d, i)) work[num_rows].added = added + (2 * (size_t)next + (i >= d->acted - 1)) * d->width;
                    if (copied >= 0) store_in_extra_page(d, nodes, at, level, &work[num_rows], work, &num_extra_pages);
                    num_rows++;
                }
                nodes[at].first_child = next;
            }
            at = next;
        }
        if (nodes[at].sequence < 0) {
            nodes[at].sequence = work[nodes[at].first_row + nodes[at].length - 1].logits = leaves;
            copy_into(d, newest, leaves, &paths[at]);
            leaves++;
        }
        newest->sequence_of_row[r] = nodes[at].sequence;
    }
    if (status == OK && d->observed) {
        evaluate_nodes(d, nodes, num_nodes, added);
        const int place = (time - 1) % dim;
        if (predicted_dimension(d, place) >= 0) predict_leaves(d, newest, nodes, num_nodes, place, work);
        for (int node = 1; node < num_nodes; node++) {
            if (nodes[node].sequence < 0) continue;
            const Sequence *leaf = &newest->sequences[nodes[node].sequence];
            const float *last = work[nodes[node].first_row + nodes[node].length - 1].added;
            memcpy(leaf->transition, nodes[node].tokens, sizeof(int64_t) * nodes[node].length);
            if (last) memcpy(leaf->added, last, sizeof(float) * d->width);
        }
    }
    if (status == OK) {
        status = run_together(d, work, num_rows, newest->logits);
        newest->position = time, newest->num_sequences = leaves, newest->num_rows = rows;
    }
    free(nodes), free(paths), free(pages), free(work), free(added), free(d->extra_pages);
    d->extra_pages = NULL;
    return status;
}
