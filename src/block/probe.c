/* SPDX-License-Identifier: Apache-2.0 */
/* Guessing a format from the first bytes of an image, and from its name and last bytes. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "block/internal.h"

#define PROBE_SIZE 4096

struct guess {
    const struct block_driver *driver;
    int score;
};

static void consider(struct guess *g, const struct block_driver *driver, int score)
{
    if (score > g->score) {
        *g = (struct guess){driver, score};
    }
}

static bool has_suffix(const char *name, const char *suffix)
{
    size_t length = strlen(name), n = strlen(suffix);

    return length >= n && strcasecmp(name + length - n, suffix) == 0;
}

/* The last bytes are read only if the name of the image says that they could tell. */
static int co_probe_trailer(struct block_edge *edge, const char *name, struct guess *g)
{
    uint64_t size = block_edge_size(edge);

    for (const struct block_driver *d = block_next_driver(NULL); d; d = block_next_driver(d)) {
        uint8_t trailer[BLOCK_TRAILER_SIZE];
        int r;

        if (!d->suffix || !has_suffix(name, d->suffix) || size < sizeof(trailer)) {
            continue;
        }
        r = block_co_pread(edge, size - sizeof(trailer), trailer, sizeof(trailer));
        if (r < 0) {
            return r;
        }
        consider(g, d, d->probe_trailer(trailer));
    }
    return 0;
}

int block_co_probe(struct block_node *node, const struct block_driver **ret_driver,
                   struct error *err)
{
    AUTO_FREE uint8_t *head = malloc(PROBE_SIZE);
    size_t size = MIN(block_node_size(node), PROBE_SIZE);
    struct guess guess = {block_find_driver("raw"), 0};
    struct block_root *root;
    int r;

    if (!head) {
        return error_out_of_memory(err);
    }
    r = block_co_root_new_exempt(node, "format probing", BLOCK_PERM_CONSISTENT_READ, BLOCK_PERM_ALL,
                                 &root, err);
    if (r < 0) {
        return r;
    }
    r = block_co_pread(block_root_edge(root), 0, head, size);
    UNLESS_FAILED(r,
                  co_probe_trailer(block_root_edge(root), block_node_display_name(node), &guess));
    block_co_root_release(root);
    if (r < 0) {
        return error_set_errno(err, -r, "Could not read '%s' for determining its format",
                               block_node_display_name(node));
    }
    for (const struct block_driver *d = block_next_driver(NULL); d; d = block_next_driver(d)) {
        consider(&guess, d, d->probe ? d->probe(head, size) : 0);
    }
    *ret_driver = guess.driver;
    return 0;
}
