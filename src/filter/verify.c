/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The driver "blkverify": requests go to two nodes, and reads of both must agree (QEMU's
 * docs/devel/blkverify). `raw` is the reference, an image in a form that is simple to trust, and
 * `test` is the one that is tested. What is read first disagrees with what was written there: the
 * owner of the program is called with a sentence (verify_set_watch()), to keep the state as it is.
 * While a write is in flight the two may differ: reads of its range, and other writes, wait for it.
 *
 * Filename: blkverify:RAW:TEST; or, with the option `raw`, TEST alone. The format of TEST is
 * guessed.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "base/log.h"
#include "filter/filter.h"
#include "schema/define.h"

#define SCHEME "blkverify:"
#define TRANSFER_MAX (4 * MiB) /* the reference is read into memory of its own */
#define MEMORY_ALIGNMENT 4096u

struct verify {
    struct block_edge *raw, *test;
    struct range_lock ranges; /* shared: reads; exclusive: writes */
};

static verify_watch *watch;

void verify_set_watch(verify_watch *fn)
{
    watch = fn;
}

int verify_disagree(const char *fmt, ...)
{
    char text[200];
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(text, sizeof(text), fmt, ap);
    va_end(ap);
    if (watch) {
        watch(text);
    }
    log_error("%s", text);
    return -EIO;
}

/* --- open ------------------------------------------------------------------------------------- */

/* The options of a file, or what its scheme says. */
static struct options *verified_file_options(const char *filename, struct error *err)
{
    const struct block_driver *driver = block_driver_of_filename(filename);
    struct options *opts = options_new();
    int r = opts ? 0 : error_out_of_memory(err);

    if (r == 0 && driver && driver->parse_filename) {
        r = driver->parse_filename(filename, opts, err);
        options_default_str(opts, "driver", driver->name);
    } else if (r == 0) {
        options_set_str(opts, "driver", "file");
        options_set_str(opts, "filename", filename);
    }
    if (r < 0) {
        options_free(opts);
        return NULL;
    }
    return opts;
}

/* `test` is an image whose format is not known: a file below a node without a driver. */
static int set_test(struct options *opts, const char *filename, struct error *err)
{
    struct options *file = verified_file_options(filename, err),
                   *test = file ? options_new() : NULL;

    if (!test) {
        options_free(file);
        return error_is_set(err) ? -EINVAL : error_out_of_memory(err);
    }
    options_set_child(test, "file", file);
    options_set_child(opts, "test", test);
    return 0;
}

static int verify_parse_filename(const char *filename, struct options *opts, struct error *err)
{
    AUTO_FREE char *path = NULL;
    struct options *raw;
    const char *colon;

    if (strncmp(filename, SCHEME, strlen(SCHEME)) != 0) {
        return set_test(opts, filename, err);
    }
    filename += strlen(SCHEME);
    colon = strchr(filename, ':');
    if (!colon) {
        return error_set(err, EINVAL, "blkverify requires raw copy and original image path");
    }
    path = strndup(filename, (size_t)(colon - filename));
    raw = path ? verified_file_options(path, err) : NULL;
    if (!raw) {
        return error_is_set(err) ? -EINVAL : error_out_of_memory(err);
    }
    options_set_child(opts, "raw", raw);
    return set_test(opts, colon + 1, err);
}

/* Open `test` where it names no driver: its format is guessed, as that of an image. */
static int co_open_guessed(struct block_node *node, struct options *test /* consumed */,
                           struct block_edge **ret_edge, struct error *err)
{
    struct json_object *json = options_to_json(test);
    AUTO_FREE char *name = NULL;
    struct block_node *child = NULL;
    int r;

    options_free(test);
    if (asprintf(&name, "json:%s",
                 json_object_to_json_string_ext(json, JSON_C_TO_STRING_NOSLASHESCAPE)) < 0) {
        name = NULL;
    }
    json_object_put(json);
    r = name ? block_co_open_filename(name, NULL, NULL, node->open_flags | BLOCK_OPEN_PROBE, &child,
                                      err)
             : error_out_of_memory(err);
    UNLESS_FAILED(r, block_co_attach_child(node, child, "test", BLOCK_ROLE_DATA, ret_edge, err));
    block_co_unref(child);
    return r;
}

static int co_open_test(struct block_node *node, struct options *opts, struct block_edge **ret_edge,
                        struct error *err)
{
    AUTO_OPTIONS struct options *copy = options_clone(opts);
    AUTO_OPTIONS struct options *test = NULL;
    AUTO_FREE char *name = NULL;
    int r = copy ? options_take_child(copy, "test", &test, &name, err) : error_out_of_memory(err);

    if (r == 0 && test && !options_has(test, "driver") && options_has(test, "file")) {
        options_drop(opts, "test");
        options_default_bool(test, "read-only", node->read_only);
        return co_open_guessed(node, TAKE_PTR(test), ret_edge, err);
    }
    return r < 0 ? r
                 : block_co_open_child(node, opts, "test", BLOCK_ROLE_DATA, false, ret_edge, err);
}

OBJECT(verify_options, "BlockdevOptionsBlkverify",
       REQ("test", block_ref_type, .help = "the image that is tested"),
       REQ("raw", block_ref_type, .help = "what it is compared with"));

static int verify_co_open(struct block_node *node, struct options *opts, struct error *err)
{
    struct verify *v = node->opaque;
    const struct block_node *raw, *test;
    int r = block_co_open_child(node, opts, "raw", BLOCK_ROLE_DATA, false, &v->raw, err);

    UNLESS_FAILED(r, co_open_test(node, opts, &v->test, err));
    if (r < 0) {
        return r;
    }
    raw = v->raw->node;
    test = v->test->node;
    block_node_set_size(node, block_edge_size(v->test));
    node->limits.max_transfer = TRANSFER_MAX;
    node->limits.memory_alignment = MEMORY_ALIGNMENT;
    node->limits.request_alignment =
        MAX(raw->limits.request_alignment, test->limits.request_alignment);
    if (raw->filename && test->filename &&
        asprintf(&node->filename, SCHEME "%s:%s", raw->filename, test->filename) < 0) {
        node->filename = NULL;
        return error_out_of_memory(err);
    }
    node->beyond_filename = raw->beyond_filename || test->beyond_filename;
    range_lock_init(&v->ranges);
    return 0;
}

static void verify_co_close(struct block_node *node)
{
    struct verify *v = node->opaque;

    range_lock_destroy(&v->ranges);
}

/* --- requests --------------------------------------------------------------------------------- */

/* The first byte of two memories that differs; `size` if they agree. */
static size_t first_unequal_byte(struct iov iov, const uint8_t *other)
{
    size_t at = 0;

    for (int i = 0; i < iov.count; i++) {
        const uint8_t *base = iov.vec[i].iov_base;
        size_t size = MIN(iov.vec[i].iov_len, iov.size - at);

        for (size_t j = 0; j < size; j++) {
            if (base[j] != other[at + j]) {
                return at + j;
            }
        }
        at += size;
    }
    return iov.size;
}

static int check_results(const char *what, uint64_t offset, uint64_t length, int raw, int test)
{
    return raw == test ? test
                       : verify_disagree("blkverify: %s offset=%" PRIu64 " bytes=%" PRIu64
                                         " return value mismatch %d != %d",
                                         what, offset, length, test, raw);
}

static int verify_co_preadv(struct block_node *node, uint64_t offset, struct iov iov,
                            unsigned flags)
{
    struct verify *v = node->opaque;
    AUTO_FREE uint8_t *other = NULL;
    struct range_entry range;
    size_t difference;
    int raw, test;

    if (flags & BLOCK_REQ_PREFETCH) {
        return block_co_preadv(v->test, offset, iov, flags);
    }
    other = aligned_alloc(MEMORY_ALIGNMENT, round_up(MAX(iov.size, 1), MEMORY_ALIGNMENT));
    if (!other) {
        return -ENOMEM;
    }
    co_range_lock(&v->ranges, &range, offset, iov.size, false);
    test = block_co_preadv(v->test, offset, iov, flags);
    raw = block_co_pread(v->raw, offset, other, iov.size);
    range_unlock(&v->ranges, &range);
    test = check_results("read", offset, iov.size, raw, test);
    difference = test < 0 ? iov.size : first_unequal_byte(iov, other);
    if (difference < iov.size) {
        return verify_disagree("blkverify: read offset=%" PRIu64
                               " bytes=%zu contents mismatch at offset "
                               "%" PRIu64,
                               offset, iov.size, offset + difference);
    }
    return test;
}

static int verify_co_pwritev(struct block_node *node, uint64_t offset, struct iov iov,
                             unsigned flags)
{
    struct verify *v = node->opaque;
    struct range_entry range;
    int test, raw;

    co_range_lock(&v->ranges, &range, offset, iov.size, true);
    test = block_co_pwritev(v->test, offset, iov, flags);
    raw = block_co_pwritev(v->raw, offset, iov, flags);
    range_unlock(&v->ranges, &range);
    return check_results("write", offset, iov.size, raw, test);
}

/* The reference is a means to compare; nobody needs it after a power cut. */
static int verify_co_flush(struct block_node *node)
{
    const struct verify *v = node->opaque;

    return block_co_flush(v->test);
}

static const char *const verify_schemes[] = {"blkverify", NULL};

const struct block_driver verify_driver = {
    .name = "blkverify",
    .help = "filter for tests: an image is compared with another, which has the same writes",
    .options = &verify_options,
    .instance_size = sizeof(struct verify),
    .schemes = verify_schemes,
    .parse_filename = verify_parse_filename,
    .co_open = verify_co_open,
    .co_close = verify_co_close,
    .co_preadv = verify_co_preadv,
    .co_pwritev = verify_co_pwritev,
    .co_flush = verify_co_flush,
};
