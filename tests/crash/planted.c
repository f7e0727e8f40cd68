/* SPDX-License-Identifier: Apache-2.0 */
#include "planted.h"

#include <stddef.h>
#include <string.h>

#include "base/checked.h"
#include "image.h"

#define DROP_EVERY 3u

static void drop_flush(struct workload *w)
{
    unsigned flushes = 0;

    for (size_t i = 0; i < w->log.count; i++) {
        struct record_op *op = &w->log.ops[i];

        if (op->kind == RECORD_FLUSH && ++flushes % DROP_EVERY == 0) {
            op->ignored = true;
        }
    }
}

/* The last flush of a disk answered in a span of time; NULL if there is none. */
static struct record_op *last_flush(struct record_log *log, unsigned disk, uint64_t begin,
                                    uint64_t end)
{
    struct record_op *last = NULL;

    for (size_t i = 0; i < log->count; i++) {
        struct record_op *op = &log->ops[i];

        if (op->kind == RECORD_FLUSH && op->disk == disk && op->begin >= begin && op->end <= end &&
            (!last || op->end > last->end)) {
            last = op;
        }
    }
    return last;
}

static void keep_last_flushes(struct workload *w, uint64_t begin, uint64_t end)
{
    for (unsigned disk = 0; disk < RECORD_DISKS; disk++) {
        struct record_op *op = last_flush(&w->log, disk, begin, end);

        if (op) {
            op->ignored = false;
        }
    }
}

static void inner_flush(struct workload *w)
{
    struct model *m = &w->model;

    for (size_t i = 0; i < w->log.count; i++) {
        w->log.ops[i].ignored = w->log.ops[i].kind == RECORD_FLUSH;
    }
    for (size_t i = 0; i < m->count; i++) {
        if (m->ops[i].kind == MODEL_FLUSH) {
            keep_last_flushes(w, m->ops[i].begin, m->ops[i].end);
        }
    }
    for (unsigned i = 0; i < m->session_count; i++) {
        keep_last_flushes(w, m->sessions[i].close_begin, m->sessions[i].close_end);
    }
}

/* Each metadata write that was sent first thing after a flush was sent before it instead. */
static void hoist(struct workload *w)
{
    struct record_log *log = &w->log;

    for (size_t i = 0; i < log->count; i++) {
        struct record_op *op = &log->ops[i];
        const struct record_op *flush = NULL;

        if (op->kind != RECORD_FLUSH && op->metadata) {
            flush = last_flush(log, op->disk, 0, op->begin - 1);
        }
        if (flush) {
            op->begin = flush->begin > 0 ? flush->begin - 1 : 0;
        }
    }
}

static void ignore_flushes(struct workload *w, unsigned disk)
{
    for (size_t i = 0; i < w->log.count; i++) {
        struct record_op *op = &w->log.ops[i];

        op->ignored |= op->kind == RECORD_FLUSH && op->disk == disk;
    }
}

static void data_flush(struct workload *w)
{
    ignore_flushes(w, IMAGE_DATA_FILE);
}

static void base_flush(struct workload *w)
{
    ignore_flushes(w, IMAGE_BASE_FILE);
}

/* Only the image that users have is flushed, until users leave it. */
static void other_flush(struct workload *w)
{
    for (size_t i = 0; i < w->log.count; i++) {
        struct record_op *op = &w->log.ops[i];

        op->ignored |= op->kind == RECORD_FLUSH && op->disk != model_top_at(&w->model, op->begin);
    }
}

/* Answered only after the next flush of its disk was sent. */
static void delay(struct record_log *log, struct record_op *op)
{
    const struct record_op *next = NULL;

    for (size_t i = 0; i < log->count; i++) {
        const struct record_op *flush = &log->ops[i];

        if (flush->kind == RECORD_FLUSH && flush->disk == op->disk && flush->begin >= op->end &&
            (!next || flush->begin < next->begin)) {
            next = flush;
        }
    }
    op->end = next ? next->begin + 1 : op->end;
}

static void late_mark(struct workload *w)
{
    for (size_t i = 0; i < w->log.count; i++) {
        struct record_op *op = &w->log.ops[i];

        if (op->kind == RECORD_WRITE && op->disk == IMAGE_FILE && op->offset == 0) {
            delay(&w->log, op);
        }
    }
}

static void second_flush(struct workload *w)
{
    w->no_flush_after_crash = true;
}

static const struct {
    const char *name;
    void (*apply)(struct workload *w);
} bugs[] = {
    {"drop-flush", drop_flush},     {"inner-flush", inner_flush}, {"hoist", hoist},
    {"data-flush", data_flush},     {"base-flush", base_flush},   {"late-mark", late_mark},
    {"second-flush", second_flush}, {"other-flush", other_flush},
};

const char *const planted_names[] = {"drop-flush",   "inner-flush", "hoist",
                                     "data-flush",   "base-flush",  "late-mark",
                                     "second-flush", "other-flush", NULL};

bool planted_apply(struct workload *w, const char *name)
{
    for (size_t i = 0; i < ARRAY_SIZE(bugs); i++) {
        if (strcmp(bugs[i].name, name) == 0) {
            bugs[i].apply(w);
            return true;
        }
    }
    return false;
}
