/* SPDX-License-Identifier: Apache-2.0 */
/* Making image files. */
#include <errno.h>

#include "base/checked.h"
#include "block/internal.h"

#define CREATE_SECTOR 512

static block_creation_fn *creation_fn;

void block_set_creation_fn(block_creation_fn *fn)
{
    creation_fn = fn;
}

int block_co_create_image(const char *format, const char *filename, uint64_t size,
                          struct options *opts_in, struct error *err)
{
    AUTO_OPTIONS struct options *opts = opts_in ? opts_in : options_new();
    const struct block_driver *driver = block_find_driver(format);
    int r;

    if (!opts) {
        return error_out_of_memory(err);
    }
    if (!driver) {
        return error_set(err, EINVAL, "Unknown file format '%s'", format);
    }
    if (!driver->co_create) {
        return error_set(err, ENOTSUP, "Format driver '%s' does not support image creation",
                         format);
    }
    r = block_check_scheme(filename, err);
    if (r < 0) {
        return r;
    }
    /* Disks have whole sectors. The driver refuses sizes that are too large. */
    size = size > INT64_MAX - CREATE_SECTOR ? size : round_up(size, CREATE_SECTOR);
    if (creation_fn) {
        creation_fn(format, filename, size, opts);
    }
    return driver->co_create(filename, size, opts, err);
}

int block_co_create_file(const char *filename, struct options *opts_in,
                         struct block_root **ret_root, struct error *err)
{
    const struct block_driver *driver = block_driver_of_filename(filename);
    AUTO_OPTIONS struct options *opts = opts_in ? opts_in : options_new();
    struct block_node *node;
    int r = 0;

    if (!opts) {
        return error_out_of_memory(err);
    }
    driver = driver ? driver : block_find_driver("file");
    if (driver->co_create) {
        r = driver->co_create(filename, 0, opts, err);
    }
    UNLESS_FAILED(
        r, block_co_open_filename(filename, driver->name, NULL, BLOCK_OPEN_RDWR, &node, err));
    if (r < 0) {
        return r;
    }
    r = block_co_root_new_exempt(node, "image creation",
                                 BLOCK_PERM_CONSISTENT_READ | BLOCK_PERM_WRITE | BLOCK_PERM_RESIZE,
                                 BLOCK_PERM_CONSISTENT_READ, ret_root, err);
    block_co_unref(node);
    return r;
}

void block_co_remove_unfinished(const char *filename)
{
    const struct block_driver *driver = block_driver_of_filename(filename);

    driver = driver ? driver : block_find_driver("file");
    if (driver && driver->co_remove) {
        (void)driver->co_remove(filename);
    }
}

bool block_driver_formats_nodes(const struct block_driver *driver)
{
    return driver->co_format;
}

int block_co_create_exactly(const struct block_driver *driver, const char *filename, uint64_t size,
                            struct options *opts_in, struct error *err)
{
    AUTO_OPTIONS struct options *opts = opts_in;

    return driver->co_create(filename, size, opts, err);
}

int block_co_format_node(const struct block_driver *driver, struct block_node *file,
                         struct block_node *data_file, uint64_t size, struct options *opts_in,
                         struct error *err)
{
    AUTO_OPTIONS struct options *opts = opts_in;

    return driver->co_format(file, data_file, size, opts, err);
}

int block_co_format_begin(struct block_node *node, struct block_root **ret_root, struct error *err)
{
    return block_co_root_new(node, "image creation", BLOCK_PERM_WRITE | BLOCK_PERM_RESIZE,
                             BLOCK_PERM_ALL, ret_root, err);
}
