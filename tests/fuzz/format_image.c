/* SPDX-License-Identifier: Apache-2.0 */
#include "format_image.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "block/driver.h"
#include "loop/loop.h"
#include "memory_file.h"

#define STATUS_CALLS_MAX 100
#define READ_SIZE (64 * KiB)
/* What a write may make of the file. */
#define FILE_MAX (64 * MiB)

struct attempt {
    const char *format;
    bool writes;
};

static uint8_t buf[READ_SIZE];
static uint64_t parent_size;

static void co_read_all(struct block_edge *edge)
{
    uint64_t size = block_edge_size(edge), offset = 0;
    struct block_status status;

    for (unsigned i = 0; i < STATUS_CALLS_MAX && offset < size; i++) {
        if (block_co_status(edge, offset, size - offset, &status) < 0) {
            return; /* an entry outside the file */
        }
        if (status.length == 0 || status.length > size - offset) {
            abort();
        }
        (void)block_co_pread(edge, offset, buf, MIN(READ_SIZE, size - offset));
        /* From within a sector, too. */
        offset += status.length > 1000 && i % 3 == 0 ? status.length - 700 : status.length;
    }
    if (size > 0) {
        (void)block_co_pread(edge, size - MIN(size, 5000), buf, MIN(size, 5000));
    }
}

/* What was written has to be read again, while no two blocks of the image share a place. */
static void co_write_some(struct block_edge *edge)
{
    uint64_t size = block_edge_size(edge);

    memset(buf, 0x5a, 3000);
    for (unsigned i = 0; i < 4; i++) {
        uint64_t offset = size / 4 * i + 100 * i;

        if (range_fits(offset, 3000, size)) {
            (void)block_co_pwrite(edge, offset, buf, 3000, 0);
            (void)block_co_write_zeroes(edge, offset, MIN(size - offset, 100000), 0);
        }
    }
    (void)block_co_flush(edge);
}

static void co_try(void *arg)
{
    const struct attempt *a = arg;
    unsigned perm = BLOCK_PERM_CONSISTENT_READ | (a->writes ? BLOCK_PERM_WRITE : 0);
    struct block_check_result result;
    struct options *opts = NULL;
    struct block_node *node;
    struct block_root *root;
    ERROR_AUTO(err);
    char text[200];

    snprintf(text, sizeof(text), "driver=%s,read-only=%s,file.driver=memory-file,file.name=image%s",
             a->format, a->writes ? "off" : "on",
             parent_size > 0 ? ",backing.driver=memory-file,backing.name=parent" : "");
    if (options_parse(text, NULL, &opts, &err) < 0) {
        abort();
    }
    if (block_co_open(opts, a->writes ? BLOCK_OPEN_RDWR : 0, &node, &err) < 0) {
        return;
    }
    if (block_co_root_new(node, "fuzz", perm, BLOCK_PERM_ALL, &root, NULL) < 0) {
        abort();
    }
    (void)block_co_check(node, 0, &result, NULL);
    co_read_all(block_root_edge(root));
    if (a->writes) {
        co_write_some(block_root_edge(root));
        co_read_all(block_root_edge(root));
    }
    block_co_root_release(root);
    block_co_unref(node);
}

void format_image_try_parts(const char *format, const struct format_parts *parts, int writes)
{
    struct memory_file *file = memory_file("image");
    struct attempt a = {.format = format};

    for (int i = 0; i < (writes ? 2 : 1); i++) {
        memory_file_clear(file, parts->size);
        for (size_t n = 0; n < parts->count; n++) {
            const struct format_part *part = &parts->part[n];

            if (part->length > 0) {
                memcpy(file->data + part->offset, part->data, part->length);
            }
        }
        file->limit = FILE_MAX;
        a.writes = i == 1;
        reactor_run_until_done(co_try, &a);
    }
}

void format_image_try(const char *format, const uint8_t *data, size_t size, int writes)
{
    const struct format_part whole = {0, data, size};

    format_image_try_parts(format, &(struct format_parts){&whole, 1, size}, writes);
}

void format_image_set_parent(uint64_t size)
{
    memory_file_clear(memory_file("parent"), size);
    parent_size = size;
}

static void stop_format_image(void)
{
    memory_file_free_all();
    reactor_exit_main();
}

void format_image_init(void (*register_driver)(void))
{
    ERROR_AUTO(err);

    if (reactor_init_main(&err) < 0) {
        abort();
    }
    atexit(stop_format_image);
    block_register_driver(&memory_file_driver);
    register_driver();
}
