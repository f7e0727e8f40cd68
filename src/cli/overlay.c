/* SPDX-License-Identifier: Apache-2.0 */
/* Nodes that the user wants on an image: a temporary overlay, copy-on-read. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "block/hand_over.h"
#include "cli/image.h"

/*
 * Make an empty file in $TMPDIR, or in /var/tmp, which often has more room than /tmp. NULL on
 * failure.
 */
static char *make_overlay_file(struct error *err)
{
    const char *folder = getenv("TMPDIR");
    AUTO_FREE char *path = NULL;
    int fd;

    if (asprintf(&path, "%s/tidemark-XXXXXX", folder && *folder ? folder : "/var/tmp") < 0) {
        path = NULL;
        error_out_of_memory(err);
        return NULL;
    }
    fd = mkostemp(path, O_CLOEXEC);
    if (fd < 0) {
        error_set_errno(err, errno, "Could not create the temporary file '%s'", path);
        return NULL;
    }
    close(fd);
    return TAKE_PTR(path);
}

static struct options *overlay_options(const char *path, struct block_node *below, bool read_only)
{
    struct options *opts = options_new();
    struct options *file = options_new(), *cache = options_new();

    if (!opts || !file || !cache) {
        options_free(opts);
        options_free(file);
        options_free(cache);
        return NULL;
    }
    /* The file vanishes with the program: nothing has to be on stable storage. */
    options_set_bool(cache, "no-flush", true);
    options_set_child(opts, "cache", cache);
    options_set_str(file, "driver", "file");
    options_set_str(file, "filename", path);
    options_set_str(opts, "driver", "qcow2");
    options_set_child(opts, "file", file);
    options_set_str(opts, "backing", block_node_name(below));
    options_set_bool(opts, "read-only", read_only);
    return opts;
}

/* A node above one that another process has to hand over first waits for that, too. */
static void follow_hand_over(struct options *opts, const struct block_node *below)
{
    if (block_node_is_handed_over(below)) {
        options_set_bool(opts, "active", false);
    }
}

int cli_co_add_overlay(struct block_node **node, bool read_only, struct error *err)
{
    AUTO_FREE char *path = make_overlay_file(err);
    struct block_node *overlay = NULL;
    struct options *opts;
    int r;

    if (!path) {
        return -EIO;
    }
    r = block_co_create_image("qcow2", path, block_node_size(*node), options_new(), err);
    opts = r == 0 ? overlay_options(path, *node, read_only) : NULL;
    if (opts) {
        follow_hand_over(opts, *node);
    }
    if (r == 0) {
        r = opts ? block_co_open(opts, BLOCK_OPEN_RDWR, &overlay, err) : error_out_of_memory(err);
    }
    unlink(path);
    if (r < 0) {
        return r;
    }
    block_co_unref(*node); /* the overlay holds it */
    *node = overlay;
    return 0;
}

int cli_co_add_copy_on_read(struct block_node **node, struct error *err)
{
    struct options *opts = options_new();
    struct block_node *filter = NULL;
    int r;

    if (!opts) {
        return error_out_of_memory(err);
    }
    if (block_node_is_read_only(*node)) {
        options_free(opts);
        return error_set(err, EINVAL, "Can't use copy-on-read on read-only device");
    }
    options_set_str(opts, "driver", "copy-on-read");
    follow_hand_over(opts, *node);
    options_set_str(opts, "file", block_node_name(*node));
    options_set_bool(opts, "read-only", false);
    r = block_co_open(opts, BLOCK_OPEN_RDWR, &filter, err);
    if (r == 0) {
        block_node_set_implicit(filter);
        block_co_unref(*node); /* the filter holds it */
        *node = filter;
    }
    return r;
}
