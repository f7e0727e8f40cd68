/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/machine/accounting.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/time_units.h"
#include "cli/machine/clock.h"
#include "qmp/answer.h"
#include "qmp/latency.h"

/* What a request takes on a clock that only moves when a test moves it. */
#define STEPPED_LATENCY_NS (NS_PER_SECOND / 1000)

struct accounting_sample {
    int64_t at_ns, took_ns;
    enum io_account_op op;
};

void accounting_init(struct accounting *a)
{
    *a = (struct accounting){.account_invalid = true, .account_failed = true};
    latency_set_init(&a->latencies);
}

void accounting_clear(struct accounting *a)
{
    free(a->samples);
    latency_set_destroy(&a->latencies);
    *a = (struct accounting){0};
}

/* Forget samples that no interval covers any more. */
static void drop_old_samples(struct accounting *a)
{
    uint64_t longest = 0;
    size_t old = 0;

    for (size_t i = 0; i < a->interval_count; i++) {
        longest = MAX(longest, a->intervals[i]);
    }
    while (old < a->sample_count &&
           machine_clock_ns() - a->samples[old].at_ns > (int64_t)longest * NS_PER_SECOND) {
        old++;
    }
    if (old > 0) {
        a->sample_count -= old;
        memmove(a->samples, a->samples + old, a->sample_count * sizeof(*a->samples));
    }
}

static void add_sample(struct accounting *a, enum io_account_op op, int64_t took_ns)
{
    if (a->interval_count == 0) {
        return;
    }
    drop_old_samples(a);
    if (a->sample_count == a->sample_room) {
        size_t room = a->sample_room ? 2 * a->sample_room : 64;
        struct accounting_sample *samples = realloc(a->samples, room * sizeof(*samples));

        if (!samples) {
            return; /* an average lacks a request */
        }
        a->samples = samples;
        a->sample_room = room;
    }
    a->samples[a->sample_count++] = (struct accounting_sample){machine_clock_ns(), took_ns, op};
}

static const enum latency_kind kinds[IO_ACCOUNT_OPS] = {[IO_ACCOUNT_READ] = LATENCY_READ,
                                                        [IO_ACCOUNT_WRITE] = LATENCY_WRITE,
                                                        [IO_ACCOUNT_FLUSH] = LATENCY_FLUSH};

void accounting_hook(void *arg, enum io_account_op op, uint64_t offset, uint64_t bytes,
                     enum io_account_outcome outcome, int64_t took_ns)
{
    struct accounting *a = arg;
    struct accounting_figures *f = &a->ops[op];

    took_ns = machine_clock_is_stepped() ? STEPPED_LATENCY_NS : took_ns;
    if (op == IO_ACCOUNT_WRITE && outcome != IO_ACCOUNT_INVALID) {
        a->write_highest = MAX(a->write_highest, offset + bytes);
    }
    if (outcome == IO_ACCOUNT_INVALID) {
        f->invalid++;
        took_ns = 0;
    } else if (outcome == IO_ACCOUNT_FAILED) {
        f->failed++;
    } else {
        f->operations++;
        f->bytes += bytes;
    }
    if ((outcome == IO_ACCOUNT_INVALID && !a->account_invalid) ||
        (outcome == IO_ACCOUNT_FAILED && !a->account_failed)) {
        return;
    }
    a->was_used = true;
    a->last_access_ns = machine_clock_ns();
    if (outcome != IO_ACCOUNT_INVALID) {
        f->time_ns += (uint64_t)took_ns;
        if (op != IO_ACCOUNT_DISCARD) {
            latency_set_add(&a->latencies, kinds[op], took_ns);
        }
        add_sample(a, op, took_ns);
    }
}

/* --- as JSON ---------------------------------------------------------------------------------- */

static const char *const op_names[] = {"rd", "wr", "flush", "unmap"};

static void put_named(struct json_object *to, const char *format, const char *name, uint64_t value)
{
    char key[64];

    snprintf(key, sizeof(key), format, name);
    qmp_put_uint(to, key, value);
}

static const char *const zone_members[] = {
    "min_zone_append_latency_ns", "max_zone_append_latency_ns", "avg_zone_append_latency_ns",
    "avg_zone_append_queue_depth"};

/* Averages of the last `seconds`. */
static struct json_object *interval_json(const struct accounting *a, uint64_t seconds)
{
    struct json_object *o = json_object_new_object();
    int64_t length = (int64_t)seconds * NS_PER_SECOND;

    qmp_put_uint(o, "interval_length", seconds);
    for (enum io_account_op op = IO_ACCOUNT_READ; op <= IO_ACCOUNT_FLUSH; op++) {
        uint64_t least = 0, most = 0, sum = 0, count = 0;

        for (size_t i = 0; i < a->sample_count; i++) {
            const struct accounting_sample *s = &a->samples[i];
            uint64_t took = (uint64_t)s->took_ns;

            if (s->op == op && machine_clock_ns() - s->at_ns <= length) {
                least = count == 0 ? took : MIN(least, took);
                most = MAX(most, took);
                sum += took;
                count++;
            }
        }
        put_named(o, "min_%s_latency_ns", op_names[op], least);
        put_named(o, "max_%s_latency_ns", op_names[op], most);
        put_named(o, "avg_%s_latency_ns", op_names[op], count ? sum / count : 0);
        if (op != IO_ACCOUNT_FLUSH) {
            char key[32];

            snprintf(key, sizeof(key), "avg_%s_queue_depth", op_names[op]);
            json_object_object_add(o, key, json_object_new_double((double)sum / (double)length));
        }
    }
    for (size_t i = 0; i < ARRAY_SIZE(zone_members); i++) {
        qmp_put_uint(o, zone_members[i], 0);
    }
    return o;
}

struct json_object *accounting_json(struct accounting *a)
{
    struct json_object *o = json_object_new_object(), *timed = json_object_new_array();

    drop_old_samples(a);
    for (enum io_account_op op = IO_ACCOUNT_READ; op < IO_ACCOUNT_OPS; op++) {
        const struct accounting_figures *f = &a->ops[op];

        put_named(o, "%s_operations", op_names[op], f->operations);
        put_named(o, "failed_%s_operations", op_names[op], f->failed);
        put_named(o, "invalid_%s_operations", op_names[op], f->invalid);
        put_named(o, "%s_total_time_ns", op_names[op], f->time_ns);
        if (op != IO_ACCOUNT_FLUSH) {
            put_named(o, "%s_bytes", op_names[op], f->bytes);
            put_named(o, "%s_merged", op_names[op], 0);
        }
    }
    qmp_put_uint(o, "wr_highest_offset", a->write_highest);
    if (a->was_used) {
        qmp_put_uint(o, "idle_time_ns", (uint64_t)(machine_clock_ns() - a->last_access_ns));
    }
    qmp_put_bool(o, "account_invalid", a->account_invalid);
    qmp_put_bool(o, "account_failed", a->account_failed);
    for (size_t i = 0; i < a->interval_count; i++) {
        json_object_array_add(timed, interval_json(a, a->intervals[i]));
    }
    json_object_object_add(o, "timed_stats", timed);
    qmp_put_zone_figures(o);
    qmp_put_latencies(o, &a->latencies);
    return o;
}
