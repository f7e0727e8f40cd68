/* SPDX-License-Identifier: Apache-2.0 */
/* What killed runs and lost repositories have left in a source. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "backup/backup_internal.h"
#include "backup/guard.h"
#include "backup/qmp_client.h"
#include "base/cleanup.h"

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
    return co_abort(options, false, err);
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

int backup_co_forget(const struct source_options *options, const char *node, const char *repository,
                     struct error *err)
{
    struct qmp_client *qmp AUTO_QMP = NULL;
    struct source_leftovers all = {0};
    bool found = false;
    int r = qmp_client_co_connect(options->qmp_socket, options->qmp_tls, options->stop, &qmp, err);

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
    int r = qmp_client_co_connect(options->qmp_socket, options->qmp_tls, options->stop, &qmp, err);

    return r < 0 ? r : source_co_leftovers(qmp, node, ret_leftovers, err);
}
