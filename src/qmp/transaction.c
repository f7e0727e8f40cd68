/* SPDX-License-Identifier: Apache-2.0 */
#include "qmp/transaction.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "block/block.h"
#include "qmp/commands.h"

/* An action that was prepared. */
struct step {
    const struct qmp_action *action;
    void *state; /* owned */
};

static int co_abort_prepare(void *state, struct json_object *data, struct error *err)
{
    return error_set(err, EINVAL, "Transaction aborted using Abort action");
}

static const struct qmp_action abort_action = {.name = "abort", .co_prepare = co_abort_prepare};

static const struct qmp_action *const actions[] = {
    &abort_action,
    &qmp_action_bitmap_add,
    &qmp_action_bitmap_remove,
    &qmp_action_bitmap_clear,
    &qmp_action_bitmap_enable,
    &qmp_action_bitmap_disable,
    &qmp_action_bitmap_merge,
    &qmp_action_blockdev_add,
    &qmp_action_blockdev_del,
    &qmp_action_blockdev_replace,
    &qmp_action_export_add,
    &qmp_action_export_del,
};

const struct qmp_action *qmp_find_action(const char *name)
{
    for (size_t i = 0; i < ARRAY_SIZE(actions); i++) {
        if (strcmp(actions[i]->name, name) == 0) {
            return actions[i];
        }
    }
    return NULL;
}

static int co_prepare(struct step *step, const struct qmp_action *action, struct json_object *data,
                      struct error *err)
{
    int r;

    if (!action) {
        error_set(err, EINVAL, "There is no action of that type");
        return -EINVAL;
    }
    step->action = action;
    step->state = calloc(1, action->state_size ? action->state_size : 1);
    if (!step->state) {
        error_set(err, ENOMEM, "Out of memory");
        return -ENOMEM;
    }
    r = action->co_prepare(step->state, data, err);
    if (r < 0) {
        free(step->state);
        step->state = NULL;
    }
    return r;
}

static int co_finish(struct step *steps, size_t count, struct error *err)
{
    for (size_t i = 0; i < count; i++) {
        int r = steps[i].action->co_finish ? steps[i].action->co_finish(steps[i].state, err) : 0;

        if (r < 0) {
            return r;
        }
    }
    return 0;
}

static void co_commit(struct step *steps, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        if (steps[i].action->co_commit) {
            steps[i].action->co_commit(steps[i].state);
        }
    }
}

/* Backwards: each action finds the state that it left. */
static void co_abort(struct step *steps, size_t count)
{
    for (size_t i = count; i > 0; i--) {
        if (steps[i - 1].action->co_abort) {
            steps[i - 1].action->co_abort(steps[i - 1].state);
        }
    }
}

static void co_clean(struct step *steps, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        if (steps[i].action->co_clean) {
            steps[i].action->co_clean(steps[i].state);
        }
        free(steps[i].state);
    }
}

int qmp_co_run_action(const struct qmp_action *action, struct json_object *data, struct error *err)
{
    struct step step;
    int r = co_prepare(&step, action, data, err);

    if (r < 0) {
        return r;
    }
    r = co_finish(&step, 1, err);
    if (r < 0) {
        co_abort(&step, 1);
    } else {
        co_commit(&step, 1);
    }
    co_clean(&step, 1);
    return r < 0 ? r : 0;
}

static int co_run_drained(struct json_object *list, struct step *steps, size_t *ret_prepared,
                          struct error *err)
{
    size_t count = json_object_array_length(list), done = 0;
    int r = 0;

    while (done < count && r >= 0) {
        struct json_object *item = json_object_array_get_idx(list, done);

        r = co_prepare(&steps[done], qmp_find_action(qmp_get_str(item, "type")),
                       qmp_get(item, "data"), err);
        done += r >= 0;
    }
    if (r >= 0) {
        r = co_finish(steps, done, err);
    }
    if (r < 0) {
        co_abort(steps, done);
    } else {
        co_commit(steps, done);
    }
    *ret_prepared = done;
    return r < 0 ? r : 0;
}

int qmp_co_transaction(struct qmp_call *call, struct json_object *args, struct json_object **ret,
                       struct error *err)
{
    struct json_object *list = qmp_get(args, "actions");
    size_t count = json_object_array_length(list), prepared;
    struct step *steps = calloc(count ? count : 1, sizeof(*steps));
    int r;

    if (!steps) {
        return error_set(err, ENOMEM, "Out of memory");
    }
    block_co_drain_all_begin();
    r = co_run_drained(list, steps, &prepared, err);
    block_co_drain_all_end();
    co_clean(steps, prepared);
    free(steps);
    return r;
}
