/* SPDX-License-Identifier: Apache-2.0 */
/* Images of a chain other than that on top. */
#include <errno.h>
#include <stdlib.h>

#include "base/checked.h"
#include "verifier.h"

#define ALL_IMAGES_EVERY 8u /* states; else those of the chain only */

static int co_check_leaks_at_most(struct block_node *node, struct error *err)
{
    struct block_check_result result = {0};
    int r = node->driver->co_check(node, 0, &result, err);

    if (r == 0 && (result.corruptions > 0 || result.check_errors > 0)) {
        r = error_set(err, EILSEQ, "check found %llu corruptions, %llu errors",
                      (unsigned long long)result.corruptions,
                      (unsigned long long)result.check_errors);
    }
    return r;
}

/* What the image shows is whatever it is; its bitmaps have to cover that. */
static int co_look_below(struct verifier *v, struct error *err)
{
    struct block_root *root;
    int r;

    if (!v->w->config.bitmaps) {
        return 0;
    }
    r = block_co_root_new(v->node, "verification", BLOCK_PERM_CONSISTENT_READ, BLOCK_PERM_ALL,
                          &root, err);
    if (r < 0) {
        return r;
    }
    v->edge = block_root_edge(root);
    v->sectors = block_node_size(v->node) / MODEL_SECTOR;
    r = verify_co_data(v, err);
    r = r < 0 ? r : verify_co_bitmaps(v, err);
    block_co_root_release(root);
    return r;
}

/* `how`: what image_co_open() takes. What is marked dirty is repaired by opening it for writing. */
static int co_open_below(struct verifier *v, unsigned disk, unsigned how, struct error *err)
{
    struct image_disks disks = *v->disks;
    int r;

    disks.top = disk;
    how |= image_is_marked_dirty(&disks, disk) ? IMAGE_WRITABLE : 0;
    r = image_co_open(&disks, &v->w->config, how, &v->node, err);
    if (r == 0) {
        v->spoiled = model_is_spoiled(&v->w->model, disk, v->state->time);
        r = co_check_leaks_at_most(v->node, err);
        r = r < 0 || (how & IMAGE_NO_BASE) ? r : co_look_below(v, err);
        v->spoiled = false;
        block_co_unref(v->node);
    }
    if (r < 0) {
        error_prepend(err, "image '%s': ", image_disk_name(disk));
    }
    return r;
}

static int co_look_at_chain(struct verifier *v, struct error *err)
{
    bool seen[RECORD_DISKS] = {false};
    unsigned disk = v->disks->top;
    int r = 0;

    while (r == 0 && disk < RECORD_DISKS && !seen[disk]) {
        r = seen[disk] || disk == v->disks->top ? 0 : co_open_below(v, disk, 0, err);
        seen[disk] = true;
        r = r < 0 ? r : image_backing_disk(v->disks, disk, &disk, err);
    }
    for (disk = IMAGE_BASE_FILE; disk < RECORD_DISKS && r == 0; disk++) {
        if (!seen[disk] && v->state->index % ALL_IMAGES_EVERY == 0) {
            r = co_open_below(v, disk, IMAGE_NO_BASE, err);
        }
    }
    return r;
}

int verify_co_chain(struct verifier *v, struct error *err)
{
    struct view disk = v->disk;
    int r;

    v->disk.values = malloc(v->w->model.sectors * sizeof(*v->disk.values));
    if (!v->disk.values) {
        abort();
    }
    for (uint64_t i = 0; i < v->w->model.sectors; i++) {
        v->disk.values[i] = MODEL_ZERO;
    }
    v->below = true;
    r = co_look_at_chain(v, err);
    v->below = false;
    free(v->disk.values);
    v->disk = disk;
    return r < 0 ? r : verify_bitmaps_found(v, err);
}
