/* The forward pass: all layers for some rows, by one thread or by a team of threads. */
#pragma once

#include <sched.h>
#include <time.h>

#include "attention.h"
#include "interruption.h"
#include "numbers.h"

static void embed(const Decoder *d, int token, int position, float *x) {
    const float *e = d->embeddings + ((size_t)(position % d->transition_dim) * d->vocab + token) * d->width;
    const float *p = d->positions + (size_t)position * d->width;
    for (int i = 0; i < d->width; i += LANES) store(x + i, load(e + i) + load(p + i));
}

/* x += more, unless more is NULL; then out = x normalized to mean 0 and variance 1. The norms' weights and biases are
 * folded into the products that follow. */
static inline __attribute__((always_inline)) void normalize_rows(const Decoder *d, const float *more, float *x, int n, float *out,
                                                                 const int width) {
    const int padding = width - d->embd;
    const float inverse = 1.0f / d->embd;
    for (int r = 0; r < n; r++, x += width, out += width, more += more ? width : 0) {
        vec sum = {0}, squares = {0};
#pragma GCC unroll 8
        for (int i = 0; i < width; i += LANES) {
            const vec v = more ? load(x + i) + load(more + i) : load(x + i);
            store(x + i, v);
            sum += v;
        }
        const float mean = total(sum) * inverse;
#pragma GCC unroll 8
        for (int i = 0; i < width; i += LANES) {
            const vec c = load(x + i) - broadcast(mean);
            squares += c * c;
        }
        const float variance = (total(squares) - padding * mean * mean) * inverse;
        const vec scale = broadcast(1.0f / sqrtf(variance + d->eps));
#pragma GCC unroll 8
        for (int i = 0; i < width; i += LANES) store(out + i, (load(x + i) - broadcast(mean)) * scale);
    }
}

static void add_and_normalize(const Decoder *d, const float *more, float *x, int n, float *out) {
    if (d->width == 128) normalize_rows(d, more, x, n, out, 128);
    else normalize_rows(d, more, x, n, out, d->width);
}

#if defined(__x86_64__)
#define PAUSE() __builtin_ia32_pause()
#else
#define PAUSE() ((void)0)
#endif
#define CACHED_BYTES (1 << 20) /* bytes that stay in a core's own cache without prefetching */
#define SPIN_SECONDS 1e-3 /* time that a barrier spins before it yields the core; running threads arrive earlier */
#define TEAM_LOSS_LIMIT 2e-2 /* seconds that a team may lose compared with one thread */

/* Processor time of this thread, in seconds. */
static double thread_seconds(void) {
    struct timespec used = {0};
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &used);
    return used.tv_sec + 1e-9 * used.tv_nsec;
}

/* Wait until all threads of the team have reached the barrier. */
static void barrier(Decoder *d, int team) {
    if (team == 1) return;
    const int phase = atomic_load(&d->phase);
    if (atomic_fetch_add(&d->waiting, 1) == team - 1) {
        atomic_store(&d->waiting, 0);
        atomic_store(&d->phase, phase + 1);
        return;
    }
    const double began = omp_get_wtime();
    for (int i = 1, late = 0; atomic_load(&d->phase) == phase; i++) {
        if (late) interrupted(d), sched_yield();
        else PAUSE();
        if (!late && i % 256 == 0) late = omp_get_wtime() - began > SPIN_SECONDS;
    }
}

/* Number of threads to use. A team needs a core for each thread; if other processes use the cores, one thread is
 * faster. */
static int team_size(const Decoder *d) { return omp_get_wtime() < d->alone_until ? 1 : d->threads; }

/* Record a team's work: seconds elapsed, and its threads' total processor time, which one thread alone would have
 * taken. Only repeated losses switch to one thread for a while. */
static void update_team_loss(Decoder *d, double took, double used) {
    d->team_loss += took - used < TEAM_LOSS_LIMIT / 4 ? took - used : TEAM_LOSS_LIMIT / 4;
    if (d->team_loss < 0) d->team_loss = 0;
    if (d->team_loss > TEAM_LOSS_LIMIT) d->team_loss = TEAM_LOSS_LIMIT / 2, d->alone_until = omp_get_wtime() + 10 * TEAM_LOSS_LIMIT;
}

/* Find the tiles of some rows: the pages that they see, and neighbouring rows that see the same page. Tiles are in the
 * order of the pages, and for each page larger ones come first, so that branches are predictable. Related rows are
 * neighbours. */
static int find_tiles(const Decoder *d, const Row *rows, int n, Tile *tiles) {
    int found = 0;
    for (int p = 0, more = 1; more; p++) {
        Tile ones[BLOCK], twos[BLOCK / 2];
        int num_ones = 0, num_twos = 0;
        more = 0;
        for (int r = 0, end; r < n; r = end) {
            end = r + 1;
            if (p * LANES >= rows[r].seen) continue;
            more = 1;
            while (end < n && p * LANES < rows[end].seen && rows[end].pages[p] == rows[r].pages[p]) end++;
            for (int first = r, size; first < end; first += size) {
                size = end - first >= 4 ? 4 : end - first >= 2 ? 2 : 1;
                Tile *tile = size == 4 ? &tiles[found++] : size == 2 ? &twos[num_twos++] : &ones[num_ones++];
                *tile = (Tile){page_of(d, 0, 0, rows[r].pages[p]), p, 0, first, size};
                for (int i = first; i < first + size; i++)
                    if (slots_seen(&rows[i], p) > tile->filled) tile->filled = slots_seen(&rows[i], p);
            }
        }
        memcpy(tiles + found, twos, sizeof(Tile) * num_twos), found += num_twos;
        memcpy(tiles + found, ones, sizeof(Tile) * num_ones), found += num_ones;
    }
    return found;
}

/* Find a block's tiles and pages; the newest pages come first, because they are written before any is read. */
static void find_pages(const Decoder *d, Block *block) {
    block->num_tiles = find_tiles(d, block->rows, block->n, block->tiles), block->num_pages = 0;
    for (const Tile *tile = block->tiles + block->num_tiles - 1; tile >= block->tiles; tile--)
        if (block->num_pages == 0 || block->pages[block->num_pages - 1] != tile->page) block->pages[block->num_pages++] = tile->page;
}

/* The rows of a block whose logits are wanted. The last layer computes only keys and values of the other rows. */
typedef struct {
    int which[BLOCK]; /* their indices in the block */
    Row rows[BLOCK];
    Block block;
} Wanted;

static void select_wanted(const Decoder *d, const Block *block, Tile *tiles, Wanted *wanted) {
    int n = 0;
    for (int r = 0; r < block->n; r++)
        if (block->rows[r].logits >= 0) wanted->which[n] = r, wanted->rows[n++] = block->rows[r];
    wanted->block = (Block){.rows = wanted->rows, .n = n, .tiles = tiles, .score_width = block->score_width};
    if (n < block->n) wanted->block.num_tiles = find_tiles(d, wanted->rows, n, tiles);
}

/* Move the wanted rows to the front. */
static void move_to_front(const Wanted *wanted, float *values, int width) {
    for (int w = 0; w < wanted->block.n; w++)
        if (wanted->which[w] > w) memcpy(values + (size_t)w * width, values + (size_t)wanted->which[w] * width, sizeof(float) * width);
}

/* Compute the embeddings of rows, and their queries, keys and values in the first layer. If an MLP of the numerical
 * embedding is due for one row, it is due for all. */
static void embed_and_project(const Decoder *d, const Scratch *s, const Row *rows, int n) {
    const Matrix *project = &d->layers[0].project;
    const int due = n && rows->added && rows->transition ? mlp_due(d, rows->position % d->transition_dim) : -1;
    int all_cached = d->first_layer_cache != NULL;
    Stream none = {0};
    if (due >= 0) evaluate_numbers(d, s, due, rows, n);
    for (int r = 0; r < n; r++) {
        float *x = s->x + r * d->width;
        embed(d, rows[r].token, rows[r].position, x);
        all_cached &= !rows[r].added;
        if (rows[r].added)
            for (int i = 0; i < d->width; i += LANES) store(x + i, load(x + i) + load(rows[r].added + i));
        if (!all_cached) continue;
        const float *cached = d->first_layer_cache + ((size_t)rows[r].position * d->vocab + rows[r].token) * project->n;
        memcpy(s->projected + (size_t)r * project->n, cached, sizeof(float) * project->n);
    }
    if (all_cached) return;
    add_and_normalize(d, NULL, s->x, n, s->normed);
    multiply(project, s->normed, d->width, n, s->projected, project->n, &none);
}

/* Compute a table of all queries, keys and values in the first layer, if it is small enough. They depend on token and
 * position alone, except where numerical embeddings are added. */
static void precompute_first_layer(Decoder *d) {
    const int width = d->layers[0].project.n;
    const size_t bytes = sizeof(float) * d->block_size * d->vocab * width;
    float *cached = bytes <= FIRST_LAYER_CACHE_BYTES ? allocate(bytes) : NULL;
    if (!cached) return;
#pragma omp parallel for num_threads(d->threads)
    for (int position = 0; position < d->block_size; position++) {
        const Scratch *s = &d->scratch[omp_get_thread_num()];
        Row rows[BLOCK];
        if (has_numbers(d, position % d->transition_dim)) continue;
        for (int token = 0, n; token < d->vocab; token += n) {
            for (n = 0; n < BLOCK && token + n < d->vocab; n++) rows[n] = (Row){.token = token + n, .position = position};
            embed_and_project(d, s, rows, n);
            memcpy(cached + ((size_t)position * d->vocab + token) * width, s->projected, sizeof(float) * n * width);
        }
    }
    d->first_layer_cache = cached;
}

/* The stream of a block's keys and values in one layer; empty if the pool is so small that it stays in the cache. */
static Stream stream_of(const Decoder *d, int layer, const Block *block) {
    const size_t page = sizeof(float) * page_floats(d) * d->heads; /* in one layer */
    const int prefetch = page * (num_pages(d) - d->num_free) * d->num_layers > CACHED_BYTES;
    return (Stream){block->pages, part_of_page(d, layer, 0), page / LINE, prefetch ? block->num_pages : 0, 0, 0};
}

/* Compute all layers of a block. Each row sees only slots of earlier rows, including those of its block. A team whose
 * blocks see each other's slots waits in each layer until all have stored their keys and values. */
static void run_block(Decoder *d, const Scratch *s, const Block *whole, const Block *next, float *logits, int team) {
    const int width = d->width;
    const Block *block = whole;
    Wanted wanted;
    Stream stream = {0};
    select_wanted(d, whole, s->wanted, &wanted);
    embed_and_project(d, s, whole->rows, whole->n);
    for (int l = 0; l < d->num_layers; l++) {
        const Layer *layer = &d->layers[l];
        const int last = l == d->num_layers - 1;
        if (l > 0) multiply(&layer->project, s->normed, width, whole->n, s->projected, layer->project.n, &stream);
        store_keys_values(d, s, l, whole);
        barrier(d, team);
        if (last && wanted.block.n < whole->n) {
            block = &wanted.block;
            move_to_front(&wanted, s->projected, layer->project.n), move_to_front(&wanted, s->x, width);
        }
        attention(d, s, l, block);
        stream = last ? stream_of(d, 0, next) : stream_of(d, l + 1, whole);
        multiply(&layer->output, s->attended, layer->output.k, block->n, s->out, width, &stream);
        add_and_normalize(d, s->out, s->x, block->n, s->normed);
        multiply(&layer->up, s->normed, width, block->n, s->hidden, layer->up.n, &stream);
        activate(d->activation, s->hidden, block->n * layer->up.n);
        multiply(&layer->down, s->hidden, layer->up.n, block->n, s->out, width, &stream);
        if (last) add_predictions(d, block->rows, block->n, s->out);
        add_and_normalize(d, s->out, s->x, block->n, s->normed);
    }
    if (block->n == 0) return;
    const Matrix *head = &d->heads_out[block->rows[0].position % d->transition_dim];
    multiply(head, s->normed, width, block->n, s->out, head->n, &stream);
    for (int r = 0; r < block->n; r++)
        memcpy(logits + (size_t)block->rows[r].logits * d->logit_width, s->out + (size_t)r * head->n, sizeof(float) * d->vocab);
}

#define ROWS_TOGETHER 32 /* rows of a thread's block in run_together */

/* Compute all layers for rows that may see each other's slots, by the whole team, and the logits of some of them. */
static int run_together(Decoder *d, const Row *rows, int n, float *logits) {
    /* Each thread gets the same number of blocks; some of the last ones may be empty. */
    const int threads = n > MR ? team_size(d) : 1;
    const int turns = (n + threads * ROWS_TOGETHER - 1) / (threads * ROWS_TOGETHER), num_blocks = turns * threads;
    const int size = round_up((n + num_blocks - 1) / num_blocks, MR);
    int pages = 0, widest = 0; /* pages of all rows, and of the row with the most */
    for (int r = 0; r < n; r++) {
        const int own = pages_for(rows[r].seen);
        pages += own;
        if (own > widest) widest = own;
    }
    Block *blocks = malloc(sizeof(Block) * num_blocks);
    Tile *tiles = malloc(sizeof(Tile) * (pages + 1));
    float **addresses = malloc(sizeof(float *) * (pages + 1));
    const int ready = blocks && tiles && addresses;
    for (int b = 0, at = 0; b < num_blocks && ready; b++) {
        const int first = b * size < n ? b * size : n;
        blocks[b] = (Block){rows + first, n - first < size ? n - first : size, tiles + at, 0, addresses + at, 0, widest * LANES};
        for (int r = first; r < first + blocks[b].n; r++) at += pages_for(rows[r].seen);
    }
    const double began = omp_get_wtime();
    double used = 0;
    /* Of even and odd turns: all threads pass a barrier between writing and reading it, and before it is rewritten. */
    int stop[2] = {0, 0};
#pragma omp parallel num_threads(threads) if (ready && threads > 1) reduction(+ : used)
    {
        const int team = omp_get_num_threads(), thread = omp_get_thread_num();
        used -= thread_seconds();
        for (int b = thread; b < num_blocks && ready; b += team) find_pages(d, &blocks[b]);
        for (int turn = 0; turn * team < num_blocks && ready; turn++) {
            if (thread == 0) stop[turn % 2] = interrupted(d);
            const int b = turn * team + thread;
            const Block none = {.rows = rows}, *block = b < num_blocks ? &blocks[b] : &none;
            run_block(d, &d->scratch[thread], block, b + team < num_blocks ? block + team : &blocks[thread], logits, team);
            if (stop[turn % 2]) break;
        }
        used += thread_seconds();
        barrier(d, team);
    }
    const double took = omp_get_wtime() - began;
    d->seconds[0] += took;
    if (threads > 1) update_team_loss(d, took, used);
    free(blocks), free(tiles), free(addresses);
    return !ready ? NO_MEMORY : *d->stop ? INTERRUPTED : OK;
}

/* Compute all layers, by one thread, for rows whose logits are wanted and that see equally many slots, none of each
 * other's. Stops early if the call is interrupted. */
static void run_alone(Decoder *d, const Scratch *s, const Row *rows, int n, float *logits) {
    for (int first = 0, size; first < n && !interrupted(d); first += size) {
        size = n - first <= BLOCK ? n - first : GROUP;
        Block block = {rows + first, size, s->tiles, 0, s->pages, 0, pages_for(rows->seen) * LANES};
        find_pages(d, &block);
        run_block(d, s, &block, &block, logits, 1); /* the next token's rows will see the same pages */
    }
}
