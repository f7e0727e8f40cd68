/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Changes of persistent bitmaps by commands become stable, those of several nodes together: struct
 * block_bitmap_commits.
 */
#include <errno.h>
#include <stdlib.h>
#include <sys/random.h>

#include "base/cleanup.h"
#include "base/log.h"
#include "base/time_units.h"
#include "block/bitmaps.h"
#include "block/internal.h"
#include "loop/loop.h"

/* Of struct block_bitmap_commits. Main reactor. */
static struct list deferrals = LIST_INIT(deferrals);

static struct block_bitmap_commits *own_deferral(void)
{
    struct block_bitmap_commits *c;

    LIST_FOREACH (c, &deferrals, link) {
        if (c->owner == co_self()) {
            return c;
        }
    }
    return NULL;
}

bool block_bitmap_defer_commit(struct block_node *node)
{
    struct block_bitmap_commits *c = own_deferral();
    struct block_node **grown;

    for (size_t i = 0; c && i < c->count; i++) {
        if (c->nodes[i] == node) {
            return true;
        }
    }
    grown = c ? realloc(c->nodes, (c->count + 1) * sizeof(struct block_node *)) : NULL;
    if (!grown) {
        return false;
    }
    c->nodes = grown;
    c->nodes[c->count++] = node;
    return true;
}

void block_bitmap_commits_begin(struct block_bitmap_commits *c)
{
    struct block_node *node = NULL;

    while ((node = block_bitmap_next_changed_apart(node))) {
        /* What an earlier coroutine has left that had the same place. */
    }
    *c = (struct block_bitmap_commits){.owner = co_self()};
    list_append(&deferrals, &c->link);
}

/* Drained: without a log a write under way must not miss the bits that are stored as current. */
static int co_commit_drained(struct block_node *node, struct error *err)
{
    int r;

    block_co_drain_begin(node);
    r = node->driver->co_commit_bitmaps(node, err);
    block_drain_end(node);
    return r;
}

/* --- of several nodes ------------------------------------------------------------------------- */

/* The nodes that take part in a joint change; their names are joint.names. */
struct participants {
    struct list link; /* in `joint_changes` */
    struct block_joint joint;
    struct block_node **nodes;
};

static void participants_clear(struct participants *p)
{
    for (size_t i = 0; i < p->joint.count; i++) {
        free(p->joint.names[i]);
    }
    free((void *)p->joint.names);
    free((void *)p->nodes);
    *p = (struct participants){0};
}

/* The warning comes once for each node. */
static void note_change_apart(struct block_node *node)
{
    node->changed_apart = co_self();
    if (!node->warned_apart) {
        node->warned_apart = true;
        log_warning("'%s': transactions change the bitmaps of this image before those of other "
                    "images, not together with them: a crash in between leaves only this part of "
                    "a transaction",
                    block_node_display_name(node));
    }
}

/* Those that can take part; none if that is not more than one. -ENOMEM */
static int co_find_participants(const struct block_bitmap_commits *c, struct participants *p)
{
    p->nodes = calloc(c->count, sizeof(struct block_node *));
    p->joint.names = calloc(c->count, sizeof(char *));
    if (!p->nodes || !p->joint.names) {
        return -ENOMEM;
    }
    for (size_t i = 0; i < c->count; i++) {
        struct block_node *node = c->nodes[i];
        char *name = node->driver->co_joint_name ? node->driver->co_joint_name(node) : NULL;

        if (name) {
            p->nodes[p->joint.count] = node;
            p->joint.names[p->joint.count++] = name;
        } else {
            note_change_apart(node);
        }
    }
    if (p->joint.count == 1) {
        free(p->joint.names[0]);
        p->joint.count = 0;
    }
    return getrandom(p->joint.id, sizeof(p->joint.id), 0) == sizeof(p->joint.id) ? 0 : -EIO;
}

static bool takes_part(const struct participants *p, const struct block_node *node)
{
    for (size_t i = 0; i < p->joint.count; i++) {
        if (p->nodes[i] == node) {
            return true;
        }
    }
    return false;
}

/* Nothing was decided: the first `count` forget what they have prepared, the first one last. */
static void co_take_back(struct participants *p, size_t count)
{
    while (count-- > 0) {
        ERROR_AUTO(err);

        if (p->nodes[count]->driver->co_settle_bitmaps(p->nodes[count], false, &err) < 0) {
            log_error("%s", error_message(&err));
        }
    }
}

/* It was decided: whatever happens now, the change is made. */
static void co_follow_commits(struct participants *p)
{
    ERROR_AUTO(err);
    bool all = true;

    for (size_t i = 1; i < p->joint.count; i++) {
        error_clear(&err);
        if (p->nodes[i]->driver->co_settle_bitmaps(p->nodes[i], true, &err) < 0) {
            all = false;
            log_error("%s", error_message(&err));
        }
    }
    error_clear(&err);
    if (all && p->nodes[0]->driver->co_forget_joint(p->nodes[0], &err) < 0) {
        log_error("%s", error_message(&err));
    }
}

static int co_commit_jointly(struct participants *p, struct error *err)
{
    size_t prepared = 0;
    int r = 0;

    while (prepared < p->joint.count && r == 0) {
        struct block_node *node = p->nodes[prepared];

        r = node->driver->co_prepare_bitmaps(node, &p->joint, prepared, err);
        prepared += r == 0;
    }
    UNLESS_FAILED(r, p->nodes[0]->driver->co_settle_bitmaps(p->nodes[0], true, err));
    if (r < 0) {
        co_take_back(p, prepared);
        return r;
    }
    co_follow_commits(p);
    return 0;
}

/* Joint changes that are made at the moment. Main reactor. */
static struct list joint_changes = LIST_INIT(joint_changes);

static bool meets_joint_change(const struct participants *p)
{
    struct participants *other;

    LIST_FOREACH (other, &joint_changes, link) {
        for (size_t i = 0; i < p->joint.count; i++) {
            if (takes_part(other, p->nodes[i])) {
                return true;
            }
        }
    }
    return false;
}

/*
 * One joint change of an image at a time: its steps keep others from storing bitmaps of the images.
 * Changes of other images do not wait, since a disk may hang.
 */
static void co_begin_joint_change(struct participants *p)
{
    while (meets_joint_change(p)) {
        loop_co_sleep(NS_PER_MS);
    }
    list_append(&joint_changes, &p->link);
}

static int co_commit_participants(struct participants *p, struct error *err)
{
    int r;

    co_begin_joint_change(p);
    block_co_drain_begin_many(p->nodes, p->joint.count);
    r = co_commit_jointly(p, err);
    for (size_t i = p->joint.count; i > 0; i--) {
        block_drain_end(p->nodes[i - 1]);
    }
    list_remove(&p->link);
    return r;
}

/* --- of all ----------------------------------------------------------------------------------- */

int block_co_bitmap_commits_run(struct block_bitmap_commits *c, struct error *err)
{
    CLEANUP(participants_clear) struct participants p = {0};
    int r = 0;

    if (c->count > 1 && co_find_participants(c, &p) < 0) {
        return error_set(err, ENOMEM, "The bitmaps of several nodes can't be changed at once");
    }
    for (size_t i = 0; i < c->count && r == 0; i++) {
        if (!takes_part(&p, c->nodes[i])) {
            r = co_commit_drained(c->nodes[i], err);
        }
    }
    if (p.joint.count > 0) {
        UNLESS_FAILED(r, co_commit_participants(&p, err));
    }
    c->count = r == 0 ? 0 : c->count;
    return r;
}

struct block_node *block_bitmap_next_changed_apart(struct block_node *node)
{
    do {
        node = block_node_next(node);
    } while (node && node->changed_apart != co_self());
    if (node) {
        node->changed_apart = NULL;
    }
    return node;
}

void block_bitmap_commits_end(struct block_bitmap_commits *c)
{
    list_remove(&c->link);
    free(c->nodes);
}

void block_co_bitmap_commits_retry(struct block_bitmap_commits *c)
{
    for (size_t i = 0; i < c->count; i++) {
        ERROR_AUTO(err);

        if (co_commit_drained(c->nodes[i], &err) < 0) {
            log_error("%s", error_message(&err));
        }
    }
}

int block_co_bitmap_commits_finish(struct block_bitmap_commits *c, int r, struct error *err)
{
    int committed = block_co_bitmap_commits_run(c, r < 0 ? NULL : err);

    block_bitmap_commits_end(c);
    return error_first(r, committed);
}
