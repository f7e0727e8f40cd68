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
#include <unistd.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "block/driver.h"
#include "loop/loop.h"
#include "nbd/client_extents.h"
#include "nbd/client_pool.h"
#include "nbd/nbd.h"
#include "nbd/proto.h"
#include "nbd/uri.h"
#include "schema/define.h"
#include "tls/tls.h"

/* Limit of one connect, handshake included. */
#define HANDSHAKE_TIMEOUT_NS 30000000000LL
/* Between two attempts to connect. */
#define RETRY_NS 100000000LL
/* The highest default of x-connections. */
#define CONNECTIONS_MAX 4
/* Reads of this size, some at a time, stay in the processor's caches. Bytes. */
#define CACHED_READ (256u * KiB)

/* The options of a node. */
struct node_target {
    struct socket_address address;
    char *export;
    /* x-dirty-bitmap; NULL: base:allocation. */
    char *context;
    struct nbd_tls_params tls;
    /* Seconds in which a failed connect is tried again. */
    uint64_t open_timeout;
    /* Seconds that requests wait for a lost connection. */
    uint64_t reconnect;
    /* Connections that there may be. */
    uint64_t connections;
};

struct nbd_node {
    struct nbd_pool *pool;
    struct nbd_status_cache status;
    /* A reference; NULL: in the clear. */
    struct tls_creds *creds;
    struct node_target target;
};

static void node_target_clear(struct node_target *t)
{
    socket_address_clear(&t->address);
    free(t->export);
    free(t->context);
    nbd_tls_params_clear(&t->tls);
    *t = (struct node_target){0};
}

static void set_if_given(struct options *o, const char *key, const char *value)
{
    if (value) {
        options_set_str(o, key, value);
    }
}

static void set_server(struct options *server, const struct socket_address *a)
{
    const char *port = a->port ? a->port : NBD_DEFAULT_PORT;

    options_set_str(server, "type", a->path ? "unix" : a->cid ? "vsock" : "inet");
    set_if_given(server, "path", a->path);
    set_if_given(server, "cid", a->cid);
    set_if_given(server, "host", a->host);
    if (a->abstract) {
        options_set_bool(server, "abstract", true);
    }
    if (!a->path) {
        options_set_str(server, "port", port);
    }
}

static void set_tls(struct options *tls, const struct nbd_tls_params *p)
{
    set_if_given(tls, "type", p->type);
    set_if_given(tls, "dir", p->dir);
    set_if_given(tls, "psk-file", p->psk_file);
    set_if_given(tls, "username", p->username);
    options_set_bool(tls, "verify-peer", p->verify_peer);
}

static int nbd_parse_filename(const char *filename, struct options *opts, struct error *err)
{
    struct nbd_uri u CLEANUP(nbd_uri_clear) = {0};
    struct options *server = options_new(), *tls = options_new();
    int r = server && tls ? nbd_uri_parse(filename, &u, err) : error_out_of_memory(err);

    if (r < 0) {
        options_free(server);
        options_free(tls);
        return r;
    }
    set_server(server, &u.address);
    options_set_child(opts, "server", server);
    if (u.export_name[0]) {
        options_set_str(opts, "export", u.export_name);
    }
    set_if_given(opts, "tls-creds", u.tls.creds);
    set_if_given(opts, "tls-hostname", u.tls.hostname);
    if (u.tls.own && !u.tls.creds) {
        set_tls(tls, &u.tls);
        options_set_child(opts, "x-tls", tls);
    } else {
        options_free(tls);
    }
    return 0;
}

ENUM(tls_type, "x-NbdTlsType", "x509", "psk", "anon");
OBJECT(own_tls, "x-NbdTls",
       OPT("type", tls_type, .help = "default: psk if a key or a user is given, else x509"),
       OPT("dir", schema_str, .help = "certificates; default: those that the system trusts"),
       OPT("psk-file", schema_str, .help = "pre-shared keys: lines USER:KEY"),
       OPT("username", schema_str, .help = "of a pre-shared key; default: the user who runs this"),
       OPT("verify-peer", schema_bool, .dflt = "true",
           .help = "refuse servers without a valid certificate"));

OBJECT(nbd_options, "BlockdevOptionsNbd", REQ("server", socket_address_type),
       OPT("export", schema_str, .dflt = "\"\"", .help = "name of the export"),
       OPT("tls-creds", schema_str, .help = "id of TLS credentials of a client; default: no TLS"),
       OPT("tls-hostname", schema_str,
           .help = "the name in the server's certificate; default: the host"),
       OPT("x-tls", own_tls, .help = "TLS with credentials that are no object, as of nbds://"),
       OPT("x-dirty-bitmap", schema_str, UNSTABLE,
           .help = "a metadata context that block status shows in place of base:allocation"),
       OPT("reconnect-delay", schema_uint32, .dflt = "0", .unit = "seconds",
           .help = "after the connection is lost, requests wait so long for the next"),
       OPT("open-timeout", schema_uint32, .dflt = "0", .unit = "seconds",
           .help = "how long to try to connect at first; 0: once"),
       OPT("x-connections", schema_uint32, .min = 1, .max = NBD_POOL_MAX,
           .help = "over how many connections large requests are spread, if the server allows it; "
                   "default: 1 to 4, half the number of processors"));

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
        return error_set(err, EINVAL, "NBD server address missing");
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

/* x-tls: what is needed for TLS, without an object. */
static int take_own_tls(struct options *opts, struct nbd_tls_params *p, struct error *err)
{
    AUTO_OPTIONS struct options *own = NULL;
    AUTO_FREE char *node_name = NULL;
    int r = options_take_child(opts, "x-tls", &own, &node_name, err);

    if (r < 0) {
        return r;
    }
    if (node_name) {
        return error_set(err, EINVAL, "Parameter 'x-tls' has to be an object");
    }
    if (!own) {
        return 0;
    }
    if (p->creds) {
        return error_set(err, EINVAL, "'tls-creds' and 'x-tls' exclude each other");
    }
    p->own = true;
    r = options_take_str(own, "type", &p->type, err);
    UNLESS_FAILED(r, options_take_str(own, "dir", &p->dir, err));
    UNLESS_FAILED(r, options_take_str(own, "psk-file", &p->psk_file, err));
    UNLESS_FAILED(r, options_take_str(own, "username", &p->username, err));
    UNLESS_FAILED(r, options_take_bool(own, "verify-peer", true, &p->verify_peer, err));
    UNLESS_FAILED(r, options_check_empty(own, "TLS of an NBD node", err));
    return r;
}

/*
 * The default of x-connections: each takes a processor at this end to copy data out of its socket,
 * and a server on the same machine takes another.
 */
static uint64_t default_connections(void)
{
    long processors = sysconf(_SC_NPROCESSORS_ONLN);

    return (uint64_t)MIN(MAX(processors / 2, 1), CONNECTIONS_MAX);
}

static int take_node_target(struct options *opts, struct node_target *t, struct error *err)
{
    int r = take_node_address(opts, &t->address, err);

    UNLESS_FAILED(r, options_take_str(opts, "export", &t->export, err));
    UNLESS_FAILED(r, options_take_str(opts, "x-dirty-bitmap", &t->context, err));
    UNLESS_FAILED(r, options_take_str(opts, "tls-creds", &t->tls.creds, err));
    UNLESS_FAILED(r, options_take_str(opts, "tls-hostname", &t->tls.hostname, err));
    UNLESS_FAILED(r, take_own_tls(opts, &t->tls, err));
    UNLESS_FAILED(r, options_take_uint(opts, "open-timeout", 0, UINT32_MAX, &t->open_timeout, err));
    UNLESS_FAILED(r, options_take_uint(opts, "reconnect-delay", 0, UINT32_MAX, &t->reconnect, err));
    UNLESS_FAILED(r, options_take_uint(opts, "x-connections", default_connections(), NBD_POOL_MAX,
                                       &t->connections, err));
    if (r == 0 && t->address.to) {
        r = error_set(err, EINVAL, "'server.to' is for servers: a client connects to one port");
    }
    if (r == 0 && t->tls.hostname && !t->tls.creds && !t->tls.own) {
        r = error_set(err, EINVAL, "tls-hostname is of no use without tls-creds");
    }
    if (r == 0 && t->connections == 0) {
        r = error_set(err, EINVAL, "x-connections has to be at least 1");
    }
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
    struct nbd_client_tls tls = {.creds = creds, .hostname = t->tls.hostname};
    const char *context = t->context ? t->context : NBD_CONTEXT_BASE_ALLOCATION;
    int64_t deadline = loop_now_ns() + (int64_t)t->open_timeout * 1000000000LL;

    for (;;) {
        ERROR_AUTO(local);
        int64_t left = deadline - loop_now_ns();
        /* The last attempt is cut off, too, when the time is over. */
        int64_t limit =
            t->open_timeout ? MIN(MAX(left, RETRY_NS), HANDSHAKE_TIMEOUT_NS) : HANDSHAKE_TIMEOUT_NS;
        int r = nbd_client_co_connect(&t->address, creds ? &tls : NULL, t->export, &context, 1,
                                      limit, ret_client, &local);

        if (r == 0) {
            return 0;
        }
        left = deadline - loop_now_ns();
        if (left <= 0 && t->open_timeout && r == -ETIMEDOUT) {
            return error_set(err, ETIMEDOUT, "Connection attempt cancelled by timeout");
        }
        if (left <= 0) {
            error_move(err, &local);
            return r;
        }
        loop_co_sleep(MIN(left, RETRY_NS));
    }
}

/* The URI, without the parameters of TLS; NULL: there is none, or out of memory. */
static char *make_filename(const struct node_target *t)
{
    const struct socket_address *a = &t->address;
    const char *port = a->port ? a->port : NBD_DEFAULT_PORT;
    const char *scheme = t->tls.own ? "nbds" : "nbd", *slash = t->export[0] ? "/" : "";
    char *name = NULL;
    int n;

    if (a->path) {
        n = asprintf(&name, "%s+unix://%s%s?socket=%s%s", scheme, slash, t->export,
                     a->abstract ? "%00" : "", a->path);
    } else if (a->cid) {
        n = asprintf(&name, "%s+vsock://%s:%s%s%s", scheme, a->cid, port, slash, t->export);
    } else if (a->host) {
        bool is_v6 = strchr(a->host, ':');

        n = asprintf(&name, "%s://%s%s%s:%s%s%s", scheme, is_v6 ? "[" : "", a->host,
                     is_v6 ? "]" : "", port, slash, t->export);
    } else {
        return NULL;
    }
    return n < 0 ? NULL : name;
}

/* Whether a node of the filename would be connected otherwise. */
static bool is_beyond_filename(const struct node_target *t)
{
    const struct nbd_tls_params *p = &t->tls;
    const struct socket_address *a = &t->address;

    if (a->ipv4 != SOCKET_FAMILY_ANY || a->ipv6 != SOCKET_FAMILY_ANY || a->numeric ||
        a->keep_alive || a->mptcp) {
        return true;
    }
    return p->own &&
           (p->type || p->dir || p->psk_file || p->username || p->hostname || !p->verify_peer);
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
    nbd_pool_co_close(n->pool);
    n->pool = NULL;
    tls_creds_unref(n->creds);
    n->creds = NULL;
}

/* Connect, with all that the options ask for. */
static int co_connect_pool(struct block_node *node, const struct node_target *t, struct error *err)
{
    struct nbd_node *n = node->opaque;
    struct nbd_client *c;
    int r = nbd_tls_params_get(&t->tls, &n->creds, err);

    UNLESS_FAILED(r, co_connect_node(t, n->creds, &c, err));
    if (r < 0) {
        return r;
    }
    if (t->context && !nbd_client_context(c, 0)) {
        r = error_set(err, EINVAL, "requested x-dirty-bitmap %s not found", t->context);
    } else if (!node->read_only && (nbd_client_flags(c) & NBD_FLAG_READ_ONLY)) {
        r = error_set(err, EACCES, "NBD server does not allow writing to export '%s'", t->export);
    } else if (nbd_pool_new(c, (unsigned)t->connections, t->reconnect > 0, &n->pool) < 0) {
        r = error_out_of_memory(err);
    }
    if (r < 0) {
        nbd_client_co_close(c);
    }
    return r;
}

static int nbd_co_open(struct block_node *node, struct options *opts, struct error *err)
{
    struct nbd_node *n = node->opaque;
    struct node_target t CLEANUP(node_target_clear) = {0};
    int r = take_node_target(opts, &t, err);

    UNLESS_FAILED(r, co_connect_pool(node, &t, err));
    if (r < 0) {
        co_disconnect_node(n);
        return r;
    }
    free(node->filename);
    node->filename = make_filename(&t);
    node->beyond_filename = is_beyond_filename(&t) || !node->filename;
    set_node_limits(node, nbd_pool_first(n->pool));
    node->limits.cached_transfer = t.address.path ? CACHED_READ : 0;
    n->target = t;
    t = (struct node_target){0};
    nbd_status_cache_init(&n->status);
    if (n->target.reconnect > 0) {
        nbd_client_set_reconnect(nbd_pool_first(n->pool),
                                 (int64_t)n->target.reconnect * 1000000000LL, HANDSHAKE_TIMEOUT_NS,
                                 node_is_awaited, node);
    }
    return 0;
}

static void nbd_co_close_node(struct block_node *node)
{
    struct nbd_node *n = node->opaque;

    co_disconnect_node(n);
    nbd_status_cache_destroy(&n->status);
    node_target_clear(&n->target);
}

static struct nbd_pool *pool_of(struct block_node *node)
{
    return ((struct nbd_node *)node->opaque)->pool;
}

/* The connection for all that is not spread. */
static struct nbd_client *client_of(struct block_node *node)
{
    return nbd_pool_first(pool_of(node));
}

static int nbd_co_preadv(struct block_node *node, uint64_t offset, struct iov iov, unsigned flags)
{
    if (flags & BLOCK_REQ_PREFETCH) {
        int r = nbd_client_co_cache(client_of(node), offset, iov.size);

        return r == -ENOTSUP ? 0 : r;
    }
    return nbd_pool_co_preadv(pool_of(node), offset, iov);
}

static int nbd_co_pwritev(struct block_node *node, uint64_t offset, struct iov iov, unsigned flags)
{
    return nbd_pool_co_pwritev(pool_of(node), offset, iov, flags & BLOCK_REQ_FUA);
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

static int nbd_co_status(struct block_node *node, uint64_t offset, uint64_t length,
                         struct block_status *ret_status)
{
    struct nbd_node *n = node->opaque;
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
    r = nbd_status_cache_co_get(&n->status, client_of(node), atomic_load(&node->write_generation),
                                node->read_only, offset, length, &extent);
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
    struct nbd_client_tls tls = {.creds = n->creds, .hostname = n->target.tls.hostname};

    return nbd_client_co_read_bitmap(&n->target.address, n->creds ? &tls : NULL, n->target.export,
                                     name, HANDSHAKE_TIMEOUT_NS, bits, err);
}

static const char *const nbd_schemes[] = {
    "nbd", "nbd+tcp", "nbd+unix", "nbd+vsock", "nbds", "nbds+tcp", "nbds+unix", "nbds+vsock", NULL};

static void nbd_node_read_stats(struct block_node *node, uint64_t *ret_values)
{
    nbd_pool_read_stats(pool_of(node), ret_values);
}

static void nbd_co_give_up(struct block_node *node)
{
    nbd_pool_co_give_up(pool_of(node));
}

static const struct block_driver nbd_driver = {
    .name = "nbd",
    .help = "protocol: an export of an NBD server",
    .options = &nbd_options,
    .instance_size = sizeof(struct nbd_node),
    .is_protocol = true,
    .uses_existing = true,
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
    .co_give_up = nbd_co_give_up,
    .co_status = nbd_co_status,
    .stats = nbd_client_stats,
    .read_stats = nbd_node_read_stats,
    .co_truncate = nbd_co_truncate,
    .co_read_bitmap = nbd_co_read_bitmap,
};

bool nbd_node_is_client(const struct block_node *node)
{
    return node->driver->co_open == nbd_co_open; /* the driver is registered as a copy */
}

void nbd_node_co_cut(struct block_node *node)
{
    if (node->is_open && !node->closed) {
        nbd_pool_co_cut(pool_of(node));
    }
}

void nbd_register_driver(void)
{
    block_register_driver(&nbd_driver);
}
