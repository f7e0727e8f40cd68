/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The source that is an image which no program writes to: a file or chain of files, a block device,
 * an export of an NBD server, whatever the block layer can open. The image stays open, and locked
 * against writers, from the inspection to the end of the run; block devices are held exclusively,
 * which fails while they are mounted.
 *
 * Formats that store bitmaps get one that records from the backup on. It is added at the checkpoint
 * and the one of the last backup removed at the end, and both record meanwhile: whatever is killed,
 * each is right. A daemon may be started between two backups and back up to the same repository:
 * names and states of bitmaps are the same as in backup/daemon_disk.h.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "backup/source.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "base/list.h"
#include "block/bitmaps.h"
#include "block/control.h"
#include "block/options.h"

/* Bytes of tables of a qcow2 image that all requests under way may need. */
#define TABLE_CACHE (4 * MiB)

struct image_source {
    struct source source;
    const struct source_options *options;
    char *file;    /* canonical path; NULL: it is no local file */
    int device_fd; /* holds a block device exclusively; -1: it is none */
    struct block_node *node;
    struct block_root *root;
    struct source_bitmap *bitmaps;
};

static struct image_source *image_source_of(struct source *source)
{
    return container_of(source, struct image_source, source);
}

/* --- opening --- */

/* Hold a block device: nobody can mount it meanwhile. */
static int hold_device(struct image_source *s, struct error *err)
{
    s->device_fd = open(s->file, O_RDONLY | O_EXCL | O_NONBLOCK | O_CLOEXEC);
    if (s->device_fd >= 0) {
        return 0;
    }
    if (errno == EBUSY) {
        error_set(err, EBUSY, "Device '%s' is in use (mounted, or part of another device)",
                  s->source.name);
        error_hint(err, "Make a snapshot of it, and back that up.");
        return -EBUSY;
    }
    return error_set_errno(err, errno, "Could not open '%s'", s->source.name);
}

/*
 * The format of a file is never guessed: a guest that writes to a raw disk could make it look like
 * an image that names other files. What is no file is raw by default.
 */
static int choose_format(struct image_source *s, const char **ret_format, struct error *err)
{
    struct stat st;
    bool is_file = false;
    int r = 0;

    s->file = realpath(s->source.name, NULL);
    if (s->file && stat(s->file, &st) == 0) {
        is_file = S_ISREG(st.st_mode);
        r = S_ISBLK(st.st_mode) ? hold_device(s, err) : 0;
    }
    *ret_format = s->options->format ? s->options->format : "raw";
    if (r == 0 && is_file && !s->options->format) {
        error_set(err, EINVAL, "The format of '%s' is not known", s->source.name);
        error_hint(err, "Name it with --format, for instance --format=qcow2.");
        r = -EINVAL;
    }
    return r;
}

static bool may_write(const struct image_source *s, const char *format)
{
    return strcmp(format, "qcow2") == 0 && s->file && s->device_fd < 0 &&
           access(s->file, W_OK) == 0;
}

/*
 * Options for the image, in memory that whoever opens it takes; NULL: there are none. A disk is
 * read once in ascending order, so that few of its tables are needed at a time. Who names the image
 * by options names those, too.
 */
static struct options *source_image_options(const struct image_source *s, const char *format)
{
    struct options *opts = s->file && strcmp(format, "qcow2") == 0 ? options_new() : NULL;

    if (opts) {
        options_set_uint(opts, "l2-cache-size", TABLE_CACHE);
    }
    return opts;
}

static int co_open_source_image(struct image_source *s, struct error *err)
{
    const char *format;
    int r = choose_format(s, &format, err);

    UNLESS_FAILED(r, block_co_open_filename(s->source.name, format, source_image_options(s, format),
                                            may_write(s, format) ? BLOCK_OPEN_RDWR : 0, &s->node,
                                            err));
    UNLESS_FAILED(r, block_co_root_new(s->node, "backup", BLOCK_PERM_CONSISTENT_READ,
                                       BLOCK_PERM_CONSISTENT_READ, &s->root, err));
    if (r == -EAGAIN) {
        error_prepend_once(err, "Could not open '%s': ", s->source.name);
        error_hint(err, "If a program is running the disk, back it up there, by --qmp.");
    }
    if (r == 0 && block_node_size(s->node) == 0) {
        r = error_set(err, EINVAL, "'%s' is empty", s->source.name);
    }
    return r;
}

static void clear_bitmaps(struct image_source *s)
{
    for (size_t i = 0; i < s->source.disk.bitmap_count; i++) {
        free(s->bitmaps[i].name);
    }
    free(s->bitmaps);
    s->bitmaps = NULL;
    s->source.disk = (struct source_disk){0};
}

/* Whether a backup to this repository has made it. */
static bool is_own_bitmap(const struct source *source, const struct block_bitmap *b)
{
    const char *name = block_bitmap_name(b), *id = name + strlen(SOURCE_PREFIX);
    size_t digits = REPOSITORY_ID_SIZE - 1;

    return strncmp(name, SOURCE_PREFIX, strlen(SOURCE_PREFIX)) == 0 &&
           strncmp(id, source->repository, digits) == 0 && id[digits] == '-';
}

static int add_source_bitmap(struct image_source *s, const struct block_bitmap *b)
{
    size_t count = s->source.disk.bitmap_count;
    struct source_bitmap *list = realloc(s->bitmaps, (count + 1) * sizeof(*list));

    if (!list) {
        return -ENOMEM;
    }
    s->bitmaps = list;
    list[count] = (struct source_bitmap){
        .name = strdup(block_bitmap_name(b)),
        .recording = block_bitmap_enabled(b),
        .persistent = block_bitmap_persistent(b),
        .inconsistent = block_bitmap_inconsistent(b),
        .busy = block_bitmap_busy(b),
    };
    s->source.disk.bitmap_count += list[count].name != NULL;
    return list[count].name ? 0 : -ENOMEM;
}

static int co_know_image(struct image_source *s, struct error *err)
{
    struct source *source = &s->source;
    struct block_bitmap *b = NULL;
    int r = 0;

    clear_bitmaps(s);
    while (r == 0 && (b = block_bitmap_next(s->node, b)) != NULL) {
        r = is_own_bitmap(source, b) ? add_source_bitmap(s, b) : 0;
    }
    source->disk.bitmaps = s->bitmaps;
    source->disk.size = block_node_size(s->node);
    source->disk.file = s->file ? s->file : source->name;
    source->disk.tracks =
        !block_node_is_read_only(s->node) &&
        block_co_can_store_bitmap(s->node, SOURCE_PREFIX, BACKUP_CLUSTER_SIZE, NULL) == 0;
    return r < 0 ? error_out_of_memory(err) : 0;
}

static int co_inspect_image(struct source *source, struct error *err)
{
    struct image_source *s = image_source_of(source);
    int r = 0;

    if (!manifest_name_is_valid(source->name)) {
        return error_set(err, EINVAL, "The name of the image is too long, or is no text");
    }
    if (!s->root) {
        r = co_open_source_image(s, err);
    }
    return r < 0 ? r : co_know_image(s, err);
}

/* --- bitmaps --- */

/* A run in a daemon was killed when it had frozen `kept`: add what others have recorded since. */
static int co_thaw_bitmap(struct image_source *s, struct block_bitmap *kept, struct error *err)
{
    struct block_bitmap *b = NULL, *sources[1];
    bool found = false;
    int r = 0;

    while (r == 0 && (b = block_bitmap_next(s->node, b)) != NULL) {
        if (b != kept && is_own_bitmap(&s->source, b) && block_bitmap_enabled(b) &&
            !block_bitmap_inconsistent(b)) {
            sources[0] = b;
            found = true;
            r = block_co_bitmap_merge(kept, sources, 1, NULL, err);
        }
    }
    return r == 0 && found ? block_co_bitmap_set_enabled(kept, true, err) : r;
}

static int co_settle_image(struct source *source, const char *last, struct error *err)
{
    struct image_source *s = image_source_of(source);
    struct block_bitmap *kept = last ? block_bitmap_find(s->node, last) : NULL, *b, *next;
    int r = 0;

    if (block_node_is_read_only(s->node)) {
        return 0;
    }
    if (kept && !block_bitmap_enabled(kept) && !block_bitmap_inconsistent(kept)) {
        r = co_thaw_bitmap(s, kept, err);
    }
    for (b = block_bitmap_next(s->node, NULL); r == 0 && b; b = next) {
        next = block_bitmap_next(s->node, b);
        if (b != kept && is_own_bitmap(source, b)) {
            r = block_co_bitmap_remove(b, err);
        }
    }
    UNLESS_FAILED(r, block_co_inactivate(s->node, err));
    return r < 0 ? r : co_know_image(s, err);
}

/* --- the run --- */

static int co_prepare_image(struct source *source, const struct repository_draft *draft,
                            struct error *err)
{
    return 0;
}

static int co_checkpoint_image(struct source *const *sources, size_t count,
                               struct backup_moment *begin, struct backup_moment *end,
                               struct error *err)
{
    int r = 0;

    backup_moment_now(begin);
    for (size_t i = 0; r == 0 && i < count; i++) {
        struct image_source *s = image_source_of(sources[i]);

        if (s->source.started) {
            r = block_co_bitmap_add(s->node, s->source.started, BACKUP_CLUSTER_SIZE, true, false,
                                    NULL, err);
            UNLESS_FAILED(r, block_co_inactivate(s->node, err));
        }
    }
    backup_moment_now(end);
    return r;
}

static int co_open_view_image(struct source *source, struct pull_input **ret_input,
                              struct error *err)
{
    struct image_source *s = image_source_of(source);
    struct block_bitmap *b = source->frozen ? block_bitmap_find(s->node, source->frozen) : NULL;

    return pull_image_new(s->root, b, source->name, ret_input, err);
}

static int watch_image(struct source *source, struct error *err)
{
    return 0;
}

static void co_explain_image(struct source *source, bool view_failed, struct error *err)
{
}

static void co_close_image_source(struct source *source)
{
    struct image_source *s = image_source_of(source);

    clear_bitmaps(s);
    block_co_root_release(s->root);
    block_co_unref(s->node);
    if (s->device_fd >= 0) {
        close(s->device_fd);
    }
    free(s->file);
    free(s->source.name);
    free(s);
}

static const struct source_ops image_source_ops = {
    .co_inspect = co_inspect_image,
    .co_settle = co_settle_image,
    .co_prepare = co_prepare_image,
    .co_checkpoint = co_checkpoint_image,
    .co_open_view = co_open_view_image,
    .co_end = co_settle_image,
    .watch = watch_image,
    .co_explain = co_explain_image,
    .co_close = co_close_image_source,
};

int source_image_new(const struct source_options *options, struct source **ret_source,
                     struct error *err)
{
    struct image_source *s = calloc(1, sizeof(*s));

    if (!s) {
        return error_out_of_memory(err);
    }
    s->source = (struct source){.ops = &image_source_ops, .name = strdup(options->image)};
    s->options = options;
    s->device_fd = -1;
    if (!s->source.name) {
        free(s);
        return error_out_of_memory(err);
    }
    *ret_source = &s->source;
    return 0;
}
