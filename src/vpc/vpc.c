/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The driver `vpc`. Options: file; force_size_calc, the rule by which the disk has its size; of
 * differencing disks backing and x-other-files, which says whether the parent that the image names
 * may be opened.
 *
 *      fixed       data | footer
 *      dynamic     copy of the footer | header | table | blocks ... | footer
 *
 * An entry of the table is the sector at which a block begins: a bitmap, in whole sectors, of the
 * sectors of the block that have data (the highest bit of a byte first), then these. Sectors
 * without data are zeroes, or the parent's.
 *
 * A new block takes the place of the footer, which is first written far behind it, and goes to its
 * place when the image is completed. Until then the copy at the beginning of the file, which never
 * changes, is the one that counts.
 *
 * The open checks header and table, so that no later access is outside the file.
 */
#include "vpc/vpc.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/byteorder.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "blockmap/blockmap.h"
#include "blockmap/other_files.h"
#include "blockmap/windows_path.h"
#include "schema/define.h"
#include "vpc/header.h"

#define ABSENT UINT32_MAX
#define BITMAP_MAX (256 * MiB / VPC_SECTOR / 8)
/* The most of a bitmap that is read at once. */
#define BITMAP_PIECE 512
/* Of a parent's path. */
#define PATH_MAX_BYTES 4096

struct vpc {
    struct blockmap map;
    enum vpc_size_rule rule;
    struct vpc_footer footer;
    struct vpc_header header;
    uint8_t footer_bytes[VPC_FOOTER_SIZE];
    uint32_t entries;
    /* owned; `entries` of each. Sectors, and whether all bits of the bitmap are known to be set. */
    uint32_t *table;
    atomic_bool *is_full;
    /* bytes */
    uint64_t bitmap_size;
    /* Where the next block goes; guarded by map.lock. */
    uint64_t free_offset;
    struct blockmap_room room;
    /* Of the file, when it was opened: what comes behind is ours, and zeroes. */
    uint64_t first_size;
};

/* --- finding ---------------------------------------------------------------------------------- */

static uint32_t entry_at(const struct vpc *d, uint64_t index)
{
    return __atomic_load_n(&d->table[index], __ATOMIC_ACQUIRE);
}

static enum blockmap_kind absent_kind(const struct vpc *d)
{
    return d->footer.type == VPC_DIFFERENCING ? BLOCKMAP_ABSENT : BLOCKMAP_ZERO;
}

static bool vpc_test_bit(const uint8_t *bits, uint64_t i)
{
    return bits[i / 8] >> (7 - i % 8) & 1;
}

static bool all_bits_set(const uint8_t *bits, size_t size)
{
    for (size_t i = 0; i < size; i++) {
        if (bits[i] != 0xff) {
            return false;
        }
    }
    return true;
}

/* The run at `within` of a block whose bitmap has to be asked. */
static int co_find_by_bitmap(struct block_node *node, uint64_t index, uint64_t within,
                             uint64_t length, struct blockmap_run *ret_run)
{
    struct vpc *d = node->opaque;
    uint64_t begin = (uint64_t)entry_at(d, index) * VPC_SECTOR, first = within / VPC_SECTOR;
    uint64_t lead = first % 8, bytes = d->header.block_size / VPC_SECTOR / 8, count, n = 1;
    uint8_t bits[BITMAP_PIECE];
    size_t size = MIN(MAX(bytes, 1u) - first / 8, sizeof(bits));
    bool set;
    int r = block_co_pread(node->file, begin + first / 8, bits, size);

    if (r < 0) {
        return r;
    }
    if (first == 0 && size == bytes && all_bits_set(bits, size)) {
        atomic_store_explicit(&d->is_full[index], true, memory_order_relaxed);
    }
    count = MIN(length / VPC_SECTOR, size * 8 - lead);
    set = vpc_test_bit(bits, lead);
    while (n < count && vpc_test_bit(bits, lead + n) == set) {
        n++;
    }
    *ret_run = (struct blockmap_run){.kind = set ? BLOCKMAP_DATA : absent_kind(d),
                                     .length = n * VPC_SECTOR,
                                     .edge = node->file,
                                     .host = begin + d->bitmap_size + within};
    return 0;
}

static int vpc_co_find(struct block_node *node, uint64_t offset, uint64_t length,
                       struct blockmap_run *ret_run)
{
    struct vpc *d = node->opaque;
    uint64_t block = d->header.block_size, index, within;

    if (d->footer.type == VPC_FIXED) {
        *ret_run = (struct blockmap_run){.kind = BLOCKMAP_DATA,
                                         .length = length,
                                         .edge = node->file,
                                         .host = offset,
                                         .is_preallocated = true};
        return 0;
    }
    index = offset / block;
    within = offset % block;
    if (entry_at(d, index) == ABSENT) {
        uint64_t end = offset - within;

        while (end < offset + length && entry_at(d, index) == ABSENT) {
            end += block;
            index++;
        }
        *ret_run =
            (struct blockmap_run){.kind = absent_kind(d), .length = MIN(length, end - offset)};
        return 0;
    }
    length = MIN(length, block - within);
    if (!atomic_load_explicit(&d->is_full[index], memory_order_relaxed)) {
        return co_find_by_bitmap(node, index, within, length, ret_run);
    }
    *ret_run = (struct blockmap_run){.kind = BLOCKMAP_DATA,
                                     .length = length,
                                     .edge = node->file,
                                     .host = (uint64_t)entry_at(d, index) * VPC_SECTOR +
                                             d->bitmap_size + within};
    return 0;
}

/* --- allocating ------------------------------------------------------------------------------- */

/* All bits of a block's bitmap. */
static int co_set_bits(struct block_node *node, uint64_t begin)
{
    struct vpc *d = node->opaque;
    AUTO_FREE uint8_t *bits = malloc(d->bitmap_size);

    if (!bits) {
        return -ENOMEM;
    }
    memset(bits, 0xff, d->bitmap_size);
    return block_co_pwrite(node->file, begin, bits, d->bitmap_size, 0);
}

/*
 * Give the sectors of a block that have no data zeroes, and when these are stable their bits: what
 * a crash left there must not be shown.
 */
static int co_complete_block_locked(struct block_node *node, uint64_t index)
{
    struct vpc *d = node->opaque;
    struct blockmap_run run = {0};
    int r = 0;

    for (uint64_t at = 0; at < d->header.block_size && r == 0; at += run.length) {
        r = co_find_by_bitmap(node, index, at, d->header.block_size - at, &run);
        if (r == 0 && run.kind != BLOCKMAP_DATA) {
            r = block_co_write_zeroes(node->file, run.host, run.length, 0);
        }
    }
    UNLESS_FAILED(r, block_co_flush(node->file));
    UNLESS_FAILED(r, co_set_bits(node, (uint64_t)entry_at(d, index) * VPC_SECTOR));
    if (r == 0) {
        atomic_store_explicit(&d->is_full[index], true, memory_order_relaxed);
    }
    return r < 0 ? r : -EAGAIN;
}

static int vpc_co_reserve_locked(struct block_node *node, uint64_t offset, uint64_t length,
                                 struct blockmap_place *ret_place)
{
    struct vpc *d = node->opaque;
    uint64_t index = offset / d->header.block_size, begin = d->free_offset;
    uint64_t end = begin + d->bitmap_size + d->header.block_size;
    int r;

    if (entry_at(d, index) != ABSENT) {
        return co_complete_block_locked(node, index);
    }
    if (begin / VPC_SECTOR >= ABSENT) {
        return -EFBIG;
    }
    r = blockmap_co_make_room_locked(node->file, &d->room, end, d->footer_bytes);
    UNLESS_FAILED(r, co_set_bits(node, begin));
    if (r < 0) {
        return r;
    }
    d->free_offset = end;
    *ret_place = (struct blockmap_place){.edge = node->file,
                                         .host = begin + d->bitmap_size,
                                         .is_zero = begin + d->bitmap_size >= d->first_size};
    return 0;
}

static void vpc_co_give_back_locked(struct block_node *node, const struct blockmap_place *place)
{
    struct vpc *d = node->opaque;

    d->first_size = MAX(d->first_size, d->free_offset);
    d->free_offset = place->host - d->bitmap_size;
}

static int vpc_co_link_locked(struct block_node *node, uint64_t offset,
                              const struct blockmap_place *place)
{
    struct vpc *d = node->opaque;
    uint64_t index = offset / d->header.block_size;
    uint32_t sector = (uint32_t)((place->host - d->bitmap_size) / VPC_SECTOR);
    uint8_t entry[4];
    int r;

    store_be32(entry, sector);
    r = block_co_pwrite(node->file, d->header.table_offset + index * sizeof(entry), entry,
                        sizeof(entry), 0);
    if (r == 0) {
        atomic_store_explicit(&d->is_full[index], true, memory_order_relaxed);
        __atomic_store_n(&d->table[index], sector, __ATOMIC_RELEASE);
    }
    return r;
}

static const struct blockmap_ops vpc_map_ops = {
    .co_find = vpc_co_find,
    .co_reserve_locked = vpc_co_reserve_locked,
    .co_give_back_locked = vpc_co_give_back_locked,
    .co_link_locked = vpc_co_link_locked,
};

static const struct blockmap_ops vpc_fixed_ops = {
    .co_find = vpc_co_find,
};

/* --- opening ---------------------------------------------------------------------------------- */

/* Check the entries, and find the end of the last block. */
static int check_entries(struct block_node *node, struct error *err)
{
    struct vpc *d = node->opaque;
    const char *name = block_node_display_name(node);
    uint64_t table = d->header.table_offset, table_size = (uint64_t)d->header.table_entries * 4;
    uint64_t length = d->bitmap_size + d->header.block_size, file = block_edge_size(node->file);

    d->free_offset =
        MAX(round_up(table + table_size, VPC_SECTOR), d->footer.data_offset + VPC_HEADER_SIZE);
    for (uint32_t i = 0; i < d->entries; i++) {
        uint64_t begin = (uint64_t)(d->table[i] = load_be32(&d->table[i])) * VPC_SECTOR;

        if (d->table[i] == ABSENT) {
            continue;
        }
        if (!range_fits(begin, length, file) || begin < VPC_FOOTER_SIZE ||
            ranges_overlap(begin, length, table, table_size)) {
            return error_set(err, EINVAL,
                             "Block %" PRIu32 " of image '%s' is not within the file, or in its "
                             "metadata: offset %" PRIu64 ", length %" PRIu64 ", file size %" PRIu64,
                             i, name, begin, length, file);
        }
        d->free_offset = MAX(d->free_offset, begin + length);
    }
    return 0;
}

static int co_load_vpc_table(struct block_node *node, struct error *err)
{
    struct vpc *d = node->opaque;
    uint8_t header[VPC_HEADER_SIZE];
    int r = blockmap_co_read_exactly(node, node->file, d->footer.data_offset, header,
                                     sizeof(header), "dynamic header", err);

    UNLESS_FAILED(r, vpc_parse_header(header, block_node_display_name(node), d->footer.disk_size,
                                      &d->header, err));
    if (r < 0) {
        return r;
    }
    d->entries = (uint32_t)div_round_up(d->footer.disk_size, d->header.block_size);
    d->bitmap_size = round_up(div_round_up(d->header.block_size / VPC_SECTOR, 8), VPC_SECTOR);
    if (!range_fits(d->header.table_offset, (uint64_t)d->header.table_entries * 4,
                    block_edge_size(node->file)) ||
        d->header.table_offset < VPC_FOOTER_SIZE) {
        return error_set(err, EINVAL,
                         "Page table of image '%s' is not within the file: offset %" PRIu64
                         ", %" PRIu32 " entries, file size %" PRIu64,
                         block_node_display_name(node), d->header.table_offset,
                         d->header.table_entries, block_edge_size(node->file));
    }
    d->table = calloc(MAX(d->entries, 1u), sizeof(*d->table));
    d->is_full = calloc(MAX(d->entries, 1u), sizeof(*d->is_full));
    if (!d->table || !d->is_full) {
        return error_out_of_memory(err);
    }
    r = blockmap_co_read_exactly(node, node->file, d->header.table_offset, d->table,
                                 d->entries * sizeof(*d->table), "page table", err);
    return r < 0 ? r : check_entries(node, err);
}

/* The footer: its copy at the beginning, or itself at the end. */
static int co_load_vpc_footer(struct block_node *node, struct error *err)
{
    struct vpc *d = node->opaque;
    const char *name = block_node_display_name(node);
    uint64_t file = block_edge_size(node->file);
    bool at_end = false;
    int r;

    if (file < VPC_FOOTER_SIZE) {
        return error_set(err, EINVAL, "File too small for a VHD header");
    }
    r = blockmap_co_read_exactly(node, node->file, 0, d->footer_bytes, VPC_FOOTER_SIZE, "footer",
                                 err);

    if (r == 0 && !vpc_is_footer(d->footer_bytes)) {
        at_end = true;
        r = blockmap_co_read_exactly(node, node->file, file - VPC_FOOTER_SIZE, d->footer_bytes,
                                     VPC_FOOTER_SIZE, "footer", err);
    }
    if (r == 0 && !vpc_is_footer(d->footer_bytes)) {
        r = error_set(err, EINVAL, "Image not in VHD format: '%s' has no footer 'conectix'", name);
    }
    UNLESS_FAILED(r, vpc_parse_footer(d->footer_bytes, name, d->rule, &d->footer, err));
    if (r == 0 && d->footer.type == VPC_FIXED &&
        !range_fits(d->footer.disk_size, at_end ? VPC_FOOTER_SIZE : 0, file)) {
        r = error_set(err, EINVAL,
                      "Image '%s' is shorter than its disk: %" PRIu64 " bytes, expected %" PRIu64,
                      name, file, d->footer.disk_size + VPC_FOOTER_SIZE);
    }
    return r;
}

/* --- parents ---------------------------------------------------------------------------------- */

enum {
    PLATFORM_RELATIVE = 0x57327275, /* "W2ru" */
    PLATFORM_ABSOLUTE = 0x57326b75, /* "W2ku" */
    PLATFORM_MAC = 0x4d616358       /* "MacX" */
};

/* The text of a locator of that platform; *ret_path is NULL if there is none. */
static int co_read_locator(struct block_node *node, uint32_t platform, char **ret_path,
                           struct error *err)
{
    struct vpc *d = node->opaque;

    *ret_path = NULL;
    for (unsigned i = 0; i < VPC_LOCATORS; i++) {
        const struct vpc_locator *l = &d->header.locator[i];
        uint8_t bytes[PATH_MAX_BYTES];
        AUTO_FREE char *path = NULL;
        int r;

        if (l->platform != platform || l->length == 0 || l->length > sizeof(bytes)) {
            continue;
        }
        r = blockmap_co_read_exactly(node, node->file, l->offset, bytes, l->length,
                                     "locator of the parent", err);
        if (r < 0) {
            return r;
        }
        path = calloc(2 * l->length + 1, 1);
        if (!path) {
            return error_out_of_memory(err);
        }
        if (platform == PLATFORM_MAC) {
            memcpy(path, bytes, l->length);
        } else if (!text_from_utf16(bytes, l->length / 2, false, path)) {
            continue;
        }
        windows_path_convert(path);
        *ret_path = TAKE_PTR(path);
        return 0;
    }
    return 0;
}

/* The path by which the image names its parent. */
static int co_parent_name(struct block_node *node, char **ret_name, struct error *err)
{
    static const uint32_t platforms[] = {PLATFORM_RELATIVE, PLATFORM_ABSOLUTE, PLATFORM_MAC};
    struct vpc *d = node->opaque;

    *ret_name = NULL;
    for (size_t i = 0; i < ARRAY_SIZE(platforms) && !*ret_name; i++) {
        int r = co_read_locator(node, platforms[i], ret_name, err);

        if (r < 0) {
            return r;
        }
    }
    if (!*ret_name) {
        *ret_name = strdup(d->header.parent_name);
        if (!*ret_name) {
            return error_out_of_memory(err);
        }
        windows_path_convert(*ret_name);
    }
    return 0;
}

static int check_parent(struct block_node *node, struct error *err)
{
    const struct vpc *d = node->opaque;
    struct block_node *parent = node->backing ? node->backing->node : NULL;
    const struct vpc *p;

    if (!parent || strcmp(parent->driver->name, "vpc") != 0) {
        return 0; /* the user chose it */
    }
    p = parent->opaque;
    if (memcmp(p->footer.uuid, d->header.parent_uuid, VPC_UUID_SIZE) != 0) {
        return error_set(err, EINVAL,
                         "The parent '%s' of image '%s' has another UUID than the image expects",
                         block_node_display_name(parent), block_node_display_name(node));
    }
    return 0;
}

static int vpc_co_open_parent(struct block_node *node, struct options *opts,
                              enum other_files allowed, struct error *err)
{
    AUTO_FREE char *name = NULL;
    AUTO_FREE char *path = NULL;
    int r = 0;

    if (!options_has(opts, "backing") && !(node->open_flags & BLOCK_OPEN_NO_BACKING)) {
        r = co_parent_name(node, &name, err);
        UNLESS_FAILED(r, other_files_co_resolve(node, allowed, name, "parent", &path, err));
        UNLESS_FAILED(r, other_files_pass_on(opts, allowed, err));
    }
    UNLESS_FAILED(r, block_co_open_backing(node, opts, name, "vpc", err));
    return r < 0 ? r : check_parent(node, err);
}

/* --- the driver ------------------------------------------------------------------------------- */

static void vpc_co_close(struct block_node *node)
{
    struct vpc *d = node->opaque;

    blockmap_destroy(&d->map);
    free(d->table);
    free(d->is_full);
    d->table = NULL;
    d->is_full = NULL;
}

static int co_load_vpc(struct block_node *node, struct error *err)
{
    struct vpc *d = node->opaque;
    int r = co_load_vpc_footer(node, err);

    d->first_size = block_edge_size(node->file);
    d->room = (struct blockmap_room){0};
    if (r == 0 && d->footer.type != VPC_FIXED) {
        r = co_load_vpc_table(node, err);
    }
    return r;
}

/* The footer goes behind the last block. */
static int vpc_co_inactivate(struct block_node *node, struct error *err)
{
    struct vpc *d = node->opaque;
    int r = 0;

    if (d->room.is_used) {
        r = block_co_pwrite(node->file, d->free_offset, d->footer_bytes, VPC_FOOTER_SIZE, 0);
    }
    if (r == 0) {
        blockmap_co_cut_room(node->file, &d->room, d->free_offset + VPC_FOOTER_SIZE);
    }
    return r < 0 ? error_set_errno(err, -r, "Could not write the footer of '%s'",
                                   block_node_display_name(node))
                 : 0;
}

static int check_vpc_writing(const struct block_node *node, struct error *err)
{
    const struct vpc *d = node->opaque;

    return d->footer.type == VPC_DIFFERENCING
               ? blockmap_refuse_writing(node, "is a differencing disk", err)
               : 0;
}

static int vpc_co_reopen_prepare(struct block_node *node, struct options *opts, struct error *err)
{
    return check_vpc_writing(node, err);
}

/* Another process may have allocated blocks. */
static int vpc_co_reload(struct block_node *node, struct error *err)
{
    struct vpc *d = node->opaque;
    struct vpc old = *d;
    int r;

    d->table = NULL;
    d->is_full = NULL;
    r = co_load_vpc(node, err);
    free(r < 0 ? d->table : old.table);
    free(r < 0 ? d->is_full : old.is_full);
    if (r < 0) {
        *d = old;
    }
    return r;
}

/* Of enum vpc_size_rule. */
static const char *const rule_names[] = {"auto", "current_size", "chs", NULL};

static int vpc_co_open(struct block_node *node, struct options *opts, struct error *err)
{
    struct vpc *d = node->opaque;
    enum other_files allowed;
    int rule = VPC_SIZE_BY_PROGRAM;
    int r = other_files_take(opts, &allowed, err);

    UNLESS_FAILED(r, options_take_enum(opts, "force_size_calc", rule_names, rule, &rule, err));
    UNLESS_FAILED(r, block_co_open_child(node, opts, "file", BLOCK_ROLE_DATA | BLOCK_ROLE_METADATA,
                                         false, NULL, err));
    d->rule = (enum vpc_size_rule)rule;
    UNLESS_FAILED(r, co_load_vpc(node, err));
    UNLESS_FAILED(r, check_vpc_writing(node, err));
    if (r == 0 && d->footer.type == VPC_DIFFERENCING) {
        r = vpc_co_open_parent(node, opts, allowed, err);
    }
    if (r < 0) {
        vpc_co_close(node);
        return r;
    }
    if (d->footer.type == VPC_FIXED) {
        blockmap_init(&d->map, &vpc_fixed_ops, MAX(d->footer.disk_size, 1u));
    } else {
        blockmap_init(&d->map, &vpc_map_ops, d->header.block_size);
        node->limits.cluster_size = d->header.block_size;
    }
    block_node_set_size(node, d->footer.disk_size);
    node->limits.request_alignment = VPC_SECTOR;
    node->limits.memory_alignment = node->file->node->limits.memory_alignment;
    return 0;
}

static int vpc_probe(const uint8_t *head, size_t size)
{
    return size >= VPC_FOOTER_SIZE && vpc_is_footer(head) ? 100 : 0;
}

static int vpc_co_get_info(struct block_node *node, struct block_info *ret_info)
{
    const struct vpc *d = node->opaque;

    *ret_info =
        (struct block_info){.cluster_size = d->footer.type == VPC_FIXED ? 0 : d->header.block_size};
    return 0;
}

ENUM(size_rule_type, "XTidemarkVpcSizeRule", "auto", "current_size", "chs");
static const struct schema_type vpc_options_type =
    OBJECT_INIT("BlockdevOptionsVpc", REQ("file", block_ref_type),
                OPT("backing", block_ref_or_null_type,
                    .help = "the parent of a differencing disk; default: as the image says"),
                OPT("force_size_calc", size_rule_type, .dflt = "auto",
                    .help = "the size of the disk: as its field says, as its geometry says, or "
                            "what the program that made the image goes by"),
                OTHER_FILES_MEMBER);

static const struct block_driver vpc_driver = {
    .name = "vpc",
    .help = "format: VHD of Virtual PC and Hyper-V",
    .options = &vpc_options_type,
    .instance_size = sizeof(struct vpc),
    .is_format = true,
    .probe = vpc_probe,
    .co_open = vpc_co_open,
    .co_close = vpc_co_close,
    .co_reload = vpc_co_reload,
    .co_inactivate = vpc_co_inactivate,
    .co_reopen_prepare = vpc_co_reopen_prepare,
    .reopen_options = block_no_options,
    .exchanges_file = true,
    .file_head = 4096,
    .co_create = vpc_co_create,
    .co_format = vpc_co_format,
    .create_options = vpc_create_options,
    .create_type = &vpc_create_type,
    .co_get_info = vpc_co_get_info,
    .co_preadv = blockmap_co_preadv,
    .co_pwritev = blockmap_co_pwritev,
    .co_write_zeroes = blockmap_co_write_zeroes,
    .co_status = blockmap_co_status,
};

void vpc_register_driver(void)
{
    block_register_driver(&vpc_driver);
}
