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

static int check_header_fields(const uint8_t *header, const char *shown, struct error *err)
{
    uint64_t features = load_be64(header + INCOMPATIBLE_FEATURES);

    if (load_be32(header) != 0x514649fb || load_be32(header + 4) != 3) {
        return error_set(err, EINVAL, "'%s' is not the qcow2 image of a backup", shown);
    }
    if (features & 4) {
        return error_set(err, EINVAL, "'%s' has its data in another file, and no backup has that",
                         shown);
    }
    if ((features & ~(uint64_t)INCOMPATIBLE_KNOWN) || load_be32(header + CRYPT_METHOD)) {
        return error_set(err, EINVAL, "'%s' has features that no backup has", shown);
    }
    return 0;
}

int chain_check_image_header(const struct stored_image *image, struct error *err)
{
    uint8_t header[HEADER_SIZE];
    struct stored *file;
    int r = stored_open(image->fd, image->seal, STORED_IMAGE, image->shown, &file, err);

    if (r < 0) {
        return r;
    }
    r = stored_read(file, header, sizeof(header), 0);
    stored_free(file);
    if (r == -EBADMSG) {
        return error_set(err, EBADMSG, "'%s' was changed", image->shown);
    }
    return r < 0 ? error_set(err, EINVAL, "'%s' is not the qcow2 image of a backup", image->shown)
                 : check_header_fields(header, image->shown, err);
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
    const struct stored_image image = {
        .shown = layer->image, .fd = fd, .seal = repository_seal(repository)};
    int r = fd < 0 ? fd : check_size(fd, layer->image, m->image_size, err);

    UNLESS_FAILED(r, chain_check_image_header(&image, err));
    UNLESS_FAILED(r, stored_node_co_open(&image, &layer->node, err));
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
    layer->clusters = div_round_up(e->manifest.virtual_size, BACKUP_CLUSTER_SIZE);
    layer->image = repository_file(repository, e->id, REPOSITORY_IMAGE);
    layer->sums_path = repository_file(repository, e->id, REPOSITORY_SUMS);
    if (!layer->image || !layer->sums_path) {
        return error_out_of_memory(err);
    }
    r = chain_co_check_sums(repository, e, &fd, err);
    UNLESS_FAILED(r, sums_open(fd, repository_seal(repository), layer->sums_path,
                               e->manifest.virtual_size, &layer->sums, err));
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

/* Clusters of the backup that `first` builds on; as many as there can be if that is not known. */
static uint64_t clusters_below(const struct repository *repository,
                               const struct repository_entry *first)
{
    const struct repository_entry *parent = repository_get(repository, first->manifest.parent);

    if (manifest_is_full(&first->manifest)) {
        return 0;
    }
    return parent && !parent->problem
               ? div_round_up(parent->manifest.virtual_size, BACKUP_CLUSTER_SIZE)
               : UINT64_MAX;
}

static int co_open_layers(const struct repository *repository,
                          const struct repository_entry *const *entries, size_t count,
                          struct chain *ret_chain, struct error *err)
{
    *ret_chain = (struct chain){.disk_size = entries[count - 1]->manifest.virtual_size};
    ret_chain->clusters = div_round_up(ret_chain->disk_size, BACKUP_CLUSTER_SIZE);
    ret_chain->below = clusters_below(repository, entries[0]);
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

int chain_co_open_image(const struct repository *repository, const struct repository_entry *e,
                        struct chain_layer *ret_layer, struct error *err)
{
    *ret_layer = (struct chain_layer){.entry = e, .sums.fd = -1};
    ret_layer->image = repository_file(repository, e->id, REPOSITORY_IMAGE);
    return ret_layer->image ? co_open_layer_image(repository, ret_layer, err)
                            : error_out_of_memory(err);
}

void chain_co_close_layer(struct chain_layer *layer)
{
    block_co_root_release(layer->root);
    block_co_unref(layer->node);
    sums_close(&layer->sums);
    free(layer->image);
    free(layer->sums_path);
    *layer = (struct chain_layer){.sums.fd = -1};
}

static void co_close_layers(struct chain *c)
{
    for (size_t i = 0; i < c->count; i++) {
        chain_co_close_layer(&c->layers[i]);
    }
    free(c->layers);
    c->layers = NULL;
    c->count = 0;
}

/* Whether a backup is no longer as it was when its manifest was read. */
static bool was_replaced(const struct repository_entry *before, const struct repository *now)
{
    const struct repository_entry *e = repository_get(now, before->id);

    return !e ||
           (!e->problem && strcmp(e->manifest.sums_sha256, before->manifest.sums_sha256) != 0);
}

/*
 * Read the repository again, and find the layers that the last of `entries` has now: those down to
 * the same parent. *ret_found is false if nothing has changed, so that another try is of no use.
 */
static int find_again(const struct repository *old, const struct repository_entry *const *entries,
                      size_t count, struct repository *ret_now,
                      const struct repository_entry ***ret_entries, size_t *ret_count,
                      bool *ret_found, struct error *err)
{
    const char *parent = entries[0]->manifest.parent;
    const struct repository_entry *e;
    size_t skip = 0;
    int r = repository_open_with(old->path, old->ring, ret_now, err);

    *ret_found = false;
    for (size_t i = 0; r == 0 && i < count; i++) {
        *ret_found = *ret_found || was_replaced(entries[i], ret_now);
    }
    e = *ret_found ? repository_find(ret_now, entries[count - 1]->id, err) : NULL;
    if (!e) {
        return r < 0 ? r : *ret_found ? -ENOENT : 0;
    }
    r = repository_chain(ret_now, e, ret_entries, ret_count, err);
    if (r < 0) {
        return r;
    }
    for (size_t i = 0; parent[0] && i + 1 < *ret_count; i++) {
        skip = strcmp((*ret_entries)[i]->id, parent) == 0 ? i + 1 : skip;
    }
    *ret_count -= skip;
    memmove(*ret_entries, *ret_entries + skip, *ret_count * sizeof(struct repository_entry *));
    return 0;
}

int chain_co_open(const struct repository *repository,
                  const struct repository_entry *const *entries, size_t count,
                  struct chain *ret_chain, struct error *err)
{
    const struct repository_entry **again AUTO_FREE = NULL;
    struct repository *now;
    ERROR_AUTO(first);
    size_t again_count = 0;
    bool found = false;
    int failed = co_open_layers(repository, entries, count, ret_chain, &first), r;

    if (failed == 0) {
        return 0;
    }
    now = calloc(1, sizeof(*now));
    if (!now) {
        return error_out_of_memory(err);
    }
    *now = REPOSITORY_INIT;
    r = find_again(repository, entries, count, now, &again, &again_count, &found, err);
    if (r < 0 || !found) {
        repository_close(now);
        free(now);
        if (r == 0) {
            error_move(err, &first);
        }
        return r < 0 ? r : failed;
    }
    co_close_layers(ret_chain);
    r = co_open_layers(now, again, again_count, ret_chain, err);
    ret_chain->reread = now;
    return r;
}

void chain_co_close(struct chain *c)
{
    co_close_layers(c);
    if (c->reread) {
        repository_close(c->reread);
        free(c->reread);
    }
    *c = CHAIN_INIT;
}

/* --- the walk --- */

void chain_rewind(struct chain *c)
{
    c->position = 0;
    for (size_t i = 0; i < c->count; i++) {
        c->layers[i].run = 0;
    }
}

/*
 * What a layer says of the clusters from e->first on, if `run` is the first of its runs that ends
 * after that. False: the layer below decides, up to *end at most.
 */
static bool ask_layer(const struct chain *c, struct chain_layer *layer, size_t run, uint64_t *end,
                      struct chain_extent *e)
{
    const struct sums_run *found =
        run < layer->sums.runs.count ? &layer->sums.runs.list[run] : NULL;

    if (e->first >= layer->clusters) {
        if (e->first < c->below) {
            *end = MIN(*end, c->below);
            e->layer = layer;
            e->kind = SUMS_ZERO;
            e->digest = CHAIN_NO_DIGEST;
        }
        return true;
    }
    *end = MIN(*end, layer->clusters);
    if (!found || found->first > e->first) {
        *end = found ? MIN(*end, found->first) : *end;
        return false;
    }
    *end = MIN(*end, found->first + found->count);
    e->layer = layer;
    e->kind = found->kind;
    e->digest = found->digest + (e->first - found->first);
    return true;
}

bool chain_next(struct chain *c, uint64_t most, struct chain_extent *ret_extent)
{
    uint64_t pos = c->position, end;
    bool decided = false;

    if (pos >= c->clusters) {
        return false;
    }
    end = MIN(c->clusters, pos + most);
    *ret_extent = (struct chain_extent){.first = pos};
    /* From the top: the first layer that has the cluster decides; those above limit the extent. */
    for (size_t i = c->count; !decided && i-- > 0;) {
        struct chain_layer *layer = &c->layers[i];
        const struct sums_runs *runs = &layer->sums.runs;

        while (layer->run < runs->count &&
               runs->list[layer->run].first + runs->list[layer->run].count <= pos) {
            layer->run++;
        }
        decided = ask_layer(c, layer, layer->run, &end, ret_extent);
    }
    ret_extent->count = end - pos;
    c->position = end;
    return true;
}

uint64_t chain_data_bytes(struct chain *c)
{
    return chain_data_bytes_above(c, 0);
}

uint64_t chain_data_bytes_above(struct chain *c, size_t layers)
{
    struct chain_extent e;
    uint64_t clusters = 0;

    chain_rewind(c);
    while (chain_next(c, UINT32_MAX, &e)) {
        clusters += e.layer && e.layer >= c->layers + layers && e.kind == SUMS_DATA ? e.count : 0;
    }
    chain_rewind(c);
    return clusters * BACKUP_CLUSTER_SIZE;
}

/* Index of the first run that ends after `cluster`. */
static size_t find_run(const struct sums_runs *runs, uint64_t cluster)
{
    size_t low = 0, high = runs->count;

    while (low < high) {
        size_t middle = low + (high - low) / 2;
        const struct sums_run *run = &runs->list[middle];

        if (run->first + run->count <= cluster) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low;
}

void chain_extent_at(const struct chain *c, uint64_t cluster, uint64_t most,
                     struct chain_extent *ret_extent)
{
    uint64_t end = MIN(c->clusters, cluster + most);
    bool decided = false;

    *ret_extent = (struct chain_extent){.first = cluster};
    for (size_t i = c->count; !decided && i-- > 0;) {
        struct chain_layer *layer = &c->layers[i];

        decided = ask_layer(c, layer, find_run(&layer->sums.runs, cluster), &end, ret_extent);
    }
    ret_extent->count = end - cluster;
}

/* --- reading --- */

struct read_state {
    const struct chain_reader *reader;
    struct error *err; /* gets the first failure */
    int status;
    struct co_group group;
    /* With `ordered`: the cluster whose extent is the sink's next; the lock guards it. */
    struct co_mutex order;
    struct co_cond turn;
    uint64_t next;
};

/* Give the sink an extent, when it is its turn. */
static int co_give_sink(struct read_state *s, const struct chain_extent *e, uint8_t *data,
                        uint64_t size, struct error *err)
{
    const struct chain_reader *reader = s->reader;
    uint64_t offset = e->first * BACKUP_CLUSTER_SIZE;
    int r = -ECANCELED;

    if (!reader->co_sink) {
        return 0;
    }
    if (!reader->ordered) {
        return reader->co_sink(reader->arg, offset, data, size, err);
    }
    co_mutex_lock(&s->order);
    while (s->status == 0 && s->next != e->first) {
        co_cond_wait(&s->turn, &s->order);
    }
    if (s->status == 0) {
        r = reader->co_sink(reader->arg, offset, data, size, err);
        s->next = e->first + e->count;
        co_cond_broadcast(&s->turn);
    }
    co_mutex_unlock(&s->order);
    return r;
}

static int co_check_extent(const struct chain_extent *e, const uint8_t *data, struct error *err)
{
    uint8_t digests[CHAIN_PIECE * SUMS_DIGEST_SIZE];
    uint8_t expected[CHAIN_PIECE * SUMS_DIGEST_SIZE];
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

int chain_co_read_extent(const struct chain_extent *e, uint8_t *buf, struct error *err)
{
    uint64_t offset = e->first * BACKUP_CLUSTER_SIZE, size = e->count * BACKUP_CLUSTER_SIZE;
    uint64_t there = MIN(size, block_node_size(e->layer->node) - offset);
    int r = block_co_pread(block_root_edge(e->layer->root), offset, buf, there);

    if (r < 0) {
        return error_set_errno(err, -r, "Could not read '%s' at offset %" PRIu64, e->layer->image,
                               offset);
    }
    memset(buf + there, 0, size - there);
    return co_check_extent(e, buf, err);
}

static int co_read_extent(struct read_state *s, const struct chain_extent *e, uint8_t *buf,
                          struct error *err)
{
    const struct chain_reader *reader = s->reader;
    uint64_t offset = e->first * BACKUP_CLUSTER_SIZE;
    uint64_t end = MIN((e->first + e->count) * BACKUP_CLUSTER_SIZE, reader->chain->disk_size);
    int r;

    if (e->layer ? e->layer < reader->chain->layers + reader->skip : reader->own_only) {
        return 0;
    }
    if (!e->layer || e->kind == SUMS_ZERO) {
        return co_give_sink(s, e, NULL, end - offset, err);
    }
    r = chain_co_read_extent(e, buf, err);
    UNLESS_FAILED(r, co_give_sink(s, e, buf, end - offset, err));
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
    if (ret_extent->layer && ret_extent->kind == SUMS_DATA && ret_extent->count > CHAIN_PIECE) {
        ret_extent->count = CHAIN_PIECE;
        c->position = ret_extent->first + CHAIN_PIECE;
    }
    return true;
}

static void co_read_worker(void *arg)
{
    struct read_state *s = arg;
    uint8_t *buf = malloc((size_t)CHAIN_PIECE * BACKUP_CLUSTER_SIZE);
    struct chain_extent e;

    if (!buf && s->status == 0) {
        s->status = error_out_of_memory(s->err);
        co_cond_broadcast(&s->turn);
    }
    while (buf && s->status == 0 && next_chain_extent(s->reader->chain, &e)) {
        ERROR_AUTO(err);
        int r = s->reader->stop && *s->reader->stop ? error_set(&err, EINTR, "Stopped")
                                                    : co_read_extent(s, &e, buf, &err);

        if (r < 0 && s->status == 0) {
            s->status = r;
            error_move(s->err, &err);
            co_cond_broadcast(&s->turn);
        }
    }
    free(buf);
    co_group_done(&s->group);
}

int chain_co_read(const struct chain_reader *reader, struct error *err)
{
    struct read_state s = {.reader = reader, .err = err, .next = reader->from};

    chain_rewind(reader->chain);
    reader->chain->position = reader->from;
    co_group_init(&s.group);
    co_mutex_init(&s.order);
    co_cond_init(&s.turn);
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
    co_cond_destroy(&s.turn);
    co_mutex_destroy(&s.order);
    return s.status;
}
