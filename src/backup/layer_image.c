/* SPDX-License-Identifier: Apache-2.0 */
#include "backup/layer_image.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "backup/manifest.h"
#include "base/byteorder.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "qcow2/data/compression.h"
#include "qcow2/header/format.h"

#define L2_ENTRIES ((uint64_t)BACKUP_CLUSTER_SIZE / 8)
/* Where the number of sectors begins in the entry of a compressed cluster. */
#define SECTORS_SHIFT (62 - (BACKUP_CLUSTER_BITS - 8))
/* Entries that are read at once, and clusters that a read of the file covers. */
#define ENTRIES_MAX 8u

/* --- the header ------------------------------------------------------------------------------- */

/* Header fields that can lead out of the repository, or that no backup has. */
static int check_header_fields(const uint8_t *header, const char *shown, struct error *err)
{
    uint64_t features = load_be64(header + HDR_INCOMPATIBLE);

    if (load_be32(header) != QCOW2_MAGIC || load_be32(header + HDR_VERSION) != 3) {
        return error_set(err, EINVAL, "'%s' is not the qcow2 image of a backup", shown);
    }
    if (features & INCOMPAT_DATA_FILE) {
        return error_set(err, EINVAL, "'%s' has its data in another file, and no backup has that",
                         shown);
    }
    if ((features & ~INCOMPAT_COMPRESSION) || load_be32(header + HDR_CRYPT_METHOD)) {
        return error_set(err, EINVAL, "'%s' has features that no backup has", shown);
    }
    return 0;
}

static int read_header_fields(struct stored *file, const char *shown,
                              uint8_t ret_header[static HDR_OUR_SIZE], struct error *err)
{
    int r;

    memset(ret_header, 0, HDR_OUR_SIZE);
    r = stored_read(file, ret_header, HDR_V3_MIN_SIZE, 0);
    if (r == -EBADMSG) {
        return error_set(err, EBADMSG, "'%s' was changed", shown);
    }
    return r < 0 ? error_set(err, EINVAL, "'%s' is not the qcow2 image of a backup", shown)
                 : check_header_fields(ret_header, shown, err);
}

int layer_image_check(const struct stored_image *image, struct error *err)
{
    uint8_t header[HDR_OUR_SIZE];
    struct stored *file;
    int r = stored_open(image->fd, image->seal, STORED_IMAGE, image->shown, &file, err);

    if (r < 0) {
        return r;
    }
    r = read_header_fields(file, image->shown, header, err);
    stored_free(file);
    return r;
}

int layer_image_open(struct stored *file, const char *shown, struct layer_image *ret_image,
                     struct error *err)
{
    uint8_t header[HDR_OUR_SIZE];
    struct layer_image i;
    int r = read_header_fields(file, shown, header, err);

    if (r == 0 && (load_be64(header + HDR_INCOMPATIBLE) & INCOMPAT_COMPRESSION)) {
        r = stored_read(file, header + HDR_COMPRESSION_TYPE, 1, HDR_COMPRESSION_TYPE);
        r = r < 0 ? error_set_errno(err, -r, "Could not read '%s'", shown) : 0;
    }
    if (r < 0) {
        return r;
    }
    i = (struct layer_image){.disk_size = load_be64(header + HDR_SIZE),
                             .l1_offset = load_be64(header + HDR_L1_OFFSET),
                             .l1_size = load_be32(header + HDR_L1_SIZE),
                             .compression = header[HDR_COMPRESSION_TYPE]};
    if (load_be32(header + HDR_CLUSTER_BITS) != BACKUP_CLUSTER_BITS ||
        i.compression > COMPRESSION_ZSTD || i.l1_offset > INT64_MAX / 2 ||
        i.l1_size < div_round_up(i.disk_size, BACKUP_CLUSTER_SIZE * L2_ENTRIES)) {
        return error_set(err, EINVAL, "'%s' has a header that no backup has", shown);
    }
    *ret_image = i;
    return 0;
}

/* --- clusters --------------------------------------------------------------------------------- */

/* Where the contents of a cluster are in the file. */
struct place {
    uint64_t offset;
    uint64_t size; /* 0: the cluster reads as zeroes */
    bool compressed;
};

static struct place place_of_entry(uint64_t entry)
{
    if (entry & L2_COMPRESSED) {
        uint64_t offset = entry & ((UINT64_C(1) << SECTORS_SHIFT) - 1);
        uint64_t sectors = ((entry & (L2_COMPRESSED - 1)) >> SECTORS_SHIFT) + 1;

        return (struct place){offset, sectors * SECTOR_SIZE - offset % SECTOR_SIZE, true};
    }
    if ((entry & L2_ZERO) || !(entry & ENTRY_OFFSET_MASK)) {
        return (struct place){0};
    }
    return (struct place){entry & ENTRY_OFFSET_MASK, BACKUP_CLUSTER_SIZE, false};
}

/* -EBADMSG: the file ends before that. */
static int read_table(struct stored *file, void *buf, size_t size, uint64_t offset)
{
    uint64_t end = stored_size(file);

    return offset > end || size > end - offset ? -EBADMSG : stored_read(file, buf, size, offset);
}

/* The places of clusters that are in one L2 table. */
static int find_places(const struct layer_image *image, struct stored *file, uint64_t first,
                       size_t count, struct place *ret_places)
{
    uint8_t entries[ENTRIES_MAX * 8];
    uint64_t l1 = first / L2_ENTRIES, table;
    int r =
        l1 < image->l1_size ? read_table(file, entries, 8, image->l1_offset + l1 * 8) : -EBADMSG;

    if (r < 0) {
        return r;
    }
    table = load_be64(entries) & ENTRY_OFFSET_MASK;
    memset(entries, 0, sizeof(entries));
    if (table) {
        r = read_table(file, entries, count * 8, table + first % L2_ENTRIES * 8);
    }
    for (size_t i = 0; r == 0 && i < count; i++) {
        ret_places[i] = place_of_entry(load_be64(entries + i * 8));
    }
    return r;
}

static bool follows(const struct place *a, const struct place *b)
{
    return b->size && b->compressed == a->compressed && b->offset >= a->offset &&
           b->offset <= a->offset + a->size;
}

/* How many of the places lie next to each other in the file, so that one read gets them all. */
static size_t count_adjacent(const struct place *p, size_t count, uint64_t *ret_size)
{
    size_t n = 1;

    *ret_size = p->size;
    while (n < count && p->size && follows(&p[n - 1], &p[n])) {
        *ret_size = MAX(*ret_size, p[n].offset + p[n].size - p->offset);
        n++;
    }
    return n;
}

/* Decompress clusters whose places lie in the `size` bytes of `in`; the last may end early. */
static int unpack(const struct layer_image *image, const struct place *p, size_t count,
                  const uint8_t *in, uint64_t size, uint8_t *buf)
{
    for (size_t i = 0; i < count; i++) {
        uint64_t at = p[i].offset - p->offset;
        int r = at < size ? codec_decompress((enum compression_type)image->compression, in + at,
                                             MIN(p[i].size, size - at),
                                             buf + i * BACKUP_CLUSTER_SIZE, BACKUP_CLUSTER_SIZE)
                          : -EIO;

        if (r < 0) {
            return r == -EIO ? -EBADMSG : r;
        }
    }
    return 0;
}

/* Read places that lie next to each other. The file may end within the last one. */
static int read_places(const struct layer_image *image, struct stored *file, const struct place *p,
                       size_t count, uint64_t size, uint8_t *buf)
{
    uint64_t end = stored_size(file);
    uint64_t there = p->offset < end ? MIN(size, end - p->offset) : 0;
    uint8_t *in AUTO_FREE = NULL;
    int r;

    if (!p->size) {
        memset(buf, 0, count * BACKUP_CLUSTER_SIZE);
        return 0;
    }
    if (!p->compressed) {
        /* Each begins at a cluster's offset, so there are no gaps. */
        if (size != count * BACKUP_CLUSTER_SIZE) {
            return -EBADMSG;
        }
        memset(buf + there, 0, size - there);
        return there ? stored_read(file, buf, there, p->offset) : 0;
    }
    in = malloc(there ?: 1);
    if (!in) {
        return -ENOMEM;
    }
    r = stored_read(file, in, there, p->offset);
    return r < 0 ? r : unpack(image, p, count, in, there, buf);
}

static int read_some(const struct layer_image *image, struct stored *file, uint64_t first,
                     size_t count, uint8_t *buf)
{
    struct place places[ENTRIES_MAX];
    int r = find_places(image, file, first, count, places);

    for (size_t i = 0, n; r == 0 && i < count; i += n) {
        uint64_t size;

        n = count_adjacent(places + i, count - i, &size);
        r = read_places(image, file, places + i, n, size, buf + i * BACKUP_CLUSTER_SIZE);
    }
    return r;
}

int layer_image_read(const struct layer_image *image, struct stored *file, uint64_t first,
                     size_t count, uint8_t *buf)
{
    uint64_t offset = first * BACKUP_CLUSTER_SIZE, size = count * BACKUP_CLUSTER_SIZE;

    for (size_t done = 0, n; done < count; done += n) {
        uint64_t at = first + done;
        int r;

        n = MIN(count - done, MIN((uint64_t)ENTRIES_MAX, L2_ENTRIES - at % L2_ENTRIES));
        r = read_some(image, file, at, n, buf + done * BACKUP_CLUSTER_SIZE);
        if (r < 0) {
            return r;
        }
    }
    if (offset + size > image->disk_size) {
        uint64_t there = image->disk_size > offset ? image->disk_size - offset : 0;

        memset(buf + there, 0, size - there);
    }
    return 0;
}
