/* SPDX-License-Identifier: Apache-2.0 */
#include "backup/volumes.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <stdarg.h>
#include <string.h>
#include <unistd.h>

#include "base/byteorder.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "base/iov.h"
#include "block/gate.h"
#include "co/sync.h"
#include "loop/loop.h"

#define SECTOR ((uint64_t)512)
#define GPT_ENTRY_SIZE_MAX 4096u
#define GPT_ENTRIES_MAX 4096u
#define LOGICAL_MAX 128
#define MBR_TABLE 446u
#define MBR_ENTRY 16u

struct finding {
    struct block_edge *disk;
    uint64_t size;
    struct volumes *volumes;
    struct volumes_read *reads;
    size_t read_count;
    struct error *err;
};

/* --- signatures ------------------------------------------------------------------------------- */

/* Where in the volume, and what. The first one that matches counts. */
static const struct {
    const char *type;
    uint32_t offset;
    const char *magic;
    uint32_t size;
} signatures[] = {
    {"luks", 0, "LUKS\xba\xbe", 6},   {"xfs", 0, "XFSB", 4},           {"ntfs", 3, "NTFS    ", 8},
    {"exfat", 3, "EXFAT   ", 8},      {"bitlocker", 3, "-FVE-FS-", 8}, {"vfat", 82, "FAT32   ", 8},
    {"vfat", 54, "FAT16   ", 8},      {"vfat", 54, "FAT12   ", 8},     {"ext", 1080, "\x53\xef", 2},
    {"btrfs", 65600, "_BHRfS_M", 8},  {"lvm2", 536, "LVM2 001", 8},    {"lvm2", 24, "LVM2 001", 8},
    {"swap", 4086, "SWAPSPACE2", 10}, {"iso9660", 32769, "CD001", 5},
};

#define HEAD_SIZE 65664u

/* Features of ext that are what its names mean. */
#define EXT_COMPATIBLE 1116u
#define EXT_INCOMPATIBLE 1120u
#define EXT_HAS_JOURNAL 4u
#define EXT_EXTENTS 0x40u

static const char *recognize(const uint8_t *head, uint64_t size)
{
    for (size_t i = 0; i < ARRAY_SIZE(signatures); i++) {
        if (signatures[i].offset + signatures[i].size > size ||
            memcmp(head + signatures[i].offset, signatures[i].magic, signatures[i].size) != 0) {
            continue;
        }
        if (strcmp(signatures[i].type, "ext") != 0) {
            return signatures[i].type;
        }
        if (load_le32(head + EXT_INCOMPATIBLE) & EXT_EXTENTS) {
            return "ext4";
        }
        return load_le32(head + EXT_COMPATIBLE) & EXT_HAS_JOURNAL ? "ext3" : "ext2";
    }
    return "";
}

static int co_read_volume(struct finding *f, uint64_t offset, void *buf, size_t size)
{
    struct volumes_read *longer = realloc(f->reads, (f->read_count + 1) * sizeof(*longer));
    int r;

    if (!longer) {
        return error_out_of_memory(f->err);
    }
    f->reads = longer;
    f->reads[f->read_count++] = (struct volumes_read){offset, size};
    r = block_co_pread(f->disk, offset, buf, size);
    return r < 0 ? error_set_errno(f->err, -r, "Could not read the disk at offset %" PRIu64, offset)
                 : 0;
}

/* --- the list --------------------------------------------------------------------------------- */

static void set_problem(struct finding *f, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));

/* The first problem is the one that counts. */
static void set_problem(struct finding *f, const char *fmt, ...)
{
    va_list ap;

    if (f->volumes->problem) {
        return;
    }
    va_start(ap, fmt);
    if (vasprintf(&f->volumes->problem, fmt, ap) < 0) {
        f->volumes->problem = NULL;
    }
    va_end(ap);
}

/* Add a volume of sectors; one that is not on the disk is a problem. */
static int co_add_volume(struct finding *f, unsigned number, uint64_t first, uint64_t count)
{
    struct volumes *v = f->volumes;
    uint8_t *head AUTO_FREE = NULL;
    struct volume *list;
    uint64_t size;
    int r;

    if (count == 0 || count > f->size / SECTOR || first > f->size / SECTOR - count) {
        set_problem(f, "Partition %u is not within the disk", number);
        return 0;
    }
    if (v->count == VOLUMES_MAX) {
        set_problem(f, "There are more than %u partitions", VOLUMES_MAX);
        return 0;
    }
    size = MIN(count * SECTOR, HEAD_SIZE);
    list = realloc(v->list, (v->count + 1) * sizeof(*list));
    v->list = list ?: v->list;
    head = calloc(1, HEAD_SIZE);
    if (!list || !head) {
        return error_out_of_memory(f->err);
    }
    r = co_read_volume(f, first * SECTOR, head, size);
    if (r == 0) {
        list[v->count++] = (struct volume){.number = number,
                                           .offset = first * SECTOR,
                                           .size = count * SECTOR,
                                           .type = recognize(head, size)};
    }
    return r;
}

/* --- GPT -------------------------------------------------------------------------------------- */

/* CRC-32 as in zlib. */
static uint32_t crc32_of(const uint8_t *data, size_t size)
{
    uint32_t crc = UINT32_MAX;

    for (size_t i = 0; i < size; i++) {
        crc ^= data[i];
        for (int bit = 0; bit < 8; bit++) {
            crc = crc >> 1 ^ (crc & 1 ? 0xedb88320u : 0);
        }
    }
    return ~crc;
}

struct gpt {
    uint64_t entries; /* byte offset */
    uint32_t count, size, crc;
};

/* Whether the sector is a sound header that describes itself at `lba`. */
static bool parse_gpt_header(const struct finding *f, uint8_t *h, uint64_t lba, struct gpt *ret_gpt)
{
    uint32_t size = load_le32(h + 12), crc = load_le32(h + 16);
    uint64_t entries = load_le64(h + 72);

    if (memcmp(h, "EFI PART", 8) != 0 || size < 92 || size > SECTOR) {
        return false;
    }
    store_le32(h + 16, 0);
    if (crc32_of(h, size) != crc || load_le64(h + 24) != lba) {
        return false;
    }
    *ret_gpt = (struct gpt){
        .count = load_le32(h + 80), .size = load_le32(h + 84), .crc = load_le32(h + 88)};
    if (ret_gpt->size < 128 || ret_gpt->size > GPT_ENTRY_SIZE_MAX ||
        ret_gpt->count > GPT_ENTRIES_MAX || entries > f->size / SECTOR ||
        !range_fits(entries * SECTOR, (uint64_t)ret_gpt->count * ret_gpt->size, f->size)) {
        return false;
    }
    ret_gpt->entries = entries * SECTOR;
    return true;
}

/* Returns 1 if the header at `lba` and its entries are sound, and its partitions are listed. */
static int co_try_gpt(struct finding *f, uint64_t lba)
{
    static const uint8_t unused[16];
    uint8_t sector[SECTOR], *entries AUTO_FREE = NULL;
    struct gpt g;
    int r;

    if (lba >= f->size / SECTOR) {
        return 0;
    }
    r = co_read_volume(f, lba * SECTOR, sector, SECTOR);
    if (r < 0 || !parse_gpt_header(f, sector, lba, &g)) {
        return r;
    }
    entries = malloc((size_t)g.count * g.size + 1);
    if (!entries) {
        return error_out_of_memory(f->err);
    }
    r = co_read_volume(f, g.entries, entries, (size_t)g.count * g.size);
    if (r < 0 || crc32_of(entries, (size_t)g.count * g.size) != g.crc) {
        return r;
    }
    for (uint32_t i = 0; r == 0 && i < g.count; i++) {
        const uint8_t *e = entries + (size_t)i * g.size;
        uint64_t first = load_le64(e + 32), last = load_le64(e + 40);

        if (memcmp(e, unused, sizeof(unused)) != 0) {
            r = co_add_volume(f, i + 1, first, last >= first ? last - first + 1 : 0);
        }
    }
    return r < 0 ? r : 1;
}

static int co_find_gpt(struct finding *f)
{
    int first = co_try_gpt(f, 1), second;

    f->volumes->table = "gpt";
    if (first < 0) {
        return first;
    }
    if (first == 0) {
        set_problem(f, "The first partition table (GPT) is damaged");
    }
    /* The copy at the end is only read if need be; but it has to be there. */
    second = f->size < 2 * SECTOR ? 0 : 1;
    if (second) {
        struct volumes listed = *f->volumes;

        if (first) {
            *f->volumes = (struct volumes){.table = listed.table};
        }
        second = co_try_gpt(f, f->size / SECTOR - 1);
        if (first) {
            volumes_clear(f->volumes);
            *f->volumes = listed;
        }
    }
    if (second == 0) {
        set_problem(f, "The second partition table (GPT), at the end of the disk, is damaged");
    }
    return MIN(second, 0);
}

/* --- MBR -------------------------------------------------------------------------------------- */

struct mbr_entry {
    uint8_t type;
    uint32_t first, count;
};

static struct mbr_entry mbr_entry(const uint8_t *sector, unsigned i)
{
    const uint8_t *e = sector + MBR_TABLE + (size_t)i * MBR_ENTRY;

    return (struct mbr_entry){e[4], load_le32(e + 8), load_le32(e + 12)};
}

static bool is_extended(uint8_t type)
{
    return type == 0x05 || type == 0x0f || type == 0x85;
}

/* Logical partitions: a chain of tables, each with one partition and the place of the next. */
static int co_find_logical(struct finding *f, uint64_t extended)
{
    uint64_t at = extended;
    int r = 0;

    for (unsigned n = 0; r == 0 && n < LOGICAL_MAX; n++) {
        uint8_t sector[SECTOR];
        struct mbr_entry part, next;

        if (at >= f->size / SECTOR) {
            set_problem(f, "The table of logical partition %u is not within the disk", n + 5);
            return 0;
        }
        r = co_read_volume(f, at * SECTOR, sector, SECTOR);
        if (r < 0) {
            return r;
        }
        if (load_le16(sector + 510) != 0xaa55) {
            set_problem(f, "The table of logical partition %u is damaged", n + 5);
            return 0;
        }
        part = mbr_entry(sector, 0);
        next = mbr_entry(sector, 1);
        if (part.type) {
            r = co_add_volume(f, n + 5, at + part.first, part.count);
        }
        if (!is_extended(next.type)) {
            break;
        }
        at = extended + next.first;
        if (n == LOGICAL_MAX - 1) {
            set_problem(f, "There are more than %d logical partitions", LOGICAL_MAX);
        }
    }
    return r;
}

static int co_find_mbr(struct finding *f, const uint8_t *sector)
{
    int r = 0;

    f->volumes->table = "mbr";
    for (unsigned i = 0; r == 0 && i < 4; i++) {
        struct mbr_entry e = mbr_entry(sector, i);

        if (e.type && !is_extended(e.type)) {
            r = co_add_volume(f, i + 1, e.first, e.count);
        }
    }
    for (unsigned i = 0; r == 0 && i < 4; i++) {
        struct mbr_entry e = mbr_entry(sector, i);

        if (is_extended(e.type)) {
            r = co_find_logical(f, e.first);
        }
    }
    return r;
}

/* A boot sector of a file system has the same mark at its end as an MBR. */
static bool looks_like_mbr(const uint8_t *sector)
{
    bool any = false;

    for (unsigned i = 0; i < 4; i++) {
        const uint8_t *e = sector + MBR_TABLE + (size_t)i * MBR_ENTRY;

        if (e[0] & 0x7f) {
            return false;
        }
        any = any || e[4];
    }
    return any && load_le16(sector + 510) == 0xaa55;
}

static int co_find_all(struct finding *f)
{
    uint8_t sector[SECTOR];
    int r = co_read_volume(f, 0, sector, SECTOR);

    UNLESS_FAILED(r, co_add_volume(f, 0, 0, f->size / SECTOR));
    if (r < 0 || f->volumes->list[0].type[0] || !looks_like_mbr(sector)) {
        return r;
    }
    f->volumes->count = 0;
    if (mbr_entry(sector, 0).type == 0xee) {
        return co_find_gpt(f);
    }
    return co_find_mbr(f, sector);
}

int volumes_co_find(struct block_edge *disk, struct volumes *ret_volumes, struct error *err)
{
    struct finding f = {
        .disk = disk, .size = block_edge_size(disk), .volumes = ret_volumes, .err = err};
    int r;

    *ret_volumes = (struct volumes){.table = ""};
    r = f.size < SECTOR ? 0 : co_find_all(&f);
    ret_volumes->reads = f.reads;
    ret_volumes->read_count = f.read_count;
    return r;
}

int volumes_copy(const struct volumes *v, struct volumes *ret_volumes)
{
    struct volume *list = calloc(v->count + 1, sizeof(*list));
    struct volumes_read *reads = calloc(v->read_count + 1, sizeof(*reads));

    if (!list || !reads) {
        free(list);
        free(reads);
        return -ENOMEM;
    }
    for (size_t i = 0; i < v->count; i++) {
        list[i] = v->list[i];
    }
    for (size_t i = 0; i < v->read_count; i++) {
        reads[i] = v->reads[i];
    }
    *ret_volumes = (struct volumes){.table = v->table,
                                    .list = list,
                                    .count = v->count,
                                    .reads = reads,
                                    .read_count = v->read_count};
    return 0;
}

void volumes_clear(struct volumes *v)
{
    free(v->list);
    free(v->reads);
    free(v->problem);
    *v = (struct volumes){0};
}

/* --- copying ---------------------------------------------------------------------------------- */

#define PIECE ((uint64_t)1 * MiB)
#define COPIERS 8

struct extraction {
    struct block_edge *disk;
    const struct volume *volume;
    int fd;
    volatile sig_atomic_t *stop;
    uint64_t next; /* byte of the volume */
    int status;    /* the first failure */
    struct error *err;
    struct co_group group;
};

/* The next piece that is not all zeroes; false at the end, or after a failure. */
static bool co_next_piece(struct extraction *x, uint64_t *ret_offset, uint64_t *ret_size)
{
    while (x->status == 0 && x->next < x->volume->size) {
        uint64_t offset = x->next;
        struct block_status status = {0};

        if (x->stop && *x->stop) {
            x->status = error_set(x->err, EINTR, "Stopped");
            return false;
        }
        x->next = MIN(offset + PIECE, x->volume->size);
        *ret_offset = offset;
        *ret_size = x->next - offset;
        if (block_co_status(x->disk, x->volume->offset + offset, *ret_size, &status) == 0 &&
            (status.flags & BLOCK_STATUS_ZERO) && status.length >= *ret_size) {
            continue;
        }
        return true;
    }
    return false;
}

static bool is_all_zero(const uint8_t *buf, size_t size)
{
    return size == 0 || (!buf[0] && memcmp(buf, buf + 1, size - 1) == 0);
}

static int co_copy_volume_piece(struct extraction *x, uint8_t *buf, uint64_t offset, uint64_t size,
                                struct error *err)
{
    int r = block_co_pread(x->disk, x->volume->offset + offset, buf, size);
    struct iovec vec = {.iov_base = buf, .iov_len = size};
    ssize_t n;

    if (r < 0) {
        return error_set_errno(err, -r, "Could not read the disk at offset %" PRIu64,
                               x->volume->offset + offset);
    }
    if (is_all_zero(buf, size)) {
        return 0;
    }
    n = loop_co_pwritev(x->fd, &vec, 1, offset, 0);
    return n == (ssize_t)size
               ? 0
               : error_set_errno(err, n < 0 ? (int)-n : ENOSPC,
                                 "Could not write the temporary copy of the partition");
}

static void co_copier(void *arg)
{
    struct extraction *x = arg;
    uint8_t *buf = malloc(PIECE);
    uint64_t offset, size;

    if (!buf && x->status == 0) {
        x->status = error_out_of_memory(x->err);
    }
    while (buf && co_next_piece(x, &offset, &size)) {
        ERROR_AUTO(err);
        int r = co_copy_volume_piece(x, buf, offset, size, &err);

        if (r < 0 && x->status == 0) {
            x->status = r;
            error_move(x->err, &err);
        }
    }
    free(buf);
    co_group_done(&x->group);
}

int volume_co_extract(struct block_edge *disk, const struct volume *v, int fd,
                      volatile sig_atomic_t *stop, struct error *err)
{
    struct extraction x = {.disk = disk, .volume = v, .fd = fd, .stop = stop, .err = err};

    if (ftruncate(fd, (off_t)v->size) < 0) {
        return error_set_errno(err, errno, "Could not make a copy of the partition");
    }
    co_group_init(&x.group);
    for (int i = 0; i < COPIERS; i++) {
        int r;

        co_group_add(&x.group);
        r = co_spawn(reactor_home(reactor_main()), co_copier, &x);
        if (r < 0) {
            co_group_done(&x.group);
            if (i == 0) {
                x.status = error_set_errno(err, -r, "Could not start reading");
            }
            break;
        }
    }
    co_group_wait(&x.group);
    co_group_destroy(&x.group);
    return x.status;
}
