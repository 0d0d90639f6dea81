/* Sequences of tokens that share pages of keys and values. */
#pragma once

#include "decoder.h"

static inline int list_length(const Decoder *d) { return pages_for(d->block_size); }

static void free_generation(Generation *g) {
    free(g->sequences), free(g->page_lists), free(g->sequence_of_row), free(g->logits), free(g->transitions), free(g->added);
}

/* An empty generation with room for so many rows. */
static int reserve(const Decoder *d, Generation *g, int rows) {
    g->num_sequences = g->num_rows = 0;
    if (rows <= g->capacity) return OK;
    free_generation(g);
    const size_t n = rows, floats = n * d->logit_width;
    *g = (Generation){.sequences = malloc(sizeof(Sequence) * n), .page_lists = malloc(sizeof(int32_t) * n * list_length(d)),
                      .sequence_of_row = malloc(sizeof(int32_t) * n), .logits = allocate(sizeof(float) * floats)};
    if (d->observed) {
        g->transitions = malloc(sizeof(int64_t) * n * d->transition_dim), g->added = allocate(sizeof(float) * n * d->width);
        if (!g->transitions || !g->added) return NO_MEMORY;
    }
    if (!g->sequences || !g->page_lists || !g->sequence_of_row || !g->logits) return NO_MEMORY;
    for (size_t i = 0; i < floats; i++) g->logits[i] = -INFINITY;
    g->capacity = rows;
    return OK;
}

/* Whether all of these tokens, and all of these rows of the last call, exist. */
static int check_tokens(const Decoder *d, const int64_t *tokens, size_t n) {
    for (size_t i = 0; i < n; i++)
        if (tokens[i] < 0 || tokens[i] >= d->vocab) return NO_TOKEN;
    return OK;
}
static int check_rows(const Decoder *d, const int64_t *rows, int n) {
    for (int r = 0; r < n; r++)
        if (rows[r] < 0 || rows[r] >= d->newest.num_rows) return NO_ROW;
    return OK;
}

/* More pages, all free. */
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

/* Release all pages but those of some rows' sequences, and make sure that so many pages are free.
 * The lowest pages are found first: those that were used before. */
static int release_unused_pages(Decoder *d, const Generation *g, const int64_t *rows, int n, int needed) {
    char *had = calloc(num_pages(d) + 1, 1);
    if (!had) return NO_MEMORY;
    for (int r = 0; r < n; r++) {
        const Sequence *s = &g->sequences[g->sequence_of_row[rows[r]]];
        for (int p = 0; p < pages_for(s->stored); p++) had[s->pages[p]] = 1;
    }
    const int pages = num_pages(d);
    int status = OK, free_now = 0;
    for (int page = 0; page < pages; page++) free_now += !had[page];
    d->num_free = 0;
    while (status == OK && d->num_free + free_now < needed) status = add_chunk(d);
    for (int page = pages - 1; page >= 0; page--)
        if (!had[page]) d->free_pages[d->num_free++] = page;
    free(had);
    return status;
}

/* A page, or -1 if there is no memory for it. Several threads may look for one where enough of them are free. */
static int allocate_page(Decoder *d) {
    if (d->num_free == 0 && add_chunk(d) != OK) return -1;
    return d->free_pages[atomic_fetch_sub(&d->num_free, 1) - 1];
}

/* A sequence that begins as a copy of another; its list has room for a whole window. */
static void copy(Sequence *to, const Sequence *from, int32_t *pages) {
    *to = *from;
    to->pages = memcpy(pages, from->pages, sizeof(int32_t) * pages_for(from->stored));
    to->child = -1;
}

/* As copy, for number s of a generation. */
static Sequence *copy_into(const Decoder *d, Generation *g, int s, const Sequence *from) {
    copy(&g->sequences[s], from, g->page_lists + (size_t)s * list_length(d));
    if (d->observed) {
        g->sequences[s].transition = g->transitions + (size_t)s * d->transition_dim;
        g->sequences[s].added = g->added + (size_t)s * d->width;
    }
    return &g->sequences[s];
}

/* Give a sequence one more slot. Where it lies depends on the token's position alone, so that the order of all sums,
 * and with it the last bit of every result, is the same whatever other sequences there are. Where a relative has gone
 * on in the last page, this one goes on in a copy, which is made when its token is computed, or, where the tokens
 * before it are computed in the same call, together with them. */
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
    return (Row){token, position, stored ? s->pages[last / LANES] : -1, last % LANES, -1, copied, logits, s->stored, s->pages, NULL, NULL};
}
