/* SPDX-License-Identifier: Apache-2.0 */
#include "explore.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "image.h"
#include "loop/loop.h"
#include "planted.h"
#include "random.h"
#include "states.h"
#include "verify.h"
#include "workload.h"

#define STATES_PER_WORKLOAD 200u
#define PHASES 24u /* after which a workload is given up, if too few of its states count */
#define TRIES (STATES_PER_WORKLOAD * PHASES)
#define FAILURES_PER_WORKLOAD 3u
#define PROGRESS_EVERY 10000u /* states counted */
#define SOON 24u /* after a metadata write was sent: when crashes are worth looking at */

/* --- distinct states -------------------------------------------------------------------------- */

static bool insert(uint64_t *slots, uint64_t count, uint64_t hash)
{
    uint64_t slot;

    for (slot = hash % count; slots[slot]; slot = (slot + 1) % count) {
        if (slots[slot] == hash) {
            return false;
        }
    }
    slots[slot] = hash;
    return true;
}

/* True if it was not there. */
static bool seen_add(struct seen *s, uint64_t hash)
{
    if (2 * s->used >= s->count) {
        uint64_t count = s->count ? 2 * s->count : 4096;
        uint64_t *slots = calloc(count, sizeof(*slots));

        if (!slots) {
            abort();
        }
        for (uint64_t i = 0; i < s->count; i++) {
            if (s->slots[i]) {
                insert(slots, count, s->slots[i]);
            }
        }
        free(s->slots);
        s->slots = slots;
        s->count = count;
    }
    if (!insert(s->slots, s->count, hash | 1)) {
        return false;
    }
    s->used++;
    return true;
}

void explore_release(struct explorer *x)
{
    free(x->counted_hashes.slots);
    free(x->checked_hashes.slots);
}

/* --- what went wrong -------------------------------------------------------------------------- */

static void dump_file(struct explorer *x, const struct pages *pages, const char *name)
{
    FILE *file = fopen(name, "wb");
    uint8_t data[PAGE_BYTES];
    bool ok = file != NULL;

    for (uint64_t at = 0; at < pages->size && ok; at += PAGE_BYTES) {
        uint64_t n = MIN(PAGE_BYTES, pages->size - at);

        pages_read(pages, at, data, n);
        ok = fwrite(data, 1, n, file) == n;
    }
    if (file) {
        ok = fclose(file) == 0 && ok;
    }
    if (!ok) {
        fprintf(x->report, "could not write %s\n", name);
    }
}

/* The image that users have is *.qcow2. */
static void dump(struct explorer *x, const struct workload *w, const struct crash_state *state)
{
    unsigned top = w->config.job ? model_top_at(&w->model, state->time + 1) : IMAGE_FILE;

    for (unsigned i = 0; i < RECORD_DISKS; i++) {
        char name[96];

        snprintf(name, sizeof(name), "crash-%" PRIu64 "-%" PRIu64 ".%s", w->seed, state->index,
                 i == top ? "qcow2" : image_disk_name(i));
        if (state->disks[i].size > 0) {
            dump_file(x, &state->disks[i], name);
        }
    }
}

static void report(struct explorer *x, const struct workload *w, const struct crash_state *state,
                   const struct error *err)
{
    x->failed++;
    if (x->plant && x->failed > 1) {
        return;
    }
    fprintf(x->report,
            "FAILED: %s\n  workload seed %" PRIu64 " (%s%s%s), clusters of %u bytes, state %" PRIu64
            ", crash at %" PRIu64 " of %" PRIu64 ": %s of %u requests (%u lost, %u torn)\n"
            "  again: crash_explorer --seed %" PRIu64,
            error_message(err), w->seed, w->config.name, w->config.bitmaps ? ", bitmaps" : "",
            w->config.compressed ? ", compressed" : "", w->config.cluster_size, state->index,
            state->time, w->log.clock, state->how, state->unstable, state->lost, state->torn,
            w->seed);
    if (x->config) {
        fprintf(x->report, " --config %s", x->config);
    }
    if (x->cluster_size) {
        fprintf(x->report, " --cluster-size %u", x->cluster_size);
    }
    fprintf(x->report, " --size %" PRIu64 " --ops %u --sessions %u%s%s --only %" PRIu64 "\n",
            w->size, w->ops, w->sessions, x->no_bitmaps ? " --no-bitmaps" : "",
            x->guest_only ? " --guest-only" : "", state->index);
    fflush(x->report);
    if (!x->plant) {
        fprintf(x->report, "  the image is written to the current directory\n");
        dump(x, w, state);
    }
}

static void print_guest_op(const struct model_op *op, size_t number)
{
    printf("  %5" PRIu64 " %5" PRId64 "  guest %zu %-8s sectors %" PRIu64 " + %" PRIu64 "\n",
           op->begin, (int64_t)op->end, number, model_kind_name(op->kind), op->sector, op->sectors);
}

static void print_disk_op(const struct record_op *op)
{
    static const char *const kinds[] = {"write", "zeroes", "truncate", "flush"};

    printf("  %5" PRIu64 " %5" PRIu64 "    %s %-8s 0x%" PRIx64 " + 0x%" PRIx64 "%s%s\n", op->begin,
           op->end, image_disk_name(op->disk), kinds[op->kind], op->offset, op->length,
           op->metadata ? " metadata" : "", op->ignored ? " ignored" : "");
}

/* What the guest asked for and what reached the disks up to the crash: for finding out why. */
static void print_history(const struct workload *w, uint64_t time)
{
    for (uint64_t now = 0; now <= time; now++) {
        for (size_t i = 0; i < w->model.count; i++) {
            if (w->model.ops[i].begin == now) {
                print_guest_op(&w->model.ops[i], i);
            }
        }
        for (size_t i = 0; i < w->log.count; i++) {
            if (w->log.ops[i].begin == now) {
                print_disk_op(&w->log.ops[i]);
            }
        }
    }
}

/* --- one workload ----------------------------------------------------------------------------- */

static int compare_times(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

    return x < y ? -1 : x > y;
}

/* What comes next to a moment of a job: its beginning, its end, a change of the image on top. */
static uint64_t pick_moment(const struct workload *w, uint64_t *random)
{
    uint64_t moment = w->model.moments[random_below(random, w->model.moment_count)];
    uint64_t time = moment + random_below(random, 2 * SOON);

    return MIN(time > SOON ? time - SOON : 1, w->log.clock);
}

/* One of four anywhere, the others soon after a metadata write was sent. */
static uint64_t pick_time(const struct workload *w, uint64_t *random)
{
    if (w->model.moment_count > 0 && random_below(random, 3) == 0) {
        return pick_moment(w, random);
    }
    for (unsigned i = 0; i < 64 && w->log.count > 0 && random_below(random, 4) > 0; i++) {
        const struct record_op *op = &w->log.ops[random_below(random, w->log.count)];

        if (op->metadata) {
            uint64_t time = op->begin + random_below(random, SOON);

            return MIN(time, w->log.clock);
        }
    }
    return 1 + random_below(random, w->log.clock);
}

static uint64_t *pick_times(const struct workload *w)
{
    uint64_t *times = malloc(TRIES * sizeof(*times));
    uint64_t random = random_mix(w->seed + 77);

    if (!times) {
        abort();
    }
    for (size_t i = 0; i < TRIES; i++) {
        times[i] = pick_time(w, &random);
    }
    qsort(times, TRIES, sizeof(*times), compare_times);
    return times;
}

/* What a state is to hold depends on the time, too. */
static uint64_t verdict_hash(const struct workload *w, const struct crash_state *state)
{
    return random_mix(state->hash + random_mix(model_stable_until(&w->model, state->time)));
}

/* Evenly among those that count. */
static bool is_to_be_dumped(const struct explorer *x)
{
    return x->dumped < x->dump && x->dumped * x->states_wanted <= x->counted * x->dump;
}

static void co_check_state(struct explorer *x, struct workload *w, struct crash_state *state,
                           const struct image_disks *disks)
{
    ERROR_AUTO(err);

    if (x->only >= 0) {
        print_history(w, state->time);
    } else if ((!state->metadata_hurt && state->index % x->uncounted_every > 0) ||
               !seen_add(&x->checked_hashes, verdict_hash(w, state))) {
        return;
    }
    x->checked++;
    if (state->metadata_hurt && is_to_be_dumped(x)) {
        x->dumped++;
        dump(x, w, state);
    }
    if (verify_co_state(w, state, disks, &err) < 0) {
        report(x, w, state, &err);
    }
    if (state->metadata_hurt && seen_add(&x->counted_hashes, state->hash)) {
        x->counted++;
        x->counted_by_kind[w->config.kind]++;
    }
}

static bool may_go_on(const struct explorer *x)
{
    return x->ret == 0 && (x->failed == 0 || x->keep_going);
}

/* What one workload shows, it shows again and again. */
static bool shows_more(const struct explorer *x)
{
    return may_go_on(x) && x->failed < x->failed_before + FAILURES_PER_WORKLOAD;
}

static void co_explore(struct explorer *x, struct workload *w, uint64_t wanted)
{
    uint64_t *times = pick_times(w);
    uint64_t goal = x->counted + wanted;
    struct crash_state state = {0};
    struct crash_states states;
    struct image_disks disks;
    ERROR_AUTO(err);

    if (image_co_open_disks(&disks, "crashed", &err) < 0) {
        fprintf(x->report, "%s\n", error_message(&err));
        x->ret = 1;
    }
    /*
     * Each phase spreads over the whole run, and goes forward in time as crash_states_make() wants
     * it.
     */
    for (size_t phase = 0; phase < PHASES && x->counted < goal && shows_more(x); phase++) {
        crash_states_init(&states, &w->log, w->seed);
        for (size_t i = phase; i < TRIES && shows_more(x); i += PHASES) {
            if (x->only >= 0 && i != (size_t)x->only) {
                continue;
            }
            crash_states_make(&states, i, times[i], &state);
            x->made++;
            co_check_state(x, w, &state, &disks);
        }
        crash_states_clear(&states);
    }
    image_co_close_disks(&disks);
    crash_state_release(&state);
    free(times);
}

static void set_config(const struct explorer *x, struct workload *w)
{
    struct crash_config *c = &w->config;

    crash_config_choose(c, w->seed, x->config);
    if (x->cluster_size) {
        c->cluster_size = x->cluster_size;
    }
    c->bitmaps = (c->bitmaps || (x->guest_only && c->version > 2)) && !x->no_bitmaps;
    if (x->guest_only) {
        c->snapshots = c->resize = false;
    }
}

static void co_run_workload(struct explorer *x, uint64_t seed, uint64_t wanted)
{
    struct workload w = {.seed = seed, .size = x->size, .sessions = x->sessions, .ops = x->ops};
    ERROR_AUTO(err);

    set_config(x, &w);
    x->failed_before = x->failed;
    x->workloads++;
    x->workloads_by_kind[w.config.kind]++;
    if (workload_co_run(&w, &err) < 0) {
        fprintf(x->report,
                "FAILED without a crash: workload seed %" PRIu64
                " (%s), clusters of %u bytes: %s\n",
                seed, w.config.name, w.config.cluster_size, error_message(&err));
        x->failed++;
        x->ret = x->keep_going ? x->ret : 1;
    } else {
        if (x->plant) {
            planted_apply(&w, x->plant);
        }
        co_explore(x, &w, wanted);
    }
    workload_clear(&w);
}

void explore_co_run(struct explorer *x)
{
    uint64_t barren = 0;

    x->next_seed = x->seed;
    while (x->counted < x->states_wanted && may_go_on(x) &&
           (x->end_ns == 0 || loop_now_ns() < x->end_ns)) {
        uint64_t before = x->counted;

        co_run_workload(x, x->next_seed++, MIN(STATES_PER_WORKLOAD, x->states_wanted - x->counted));
        if (x->only >= 0) {
            break;
        }
        if (x->counted / PROGRESS_EVERY > before / PROGRESS_EVERY) {
            fprintf(x->report, "%" PRIu64 " states counted, %" PRIu64 " failed\n", x->counted,
                    x->failed);
            fflush(x->report);
        }
        barren = x->counted == before ? barren + 1 : 0;
        if (barren > 100) {
            fprintf(x->report, "the workloads leave nothing to lose\n");
            x->ret = 1;
        }
    }
}
