/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The header of a sparse extent. All numbers are little-endian; offsets and sizes are sectors.
 *
 *        0  "KDMV"                        40  length of the descriptor
 *        4  version, 1 to 3               44  entries of a grain table
 *        8  flags                         48  offset of the copy of the grain directory
 *       12  capacity                      56  offset of the grain directory, or all ones
 *       20  size of a grain               64  sectors of metadata before the first grain
 *       28  offset of the descriptor      72  not closed properly
 *       36  length of the descriptor      73  "\n \r\n"
 *                                         77  compression: 0, or 1 for deflate
 *
 * The footer of an extent that was written as a stream is a copy of the header, the sector before
 * the last one, with the offset of the directory.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/byteorder.h"
#include "base/checked.h"
#include "vmdk/image.h"

enum {
    FLAG_LINE_ENDS = 1 << 0,
    FLAG_COPIES = 1 << 1,
    FLAG_ZERO_GRAINS = 1 << 2,
    FLAG_COMPRESSED = 1 << 16,
    FLAG_MARKERS = 1 << 17
};

#define GRAIN_MAX (1 * GiB)
/* Of a compressed grain, which is held in memory. */
#define COMPRESSED_GRAIN_MAX (32 * MiB)
/* Entries of all grain directories: 32 MiB of memory, for 256 TiB in grains of 64 KiB. */
#define DIRECTORY_MAX (8ull * 1024 * 1024)

void vmdk_extent_release(struct vmdk_extent *e)
{
    if (e->has_cache_lock) {
        pthread_mutex_destroy(&e->cache_lock);
        e->has_cache_lock = false;
    }
    free(e->directory);
    free(e->copies);
    free(e->cache);
    free(e->inflated);
    e->directory = e->copies = NULL;
    e->cache = NULL;
    e->inflated = NULL;
}

static int check_kind(const uint8_t *h, const char *name, struct error *err)
{
    uint32_t version = load_le32(h + 4);

    if (memcmp(h, "KDMV", 4) != 0) {
        return memcmp(h, "COWD", 4) == 0
                   ? error_set(err, ENOTSUP, "Extents of ESX ('COWD') are not supported: '%s'",
                               name)
                   : error_set(err, EINVAL, "Image not in VMDK format: '%s'", name);
    }
    if (version < 1 || version > 3) {
        return error_set(err, ENOTSUP,
                         "Unsupported VMDK version %" PRIu32 " of '%s', expected 1 "
                         "to 3",
                         version, name);
    }
    if (load_le16(h + 77) > 1) {
        return error_set(err, ENOTSUP, "Unsupported compression %u of '%s', expected 0 or 1",
                         load_le16(h + 77), name);
    }
    return 0;
}

/* Sectors to bytes; false: too many. */
static bool to_bytes(uint64_t sectors, uint64_t *ret_bytes)
{
    return sectors <= INT64_MAX / VMDK_SECTOR && (*ret_bytes = sectors * VMDK_SECTOR, true);
}

static int parse_sparse_header(struct block_node *node, struct vmdk_extent *e, const uint8_t *h,
                               struct error *err)
{
    const char *name = block_node_display_name(node);
    uint32_t flags = load_le32(h + 8);
    uint64_t grain = load_le64(h + 20), overhead, per_table;
    int r = check_kind(h, name, err);

    if (r < 0) {
        return r;
    }
    e->compressed = (flags & FLAG_COMPRESSED) || load_le16(h + 77) == 1;
    e->has_markers = flags & FLAG_MARKERS;
    e->has_zero_grains = flags & FLAG_ZERO_GRAINS;
    e->table_entries = load_le32(h + 44);
    if (grain == 0 || grain > GRAIN_MAX / VMDK_SECTOR || !is_power_of_2(grain) ||
        (e->compressed && grain > COMPRESSED_GRAIN_MAX / VMDK_SECTOR)) {
        return error_set(err, EINVAL, "Invalid granularity, image may be corrupt");
    }
    if (e->table_entries == 0 || e->table_entries > VMDK_TABLE_MAX) {
        return error_set(err, EINVAL, "L2 table size too big");
    }
    e->grain_size = grain * VMDK_SECTOR;
    if (!to_bytes(load_le64(h + 12), &e->size)) {
        return error_set(err, EFBIG, "L1 size too big");
    }
    if (!to_bytes(load_le64(h + 64), &overhead) ||
        !to_bytes(load_le64(h + 28), &e->descriptor_offset) ||
        !to_bytes(load_le64(h + 36), &e->descriptor_size)) {
        return error_set(err, EFBIG, "A size in the header of '%s' is over the limit of 2^63 bytes",
                         name);
    }
    per_table = e->grain_size * e->table_entries;
    if (div_round_up(e->size, per_table) > DIRECTORY_MAX) {
        return error_set(err, EFBIG, "L1 size too big");
    }
    e->directory_entries = (uint32_t)div_round_up(e->size, per_table);
    if (overhead > block_edge_size(e->edge)) {
        return error_set(err, EINVAL, "File truncated, expecting at least %" PRIu64 " bytes",
                         overhead);
    }
    if ((load_le32(h + 8) & FLAG_LINE_ENDS) && (h[73] != '\n' || h[75] != '\r' || h[76] != '\n')) {
        return error_set(err, EINVAL,
                         "The header of '%s' was changed by a transfer as text: line ends differ",
                         name);
    }
    return 0;
}

/* The directory at a sector; each of its tables has to be within the file. */
static int co_load_directory(struct block_node *node, struct vmdk_extent *e, uint64_t sector,
                             const char *what, uint32_t **ret_directory, struct error *err)
{
    const char *name = block_node_display_name(node);
    uint64_t offset, table_size = (uint64_t)e->table_entries * 4;
    uint32_t *directory;
    int r;

    if (!to_bytes(sector, &offset) ||
        !range_fits(offset, (uint64_t)e->directory_entries * 4, block_edge_size(e->edge))) {
        return error_set(err, EINVAL,
                         "The %s of '%s' is not within the file: sector %" PRIu64 ", %" PRIu32
                         " entries, file size %" PRIu64,
                         what, name, sector, e->directory_entries, block_edge_size(e->edge));
    }
    *ret_directory = directory = calloc(MAX(e->directory_entries, 1u), sizeof(*directory));
    if (!directory) {
        return error_out_of_memory(err);
    }
    r = blockmap_co_read_exactly(node, e->edge, offset, directory,
                                 e->directory_entries * sizeof(*directory), what, err);
    for (uint32_t i = 0; i < e->directory_entries && r == 0; i++) {
        uint64_t at = (uint64_t)(directory[i] = load_le32(&directory[i])) * VMDK_SECTOR;

        if (at != 0 && !range_fits(at, table_size, block_edge_size(e->edge))) {
            r = error_set(err, EINVAL,
                          "Grain table %" PRIu32 " of '%s' is not within the file: offset "
                          "%" PRIu64 ", length %" PRIu64 ", file size %" PRIu64,
                          i, name, at, table_size, block_edge_size(e->edge));
        }
    }
    return r;
}

/* The header that counts: the footer, where the directory was written at the end. */
static int co_read_footer(struct block_node *node, struct vmdk_extent *e, uint8_t *h,
                          struct error *err)
{
    uint64_t size = block_edge_size(e->edge);
    int r;

    if (load_le64(h + 56) != UINT64_MAX) {
        return 0;
    }
    if (size < (uint64_t)4 * VMDK_SECTOR) {
        return error_set(err, EINVAL, "'%s' has no footer: it has %" PRIu64 " bytes",
                         block_node_display_name(node), size);
    }
    r = blockmap_co_read_exactly(node, e->edge, size - (uint64_t)2 * VMDK_SECTOR, h,
                                 VMDK_HEADER_SIZE, "footer", err);
    if (r == 0 && memcmp(h, "KDMV", 4) != 0) {
        r = error_set(err, EINVAL,
                      "Invalid footer: '%s' is incomplete, or something was appended (%" PRIu64
                      " bytes)",
                      block_node_display_name(node), size);
    }
    UNLESS_FAILED(r, parse_sparse_header(node, e, h, err));
    if (r == 0 && load_le64(h + 56) == UINT64_MAX) {
        r = error_set(err, EINVAL, "The footer of '%s' has no grain directory",
                      block_node_display_name(node));
    }
    return r;
}

static int prepare_cache(struct vmdk_extent *e, struct error *err)
{
    pthread_mutex_init(&e->cache_lock, NULL);
    e->has_cache_lock = true;
    return vmdk_make_table_cache(e) < 0 ? error_out_of_memory(err) : 0;
}

void vmdk_extent_reload(struct vmdk_extent *e)
{
    pthread_mutex_lock(&e->cache_lock);
    vmdk_forget_tables_locked(e);
    e->inflated_host = 0;
    e->free_offset = e->first_size = round_up(block_edge_size(e->edge), VMDK_SECTOR);
    e->room = (struct blockmap_room){0};
    pthread_mutex_unlock(&e->cache_lock);
}

int vmdk_co_open_sparse(struct block_node *node, struct vmdk_extent *e, struct error *err)
{
    struct vmdk *d = node->opaque;
    uint8_t h[VMDK_HEADER_SIZE];
    int r = blockmap_co_read_exactly(node, e->edge, 0, h, sizeof(h), "header", err);
    bool has_copies;

    e->type = VMDK_SPARSE;
    UNLESS_FAILED(r, parse_sparse_header(node, e, h, err));
    UNLESS_FAILED(r, co_read_footer(node, e, h, err));
    if (r == 0 && (d->directory_entries += e->directory_entries) > DIRECTORY_MAX) {
        r = error_set(err, EFBIG, "L1 size too big");
    }
    UNLESS_FAILED(r, prepare_cache(e, err));
    UNLESS_FAILED(
        r, co_load_directory(node, e, load_le64(h + 56), "grain directory", &e->directory, err));
    has_copies = r == 0 && (load_le32(h + 8) & FLAG_COPIES) && load_le64(h + 48) != 0;
    if (has_copies) {
        r = co_load_directory(node, e, load_le64(h + 48), "copy of the grain directory", &e->copies,
                              err);
    }
    if (r == 0) {
        e->free_offset = e->first_size = round_up(block_edge_size(e->edge), VMDK_SECTOR);
    }
    return r;
}
