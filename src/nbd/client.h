/* SPDX-License-Identifier: Apache-2.0 */
/*
 * An NBD client: one connection, many requests in flight, used from coroutines of any reactor.
 *
 * A connection lives on the reactor that made it, where one coroutine sends and one receives;
 * requests of other reactors queue there. Up to NBD_CLIENT_IN_FLIGHT requests are on the wire,
 * later ones wait. Everything that a server sends is checked. A server that breaks the protocol is
 * disconnected, and requests then fail with -EIO; the log says what it did. A lost connection is
 * restored only if nbd_client_set_reconnect() says so.
 *
 * `co_` functions yield; the others do not.
 */
#ifndef TIDEMARK_NBD_CLIENT_H
#define TIDEMARK_NBD_CLIENT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/counters.h"
#include "base/error.h"
#include "base/iov.h"
#include "block/socket_address.h"

enum {
    /* Requests of one connection that are on the wire. */
    NBD_CLIENT_IN_FLIGHT = 64,
    /* Metadata contexts that can be asked for. */
    NBD_CLIENT_CONTEXT_MAX = 16,
};

struct dirty_bitmap;
struct nbd_client;
struct tls_creds;

/* --- addresses ------------------------------------------------------------------------------ */

/*
 * Parse "nbd:unix:PATH[:exportname=NAME]", "nbd:HOST:PORT[:exportname=NAME]",
 * "nbd[+tcp]://HOST[:PORT]/NAME" or "nbd+unix:///NAME?socket=PATH": what nbd_uri_parse()
 * understands, except TLS. Without a port *ret_address has none, which means 10809 to
 * nbd_client_co_connect(). *ret_export is the caller's to free, "" if the text names none. -EINVAL,
 * -ENOMEM.
 */
int nbd_address_parse(const char *uri, struct socket_address *ret_address, char **ret_export,
                      struct error *err);

/* --- life ----------------------------------------------------------------------------------- */

/* Use TLS, and check who the server is. */
struct nbd_client_tls {
    /* Of a client. They outlive the connection. */
    const struct tls_creds *creds;
    /* The name that the server's certificate has to be for; NULL: the host of the address. */
    const char *hostname;
};

/*
 * Connect and choose an export, asking for `context_count` metadata contexts by exact name. A
 * context that the server does not have is no error: see nbd_client_context(). `timeout_ns` limits
 * the whole of it; < 0: no limit. tls NULL: in the clear. 0 or -errno with `err` set; -EPROTO: the
 * server broke the protocol.
 */
int nbd_client_co_connect(const struct socket_address *address, const struct nbd_client_tls *tls,
                          const char *export_name, const char *const *contexts,
                          size_t context_count, int64_t timeout_ns, struct nbd_client **ret_client,
                          struct error *err);

/*
 * Restore a lost connection, and send requests that were in flight again. To be called before the
 * first request.
 *
 * Requests wait for that up to `delay_ns` after the loss, or until `is_awaited(arg)`, called on the
 * connection's reactor, returns that something waits for them. Then they fail with -EIO, and so do
 * others, until there is a connection again. Writes that were acknowledged and not flushed are
 * kept, and repeated before anything else: a flush covers them whatever the server has lost. Where
 * that fails, all later flushes fail. A server that broke the protocol is not connected to again,
 * nor one that comes back with another export: smaller, read-only, without a command that it had.
 *
 * `attempt_ns` limits each attempt: connecting, the handshake, and each write that is repeated.
 */
void nbd_client_set_reconnect(struct nbd_client *c, int64_t delay_ns, int64_t attempt_ns,
                              bool (*is_awaited)(void *arg), void *arg);

/*
 * Whoever waits for the requests in flight has given them up, and calls this from time to time; so
 * may others. If there were some at a call 2 s ago or more, and the server has answered nothing
 * since, the connection is cut: they fail, unless it can be restored at once. On the connection's
 * reactor; does not yield.
 */
void nbd_client_give_up(struct nbd_client *c);
/*
 * Whoever waits for connections that are being made has given them up: those of this process fail,
 * with -ETIMEDOUT if they have reached their server, else with -ECANCELED. Any thread; does not
 * yield.
 */
void nbd_client_give_up_attempts(void);
/*
 * Cut the connection for good: requests in flight fail, and so do later ones; a connection that is
 * lost is not restored. On the connection's reactor; does not yield.
 */
void nbd_client_cut(struct nbd_client *c);

/*
 * Say goodbye, wait for requests in flight, release. On the reactor that connected. NULL is fine.
 */
void nbd_client_co_close(struct nbd_client *c);

/* --- what was agreed; any thread ------------------------------------------------------------ */

/* Bytes. */
uint64_t nbd_client_size(const struct nbd_client *c);
/* enum nbd_transmission_flags. */
unsigned nbd_client_flags(const struct nbd_client *c);
/* Block sizes in bytes, at least 1. The maximum is that of a read or a write. */
uint32_t nbd_client_min_block(const struct nbd_client *c);
uint32_t nbd_client_preferred_block(const struct nbd_client *c);
uint32_t nbd_client_max_block(const struct nbd_client *c);
/* Borrowed; NULL: none. */
const char *nbd_client_description(const struct nbd_client *c);
/* Whether the i-th context that was asked for was granted. */
bool nbd_client_context(const struct nbd_client *c, size_t i);

/* Figures of a client: a table, and a value for each of its rows. Main reactor; does not yield. */
extern const struct stat_desc nbd_client_stats[];
void nbd_client_read_stats(struct nbd_client *c, uint64_t *ret_values);

/* --- requests ------------------------------------------------------------------------------- */

/*
 * From any reactor. Offsets and lengths are bytes; requests are split by the server's limits. 0 or
 * -errno of the server. -EIO: the connection is lost, or the range reaches beyond the end.
 * -ENOTSUP: the server does not have the command. Of changes: -EROFS, the export is read-only; of
 * writes beyond the end: -ENOSPC.
 */
int nbd_client_co_preadv(struct nbd_client *c, uint64_t offset, struct iov iov);
int nbd_client_co_pread(struct nbd_client *c, uint64_t offset, void *buf, size_t size);
/* `fua`: on stable storage when it returns; a server without FUA is sent a flush. */
int nbd_client_co_pwritev(struct nbd_client *c, uint64_t offset, struct iov iov, bool fua);
/* 0 also from a server without flushes. */
int nbd_client_co_flush(struct nbd_client *c);
int nbd_client_co_trim(struct nbd_client *c, uint64_t offset, uint64_t length);
/*
 * `cmd_flags`: NBD_CMD_FLAG_FUA, _NO_HOLE, _FAST_ZERO. The last is dropped if the server does not
 * know it.
 */
int nbd_client_co_write_zeroes(struct nbd_client *c, uint64_t offset, uint64_t length,
                               unsigned cmd_flags);
/* Have the server read ahead. */
int nbd_client_co_cache(struct nbd_client *c, uint64_t offset, uint64_t length);

struct nbd_extent {
    /* Bytes, > 0. */
    uint64_t length;
    /* As the context defines them. */
    uint64_t flags;
};

/* Extents of one context, from the offset that was asked for on. */
struct nbd_extents {
    /* Owned; NULL: none. */
    struct nbd_extent *list;
    size_t count;
};

/*
 * Block status in all granted contexts. `per_context` has an element for each context that was
 * asked for at connect, and is filled in that order; those of contexts that were not granted stay
 * empty. The server may describe less than `length` bytes, and a different length in each context;
 * never more than `length` is returned. `one`: the first extent only. The caller clears what is
 * filled, after an error nothing is. -ENOTSUP: no context was granted.
 */
int nbd_client_co_block_status(struct nbd_client *c, uint64_t offset, uint64_t length, bool one,
                               struct nbd_extents *per_context);
/* Release what it owns, and empty it. */
void nbd_extents_clear(struct nbd_extents *e);

/*
 * Flags of an extent with allocation, depth and dirty bits together: enum nbd_merged_flags in the
 * lower 32 bits, and above them the depth: 0, no layer has it; 1, the exported image; 2 and more, a
 * backing image. In the context "x-tidemark:merged" 2 stands for all backing images.
 */
static inline unsigned nbd_merged_depth(uint64_t flags)
{
    return (unsigned)(flags >> 32);
}
/* The flags of that depth. */
static inline uint64_t nbd_merged_of_depth(unsigned depth)
{
    return (uint64_t)depth << 32;
}

/*
 * As nbd_client_co_connect(), for nbd_client_co_merged_status(): with the context
 * "x-tidemark:merged", or the separate contexts of a server that does not have that. `bitmap`: the
 * bitmap whose dirty bits are wanted; NULL: none. `exact_depth`: the separate contexts come first,
 * since they have the depth of each layer. -ENOENT: the server does not offer the bitmap.
 */
int nbd_client_co_connect_merged(const struct socket_address *address,
                                 const struct nbd_client_tls *tls, const char *export_name,
                                 const char *bitmap, bool exact_depth, int64_t timeout_ns,
                                 struct nbd_client **ret_client, struct error *err);
/*
 * Block status of [offset, offset + length), or of a part from its beginning: neighbours differ.
 * What a server does not report is assumed: contents are data, and those of the exported image. The
 * caller clears *ret_extents. Errors of nbd_client_co_block_status().
 */
int nbd_client_co_merged_status(struct nbd_client *c, uint64_t offset, uint64_t length,
                                struct nbd_extents *ret_extents);
/*
 * The same from the extents of separate contexts (NULL: not there), which begin at one offset and
 * may end at different ones: the result ends where the first of them does, at `length` at the
 * latest. -ENOMEM. Does not yield.
 */
int nbd_extents_merge(const struct nbd_extents *base, const struct nbd_extents *depth,
                      const struct nbd_extents *dirty, uint64_t length,
                      struct nbd_extents *ret_extents);

/*
 * Connect, set in `bits` what is dirty in the bitmap `name` of an export
 * ("qemu:dirty-bitmap:NAME"), and disconnect. `bits` has the size of the export. -ENOENT: the
 * server does not offer that bitmap; -EINVAL: the sizes differ; else errors of connecting or of a
 * request, after which some bits may be set.
 */
int nbd_client_co_read_bitmap(const struct socket_address *address,
                              const struct nbd_client_tls *tls, const char *export_name,
                              const char *name, int64_t timeout_ns, struct dirty_bitmap *bits,
                              struct error *err);

/* --- listing -------------------------------------------------------------------------------- */

struct nbd_export_info {
    char *name;
    /* NULL: none. */
    char *description;
    /* The server has extended headers. */
    bool extended;
    /* The server answered NBD_OPT_INFO: the members from here on are valid. */
    bool has_info;
    uint64_t size;
    unsigned flags;
    bool has_block_sizes;
    uint32_t min_block, preferred_block, max_block;
    /* Names of the metadata contexts that can be selected. */
    char **contexts;
    size_t context_count;
};

/*
 * List the exports of a server. The caller frees the list by nbd_export_list_free(). 0 or -errno.
 */
int nbd_client_co_list(const struct socket_address *address, const struct nbd_client_tls *tls,
                       int64_t timeout_ns, struct nbd_export_info **ret_list, size_t *ret_count,
                       struct error *err);
void nbd_export_list_free(struct nbd_export_info *list, size_t count);

#endif
