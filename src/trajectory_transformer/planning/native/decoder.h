/* What a decoder holds: weights, the pool of keys and values, and the newest sequences. */
#pragma once

#include <stdatomic.h>

#include "products.h"

#define GROUP (4 * MR) /* rows that a thread decodes together: so few that what they see stays near */
#define BLOCK 48 /* rows that can pass through all layers together */
#define CHUNK 64 /* pages that the pool grows by */
#define FIRST_LAYER_CACHE_BYTES (64 << 20) /* the largest table of the first layer's projections */

#define NUMBER_LAYERS 3 /* of each MLP of the numerical embedding */

typedef struct {
    Matrix project, output, up, down;
} Layer;

/* Rows that stand side by side and see the same page. */
typedef struct {
    float *page;         /* as of the first layer's first head */
    int32_t place;       /* index of this page in each row's page list */
    int32_t filled;      /* slots: the most that any of these rows sees */
    int16_t first, rows; /* 1, 2 or 4 of them */
} Tile;

/* Slots come in pages of LANES, and a sequence's tokens fill its pages one after another. */
typedef struct {
    int32_t *pages;
    int stored;   /* tokens in them */
    int extended; /* whether some child has gone on in the last page */
    int child;    /* the last of its children in the next generation so far, or -1 */
    int64_t *transition; /* tokens of its last transition; of models with a numerical embedding, which adds this (width) to its */
    float *added;        /* last token, see numbers.h */
} Sequence;

/* The distinct sequences that rows belong to, and the logits of their next tokens. */
typedef struct {
    int position, num_rows, num_sequences, capacity; /* capacity: the most rows, and so the most sequences */
    Sequence *sequences;
    int32_t *page_lists, *sequence_of_row;
    float *logits; /* (sequences, logit_width) */
    int64_t *transitions; /* (sequences, transition_dim) */
    float *added;         /* (sequences, width) */
} Generation;

/* Working memory of one thread. */
typedef struct {
    float *x, *normed, *projected, *seen, *hidden, *scores, *out; /* for a block of rows */
    float *numbers[2];
    Tile *tiles, *wanted; /* of a block; of its rows whose logits are wanted */
    float **pages;
    Generation between[3]; /* of the tokens between the first and the last of a call */
} Scratch;

/* One more page that a token is stored in, in a linked list; next: index of the following entry, or -1. */
typedef struct {
    int32_t page, next;
} ExtraPage;

typedef struct Decoder {
    int num_layers, heads, head_dim, embd, hidden, vocab, transition_dim, block_size, activation, threads;
    int head_size, width, logit_width; /* head_dim, embd and vocab rounded up */
    float eps;
    float *embeddings, *positions; /* (transition_dim, vocab, width), (block_size, width) */
    float *weights;    /* of all matrices, in the order that they are used in */
    Layer *layers;
    Matrix *heads_out; /* for each dimension */
    float *first_layer_cache; /* (block_size, vocab, 3 heads head_size): queries, keys and values in the first layer; NULL if too many */
    int observed, acted; /* dimensions of observation, and with the action's; 0 without a numerical embedding */
    float *token_values, *number_weights; /* (transition_dim, vocab); of all its matrices */
    Matrix numbers[2][NUMBER_LAYERS];     /* of the observation's MLP, and of that of observation and action */
    Scratch *scratch;  /* for each thread */
    atomic_int waiting, phase; /* of the threads' barrier */
    double seconds[2];  /* spent in the model, and in sampling */
    double team_loss, alone_until; /* seconds that teams recently lost against one thread; until when one thread works alone */
    float **chunks; /* each (layer, CHUNK, head, 2, …): keys (key_at) and values (LANES, head_size) of a page */
    int num_chunks;
    int32_t *free_pages;
    atomic_int num_free;
    ExtraPage *extra_pages;
    Generation newest, first, next; /* of the last call; what it becomes, by one token and by all */
    struct Decoder *workers; /* for each thread, of one thread: all that changes is their own */
    atomic_int *stop; /* of all of them: the call is to end, see interruption.h */
} Decoder;

typedef struct {
    int32_t token, position;
    int32_t page, slot; /* where it is stored; page -1 if later tokens may not see it */
    int32_t first_extra;  /* index of the first of the other pages that it is stored in, or -1 */
    int32_t copied;     /* the page that the slots before its own are copied from, or -1 */
    int32_t logits;     /* which row of the result, or -1 */
    int32_t seen;       /* slots of these pages */
    const int32_t *pages;
    const int64_t *transition; /* as of its sequence, where an MLP is due, or NULL */
    float *added;              /* to its embedding, or NULL */
} Row;

/* Rows that pass through all layers together. */
typedef struct {
    const Row *rows;
    int n;
    Tile *tiles;
    int num_tiles;
    float **pages; /* that they see, the newest first, as of the first layer's first head */
    int num_pages;
    int score_width; /* floats from one row's scores to the next one's */
} Block;

enum { OK, NO_MEMORY, TOO_LONG, NO_TOKEN, NO_ROW, OTHER_LAYOUT, INTERRUPTED };

static inline int pages_for(int slots) { return (slots + LANES - 1) / LANES; }

static inline int num_pages(const Decoder *d) { return d->num_chunks * CHUNK; } /* free ones included */

/* Slots of its page number p that a row sees. */
static inline int seen_of_page(const Row *row, int p) {
    const int left = row->seen - p * LANES;
    return left < LANES ? left : LANES;
}

static inline size_t page_floats(const Decoder *d) { return 2 * (size_t)d->head_size * LANES; }

/* Where a page's keys and values in some layer and head begin, behind those in the first layer's first head. A page's
 * heads lie together: what is read from far is read in long pieces. */
static inline size_t part_of_page(const Decoder *d, int layer, int head) {
    return ((size_t)layer * CHUNK * d->heads + head) * page_floats(d);
}

static inline float *page_of(const Decoder *d, int layer, int head, int page) {
    return d->chunks[page / CHUNK] + (size_t)(page % CHUNK) * d->heads * page_floats(d) + part_of_page(d, layer, head);
}
