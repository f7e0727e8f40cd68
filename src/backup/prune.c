/* SPDX-License-Identifier: Apache-2.0 */
#include "backup/prune.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "backup/condition.h"
#include "backup/image_header.h"
#include "backup/merge.h"
#include "backup/set.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "base/shell_word.h"

struct prune {
    const struct prune_options *options;
    struct repository repository;
    struct prune_result *result; /* its items have the indices of the repository's entries */
};

void prune_result_clear(struct prune_result *r)
{
    for (size_t i = 0; i < r->count; i++) {
        free(r->items[i].problem);
    }
    free(r->items);
    *r = (struct prune_result){0};
}

static struct prune_item *item_of(const struct prune *p, const struct repository_entry *e)
{
    return &p->result->items[e - p->repository.entries];
}

static int set_prune_problem(struct prune_item *item, const char *text)
{
    if (!item->problem) {
        item->problem = strdup(text);
    }
    return item->problem ? 0 : -ENOMEM;
}

/* --- what to remove --- */

/*
 * Set apart what cannot be restored, also by what verification has found, so that no rule counts
 * it.
 */
static int find_damaged(struct prune *p)
{
    CONDITION_AUTO(condition);

    if (condition_read(&p->repository, &condition) < 0) {
        return -ENOMEM;
    }
    for (size_t i = 0; i < p->repository.count; i++) {
        const struct repository_entry *e = &p->repository.entries[i];
        const struct repository_entry **chain AUTO_FREE = NULL;
        struct prune_item *item = &p->result->items[i];
        const char *found = condition.problems[i];
        ERROR_AUTO(why);
        size_t count;

        memcpy(item->id, e->id, sizeof(item->id));
        item->time = e->problem ? INT64_MIN : backup_moment_seconds(&e->manifest.begin);
        p->result->stored_before += e->manifest.stored;
        if (!e->problem && repository_chain(&p->repository, e, &chain, &count, &why) < 0) {
            found = error_message(&why);
        }
        if (found) {
            item->fate = PRUNE_DAMAGED;
            if (set_prune_problem(item, found) < 0) {
                return -ENOMEM;
            }
        }
    }
    return 0;
}

static const struct prune_item *set_of(const struct prune *p, const struct manifest *m)
{
    for (size_t i = 0; i < p->options->set_count; i++) {
        if (strcmp(p->options->sets[i].id, m->set) == 0) {
            return &p->options->sets[i];
        }
    }
    return NULL;
}

/* The highest sequence number of a backup whose set is there. */
static uint64_t last_in_a_set(const struct prune *p)
{
    uint64_t last = 0;

    for (size_t i = 0; i < p->repository.count; i++) {
        const struct repository_entry *e = &p->repository.entries[i];

        if (!e->problem && e->manifest.set[0] && set_of(p, &e->manifest)) {
            last = MAX(last, e->manifest.sequence);
        }
    }
    return last;
}

/*
 * Whether a set decides about a backup; then it has its fate. The newest set stays in every prune.
 * So a set that is not there was removed if it is older; else its description is still to come, as
 * in a copy that was killed.
 */
static bool judge_by_set(const struct prune *p, const struct manifest *m, uint64_t last,
                         struct prune_item *item)
{
    const struct prune_item *set;

    if (!p->options->sets || !m->set[0]) {
        return false;
    }
    set = set_of(p, m);
    if (set) {
        item->fate = set->fate == PRUNE_REMOVED ? PRUNE_REMOVED : PRUNE_KEPT;
        item->reasons = set->reasons;
    } else {
        item->fate = m->sequence > last ? PRUNE_KEPT : PRUNE_REMOVED;
    }
    return true;
}

static int apply_rules(struct prune *p)
{
    uint64_t last = last_in_a_set(p);
    size_t count = p->result->count, sound = 0;
    int64_t *times AUTO_FREE = calloc(count + 1, sizeof(*times));
    unsigned *reasons AUTO_FREE = calloc(count + 1, sizeof(*reasons));
    struct prune_item **items AUTO_FREE = calloc(count + 1, sizeof(struct prune_item *));

    if (!times || !reasons || !items) {
        return -ENOMEM;
    }
    for (size_t i = count; i-- > 0;) {
        if (p->result->items[i].fate != PRUNE_DAMAGED &&
            !judge_by_set(p, &p->repository.entries[i].manifest, last, &p->result->items[i])) {
            items[sound] = &p->result->items[i];
            times[sound++] = p->result->items[i].time;
        }
    }
    if (!retention_is_set(&p->options->keep)) {
        return 0;
    }
    if (retention_apply(&p->options->keep, time(NULL), times, sound, reasons) < 0) {
        return -ENOMEM;
    }
    for (size_t i = 0; i < sound; i++) {
        items[i]->reasons = reasons[i];
        items[i]->fate = reasons[i] ? PRUNE_KEPT : PRUNE_REMOVED;
    }
    return 0;
}

/* The next backup builds on the newest one: without it, it would be a full one. */
static void keep_newest(struct prune *p)
{
    for (size_t i = p->result->count; i-- > 0;) {
        struct prune_item *item = &p->result->items[i];

        if (item->fate != PRUNE_DAMAGED) {
            item->newest = true;
            item->fate = PRUNE_KEPT;
            return;
        }
    }
}

static bool is_named_backup(const struct prune *p, const char *id)
{
    for (size_t i = 0; i < p->options->remove_count; i++) {
        if (backup_id_is_meant(id, p->options->remove[i])) {
            return true;
        }
    }
    return false;
}

static int take_named_backups(struct prune *p, struct error *err)
{
    for (size_t i = 0; i < p->options->remove_count; i++) {
        const struct repository_entry *e =
            repository_find(&p->repository, p->options->remove[i], err);
        struct prune_item *item = e ? item_of(p, e) : NULL;

        if (!item) {
            return -ENOENT;
        }
        if (item->newest) {
            return error_set(
                err, EBUSY, "Backup %s is the newest one, on which the next one will build", e->id);
        }
        item->fate = PRUNE_REMOVED;
    }
    return 0;
}

/* The backup that `e` names as its parent, in its manifest or else in its image; NULL: none. */
static const struct repository_entry *parent_of(const struct prune *p,
                                                const struct repository_entry *e)
{
    struct image_header header;
    const char *parent = e->manifest.parent;

    if (e->problem) {
        parent =
            image_header_read_of(&p->repository, e->id, &header, NULL) < 0 ? "" : header.parent;
    }
    return parent[0] ? repository_get(&p->repository, parent) : NULL;
}

/*
 * What cannot be restored cannot be merged either. Its parent has to stay: perhaps a repair makes
 * the manifest again, or what is missing comes back from a copy.
 */
static int keep_under_damaged(struct prune *p, struct error *err)
{
    for (size_t i = p->repository.count; i-- > 0;) {
        const struct repository_entry *e = &p->repository.entries[i], *parent = parent_of(p, e);
        struct prune_item *item = parent ? item_of(p, parent) : NULL;

        if (!item || p->result->items[i].fate != PRUNE_DAMAGED || item->fate == PRUNE_DAMAGED) {
            continue;
        }
        if (is_named_backup(p, parent->id)) {
            return error_set(
                err, EBUSY, "Backup %s can't be removed: backup %s, which is damaged, builds on it",
                parent->id, e->id);
        }
        item->fate = PRUNE_KEPT;
        if (set_prune_problem(item, "a damaged backup builds on it") < 0) {
            return error_out_of_memory(err);
        }
    }
    return 0;
}

static int plan(struct prune *p, struct error *err)
{
    int r;

    p->result->count = p->repository.count;
    p->result->items = calloc(p->repository.count + 1, sizeof(*p->result->items));
    if (!p->result->items || find_damaged(p) < 0 || apply_rules(p) < 0) {
        return error_out_of_memory(err);
    }
    keep_newest(p);
    r = take_named_backups(p, err);
    UNLESS_FAILED(r, keep_under_damaged(p, err));
    for (size_t i = 0; i < p->result->count; i++) {
        p->result->removed += p->result->items[i].fate == PRUNE_REMOVED;
        p->result->damaged += p->result->items[i].fate == PRUNE_DAMAGED;
    }
    p->result->stored_after = p->result->stored_before;
    return r;
}

/* --- what to merge --- */

/*
 * The part of the chain of a kept backup that becomes one: down from it to the next kept one, or
 * the whole chain if it is too long. `depth` has the length of the chain of each backup, after the
 * prune.
 */
static size_t first_to_merge(const struct prune *p, const struct repository_entry *const *chain,
                             size_t count, uint64_t *depth)
{
    const struct repository_entry *base = p->repository.entries;
    size_t first = count - 1;
    uint64_t length;

    while (first > 0 && item_of(p, chain[first - 1])->fate == PRUNE_REMOVED) {
        first--;
    }
    length = 1 + (first > 0 ? depth[chain[first - 1] - base] : 0);
    if (p->options->max_chain && length > p->options->max_chain) {
        first = 0;
        length = 1;
    }
    depth[chain[count - 1] - base] = length;
    return first;
}

static bool has_child(const struct repository *r, const char *id)
{
    for (size_t i = 0; i < r->count; i++) {
        if (!r->entries[i].problem && strcmp(r->entries[i].manifest.parent, id) == 0) {
            return true;
        }
    }
    return false;
}

/* Remove what nobody builds on any more, the newest first. */
static int sweep(struct prune *p, bool *gone, struct error *err)
{
    for (size_t i = p->repository.count; i-- > 0;) {
        struct repository_entry *e = &p->repository.entries[i];
        uint64_t stored = e->manifest.stored;
        int r;

        if (p->result->items[i].fate != PRUNE_REMOVED || gone[i] ||
            has_child(&p->repository, e->id)) {
            continue;
        }
        r = repository_remove(&p->repository, e->id, err);
        if (r < 0) {
            return r;
        }
        gone[i] = true;
        p->result->stored_after -= stored;
    }
    return 0;
}

static int co_merge_into(struct prune *p, const struct repository_entry *const *entries,
                         size_t count, struct error *err)
{
    const struct merge_config config = {
        .from = &p->repository,
        .entries = entries,
        .count = count,
        .to = &p->repository,
        .progress = p->options->progress,
        .stop = p->options->stop,
    };
    const struct manifest *before = &entries[count - 1]->manifest;
    struct repository_draft draft;
    struct manifest m;
    int r = merge_co_run(&config, &draft, &m, err);

    if (r == 0) {
        p->result->stored_after -= before->stored;
        p->result->stored_after += m.stored;
        r = repository_replace(&p->repository, &draft, &m, err);
    }
    repository_discard(&p->repository, &draft);
    manifest_clear(&m);
    return r;
}

/* What is merged goes only when the merged backup is there. */
static void hint_at_room(const struct prune *p, const struct repository_entry *const *entries,
                         size_t count, struct error *err)
{
    char *word AUTO_FREE = shell_word(p->repository.path);
    uint64_t stored = 0;

    for (size_t i = 0; i < count; i++) {
        stored += entries[i]->manifest.stored;
    }
    error_hint(err,
               "The merged backup needs up to %" PRIu64 " MiB next to those of which it is made. "
               "Free that, or let 'tidemark copy --last N %s' make a smaller repository elsewhere.",
               div_round_up(stored, MiB), word ?: p->repository.path);
}

/* Merge what goes over to one kept backup. */
static int co_settle_kept(struct prune *p, const struct repository_entry *e, uint64_t *depth,
                          bool *gone, struct error *err)
{
    const struct repository_entry **chain AUTO_FREE = NULL;
    struct prune_item *item = item_of(p, e);
    size_t count, first;
    int r = repository_chain(&p->repository, e, &chain, &count, err);

    if (r < 0) {
        return r;
    }
    first = first_to_merge(p, chain, count, depth);
    item->takes_over = count - 1 - first;
    item->becomes_full = first == 0 && count > 1;
    if (item->takes_over == 0 || p->options->dry_run) {
        return 0;
    }
    r = co_merge_into(p, chain + first, count - first, err);
    if (r == -ENOSPC || r == -EDQUOT) {
        hint_at_room(p, chain + first, count - first, err);
    }
    return r < 0 ? r : sweep(p, gone, err);
}

static int co_prune(struct prune *p, struct error *err)
{
    uint64_t *depth AUTO_FREE = calloc(p->result->count + 1, sizeof(*depth));
    bool *gone AUTO_FREE = calloc(p->result->count + 1, sizeof(*gone));
    int r = 0;

    if (!depth || !gone) {
        return error_out_of_memory(err);
    }
    /* First what needs no merging: it may make room. */
    r = p->options->dry_run ? 0 : sweep(p, gone, err);
    for (size_t i = 0; r == 0 && i < p->result->count; i++) {
        if (p->result->items[i].fate == PRUNE_KEPT) {
            r = co_settle_kept(p, &p->repository.entries[i], depth, gone, err);
        }
    }
    return r;
}

int prune_co_run(const struct prune_options *options, struct prune_result *ret_result,
                 struct error *err)
{
    struct prune p = {.options = options, .repository = REPOSITORY_INIT, .result = ret_result};
    int r;

    *ret_result = (struct prune_result){0};
    r = options->dry_run ? repository_open(options->dir, &p.repository, err)
                         : repository_open_existing(options->dir, &p.repository, err);
    if (r == 0 && !options->dry_run) {
        r = repository_may_change(&p.repository, "it is not pruned", err);
    }
    UNLESS_FAILED(r, plan(&p, err));
    UNLESS_FAILED(r, co_prune(&p, err));
    if (r == 0 && !options->dry_run && ret_result->removed > 0) {
        r = set_remove_empty(p.repository.path, err);
    }
    repository_close(&p.repository);
    return r;
}
