/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The driver `vhdx`. Options: file; of differencing disks backing and x-other-files, which says
 * whether the parent that the image names may be opened. The open checks headers, regions, metadata
 * and all entries of the BAT, so that no later access is outside the file.
 *
 * An image that was not closed has changes in its log. For reading they are made in memory, and the
 * file stays as it is; for writing they are made in the file first.
 */
#include "vhdx/vhdx.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/byteorder.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "block/option_types.h"
#include "schema/define.h"
#include "vhdx/image.h"

/* The place of a block that is in the file. */
#define PLACE(entry) ((entry) & ~(uint64_t)(VHDX_UNIT - 1))
/* The most of a bitmap that is read at once. */
#define BITMAP_PIECE 512

/* --- I/O -------------------------------------------------------------------------------------- */

static uint64_t vhdx_entry(const struct vhdx *d, uint64_t index)
{
    return __atomic_load_n(&d->table[index], __ATOMIC_ACQUIRE);
}

/* What an entry says of its block; of a block that is here in part DATA. */
static enum blockmap_kind vhdx_kind(const struct vhdx *d, uint64_t entry)
{
    unsigned state = entry & VHDX_STATE_MASK;

    if (state == VHDX_FULLY_PRESENT || state == VHDX_PARTIALLY_PRESENT) {
        return BLOCKMAP_DATA;
    }
    return state == VHDX_NOT_PRESENT && d->has_parent ? BLOCKMAP_ABSENT : BLOCKMAP_ZERO;
}

/* A bit, of the lowest one on, of the sectors of a group. */
static bool vhdx_test_bit(const uint8_t *bits, uint64_t i)
{
    return bits[i / 8] >> (i % 8) & 1;
}

/* The run at `within` of a block of which only some sectors are here. */
static int co_find_in_part(struct block_node *node, uint64_t index, uint64_t within,
                           uint64_t length, struct blockmap_run *ret_run)
{
    const struct vhdx *d = node->opaque;
    uint64_t first = (index % d->chunk_ratio * d->block_size + within) / d->sector_size;
    uint64_t lead = first % 8, count, n = 1;
    uint64_t at = d->bitmaps[index / d->chunk_ratio] + first / 8;
    uint8_t bits[BITMAP_PIECE];
    size_t size = MIN(VHDX_UNIT - first / 8, sizeof(bits));
    bool set;
    int r = block_co_pread(node->file, at, bits, size);

    if (r < 0) {
        return r;
    }
    vhdx_apply_changes(d, at, bits, size);
    count = MIN(length / d->sector_size, size * 8 - lead);
    set = vhdx_test_bit(bits, lead);
    while (n < count && vhdx_test_bit(bits, lead + n) == set) {
        n++;
    }
    *ret_run = (struct blockmap_run){.kind = set ? BLOCKMAP_DATA : BLOCKMAP_ABSENT,
                                     .length = n * d->sector_size,
                                     .edge = node->file,
                                     .host = PLACE(vhdx_entry(d, index)) + within};
    return 0;
}

/* The run at `offset` by the table alone. */
static void find_by_table(const struct block_node *node, uint64_t offset, uint64_t length,
                          struct blockmap_run *ret_run)
{
    const struct vhdx *d = node->opaque;
    uint64_t index = offset / d->block_size, within = offset % d->block_size;
    uint64_t end = offset - within + d->block_size, entry = vhdx_entry(d, index), before = entry;
    enum blockmap_kind kind = vhdx_kind(d, entry);

    while (end < offset + length) {
        uint64_t next = vhdx_entry(d, ++index);

        if (vhdx_kind(d, next) != kind ||
            (kind == BLOCKMAP_DATA && next != before + d->block_size)) {
            break;
        }
        before = next;
        end += d->block_size;
    }
    *ret_run = (struct blockmap_run){.kind = kind,
                                     .length = MIN(length, end - offset),
                                     .edge = node->file,
                                     .host = kind == BLOCKMAP_DATA ? PLACE(entry) + within : 0};
}

static int vhdx_co_find(struct block_node *node, uint64_t offset, uint64_t length,
                        struct blockmap_run *ret_run)
{
    const struct vhdx *d = node->opaque;
    uint64_t index = offset / d->block_size, within = offset % d->block_size;
    int r = 0;

    if ((vhdx_entry(d, index) & VHDX_STATE_MASK) == VHDX_PARTIALLY_PRESENT) {
        r = co_find_in_part(node, index, within, MIN(length, d->block_size - within), ret_run);
    } else {
        find_by_table(node, offset, length, ret_run);
    }
    if (r == 0 && ret_run->kind == BLOCKMAP_DATA && d->change_count > 0 &&
        vhdx_is_changed(d, ret_run->host, ret_run->length)) {
        ret_run->kind = BLOCKMAP_COMPRESSED;
    }
    return r;
}

/* A part of a block that the log changes; no program is known to do that. */
static int vhdx_co_read_patched(struct block_node *node, uint64_t offset, struct iov iov,
                                const struct blockmap_run *run)
{
    AUTO_FREE uint8_t *buf = malloc(iov.size);
    int r = buf ? block_co_pread(node->file, run->host, buf, iov.size) : -ENOMEM;

    if (r == 0) {
        vhdx_apply_changes(node->opaque, run->host, buf, iov.size);
        iov_copy_from_buf(iov, 0, buf, iov.size);
    }
    return r;
}

static int vhdx_co_reserve_locked(struct block_node *node, uint64_t offset, uint64_t length,
                                  struct blockmap_place *ret_place)
{
    struct vhdx *d = node->opaque;
    uint64_t host = d->free_offset, end = host + d->block_size;
    int r = blockmap_co_make_room_locked(node->file, &d->room, end, NULL);

    if (r < 0) {
        return r;
    }
    d->free_offset = end;
    *ret_place =
        (struct blockmap_place){.edge = node->file, .host = host, .is_zero = host >= d->first_size};
    return 0;
}

static void vhdx_co_give_back_locked(struct block_node *node, const struct blockmap_place *place)
{
    struct vhdx *d = node->opaque;

    d->first_size = MAX(d->first_size, d->free_offset);
    d->free_offset = place->host;
}

/* The 4 KiB of the BAT with the entry of a block, with another entry for it. */
static int vhdx_co_link_locked(struct block_node *node, uint64_t offset,
                               const struct blockmap_place *place)
{
    struct vhdx *d = node->opaque;
    uint64_t index = offset / d->block_size, entry = place->host | VHDX_FULLY_PRESENT;
    uint64_t at = d->bat.offset + vhdx_bat_index(d->chunk_ratio, index) * 8;
    uint64_t sector = round_down(at, VHDX_LOG_SECTOR);
    uint8_t bytes[VHDX_LOG_SECTOR];
    int r = block_co_pread(node->file, sector, bytes, sizeof(bytes));

    if (r < 0) {
        return r;
    }
    store_le64(bytes + (at - sector), entry);
    r = vhdx_co_log_locked(node, sector, bytes);
    if (r == 0) {
        __atomic_store_n(&d->table[index], entry, __ATOMIC_RELEASE);
    }
    return r;
}

static const struct blockmap_ops vhdx_map_ops = {
    .co_find = vhdx_co_find,
    .co_read_compressed = vhdx_co_read_patched,
    .co_reserve_locked = vhdx_co_reserve_locked,
    .co_give_back_locked = vhdx_co_give_back_locked,
    .co_link_locked = vhdx_co_link_locked,
    .co_begin_writing_locked = vhdx_co_begin_log_locked,
};

/* --- opening ---------------------------------------------------------------------------------- */

static int check_bat_entry(struct block_node *node, uint32_t index, struct error *err)
{
    struct vhdx *d = node->opaque;
    uint64_t entry = d->table[index], begin = PLACE(entry), length = d->block_size;
    uint64_t file = block_edge_size(node->file);
    unsigned state = entry & VHDX_STATE_MASK;

    if ((state == VHDX_PARTIALLY_PRESENT &&
         (!d->has_parent || d->bitmaps[index / d->chunk_ratio] == 0)) ||
        state == 4 || state == 5) {
        return error_set(err, EINVAL, "Block %" PRIu32 " of image '%s' has the state %u", index,
                         block_node_display_name(node), state);
    }
    if (state != VHDX_FULLY_PRESENT && state != VHDX_PARTIALLY_PRESENT) {
        return 0;
    }
    /* The last block of a file may be cut; what is not there reads as zeroes. */
    if (begin < VHDX_UNIT || begin >= file ||
        ranges_overlap(begin, length, d->bat.offset, d->bat.length) ||
        ranges_overlap(begin, length, d->metadata.offset, d->metadata.length) ||
        ranges_overlap(begin, length, d->header.log_offset, d->header.log_length)) {
        return error_set(err, EINVAL,
                         "Block %" PRIu32 " of image '%s' is not within the file, or in its "
                         "metadata: offset %" PRIu64 ", length %" PRIu64 ", file size %" PRIu64,
                         index, block_node_display_name(node), begin, length, file);
    }
    d->free_offset = MAX(d->free_offset, begin + length);
    return 0;
}

/* Where the bitmap of a group is, of which blocks may be here in part. */
static int keep_bitmap(struct block_node *node, uint64_t group, uint64_t entry, struct error *err)
{
    struct vhdx *d = node->opaque;
    uint64_t begin = PLACE(entry), file = block_edge_size(node->file);

    if ((entry & VHDX_STATE_MASK) != VHDX_FULLY_PRESENT) {
        return 0;
    }
    if (begin < VHDX_UNIT || !range_fits(begin, VHDX_UNIT, file)) {
        return error_set(err, EINVAL,
                         "Bitmap %" PRIu64 " of image '%s' is not within the file: offset %" PRIu64
                         ", file size %" PRIu64,
                         group, block_node_display_name(node), begin, file);
    }
    d->bitmaps[group] = begin;
    return 0;
}

/* Keep the entries: those of bitmaps only of a differencing disk. */
static int keep_entries(struct block_node *node, const uint8_t *bat, struct error *err)
{
    struct vhdx *d = node->opaque;
    uint64_t groups = d->has_parent ? div_round_up(d->blocks, d->chunk_ratio) : 0;
    int r = 0;

    for (uint64_t i = 0; i < groups && r == 0; i++) {
        uint64_t at = (i + 1) * (d->chunk_ratio + 1ULL) - 1;

        r = keep_bitmap(node, i, load_le64(bat + 8 * at), err);
    }
    for (uint32_t i = 0; i < d->blocks && r == 0; i++) {
        d->table[i] = load_le64(bat + 8 * vhdx_bat_index(d->chunk_ratio, i));
        r = check_bat_entry(node, i, err);
    }
    return r;
}

static int co_load_bat(struct block_node *node, struct error *err)
{
    struct vhdx *d = node->opaque;
    uint64_t blocks = div_round_up(d->disk_size, d->block_size), entries;
    AUTO_FREE uint8_t *bat = NULL;
    int r;

    d->chunk_ratio = (uint32_t)((8ULL << 20) * d->sector_size / d->block_size);
    entries = blocks == 0 ? 0 : vhdx_bat_index(d->chunk_ratio, blocks - 1) + 1;
    if (d->has_parent) {
        entries = div_round_up(blocks, d->chunk_ratio) * (d->chunk_ratio + 1ULL);
    }
    if (entries > VHDX_ENTRIES_MAX || entries * 8 > d->bat.length) {
        return error_set(
            err, EINVAL,
            "The block allocation table of image '%s' needs %" PRIu64
            " entries, its region has room for %" PRIu32 ", and at most %llu are supported",
            block_node_display_name(node), entries, d->bat.length / 8, VHDX_ENTRIES_MAX);
    }
    bat = malloc(MAX(entries * 8, 1u));
    d->blocks = (uint32_t)blocks;
    d->table = calloc(MAX(blocks, 1u), sizeof(*d->table));
    d->bitmaps = calloc(blocks / d->chunk_ratio + 1, sizeof(*d->bitmaps));
    if (!bat || !d->table || !d->bitmaps) {
        return error_out_of_memory(err);
    }
    r = vhdx_co_read(node, d->bat.offset, bat, entries * 8, "block allocation table", err);
    return r < 0 ? r : keep_entries(node, bat, err);
}

/* Changes of blocks only matter when these are read; usually there are none. */
static void forget_changes_of_metadata(struct vhdx *d)
{
    size_t kept = 0;

    for (size_t i = 0; i < d->change_count; i++) {
        struct vhdx_change *c = &d->changes[i];
        bool in_bat =
            c->offset >= d->bat.offset && c->offset + c->length <= d->bat.offset + d->bat.length;
        bool in_metadata = c->offset >= d->metadata.offset &&
                           c->offset + c->length <= d->metadata.offset + d->metadata.length;

        if (in_bat || in_metadata || c->offset + c->length <= VHDX_UNIT) {
            free(c->data);
        } else {
            d->changes[kept++] = *c;
        }
    }
    d->change_count = kept;
}

static int co_load_vhdx(struct block_node *node, struct error *err)
{
    struct vhdx *d = node->opaque;
    uint64_t end;
    int r = vhdx_co_read_header(node, err);

    UNLESS_FAILED(r, vhdx_co_read_log(node, err));
    if (r == 0 && !node->read_only && !node->handed_over &&
        !(node->open_flags & BLOCK_OPEN_NO_IO)) {
        r = vhdx_co_replay_log(node, err);
    }
    UNLESS_FAILED(r, vhdx_co_read_regions(node, err));
    UNLESS_FAILED(r, vhdx_co_read_metadata(node, err));
    if (r < 0) {
        return r;
    }
    end = MAX(d->bat.offset + d->bat.length, d->metadata.offset + d->metadata.length);
    d->free_offset = MAX(MAX(end, d->header.log_offset + d->header.log_length),
                         round_up(block_edge_size(node->file), VHDX_UNIT));
    d->first_size = block_edge_size(node->file);
    d->room = (struct blockmap_room){0};
    r = co_load_bat(node, err);
    if (r == 0) {
        forget_changes_of_metadata(d);
        block_node_set_size(node, d->disk_size);
    }
    return r;
}

/* --- the driver ------------------------------------------------------------------------------- */

/* What co_load_vhdx() has allocated. */
static void release_loaded(struct vhdx *d)
{
    vhdx_release_changes(d);
    free(d->table);
    free(d->bitmaps);
    free(d->parent_path);
    d->table = NULL;
    d->bitmaps = NULL;
    d->parent_path = NULL;
}

static void vhdx_co_close(struct block_node *node)
{
    struct vhdx *d = node->opaque;

    blockmap_destroy(&d->map);
    release_loaded(d);
}

static int check_vhdx_writing(const struct block_node *node, struct error *err)
{
    const struct vhdx *d = node->opaque;

    return d->has_parent ? blockmap_refuse_writing(node, "is a differencing disk", err) : 0;
}

static int vhdx_co_open(struct block_node *node, struct options *opts, struct error *err)
{
    struct vhdx *d = node->opaque;
    enum other_files allowed;
    int r = other_files_take(opts, &allowed, err);

    UNLESS_FAILED(r, block_co_open_child(node, opts, "file", BLOCK_ROLE_DATA | BLOCK_ROLE_METADATA,
                                         false, NULL, err));
    UNLESS_FAILED(r, co_load_vhdx(node, err));
    UNLESS_FAILED(r, check_vhdx_writing(node, err));
    if (r == 0 && d->has_parent) {
        r = vhdx_co_open_parent(node, opts, allowed, err);
    }
    if (r < 0) {
        vhdx_co_close(node);
        return r;
    }
    blockmap_init(&d->map, &vhdx_map_ops, d->block_size);
    node->limits.cluster_size = d->block_size;
    node->limits.request_alignment = d->sector_size;
    node->limits.memory_alignment = node->file->node->limits.memory_alignment;
    return 0;
}

static int vhdx_co_inactivate(struct block_node *node, struct error *err)
{
    struct vhdx *d = node->opaque;
    int r = vhdx_co_end_log(node);

    if (r == 0) {
        blockmap_co_cut_room(node->file, &d->room, d->free_offset);
    }
    return r < 0
               ? error_set_errno(err, -r, "Could not complete '%s'", block_node_display_name(node))
               : 0;
}

/* Read what another process may have changed: the header, the log and the BAT. */
static int vhdx_co_reload(struct block_node *node, struct error *err)
{
    struct vhdx *d = node->opaque;
    struct vhdx old = *d;
    int r;

    d->table = NULL;
    d->bitmaps = NULL;
    d->parent_path = NULL;
    d->changes = NULL;
    d->change_count = 0;
    d->bat.length = d->metadata.length = 0;
    d->has_locator = false;
    d->log_is_active = false;
    atomic_store(&d->map.is_writing, false);
    r = co_load_vhdx(node, err);
    release_loaded(r < 0 ? d : &old);
    if (r < 0) {
        *d = old;
    }
    return r;
}

static int vhdx_co_reopen_prepare(struct block_node *node, struct options *opts, struct error *err)
{
    return check_vhdx_writing(node, err);
}

/* An image that becomes writable has no log that is only replayed in memory. */
static int vhdx_co_reopen_finish(struct block_node *node, struct error *err)
{
    const struct vhdx *d = node->opaque;

    return node->read_only || d->log_is_active ? 0 : vhdx_co_reload(node, err);
}

static int vhdx_probe(const uint8_t *head, size_t size)
{
    return size >= 8 && memcmp(head, "vhdxfile", 8) == 0 ? 100 : 0;
}

static int vhdx_co_get_info(struct block_node *node, struct block_info *ret_info)
{
    const struct vhdx *d = node->opaque;

    *ret_info = (struct block_info){.cluster_size = d->block_size};
    return 0;
}

/* Two entries for one place; all else was checked when the image was opened. */
static int compare_places(const void *a, const void *b)
{
    const uint64_t *x = a, *y = b;

    return *x < *y ? -1 : *x > *y;
}

static int vhdx_co_check(struct block_node *node, unsigned fix,
                         struct block_check_result *ret_result, struct error *err)
{
    const struct vhdx *d = node->opaque;
    struct block_check_result result = {0};
    AUTO_FREE uint64_t *places = calloc(MAX(d->blocks, 1u), sizeof(*places));
    size_t count = 0;

    if (!places) {
        return error_out_of_memory(err);
    }
    for (uint32_t i = 0; i < d->blocks; i++) {
        if (vhdx_kind(d, d->table[i]) == BLOCKMAP_DATA) {
            places[count++] = PLACE(d->table[i]);
        }
    }
    qsort(places, count, sizeof(*places), compare_places);
    for (size_t i = 1; i < count; i++) {
        result.corruptions += places[i] - places[i - 1] < d->block_size;
    }
    /* The open has repaired that. */
    result.corruptions_fixed = fix && d->was_replayed;
    *ret_result = result;
    return 0;
}

static const struct schema_type vhdx_options_type =
    OBJECT_INIT("BlockdevOptionsVhdx", REQ("file", block_ref_type),
                OPT("backing", block_ref_or_null_type,
                    .help = "the parent of a differencing disk; default: as the image says"),
                OTHER_FILES_MEMBER);

static const struct block_driver vhdx_driver = {
    .name = "vhdx",
    .help = "format: VHDX of Hyper-V",
    .options = &vhdx_options_type,
    .instance_size = sizeof(struct vhdx),
    .is_format = true,
    .probe = vhdx_probe,
    .co_open = vhdx_co_open,
    .co_close = vhdx_co_close,
    .co_reload = vhdx_co_reload,
    .co_reopen_prepare = vhdx_co_reopen_prepare,
    .co_reopen_finish = vhdx_co_reopen_finish,
    .co_inactivate = vhdx_co_inactivate,
    .reopen_options = block_no_options,
    .exchanges_file = true,
    .file_head = 4096,
    .co_create = vhdx_co_create,
    .co_format = vhdx_co_format,
    .create_options = vhdx_create_options,
    .create_type = &vhdx_create_type,
    .co_get_info = vhdx_co_get_info,
    .co_check = vhdx_co_check,
    .co_preadv = blockmap_co_preadv,
    .co_pwritev = blockmap_co_pwritev,
    .co_write_zeroes = blockmap_co_write_zeroes,
    .co_status = blockmap_co_status,
};

void vhdx_register_driver(void)
{
    block_register_driver(&vhdx_driver);
}
