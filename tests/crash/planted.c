/* SPDX-License-Identifier: Apache-2.0 */
#include "planted.h"

#include <string.h>

#include "base/checked.h"

#define DROP_EVERY 3u

const char *const planted_names[] = {"drop-flush", "inner-flush", "hoist", NULL};

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

/* The last flush answered in a span of time; NULL if there is none. */
static struct record_op *last_flush(struct record_log *log, uint64_t begin, uint64_t end)
{
    struct record_op *last = NULL;

    for (size_t i = 0; i < log->count; i++) {
        struct record_op *op = &log->ops[i];

        if (op->kind == RECORD_FLUSH && op->begin >= begin && op->end <= end &&
            (!last || op->end > last->end)) {
            last = op;
        }
    }
    return last;
}

static void inner_flush(struct workload *w)
{
    struct model *m = &w->model;

    for (size_t i = 0; i < w->log.count; i++) {
        w->log.ops[i].ignored = w->log.ops[i].kind == RECORD_FLUSH;
    }
    for (size_t i = 0; i < m->count; i++) {
        if (m->ops[i].kind == MODEL_FLUSH) {
            struct record_op *op = last_flush(&w->log, m->ops[i].begin, m->ops[i].end);

            if (op) {
                op->ignored = false;
            }
        }
    }
    for (unsigned i = 0; i < m->session_count; i++) {
        struct record_op *op =
            last_flush(&w->log, m->sessions[i].close_begin, m->sessions[i].close_end);

        if (op) {
            op->ignored = false;
        }
    }
}

/* Each metadata write that was sent first thing after a flush was sent before it instead. */
static void hoist(struct workload *w)
{
    struct record_log *log = &w->log;

    for (size_t i = 0; i < log->count; i++) {
        const struct record_op *flush = NULL;

        if (log->ops[i].kind == RECORD_FLUSH || !log->ops[i].metadata) {
            continue;
        }
        for (size_t k = 0; k < log->count; k++) {
            if (log->ops[k].kind == RECORD_FLUSH && log->ops[k].end < log->ops[i].begin &&
                (!flush || log->ops[k].end > flush->end)) {
                flush = &log->ops[k];
            }
        }
        if (flush) {
            log->ops[i].begin = flush->begin > 0 ? flush->begin - 1 : 0;
        }
    }
}

bool planted_apply(struct workload *w, const char *name)
{
    static void (*const bugs[])(struct workload * w) = {drop_flush, inner_flush, hoist};

    for (size_t i = 0; i < ARRAY_SIZE(bugs); i++) {
        if (strcmp(planted_names[i], name) == 0) {
            bugs[i](w);
            return true;
        }
    }
    return false;
}
