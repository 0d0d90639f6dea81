/* Sequences of tokens that share pages of keys and values. */
#pragma once

#include "decoder.h"

/* Pages of the longest sequence: the length of a page list. */
static inline int list_length(const Decoder *d) { return pages_for(d->block_size); }

static void free_generation(Generation *g) {
    free(g->sequences), free(g->page_lists), free(g->sequence_of_row), free(g->logits), free(g->transitions), free(g->added), free(g->predicted);
}

/* Empty a generation and make room in it for this many rows. */
static int reserve(const Decoder *d, Generation *g, int rows) {
    g->num_sequences = g->num_rows = 0;
    if (rows <= g->capacity) return OK;
    free_generation(g);
    const size_t n = rows, floats = n * d->logit_width;
    *g = (Generation){.sequences = malloc(sizeof(Sequence) * n), .page_lists = malloc(sizeof(int32_t) * n * list_length(d)),
                      .sequence_of_row = malloc(sizeof(int32_t) * n), .logits = allocate(sizeof(float) * floats)};
    if (d->observed) {
        g->transitions = malloc(sizeof(int64_t) * n * d->transition_dim), g->added = allocate(sizeof(float) * n * d->width);
        g->predicted = d->predicts ? allocate(sizeof(float) * n * predicted_floats(d)) : NULL;
        if (!g->transitions || !g->added || (d->predicts && !g->predicted)) return NO_MEMORY;
    }
    if (!g->sequences || !g->page_lists || !g->sequence_of_row || !g->logits) return NO_MEMORY;
    for (size_t i = 0; i < floats; i++) g->logits[i] = -INFINITY;
    g->capacity = rows;
    return OK;
}

/* Check that tokens, or rows of the last call, are in range. */
static int check_tokens(const Decoder *d, const int64_t *tokens, size_t n) {
    for (size_t i = 0; i < n; i++)
        if (tokens[i] < 0 || tokens[i] >= d->vocab) return BAD_TOKEN;
    return OK;
}
static int check_rows(const Decoder *d, const int64_t *rows, int n) {
    for (int r = 0; r < n; r++)
        if (rows[r] < 0 || rows[r] >= d->newest.num_rows) return BAD_ROW;
    return OK;
}

/* Add a chunk of free pages to the pool. */
static int add_chunk(Decoder *d) {
    float **chunks = realloc(d->chunks, sizeof(float *) * (d->num_chunks + 1));
    if (!chunks) return NO_MEMORY;
    d->chunks = chunks;
    int32_t *free_pages = realloc(d->free_pages, sizeof(int32_t) * CHUNK * (d->num_chunks + 1));
    if (!free_pages) return NO_MEMORY;
    d->free_pages = free_pages;
    chunks[d->num_chunks] = allocate(sizeof(float) * CHUNK * d->num_layers * d->heads * page_floats(d));
    if (!chunks[d->num_chunks]) return NO_MEMORY;
    d->num_chunks++;
    for (int page = num_pages(d) - 1; page >= num_pages(d) - CHUNK; page--) d->free_pages[d->num_free++] = page;
    return OK;
}

/* Release all pages except those of some rows' sequences, and add chunks until the needed number of pages is free.
 * Pages with the lowest numbers, which were used before, are allocated first. */
static int release_unused_pages(Decoder *d, const Generation *g, const int64_t *rows, int n, int needed) {
    char *in_use = calloc(num_pages(d) + 1, 1);
    if (!in_use) return NO_MEMORY;
    for (int r = 0; r < n; r++) {
        const Sequence *s = &g->sequences[g->sequence_of_row[rows[r]]];
        for (int p = 0; p < pages_for(s->stored); p++) in_use[s->pages[p]] = 1;
    }
    const int pages = num_pages(d);
    int status = OK, free_now = 0;
    for (int page = 0; page < pages; page++) free_now += !in_use[page];
    d->num_free = 0;
    while (status == OK && d->num_free + free_now < needed) status = add_chunk(d);
    for (int page = pages - 1; page >= 0; page--)
        if (!in_use[page]) d->free_pages[d->num_free++] = page;
    free(in_use);
    return status;
}

/* Take a free page; -1 if memory is short. Threads may call this concurrently while enough pages are free. */
static int allocate_page(Decoder *d) {
    if (d->num_free == 0 && add_chunk(d) != OK) return -1;
    return d->free_pages[atomic_fetch_sub(&d->num_free, 1) - 1];
}

/* Copy a sequence; pages is the copy's page list, with room for the longest sequence. */
static void copy(Sequence *to, const Sequence *from, int32_t *pages) {
    *to = *from;
    to->pages = memcpy(pages, from->pages, sizeof(int32_t) * pages_for(from->stored));
    to->child = -1;
}

/* Copy a sequence to index s of a generation. */
static Sequence *copy_into(const Decoder *d, Generation *g, int s, const Sequence *from) {
    copy(&g->sequences[s], from, g->page_lists + (size_t)s * list_length(d));
    if (d->observed) {
        g->sequences[s].transition = g->transitions + (size_t)s * d->transition_dim;
        g->sequences[s].added = g->added + (size_t)s * d->width;
        g->sequences[s].predicted = g->predicted + (size_t)s * predicted_floats(d);
    }
    return &g->sequences[s];
}

/* Append one slot to a sequence. Its place within a page depends on the token's position alone, so that the order of
 * all sums, and the last bit of every result, does not depend on other sequences. If another child of the same sequence
 * has already extended the last page, this sequence continues in a copy of it, *copied (else -1): the copy is made when
 * the slot's token is computed, or, if the tokens before it are computed in the same call, together with them. */
static int add_slot(Decoder *d, Sequence *s, int32_t *copied) {
    const int last = s->stored / LANES, begins = s->stored % LANES == 0;
    *copied = begins || !s->extended ? -1 : s->pages[last];
    if (begins || s->extended) {
        const int page = allocate_page(d);
        if (page < 0) return NO_MEMORY;
        s->pages[last] = page;
    }
    s->stored++, s->extended = 0;
    return OK;
}

static Row make_row(const Sequence *s, int token, int position, int stored, int copied, int logits) {
    const int last = s->stored - 1;
    return (Row){token, position, stored ? s->pages[last / LANES] : -1, last % LANES, -1, copied, logits, s->stored, s->pages, NULL, NULL, NULL};
}
