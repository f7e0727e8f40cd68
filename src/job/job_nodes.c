/* SPDX-License-Identifier: Apache-2.0 */
/* The nodes that jobs use, and what others may not do with them meanwhile. */
#include <errno.h>
#include <stdlib.h>

#include "base/checked.h"
#include "base/time_units.h"
#include "block/block.h"
#include "block/control.h"
#include "block/control_lock.h"
#include "block/device.h"
#include "block/stats.h"
#include "job/job_internal.h"
#include "loop/loop.h"

/* What a job has to do with a node: uses it, has frozen its link downwards, will take it away. */
enum job_node_use { JOB_NODE_USED = 1, JOB_NODE_FROZEN = 2, JOB_NODE_FILTER = 4 };

struct job_node {
    struct list link;
    struct block_node *node; /* referenced, except JOB_NODE_FILTER */
    unsigned uses;           /* of enum job_node_use */
};

static int note_node(struct job *job, struct block_node *node, unsigned uses, struct error *err)
{
    struct job_node *n = malloc(sizeof(*n));

    if (!n) {
        return error_out_of_memory(err);
    }
    *n = (struct job_node){.node = uses & JOB_NODE_FILTER ? node : block_node_ref(node),
                           .uses = uses};
    list_append(&job->nodes, &n->link);
    return 0;
}

static bool has_joined_node(const struct job *job, const struct block_node *node)
{
    struct job_node *n;

    LIST_FOREACH (n, &job->nodes, link) {
        if (block_node_is_joined(n->node, node)) {
            return true;
        }
    }
    return false;
}

bool job_is_joined(const struct job *job, const struct block_node *node)
{
    bool joined = has_joined_node(job, node);

    for (struct job *other = job_next(NULL); other && !joined; other = job_next(other)) {
        joined = job->txn && other->txn == job->txn && has_joined_node(other, node);
    }
    return joined;
}

static bool job_meets(const struct block_control_scope *scope, struct block_node *node)
{
    return job_is_joined(container_of(scope, struct job_scope, scope)->job, node);
}

void job_begin_scope(struct job_scope *scope, const struct job *job)
{
    *scope = (struct job_scope){.scope.meets = job_meets, .job = job};
    /* Other jobs find nodes by names. */
    scope->begun = job->driver->block_job;
    if (scope->begun) {
        block_control_begin_scope(&scope->scope);
    }
}

void job_end_scope(struct job_scope *scope)
{
    if (scope->begun) {
        block_control_end_scope(&scope->scope);
    }
}

static const struct job *find_job_user(const struct block_node *node, enum job_node_use use)
{
    for (struct job *job = job_next(NULL); job; job = job_next(job)) {
        struct job_node *n;

        LIST_FOREACH (n, &job->nodes, link) {
            if (n->node == node && (n->uses & use)) {
                return job;
            }
        }
    }
    return NULL;
}

/* Whether the node is one of the job's, or below one. *ret_reader: as of job_is_using(). */
static bool uses(const struct job *job, struct block_node *node,
                 const struct block_root **ret_reader)
{
    bool found = false, writes = false;
    struct job_node *n;

    LIST_FOREACH (n, &job->nodes, link) {
        if (n->node == node || block_node_reaches(n->node, node)) {
            const struct block_root *reader =
                job->driver->reader ? job->driver->reader(job->state, n->node) : NULL;

            found = true;
            writes |= !reader;
            *ret_reader = reader;
        }
    }
    if (writes) {
        *ret_reader = NULL;
    }
    return found;
}

bool job_is_using(struct block_node *node, const struct block_root **ret_reader)
{
    const struct block_root *reader = NULL;
    unsigned jobs = 0;

    for (struct job *job = job_next(NULL); job; job = job_next(job)) {
        jobs += uses(job, node, &reader);
    }
    *ret_reader = jobs == 1 ? reader : NULL;
    return jobs > 0;
}

/*
 * A guest must not wait for the lock, which may be held for long because of another disk; and the
 * lock must not wait for a guest's request that hangs. So the requests are awaited without the
 * lock; with it new ones are awaited for a short time only, or all begins again.
 */
void job_co_drain(const struct job *job, struct block_node *const *nodes, size_t count)
{
    int64_t ns = 0;
    bool held = !job->discarded && block_control_pause();

    block_co_drain_begin_many(nodes, count);
    while (held) {
        for (size_t i = 0; i < count; i++) {
            block_drain_end(nodes[i]);
        }
        block_co_control_resume(true);
        if (block_co_drain_begin_soon(nodes, count, &ns)) {
            return;
        }
        held = block_control_pause();
        block_co_drain_begin_many(nodes, count);
    }
}

void job_co_release_drained(const struct job *job, struct block_node *filter,
                            void (*co_release)(void *state), void *state)
{
    struct block_node *below = filter ? block_node_filter_or_backing(filter) : NULL;

    if (!below) {
        co_release(state);
        return;
    }
    block_node_ref(below);
    job_co_drain(job, &below, 1);
    co_release(state);
    block_drain_end(below);
    block_co_unref(below);
}

int job_co_flush_node(struct block_node *node)
{
    bool held = block_control_pause();
    int r = block_co_flush_node(node);

    block_co_control_resume(held);
    return r;
}

int job_add_node(struct job *job, struct block_node *node, struct error *err)
{
    return note_node(job, node, JOB_NODE_USED, err);
}

int job_add_filter(struct job *job, struct block_node *filter, bool used, struct error *err)
{
    return note_node(job, filter, JOB_NODE_FILTER | (used ? JOB_NODE_USED : 0), err);
}

void job_forget_filter(struct job *job, const struct block_node *filter)
{
    struct job_node *n, *next;

    LIST_FOREACH_SAFE (n, next, &job->nodes, link) {
        if (n->node == filter && (n->uses & JOB_NODE_FILTER)) {
            list_remove(&n->link);
            free(n);
        }
    }
}

static void note_in_flight(struct block_node *node, void *arg)
{
    uint64_t values[BLOCK_STATS];

    block_node_read_stats(node, values);
    if (values[BLOCK_STAT_IN_FLIGHT] > 0) {
        *(struct block_node **)arg = node;
    }
}

struct block_node *job_find_in_flight(const struct job *job)
{
    struct block_node *node = NULL;
    struct job_node *n;

    LIST_FOREACH (n, &job->nodes, link) {
        if (!node) {
            block_node_foreach_below(n->node, note_in_flight, &node);
        }
    }
    return node;
}

int job_check_node(const struct block_node *node, struct error *err)
{
    const struct job *job = find_job_user(node, JOB_NODE_USED);

    return job ? error_set(err, EBUSY, "Node '%s' is busy: block device is in use by block job: %s",
                           block_node_device_or_name(node), job->driver->type)
               : 0;
}

/* The name of the link from the node to the one below it in its chain. */
static const char *link_name(const struct block_node *node, const struct block_node *below)
{
    struct block_edge *edge = NULL;

    while ((edge = block_node_next_parent(below, edge))) {
        if (block_edge_parent(edge) == node) {
            return block_edge_name(edge);
        }
    }
    return "backing";
}

static int link_error(const struct block_node *node, const char *frozen, struct error *err)
{
    const struct block_node *below = block_node_filter_or_backing(node);

    return error_set(err, EBUSY, "Cannot change %s'%s' link from '%s' to '%s'", frozen,
                     link_name(node, below), block_node_name(node), block_node_name(below));
}

int job_check_frozen(const struct block_node *node, struct error *err)
{
    return block_node_filter_or_backing(node) &&
                   (find_job_user(node, JOB_NODE_FROZEN) || block_node_is_link_needed(node, NULL))
               ? link_error(node, "frozen ", err)
               : 0;
}

int job_check_links_to(const struct block_node *node, struct error *err)
{
    struct block_edge *edge = NULL;

    while ((edge = block_node_next_parent(node, edge))) {
        const struct block_node *parent = block_edge_parent(edge);

        if (parent && block_node_filter_or_backing(parent) == node &&
            block_node_is_link_needed(parent, NULL)) {
            return error_set(err, EBUSY, "Cannot change '%s' link to '%s'", block_edge_name(edge),
                             block_node_name(node));
        }
    }
    return 0;
}

/* What jobs do with the links from `node` down to `base`. */
static int check_jobs_links(const struct block_node *node, const struct block_node *base,
                            struct error *err)
{
    const struct block_node *n, *below;
    int r = 0;

    for (n = node; n && n != base && r == 0; n = below) {
        below = block_node_filter_or_backing(n);
        r = below && find_job_user(n, JOB_NODE_FROZEN) ? link_error(n, "", err) : 0;
        if (r == 0 && below && find_job_user(below, JOB_NODE_FILTER)) {
            r = error_set(err, EPERM, "Cannot freeze '%s' link to '%s'", link_name(n, below),
                          block_node_name(below));
        }
    }
    return r;
}

/* Whether nodes other than `but` need these links. */
static int check_needed_links(const struct block_node *node, const struct block_node *base,
                              const struct block_node *but, struct error *err)
{
    int r = 0;

    for (; node && node != base && r == 0; node = block_node_filter_or_backing(node)) {
        r = block_node_is_link_needed(node, but) ? link_error(node, "", err) : 0;
    }
    return r;
}

int job_check_chain(const struct block_node *node, const struct block_node *base, struct error *err)
{
    int r = check_jobs_links(node, base, err);

    return UNLESS_FAILED(r, check_needed_links(node, base, NULL, err));
}

struct new_nodes {
    struct error *err;
    int r;
};

static void check_needed_chain(struct block_node *node, void *arg)
{
    const struct block_node *end = block_node_needs_chain_to(node);
    struct new_nodes *nodes = arg;

    if (end) {
        UNLESS_FAILED(nodes->r, check_jobs_links(node, end, nodes->err));
        UNLESS_FAILED(nodes->r, check_needed_links(node, end, node, nodes->err));
    }
}

int job_check_new_node(struct block_node *node, struct error *err)
{
    struct new_nodes nodes = {.err = err};

    block_node_foreach_below(node, check_needed_chain, &nodes);
    return nodes.r;
}

int job_freeze_chain(struct job *job, struct block_node *node, struct block_node *base,
                     struct error *err)
{
    struct block_node *n;
    int r = check_jobs_links(node, base, err);

    for (n = node; n && n != base && r == 0; n = block_node_filter_or_backing(n)) {
        r = note_node(job, n, JOB_NODE_FROZEN, err);
    }
    return r;
}

/*
 * Whether a reference is the last one is decided with the control lock held, so that no command has
 * the node, which nobody finds from then on. Its storage may hang when it is closed: commands go on
 * meanwhile.
 */
static void co_release_node(const struct job *job, struct block_node *node)
{
    bool held = !job->discarded && block_node_has_one_ref(node) && block_control_pause();

    block_co_unref(node); /* the node loses its name before this yields */
    block_co_control_resume(held);
}

void job_co_release_nodes(struct job *job)
{
    struct list nodes = LIST_INIT(nodes);
    struct job_node *n, *next;

    /* Others that look must not meet a filter that is gone. */
    list_splice(&nodes, &job->nodes);
    LIST_FOREACH_SAFE (n, next, &nodes, link) {
        struct block_node *node = n->uses & JOB_NODE_FILTER ? NULL : n->node;

        free(n);
        if (node) {
            co_release_node(job, node);
        }
    }
}
