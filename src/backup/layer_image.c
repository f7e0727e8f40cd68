/* SPDX-License-Identifier: Apache-2.0 */
#include "backup/layer_image.h"

#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "backup/manifest.h"
#include "base/byteorder.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "qcow2/data/compression.h"
#include "qcow2/header/format.h"

/* Entries that are read at once, and clusters that a read of the file covers. */
#define ENTRIES_MAX 8u
/* zstd's blocks have at most this many bytes of contents, and are decompressed as a whole. */
#define BLOCK_SIZE (128 * KiB)
#define UNIT (4 * KiB)
#define CACHE_SLOTS 8u
#define CACHE_RECENT 64u
#define NO_CLUSTER UINT64_MAX

static uint64_t cluster_size_of(const struct layer_image *image)
{
    return UINT64_C(1) << image->cluster_bits;
}

static uint64_t l2_entries(const struct layer_image *image)
{
    return cluster_size_of(image) / 8;
}

/* --- the header ------------------------------------------------------------------------------- */

/* Header fields that can lead out of the repository, or that no backup has. */
static int check_header_fields(const uint8_t *header, const char *shown, struct error *err)
{
    uint64_t features = load_be64(header + HDR_INCOMPATIBLE);
    uint32_t cluster_bits = load_be32(header + HDR_CLUSTER_BITS);

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
    /* Only one without a backing file: what is merged into it may leave parts of a cluster out. */
    if (cluster_bits != BACKUP_CLUSTER_BITS &&
        (cluster_bits != BACKUP_FULL_CLUSTER_BITS || load_be64(header + HDR_BACKING_OFFSET))) {
        return error_set(err, EINVAL, "'%s' has clusters of a size that no backup has", shown);
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

int layer_image_check(const struct stored_image *image, unsigned *ret_cluster_bits,
                      struct error *err)
{
    uint8_t header[HDR_OUR_SIZE];
    struct stored *file;
    int r = stored_open(image->fd, image->seal, STORED_IMAGE, image->shown, &file, err);

    if (r < 0) {
        return r;
    }
    r = read_header_fields(file, image->shown, header, err);
    *ret_cluster_bits = load_be32(header + HDR_CLUSTER_BITS);
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
                             .cluster_bits = load_be32(header + HDR_CLUSTER_BITS),
                             .compression = header[HDR_COMPRESSION_TYPE]};
    if (i.compression > COMPRESSION_ZSTD || i.l1_offset > INT64_MAX / 2 ||
        i.l1_size < div_round_up(i.disk_size, cluster_size_of(&i) * l2_entries(&i))) {
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

static struct place place_of_entry(const struct layer_image *image, uint64_t entry)
{
    if (entry & L2_COMPRESSED) {
        unsigned shift = 62 - (image->cluster_bits - 8);
        uint64_t offset = entry & ((UINT64_C(1) << shift) - 1);
        uint64_t sectors = ((entry & (L2_COMPRESSED - 1)) >> shift) + 1;

        return (struct place){offset, sectors * SECTOR_SIZE - offset % SECTOR_SIZE, true};
    }
    if ((entry & L2_ZERO) || !(entry & ENTRY_OFFSET_MASK)) {
        return (struct place){0};
    }
    return (struct place){entry & ENTRY_OFFSET_MASK, cluster_size_of(image), false};
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
    uint64_t l1 = first / l2_entries(image), table;
    int r =
        l1 < image->l1_size ? read_table(file, entries, 8, image->l1_offset + l1 * 8) : -EBADMSG;

    if (r < 0) {
        return r;
    }
    table = load_be64(entries) & ENTRY_OFFSET_MASK;
    memset(entries, 0, sizeof(entries));
    if (table) {
        r = read_table(file, entries, count * 8, table + first % l2_entries(image) * 8);
    }
    for (size_t i = 0; r == 0 && i < count; i++) {
        ret_places[i] = place_of_entry(image, load_be64(entries + i * 8));
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
    uint64_t cluster = cluster_size_of(image);

    for (size_t i = 0; i < count; i++) {
        uint64_t at = p[i].offset - p->offset;
        int r = at < size ? codec_decompress((enum compression_type)image->compression, in + at,
                                             MIN(p[i].size, size - at), buf + i * cluster, cluster)
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
    uint64_t contents = count << image->cluster_bits;
    uint8_t *in AUTO_FREE = NULL;
    int r;

    if (!p->size) {
        memset(buf, 0, contents);
        return 0;
    }
    if (!p->compressed) {
        /* Each begins at a cluster's offset, so there are no gaps. */
        if (size != contents) {
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
        r = read_places(image, file, places + i, n, size, buf + (i << image->cluster_bits));
    }
    return r;
}

static int read_whole(const struct layer_image *image, struct stored *file, uint64_t first,
                      size_t count, uint8_t *buf)
{
    int r = 0;

    for (size_t done = 0, n; r == 0 && done < count; done += n) {
        uint64_t at = first + done;

        n = MIN(count - done,
                MIN((uint64_t)ENTRIES_MAX, l2_entries(image) - at % l2_entries(image)));
        r = read_some(image, file, at, n, buf + (done << image->cluster_bits));
    }
    return r;
}

int layer_image_find_compressed(const struct layer_image *image, struct stored *file,
                                uint64_t cluster, uint64_t *ret_offset, uint64_t *ret_size)
{
    struct place p = {0};
    int r = find_places(image, file, cluster, 1, &p);
    uint64_t begin = round_up(p.offset, UNIT), end = p.offset + p.size;

    *ret_offset = begin;
    *ret_size = 0;
    if (r == 0 && p.compressed && end - SECTOR_SIZE > begin) {
        /* The next cluster may begin in its last sector. */
        *ret_size = (end - SECTOR_SIZE - begin) / UNIT * UNIT;
    }
    return r;
}

/* --- parts of clusters ------------------------------------------------------------------------ */

struct layer_image_cache {
    pthread_mutex_t lock; /* guards all below */
    struct {
        uint64_t cluster; /* NO_CLUSTER: none */
        uint8_t *data;
    } slots[CACHE_SLOTS]; /* by the remainder of the cluster's number, as the next */
    uint64_t recent[CACHE_RECENT];
};

struct layer_image_cache *layer_image_cache_new(void)
{
    struct layer_image_cache *c = calloc(1, sizeof(*c));

    if (c) {
        pthread_mutex_init(&c->lock, NULL);
        layer_image_cache_clear(c);
    }
    return c;
}

void layer_image_cache_clear(struct layer_image_cache *c)
{
    if (!c) {
        return;
    }
    pthread_mutex_lock(&c->lock);
    for (size_t i = 0; i < CACHE_SLOTS; i++) {
        free(c->slots[i].data);
        c->slots[i].data = NULL;
        c->slots[i].cluster = NO_CLUSTER;
    }
    for (size_t i = 0; i < CACHE_RECENT; i++) {
        c->recent[i] = NO_CLUSTER;
    }
    pthread_mutex_unlock(&c->lock);
}

void layer_image_cache_free(struct layer_image_cache *c)
{
    if (c) {
        layer_image_cache_clear(c);
        pthread_mutex_destroy(&c->lock);
        free(c);
    }
}

/* Part of a cluster. */
struct part {
    uint64_t cluster;
    size_t skip, size; /* bytes */
    uint8_t *buf;
};

/* True: it was in the cache. *ret_again: another part of the cluster was read not long ago. */
static bool copy_from_cache(struct layer_image_cache *c, const struct part *part, bool *ret_again)
{
    bool found;

    pthread_mutex_lock(&c->lock);
    found = c->slots[part->cluster % CACHE_SLOTS].cluster == part->cluster;
    if (found) {
        memcpy(part->buf, c->slots[part->cluster % CACHE_SLOTS].data + part->skip, part->size);
    }
    *ret_again = c->recent[part->cluster % CACHE_RECENT] == part->cluster;
    c->recent[part->cluster % CACHE_RECENT] = part->cluster;
    pthread_mutex_unlock(&c->lock);
    return found;
}

/* `data`, a whole cluster, goes over to the cache. */
static void keep_in_cache(struct layer_image_cache *c, uint64_t cluster, uint8_t *data)
{
    uint8_t *before;

    pthread_mutex_lock(&c->lock);
    before = c->slots[cluster % CACHE_SLOTS].data;
    c->slots[cluster % CACHE_SLOTS].data = data;
    c->slots[cluster % CACHE_SLOTS].cluster = cluster;
    pthread_mutex_unlock(&c->lock);
    free(before);
}

/* Decompress the first `size` bytes of a cluster. */
static int unpack_beginning(const struct layer_image *image, struct stored *file,
                            const struct place *p, uint8_t *buf, size_t size)
{
    uint64_t end = stored_size(file);
    uint64_t there = p->offset < end ? MIN(p->size, end - p->offset) : 0;
    uint8_t *in AUTO_FREE = malloc(there ?: 1);
    int r = in ? stored_read(file, in, there, p->offset) : -ENOMEM;

    if (r < 0) {
        return r;
    }
    r = codec_decompress((enum compression_type)image->compression, in, there, buf, size);
    return r == -EIO ? -EBADMSG : r;
}

/*
 * Who reads one part of a cluster does not want the others in general, so no more than is needed is
 * decompressed. When another part is wanted all is, and kept.
 */
static int unpack_part(const struct layer_image *image, struct layer_image_cache *cache,
                       struct stored *file, const struct place *p, const struct part *part)
{
    size_t size = cluster_size_of(image), enough = size;
    uint8_t *all AUTO_FREE = NULL;
    bool again = false;
    int r;

    if (cache && copy_from_cache(cache, part, &again)) {
        return 0;
    }
    if (image->compression == COMPRESSION_ZSTD) {
        enough = MIN(size, round_up(part->skip + part->size, BLOCK_SIZE));
    }
    size = again ? size : enough;
    all = malloc(size);
    r = all ? unpack_beginning(image, file, p, all, size) : -ENOMEM;
    if (r == -EBADMSG && size > enough) {
        /* What is damaged may be behind the part. */
        size = enough;
        r = unpack_beginning(image, file, p, all, size);
    }
    if (r < 0) {
        return r;
    }
    memcpy(part->buf, all + part->skip, part->size);
    if (cache && size == cluster_size_of(image)) {
        keep_in_cache(cache, part->cluster, TAKE_PTR(all));
    }
    return 0;
}

static int read_part(const struct layer_image *image, struct layer_image_cache *cache,
                     struct stored *file, const struct part *part)
{
    struct place p = {0};
    uint64_t from, there;
    int r = find_places(image, file, part->cluster, 1, &p);

    if (r < 0) {
        return r;
    }
    if (p.compressed) {
        return unpack_part(image, cache, file, &p, part);
    }
    from = p.offset + part->skip;
    there = p.size && from < stored_size(file) ? MIN(part->size, stored_size(file) - from) : 0;
    memset(part->buf + there, 0, part->size - there);
    return there ? stored_read(file, part->buf, there, from) : 0;
}

int layer_image_read(const struct layer_image *image, struct layer_image_cache *cache,
                     struct stored *file, uint64_t first, size_t count, uint8_t *buf)
{
    uint64_t offset = first * BACKUP_CLUSTER_SIZE, size = count * BACKUP_CLUSTER_SIZE;
    uint64_t cluster = cluster_size_of(image);
    int r = 0;

    for (uint64_t done = 0, n; r == 0 && done < size; done += n) {
        uint64_t skip = (offset + done) % cluster, rest = size - done;

        if (skip == 0 && rest >= cluster) {
            n = rest / cluster * cluster;
            r = read_whole(image, file, (offset + done) / cluster, n / cluster, buf + done);
        } else {
            n = MIN(rest, cluster - skip);
            r = read_part(image, cache, file,
                          &(struct part){(offset + done) / cluster, skip, n, buf + done});
        }
    }
    if (r == 0 && offset + size > image->disk_size) {
        uint64_t there = image->disk_size > offset ? image->disk_size - offset : 0;

        memset(buf + there, 0, size - there);
    }
    return r;
}
