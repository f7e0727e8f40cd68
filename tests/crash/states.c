/* SPDX-License-Identifier: Apache-2.0 */
#include "states.h"

#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "random.h"

static void *must(void *memory)
{
    if (!memory) {
        abort();
    }
    return memory;
}

/* Apply [skip, skip + length) of a request's sectors. */
static void file_apply(struct pages *f, const struct record_op *op, uint64_t skip, uint64_t length)
{
    uint64_t offset = op->offset + skip;

    if (op->kind == RECORD_TRUNCATE) {
        pages_resize(f, op->length);
        return;
    }
    /* A file may end within a sector. */
    if (offset + length > f->size) {
        pages_resize(f, MAX(f->size, MIN(offset + length, op->size_after)));
    }
    if (op->kind == RECORD_WRITE) {
        pages_write(f, offset, op->data + skip, length);
    } else {
        pages_zero(f, offset, length);
    }
}

/* --- what is stable --------------------------------------------------------------------------- */

void crash_states_init(struct crash_states *s, struct record_log *log, uint64_t seed)
{
    *s = (struct crash_states){.log = log, .seed = seed};
    s->applied = must(calloc(1, log->count + 1));
    for (unsigned disk = 0; disk < RECORD_DISKS; disk++) {
        pages_reset(&s->base[disk], &log->initial[disk]);
    }
}

void crash_states_clear(struct crash_states *s)
{
    for (unsigned disk = 0; disk < RECORD_DISKS; disk++) {
        pages_release(&s->base[disk]);
    }
    free(s->applied);
}

void crash_state_release(struct crash_state *state)
{
    for (unsigned disk = 0; disk < RECORD_DISKS; disk++) {
        pages_release(&state->disks[disk]);
    }
}

/* ret[disk]: what was answered by then is there. */
static void stable_until(const struct record_log *log, uint64_t time, uint64_t *ret)
{
    memset(ret, 0, RECORD_DISKS * sizeof(*ret));
    for (size_t i = 0; i < log->count; i++) {
        const struct record_op *op = &log->ops[i];

        if (op->kind == RECORD_FLUSH && !op->ignored && op->end <= time) {
            ret[op->disk] = MAX(ret[op->disk], op->begin);
        }
    }
}

static bool ops_overlap(const struct record_op *a, const struct record_op *b)
{
    return a->kind < RECORD_TRUNCATE && b->kind < RECORD_TRUNCATE && a->disk == b->disk &&
           ranges_overlap(a->offset, a->length, b->offset, b->length);
}

/* Whether a request carried out after log entry `index` that overlaps it is in the base. */
static bool overtaken(const struct crash_states *s, size_t index)
{
    for (size_t i = index + 1; i < s->applied_end; i++) {
        if (s->applied[i] && ops_overlap(&s->log->ops[i], &s->log->ops[index])) {
            return true;
        }
    }
    return false;
}

/*
 * Requests that were answered late are stable later than some that were carried out after them.
 * What those wrote includes what the late one wrote, so it goes on top again: in the sectors of the
 * late one, for elsewhere they may have been overwritten themselves.
 */
static void apply_later_again(struct crash_states *s, size_t index)
{
    const struct record_op *late = &s->log->ops[index];

    for (size_t i = index + 1; i < s->applied_end; i++) {
        const struct record_op *op = &s->log->ops[i];

        if (s->applied[i] && ops_overlap(op, late)) {
            uint64_t first = MAX(op->offset, late->offset);
            uint64_t end = MIN(op->offset + op->length, late->offset + late->length);

            file_apply(&s->base[op->disk], op, first - op->offset, end - first);
        }
    }
}

static void base_forward(struct crash_states *s, uint64_t time)
{
    uint64_t stable[RECORD_DISKS];

    stable_until(s->log, time, stable);
    for (size_t i = 0; i < s->log->count; i++) {
        const struct record_op *op = &s->log->ops[i];

        if (op->kind != RECORD_FLUSH && !s->applied[i] && op->end <= stable[op->disk]) {
            file_apply(&s->base[op->disk], op, 0, op->length);
            s->applied[i] = 1;
            apply_later_again(s, i);
            s->applied_end = MAX(s->applied_end, i + 1);
        }
    }
}

/* --- what may be there ------------------------------------------------------------------------ */

struct maker {
    struct crash_states *s;
    struct crash_state *state;
    const struct record_op **ops; /* sent by then, not stable */
    size_t count;
    uint64_t random;
};

static void apply(struct maker *k, const struct record_op *op, uint64_t skip, uint64_t length)
{
    file_apply(&k->state->disks[op->disk], op, skip, length);
}

static void lose(struct maker *k, const struct record_op *op)
{
    k->state->lost++;
    k->state->metadata_hurt |= op->metadata;
}

/* Each sector by itself: a coin. */
static void tear(struct maker *k, const struct record_op *op)
{
    bool all = true;

    if (op->kind == RECORD_TRUNCATE || op->length == RECORD_SECTOR) {
        if (random_below(&k->random, 2)) {
            apply(k, op, 0, op->length);
        } else {
            lose(k, op);
        }
        return;
    }
    for (uint64_t at = 0; at < op->length; at += RECORD_SECTOR) {
        if (random_below(&k->random, 2)) {
            apply(k, op, at, RECORD_SECTOR);
        } else {
            all = false;
        }
    }
    if (!all) {
        k->state->torn++;
        k->state->metadata_hurt |= op->metadata;
    }
}

static void make_subset(struct maker *k)
{
    uint64_t keep = 1 + random_below(&k->random, 9); /* of ten */

    for (size_t i = 0; i < k->count; i++) {
        if (random_below(&k->random, 16) == 0) {
            tear(k, k->ops[i]);
        } else if (random_below(&k->random, 10) < keep) {
            apply(k, k->ops[i], 0, k->ops[i]->length);
        } else {
            lose(k, k->ops[i]);
        }
    }
}

/* In order, up to one that was cut. */
static void make_prefix(struct maker *k)
{
    size_t end = random_below(&k->random, k->count);

    for (size_t i = 0; i < k->count; i++) {
        if (i < end) {
            apply(k, k->ops[i], 0, k->ops[i]->length);
        } else if (i == end) {
            tear(k, k->ops[i]);
        } else {
            lose(k, k->ops[i]);
        }
    }
}

static void make_one_lost(struct maker *k)
{
    size_t victim = random_below(&k->random, k->count);

    for (size_t i = 0; i < k->count; i++) {
        if (i != victim) {
            apply(k, k->ops[i], 0, k->ops[i]->length);
        } else if (random_below(&k->random, 2)) {
            lose(k, k->ops[i]);
        } else {
            tear(k, k->ops[i]);
        }
    }
}

static void make_one_kept(struct maker *k)
{
    size_t kept = random_below(&k->random, k->count);

    for (size_t i = 0; i < k->count; i++) {
        if (i == kept) {
            apply(k, k->ops[i], 0, k->ops[i]->length);
        } else {
            lose(k, k->ops[i]);
        }
    }
}

/* All metadata there and no data, or the other way round. */
static void make_by_kind(struct maker *k)
{
    bool metadata = random_below(&k->random, 2);

    for (size_t i = 0; i < k->count; i++) {
        if (k->ops[i]->metadata == metadata) {
            apply(k, k->ops[i], 0, k->ops[i]->length);
        } else {
            lose(k, k->ops[i]);
        }
    }
}

static void make_all_torn(struct maker *k)
{
    for (size_t i = 0; i < k->count; i++) {
        tear(k, k->ops[i]);
    }
}

/* All are there, in any order: where two overlap, the earlier may have come last. */
static void make_reordered(struct maker *k)
{
    for (size_t i = k->count; i > 1; i--) {
        size_t other = random_below(&k->random, i);
        const struct record_op *op = k->ops[i - 1];

        k->ops[i - 1] = k->ops[other];
        k->ops[other] = op;
    }
    for (size_t i = 0; i < k->count; i++) {
        const struct record_op *op = k->ops[i];

        for (size_t before = 0; before < i && !k->state->metadata_hurt; before++) {
            const struct record_op *other = k->ops[before];

            k->state->metadata_hurt = other->metadata && op < other && ops_overlap(op, other);
        }
        apply(k, op, 0, op->length);
    }
}

static void collect(struct maker *k)
{
    const struct record_log *log = k->s->log;

    k->ops = must(malloc((log->count + 1) * sizeof(*k->ops)));
    for (size_t i = 0; i < log->count; i++) {
        const struct record_op *op = &log->ops[i];

        if (op->kind != RECORD_FLUSH && !k->s->applied[i] && op->begin <= k->state->time &&
            !overtaken(k->s, i)) {
            k->ops[k->count++] = op;
        }
    }
}

void crash_states_make(struct crash_states *s, uint64_t index, uint64_t time,
                       struct crash_state *state)
{
    static const struct {
        const char *name;
        void (*make)(struct maker *k);
    } ways[] = {
        {"a subset", make_subset},           {"all but one", make_one_lost},
        {"only one", make_one_kept},         {"data or metadata", make_by_kind},
        {"all of them torn", make_all_torn}, {"all, reordered", make_reordered},
        {"the first ones", make_prefix},
    };
    struct maker k = {.s = s, .state = state, .random = random_mix(s->seed) ^ random_mix(~index)};
    size_t way = random_below(&k.random, ARRAY_SIZE(ways));

    base_forward(s, time);
    state->index = index;
    state->time = time;
    state->metadata_hurt = false;
    state->lost = state->torn = 0;
    state->how = ways[way].name;
    for (unsigned disk = 0; disk < RECORD_DISKS; disk++) {
        pages_reset(&state->disks[disk], &s->base[disk]);
    }
    collect(&k);
    state->unstable = (unsigned)k.count;
    if (k.count > 0) {
        ways[way].make(&k);
    }
    free(k.ops);
    state->hash = 0;
    for (unsigned disk = 0; disk < RECORD_DISKS; disk++) {
        state->hash = random_mix(state->hash + pages_hash(&state->disks[disk]));
    }
}
