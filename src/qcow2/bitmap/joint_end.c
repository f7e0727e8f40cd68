/* SPDX-License-Identifier: Apache-2.0 */
/* Joint changes: the end of one, and when it can be forgotten. */
#include <errno.h>
#include <stdlib.h>

#include "base/cleanup.h"
#include "qcow2/bitmap/joint.h"
#include "qcow2/bitmap/store.h"
#include "qcow2/header/header.h"

int qcow2_co_joint_set_state_locked(struct qcow2 *q, enum qcow2_joint_state state,
                                    struct error *err)
{
    enum qcow2_joint_state old = q->joint.state;
    int r;

    CO_ASSERT_HELD(&q->bitmaps.mutex);
    q->joint.state = state;
    r = qcow2_co_write_header(q, err);
    if (r < 0) {
        q->joint.state = old;
    }
    return r;
}

void qcow2_joint_free_store(struct bitmap_store *st)
{
    qcow2_stored_bitmap_free_list(&st->entries);
    cluster_runs_clear(&st->made);
    cluster_runs_clear(&st->old);
    free(st);
}

void qcow2_joint_free_names(struct qcow2_joint *j)
{
    for (uint32_t i = 0; i < j->name_count; i++) {
        free(j->names[i]);
    }
    free((void *)j->names);
    j->names = NULL;
    j->name_count = 0;
}

void qcow2_joint_free(struct qcow2 *q)
{
    struct qcow2_joint *j = &q->joint;

    if (j->store) {
        qcow2_joint_free_store(j->store);
        j->store = NULL;
    }
    qcow2_stored_bitmap_free_list(&j->other);
    cluster_runs_clear(&j->other_clusters);
    qcow2_joint_free_names(j);
    qcow2_joint_unknow(q);
}

void qcow2_co_joint_ended(struct qcow2 *q)
{
    struct qcow2_joint *j = &q->joint;
    struct bitmap_store *store = j->store;

    CO_ASSERT_HELD(&q->bitmaps.mutex);
    if (j->size > 0) {
        struct cluster_runs record = {0};

        qcow2_store_add_run(&record, j->offset, round_up(j->size, q->cluster_size));
        qcow2_co_free_replaced(q, &record);
        cluster_runs_clear(&record);
    }
    qcow2_co_free_replaced(q, &j->other_clusters);
    j->offset = j->size = 0;
    j->in_doubt = j->waits = false;
    if (store) { /* it was not used */
        j->store = NULL;
        qcow2_co_store_give_back(q, store, 0);
        qcow2_joint_free_store(store);
    }
    qcow2_joint_free_names(j);
}

/* Whether another image of the change still has to ask this one. */
static bool co_is_asked(struct qcow2 *q)
{
    const struct qcow2_joint *j = &q->joint;

    for (uint32_t i = 0; i < j->name_count; i++) {
        enum qcow2_joint_state state;
        int r = i == j->own ? -ENODATA : qcow2_co_joint_ask(q, i, &state);

        /* What can't be read may be there again tomorrow. What is gone will never ask. */
        if ((r == 0 && state == JOINT_PREPARED) || (r < 0 && r != -ENODATA && r != -ENOENT)) {
            return true;
        }
    }
    return false;
}

int qcow2_co_joint_retire_locked(struct qcow2 *q, struct error *err)
{
    enum qcow2_joint_state state = q->joint.state;
    int r;

    CO_ASSERT_HELD(&q->bitmaps.mutex);
    if ((state != JOINT_DONE && state != JOINT_UNDONE) || co_is_asked(q)) {
        return 0;
    }
    r = qcow2_co_joint_set_state_locked(q, JOINT_NONE, err);
    if (r == 0) {
        qcow2_co_joint_ended(q);
    }
    return r;
}
