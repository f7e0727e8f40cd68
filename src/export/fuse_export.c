/* SPDX-License-Identifier: Apache-2.0 */
/* Exports of type "fuse": their options, and what changes of their size have to respect. */
#include "export/fuse_export.h"

#include <errno.h>
#include <stdlib.h>

#include "base/checked.h"
#include "block/bitmaps.h"
#include "block/control.h"
#include "block/control_lock.h"
#include "export/export_type.h"
#include "fuse/fuse.h"
#include "job/job.h"
#include "schema/define.h"

struct fuse_state {
    char *mountpoint;
    bool growable;
    int allow_other; /* enum fuse_allow_other */
    struct export *export;
    struct block_root *root;
    struct fuse_disk *disk; /* NULL: not prepared yet */
};

/* --- options -------------------------------------------------------------------------------- */

/* As enum fuse_allow_other; the schema has them in QEMU's order. */
static const char *const allow_other_names[] = {"auto", "off", "on", NULL};

ENUM(allow_other_type, "FuseExportAllowOther", "off", "on", "auto");
OBJECT(fuse_options, "BlockExportOptionsFuse",
       REQ("mountpoint", schema_str, .help = "a regular file, which becomes the disk"),
       OPT("growable", schema_bool, .dflt = "false",
           .help = "writes past the end enlarge the node"),
       OPT("allow-other", allow_other_type, .dflt = "auto",
           .help = "whether users other than the daemon's may use the file"));

static void fuse_state_co_free(void *state)
{
    struct fuse_state *s = state;

    if (s->disk) {
        fuse_disk_co_free(s->disk);
    }
    free(s->mountpoint);
    free(s);
}

static int take_fuse_options(struct fuse_state *s, struct options *opts, struct error *err)
{
    int r = options_take_str(opts, "mountpoint", &s->mountpoint, err);

    UNLESS_FAILED(r, options_take_bool(opts, "growable", false, &s->growable, err));
    UNLESS_FAILED(r, options_take_enum(opts, "allow-other", allow_other_names,
                                       FUSE_ALLOW_OTHER_AUTO, &s->allow_other, err));
    if (r == 0 && !s->mountpoint) {
        r = error_set(err, EINVAL, "Parameter 'mountpoint' is missing");
    }
    return r;
}

static int fuse_state_parse(const struct export_config *config, struct options *opts,
                            void **ret_state, struct error *err)
{
    struct fuse_state *s = calloc(1, sizeof(*s));
    int r;

    if (!s) {
        return error_out_of_memory(err);
    }
    r = take_fuse_options(s, opts, err);
    if (r < 0) {
        free(s->mountpoint);
        free(s);
        return r;
    }
    /* Without writes nothing grows. */
    s->growable = s->growable && config->writable;
    *ret_state = s;
    return 0;
}

/* Other changes of the size ask for the permission when they are made. */
static void fuse_adjust_permissions(const void *state, unsigned *perm, unsigned *shared)
{
    const struct fuse_state *s = state;

    *perm |= s->growable ? BLOCK_PERM_RESIZE : 0;
}

/* --- size ----------------------------------------------------------------------------------- */

/* What block_resize asks for, too. */
static int check_resizable(struct block_node *node)
{
    struct block_bitmap *b = NULL;
    int r = job_check_node(node, NULL);

    UNLESS_FAILED(r, block_node_check_resize(node, NULL));
    while (r == 0 && (b = block_bitmap_next(node, b))) {
        r = block_bitmap_check(b, BLOCK_BITMAP_REFUSE_BUSY, NULL);
    }
    return r;
}

/*
 * Works apart on the node, which is drained. *ret_root is to be released, in any case; not before
 * the drain has ended, since that waits for other changes of the graph.
 */
static int co_truncate_node(struct fuse_state *s, struct block_control_work *work, uint64_t size,
                            enum block_prealloc prealloc, struct block_root **ret_root)
{
    struct block_root *root = s->root;
    int r = 0;

    if (!s->growable) {
        r = block_co_root_new(work->nodes[0], export_user(s->export), BLOCK_PERM_RESIZE,
                              BLOCK_PERM_ALL, ret_root, NULL);
        root = *ret_root;
    }
    block_control_keep_graph(work);
    return UNLESS_FAILED(r, block_co_truncate(block_root_edge(root), size, prealloc, NULL));
}

/* Likewise. */
static int co_resize_node(struct fuse_state *s, struct block_control_work *work, uint64_t size,
                          bool grow_only, enum block_prealloc prealloc,
                          struct block_root **ret_root)
{
    int r;

    if (grow_only && block_node_size(work->nodes[0]) >= size) {
        return 0; /* another export of the node has enlarged it meanwhile */
    }
    r = check_resizable(work->nodes[0]);
    UNLESS_FAILED(r, co_truncate_node(s, work, size, prealloc, ret_root));
    return r == -EAGAIN ? -EIO : r;
}

struct resize_scope {
    struct block_control_scope scope;
    struct block_node *node;
};

static bool resize_meets(const struct block_control_scope *scope, struct block_node *node)
{
    return block_node_is_joined(container_of(scope, struct resize_scope, scope)->node, node);
}

/*
 * Drains and changes the size, which may take long, without the control lock. After the drain the
 * export may have another node, which was not drained: that is drained in its turn.
 */
static int fuse_co_resize(void *state, uint64_t size, bool grow_only, enum block_prealloc prealloc)
{
    struct fuse_state *s = state;
    int r = -EAGAIN;

    while (r == -EAGAIN) {
        struct block_node *node = block_node_ref(block_root_node(s->root));
        struct resize_scope scope = {.scope.meets = resize_meets, .node = node};
        struct block_control_work work;
        struct block_root *root = NULL;

        block_control_begin_scope(&scope.scope);
        /* What has the lock may hang: it is waited for without a drain. */
        block_co_control_lock();
        block_control_unlock();
        block_co_drain_begin(node);
        block_co_control_lock();
        block_control_begin_work(&work, &node, 1, true);
        if (node == block_root_node(s->root)) {
            r = co_resize_node(s, &work, size, grow_only, prealloc, &root);
        }
        block_drain_end(node);
        block_co_root_release(root);
        block_co_control_end_work(&work);
        block_co_unref(node);
        block_control_unlock();
        block_control_end_scope(&scope.scope);
    }
    return r;
}

static void fuse_resized(void *state, uint64_t size)
{
    struct fuse_state *s = state;

    if (s->disk) {
        fuse_disk_set_size(s->disk, size);
    }
}

/* --- life ----------------------------------------------------------------------------------- */

static void fuse_request_failed(void *arg, const char *request, uint64_t offset, uint64_t length,
                                int error)
{
    export_note_io_error(((struct fuse_state *)arg)->export, request, offset, length, error);
}

static int fuse_co_prepare(void *state, const struct export_access *access, struct error *err)
{
    struct fuse_state *s = state;
    struct fuse_disk_config config = {
        .mountpoint = s->mountpoint,
        .allow_other = (enum fuse_allow_other)s->allow_other,
        .writable = access->writable,
        .growable = s->growable,
        .writethrough = access->writethrough,
        .root = access->root,
        .reactor = access->reactor,
        .latencies = access->latencies,
        .co_resize = fuse_co_resize,
        .on_error = fuse_request_failed,
        .arg = s,
    };

    s->export = access->export;
    s->root = access->root;
    return fuse_disk_co_mount(&config, &s->disk, err);
}

static void fuse_publish(void *state)
{
    fuse_disk_publish(((struct fuse_state *)state)->disk);
}

/* Processes that open the file from now on wait until it is unmounted, at the next step. */
static void fuse_stop_accepting(void *state)
{
}

static void fuse_co_disconnect(void *state)
{
    fuse_disk_co_unmount(((struct fuse_state *)state)->disk);
}

/* One that has the file open is no client, as in QEMU; one that waits for an answer is. */
static size_t fuse_client_count(const void *state)
{
    return fuse_disk_requests(((const struct fuse_state *)state)->disk);
}

static void fuse_read_stats(const void *state, uint64_t *ret_values)
{
    fuse_disk_read_stats(((const struct fuse_state *)state)->disk, ret_values);
}

static void fuse_drain_begin(void *state)
{
    struct fuse_state *s = state;

    if (s->disk) {
        fuse_disk_set_drained(s->disk, true);
    }
}

static void fuse_drain_end(void *state)
{
    struct fuse_state *s = state;

    if (s->disk) {
        fuse_disk_set_drained(s->disk, false);
    }
}

static const struct export_type fuse_type = {
    .help = "a disk as a regular file, by FUSE",
    .options = &fuse_options,
    .name = "fuse",
    .title = "FUSE export",
    .parse = fuse_state_parse,
    .adjust_permissions = fuse_adjust_permissions,
    .resized = fuse_resized,
    .co_prepare = fuse_co_prepare,
    .publish = fuse_publish,
    .stop_accepting = fuse_stop_accepting,
    .co_disconnect = fuse_co_disconnect,
    .co_free = fuse_state_co_free,
    .client_count = fuse_client_count,
    .stats = fuse_stats,
    .stats_group = "fuse_export",
    .read_stats = fuse_read_stats,
    .drain_begin = fuse_drain_begin,
    .drain_end = fuse_drain_end,
};

void export_fuse_register_type(void)
{
    export_register_type(&fuse_type);
}
