/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A qcow2 image that holds anything: opened, shown, read, checked; and, by bits of its last byte, 1 written to, 2 repaired, 4 used
 * with snapshots and bitmaps. On a file in memory.
 *
 * Run with -close_fd_mask=2: complaints about the image are expected.
 */
#include <errno.h>
#include <json-c/json.h>
#include <stdlib.h>
#include <string.h>

#include "base/byteorder.h"
#include "base/checked.h"
#include "block/driver.h"
#include "loop/loop.h"
#include "qcow2/qcow2.h"

/* What the file may grow to. */
#define FILE_MAX (4 * MiB)
#define STATUS_CALLS_MAX 200
#define READ_SIZE (128 * KiB)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerInitialize(int *argc, char ***argv);
size_t LLVMFuzzerMutate(uint8_t *data, size_t size, size_t max_size);
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max_size, unsigned seed);

/* --- a file in memory ------------------------------------------------------------------------------ */

static struct {
    uint8_t *data;
    uint64_t size;
} file;

static int file_co_open(struct block_node *node, struct options *opts, struct error *err)
{
    block_node_set_size(node, file.size);
    node->discard_unmap = true;
    return 0;
}

static int file_co_preadv(struct block_node *node, uint64_t offset, struct iov iov, unsigned flags)
{
    iov_copy_from_buf(iov, 0, file.data + offset, iov.size);
    return 0;
}

static int file_grow(uint64_t offset, uint64_t length)
{
    if (!range_fits(offset, length, FILE_MAX)) {
        return -ENOSPC;
    }
    file.size = MAX(file.size, offset + length);
    return 0;
}

static int file_co_pwritev(struct block_node *node, uint64_t offset, struct iov iov, unsigned flags)
{
    int r = file_grow(offset, iov.size);

    if (r == 0) {
        iov_copy_to_buf(iov, 0, file.data + offset, iov.size);
    }
    return r;
}

static int file_co_write_zeroes(struct block_node *node, uint64_t offset, uint64_t length,
                                unsigned flags)
{
    int r = file_grow(offset, length);

    if (r == 0) {
        memset(file.data + offset, 0, length);
    }
    return r;
}

static int file_co_discard(struct block_node *node, uint64_t offset, uint64_t length)
{
    if (offset < file.size) {
        memset(file.data + offset, 0, MIN(length, file.size - offset));
    }
    return 0;
}

static int file_co_truncate(struct block_node *node, uint64_t size, enum block_prealloc prealloc,
                            struct error *err)
{
    if (size > FILE_MAX) {
        return error_set(err, ENOSPC, "Too large");
    }
    if (size < file.size) {
        memset(file.data + size, 0, file.size - size);
    }
    file.size = size;
    block_node_set_size(node, size);
    return 0;
}

static int file_co_flush(struct block_node *node)
{
    return 0;
}

static const struct block_driver file_driver = {
    .name = "fuzz-file",
    .is_protocol = true,
    .keeps_zero_beyond_eof = true,
    .co_open = file_co_open,
    .co_preadv = file_co_preadv,
    .co_pwritev = file_co_pwritev,
    .co_write_zeroes = file_co_write_zeroes,
    .co_discard = file_co_discard,
    .co_truncate = file_co_truncate,
    .co_flush = file_co_flush,
};

/* --- what is done with an image ------------------------------------------------------------------ */

static struct block_node *co_open(unsigned flags)
{
    struct options *opts = NULL;
    struct block_node *node = NULL;
    ERROR_AUTO(err);

    if (options_parse("driver=qcow2,file.driver=fuzz-file,discard=unmap,l2-cache-size=64k", NULL,
                      &opts, &err) < 0) {
        abort();
    }
    return block_co_open(opts, flags | BLOCK_OPEN_NO_BACKING, &node, &err) < 0 ? NULL : node;
}

static void co_read_some(struct block_edge *edge, uint64_t offset)
{
    uint64_t size = block_edge_size(edge);
    static uint8_t buf[READ_SIZE];

    if (offset < size) {
        (void)block_co_pread(edge, offset, buf, MIN(READ_SIZE, size - offset));
    }
}

static void co_read_disk(struct block_edge *edge)
{
    uint64_t size = block_edge_size(edge), offset = 0;
    struct block_status status;

    for (unsigned i = 0; i < STATUS_CALLS_MAX && offset < size; i++) {
        if (block_co_status(edge, offset, size - offset, &status) < 0) {
            break;
        }
        if (status.length == 0 || status.length > size - offset) {
            abort();
        }
        if (i % 16 == 0) {
            co_read_some(edge, offset);
        }
        offset += status.length;
    }
    co_read_some(edge, 0);
    co_read_some(edge, size / 2);
    co_read_some(edge, size - MIN(size, 5000));
}

static void co_look_at_bitmaps(struct block_node *node)
{
    struct block_bitmap *b;
    uint64_t offset, length;

    for (b = block_bitmap_next(node, NULL); b; b = block_bitmap_next(node, b)) {
        if (b->bits) {
            dirty_bitmap_next_dirty(b->bits, 0, block_node_size(node), &offset, &length);
        }
    }
}

static void co_look(struct block_node *node)
{
    struct block_info info;
    struct block_root *root;

    if (node->driver->co_get_info(node, &info) == 0) {
        json_object_put(node->driver->co_specific_info(node));
    }
    co_look_at_bitmaps(node);
    if (block_co_root_new(node, "fuzz", BLOCK_PERM_CONSISTENT_READ, BLOCK_PERM_ALL, &root, NULL) ==
        0) {
        co_read_disk(block_root_edge(root));
        block_co_root_release(root);
    }
}

static void co_check(unsigned fix)
{
    struct block_node *node = co_open(BLOCK_OPEN_CHECK | (fix ? BLOCK_OPEN_RDWR : 0));
    struct block_check_result result;
    ERROR_AUTO(err);

    if (node) {
        (void)node->driver->co_check(node, fix, &result, &err);
        block_co_unref(node);
    }
}

static void co_change(struct block_node *node, unsigned how)
{
    uint64_t size = block_node_size(node), step = MAX(node->limits.cluster_size, 4096u);
    static uint8_t buf[8192];
    struct block_root *root;
    struct block_edge *edge;

    if (block_co_root_new(node, "fuzz", BLOCK_PERM_CONSISTENT_READ | BLOCK_PERM_WRITE,
                          BLOCK_PERM_ALL, &root, NULL) < 0) {
        return;
    }
    edge = block_root_edge(root);
    memset(buf, 0x5a, sizeof(buf));
    for (uint64_t i = 0, at = 0; i < 12 && at < size; i++, at += 3 * step / 2) {
        uint64_t n = MIN(sizeof(buf), size - at);

        switch (i % 4) {
        case 0:
        case 1:
            (void)block_co_pwrite(edge, at, buf, n, 0);
            break;
        case 2:
            (void)block_co_write_zeroes(edge, at, MIN(2 * step, size - at), BLOCK_REQ_MAY_UNMAP);
            break;
        default:
            (void)block_co_discard(edge, at, MIN(4 * step, size - at));
            (void)block_co_flush(edge);
        }
    }
    if (size >= step) {
        (void)block_co_pwrite(edge, 0, buf, MIN(step, sizeof(buf)), BLOCK_REQ_COMPRESSED);
    }
    co_read_some(edge, 0);
    block_co_root_release(root);
}

static void co_snapshots_and_bitmaps(struct block_node *node)
{
    struct block_snapshot_info *infos = NULL;
    struct block_bitmap *b;
    size_t count = 0;
    ERROR_AUTO(err);

    (void)block_co_bitmap_add(node, "fuzz", 0, true, false, NULL, &err);
    b = block_bitmap_next(node, NULL);
    if (b) {
        (void)block_co_bitmap_clear(b, NULL, NULL);
        (void)block_co_bitmap_remove(b, NULL);
    }
    if (!node->driver->co_snapshot_list) {
        return;
    }
    (void)node->driver->co_snapshot_create(node, "fuzz", NULL);
    if (node->driver->co_snapshot_list(node, &infos, &count, NULL) == 0 && count > 0) {
        (void)node->driver->co_snapshot_apply(node, infos[0].id, NULL);
        (void)node->driver->co_snapshot_delete(node, infos[0].id, NULL);
    }
    free(infos);
}

static void co_fuzz(void *arg)
{
    unsigned how = *(unsigned *)arg;
    struct block_node *node = co_open(0);

    if (node) {
        co_look(node);
        block_co_unref(node);
    }
    co_check(0);
    if (how & 2) {
        co_check(BLOCK_CHECK_FIX_LEAKS | BLOCK_CHECK_FIX_ERRORS);
    }
    node = how & 5 ? co_open(BLOCK_OPEN_RDWR) : NULL;
    if (node) {
        if (how & 4) {
            co_snapshots_and_bitmaps(node);
        }
        if (how & 1) {
            co_change(node, how);
        }
        block_co_unref(node);
    }
}

/* --- mutation ------------------------------------------------------------------------------------ */

/* Tables are arrays of big-endian words, most of them offsets: exchange, shift and flag those. */
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max_size, unsigned seed)
{
    size_t words = size / 8;
    uint8_t *word;
    uint64_t value;

    srand(seed);
    if (words < 16 || rand() % 3 == 0) {
        return LLVMFuzzerMutate(data, size, max_size);
    }
    word = data + (size_t)rand() % words * 8;
    for (int i = 0; i < 64 && load_be64(word) == 0; i++) {
        word = data + (size_t)rand() % words * 8;
    }
    value = load_be64(word);
    switch (rand() % 6) {
    case 0:
        value ^= 1ULL << rand() % 64;
        break;
    case 1:
        value = load_be64(data + (size_t)rand() % words * 8);
        break;
    case 2:
        value += (uint64_t)(rand() % 9 - 4) << rand() % 24;
        break;
    case 3:
        value = (uint64_t)rand() % (size + 4096) & ~511ULL;
        value |= rand() % 2 ? 1ULL << 63 : 0;
        break;
    case 4:
        value = (uint64_t)rand() << (33 * (rand() % 2)) | (unsigned)rand();
        break;
    default:
        value = rand() % 2 ? 0 : UINT64_MAX;
    }
    store_be64(word, value);
    return size;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    unsigned how = size ? data[size - 1] : 0;

    if (size > FILE_MAX) {
        return 0;
    }
    memset(file.data, 0, MAX(file.size, size));
    memcpy(file.data, data, size);
    file.size = size;
    reactor_run_until_done(co_fuzz, &how);
    return 0;
}

static void stop(void)
{
    free(file.data);
    reactor_exit_main();
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    ERROR_AUTO(err);

    file.data = calloc(1, FILE_MAX);
    if (!file.data || reactor_init_main(&err) < 0) {
        abort();
    }
    atexit(stop);
    block_register_driver(&file_driver);
    qcow2_register_driver();
    return 0;
}
