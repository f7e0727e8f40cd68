/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Joint changes: the images of this process that know of one.
 *
 * A record names images that are no local files by what this process calls them, but nobody opens
 * such a name: an image may come from anybody, and must not make us connect to a host. So the first
 * image answers once the user has opened it.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "block/driver.h"
#include "qcow2/bitmap/joint.h"

/* Of struct qcow2_joint. Main reactor. */
static struct list known = LIST_INIT(known);

void qcow2_joint_know(struct qcow2 *q)
{
    if (list_is_empty(&q->joint.link)) {
        q->joint.image = q;
        list_append(&known, &q->joint.link);
    }
}

void qcow2_joint_unknow(struct qcow2 *q)
{
    list_remove(&q->joint.link);
}

static bool is_same_change(const struct qcow2_joint *a, const struct qcow2_joint *b)
{
    return memcmp(a->id, b->id, sizeof(a->id)) == 0;
}

struct qcow2_joint *qcow2_joint_next_known(const struct qcow2 *q, const struct qcow2_joint *before)
{
    struct list *next = before ? before->link.next : known.next;

    for (; next != &known; next = next->next) {
        struct qcow2_joint *j = container_of(next, struct qcow2_joint, link);

        if (j != &q->joint && is_same_change(j, &q->joint)) {
            return j;
        }
    }
    return NULL;
}

int qcow2_joint_ask_known(struct qcow2 *q, uint32_t number, enum qcow2_joint_state *ret_state)
{
    const struct qcow2_joint *j = NULL;

    while ((j = qcow2_joint_next_known(q, j))) {
        if (j->own == number) {
            *ret_state = j->state;
            return j->state == JOINT_NONE ? -ENODATA : 0;
        }
    }
    return -ENOENT;
}

static char *other_name(const struct block_node *file)
{
    AUTO_FREE char *name = block_node_full_filename(file);

    return name && name[0] != '\0' ? TAKE_PTR(name) : NULL;
}

char *qcow2_joint_file_name(const struct qcow2 *q)
{
    struct block_node *file = block_node_skip_filters(q->node->file->node);
    char *path = file->driver->lasting_name ? file->driver->lasting_name(file) : NULL;

    return path ?: other_name(file);
}

char *qcow2_co_joint_path(const struct block_node *file)
{
    AUTO_FREE char *path = file->driver->lasting_name ? file->driver->lasting_name(file) : NULL;

    return path && (!file->driver->co_has_name || file->driver->co_has_name(file, path))
               ? TAKE_PTR(path)
               : NULL;
}

char *qcow2_co_joint_file_name(const struct qcow2 *q)
{
    struct block_node *file = block_node_skip_filters(q->node->file->node);
    char *path = qcow2_co_joint_path(file);

    return path ?: other_name(file);
}

bool qcow2_joint_is_path(const char *name)
{
    return name[0] == '/';
}
