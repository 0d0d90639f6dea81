/* Sequences of tokens that share pages of keys and values. */
#pragma once

#include "decoder.h"

static int reserve_sequences(Decoder *d, int n) {
    if (n <= d->sequence_capacity) return OK;
    free(d->sequences), free(d->page_lists), free(d->filled_lists);
    d->sequences = malloc(sizeof(Sequence) * n);
    d->page_lists = malloc(sizeof(int32_t) * n * d->block_size), d->filled_lists = malloc((size_t)n * d->block_size);
    d->sequence_capacity = n;
    return d->sequences && d->page_lists && d->filled_lists ? OK : NO_MEMORY;
}

/* Room for one more page. */
static int add_page(Decoder *d) {
    if (d->used_pages == d->num_chunks * CHUNK) {
        float **chunks = realloc(d->chunks, sizeof(float *) * (d->num_chunks + 1));
        if (!chunks) return NO_MEMORY;
        d->chunks = chunks;
        chunks[d->num_chunks] = allocate_zeros(sizeof(float) * 2 * CHUNK * d->layers * d->heads * d->head_size * LANES);
        if (!chunks[d->num_chunks]) return NO_MEMORY;
        d->num_chunks++;
    }
    d->used_pages++;
    return OK;
}

/* A sequence that begins as a copy of another; its lists have room for a whole window. */
static void copy(Sequence *to, const Sequence *from, int32_t *pages, uint8_t *filled) {
    *to = *from;
    to->pages = memcpy(pages, from->pages, sizeof(int32_t) * from->num_pages);
    to->filled = memcpy(filled, from->filled, from->num_pages);
    to->child = -1;
}

/* A page of its own for a sequence, with what it sees of the last one. */
static int copy_last_page(Decoder *d, Sequence *s) {
    const int last = s->num_pages - 1, old = s->pages[last];
    if (add_page(d) != OK) return NO_MEMORY;
    s->pages[last] = d->used_pages - 1;
    for (int l = 0; l < d->layers; l++)
        for (int h = 0; h < d->heads; h++)
            memcpy(page_of(d, l, h, s->pages[last]), page_of(d, l, h, old), sizeof(float) * 2 * LANES * d->head_size);
    return OK;
}

/* Give a sequence one more slot, on a new page if the last one is full, or the token begins something that sequences
 * are likely to part at. Where it lies on its page depends on nothing else, so that the order of all sums, and with it
 * the last bit of every result, is the same whatever other sequences there are. */
static int add_slot(Decoder *d, Sequence *s, int begins) {
    int status = OK;
    if (s->num_pages == 0 || begins || s->filled[s->num_pages - 1] == LANES) {
        status = add_page(d);
        s->pages[s->num_pages] = d->used_pages - 1, s->filled[s->num_pages++] = 1;
    } else {
        if (s->extended) status = copy_last_page(d, s);
        s->filled[s->num_pages - 1]++;
    }
    s->extended = 0;
    return status;
}

static Row make_row(const Sequence *s, int token, int position, int stored, int logits) {
    const int last = s->num_pages - 1, filled = s->num_pages ? s->filled[last] : 0;
    return (Row){token, position, stored ? s->pages[last] : -1, filled - 1, logits, s->pages, s->filled, s->num_pages, filled};
}

