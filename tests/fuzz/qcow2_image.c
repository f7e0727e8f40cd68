/* SPDX-License-Identifier: Apache-2.0 */
#include "qcow2_image.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/byteorder.h"
#include "base/checked.h"
#include "loop/loop.h"
#include "qcow2/qcow2.h"

/* What a file may grow to. */
#define FILE_MAX (4 * MiB)
#define DATA_FILE_SIZE (256 * KiB)
#define STATUS_CALLS_MAX 200
#define READ_SIZE (128 * KiB)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerInitialize(int *argc, char ***argv);
size_t LLVMFuzzerMutate(uint8_t *data, size_t size, size_t max_size);
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max_size, unsigned seed);

/* --- files in memory -------------------------------------------------------------------------- */

static struct memory {
    uint8_t *data;
    uint64_t size;
} image_file, data_file;

static bool is_full; /* image_file does not grow any more */

void fuzz_fill_file(void)
{
    is_full = true;
}

static struct memory *memory_of(struct block_node *node)
{
    return *(struct memory **)node->opaque;
}

static int file_co_open(struct block_node *node, struct options *opts, struct error *err)
{
    bool data = false;
    int r = options_take_bool(opts, "data", false, &data, err);

    *(struct memory **)node->opaque = data ? &data_file : &image_file;
    block_node_set_size(node, memory_of(node)->size);
    node->discard_unmap = true;
    return r;
}

static int file_co_preadv(struct block_node *node, uint64_t offset, struct iov iov, unsigned flags)
{
    iov_copy_from_buf(iov, 0, memory_of(node)->data + offset, iov.size);
    return 0;
}

static int file_grow(struct memory *m, uint64_t offset, uint64_t length)
{
    if (!range_fits(offset, length, m == &image_file && is_full ? m->size : FILE_MAX)) {
        return -ENOSPC;
    }
    m->size = MAX(m->size, offset + length);
    return 0;
}

static int file_co_pwritev(struct block_node *node, uint64_t offset, struct iov iov, unsigned flags)
{
    int r = file_grow(memory_of(node), offset, iov.size);

    if (r == 0) {
        iov_copy_to_buf(iov, 0, memory_of(node)->data + offset, iov.size);
    }
    return r;
}

static int file_co_write_zeroes(struct block_node *node, uint64_t offset, uint64_t length,
                                unsigned flags)
{
    int r = file_grow(memory_of(node), offset, length);

    if (r == 0) {
        memset(memory_of(node)->data + offset, 0, length);
    }
    return r;
}

static int file_co_discard(struct block_node *node, uint64_t offset, uint64_t length)
{
    struct memory *m = memory_of(node);

    if (offset < m->size) {
        memset(m->data + offset, 0, MIN(length, m->size - offset));
    }
    return 0;
}

static int file_co_truncate(struct block_node *node, uint64_t size, enum block_prealloc prealloc,
                            struct error *err)
{
    struct memory *m = memory_of(node);

    if (size > FILE_MAX) {
        return error_set(err, ENOSPC, "Too large");
    }
    if (size < m->size) {
        memset(m->data + size, 0, m->size - size);
    }
    m->size = size;
    block_node_set_size(node, size);
    return 0;
}

static int file_co_flush(struct block_node *node)
{
    return 0;
}

static const struct block_driver file_driver = {
    .name = "fuzz-file",
    .instance_size = sizeof(struct memory *),
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

/* --- what is done with an image --------------------------------------------------------------- */

static bool wants_data_file(void)
{
    return image_file.size >= 80 && load_be32(image_file.data + 4) >= 3 &&
           (load_be64(image_file.data + 72) & 4);
}

struct block_node *fuzz_co_open(unsigned flags)
{
    struct options *opts = NULL;
    struct block_node *node = NULL;
    ERROR_AUTO(err);

    if (options_parse("driver=qcow2,file.driver=fuzz-file,discard=unmap,l2-cache-size=64k", NULL,
                      &opts, &err) < 0) {
        abort();
    }
    if (wants_data_file()) {
        struct options *data = options_new();

        options_set_str(data, "driver", "fuzz-file");
        options_set_str(data, "data", "on");
        options_set_child(opts, "data-file", data);
    }
    return block_co_open(opts, flags | BLOCK_OPEN_NO_BACKING, &node, &err) < 0 ? NULL : node;
}

struct block_root *fuzz_co_root(struct block_node *node, bool writable)
{
    unsigned perm = BLOCK_PERM_CONSISTENT_READ;
    struct block_root *root;

    perm |= writable ? BLOCK_PERM_WRITE | BLOCK_PERM_RESIZE : 0;
    return block_co_root_new(node, "fuzz", perm, BLOCK_PERM_ALL, &root, NULL) < 0 ? NULL : root;
}

static void co_read_some(struct block_edge *edge, uint64_t offset)
{
    uint64_t size = block_edge_size(edge);
    static uint8_t buf[READ_SIZE];

    if (offset < size) {
        (void)block_co_pread(edge, offset, buf, MIN(READ_SIZE, size - offset));
    }
}

void fuzz_co_read_disk(struct block_edge *edge)
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

void fuzz_co_write_disk(struct block_edge *edge)
{
    uint64_t size = block_edge_size(edge), step = MAX(edge->node->limits.cluster_size, 4096u);
    static uint8_t buf[8192];

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
}

void fuzz_co_check(unsigned fix)
{
    struct block_node *node = fuzz_co_open(BLOCK_OPEN_CHECK | (fix ? BLOCK_OPEN_RDWR : 0));
    struct block_check_result result;
    ERROR_AUTO(err);

    if (node) {
        (void)node->driver->co_check(node, fix, &result, &err);
        block_co_unref(node);
    }
}

/* --- mutation --------------------------------------------------------------------------------- */

/* Tables are arrays of big-endian words, most of them offsets: exchange, shift and flag those. */
static uint64_t changed_word(uint64_t value, const uint8_t *data, size_t size)
{
    switch (rand() % 6) {
    case 0:
        return value ^ 1ULL << rand() % 64;
    case 1:
        return load_be64(data + (size_t)rand() % (size / 8) * 8);
    case 2:
        return value + ((uint64_t)(rand() % 9 - 4) << rand() % 24);
    case 3:
        value = (uint64_t)rand() % (size + 4096) & ~511ULL;
        return value | (rand() % 2 ? 1ULL << 63 : 0);
    case 4:
        return (uint64_t)rand() << (33 * (rand() % 2)) | (unsigned)rand();
    default:
        return rand() % 2 ? 0 : UINT64_MAX;
    }
}

/* Fields of the header, of directories and of the snapshot table also have 32 and 16 bits. */
static void change_field(uint8_t *data, size_t size)
{
    size_t within = rand() % 2 ? MIN(size, 256u) : size;
    uint8_t *field = data + (size_t)rand() % (within / 4) * 4;
    uint32_t value = load_be32(field);

    switch (rand() % 4) {
    case 0:
        value ^= 1u << rand() % 32;
        break;
    case 1:
        value += (uint32_t)(rand() % 9 - 4) << rand() % 17;
        break;
    case 2:
        value = 1u << rand() % 32;
        break;
    default:
        value = (uint32_t)rand() % 64;
    }
    store_be32(field, value);
}

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max_size, unsigned seed)
{
    size_t words = size / 8;
    uint8_t *word;

    srand(seed);
    if (words < 16 || rand() % 4 == 0) {
        return LLVMFuzzerMutate(data, size, max_size);
    }
    if (rand() % 4 == 0) {
        change_field(data, size);
        return size;
    }
    word = data + (size_t)rand() % words * 8;
    for (int i = 0; i < 64 && load_be64(word) == 0; i++) {
        word = data + (size_t)rand() % words * 8;
    }
    store_be64(word, changed_word(load_be64(word), data, size));
    return size;
}

/* --- running ---------------------------------------------------------------------------------- */

static void co_one(void *arg)
{
    fuzz_co_image(*(unsigned *)arg);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    unsigned how = size ? data[size - 1] : 0;

    if (size > FILE_MAX) {
        return 0;
    }
    memset(image_file.data, 0, MAX(image_file.size, size));
    memcpy(image_file.data, data, size);
    image_file.size = size;
    is_full = false;
    memset(data_file.data, 0, data_file.size);
    data_file.size = DATA_FILE_SIZE;
    reactor_run_until_done(co_one, &how);
    return 0;
}

static void stop(void)
{
    free(image_file.data);
    free(data_file.data);
    reactor_exit_main();
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    ERROR_AUTO(err);

    image_file.data = calloc(1, FILE_MAX);
    data_file.data = calloc(1, FILE_MAX);
    if (!image_file.data || !data_file.data || reactor_init_main(&err) < 0) {
        abort();
    }
    atexit(stop);
    block_register_driver(&file_driver);
    qcow2_register_driver();
    return 0;
}
