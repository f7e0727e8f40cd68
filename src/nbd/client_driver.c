/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The block driver "nbd": an export of a server as a node. Options as QEMU's BlockdevOptionsNbd.
 *
 * With x-dirty-bitmap, the block status is that of the named context instead of "base:allocation":
 * areas whose lowest flag bit is set (dirty) are reported as not data.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "block/driver.h"
#include "loop/loop.h"
#include "nbd/client.h"
#include "nbd/nbd.h"
#include "nbd/proto.h"
#include "schema/define.h"
#include "tls/tls.h"

/* Limit of one connect, handshake included. */
#define HANDSHAKE_TIMEOUT_NS 30000000000LL
/* Between two attempts to connect. */
#define RETRY_NS 100000000LL

/* How long the extents that a server reported are trusted: others may write to the export. */
#define STATUS_NS 200000000LL
/*
 * A user that walks through the disk gets the status of this much at once, or of more where only
 * others write to the export, and lengths may have 64 bits. Bytes.
 */
#define STATUS_AHEAD (1 * GiB)
#define STATUS_AHEAD_READ_ONLY (64 * GiB)

/* The extents that the server reported last. Any reactor. */
struct status_cache {
    /* Guards all members. */
    pthread_mutex_t lock;
    /* None: nothing is known. */
    struct nbd_extents extents;
    /* The range of all extents. */
    uint64_t start, end;
    /* The extent that is likely to be asked for next, and where it begins. */
    size_t next;
    uint64_t next_start;
    /* Of the node, when the server was asked. */
    uint64_t write_generation;
    int64_t until_ns;
};

/* The options of a node. */
struct node_target {
    struct socket_address address;
    char *export;
    /* x-dirty-bitmap; NULL: base:allocation. */
    char *context;
    /* Id of an object; NULL: in the clear. */
    char *tls_creds;
    /* NULL: the host of the address. */
    char *tls_hostname;
    /* Seconds in which a failed connect is tried again. */
    uint64_t open_timeout;
    /* Seconds that requests wait for a lost connection. */
    uint64_t reconnect;
};

struct nbd_node {
    struct nbd_client *client;
    struct status_cache status;
    /* A reference; NULL: in the clear. */
    struct tls_creds *creds;
    struct node_target target;
};

static void node_target_clear(struct node_target *t)
{
    socket_address_clear(&t->address);
    free(t->export);
    free(t->context);
    free(t->tls_creds);
    free(t->tls_hostname);
    *t = (struct node_target){0};
}

static int nbd_parse_filename(const char *filename, struct options *opts, struct error *err)
{
    struct socket_address a CLEANUP(socket_address_clear) = {0};
    AUTO_FREE char *export = NULL;
    struct options *server;
    int r = nbd_address_parse(filename, &a, &export, err);

    if (r < 0) {
        return r;
    }
    server = options_new();
    if (!server) {
        return error_out_of_memory(err);
    }
    options_set_str(server, "type", a.path ? "unix" : "inet");
    if (a.path) {
        options_set_str(server, "path", a.path);
    } else {
        options_set_str(server, "host", a.host);
        options_set_str(server, "port", a.port ? a.port : NBD_DEFAULT_PORT);
    }
    options_set_child(opts, "server", server);
    if (export[0]) {
        options_set_str(opts, "export", export);
    }
    return 0;
}

OBJECT(nbd_options, "BlockdevOptionsNbd", REQ("server", socket_address_type),
       OPT("export", schema_str, .dflt = "\"\"", .help = "name of the export"),
       OPT("tls-creds", schema_str, .help = "id of TLS credentials of a client; default: no TLS"),
       OPT("tls-hostname", schema_str,
           .help = "the name in the server's certificate; default: the host"),
       OPT("x-dirty-bitmap", schema_str, UNSTABLE,
           .help = "a metadata context that block status shows in place of base:allocation"),
       OPT("reconnect-delay", schema_uint32, .dflt = "0", .unit = "seconds",
           .help = "after the connection is lost, requests wait so long for the next"),
       OPT("open-timeout", schema_uint32, .dflt = "0", .unit = "seconds",
           .help = "how long to try to connect at first; 0: once"));

/* The older, flat form: `path`, or `host` and `port`. */
static int take_flat_address(struct options *opts, struct socket_address *a, struct error *err)
{
    int r = options_take_text(opts, "path", &a->path, err);

    UNLESS_FAILED(r, options_take_text(opts, "host", &a->host, err));
    UNLESS_FAILED(r, options_take_text(opts, "port", &a->port, err));
    if (r < 0) {
        return r;
    }
    if (a->path && a->host) {
        return error_set(err, EINVAL, "path and host may not be used at the same time");
    }
    if (!a->path && !a->host) {
        return error_set(err, EINVAL, "one of path and host must be specified");
    }
    return 0;
}

/* `server`, or the flat form. */
static int take_node_address(struct options *opts, struct socket_address *a, struct error *err)
{
    AUTO_OPTIONS struct options *server = NULL;
    AUTO_FREE char *node_name = NULL;
    int r = options_take_child(opts, "server", &server, &node_name, err);

    if (r < 0) {
        return r;
    }
    if (node_name) {
        return error_set(err, EINVAL, "Parameter 'server' has to be an object");
    }
    return server ? socket_address_take(server, "server", a, err) : take_flat_address(opts, a, err);
}

static int take_node_target(struct options *opts, struct node_target *t, struct error *err)
{
    int r = take_node_address(opts, &t->address, err);

    UNLESS_FAILED(r, options_take_str(opts, "export", &t->export, err));
    UNLESS_FAILED(r, options_take_str(opts, "x-dirty-bitmap", &t->context, err));
    UNLESS_FAILED(r, options_take_str(opts, "tls-creds", &t->tls_creds, err));
    UNLESS_FAILED(r, options_take_str(opts, "tls-hostname", &t->tls_hostname, err));
    UNLESS_FAILED(r, options_take_uint(opts, "open-timeout", 0, UINT32_MAX, &t->open_timeout, err));
    UNLESS_FAILED(r, options_take_uint(opts, "reconnect-delay", 0, UINT32_MAX, &t->reconnect, err));
    if (r < 0) {
        return r;
    }
    if (!t->export) {
        t->export = strdup("");
    }
    if (!t->export) {
        return error_out_of_memory(err);
    }
    if (strlen(t->export) > NBD_STRING_MAX) {
        return error_set(err, EINVAL, "export name too long to send to server");
    }
    if (t->context && strlen(t->context) > NBD_STRING_MAX) {
        return error_set(err, EINVAL, "x-dirty-bitmap query too long to send to server");
    }
    return 0;
}

static int co_connect_node(const struct node_target *t, const struct tls_creds *creds,
                           struct nbd_client **ret_client, struct error *err)
{
    struct nbd_client_tls tls = {.creds = creds, .hostname = t->tls_hostname};
    const char *context = t->context ? t->context : NBD_CONTEXT_BASE_ALLOCATION;
    int64_t deadline = loop_now_ns() + (int64_t)t->open_timeout * 1000000000LL;

    for (;;) {
        ERROR_AUTO(local);
        int64_t left;
        int r = nbd_client_co_connect(&t->address, creds ? &tls : NULL, t->export, &context, 1,
                                      HANDSHAKE_TIMEOUT_NS, ret_client, &local);

        if (r == 0) {
            return 0;
        }
        left = deadline - loop_now_ns();
        if (left <= 0) {
            error_move(err, &local);
            return r;
        }
        loop_co_sleep(MIN(left, RETRY_NS));
    }
}

static char *make_filename(const struct node_target *t)
{
    const char *port = t->address.port ? t->address.port : NBD_DEFAULT_PORT;
    char *name = NULL;
    int n;

    if (t->address.path) {
        n = asprintf(&name, "nbd+unix://%s%s?socket=%s", t->export[0] ? "/" : "", t->export,
                     t->address.path);
    } else if (t->export[0]) {
        n = asprintf(&name, "nbd://%s:%s/%s", t->address.host, port, t->export);
    } else {
        n = asprintf(&name, "nbd://%s:%s", t->address.host, port);
    }
    return n < 0 ? NULL : name;
}

static void set_node_limits(struct block_node *node, const struct nbd_client *c)
{
    unsigned flags = nbd_client_flags(c);
    uint32_t min = nbd_client_min_block(c);

    node->limits.request_alignment = min;
    node->limits.max_transfer = nbd_client_max_block(c);
    node->limits.max_zeroes = nbd_client_max_block(c);
    node->limits.zeroes_alignment = min;
    node->limits.discard_alignment = min;
    node->limits.opt_transfer = nbd_client_preferred_block(c);
    if (flags & NBD_FLAG_SEND_FUA) {
        node->supported_write_flags = BLOCK_REQ_FUA;
        node->supported_zero_flags = BLOCK_REQ_FUA;
    }
    if (flags & NBD_FLAG_SEND_WRITE_ZEROES) {
        node->supported_zero_flags |= BLOCK_REQ_MAY_UNMAP;
        if (flags & NBD_FLAG_SEND_FAST_ZERO) {
            node->supported_zero_flags |= BLOCK_REQ_NO_FALLBACK;
        }
    }
    block_node_set_size(node, nbd_client_size(c));
}

static bool node_is_awaited(void *arg)
{
    return block_node_is_awaited(arg);
}

static void co_disconnect_node(struct nbd_node *n)
{
    nbd_client_co_close(n->client);
    n->client = NULL;
    tls_creds_unref(n->creds);
    n->creds = NULL;
}

static int nbd_co_open(struct block_node *node, struct options *opts, struct error *err)
{
    struct nbd_node *n = node->opaque;
    struct node_target t CLEANUP(node_target_clear) = {0};
    int r = take_node_target(opts, &t, err);

    if (r == 0 && t.tls_creds) {
        r = tls_creds_ref(t.tls_creds, TLS_CLIENT, &n->creds, err);
    }
    if (r == 0) {
        r = co_connect_node(&t, n->creds, &n->client, err);
    }
    if (r < 0) {
        co_disconnect_node(n);
        return r;
    }
    if (t.context && !nbd_client_context(n->client, 0)) {
        r = error_set(err, EINVAL, "requested x-dirty-bitmap %s not found", t.context);
    } else if (!node->read_only && (nbd_client_flags(n->client) & NBD_FLAG_READ_ONLY)) {
        r = error_set(err, EACCES, "NBD server does not allow writing to export '%s'", t.export);
    }
    if (r < 0) {
        co_disconnect_node(n);
        return r;
    }
    free(node->filename);
    node->filename = make_filename(&t);
    set_node_limits(node, n->client);
    n->target = t;
    t = (struct node_target){0};
    pthread_mutex_init(&n->status.lock, NULL);
    if (n->target.reconnect > 0) {
        nbd_client_set_reconnect(n->client, (int64_t)n->target.reconnect * 1000000000LL,
                                 node_is_awaited, node);
    }
    return 0;
}

static void nbd_co_close_node(struct block_node *node)
{
    struct nbd_node *n = node->opaque;

    co_disconnect_node(n);
    nbd_extents_clear(&n->status.extents);
    pthread_mutex_destroy(&n->status.lock);
    node_target_clear(&n->target);
}

static struct nbd_client *client_of(struct block_node *node)
{
    return ((struct nbd_node *)node->opaque)->client;
}

static int nbd_co_preadv(struct block_node *node, uint64_t offset, struct iov iov, unsigned flags)
{
    if (flags & BLOCK_REQ_PREFETCH) {
        int r = nbd_client_co_cache(client_of(node), offset, iov.size);

        return r == -ENOTSUP ? 0 : r;
    }
    return nbd_client_co_preadv(client_of(node), offset, iov);
}

static int nbd_co_pwritev(struct block_node *node, uint64_t offset, struct iov iov, unsigned flags)
{
    return nbd_client_co_pwritev(client_of(node), offset, iov, flags & BLOCK_REQ_FUA);
}

static int nbd_co_write_zeroes(struct block_node *node, uint64_t offset, uint64_t length,
                               unsigned flags)
{
    unsigned cmd_flags = (flags & BLOCK_REQ_FUA ? NBD_CMD_FLAG_FUA : 0) |
                         (flags & BLOCK_REQ_MAY_UNMAP ? 0 : NBD_CMD_FLAG_NO_HOLE);

    if (flags & BLOCK_REQ_NO_FALLBACK) {
        if (!(nbd_client_flags(client_of(node)) & NBD_FLAG_SEND_FAST_ZERO)) {
            return -ENOTSUP;
        }
        cmd_flags |= NBD_CMD_FLAG_FAST_ZERO;
    }
    return nbd_client_co_write_zeroes(client_of(node), offset, length, cmd_flags);
}

static int nbd_co_discard(struct block_node *node, uint64_t offset, uint64_t length)
{
    return nbd_client_co_trim(client_of(node), offset, length);
}

static int nbd_co_flush(struct block_node *node)
{
    return nbd_client_co_flush(client_of(node));
}

/* Whether the extents can still be trusted; lock held. */
static bool extents_are_current(const struct block_node *node, const struct status_cache *s)
{
    return s->extents.count > 0 && s->write_generation == atomic_load(&node->write_generation) &&
           loop_now_ns() < s->until_ns;
}

/* The extent at `offset`, from there on. False if it is not known. */
static bool look_up_extent_locked(const struct block_node *node, struct status_cache *s,
                                  uint64_t offset, struct nbd_extent *ret_extent)
{
    if (offset < s->start || offset >= s->end || !extents_are_current(node, s)) {
        return false;
    }
    if (offset < s->next_start) {
        s->next = 0;
        s->next_start = s->start;
    }
    while (offset - s->next_start >= s->extents.list[s->next].length) {
        s->next_start += s->extents.list[s->next++].length;
    }
    *ret_extent = s->extents.list[s->next];
    ret_extent->length -= offset - s->next_start;
    return true;
}

/* Keep the answer to a request for `offset`; empties `extents`. */
static void keep_extents_locked(struct status_cache *s, uint64_t offset, uint64_t generation,
                                struct nbd_extents *extents)
{
    nbd_extents_clear(&s->extents);
    s->extents = *extents;
    s->start = s->end = s->next_start = offset;
    s->next = 0;
    for (size_t i = 0; i < extents->count; i++) {
        s->end += extents->list[i].length;
    }
    s->write_generation = generation;
    s->until_ns = loop_now_ns() + STATUS_NS;
    *extents = (struct nbd_extents){0};
}

/* The first extent of [offset, offset + length), from the cache or from the server. */
static int co_get_extent(struct block_node *node, uint64_t offset, uint64_t length,
                         struct nbd_extent *ret_extent)
{
    struct status_cache *s = &((struct nbd_node *)node->opaque)->status;
    uint64_t generation = atomic_load(&node->write_generation);
    struct nbd_extents extents = {0};
    bool known, goes_on;
    int r;

    pthread_mutex_lock(&s->lock);
    known = look_up_extent_locked(node, s, offset, ret_extent);
    goes_on = s->extents.count > 0 && offset == s->end;
    pthread_mutex_unlock(&s->lock);
    if (known) {
        return 0;
    }
    if (goes_on) {
        length = MAX(length, node->read_only ? STATUS_AHEAD_READ_ONLY : STATUS_AHEAD);
        length = MIN(length, block_node_size(node) - offset);
    }
    r = nbd_client_co_block_status(client_of(node), offset, length, false, &extents);
    if (r < 0) {
        return r;
    }
    *ret_extent = extents.list[0];
    pthread_mutex_lock(&s->lock);
    keep_extents_locked(s, offset, generation, &extents);
    pthread_mutex_unlock(&s->lock);
    return 0;
}

static int nbd_co_status(struct block_node *node, uint64_t offset, uint64_t length,
                         struct block_status *ret_status)
{
    struct nbd_extent extent;
    int r;

    *ret_status = (struct block_status){
        .flags = BLOCK_STATUS_ALLOCATED | BLOCK_STATUS_OFFSET | BLOCK_STATUS_DATA,
        .length = length,
        .map = offset,
        .file = node,
    };
    if (!nbd_client_context(client_of(node), 0)) {
        return 0;
    }
    r = co_get_extent(node, offset, length, &extent);
    if (r < 0) {
        return r;
    }
    ret_status->length = MIN(extent.length, length);
    if (extent.flags & NBD_STATE_HOLE) {
        ret_status->flags &= ~BLOCK_STATUS_DATA;
    }
    if (extent.flags & NBD_STATE_ZERO) {
        ret_status->flags |= BLOCK_STATUS_ZERO;
    }
    return 0;
}

/* The size is that of the server's export: a format may use less of it, but not more. */
static int nbd_co_truncate(struct block_node *node, uint64_t size, enum block_prealloc prealloc,
                           struct error *err)
{
    if (size > block_node_size(node)) {
        return error_set(err, EINVAL, "Cannot grow NBD nodes");
    }
    return 0;
}

/* A connection of its own asks, since this one has not negotiated the context. */
static int nbd_co_read_bitmap(struct block_node *node, const char *name, struct dirty_bitmap *bits,
                              struct error *err)
{
    struct nbd_node *n = node->opaque;
    struct nbd_client_tls tls = {.creds = n->creds, .hostname = n->target.tls_hostname};

    return nbd_client_co_read_bitmap(&n->target.address, n->creds ? &tls : NULL, n->target.export,
                                     name, HANDSHAKE_TIMEOUT_NS, bits, err);
}

static const char *const nbd_schemes[] = {"nbd", "nbd+tcp", "nbd+unix", NULL};

static void nbd_node_read_stats(struct block_node *node, uint64_t *ret_values)
{
    nbd_client_read_stats(client_of(node), ret_values);
}

static const struct block_driver nbd_driver = {
    .name = "nbd",
    .help = "protocol: an export of an NBD server",
    .options = &nbd_options,
    .instance_size = sizeof(struct nbd_node),
    .is_protocol = true,
    .flushes_always = true,
    .schemes = nbd_schemes,
    .parse_filename = nbd_parse_filename,
    .co_open = nbd_co_open,
    .co_close = nbd_co_close_node,
    .co_preadv = nbd_co_preadv,
    .co_pwritev = nbd_co_pwritev,
    .co_write_zeroes = nbd_co_write_zeroes,
    .co_discard = nbd_co_discard,
    .co_flush = nbd_co_flush,
    .co_status = nbd_co_status,
    .stats = nbd_client_stats,
    .read_stats = nbd_node_read_stats,
    .co_truncate = nbd_co_truncate,
    .co_read_bitmap = nbd_co_read_bitmap,
};

void nbd_register_driver(void)
{
    block_register_driver(&nbd_driver);
}
