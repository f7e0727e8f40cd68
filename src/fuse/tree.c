/* SPDX-License-Identifier: Apache-2.0 */
/* What the kernel asks a tree. */
#include "fuse/tree.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "base/log.h"
#include "block/gate.h"
#include "fuse/internal.h"
#include "loop/loop.h"

/* What stat(2) counts in. */
#define STAT_BLOCK 512u
/* How long the kernel may remember names and attributes, in seconds. */
#define REMEMBER_SECONDS 1.0
struct tree_request;
typedef void tree_request_fn(struct tree_request *rq);

struct tree_request {
    struct fuse_tree *tree;
    fuse_req_t req;
    tree_request_fn *co_handle;
    uint64_t number;
    char *name; /* owned; NULL: the request has none */
    uint64_t offset;
    size_t size;
    int whence;
    struct fuse_file_info file;
};

/* --- answers ---------------------------------------------------------------------------------- */

static void tree_answer(struct tree_request *rq, int r)
{
    if (rq->tree->detached) {
        fuse_reply_none(rq->req);
    } else {
        fuse_reply_err(rq->req, -r);
    }
}

static void fill_stat(const struct fuse_tree *t, const struct fuse_tree_entry *e, struct stat *st)
{
    mode_t read = t->config.allow_other ? 0444 : 0400, search = t->config.allow_other ? 0555 : 0500;

    *st = (struct stat){
        .st_ino = e->number,
        .st_mode = e->type | (e->type == S_IFREG ? read : search),
        .st_nlink = e->type == S_IFDIR ? 2 : 1,
        .st_uid = getuid(),
        .st_gid = getgid(),
        .st_size = (off_t)e->size,
        .st_blocks = (blkcnt_t)((e->size + STAT_BLOCK - 1) / STAT_BLOCK),
        .st_atim.tv_sec = e->mtime,
        .st_mtim.tv_sec = e->mtime,
        .st_ctim.tv_sec = e->mtime,
    };
}

/* --- requests on names ------------------------------------------------------------------------ */

static void co_tree_lookup(struct tree_request *rq)
{
    const struct fuse_tree_config *c = &rq->tree->config;
    struct fuse_entry_param reply = {.attr_timeout = REMEMBER_SECONDS,
                                     .entry_timeout = REMEMBER_SECONDS};
    struct fuse_tree_entry e;
    int r = c->ops->co_find(c->arg, rq->number, rq->name, &e);

    if (r < 0 || rq->tree->detached) {
        tree_answer(rq, r);
        return;
    }
    reply.ino = e.number;
    fill_stat(rq->tree, &e, &reply.attr);
    fuse_reply_entry(rq->req, &reply);
}

static void co_tree_getattr(struct tree_request *rq)
{
    const struct fuse_tree_config *c = &rq->tree->config;
    struct fuse_tree_entry e;
    struct stat st;
    int r = c->ops->look(c->arg, rq->number, &e);

    if (r < 0) {
        tree_answer(rq, r);
        return;
    }
    fill_stat(rq->tree, &e, &st);
    fuse_reply_attr(rq->req, &st, REMEMBER_SECONDS);
}

static void co_tree_readlink(struct tree_request *rq)
{
    const struct fuse_tree_config *c = &rq->tree->config;
    const char *target = c->ops->target(c->arg, rq->number);

    if (target) {
        fuse_reply_readlink(rq->req, target);
    } else {
        tree_answer(rq, -EINVAL);
    }
}

/* --- requests on directories ------------------------------------------------------------------ */

static struct fuse_tree_handle *handle_of(const struct tree_request *rq)
{
    return (struct fuse_tree_handle *)(uintptr_t)rq->file.fh;
}

void fuse_tree_co_close(struct fuse_tree *t, struct fuse_tree_handle *h)
{
    if (h->is_file) {
        t->config.ops->co_close(t->config.arg, h->number);
    }
    for (size_t i = 0; i < h->list.count; i++) {
        free(h->list.items[i].name);
    }
    free(h->list.items);
    list_remove(&h->link);
    free(h);
}

static struct fuse_tree_handle *new_handle(const struct tree_request *rq)
{
    struct fuse_tree_handle *h = calloc(1, sizeof(*h));

    if (h) {
        h->number = rq->number;
        list_append(&rq->tree->handles, &h->link);
    }
    return h;
}

/* Say that the file or directory is open or, after an error, forget it. */
static void co_answer_open(struct tree_request *rq, struct fuse_tree_handle *h, int r)
{
    if (r < 0 || rq->tree->detached) {
        tree_answer(rq, r);
    } else {
        rq->file.fh = (uintptr_t)h;
        r = fuse_reply_open(rq->req, &rq->file);
    }
    /* When the process that opens it was interrupted, nobody closes it. */
    if (h && r < 0 && !rq->tree->detached) {
        fuse_tree_co_close(rq->tree, h);
    }
}

int fuse_tree_list_add(struct fuse_tree_list *list, const char *name,
                       const struct fuse_tree_entry *entry)
{
    struct tree_list_item *items = realloc(list->items, (list->count + 1) * sizeof(*items));

    if (!items) {
        return -ENOMEM;
    }
    list->items = items;
    items[list->count] = (struct tree_list_item){.name = strdup(name), .entry = *entry};
    if (!items[list->count].name) {
        return -ENOMEM;
    }
    list->count++;
    return 0;
}

static void co_tree_opendir(struct tree_request *rq)
{
    const struct fuse_tree_config *c = &rq->tree->config;
    struct fuse_tree_handle *h = new_handle(rq);

    co_answer_open(rq, h, h ? c->ops->co_list(c->arg, rq->number, &h->list) : -ENOMEM);
}

static void co_tree_readdir(struct tree_request *rq)
{
    const struct fuse_tree_list *list = &handle_of(rq)->list;
    char *buf = malloc(rq->size);
    size_t used = 0;

    if (!buf) {
        tree_answer(rq, -ENOMEM);
        return;
    }
    for (uint64_t i = rq->offset; i < list->count; i++) {
        const struct tree_list_item *item = &list->items[i];
        struct stat st;
        size_t need;

        fill_stat(rq->tree, &item->entry, &st);
        need = fuse_add_direntry(rq->req, buf + used, rq->size - used, item->name, &st,
                                 (off_t)(i + 1));
        if (need > rq->size - used) {
            break;
        }
        used += need;
    }
    fuse_reply_buf(rq->req, buf, used);
    free(buf);
}

static void co_tree_release(struct tree_request *rq)
{
    fuse_tree_co_close(rq->tree, handle_of(rq));
    tree_answer(rq, 0);
}

/* --- requests on files ------------------------------------------------------------------------ */

static void co_tree_open(struct tree_request *rq)
{
    const struct fuse_tree_config *c = &rq->tree->config;
    struct fuse_tree_handle *h;
    int r;

    if ((rq->file.flags & O_ACCMODE) != O_RDONLY) {
        tree_answer(rq, -EROFS);
        return;
    }
    h = new_handle(rq);
    r = h ? c->ops->co_open(c->arg, rq->number, &h->file) : -ENOMEM;
    if (h) {
        h->is_file = r == 0;
    }
    co_answer_open(rq, h, r);
}

static int co_read_file(const struct fuse_tree_file *file, uint64_t offset, char *buf, size_t size)
{
    if (file->edge) {
        return size ? block_co_pread(file->edge, file->offset + offset, buf, size) : 0;
    }
    memcpy(buf, file->text + offset, size);
    return 0;
}

static void co_tree_read(struct tree_request *rq)
{
    const struct fuse_tree_file *file = &handle_of(rq)->file;
    size_t size = rq->offset < file->size ? MIN(rq->size, file->size - rq->offset) : 0;
    char *buf = malloc(MAX(size, (size_t)1));
    int r = buf ? co_read_file(file, MIN(rq->offset, file->size), buf, size) : -ENOMEM;

    if (r < 0 || rq->tree->detached) {
        tree_answer(rq, r);
    } else {
        fuse_reply_buf(rq->req, buf, size);
    }
    free(buf);
}

/* The first place from `offset` on that is data, or a hole. The end of the file is a hole. */
static int co_seek_file(const struct fuse_tree_file *file, uint64_t offset, bool hole,
                        uint64_t *ret_offset)
{
    while (file->edge && offset < file->size) {
        struct block_status st;
        int r = block_co_status_above(file->edge, NULL, file->offset + offset, file->size - offset,
                                      &st, NULL);

        if (r < 0) {
            return r;
        }
        if (st.length == 0 || !!(st.flags & BLOCK_STATUS_ZERO) == hole) {
            break;
        }
        offset += st.length;
        if (reactor_turn_expired()) {
            loop_co_give_way();
        }
    }
    if (!hole && offset >= file->size) {
        return -ENXIO;
    }
    *ret_offset = hole && !file->edge ? file->size : offset;
    return 0;
}

static void co_tree_lseek(struct tree_request *rq)
{
    const struct fuse_tree_file *file = &handle_of(rq)->file;
    uint64_t offset = 0;
    int r = rq->whence != SEEK_DATA && rq->whence != SEEK_HOLE ? -EINVAL
            : rq->offset >= file->size
                ? -ENXIO
                : co_seek_file(file, rq->offset, rq->whence == SEEK_HOLE, &offset);

    if (r < 0 || rq->tree->detached) {
        tree_answer(rq, r);
    } else {
        fuse_reply_lseek(rq->req, (off_t)offset);
    }
}

/* --- what libfuse calls: start a request ------------------------------------------------------ */

static void tree_request_free(struct tree_request *rq)
{
    free(rq->name);
    free(rq);
}

static void co_run_tree_request(void *arg)
{
    struct tree_request *rq = arg;
    struct fuse_tree *t = rq->tree;

    if (t->detached) {
        fuse_reply_none(rq->req);
    } else {
        rq->co_handle(rq);
    }
    tree_request_free(rq);
    t->in_flight--;
    if (t->waiter) {
        co_wake(TAKE_PTR(t->waiter));
    }
}

static void tree_start(fuse_req_t req, tree_request_fn *co_handle, const struct tree_request *like)
{
    struct fuse_tree *t = fuse_req_userdata(req);
    struct tree_request *rq = malloc(sizeof(*rq));
    const char *name = like->name;

    if (rq) {
        *rq = *like;
        rq->tree = t;
        rq->req = req;
        rq->co_handle = co_handle;
        rq->name = name ? strdup(name) : NULL;
        t->in_flight++;
        if ((!name || rq->name) && reactor_spawn(reactor_main(), co_run_tree_request, rq) == 0) {
            return;
        }
        t->in_flight--;
        tree_request_free(rq);
    }
    fuse_reply_err(req, ENOMEM);
}

static void tree_on_init(void *userdata, struct fuse_conn_info *conn)
{
    conn->max_background = FUSE_TREE_REQUESTS_MAX;
    conn->congestion_threshold = FUSE_TREE_REQUESTS_MAX / 4 * 3;
}

static void tree_on_lookup(fuse_req_t req, fuse_ino_t parent, const char *name)
{
    tree_start(req, co_tree_lookup,
               &(struct tree_request){.number = parent, .name = (char *)(uintptr_t)name});
}

static void tree_on_getattr(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
    tree_start(req, co_tree_getattr, &(struct tree_request){.number = ino});
}

static void tree_on_readlink(fuse_req_t req, fuse_ino_t ino)
{
    tree_start(req, co_tree_readlink, &(struct tree_request){.number = ino});
}

static void tree_on_opendir(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
    tree_start(req, co_tree_opendir, &(struct tree_request){.number = ino, .file = *fi});
}

static void tree_on_readdir(fuse_req_t req, fuse_ino_t ino, size_t size, off_t offset,
                            struct fuse_file_info *fi)
{
    tree_start(req, co_tree_readdir,
               &(struct tree_request){
                   .number = ino, .size = size, .offset = (uint64_t)offset, .file = *fi});
}

static void tree_on_open(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
    tree_start(req, co_tree_open, &(struct tree_request){.number = ino, .file = *fi});
}

static void tree_on_read(fuse_req_t req, fuse_ino_t ino, size_t size, off_t offset,
                         struct fuse_file_info *fi)
{
    tree_start(req, co_tree_read,
               &(struct tree_request){
                   .number = ino, .size = size, .offset = (uint64_t)offset, .file = *fi});
}

static void tree_on_lseek(fuse_req_t req, fuse_ino_t ino, off_t offset, int whence,
                          struct fuse_file_info *fi)
{
    tree_start(req, co_tree_lseek,
               &(struct tree_request){
                   .number = ino, .offset = (uint64_t)offset, .whence = whence, .file = *fi});
}

static void tree_on_release(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
    tree_start(req, co_tree_release, &(struct tree_request){.number = ino, .file = *fi});
}

const struct fuse_lowlevel_ops fuse_tree_session_ops = {
    .init = tree_on_init,
    .lookup = tree_on_lookup,
    .getattr = tree_on_getattr,
    .readlink = tree_on_readlink,
    .opendir = tree_on_opendir,
    .readdir = tree_on_readdir,
    .releasedir = tree_on_release,
    .open = tree_on_open,
    .read = tree_on_read,
    .lseek = tree_on_lseek,
    .release = tree_on_release,
};
