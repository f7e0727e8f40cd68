/* SPDX-License-Identifier: Apache-2.0 */
#include "backup/volumes_inherit.h"

#include <stdlib.h>

#include "backup/layer.h"
#include "backup/repository_share.h"
#include "base/checked.h"
#include "base/cleanup.h"

/* Whether the backup itself has nothing of what decides about the volumes. */
static bool co_has_none(const struct repository *repository, const struct repository_entry *e,
                        const struct volumes *v)
{
    struct layer *layer;
    bool found = false;

    if (layer_co_get(repository, e, NULL, &layer, NULL) < 0) {
        return false;
    }
    for (size_t i = 0; !found && i < v->read_count; i++) {
        uint64_t end = v->reads[i].offset + v->reads[i].size;

        found = sums_runs_overlap(&layer->runs, v->reads[i].offset / BACKUP_CLUSTER_SIZE,
                                  div_round_up(end, BACKUP_CLUSTER_SIZE));
    }
    layer_put(layer);
    return !found;
}

/*
 * From `e` to the first one that is known, which is copied. *ret_entries are those before, the
 * latest first.
 */
static bool find_known(const struct repository *repository, const struct repository_entry *e,
                       volumes_known *known, void *arg, const struct repository_entry **ret_entries,
                       size_t *ret_count, struct volumes *ret_volumes)
{
    uint64_t size = e->manifest.virtual_size;

    while (e && !e->problem && e->manifest.virtual_size == size && *ret_count < repository->count) {
        const struct volumes *v = known(arg, e);

        if (v) {
            return volumes_copy(v, ret_volumes) == 0;
        }
        ret_entries[(*ret_count)++] = e;
        e = manifest_is_full(&e->manifest) ? NULL : repository_get(repository, e->manifest.parent);
    }
    return false;
}

bool volumes_co_inherit(const char *path, const char *id, volumes_known *known, void *arg,
                        struct volumes *ret_volumes)
{
    const struct repository_entry **entries AUTO_FREE = NULL, *e;
    const struct repository *repository;
    VOLUMES_AUTO(v);
    size_t count = 0;
    bool same;

    if (repository_co_share(path, &repository, NULL) < 0) {
        return false;
    }
    e = repository_get(repository, id);
    entries = calloc(repository->count + 1, sizeof(const struct repository_entry *));
    same = e && entries && find_known(repository, e, known, arg, entries, &count, &v);
    for (size_t i = 0; same && i < count; i++) {
        same = co_has_none(repository, entries[i], &v);
    }
    repository_unshare(repository);
    if (same) {
        *ret_volumes = v;
        v = (struct volumes){0};
    }
    return same;
}
