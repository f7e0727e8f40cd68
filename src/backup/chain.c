/* SPDX-License-Identifier: Apache-2.0 */
#include "backup/chain.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "backup/files.h"
#include "base/byteorder.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "base/iov.h"
#include "block/gate.h"
#include "co/sync.h"
#include "loop/loop.h"

#define WORKERS 16
#define OTHER_DESCRIPTORS 128
#define CHUNK_CLUSTERS 8u
/* Extents of zeroes are processed in pieces of this size, so that a stop is noticed. */
#define ZERO_CLUSTERS (1u << 20)

/*
 * Header fields that can lead out of the repository, or that no backup has. After QEMU's
 * interop/qcow2.
 */
#define HEADER_SIZE 104
#define CRYPT_METHOD 32
#define INCOMPATIBLE_FEATURES 72
#define INCOMPATIBLE_KNOWN 0x8u /* compression type */

static int check_image_header(int fd, const char *shown, struct error *err)
{
    uint8_t header[HEADER_SIZE];
    uint64_t features;

    if (pread(fd, header, sizeof(header), 0) != sizeof(header) || load_be32(header) != 0x514649fb ||
        load_be32(header + 4) != 3) {
        return error_set(err, EINVAL, "'%s' is not the qcow2 image of a backup", shown);
    }
    features = load_be64(header + INCOMPATIBLE_FEATURES);
    if (features & 4) {
        return error_set(err, EINVAL, "'%s' has its data in another file, and no backup has that",
                         shown);
    }
    if ((features & ~(uint64_t)INCOMPATIBLE_KNOWN) || load_be32(header + CRYPT_METHOD)) {
        return error_set(err, EINVAL, "'%s' has features that no backup has", shown);
    }
    return 0;
}

static int check_size(int fd, const char *shown, uint64_t expected, struct error *err)
{
    struct stat st;

    if (fstat(fd, &st) < 0) {
        return error_set_errno(err, errno, "Could not inspect '%s'", shown);
    }
    if ((uint64_t)st.st_size != expected) {
        return error_set(err, EBADMSG,
                         "'%s' was changed: it has %lld bytes, the manifest says %" PRIu64, shown,
                         (long long)st.st_size, expected);
    }
    return 0;
}

static int co_open_layer_image(const struct repository *repository, struct chain_layer *layer,
                               struct error *err)
{
    const struct manifest *m = &layer->entry->manifest;
    int fd AUTO_CLOSE = repository_open_file(repository, m->id, REPOSITORY_IMAGE, err);
    struct options *opts, *file;
    char self[FILES_SELF_SIZE];
    int r = fd < 0 ? fd : check_size(fd, layer->image, m->image_size, err);

    UNLESS_FAILED(r, check_image_header(fd, layer->image, err));
    if (r < 0) {
        return r;
    }
    files_self_path(fd, self);
    opts = options_new();
    file = options_new();
    options_set_str(opts, "driver", "qcow2");
    options_set_bool(opts, "read-only", true);
    options_set_str(file, "driver", "file");
    options_set_str(file, "filename", self);
    options_set_child(opts, "file", file);
    r = block_co_open(opts, BLOCK_OPEN_NO_BACKING, &layer->node, err);
    files_name_in_error(err, fd, layer->image);
    if (r < 0) {
        return r;
    }
    if (block_node_size(layer->node) != m->virtual_size) {
        return error_set(err, EINVAL,
                         "'%s' is a disk of %" PRIu64 " bytes, the manifest says %" PRIu64,
                         layer->image, block_node_size(layer->node), m->virtual_size);
    }
    return block_co_root_new(layer->node, "restore", BLOCK_PERM_CONSISTENT_READ,
                             BLOCK_PERM_CONSISTENT_READ, &layer->root, err);
}

int chain_co_check_sums(const struct repository *repository, const struct repository_entry *e,
                        int *ret_fd, struct error *err)
{
    const struct manifest *m = &e->manifest;
    char *shown AUTO_FREE = repository_file(repository, e->id, REPOSITORY_SUMS);
    int fd AUTO_CLOSE = -1;
    int r;

    if (!shown) {
        return error_out_of_memory(err);
    }
    fd = repository_open_file(repository, e->id, REPOSITORY_SUMS, err);
    r = fd < 0 ? fd : digest_co_expect(fd, shown, m->sums_size, m->sums_sha256, NULL, err);
    if (r == 0 && ret_fd) {
        *ret_fd = TAKE_FD(fd);
    }
    return r;
}

/*
 * The checksum file decides what every cluster has to be, zeroes included. So it is compared with
 * the manifest before it is used.
 */
static int co_open_layer(const struct repository *repository, const struct repository_entry *e,
                         struct chain_layer *layer, struct error *err)
{
    int fd = -1, r;

    layer->entry = e;
    layer->image = repository_file(repository, e->id, REPOSITORY_IMAGE);
    layer->sums_path = repository_file(repository, e->id, REPOSITORY_SUMS);
    if (!layer->image || !layer->sums_path) {
        return error_out_of_memory(err);
    }
    r = chain_co_check_sums(repository, e, &fd, err);
    UNLESS_FAILED(r, sums_open(fd, layer->sums_path, e->manifest.virtual_size, &layer->sums, err));
    if (r < 0) {
        layer->sums.fd = -1;
        return r;
    }
    return co_open_layer_image(repository, layer, err);
}

/* Each layer takes two descriptors. */
static void allow_descriptors(size_t layers)
{
    const rlim_t wanted = 2 * layers + OTHER_DESCRIPTORS;
    struct rlimit limit;

    if (getrlimit(RLIMIT_NOFILE, &limit) == 0 && limit.rlim_cur < wanted) {
        limit.rlim_cur = MIN(wanted, limit.rlim_max);
        setrlimit(RLIMIT_NOFILE, &limit);
    }
}

int chain_co_open(const struct repository *repository,
                  const struct repository_entry *const *entries, size_t count,
                  struct chain *ret_chain, struct error *err)
{
    *ret_chain = (struct chain){.disk_size = entries[count - 1]->manifest.virtual_size};
    ret_chain->clusters = div_round_up(ret_chain->disk_size, BACKUP_CLUSTER_SIZE);
    allow_descriptors(count);
    ret_chain->layers = calloc(count, sizeof(*ret_chain->layers));
    if (!ret_chain->layers) {
        return error_out_of_memory(err);
    }
    for (size_t i = 0; i < count; i++) {
        int r;

        ret_chain->layers[i].sums.fd = -1;
        ret_chain->count++;
        r = co_open_layer(repository, entries[i], &ret_chain->layers[i], err);
        if (r < 0) {
            return r;
        }
    }
    return 0;
}

void chain_co_close(struct chain *c)
{
    for (size_t i = 0; i < c->count; i++) {
        struct chain_layer *layer = &c->layers[i];

        block_co_root_release(layer->root);
        block_co_unref(layer->node);
        sums_close(&layer->sums);
        free(layer->image);
        free(layer->sums_path);
    }
    free(c->layers);
    *c = CHAIN_INIT;
}

/* --- the walk --- */

bool chain_next(struct chain *c, uint64_t most, struct chain_extent *ret_extent)
{
    uint64_t pos = c->position, end;

    if (pos >= c->clusters) {
        return false;
    }
    end = MIN(c->clusters, pos + most);
    *ret_extent = (struct chain_extent){.first = pos};
    /* From the top: the first layer that has the cluster decides; those above limit the extent. */
    for (size_t i = c->count; i-- > 0;) {
        struct chain_layer *layer = &c->layers[i];
        const struct sums_runs *runs = &layer->sums.runs;
        const struct sums_run *run;

        while (layer->run < runs->count &&
               runs->list[layer->run].first + runs->list[layer->run].count <= pos) {
            layer->run++;
        }
        if (layer->run == runs->count) {
            continue;
        }
        run = &runs->list[layer->run];
        if (run->first > pos) {
            end = MIN(end, run->first);
            continue;
        }
        end = MIN(end, run->first + run->count);
        ret_extent->layer = layer;
        ret_extent->kind = run->kind;
        ret_extent->digest = run->digest + (pos - run->first);
        break;
    }
    ret_extent->count = end - pos;
    c->position = end;
    return true;
}

uint64_t chain_data_bytes(const struct chain *c)
{
    struct chain walk = *c;
    struct chain_extent e;
    uint64_t clusters = 0;

    for (size_t i = 0; i < c->count; i++) {
        c->layers[i].run = 0;
    }
    walk.position = 0;
    while (chain_next(&walk, UINT32_MAX, &e)) {
        clusters += e.layer && e.kind == SUMS_DATA ? e.count : 0;
    }
    for (size_t i = 0; i < c->count; i++) {
        c->layers[i].run = 0;
    }
    return clusters * BACKUP_CLUSTER_SIZE;
}

/* --- reading --- */

struct read_state {
    const struct chain_reader *reader;
    struct error *err; /* gets the first failure */
    int status;
    struct co_group group;
};

static int co_check_digests(const struct chain_extent *e, const uint8_t *data, struct error *err)
{
    uint8_t digests[CHUNK_CLUSTERS * SUMS_DIGEST_SIZE];
    uint8_t expected[CHUNK_CLUSTERS * SUMS_DIGEST_SIZE];
    int r = sums_read_digests(&e->layer->sums, e->digest, expected, e->count);

    if (r < 0) {
        return error_set_errno(err, -r, "Could not read '%s'", e->layer->sums_path);
    }
    r = sums_co_digest_clusters(data, e->count * BACKUP_CLUSTER_SIZE, digests);
    if (r < 0) {
        return error_set_errno(err, -r, "Could not make checksums");
    }
    for (uint64_t i = 0; i < e->count; i++) {
        if (memcmp(digests + i * SUMS_DIGEST_SIZE, expected + i * SUMS_DIGEST_SIZE,
                   SUMS_DIGEST_SIZE) != 0) {
            error_set(err, EBADMSG,
                      "'%s' is damaged: the contents at offset %" PRIu64
                      " do not match their checksum",
                      e->layer->image, (e->first + i) * BACKUP_CLUSTER_SIZE);
            error_hint(err, "Backups before %s are not affected.", e->layer->entry->id);
            return -EBADMSG;
        }
    }
    return 0;
}

static int co_read_extent(struct read_state *s, const struct chain_extent *e, uint8_t *buf,
                          struct error *err)
{
    const struct chain_reader *reader = s->reader;
    uint64_t offset = e->first * BACKUP_CLUSTER_SIZE;
    uint64_t end = MIN((e->first + e->count) * BACKUP_CLUSTER_SIZE, reader->chain->disk_size);
    int r;

    if (!e->layer || e->kind == SUMS_ZERO) {
        return reader->co_sink ? reader->co_sink(reader->arg, offset, NULL, end - offset, err) : 0;
    }
    r = block_co_pread(block_root_edge(e->layer->root), offset, buf, end - offset);
    if (r < 0) {
        return error_set_errno(err, -r, "Could not read '%s' at offset %" PRIu64, e->layer->image,
                               offset);
    }
    memset(buf + (end - offset), 0, e->count * BACKUP_CLUSTER_SIZE - (end - offset));
    r = co_check_digests(e, buf, err);
    if (r == 0 && reader->co_sink) {
        r = reader->co_sink(reader->arg, offset, buf, end - offset, err);
    }
    if (r == 0 && reader->progress) {
        progress_add(reader->progress, end - offset);
    }
    return r;
}

/* Data in pieces that fit a buffer, zeroes in large ones. */
static bool next_chain_extent(struct chain *c, struct chain_extent *ret_extent)
{
    if (!chain_next(c, ZERO_CLUSTERS, ret_extent)) {
        return false;
    }
    if (ret_extent->layer && ret_extent->kind == SUMS_DATA && ret_extent->count > CHUNK_CLUSTERS) {
        ret_extent->count = CHUNK_CLUSTERS;
        c->position = ret_extent->first + CHUNK_CLUSTERS;
    }
    return true;
}

static void co_read_worker(void *arg)
{
    struct read_state *s = arg;
    uint8_t *buf = malloc((size_t)CHUNK_CLUSTERS * BACKUP_CLUSTER_SIZE);
    struct chain_extent e;

    if (!buf && s->status == 0) {
        s->status = error_out_of_memory(s->err);
    }
    while (buf && s->status == 0 && next_chain_extent(s->reader->chain, &e)) {
        ERROR_AUTO(err);
        int r = s->reader->stop && *s->reader->stop ? error_set(&err, EINTR, "Stopped")
                                                    : co_read_extent(s, &e, buf, &err);

        if (r < 0 && s->status == 0) {
            s->status = r;
            error_move(s->err, &err);
        }
    }
    free(buf);
    co_group_done(&s->group);
}

int chain_co_read(const struct chain_reader *reader, struct error *err)
{
    struct read_state s = {.reader = reader, .err = err};

    reader->chain->position = 0;
    for (size_t i = 0; i < reader->chain->count; i++) {
        reader->chain->layers[i].run = 0;
    }
    co_group_init(&s.group);
    for (int i = 0; i < WORKERS; i++) {
        int r;

        co_group_add(&s.group);
        r = co_spawn(reactor_home(reactor_main()), co_read_worker, &s);
        if (r < 0) {
            co_group_done(&s.group);
            if (i == 0) {
                s.status = error_set_errno(err, -r, "Could not start reading");
            }
            break;
        }
    }
    co_group_wait(&s.group);
    co_group_destroy(&s.group);
    return s.status;
}
