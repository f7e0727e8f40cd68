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
    uint64_t received;               /* bytes of a read that have been answered */
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
/* During the handshake, with sentences. */
int nbd_wire_co_read(const struct nbd_wire *w, void *buf, size_t size, struct error *err);
int nbd_wire_co_write(const struct nbd_wire *w, const void *buf, size_t size, struct error *err);

struct nbd_client {
    struct nbd_wire wire;
    struct reactor *home;
    struct nbd_agreement agreed; /* constant after the handshake */
    size_t context_count;

    struct co_semaphore room; /* requests that may be on the wire */
    struct co_group group;    /* sender and receiver */

    pthread_mutex_t lock; /* guards from here to broken */
    struct list send_queue;
    struct co *idle_sender; /* suspended for want of work */
    struct nbd_call *slot[NBD_CLIENT_IN_FLIGHT];
    uint32_t generation; /* makes cookies of reused slots differ */
    bool closing, broken;

    /* the receiver's */
    uint8_t *buffer; /* NBD_CLIENT_BUFFER bytes */
    size_t pos, end;
};

/* client_handshake.c. All yield. 0 or -errno with err set. */
/* The hellos, and TLS if `tls` is not NULL. */
int nbd_handshake_co_open(struct nbd_wire *w, const struct nbd_client_tls *tls, bool *ret_fixed,
                          bool *ret_no_zeroes, struct error *err);
int nbd_handshake_co_choose(struct nbd_wire *w, const struct nbd_client_tls *tls,
                            const char *export_name, const char *const *contexts,
                            size_t context_count, struct nbd_agreement *ret, struct error *err);
int nbd_handshake_co_list(struct nbd_wire *w, const struct nbd_client_tls *tls,
                          struct nbd_export_info **ret, size_t *ret_count, struct error *err);
void nbd_agreement_clear(struct nbd_agreement *a);

/* client_connect.c: a connected non-blocking socket. */
int nbd_co_dial(const struct nbd_address *address, int64_t timeout_ns, int *ret_fd,
                struct error *err);

/* client_receive.c: receive answers until the connection ends. */
void nbd_client_receiver(void *arg);

/* client.c: one of the two users of a call is done with it. */
void nbd_call_drop(struct nbd_call *call);

#endif
