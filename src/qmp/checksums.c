/* SPDX-License-Identifier: Apache-2.0 */
/*
 * x-blockdev-checksums: digests of what a node holds, for programs that compare them with digests
 * of their own, and then read only what differs.
 *
 * The work has a root of its own on the node, as an export has, and no lock while it reads. A
 * coroutine apart from the command does it: where the disk hangs, the command gives up, and the
 * work ends when the disk answers.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/base64.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "base/list.h"
#include "base/sha256.h"
#include "base/time_units.h"
#include "block/block.h"
#include "block/control_lock.h"
#include "block/gate.h"
#include "co/sync.h"
#include "loop/loop.h"
#include "qmp/checksums.h"
#include "qmp/command_lock.h"
#include "qmp/commands.h"
#include "qmp/define.h"
#include "qmp/lookup.h"
#include "qmp/types.h"

#define GRANULARITY_MIN (4 * KiB)
#define GRANULARITY_MAX (1 * MiB)
/* What is read and hashed at a time, a multiple of every granularity. */
#define HASHED_PIECE (1 * MiB)
#define PIECE_BLOCKS_MAX (HASHED_PIECE / GRANULARITY_MIN)
/* The most bytes of one command, and pieces in flight. */
#define COMMAND_MAX (64 * MiB)
#define HASHERS 4
/* No piece begins later; and how long the command waits at most. */
#define BEGIN_NS NS_PER_SECOND
#define HASH_PATIENCE_NS (3 * NS_PER_SECOND)

const struct schema_type qmp_type_checksums_args = OBJECT_INIT(
    "q_obj_x-blockdev-checksums-arg", REQ("node-name", schema_str),
    REQ("offset", schema_uint64, .unit = "bytes", .help = "a multiple of `granularity`"),
    REQ("length", schema_uint64, .unit = "bytes"),
    REQ("granularity", schema_uint64, .unit = "bytes",
        .help = "size of a block, a power of 2 from 4 KiB to 1 MiB"));
const struct schema_type qmp_type_checksums =
    OBJECT_INIT("BlockdevChecksums",
                REQ("length", schema_uint64, .unit = "bytes",
                    .help = "of the blocks that were read, from `offset` on"),
                REQ("sha256", schema_str, .help = "Base64 of the SHA-256 of each, 32 bytes"));

/* Shared by the command and the work; whoever ends last frees it. */
struct checksums {
    struct list link;        /* in `works` */
    struct block_node *node; /* referenced */
    struct block_root *root;
    uint64_t offset, end; /* of the area */
    uint64_t next;        /* where the next piece begins */
    uint64_t granularity;
    int64_t last_ns; /* no piece begins later */
    uint8_t *digests;
    const uint8_t *zero_digest; /* of a block of zeroes */
    int status;                 /* the first failure */
    uint64_t failed_at;
    struct co_group hashers;
    struct loop_answer answer; /* for the command: the work has ended */
    bool is_read;              /* all pieces have been read, or one has failed */
    bool ended;                /* and the root is released */
    bool abandoned;            /* the command has ended */
};

/* Those that have not ended. */
static struct list works = LIST_INIT(works);

bool qmp_checksums_use(const struct block_node *node)
{
    const struct checksums *c;

    LIST_FOREACH (c, &works, link) {
        if (c->node == node) {
            return true;
        }
    }
    return false;
}

static void free_checksums(struct checksums *c)
{
    co_group_destroy(&c->hashers);
    free(c->digests);
    free(c);
}

/* --- a piece ---------------------------------------------------------------------------------- */

struct hashed_piece {
    const struct checksums *work;
    uint64_t offset, length; /* bytes; the last block may be shorter */
    uint8_t *buf;            /* HASHED_PIECE bytes */
    bool is_data[PIECE_BLOCKS_MAX];
    uint8_t (*digests)[SHA256_SIZE];
};

/* The blocks that [offset, offset + length) touches may hold other than zeroes. */
static void mark_blocks(struct hashed_piece *p, uint64_t offset, uint64_t length)
{
    uint64_t size = p->work->granularity, first = (offset - p->offset) / size;
    uint64_t end = div_round_up(offset + length - p->offset, size);

    memset(p->is_data + first, true, end - first);
}

/* Read what is not known to be zero. `*ret_at` is where a failure was. */
static int co_read_hashed(struct hashed_piece *p, uint64_t *ret_at)
{
    struct block_edge *edge = block_root_edge(p->work->root);
    uint64_t end = p->offset + p->length, at = p->offset;
    int r = 0;

    memset(p->is_data, false, sizeof(p->is_data));
    memset(p->buf + p->length, 0, round_up(p->length, p->work->granularity) - p->length);
    while (r == 0 && at < end) {
        struct block_status status;

        *ret_at = at;
        r = block_co_status_above(edge, NULL, at, end - at, &status, NULL);
        if (r == 0 && status.length == 0) {
            r = -EIO;
        }
        if (r == 0 && (status.flags & BLOCK_STATUS_ZERO)) {
            memset(p->buf + (at - p->offset), 0, status.length);
        } else if (r == 0) {
            mark_blocks(p, at, status.length);
            r = block_co_pread(edge, at, p->buf + (at - p->offset), status.length);
        }
        at += r == 0 ? status.length : 0;
    }
    return r;
}

/* On a thread of the pool. */
static int hash_piece(void *arg)
{
    const struct hashed_piece *p = arg;
    uint64_t size = p->work->granularity, count = div_round_up(p->length, size), n;
    int r = 0;

    for (uint64_t i = 0; r == 0 && i < count; i += n) {
        for (n = 1; i + n < count && p->is_data[i + n] == p->is_data[i]; n++) {
        }
        if (p->is_data[i]) {
            r = sha256_of_each(p->buf + i * size, size, n, p->digests + i);
            continue;
        }
        for (uint64_t k = i; k < i + n; k++) {
            memcpy(p->digests[k], p->work->zero_digest, SHA256_SIZE);
        }
    }
    return r;
}

static bool begins_piece(const struct checksums *c)
{
    return c->status == 0 && !c->abandoned && c->next < c->end &&
           (c->next == c->offset || loop_now_ns() < c->last_ns);
}

static void co_hasher(void *arg)
{
    struct checksums *c = arg;
    struct hashed_piece p = {.work = c, .buf = malloc(HASHED_PIECE)};

    if (!p.buf) {
        c->status = c->status ?: -ENOMEM;
    }
    while (begins_piece(c)) {
        uint64_t at;
        int r;

        at = p.offset = c->next;
        p.length = MIN(c->end - p.offset, HASHED_PIECE);
        p.digests = (uint8_t(*)[SHA256_SIZE])c->digests + (p.offset - c->offset) / c->granularity;
        c->next += p.length;
        r = co_read_hashed(&p, &at);
        UNLESS_FAILED(r, loop_co_offload(hash_piece, &p));
        if (r < 0 && c->status == 0) {
            c->status = r;
            c->failed_at = at;
        }
        if (reactor_turn_expired()) {
            loop_co_give_way();
        }
    }
    free(p.buf);
    co_group_done(&c->hashers);
}

/* --- blocks of zeroes ------------------------------------------------------------------------- */

/* By the granularity; set once. On the main reactor. */
static struct zero_block {
    uint8_t digest[SHA256_SIZE];
    bool is_known;
} zero_blocks[64];

struct zero_job {
    uint64_t size;
    uint8_t digest[SHA256_SIZE];
};

static int hash_zeroes(void *arg)
{
    struct zero_job *job = arg;
    AUTO_FREE uint8_t *zeroes = calloc(1, job->size);

    return zeroes ? sha256_of_buffer(zeroes, job->size, job->digest) : -ENOMEM;
}

static int co_find_zero_digest(struct checksums *c)
{
    struct zero_block *z = &zero_blocks[__builtin_ctzll(c->granularity)];
    struct zero_job job = {.size = c->granularity};
    int r = z->is_known ? 0 : loop_co_offload(hash_zeroes, &job);

    if (r == 0 && !z->is_known) {
        memcpy(z->digest, job.digest, SHA256_SIZE);
        z->is_known = true;
    }
    c->zero_digest = z->digest;
    return r;
}

/* --- the work --------------------------------------------------------------------------------- */

struct work_scope {
    struct block_control_scope scope;
    struct block_node *node;
};

static bool work_meets(const struct block_control_scope *scope, struct block_node *node)
{
    return block_node_is_joined(container_of(scope, struct work_scope, scope)->node, node);
}

/* The root is released with the control lock, which commands may have for some time. */
static void co_release_work(struct checksums *c)
{
    struct work_scope scope = {.scope.meets = work_meets, .node = c->node};
    struct block_control_work work;

    block_control_begin_scope(&scope.scope);
    block_co_control_lock();
    block_control_begin_work(&work, &c->node, 1, true);
    block_co_root_release(c->root);
    block_co_control_end_work(&work);
    list_remove(&c->link);
    block_control_unlock();
    block_control_end_scope(&scope.scope);
    block_co_unref(c->node);
}

static void co_checksums_work(void *arg)
{
    struct checksums *c = arg;

    uint64_t pieces = div_round_up(c->end - c->offset, HASHED_PIECE);

    c->status = co_find_zero_digest(c);
    for (uint64_t i = 0; i < MIN(pieces, (uint64_t)HASHERS); i++) {
        int r;

        co_group_add(&c->hashers);
        r = reactor_spawn(reactor_main(), co_hasher, c);
        if (r < 0) {
            co_group_done(&c->hashers);
            c->status = i == 0 ? r : c->status;
            break;
        }
    }
    co_group_wait(&c->hashers);
    c->is_read = true;
    co_release_work(c);
    c->ended = true;
    loop_answer_give(&c->answer);
    if (c->abandoned) {
        free_checksums(c);
    }
}

/* --- the command ------------------------------------------------------------------------------ */

static int check_area(struct json_object *args, const struct block_node *node, struct error *err)
{
    uint64_t offset = qmp_get_uint(args, "offset", 0), length = qmp_get_uint(args, "length", 0);
    uint64_t granularity = qmp_get_uint(args, "granularity", 0);

    if (granularity < GRANULARITY_MIN || granularity > GRANULARITY_MAX ||
        !is_power_of_2(granularity)) {
        return error_set(err, EINVAL, "Granularity must be a power of 2 from 4 KiB to 1 MiB");
    }
    if (!is_aligned(offset, granularity)) {
        return error_set(err, EINVAL, "Offset must be a multiple of the granularity");
    }
    if (length == 0 || !range_fits(offset, length, block_node_size(node))) {
        return error_set(err, EINVAL,
                         "The area is not within node '%s', which has %" PRIu64 " bytes",
                         block_node_name(node), block_node_size(node));
    }
    return 0;
}

/* Each work that hangs keeps its buffers: one for a node. */
static int check_no_work_hangs(const struct block_node *node, struct error *err)
{
    struct checksums *c;

    LIST_FOREACH (c, &works, link) {
        if (c->node == node && c->abandoned) {
            return error_set(err, EBUSY, "Node '%s' does not answer what was read before",
                             block_node_name(node));
        }
    }
    return 0;
}

static struct checksums *new_checksums(struct json_object *args)
{
    struct checksums *c = calloc(1, sizeof(*c));

    if (!c) {
        return NULL;
    }
    list_init(&c->link);
    co_group_init(&c->hashers);
    loop_answer_init(&c->answer);
    c->granularity = qmp_get_uint(args, "granularity", 0);
    c->offset = c->next = qmp_get_uint(args, "offset", 0);
    c->end = c->offset + MIN(qmp_get_uint(args, "length", 0), COMMAND_MAX);
    c->digests = calloc(div_round_up(c->end - c->offset, c->granularity), SHA256_SIZE);
    if (!c->digests) {
        free_checksums(c);
        return NULL;
    }
    return c;
}

/* The lock is held before and after. On failure nothing is left of the root. */
static int co_begin_checksums(struct checksums *c, struct block_node *node, struct error *err)
{
    struct block_control_work work;
    int r;

    c->node = block_node_ref(node);
    block_control_begin_work(&work, &c->node, 1, true);
    r = block_co_root_new(c->node, "checksums", BLOCK_PERM_CONSISTENT_READ, BLOCK_PERM_ALL,
                          &c->root, err);
    block_co_control_end_work(&work);
    if (r == 0) {
        c->last_ns = loop_now_ns() + BEGIN_NS;
        list_append(&works, &c->link);
        r = reactor_spawn(reactor_main(), co_checksums_work, c);
        if (r == 0) {
            return 0;
        }
        error_set_errno(err, -r, "Could not begin to read");
        list_remove(&c->link);
        block_control_begin_work(&work, &c->node, 1, true);
        block_co_root_release(c->root);
        block_co_control_end_work(&work);
    }
    block_co_unref(node);
    return r;
}

static int take_checksums(const struct checksums *c, const char *name,
                          struct json_object **ret_value, struct error *err)
{
    uint64_t length = c->next - c->offset;
    AUTO_FREE char *text = NULL;

    if (!c->is_read) {
        return error_set(err, ETIMEDOUT, "Node '%s' has not answered for %d s", name,
                         (int)(HASH_PATIENCE_NS / NS_PER_SECOND));
    }
    if (c->status < 0) {
        return error_set_errno(err, -c->status, "Could not read node '%s' at offset %" PRIu64, name,
                               c->failed_at);
    }
    text = base64_encode(c->digests, div_round_up(length, c->granularity) * SHA256_SIZE);
    if (!text) {
        return error_out_of_memory(err);
    }
    *ret_value = json_object_new_object();
    qmp_put_uint(*ret_value, "length", length);
    qmp_put_str(*ret_value, "sha256", text);
    return 0;
}

/* NULL: an error. */
static struct checksums *co_start_checksums(struct json_object *args, struct error *err)
{
    struct block_node *node = qmp_find_device_or_node(NULL, qmp_get_str(args, "node-name"), err);
    struct checksums *c;

    if (!node || check_area(args, node, err) < 0 || check_no_work_hangs(node, err) < 0) {
        return NULL;
    }
    c = new_checksums(args);
    if (!c) {
        error_out_of_memory(err);
        return NULL;
    }
    if (co_begin_checksums(c, node, err) < 0) {
        free_checksums(c);
        return NULL;
    }
    return c;
}

int qmp_co_x_blockdev_checksums(struct qmp_call *call, struct json_object *args,
                                struct json_object **ret_value, struct error *err)
{
    struct checksums *c = co_start_checksums(args, err);
    int r;

    if (!c) {
        return -EINVAL;
    }
    block_control_unlock();
    (void)loop_co_answer_wait(&c->answer, HASH_PATIENCE_NS);
    /* Others may wait for the disk, with the node. */
    block_control_meet_nothing_from_now();
    r = qmp_co_lock_again(err);
    UNLESS_FAILED(r, take_checksums(c, qmp_get_str(args, "node-name"), ret_value, err));
    c->abandoned = true;
    if (c->ended) {
        free_checksums(c);
    }
    return r;
}
