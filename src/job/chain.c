/* SPDX-License-Identifier: Apache-2.0 */
#include "job/chain.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "base/log.h"
#include "block/block.h"
#include "block/control.h"
#include "block/control_lock.h"
#include "block/reopen.h"
#include "job/job.h"
#include "loop/loop.h"

/* --- filters ---------------------------------------------------------------------------------- */

int chain_co_insert_filter(struct options *opts_, const char *name, struct block_node *below,
                           struct block_node **ret_filter, struct error *err)
{
    AUTO_OPTIONS struct options *opts = opts_;
    struct block_node *filter;
    int r;

    if (!opts) {
        return error_out_of_memory(err);
    }
    if (name) {
        options_set_str(opts, "node-name", name);
    }
    options_set_str(opts, "file", block_node_name(below));
    r = block_co_open_hidden(TAKE_PTR(opts), BLOCK_OPEN_RDWR, &filter, err);
    if (r < 0) {
        return r;
    }
    r = block_co_publish(filter, err);
    UNLESS_FAILED(r, block_co_node_replace(below, filter, err));
    if (r < 0) {
        block_unpublish(filter);
        block_co_unref(filter);
        return r;
    }
    *ret_filter = filter;
    return 0;
}

void chain_co_remove_filter(struct block_node *filter)
{
    ERROR_AUTO(err);

    if (block_co_node_replace(filter, block_node_filter_or_backing(filter), &err) < 0) {
        /* It stays in the graph, and so does the reference. */
        log_error("filter '%s' can't be taken out: %s", block_node_name(filter),
                  error_message(&err));
        return;
    }
    block_co_unref(filter);
}

/* --- names ------------------------------------------------------------------------------------ */

struct block_node *chain_above(struct block_node *top, const struct block_node *node)
{
    struct block_node *n = top;

    while (n && block_node_filter_or_backing(n) != node) {
        n = block_node_filter_or_backing(n);
    }
    return n;
}

struct block_node *chain_stop(struct block_node *top, struct block_node *base)
{
    struct block_node *stop = block_node_backing(top);

    while (stop && block_node_skip_filters(stop) != block_node_skip_filters(base)) {
        stop = block_node_backing(stop);
    }
    return stop;
}

/* Whether two paths lead to the same file; "no" if the file system does not answer in time. */
static bool co_is_same_file(const char *a, const char *b)
{
    const char *paths[] = {a, b};
    char *real[ARRAY_SIZE(paths)] = {0};
    bool same = strcmp(a, b) == 0;

    if (!same) {
        (void)loop_co_real_paths_soon(paths, ARRAY_SIZE(paths), real);
        same = real[0] && real[1] && strcmp(real[0], real[1]) == 0;
        free(real[0]);
        free(real[1]);
    }
    return same;
}

/* As chain_co_find(), by the names of the images. */
static struct block_node *find_by_image_name(struct block_node *top, const char *name)
{
    struct block_node *next = block_node_backing(block_node_skip_filters(top));

    while (next) {
        struct block_node *image = block_node_skip_filters(next);
        AUTO_FREE char *full = block_node_full_filename(image);

        if (strcmp(block_node_filename(image), name) == 0 || (full && strcmp(full, name) == 0)) {
            return image;
        }
        next = block_node_backing(image);
    }
    return NULL;
}

struct block_node *chain_co_find(struct block_node *top, const char *name)
{
    struct block_node *above = block_node_skip_filters(top), *next;
    struct block_node *found = find_by_image_name(top, name);

    while (!found && (next = block_node_backing(above))) {
        struct block_node *image = block_node_skip_filters(next);
        AUTO_FREE char *there = block_node_resolve_backing(above, name);

        found = there && co_is_same_file(block_node_filename(image), there) ? image : NULL;
        above = image;
    }
    return found;
}

/* `name` is relative to the working directory; the result to that of the overlay, or absolute. */
static char *co_relative_to(const struct block_node *overlay, const char *name)
{
    const char *slash = strrchr(block_node_filename(overlay), '/');
    size_t folder = slash ? (size_t)(slash - block_node_filename(overlay)) + 1 : 0;
    AUTO_FREE char *there = block_node_resolve_backing(overlay, name);
    char *real;

    if (there && co_is_same_file(there, name)) {
        return strdup(name);
    }
    if (strncmp(block_node_filename(overlay), name, folder) == 0) {
        return strdup(name + folder);
    }
    (void)loop_co_real_paths_soon(&name, 1, &real);
    return real ?: block_absolute_name(name);
}

char *chain_co_backing_name(const struct block_node *overlay, const struct block_node *base)
{
    AUTO_FREE char *name = block_node_co_filename_to_record(base);

    return !name || !block_is_relative(name) ? TAKE_PTR(name) : co_relative_to(overlay, name);
}

const char *chain_backing_format(const struct block_node *base, bool mask_protocol)
{
    return mask_protocol && (block_node_traits(base) & BLOCK_DRIVER_PROTOCOL)
               ? "raw"
               : block_node_format(base);
}

/* --- whether the storage answers -------------------------------------------------------------- */

/* What the image lies in, by number; NULL: there is no more. */
static struct block_edge *storage_of(struct block_node *image, size_t number)
{
    struct block_edge *edge = NULL;

    while ((edge = block_node_next_child(image, edge))) {
        if (strcmp(block_edge_name(edge), "backing") != 0 && number-- == 0) {
            break;
        }
    }
    return edge;
}

/*
 * A flush asks nobody if there is nothing to flush: read something of what the image lies in.
 * Commands may change that meanwhile. An error is an answer, too, and counts where the image needs
 * what is read: a quorum may do without a child.
 */
static void co_read_storage(struct block_node *image)
{
    struct block_edge *edge;
    uint8_t header[512];

    for (size_t i = 0; (edge = storage_of(image, i)); i++) {
        if (block_node_size(block_edge_node(edge)) >= sizeof(header)) {
            (void)block_co_pread(edge, 0, header, sizeof(header));
        }
    }
}

int chain_co_flush(struct block_node *node, struct error *err)
{
    int r = block_co_flush_node(node);

    return r < 0 ? error_set_errno(err, -r, "Could not flush '%s'", block_node_display_name(node))
                 : 0;
}

int chain_co_ask(struct job *job, struct block_node *image, struct error *err)
{
    bool held = block_control_pause();
    int r = chain_co_flush(image, err);

    if (r == 0) {
        co_read_storage(image);
    }
    block_co_control_resume(held);
    if (r < 0) {
        return r;
    }
    return job_begin_last_step(job) ? 0 : -ECANCELED;
}

void chain_begin_work(struct chain_work *w, struct block_node *image, bool changes_graph)
{
    *w = (struct chain_work){.image = image, .apart = block_control_owner() == co_task()};
    if (w->apart) {
        block_control_begin_work(&w->work, &w->image, 1, changes_graph);
    }
}

void chain_co_end_work(struct chain_work *w)
{
    if (w->apart) {
        block_co_control_end_work(&w->work);
    }
}

/* --- overlays --------------------------------------------------------------------------------- */

/* What to do with an image whose backing node is another one. */
struct overlay_call {
    int (*co_run)(struct block_node *overlay, void *arg, struct error *err);
    void *arg;
};

/* Call it for each image whose backing node is `node`, or a filter on that. */
static int co_for_overlays(struct block_node *node, const struct overlay_call *call,
                           struct error *err)
{
    struct block_edge *edge = NULL;
    int r = 0;

    while (r == 0 && (edge = block_node_next_parent(node, edge))) {
        struct block_node *parent = block_edge_parent(edge);

        if (!parent || block_node_filter_or_backing(parent) != node) {
            continue;
        }
        r = block_node_is_filter(parent) ? co_for_overlays(parent, call, err)
                                         : call->co_run(parent, call->arg, err);
    }
    return r;
}

struct recording {
    struct block_node *base; /* no filter; NULL: none */
    const char *backing_file;
    bool mask_protocol;
};

static int co_record(struct block_node *overlay, void *arg, struct error *err)
{
    const struct recording *to = arg;
    struct chain_writable w = {0};
    AUTO_FREE char *name = NULL;
    int r;

    if (to->base) {
        name =
            to->backing_file ? strdup(to->backing_file) : chain_co_backing_name(overlay, to->base);
        if (!name) {
            return error_out_of_memory(err);
        }
    }
    r = chain_co_begin_writable(&w, overlay, err);
    UNLESS_FAILED(r, block_co_change_backing(
                         overlay, name,
                         to->base ? chain_backing_format(to->base, to->mask_protocol) : NULL, err));
    if (r == 0 && to->base && !to->backing_file) {
        block_note_recorded_backing(overlay, to->base);
    }
    chain_co_end_writable(&w);
    if (r < 0) {
        error_prepend(
            err, "Could not record the backing file in '%s': ", block_node_display_name(overlay));
    }
    return r;
}

int chain_co_write_header(struct block_node *overlay, struct block_node *base,
                          const char *backing_file, bool mask_protocol, struct error *err)
{
    struct recording to = {base ? block_node_skip_filters(base) : NULL, backing_file,
                           mask_protocol};

    return co_record(overlay, &to, err);
}

int chain_co_write_headers(struct block_node *node, struct block_node *base,
                           const char *backing_file, bool mask_protocol, struct error *err)
{
    struct recording to = {block_node_skip_filters(base), backing_file, mask_protocol};
    struct overlay_call call = {co_record, &to};

    return co_for_overlays(node, &call, err);
}

static int co_check_overlay(struct block_node *overlay, void *arg, struct error *err)
{
    return job_check_node(overlay, err);
}

int chain_co_check_overlays(struct block_node *node, struct error *err)
{
    struct overlay_call call = {co_check_overlay, NULL};

    return co_for_overlays(node, &call, err);
}

/* --- images that show nothing of use ---------------------------------------------------------- */

static int co_add_guard(struct chain_guard *guard, const char *user, struct block_node *node,
                        struct error *err)
{
    unsigned shared = (BLOCK_PERM_ALL | BLOCK_SHARE_CHAIN) & ~BLOCK_PERM_CONSISTENT_READ;
    struct block_root **roots =
        realloc(guard->roots, (guard->count + 1) * sizeof(struct block_root *));
    int r;

    if (!roots) {
        return error_out_of_memory(err);
    }
    guard->roots = roots;
    r = block_co_root_new(node, user, 0, shared, &roots[guard->count], err);
    guard->count += r == 0;
    return r;
}

int chain_co_guard(struct chain_guard *guard, const char *user, struct block_node *top,
                   struct block_node *base, struct error *err)
{
    struct block_node *above = top, *node;
    int r = 0;

    for (; (node = block_node_filter_or_backing(above)) != base && r == 0; above = node) {
        /* Filters of users may need what their node shows, and those on the base show the base. */
        if (!block_node_is_filter(above) &&
            block_node_skip_filters(node) != block_node_skip_filters(base)) {
            r = co_add_guard(guard, user, node, err);
        }
    }
    return r;
}

void chain_co_unguard(struct chain_guard *guard)
{
    for (size_t i = 0; i < guard->count; i++) {
        block_co_root_release(guard->roots[i]);
    }
    free(guard->roots);
    *guard = (struct chain_guard){0};
}

/* --- writing for a while ---------------------------------------------------------------------- */

int chain_co_begin_writable(struct chain_writable *w, struct block_node *node, struct error *err)
{
    int r;

    if (!block_node_is_read_only(node)) {
        return 0;
    }
    r = block_co_set_read_only(node, false, err);
    if (r == 0) {
        w->node = block_node_ref(node);
    }
    return r;
}

void chain_co_end_writable(struct chain_writable *w)
{
    ERROR_AUTO(err);

    if (w->node && block_co_set_read_only(w->node, true, &err) < 0) {
        log_error("'%s' stays writable: %s", block_node_display_name(w->node), error_message(&err));
    }
    chain_co_keep_writable(w);
}

void chain_co_keep_writable(struct chain_writable *w)
{
    block_co_unref(w->node);
    w->node = NULL;
}
