/* SPDX-License-Identifier: Apache-2.0 */
/* Opening the children of a node: for drivers, in their co_open. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/log.h"
#include "block/internal.h"

/* Flags that a filter passes on to its child. */
#define PASSED_WRITE_FLAGS (BLOCK_REQ_FUA | BLOCK_REQ_UNCHANGED)
#define PASSED_ZERO_FLAGS (PASSED_WRITE_FLAGS | BLOCK_REQ_MAY_UNMAP | BLOCK_REQ_NO_FALLBACK)

/* block_inherit_use() from the open parent; returns what the child was given. */
static unsigned inherit_options(const struct block_node *parent, struct options *child,
                                unsigned role)
{
    struct block_use use = block_get_use(parent);
    unsigned explicit_use = block_explicit_use(child);

    block_inherit_use(parent, &use, child, role);
    return explicit_use;
}

/*
 * Whether the options of a child leave its format to be guessed: they have a file and name no
 * driver. The schema refuses that in commands.
 */
static bool may_guess(const struct options *child)
{
    return !options_are_arguments(child) && !options_has(child, "driver") &&
           options_has(child, "file");
}

/* Take a reference by name, or open; *ret_node is NULL if the options do not have the child. */
static int co_find_or_open(struct block_node *node, struct options *opts, const char *name,
                           unsigned role, struct block_node **ret_node, struct error *err)
{
    AUTO_OPTIONS struct options *child_opts = NULL;
    AUTO_FREE char *node_name = NULL;
    unsigned flags = node->open_flags, explicit_use;
    int r = options_take_child(opts, name, &child_opts, &node_name, err);

    *ret_node = NULL;
    if (r < 0) {
        return r;
    }
    if (node_name) {
        struct block_node *found = block_node_lookup(node_name, err);

        if (!found) {
            return -ENOENT;
        }
        block_node_ref(found);
        r = block_co_renew_size(found, err);
        if (r < 0) {
            block_co_unref(found);
        } else {
            *ret_node = found;
        }
        return r;
    }
    if (!child_opts) {
        return 0;
    }
    explicit_use = inherit_options(node, child_opts, role);
    if (role & BLOCK_ROLE_BACKING) {
        flags &= ~(BLOCK_OPEN_RDWR | BLOCK_OPEN_CHECK);
    }
    r = may_guess(child_opts)
            ? block_co_open_guessed(name, TAKE_PTR(child_opts), flags, ret_node, err)
            : block_co_open(TAKE_PTR(child_opts), flags, ret_node, err);
    if (r == 0) {
        block_note_heir(node, *ret_node, role, explicit_use);
    }
    return r;
}

int block_co_open_child(struct block_node *node, struct options *opts, const char *name,
                        unsigned role, bool allow_none, struct block_edge **ret_edge,
                        struct error *err)
{
    struct block_node *child;
    int r = co_find_or_open(node, opts, name, role, &child, err);

    if (ret_edge) {
        *ret_edge = NULL;
    }
    if (r < 0) {
        return r;
    }
    if (!child) {
        return allow_none ? 0 : options_no_child(opts, name, err);
    }
    r = block_co_attach_child(node, child, name, role, ret_edge, err);
    block_co_unref(child);
    return r;
}

int block_co_open_filtered(struct block_node *node, struct options *opts, const char *name,
                           struct error *err)
{
    struct block_edge *edge;
    int r = block_co_open_child(node, opts, name, BLOCK_ROLE_FILTERED | BLOCK_ROLE_DATA, false,
                                &edge, err);

    if (r < 0) {
        return r;
    }
    block_node_set_size(node, block_edge_size(edge));
    node->discard_unmap = true; /* the child decides */
    node->supported_write_flags = PASSED_WRITE_FLAGS;
    node->supported_zero_flags = PASSED_ZERO_FLAGS;
    return 0;
}

/*
 * Whether a relative backing name has no directory: an image in several files may be in several
 * directories.
 */
static bool is_relative_to_nothing(const struct block_node *node, const char *filename)
{
    const struct block_node *file = node->file ? node->file->node : node;

    return file->beyond_filename && !file->filename && block_is_relative(filename);
}

static int co_open_recorded_backing(struct block_node *node, const char *filename,
                                    const char *format, struct options *extra /* consumed */,
                                    struct block_node **ret_node, struct error *err)
{
    AUTO_FREE char *path = block_resolve_relative(block_node_display_name(node), filename);
    unsigned explicit_use;
    int r;

    if (!path || !extra) {
        options_free(extra);
        return error_out_of_memory(err);
    }
    if (is_relative_to_nothing(node, filename) ||
        block_relative_needs_directory(block_node_display_name(node), filename)) {
        options_free(extra);
        return error_set(err, EINVAL,
                         "Could not open backing file: '%s' has no directory that '%s' could be in",
                         block_node_display_name(node), filename);
    }
    explicit_use = inherit_options(node, extra, BLOCK_ROLE_BACKING);
    r = block_co_open_below(node, path, format, extra, ret_node, err);
    if (r == 0) {
        block_note_heir(node, *ret_node, BLOCK_ROLE_BACKING, explicit_use);
    }
    if (r < 0 && r != -ELOOP) {
        error_prepend(err, "Could not open backing file: ");
    }
    return r;
}

/*
 * Options of `backing` that do not say where the backing file is apply to the one that the image
 * records, if it records one: "driver" alone names its format, others such as "node-name" are added
 * to its options.
 * *ret_extra gets the latter (never NULL on success).
 */
static int take_backing_additions(struct options *opts, bool is_recorded, char **ret_format,
                                  struct options **ret_extra, struct error *err)
{
    AUTO_OPTIONS struct options *child = NULL;
    AUTO_OPTIONS struct options *copy = options_clone(opts);
    AUTO_FREE char *node_name = NULL;
    AUTO_FREE char *format = NULL;
    int r = 0;

    *ret_format = NULL;
    *ret_extra = options_new();
    if (!copy || !*ret_extra) {
        return error_out_of_memory(err);
    }
    if (!options_is_null(opts, "backing")) {
        r = options_take_child(copy, "backing", &child, &node_name, err);
    }
    if (r < 0 || !child || options_has(child, "file") || options_has(child, "filename")) {
        return r;
    }
    r = options_take_str(child, "driver", &format, err);
    if (r == 0 && is_recorded && (!format || options_is_empty(child))) {
        options_drop(opts, "backing");
        *ret_format = TAKE_PTR(format);
        options_free(*ret_extra);
        *ret_extra = TAKE_PTR(child);
    }
    return r;
}

/*
 * Open `backing` as the options have it. Where they are no arguments of a command, an object that
 * names no driver has the format that the image records.
 */
static int co_open_given_backing(struct block_node *node, struct options *opts, const char *format,
                                 struct block_node **ret_node, struct error *err)
{
    AUTO_OPTIONS struct options *child = NULL;
    AUTO_FREE char *node_name = NULL;
    bool checked = options_are_arguments(opts);
    int r;

    if (format && !checked) {
        r = options_take_child(opts, "backing", &child, &node_name, err);
        if (r < 0) {
            return r;
        }
        if (child) {
            options_default_str(child, "driver", format);
            options_set_child(opts, "backing", TAKE_PTR(child));
        } else {
            options_set_str(opts, "backing", node_name);
        }
    }
    r = co_find_or_open(node, opts, "backing", BLOCK_ROLE_BACKING, ret_node, err);
    /* A wrong argument is named by its path, which begins with that of the backing file. */
    if (r < 0 && !(checked && r == -EINVAL && strstr(error_message(err), "arameter '"))) {
        error_prepend(err, "Could not open backing file: ");
    }
    return r;
}

int block_co_open_backing(struct block_node *node, struct options *opts, const char *filename,
                          const char *format, struct error *err)
{
    struct block_node *child = NULL;
    AUTO_OPTIONS struct options *extra = NULL;
    AUTO_FREE char *other_format = NULL;
    int r;

    block_set_auto_backing(node, filename);
    if (options_is_text(opts, "backing", "")) {
        log_warning("Use of \"backing\": \"\" is deprecated; use \"backing\": null instead");
        options_drop(opts, "backing");
        return 0;
    }
    r = take_backing_additions(opts, filename, &other_format, &extra, err);
    if (r < 0) {
        return r;
    }
    if (other_format) {
        format = other_format;
    }
    if (options_is_null(opts, "backing")) {
        options_drop(opts, "backing");
        return 0;
    }
    if (options_has(opts, "backing")) {
        r = co_open_given_backing(node, opts, format, &child, err);
    } else if (filename && !(node->open_flags & BLOCK_OPEN_NO_BACKING)) {
        r = co_open_recorded_backing(node, filename, format, TAKE_PTR(extra), &child, err);
        if (r == 0) {
            block_note_recorded_backing(node, child);
        }
    }
    if (r < 0 || !child) {
        return r;
    }
    r = block_co_attach_child(node, child, "backing", BLOCK_ROLE_BACKING, NULL, err);
    block_co_unref(child);
    return r;
}
