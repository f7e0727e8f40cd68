/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Verification of each backup: the manifest with its own checksum, the parent, both files against
 * the manifest, the qcow2 structure, the backing link that other programs follow, every cluster
 * against its checksum, and that the image holds those clusters and no others.
 *
 * With a time limit, the backups whose last check is longest ago come first, and a check that is
 * cut short goes on where it was in the next run (backup/verified.h).
 */
#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "backup/backup.h"
#include "backup/chain.h"
#include "backup/verified.h"
#include "backup/verify_image.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "base/time_units.h"
#include "block/control.h"
#include "loop/loop.h"

#define STATUS_BYTES (1ULL << 40)
#define DAY_S (INT64_C(24) * 60 * 60)
#define RECORD_INTERVAL_NS (10 * NS_PER_SECOND)
#define STOPPED "Verifying was stopped"

/* A backup that was verified in this run. */
struct checked {
    char id[BACKUP_ID_SIZE];
    char image_sha256[SHA256_HEX_SIZE];
    int status; /* 0: sound */
};

struct checked_list {
    struct checked *list;
    size_t count;
};

struct verify {
    const struct verify_options *options;
    const struct repository *repository;
    struct checked_list *checked;
    struct verified state;
    int64_t deadline_ns; /* INT64_MAX: none */
    int *found;          /* by index of the entry: -errno, 0 if it is sound or not known */
    uint64_t bytes;      /* of the backup that is verified */
};

static int co_check_qcow2(const struct chain_image *image, struct error *err)
{
    struct block_check_result result;
    int r = block_co_check(image->node, 0, &result, err);

    if (r < 0) {
        return r;
    }
    if (result.corruptions || result.check_errors) {
        return error_set(err, EBADMSG, "'%s' is no sound qcow2 image: %" PRIu64 " corruptions",
                         image->path, result.corruptions + result.check_errors);
    }
    return 0;
}

/* Check the backing file name, which qemu-img will follow. */
static int co_check_backing_link(const struct chain_image *image, struct error *err)
{
    const struct manifest *m = &image->entry->manifest;
    struct block_info info;
    char expected[BACKUP_ID_SIZE + 32] = "";
    const char *found;
    int r = block_co_get_info(image->node, &info);

    if (r < 0) {
        return error_set_errno(err, -r, "Could not inspect '%s'", image->path);
    }
    if (!manifest_is_full(m)) {
        snprintf(expected, sizeof(expected), "../%s/%s", m->parent, REPOSITORY_IMAGE);
    }
    found = info.backing_filename ? info.backing_filename : "";
    if (strcmp(found, expected) != 0) {
        return error_set(err, EBADMSG, "The backing file of '%s' is '%s', it should be '%s'",
                         image->path, found, expected);
    }
    return 0;
}

/* Whether there is something else than zeroes. */
static int co_find_nonzero(const struct chain_image *image, uint64_t offset, uint64_t size,
                           bool *ret_found, struct error *err)
{
    uint8_t *buf AUTO_FREE = malloc(BACKUP_FULL_CLUSTER_SIZE);

    *ret_found = false;
    if (!buf) {
        return error_out_of_memory(err);
    }
    for (uint64_t done = 0, n; !*ret_found && done < size; done += n) {
        int r;

        n = MIN(size - done, (uint64_t)BACKUP_FULL_CLUSTER_SIZE);
        r = block_co_pread(block_root_edge(image->root), offset + done, buf, n);
        if (r < 0) {
            return error_set_errno(err, -r, "Could not read '%s' at offset %" PRIu64, image->path,
                                   offset + done);
        }
        *ret_found = !buffer_is_zero(buf, n);
    }
    return 0;
}

/* Check that [offset, end) is of one kind: zeroes in the image itself, or nothing of its own. */
static int co_check_status(const struct chain_image *image, uint64_t offset, uint64_t end, bool own,
                           struct error *err)
{
    bool full = manifest_is_full(&image->entry->manifest);

    while (offset < end) {
        struct block_status status;
        int r = block_co_status(block_root_edge(image->root), offset,
                                MIN(end - offset, STATUS_BYTES), &status);
        bool allocated = r == 0 && (status.flags & BLOCK_STATUS_ALLOCATED);
        bool zero = r == 0 && (status.flags & BLOCK_STATUS_ZERO), bad;

        if (r < 0 || status.length == 0) {
            return error_set_errno(err, r < 0 ? -r : EIO, "Could not inspect '%s'", image->path);
        }
        /* A full backup has no backing file, so it does not matter how zeroes are stored. */
        bad = full ? allocated && !zero : own ? !(allocated && zero) : allocated;
        if (bad && image->cluster_bits != BACKUP_CLUSTER_BITS) {
            /* They are in one cluster with data. */
            r = co_find_nonzero(image, offset, status.length, &bad, err);
            if (r < 0) {
                return r;
            }
        }
        if (bad) {
            return error_set(err, EBADMSG, "'%s' is damaged: at offset %" PRIu64 " it should %s",
                             image->path, offset,
                             own || full ? "read as zeroes" : "leave it to its backing file");
        }
        offset += status.length;
    }
    return 0;
}

/* Check that zeroes are zeroes, and that the image has nothing outside its clusters. */
static int co_check_rest(struct chain *chain, const struct chain_image *image,
                         volatile sig_atomic_t *stop, struct error *err)
{
    struct chain_extent e;

    chain_rewind(chain);
    while (chain_next(chain, UINT32_MAX, &e)) {
        uint64_t offset = e.first * BACKUP_CLUSTER_SIZE;
        uint64_t end = MIN((e.first + e.count) * BACKUP_CLUSTER_SIZE, chain->disk_size);
        int r = 0;

        if (stop && *stop) {
            return error_set(err, EINTR, STOPPED);
        }
        if (!e.layer || e.kind == SUMS_ZERO) {
            r = co_check_status(image, offset, end, e.layer != NULL, err);
        }
        if (r < 0) {
            return r;
        }
    }
    return 0;
}

/* --- one backup ------------------------------------------------------------------------------- */

struct contents {
    const struct verify *verify;
    struct chain chain;
    struct chain_image image;
    struct progress progress;
    uint64_t position; /* clusters that were compared */
};

/* Note how far the contents are. */
static int co_note_position(void *arg, uint64_t offset, uint8_t *data, uint64_t size,
                            struct error *err)
{
    struct contents *c = arg;

    c->position = div_round_up(offset + size, BACKUP_CLUSTER_SIZE);
    return loop_now_ns() > c->verify->deadline_ns ? error_set(err, ETIME, "The time is up") : 0;
}

/* Bytes of data before a cluster. */
static uint64_t data_before(const struct chain *chain, uint64_t cluster)
{
    struct chain_extent e;
    uint64_t clusters = 0;

    for (uint64_t at = 0; at < cluster && at < chain->clusters; at += e.count) {
        chain_extent_at(chain, at, cluster - at, &e);
        clusters += e.layer && e.kind == SUMS_DATA ? e.count : 0;
    }
    return clusters * BACKUP_CLUSTER_SIZE;
}

static int co_read_contents(struct verify *v, struct contents *c, struct error *err)
{
    struct chain_reader reader = {.chain = &c->chain,
                                  .co_sink = co_note_position,
                                  .arg = c,
                                  .ordered = true,
                                  .from = c->position,
                                  .progress = &c->progress,
                                  .stop = v->options->stop};
    int r = co_check_qcow2(&c->image, err);

    UNLESS_FAILED(r, co_check_backing_link(&c->image, err));
    UNLESS_FAILED(r, co_check_rest(&c->chain, &c->image, v->options->stop, err));
    if (r == 0) {
        v->bytes = chain_data_bytes(&c->chain);
        progress_begin(&c->progress, stderr, v->options->progress, "verify", v->bytes);
        progress_add(&c->progress, data_before(&c->chain, c->position));
        r = chain_co_read(&reader, err);
        progress_end(&c->progress, r == 0);
    }
    return r;
}

/* Compare the files first: that gives the shorter answer. -ETIME: cut short by the time limit. */
static int co_verify_files(struct verify *v, const struct repository_entry *e,
                           struct verified_entry *state, struct error *err)
{
    struct contents contents = {.verify = v, .position = state->position};
    struct image_check image = {.repository = v->repository,
                                .entry = e,
                                .contents = &contents.progress,
                                .stop_too = v->options->stop};
    ERROR_AUTO(image_err);
    int r = chain_co_open(v->repository, &e, 1, v->options->stop, &contents.chain, err), whole;

    UNLESS_FAILED(r, chain_co_open_image(v->repository, e, &contents.image, err));
    image_check_begin(&image);
    UNLESS_FAILED(r, co_read_contents(v, &contents, err));
    image.stop = r == -ETIME;
    whole = image_check_co_end(&image, &image_err);
    if (r != -ETIME && whole < 0) {
        error_clear(err);
        error_move(err, &image_err);
        r = whole;
    }
    state->position = r == -ETIME || r == -EINTR ? contents.position : 0;
    chain_co_close_image(&contents.image);
    chain_close(&contents.chain);
    return r;
}

/* Such a failure is one of this run: nothing about the files is known by it. */
static bool is_of_this_run(int r)
{
    switch (-r) {
    case ENOMEM:
    case EMFILE:
    case ENFILE:
    case EACCES:
    case EPERM:
    case EAGAIN: /* another program has locked the image */
    case ENOLCK:
    case ESTALE:
    case ETIMEDOUT:
        return true;
    default:
        return false;
    }
}

/* What builds on a backup that can't be read now is not known to be damaged, either. */
static int fail_for_parent(const struct repository_entry *parent, int found, struct error *err)
{
    if (is_of_this_run(found)) {
        return error_set(err, -found, "Backup %s, which it builds on, could not be read",
                         parent->id);
    }
    return error_set(err, EBADMSG, "Backup %s, which it builds on, is damaged", parent->id);
}

/* Verify one backup. 0: sound. */
static int co_verify_one(struct verify *v, const struct repository_entry *e,
                         struct verified_entry *state, struct error *err)
{
    const struct repository_entry **chain AUTO_FREE = NULL;
    size_t count;
    int r, found;

    if (e->denied) {
        return error_set(err, EACCES, "%s", e->problem);
    }
    r = repository_chain(v->repository, e, &chain, &count, err);
    if (r < 0) {
        return r;
    }
    found = count > 1 ? v->found[chain[count - 2] - v->repository->entries] : 0;
    return found < 0 ? fail_for_parent(chain[count - 2], found, err)
                     : co_verify_files(v, e, state, err);
}

/* Whether to verify the backup: with --at only that one and those it builds on. */
static int select_entries(const struct repository *r, const char *at, bool *selected,
                          struct error *err)
{
    const struct repository_entry *e;

    memset(selected, !at, r->count);
    if (!at) {
        return 0;
    }
    e = repository_find(r, at, err);
    if (!e) {
        return -ENOENT;
    }
    /* A broken link ends the list here, and is found again when the backup above it is checked. */
    for (size_t n = 0; e && n <= r->count; n++) {
        selected[e - r->entries] = true;
        e = e->problem || manifest_is_full(&e->manifest) ? NULL
                                                         : repository_get(r, e->manifest.parent);
    }
    return 0;
}

static void report_description(const struct verify_options *options, const struct repository *r)
{
    if (r->problem) {
        options->report(
            &(struct verify_report){.id = REPOSITORY_DESCRIPTION, .problem = r->problem},
            options->arg);
    }
}

/* --- all of them ------------------------------------------------------------------------------ */

struct turn {
    size_t index; /* of the entry */
    int64_t at;   /* of its last check */
};

/* A check that was cut short is the first to go on. Of the same age: the oldest backup first. */
static int compare_turns(const void *a, const void *b)
{
    const struct turn *x = a, *y = b;

    if (x->at != y->at) {
        return x->at < y->at ? -1 : 1;
    }
    return x->index < y->index ? -1 : x->index > y->index;
}

/*
 * The selected entries, in the order of their turns; without a time limit, their own order. The
 * time of a check is not known if it is more than a day to come: the clock was wrong.
 */
static struct turn *make_turns(const struct verify *v, const bool *selected, size_t *ret_count)
{
    struct turn *turns = calloc(v->repository->count, sizeof(*turns));
    int64_t latest = (int64_t)time(NULL) + DAY_S;
    size_t n = 0;

    for (size_t i = 0; turns && i < v->repository->count; i++) {
        const struct verified_entry *state = &v->state.list[i];

        if (selected[i]) {
            int64_t at = state->at <= latest ? state->at : 0;

            turns[n++] = (struct turn){i, state->position ? INT64_MIN : at};
        }
    }
    if (turns && v->options->limit_ns) {
        qsort(turns, n, sizeof(*turns), compare_turns);
    }
    *ret_count = n;
    return turns;
}

/* What this run has found about an entry, if it is as it was then. */
static const struct checked *find_checked(const struct verify *v, const struct repository_entry *e)
{
    for (size_t i = 0; i < v->checked->count; i++) {
        const struct checked *c = &v->checked->list[i];

        if (strcmp(c->id, e->id) == 0 && strcmp(c->image_sha256, e->manifest.image_sha256) == 0) {
            return c;
        }
    }
    return NULL;
}

static int note_checked(struct checked_list *all, const struct repository_entry *e, int status)
{
    struct checked *list = realloc(all->list, (all->count + 1) * sizeof(*list));
    struct checked *c;

    if (!list) {
        return -ENOMEM;
    }
    all->list = list;
    c = &list[all->count++];
    *c = (struct checked){.status = status};
    memcpy(c->id, e->id, sizeof(c->id));
    memcpy(c->image_sha256, e->manifest.image_sha256, sizeof(c->image_sha256));
    return 0;
}

/*
 * Entries that are not verified in this run count as what they were found to be; those that this
 * run has verified before the repository changed need not be verified again.
 */
static void take_former_results(struct verify *v, bool *selected)
{
    for (size_t i = 0; i < v->state.count; i++) {
        const struct checked *c = find_checked(v, &v->repository->entries[i]);

        if (v->repository->entries[i].problem ||
            (v->options->limit_ns && verified_found_damage(&v->state.list[i]))) {
            v->found[i] = v->repository->entries[i].denied ? -EACCES : -EBADMSG;
        }
        if (c) {
            v->found[i] = c->status;
            selected[i] = false;
        }
    }
}

static void report_backup(const struct verify *v, size_t i, uint64_t from,
                          const struct error *problem)
{
    struct verify_report report = {.id = v->repository->entries[i].id,
                                   .bytes = v->bytes,
                                   .from = from * BACKUP_CLUSTER_SIZE,
                                   .problem = v->found[i] < 0 ? error_message(problem) : NULL,
                                   .unread = is_of_this_run(v->found[i])};

    v->options->report(&report, v->options->arg);
}

#define TIME_IS_UP 1
#define WAS_CHANGED 2

/* Returns TIME_IS_UP, or WAS_CHANGED: what was found is no damage, as a prune is at work. */
static int co_take_turn(struct verify *v, size_t i, struct verify_result *result, struct error *err)
{
    struct verified_entry *state = &v->state.list[i];
    uint64_t from;
    ERROR_AUTO(problem);
    int r;

    if (loop_now_ns() > v->deadline_ns) {
        return TIME_IS_UP;
    }
    if (!v->options->limit_ns) {
        state->position = 0;
    }
    v->bytes = 0;
    from = state->position;
    r = co_verify_one(v, &v->repository->entries[i], state, &problem);
    if (v->options->stop && *v->options->stop) {
        return error_set(err, EINTR, STOPPED);
    }
    if (r == -ETIME) {
        return TIME_IS_UP;
    }
    if (r < 0 && repository_was_changed(v->repository)) {
        return WAS_CHANGED;
    }
    if (note_checked(v->checked, &v->repository->entries[i], MIN(r, 0)) < 0) {
        return error_out_of_memory(err);
    }
    v->found[i] = MIN(r, 0);
    if (!is_of_this_run(r)) {
        *state = (struct verified_entry){.at = (int64_t)time(NULL), .sound = r == 0};
    }
    result->damaged += r < 0 && !is_of_this_run(r);
    result->unread += is_of_this_run(r);
    result->verified++;
    report_backup(v, i, from, &problem);
    return 0;
}

/* A run that is killed loses little. */
static void remember_now_and_then(const struct verify *v, int64_t *recorded_ns)
{
    if (v->options->remember && loop_now_ns() > *recorded_ns + RECORD_INTERVAL_NS) {
        verified_store(v->repository, &v->state, NULL);
        *recorded_ns = loop_now_ns();
    }
}

static int co_take_turns(struct verify *v, const bool *selected, struct verify_result *result,
                         struct error *err)
{
    int64_t recorded_ns = loop_now_ns();
    size_t count, before = result->verified;
    struct turn *turns AUTO_FREE = make_turns(v, selected, &count);
    int r = 0;

    if (!turns) {
        return error_out_of_memory(err);
    }
    for (size_t i = 0; r == 0 && i < count; i++) {
        r = co_take_turn(v, turns[i].index, result, err);
        remember_now_and_then(v, &recorded_ns);
    }
    result->left = count - (result->verified - before);
    if (v->options->remember) {
        result->unrecorded = verified_store(v->repository, &v->state, NULL);
    }
    return r;
}

/* What is there now, without what was verified before. Returns WAS_CHANGED when that is over. */
static int co_verify_what_is_there(const struct verify_options *options, int64_t deadline_ns,
                                   struct checked_list *checked, struct verify_result *result,
                                   struct error *err)
{
    REPOSITORY_AUTO(repository);
    bool *selected AUTO_FREE = NULL;
    int *found AUTO_FREE = NULL;
    struct verify v = {.options = options,
                       .repository = &repository,
                       .checked = checked,
                       .deadline_ns = deadline_ns};
    int r = repository_open(options->dir, &repository, err);

    if (r < 0) {
        return r;
    }
    if (repository.count == 0) {
        return error_set(err, ENOENT, "There is no backup in '%s'", repository.path);
    }
    selected = calloc(repository.count, sizeof(*selected));
    v.found = found = calloc(repository.count, sizeof(*found));
    if (!selected || !found || verified_load(&repository, &v.state) < 0) {
        return error_out_of_memory(err);
    }
    r = select_entries(&repository, options->at, selected, err);
    if (r == 0) {
        take_former_results(&v, selected);
        if (checked->count == 0) {
            report_description(options, &repository);
        }
        result->description = repository.problem;
        r = co_take_turns(&v, selected, result, err);
    }
    verified_clear(&v.state);
    return r;
}

int verify_co_run(const struct verify_options *options, struct verify_result *ret_result,
                  struct error *err)
{
    int64_t deadline_ns = options->limit_ns ? loop_now_ns() + options->limit_ns : INT64_MAX;
    struct checked_list checked = {0};
    struct verify_result result = {0};
    int r;

    do {
        r = co_verify_what_is_there(options, deadline_ns, &checked, &result, err);
    } while (r == WAS_CHANGED);
    free(checked.list);
    if (r < 0) {
        return r;
    }
    *ret_result = result;
    return 0;
}
