/* SPDX-License-Identifier: Apache-2.0 */
#include "job/chain.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/log.h"
#include "block/block.h"

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
        error_prepend(err, "Could not create node: ");
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

static bool is_same_file(const char *a, const char *b)
{
    AUTO_FREE char *real_a = realpath(a, NULL);
    AUTO_FREE char *real_b = realpath(b, NULL);

    return strcmp(a, b) == 0 || (real_a && real_b && strcmp(real_a, real_b) == 0);
}

struct block_node *chain_find(struct block_node *top, const char *name)
{
    struct block_node *above = block_node_skip_filters(top), *next;

    while ((next = block_node_backing(above))) {
        struct block_node *image = block_node_skip_filters(next);
        AUTO_FREE char *there = block_node_resolve_backing(above, name);

        if (strcmp(block_node_filename(image), name) == 0 ||
            (there && is_same_file(block_node_filename(image), there))) {
            return image;
        }
        above = image;
    }
    return NULL;
}

/* `name` is relative to the working directory; the result to that of the overlay, or absolute. */
static char *relative_to(const struct block_node *overlay, const char *name)
{
    const char *slash = strrchr(block_node_filename(overlay), '/');
    size_t folder = slash ? (size_t)(slash - block_node_filename(overlay)) + 1 : 0;
    AUTO_FREE char *there = block_node_resolve_backing(overlay, name);

    if (there && is_same_file(there, name)) {
        return strdup(name);
    }
    if (strncmp(block_node_filename(overlay), name, folder) == 0) {
        return strdup(name + folder);
    }
    return realpath(name, NULL) ?: strdup(name);
}

char *chain_backing_name(const struct block_node *overlay, const struct block_node *base)
{
    AUTO_FREE char *name = block_node_full_filename(base);

    return !name || !block_is_relative(name) ? TAKE_PTR(name) : relative_to(overlay, name);
}

const char *chain_backing_format(const struct block_node *base, bool mask_protocol)
{
    return mask_protocol && (block_node_traits(base) & BLOCK_DRIVER_PROTOCOL)
               ? "raw"
               : block_node_format(base);
}
