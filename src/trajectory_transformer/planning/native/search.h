/* The whole search of ../beam_search.py, for windows that do not slide. */
#pragma once

#include "decoding.h"
#include "encode.h"

/* Inputs and results of a search; rest = transition_dim - observation_dim, candidates = expand * width. */
typedef struct {
    int32_t environments, time, horizon, width, expand, observation_dim, k_observation, k_action; /* k 0: no limit */
    float temperature, cdf, fraction; /* cdf below 0: no filter of actions; fraction: as in Estimates */
    float discount;
    const int64_t *prefix;            /* (environments, time) */
    const float *uniforms;            /* (environments, horizon, transition_dim, candidates) */
    const float *centers;             /* (transition_dim, vocab - 1): the bins' real values */
    int64_t *observations;            /* (horizon - 1, environments, width, observation_dim): of transition t + 1 */
    int64_t *tokens;                  /* (horizon, environments, candidates, rest) */
    float *rewards, *values;          /* (horizon, environments, candidates) estimates */
    float *value_probabilities;       /* (horizon, environments, candidates, vocab - 1) of the value's bins, or NULL */
    int64_t *kept;                    /* (horizon, environments, width): indices of the candidates kept, best first */
    int64_t *best;                    /* (environments, horizon, transition_dim): tokens of the best sequence */
    float *best_rewards;              /* (environments, horizon) */
    float *best_value, *best_score;   /* (environments) */
} Search;

typedef struct {
    float score, rewards; /* rewards: the discounted sum */
    int candidate;
} Ranked;

/* Order of candidates: higher scores first; of equal ones (copies of one sequence) the first candidate first. */
static int compare(const void *one, const void *other) {
    const Ranked *a = one, *b = other;
    if (a->score != b->score) return a->score > b->score ? -1 : 1;
    return a->candidate - b->candidate;
}

/* Keep an environment's best candidates of transition t by reward plus return-to-go; a score that is not finite is
 * worse than any other. discount: factor of this transition's reward. rewards: (width) discounted sums of the sequences
 * kept before (0 before the first transition), replaced by those of the sequences kept now. */
static void rank_candidates(const Search *s, int t, int environment, float discount, float *rewards, Ranked *ranked) {
    const int candidates = s->expand * s->width;
    const size_t at = (size_t)t * s->environments + environment;
    const float value_discount = discount * s->discount;
    int64_t *kept = s->kept + at * s->width;
    for (int c = 0; c < candidates; c++) {
        const size_t i = at * candidates + c;
        const float sum = rewards[c / s->expand] + discount * s->rewards[i], score = sum + value_discount * s->values[i];
        ranked[c] = (Ranked){isfinite(score) ? score : -INFINITY, sum, c};
    }
    qsort(ranked, candidates, sizeof(Ranked), compare);
    for (int b = 0; b < s->width; b++) kept[b] = ranked[b].candidate, rewards[b] = ranked[b].rewards;
    s->best_score[environment] = ranked[0].score;
}

/* Write the best sequence of environment e, traced back from the last transition. */
static void trace_back(const Search *s, int e, int rest) {
    const int candidates = s->expand * s->width, dim = s->observation_dim + rest;
    int64_t beam = 0;
    for (int t = s->horizon - 1; t >= 0; t--) {
        const size_t at = (size_t)t * s->environments + e;
        const int64_t candidate = s->kept[at * s->width + beam];
        int64_t *best = s->best + ((size_t)e * s->horizon + t) * dim;
        beam = candidate / s->expand;
        const int64_t *seen = t > 0 ? s->observations + ((at - s->environments) * s->width + beam) * s->observation_dim
                                    : s->prefix + (size_t)(e + 1) * s->time - s->observation_dim;
        memcpy(best, seen, sizeof(int64_t) * s->observation_dim);
        memcpy(best + s->observation_dim, s->tokens + (at * candidates + candidate) * rest, sizeof(int64_t) * rest);
        s->best_rewards[(size_t)e * s->horizon + t] = s->rewards[at * candidates + candidate];
        if (t == s->horizon - 1) s->best_value[e] = s->values[at * candidates + candidate];
    }
}

/* Find the plans of some environments, from the first on. Candidates of the first transition all continue the prefix;
 * those of later transitions continue the sequences kept. */
static int search_environments(Decoder *d, const Search *s, int first, int environments) {
    const int candidates = s->expand * s->width, dim = d->transition_dim, rest = dim - s->observation_dim;
    const int beams = environments * s->width, rows = environments * candidates;
    const int64_t of_environment = (int64_t)s->horizon * dim * candidates;
    int64_t *parents = malloc(sizeof(int64_t) * rows), *values = malloc(sizeof(int64_t) * beams);
    float *rewards = calloc(beams, sizeof(float));
    Ranked *ranked = malloc(sizeof(Ranked) * candidates);
    float discount = 1.0f;
    int status = parents && values && rewards && ranked ? OK : NO_MEMORY;
    if (status == OK) status = encode(d, s->prefix + (size_t)first * s->time, environments, s->time);
    for (int r = 0; r < rows && status == OK; r++) parents[r] = r / candidates;
    for (int t = 0; t < s->horizon && status == OK; t++, discount *= s->discount) {
        const size_t at = (size_t)t * s->environments + first;
        const float *uniforms = s->uniforms + first * of_environment + (size_t)t * dim * candidates;
        int64_t *tokens = s->tokens + at * candidates * rest, *kept = s->kept + at * s->width;
        const float *centers = s->centers + (size_t)(dim - 2) * (d->vocab - 1);
        float *of_values = s->value_probabilities ? s->value_probabilities + at * candidates * (d->vocab - 1) : NULL;
        const Estimates estimates = {centers, s->fraction, {s->rewards + at * candidates, s->values + at * candidates}, of_values};
        const SamplingRequest actions = {uniforms + s->observation_dim * candidates, {of_environment, candidates, 1}, candidates, rest,
                                 s->k_action, s->temperature, s->cdf, tokens, &estimates, NULL};
        if (t == 0) status = decode(d, parents, rows, &(DecodingRequest){NULL, &actions, NULL, 1});
        else {
            int64_t *seen = s->observations + (at - s->environments) * s->width * s->observation_dim;
            const SamplingRequest observations = {uniforms, {of_environment, candidates, 1}, s->width, s->observation_dim,
                                          s->k_observation, s->temperature, -1.0f, seen, NULL, NULL};
            status = decode(d, parents, beams, &(DecodingRequest){values, &observations, &actions, s->expand});
        }
        for (int e = 0; e < environments && status == OK; e++)
            rank_candidates(s, t, first + e, discount, rewards + (size_t)e * s->width, ranked);
        for (int b = 0; b < beams && status == OK; b++) {
            parents[b] = (int64_t)(b / s->width) * candidates + kept[b];
            values[b] = tokens[parents[b] * rest + rest - 1];
        }
    }
    for (int e = 0; e < environments && status == OK; e++) trace_back(s, first + e, rest);
    free(parents), free(values), free(rewards), free(ranked);
    return status;
}

/* Find the plans of all environments. Threads search parts of them independently, each part large enough to fill a
 * group, so that they do not wait for each other and their keys and values stay in the cache; the remaining
 * environments, too few for one part for each thread, are searched by the whole team together. */
static int search_plans(Decoder *d, const Search *s) {
    const int team = team_size(d), each = s->width < GROUP ? GROUP / s->width : 1;
    const int parts = s->environments / each / team * team, left = s->environments - parts * each;
    double model = 0, sampling_seconds = 0, used = 0;
    atomic_int taken = 0, worst = OK;
    const double began = omp_get_wtime();
#pragma omp parallel num_threads(team) if (parts) reduction(+ : model, sampling_seconds, used)
    {
        Decoder *worker = &d->workers[omp_get_thread_num()];
        worker->seconds[0] = worker->seconds[1] = 0;
        used -= thread_seconds();
        for (int part; (part = atomic_fetch_add(&taken, 1)) < parts && !interrupted(d);) {
            const int status = search_environments(worker, s, part * each, each);
            if (status != OK) worst = status;
        }
        used += thread_seconds(), model += worker->seconds[0], sampling_seconds += worker->seconds[1];
        barrier(d, omp_get_num_threads());
    }
    d->seconds[0] += model / team, d->seconds[1] += sampling_seconds / team;
    if (parts && team > 1) update_team_loss(d, omp_get_wtime() - began, used);
    if (*d->stop) return INTERRUPTED;
    return worst != OK || !left ? worst : search_environments(d, s, parts * each, left);
}
