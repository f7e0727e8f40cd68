/* SPDX-License-Identifier: Apache-2.0 */
#include "backup/chain.h"

#include <errno.h>
#include <inttypes.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "backup/chain_map.h"
#include "backup/digest.h"
#include "backup/files.h"
#include "backup/layer_image.h"
#include "backup/repository_share.h"
#include "backup/stored_node.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "co/sync.h"
#include "loop/loop.h"

#define WORKERS 16
/* Extents of zeroes are processed in pieces of this size, so that a stop is noticed. */
#define ZERO_CLUSTERS (1u << 20)

int chain_co_check_sums(const struct repository *repository, const struct repository_entry *e,
                        volatile sig_atomic_t *stop, struct error *err)
{
    const struct manifest *m = &e->manifest;
    char *shown AUTO_FREE = repository_file(repository, e->id, REPOSITORY_SUMS);
    int fd AUTO_CLOSE = -1;

    if (!shown) {
        return error_out_of_memory(err);
    }
    fd = repository_open_file(repository, e->id, REPOSITORY_SUMS, err);
    return fd < 0 ? fd : digest_co_expect(fd, shown, m->sums_size, m->sums_sha256, stop, err);
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
                          volatile sig_atomic_t *stop, struct chain *ret_chain, struct error *err)
{
    *ret_chain = (struct chain){.disk_size = entries[count - 1]->manifest.virtual_size};
    ret_chain->clusters = div_round_up(ret_chain->disk_size, BACKUP_CLUSTER_SIZE);
    ret_chain->below = clusters_below(repository, entries[0]);
    ret_chain->layers = calloc(count, sizeof(*ret_chain->layers));
    if (!ret_chain->layers) {
        return error_out_of_memory(err);
    }
    for (size_t i = 0; i < count; i++) {
        struct chain_layer *layer = &ret_chain->layers[i];
        int r;

        layer->entry = entries[i];
        layer->clusters = div_round_up(entries[i]->manifest.virtual_size, BACKUP_CLUSTER_SIZE);
        ret_chain->count++;
        r = layer_co_get(repository, entries[i], stop, &layer->file, err);
        if (r < 0) {
            return r;
        }
    }
    return 0;
}

static void close_layers(struct chain *c)
{
    for (size_t i = 0; i < c->count; i++) {
        layer_put(c->layers[i].file);
    }
    free(c->layers);
    c->layers = NULL;
    c->count = 0;
}

/* --- the image alone -------------------------------------------------------------------------- */

int chain_co_open_image(const struct repository *repository, const struct repository_entry *e,
                        struct chain_image *ret_image, struct error *err)
{
    const struct manifest *m = &e->manifest;
    int fd AUTO_CLOSE = repository_open_file(repository, m->id, REPOSITORY_IMAGE, err);
    struct stored_image image = {.fd = fd, .seal = repository_seal(repository)};
    int r = fd;

    *ret_image = (struct chain_image){.entry = e};
    image.shown = ret_image->path = repository_file(repository, e->id, REPOSITORY_IMAGE);
    if (r >= 0) {
        r = image.shown ? files_check_size(fd, image.shown, m->image_size, err)
                        : error_out_of_memory(err);
    }
    UNLESS_FAILED(r, layer_image_check(&image, &ret_image->cluster_bits, err));
    UNLESS_FAILED(r, stored_node_co_open(&image, &ret_image->node, err));
    if (r < 0) {
        return r;
    }
    if (block_node_size(ret_image->node) != m->virtual_size) {
        return error_set(err, EINVAL,
                         "'%s' is a disk of %" PRIu64 " bytes, the manifest says %" PRIu64,
                         ret_image->path, block_node_size(ret_image->node), m->virtual_size);
    }
    return block_co_root_new(ret_image->node, "restore", BLOCK_PERM_CONSISTENT_READ,
                             BLOCK_PERM_CONSISTENT_READ, &ret_image->root, err);
}

void chain_co_close_image(struct chain_image *image)
{
    block_co_root_release(image->root);
    block_co_unref(image->node);
    free(image->path);
    *image = (struct chain_image){0};
}

/* --- opening ---------------------------------------------------------------------------------- */

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
static int co_find_again(const struct repository *old,
                         const struct repository_entry *const *entries, size_t count,
                         struct repository *ret_now, const struct repository_entry ***ret_entries,
                         size_t *ret_count, bool *ret_found, struct error *err)
{
    const char *parent = entries[0]->manifest.parent;
    const struct repository_entry *e;
    size_t skip = 0;
    int r = repository_co_open_with(old->path, old->ring, ret_now, err);

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

int chain_co_open_unmapped(const struct repository *repository,
                           const struct repository_entry *const *entries, size_t count,
                           volatile sig_atomic_t *stop, struct chain *ret_chain, struct error *err)
{
    const struct repository_entry **again AUTO_FREE = NULL;
    struct repository *now;
    ERROR_AUTO(first);
    size_t again_count = 0;
    bool found = false;
    int failed = co_open_layers(repository, entries, count, stop, ret_chain, &first), r;

    if (failed == 0 || failed == -EINTR) {
        error_move(err, &first);
        return failed;
    }
    now = calloc(1, sizeof(*now));
    if (!now) {
        return error_out_of_memory(err);
    }
    *now = REPOSITORY_INIT;
    r = co_find_again(repository, entries, count, now, &again, &again_count, &found, err);
    if (r < 0 || !found) {
        repository_close(now);
        free(now);
        if (r == 0) {
            error_move(err, &first);
        }
        return r < 0 ? r : failed;
    }
    close_layers(ret_chain);
    r = co_open_layers(now, again, again_count, stop, ret_chain, err);
    ret_chain->reread = now;
    return r;
}

int chain_co_open(const struct repository *repository,
                  const struct repository_entry *const *entries, size_t count,
                  volatile sig_atomic_t *stop, struct chain *ret_chain, struct error *err)
{
    int r = chain_co_open_unmapped(repository, entries, count, stop, ret_chain, err);

    return r < 0 ? r : chain_co_map(ret_chain, err);
}

static int make_map(void *arg)
{
    struct chain *c = arg;
    struct chain_map *map = chain_map_new(c), *none = NULL;

    if (map && !atomic_compare_exchange_strong(&c->map, &none, map)) {
        free(map);
    }
    return map ? 0 : -ENOMEM;
}

int chain_co_map(struct chain *c, struct error *err)
{
    int r = atomic_load(&c->map) ? 0 : loop_co_offload(make_map, c);

    return r < 0 ? error_out_of_memory(err) : 0;
}

void chain_close(struct chain *c)
{
    close_layers(c);
    free(atomic_load(&c->map));
    if (c->reread) {
        repository_close(c->reread);
        free(c->reread);
    }
    *c = CHAIN_INIT;
}

/* --- the walk --------------------------------------------------------------------------------- */

static void fill_extent(const struct chain *c, const struct chain_map *map, size_t piece,
                        uint64_t cluster, uint64_t most, struct chain_extent *ret_extent)
{
    const struct chain_map_piece *p = &map->list[piece];
    uint64_t end = MIN(cluster + most, map->list[piece + 1].first);

    *ret_extent = (struct chain_extent){.first = cluster, .count = end - cluster};
    if (p->layer) {
        ret_extent->layer = &c->layers[p->layer - 1];
        ret_extent->kind = (enum sums_kind)p->kind;
        ret_extent->digest =
            p->digest == CHAIN_NO_DIGEST ? CHAIN_NO_DIGEST : p->digest + (cluster - p->first);
    }
}

void chain_rewind(struct chain *c)
{
    c->position = 0;
    c->piece = 0;
}

void chain_seek(struct chain *c, uint64_t cluster)
{
    c->position = cluster;
    c->piece = cluster < c->clusters ? chain_map_find(atomic_load(&c->map), cluster) : 0;
}

bool chain_next(struct chain *c, uint64_t most, struct chain_extent *ret_extent)
{
    const struct chain_map *map = atomic_load(&c->map);

    if (c->position >= c->clusters) {
        return false;
    }
    while (map->list[c->piece + 1].first <= c->position) {
        c->piece++;
    }
    fill_extent(c, map, c->piece, c->position, most, ret_extent);
    c->position += ret_extent->count;
    return true;
}

/*
 * What a layer says of the clusters from e->first on. False: the layer below decides, up to *end
 * at most.
 */
static bool ask_layer(const struct chain *c, struct chain_layer *layer, uint64_t *end,
                      struct chain_extent *e)
{
    const struct sums_runs *runs = &layer->file->runs;
    size_t run = sums_runs_find(runs, e->first);
    const struct sums_run *found = run < runs->count ? &runs->list[run] : NULL;

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

uint64_t chain_data_bytes(struct chain *c)
{
    return chain_data_bytes_above(c, 0, 1);
}

uint64_t chain_data_bytes_above(struct chain *c, size_t layers, unsigned group)
{
    uint64_t groups = 0, counted = 0;
    struct chain_extent e;

    chain_rewind(c);
    while (chain_next(c, UINT32_MAX, &e)) {
        if (e.layer && e.layer >= c->layers + layers && e.kind == SUMS_DATA) {
            uint64_t end = div_round_up(e.first + e.count, group);

            groups += end - MAX(e.first / group, counted);
            counted = end;
        }
    }
    chain_rewind(c);
    return groups * group * BACKUP_CLUSTER_SIZE;
}

void chain_extent_at(const struct chain *c, uint64_t cluster, uint64_t most,
                     struct chain_extent *ret_extent)
{
    const struct chain_map *map = atomic_load(&c->map);
    uint64_t end = MIN(c->clusters, cluster + most);
    bool decided = false;

    if (map) {
        fill_extent(c, map, chain_map_find(map, cluster), cluster, most, ret_extent);
        return;
    }
    *ret_extent = (struct chain_extent){.first = cluster};
    for (size_t i = c->count; !decided && i-- > 0;) {
        struct chain_layer *layer = &c->layers[i];

        decided = ask_layer(c, layer, &end, ret_extent);
    }
    ret_extent->count = end - cluster;
}

/* --- reading ---------------------------------------------------------------------------------- */

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

int chain_read_digests(const struct chain_extent *e, uint64_t from, uint64_t count,
                       uint8_t *ret_digests)
{
    return layer_read_digests(e->layer->file, e->digest + from, ret_digests, count);
}

/* Reading an extent of data, and comparing it. */
struct extent_job {
    const struct chain_extent *extent;
    uint8_t *buf;
    bool digests_failed;
    uint64_t damaged; /* the cluster that differs; UINT64_MAX: none */
};

static int run_extent_job(void *arg)
{
    struct extent_job *job = arg;
    const struct chain_extent *e = job->extent;
    uint8_t digests[CHAIN_PIECE * SUMS_DIGEST_SIZE];
    uint8_t expected[CHAIN_PIECE * SUMS_DIGEST_SIZE];
    int r = layer_read_clusters(e->layer->file, e->first, e->count, e->digest, job->buf, expected,
                                &job->digests_failed);

    UNLESS_FAILED(r, sums_digest_clusters(job->buf, e->count * BACKUP_CLUSTER_SIZE, digests));
    for (uint64_t i = 0; r == 0 && i < e->count; i++) {
        if (memcmp(digests + i * SUMS_DIGEST_SIZE, expected + i * SUMS_DIGEST_SIZE,
                   SUMS_DIGEST_SIZE) != 0) {
            job->damaged = e->first + i;
            r = -EBADMSG;
        }
    }
    return r;
}

int chain_co_read_extent(const struct chain_extent *e, uint8_t *buf, struct error *err)
{
    const struct layer *file = e->layer->file;
    struct extent_job job = {.extent = e, .buf = buf, .damaged = UINT64_MAX};
    int r = loop_co_offload(run_extent_job, &job);

    if (r >= 0) {
        return 0;
    }
    if (job.damaged != UINT64_MAX) {
        error_set(err, EBADMSG,
                  "'%s' is damaged: the contents at offset %" PRIu64 " do not match their checksum",
                  file->image, job.damaged * BACKUP_CLUSTER_SIZE);
        error_hint(err, "Backups before %s are not affected.", e->layer->entry->id);
        return -EBADMSG;
    }
    if (r == -EBADMSG) {
        error_set(err, EBADMSG, "'%s' is damaged: the contents at offset %" PRIu64 " can't be read",
                  job.digests_failed ? file->sums_path : file->image,
                  e->first * BACKUP_CLUSTER_SIZE);
        error_hint(err, "Backups before %s are not affected.", e->layer->entry->id);
        return -EBADMSG;
    }
    if (r == -ESTALE) {
        error_set(err, ESTALE, "'%s' was removed or replaced while it was in use", file->image);
        error_hint(err, "The limit of open files (RLIMIT_NOFILE) is too low to keep all backups "
                        "open that this one builds on.");
        return -ESTALE;
    }
    return job.digests_failed ? error_set_errno(err, -r, "Could not read '%s'", file->sums_path)
                              : error_set_errno(err, -r, "Could not read '%s' at offset %" PRIu64,
                                                file->image, e->first * BACKUP_CLUSTER_SIZE);
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

/* --- whole clusters of a full image --- */

/* Whether the sink gets what an extent belongs to. */
static bool counts(const struct chain_reader *reader, const struct chain_extent *e)
{
    /* A new image reads as zeroes. */
    return e->layer && e->layer >= reader->chain->layers + reader->skip &&
           (reader->skip > 0 || e->kind == SUMS_DATA);
}

/* The next group that has something that counts. */
static bool next_group(const struct chain_reader *reader, struct chain_extent *ret_group)
{
    struct chain *c = reader->chain;
    struct chain_extent e;

    do {
        if (!chain_next(c, ZERO_CLUSTERS, &e)) {
            return false;
        }
    } while (!counts(reader, &e));
    *ret_group = (struct chain_extent){.first = e.first / reader->group * reader->group};
    ret_group->count = MIN((uint64_t)reader->group, c->clusters - ret_group->first);
    chain_seek(c, ret_group->first + ret_group->count);
    return true;
}

/* Read what the layers have in a group, and give the sink all of it. */
static int co_read_group(struct read_state *s, const struct chain_extent *group, uint8_t *buf,
                         struct error *err)
{
    const struct chain_reader *reader = s->reader;
    const struct chain *c = reader->chain;
    uint64_t end = group->first + group->count, counted = 0;
    uint64_t offset = group->first * BACKUP_CLUSTER_SIZE;
    struct chain_extent e;
    bool any = false;
    int r = 0;

    for (uint64_t at = group->first; r == 0 && at < end; at += e.count) {
        uint8_t *to = buf + (at - group->first) * BACKUP_CLUSTER_SIZE;

        chain_extent_at(c, at, end - at, &e);
        if (e.layer && e.kind == SUMS_DATA) {
            any = true;
            counted += counts(reader, &e) ? e.count * BACKUP_CLUSTER_SIZE : 0;
            r = chain_co_read_extent(&e, to, err);
        } else {
            memset(to, 0, e.count * BACKUP_CLUSTER_SIZE);
        }
    }
    UNLESS_FAILED(r, co_give_sink(s, group, any ? buf : NULL,
                                  MIN(end * BACKUP_CLUSTER_SIZE, c->disk_size) - offset, err));
    if (r == 0 && reader->progress) {
        progress_add(reader->progress, counted);
    }
    return r;
}

/* --- the workers --- */

/*
 * Data in pieces that fit a buffer, zeroes in large ones. Pieces end where clusters of a full image
 * end, which are then read once.
 */
static bool next_chain_extent(struct chain *c, struct chain_extent *ret_extent)
{
    uint64_t most;

    if (!chain_next(c, ZERO_CLUSTERS, ret_extent)) {
        return false;
    }
    most = CHAIN_PIECE - ret_extent->first % CHAIN_PIECE;
    if (ret_extent->layer && ret_extent->kind == SUMS_DATA && ret_extent->count > most) {
        ret_extent->count = most;
        c->position = ret_extent->first + most;
    }
    return true;
}

static int co_read_next(struct read_state *s, uint8_t *buf, bool *ret_any, struct error *err)
{
    const struct chain_reader *reader = s->reader;
    struct chain_extent e;

    *ret_any = reader->group ? next_group(reader, &e) : next_chain_extent(reader->chain, &e);
    if (!*ret_any) {
        return 0;
    }
    if (reader->stop && *reader->stop) {
        return error_set(err, EINTR, "Stopped");
    }
    return reader->group ? co_read_group(s, &e, buf, err) : co_read_extent(s, &e, buf, err);
}

static void co_read_worker(void *arg)
{
    struct read_state *s = arg;
    uint8_t *buf = malloc((size_t)CHAIN_PIECE * BACKUP_CLUSTER_SIZE);
    bool any = true;

    if (!buf && s->status == 0) {
        s->status = error_out_of_memory(s->err);
        co_cond_broadcast(&s->turn);
    }
    while (buf && any && s->status == 0) {
        ERROR_AUTO(err);
        int r = co_read_next(s, buf, &any, &err);

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

    chain_seek(reader->chain, reader->from);
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
