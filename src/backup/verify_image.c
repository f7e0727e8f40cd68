/* SPDX-License-Identifier: Apache-2.0 */
#include "backup/verify_image.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "base/fd_io.h"
#include "base/sha256.h"
#include "base/time_units.h"
#include "loop/loop.h"

#define STEP ((size_t)4 * 1024 * 1024)
/* How far the hash may be ahead of the contents. The page cache keeps that much. */
#define LEAD (64ull * 1024 * 1024)
#define PAUSE_NS (5 * NS_PER_MS)

struct hash_step {
    int fd;
    struct sha256 *sha;
    uint8_t *buf;
    uint64_t offset;
    size_t size; /* read by this step; 0: the end of the file */
};

static int run_hash_step(void *arg)
{
    struct hash_step *s = arg;
    ssize_t n = fd_read_at(s->fd, s->buf, STEP, s->offset);

    if (n < 0) {
        return (int)n;
    }
    s->size = (size_t)n;
    s->offset += s->size;
    return sha256_add(s->sha, s->buf, s->size);
}

/* Contents are in the file about in the order of the disk. */
static bool is_too_far(const struct image_check *c, uint64_t offset)
{
    const struct progress *p = c->contents;
    uint64_t file = c->entry->manifest.image_size;
    double part = p->total ? (double)p->done / (double)p->total : 0;

    return !c->contents_over && offset > (uint64_t)(part * (double)file) + LEAD;
}

static bool is_image_check_stopped(const struct image_check *c)
{
    return c->stop || (c->stop_too && *c->stop_too);
}

static int co_hash_image(struct image_check *c, struct hash_step *s, const char *shown)
{
    int r = 0;

    do {
        while (is_too_far(c, s->offset) && !is_image_check_stopped(c)) {
            loop_co_sleep(PAUSE_NS);
        }
        if (is_image_check_stopped(c)) {
            return error_set(&c->err, EINTR, "Stopped while reading '%s'", shown);
        }
        r = loop_co_offload(run_hash_step, s);
    } while (r == 0 && s->size > 0);
    return r < 0 ? error_set_errno(&c->err, -r, "Could not read '%s'", shown) : 0;
}

static int co_compare_image(struct image_check *c, int fd, const char *shown)
{
    const struct manifest *m = &c->entry->manifest;
    struct hash_step s = {.fd = fd, .sha = sha256_new(), .buf = malloc(STEP)};
    uint8_t digest[SHA256_SIZE];
    char hex[SHA256_HEX_SIZE];
    struct stat st;
    int r = 0;

    if (!s.sha || !s.buf) {
        r = error_out_of_memory(&c->err);
    } else if (fstat(fd, &st) < 0) {
        r = error_set_errno(&c->err, errno, "Could not inspect '%s'", shown);
    } else if ((uint64_t)st.st_size != m->image_size) {
        r = error_set(&c->err, EBADMSG,
                      "'%s' was changed: it has %lld bytes, the manifest says %" PRIu64, shown,
                      (long long)st.st_size, m->image_size);
    }
    UNLESS_FAILED(r, co_hash_image(c, &s, shown));
    if (r == 0 && sha256_finish(s.sha, digest) < 0) {
        r = error_set(&c->err, EIO, "SHA-256 of '%s' failed", shown);
    }
    if (r == 0) {
        sha256_to_hex(digest, hex);
        if (strcmp(hex, m->image_sha256) != 0) {
            r = error_set(&c->err, EBADMSG,
                          "'%s' was changed: its SHA-256 is not that of the manifest", shown);
        }
    }
    free(s.buf);
    sha256_free(s.sha);
    return r;
}

static void co_run_image_check(void *arg)
{
    struct image_check *c = arg;
    const char *id = c->entry->manifest.id;
    char *shown AUTO_FREE = repository_file(c->repository, id, REPOSITORY_IMAGE);
    int fd AUTO_CLOSE = -1;

    if (!shown) {
        c->status = error_out_of_memory(&c->err);
    } else {
        fd = repository_open_file(c->repository, id, REPOSITORY_IMAGE, &c->err);
        c->status = fd < 0 ? fd : co_compare_image(c, fd, shown);
    }
    co_group_done(&c->group);
}

void image_check_begin(struct image_check *c)
{
    int r;

    co_group_init(&c->group);
    co_group_add(&c->group);
    r = co_spawn(reactor_home(reactor_main()), co_run_image_check, c);
    if (r < 0) {
        c->status = error_set_errno(&c->err, -r, "Could not start reading");
        co_group_done(&c->group);
    }
}

int image_check_co_end(struct image_check *c, struct error *err)
{
    c->contents_over = true;
    co_group_wait(&c->group);
    co_group_destroy(&c->group);
    if (c->status < 0) {
        error_move(err, &c->err);
    }
    error_clear(&c->err);
    return c->status;
}
