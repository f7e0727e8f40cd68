/* SPDX-License-Identifier: Apache-2.0 */
/* What the files of the client share. */
#ifndef TIDEMARK_NBD_CLIENT_INTERNAL_H
#define TIDEMARK_NBD_CLIENT_INTERNAL_H

#include <pthread.h>
#include <stdatomic.h>

#include "base/list.h"
#include "co/sync.h"
#include "loop/loop.h"
#include "nbd/client.h"
#include "nbd/proto.h"
#include "tls/session.h"

#define NBD_CLIENT_BUFFER (64 * KiB)
/* More extents in one answer end the connection. */
#define NBD_CLIENT_EXTENTS_MAX (1 * MiB)
/* Lengths of requests without data are cut here, rounded down to the server's minimum block. */
#define NBD_CLIENT_LENGTH_MAX 0x7fff0000u
/* Answers to one option, and data in one of them. */
#define NBD_CLIENT_REPLIES_MAX 65536u
#define NBD_CLIENT_REPLY_DATA_MAX (64 * KiB)

/* Acknowledged writes that were not flushed yet are kept, for a connection that is made again; at so many bytes they are flushed. */
#define NBD_CLIENT_UNFLUSHED_MAX (64 * MiB)
/* Pieces in which data of a read may be there, in any order. */
#define NBD_CLIENT_PIECES_MAX 4096u

/* What was agreed with the server about one export. */
struct nbd_agreement {
    uint64_t size;
    unsigned flags;
    bool structured;
    bool has_block_sizes;
    uint32_t min_block, preferred_block, max_block;
    char *description;
    bool granted[NBD_CLIENT_CONTEXT_MAX];
    uint32_t context_id[NBD_CLIENT_CONTEXT_MAX];
};

/* Ranges of a read that were answered: sorted, apart from each other. */
struct nbd_pieces {
    struct nbd_piece {
        uint64_t start, end;
    } * list; /* `few`, or owned; NULL: none yet */
    size_t count, capacity;
    struct nbd_piece few[2];
};

/* client_pieces.c. Add a range: -EPROTO if a part of it is there already, or the pieces are too many; -ENOMEM. */
int nbd_pieces_add(struct nbd_pieces *p, uint64_t start, uint64_t length);
void nbd_pieces_clear(struct nbd_pieces *p);
/* Whether [0, length) is there. */
bool nbd_pieces_cover(const struct nbd_pieces *p, uint64_t length);

/*
 * A request on its way; lies on the requester's stack. `pending` counts the two that still use it: who sends it
 * and who answers it. The last wakes the requester.
 */
struct nbd_call {
    struct list link; /* in client->send_queue */
    struct nbd_request rq;
    uint8_t header[NBD_REQUEST_SIZE];
    struct iov data;                 /* of a write: to send; of a read: to fill */
    struct nbd_extents *per_context; /* of a block status */
    struct nbd_pieces received;      /* of a read: what has been answered */
    bool sent;                       /* the sender is done with it */
    uint64_t flush_mark;             /* of a flush: the last kept write that it covers */
    int result;                      /* 0 or -errno; the receiver's until it is done */
    struct co *co;
    atomic_int pending;
};

/* A connected non-blocking socket, and the TLS session on it if there is one. */
struct nbd_wire {
    int fd;                  /* owned; -1: none */
    struct tls_session *tls; /* owned; NULL: in the clear */
};

/* As loop_co_recv(). */
static inline ssize_t nbd_wire_co_recv(const struct nbd_wire *w, void *buf, size_t size)
{
    return w->tls ? tls_session_co_recv(w->tls, buf, size) : loop_co_recv(w->fd, buf, size);
}

/* client_wire.c. All but close yield. 0 or -errno. */
void nbd_wire_close(struct nbd_wire *w);
/* All of a vector, which is used up. */
int nbd_wire_co_send(const struct nbd_wire *w, struct iovec *v, int count);
/* During the handshake, with sentences: `what` is being read or sent. */
int nbd_wire_co_read(const struct nbd_wire *w, void *buf, size_t size, const char *what,
                     struct error *err);
int nbd_wire_co_write(const struct nbd_wire *w, const void *buf, size_t size, const char *what,
                      struct error *err);

/* Where a client connects to, and what it asks for there. Owned, but for the credentials. */
struct nbd_target {
    struct nbd_address address;
    struct nbd_client_tls tls; /* creds NULL: in the clear; hostname is owned */
    char *export_name;
    char *contexts[NBD_CLIENT_CONTEXT_MAX];
    size_t context_count;
    int64_t timeout_ns; /* of connecting; < 0: none */
};

/* A write that was acknowledged and not flushed yet. */
struct nbd_unflushed {
    struct list link;
    uint64_t number; /* they are counted from 1 on */
    struct nbd_request rq;
    uint8_t data[];
};

/* Ends what takes too long, by shutting a socket down. */
struct nbd_deadline {
    struct loop_timer timer;
    const int *fd; /* as it is when the time comes */
    bool passed;
};
void nbd_deadline_begin(struct nbd_deadline *d, const int *fd, int64_t timeout_ns);
/* Turns the result of what was timed into that of the whole. */
int nbd_deadline_end(struct nbd_deadline *d, int ret, struct error *err);

struct nbd_client {
    struct nbd_wire wire; /* home reactor; fd -1 while there is none */
    struct reactor *home;
    struct nbd_target target;
    /* Constant after the first handshake, but for `structured` and `context_id`, which are the receiver's. */
    struct nbd_agreement agreed;
    size_t context_count;

    struct co_semaphore room; /* requests that may be on the wire */
    struct co_group group;    /* sender and receiver */

    pthread_mutex_t lock; /* guards from here to broken */
    struct list send_queue;
    struct co *idle_sender; /* suspended for want of work */
    struct nbd_call *slot[NBD_CLIENT_IN_FLIGHT];
    uint32_t generation; /* makes cookies of reused slots differ */
    bool closing, broken;
    bool lost;                /* the connection is being made again: requests wait, */
    bool failing;             /* or, after the delay, fail at once */
    uint64_t unflushed_count; /* writes kept so far, with those that were dropped again */
    uint64_t unflushed_bytes;
    bool unflushed_missing; /* one could not be kept; until the next flush */
    bool writes_lost;       /* acknowledged writes could not be repeated: flushes fail for good */

    /* Making a lost connection again (client_reconnect.c); the home reactor's. */
    int64_t reconnect_ns; /* requests wait so long; 0: it is not made again */
    bool (*is_awaited)(void *arg);
    void *is_awaited_arg;
    int64_t hold_until_ns; /* requests are held back until then */
    bool progress;    /* of what was sent again, something was answered, or there was nothing */
    bool sender_busy; /* sending: uses the wire */
    struct co *sender_waiter; /* who waits for the end of that */
    struct co *pauser;        /* who waits between two attempts */
    struct loop_timer pause_timer, tick_timer;
    struct nbd_wire *attempt; /* of an attempt under way; NULL: none */
    struct list unflushed;    /* of struct nbd_unflushed, oldest first */

    /* the receiver's */
    uint8_t *buffer; /* NBD_CLIENT_BUFFER bytes */
    size_t pos, end;
};

/* client_handshake.c. All yield. 0 or -errno with err set. */
/* The hellos, and TLS if `tls` is not NULL. 1: the server speaks the protocol without options; what follows its magic is still to be read. */
int nbd_handshake_co_open(struct nbd_wire *w, const struct nbd_client_tls *tls, bool *ret_fixed,
                          bool *ret_no_zeroes, struct error *err);
int nbd_handshake_co_choose(struct nbd_wire *w, const struct nbd_client_tls *tls,
                            const char *export_name, const char *const *contexts,
                            size_t context_count, struct nbd_agreement *ret, struct error *err);
int nbd_handshake_co_list(struct nbd_wire *w, const struct nbd_client_tls *tls,
                          struct nbd_export_info **ret, size_t *ret_count, struct error *err);
void nbd_agreement_clear(struct nbd_agreement *a);

/* client_connect.c: a connected non-blocking socket. *ret_fd is it while it connects, too, for who wants to shut it down; -1 after
 * a failure. */
int nbd_co_dial(const struct nbd_address *address, int64_t timeout_ns, int *ret_fd,
                struct error *err);

/* client_receive.c: receive answers until the connection ends. */
void nbd_client_receiver(void *arg);

/* client.c: one of the two users of a call is done with it. */
void nbd_call_drop(struct nbd_call *call);
/* Make the sender look at its queue. The lock is held. */
void nbd_client_wake_sender_locked(struct nbd_client *c);
/* Dial and shake hands. */
int nbd_client_co_attempt(const struct nbd_target *t, struct nbd_wire *w, struct nbd_agreement *ret,
                          struct error *err);

/* client_reconnect.c. */
void nbd_reconnect_init(struct nbd_client *c);
void nbd_reconnect_destroy(struct nbd_client *c);
/* The receiver's, when the connection is gone for reason `why`: true once it is there again, and all requests are on their way. */
bool nbd_reconnect_co_recover(struct nbd_client *c, int why);
/* Closing: give up. */
void nbd_reconnect_abort(struct nbd_client *c);
/* The receiver's: a call was answered with success. */
void nbd_reconnect_note_answer(struct nbd_client *c, const struct nbd_call *call);
/* Before a write: flush if many are kept. */
int nbd_reconnect_co_limit(struct nbd_client *c);

#endif
