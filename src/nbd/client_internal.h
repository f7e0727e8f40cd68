/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the files of the client share:
 *
 *   client.c             life: connect, close, list
 *   client_pool.c        several connections to one export
 *   client_extents.c     the extents that a node remembers
 *   client_request.c     what users ask for, as requests that fit the server's limits
 *   client_send.c        the coroutine that sends
 *   client_receive.c     the coroutine that receives, and what it refuses
 *   client_reconnect.c   what the receiver does when the connection is lost
 *   client_call.c        a request between those four
 *   client_connect.c     from an address to a server that has agreed
 *   client_handshake.c   what is said before that; client_option.c, client_list.c
 *   client_wire.c        the socket
 *
 * `co_` functions yield; the others do not.
 */
#ifndef TIDEMARK_NBD_CLIENT_INTERNAL_H
#define TIDEMARK_NBD_CLIENT_INTERNAL_H

#include <pthread.h>
#include <stdatomic.h>
#include <sys/socket.h>
#include <sys/types.h>

#include "base/list.h"
#include "co/sync.h"
#include "loop/loop.h"
#include "nbd/client.h"
#include "nbd/proto.h"
#include "tls/session.h"

enum {
    /* Size of the receive buffer. Bytes. */
    NBD_CLIENT_BUFFER = 64 * 1024,
    /* More extents in one chunk end the connection. */
    NBD_CLIENT_EXTENTS_MAX = 1024 * 1024,
    /*
     * Longest request without data, before it is rounded down to the server's minimum block. Bytes.
     * With extended headers a block status may be about more.
     */
    NBD_CLIENT_LENGTH_MAX = 0x7fff0000,
    /* Replies to one option, and bytes of data in one of them. */
    NBD_CLIENT_REPLIES_MAX = 65536,
    NBD_CLIENT_REPLY_DATA_MAX = 64 * 1024,
    /* Payload of an error chunk: error, length, text, offset. Bytes. */
    NBD_CLIENT_ERROR_MIN = 6,
    NBD_CLIENT_ERROR_MAX = 6 + 8 + NBD_STRING_MAX,
    /*
     * Acknowledged writes that are kept until a flush (client_reconnect.c); beyond, one is made.
     * Bytes.
     */
    NBD_CLIENT_UNFLUSHED_MAX = 64 * 1024 * 1024,
    /* Pieces that are apart from each other in which a server may answer a read. */
    NBD_CLIENT_PIECES_MAX = 4096,
};

/* What was agreed with the server about one export. */
struct nbd_agreement {
    uint64_t size;
    /* enum nbd_transmission_flags */
    unsigned flags;
    bool structured;
    /* Extended headers; `structured` is set as well. */
    bool extended;
    bool has_block_sizes;
    uint32_t min_block, preferred_block, max_block;
    char *description;
    bool granted[NBD_CLIENT_CONTEXT_MAX];
    uint32_t context_id[NBD_CLIENT_CONTEXT_MAX];
};

/* Release what it owns, and nothing else. */
void nbd_agreement_clear(struct nbd_agreement *a);

/* --- client_pieces.c ------------------------------------------------------------------------ */

struct nbd_piece {
    uint64_t start, end;
};

/* Ranges of a read that were answered: sorted, apart from each other. */
struct nbd_pieces {
    /* `few`, or owned; NULL: none yet. */
    struct nbd_piece *list;
    size_t count, capacity;
    struct nbd_piece few[2];
};

/*
 * Add a range. -EEXIST: a part of it is there already. -E2BIG: it would make more than
 * NBD_CLIENT_PIECES_MAX pieces. -ENOMEM.
 */
int nbd_pieces_add(struct nbd_pieces *p, uint64_t start, uint64_t length);
/* Empty it. */
void nbd_pieces_clear(struct nbd_pieces *p);
/* Whether all of [0, length) is there. */
bool nbd_pieces_cover(const struct nbd_pieces *p, uint64_t length);
/* Bytes that are there. */
uint64_t nbd_pieces_bytes(const struct nbd_pieces *p);

/* --- client_wire.c: the socket -------------------------------------------------------------- */

/* A connected non-blocking socket, and the TLS session on it. */
struct nbd_wire {
    /* Owned; -1: none. */
    int fd;
    /* Owned; NULL: in the clear. */
    struct tls_session *tls;
};

/* As loop_co_recv(). */
static inline ssize_t nbd_wire_co_recv(const struct nbd_wire *w, void *buf, size_t size)
{
    return w->tls ? tls_session_co_recv(w->tls, buf, size) : loop_co_recv(w->fd, buf, size);
}

/* Close what there is; then there is no connection. */
void nbd_wire_close(struct nbd_wire *w);
/* Send all of a vector, whose elements are changed meanwhile. 0 or -errno. */
int nbd_wire_co_send(const struct nbd_wire *w, struct iovec *v, int count);
/*
 * Read or write all of a buffer, for the handshake: `what` names it in the error ("option reply").
 * 0 or -errno with `err` set.
 */
int nbd_wire_co_read(const struct nbd_wire *w, void *buf, size_t size, const char *what,
                     struct error *err);
int nbd_wire_co_write(const struct nbd_wire *w, const void *buf, size_t size, const char *what,
                      struct error *err);

/*
 * Ends what takes too long, or what nbd_client_give_up_attempts() is called for, by shutting down a
 * socket.
 */
struct nbd_deadline {
    struct loop_timer timer;
    struct list link;
    /* The socket as it is when the time has passed; -1: none. It stays open until the end. */
    const int *fd;
    atomic_bool passed;
};
/* timeout_ns < 0: no limit. */
void nbd_deadline_begin(struct nbd_deadline *d, const int *fd, int64_t timeout_ns);
/* What is timed goes on, and gets this time again from now on. */
void nbd_deadline_renew(struct nbd_deadline *d, int64_t timeout_ns);
/* Stop the clock. `r` is the result of what was timed; returns it, or -ETIMEDOUT with `err` set. */
int nbd_deadline_end(struct nbd_deadline *d, int r, struct error *err);

/* --- client_handshake.c --------------------------------------------------------------------- */

/* All: 0 or -errno with `err` set. -EPROTO: the server broke the protocol. */

/*
 * The hellos, and TLS if `tls` is not NULL. 1: the server speaks the oldstyle protocol, without
 * options; what follows the 16 bytes of magic is still to be read.
 */
int nbd_handshake_co_open(struct nbd_wire *w, const struct nbd_client_tls *tls, bool *ret_fixed,
                          bool *ret_no_zeroes, struct error *err);
/* All of the handshake, up to the transmission phase. */
int nbd_handshake_co_choose(struct nbd_wire *w, const struct nbd_client_tls *tls,
                            const char *export_name, const char *const *contexts,
                            size_t context_count, struct nbd_agreement *ret_agreement,
                            struct error *err);
/* Agree on the best headers that the server has: extended ones, else those of chunks. */
int nbd_handshake_co_ask_headers(struct nbd_wire *w, bool *ret_structured, bool *ret_extended,
                                 struct error *err);
/*
 * NBD_OPT_INFO or NBD_OPT_GO for the export `name`; fills what it is about in *a. 1: the server
 * does not know the option.
 */
int nbd_handshake_co_info(struct nbd_wire *w, uint32_t option, const char *name,
                          struct nbd_agreement *a, struct error *err);
/*
 * client_list.c: the handshake of a client that only lists the exports. The list is the caller's;
 * see nbd_export_list_free().
 */
int nbd_handshake_co_list(struct nbd_wire *w, const struct nbd_client_tls *tls,
                          struct nbd_export_info **ret_list, size_t *ret_count, struct error *err);

/* --- client_connect.c ----------------------------------------------------------------------- */

/* Where a client connects to, and what it asks for there. Owned, but for the credentials. */
struct nbd_target {
    struct socket_address address;
    /* creds NULL: in the clear. The host name is owned. */
    struct nbd_client_tls tls;
    char *export_name;
    char *contexts[NBD_CLIENT_CONTEXT_MAX];
    size_t context_count;
    /* Of connecting; < 0: no limit. */
    int64_t timeout_ns;
};

/*
 * Connect a non-blocking socket. While it connects *ret_fd is the socket, too, for a caller that
 * wants to shut it down; after a failure it is -1. 0 or -errno with `err` set.
 */
int nbd_co_dial(const struct socket_address *address, int64_t timeout_ns, int *ret_fd,
                struct error *err);
/* Which server a socket leads to. */
struct nbd_server_id {
    /* Of a unix socket: the process that listens there. */
    pid_t pid;
    /* Of others. */
    socklen_t size;
    struct sockaddr_storage address;
};
/* That of a connected socket; of another descriptor it is that of no server. */
struct nbd_server_id nbd_server_id_of(int fd);
/* Whether both are, as far as that can be seen, the same server. */
bool nbd_server_ids_equal(const struct nbd_server_id *a, const struct nbd_server_id *b);
/*
 * Dial and shake hands. 0 or -errno with `err` set; the wire is closed by the caller in any case.
 */
int nbd_co_attempt(const struct nbd_target *t, struct nbd_wire *w,
                   struct nbd_agreement *ret_agreement, struct error *err);

/* --- client_call.c: a request between its requester, the sender and the receiver ------------ */

/*
 * A request on its way; lies on the requester's stack. `pending` counts the two that still use it:
 * the sender and the receiver. The last of them wakes the requester.
 */
struct nbd_call {
    /* In client->send_queue. */
    struct list link;
    struct nbd_request rq;
    /* Requests are counted from 1 on. */
    uint64_t number;
    uint8_t header[NBD_EXTENDED_REQUEST_SIZE];
    /* Of a write: to send. Of a read: to fill. */
    struct iov data;
    /* Of a block status. */
    struct nbd_extents *per_context;
    /* Of a read: what has been answered. */
    struct nbd_pieces received;
    /* The sender is done with it. */
    bool sent;
    /* Of a flush: the last kept write that it covers. */
    uint64_t flush_mark;
    /* 0 or -errno; the receiver's until the call is done. */
    int result;
    struct co *co;
    atomic_int pending;
};

struct nbd_client {
    /* The home reactor's; fd -1 while there is no connection. */
    struct nbd_wire wire;
    struct reactor *home;
    struct nbd_target target;
    /*
     * Constant after the first handshake, except `structured`, `extended` and `context_id`, which
     * are the home reactor's.
     */
    struct nbd_agreement agreed;
    size_t context_count;
    /* Extended headers from the beginning: lengths may need 64 bits. */
    bool wide;

    /* Requests that may be on the wire. */
    struct co_semaphore room;
    /* Sender and receiver. */
    struct co_group group;

    /* Guards the members from here to writes_lost. */
    pthread_mutex_t lock;
    /* What it is connected to. */
    struct nbd_server_id server;
    struct list send_queue;
    /* The sender while it has no work. */
    struct co *idle_sender;
    struct nbd_call *slot[NBD_CLIENT_IN_FLIGHT];
    /* Makes the cookies of a reused slot differ. */
    uint32_t generation;
    bool closing, broken;
    /* The connection is being restored: requests wait, or, if `failing`, fail at once. */
    bool lost;
    bool failing;
    /*
     * Writes kept so far, including those that were dropped again, and bytes of those that are
     * kept.
     */
    uint64_t unflushed_count;
    uint64_t unflushed_bytes;
    /* One could not be kept; until the next flush. */
    bool unflushed_missing;
    /* Requests that were queued, and connections that were lost and restored. */
    uint64_t requests, reconnects;
    /* The latest request, as they are counted, that was answered. */
    uint64_t newest_answer;
    /* Acknowledged writes could not be repeated: flushes fail for good. */
    bool writes_lost;
    /* `newest_answer` and `requests` at a call of nbd_client_give_up(), until something changes. */
    struct {
        uint64_t answer, requests;
        int64_t since_ns;
    } given_up;

    /* Restoring a lost connection (client_reconnect.c); the home reactor's. */

    /* nbd_client_cut(): it is not restored. */
    bool cut;

    /* Requests wait at most this long; 0: the connection is not restored. */
    int64_t reconnect_ns;
    bool (*is_awaited)(void *arg);
    void *is_awaited_arg;
    /* Requests are held back until then. */
    int64_t hold_until_ns;
    /* A request that was sent again was answered, or there was none to send again. */
    bool progress;
    /* The sender uses the wire; `sender_waiter` waits for the end of that. */
    bool sender_busy;
    struct co *sender_waiter;
    /* Waits between two attempts. */
    struct co *pauser;
    struct loop_timer pause_timer, tick_timer;
    /* The wire of an attempt under way; NULL: none. */
    struct nbd_wire *attempt;
    /* Of struct nbd_unflushed, oldest first. */
    struct list unflushed;

    /* The receiver's. */

    /* NBD_CLIENT_BUFFER bytes; those in [pos, end) are received and not consumed. */
    uint8_t *buffer;
    size_t pos, end;
    /* How the server broke the protocol, for the log. */
    struct error fault;
};

/* One of the two users of a call is done with it. */
void nbd_call_drop(struct nbd_call *call);
/* Write the header of a request as it was agreed. Returns its size in bytes. */
size_t nbd_client_encode(const struct nbd_agreement *a, const struct nbd_request *rq,
                         uint8_t buf[static NBD_EXTENDED_REQUEST_SIZE]);
/* Make the sender look at its queue. The client's lock is held. */
void nbd_client_wake_sender_locked(struct nbd_client *c);
/*
 * Write "NBD server unix:/tmp/s, export 'disk'" to `buf`, which has room for `size` bytes, for
 * messages. Returns `buf`.
 */
const char *nbd_client_describe(const struct nbd_client *c, char *buf, size_t size);

/* --- client.c ------------------------------------------------------------------------------- */

/*
 * Connect as `like` did, on the present reactor. *ret_attempt is the new client while it connects:
 * a coroutine of that reactor may shut down its socket. 0 or -errno with `err` set.
 */
int nbd_client_co_connect_again(const struct nbd_client *like, int64_t timeout_ns,
                                struct nbd_client **ret_attempt, struct nbd_client **ret_client,
                                struct error *err);

/* How a client is doing. */
struct nbd_client_state {
    /* There is a connection. */
    bool usable;
    /* Times that a lost connection was restored. */
    uint64_t reconnects;
    /* Requests so far, and the number of the latest of them that was answered. */
    uint64_t requests, newest_answer;
};
/* Any thread. */
struct nbd_client_state nbd_client_state(struct nbd_client *c);
/* What it is connected to. Any thread. */
struct nbd_server_id nbd_client_server(struct nbd_client *c);
/* Add the figures of a client to those that are there. Main reactor. */
void nbd_client_add_stats(struct nbd_client *c, uint64_t *values);

/* --- the coroutines ------------------------------------------------------------------------- */

/* client_send.c: send what is queued, until the client closes. A coroutine of the home reactor. */
void nbd_client_co_sender(void *arg);
/* client_receive.c: receive replies until the connection ends. A coroutine of the home reactor. */
void nbd_client_co_receiver(void *arg);

/* --- client_reconnect.c --------------------------------------------------------------------- */

/* The members of a new client that are this file's. */
void nbd_reconnect_init(struct nbd_client *c);
/* Drop the writes that are kept. */
void nbd_reconnect_destroy(struct nbd_client *c);
/*
 * Called by the receiver when the connection has ended with the error `why`. True when it is there
 * again, and all requests are on their way; false if they have to fail.
 */
bool nbd_reconnect_co_recover(struct nbd_client *c, int why);
/* The client closes, or is cut: give up. */
void nbd_reconnect_abort(struct nbd_client *c);
/* Called by the receiver: a call was answered. */
void nbd_reconnect_note_answer(struct nbd_client *c, const struct nbd_call *call);
/*
 * Whether more than NBD_CLIENT_UNFLUSHED_MAX bytes of writes are kept: the next write should flush.
 */
bool nbd_reconnect_wants_flush(struct nbd_client *c);

#endif
