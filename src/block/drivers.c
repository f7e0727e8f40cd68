/* SPDX-License-Identifier: Apache-2.0 */
/* The table of drivers. */
#include <assert.h>
#include <string.h>

#include "block/internal.h"

static struct block_driver drivers[BLOCK_DRIVERS_MAX];
static size_t driver_count;

void block_drivers_add(const struct block_driver *driver)
{
    assert(driver_count < BLOCK_DRIVERS_MAX);
    drivers[driver_count++] = *driver;
}

const struct block_driver *block_find_driver(const char *name)
{
    for (size_t i = 0; i < driver_count; i++) {
        if (strcmp(drivers[i].name, name) == 0) {
            return &drivers[i];
        }
    }
    return NULL;
}

const struct block_driver *block_driver_of_filename(const char *filename)
{
    size_t len = strcspn(filename, ":/");

    if (filename[len] != ':') {
        return NULL;
    }
    for (size_t i = 0; i < driver_count; i++) {
        for (const char *const *s = drivers[i].schemes; s && *s; s++) {
            if (strlen(*s) == len && memcmp(*s, filename, len) == 0) {
                return &drivers[i];
            }
        }
    }
    return NULL;
}

const struct block_driver *block_next_driver(const struct block_driver *d)
{
    size_t next = d ? (size_t)(d - drivers) + 1 : 0;

    return next < driver_count ? &drivers[next] : NULL;
}

const char *block_driver_name(const struct block_driver *d)
{
    return d->name;
}

bool block_driver_is_usable(const struct block_driver *d)
{
    return !d->is_internal && (d->co_preadv || d->co_preadv_snapshot);
}

int block_refuse_driver(const char *name, struct error *err)
{
    const struct block_driver *d = block_find_driver(name);

    return d && d->refuse ? d->refuse(name, err) : 0;
}

unsigned block_driver_traits(const struct block_driver *d)
{
    return (d->is_format ? BLOCK_DRIVER_FORMAT : 0) | (d->is_filter ? BLOCK_DRIVER_FILTER : 0) |
           (d->is_protocol ? BLOCK_DRIVER_PROTOCOL : 0) |
           (d->co_create ? BLOCK_DRIVER_CREATES : 0) |
           (d->co_can_store_bitmap ? BLOCK_DRIVER_STORES_BITMAPS : 0) |
           (d->co_change_backing || d->takes_backing ? BLOCK_DRIVER_BACKING : 0) |
           (d->keeps_zero_beyond_eof ? BLOCK_DRIVER_ZERO_BEYOND_EOF : 0) |
           (d->noise_when_new ? BLOCK_DRIVER_NOISE_WHEN_NEW : 0) |
           (d->compresses ? BLOCK_DRIVER_COMPRESSES : 0);
}

unsigned block_node_traits(const struct block_node *node)
{
    return block_driver_traits(node->driver);
}

const struct block_option_desc *block_driver_create_options(const struct block_driver *d)
{
    return d->create_options;
}

const struct block_option_desc *block_driver_amend_options(const struct block_driver *d)
{
    return d->amend_options;
}

bool block_driver_parses_filename(const struct block_driver *d)
{
    return d->parse_filename != NULL;
}

int block_driver_parse_filename(const struct block_driver *d, const char *filename,
                                struct options *opts, struct error *err)
{
    return d->parse_filename(filename, opts, err);
}
