/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A file that holds anything, opened as a growing image of Bochs: each byte has a status, and can
 * be read.
 */
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "block/driver.h"
#include "bochs/bochs.h"
#include "loop/loop.h"
#include "memory_file.h"

#define FILE_MAX (1 * MiB)
#define STATUS_CALLS_MAX 200
#define READ_SIZE (64 * KiB)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerInitialize(int *argc, char ***argv);

static void co_read_all(struct block_edge *edge, uint64_t file_size)
{
    static uint8_t buf[READ_SIZE];
    uint64_t size = block_edge_size(edge), offset = 0;
    struct block_status status;

    for (unsigned i = 0; i < STATUS_CALLS_MAX && offset < size; i++) {
        if (block_co_status(edge, offset, size - offset, &status) < 0 || status.length == 0 ||
            status.length > size - offset ||
            ((status.flags & BLOCK_STATUS_OFFSET) &&
             !range_fits(status.map, status.length, file_size)) ||
            block_co_pread(edge, offset, buf, MIN(READ_SIZE, size - offset)) < 0) {
            abort();
        }
        /* From within a sector, too. */
        offset += status.length > 1000 && i % 3 == 0 ? status.length - 700 : status.length;
    }
    if (size > 0 && block_co_pread(edge, size - MIN(size, 5000), buf, MIN(size, 5000)) < 0) {
        abort();
    }
}

static void co_one(void *arg)
{
    struct options *opts = NULL;
    struct block_node *node;
    struct block_root *root;
    ERROR_AUTO(err);

    if (options_parse("driver=bochs,read-only=on,file.driver=memory-file,file.name=image", NULL,
                      &opts, &err) < 0) {
        abort();
    }
    if (block_co_open(opts, 0, &node, &err) < 0) {
        return;
    }
    if (block_co_root_new(node, "fuzz", BLOCK_PERM_CONSISTENT_READ, BLOCK_PERM_ALL, &root, NULL) <
        0) {
        abort();
    }
    co_read_all(block_root_edge(root), round_up(*(size_t *)arg, 512));
    block_co_root_release(root);
    block_co_unref(node);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct memory_file *file = memory_file("image");

    if (size == 0 || size > FILE_MAX) {
        return 0;
    }
    memory_file_grow(file, size);
    memcpy(file->data, data, size);
    file->size = size;
    reactor_run_until_done(co_one, &size);
    return 0;
}

static void stop(void)
{
    memory_file_free_all();
    reactor_exit_main();
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    ERROR_AUTO(err);

    if (reactor_init_main(&err) < 0) {
        abort();
    }
    atexit(stop);
    block_register_driver(&memory_file_driver);
    bochs_register_driver();
    return 0;
}
