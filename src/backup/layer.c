/* SPDX-License-Identifier: Apache-2.0 */
#include "backup/layer.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "backup/digest.h"
#include "backup/files.h"
#include "backup/layer_image.h"
#include "backup/stored.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "base/list.h"
#include "base/name_index.h"
#include "base/secret_memory.h"
#include "base/time_units.h"
#include "block/block.h"
#include "co/sync.h"
#include "file/image_lock.h"
#include "loop/loop.h"

/* Descriptors of a layer, and those that are left to the rest of the process. */
#define LAYER_DESCRIPTORS 2u
#define OTHER_DESCRIPTORS 256u
/* Of layers that nobody uses: how long files stay open, and how much memory runs may take. */
#define IDLE_NS (2 * NS_PER_SECOND)
#define IDLE_BYTES_MAX ((size_t)64 << 20)

/* A directory of backups. */
struct home {
    struct list link;
    unsigned layers;
    dev_t device;
    ino_t inode;
    struct repository place;   /* only path and descriptor */
    struct backup_key *seal;   /* a copy; NULL: none */
    struct name_index entries; /* by entry->key */
};

struct layer_files {
    int sums_fd, image_fd; /* -1: not open */
    struct stored *sums, *image;
    struct layer_image tables;
};

#define LAYER_FILES_INIT ((struct layer_files){.sums_fd = -1, .image_fd = -1})

struct layer_entry {
    struct layer layer;
    struct name_entry name;
    struct list idle; /* link in `idle`; in no list while it is used */
    unsigned users;
    int64_t idle_since_ns;
    struct home *home;
    char id[BACKUP_ID_SIZE];
    char key[BACKUP_ID_SIZE + SHA256_HEX_SIZE]; /* id and SHA-256 of the checksum file */
    uint64_t image_size;                        /* bytes of the file */
    struct stat sums_stat; /* of the file that was compared with the manifest */
    /* Open, unless they are opened for each read; they stay as they are while there are readers. */
    struct layer_files files;
    bool ready;                      /* the files are as they stay */
    struct layer_image_cache *cache; /* NULL: clusters are read whole */
    struct co_mutex opening;
};

static struct list homes = LIST_INIT(homes);
/* The longest idle one first. */
static struct list idle = LIST_INIT(idle);
static size_t idle_bytes;
static size_t kept_descriptors;
static unsigned holders;
static struct loop_timer idle_timer;
static bool timer_runs;

static struct layer_entry *layer_entry_of(const struct layer *layer)
{
    return container_of((struct layer *)layer, struct layer_entry, layer);
}

/* --- directories ------------------------------------------------------------------------------ */

static bool has_seal(const struct home *h, const struct backup_key *seal)
{
    return seal ? h->seal && secret_equal(h->seal, seal, sizeof(*seal)) : !h->seal;
}

static void home_put(struct home *h)
{
    if (h && --h->layers == 0) {
        list_remove(&h->link);
        repository_close(&h->place);
        secret_free(h->seal);
        free(h->entries.buckets);
        free(h);
    }
}

static struct home *new_home(const struct repository *r, const struct stat *st)
{
    const struct backup_key *seal = repository_seal(r);
    struct home *h = calloc(1, sizeof(*h));

    if (!h) {
        return NULL;
    }
    *h = (struct home){.layers = 1, .device = st->st_dev, .inode = st->st_ino};
    list_init(&h->link);
    h->place = REPOSITORY_INIT;
    h->place.path = strdup(r->path);
    h->place.fd = fcntl(r->fd, F_DUPFD_CLOEXEC, 0);
    h->seal = seal ? secret_alloc(sizeof(*seal)) : NULL;
    if (!h->place.path || h->place.fd < 0 || (seal && !h->seal)) {
        home_put(h);
        return NULL;
    }
    if (seal) {
        *h->seal = *seal;
    }
    list_append(&homes, &h->link);
    return h;
}

/* NULL: no memory. */
static struct home *home_get(const struct repository *r)
{
    struct stat st;
    struct home *h;

    if (fstat(r->fd, &st) < 0) {
        return NULL;
    }
    LIST_FOREACH (h, &homes, link) {
        if (h->device == st.st_dev && h->inode == st.st_ino && has_seal(h, repository_seal(r)) &&
            strcmp(h->place.path, r->path) == 0) {
            h->layers++;
            return h;
        }
    }
    return new_home(r, &st);
}

/* --- files ------------------------------------------------------------------------------------ */

static void close_files(struct layer_files *f)
{
    stored_free(f->sums);
    stored_free(f->image);
    if (f->sums_fd >= 0) {
        close(f->sums_fd);
    }
    if (f->image_fd >= 0) {
        close(f->image_fd);
    }
    *f = LAYER_FILES_INIT;
}

/* As a node has it: others may read the image, and not write to it. */
static int lock_image(int fd, const char *shown, struct error *err)
{
    struct image_lock lock = {.fd = fd};

    return image_lock_is_supported(fd)
               ? image_lock_set(&lock, BLOCK_PERM_CONSISTENT_READ,
                                BLOCK_PERM_CONSISTENT_READ | BLOCK_PERM_WRITE_UNCHANGED, shown, err)
               : 0;
}

static int open_image(const struct layer_entry *e, struct layer_files *f, struct error *err)
{
    const char *shown = e->layer.image;
    int r;

    f->image_fd = repository_open_file(&e->home->place, e->id, REPOSITORY_IMAGE, err);
    r = f->image_fd < 0 ? f->image_fd : files_check_size(f->image_fd, shown, e->image_size, err);
    if (!e->home->seal) {
        /* Other programs can open it. */
        UNLESS_FAILED(r, lock_image(f->image_fd, shown, err));
    }
    UNLESS_FAILED(r, stored_open(f->image_fd, e->home->seal, STORED_IMAGE, shown, &f->image, err));
    UNLESS_FAILED(r, layer_image_open(f->image, shown, &f->tables, err));
    if (r == 0 && f->tables.disk_size != e->layer.disk_size) {
        r = error_set(err, EINVAL,
                      "'%s' is a disk of %" PRIu64 " bytes, the manifest says %" PRIu64, shown,
                      f->tables.disk_size, e->layer.disk_size);
    }
    return r;
}

static bool is_same_layer_file(const struct stat *a, const struct stat *b)
{
    return a->st_dev == b->st_dev && a->st_ino == b->st_ino && a->st_size == b->st_size &&
           a->st_mtim.tv_sec == b->st_mtim.tv_sec && a->st_mtim.tv_nsec == b->st_mtim.tv_nsec;
}

/* Open the files of a layer again. -ESTALE: they are others by now. */
static int open_files(const struct layer_entry *e, struct layer_files *ret_files, struct error *err)
{
    const char *shown = e->layer.sums_path;
    struct layer_files f = LAYER_FILES_INIT;
    struct stat st;
    int r;

    f.sums_fd = repository_open_file(&e->home->place, e->id, REPOSITORY_SUMS, err);
    r = f.sums_fd < 0 ? f.sums_fd : 0;
    if (r == 0 && (fstat(f.sums_fd, &st) < 0 || !is_same_layer_file(&st, &e->sums_stat))) {
        r = error_set(err, ESTALE, "'%s' was replaced meanwhile", shown);
    }
    UNLESS_FAILED(r, stored_open(f.sums_fd, e->home->seal, STORED_SUMS, shown, &f.sums, err));
    UNLESS_FAILED(r, open_image(e, &f, err));
    if (r < 0) {
        close_files(&f);
        return r;
    }
    *ret_files = f;
    return 0;
}

/* Whether the process may keep the files of one more layer open. */
static bool allow_descriptors(void)
{
    const rlim_t wanted = kept_descriptors + LAYER_DESCRIPTORS + OTHER_DESCRIPTORS;
    struct rlimit limit;

    if (getrlimit(RLIMIT_NOFILE, &limit) < 0 || limit.rlim_max < wanted) {
        return false;
    }
    if (limit.rlim_cur < wanted) {
        limit.rlim_cur = MIN(2 * wanted, limit.rlim_max);
        return setrlimit(RLIMIT_NOFILE, &limit) == 0;
    }
    return true;
}

static void keep_files(struct layer_entry *e, struct layer_files *f)
{
    if (allow_descriptors()) {
        kept_descriptors += LAYER_DESCRIPTORS;
        e->files = *f;
        *f = LAYER_FILES_INIT;
    }
    close_files(f);
    e->ready = true;
}

static void drop_files(struct layer_entry *e)
{
    if (e->files.sums_fd >= 0) {
        kept_descriptors -= LAYER_DESCRIPTORS;
        close_files(&e->files);
    }
    e->ready = false;
}

/* --- layers that nobody uses ------------------------------------------------------------------ */

static size_t size_of_layer(const struct layer_entry *e)
{
    return sizeof(*e) + e->layer.runs.capacity * sizeof(struct sums_run);
}

static void free_layer(struct layer_entry *e)
{
    drop_files(e);
    if (!list_is_empty(&e->idle)) {
        list_remove(&e->idle);
        idle_bytes -= size_of_layer(e);
    }
    if (e->home) {
        name_index_remove(&e->home->entries, &e->name);
    }
    home_put(e->home);
    sums_runs_clear(&e->layer.runs);
    layer_image_cache_free(e->cache);
    free(e->layer.image);
    free(e->layer.sums_path);
    co_mutex_destroy(&e->opening);
    free(e);
}

/* Close files that nobody has used for a while. */
static void close_idle(struct loop_timer *timer)
{
    int64_t now = loop_now_ns();
    struct layer_entry *e;
    bool more = false;

    LIST_FOREACH (e, &idle, idle) {
        if (now - e->idle_since_ns >= IDLE_NS) {
            drop_files(e);
            layer_image_cache_clear(e->cache);
        } else {
            more = true;
        }
    }
    timer_runs = more;
    if (more) {
        loop_timer_arm(timer, now + IDLE_NS);
    }
}

static void begin_idling(struct layer_entry *e)
{
    e->ready = e->files.sums_fd >= 0;
    e->idle_since_ns = loop_now_ns();
    list_append(&idle, &e->idle);
    idle_bytes += size_of_layer(e);
    while (idle_bytes > IDLE_BYTES_MAX) {
        free_layer(LIST_FIRST(&idle, struct layer_entry, idle));
    }
    if (!timer_runs) {
        timer_runs = true;
        loop_timer_arm(&idle_timer, loop_now_ns() + IDLE_NS);
    }
}

static void end_idling(struct layer_entry *e)
{
    if (!list_is_empty(&e->idle)) {
        list_remove(&e->idle);
        idle_bytes -= size_of_layer(e);
    }
}

void layers_hold(void)
{
    if (holders++ == 0) {
        loop_timer_init(&idle_timer, close_idle);
    }
}

void layers_let_go(void)
{
    if (--holders > 0) {
        return;
    }
    loop_timer_disarm(&idle_timer);
    timer_runs = false;
    while (!list_is_empty(&idle)) {
        free_layer(LIST_FIRST(&idle, struct layer_entry, idle));
    }
}

void layer_put(struct layer *layer)
{
    struct layer_entry *e = layer ? layer_entry_of(layer) : NULL;

    if (!e || --e->users > 0) {
        return;
    }
    if (holders > 0 && e->name.name) {
        begin_idling(e);
    } else {
        free_layer(e);
    }
}

/* --- getting ---------------------------------------------------------------------------------- */

static void make_key(const struct repository_entry *e, char *ret_key, size_t size)
{
    snprintf(ret_key, size, "%s %s", e->id, e->manifest.sums_sha256);
}

struct files_opening {
    const struct layer_entry *e;
    struct layer_files *files;
};

static int open_files_again(void *arg)
{
    const struct files_opening *o = arg;

    return open_files(o->e, o->files, NULL);
}

/*
 * Open the files of a layer that was idle: one user does, and the others wait, since they read at
 * once. False: the files are others, and the caller is no user any more.
 */
static bool co_wake_layer(struct layer_entry *e)
{
    struct layer_files f = LAYER_FILES_INIT;
    struct files_opening o = {e, &f};
    int r = 0;

    co_mutex_lock(&e->opening);
    if (!e->ready) {
        r = loop_co_brief(open_files_again, &o);
        if (r == 0) {
            keep_files(e, &f);
        }
    }
    co_mutex_unlock(&e->opening);
    if (r < 0 && --e->users == 0) {
        free_layer(e);
    }
    return r == 0;
}

/* A layer that is there, with its files open if it keeps them; NULL: none. */
static struct layer_entry *co_find_layer(struct home *h, const struct repository_entry *entry)
{
    char key[BACKUP_ID_SIZE + SHA256_HEX_SIZE];
    struct name_entry *found;
    struct layer_entry *e;

    make_key(entry, key, sizeof(key));
    found = name_index_find(&h->entries, key);
    if (!found) {
        return NULL;
    }
    e = container_of(found, struct layer_entry, name);
    if (e->image_size != entry->manifest.image_size ||
        e->layer.disk_size != entry->manifest.virtual_size) {
        return NULL;
    }
    end_idling(e);
    e->users++;
    return co_wake_layer(e) ? e : NULL;
}

static struct layer_entry *new_layer(const struct repository *r, const struct repository_entry *e,
                                     struct home *h)
{
    struct layer_entry *new = calloc(1, sizeof(*new));

    if (!new) {
        return NULL;
    }
    new->layer = (struct layer){.image = repository_file(r, e->id, REPOSITORY_IMAGE),
                                .sums_path = repository_file(r, e->id, REPOSITORY_SUMS),
                                .disk_size = e->manifest.virtual_size};
    new->users = 1;
    new->image_size = e->manifest.image_size;
    new->files = LAYER_FILES_INIT;
    memcpy(new->id, e->id, sizeof(new->id));
    make_key(e, new->key, sizeof(new->key));
    list_init(&new->idle);
    co_mutex_init(&new->opening);
    if (!new->layer.image || !new->layer.sums_path) {
        free_layer(new);
        return NULL;
    }
    h->layers++;
    new->home = h;
    return new;
}

struct layer_loading {
    struct layer_entry *e;
    const struct manifest *m;
    int sums_fd; /* consumed by read_layer() */
    struct layer_files files;
    struct error *err;
};

/* The checksum file, noting which file it is: a descriptor or -errno. */
static int open_sums_file(void *arg)
{
    const struct layer_loading *l = arg;
    struct layer_entry *e = l->e;
    int fd AUTO_CLOSE = repository_open_file(&e->home->place, e->id, REPOSITORY_SUMS, l->err);

    if (fd >= 0 && fstat(fd, &e->sums_stat) < 0) {
        return error_set_errno(l->err, errno, "Could not inspect '%s'", e->layer.sums_path);
    }
    return TAKE_FD(fd);
}

static int read_layer(void *arg)
{
    struct layer_loading *l = arg;
    struct layer_entry *e = l->e;
    struct sums sums;
    int r =
        sums_open(l->sums_fd, e->home->seal, e->layer.sums_path, l->m->virtual_size, &sums, l->err);

    if (r < 0) {
        return r;
    }
    e->layer.runs = sums.runs;
    l->files.sums_fd = sums.fd;
    l->files.sums = sums.file;
    return open_image(e, &l->files, l->err);
}

/*
 * The checksum file decides what every cluster has to be, zeroes included. So it is compared with
 * the manifest before it is used.
 */
static int co_load_layer(struct layer_entry *e, const struct manifest *m,
                         volatile sig_atomic_t *stop, struct error *err)
{
    struct layer_loading l = {.e = e, .m = m, .files = LAYER_FILES_INIT, .err = err};
    int r, fd = loop_co_brief(open_sums_file, &l);

    if (fd < 0) {
        return fd;
    }
    r = digest_co_expect(fd, e->layer.sums_path, m->sums_size, m->sums_sha256, stop, err);
    if (r < 0) {
        close(fd);
        return r;
    }
    l.sums_fd = fd;
    r = loop_co_brief(read_layer, &l);
    if (r < 0) {
        close_files(&l.files);
        return r;
    }
    if (l.files.tables.cluster_bits != BACKUP_CLUSTER_BITS) {
        e->cache = layer_image_cache_new(); /* without memory, there is none */
    }
    keep_files(e, &l.files);
    return 0;
}

int layer_co_get(const struct repository *r, const struct repository_entry *e,
                 volatile sig_atomic_t *stop, struct layer **ret_layer, struct error *err)
{
    struct home *h = home_get(r);
    struct layer_entry *found;
    int status = 0;

    if (!h) {
        return error_out_of_memory(err);
    }
    found = co_find_layer(h, e);
    if (!found) {
        found = new_layer(r, e, h);
        status = found ? co_load_layer(found, &e->manifest, stop, err) : error_out_of_memory(err);
        if (status < 0 && found) {
            free_layer(found);
        } else if (found) {
            name_index_add(&h->entries, &found->name, found->key);
        }
    }
    home_put(h);
    if (status == 0) {
        *ret_layer = &found->layer;
    }
    return status;
}

/* --- reading ---------------------------------------------------------------------------------- */

/* The files, opened for this read if they are not kept: then they are in `own`. */
static const struct layer_files *begin_read(const struct layer_entry *e, struct layer_files *own,
                                            int *ret_error)
{
    *own = LAYER_FILES_INIT;
    if (e->files.sums_fd >= 0) {
        *ret_error = 0;
        return &e->files;
    }
    *ret_error = open_files(e, own, NULL);
    if (*ret_error == -ENOENT) {
        *ret_error = -ESTALE;
    }
    return own;
}

static int read_digests(const struct layer_entry *e, const struct layer_files *f, uint64_t index,
                        uint8_t *ret_digests, size_t count)
{
    const struct sums sums = {.file = f->sums, .runs = e->layer.runs};

    return sums_read_digests(&sums, index, ret_digests, count);
}

int layer_read_digests(const struct layer *layer, uint64_t index, uint8_t *ret_digests,
                       size_t count)
{
    const struct layer_entry *e = layer_entry_of(layer);
    struct layer_files own;
    int r;
    const struct layer_files *f = begin_read(e, &own, &r);

    UNLESS_FAILED(r, read_digests(e, f, index, ret_digests, count));
    close_files(&own);
    return r;
}

int layer_read_clusters(const struct layer *layer, uint64_t first, size_t count, uint64_t digest,
                        uint8_t *buf, uint8_t *ret_digests, bool *ret_digests_failed)
{
    const struct layer_entry *e = layer_entry_of(layer);
    struct layer_files own;
    int r;
    const struct layer_files *f = begin_read(e, &own, &r);

    UNLESS_FAILED(r, read_digests(e, f, digest, ret_digests, count));
    *ret_digests_failed = r < 0;
    UNLESS_FAILED(r, layer_image_read(&f->tables, e->cache, f->image, first, count, buf));
    close_files(&own);
    return r;
}
