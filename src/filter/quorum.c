/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The driver "quorum": several children have the same contents. A write goes to all of them. A read
 * returns the data that at least `vote-threshold` of them agree on. A child that fails or disagrees
 * is reported (block/vote.h), and corrected with `rewrite-corrupted`.
 *
 *   read   from all at once -> all equal: done
 *                           -> else: once more, excluding writes to the range, one of which may
 *                              have reached only some children
 *                              -> vote -> the largest group, if it is large enough; others are bad
 *
 * With read-pattern=fifo a read returns the data of the first child that does not fail. Discards
 * have no effect: children could read different bytes afterwards.
 */
#include <errno.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "base/log.h"
#include "block/vote.h"
#include "co/co.h"
#include "filter/filter.h"
#include "loop/loop.h"
#include "schema/define.h"

#define CHILDREN_MAX 32
#define TRANSFER_MAX (4 * MiB) /* each child is read into memory of its own */

enum read_pattern { READ_QUORUM, READ_FIFO };

struct child {
    struct block_edge *edge;
};

struct quorum {
    struct child children[CHILDREN_MAX];
    int count, threshold;
    int next_index; /* in the name of the next child that is added */
    bool verify, rewrite;
    int pattern;              /* enum read_pattern */
    struct range_lock writes; /* shared: writes in flight; exclusive: a read that votes */
};

/* --- reports ---------------------------------------------------------------------------------- */

static void report_bad_child(struct child *c, enum block_vote_op op, int error, uint64_t offset,
                             uint64_t length)
{
    block_report_vote(&(struct block_vote){
        .node_name = block_node_name(block_edge_node(c->edge)),
        .op = op,
        .error = error,
        .offset = offset,
        .length = length,
    });
}

static void report_quorum_failure(struct block_node *node, enum block_vote_op op, uint64_t offset,
                                  uint64_t length)
{
    block_report_vote(&(struct block_vote){
        .failed = true,
        .node_name = block_node_name(node),
        .op = op,
        .offset = offset,
        .length = length,
    });
}

/* --- the same request to all children --------------------------------------------------------- */

enum part_op { PART_READ, PART_WRITE, PART_ZERO, PART_FLUSH };

struct part {
    struct block_edge *edge;
    enum part_op op;
    uint64_t offset, length;
    struct iov iov;
    unsigned flags;
    int result;
    struct co_group *group;
    char *data; /* of a read; owned */
    struct iovec vec;
};

static int co_do_part(const struct part *p)
{
    switch (p->op) {
    case PART_READ:
        return block_co_preadv(p->edge, p->offset, p->iov, p->flags);
    case PART_WRITE:
        return block_co_pwritev(p->edge, p->offset, p->iov, p->flags);
    case PART_ZERO:
        return block_co_write_zeroes(p->edge, p->offset, p->length, p->flags);
    case PART_FLUSH:
        return block_co_flush(p->edge);
    }
    return -EINVAL;
}

static void co_part(void *arg)
{
    struct part *p = arg;

    p->result = co_do_part(p);
    co_group_done(p->group);
}

/* Run all parts at once; one after the other where no coroutine is available. */
static void co_do_all(struct part *parts, int count)
{
    struct co_group group;

    co_group_init(&group);
    for (int i = 0; i < count; i++) {
        parts[i].group = &group;
        co_group_add(&group);
        if (i + 1 == count || co_run(reactor_home(reactor_current()), co_part, &parts[i]) < 0) {
            co_part(&parts[i]);
        }
    }
    co_group_wait(&group);
    co_group_destroy(&group);
    for (int i = 0; i < count; i++) {
        parts[i].group = NULL;
    }
}

/* The most frequent error; 0: no child failed. */
static int common_error(const struct part *parts, int count)
{
    int best = 0, best_votes = 0;

    for (int i = 0; i < count; i++) {
        int votes = 0;

        for (int j = 0; parts[i].result < 0 && j < count; j++) {
            votes += parts[j].result == parts[i].result;
        }
        if (votes > best_votes) {
            best = parts[i].result;
            best_votes = votes;
        }
    }
    return best;
}

/* Report the children that failed. 0 if enough succeeded, else the error. */
static int count_results(struct block_node *node, const struct part *parts, enum block_vote_op op,
                         uint64_t offset, uint64_t length)
{
    struct quorum *q = node->opaque;
    int good = 0;

    for (int i = 0; i < q->count; i++) {
        if (parts[i].result < 0) {
            report_bad_child(&q->children[i], op, parts[i].result, offset, length);
        } else {
            good++;
        }
    }
    if (good >= q->threshold) {
        return 0;
    }
    report_quorum_failure(node, op, offset, length);
    return common_error(parts, q->count);
}

/* --- read ------------------------------------------------------------------------------------- */

static void free_data(struct part *parts, int count)
{
    for (int i = 0; i < count; i++) {
        free(parts[i].data);
    }
}

static int allocate_data(const struct quorum *q, struct part *parts, uint64_t offset, size_t size)
{
    for (int i = 0; i < q->count; i++) {
        void *data;

        if (posix_memalign(&data, 4096, size) != 0) {
            return -ENOMEM;
        }
        parts[i] = (struct part){
            .edge = q->children[i].edge, .op = PART_READ, .offset = offset, .data = data};
        parts[i].iov = iov_from_buf(&parts[i].vec, data, size);
    }
    return 0;
}

static bool are_alike(const struct part *a, const struct part *b)
{
    return a->result == 0 && b->result == 0 && memcmp(a->data, b->data, a->iov.size) == 0;
}

static bool all_alike(const struct quorum *q, const struct part *parts)
{
    for (int i = 1; i < q->count; i++) {
        if (!are_alike(&parts[0], &parts[i])) {
            return false;
        }
    }
    return parts[0].result == 0;
}

/* The first of the largest group of children that agree; -1: the group is too small. */
static int vote(const struct quorum *q, const struct part *parts)
{
    int best = -1, best_votes = 0;

    for (int i = 0; i < q->count; i++) {
        int votes = 0;

        for (int j = 0; j < q->count; j++) {
            votes += are_alike(&parts[i], &parts[j]);
        }
        if (votes > best_votes) {
            best = i;
            best_votes = votes;
        }
    }
    return best_votes >= q->threshold ? best : -1;
}

static void print_mismatch(const struct part *a, const struct part *b)
{
    size_t at = 0;

    while (at < a->iov.size && a->data[at] == b->data[at]) {
        at++;
    }
    log_error("quorum: offset=%llu bytes=%zu contents mismatch at offset %llu",
              (unsigned long long)a->offset, a->iov.size, (unsigned long long)(a->offset + at));
}

/*
 * Report the children that could be read but disagree with the winner; rewrite them if wanted. A
 * failed write is only reported.
 */
static void co_put_right(struct quorum *q, struct part *parts, int winner)
{
    for (int i = 0; i < q->count; i++) {
        struct part *p = &parts[i];
        int r;

        if (p->result < 0 || are_alike(p, &parts[winner])) {
            continue;
        }
        report_bad_child(&q->children[i], BLOCK_VOTE_READ, 0, p->offset, p->iov.size);
        r = q->rewrite ? block_co_pwritev(p->edge, p->offset, parts[winner].iov, 0) : 0;
        if (r < 0) {
            report_bad_child(&q->children[i], BLOCK_VOTE_WRITE, r, p->offset, p->iov.size);
        }
    }
}

/* Read and vote, while no write to the range is in flight. Returns the winner, or -errno. */
static int co_settle_vote(struct block_node *node, struct part *parts)
{
    struct quorum *q = node->opaque;
    uint64_t offset = parts[0].offset, size = parts[0].iov.size;
    int r, winner;

    co_do_all(parts, q->count);
    r = count_results(node, parts, BLOCK_VOTE_READ, offset, size);
    if (r < 0) {
        return r;
    }
    if (q->verify && !all_alike(q, parts) && parts[0].result == 0 && parts[1].result == 0) {
        print_mismatch(&parts[0], &parts[1]);
    }
    winner = vote(q, parts);
    if (winner < 0) {
        report_quorum_failure(node, BLOCK_VOTE_READ, offset, size);
        return -EIO;
    }
    co_put_right(q, parts, winner);
    return winner;
}

static int co_read_by_vote(struct block_node *node, uint64_t offset, struct iov iov)
{
    struct quorum *q = node->opaque;
    struct part parts[CHILDREN_MAX] = {0};
    int r = allocate_data(q, parts, offset, iov.size);

    if (r == 0) {
        co_do_all(parts, q->count);
        if (!all_alike(q, parts)) {
            struct range_entry range;

            co_range_lock(&q->writes, &range, offset, iov.size, true);
            r = co_settle_vote(node, parts);
            range_unlock(&q->writes, &range);
        }
    }
    if (r >= 0) {
        iov_copy_from_buf(iov, 0, parts[r].data, iov.size);
    }
    free_data(parts, q->count);
    return MIN(r, 0);
}

static int co_read_first_good(struct block_node *node, uint64_t offset, struct iov iov,
                              unsigned flags)
{
    struct quorum *q = node->opaque;
    int r = -EIO;

    for (int i = 0; i < q->count && r < 0; i++) {
        r = block_co_preadv(q->children[i].edge, offset, iov, flags);
        if (r < 0) {
            report_bad_child(&q->children[i], BLOCK_VOTE_READ, r, offset, iov.size);
        }
    }
    if (r < 0) {
        report_quorum_failure(node, BLOCK_VOTE_READ, offset, iov.size);
    }
    return r;
}

static int quorum_co_preadv(struct block_node *node, uint64_t offset, struct iov iov,
                            unsigned flags)
{
    struct quorum *q = node->opaque;

    if (flags & BLOCK_REQ_PREFETCH) {
        return 0; /* a hint */
    }
    return q->pattern == READ_FIFO ? co_read_first_good(node, offset, iov, flags)
                                   : co_read_by_vote(node, offset, iov);
}

/* --- change ----------------------------------------------------------------------------------- */

/*
 * Whether a child has no fast way to do it. This is not a failure: the caller falls back, for all
 * children.
 */
static bool is_request_refused(const struct quorum *q, const struct part *parts)
{
    for (int i = 0; i < q->count; i++) {
        if ((parts[i].flags & BLOCK_REQ_NO_FALLBACK) && parts[i].result == -ENOTSUP) {
            return true;
        }
    }
    return false;
}

static int co_change_all(struct block_node *node, const struct part *what)
{
    struct quorum *q = node->opaque;
    struct part parts[CHILDREN_MAX] = {0};
    struct range_entry range;

    for (int i = 0; i < q->count; i++) {
        parts[i] = *what;
        parts[i].edge = q->children[i].edge;
    }
    co_range_lock(&q->writes, &range, what->offset, what->length, false);
    co_do_all(parts, q->count);
    range_unlock(&q->writes, &range);
    if (is_request_refused(q, parts)) {
        return -ENOTSUP;
    }
    return count_results(node, parts, BLOCK_VOTE_WRITE, what->offset, what->length);
}

static int quorum_co_pwritev(struct block_node *node, uint64_t offset, struct iov iov,
                             unsigned flags)
{
    return co_change_all(
        node,
        &(struct part){
            .op = PART_WRITE, .offset = offset, .length = iov.size, .iov = iov, .flags = flags});
}

static int quorum_co_write_zeroes(struct block_node *node, uint64_t offset, uint64_t length,
                                  unsigned flags)
{
    return co_change_all(
        node, &(struct part){.op = PART_ZERO, .offset = offset, .length = length, .flags = flags});
}

static int quorum_co_flush(struct block_node *node)
{
    struct quorum *q = node->opaque;
    struct part parts[CHILDREN_MAX] = {0};

    for (int i = 0; i < q->count; i++) {
        parts[i] = (struct part){.edge = q->children[i].edge, .op = PART_FLUSH};
    }
    co_do_all(parts, q->count);
    return count_results(node, parts, BLOCK_VOTE_FLUSH, 0, block_node_size(node));
}

/* --- status ----------------------------------------------------------------------------------- */

/*
 * Zero where a vote would find zeroes, as far as all those children say so; else data, as far as
 * any child says so.
 */
static int quorum_co_status(struct block_node *node, uint64_t offset, uint64_t length,
                            struct block_status *ret_status)
{
    struct quorum *q = node->opaque;
    uint64_t data_length = 0, zero_length = length;
    int data = 0, zero = 0;

    for (int i = 0; i < q->count && (q->pattern == READ_QUORUM || data + zero == 0); i++) {
        struct block_status status;
        int r = block_co_status_above(q->children[i].edge, NULL, offset, length, &status, NULL);

        if (r < 0) {
            report_bad_child(&q->children[i], BLOCK_VOTE_READ, r, offset, length);
        } else if (status.flags & BLOCK_STATUS_ZERO) {
            zero++;
            zero_length = MIN(zero_length, status.length);
        } else {
            data++;
            data_length = MAX(data_length, status.length);
        }
    }
    if (data + zero < (q->pattern == READ_QUORUM ? q->threshold : 1)) {
        return -EIO;
    }
    if (zero > data && (q->pattern == READ_FIFO || zero >= q->threshold)) {
        *ret_status =
            (struct block_status){BLOCK_STATUS_ZERO | BLOCK_STATUS_ALLOCATED, zero_length, 0, NULL};
    } else {
        *ret_status = (struct block_status){BLOCK_STATUS_DATA | BLOCK_STATUS_ALLOCATED,
                                            data ? data_length : zero_length, 0, NULL};
    }
    return 0;
}

static int quorum_co_allocated_size(struct block_node *node, uint64_t *ret_value)
{
    struct quorum *q = node->opaque;

    *ret_value = 0;
    for (int i = 0; i < q->count; i++) {
        uint64_t size;
        int r = block_co_allocated_size(block_edge_node(q->children[i].edge), &size);

        if (r < 0) {
            return r;
        }
        *ret_value += size;
    }
    return 0;
}

/* --- open and close --------------------------------------------------------------------------- */

static int check_quorum_options(const struct quorum *q, size_t count, struct error *err)
{
    if (count == 0) {
        return error_set(err, EINVAL, "Number of provided children must be 1 or more");
    }
    if (count > CHILDREN_MAX) {
        return error_set(err, EINVAL, "quorum has %zu children; at most %d are supported", count,
                         CHILDREN_MAX);
    }
    if (q->threshold < 1) {
        return error_set(err, EINVAL, "Parameter 'vote-threshold' expects a value >= 1");
    }
    if ((size_t)q->threshold > count) {
        return error_set(err, EINVAL, "threshold may not exceed children count");
    }
    if (q->verify && (count != 2 || q->threshold != 2)) {
        return error_set(err, EINVAL,
                         "blkverify=on can only be set if there are exactly two files and "
                         "vote-threshold is 2");
    }
    if (q->verify && q->rewrite) {
        return error_set(err, EINVAL, "rewrite-corrupted=on cannot be used with blkverify=on");
    }
    return 0;
}

ENUM(read_pattern_type, "QuorumReadPattern", "quorum", "fifo");
OBJECT(quorum_options, "BlockdevOptionsQuorum",
       OPT("blkverify", schema_bool, .dflt = "false",
           .help = "end the program if two children differ; for tests"),
       REQ("children", block_refs_type, .help = "nodes of one size with the same contents"),
       REQ("vote-threshold", schema_int, .min = 1, .max = INT32_MAX,
           .help = "how many children have to agree"),
       OPT("rewrite-corrupted", schema_bool, .dflt = "false",
           .help = "write what the majority has to the others"),
       OPT("read-pattern", read_pattern_type, .dflt = "quorum",
           .help = "fifo: read the first child that can be read"));

static int take_settings(struct quorum *q, struct options *opts, struct error *err)
{
    static const char *const patterns[] = {"quorum", "fifo", NULL};
    uint64_t threshold = 0;

    if (!options_has(opts, "vote-threshold")) {
        return options_missing(opts, "vote-threshold", err);
    }
    if (options_take_uint(opts, "vote-threshold", 0, INT32_MAX, &threshold, err) < 0 ||
        options_take_bool(opts, "blkverify", false, &q->verify, err) < 0 ||
        options_take_bool(opts, "rewrite-corrupted", false, &q->rewrite, err) < 0 ||
        options_take_enum(opts, "read-pattern", patterns, READ_QUORUM, &q->pattern, err) < 0) {
        return -EINVAL;
    }
    q->threshold = (int)threshold;
    return 0;
}

/* Open or look up one element of the list: options or a node name. */
static int co_open_one(struct block_node *node, struct options *opts, struct json_object *item,
                       struct error *err)
{
    struct quorum *q = node->opaque;
    struct options *child = NULL;
    char name[24];
    int r = 0;

    snprintf(name, sizeof(name), "children.%d", q->count);
    if (json_object_is_type(item, json_type_string)) {
        options_set_str(opts, name, json_object_get_string(item));
    } else {
        r = options_from_element(opts, "children", (size_t)q->count, item, &child, err);
        if (r >= 0) {
            options_set_child(opts, name, child);
        }
    }
    if (r >= 0) {
        r = block_co_open_child(node, opts, name, BLOCK_ROLE_DATA, false,
                                &q->children[q->count].edge, err);
    }
    q->count += r >= 0;
    q->next_index = q->count;
    return r;
}

/* --- children of a quorum in use -------------------------------------------------------------- */

static int quorum_co_add_child(struct block_node *node, struct block_node *child, struct error *err)
{
    struct quorum *q = node->opaque;
    char name[24];
    int r;

    if (q->verify) {
        return error_set(err, EINVAL, "Cannot add a child to a quorum in blkverify mode");
    }
    if (q->count == CHILDREN_MAX) {
        return error_set(err, EINVAL, "Too many children");
    }
    if (block_node_size(child) != block_node_size(node)) {
        return error_set(err, EINVAL,
                         "The children of a quorum have to be of one size: '%s' has %llu bytes, "
                         "'%s' has %llu",
                         node->name, (unsigned long long)block_node_size(node), child->name,
                         (unsigned long long)block_node_size(child));
    }
    snprintf(name, sizeof(name), "children.%d", q->next_index);
    q->children[q->count] = (struct child){0};
    r = block_co_attach_child(node, child, name, BLOCK_ROLE_DATA, &q->children[q->count].edge, err);
    if (r == 0) {
        q->count++;
        q->next_index++;
    }
    return r;
}

static int quorum_co_del_child(struct block_node *node, struct block_edge *edge, struct error *err)
{
    struct quorum *q = node->opaque;
    char latest[24];
    int i = 0;

    if (q->count <= q->threshold) {
        return error_set(err, EINVAL,
                         "The number of children cannot be lower than the vote threshold %d",
                         q->threshold);
    }
    while (q->children[i].edge != edge) {
        i++;
    }
    snprintf(latest, sizeof(latest), "children.%d", q->next_index - 1);
    q->next_index -= strcmp(edge->name, latest) == 0;
    q->count--;
    for (; i < q->count; i++) {
        q->children[i] = q->children[i + 1];
    }
    block_co_detach_child(edge);
    return 0;
}

static int check_quorum_sizes(const struct quorum *q, struct error *err)
{
    for (int i = 1; i < q->count; i++) {
        const struct block_edge *first = q->children[0].edge, *edge = q->children[i].edge;

        if (block_edge_size(edge) != block_edge_size(first)) {
            return error_set(
                err, EINVAL,
                "The children of a quorum have to be of one size: '%s' has %llu bytes, "
                "'%s' has %llu",
                block_node_display_name(block_edge_node(first)),
                (unsigned long long)block_edge_size(first),
                block_node_display_name(block_edge_node(edge)),
                (unsigned long long)block_edge_size(edge));
        }
    }
    return 0;
}

static int co_open_children(struct block_node *node, struct options *opts, struct json_object *list,
                            struct error *err)
{
    struct quorum *q = node->opaque;
    size_t count = list ? json_object_array_length(list) : 0;
    int r = check_quorum_options(q, count, err);

    for (size_t i = 0; i < count && r >= 0; i++) {
        r = co_open_one(node, opts, json_object_array_get_idx(list, i), err);
    }
    if (r < 0) {
        return r;
    }
    return check_quorum_sizes(q, err);
}

static int quorum_co_open(struct block_node *node, struct options *opts, struct error *err)
{
    struct quorum *q = node->opaque;
    struct json_object *list = NULL;
    int r = take_settings(q, opts, err);

    if (r >= 0) {
        r = options_take_list(opts, "children", &list, err);
    }
    if (r >= 0) {
        r = co_open_children(node, opts, list, err);
    }
    json_object_put(list);
    if (r < 0) {
        return r;
    }
    range_lock_init(&q->writes);
    node->beyond_filename = true;
    block_node_set_size(node, block_edge_size(q->children[0].edge));
    node->limits.max_transfer = TRANSFER_MAX;
    node->discard_unmap = true; /* the children decide */
    node->supported_write_flags = BLOCK_REQ_FUA;
    node->supported_zero_flags = BLOCK_REQ_FUA | BLOCK_REQ_MAY_UNMAP | BLOCK_REQ_NO_FALLBACK;
    return 0;
}

static void quorum_co_close(struct block_node *node)
{
    struct quorum *q = node->opaque;

    range_lock_destroy(&q->writes);
}

/* Another writer of a child would make it differ from the others. */
static void quorum_child_perm(struct block_node *node, struct block_edge *edge,
                              unsigned parents_perm, unsigned parents_shared, unsigned *ret_perm,
                              unsigned *ret_shared)
{
    const struct quorum *q = node->opaque;

    *ret_perm = parents_perm | BLOCK_PERM_CONSISTENT_READ | (q->rewrite ? BLOCK_PERM_WRITE : 0);
    *ret_shared = parents_shared & (BLOCK_PERM_CONSISTENT_READ | BLOCK_PERM_WRITE_UNCHANGED);
}

const struct block_driver quorum_driver = {
    .name = "quorum",
    .help = "several nodes with the same contents, which vote",
    .options = &quorum_options,
    .instance_size = sizeof(struct quorum),
    .co_open = quorum_co_open,
    .co_close = quorum_co_close,
    .child_perm = quorum_child_perm,
    .co_add_child = quorum_co_add_child,
    .co_del_child = quorum_co_del_child,
    .co_allocated_size = quorum_co_allocated_size,
    .co_preadv = quorum_co_preadv,
    .co_pwritev = quorum_co_pwritev,
    .co_write_zeroes = quorum_co_write_zeroes,
    .co_flush = quorum_co_flush,
    .co_status = quorum_co_status,
};
