/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/byteorder.h"
#include "base/cleanup.h"
#include "base/log.h"
#include "qcow2/header/header.h"
#include "qcow2/snapshot/snapshot.h"

/* --- reading ---------------------------------------------------------------------------------- */

static int header_error(struct qcow2 *q, struct error *err, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

static int header_error(struct qcow2 *q, struct error *err, const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    error_vset(err, EINVAL, fmt, ap);
    va_end(ap);
    error_prepend(err, "Image '%s': ", block_node_display_name(q->node));
    return -EINVAL;
}

static int check_features(struct qcow2 *q, struct error *err)
{
    q->has_data_file = q->header.incompatible & INCOMPAT_DATA_FILE;
    q->data_file_raw = q->has_data_file && (q->header.autoclear & AUTOCLEAR_DATA_FILE_RAW);
    q->extended_l2 = q->header.incompatible & INCOMPAT_EXTENDED_L2;
    if (q->extended_l2 && q->cluster_bits < EXTENDED_CLUSTER_BITS_MIN) {
        return header_error(q, err,
                            "has extended L2 entries with clusters of %llu bytes; they need "
                            "at least 16 KiB",
                            (unsigned long long)q->cluster_size);
    }
    if ((q->header.incompatible & INCOMPAT_CORRUPT) && !q->read_only &&
        !(q->node->open_flags & BLOCK_OPEN_CHECK)) {
        return error_set(err, EACCES, "qcow2: Image is corrupt; cannot be opened read/write");
    }
    return 0;
}

static int parse_version_3(struct qcow2 *q, const uint8_t *h, struct error *err)
{
    q->header.incompatible = load_be64(h + HDR_INCOMPATIBLE);
    q->header.compatible = load_be64(h + HDR_COMPATIBLE);
    q->header.autoclear = load_be64(h + HDR_AUTOCLEAR);
    q->refcounts.order = load_be32(h + HDR_REFCOUNT_ORDER);
    q->header.length = load_be32(h + HDR_LENGTH);
    if (q->header.length > q->cluster_size) {
        return error_set(err, EINVAL, "qcow2 header exceeds cluster size");
    }
    if (q->header.length < HDR_V3_MIN_SIZE) {
        return error_set(err, EINVAL, "qcow2 header too short");
    }
    q->compression = COMPRESSION_ZLIB;
    if (q->header.length > HDR_COMPRESSION_TYPE) {
        q->compression = h[HDR_COMPRESSION_TYPE];
    }
    if (q->compression > COMPRESSION_ZSTD) {
        return header_error(q, err, "the compression type is %d; known are 0 (zlib) and 1 (zstd)",
                            (int)q->compression);
    }
    if ((q->compression != COMPRESSION_ZLIB) != !!(q->header.incompatible & INCOMPAT_COMPRESSION)) {
        return header_error(q, err, "the compression type does not agree with its feature bit");
    }
    if (q->refcounts.order > 6) {
        return error_set(err, EINVAL,
                         "Reference count entry width too large; may not exceed 64 bits");
    }
    return check_features(q, err);
}

static int check_table(struct qcow2 *q, const char *what, uint64_t offset, uint64_t bytes,
                       uint64_t max, struct error *err)
{
    uint64_t end;

    if (bytes > max) {
        return error_set(err, EFBIG, "%s too large", what);
    }
    if (!is_aligned(offset, q->cluster_size) || add_overflows(offset, bytes, &end) ||
        end > INT64_MAX || (bytes > 0 && offset == 0)) {
        return error_set(err, EINVAL, "%s offset invalid", what);
    }
    return 0;
}

static int parse_tables(struct qcow2 *q, const uint8_t *h, struct error *err)
{
    uint64_t size = load_be64(h + HDR_SIZE);
    uint64_t reftable_bytes = (uint64_t)load_be32(h + HDR_REFTABLE_CLUSTERS) << q->cluster_bits;
    uint64_t l1_needed;
    int r;

    if (size > INT64_MAX) {
        return header_error(q, err, "the disk size is %llu; at most 2^63 - 1 is allowed",
                            (unsigned long long)size);
    }
    q->l1.size = load_be32(h + HDR_L1_SIZE);
    q->l1.offset = load_be64(h + HDR_L1_OFFSET);
    q->reftable.offset = load_be64(h + HDR_REFTABLE_OFFSET);
    q->reftable.size = (uint32_t)MIN(reftable_bytes / 8, UINT32_MAX);
    l1_needed = div_round_up(size, qcow2_l2_span(q));
    if (q->reftable.offset == 0) {
        /* Cluster 0 is the header's, so the offset was lost: as if there were no table. */
        q->reftable.size = 0;
    }
    if ((r = check_table(q, "Active L1 table", q->l1.offset, (uint64_t)q->l1.size * 8, L1_BYTES_MAX,
                         err)) < 0 ||
        (r = check_table(q, "Reference count table", q->reftable.offset,
                         q->reftable.offset > 0 ? reftable_bytes : 0, REFTABLE_BYTES_MAX, err)) <
            0) {
        return r;
    }
    /* Reading does not need a refcount table. */
    if (q->reftable.size == 0 && !q->read_only && !(q->node->open_flags & BLOCK_OPEN_CHECK)) {
        return error_set(err, EINVAL, "Image does not contain a reference count table");
    }
    if (l1_needed > INT32_MAX) {
        return error_set(err, EFBIG, "Image is too big");
    }
    if (q->l1.size < l1_needed) {
        return error_set(err, EINVAL, "L1 table is too small");
    }
    block_node_set_size(q->node, size);
    return 0;
}

static int parse_header(struct qcow2 *q, const uint8_t *h, struct error *err)
{
    int r;

    if (load_be32(h + HDR_MAGIC) != QCOW2_MAGIC) {
        return error_set(err, EINVAL, "Image is not in qcow2 format");
    }
    q->version = load_be32(h + HDR_VERSION);
    if (q->version != 2 && q->version != 3) {
        return error_set(err, ENOTSUP, "Unsupported qcow2 version %u", q->version);
    }
    q->cluster_bits = load_be32(h + HDR_CLUSTER_BITS);
    if (q->cluster_bits < CLUSTER_BITS_MIN || q->cluster_bits > CLUSTER_BITS_MAX) {
        return error_set(err, EINVAL, "Unsupported cluster size: 2^%u", q->cluster_bits);
    }
    q->cluster_size = 1ULL << q->cluster_bits;
    q->crypt_method = load_be32(h + HDR_CRYPT_METHOD);
    if (q->crypt_method > CRYPT_LUKS) {
        header_error(q, err,
                     "is encrypted (method unknown), which is not supported: decrypt it first, "
                     "with 'qemu-img convert'");
        return -ENOTSUP;
    }
    q->snapshots.count = load_be32(h + HDR_NB_SNAPSHOTS);
    q->snapshots.offset = load_be64(h + HDR_SNAPSHOTS_OFFSET);
    if (q->snapshots.count > SNAPSHOTS_MAX && !(q->node->open_flags & BLOCK_OPEN_CHECK)) {
        return error_set(err, EFBIG, "Snapshot table too large");
    }
    if (!is_aligned(q->snapshots.offset, q->cluster_size) ||
        q->snapshots.offset > (uint64_t)INT64_MAX - SNAPSHOT_TABLE_BYTES_MAX) {
        return error_set(err, EINVAL, "Snapshot table offset invalid");
    }
    if (q->version == 2) {
        q->header.length = HDR_V2_SIZE;
        q->refcounts.order = 4;
        r = 0;
    } else {
        r = parse_version_3(q, h, err);
    }
    if (r < 0) {
        return r;
    }
    q->l2_bits = q->cluster_bits - 3 - q->extended_l2;
    q->subcluster_bits = q->cluster_bits - (q->extended_l2 ? 5 : 0);
    qcow2_set_refcount_order(q, q->refcounts.order);
    return parse_tables(q, h, err);
}

static int parse_bitmaps_extension(struct qcow2 *q, const uint8_t *data, uint32_t size,
                                   struct error *err)
{
    uint32_t count;

    if (!(q->header.autoclear & AUTOCLEAR_BITMAPS)) {
        if (!(q->node->open_flags & BLOCK_OPEN_CHECK)) {
            log_warning("a program lacking bitmap support modified '%s', so all its bitmaps are "
                        "void",
                        block_node_display_name(q->node));
        }
        return 0;
    }
    if (size != EXT_BITMAPS_SIZE) {
        return header_error(q, err, "the bitmaps extension has %u bytes; expected 24", size);
    }
    q->bitmaps.directory_count = count = load_be32(data);
    q->bitmaps.directory_size = load_be64(data + 8);
    q->bitmaps.directory_offset = load_be64(data + 16);
    if (load_be32(data + 4) != 0) {
        return header_error(q, err, "the reserved field of the bitmaps extension is not zero");
    }
    if (count == 0 || count > BITMAPS_MAX) {
        return header_error(q, err, "the bitmaps extension names %u bitmaps; expected 1 to %u",
                            count, BITMAPS_MAX);
    }
    if (q->bitmaps.directory_size == 0) {
        return header_error(q, err, "the bitmap directory is empty");
    }
    return check_table(q, "Bitmap directory", q->bitmaps.directory_offset,
                       q->bitmaps.directory_size, BITMAP_DIRECTORY_BYTES_MAX, err);
}

static int parse_encryption_extension(struct qcow2 *q, const uint8_t *data, uint32_t size,
                                      struct error *err)
{
    if (q->crypt_method != CRYPT_LUKS) {
        return error_set(err, EINVAL,
                         "CRYPTO header extension only expected with LUKS encryption method");
    }
    if (size != EXT_ENCRYPTION_SIZE) {
        return error_set(err, EINVAL, "CRYPTO header extension size %u, but expected size %u", size,
                         EXT_ENCRYPTION_SIZE);
    }
    q->header.luks_offset = load_be64(data);
    q->header.luks_size = load_be64(data + 8);
    if (!is_aligned(q->header.luks_offset, q->cluster_size)) {
        return error_set(
            err, EINVAL, "Encryption header offset '%llu' is not a multiple of cluster size '%llu'",
            (unsigned long long)q->header.luks_offset, (unsigned long long)q->cluster_size);
    }
    return check_table(q, "Encryption header", q->header.luks_offset, q->header.luks_size,
                       LUKS_BYTES_MAX, err);
}

/*
 * The activity log. Without the bit another program has written to the image since: what the
 * extension names may belong to somebody else by now, so the extension is dropped unread.
 */
static int parse_activity_extension(struct qcow2 *q, const uint8_t *data, uint32_t size)
{
    struct qcow2_activity *a = &q->activity;
    uint32_t count = size >= EXT_ACTIVITY_SIZE ? (size - EXT_ACTIVITY_SIZE) / 4 : 0;

    if (!(q->header.autoclear & AUTOCLEAR_ACTIVITY)) {
        a->is_stale = true;
        return 0;
    }
    if (size < EXT_ACTIVITY_SIZE || load_be32(data) != ACTIVITY_VERSION ||
        count > ACTIVITY_VOID_MAX) {
        log_warning("image '%s': the activity log is of an unknown version; it is not used",
                    block_node_display_name(q->node));
        return 0;
    }
    a->region_bits = load_be32(data + 4);
    a->offset = load_be64(data + 8);
    a->size = load_be64(data + 16);
    a->void_count = count;
    for (uint32_t i = 0; i < count; i++) {
        a->void_entries[i] = load_be32(data + EXT_ACTIVITY_SIZE + (size_t)4 * i);
    }
    return 0;
}

/* A change of the bitmaps of several images. Without the bit: as above. */
static int parse_joint_extension(struct qcow2 *q, const uint8_t *data, uint32_t size)
{
    struct qcow2_joint *j = &q->joint;
    uint32_t state = size == EXT_JOINT_SIZE ? load_be32(data + 4) : JOINT_NONE;

    if (!(q->header.autoclear & AUTOCLEAR_JOINT) || size != EXT_JOINT_SIZE ||
        load_be32(data) != JOINT_VERSION || state < JOINT_PREPARED || state > JOINT_UNDONE) {
        j->is_stale = true;
        return 0;
    }
    j->state = (enum qcow2_joint_state)state;
    memcpy(j->id, data + 8, JOINT_ID_SIZE);
    j->offset = load_be64(data + 24);
    j->size = load_be64(data + 32);
    return 0;
}

/* What is dirty in excess. A record that makes no sense to this version says nothing. */
static int parse_excess_extension(struct qcow2 *q, const uint8_t *data, uint32_t size)
{
    q->excess_count = 0;
    for (uint32_t at = 0; at + EXCESS_RECORD_SIZE <= size && q->excess_count < EXCESS_MAX;
         at += EXCESS_RECORD_SIZE) {
        q->excess[q->excess_count++] = (struct qcow2_excess){.entry = load_be32(data + at),
                                                             .why = load_be32(data + at + 4),
                                                             .bytes = load_be64(data + at + 8)};
    }
    return 0;
}

/*
 * Keep an extension of an unknown type. EXTENSIONS_MAX limits their number; known ones are not
 * counted, since they are generated when the header is written.
 */
static int keep_extension(struct qcow2 *q, uint32_t type, const uint8_t *data, uint32_t size,
                          struct error *err)
{
    struct qcow2_extension *e;
    unsigned count = 0;

    LIST_FOREACH (e, &q->header.extensions, link) {
        count++;
    }
    if (count == EXTENSIONS_MAX) {
        return error_set(err, EINVAL, "Too many unknown header extensions");
    }
    e = malloc(sizeof(*e) + size);
    if (!e) {
        return error_out_of_memory(err);
    }
    e->type = type;
    e->size = size;
    memcpy(e->data, data, size);
    list_append(&q->header.extensions, &e->link);
    return 0;
}

/* The text of an extension. An empty one counts as absent. */
static int take_text(char **text, const uint8_t *data, uint32_t size, struct error *err)
{
    free(*text);
    *text = NULL;
    if (size == 0 || data[0] == '\0') {
        return 0;
    }
    *text = strndup((const char *)data, size);
    return *text ? 0 : error_out_of_memory(err);
}

static int parse_extension(struct qcow2 *q, uint32_t type, const uint8_t *data, uint32_t size,
                           struct error *err)
{
    switch (type) {
    case EXT_BACKING_FORMAT:
        return take_text(&q->header.backing_format, data, size, err);
    case EXT_BITMAPS:
        return parse_bitmaps_extension(q, data, size, err);
    case EXT_DATA_FILE_NAME:
        return take_text(&q->header.data_filename, data, size, err);
    case EXT_FULL_DISK_ENCRYPTION:
        return parse_encryption_extension(q, data, size, err);
    case EXT_GREATEST_SIZE:
        q->header.greatest_size = size == 8 ? load_be64(data) : 0;
        return 0;
    case EXT_ACTIVITY:
        return parse_activity_extension(q, data, size);
    case EXT_EXCESS:
        return parse_excess_extension(q, data, size);
    case EXT_JOINT:
        return parse_joint_extension(q, data, size);
    case EXT_FEATURE_NAMES:
        return 0; /* generated when the header is written */
    default:
        return keep_extension(q, type, data, size, err);
    }
}

/* `head`: the first cluster. The extensions end at their end mark, or at offset `end`. */
static int parse_extensions(struct qcow2 *q, const uint8_t *head, uint64_t end, struct error *err)
{
    uint64_t at = q->header.length;

    while (at < end) {
        uint32_t type, size;
        int r;

        if (end - at < 8) {
            return error_set(err, EINVAL, "Header extension too large");
        }
        type = load_be32(head + at);
        size = load_be32(head + at + 4);
        if (type == EXT_END) {
            at += 8;
            break;
        }
        if (size > end - at - 8) {
            return error_set(err, EINVAL, "Header extension too large");
        }
        r = parse_extension(q, type, head + at + 8, size, err);
        if (r < 0) {
            return r;
        }
        at += 8 + round_up(size, 8);
    }
    q->header.end = MAX(q->header.end, at);
    return 0;
}

static int parse_backing_name(struct qcow2 *q, const uint8_t *head, uint64_t *ret_extensions_end,
                              struct error *err)
{
    uint64_t offset = load_be64(head + HDR_BACKING_OFFSET);
    uint32_t size = load_be32(head + HDR_BACKING_SIZE);

    *ret_extensions_end = q->cluster_size;
    if (offset == 0 || (size == 0 && offset < q->header.length)) {
        return 0; /* there is none */
    }
    if (offset < q->header.length || offset > q->cluster_size) {
        return error_set(err, EINVAL, "Invalid backing file offset");
    }
    if (size > MIN(BACKING_NAME_MAX, q->cluster_size - offset)) {
        return error_set(err, EINVAL, "Backing file name too long");
    }
    *ret_extensions_end = offset;
    q->header.end = offset + size;
    if (size == 0) {
        return 0;
    }
    q->header.backing_filename = strndup((const char *)head + offset, size);
    return q->header.backing_filename ? 0 : error_out_of_memory(err);
}

/* Fields after those that we know belong to compatible features of newer programs. */
static int keep_unknown_fields(struct qcow2 *q, const uint8_t *head, struct error *err)
{
    if (q->header.length <= HDR_OUR_SIZE) {
        return 0;
    }
    /* The length should be a multiple of 8; if not, it becomes one when the header is written. */
    q->header.unknown_fields_size = (uint32_t)round_up(q->header.length - HDR_OUR_SIZE, 8);
    q->header.unknown_fields = calloc(1, q->header.unknown_fields_size);
    if (!q->header.unknown_fields) {
        return error_out_of_memory(err);
    }
    memcpy(q->header.unknown_fields, head + HDR_OUR_SIZE, q->header.length - HDR_OUR_SIZE);
    return 0;
}

int qcow2_co_read_header(struct qcow2 *q, struct error *err)
{
    uint64_t file_size = block_edge_size(q->node->file), extensions_end, unknown;
    AUTO_FREE uint8_t *head = calloc(1, SECTOR_SIZE);
    AUTO_FREE uint8_t *cluster = NULL;
    int r;

    if (!head) {
        return error_out_of_memory(err);
    }
    r = block_co_pread(q->node->file, 0, head, MIN(file_size, SECTOR_SIZE));
    if (r < 0) {
        return error_set_errno(err, -r, "Could not read the header of '%s'",
                               block_node_display_name(q->node));
    }
    unknown = load_be64(head + HDR_INCOMPATIBLE) & ~INCOMPAT_KNOWN;
    if (load_be32(head) == QCOW2_MAGIC && load_be32(head + HDR_VERSION) == 3 && unknown) {
        return qcow2_co_refuse_features(q, head, unknown, err);
    }
    r = parse_header(q, head, err);
    if (r < 0) {
        return r;
    }
    cluster = calloc(1, q->cluster_size);
    if (!cluster) {
        return error_out_of_memory(err);
    }
    r = block_co_pread(q->node->file, 0, cluster, MIN(file_size, q->cluster_size));
    if (r < 0) {
        return error_set_errno(err, -r, "Could not read the header of '%s'",
                               block_node_display_name(q->node));
    }
    if ((r = keep_unknown_fields(q, cluster, err)) < 0 ||
        (r = parse_backing_name(q, cluster, &extensions_end, err)) < 0 ||
        (r = parse_extensions(q, cluster, extensions_end, err)) < 0) {
        return r;
    }
    return 0;
}

void qcow2_free_header(struct qcow2 *q)
{
    struct qcow2_extension *e, *next;

    LIST_FOREACH_SAFE (e, next, &q->header.extensions, link) {
        free(e);
    }
    free(q->header.unknown_fields);
    free(q->header.data_filename);
    free(q->header.backing_filename);
    free(q->header.backing_format);
}
