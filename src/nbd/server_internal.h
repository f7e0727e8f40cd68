/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the files of the server share. Each calls only those below it:
 *
 *   server.c                       accepts clients, and ends them
 *   negotiate.c   connection.c     the two phases of a connection
 *       |         narrow.c         requests that memory is short for
 *       |         request.c        carries out a request
 *     meta.c      status.c         block status
 *       |         receive.c        bytes from the socket
 *       |         reply.c          replies
 *   exports.c     job.c            exports; a request in work
 *   goodbye.c                      the end of connections
 *   worker.c   memory.c   peer.c   reactors; memory of all connections; who a client is
 *
 * Threads: the server, lists of exports, and everything of a connection up to the end of its
 * handshake belong to the main reactor. From then on the part marked "transmission" belongs to the
 * connection's I/O reactor, until nbd_connection_co_serve() has returned there. The other members
 * of an export do not change after it was made, so any thread reads them. The main reactor ends a
 * connection by shutdown(2) of its socket, and by nothing else.
 *
 * `co_` functions yield; the others do not.
 */
#ifndef TIDEMARK_NBD_SERVER_INTERNAL_H
#define TIDEMARK_NBD_SERVER_INTERNAL_H

#include <sys/uio.h>

#include "base/list.h"
#include "block/gate.h"
#include "loop/loop.h"
#include "nbd/batch.h"
#include "nbd/bufpool.h"
#include "nbd/pipes.h"
#include "nbd/proto.h"
#include "nbd/server.h"
#include "nbd/stats_internal.h"
#include "tls/session.h"

/*
 * Memory for requests. Each connection may always use NBD_GUARANTEED_BYTES. What is beyond comes
 * out of NBD_POOL_BYTES for all connections of the process (memory.c), of which no connection gets
 * more than its share unless there is plenty. When a connection cannot get more, the server stops
 * reading from its socket until some of its requests are done; a request that does not fit although
 * it is alone is done in pieces (narrow.c). So clients that do not read their replies can take
 * neither all memory nor other clients' part of it.
 */
enum {
    /* Requests of a connection in work, including those whose replies are queued. */
    NBD_JOBS_MAX = 128,
    /*
     * As many are taken from a client that does not take its replies: one that sends some requests,
     * and then reads, does not wait for a server that waits for it.
     */
    NBD_JOBS_CLOGGED = 16,
    /* Bytes; see above. */
    NBD_GUARANTEED_BYTES = 256 * 1024,
    NBD_POOL_BYTES = 256 * 1024 * 1024,
    NBD_SHARE_MAX = 64 * 1024 * 1024,
    NBD_SHARE_MIN = 1024 * 1024,
    /*
     * A connection gives the others of its reactor their turn after requests for this many bytes,
     * or fewer if there are many connections.
     */
    NBD_TURN_BYTES = 256 * 1024,
    NBD_TURN_BYTES_ALL = 1024 * 1024,
    /* Size of a receive buffer, and of the buffers of a socket. Bytes. */
    NBD_RECEIVE_BUFFER = 256 * 1024,
    NBD_SOCKET_BUFFER = 4 * 1024 * 1024,
    /*
     * The kernel's buffer for replies has this size at first, and doubles up to NBD_SOCKET_BUFFER
     * when the client has taken NBD_SEND_GROWS_AFTER times as much at NBD_SEND_GROWS_RATE or more.
     * What is filled for a client that does not read is work and memory of the system. Bytes, bytes
     * per second.
     */
    NBD_SEND_BUFFER_MIN = 256 * 1024,
    NBD_SEND_GROWS_AFTER = 8,
    NBD_SEND_GROWS_RATE = 1024 * 1024,
    /*
     * Payloads of writes from this size on are received straight into a buffer of their own. Bytes.
     */
    NBD_LARGE_WRITE = 64 * 1024,
    /* A read into memory is done in parts of this size; between them others have their turn. */
    NBD_READ_PART = 4 * 1024 * 1024,
    /* Reads from this size on ask for holes first, and send these as holes. Bytes. */
    NBD_SPARSE_READ = 64 * 1024,
    /* Data of this size on are sent without a copy, if they are in the page cache. Bytes. */
    NBD_PAGES_READ = 64 * 1024,
    /* Chunks of the reply to one read. */
    NBD_READ_CHUNKS_MAX = 32,
    /* Queued replies of this many bytes leave at once, while they are in the processor's cache. */
    NBD_REPLY_EAGER = 128 * 1024,
    /*
     * Extents that one context reports at most in one reply, and bytes that all contexts take
     * there.
     */
    NBD_STATUS_EXTENTS_MAX = 65536,
    NBD_STATUS_BYTES_MAX = 16 * 1024 * 1024,
    /*
     * Calls of block-status for one request; the reply ends there, before the end of the request.
     */
    NBD_STATUS_STEPS_MAX = 2 * NBD_STATUS_EXTENTS_MAX,
    /* The least that is reported as preferred, and the most as minimum. Bytes. */
    NBD_PREFERRED_BLOCK_MIN = 4096,
    NBD_MIN_BLOCK_MAX = 64 * 1024,
    /* Room for the address of a client. Bytes. */
    NBD_PEER_SIZE = 64,
};
/* How long clients have for the replies to requests in work when the server ends. */
#define NBD_GOODBYE_NS (1000 * 1000000LL)
/* Requests to cache more than this are cut here. Bytes. */
#define NBD_CACHE_MAX (4 * GiB)

/* A metadata context of an export. Its id on the wire is its index. */
struct nbd_context {
    char *name; /* owned */
    enum nbd_context_kind {
        NBD_CONTEXT_IS_ALLOCATION,
        NBD_CONTEXT_IS_DEPTH,
        NBD_CONTEXT_IS_BITMAP,
        NBD_CONTEXT_IS_MERGED,        /* allocation and depth */
        NBD_CONTEXT_IS_MERGED_BITMAP, /* and a bitmap */
    } kind;
    /* Of those with a bitmap: its index in the export. */
    size_t bitmap;
};

/* An I/O reactor as the server sees it. Lives as long as the process. */
struct nbd_worker {
    struct reactor *reactor;
    /* These belong to that reactor. */
    struct bufpool pool;
    struct nbd_pipes pipes;
    size_t connections;
    /* Of struct nbd_connection.worker_link. */
    struct list clients;
    /* slow.c: a sweep of their requests was started there and has not ended. Any thread. */
    atomic_bool sweeping;
    /* These belong to the main reactor: connections there, and the timer that starts sweeps. */
    size_t assigned;
    struct loop_timer slow_timer;
};

struct nbd_server {
    struct nbd_server_config config;
    /* Of struct nbd_export: not published yet. */
    struct list prepared;
    /* Of struct nbd_export: published. */
    struct list exports;
    /* Of struct nbd_connection, oldest first. */
    struct list connections;
    size_t connection_count;
    /* Of exports, and of connections. */
    uint64_t next_serial;
    uint64_t next_client;
    /* -1: not listening. */
    int listen_fd;
    bool stopping;
    /* No client is let in yet. */
    bool held;
    bool acceptor_running;
    /* The last accept failed; it was logged. */
    bool accept_failed;
    /* When it was last logged that an address has too many clients. */
    int64_t refusal_logged_ns;
    /* The acceptor while it waits for room. */
    struct co *acceptor_waiter;
    struct loop_timer room_timer;
    /* Waits for all connections to be gone. */
    struct co *stop_waiter;
    /* Cuts those off that have not ended by themselves. */
    struct loop_timer cut_timer;
};

struct nbd_export {
    /* In server->prepared, then server->exports; unlinked: unpublished. */
    struct list link;
    struct nbd_server *server;
    /* Never used twice, unlike addresses. */
    uint64_t serial;
    char *name;
    /* NULL: none. */
    char *description;
    struct block_root *root;
    /* The root's. */
    struct block_edge *edge;
    /* Bytes. Grows and shrinks with the node. */
    _Atomic uint64_t size;
    /* enum nbd_transmission_flags */
    uint16_t flags;
    bool writable;
    bool writethrough;
    /* All that clients can select. */
    struct nbd_context *contexts;
    size_t context_count;
    struct block_bitmap **bitmaps;
    /* For each bitmap, that of a root on its node. */
    struct block_edge **bitmap_edges;
    size_t bitmap_count;
    /* NULL: connections are spread. */
    struct reactor *reactor;
    /* As configured. */
    unsigned max_clients;
    bool is_default;
    struct tls_authz *authz;
    /* Of struct nbd_connection.export_link. */
    struct list clients;
    size_t client_count;
    /* NULL: none. */
    struct latency_set *latencies;
    /* As configured; NULL once the export is unpublished. */
    void (*on_unused)(void *arg);
    /* As configured. */
    void (*on_error)(void *arg, const char *request, uint64_t offset, uint64_t length, int error);
    void *arg;
    /* Waits for all clients to be gone. */
    struct co *free_waiter;
    /* The sum of the figures of clients that are gone. */
    uint64_t past[NBD_STATS];
};

/* The metadata contexts that a client selected. */
struct nbd_selection {
    /* Serial of the export that they were selected for; 0: none. */
    uint64_t export_serial;
    /* For each context of the export; owned; NULL: no export. */
    bool *contexts;
    size_t context_count;
    /* How many are selected. */
    size_t selected;
};

/*
 * What counts as one address: of IPv4 all of it, of IPv6 the network (/64), of vsock the CID. All
 * zero: there is none.
 */
struct nbd_origin {
    uint16_t family;
    uint8_t bytes[8];
};

/* A receive buffer. Writes that arrived whole hold a reference until they are done. */
struct nbd_rbuf {
    unsigned refs;
    struct pooled memory;
};

struct nbd_connection;

/* A request in work, then its reply in the queue. */
struct nbd_job {
    /* In the connection's free jobs, in those that it holds back, or in its replies. */
    struct list link;
    /* In the connection's all_jobs. */
    struct nbd_job *next;
    struct nbd_connection *conn;
    /* Carries the request out; NULL: not yet, or no more. */
    struct co *co;
    bool reported_slow;
    struct nbd_request rq;
    /* Bytes that the job counts for in conn->job_bytes. */
    uint32_t accounted;
    /* They were taken out of the pool of all connections. */
    bool pooled;
    /* A piece of a read, and not the first one; and not the last one. */
    bool continues;
    bool continued;
    /* The request was carried out, with this result: 0 or -errno. Only the reply is missing. */
    bool carried_out;
    int result;
    /* Of a write or a block status: in `data` or in `rbuf`. */
    uint8_t *payload;
    /* Of a block status: contexts that are named in the payload; 0: all selected ones. */
    size_t context_count;
    /* Reference; NULL: none. */
    struct nbd_rbuf *rbuf;
    /* Data that were read, or the payload of a write. */
    struct pooled data;
    /* Pages that were read, in the order in which they are sent; owned; NULL: none. */
    struct nbd_pipe *pipes;
    /* Headers of many chunks, or extents, or the text of an error. */
    struct pooled extra;
    /* Positive errno to reply without carrying out the request; 0: carry it out. */
    int error;
    /* The error is the client's. */
    bool invalid;
    /* What the request counts as, and when its header was received (CLOCK_MONOTONIC). */
    enum nbd_kind kind;
    int64_t received_ns;
    /* The sentence for the error; in `extra`; NULL: none. */
    const char *reason;

    /*
     * The reply: elements [iov_next, iov_count) are still to be sent. One whose base is a pipe of
     * the worker stands for the bytes in that.
     */
    uint8_t header[48];
    struct iovec inline_iov[3];
    /* inline_iov, or in `extra`. */
    struct iovec *iov;
    int iov_count, iov_next;
};

struct nbd_connection {
    /* In server->connections. */
    struct list link;
    struct nbd_server *server;
    uint64_t serial;
    int fd;
    /* The client's address, for messages. */
    char peer[NBD_PEER_SIZE];
    /* Where it comes from, for limits. */
    struct nbd_origin origin;
    /* Owned; NULL: in the clear. */
    struct tls_session *tls;
    /* When it was accepted. */
    int64_t since_ns;
    struct loop_timer handshake_timer;
    bool in_handshake;
    /* It has its I/O reactor. Main reactor. */
    bool in_transmission;
    /* The server ends it: requests that arrive from now on are refused. Any thread. */
    atomic_bool ending;
    /* Replies are chunks. */
    bool structured;
    /* Headers are extended ones; implies `structured`. */
    bool extended;
    /* Client flag NBD_FLAG_NO_ZEROES. */
    bool no_zeroes;
    /* The client does not know the longest request: longer reads and writes are done in pieces. */
    bool any_length;
    /* NULL until one was chosen. */
    struct nbd_export *export;
    /* In export->clients. */
    struct list export_link;
    struct nbd_selection selection;
    /* Why the connection ends, for the log; empty: there is nothing to say. */
    struct error failure;

    /* --- transmission ----------------------------------------------------------------------- */
    struct nbd_worker *worker;
    /* In worker->clients. */
    struct list worker_link;
    /* Used and unused ones. */
    struct nbd_job *all_jobs;
    struct list free_jobs;
    /* Jobs in work or in the queue of replies, and bytes of buffers that they hold. */
    unsigned jobs;
    size_t job_bytes;
    /* Jobs that are not begun while the sender runs, and bytes of buffers that they will hold. */
    struct list held;
    size_t held_bytes;
    /* Bytes of requests since others had their turn. */
    size_t turn_bytes;
    /* A piece of the read that is done in pieces has failed. */
    bool piece_failed;
    /* Of struct nbd_job, to be sent in this order. */
    struct list replies;
    /* Bytes of buffers that were queued since the queue was last empty. */
    size_t reply_bytes;
    struct reactor_deferred flush;
    struct nbd_batch batch;
    /* A coroutine waits for the socket to take more. */
    bool sender_running;
    /* Called by it when the socket has taken some; may yield. Jobs that were held back begin. */
    void (*co_room)(struct nbd_connection *c);
    /* Size of the kernel's buffer for replies, and what was sent since when (CLOCK_MONOTONIC). */
    size_t send_buffer;
    uint64_t sent_bytes;
    int64_t sent_since_ns;
    /* Sending failed: replies are dropped. */
    bool broken;
    /* The receiver while it waits for jobs to end. */
    struct co *waiter;
    struct nbd_rbuf *rbuf;
    /* Bytes [rpos, rend) of rbuf were received and are not consumed yet. */
    size_t rpos, rend;
    /* The last request was a large write: do not read ahead into rbuf. */
    bool bulk;
    /* The latest reception took all that the socket had. */
    bool drained;
    /* Receptions without a wait in between. */
    unsigned busy_turns;
    /* Of the latest reception: CLOCK_MONOTONIC. */
    int64_t received_ns;
    /* Written on the I/O reactor; the main reactor reads them at any time. */
    struct nbd_counters counters;
};

/* --- goodbye.c; main reactor ------------------------------------------------------------------ */

/* Before the first connection. */
void nbd_goodbye_init(struct nbd_server *s);

/*
 * Begin to end a connection. In the handshake it is cut off. Later requests in work are answered
 * first, others are refused with NBD_ESHUTDOWN; a client that does not take its replies is cut off
 * after NBD_GOODBYE_NS. Does not yield.
 */
void nbd_connection_begin_end(struct nbd_connection *c);

/* --- peer.c --------------------------------------------------------------------------------- */

/*
 * The address of the client at the other end of a socket: "192.0.2.1:4711", "[2001:db8::1]:4711",
 * "unix:PID". NBD_PEER_SIZE bytes.
 */
void nbd_peer_name(int fd, char *ret_name);
/* Where the client at the other end of a socket comes from. */
struct nbd_origin nbd_peer_origin(int fd);
/*
 * Note how the client broke the protocol: what came, and what was expected. It is logged when the
 * connection ends, which the caller brings about. -EPROTO.
 */
int nbd_connection_breaks(struct nbd_connection *c, const char *fmt, ...)
    __attribute__((format(printf, 2, 3), cold));
/* Log why the connection ended, if there is something to say. */
void nbd_connection_report_end(struct nbd_connection *c);

/* --- exports.c; main reactor ---------------------------------------------------------------- */

/* As reported to clients, in bytes. Requests that do not keep to them are served, too. */
struct nbd_block_sizes {
    uint32_t minimum, preferred, maximum;
};
/* Those of the exported node as it is now. */
struct nbd_block_sizes nbd_export_block_sizes(const struct nbd_export *e);
/* A published export, "" also being the default one; NULL: there is none of that name. */
struct nbd_export *nbd_server_find_export(struct nbd_server *s, const char *name);
/*
 * Read again what is in files of who may use an export (NULL: any of them). Exports may come and go
 * meanwhile. -ENOMEM. Yields.
 */
int nbd_exports_co_read_authz(struct nbd_server *s, const struct nbd_export *only);
/* Whether a client may see and use an export; files count as they were last read. */
bool nbd_export_admits(const struct nbd_export *e, const struct nbd_connection *c);
/* Make a connection a client of an export, and end that. */
void nbd_connection_attach(struct nbd_connection *c, struct nbd_export *e);
/* Whether an export has as many clients as it may have. */
bool nbd_export_is_full(const struct nbd_export *e);
void nbd_connection_detach(struct nbd_connection *c);

/* --- worker.c; main reactor ----------------------------------------------------------------- */

/* Make the reactors that connections are spread over, while there are descriptors for them. */
void nbd_workers_co_prepare(void);
/* The reactor on which clients negotiate: the main one if there can be no other. */
struct reactor *nbd_handshake_reactor(void);
/*
 * That of reactor `r`; NULL: the next in turn, of those that serve no guests if `is_view`. NULL
 * with `err` set: out of memory or descriptors.
 */
struct nbd_worker *nbd_worker_co_pick(struct reactor *r, bool is_view, struct error *err);

/* --- slow.c ---------------------------------------------------------------------------------- */

/* Prepare what follows. Main reactor, before the worker has connections. */
void nbd_slow_worker_init(struct nbd_worker *w);
/* A connection goes to the worker, or is back from there. Main reactor. */
void nbd_slow_begin(struct nbd_worker *w);
void nbd_slow_end(struct nbd_worker *w);
/* Look at the requests of the connection from now on, or no more. On the worker's reactor. */
void nbd_slow_watch(struct nbd_connection *c);
void nbd_slow_unwatch(struct nbd_connection *c);

/* --- memory.c; any thread ------------------------------------------------------------------- */

/* There is one more connection, or one less. */
void nbd_memory_enter(void);
void nbd_memory_leave(void);
/*
 * Take `bytes` for a connection that uses `used`. `lone`: it has no other request. False: there is
 * not enough now.
 */
bool nbd_memory_take(size_t used, size_t bytes, bool lone);
void nbd_memory_give(size_t bytes);

/* --- negotiate.c ---------------------------------------------------------------------------- */

/*
 * 0 with c->export set and attached, or -errno when the client is to be dropped. Called on the main
 * reactor; most of it runs on that for handshakes.
 */
int nbd_connection_co_negotiate(struct nbd_connection *c);

/* --- meta.c --------------------------------------------------------------------------------- */

/* Make the list of the contexts of an export, whose bitmaps are set. -ENOMEM. */
int nbd_contexts_init(struct nbd_export *e, bool depth, bool merged);
void nbd_contexts_release(struct nbd_export *e);

/* An empty selection for an export. -ENOMEM. */
int nbd_selection_init(struct nbd_selection *sel, const struct nbd_export *e);
void nbd_selection_clear(struct nbd_selection *sel);
/*
 * Select the contexts of the export that a query names; an unknown query selects none. `list`: a
 * query that ends in a colon matches all contexts that begin so.
 */
void nbd_selection_add(struct nbd_selection *sel, const struct nbd_export *e, const char *query,
                       bool list);
void nbd_selection_all(struct nbd_selection *sel);

/* --- the rest runs on the connection's I/O reactor ------------------------------------------ */

/* Sizes of the headers that were negotiated. Bytes. */
static inline size_t nbd_connection_request_size(const struct nbd_connection *c)
{
    return c->extended ? NBD_EXTENDED_REQUEST_SIZE : NBD_REQUEST_SIZE;
}
/* Of a chunk. */
static inline size_t nbd_connection_chunk_size(const struct nbd_connection *c)
{
    return c->extended ? NBD_EXTENDED_CHUNK_HEADER_SIZE : NBD_CHUNK_HEADER_SIZE;
}

/*
 * connection.c: serve until the client leaves. When it returns, everything of the connection's
 * transmission part is released.
 */
void nbd_connection_co_serve(struct nbd_connection *c);

/* --- job.c ---------------------------------------------------------------------------------- */

/* A new job for a request; NULL: out of memory. */
struct nbd_job *nbd_job_new(struct nbd_connection *c, const struct nbd_request *rq);
/* A job is over: release what it holds, and wake the receiver if it waits for that. */
void nbd_job_release(struct nbd_job *job);
/*
 * Refuse to carry out a job, which has used nothing of `extra` yet: the error, and a sentence for
 * the client. -errnum.
 */
int nbd_job_refuse(struct nbd_job *job, int errnum, const char *fmt, ...)
    __attribute__((format(printf, 3, 4), cold));
/* The same for one that reaches beyond the end of the export, before or after a try. -errnum. */
int nbd_job_refuse_range(struct nbd_job *job);
/* A receive buffer with one reference. NULL: out of memory. */
struct nbd_rbuf *nbd_rbuf_new(struct nbd_connection *c);
void nbd_rbuf_unref(struct nbd_connection *c, struct nbd_rbuf *b);
static inline uint8_t *nbd_rbuf_bytes(const struct nbd_connection *c)
{
    return c->rbuf->memory.data;
}

/* --- reply.c -------------------------------------------------------------------------------- */

/* The members of a new connection that are this file's. `co_room`: see there. */
void nbd_reply_init(struct nbd_connection *c, void (*co_room)(struct nbd_connection *c));
/*
 * Write the header of a chunk of the job's reply, short or extended as negotiated; cookie and
 * offset are filled in. Returns its size.
 */
size_t nbd_reply_put_chunk(const struct nbd_job *job, uint8_t *to, struct nbd_chunk chunk);
/*
 * Make the reply of a job: success, an error (positive errno; reason NULL: the system's text), or
 * its data.
 */
void nbd_reply_set_done(struct nbd_job *job);
void nbd_reply_set_error(struct nbd_job *job, int errnum, const char *reason);
void nbd_reply_set_data(struct nbd_job *job);
/* Queue a reply. It leaves with others at the end of the reactor's turn. */
void nbd_reply_queue(struct nbd_job *job);
/* Send what is queued, as far as the socket takes it; a coroutine sends the rest later. */
void nbd_reply_flush(struct nbd_connection *c);
/* Drop all replies, and disconnect. */
void nbd_reply_give_up(struct nbd_connection *c);

/* --- receive.c ------------------------------------------------------------------------------ */

/* Bytes that were received and are not consumed yet. */
static inline size_t nbd_available(const struct nbd_connection *c)
{
    return c->rend - c->rpos;
}
/* Receive until `needed` bytes (at most NBD_RECEIVE_BUFFER) are in rbuf. 0 or -errno. */
int nbd_connection_co_fill(struct nbd_connection *c, size_t needed);
/* Receive the next `size` bytes to memory; the next header may arrive with them. 0 or -errno. */
int nbd_connection_co_receive(struct nbd_connection *c, uint8_t *to, size_t size);
/* Receive and drop `size` bytes. 0 or -errno. */
int nbd_connection_co_skip(struct nbd_connection *c, uint64_t size);
/* Let other coroutines of the reactor run. */
void nbd_connection_co_let_others(struct nbd_connection *c);
/* Send the replies made so far; if that released no job, wait until one is released. */
void nbd_connection_co_wait_for_jobs(struct nbd_connection *c);

/* --- status.c ------------------------------------------------------------------------------- */

/* Carry out NBD_CMD_BLOCK_STATUS. 0 with the reply made, or -errno. */
int nbd_job_co_block_status(struct nbd_job *job);

/* --- request.c ------------------------------------------------------------------------------ */

/* Start a coroutine that carries out a job, or has it fail with its error, and queues the reply. */
void nbd_job_co_start(struct nbd_job *job);
/*
 * Whether the client takes its replies more slowly than it asks. What is done for it beyond what
 * the socket takes next (`bytes` more) is work for nothing if it never reads, and others wait for
 * that.
 */
bool nbd_connection_is_clogged(const struct nbd_connection *c, size_t bytes);
/* Start jobs that were held back, as far as the socket takes their replies next. */
void nbd_connection_co_start_held(struct nbd_connection *c);

/* --- narrow.c ------------------------------------------------------------------------------- */

/* Both: 0, or -errno when the connection has to end. It has no other job. */

/* Carry out a read, and reply, in pieces. */
int nbd_connection_co_narrow_read(struct nbd_connection *c, const struct nbd_request *rq);
/*
 * Receive the payload of a write through job->data, which has room for a piece, and write it. Then
 * the job has an error, or only its reply is missing.
 */
int nbd_connection_co_narrow_write(struct nbd_connection *c, struct nbd_job *job);

#endif
