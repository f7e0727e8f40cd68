/* SPDX-License-Identifier: Apache-2.0 */
/* Making image files. */
#include <errno.h>
#include <stdio.h>

#include "block/internal.h"

int block_co_create_image(const char *format, const char *filename, uint64_t size,
                          struct options *opts_in, struct error *err)
{
    AUTO_OPTIONS struct options *opts = opts_in ? opts_in : options_new();
    const struct block_driver *driver = block_find_driver(format);
    char what[96];
    int r;

    if (!opts) {
        return error_set(err, ENOMEM, "Out of memory");
    }
    if (!driver) {
        return error_set(err, EINVAL, "Unknown file format '%s'", format);
    }
    if (!driver->co_create) {
        return error_set(err, ENOTSUP, "Format driver '%s' does not support image creation",
                         format);
    }
    r = driver->co_create(filename, size, opts, err);
    if (r < 0) {
        return r;
    }
    snprintf(what, sizeof(what), "Format '%s'", format);
    return options_check_empty(opts, what, err);
}
