/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the files of the server share.
 *
 * Threads: server, exports' lists and everything of a connection up to the end of its handshake belong to the
 * main reactor. From then on the part marked "transmission" belongs to the connection's I/O reactor, until
 * nbd_connection_co_serve() has returned there. Other fields of an export don't change after it was made, so
 * any thread reads them. The main reactor ends a connection by shutdown(2) of its socket, nothing else.
 */
#ifndef TIDEMARK_NBD_SERVER_INTERNAL_H
#define TIDEMARK_NBD_SERVER_INTERNAL_H

#include <sys/uio.h>

#include "base/list.h"
#include "block/gate.h"
#include "loop/loop.h"
#include "nbd/batch.h"
#include "nbd/bufpool.h"
#include "nbd/proto.h"
#include "nbd/server.h"
#include "nbd/stats_internal.h"
#include "tls/session.h"

/*
 * Memory for requests. Each connection may always use NBD_GUARANTEED_BYTES; what is beyond comes out of NBD_POOL_BYTES for all
 * connections of the process (memory.c), of which no connection gets more than its share unless there is plenty. When a
 * connection can't get more, the server stops reading from its socket until some of its requests are done; a lone request
 * that does not fit in is done in pieces (narrow.c). So clients who don't read their replies can take neither all memory nor
 * other clients' part of it.
 */
#define NBD_JOBS_MAX 128
#define NBD_GUARANTEED_BYTES (256 * KiB)
#define NBD_POOL_BYTES (256 * MiB)
#define NBD_SHARE_MAX (64 * MiB)
#define NBD_SHARE_MIN (1 * MiB)
/* A connection lets others of its reactor have their turn after requests for so many bytes, or fewer if they are many. */
#define NBD_TURN_BYTES (256 * KiB)
#define NBD_TURN_BYTES_ALL (1 * MiB)

#define NBD_RECEIVE_BUFFER (256 * KiB)
#define NBD_SOCKET_BUFFER (4 * 1024 * 1024)
/* Payloads of writes from this size on are received straight into a buffer of their own. */
#define NBD_LARGE_WRITE (64 * KiB)
/* Reads from this size on ask for holes first, and send those as holes. */
#define NBD_SPARSE_READ (64 * KiB)
#define NBD_READ_CHUNKS_MAX 32
/* Replies of so many bytes leave at once, while they are in the processor's cache. */
#define NBD_REPLY_EAGER (128 * KiB)
/* Extents that one context reports at most for one request, and bytes that those of all contexts take. */
#define NBD_STATUS_EXTENTS_MAX 65536u
#define NBD_STATUS_BYTES_MAX (16 * MiB)

/* Steps through a node for them; what lies behind is not told. */
#define NBD_STATUS_STEPS_MAX (2 * NBD_STATUS_EXTENTS_MAX)
/* Areas to be cached are cut here. */
#define NBD_CACHE_MAX (4 * GiB)

/* Metadata context ids on the wire; bitmap i of the export has NBD_CONTEXT_ID_BITMAP + i. */
#define NBD_CONTEXT_ID_BASE 0u
#define NBD_CONTEXT_ID_DEPTH 1u
#define NBD_CONTEXT_ID_BITMAP 2u

/* An I/O reactor as the server sees it. Lives as long as the process. */
struct nbd_worker {
    struct reactor *reactor;
    /* touched on that reactor only: */
    struct bufpool pool;
    size_t connections;
};

struct nbd_server {
    struct nbd_server_config config;
    struct list prepared;    /* of struct nbd_export: not published yet */
    struct list exports;     /* of struct nbd_export: published ones */
    struct list connections; /* of struct nbd_connection, oldest first */
    size_t connection_count;
    uint64_t next_serial; /* of exports */
    uint64_t next_client; /* serial of the next connection */
    int listen_fd;        /* -1: not listening */
    bool stopping;
    bool held; /* nobody is let in yet */
    bool acceptor_running;
    struct co *acceptor_waiter; /* the acceptor while it waits for room */
    struct loop_timer room_timer;
    struct co *stop_waiter; /* who waits for all to be gone */
};

struct nbd_export {
    struct list link; /* in server->prepared, then server->exports; unlinked: unpublished */
    struct nbd_server *server;
    uint64_t serial; /* never used twice, unlike addresses */
    char *name;
    char *description; /* NULL: none */
    struct block_root *root;
    struct block_edge *edge; /* the root's */
    uint64_t size;           /* bytes */
    uint32_t min_block;      /* that clients are told; smaller requests are fine, too */
    uint16_t flags;
    bool writable;
    bool writethrough;
    bool allocation_depth;
    struct block_bitmap **bitmaps;
    struct block_edge **bitmap_edges; /* of the roots on their nodes */
    size_t bitmap_count;
    struct reactor *reactor; /* NULL: spread */
    struct list clients;     /* of struct nbd_connection.export_link; main reactor */
    size_t client_count;
    struct co *free_waiter; /* who waits for all clients to be gone */
    /* Main reactor: clients that it has had, and the sum of what those that have gone counted. */
    uint64_t clients_total;
    uint64_t past[NBD_STATS];
};

/* The metadata contexts that a client selected. */
struct nbd_selection {
    uint64_t export_serial; /* of the export that they were selected for; 0: none */
    bool base, depth;
    bool *bitmaps; /* owned; one per bitmap of the export; NULL: none */
    size_t bitmap_count;
    size_t selected; /* how many are */
};

/* A receive buffer; write requests that arrived whole keep it until they are done. */
struct nbd_rbuf {
    unsigned refs;
    struct pooled memory;
};

struct nbd_connection;

/* A request in work, then its reply in the queue. */
struct nbd_job {
    struct list link; /* in the connection's free jobs, or in its replies */
    struct nbd_connection *conn;
    struct nbd_request rq;
    uint32_t accounted;    /* bytes it counts for in conn->job_bytes */
    bool pooled;           /* they were taken out of the pool of all */
    bool continues;        /* a piece of a read, not the first one */
    bool continued;        /* likewise, not the last one */
    bool carried_out;      /* only the reply is missing */
    uint8_t *payload;      /* of a write or a block status: in `data` or in `rbuf` */
    size_t context_count;  /* of a block status: contexts that are asked for; 0: all */
    struct nbd_rbuf *rbuf; /* reference; NULL: none */
    struct pooled data;    /* read data or write payload */
    struct pooled extra;   /* headers of many chunks, extents, error text */
    int error;             /* positive errno to report without running it; see request.c */
    bool invalid;          /* that error is the client's */
    enum nbd_kind kind;    /* what it counts as */
    int64_t received_ns;   /* when its header was received: CLOCK_MONOTONIC */
    const char *reason;    /* for that, a static string */

    /* the reply: elements [iov_next, iov_count) are still to be sent */
    uint8_t header[48];
    struct iovec inline_iov[3];
    struct iovec *iov; /* inline_iov, or in `extra` */
    int iov_count, iov_next;
};

struct nbd_connection {
    struct list link; /* in server->connections */
    struct nbd_server *server;
    uint64_t serial;
    char peer[NBD_PEER_SIZE];
    int fd;
    struct tls_session *tls; /* owned; NULL: in the clear */
    int64_t since_ns;        /* when it was accepted */
    struct loop_timer handshake_timer;
    bool in_handshake;
    bool structured;           /* replies are chunks */
    bool extended;             /* with extended headers; implies structured */
    bool no_zeroes;            /* client flag */
    struct nbd_export *export; /* NULL until one was chosen */
    struct list export_link;   /* in export->clients */
    struct nbd_selection selection;
    struct error
        failure; /* what went wrong in its handshake, for the log; empty: nothing to tell */

    /* --- transmission --- */
    struct nbd_worker *worker;
    struct list free_jobs;
    unsigned jobs;       /* in work or in the queue of replies */
    size_t job_bytes;    /* buffers that they hold */
    size_t turn_bytes;   /* of requests since others had their turn */
    bool piece_failed;   /* of the read that is done in pieces */
    struct list replies; /* of struct nbd_job, to be sent in this order */
    size_t reply_bytes;  /* of buffers, queued since the queue was last empty */
    struct reactor_deferred flush;
    struct nbd_batch batch;
    bool sender_running; /* a coroutine waits for the socket to take more */
    bool broken;         /* sending failed: replies are dropped */
    struct co *waiter;   /* the receiver while it waits for jobs to end */
    struct nbd_rbuf *rbuf;
    size_t rpos, rend;   /* received and not yet consumed, in rbuf */
    bool bulk;           /* the last request was a large write: don't read ahead into rbuf */
    unsigned busy_turns; /* receptions without a wait in between */
    int64_t received_ns; /* of the latest reception: CLOCK_MONOTONIC */
    /* Written there as well, and read by the main reactor at any time. */
    struct nbd_counters counters;
};

/* server.c */
struct nbd_export *nbd_server_find_export(struct nbd_server *s, const char *name);

/* negotiate.c: 0 with c->export set and attached, or -errno when the client is to be dropped. */
int nbd_connection_co_negotiate(struct nbd_connection *c);
/* server.c: make it a client of the export. */
void nbd_connection_attach(struct nbd_connection *c, struct nbd_export *e);

/* meta.c */
void nbd_selection_clear(struct nbd_selection *sel);
/*
 * Add to `sel` (made for export `e`) what the query names. In a list request the wildcards "base:", "qemu:"
 * and "qemu:dirty-bitmap:" match all that begin so. Unknown queries select nothing.
 */
void nbd_selection_add(struct nbd_selection *sel, const struct nbd_export *e, const char *query,
                       bool list);
/* Empty, for `e`. -ENOMEM. */
int nbd_selection_init(struct nbd_selection *sel, const struct nbd_export *e);
void nbd_selection_all(struct nbd_selection *sel, const struct nbd_export *e);
/* The i-th context of the export by wire id order, or NULL at the end; *ret_id, *ret_selected say more. `buf` holds the name. */
bool nbd_selection_at(const struct nbd_selection *sel, const struct nbd_export *e, size_t i,
                      uint32_t *ret_id, bool *ret_selected, struct strbuf *name);

/* worker.c: have the reactors that connections are spread over, as long as there are descriptors for them. Main reactor. */
void nbd_workers_prepare(void);
/* The next worker in turn, or that of `r`. NULL with err set. Main reactor. */
struct nbd_worker *nbd_worker_pick(struct reactor *r, struct error *err);

/* connection.c: serve until the client leaves. On the worker's reactor. Everything of the connection's transmission part is
 * released when it returns. */
void nbd_connection_co_serve(struct nbd_connection *c);
/* A job is over: give back what it holds. */
void nbd_job_release(struct nbd_job *job);
/* A new job for a request; NULL if out of memory. */
struct nbd_job *nbd_job_new(struct nbd_connection *c, const struct nbd_request *rq);
/* Carry it out, or have it fail if it has an error already, and queue the reply; in a coroutine of its own. */
void nbd_job_co_start(struct nbd_job *job);
/* Wait for something to happen to a job; the replies made so far leave first. */
void nbd_connection_co_wait_for_jobs(struct nbd_connection *c);
/* The next `size` bytes of the stream to memory. 0 or -errno. */
int nbd_connection_co_receive(struct nbd_connection *c, uint8_t *to, size_t size);

/* narrow.c: requests for which there is no memory, in pieces; the connection has no other. 0, or -errno when it is done with. */
int nbd_connection_co_narrow_read(struct nbd_connection *c, const struct nbd_request *rq);
/* Receive the payload through job->data (a piece) and write it; the job is only to be answered then, or has an error. */
int nbd_connection_co_narrow_write(struct nbd_connection *c, struct nbd_job *job);

/* memory.c. Any thread, no yields. */
void nbd_memory_enter(void); /* there is one more connection */
void nbd_memory_leave(void);
/* Bytes for a connection that uses `used`, `lone`: for nothing else. False: not now. */
bool nbd_memory_take(size_t used, size_t bytes, bool lone);
void nbd_memory_give(size_t bytes);

/* request.c: coroutine of a job: carry it out and queue the reply. */
void nbd_job_run(void *arg);

/* status.c: answer BLOCK_STATUS. 0 with the reply made, or -errno. */
int nbd_job_co_block_status(struct nbd_job *job);

static inline size_t nbd_connection_request_size(const struct nbd_connection *c)
{
    return c->extended ? NBD_EXTENDED_REQUEST_SIZE : NBD_REQUEST_SIZE;
}
static inline size_t nbd_connection_chunk_size(const struct nbd_connection *c)
{
    return c->extended ? NBD_EXTENDED_CHUNK_HEADER_SIZE : NBD_CHUNK_HEADER_SIZE;
}

/* reply.c: the header of a chunk of the job's reply, of the kind that was negotiated; cookie and offset are filled in. Bytes. */
size_t nbd_reply_put_chunk(const struct nbd_job *job, uint8_t *to, struct nbd_chunk chunk);
/* Make the reply of a job. Errors: `reason` may be NULL. */
void nbd_reply_set_done(struct nbd_job *job);
void nbd_reply_set_error(struct nbd_job *job, int errnum, const char *reason);
void nbd_reply_set_data(struct nbd_job *job);
/* Queue it; it leaves with others at the end of the reactor's turn. */
void nbd_reply_queue(struct nbd_job *job);
/* Send what is queued now, as far as the socket takes it. */
void nbd_reply_flush(struct nbd_connection *c);
void nbd_reply_init(struct nbd_connection *c);
/* Drop replies, and disconnect. */
void nbd_reply_give_up(struct nbd_connection *c);

#endif
