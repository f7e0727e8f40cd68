/* SPDX-License-Identifier: Apache-2.0 */
#include "backup/audit.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "backup/backup_internal.h"
#include "backup/giving_up.h"
#include "backup/kind_map.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "base/progress.h"
#include "co/sync.h"
#include "loop/loop.h"

/* Clusters that a worker takes at a time; more where their digests are asked for. */
#define READ_WINDOW 128u
#define WINDOW 1024u
/* Fewer that are to be compared are read: the questions of all workers wait for each other. */
#define WORTH_ASKING 8u
#define AUDITORS 8
#define WATCH_INTERVAL_NS (NS_PER_SECOND / 4)

enum audit_kind { AUDIT_SAME, AUDIT_MARKED, AUDIT_MISSED };

struct audit {
    struct run *run;
    struct pull_input *input;
    struct audit_result *result;
    struct kind_map kinds; /* enum audit_kind of each cluster */
    uint8_t zero_digest[SUMS_DIGEST_SIZE];
    uint64_t clusters;
    uint64_t next; /* cluster */
    /* The input computes digests, as far as is known: what has the right one is not read. */
    bool asks;
    struct co_mutex asking; /* one question at a time */
    int64_t watched_ns;
    struct progress progress;
    int status; /* the first failure */
    struct error *err;
    struct co_group group;
};

/* --- one window ------------------------------------------------------------------------------- */

struct window {
    struct audit *audit;
    uint64_t first, count;
    bool data[WINDOW];                          /* may hold other than zeroes */
    uint64_t known, known_end;                  /* clusters whose digests the input has computed */
    uint8_t digests[WINDOW * SUMS_DIGEST_SIZE]; /* of these */
};

static int note_audited_data(void *arg, uint64_t offset, uint64_t length)
{
    struct window *w = arg;
    uint64_t first = offset / BACKUP_CLUSTER_SIZE;
    uint64_t end = div_round_up(offset + length, BACKUP_CLUSTER_SIZE);

    for (uint64_t c = MAX(first, w->first); c < end && c < w->first + w->count; c++) {
        w->data[c - w->first] = true;
    }
    return 0;
}

static int note_marked(void *arg, uint64_t offset, uint64_t length)
{
    struct audit *a = arg;
    uint64_t first = offset / BACKUP_CLUSTER_SIZE;
    uint64_t end = MIN(div_round_up(offset + length, BACKUP_CLUSTER_SIZE), a->clusters);

    return first < end ? kind_map_set(&a->kinds, first, end - first, AUDIT_MARKED) : 0;
}

/* The digests that the chain has for clusters from `first` on. */
static int expected_digests(const struct audit *a, uint64_t first, uint64_t count,
                            uint8_t *ret_digests)
{
    int r = 0;

    for (uint64_t done = 0; r == 0 && done < count;) {
        uint8_t *to = ret_digests + done * SUMS_DIGEST_SIZE;
        struct chain_extent e;

        chain_extent_at(&a->run->parent, first + done, count - done, &e);
        if (e.layer && e.kind == SUMS_DATA) {
            r = chain_read_digests(&e, 0, e.count, to);
        } else {
            for (uint64_t i = 0; i < e.count; i++) {
                memcpy(to + i * SUMS_DIGEST_SIZE, a->zero_digest, SUMS_DIGEST_SIZE);
            }
        }
        done += e.count;
    }
    return r;
}

/* The digests of what the disk has; clusters without data are not read. */
static int co_actual_digests(const struct window *w, uint64_t first, uint64_t count, uint8_t *buf,
                             uint8_t *ret_digests)
{
    struct pull_input *input = w->audit->input;
    uint64_t disk_size = w->audit->run->source->disk.size;
    uint64_t offset = first * BACKUP_CLUSTER_SIZE;
    uint64_t size = count * BACKUP_CLUSTER_SIZE, there = MIN(size, disk_size - offset);
    int r;

    if (!w->data[first - w->first]) {
        for (uint64_t i = 0; i < count; i++) {
            memcpy(ret_digests + i * SUMS_DIGEST_SIZE, w->audit->zero_digest, SUMS_DIGEST_SIZE);
        }
        return 0;
    }
    r = input->ops->co_read(input, offset, buf, there);
    memset(buf + there, 0, size - there);
    UNLESS_FAILED(r, sums_co_digest_clusters(buf, size, ret_digests));
    return r;
}

/* Clusters that are all of a kind: not marked, and with data or all without. */
static int co_compare_piece(const struct window *w, uint64_t first, uint64_t count, uint8_t *buf)
{
    uint8_t expected[CHAIN_PIECE * SUMS_DIGEST_SIZE], actual[CHAIN_PIECE * SUMS_DIGEST_SIZE];
    int r = expected_digests(w->audit, first, count, expected);

    UNLESS_FAILED(r, co_actual_digests(w, first, count, buf, actual));
    for (uint64_t i = 0; r == 0 && i < count; i++) {
        if (memcmp(expected + i * SUMS_DIGEST_SIZE, actual + i * SUMS_DIGEST_SIZE,
                   SUMS_DIGEST_SIZE) != 0) {
            r = kind_map_set(&w->audit->kinds, first + i, 1, AUDIT_MISSED);
        }
    }
    w->audit->result->compared += count * BACKUP_CLUSTER_SIZE;
    return r;
}

/* By the digests of the input; what it says to differ is read. */
static int co_compare_known(const struct window *w, uint64_t first, uint64_t count, uint8_t *buf)
{
    uint8_t expected[CHAIN_PIECE * SUMS_DIGEST_SIZE];
    const uint8_t *known = w->digests + (first - w->first) * SUMS_DIGEST_SIZE;
    int r = expected_digests(w->audit, first, count, expected);

    for (uint64_t i = 0; r == 0 && i < count; i++) {
        if (memcmp(expected + i * SUMS_DIGEST_SIZE, known + i * SUMS_DIGEST_SIZE,
                   SUMS_DIGEST_SIZE) != 0) {
            r = co_compare_piece(w, first + i, 1, buf);
        }
    }
    return r;
}

/* Ask for the digests of what is to be compared, with what lies between. */
static void co_learn_digests(struct window *w, const uint8_t *marked)
{
    struct audit *a = w->audit;
    uint64_t first = w->count, end = 0, wanted = 0;

    for (uint64_t i = 0; i < w->count; i++) {
        if (w->data[i] && !marked[i]) {
            first = MIN(first, i);
            end = i + 1;
            wanted++;
        }
    }
    w->known = w->known_end = w->first + first;
    while (a->asks && wanted >= WORTH_ASKING && w->known_end < w->first + end) {
        uint64_t offset = w->known_end * BACKUP_CLUSTER_SIZE, count = 0;
        uint64_t size = MIN((w->first + end) * BACKUP_CLUSTER_SIZE, a->run->source->disk.size);
        int r = -EIO;

        co_mutex_lock(&a->asking);
        if (a->asks) {
            r = a->input->ops->co_digests(a->input, offset, size - offset,
                                          w->digests + (w->known_end - w->first) * SUMS_DIGEST_SIZE,
                                          &count);
        }
        a->asks = r == 0 && count > 0;
        co_mutex_unlock(&a->asking);
        w->known_end += a->asks ? count : 0;
    }
}

static bool digest_is_known(const struct window *w, uint64_t cluster)
{
    return cluster >= w->known && cluster < w->known_end;
}

static int co_audit_window(struct window *w, uint8_t *buf)
{
    struct audit *a = w->audit;
    uint64_t offset = w->first * BACKUP_CLUSTER_SIZE, end = w->first + w->count, n;
    /* Marks are not set meanwhile. */
    uint8_t marked[WINDOW] = {0};
    uint64_t size = MIN(w->count * BACKUP_CLUSTER_SIZE, a->run->source->disk.size - offset);
    int r = a->input->ops->co_data(a->input, offset, size, note_audited_data, w);

    for (uint64_t i = 0; i < w->count; i++) {
        marked[i] = kind_map_get(&a->kinds, w->first + i) == AUDIT_MARKED;
    }
    if (r == 0) {
        co_learn_digests(w, marked);
    }
    for (uint64_t c = w->first; r == 0 && c < end; c += n) {
        const uint8_t *mark = &marked[c - w->first];
        const bool *data = &w->data[c - w->first];

        for (n = 1; n < CHAIN_PIECE && c + n < end && mark[n] == mark[0] && data[n] == data[0] &&
                    digest_is_known(w, c + n) == digest_is_known(w, c);) {
            n++;
        }
        if (!mark[0]) {
            r = data[0] && digest_is_known(w, c) ? co_compare_known(w, c, n, buf)
                                                 : co_compare_piece(w, c, n, buf);
        }
    }
    if (r == 0) {
        a->input->ops->co_release(a->input, offset, size);
        progress_add(&a->progress, size);
    }
    return r;
}

/* --- all of them ------------------------------------------------------------------------------ */

/* Whether to go on: no failure, no stop, and the source lives. */
static bool may_go_on(struct audit *a)
{
    struct run *run = a->run;
    volatile sig_atomic_t *stop = run->options->stop;

    if (a->status == 0 && stop && *stop) {
        a->status = error_set(a->err, EINTR, "Stopped");
    }
    if (a->status == 0 && loop_now_ns() > a->watched_ns + WATCH_INTERVAL_NS) {
        a->watched_ns = loop_now_ns();
        a->status = run->source->ops->watch(run->source, a->err);
    }
    return a->status == 0;
}

static void co_auditor(void *arg)
{
    struct audit *a = arg;
    uint8_t *buf = malloc((size_t)CHAIN_PIECE * BACKUP_CLUSTER_SIZE);
    struct window *w AUTO_FREE = malloc(sizeof(*w));

    if ((!buf || !w) && a->status == 0) {
        a->status = error_out_of_memory(a->err);
    }
    while (buf && w && a->next < a->clusters && may_go_on(a)) {
        uint64_t most = a->asks ? WINDOW : READ_WINDOW;
        int r;

        *w = (struct window){
            .audit = a, .first = a->next, .count = MIN(most, a->clusters - a->next)};
        a->next += w->count;
        r = co_audit_window(w, buf);
        if (r < 0 && a->status == 0) {
            a->status = error_set_errno(a->err, -r, "Could not compare the disk at offset %" PRIu64,
                                        w->first * BACKUP_CLUSTER_SIZE);
        }
    }
    free(buf);
    co_group_done(&a->group);
}

static int co_audit_all(struct audit *a)
{
    progress_begin(&a->progress, stderr, a->run->options->progress, "audit",
                   a->run->source->disk.size);
    co_group_init(&a->group);
    co_mutex_init(&a->asking);
    a->asks = a->input->ops->co_digests != NULL;
    for (int i = 0; i < AUDITORS; i++) {
        int r;

        co_group_add(&a->group);
        r = co_spawn(reactor_home(reactor_main()), co_auditor, a);
        if (r < 0) {
            co_group_done(&a->group);
            if (i == 0) {
                a->status = error_set_errno(a->err, -r, "Could not start reading");
            }
            break;
        }
    }
    co_group_wait(&a->group);
    co_group_destroy(&a->group);
    co_mutex_destroy(&a->asking);
    progress_end(&a->progress, a->status == 0);
    return a->status;
}

static void sum_up(const struct audit *a)
{
    struct audit_result *result = a->result;
    uint64_t disk_size = a->run->source->disk.size;

    for (uint64_t c = 0, next; c < a->clusters; c = next) {
        unsigned kind = kind_map_get(&a->kinds, c);
        uint64_t offset = c * BACKUP_CLUSTER_SIZE, size;

        next = kind_map_run_end(&a->kinds, c, a->clusters);
        size = MIN((next - c) * BACKUP_CLUSTER_SIZE, disk_size - offset);
        if (kind == AUDIT_MARKED) {
            result->marked += size;
        } else if (kind == AUDIT_MISSED) {
            result->missed += size;
            if (result->count < AUDIT_AREAS_MAX) {
                result->areas[result->count++] = (struct audit_area){offset, size};
            }
        }
    }
    result->compared = disk_size - result->marked;
}

static int co_read_view(struct audit *a)
{
    struct pull_input *input = a->input;
    uint64_t before = a->run->base->manifest.virtual_size, disk_size = a->run->source->disk.size;
    uint8_t *zeroes AUTO_FREE = calloc(1, BACKUP_CLUSTER_SIZE);
    int r = zeroes ? sums_co_digest_clusters(zeroes, BACKUP_CLUSTER_SIZE, a->zero_digest) : -ENOMEM;

    if (r < 0) {
        return error_set_errno(a->err, -r, "Could not make checksums");
    }
    r = input->ops->co_changed(input, note_marked, a, a->err);
    /* What the disk has grown by is part of the next backup, whatever the bitmap says. */
    UNLESS_FAILED(r, before < disk_size ? note_marked(a, before, disk_size - before) : 0);
    UNLESS_FAILED(r, input->ops->co_begin(input, a->run->source->disk.size, a->err));
    UNLESS_FAILED(r, co_audit_all(a));
    return r;
}

static void co_give_up_view(void *arg)
{
    const struct audit *a = arg;

    a->input->ops->co_give_up(a->input);
}

static int co_audit_view(struct run *run, struct audit_result *result, struct error *err)
{
    struct audit a = {.run = run, .result = result, .err = err};
    struct giving_up giving_up;
    int r;

    a.clusters = div_round_up(run->source->disk.size, BACKUP_CLUSTER_SIZE);
    r = kind_map_init(&a.kinds, a.clusters) == 0
            ? run->source->ops->co_open_view(run->source, &a.input, err)
            : error_out_of_memory(err);
    if (r == 0) {
        giving_up_begin(&giving_up, run->options->stop, co_give_up_view, &a);
        r = co_read_view(&a);
        r = giving_up_co_end(&giving_up, r, "Stopped", err);
    }
    pull_input_co_close(a.input);
    if (r == 0) {
        sum_up(&a);
    }
    kind_map_clear(&a.kinds);
    return r;
}

/* --- the run ---------------------------------------------------------------------------------- */

static int check_audited_base(const struct run *run, struct error *err)
{
    if (!run->base || run->compare) {
        error_set(err, ENODATA, "There is nothing to audit: %s", run->manifest.reason);
        error_hint(err, "A backup compares the whole disk then, or takes all of it.");
        return -ENODATA;
    }
    return 0;
}

/* From the checkpoint on, the source is settled as after a backup that failed. */
static int co_audit_source(struct run *run, struct audit_result *result, struct error *err)
{
    struct source *source = run->source;
    ERROR_AUTO(settle_err);
    int r = source->ops->co_checkpoint(&source, 1, &run->manifest.begin, &run->manifest.end, err);
    int settled;

    if (r < 0) {
        return r;
    }
    r = co_audit_view(run, result, err);
    settled = source->ops->co_end(source, run_last_bitmap(run), &settle_err);
    if (r == 0 && settled < 0) {
        error_move(err, &settle_err);
        r = settled;
    }
    return r;
}

int audit_co_run(const struct backup_options *options, struct audit_result *ret_result,
                 struct error *err)
{
    struct audit_result result = {0};
    struct giving_up giving_up;
    struct run *run;
    struct group g;
    int r;

    giving_up_begin(&giving_up, options->stop, group_co_give_up_attempts, NULL);
    r = group_co_open(options, &g, err);
    run = g.runs;
    UNLESS_FAILED(r, run_co_prepare(run, err));
    UNLESS_FAILED(r, check_audited_base(run, err));
    if (r == 0) {
        run->source->whole = true;
    }
    UNLESS_FAILED(r, co_audit_source(run, &result, err));
    if (r == 0) {
        memcpy(result.id, run->base->id, sizeof(result.id));
        *ret_result = result;
    }
    group_co_clear(&g);
    return giving_up_co_end(&giving_up, r, "Stopped", err);
}
