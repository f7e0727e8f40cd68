/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The status of many areas of a chain in one call. The chain is worked through layer by layer: what
 * a layer does not decide is replaced by what the next one says of it.
 *
 *   top       | data | not here         | zero |
 *   backing   | data | data | not here  | zero |
 *   base      | data | data | data |  - | zero |     in the end: depths 1, 2, 3, 0, 1
 */
#include <errno.h>

#include "base/checked.h"
#include "block/internal.h"

/* Runs in work. */
#define RUNS_MAX 512u
/* Answers of drivers that give one at a time, in one call of ours. */
#define SINGLE_MAX 64u

struct run_list {
    struct block_run run[RUNS_MAX];
    unsigned count;
    unsigned max;
};

/* One that is like the last joins that. False: the list is full. */
static bool push_run(struct run_list *list, struct block_run run)
{
    struct block_run *last = list->count > 0 ? &list->run[list->count - 1] : NULL;

    if (last && last->flags == run.flags && last->depth == run.depth) {
        last->length += run.length;
        return true;
    }
    if (list->count == list->max) {
        return false;
    }
    list->run[list->count++] = run;
    return true;
}

/* Another layer says what is there. */
static bool is_open_run(const struct block_run *run)
{
    return run->depth == 0;
}

/* Depth of a run that this layer decides; 0: it is left to the next one. */
static int depth_of(const struct block_run *run, int layer)
{
    return run->flags & BLOCK_STATUS_ALLOCATED ? layer : 0;
}

/* One answer of a driver that gives one at a time, as a run. */
static int co_single_run(struct block_node *node, bool contents, uint64_t offset, uint64_t length,
                         struct block_run *ret_run)
{
    struct block_status status;
    int r = block_co_node_status(node, offset, length, contents, &status);

    if (r < 0) {
        return r;
    }
    *ret_run = (struct block_run){
        .length = status.length,
        .flags = status.flags & (BLOCK_STATUS_DATA | BLOCK_STATUS_ZERO | BLOCK_STATUS_ALLOCATED),
    };
    return 0;
}

/* The driver of `node` that answers, if it gives many answers at a time; NULL: it does not. */
static struct block_node *find_many(struct block_node *node)
{
    /* Where blocks count, block_co_node_status() rounds. */
    while (node->limits.request_alignment <= 1) {
        if (node->driver->co_status_runs) {
            return node;
        }
        if (node->driver->co_status || !node->filtered) {
            break;
        }
        node = node->filtered->node;
    }
    return NULL;
}

/* Some answers of one layer, from `offset` on, which is below its end. */
static int co_layer_runs(struct block_node *node, bool contents, uint64_t offset, uint64_t length,
                         struct block_run *ret_runs, unsigned max, unsigned *ret_count)
{
    struct block_node *many = find_many(node);
    int r = -ENOTSUP;

    if (many && offset < block_node_size(many)) {
        r = many->driver->co_status_runs(many, contents, offset,
                                         MIN(length, block_node_size(many) - offset), ret_runs, max,
                                         ret_count);
    }
    if (r == -ENOTSUP) {
        *ret_count = 1;
        r = co_single_run(node, contents, offset, length, &ret_runs[0]);
    }
    if (r < 0) {
        return r;
    }
    return *ret_count == 0 || ret_runs[0].length == 0 ? -EIO : 0;
}

/*
 * Append what `layer`, counted from 1, says of [offset, offset + length), until the list is full or
 * the work is enough (*ret_full).
 */
static int co_push_layer(struct block_node *node, int layer, bool contents, uint64_t offset,
                         uint64_t length, unsigned *steps, struct run_list *list, bool *ret_full)
{
    uint64_t end = offset + length, size = block_node_size(node);
    struct block_run runs[RUNS_MAX / 8];

    while (offset < end && offset < size) {
        unsigned count;
        int r;

        if (*steps == 0) {
            *ret_full = true;
            return 0;
        }
        (*steps)--;
        r = co_layer_runs(node, contents, offset, MIN(end, size) - offset, runs, ARRAY_SIZE(runs),
                          &count);
        if (r < 0) {
            return r;
        }
        for (unsigned i = 0; i < count; i++) {
            runs[i].depth = depth_of(&runs[i], layer);
            if (!push_run(list, runs[i])) {
                *ret_full = true;
                return 0;
            }
            offset += runs[i].length;
        }
    }
    if (offset < end) {
        /* This layer is shorter than the one above: the rest reads as zeroes. */
        unsigned flags = BLOCK_STATUS_ZERO | (layer > 1 ? BLOCK_STATUS_ALLOCATED : 0);

        *ret_full = !push_run(
            list, (struct block_run){.length = end - offset, .flags = flags, .depth = layer});
    }
    return 0;
}

/* Replace what `from` leaves open by what the next layer says. *ret_open: something still is. */
static int co_resolve(struct block_node *node, int layer, bool contents, uint64_t offset,
                      const struct run_list *from, struct run_list *to, bool *ret_open)
{
    unsigned steps = SINGLE_MAX;
    bool full = false;
    int r = 0;

    for (unsigned i = 0; i < from->count && r == 0 && !full; i++) {
        const struct block_run *run = &from->run[i];

        if (is_open_run(run)) {
            r = co_push_layer(node, layer, contents, offset, run->length, &steps, to, &full);
        } else {
            full = !push_run(to, *run);
        }
        offset += run->length;
    }
    *ret_open = false;
    for (unsigned i = 0; i < to->count; i++) {
        *ret_open |= is_open_run(&to->run[i]);
    }
    /* An error behind what is known already is found again by the next call. */
    return to->count > 0 ? 0 : r;
}

int block_co_chain_runs(struct block_node *node, bool contents, uint64_t offset, uint64_t length,
                        struct block_run *ret_runs, unsigned max, unsigned *ret_count)
{
    struct run_list lists[2];
    /* All of it is open before the first layer was asked. */
    struct run_list *from = &lists[0], *to = &lists[1];
    bool open = true;
    int r = 0;

    from->count = 1;
    from->run[0] = (struct block_run){.length = length};
    for (int layer = 1; open && node && r == 0; layer++) {
        struct run_list *swap = from;

        to->count = 0;
        to->max = MIN(max, RUNS_MAX);
        r = co_resolve(node, layer, contents, offset, from, to, &open);
        from = to;
        to = swap;
        node = block_node_backing(node);
    }
    for (unsigned i = 0; i < from->count && r == 0; i++) {
        ret_runs[i] = from->run[i];
        ret_runs[i].flags |= is_open_run(&from->run[i]) ? BLOCK_STATUS_ZERO : 0;
    }
    *ret_count = from->count;
    return r;
}
