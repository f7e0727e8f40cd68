/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A file that holds anything, opened as a LUKS volume, without and with a passphrase. The numbers
 * of iterations are cut, so that a run does not compute for long.
 */
#include <stdlib.h>
#include <string.h>

#include "base/byteorder.h"
#include "base/checked.h"
#include "block/driver.h"
#include "block/user_object.h"
#include "loop/loop.h"
#include "luks/header.h"
#include "luks/luks.h"
#include "memory_file.h"

#define FILE_MAX (4 * MiB)
#define ITERATIONS 1u
#define OFFSET_DIGEST_ITERATIONS 164
#define OFFSET_SLOTS 208
#define SLOT_SIZE 48

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerInitialize(int *argc, char ***argv);

static void co_open_as(const char *text, unsigned flags)
{
    struct options *opts = NULL;
    struct block_node *node;
    struct block_root *root;
    uint8_t buf[4096];
    ERROR_AUTO(err);

    if (options_parse(text, NULL, &opts, &err) < 0) {
        abort();
    }
    if (block_co_open(opts, flags, &node, &err) < 0) {
        return;
    }
    json_object_put(block_co_specific_info(node));
    if (block_co_root_new(node, "fuzz", BLOCK_PERM_CONSISTENT_READ, BLOCK_PERM_ALL, &root, NULL) <
        0) {
        abort();
    }
    if (block_node_size(node) > 0) {
        (void)block_co_pread(block_root_edge(root), 0, buf,
                             MIN(sizeof(buf), block_node_size(node)));
    }
    block_co_root_release(root);
    block_co_unref(node);
}

static void co_one(void *arg)
{
    co_open_as("driver=luks,read-only=on,file.driver=memory-file,file.name=image",
               BLOCK_OPEN_NO_IO);
    co_open_as("driver=luks,read-only=on,key-secret=s,file.driver=memory-file,file.name=image", 0);
}

static void cut_iterations(uint8_t *at)
{
    store_be32(at, MIN(load_be32(at), ITERATIONS));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct memory_file *file = memory_file("image");

    if (size < LUKS_HEADER_SIZE || size > LUKS_HEADER_SIZE + 64 * KiB) {
        return 0;
    }
    /* The payload of small inputs is zeroes, so that slots are read. */
    memory_file_grow(file, FILE_MAX);
    memset(file->data, 0, FILE_MAX);
    memcpy(file->data, data, size);
    file->size = FILE_MAX;
    cut_iterations(file->data + OFFSET_DIGEST_ITERATIONS);
    for (size_t i = 0; i < LUKS_SLOTS; i++) {
        cut_iterations(file->data + OFFSET_SLOTS + i * SLOT_SIZE + 4);
    }
    reactor_run_until_done(co_one, NULL);
    return 0;
}

static void stop(void)
{
    memory_file_free_all();
    reactor_exit_main();
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    struct options *opts = NULL;
    ERROR_AUTO(err);

    if (reactor_init_main(&err) < 0) {
        abort();
    }
    atexit(stop);
    block_register_driver(&memory_file_driver);
    luks_register_driver();
    secret_register_type();
    if (options_parse("qom-type=secret,id=s,data=x", NULL, &opts, &err) < 0 ||
        user_object_add(opts, &err) < 0) {
        abort();
    }
    return 0;
}
