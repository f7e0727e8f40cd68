/* SPDX-License-Identifier: Apache-2.0 */
#include "image.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/byteorder.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "block/gate.h"

#define COPY_BYTES (64 * KiB)
#define NAME_MAX_BYTES 64
#define JSON_MAX_BYTES 2048
/* In the name of a file: another 512 bytes, and the same file. */
#define LONG_NAME DOTS_128 DOTS_128 DOTS_128 DOTS_128
#define DOTS_128 DOTS_32 DOTS_32 DOTS_32 DOTS_32
#define DOTS_32 "././././././././././././././././"

/* Fields of the header of qcow2. */
#define HEADER_MAGIC 0x514649fbU
#define HEADER_VERSION 4u
#define HEADER_BACKING 8u       /* offset and length of the name of the backing file */
#define HEADER_INCOMPATIBLE 79u /* the byte with the dirty bit, bit 0 */

static const char *const file_names[RECORD_DISKS] = {
    [IMAGE_FILE] = "image",
    [IMAGE_DATA_FILE] = "data",
    [IMAGE_BASE_FILE] = "base",
    "chain3",
    "chain4",
    "chain5",
    "chain6",
    "chain7",
};

const char *image_disk_name(unsigned disk)
{
    return file_names[disk];
}

/* --- nodes ------------------------------------------------------------------------------------ */

static int co_open_json(const char *json, unsigned flags, struct block_node **ret,
                        struct error *err)
{
    struct options *opts;
    int r = options_parse(json, NULL, &opts, err);

    return r < 0 ? r : block_co_open(opts, flags, ret, err);
}

int image_co_open_disks(struct image_disks *d, const char *name, struct error *err)
{
    int ret = 0;

    *d = (struct image_disks){.name = name, .top = IMAGE_FILE};
    for (unsigned i = 0; i < RECORD_DISKS && ret == 0; i++) {
        char json[160];

        snprintf(json, sizeof(json),
                 "{\"driver\":\"record-disk\",\"node-name\":\"%s-%s\",\"discard\":\"unmap\"}", name,
                 file_names[i]);
        ret = co_open_json(json, BLOCK_OPEN_RDWR, &d->nodes[i], err);
    }
    return ret;
}

void image_co_close_disks(struct image_disks *d)
{
    for (unsigned i = 0; i < RECORD_DISKS; i++) {
        block_co_unref(d->nodes[i]);
    }
}

void image_format_options(const struct image_disks *d, const struct crash_config *c, unsigned disk,
                          char *buf, size_t size)
{
    char caches[96] = "", key[96] = "", header[64] = "";
    uint64_t cache = 4 * MAX(c->cluster_size, 4096u);

    if (c->keys) {
        snprintf(key, sizeof(key),
                 c->format ? ",\"key-secret\":\"k%u\""
                           : ",\"encrypt\":{\"format\":\"luks\",\"key-secret\":\"k%u\"}",
                 d->key);
    }
    if (c->detached_header) {
        snprintf(header, sizeof(header), ",\"header\":\"%s-%s\"", d->name,
                 file_names[IMAGE_BASE_FILE]);
    }
    if (c->format) {
        snprintf(buf, size, "\"driver\":\"%s\",\"file\":\"%s-%s\",\"discard\":\"unmap\"%s%s",
                 c->format, d->name, file_names[disk], key, header);
        return;
    }
    if (c->small_caches) {
        snprintf(caches, sizeof(caches), ",\"l2-cache-size\":%llu,\"refcount-cache-size\":%llu",
                 (unsigned long long)cache, (unsigned long long)cache);
    }
    snprintf(buf, size, "\"driver\":\"qcow2\",\"file\":\"%s-%s\",\"discard\":\"unmap\"%s%s%s",
             d->name, file_names[disk], c->discard_no_unref ? ",\"discard-no-unref\":true" : "",
             caches, key);
}

/* ,"KEY":VALUE pairs behind that. */
static void format_children(const struct image_disks *d, const struct crash_config *c, unsigned how,
                            char *buf, size_t size)
{
    char data[96] = "", backing[192] = "";

    if (c->data_file && !(how & IMAGE_BASE)) {
        snprintf(data, sizeof(data), ",\"data-file\":\"%s-data\"", d->name);
    }
    if (c->backing && !(how & (IMAGE_BASE | IMAGE_NO_BASE))) {
        snprintf(backing, sizeof(backing),
                 ",\"backing\":{\"driver\":\"qcow2\",\"file\":\"%s-base\"}", d->name);
    } else if (c->backing) {
        snprintf(backing, sizeof(backing), ",\"backing\":null");
    }
    snprintf(buf, size, "%s%s", data, backing);
}

/* --- headers ---------------------------------------------------------------------------------- */

uint32_t image_version(const struct image_disks *d, unsigned disk)
{
    uint8_t head[8];

    pages_read(record_disk_pages(d->nodes[disk]), 0, head, sizeof(head));
    return load_be32(head) == HEADER_MAGIC ? load_be32(head + HEADER_VERSION) : 0;
}

bool image_is_marked_dirty(const struct image_disks *d, unsigned disk)
{
    uint8_t bits;

    if (image_version(d, disk) < 3) {
        return false;
    }
    pages_read(record_disk_pages(d->nodes[disk]), HEADER_INCOMPATIBLE, &bits, 1);
    return bits & 1;
}

int image_backing_disk(const struct image_disks *d, unsigned disk, unsigned *ret_disk,
                       struct error *err)
{
    struct pages *pages = record_disk_pages(d->nodes[disk]);
    char name[NAME_MAX_BYTES] = "";
    uint8_t place[12];
    uint32_t length;

    pages_read(pages, HEADER_BACKING, place, sizeof(place));
    length = load_be32(place + 8);
    *ret_disk = RECORD_DISKS;
    if (load_be64(place) == 0) {
        return 0;
    }
    if (length < sizeof(name)) {
        pages_read(pages, load_be64(place), name, length);
    }
    for (unsigned i = IMAGE_BASE_FILE; i < RECORD_DISKS; i++) {
        if (i != disk && strcmp(file_names[i], name) == 0) {
            *ret_disk = i;
            return 0;
        }
    }
    return error_set(err, EILSEQ, "'%s' has a backing file '%s', which there is not",
                     file_names[disk], name);
}

/* With the images below it, or `alone`. `depth`: of images that may come. */
static int format_chain(const struct image_disks *d, const struct crash_config *c, unsigned disk,
                        unsigned depth, bool alone, char *buf, size_t size, struct error *err)
{
    unsigned below;
    size_t used;
    int r = depth > 0 ? image_backing_disk(d, disk, &below, err)
                      : error_set(err, EILSEQ, "the chain of images has a loop");

    if (r < 0) {
        return r;
    }
    below = alone ? RECORD_DISKS : below;
    image_format_options(d, c, disk, buf, size);
    used = strlen(buf);
    if (below == RECORD_DISKS) {
        snprintf(buf + used, size - used, ",\"backing\":null");
        return 0;
    }
    used += (size_t)snprintf(buf + used, size - used, ",\"backing\":{");
    r = format_chain(d, c, below, depth - 1, false, buf + used, size - used, err);
    used = strlen(buf);
    snprintf(buf + used, size - used, "}");
    return r;
}

int image_co_open(const struct image_disks *d, const struct crash_config *c, unsigned how,
                  struct block_node **ret, struct error *err)
{
    unsigned disk = how & IMAGE_BASE ? IMAGE_BASE_FILE : d->top;
    char options[JSON_MAX_BYTES], children[320], json[JSON_MAX_BYTES + 330];
    int r = 0;

    if (c->job) {
        r = format_chain(d, c, disk, RECORD_DISKS, how & IMAGE_NO_BASE, options, sizeof(options),
                         err);
        children[0] = '\0';
    } else {
        image_format_options(d, c, disk, options, sizeof(options));
        format_children(d, c, how, children, sizeof(children));
    }
    snprintf(json, sizeof(json), "{%s%s}", options, children);
    return r < 0 ? r : co_open_json(json, how & IMAGE_WRITABLE ? BLOCK_OPEN_RDWR : 0, ret, err);
}

/* --- making one ------------------------------------------------------------------------------- */

/* The backing file that the image of a disk has at first; NULL: none. */
static const char *first_backing(const struct crash_config *c, unsigned disk)
{
    if (c->job) {
        return disk > IMAGE_BASE_FILE && disk < IMAGE_BASE_FILE + CHAIN_IMAGES
                   ? file_names[disk - 1]
                   : NULL;
    }
    return c->backing && disk == IMAGE_FILE ? file_names[IMAGE_BASE_FILE] : NULL;
}

/* Of another format than qcow2. */
static void add_format_options(const struct crash_config *c, struct options *opts)
{
    if (strcmp(c->format, "vpc") == 0) {
        options_set_bool(opts, "force_size", true);
    } else if (strcmp(c->format, "vhdx") == 0) {
        options_set_uint(opts, "block_size", c->cluster_size);
    } else if (strcmp(c->format, "parallels") == 0) {
        options_set_uint(opts, "cluster_size", c->cluster_size);
    } else if (c->detached_header) {
        options_set_bool(opts, "detached-header", true);
    }
}

/* What takes little time. */
static void add_key_options(const struct crash_config *c, struct options *opts)
{
    static const char *const names[][2] = {{"key-secret", "k0"},      {"iter-time", "1"},
                                           {"cipher-alg", "aes-128"}, {"cipher-mode", "cbc"},
                                           {"ivgen-alg", "plain64"},  {"hash-alg", "sha1"}};

    if (!c->format) {
        options_set_str(opts, "encrypt.format", "luks");
    }
    for (size_t i = 0; i < ARRAY_SIZE(names); i++) {
        char name[32];

        snprintf(name, sizeof(name), "%s%s", c->format ? "" : "encrypt.", names[i][0]);
        options_set_str(opts, name, names[i][1]);
    }
}

/* `data_file`: where that is to be made. */
static struct options *create_options(const struct crash_config *c, const char *data_file,
                                      unsigned disk)
{
    struct options *opts = options_new();
    bool base = disk == IMAGE_BASE_FILE;

    if (!opts) {
        abort();
    }
    if (c->keys) {
        add_key_options(c, opts);
    }
    if (c->format) {
        add_format_options(c, opts);
        return opts;
    }
    options_set_uint(opts, "cluster_size", base ? c->base_cluster_size : c->cluster_size);
    options_set_str(opts, "compat", c->version == 2 ? "v2" : "v3");
    options_set_uint(opts, "refcount_bits", c->refcount_bits);
    options_set_bool(opts, "extended_l2", c->extended_l2);
    options_set_bool(opts, "lazy_refcounts", c->lazy_refcounts);
    options_set_str(opts, "compression_type", c->zstd ? "zstd" : "zlib");
    if (first_backing(c, disk)) {
        options_set_str(opts, "backing_file", first_backing(c, disk));
        options_set_str(opts, "backing_fmt", "qcow2");
    }
    if (c->data_file && !base) {
        options_set_str(opts, "data_file", data_file);
        options_set_bool(opts, "data_file_raw", c->data_file_raw);
    }
    if (c->preallocation && !base) {
        options_set_str(opts, "preallocation", c->preallocation);
    }
    return opts;
}

/* What a file holds goes to a disk; a file that is not there is empty. */
static int load_file(const char *name, struct pages *pages)
{
    AUTO_FREE uint8_t *data = malloc(COPY_BYTES);
    int fd AUTO_CLOSE = open(name, O_RDONLY | O_CLOEXEC);
    uint64_t at = 0;
    ssize_t n;

    pages_reset(pages, NULL);
    if (fd < 0) {
        return errno == ENOENT ? 0 : -errno;
    }
    while (data && (n = pread(fd, data, COPY_BYTES, (off_t)at)) > 0) {
        pages_resize(pages, at + (uint64_t)n);
        if (!buffer_is_zero(data, (size_t)n)) {
            pages_write(pages, at, data, (uint64_t)n);
        }
        at += (uint64_t)n;
    }
    return !data ? -ENOMEM : n < 0 ? -errno : 0;
}

static int co_create_file(const struct crash_config *c, const char *dir, uint64_t size,
                          unsigned disk, struct error *err)
{
    char name[NAME_MAX_BYTES], data_file[NAME_MAX_BYTES + sizeof(LONG_NAME)];

    snprintf(name, sizeof(name), "%s/%s", dir, file_names[disk]);
    snprintf(data_file, sizeof(data_file), "%s/%s%s", dir, c->long_names ? LONG_NAME : "",
             file_names[IMAGE_DATA_FILE]);
    return block_co_create_image(c->format ?: "qcow2", name, size,
                                 create_options(c, data_file, disk), err);
}

/* A chain has images on all its disks: those that are not part of it yet are empty. */
static bool has_image(const struct crash_config *c, unsigned disk)
{
    if (c->job) {
        return disk >= IMAGE_BASE_FILE;
    }
    if (c->detached_header) {
        return disk == IMAGE_BASE_FILE;
    }
    return disk == IMAGE_FILE || (disk == IMAGE_BASE_FILE && (c->backing || c->joint));
}

int image_co_create(const struct image_disks *d, const struct crash_config *c, uint64_t size,
                    struct error *err)
{
    char dir[] = "crash-XXXXXX", names[RECORD_DISKS][NAME_MAX_BYTES];
    int ret = 0;

    /* Creation works on files, so the empty image is made in some and loaded. */
    if (!mkdtemp(dir)) {
        return error_set_errno(err, errno, "Could not make a directory for the empty image");
    }
    for (unsigned i = 0; i < RECORD_DISKS; i++) {
        snprintf(names[i], sizeof(names[i]), "%s/%s", dir, file_names[i]);
    }
    for (unsigned i = 0; i < RECORD_DISKS && ret == 0; i++) {
        ret = has_image(c, i) ? co_create_file(c, dir, size, i, err) : 0;
    }
    for (unsigned i = 0; i < RECORD_DISKS; i++) {
        struct pages *pages = record_disk_pages(d->nodes[i]);
        int loaded = ret < 0 ? ret : load_file(names[i], pages);

        if (c->detached_header && i == IMAGE_FILE) {
            pages_resize(pages, size);
        }
        if (ret == 0 && loaded < 0) {
            ret = error_set_errno(err, -loaded, "Could not read the empty image");
        }
        block_node_set_size(d->nodes[i], pages->size);
        unlink(names[i]);
    }
    rmdir(dir);
    return ret;
}

/* --- commit ----------------------------------------------------------------------------------- */

struct commit {
    struct block_root *image, *base;
    uint8_t *buffer;
};

static int co_copy_step(struct commit *k, uint64_t offset, uint64_t *length)
{
    struct block_edge *image = block_root_edge(k->image), *base = block_root_edge(k->base);
    struct block_status status;
    int depth;
    int r = block_co_status_above(image, NULL, offset, *length, &status, &depth);

    if (r < 0) {
        return r;
    }
    *length = MIN(*length, status.length);
    if (depth == 0) {
        return 0;
    }
    if (status.flags & BLOCK_STATUS_ZERO) {
        return block_co_write_zeroes(base, offset, *length, BLOCK_REQ_MAY_UNMAP);
    }
    *length = MIN(*length, COPY_BYTES);
    r = block_co_pread(image, offset, k->buffer, *length);
    return r < 0 ? r : block_co_pwrite(base, offset, k->buffer, *length, 0);
}

static int co_copy(struct commit *k, struct error *err)
{
    uint64_t size = block_edge_size(block_root_edge(k->image)), length;
    int r = 0;

    if (block_edge_size(block_root_edge(k->base)) < size) {
        r = block_co_truncate(block_root_edge(k->base), size, BLOCK_PREALLOC_OFF, err);
    }
    for (uint64_t at = 0; at < size && r == 0; at += length) {
        length = size - at;
        r = co_copy_step(k, at, &length);
    }
    r = r < 0 ? r : block_co_flush(block_root_edge(k->base));
    return r < 0 && !error_is_set(err) ? error_set_errno(err, -r, "commit: copying failed") : r;
}

static int co_commit_nodes(struct block_node *image, struct block_node *base, struct error *err)
{
    const unsigned perm = BLOCK_PERM_CONSISTENT_READ | BLOCK_PERM_WRITE | BLOCK_PERM_RESIZE;
    struct commit k = {.buffer = malloc(COPY_BYTES)};
    int r = k.buffer ? 0 : error_set(err, ENOMEM, "Out of memory");

    r = r < 0 ? r : block_co_root_new(image, "commit", perm, BLOCK_PERM_ALL, &k.image, err);
    r = r < 0 ? r : block_co_root_new(base, "commit", perm, BLOCK_PERM_ALL, &k.base, err);
    r = r < 0 ? r : co_copy(&k, err);
    r = r < 0 ? r : block_co_inactivate(base, err);
    if (r == 0) {
        block_co_drain_begin(image);
        r = image->driver->co_make_empty(image, err);
        block_drain_end(image);
    }
    r = r < 0 ? r : block_co_inactivate(image, err);
    block_co_root_release(k.base);
    block_co_root_release(k.image);
    free(k.buffer);
    return r;
}

int image_co_commit(const struct image_disks *d, const struct crash_config *c, struct error *err)
{
    struct block_node *image = NULL, *base = NULL;
    int r = image_co_open(d, c, IMAGE_WRITABLE | IMAGE_NO_BASE, &image, err);

    r = r < 0 ? r : image_co_open(d, c, IMAGE_WRITABLE | IMAGE_BASE, &base, err);
    r = r < 0 ? r : co_commit_nodes(image, base, err);
    block_co_unref(base);
    block_co_unref(image);
    return r;
}
