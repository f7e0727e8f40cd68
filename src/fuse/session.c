/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Messages of the kernel: one coroutine receives them, and starts a coroutine for each request.
 * Everything here runs on the reactor of the disk, so no answer meets the end of the session.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/log.h"
#include "fuse/internal.h"
#include "loop/loop.h"

enum {
    /* More stay in the queue of the kernel. */
    REQUESTS_MAX = 64,
    /* Requests that are kept, with their buffers, for later messages. */
    SPARE_MAX = 16,
};

/* --- what libfuse calls: fill in the request that is being received --------------------------- */

static struct fuse_request *begin_request(fuse_req_t req, enum fuse_kind kind,
                                          fuse_request_fn *co_handle)
{
    struct fuse_disk *d = fuse_req_userdata(req);
    struct fuse_request *rq = d->receiving;

    rq->req = req;
    rq->kind = kind;
    rq->co_handle = co_handle;
    rq->offset = rq->length = 0;
    rq->invalid = false;
    return rq;
}

static struct fuse_request *begin_range(fuse_req_t req, enum fuse_kind kind,
                                        fuse_request_fn *co_handle, off_t offset, uint64_t length)
{
    struct fuse_request *rq = begin_request(req, kind, co_handle);

    rq->offset = (uint64_t)offset;
    rq->length = length;
    return rq;
}

static void on_init(void *userdata, struct fuse_conn_info *conn)
{
    conn->max_background = REQUESTS_MAX;
    conn->congestion_threshold = REQUESTS_MAX / 4 * 3;
}

static void on_getattr(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
    begin_request(req, FUSE_KIND_OTHER, fuse_co_getattr);
}

static void on_setattr(fuse_req_t req, fuse_ino_t ino, struct stat *attr, int to_set,
                       struct fuse_file_info *fi)
{
    struct fuse_request *rq = begin_request(req, FUSE_KIND_OTHER, fuse_co_setattr);

    rq->setting = *attr;
    rq->flags = (unsigned)to_set;
}

static void on_statfs(fuse_req_t req, fuse_ino_t ino)
{
    begin_request(req, FUSE_KIND_OTHER, fuse_co_statfs);
}

/* O_TRUNC is for the file that the disk is mounted on: a disk keeps its size. */
static void on_open(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
    fi->direct_io = true;
    fuse_reply_open(req, fi);
}

static void on_read(fuse_req_t req, fuse_ino_t ino, size_t size, off_t offset,
                    struct fuse_file_info *fi)
{
    begin_range(req, FUSE_KIND_READ, fuse_co_read, offset, size);
}

static void on_write(fuse_req_t req, fuse_ino_t ino, const char *data, size_t size, off_t offset,
                     struct fuse_file_info *fi)
{
    struct fuse_request *rq = begin_range(req, FUSE_KIND_WRITE, fuse_co_write, offset, size);

    rq->data = data;
    rq->flags = (unsigned)fi->flags;
}

/* Of close(2). */
static void on_flush(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
    begin_request(req, FUSE_KIND_FLUSH, fuse_co_flush);
}

static void on_fsync(fuse_req_t req, fuse_ino_t ino, int datasync, struct fuse_file_info *fi)
{
    begin_request(req, FUSE_KIND_FLUSH, fuse_co_flush);
}

static void on_fallocate(fuse_req_t req, fuse_ino_t ino, int mode, off_t offset, off_t length,
                         struct fuse_file_info *fi)
{
    struct fuse_request *rq =
        begin_range(req, FUSE_KIND_ZEROES, fuse_co_fallocate, offset, (uint64_t)length);

    rq->mode = mode;
}

static void on_lseek(fuse_req_t req, fuse_ino_t ino, off_t offset, int whence,
                     struct fuse_file_info *fi)
{
    struct fuse_request *rq = begin_range(req, FUSE_KIND_OTHER, fuse_co_lseek, offset, 0);

    rq->whence = whence;
}

const struct fuse_lowlevel_ops fuse_disk_ops = {
    .init = on_init,
    .getattr = on_getattr,
    .setattr = on_setattr,
    .statfs = on_statfs,
    .open = on_open,
    .read = on_read,
    .write = on_write,
    .flush = on_flush,
    .fsync = on_fsync,
    .fallocate = on_fallocate,
    .lseek = on_lseek,
};

/* --- receiving -------------------------------------------------------------------------------- */

static void free_request(struct fuse_request *rq)
{
    free(rq->message.mem);
    free(rq->read_buffer);
    free(rq);
}

void fuse_disk_free_requests(struct fuse_disk *d)
{
    struct fuse_request *rq, *next;

    LIST_FOREACH_SAFE (rq, next, &d->spare, link) {
        free_request(rq);
    }
}

static struct fuse_request *take_fuse_request(struct fuse_disk *d)
{
    struct fuse_request *rq;

    if (!list_is_empty(&d->spare)) {
        rq = container_of(d->spare.next, struct fuse_request, link);
        list_remove(&rq->link);
        d->spare_count--;
        return rq;
    }
    rq = calloc(1, sizeof(*rq));
    if (rq) {
        rq->disk = d;
    }
    return rq;
}

static void give_request(struct fuse_request *rq)
{
    struct fuse_disk *d = rq->disk;

    if (d->spare_count >= SPARE_MAX) {
        free_request(rq);
        return;
    }
    list_append(&d->spare, &rq->link);
    d->spare_count++;
}

static void wake_session(struct co **co)
{
    if (*co) {
        co_wake(TAKE_PTR(*co));
    }
}

static void co_run_request(void *arg)
{
    struct fuse_request *rq = arg;
    struct fuse_disk *d = rq->disk;

    rq->co_handle(rq);
    give_request(rq);
    d->in_flight--;
    wake_session(&d->stalled);
    if (d->in_flight == 0) {
        wake_session(&d->waiter);
    }
}

/* At the limit of coroutines wait for one to end. */
static void co_start_request(struct fuse_request *rq)
{
    struct fuse_disk *d = rq->disk;

    rq->begun_ns = loop_now_ns();
    d->in_flight++;
    if (rq->kind != FUSE_KIND_OTHER) {
        atomic_fetch_add(&d->running, 1);
    }
    while (co_run(reactor_home(d->reactor), co_run_request, rq) < 0) {
        loop_co_sleep(NS_PER_MS);
    }
}

/*
 * Receive a message, and start what it asks for. 0; -EAGAIN: there is none; -ENOMEM; others: the
 * session has ended.
 */
static int co_receive_one(struct fuse_disk *d)
{
    struct fuse_request *rq = take_fuse_request(d);
    int n;

    if (!rq) {
        return -ENOMEM;
    }
    n = fuse_session_receive_buf(d->session, &rq->message);
    if (n <= 0) {
        give_request(rq);
        return n < 0 ? n : -ENODEV;
    }
    d->receiving = rq;
    rq->req = NULL;
    fuse_session_process_buf(d->session, &rq->message);
    d->receiving = NULL;
    if (rq->req) {
        co_start_request(rq);
    } else {
        give_request(rq);
    }
    return 0;
}

static void co_wait_for_requests(struct fuse_disk *d)
{
    while (d->in_flight >= REQUESTS_MAX && !d->closing) {
        d->stalled = co_self();
        co_suspend();
    }
}

void fuse_disk_co_receive(void *disk)
{
    struct fuse_disk *d = disk;
    int r = 0;

    while (!d->closing) {
        r = co_receive_one(d);
        if (r == -EAGAIN) {
            (void)loop_co_poll(d->poll_set, POLLIN, -1);
        } else if (r == -ENOMEM) {
            loop_co_sleep(NS_PER_MS);
        } else if (r < 0 && r != -EINTR) {
            break;
        }
        co_wait_for_requests(d);
        if (reactor_turn_expired()) {
            loop_co_give_way();
        }
    }
    if (!d->closing) {
        log_warning("FUSE export on '%s': unmounted by somebody else", d->path);
    }
    d->receiver_ended = true;
    wake_session(&d->waiter);
}

/* --- end -------------------------------------------------------------------------------------- */

void fuse_disk_co_settle(struct fuse_disk *d, int64_t patience_ns)
{
    int64_t deadline = loop_now_ns() + patience_ns;
    uint64_t one = 1;

    d->closing = true;
    if (write(d->bell, &one, sizeof(one)) < 0) {
        log_error("eventfd: %s", strerror(errno));
    }
    wake_session(&d->stalled);
    while (!d->receiver_ended) {
        d->waiter = co_self();
        co_suspend();
    }
    while (d->in_flight > 0 && loop_now_ns() < deadline) {
        loop_co_sleep(NS_PER_MS);
    }
    d->detached = true;
}

void fuse_disk_co_wait_idle(struct fuse_disk *d)
{
    while (d->in_flight > 0) {
        d->waiter = co_self();
        co_suspend();
    }
}
