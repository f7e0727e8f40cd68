/* SPDX-License-Identifier: Apache-2.0 */
#include "backup/set_root.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

#include "backup/files.h"
#include "backup/upload_files.h"
#include "backup/upload_root.h"
#include "base/cleanup.h"

bool set_is_root(const char *path)
{
    char *sets AUTO_FREE = files_join(path, SET_DIRECTORY);
    struct stat st;

    return sets && lstat(sets, &st) == 0 && S_ISDIR(st.st_mode) && !repository_is_described(path);
}

bool set_is_of(const struct set *s, const char *machine)
{
    return !machine || (s->machine && strcmp(s->machine, machine) == 0);
}

const char *set_backup_of(const struct set *s, const char *directory)
{
    for (size_t i = 0; i < s->count; i++) {
        if (strcmp(s->disks[i].directory, directory) == 0) {
            return s->disks[i].backup;
        }
    }
    return NULL;
}

static int add_disk_of_root(struct set_root *r, const char *directory)
{
    char **grown;

    for (size_t i = 0; i < r->count; i++) {
        if (strcmp(r->disks[i], directory) == 0) {
            return 0;
        }
    }
    grown = realloc(r->disks, (r->count + 1) * sizeof(*grown));
    if (!grown) {
        return -ENOMEM;
    }
    r->disks = grown;
    grown[r->count] = strdup(directory);
    if (!grown[r->count]) {
        return -ENOMEM;
    }
    r->count++;
    return 0;
}

int set_root_open(const char *path, const char *machine, struct set_root *ret_root,
                  struct error *err)
{
    struct set_root *root = ret_root;
    int r;

    *root = (struct set_root){.path = path};
    r = set_read_all(path, &root->sets, err);
    UNLESS_FAILED(r, set_list_examine(&root->sets, path, err));
    for (size_t i = 0; r == 0 && i < root->sets.count; i++) {
        const struct set *s = &root->sets.list[i];

        for (size_t k = 0; r == 0 && set_is_of(s, machine) && k < s->count; k++) {
            r = add_disk_of_root(root, s->disks[k].directory) < 0 ? error_out_of_memory(err) : 0;
        }
    }
    if (r == 0 && root->count == 0) {
        r = machine
                ? error_set(err, ENOENT, "There is no set of machine '%s' in '%s'", machine, path)
                : error_set(err, ENOENT, "There is no set in '%s'", path);
    }
    return r;
}

void set_root_clear(struct set_root *r)
{
    for (size_t i = 0; i < r->count; i++) {
        free(r->disks[i]);
    }
    free(r->disks);
    set_list_clear(&r->sets);
    *r = (struct set_root){0};
}

/* --- pruning ---------------------------------------------------------------------------------- */

void prune_root_result_clear(struct prune_root_result *r)
{
    for (size_t i = 0; i < r->set_count; i++) {
        free(r->sets[i].problem);
    }
    for (size_t i = 0; r->disks && i < r->root.count; i++) {
        prune_result_clear(&r->disks[i]);
    }
    free(r->sets);
    free(r->disks);
    set_root_clear(&r->root);
    *r = (struct prune_root_result){0};
}

static const char *problem_of(const struct set *s)
{
    const struct set_disk *d = set_problem_disk(s);

    return set_describe_damage(s) ?: (d ? d->problem : NULL);
}

/* An item for each set; those that no rule counts get their fate. */
static int list_sets_of_root(struct prune_root_result *result)
{
    const struct set_list *sets = &result->root.sets;

    result->sets = calloc(sets->count + 1, sizeof(*result->sets));
    if (!result->sets) {
        return -ENOMEM;
    }
    for (size_t i = 0; i < sets->count; i++) {
        const char *problem = problem_of(&sets->list[i]);
        struct prune_item *item = &result->sets[i];

        result->set_count++;
        memcpy(item->id, sets->list[i].id, sizeof(item->id));
        item->time = problem ? INT64_MIN : backup_moment_seconds(&sets->list[i].begin);
        item->fate = problem ? PRUNE_DAMAGED : PRUNE_KEPT;
        item->problem = problem ? strdup(problem) : NULL;
        if (problem && !item->problem) {
            return -ENOMEM;
        }
    }
    return 0;
}

/* The rules count the whole sets of the machine, the newest first. */
static int judge_sets(const struct prune_options *options, const char *machine,
                      struct prune_root_result *result)
{
    size_t count = result->set_count, n = 0;
    int64_t *times AUTO_FREE = calloc(count + 1, sizeof(*times));
    unsigned *reasons AUTO_FREE = calloc(count + 1, sizeof(*reasons));
    struct prune_item **items AUTO_FREE = calloc(count + 1, sizeof(struct prune_item *));

    if (!times || !reasons || !items) {
        return -ENOMEM;
    }
    for (size_t i = count; i-- > 0;) {
        struct prune_item *item = &result->sets[i];

        if (item->fate != PRUNE_DAMAGED && set_is_of(&result->root.sets.list[i], machine)) {
            items[n] = item;
            times[n++] = item->time;
        }
    }
    if (retention_is_set(&options->keep)) {
        if (retention_apply(&options->keep, time(NULL), times, n, reasons) < 0) {
            return -ENOMEM;
        }
        for (size_t i = 0; i < n; i++) {
            items[i]->reasons = reasons[i];
            items[i]->fate = reasons[i] ? PRUNE_KEPT : PRUNE_REMOVED;
        }
    }
    if (n > 0) {
        items[0]->newest = true;
        items[0]->fate = PRUNE_KEPT;
    }
    return 0;
}

static int take_named_sets(const struct prune_options *options, struct prune_root_result *result,
                           struct error *err)
{
    for (size_t i = 0; i < options->remove_count; i++) {
        const struct set *s = set_find(&result->root.sets, options->remove[i], err);
        struct prune_item *item = s ? &result->sets[s - result->root.sets.list] : NULL;

        if (!item) {
            return -ENOENT;
        }
        if (item->newest) {
            return error_set(err, EBUSY,
                             "Set %s is the newest one, on which the next one will build", s->id);
        }
        item->fate = PRUNE_REMOVED;
    }
    return 0;
}

/* Whoever can write to the root could have the backups of another one removed by its rules. */
static int check_no_link(const char *path, struct error *err)
{
    struct stat st;

    if (lstat(path, &st) < 0 || !S_ISLNK(st.st_mode)) {
        return 0;
    }
    error_set(err, ELOOP, "'%s' is a link, and what it leads to is not pruned with the set", path);
    error_hint(err, "Prune the directory that it leads to by itself.");
    return -ELOOP;
}

/* Before anything is removed: whether all disks can be pruned. */
static int check_disks(const struct prune_root_result *result, struct error *err)
{
    int r = 0;

    for (size_t i = 0; r == 0 && i < result->root.count; i++) {
        char *path AUTO_FREE = files_join(result->root.path, result->root.disks[i]);
        REPOSITORY_AUTO(repository);

        r = path ? check_no_link(path, err) : error_out_of_memory(err);
        UNLESS_FAILED(r, repository_open_existing(path, &repository, err));
        UNLESS_FAILED(r, repository_may_change(&repository, "it is not pruned", err));
    }
    return r;
}

/* Sets go before their backups, so that after a kill no set is left that is not whole. */
static int remove_sets(const struct prune_root_result *result, struct error *err)
{
    int r = 0;

    for (size_t i = 0; r == 0 && i < result->set_count; i++) {
        if (result->sets[i].fate == PRUNE_REMOVED) {
            r = set_remove(result->root.path, result->sets[i].id, err);
        }
    }
    return r;
}

static int co_prune_disks(const struct prune_options *options, struct prune_root_result *result,
                          struct error *err)
{
    int r = 0;

    result->disks = calloc(result->root.count, sizeof(*result->disks));
    if (!result->disks) {
        return error_out_of_memory(err);
    }
    for (size_t i = 0; r == 0 && i < result->root.count; i++) {
        char *path AUTO_FREE = files_join(result->root.path, result->root.disks[i]);
        struct prune_options one = *options;

        one.dir = path;
        one.remove = NULL;
        one.remove_count = 0;
        one.sets = result->sets;
        one.set_count = result->set_count;
        r = path ? prune_co_run(&one, &result->disks[i], err) : error_out_of_memory(err);
    }
    return r;
}

int prune_root_co_run(const struct prune_options *options, const char *machine,
                      struct prune_root_result *ret_result, struct error *err)
{
    struct prune_root_result *result = ret_result;
    int r;

    *result = (struct prune_root_result){0};
    r = set_root_open(options->dir, machine, &result->root, err);
    UNLESS_FAILED(r, set_list_take_found_damage(&result->root.sets, result->root.path, err));
    if (r == 0 && (list_sets_of_root(result) < 0 || judge_sets(options, machine, result) < 0)) {
        r = error_out_of_memory(err);
    }
    UNLESS_FAILED(r, take_named_sets(options, result, err));
    if (!options->dry_run) {
        UNLESS_FAILED(r, check_disks(result, err));
        UNLESS_FAILED(r, set_remove_left(result->root.path, err));
        UNLESS_FAILED(r, remove_sets(result, err));
    }
    UNLESS_FAILED(r, co_prune_disks(options, result, err));
    return r;
}

/* --- copying ---------------------------------------------------------------------------------- */

/* Where a root is copied to: a directory, or the mirror of one on a server. */
struct copy_place {
    struct upload_root *upload; /* NULL: to a directory */
    const char *path;           /* of the directory or mirror */
    struct set_root_made made;
};

/* Whether a set is to be copied: all of them, that of --at, or the newest whole ones. */
static int select_sets(const struct repository_copy_options *options, const char *machine,
                       const struct set_root *root, bool *selected, size_t *ret_left_out,
                       struct error *err)
{
    uint64_t most = options->last ? options->last : UINT64_MAX;
    const struct set *s;

    if (options->at) {
        s = set_find(&root->sets, options->at, err);
        if (!s) {
            return -ENOENT;
        }
        selected[s - root->sets.list] = true;
        return problem_of(s)
                   ? error_set(err, EBADMSG, "Set %s is not whole: %s", s->id, problem_of(s))
                   : 0;
    }
    for (size_t i = root->sets.count; i-- > 0 && most > 0;) {
        s = &root->sets.list[i];
        if (set_is_of(s, machine)) {
            selected[i] = !problem_of(s);
            most -= selected[i];
            *ret_left_out += !selected[i];
        }
    }
    return 0;
}

static int co_copy_disk(const struct repository_copy_options *options, const struct set_root *root,
                        const char *directory, const bool *selected,
                        struct repository_copy_result *sum, struct error *err)
{
    char *from AUTO_FREE = files_join(root->path, directory);
    char *to AUTO_FREE = upload_is_address(options->to)
                             ? upload_join_address(options->to, directory)
                             : files_join(options->to, directory);
    const char **ids AUTO_FREE = calloc(root->sets.count + 1, sizeof(const char *));
    struct repository_copy_options one = *options;
    struct repository_copy_result result = {0};
    int r;

    if (!from || !to || !ids) {
        return error_out_of_memory(err);
    }
    one.from = from;
    one.to = to;
    if (options->at || options->last) {
        one.at = NULL;
        one.last = 0;
        one.ids = ids;
        for (size_t i = 0; i < root->sets.count; i++) {
            const char *id = selected[i] ? set_backup_of(&root->sets.list[i], directory) : NULL;

            if (id) {
                ids[one.id_count++] = id;
            }
        }
        if (one.id_count == 0) {
            return 0;
        }
    }
    r = repository_copy_co_run(&one, &result, err);
    sum->copied += result.copied;
    sum->merged += result.merged;
    sum->present += result.present;
    sum->damaged += result.damaged;
    sum->bytes += result.bytes;
    return r;
}

/* What a step `r` with the error `one` means for the whole: damage is for the end, the first. */
static int keep_damage(int r, struct error *one, struct error *damage, struct error *err)
{
    if (r == -EBADMSG && !error_is_set(damage)) {
        error_move(damage, one);
    } else if (r < 0 && r != -EBADMSG) {
        error_move(err, one);
    }
    return r == -EBADMSG ? 0 : r;
}

/* A disk of which all is there takes so little time that nothing else sees a stop. */
static int look_for_copy_stop(const struct repository_copy_options *options, struct error *err)
{
    return options->stop && *options->stop ? error_set(err, EINTR, "The copy was stopped") : 0;
}

/*
 * Copy the disks of which there is a copy, or the others; those that are done are in `done`. The
 * first damage that is found on the way is left in `damage`.
 */
static int co_copy_disks(const struct repository_copy_options *options, const struct set_root *root,
                         const char *place, bool exist, bool *done, const bool *selected,
                         struct repository_copy_result *sum, struct error *damage,
                         struct error *err)
{
    int r = 0;

    for (size_t i = 0; r == 0 && i < root->count; i++) {
        char *to AUTO_FREE = files_join(place, root->disks[i]);
        ERROR_AUTO(one);

        if (!to) {
            return error_out_of_memory(err);
        }
        if (exist ? repository_is_described(to) : !done[i]) {
            done[i] = true;
            r = look_for_copy_stop(options, &one);
            UNLESS_FAILED(r, co_copy_disk(options, root, root->disks[i], selected, sum, &one));
        }
        r = keep_damage(r, &one, damage, err);
    }
    return r;
}

/*
 * The key of the copy of a set: its own is that of one of its disks, an encrypted one if any is.
 * *ret_whole: the copy has all backups of the set.
 */
static int find_key_of_copy(const char *to, const struct set *s, struct set_key *ret_key,
                            bool *ret_whole, struct error *err)
{
    int r = 0;

    *ret_key = (struct set_key){0};
    *ret_whole = true;
    for (size_t i = 0; r == 0 && *ret_whole && i < s->count; i++) {
        char *disk AUTO_FREE = files_join(to, s->disks[i].directory);
        REPOSITORY_AUTO(repository);
        const struct repository_entry *e;

        if (disk && !repository_is_described(disk)) {
            *ret_whole = false;
            return 0;
        }
        r = disk ? repository_open(disk, &repository, err) : error_out_of_memory(err);
        e = r == 0 ? repository_get(&repository, s->disks[i].backup) : NULL;
        *ret_whole = e && !e->problem;
        if (r == 0 && (i == 0 || (!ret_key->seal && repository_seal(&repository)))) {
            *ret_key =
                (struct set_key){.key = repository.key, .seal = repository_seal(&repository)};
        }
    }
    return r;
}

/* What is made in `to` from now on is as the copies that are there. */
static int join_copies(const char *to, const struct set_root *root, struct error *err)
{
    int r = 0;

    for (size_t i = 0; r == 0 && i < root->count; i++) {
        char *disk AUTO_FREE = files_join(to, root->disks[i]);
        REPOSITORY_AUTO(repository);

        r = disk ? 0 : error_out_of_memory(err);
        if (r == 0 && repository_is_described(disk)) {
            r = repository_open(disk, &repository, err);
            repository_be_joined(&repository);
        }
    }
    return r;
}

/* A set that only grows keeps a damaged description, too. */
static int check_replaceable(const char *to, const struct set *s, struct error *err)
{
    int r = 0;

    for (size_t i = 0; r == 0 && i < s->count; i++) {
        char *disk AUTO_FREE = files_join(to, s->disks[i].directory);
        REPOSITORY_AUTO(repository);

        r = disk ? 0 : error_out_of_memory(err);
        if (r == 0 && repository_is_described(disk)) {
            r = repository_open(disk, &repository, err);
            if (r == 0 && repository.append_only) {
                r = error_set(err, EBADMSG,
                              "The copy of set %s has a damaged description, which stays: a "
                              "repository that only grows has disk '%s'",
                              s->id, s->disks[i].directory);
            }
        }
    }
    return r;
}

/*
 * `replaces`: the copy has it, with a description that is damaged. *ret_whole: the copy has its
 * backups; without them it is left out.
 */
static int copy_set(const char *from, const char *to, const struct set *s, bool replaces,
                    bool *ret_whole, struct error *err)
{
    char *definition AUTO_FREE = NULL;
    struct set_key key;
    bool whole;
    int r = find_key_of_copy(to, s, &key, &whole, err);

    if (r == 0 && whole && s->definition) {
        r = set_load_definition(from, s, &definition, err);
    }
    if (r == 0 && whole && replaces) {
        r = check_replaceable(to, s, err);
        UNLESS_FAILED(r, set_replace(to, s, definition, &key, err));
    } else if (r == 0 && whole) {
        r = set_add(to, s, definition, &key, err);
    }
    *ret_whole = whole;
    return r;
}

/* What the copy has of a set; NULL: nothing. */
static const struct set *find_copied(const struct set_list *there, const struct set *s)
{
    for (size_t i = 0; i < there->count; i++) {
        if (strcmp(there->list[i].id, s->id) == 0) {
            return &there->list[i];
        }
    }
    return NULL;
}

/* Whether a copied set lacks its definition, or has another one. On a server it is not read. */
static bool copy_lacks_definition(const struct copy_place *p, const struct set *there)
{
    char *text AUTO_FREE = NULL;

    return !p->upload && there->definition &&
           set_load_definition(p->path, there, &text, NULL) == -EBADMSG;
}

static int copy_sets(const struct copy_place *p, const struct set_root *root, const bool *selected,
                     struct copy_root_result *result, struct error *damage, struct error *err)
{
    struct set_list there = {0};
    int r = set_read_all(p->path, &there, err);

    for (size_t i = 0; r == 0 && i < root->sets.count; i++) {
        const struct set *s = &root->sets.list[i], *copied = find_copied(&there, s);
        bool replaces = copied && (copied->damaged || copy_lacks_definition(p, copied));
        bool whole = false;
        ERROR_AUTO(one);

        if (!selected[i] || (copied && !replaces)) {
            continue;
        }
        if (copied && copied->denied) {
            r = error_set(err, EACCES, "The copy of set '%s' may not be read by this user", s->id);
            break;
        }
        r = copy_set(root->path, p->path, s, replaces, &whole, &one);
        result->sets += r == 0 && whole;
        result->left_out += r == 0 && !whole;
        if (r == 0 && whole && replaces && p->upload) {
            r = upload_root_replace(p->upload, s->id, &one);
        }
        r = keep_damage(r, &one, damage, err);
    }
    set_list_clear(&there);
    return r;
}

/* A copy in the root itself would be taken for further disks of it. */
static int check_copy_of_root(const char *from, const char *to, struct error *err)
{
    char *root AUTO_FREE = realpath(from, NULL), *place AUTO_FREE = realpath(to, NULL);
    size_t size = root ? strlen(root) : 0;

    return root && place && strncmp(place, root, size) == 0 && (place[size] == '/' || !place[size])
               ? error_set(err, EINVAL, "'%s' is in '%s'", to, from)
               : 0;
}

static int co_open_place(const struct repository_copy_options *options, const struct set_root *root,
                         struct copy_place *p, struct error *err)
{
    int r = 0;

    p->path = options->to;
    if (upload_is_address(options->to)) {
        r = upload_root_co_open(options->to, root->disks, root->count, options->stop, &p->upload,
                                err);
        p->path = r == 0 ? upload_root_path(p->upload) : NULL;
        return r;
    }
    r = set_make_root(p->path, &p->made, err);
    UNLESS_FAILED(r, check_copy_of_root(options->from, p->path, err));
    return r;
}

/* The sets, once the disks are there. */
static int co_copy_sets(struct copy_place *p, const struct set_root *root, const bool *selected,
                        struct copy_root_result *result, struct error *damage, struct error *err)
{
    int r = 0;

    if (p->upload) {
        r = upload_root_co_mirror(p->upload, root->disks, root->count, err);
        p->path = upload_root_path(p->upload);
    }
    UNLESS_FAILED(r, set_remove_left(p->path, err));
    UNLESS_FAILED(r, copy_sets(p, root, selected, result, damage, err));
    if (p->upload) {
        UNLESS_FAILED(r, upload_root_co_put_sets(p->upload, err));
    }
    return r;
}

static void close_place(struct copy_place *p, int r, struct error *damage, struct error *err)
{
    if (p->upload) {
        upload_root_close(p->upload, error_is_set(err) ? err : damage);
    } else if (r < 0 && p->path) {
        set_unmake_root(p->path, &p->made);
    }
}

int copy_root_co_run(const struct repository_copy_options *options, const char *machine,
                     struct copy_root_result *ret_result, struct error *err)
{
    struct set_root root = {0};
    struct copy_place place = {0};
    struct repository_copy_result *sum = &ret_result->disks;
    ERROR_AUTO(damage);
    bool *selected AUTO_FREE = NULL, *done AUTO_FREE = NULL;
    int r = set_root_open(options->from, machine, &root, err);

    *ret_result = (struct copy_root_result){0};
    selected = calloc(root.sets.count + 1, sizeof(*selected));
    done = calloc(root.count + 1, sizeof(*done));
    if (r == 0 && (!selected || !done)) {
        r = error_out_of_memory(err);
    }
    UNLESS_FAILED(r, select_sets(options, machine, &root, selected, &ret_result->left_out, err));
    UNLESS_FAILED(r, co_open_place(options, &root, &place, err));
    UNLESS_FAILED(
        r, co_copy_disks(options, &root, place.path, true, done, selected, sum, &damage, err));
    UNLESS_FAILED(r, join_copies(place.path, &root, err));
    UNLESS_FAILED(
        r, co_copy_disks(options, &root, place.path, false, done, selected, sum, &damage, err));
    UNLESS_FAILED(r, co_copy_sets(&place, &root, selected, ret_result, &damage, err));
    close_place(&place, r, &damage, err);
    if (r == 0 && error_is_set(&damage)) {
        error_move(err, &damage);
        r = -EBADMSG;
    }
    set_root_clear(&root);
    return r;
}
