/* SPDX-License-Identifier: Apache-2.0 */
/* What killed runs and lost repositories have left in a source. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "backup/backup_internal.h"
#include "backup/giving_up.h"
#include "backup/guard.h"
#include "backup/qmp_client.h"
#include "base/cleanup.h"

#define STOPPED "Stopped"

static int co_abort(const struct backup_options *options, bool frozen, struct error *err)
{
    struct group g;
    int r = group_co_open(options, &g, err);

    if (r == 0 && frozen && g.sources[0]->ops->co_thaw) {
        g.sources[0]->ops->co_thaw(g.sources[0], NULL);
    }
    for (size_t i = 0; r == 0 && i < g.count; i++) {
        r = run_co_settle(&g.runs[i], err);
    }
    group_co_clear(&g);
    return r;
}

int backup_co_abort(const struct backup_options *options, struct error *err)
{
    const struct quiesce_options *q = &options->quiesce;
    ERROR_AUTO(thaw_err);
    struct giving_up giving_up;
    int r, thawed = 0;

    giving_up_begin(&giving_up, options->stop, group_co_give_up_attempts, NULL);
    r = co_abort(options, options->source.freeze, err);
    r = giving_up_co_end(&giving_up, r, STOPPED, err);
    /* Not while a run is at work, which has perhaps frozen it. */
    if (r != -EBUSY && q->agent) {
        thawed = quiesce_co_thaw(q->agent, q->timeout_s, &thaw_err);
    }
    if (r == 0 && thawed < 0) {
        error_move(err, &thaw_err);
    }
    return error_first(r, thawed);
}

int backup_co_guard(const struct backup_options *options, int fd, struct error *err)
{
    const struct quiesce_options *q = &options->quiesce;
    bool frozen;
    int r;

    if (!guard_co_wait(fd, &frozen)) {
        return 0;
    }
    if (frozen && q->agent) {
        quiesce_co_thaw(q->agent, q->timeout_s, NULL);
    }
    r = co_abort(options, frozen && options->source.freeze, err);
    return r == -EBUSY ? 0 : r;
}

/* A server that is looked for, or does not answer, ends by a stop. */
static int co_connect_for_leftovers(const struct source_options *options,
                                    struct qmp_client **ret_qmp, struct error *err)
{
    struct giving_up giving_up;
    int r;

    giving_up_begin(&giving_up, options->stop, group_co_give_up_attempts, NULL);
    r = qmp_client_co_connect(options->qmp_socket, options->qmp_tls, options->stop, ret_qmp, err);
    return giving_up_co_end(&giving_up, r, STOPPED, err);
}

int backup_co_forget(const struct source_options *options, const char *node, const char *repository,
                     struct error *err)
{
    struct qmp_client *qmp AUTO_QMP = NULL;
    struct source_leftovers all = {0};
    bool found = false;
    int r = co_connect_for_leftovers(options, &qmp, err);

    UNLESS_FAILED(r, source_co_leftovers(qmp, node, &all, err));
    for (size_t i = 0; r == 0 && i < all.count; i++) {
        struct source_leftover *l = &all.list[i];

        if (strcmp(l->repository, repository) != 0) {
            continue;
        }
        found = true;
        if (!l->node && node) {
            l->node = strdup(node);
        }
        r = source_co_forget(qmp, l, err);
    }
    source_leftovers_clear(&all);
    if (r == 0 && !found) {
        r = error_set(err, ENOENT, "The daemon at '%s' has nothing of repository '%s'",
                      options->qmp_socket, repository);
    }
    return r;
}

int backup_co_leftovers(const struct source_options *options, const char *node,
                        struct source_leftovers *ret_leftovers, struct error *err)
{
    struct qmp_client *qmp AUTO_QMP = NULL;
    int r = co_connect_for_leftovers(options, &qmp, err);

    return r < 0 ? r : source_co_leftovers(qmp, node, ret_leftovers, err);
}
