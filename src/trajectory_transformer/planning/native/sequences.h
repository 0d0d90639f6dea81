/* Sequences of tokens that share pages of keys and values. */
#pragma once

#include "decoder.h"

static int reserve_sequences(Decoder *d, int n) {
    if (n <= d->sequence_capacity) return OK;
    free(d->sequences), free(d->page_lists);
    d->sequences = malloc(sizeof(Sequence) * n), d->page_lists = malloc(sizeof(int32_t) * n * d->block_size);
    d->sequence_capacity = d->sequences && d->page_lists ? n : 0;
    return d->sequence_capacity ? OK : NO_MEMORY;
}

/* Room for one more page. */
static int add_page(Decoder *d) {
    if (d->used_pages == d->num_chunks * CHUNK) {
        float **chunks = realloc(d->chunks, sizeof(float *) * (d->num_chunks + 1));
        if (!chunks) return NO_MEMORY;
        d->chunks = chunks;
        chunks[d->num_chunks] = allocate(sizeof(float) * 2 * CHUNK * d->num_layers * d->heads * d->head_size * LANES);
        if (!chunks[d->num_chunks]) return NO_MEMORY;
        d->num_chunks++;
    }
    d->used_pages++;
    return OK;
}

/* A sequence that begins as a copy of another; its list has room for a whole window. */
static void copy(Sequence *to, const Sequence *from, int32_t *pages) {
    *to = *from;
    to->pages = memcpy(pages, from->pages, sizeof(int32_t) * pages_for(from->stored));
    to->child = -1;
}

/* Give a sequence one more slot. Where it lies depends on the token's position alone, so that the order of all sums,
 * and with it the last bit of every result, is the same whatever other sequences there are. Where a relative has gone
 * on in the last page, this one goes on in a copy, which is made when its token is computed, or, where the tokens
 * before it are computed in the same call, together with them. */
static int add_slot(Decoder *d, Sequence *s, int32_t *copied) {
    const int last = s->stored / LANES, begins = s->stored % LANES == 0;
    *copied = begins || !s->extended ? -1 : s->pages[last];
    if (begins || s->extended) {
        if (add_page(d) != OK) return NO_MEMORY;
        s->pages[last] = d->used_pages - 1;
    }
    s->stored++, s->extended = 0;
    return OK;
}

static Row make_row(const Sequence *s, int token, int position, int stored, int copied, int logits) {
    const int last = s->stored - 1;
    return (Row){token, position, stored ? s->pages[last / LANES] : -1, last % LANES, -1, copied, logits, s->stored, s->pages};
}
