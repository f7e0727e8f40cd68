/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The drivers "http" and "https": an image on a web server, read-only. The server has to obey the
 * header Range.
 *
 * The file is read in blocks (cache.h). A read of blocks that are not in the cache asks for those,
 * and for more if it continues the read before (readahead). Others that want some of the same
 * blocks meanwhile wait for them. Requests run on the offload pool, on several connections; one
 * that breaks off is continued where it was.
 *
 * Options: url; readahead (bytes); timeout (seconds); username, password-secret; proxy-username,
 * proxy-password-secret; cookie, cookie-secret; of https: sslverify.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "base/secret_memory.h"
#include "base/log.h"
#include "block/driver.h"
#include "block/user_object.h"
#include "http/cache.h"
#include "http/http.h"
#include "http/remote.h"
#include "loop/loop.h"
#include "schema/define.h"

/* A disk has whole sectors: the rest of the last one reads as zeroes. Bytes. */
#define SECTOR 512u
#define READAHEAD_DEFAULT (256 * KiB)
#define READAHEAD_MAX (64 * MiB)
#define TIMEOUT_DEFAULT 5
#define TIMEOUT_MAX 10000
#define CACHE_MIN (8 * MiB)
/* What one request asks for, without readahead. */
#define FETCH_MAX (1 * MiB)
/* Requests of a node that are under way. */
#define FETCHES_MAX 8
/*
 * How often a request that breaks off is continued, and how long to wait first. An attempt that
 * has brought at least PROGRESS_MIN bytes does not count: a server may send less than it was asked
 * for.
 */
#define ATTEMPTS_MAX 5
#define PROGRESS_MIN (16 * KiB)
#define FIRST_PAUSE_NS (50 * NS_PER_MS)
#define REPORT_INTERVAL_NS NS_PER_SECOND

struct http_node {
    struct http_file *file;
    struct http_cache cache;
    /* Blocks that are being fetched. */
    struct range_lock fetching;
    struct co_semaphore fetches;
    uint64_t readahead;
    /* Where the latest fetch has ended. */
    _Atomic uint64_t next;
    _Atomic int64_t reported_ns;
};

/* --- options ---------------------------------------------------------------------------------- */

#define BASE_OPTIONS                                                                               \
    REQ("url", schema_str, .help = "of the image file"),                                           \
        OPT("readahead", schema_int,                                                               \
            .help = "bytes that are read ahead, a multiple of 512; default 262144"),               \
        OPT("timeout", schema_int, .help = "seconds without an answer; 0: no limit; default 5"),   \
        OPT("username", schema_str, .help = "for the server"),                                     \
        OPT("password-secret", schema_str, .help = "id of a secret: the password"),                \
        OPT("proxy-username", schema_str, .help = "for the proxy"),                                \
        OPT("proxy-password-secret", schema_str, .help = "id of a secret: the password")

#define COOKIE_OPTIONS                                                                             \
    OPT("cookie", schema_str, .help = "\"name1=content1; name2=content2\""),                       \
        OPT("cookie-secret", schema_str, .help = "id of a secret: the cookies")

OBJECT(http_options, "BlockdevOptionsCurlHttp", BASE_OPTIONS, COOKIE_OPTIONS);
OBJECT(https_options, "BlockdevOptionsCurlHttps", BASE_OPTIONS, COOKIE_OPTIONS,
       OPT("sslverify", schema_bool, .help = "check the server's certificate; default true"));

/* Take the id of a secret, and what it has. NULL: the option is absent. */
static int take_secret(struct options *opts, const char *key, char **ret_text, struct error *err)
{
    AUTO_FREE char *id = NULL;
    AUTO_SECRET char *text = NULL;
    size_t size;
    int r = options_take_str(opts, key, &id, err);

    if (r < 0 || !id) {
        return r;
    }
    r = secret_get(id, &text, &size, err);
    if (r == 0 && strlen(text) != size) {
        r = error_set(err, EINVAL, "Data from secret %s have a NUL in them", id);
    }
    if (r == 0) {
        *ret_text = strdup(text);
        r = *ret_text ? 0 : error_out_of_memory(err);
    }
    return r;
}

static int take_cookie(struct http_target *t, struct options *opts, struct error *err)
{
    if (options_has(opts, "cookie") && options_has(opts, "cookie-secret")) {
        return error_set(err, EINVAL, "curl driver cannot handle both cookie and cookie secret");
    }
    return options_has(opts, "cookie") ? options_take_str(opts, "cookie", &t->cookie, err)
                                       : take_secret(opts, "cookie-secret", &t->cookie, err);
}

static int take_url(struct http_target *t, const char *scheme, struct options *opts,
                    struct error *err)
{
    size_t length = strlen(scheme);
    int r = options_take_str(opts, "url", &t->url, err);

    if (r == 0 && !t->url) {
        return options_missing(opts, "url", err);
    }
    if (r == 0 &&
        (strncasecmp(t->url, scheme, length) != 0 || strncmp(t->url + length, "://", 3) != 0)) {
        return error_set(err, EINVAL,
                         "%s curl driver cannot handle the URL '%s' (does not start with '%s://')",
                         scheme, t->url, scheme);
    }
    return r;
}

static int take_target(struct http_target *t, const char *scheme, struct options *opts,
                       struct error *err)
{
    uint64_t timeout;
    int r = take_url(t, scheme, opts, err);

    t->is_https = strcmp(scheme, "https") == 0;
    t->verify = true;
    if (t->is_https) {
        UNLESS_FAILED(r, options_take_bool(opts, "sslverify", true, &t->verify, err));
    }
    UNLESS_FAILED(r,
                  options_take_uint(opts, "timeout", TIMEOUT_DEFAULT, UINT64_MAX, &timeout, err));
    if (r == 0 && timeout > TIMEOUT_MAX) {
        r = error_set(err, EINVAL, "timeout parameter is too large or negative");
    }
    UNLESS_FAILED(r, options_take_str(opts, "username", &t->username, err));
    UNLESS_FAILED(r, take_secret(opts, "password-secret", &t->password, err));
    UNLESS_FAILED(r, options_take_str(opts, "proxy-username", &t->proxy_username, err));
    UNLESS_FAILED(r, take_secret(opts, "proxy-password-secret", &t->proxy_password, err));
    UNLESS_FAILED(r, take_cookie(t, opts, err));
    if (r == 0) {
        t->timeout = (unsigned)timeout;
    }
    return r;
}

static int take_readahead(struct http_node *n, struct options *opts, struct error *err)
{
    int r = options_take_size(opts, "readahead", READAHEAD_DEFAULT, &n->readahead, err);

    if (r < 0) {
        return r;
    }
    if (n->readahead % SECTOR != 0) {
        return error_set(err, EINVAL, "HTTP_READAHEAD_SIZE %" PRIu64 " is not a multiple of %u",
                         n->readahead, SECTOR);
    }
    return n->readahead > READAHEAD_MAX
               ? error_set(err, EINVAL, "readahead may not be above %llu", READAHEAD_MAX)
               : 0;
}

static int http_parse_filename(const char *filename, struct options *opts, struct error *err)
{
    options_set_str(opts, "url", filename);
    return 0;
}

/* --- open and close --------------------------------------------------------------------------- */

struct open_call {
    struct http_target target;
    struct http_file *file;
    struct error *err;
};

static int http_open_blocking(void *arg)
{
    struct open_call *c = arg;

    return http_file_open(&c->target, &c->file, c->err);
}

static int http_close_blocking(void *arg)
{
    http_file_close(arg);
    return 0;
}

static int http_co_open(struct block_node *node, struct options *opts, struct error *err)
{
    struct http_node *n = node->opaque;
    struct open_call c = {.err = err};
    AUTO_FREE char *url = NULL;
    int r = take_target(&c.target, node->driver->name, opts, err);

    UNLESS_FAILED(r, take_readahead(n, opts, err));
    if (r == 0 && !node->read_only && !node->auto_read_only) {
        r = error_set(err, EROFS, "curl driver does not support writes");
    }
    if (r == 0 && !(url = strdup(c.target.url))) {
        r = error_out_of_memory(err);
    }
    if (r < 0) {
        http_target_clear(&c.target);
        return r;
    }
    r = loop_co_offload(http_open_blocking, &c);
    if (r < 0) {
        return r;
    }
    node->read_only = true;
    node->beyond_filename = node->beyond_filename || c.target.cookie;
    free(node->filename);
    node->filename = TAKE_PTR(url);
    n->file = c.file;
    http_cache_init(&n->cache, CACHE_MIN + 2 * n->readahead);
    range_lock_init(&n->fetching);
    co_semaphore_init(&n->fetches, FETCHES_MAX);
    block_node_set_size(node, round_up(http_file_size(n->file), SECTOR));
    return 0;
}

static void http_co_close(struct block_node *node)
{
    struct http_node *n = node->opaque;

    loop_co_offload(http_close_blocking, n->file);
    http_cache_destroy(&n->cache);
    range_lock_destroy(&n->fetching);
    co_semaphore_destroy(&n->fetches);
}

static int http_co_reopen_prepare(struct block_node *node, struct options *opts, struct error *err)
{
    return node->read_only ? 0 : error_set(err, EROFS, "curl driver does not support writes");
}

/* --- read ------------------------------------------------------------------------------------- */

struct fetch {
    struct http_file *file;
    uint64_t offset;
    uint8_t *buf;
    size_t size, done;
    struct error err;
};

static int http_read_blocking(void *arg)
{
    struct fetch *f = arg;
    size_t more = 0;
    int r;

    error_clear(&f->err);
    r = http_file_read(f->file, f->offset + f->done, f->buf + f->done, f->size - f->done, &more,
                       &f->err);
    f->done += more;
    return r;
}

/* At most one report a second. */
static void report_failed_fetch(struct block_node *node, const struct fetch *f)
{
    struct http_node *n = node->opaque;
    int64_t before = atomic_load(&n->reported_ns), now = loop_now_ns();

    if ((before == 0 || now - before >= REPORT_INTERVAL_NS) &&
        atomic_compare_exchange_strong(&n->reported_ns, &before, now)) {
        log_error("node '%s': reading %zu bytes at %" PRIu64 " failed: %s",
                  block_node_display_name(node), f->size, f->offset, error_message(&f->err));
    }
}

/* Read a part of the file, and go on where a connection breaks off. */
static int co_fetch(struct block_node *node, struct fetch *f)
{
    struct http_node *n = node->opaque;
    int64_t pause = FIRST_PAUSE_NS;
    int failures = 0, r = -EAGAIN;

    co_semaphore_take(&n->fetches, 1);
    while (r == -EAGAIN && failures < ATTEMPTS_MAX) {
        size_t before = f->done;

        if (failures > 0) {
            loop_co_sleep(pause);
            pause *= 2;
        }
        r = loop_co_offload(http_read_blocking, f);
        /* What has come before a connection broke off may have been all. */
        r = r == -EAGAIN && f->done == f->size ? 0 : r;
        if (f->done - before < PROGRESS_MIN) {
            failures++;
        } else {
            failures = 0;
            pause = FIRST_PAUSE_NS;
        }
    }
    co_semaphore_give(&n->fetches, 1);
    if (r < 0) {
        report_failed_fetch(node, f);
    }
    error_clear(&f->err);
    /* Whatever is wrong with the server, to a guest the disk fails. */
    return r < 0 && r != -ENOMEM ? -EIO : r;
}

/*
 * Where a fetch that begins at the block of `offset` should end, so that `length` bytes are there:
 * not beyond the first block that is there already.
 */
static uint64_t end_of_fetch(struct http_node *n, uint64_t offset, uint64_t length)
{
    uint64_t size = http_file_size(n->file), from = round_down(offset, HTTP_BLOCK);
    uint64_t end = MIN(round_up(offset + length, HTTP_BLOCK), from + FETCH_MAX);
    bool continues = from == atomic_exchange(&n->next, end);

    if (continues) {
        end = MAX(end, round_up(offset + length + n->readahead, HTTP_BLOCK));
        end = MIN(end, from + FETCH_MAX + round_up(n->readahead, HTTP_BLOCK));
    }
    for (uint64_t at = from + HTTP_BLOCK; at < end; at += HTTP_BLOCK) {
        if (http_cache_has(&n->cache, at)) {
            end = at;
        }
    }
    atomic_store(&n->next, end);
    return MIN(end, size);
}

/* Fetch from the block of `offset` on; *ret_done bytes of `iov` from `at` on are read then. */
static int co_fetch_missing(struct block_node *node, uint64_t offset, struct iov iov, size_t at,
                            size_t *ret_done)
{
    struct http_node *n = node->opaque;
    uint64_t from = round_down(offset, HTTP_BLOCK), end = end_of_fetch(n, offset, iov.size - at);
    struct fetch f = {.file = n->file, .offset = from, .size = (size_t)(end - from)};
    struct range_entry range;
    int r = 0;

    *ret_done = 0;
    co_range_lock(&n->fetching, &range, from, end - from, true);
    if (!http_cache_has(&n->cache, offset)) {
        f.buf = malloc(f.size);
        r = f.buf ? co_fetch(node, &f) : -ENOMEM;
        if (r == 0) {
            *ret_done = MIN((size_t)(end - offset), iov.size - at);
            iov_copy_from_buf(iov, at, f.buf + (offset - from), *ret_done);
            http_cache_add(&n->cache, from, f.buf, f.size);
        }
        free(f.buf);
    }
    range_unlock(&n->fetching, &range);
    return r;
}

static int http_co_preadv(struct block_node *node, uint64_t offset, struct iov iov, unsigned flags)
{
    struct http_node *n = node->opaque;
    uint64_t size = http_file_size(n->file);
    size_t inside = offset < size ? (size_t)MIN(size - offset, iov.size) : 0, at = 0;
    int r = 0;

    if (flags & BLOCK_REQ_PREFETCH) {
        return 0; /* a hint */
    }
    iov_fill(iov, inside, 0, iov.size - inside);
    while (r == 0 && at < inside) {
        size_t done = http_cache_copy(&n->cache, offset + at, iov, at);

        if (done == 0) {
            r = co_fetch_missing(node, offset + at, iov, at, &done);
        }
        at += done;
    }
    return r;
}

#define HTTP_DRIVER(name_, options_)                                                               \
    {                                                                                              \
        .name = name_, .help = "protocol: a file on a web server, for reading",                    \
        .options = &options_, .instance_size = sizeof(struct http_node), .is_protocol = true,      \
        .has_directories = true, .schemes = (const char *const[]){name_, NULL},                    \
        .parse_filename = http_parse_filename, .reopen_options = block_no_options,                 \
        .co_reopen_prepare = http_co_reopen_prepare, .co_open = http_co_open,                      \
        .co_close = http_co_close, .co_preadv = http_co_preadv,                                    \
    }

static const struct block_driver http_driver = HTTP_DRIVER("http", http_options);
static const struct block_driver https_driver = HTTP_DRIVER("https", https_options);

void http_register_drivers(void)
{
    block_register_driver(&http_driver);
    block_register_driver(&https_driver);
}
