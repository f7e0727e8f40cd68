/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Preparation of a backup: clean up after killed runs, decide full or incremental, and make the
 * files to write to.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "backup/backup_internal.h"
#include "backup/chain.h"
#include "backup/files.h"
#include "backup/verified.h"
#include "base/cleanup.h"
#include "base/size.h"

/* --- full or incremental --- */

static int say(char **ret_text, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* Set the reason why everything is read. */
static int say(char **ret_text, const char *fmt, ...)
{
    va_list ap;
    int n;

    va_start(ap, fmt);
    n = vasprintf(ret_text, fmt, ap);
    va_end(ap);
    if (n < 0) {
        *ret_text = NULL;
        return -ENOMEM;
    }
    return 0;
}

static int check_earlier_image(struct run *run, const struct repository_entry *e)
{
    char *shown AUTO_FREE = repository_file(&run->repository, e->id, REPOSITORY_IMAGE);
    int fd AUTO_CLOSE = -1;
    ERROR_AUTO(err);
    struct stat st;

    if (!shown) {
        return -ENOMEM;
    }
    fd = repository_open_file(&run->repository, e->id, REPOSITORY_IMAGE, &err);
    if (fd == -ENOENT) {
        return say(&run->reason, "file '%s' of an earlier backup is gone", shown);
    }
    if (fd < 0) {
        return say(&run->reason, "%s", error_message(&err));
    }
    if (fstat(fd, &st) < 0 || (uint64_t)st.st_size != e->manifest.image_size) {
        return say(&run->reason, "file '%s' of an earlier backup was changed", shown);
    }
    return 0;
}

/* What builds on a backup that verification has found damaged could not be restored. */
static int check_verified(struct run *run, const struct verified *verified,
                          const struct repository_entry *e)
{
    const struct verified_entry *found = &verified->list[e - run->repository.entries];

    return verified_found_damage(found)
               ? say(&run->reason, "'tidemark verify' has found backup %s damaged", e->id)
               : 0;
}

/*
 * Check the images that the next backup would build on. Their checksum files are compared with the
 * manifests when the chain is opened.
 */
static int check_chain_images(struct run *run, const struct repository_entry *last)
{
    const struct repository_entry **chain AUTO_FREE = NULL;
    ERROR_AUTO(err);
    VERIFIED_AUTO(verified);
    size_t count;
    int r = verified_load(&run->repository, &verified);

    if (r < 0) {
        return r;
    }
    if (repository_chain(&run->repository, last, &chain, &count, &err) < 0) {
        return say(&run->reason, "%s", error_message(&err));
    }
    for (size_t i = 0; r == 0 && chain && !run->reason && i < count; i++) {
        r = check_earlier_image(run, chain[i]);
        if (r == 0 && !run->reason) {
            r = check_verified(run, &verified, chain[i]);
        }
    }
    return r;
}

static int check_bitmap(struct run *run, const struct repository_entry *last)
{
    const char *name = last->manifest.bitmap;
    const struct source_bitmap *b = source_bitmap(run->source, name);

    if (!name[0]) {
        return say(&run->reason, "no bitmap has recorded since the last backup");
    }
    if (!b) {
        return say(&run->reason, "bitmap '%s' of the last backup is not on node '%s'", name,
                   run->source->name);
    }
    if (b->inconsistent) {
        return say(&run->reason,
                   "bitmap '%s' is inconsistent: the disk was not closed properly since", name);
    }
    if (b->busy) {
        return say(&run->reason, "bitmap '%s' is in use by something else", name);
    }
    if (!b->recording) {
        return say(&run->reason, "bitmap '%s' was disabled, so changes may be missing in it", name);
    }
    return 0;
}

/*
 * Whether the disk is larger than in the backup that this one builds on. Then it may have been
 * smaller meanwhile, too, and QEMU's bitmaps do not mark what is cut off and added again. That is
 * zero, so the parent's checksums are needed to find where the disk has become zero.
 */
static bool has_grown(const struct run *run)
{
    return run->base && run->base->manifest.virtual_size < run->source->disk.size;
}

/*
 * After a change of the size, a bitmap counts only if the disk is larger now, and its format knows
 * what is zero: that is a format that stores bitmaps. Of a raw file, QEMU may report as data what
 * it remembers from before.
 */
static int check_size_for_bitmap(struct run *run, const struct manifest *last)
{
    const struct source_bitmap *b = source_bitmap(run->source, last->bitmap);
    uint64_t now = run->source->disk.size, before = last->virtual_size;
    char before_text[16], now_text[16];

    if (now == before || (now > before && (!b || b->persistent))) {
        return 0;
    }
    size_format(before, before_text, sizeof(before_text));
    size_format(now, now_text, sizeof(now_text));
    if (strcmp(before_text, now_text) != 0) {
        return say(&run->reason, "the disk was resized from %s to %s", before_text, now_text);
    }
    return say(&run->reason, "the disk was resized from %" PRIu64 " to %" PRIu64 " bytes", before,
               now);
}

/*
 * Set run->base, run->reason or both. Without a bitmap that can be relied on, everything is read
 * and compared with the checksums of the last backup.
 */
static int decide(struct run *run, struct error *err)
{
    const struct repository_entry *last = repository_last(&run->repository);
    const struct repository_entry *damaged = repository_damaged_last(&run->repository);
    int r = 0;

    if (run->options->full) {
        r = say(&run->reason, "asked for");
    } else if (last && damaged) {
        r = say(&run->reason, "the last backup, %s, is damaged", damaged->id);
    } else if (!last) {
        r = say(&run->reason, run->repository.count ? "the earlier backups are damaged"
                                                    : "there is no earlier backup");
    } else {
        r = check_chain_images(run, last);
    }
    if (r == 0 && last && !run->reason) {
        run->base = last;
        r = run->options->compare ? say(&run->reason, "asked for")
                                  : check_size_for_bitmap(run, &last->manifest);
        if (r == 0 && !run->reason) {
            r = check_bitmap(run, last);
        }
        run->compare = run->reason != NULL;
    }
    return r < 0 ? error_out_of_memory(err) : 0;
}

/*
 * The checksums to compare with, also of what a bitmap marks: guests write the same again, and
 * bitmaps of coarse granularity or after a crash mark more than what has changed. If the chain
 * cannot be opened, a full backup is taken; but a stop is no damage of the chain.
 */
static int co_open_parent(struct run *run, struct error *err)
{
    const struct repository_entry **entries AUTO_FREE = NULL;
    ERROR_AUTO(damage);
    size_t count;
    int r = repository_chain(&run->repository, run->base, &entries, &count, &damage);

    UNLESS_FAILED(r, chain_co_open(&run->repository, entries, count, run->options->stop,
                                   &run->parent, &damage));
    if (r == -EINTR) {
        chain_close(&run->parent);
        return error_set(err, EINTR, "The backup was stopped");
    }
    if (r < 0) {
        chain_close(&run->parent);
        run->base = NULL;
        run->compare = false;
        free(run->reason);
        r = say(&run->reason, "%s", error_message(&damage));
    }
    return r < 0 ? error_out_of_memory(err) : 0;
}

/* --- preparation --- */

static int refuse_disk(struct run *run, struct error *err, const char *what, const char *before,
                       const char *now)
{
    error_set(err, EINVAL, "'%s' holds backups of %s '%s', not of '%s'", run->repository.path, what,
              before, now);
    error_hint(err, "Use a directory of its own for each disk. If it is the same disk, renamed or "
                    "moved, say so with --same-disk.");
    return -EINVAL;
}

/* Disks of two machines may have the same names. */
static int check_same_machine(struct run *run, const struct manifest *m, struct error *err)
{
    struct manifest here = {0};
    int r = 0;

    if (manifest_set_machine(&here) < 0) {
        r = error_out_of_memory(err);
    } else if (m->machine_id && here.machine_id && strcmp(m->machine_id, here.machine_id) != 0) {
        r = refuse_disk(run, err, "a disk of machine", m->machine ? m->machine : m->machine_id,
                        here.machine ? here.machine : here.machine_id);
    }
    manifest_clear(&here);
    return r;
}

/*
 * The bitmap of the last backup can only be on the disk that was backed up. Without the bitmap,
 * files are compared or, where they are not known, names.
 */
static int check_same_disk(struct run *run, struct error *err)
{
    const struct repository_entry *last = repository_last(&run->repository);
    const struct manifest *m = last ? &last->manifest : NULL;
    const char *name = run->source->name, *file = run->source->disk.file;

    if (!last || run->options->same_disk || source_bitmap(run->source, m->bitmap)) {
        return 0;
    }
    if (m->disk && file) {
        return strcmp(m->disk, file) == 0 ? check_same_machine(run, m, err)
                                          : refuse_disk(run, err, "disk", m->disk, file);
    }
    if (strcmp(m->node, name) != 0) {
        return refuse_disk(run, err, "node", m->node, name);
    }
    return check_same_machine(run, m, err);
}

int run_co_settle(struct run *run, struct error *err)
{
    struct source *source = run->source;
    int r;

    memcpy(source->repository, run->repository.id, sizeof(source->repository));
    r = source->ops->co_inspect(source, err);
    UNLESS_FAILED(r, check_same_disk(run, err));
    return r < 0 ? r : source->ops->co_settle(source, run_last_bitmap(run), err);
}

/*
 * Somebody has disabled the bitmap of the last backup. It has to go before another one begins:
 * settling could not tell it from one that a run has frozen.
 */
static int co_drop_disabled(struct run *run, struct error *err)
{
    const char *last = run_last_bitmap(run);
    const struct source_bitmap *b = last ? source_bitmap(run->source, last) : NULL;

    return b && !b->recording && !b->inconsistent && run->source->disk.tracks
               ? run->source->ops->co_settle(run->source, NULL, err)
               : 0;
}

/* --- its own files --- */

static int make_manifest(struct run *run, struct error *err)
{
    const struct source_disk *disk = &run->source->disk;
    struct manifest *m = &run->manifest;

    repository_new_id(&run->repository, m->id);
    m->sequence = repository_next_sequence(&run->repository);
    m->virtual_size = run->source->disk.size;
    m->reason = TAKE_PTR(run->reason);
    memcpy(m->repository, run->repository.id, sizeof(m->repository));
    snprintf(m->set, sizeof(m->set), "%s", run->set);
    m->node = strdup(run->source->name);
    m->bitmap = disk->tracks ? source_new_bitmap_name(run->repository.id, m->id) : strdup("");
    m->disk = disk->file ? strdup(disk->file) : NULL;
    m->disk_encrypted = disk->encrypted;
    if (run->base) {
        memcpy(m->parent, run->base->id, sizeof(m->parent));
    }
    if (manifest_set_machine(m) < 0) {
        return error_out_of_memory(err);
    }
    return m->node && m->bitmap && (m->disk || !disk->file) ? 0 : error_out_of_memory(err);
}

static int make_files(struct run *run, struct error *err)
{
    run->image = files_join(run->draft.path, REPOSITORY_IMAGE);
    run->sums = files_join(run->draft.path, REPOSITORY_SUMS);
    if (!run->image || !run->sums) {
        return error_out_of_memory(err);
    }
    run->image_fd = files_create_at(run->draft.fd, REPOSITORY_IMAGE, run->image, err);
    if (run->image_fd < 0) {
        return run->image_fd;
    }
    run->sums_fd = files_create_at(run->draft.fd, REPOSITORY_SUMS, run->sums, err);
    return run->sums_fd < 0 ? run->sums_fd : 0;
}

int run_co_prepare(struct run *run, struct error *err)
{
    struct source *source = run->source;
    int r = run_co_settle(run, err);

    UNLESS_FAILED(r, decide(run, err));
    if (r == 0 && run->base) {
        r = co_open_parent(run, err);
    }
    UNLESS_FAILED(r, co_drop_disabled(run, err));
    UNLESS_FAILED(r, make_manifest(run, err));
    UNLESS_FAILED(r, repository_begin(&run->repository, run->manifest.id, &run->draft, err));
    if (r == 0) {
        source->started = run->manifest.bitmap[0] ? run->manifest.bitmap : NULL;
        source->frozen = run->base && !run->compare ? run->base->manifest.bitmap : NULL;
        /* What it has grown by is read, whether the bitmap marks it or not. */
        source->whole = has_grown(run);
    }
    UNLESS_FAILED(r, source->ops->co_prepare(source, &run->draft, err));
    return r < 0 ? r : make_files(run, err);
}
