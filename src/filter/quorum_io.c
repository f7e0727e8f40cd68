/* SPDX-License-Identifier: Apache-2.0 */
/* Requests of a quorum: to all children, with votes. quorum.c has the driver. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "block/vote.h"
#include "co/co.h"
#include "filter/filter.h"
#include "filter/quorum.h"
#include "loop/loop.h"

/* --- reports ---------------------------------------------------------------------------------- */

static void report_bad_child(const struct block_edge *child, enum block_vote_op op, int error,
                             uint64_t offset, uint64_t length)
{
    block_report_vote(&(struct block_vote){
        .node_name = block_node_name(block_edge_node(child)),
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
            report_bad_child(q->children[i], op, parts[i].result, offset, length);
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

/* Bytes that each child reads at once, into memory of its own. */
#define PIECE_MAX (4 * MiB)

/*
 * A read by vote. Its pieces are voted on one by one; a child is reported once, as bad for the
 * whole request, so that the limit of such events in a second does not hide a part.
 */
struct voted_read {
    struct block_node *node;
    uint64_t offset;
    struct iov iov;
    bool has_failed[QUORUM_CHILDREN_MAX], differs[QUORUM_CHILDREN_MAX];
    bool rewrite_failed[QUORUM_CHILDREN_MAX];
};

static void report_once(struct voted_read *read, bool *reported, int child, enum block_vote_op op,
                        int error)
{
    const struct quorum *q = read->node->opaque;

    if (!reported[child]) {
        report_bad_child(q->children[child], op, error, read->offset, read->iov.size);
    }
    reported[child] = true;
}

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
        parts[i] =
            (struct part){.edge = q->children[i], .op = PART_READ, .offset = offset, .data = data};
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

static int report_mismatch(const struct voted_read *read, const struct part *a,
                           const struct part *b)
{
    size_t at = 0;

    while (at < a->iov.size && a->data[at] == b->data[at]) {
        at++;
    }
    return verify_disagree("quorum: offset=%" PRIu64 " bytes=%zu contents mismatch at offset "
                           "%" PRIu64,
                           read->offset, read->iov.size, a->offset + at);
}

/* Report the children that failed. 0 if enough succeeded, else the error. */
static int count_reads(struct voted_read *read, const struct part *parts)
{
    const struct quorum *q = read->node->opaque;
    int good = 0;

    for (int i = 0; i < q->count; i++) {
        if (parts[i].result < 0) {
            report_once(read, read->has_failed, i, BLOCK_VOTE_READ, parts[i].result);
        } else {
            good++;
        }
    }
    if (good >= q->threshold) {
        return 0;
    }
    report_quorum_failure(read->node, BLOCK_VOTE_READ, read->offset, read->iov.size);
    return common_error(parts, q->count);
}

/*
 * Report the children that could be read but disagree with the winner; rewrite them if wanted. A
 * failed write is only reported.
 */
static void co_put_right(struct voted_read *read, struct part *parts, int winner)
{
    struct quorum *q = read->node->opaque;

    for (int i = 0; i < q->count; i++) {
        struct part *p = &parts[i];
        int r;

        if (p->result < 0 || are_alike(p, &parts[winner])) {
            continue;
        }
        report_once(read, read->differs, i, BLOCK_VOTE_READ, 0);
        r = q->rewrite ? block_co_pwritev(p->edge, p->offset, parts[winner].iov, 0) : 0;
        if (r < 0) {
            report_once(read, read->rewrite_failed, i, BLOCK_VOTE_WRITE, r);
        }
    }
}

/* Read and vote, while no write to the range is in flight. Returns the winner, or -errno. */
static int co_settle_vote(struct voted_read *read, struct part *parts)
{
    struct quorum *q = read->node->opaque;
    int r, winner;

    co_do_all(parts, q->count);
    r = count_reads(read, parts);
    if (r < 0) {
        return r;
    }
    if (q->verify && !all_alike(q, parts)) {
        return report_mismatch(read, &parts[0], &parts[1]);
    }
    winner = vote(q, parts);
    if (winner < 0) {
        report_quorum_failure(read->node, BLOCK_VOTE_READ, read->offset, read->iov.size);
        return -EIO;
    }
    co_put_right(read, parts, winner);
    return winner;
}

/* The bytes from `at` of the request on. */
static int co_vote_on_piece(struct voted_read *read, size_t at, size_t size)
{
    struct quorum *q = read->node->opaque;
    struct part parts[QUORUM_CHILDREN_MAX] = {0};
    int r = allocate_data(q, parts, read->offset + at, size);

    if (r == 0) {
        co_do_all(parts, q->count);
        if (!all_alike(q, parts)) {
            struct range_entry range;

            co_range_lock(&q->writes, &range, read->offset + at, size, true);
            r = co_settle_vote(read, parts);
            range_unlock(&q->writes, &range);
        }
    }
    if (r >= 0) {
        iov_copy_from_buf(read->iov, at, parts[r].data, size);
    }
    free_data(parts, q->count);
    return MIN(r, 0);
}

static int co_read_by_vote(struct block_node *node, uint64_t offset, struct iov iov)
{
    struct voted_read read = {.node = node, .offset = offset, .iov = iov};
    int r = 0;

    for (size_t at = 0; at < iov.size && r == 0; at += PIECE_MAX) {
        r = co_vote_on_piece(&read, at, MIN(PIECE_MAX, iov.size - at));
    }
    return r;
}

static int co_read_first_good(struct block_node *node, uint64_t offset, struct iov iov,
                              unsigned flags)
{
    struct quorum *q = node->opaque;
    int r = -EIO;

    for (int i = 0; i < q->count && r < 0; i++) {
        r = block_co_preadv(q->children[i], offset, iov, flags);
        if (r < 0) {
            report_bad_child(q->children[i], BLOCK_VOTE_READ, r, offset, iov.size);
        }
    }
    if (r < 0) {
        report_quorum_failure(node, BLOCK_VOTE_READ, offset, iov.size);
    }
    return r;
}

int quorum_co_preadv(struct block_node *node, uint64_t offset, struct iov iov, unsigned flags)
{
    struct quorum *q = node->opaque;

    if (flags & BLOCK_REQ_PREFETCH) {
        return 0; /* a hint */
    }
    return q->pattern == QUORUM_READ_FIFO ? co_read_first_good(node, offset, iov, flags)
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
    struct part parts[QUORUM_CHILDREN_MAX] = {0};
    struct range_entry range;

    for (int i = 0; i < q->count; i++) {
        parts[i] = *what;
        parts[i].edge = q->children[i];
    }
    co_range_lock(&q->writes, &range, what->offset, what->length, true);
    co_do_all(parts, q->count);
    range_unlock(&q->writes, &range);
    if (is_request_refused(q, parts)) {
        return -ENOTSUP;
    }
    return count_results(node, parts, BLOCK_VOTE_WRITE, what->offset, what->length);
}

int quorum_co_pwritev(struct block_node *node, uint64_t offset, struct iov iov, unsigned flags)
{
    return co_change_all(
        node,
        &(struct part){
            .op = PART_WRITE, .offset = offset, .length = iov.size, .iov = iov, .flags = flags});
}

int quorum_co_write_zeroes(struct block_node *node, uint64_t offset, uint64_t length,
                           unsigned flags)
{
    return co_change_all(
        node, &(struct part){.op = PART_ZERO, .offset = offset, .length = length, .flags = flags});
}

int quorum_co_flush(struct block_node *node)
{
    struct quorum *q = node->opaque;
    struct part parts[QUORUM_CHILDREN_MAX] = {0};

    for (int i = 0; i < q->count; i++) {
        parts[i] = (struct part){.edge = q->children[i], .op = PART_FLUSH};
    }
    co_do_all(parts, q->count);
    return count_results(node, parts, BLOCK_VOTE_FLUSH, 0, block_node_size(node));
}

/* --- status ----------------------------------------------------------------------------------- */

/*
 * Zero where all children say so; else data, as far as any child says so: what differs is read and
 * voted about, also by those who leave zeroes out.
 */
int quorum_co_status(struct block_node *node, uint64_t offset, uint64_t length,
                     struct block_status *ret_status)
{
    struct quorum *q = node->opaque;
    uint64_t data_length = 0, zero_length = length;
    int data = 0, zero = 0;

    for (int i = 0; i < q->count && (q->pattern == QUORUM_READ_VOTE || data + zero == 0); i++) {
        struct block_status status;
        int r = block_co_status_above(q->children[i], NULL, offset, length, &status, NULL);

        if (r < 0) {
            report_bad_child(q->children[i], BLOCK_VOTE_READ, r, offset, length);
        } else if (status.flags & BLOCK_STATUS_ZERO) {
            zero++;
            zero_length = MIN(zero_length, status.length);
        } else {
            data++;
            data_length = MAX(data_length, status.length);
        }
    }
    if (data + zero < (q->pattern == QUORUM_READ_VOTE ? q->threshold : 1)) {
        return -EIO;
    }
    if (data == 0 && (q->pattern == QUORUM_READ_FIFO || zero >= q->threshold)) {
        *ret_status =
            (struct block_status){BLOCK_STATUS_ZERO | BLOCK_STATUS_ALLOCATED, zero_length, 0, NULL};
    } else {
        *ret_status = (struct block_status){BLOCK_STATUS_DATA | BLOCK_STATUS_ALLOCATED,
                                            data ? data_length : zero_length, 0, NULL};
    }
    return 0;
}
