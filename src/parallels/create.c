/* SPDX-License-Identifier: Apache-2.0 */
/* Making images of Parallels: those with the magic "WithouFreSpacExt". */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/byteorder.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "block/option_types.h"
#include "blockmap/create.h"
#include "parallels/image.h"
#include "schema/define.h"

/* Of new disks, which has no meaning but for guests that ask for one. */
enum { HEADS = 16, SECTORS_OF_A_TRACK = 32 };

const struct block_option_desc parallels_create_options[] = {
    {"cluster_size", "size", "Parallels image cluster size"},
    {NULL, NULL, NULL},
};

const struct schema_type parallels_create_type =
    OBJECT_INIT("BlockdevCreateOptionsParallels", REQ("file", block_ref_type),
                REQ("size", schema_size, .unit = "bytes"),
                OPT("cluster-size", schema_size, .unit = "bytes", .dflt = "1048576"));

struct parallels_create {
    uint64_t sectors;
    uint32_t tracks, entries;
    /* Of the data area, in sectors. */
    uint32_t data;
};

/* `exact`: sizes are not rounded up. */
static int take_parallels_create(struct parallels_create *c, uint64_t size, bool exact,
                                 struct options *opts, struct error *err)
{
    uint64_t cluster_size, tracks, entries, data;
    int r;

    if ((r = options_take_size(opts, "cluster_size", PARALLELS_CLUSTER_DEFAULT, &cluster_size,
                               err)) < 0 ||
        (r = blockmap_take_preallocation(opts, err)) < 0 ||
        (r = options_check_empty(opts, "Format 'parallels'", err)) < 0) {
        return r;
    }
    if (exact && !is_aligned(size, PARALLELS_SECTOR)) {
        return error_set(err, EINVAL, "Image size must be a multiple of 512 bytes");
    }
    if (exact && !is_aligned(cluster_size, PARALLELS_SECTOR)) {
        return error_set(err, EINVAL, "Cluster size must be a multiple of 512 bytes");
    }
    tracks = div_round_up(cluster_size, PARALLELS_SECTOR);
    if (tracks > PARALLELS_TRACKS_MAX) {
        return error_set(err, EINVAL, "Cluster size is too large");
    }
    entries = tracks ? div_round_up(size, tracks * PARALLELS_SECTOR) : UINT64_MAX;
    if (entries > PARALLELS_TABLE_MAX) {
        return error_set(err, E2BIG, "Image size is too large for this cluster size");
    }
    data = div_round_up(parallels_bat_end(entries), tracks * PARALLELS_SECTOR) * tracks;
    *c = (struct parallels_create){
        .sectors = div_round_up(size, PARALLELS_SECTOR),
        .tracks = (uint32_t)tracks,
        .entries = (uint32_t)entries,
        .data = (uint32_t)data,
    };
    return 0;
}

static int co_write_parallels(struct block_edge *file, const void *arg, struct error *err)
{
    const struct parallels_create *c = arg;
    uint64_t cylinders = c->sectors / ((uint64_t)HEADS * SECTORS_OF_A_TRACK);
    uint8_t h[PARALLELS_SECTOR] = {0};
    int r = blockmap_co_clear_file(file, (uint64_t)c->data * PARALLELS_SECTOR, err);

    if (r < 0) {
        return r;
    }
    memcpy(h, parallels_magic_extended, PARALLELS_MAGIC_SIZE);
    store_le32(h + PARALLELS_AT_VERSION, PARALLELS_VERSION);
    store_le32(h + PARALLELS_AT_HEADS, HEADS);
    store_le32(h + PARALLELS_AT_CYLINDERS, (uint32_t)MIN(cylinders, UINT32_MAX));
    store_le32(h + PARALLELS_AT_TRACKS, c->tracks);
    store_le32(h + PARALLELS_AT_ENTRIES, c->entries);
    store_le64(h + PARALLELS_AT_SECTORS, c->sectors);
    store_le32(h + PARALLELS_AT_DATA, c->data);
    r = block_co_pwrite(file, 0, h, sizeof(h), 0);
    return r < 0 ? error_set_errno(err, -r, "Could not write the header of the image") : 0;
}

int parallels_co_create(const char *filename, uint64_t size, struct options *opts,
                        struct error *err)
{
    struct parallels_create c;
    AUTO_OPTIONS struct options *file_options = NULL;
    int r = blockmap_take_file_options(opts, &file_options, err);

    UNLESS_FAILED(r, take_parallels_create(&c, size, false, opts, err));
    return r < 0 ? r
                 : blockmap_co_create_file(filename, TAKE_PTR(file_options), co_write_parallels, &c,
                                           err);
}

int parallels_co_format(struct block_node *file, struct block_node *data_file, uint64_t size,
                        struct options *opts, struct error *err)
{
    struct parallels_create c;
    int r = take_parallels_create(&c, size, true, opts, err);

    return r < 0 ? r : blockmap_co_format(file, co_write_parallels, &c, err);
}
