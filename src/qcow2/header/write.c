/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Writing the header.
 *
 * The order of the parts is QEMU's, since other programs may look for it:
 *
 *   0         header, 112 bytes (72 in version 2)
 *   112       backing format, data file name, encryption, feature names, bitmaps, greatest size,
 *             activity log, joint change, excess, unknown extensions, end mark
 *   ...       backing file name
 *
 * Only one sector can be switched at once (R3), and the extensions may extend beyond the first
 * one. So if anything after the first sector changes, a *short form* is switched to first. It has
 * the new state as well, ordered so that all of it fits into the first sector: without feature
 * names, and without unknown extensions that do not fit.
 *
 *   short form -> sync -> what is after the first sector -> sync -> first sector -> sync
 *
 * The backing file name of the short form is placed where neither the old header nor the new one
 * has anything. So is the name of a data file that is too long for the first sector; an extension
 * of feature names that nobody needs fills the gap in front of it.
 *
 * Clusters of 512 bytes to 2 KiB may have no room for two copies of a long backing file name. With
 * such clusters, feature names are left out if they would not fit into the first sector, an
 * unchanged name stays where it is, and a new name is placed after the room that extensions may
 * need later. A new name after which bitmaps could not be added is refused.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/byteorder.h"
#include "base/cleanup.h"
#include "base/log.h"
#include "base/strbuf.h"
#include "qcow2/bitmap/bitmap.h"
#include "qcow2/header/header.h"
#include "qcow2/table/verdict.h"
#include "trace/events.h"

enum form {
    FORM_FULL,
    FORM_WITHOUT_FEATURE_NAMES,
    FORM_WITHOUT_EXCESS, /* nor feature names */
    FORM_SHORT,          /* all within the first sector, except perhaps the backing file name */
    FORM_SHORT_APART,    /* as FORM_SHORT, with the data file name elsewhere */
};

#define SMALL_CLUSTER (2 * KiB)

static void put_extension(struct strbuf *sb, uint32_t type, const void *data, size_t size)
{
    static const uint8_t padding[8];
    uint8_t head[8];

    store_be32(head, type);
    store_be32(head + 4, (uint32_t)size);
    strbuf_append(sb, head, sizeof(head));
    strbuf_append(sb, data, size);
    strbuf_append(sb, padding, round_up(size, 8) - size);
}

static void put_bitmaps(const struct qcow2 *q, struct strbuf *sb)
{
    const struct stored_bitmap *b;
    uint8_t data[EXT_BITMAPS_SIZE] = {0};
    uint32_t count = 0;

    LIST_FOREACH (b, &q->bitmaps.stored, link) {
        count++;
    }
    if (q->bitmaps.directory_size == 0) {
        return;
    }
    store_be32(data, count);
    store_be64(data + 8, q->bitmaps.directory_size);
    store_be64(data + 16, q->bitmaps.directory_offset);
    put_extension(sb, EXT_BITMAPS, data, sizeof(data));
}

struct feature_name {
    uint8_t type; /* 0 incompatible, 1 compatible, 2 autoclear */
    uint8_t bit;
    const char *name;
};

/* The activity log, with the entries of the directory that it says nothing of. */
static void put_activity(const struct qcow2 *q, struct strbuf *sb)
{
    uint8_t data[EXT_ACTIVITY_SIZE + 4 * ACTIVITY_VOID_MAX] = {0};
    const struct stored_bitmap *b;
    uint32_t entry = 0, count = 0;

    if (!(q->header.autoclear & AUTOCLEAR_ACTIVITY)) {
        return;
    }
    store_be32(data, ACTIVITY_VERSION);
    store_be32(data + 4, q->activity.region_bits);
    store_be64(data + 8, q->activity.offset);
    store_be64(data + 16, q->activity.size);
    LIST_FOREACH (b, &q->bitmaps.stored, link) {
        if (qcow2_activity_ignores(b) && count < ACTIVITY_VOID_MAX) {
            store_be32(data + EXT_ACTIVITY_SIZE + (size_t)4 * count++, entry);
        }
        entry++;
    }
    put_extension(sb, EXT_ACTIVITY, data, EXT_ACTIVITY_SIZE + 4 * count);
}

static void put_joint(const struct qcow2 *q, struct strbuf *sb)
{
    uint8_t data[EXT_JOINT_SIZE] = {0};

    if (q->joint.state == JOINT_NONE) {
        return;
    }
    store_be32(data, JOINT_VERSION);
    store_be32(data + 4, q->joint.state);
    memcpy(data + 8, q->joint.id, JOINT_ID_SIZE);
    store_be64(data + 24, q->joint.offset);
    store_be64(data + 32, q->joint.size);
    put_extension(sb, EXT_JOINT, data, sizeof(data));
}

/* Whether the header is to say what of the bitmaps is dirty in excess. */
static bool has_excess(struct qcow2 *q, enum form form)
{
    struct qcow2_excess list[EXCESS_MAX];

    return q->cluster_size > SMALL_CLUSTER && form != FORM_WITHOUT_EXCESS &&
           qcow2_list_excess(q, list) > 0;
}

/*
 * What of the bitmaps is dirty in excess. Only where it has room: it is of no use but to tell users
 * what they have.
 */
static void put_excess(struct qcow2 *q, struct strbuf *sb, enum form form)
{
    uint8_t data[(size_t)EXCESS_RECORD_SIZE * EXCESS_MAX];
    struct qcow2_excess list[EXCESS_MAX];
    unsigned count = qcow2_list_excess(q, list);
    size_t size = (size_t)count * EXCESS_RECORD_SIZE;
    bool fits = form < FORM_SHORT || sb->len + 8 + size + 8 <= SECTOR_SIZE;

    for (unsigned i = 0; i < count; i++) {
        uint8_t *record = data + (size_t)i * EXCESS_RECORD_SIZE;

        store_be32(record, list[i].entry);
        store_be32(record + 4, list[i].why);
        store_be64(record + 8, list[i].bytes);
    }
    if (has_excess(q, form) && fits) {
        put_extension(sb, EXT_EXCESS, data, size);
    }
}

static void put_feature_names(struct qcow2 *q, struct strbuf *sb)
{
    static const struct feature_name names[] = {
        {0, 0, "dirty bit"},
        {0, 1, "corrupt bit"},
        {0, 2, "external data file"},
        {0, 3, "compression type"},
        {0, 4, "extended L2 entries"},
        {1, 0, "lazy refcounts"},
        {2, 0, "bitmaps"},
        {2, 1, "raw external data"},
        /* The last three: only while there is one. */
        {2, AUTOCLEAR_ACTIVITY_BIT, "activity log"},
        {2, AUTOCLEAR_JOINT_BIT, "joint change"},
        {2, AUTOCLEAR_EXCESS_BIT, "bitmap excess"},
    };
    bool there[ARRAY_SIZE(names)];
    uint8_t data[ARRAY_SIZE(names) * 48] = {0};
    size_t count = 0;

    memset(there, true, sizeof(there));
    there[ARRAY_SIZE(names) - 3] = q->header.autoclear & AUTOCLEAR_ACTIVITY;
    there[ARRAY_SIZE(names) - 2] = q->joint.state != JOINT_NONE;
    there[ARRAY_SIZE(names) - 1] = has_excess(q, FORM_FULL);
    for (size_t i = 0; i < ARRAY_SIZE(names); i++) {
        if (there[i]) {
            data[count * 48] = names[i].type;
            data[count * 48 + 1] = names[i].bit;
            memcpy(data + count * 48 + 2, names[i].name, strlen(names[i].name));
            count++;
        }
    }
    put_extension(sb, EXT_FEATURE_NAMES, data, count * 48);
}

static void put_fixed_part(struct qcow2 *q, uint8_t *h, enum form form)
{
    uint64_t autoclear = q->header.autoclear & ~(AUTOCLEAR_JOINT | AUTOCLEAR_EXCESS);

    autoclear |= q->joint.state != JOINT_NONE ? AUTOCLEAR_JOINT : 0;
    autoclear |= has_excess(q, form) ? AUTOCLEAR_EXCESS : 0;
    store_be32(h + HDR_MAGIC, QCOW2_MAGIC);
    store_be32(h + HDR_VERSION, q->version);
    store_be32(h + HDR_CLUSTER_BITS, q->cluster_bits);
    store_be64(h + HDR_SIZE, block_node_size(q->node));
    store_be32(h + HDR_CRYPT_METHOD, q->crypt_method);
    store_be32(h + HDR_L1_SIZE, q->l1.size);
    store_be64(h + HDR_L1_OFFSET, q->l1.offset);
    store_be64(h + HDR_REFTABLE_OFFSET, q->reftable.offset);
    store_be32(h + HDR_REFTABLE_CLUSTERS,
               (uint32_t)((uint64_t)q->reftable.size * 8 >> q->cluster_bits));
    store_be32(h + HDR_NB_SNAPSHOTS, q->snapshots.count);
    store_be64(h + HDR_SNAPSHOTS_OFFSET, q->snapshots.offset);
    store_be64(h + HDR_INCOMPATIBLE,
               q->header.incompatible | (atomic_load(&q->corrupt) ? INCOMPAT_CORRUPT : 0));
    store_be64(h + HDR_COMPATIBLE, q->header.compatible);
    store_be64(h + HDR_AUTOCLEAR, autoclear);
    store_be32(h + HDR_REFCOUNT_ORDER, q->refcounts.order);
    store_be32(h + HDR_LENGTH, HDR_OUR_SIZE + q->header.unknown_fields_size);
    h[HDR_COMPRESSION_TYPE] = (uint8_t)q->compression;
}

/* --- forms ------------------------------------------------------------------------------------ */

/* A header cluster. */
struct header {
    uint8_t *bytes; /* cluster_size */
    enum form form;
    size_t apart;          /* short forms: offset of what is not in the first sector */
    size_t extensions_end; /* after the end mark */
    size_t name, name_end; /* backing file name; 0: none */
};

struct header_write {
    struct header old, new, short_form;
    size_t kept_name; /* offset of the backing file name in all three; 0: it may move */
};

/*
 * Bytes of the extensions for bitmaps and greatest size, and bytes by which a header of version 2
 * grows in version 3.
 */
#define ROOM_FOR_BITMAPS (8u + EXT_BITMAPS_SIZE + 8u + 8u)
#define ROOM_FOR_VERSION_3 (HDR_OUR_SIZE - HDR_V2_SIZE)

static void header_write_release(struct header_write *w)
{
    free(w->old.bytes);
    free(w->new.bytes);
    free(w->short_form.bytes);
}

static size_t header_end(const struct header *h)
{
    return MAX(h->extensions_end, h->name_end);
}

static size_t name_size(const struct qcow2 *q)
{
    return q->header.backing_filename ? strlen(q->header.backing_filename) : 0;
}

static void put_bitmaps_and_size(const struct qcow2 *q, struct strbuf *sb)
{
    put_bitmaps(q, sb);
    if (q->header.greatest_size > block_node_size(q->node) && q->bitmaps.directory_size > 0) {
        uint8_t size[8];

        store_be64(size, q->header.greatest_size);
        put_extension(sb, EXT_GREATEST_SIZE, size, sizeof(size));
    }
    put_activity(q, sb);
    put_joint(q, sb);
}

static void put_extensions(struct qcow2 *q, struct strbuf *sb, enum form form)
{
    const struct qcow2_extension *e;

    if (q->header.backing_format) {
        put_extension(sb, EXT_BACKING_FORMAT, q->header.backing_format,
                      strlen(q->header.backing_format));
    }
    if (q->header.data_filename && form != FORM_SHORT_APART) {
        put_extension(sb, EXT_DATA_FILE_NAME, q->header.data_filename,
                      strlen(q->header.data_filename));
    }
    if (q->header.luks_size > 0) {
        uint8_t place[EXT_ENCRYPTION_SIZE];

        store_be64(place, q->header.luks_offset);
        store_be64(place + 8, q->header.luks_size);
        put_extension(sb, EXT_FULL_DISK_ENCRYPTION, place, sizeof(place));
    }
    if (form == FORM_FULL && q->version >= 3) {
        put_feature_names(q, sb);
    }
    put_bitmaps_and_size(q, sb);
    put_excess(q, sb, form);
    LIST_FOREACH (e, &q->header.extensions, link) {
        if (form >= FORM_SHORT && sb->len + 8 + round_up(e->size, 8) + 8 > SECTOR_SIZE) {
            break;
        }
        put_extension(sb, e->type, e->data, e->size);
    }
}

static void put_name(const struct qcow2 *q, struct header *h, size_t at)
{
    size_t size = name_size(q);

    if (size > 0) {
        h->name = at;
        h->name_end = at + size;
        memcpy(h->bytes + at, q->header.backing_filename, size);
        store_be64(h->bytes + HDR_BACKING_OFFSET, at);
        store_be32(h->bytes + HDR_BACKING_SIZE, (uint32_t)size);
    }
}

/* Fill the gap up to `apart` with feature names, then put the name of the data file. */
static void put_data_file_apart(const struct qcow2 *q, struct strbuf *sb, size_t apart)
{
    uint8_t head[8];

    store_be32(head, EXT_FEATURE_NAMES);
    store_be32(head + 4, (uint32_t)(apart - sb->len - sizeof(head)));
    strbuf_append(sb, head, sizeof(head));
    while (sb->len < apart && !sb->failed) {
        strbuf_append(sb, "", 1);
    }
    put_extension(sb, EXT_DATA_FILE_NAME, q->header.data_filename, strlen(q->header.data_filename));
}

/*
 * Build all of a header except the backing file name. -ENOSPC if the extensions end beyond
 * `limit`. In FORM_SHORT_APART they continue at `apart`.
 */
static int build_form(struct qcow2 *q, enum form form, size_t limit, size_t apart,
                      struct header *ret_header)
{
    uint8_t fixed[HDR_OUR_SIZE] = {0};
    STRBUF_AUTO(sb);

    put_fixed_part(q, fixed, form);
    strbuf_append(&sb, fixed, q->version == 2 ? HDR_V2_SIZE : sizeof(fixed));
    if (q->version >= 3) {
        strbuf_append(&sb, q->header.unknown_fields, q->header.unknown_fields_size);
    }
    put_extensions(q, &sb, form);
    if (form == FORM_SHORT_APART && sb.len + 8 <= SECTOR_SIZE) {
        put_data_file_apart(q, &sb, apart);
        limit = q->cluster_size;
    }
    put_extension(&sb, EXT_END, NULL, 0);
    if (sb.failed) {
        return -ENOMEM;
    }
    if (sb.len > limit) {
        return -ENOSPC;
    }
    memset(ret_header->bytes, 0, q->cluster_size);
    memcpy(ret_header->bytes, sb.data, sb.len);
    ret_header->form = form;
    ret_header->apart = apart;
    ret_header->extensions_end = sb.len;
    ret_header->name = ret_header->name_end = 0;
    return 0;
}

/* Whether the new header equals the old one after the first sector. */
static bool rest_is_unchanged(const struct header_write *w)
{
    size_t end = header_end(&w->new);

    return end <= SECTOR_SIZE ||
           memcmp(w->old.bytes + SECTOR_SIZE, w->new.bytes + SECTOR_SIZE, end - SECTOR_SIZE) == 0;
}

static bool needs_short_form(const struct header_write *w)
{
    return !rest_is_unchanged(w) && header_end(&w->old) > SECTOR_SIZE;
}

/* Build the short form of w->new, with places for its names. -ENOSPC. */
static int build_short_form(struct qcow2 *q, struct header_write *w)
{
    size_t size = name_size(q), apart = round_up(MAX(header_end(&w->new), header_end(&w->old)), 8),
           at;
    int r = build_form(q, FORM_SHORT, SECTOR_SIZE, apart, &w->short_form);

    if (r == -ENOSPC && q->header.data_filename) {
        r = build_form(q, FORM_SHORT_APART, SECTOR_SIZE, apart, &w->short_form);
    }
    if (r < 0) {
        return r;
    }
    at = w->short_form.extensions_end;
    if (w->kept_name >= at) {
        at = w->kept_name;
    } else if (!range_fits(at, size, SECTOR_SIZE)) {
        at = MAX(at, apart);
    }
    if (!range_fits(at, size, q->cluster_size)) {
        return -ENOSPC;
    }
    put_name(q, &w->short_form, at);
    return 0;
}

/* Offset of the backing file name in the old header; 0 if it has another one, or none. */
static size_t same_name_in(const struct qcow2 *q, const struct header *old)
{
    uint64_t at = load_be64(old->bytes + HDR_BACKING_OFFSET);
    size_t size = name_size(q);

    if (size == 0 || load_be32(old->bytes + HDR_BACKING_SIZE) != size ||
        !range_fits(at, size, q->cluster_size) ||
        memcmp(old->bytes + at, q->header.backing_filename, size) != 0) {
        return 0;
    }
    return at;
}

/*
 * Build w->new with the name `room` bytes after the extensions, and a short form if needed.
 * -ENOSPC.
 */
static int build_name_after(struct qcow2 *q, struct header_write *w, enum form form, size_t room)
{
    int r = build_form(q, form, q->cluster_size, 0, &w->new);

    w->kept_name = 0;
    if (r == 0 && (!range_fits(w->new.extensions_end + room, name_size(q), q->cluster_size) ||
                   (form == FORM_FULL && q->cluster_size <= SMALL_CLUSTER &&
                    w->new.extensions_end > SECTOR_SIZE))) {
        r = -ENOSPC;
    }
    if (r < 0) {
        return r;
    }
    put_name(q, &w->new, w->new.extensions_end + room);
    return needs_short_form(w) ? build_short_form(q, w) : 0;
}

/*
 * Build w->new with the name at its old offset `at`. Unused bytes between extensions and name keep
 * their contents as well, so that less has to be written. -ENOSPC.
 */
static int build_name_kept(struct qcow2 *q, struct header_write *w, enum form form, size_t at)
{
    int r = at > 0 ? build_form(q, form, at, 0, &w->new) : -ENOSPC;
    size_t gap = MAX(w->new.extensions_end, SECTOR_SIZE);

    if (r < 0) {
        return r;
    }
    w->kept_name = at;
    if (gap < at) {
        memcpy(w->new.bytes + gap, w->old.bytes + gap, at - gap);
    }
    put_name(q, &w->new, at);
    return needs_short_form(w) ? build_short_form(q, w) : 0;
}

/* Try the forms that w->new may have if the name is not new. */
static int build_first_that_fits(struct qcow2 *q, struct header_write *w)
{
    int r = build_name_after(q, w, FORM_FULL, 0);

    for (enum form form = FORM_WITHOUT_FEATURE_NAMES; form < FORM_SHORT && r == -ENOSPC; form++) {
        r = build_name_after(q, w, form, 0);
        if (r == -ENOSPC) {
            r = build_name_kept(q, w, form, same_name_in(q, &w->old));
        }
    }
    return r;
}

/* Build the header that would follow `from`; *ret_header: its bytes are the caller's. */
static int build_successor(struct qcow2 *q, const struct header *from, struct header *ret_header)
{
    CLEANUP(header_write_release)
    struct header_write w = {
        .old.bytes = malloc(q->cluster_size),
        .new.bytes = calloc(1, q->cluster_size),
        .short_form.bytes = calloc(1, q->cluster_size),
    };
    int r;

    if (!w.old.bytes || !w.new.bytes || !w.short_form.bytes) {
        return -ENOMEM;
    }
    memcpy(w.old.bytes, from->bytes, q->cluster_size);
    w.old.extensions_end = header_end(from);
    r = build_first_that_fits(q, &w);
    if (r == 0) {
        *ret_header = w.new;
        w.new.bytes = NULL;
    }
    return r;
}

/*
 * -ENOSPC unless a header of version 3 with bitmaps could follow `h`, and then one without
 * bitmaps.
 */
static int check_room_for_bitmaps(struct qcow2 *q, const struct header *h)
{
    uint64_t directory = q->bitmaps.directory_size, greatest = q->header.greatest_size;
    struct header with = {0}, without = {0};
    uint32_t version = q->version;
    int r;

    if (header_end(h) < q->cluster_size / 4) {
        return 0;
    }
    q->version = 3;
    q->bitmaps.directory_size = 1;
    q->header.greatest_size = UINT64_MAX;
    r = build_successor(q, h, &with);
    if (r == 0) {
        q->bitmaps.directory_size = 0;
        r = build_successor(q, &with, &without);
    }
    q->version = version;
    q->bitmaps.directory_size = directory;
    q->header.greatest_size = greatest;
    free(with.bytes);
    free(without.bytes);
    return r;
}

/* Build w->new with a name that the old header does not have, and with room for bitmaps later. */
static int build_with_new_name(struct qcow2 *q, struct header_write *w)
{
    static const enum form forms[] = {FORM_FULL, FORM_WITHOUT_FEATURE_NAMES,
                                      FORM_WITHOUT_FEATURE_NAMES};
    size_t room = ROOM_FOR_BITMAPS + (q->version < 3 ? ROOM_FOR_VERSION_3 : 0);
    STRBUF_AUTO(there);
    int r = -ENOSPC;

    put_bitmaps_and_size(q, &there);
    room -= MIN(room, there.len);
    for (size_t i = 0; i < ARRAY_SIZE(forms) && r == -ENOSPC; i++) {
        r = build_name_after(q, w, forms[i], i < 2 ? 0 : room);
        UNLESS_FAILED(r, check_room_for_bitmaps(q, &w->new));
    }
    return r;
}

/* Once for each image. */
static void warn_of_lost_excess(struct qcow2 *q, enum form form)
{
    if (form == FORM_WITHOUT_EXCESS && has_excess(q, FORM_FULL) && !q->warned_of_excess) {
        q->warned_of_excess = true;
        log_warning("image '%s': the header has no room to say what of the bitmaps is dirty in "
                    "excess; they will count as exact when it is opened again",
                    block_node_display_name(q->node));
    }
}

static int build_new_header(struct qcow2 *q, struct header_write *w, struct error *err)
{
    bool new_name = name_size(q) > 0 && same_name_in(q, &w->old) == 0;
    int r = new_name ? build_with_new_name(q, w) : build_first_that_fits(q, w);

    if (r == -ENOSPC) {
        return error_set(err, ENOSPC,
                         "Image '%s': the header extensions and the backing file name of %zu bytes "
                         "need more room than there is",
                         block_node_display_name(q->node), name_size(q));
    }
    if (r == 0) {
        warn_of_lost_excess(q, w->new.form);
    }
    return r < 0 ? error_out_of_memory(err) : 0;
}

/* --- writing ---------------------------------------------------------------------------------- */

/* Write the bytes [from, to) of the header, and sync. */
static int co_write_part(struct qcow2 *q, const struct header *h, size_t from, size_t to)
{
    int r = block_co_pwrite(q->node->file, from, h->bytes + from, to - from, 0);

    return r < 0 ? r : block_co_flush(q->node->file);
}

/* Replace the first sector of the old header by that of one with the new state. */
static int co_switch_first_sector(struct qcow2 *q, const struct header_write *w,
                                  const struct header *to)
{
    int r = co_write_part(q, to, 0, SECTOR_SIZE);

    if (r < 0 && co_write_part(q, &w->old, 0, SECTOR_SIZE) < 0) {
        qcow2_give_up_header(q, r);
    }
    return r;
}

/* Write what is after the first sector, unless it is there already. */
static int co_write_rest(struct qcow2 *q, const struct header_write *w)
{
    return rest_is_unchanged(w) ? 0 : co_write_part(q, &w->new, SECTOR_SIZE, header_end(&w->new));
}

static int co_write_by_short_form(struct qcow2 *q, struct header_write *w)
{
    int r = 0;

    if (header_end(&w->short_form) > SECTOR_SIZE) {
        r = co_write_part(q, &w->short_form, w->short_form.apart, header_end(&w->short_form));
    }
    UNLESS_FAILED(r, co_switch_first_sector(q, w, &w->short_form));
    if (r < 0) {
        return r;
    }
    r = co_write_rest(q, w);
    UNLESS_FAILED(r, co_write_part(q, &w->new, 0, SECTOR_SIZE));
    if (r < 0) {
        /* The header on disk is either form; both have the new state. */
        log_warning("image '%s': the header was written in its short form only (%s)",
                    block_node_display_name(q->node), strerror(-r));
        q->header.end =
            MAX(header_end(&w->old), MAX(header_end(&w->new), header_end(&w->short_form)));
        return 0;
    }
    q->header.end = header_end(&w->new);
    return 0;
}

static int co_write_new_header(struct qcow2 *q, struct header_write *w)
{
    int r;

    if (needs_short_form(w)) {
        return co_write_by_short_form(q, w);
    }
    r = co_write_rest(q, w);
    UNLESS_FAILED(r, co_switch_first_sector(q, w, &w->new));
    if (r == 0) {
        q->header.end = header_end(&w->new);
    }
    return r;
}

/* mark_mutex is held: others write single fields of the header while requests run. */
static int co_replace_header_locked(struct qcow2 *q, struct header_write *w, struct error *err)
{
    int r = block_co_pread(q->node->file, 0, w->old.bytes, q->cluster_size);

    CO_ASSERT_HELD(&q->header.mark_mutex);
    if (r == 0) {
        w->old.extensions_end = q->header.end;
        r = build_new_header(q, w, err);
        if (r < 0) {
            return r;
        }
        r = co_write_new_header(q, w);
        q->excess_written = r < 0 ? q->excess_written : qcow2_greatest_excess(q);
    }
    return r < 0 ? error_set_errno(err, -r, "Could not write the header of '%s'",
                                   block_node_display_name(q->node))
                 : 0;
}

int qcow2_co_write_header(struct qcow2 *q, struct error *err)
{
    CLEANUP(header_write_release)
    struct header_write w = {
        .old.bytes = calloc(1, q->cluster_size),
        .new.bytes = calloc(1, q->cluster_size),
        .short_form.bytes = calloc(1, q->cluster_size),
    };
    int r;

    if (!w.old.bytes || !w.new.bytes || !w.short_form.bytes) {
        return error_out_of_memory(err);
    }
    r = qcow2_co_overlap_check(q, 0, q->cluster_size, OVERLAP_BIT(OVERLAP_MAIN_HEADER));
    if (r < 0) {
        error_set_errno(err, -r, "Could not write the header of '%s'",
                        block_node_display_name(q->node));
    } else {
        co_mutex_lock(&q->header.mark_mutex);
        r = co_replace_header_locked(q, &w, err);
        co_mutex_unlock(&q->header.mark_mutex);
    }
    trace_qcow2_header_write(q->node->name, r);
    if (r < 0) {
        return r;
    }
    co_mutex_lock(&q->lock);
    qcow2_overlap_note_header_locked(q);
    co_mutex_unlock(&q->lock);
    return 0;
}

int qcow2_co_check_room_for_bitmaps(struct qcow2 *q, struct error *err)
{
    AUTO_FREE uint8_t *bytes = malloc(q->cluster_size);
    struct header now = {.bytes = bytes, .extensions_end = q->header.end};
    int r = bytes ? 0 : -ENOMEM;

    if (q->bitmaps.directory_size > 0) {
        return 0;
    }
    UNLESS_FAILED(r, block_co_pread(q->node->file, 0, bytes, q->cluster_size));
    UNLESS_FAILED(r, check_room_for_bitmaps(q, &now));
    return r < 0 ? error_set_errno(err, -r, "Image '%s': the header can't name bitmaps",
                                   block_node_display_name(q->node))
                 : 0;
}

int qcow2_co_set_incompatible(struct qcow2 *q, uint64_t bits)
{
    uint8_t field[8];
    int r;

    co_mutex_lock(&q->header.mark_mutex);
    store_be64(field, q->header.incompatible | bits);
    r = block_co_pwrite(q->node->file, HDR_INCOMPATIBLE, field, sizeof(field), 0);
    UNLESS_FAILED(r, block_co_flush(q->node->file));
    if (r == 0) {
        q->header.incompatible |= bits;
    }
    co_mutex_unlock(&q->header.mark_mutex);
    return r;
}
