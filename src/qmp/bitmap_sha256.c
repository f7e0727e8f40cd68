/* SPDX-License-Identifier: Apache-2.0 */
/* x-debug-block-dirty-bitmap-sha256: the digest of a bitmap, by which tests compare bitmaps. */
#include <errno.h>
#include <inttypes.h>

#include "base/checked.h"
#include "base/sha256.h"
#include "block/bitmaps.h"
#include "block/block.h"
#include "block/control_lock.h"
#include "loop/loop.h"
#include "qmp/commands.h"
#include "qmp/lookup.h"

#define PIECE_SIZE UINT64_C(65536)
#define WORD_BITS 64
/* Of the bits that are summed up: more would take longer than anybody waits. */
#define SUMMED_MAX (1 * GiB)

/* Bytes of the bits, in whole words. */
static uint64_t size_of_bits(const struct dirty_bitmap *bits)
{
    uint64_t granules = MAX(dirty_bitmap_granules(bits), UINT64_C(1));

    return (granules + WORD_BITS - 1) / WORD_BITS * (WORD_BITS / 8);
}

struct sum {
    const struct dirty_bitmap *bits;
    uint8_t digest[SHA256_SIZE];
};

/*
 * Digest of the bits, granule 0 in the lowest bit of the first byte, in whole words of 64 bits, as
 * QEMU has them in memory.
 */
static int sum_bits(void *arg)
{
    static const uint64_t piece_bits = PIECE_SIZE * 8;
    struct sum *s = arg;
    uint64_t size = size_of_bits(s->bits);
    struct sha256 *sha = sha256_new();
    uint8_t buf[PIECE_SIZE];
    int r = sha ? 0 : -EIO;

    for (uint64_t first = 0; r == 0 && size > 0; first += piece_bits) {
        size_t length = (size_t)MIN(size, (uint64_t)PIECE_SIZE);

        dirty_bitmap_serialize(s->bits, first, buf, length);
        r = sha256_add(sha, buf, length);
        size -= length;
    }
    UNLESS_FAILED(r, sha256_finish(sha, s->digest));
    sha256_free(sha);
    return r;
}

/*
 * A copy of the bits: guests may set some meanwhile, and a job may exchange them. An inconsistent
 * bitmap has none. NULL: `err` is set.
 */
static struct dirty_bitmap *co_copy_bits(struct block_bitmap *b, struct error *err)
{
    struct dirty_bitmap *copy = NULL;

    if (block_bitmap_inconsistent(b)) {
        copy = dirty_bitmap_new(block_node_size(block_bitmap_node(b)), block_bitmap_granularity(b));
    } else if (block_co_bitmap_fetch(b, err) < 0) {
        return NULL;
    } else {
        copy = dirty_bitmap_clone(block_bitmap_bits(b));
    }
    if (!copy) {
        error_out_of_memory(err);
    }
    return copy;
}

static struct dirty_bitmap *co_copy_apart(struct block_bitmap *b, struct error *err)
{
    struct block_node *node = block_node_ref(block_bitmap_node(b));
    struct block_control_work work;
    struct dirty_bitmap *copy;

    block_control_begin_work(&work, &node, 1, false);
    copy = co_copy_bits(b, err);
    block_co_control_end_work(&work);
    block_co_unref(node);
    return copy;
}

int qmp_co_x_debug_bitmap_sha256(struct qmp_call *call, struct json_object *args,
                                 struct json_object **ret_value, struct error *err)
{
    struct block_bitmap *b = qmp_find_bitmap(args, "name", err);
    struct dirty_bitmap *copy = b ? co_copy_apart(b, err) : NULL;
    struct sum sum = {.bits = copy};
    char hex[SHA256_HEX_SIZE];
    int r;

    if (!copy) {
        return -EINVAL;
    }
    if (size_of_bits(copy) > SUMMED_MAX) {
        error_set(err, EFBIG, "Bitmap '%s' has %" PRIu64 " granules; a digest takes at most %llu",
                  qmp_get_str(args, "name"), dirty_bitmap_granules(copy), SUMMED_MAX * 8);
        dirty_bitmap_free(copy);
        return -EFBIG;
    }
    r = loop_co_offload(sum_bits, &sum);
    dirty_bitmap_free(copy);
    if (r < 0) {
        return error_set_errno(err, -r, "Could not compute SHA-256");
    }
    sha256_to_hex(sum.digest, hex);
    *ret_value = json_object_new_object();
    qmp_put_str(*ret_value, "sha256", hex);
    return 0;
}
