/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Reading the log: [MS-VHDX] 2.3. The log is a ring of entries, each in whole sectors of 4 KiB:
 *
 *      entry header, 64 bytes | descriptors, 32 bytes each, up to a sector | data sectors
 *
 * The active sequence is the one with the greatest sequence number of its last entry, of all
 * sequences of valid entries that begin where the last one says (the tail). Replaying it makes its
 * changes in order.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/byteorder.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "vhdx/image.h"

#define LOG_MAX (64 * MiB)
#define ENTRY_HEADER 64
#define DESCRIPTOR 32
/* Of a sector: its first 8 and last 4 bytes are in the descriptor. */
#define LEADING 8
#define TRAILING 4

/* An entry that was found in the log. */
struct log_entry {
    uint32_t length, tail, descriptors;
    uint64_t sequence, flushed_size;
};

struct log_ring {
    const struct block_node *node;
    uint8_t *bytes;
    uint32_t length;
    const struct vhdx_guid *guid;
    /* Bytes that checksums may still be computed of: entries do not overlap in a good log. */
    uint64_t budget;
};

/* --- entries ---------------------------------------------------------------------------------- */

/* Bytes [at, at + size) of the ring, which wraps. */
static void ring_copy(const struct log_ring *ring, uint64_t at, uint8_t *out, size_t size)
{
    size_t first;

    at %= ring->length;
    first = MIN(size, ring->length - at);
    memcpy(out, ring->bytes + at, first);
    memcpy(out + first, ring->bytes, size - first);
}

/* The entry at `at` in `*ret_bytes`, which the caller frees; NULL if there is no valid one. */
static int read_entry(struct log_ring *ring, uint64_t at, struct log_entry *e, uint8_t **ret_bytes,
                      struct error *err)
{
    uint8_t h[ENTRY_HEADER];
    AUTO_FREE uint8_t *bytes = NULL;

    *ret_bytes = NULL;
    ring_copy(ring, at, h, sizeof(h));
    *e = (struct log_entry){.length = load_le32(h + 8),
                            .tail = load_le32(h + 12),
                            .sequence = load_le64(h + 16),
                            .descriptors = load_le32(h + 24),
                            .flushed_size = load_le64(h + 48)};
    if (memcmp(h, "loge", 4) != 0 || !vhdx_guid_equals(h + 32, ring->guid) || e->length == 0 ||
        e->length % VHDX_LOG_SECTOR != 0 || e->length > ring->length || e->sequence == 0 ||
        e->tail % VHDX_LOG_SECTOR != 0 || e->tail >= ring->length ||
        e->descriptors > (e->length - ENTRY_HEADER) / DESCRIPTOR) {
        return 0;
    }
    if (e->length > ring->budget) {
        return error_set(err, EINVAL, "The log of image '%s' has entries that overlap",
                         block_node_display_name(ring->node));
    }
    ring->budget -= e->length;
    bytes = malloc(e->length);
    if (!bytes) {
        return error_out_of_memory(err);
    }
    ring_copy(ring, at, bytes, e->length);
    if (vhdx_checksum(bytes, e->length, 4) == load_le32(bytes + 4)) {
        *ret_bytes = TAKE_PTR(bytes);
    }
    return 0;
}

/* A sequence of entries, `count` of them from `start` on, up to `end`. */
struct log_sequence {
    uint64_t start, end, last;
    uint32_t tail;
    unsigned count;
};

/* The valid entries from `at` on with consecutive numbers. */
static int follow_sequence(struct log_ring *ring, uint64_t at, struct log_sequence *s,
                           struct error *err)
{
    *s = (struct log_sequence){.start = at, .end = at};
    while (s->end - at < ring->length) {
        AUTO_FREE uint8_t *bytes = NULL;
        struct log_entry e;
        int r = read_entry(ring, s->end, &e, &bytes, err);

        if (r < 0) {
            return r;
        }
        if (!bytes || (s->count > 0 && e.sequence != s->last + 1) ||
            e.length > ring->length - (s->end - at)) {
            break;
        }
        s->count++;
        s->last = e.sequence;
        s->tail = e.tail;
        s->end += e.length;
    }
    return 0;
}

/* Whether the tail of the last entry is within the sequence. */
static bool has_tail(const struct log_ring *ring, const struct log_sequence *s)
{
    uint64_t distance = (s->tail + ring->length - s->start % ring->length) % ring->length;

    return s->count > 0 && distance < s->end - s->start;
}

static int find_active(struct log_ring *ring, struct log_sequence *best, struct error *err)
{
    *best = (struct log_sequence){.count = 0};
    for (uint64_t at = 0; at < ring->length;) {
        struct log_sequence s;
        int r = follow_sequence(ring, at, &s, err);

        if (r < 0) {
            return r;
        }
        if (has_tail(ring, &s) && (best->count == 0 || s.last > best->last)) {
            *best = s;
        }
        at = s.count > 0 ? s.end : at + VHDX_LOG_SECTOR;
    }
    return 0;
}

/* --- changes ---------------------------------------------------------------------------------- */

static int add_change(struct vhdx *d, uint64_t offset, uint64_t length, uint8_t *data,
                      struct error *err)
{
    if (is_power_of_2(d->change_count) || d->change_count == 0) {
        size_t room = d->change_count == 0 ? 1 : 2 * d->change_count;
        struct vhdx_change *more = realloc(d->changes, room * sizeof(*more));

        if (!more) {
            free(data);
            return error_out_of_memory(err);
        }
        d->changes = more;
    }
    d->changes[d->change_count++] =
        (struct vhdx_change){.offset = offset, .length = length, .data = data};
    return 0;
}

/* A data descriptor, whose sector is the entry's data sector number `index`. */
static int add_log_data(struct vhdx *d, const uint8_t *bytes, const struct log_entry *e,
                        const uint8_t *descriptor, uint64_t index, uint64_t first_sector,
                        struct error *err)
{
    uint64_t at = (first_sector + index) * VHDX_LOG_SECTOR;
    const uint8_t *sector = bytes + at;
    uint8_t *data;

    if (!range_fits(at, VHDX_LOG_SECTOR, e->length) || memcmp(sector, "data", 4) != 0 ||
        load_le32(sector + 4) != e->sequence >> 32 ||
        load_le32(sector + VHDX_LOG_SECTOR - TRAILING) != (uint32_t)e->sequence) {
        return -EINVAL;
    }
    data = malloc(VHDX_LOG_SECTOR);
    if (!data) {
        return error_out_of_memory(err);
    }
    memcpy(data, descriptor + 8, LEADING);
    memcpy(data + LEADING, sector + LEADING, VHDX_LOG_SECTOR - LEADING - TRAILING);
    memcpy(data + VHDX_LOG_SECTOR - TRAILING, descriptor + 4, TRAILING);
    return add_change(d, load_le64(descriptor + 16), VHDX_LOG_SECTOR, data, err);
}

static int add_descriptor(struct vhdx *d, const uint8_t *bytes, const struct log_entry *e,
                          const uint8_t *descriptor, uint64_t *data_index, uint64_t first_sector,
                          struct error *err)
{
    uint64_t offset = load_le64(descriptor + 16), length = load_le64(descriptor + 8);

    if (load_le64(descriptor + 24) != e->sequence || offset % VHDX_LOG_SECTOR != 0 ||
        offset > INT64_MAX / 2) {
        return -EINVAL;
    }
    if (memcmp(descriptor, "zero", 4) == 0) {
        return length % VHDX_LOG_SECTOR != 0 || length > INT64_MAX / 2
                   ? -EINVAL
                   : add_change(d, offset, length, NULL, err);
    }
    if (memcmp(descriptor, "desc", 4) != 0) {
        return -EINVAL;
    }
    return add_log_data(d, bytes, e, descriptor, (*data_index)++, first_sector, err);
}

static int add_log_entry(struct vhdx *d, const uint8_t *bytes, const struct log_entry *e,
                         struct error *err)
{
    uint64_t first_sector =
        div_round_up(ENTRY_HEADER + (uint64_t)e->descriptors * DESCRIPTOR, VHDX_LOG_SECTOR);
    uint64_t data_index = 0;
    int r = 0;

    for (uint32_t i = 0; i < e->descriptors && r == 0; i++) {
        r = add_descriptor(d, bytes, e, bytes + ENTRY_HEADER + (size_t)i * DESCRIPTOR, &data_index,
                           first_sector, err);
    }
    return r;
}

/* The changes of the active sequence, from its tail on. */
static int collect_changes(struct block_node *node, struct log_ring *ring,
                           const struct log_sequence *s, struct error *err)
{
    struct vhdx *d = node->opaque;
    uint64_t at = s->tail, left = s->end - s->start;
    int r = 0;

    left -= (s->tail + ring->length - s->start % ring->length) % ring->length;
    ring->budget = 2 * (uint64_t)ring->length;
    while (left > 0 && r == 0) {
        AUTO_FREE uint8_t *bytes = NULL;
        struct log_entry e = {0};

        r = read_entry(ring, at, &e, &bytes, err);
        if (r == 0) {
            r = bytes && e.length <= left ? add_log_entry(d, bytes, &e, err) : -EINVAL;
        }
        if (r == 0 && e.flushed_size > block_edge_size(node->file)) {
            return error_set(
                err, EINVAL,
                "Image '%s' is shorter than its log says: %" PRIu64 " bytes, expected %" PRIu64,
                block_node_display_name(node), block_edge_size(node->file), e.flushed_size);
        }
        at += e.length;
        left -= MIN(left, e.length);
    }
    if (r == -EINVAL) {
        return error_set(err, EINVAL, "The log of image '%s' is damaged",
                         block_node_display_name(node));
    }
    return r;
}

int vhdx_co_read_log(struct block_node *node, struct error *err)
{
    static const struct vhdx_guid none;
    struct vhdx *d = node->opaque;
    struct log_ring ring = {.node = node, .length = d->header.log_length, .guid = &d->header.log};
    struct log_sequence active;
    AUTO_FREE uint8_t *bytes = NULL;
    int r;

    if (vhdx_guid_equals(d->header.log.bytes, &none) || ring.length == 0) {
        return 0;
    }
    if (ring.length > LOG_MAX) {
        return error_set(err, EFBIG,
                         "The log of image '%s' has %" PRIu32 " bytes, at most %llu are supported",
                         block_node_display_name(node), ring.length, LOG_MAX);
    }
    ring.bytes = bytes = malloc(ring.length);
    if (!bytes) {
        return error_out_of_memory(err);
    }
    ring.budget = 4 * (uint64_t)ring.length;
    r = blockmap_co_read_exactly(node, node->file, d->header.log_offset, bytes, ring.length, "log",
                                 err);
    UNLESS_FAILED(r, find_active(&ring, &active, err));
    if (r < 0 || active.count == 0) {
        return r;
    }
    d->log_sequence = active.last;
    return collect_changes(node, &ring, &active, err);
}

void vhdx_release_changes(struct vhdx *d)
{
    for (size_t i = 0; i < d->change_count; i++) {
        free(d->changes[i].data);
    }
    free(d->changes);
    d->changes = NULL;
    d->change_count = 0;
}

/* --- using them ------------------------------------------------------------------------------- */

void vhdx_apply_changes(const struct vhdx *d, uint64_t offset, uint8_t *buf, size_t size)
{
    for (size_t i = 0; i < d->change_count; i++) {
        const struct vhdx_change *c = &d->changes[i];
        uint64_t begin = MAX(c->offset, offset);
        uint64_t end = MIN(c->offset + c->length, offset + size);

        if (begin >= end) {
            continue;
        }
        if (c->data) {
            memcpy(buf + (begin - offset), c->data + (begin - c->offset), end - begin);
        } else {
            memset(buf + (begin - offset), 0, end - begin);
        }
    }
}

bool vhdx_is_changed(const struct vhdx *d, uint64_t offset, uint64_t length)
{
    for (size_t i = 0; i < d->change_count; i++) {
        if (ranges_overlap(d->changes[i].offset, d->changes[i].length, offset, length)) {
            return true;
        }
    }
    return false;
}

int vhdx_co_read(struct block_node *node, uint64_t offset, void *buf, size_t size, const char *what,
                 struct error *err)
{
    int r = blockmap_co_read_exactly(node, node->file, offset, buf, size, what, err);

    if (r == 0) {
        vhdx_apply_changes(node->opaque, offset, buf, size);
    }
    return r;
}
