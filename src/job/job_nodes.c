/* SPDX-License-Identifier: Apache-2.0 */
/* The nodes that jobs use, and what others may not do with them meanwhile. */
#include <errno.h>
#include <stdlib.h>

#include "block/block.h"
#include "job/job_internal.h"

static int note_node(struct job *job, struct block_node *node, bool frozen, struct error *err)
{
    struct job_node *n = malloc(sizeof(*n));

    if (!n) {
        return error_out_of_memory(err);
    }
    n->node = block_node_ref(node);
    n->frozen = frozen;
    list_append(&job->nodes, &n->link);
    return 0;
}

static const struct job *find_user(const struct block_node *node, bool frozen)
{
    for (struct job *job = job_next(NULL); job; job = job_next(job)) {
        struct job_node *n;

        LIST_FOREACH (n, &job->nodes, link) {
            if (n->node == node && n->frozen == frozen) {
                return job;
            }
        }
    }
    return NULL;
}

int job_add_node(struct job *job, struct block_node *node, struct error *err)
{
    return note_node(job, node, false, err);
}

int job_check_node(const struct block_node *node, struct error *err)
{
    const struct job *job = find_user(node, false);

    return job ? error_set(err, EBUSY, "Node '%s' is busy: block device is in use by block job: %s",
                           block_node_name(node), job->driver->type)
               : 0;
}

int job_check_frozen(const struct block_node *node, struct error *err)
{
    const struct job *job = find_user(node, true);
    struct block_node *below = block_node_filter_or_backing(node);

    return job ? error_set(err, EBUSY,
                           "Cannot change the link from '%s' to '%s': job '%s' (%s) needs it",
                           block_node_name(node), below ? block_node_name(below) : "nothing",
                           job->id, job->driver->type)
               : 0;
}

int job_freeze_chain(struct job *job, struct block_node *node, struct block_node *base,
                     struct error *err)
{
    struct block_node *n;
    int r = 0;

    for (n = node; n && n != base && r >= 0; n = block_node_filter_or_backing(n)) {
        r = job_check_frozen(n, err);
    }
    for (n = node; n && n != base && r >= 0; n = block_node_filter_or_backing(n)) {
        r = note_node(job, n, true, err);
    }
    return r;
}

void job_co_release_nodes(struct job *job)
{
    while (!list_is_empty(&job->nodes)) {
        struct job_node *n = LIST_FIRST(&job->nodes, struct job_node, link);

        list_remove(&n->link);
        block_co_unref(n->node);
        free(n);
    }
}
