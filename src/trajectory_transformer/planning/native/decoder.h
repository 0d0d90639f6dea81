/* The decoder's state: weights, the pool of keys and values, and the newest sequences. */
#pragma once

#include <stdatomic.h>

#include "products.h"

#define GROUP (4 * MR) /* rows that a thread decodes together, so few that the pages that they see stay in the cache */
#define BLOCK 48 /* most rows that are computed together through all layers */
#define CHUNK 64 /* pages that are added to the pool at once */
#define FIRST_LAYER_CACHE_BYTES (64 << 20) /* the largest table of the first layer's projections */

#define NUMBER_LAYERS 3 /* of each MLP of the numerical embedding */

typedef struct {
    Matrix project, output, up, down;
} Layer;

/* Neighbouring rows that see the same page. */
typedef struct {
    float *page;         /* its part of the first layer's first head */
    int32_t place;       /* index of this page in each row's page list */
    int32_t filled;      /* most slots that any of these rows sees */
    int16_t first, rows; /* first row, and number of rows: 1, 2 or 4 */
} Tile;

/* A sequence. Its tokens' keys and values fill a list of pages, of LANES slots each. */
typedef struct {
    int32_t *pages;
    int stored;   /* slots filled */
    int extended; /* whether a child has already extended the last page */
    int child;    /* the newest of its children in the next generation, or -1 */
    int64_t *transition; /* with a numerical embedding: tokens of the last transition */
    float *added;        /* with a numerical embedding: (width) added to the last token's embedding, see numbers.h */
    float *predicted;    /* with numerical dynamics: (observed, width) prediction by the transition before the last token */
} Sequence;

/* The distinct sequences of some rows, and the logits of their next tokens. */
typedef struct {
    int position, num_rows, num_sequences, capacity; /* capacity: most rows, and so most sequences */
    Sequence *sequences;
    int32_t *page_lists, *sequence_of_row;
    float *logits; /* (sequences, logit_width) */
    int64_t *transitions; /* (sequences, transition_dim) */
    float *added;         /* (sequences, width) */
    float *predicted;     /* (sequences, observed, width) */
} Generation;

/* Working memory of one thread. */
typedef struct {
    float *x, *normed, *projected, *attended, *hidden, *scores, *out; /* for a block of rows */
    float *numbers[2]; /* inputs and outputs of a numerical embedding's layer */
    Tile *tiles, *wanted; /* of a block; of its rows whose logits are wanted */
    float **pages;
    Generation intermediate[3]; /* after tokens between the first and the last of a call */
} Scratch;

/* An additional page that a token is stored in, in a linked list; next: index of the following entry, or -1. */
typedef struct {
    int32_t page, next;
} ExtraPage;

typedef struct Decoder {
    int num_layers, heads, head_dim, embd, hidden, vocab, transition_dim, block_size, activation, threads;
    int head_size, width, logit_width; /* head_dim, embd and vocab rounded up */
    float eps;
    float *embeddings, *positions; /* (transition_dim, vocab, width), (block_size, width) */
    float *weights;    /* of all matrices, in the order of use */
    Layer *layers;
    Matrix *heads_out; /* output heads, one for each dimension */
    /* (block_size, vocab, 3 heads head_size) queries, keys and values in the first layer; NULL if too large */
    float *first_layer_cache;
    /* Of the numerical embedding, if there is one: */
    int observed, acted;                  /* dimensions of the observation, and of observation and action; else 0 */
    float *token_values, *number_weights; /* (transition_dim, vocab) real values, and the weights of all its matrices */
    int predicts;                         /* whether there is the third MLP, of the dynamics */
    Matrix numbers[3][NUMBER_LAYERS];     /* the observation's MLP, that of observation and action, and the dynamics' */
    Scratch *scratch;  /* for each thread */
    atomic_int waiting, phase; /* of the threads' barrier */
    double seconds[2];  /* spent in the model, and in sampling */
    double team_loss, alone_until; /* seconds that teams recently lost against one thread; one thread is used until */
    float **chunks; /* each (layer, CHUNK, head, 2, …): keys (key_at) and values (LANES, head_size) of a page */
    int num_chunks;
    int32_t *free_pages;
    atomic_int num_free;
    ExtraPage *extra_pages;
    Generation newest, first, next; /* the last call's result; in a call, after its first token, and after its last */
    struct Decoder *workers; /* a single-threaded decoder for each thread, which shares the weights */
    atomic_int *stop; /* shared with the workers: the call must end, see interruption.h */
} Decoder;

/* A token to compute. */
typedef struct {
    int32_t token, position;
    int32_t page, slot; /* where its key and value are stored; page -1: nowhere, because later tokens do not see it */
    int32_t first_extra;  /* index of the first additional page that it is stored in, or -1 */
    int32_t copied;     /* the page from which the slots before its own are copied, or -1 */
    int32_t logits;     /* the row of the logits that its result goes to, or -1 */
    int32_t seen;       /* number of slots, in its pages, that it sees */
    const int32_t *pages;
    const int64_t *transition; /* its sequence's, if an MLP of the numerical embedding is due, else NULL */
    float *added;              /* the numerical embedding added to its embedding, or NULL */
    float *predicted;          /* its sequence's, if it predicts an observation that follows a transition, else NULL */
} Row;

/* Rows that are computed together through all layers. */
typedef struct {
    const Row *rows;
    int n;
    Tile *tiles;
    int num_tiles;
    float **pages; /* the pages that they see, the newest first: their parts of the first layer's first head */
    int num_pages;
    int score_width; /* floats from one row's scores to the next one's */
} Block;

enum { OK, NO_MEMORY, TOO_LONG, BAD_TOKEN, BAD_ROW, LAYOUT_MISMATCH, INTERRUPTED }; /* status, see decoder.py */

/* Floats of a transition's prediction of the next observation; 0 without numerical dynamics. */
static inline int predicted_floats(const Decoder *d) { return d->predicts * d->observed * d->width; }

static inline int pages_for(int slots) { return (slots + LANES - 1) / LANES; }

static inline int num_pages(const Decoder *d) { return d->num_chunks * CHUNK; } /* including free ones */

/* Number of slots that a row sees of page p in its list. */
static inline int slots_seen(const Row *row, int p) {
    const int left = row->seen - p * LANES;
    return left < LANES ? left : LANES;
}

static inline size_t page_floats(const Decoder *d) { return 2 * (size_t)d->head_size * LANES; }

/* Offset of a page's part of a layer and head from its part of the first layer's first head. The heads of a layer are
 * adjacent, so that memory is read in long pieces. */
static inline size_t part_of_page(const Decoder *d, int layer, int head) {
    return ((size_t)layer * CHUNK * d->heads + head) * page_floats(d);
}

static inline float *page_of(const Decoder *d, int layer, int head, int page) {
    return d->chunks[page / CHUNK] + (size_t)(page % CHUNK) * d->heads * page_floats(d) + part_of_page(d, layer, head);
}
