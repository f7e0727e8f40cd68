/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The driver "blklogwrites": passes requests on to `file`, and logs writes, flushes and discards to
 * `log` in the format of Linux's dm-log-writes
 * (Documentation/admin-guide/device-mapper/log-writes.rst), whose replay tools can read the log.
 *
 *   sector 0   super block         magic, version, entries, sector size (little-endian)
 *   sector 1   entry header        sector, sectors, flags, data length
 *   sector 2.. data of a write     as many sectors as the header says; none for flush and discard
 *   ...        entry header ...
 *
 * 1. Entries have the order in which requests completed. The entry of a write that completed before
 * a
 *    flush was submitted precedes the flush's entry; the entry of any other write follows it. So
 *    all entries before a flush are on stable storage once the flush is in the log.
 * 2. The entry count in the super block never counts an entry that is not in the log. It is written
 *    every log-super-update-interval entries, at each flush and at the end.
 * For (1) `lock` is held during a flush of the file.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/byteorder.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "block/options.h"
#include "filter/filter.h"
#include "schema/define.h"

#define LOG_MAGIC 0x6a736677736872ULL
#define LOG_VERSION 1u
#define LOG_FLAG_FLUSH 1u
#define LOG_FLAG_FUA 2u
#define LOG_FLAG_DISCARD 4u
#define LOG_FLAG_MARK 8u

#define SUPER_SIZE 28u /* magic 8, version 8, entries 8, sector size 4 */
#define ENTRY_SIZE 32u /* sector 8, sectors 8, flags 8, data length 8 */
#define MIN_SECTOR_SIZE 512u
#define MAX_SECTOR_SIZE (8 * MiB)
#define DEFAULT_SUPER_INTERVAL 4096u

struct write_log {
    struct block_edge *file;
    struct block_edge *log;
    uint32_t sector_size;
    uint64_t super_interval; /* entries between two updates of the super block */

    struct co_mutex lock; /* guards the following members, and the log */
    uint64_t next_sector; /* of the log: place of the next entry */
    uint64_t entries;
    uint64_t entries_in_super;
    uint8_t *sector; /* buffer of sector_size bytes for headers */
};

/* --- the log ---------------------------------------------------------------------------------- */

static int co_write_super_locked(struct write_log *s)
{
    int r;

    memset(s->sector, 0, s->sector_size);
    store_le64(s->sector, LOG_MAGIC);
    store_le64(s->sector + 8, LOG_VERSION);
    store_le64(s->sector + 16, s->entries);
    store_le32(s->sector + 24, s->sector_size);
    r = block_co_pwrite(s->log, 0, s->sector, s->sector_size, 0);
    if (r == 0) {
        s->entries_in_super = s->entries;
    }
    return r;
}

struct log_entry {
    uint64_t offset;
    uint64_t length;
    unsigned flags;
    const struct iov *data; /* NULL: none */
    bool zeroes;            /* the data are `length` zero bytes */
};

static int co_append_locked(struct write_log *s, const struct log_entry *entry)
{
    uint64_t at = s->next_sector * s->sector_size;
    bool has_data = entry->data || entry->zeroes;
    struct iovec vec;
    int r;

    memset(s->sector, 0, s->sector_size);
    store_le64(s->sector, entry->offset / s->sector_size);
    store_le64(s->sector + 8, entry->length / s->sector_size);
    store_le64(s->sector + 16, entry->flags);
    r = block_co_pwritev(s->log, at, iov_from_buf(&vec, s->sector, s->sector_size), 0);
    if (r == 0 && entry->data) {
        r = block_co_pwritev(s->log, at + s->sector_size, *entry->data, 0);
    } else if (r == 0 && entry->zeroes) {
        r = block_co_write_zeroes(s->log, at + s->sector_size, entry->length, 0);
    }
    if (r < 0) {
        return r;
    }
    s->next_sector += 1 + (has_data ? entry->length / s->sector_size : 0);
    s->entries++;
    if (s->entries - s->entries_in_super >= s->super_interval) {
        r = co_write_super_locked(s);
    }
    return r;
}

static int co_append_to_log(struct write_log *s, const struct log_entry *entry)
{
    int r;

    co_mutex_lock(&s->lock);
    r = co_append_locked(s, entry);
    co_mutex_unlock(&s->lock);
    return r;
}

/* --- appending to an existing log ------------------------------------------------------------- */

static int co_read_super(struct write_log *s, struct error *err)
{
    const char *name = block_node_display_name(block_edge_node(s->log));
    uint8_t super[SUPER_SIZE];
    int r;

    if (block_edge_size(s->log) < MIN_SECTOR_SIZE) {
        return error_set(err, EINVAL, "Log file '%s' is too short to be appended to", name);
    }
    r = block_co_pread(s->log, 0, super, sizeof(super));
    if (r < 0) {
        return error_set_errno(err, -r, "Could not read the super block of log file '%s'", name);
    }
    if (load_le64(super) != LOG_MAGIC || load_le64(super + 8) != LOG_VERSION) {
        return error_set(err, EINVAL, "'%s' is not a write log of version %u", name, LOG_VERSION);
    }
    s->entries = load_le64(super + 16);
    s->sector_size = load_le32(super + 24);
    if (!is_power_of_2(s->sector_size) || s->sector_size < MIN_SECTOR_SIZE ||
        s->sector_size > MAX_SECTOR_SIZE) {
        return error_set(err, EINVAL, "Log file '%s' has the invalid sector size %u", name,
                         s->sector_size);
    }
    return 0;
}

/* Skip the entries of the log, to find the place of the next one. */
static int co_skip_entries(struct write_log *s, struct error *err)
{
    const char *name = block_node_display_name(block_edge_node(s->log));
    uint64_t log_sectors = div_round_up(block_edge_size(s->log), s->sector_size);
    uint8_t head[ENTRY_SIZE];

    s->next_sector = 1;
    for (uint64_t i = 0; i < s->entries; i++) {
        uint64_t sectors, flags;
        int r;

        if (s->next_sector >= log_sectors) {
            return error_set(err, EINVAL, "Log file '%s' ends at entry %llu of %llu", name,
                             (unsigned long long)i, (unsigned long long)s->entries);
        }
        r = block_co_pread(s->log, s->next_sector * s->sector_size, head, sizeof(head));
        if (r < 0) {
            return error_set_errno(err, -r, "Could not read entry %llu of log file '%s'",
                                   (unsigned long long)i, name);
        }
        sectors = load_le64(head + 8);
        flags = load_le64(head + 16);
        if (flags & ~(uint64_t)(LOG_FLAG_FLUSH | LOG_FLAG_FUA | LOG_FLAG_DISCARD | LOG_FLAG_MARK)) {
            return error_set(err, EINVAL, "Entry %llu of log file '%s' has unknown flags 0x%llx",
                             (unsigned long long)i, name, (unsigned long long)flags);
        }
        if (flags & LOG_FLAG_DISCARD) {
            sectors = 0;
        } else if (flags & LOG_FLAG_MARK) {
            sectors = div_round_up(load_le64(head + 24), s->sector_size);
        }
        if (sectors >= log_sectors - s->next_sector) {
            return error_set(err, EINVAL, "Entry %llu of log file '%s' is longer than the file",
                             (unsigned long long)i, name);
        }
        s->next_sector += 1 + sectors;
    }
    return 0;
}

/* --- open, close ------------------------------------------------------------------------------ */

OBJECT(write_log_options, "BlockdevOptionsBlklogwrites", REQ("file", block_ref_type),
       REQ("log", block_ref_type, .help = "where all writes are recorded, in the order made"),
       OPT("log-sector-size", schema_uint32, .dflt = "512", .unit = "bytes", .min = MIN_SECTOR_SIZE,
           .max = MAX_SECTOR_SIZE, .help = "a power of two"),
       OPT("log-append", schema_bool, .dflt = "false", .help = "continue the log that is there"),
       OPT("log-super-update-interval", schema_uint64, .dflt = "4096", .min = 1, .max = UINT64_MAX,
           .help = "after how many writes the superblock of the log is written"));

static int take_log_options(struct write_log *s, struct options *opts, bool *ret_append,
                            struct error *err)
{
    bool sector_size_given = options_has(opts, "log-sector-size");
    uint64_t sector_size;
    int r;

    r = options_take_bool(opts, "log-append", false, ret_append, err);
    if (r < 0) {
        return r;
    }
    if (*ret_append && sector_size_given) {
        return error_set(err, EINVAL, "log-append and log-sector-size are mutually exclusive");
    }
    r = options_take_size(opts, "log-sector-size", MIN_SECTOR_SIZE, &sector_size, err);
    if (r < 0) {
        return r;
    }
    if (!is_power_of_2(sector_size) || sector_size < MIN_SECTOR_SIZE ||
        sector_size > MAX_SECTOR_SIZE) {
        return error_set(err, EINVAL, "Invalid log sector size %llu",
                         (unsigned long long)sector_size);
    }
    r = options_take_uint(opts, "log-super-update-interval", DEFAULT_SUPER_INTERVAL, UINT64_MAX,
                          &s->super_interval, err);
    if (r < 0) {
        return r;
    }
    if (s->super_interval == 0) {
        return error_set(err, EINVAL, "Invalid log superblock update interval 0");
    }
    s->sector_size = (uint32_t)sector_size;
    return 0;
}

static int co_open_log(struct write_log *s, bool append, struct error *err)
{
    int r = 0;

    s->next_sector = 1;
    /* An empty file is a new log. */
    if (append && block_edge_size(s->log) > 0) {
        r = co_read_super(s, err);
        UNLESS_FAILED(r, co_skip_entries(s, err));
        if (r < 0) {
            return r;
        }
    }
    s->entries_in_super = s->entries;
    s->sector = malloc(s->sector_size);
    if (!s->sector) {
        return error_set(err, ENOMEM, "Out of memory for a write log");
    }
    return 0;
}

static int write_log_co_open(struct block_node *node, struct options *opts, struct error *err)
{
    struct write_log *s = node->opaque;
    bool append;
    int r;

    r = take_log_options(s, opts, &append, err);
    if (r < 0) {
        return r;
    }
    r = block_co_open_filtered(node, opts, "file", err);
    if (r < 0) {
        return r;
    }
    s->file = node->filtered;
    r = block_co_open_child(node, opts, "log", BLOCK_ROLE_METADATA, false, &s->log, err);
    if (r < 0) {
        return r;
    }
    r = co_open_log(s, append, err);
    if (r < 0) {
        return r;
    }
    co_mutex_init(&s->lock);
    node->limits.request_alignment = s->sector_size;
    node->supported_write_flags = BLOCK_REQ_FUA;
    node->supported_zero_flags = BLOCK_REQ_FUA | BLOCK_REQ_MAY_UNMAP | BLOCK_REQ_NO_FALLBACK;
    return 0;
}

static int write_log_co_inactivate(struct block_node *node, struct error *err)
{
    struct write_log *s = node->opaque;
    int r;

    co_mutex_lock(&s->lock);
    r = co_write_super_locked(s);
    UNLESS_FAILED(r, block_co_flush(s->log));
    co_mutex_unlock(&s->lock);
    if (r < 0) {
        return error_set_errno(err, -r, "Could not complete log file '%s'",
                               block_node_display_name(block_edge_node(s->log)));
    }
    return 0;
}

static void write_log_co_close(struct block_node *node)
{
    struct write_log *s = node->opaque;

    co_mutex_destroy(&s->lock);
    free(s->sector);
}

/* The log grows, and this filter is its only writer. */
static void write_log_child_perm(struct block_node *node, struct block_edge *edge,
                                 unsigned parents_perm, unsigned parents_shared, unsigned *ret_perm,
                                 unsigned *ret_shared)
{
    if (edge->role & BLOCK_ROLE_METADATA) {
        *ret_perm = BLOCK_PERM_CONSISTENT_READ | BLOCK_PERM_WRITE | BLOCK_PERM_RESIZE;
        *ret_shared = BLOCK_PERM_CONSISTENT_READ | BLOCK_PERM_WRITE_UNCHANGED;
    } else {
        block_default_child_perm(node, edge, parents_perm, parents_shared, ret_perm, ret_shared);
    }
}

/* --- I/O -------------------------------------------------------------------------------------- */

static int write_log_co_preadv(struct block_node *node, uint64_t offset, struct iov iov,
                               unsigned flags)
{
    struct write_log *s = node->opaque;

    return block_co_preadv(s->file, offset, iov, flags);
}

static int write_log_co_pwritev(struct block_node *node, uint64_t offset, struct iov iov,
                                unsigned flags)
{
    struct write_log *s = node->opaque;
    int r = block_co_pwritev(s->file, offset, iov, flags);
    struct log_entry entry = {
        .offset = offset,
        .length = iov.size,
        .flags = flags & BLOCK_REQ_FUA ? LOG_FLAG_FUA : 0,
        .data = &iov,
    };

    if (r < 0) {
        return r;
    }
    return co_append_to_log(s, &entry);
}

static int write_log_co_write_zeroes(struct block_node *node, uint64_t offset, uint64_t length,
                                     unsigned flags)
{
    struct write_log *s = node->opaque;
    int r = block_co_write_zeroes(s->file, offset, length, flags);
    struct log_entry entry = {
        .offset = offset,
        .length = round_up(length, s->sector_size),
        .flags = flags & BLOCK_REQ_FUA ? LOG_FLAG_FUA : 0,
        .zeroes = true,
    };

    if (r < 0) {
        return r;
    }
    return co_append_to_log(s, &entry);
}

/* Of whole sectors: the log has no others, and a replay must not discard more than this did. */
static int write_log_co_discard(struct block_node *node, uint64_t offset, uint64_t length)
{
    struct write_log *s = node->opaque;
    uint64_t first = round_up(offset, s->sector_size), end = offset + length;
    struct log_entry entry = {.offset = first, .flags = LOG_FLAG_DISCARD};
    int r;

    end -= end == block_node_size(node) ? 0 : end % s->sector_size;
    if (first >= end) {
        return 0;
    }
    r = block_co_discard(s->file, first, end - first);
    entry.length = round_up(end - first, s->sector_size);
    return r < 0 ? r : co_append_to_log(s, &entry);
}

static int write_log_co_flush(struct block_node *node)
{
    struct write_log *s = node->opaque;
    struct log_entry entry = {.flags = LOG_FLAG_FLUSH};
    int r;

    co_mutex_lock(&s->lock);
    r = block_co_flush(s->file);
    UNLESS_FAILED(r, co_append_locked(s, &entry));
    UNLESS_FAILED(r, co_write_super_locked(s));
    UNLESS_FAILED(r, block_co_flush(s->log));
    co_mutex_unlock(&s->lock);
    return r;
}

/* A resize is not logged: the format has no entry for it. */
const struct block_driver write_log_driver = {
    .name = "blklogwrites",
    .help = "filter for tests: writes are recorded in a log",
    .options = &write_log_options,
    .instance_size = sizeof(struct write_log),
    .is_filter = true,
    .co_open = write_log_co_open,
    .co_inactivate = write_log_co_inactivate,
    .co_close = write_log_co_close,
    .child_perm = write_log_child_perm,
    .co_preadv = write_log_co_preadv,
    .co_pwritev = write_log_co_pwritev,
    .co_write_zeroes = write_log_co_write_zeroes,
    .co_discard = write_log_co_discard,
    .co_flush = write_log_co_flush,
};
