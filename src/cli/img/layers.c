/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/img/layers.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "base/time_units.h"
#include "nbd/client.h"
#include "nbd/uri.h"

#define CONNECT_NS (30 * NS_PER_SECOND)
/* Bytes of the disk per request, so that each answer is quick to compute. */
#define LAYERS_STEP (64 * GiB)

void layer_map_clear(struct layer_map *map)
{
    free(map->list);
    *map = (struct layer_map){0};
}

static int add_layer_extent(struct layer_map *map, struct layer_extent extent)
{
    struct layer_extent *last = map->count > 0 ? &map->list[map->count - 1] : NULL;

    if (last && last->flags == extent.flags) {
        last->length += extent.length;
        return 0;
    }
    if (map->count == map->capacity) {
        size_t capacity = map->capacity ? 2 * map->capacity : 1024;
        struct layer_extent *list = realloc(map->list, capacity * sizeof(*list));

        if (!list) {
            return -ENOMEM;
        }
        map->list = list;
        map->capacity = capacity;
    }
    assert(map->list);
    map->list[map->count++] = extent;
    return 0;
}

/* All backing files are one, as in the context that has no numbers. */
static uint64_t without_numbers(uint64_t flags)
{
    return (uint32_t)flags | nbd_merged_of_depth(MIN(nbd_merged_depth(flags), 2u));
}

static int co_read_layers(struct layer_map *map, struct nbd_client *client, bool exact_depth)
{
    uint64_t offset = 0;
    int r = 0;

    map->size = nbd_client_size(client);
    while (r == 0 && offset < map->size) {
        struct nbd_extents extents;

        r = nbd_client_co_merged_status(client, offset, MIN(LAYERS_STEP, map->size - offset),
                                        &extents);
        for (size_t i = 0; r == 0 && i < extents.count; i++) {
            struct layer_extent e = {offset, extents.list[i].length, extents.list[i].flags};

            e.flags = exact_depth ? e.flags : without_numbers(e.flags);
            r = add_layer_extent(map, e);
            offset += e.length;
        }
        nbd_extents_clear(&extents);
    }
    return r;
}

int layer_map_co_read(struct layer_map *map, const char *uri, const char *bitmap, bool exact_depth,
                      struct error *err)
{
    struct nbd_uri u CLEANUP(nbd_uri_clear) = {0};
    struct nbd_client_tls tls = {0};
    struct tls_creds *creds = NULL;
    struct nbd_client *client = NULL;
    int r = nbd_uri_parse(uri, &u, err);

    UNLESS_FAILED(r, nbd_tls_params_get(&u.tls, &creds, err));
    tls = (struct nbd_client_tls){.creds = creds, .hostname = u.tls.hostname};
    UNLESS_FAILED(r, nbd_client_co_connect_merged(&u.address, creds ? &tls : NULL, u.export_name,
                                                  bitmap, exact_depth, CONNECT_NS, &client, err));
    if (r == 0) {
        r = co_read_layers(map, client, exact_depth);
        if (r < 0) {
            error_set_errno(err, -r, "Could not read the block status of '%s'", uri);
        }
    }
    nbd_client_co_close(client);
    tls_creds_unref(creds);
    return r;
}
