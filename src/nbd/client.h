/* SPDX-License-Identifier: Apache-2.0 */
/*
 * An NBD client: one connection, many requests in flight, used from coroutines of any reactor.
 *
 * A connection lives on the reactor that made it, where one coroutine sends and one receives;
 * requests of other reactors queue there. Up to NBD_CLIENT_IN_FLIGHT requests are on the wire,
 * later ones wait. What a server sends is checked: a server that breaks the protocol is
 * disconnected, and requests then fail with -EIO. A lost connection is made again only if
 * nbd_client_set_reconnect() says so.
 */
#ifndef TIDEMARK_NBD_CLIENT_H
#define TIDEMARK_NBD_CLIENT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"
#include "base/iov.h"

#define NBD_CLIENT_IN_FLIGHT 64
#define NBD_CLIENT_CONTEXT_MAX 16

struct nbd_client;
struct tls_creds;

/* Where a server is: a unix socket (path), or TCP. Strings are owned. */
struct nbd_address {
    char *path; /* NULL: TCP */
    char *host;
    char *port; /* NULL: 10809 */
};

void nbd_address_clear(struct nbd_address *a);

/*
 * Parse "nbd:unix:PATH[:exportname=NAME]", "nbd:HOST:PORT[:exportname=NAME]",
 * "nbd[+tcp]://HOST[:PORT]/NAME" or "nbd+unix:///NAME?socket=PATH". *ret_export is malloc'ed ("" if
 * none is named). -EINVAL. Does not yield.
 */
int nbd_address_parse(const char *uri, struct nbd_address *ret, char **ret_export,
                      struct error *err);

/* That the server has to speak TLS, and who it has to be. */
struct nbd_client_tls {
    const struct tls_creds *creds; /* of a client; they outlive the connection */
    const char *hostname;          /* that its certificate is for; NULL: the host of the address */
};

/*
 * Connect and choose an export, asking for `context_count` metadata contexts by exact name. Those
 * that the server doesn't have are no error: see nbd_client_context(). timeout_ns limits the whole
 * of it; < 0: no limit. `tls` NULL: in the clear.
 */
int nbd_client_co_connect(const struct nbd_address *address, const struct nbd_client_tls *tls,
                          const char *export_name, const char *const *contexts,
                          size_t context_count, int64_t timeout_ns, struct nbd_client **ret,
                          struct error *err);

/*
 * Make a lost connection again, and send what was in flight anew. Requests wait for that up to
 * `delay_ns` after the loss, or until `is_awaited(arg)` says on the connection's reactor that
 * somebody waits for them; then they fail with -EIO, and so do others, until it is there again.
 * Writes that were acknowledged and not flushed are kept, and repeated before anything else: a
 * flush covers them whatever the server forgot. Where that fails, flushes fail for good. A server
 * that breaks the protocol, or comes back with another export (smaller, read-only, without a
 * command that it had), is not used. Before the first request.
 */
void nbd_client_set_reconnect(struct nbd_client *c, int64_t delay_ns, bool (*is_awaited)(void *arg),
                              void *arg);

/* Say goodbye, wait for what is in flight, release. On the reactor that connected. NULL is fine. */
void nbd_client_co_close(struct nbd_client *c);

/* What was agreed. Any thread. */
uint64_t nbd_client_size(const struct nbd_client *c);            /* bytes */
unsigned nbd_client_flags(const struct nbd_client *c);           /* NBD_FLAG_... */
uint32_t nbd_client_min_block(const struct nbd_client *c);       /* bytes, >= 1 */
uint32_t nbd_client_preferred_block(const struct nbd_client *c); /* bytes */
uint32_t nbd_client_max_block(const struct nbd_client *c);       /* bytes, of READ and WRITE */
const char *nbd_client_description(const struct nbd_client *c);  /* NULL if none */
/* Whether the i-th context that was asked for was granted. */
bool nbd_client_context(const struct nbd_client *c, size_t i);

/*
 * Requests; any reactor, in a coroutine; all yield. Offsets and lengths in bytes, split here by the
 * server's limits. 0 or -errno of the server; -EIO also when the connection is lost, -ENOTSUP for
 * what the server can't do.
 */
int nbd_client_co_preadv(struct nbd_client *c, uint64_t offset, struct iov iov);
int nbd_client_co_pread(struct nbd_client *c, uint64_t offset, void *buf, size_t size);
int nbd_client_co_pwritev(struct nbd_client *c, uint64_t offset, struct iov iov, bool fua);
int nbd_client_co_flush(struct nbd_client *c);
int nbd_client_co_trim(struct nbd_client *c, uint64_t offset, uint64_t length);
/*
 * `cmd_flags`: NBD_CMD_FLAG_FUA, _NO_HOLE, _FAST_ZERO; the last is dropped if the server doesn't
 * know it.
 */
int nbd_client_co_write_zeroes(struct nbd_client *c, uint64_t offset, uint64_t length,
                               unsigned cmd_flags);
int nbd_client_co_cache(struct nbd_client *c, uint64_t offset, uint64_t length);

struct nbd_extent {
    uint64_t length; /* bytes, > 0 */
    uint32_t flags;  /* as the context defines them */
};

/* Extents of one context, from the offset asked for on. Owned; nbd_extents_clear() frees. */
struct nbd_extents {
    struct nbd_extent *list;
    size_t count;
};

/*
 * Block status of all granted contexts: `per_context` has an element for each context asked for at
 * connect, filled in that order (empty for those not granted). The server may tell about less than
 * `length`, and differ between contexts; never more than `length` is returned. `one`: the first
 * extent only.
 */
int nbd_client_co_block_status(struct nbd_client *c, uint64_t offset, uint64_t length, bool one,
                               struct nbd_extents *per_context);
void nbd_extents_clear(struct nbd_extents *e);

/* --- listing -------------------------------------------------------------------------------- */

struct nbd_export_info {
    char *name;
    char *description; /* NULL: none */
    bool extended;     /* the server has extended headers */
    bool has_info;     /* the rest is valid: the server answered NBD_OPT_INFO */
    uint64_t size;
    unsigned flags;
    bool has_block_sizes;
    uint32_t min_block, preferred_block, max_block;
    char **contexts; /* names of available metadata contexts */
    size_t context_count;
};

/* List the exports of a server. *ret is freed with nbd_export_list_free(). */
int nbd_client_co_list(const struct nbd_address *address, const struct nbd_client_tls *tls,
                       int64_t timeout_ns, struct nbd_export_info **ret, size_t *ret_count,
                       struct error *err);
void nbd_export_list_free(struct nbd_export_info *list, size_t count);

#endif
