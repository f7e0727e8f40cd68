/* SPDX-License-Identifier: Apache-2.0 */
/*
 * crash_explorer: proves the write ordering of qcow2.
 *
 *   for each workload (seed):   run it over a record disk               workload.c, record_disk.c
 *     for each crash time:      make a state that power loss may leave  states.c
 *                               open it and compare with the model      verify.c, model.c
 *
 * A state counts once, and only if a metadata write was lost, torn or overtaken. All is reproducible from the seeds, which a failure
 * names; the state is written to a file.
 */
#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/size.h"
#include "block/driver.h"
#include "file/drivers.h"
#include "loop/loop.h"
#include "planted.h"
#include "qcow2/qcow2.h"
#include "random.h"
#include "states.h"
#include "verify.h"
#include "workload.h"

#define STATES_PER_WORKLOAD 125u
#define PHASES 24u /* after which a workload is given up, if too few of its states count */
#define TRIES (STATES_PER_WORKLOAD * PHASES)

/*
 * Where this program reports to. What the library says on standard error about images that are damaged on purpose is
 * shown only when a single state is looked at.
 */
static FILE *report_file;

struct explorer {
    /* options */
    uint64_t states_wanted;
    uint64_t seed;
    uint64_t size;
    uint32_t cluster_size; /* 0: another one for each workload */
    unsigned sessions, ops;
    bool no_bitmaps, guest_only;
    const char *plant;
    bool keep_going;
    uint64_t dump; /* write so many of the states to files, for other programs to look at */
    int64_t only;  /* state of the first workload to be checked; -1: all */
    /* results */
    uint64_t made, checked, counted, failed;
    uint64_t *hashes; /* open addressing; 0 is free */
    uint64_t hash_slots, hashes_used;
    int ret;
};

/* --- distinct states --------------------------------------------------------------------------------- */

static bool hashes_insert(uint64_t *hashes, uint64_t slots, uint64_t hash)
{
    uint64_t slot;

    for (slot = hash % slots; hashes[slot]; slot = (slot + 1) % slots) {
        if (hashes[slot] == hash) {
            return false;
        }
    }
    hashes[slot] = hash;
    return true;
}

/* True if it was not there. */
static bool hashes_add(struct explorer *x, uint64_t hash)
{
    if (2 * x->hashes_used >= x->hash_slots) {
        uint64_t slots = x->hash_slots ? 2 * x->hash_slots : 4096;
        uint64_t *hashes = calloc(slots, sizeof(*hashes));

        if (!hashes) {
            abort();
        }
        for (uint64_t i = 0; i < x->hash_slots; i++) {
            if (x->hashes[i]) {
                hashes_insert(hashes, slots, x->hashes[i]);
            }
        }
        free(x->hashes);
        x->hashes = hashes;
        x->hash_slots = slots;
    }
    if (!hashes_insert(x->hashes, x->hash_slots, hash | 1)) {
        return false;
    }
    x->hashes_used++;
    return true;
}

/* --- one workload -------------------------------------------------------------------------------------- */

static void dump(const struct workload *w, const struct crash_state *state)
{
    char name[96];
    FILE *file;

    snprintf(name, sizeof(name), "crash-%" PRIu64 "-%" PRIu64 ".qcow2", w->seed, state->index);
    file = fopen(name, "wb");
    if (!file || fwrite(state->data, 1, state->size, file) != state->size) {
        fprintf(report_file, "could not write %s\n", name);
    }
    if (file) {
        fclose(file);
    }
}

static void report(struct explorer *x, const struct workload *w, const struct crash_state *state,
                   const struct error *err)
{
    x->failed++;
    if (x->plant && x->failed > 1) {
        return;
    }
    fprintf(report_file,
            "FAILED: %s\n  workload seed %" PRIu64 ", cluster size %u, state %" PRIu64
            ", crash at %" PRIu64 " of %" PRIu64 ": %s of %u requests (%u lost, %u torn)\n"
            "  again: crash_explorer --seed %" PRIu64 " --cluster-size %u --size %" PRIu64
            " --ops %u --sessions %u%s --only %" PRIu64 "\n",
            error_message(err), w->seed, w->cluster_size, state->index, state->time, w->log.clock,
            state->how, state->unstable, state->lost, state->torn, w->seed, w->cluster_size,
            w->size, w->ops, w->sessions, w->bitmaps ? "" : " --no-bitmaps", state->index);
    if (!x->plant) {
        fprintf(report_file, "  the image is written to the current directory\n");
        dump(w, state);
    }
}

static void print_guest_op(const struct model_op *op, size_t number)
{
    static const char *const kinds[] = {"write",  "zeroes",   "discard", "flush",
                                        "resize", "snapshot", "apply",   "delete"};

    printf("  %5" PRIu64 " %5" PRId64 "  guest %zu %-8s sectors %" PRIu64 " + %" PRIu64 "\n",
           op->begin, (int64_t)op->end, number, kinds[op->kind], op->sector, op->sectors);
}

static void print_disk_op(const struct record_op *op)
{
    static const char *const kinds[] = {"write", "zeroes", "truncate", "flush"};

    printf("  %5" PRIu64 " %5" PRIu64 "    disk %-8s 0x%" PRIx64 " + 0x%" PRIx64 "%s%s\n",
           op->begin, op->end, kinds[op->kind], op->offset, op->length,
           op->metadata ? " metadata" : "", op->ignored ? " ignored" : "");
}

/* What the guest asked for and what reached the disk up to the crash: for finding out why. */
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

static int compare_times(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

    return x < y ? -1 : x > y;
}

static uint64_t *pick_times(const struct workload *w)
{
    uint64_t *times = malloc(TRIES * sizeof(*times));
    uint64_t random = random_mix(w->seed + 77);

    if (!times) {
        abort();
    }
    for (size_t i = 0; i < TRIES; i++) {
        times[i] = 1 + random_below(&random, w->log.clock);
    }
    qsort(times, TRIES, sizeof(*times), compare_times);
    return times;
}

static void co_check_state(struct explorer *x, struct workload *w, const struct crash_state *state,
                           struct block_node *disk)
{
    ERROR_AUTO(err);

    if (x->only >= 0 ? state->index != (uint64_t)x->only : !hashes_add(x, state->hash)) {
        return;
    }
    x->checked++;
    if (x->only >= 0) {
        print_history(w, state->time);
    }
    if (state->metadata_hurt && x->counted < x->dump) {
        dump(w, state);
    }
    if (verify_co_state(w, state, disk, &err) < 0) {
        report(x, w, state, &err);
    }
    if (state->metadata_hurt) {
        x->counted++;
    }
}

static bool may_go_on(const struct explorer *x)
{
    return x->ret == 0 && (x->failed == 0 || x->keep_going);
}

static void co_explore(struct explorer *x, struct workload *w, uint64_t wanted)
{
    uint64_t *times = pick_times(w);
    uint64_t goal = x->counted + wanted;
    struct crash_state state = {0};
    struct crash_states states;
    struct block_node *disk;
    ERROR_AUTO(err);

    if (crash_co_open_disk("crashed", &disk, &err) < 0) {
        fprintf(report_file, "%s\n", error_message(&err));
        x->ret = 1;
        free(times);
        return;
    }
    crash_states_init(&states, &w->log, w->seed);
    /* Each phase spreads over the whole run, and goes forward in time as crash_states_make() wants it. */
    for (size_t phase = 0; phase < PHASES && x->counted < goal && may_go_on(x); phase++) {
        crash_states_clear(&states);
        crash_states_init(&states, &w->log, w->seed);
        for (size_t i = phase; i < TRIES && may_go_on(x); i += PHASES) {
            crash_states_make(&states, i, times[i], &state);
            x->made++;
            co_check_state(x, w, &state, disk);
        }
    }
    crash_states_clear(&states);
    free(state.data);
    free(times);
    block_co_unref(disk);
}

static void co_run_workload(struct explorer *x, uint64_t seed, uint64_t wanted)
{
    static const uint32_t cluster_sizes[] = {4096, 65536, 8192, 32768, 16384};
    struct workload w = {
        .seed = seed,
        .size = x->size,
        .cluster_size =
            x->cluster_size ? x->cluster_size : cluster_sizes[seed % ARRAY_SIZE(cluster_sizes)],
        .sessions = x->sessions,
        .ops = x->ops,
        /* A snapshot can't be applied where there are bitmaps: in half of the workloads. */
        .bitmaps = !x->no_bitmaps && (x->guest_only || seed / 5 % 2 == 0),
        .guest_only = x->guest_only,
    };
    ERROR_AUTO(err);

    if (workload_co_run(&w, &err) < 0) {
        fprintf(report_file, "workload seed %" PRIu64 ", cluster size %u: %s\n", seed,
                w.cluster_size, error_message(&err));
        x->ret = 1;
    } else {
        if (x->plant) {
            planted_apply(&w, x->plant);
        }
        co_explore(x, &w, wanted);
    }
    workload_clear(&w);
}

static void co_main(void *arg)
{
    struct explorer *x = arg;
    uint64_t seed = x->seed;

    while (x->counted < x->states_wanted && may_go_on(x)) {
        uint64_t before = x->counted;

        co_run_workload(x, seed++, MIN(STATES_PER_WORKLOAD, x->states_wanted - x->counted));
        if (x->only >= 0) {
            break;
        }
        if (x->counted == before && seed > x->seed + 100) {
            fprintf(report_file, "the workloads leave nothing to lose\n");
            x->ret = 1;
        }
    }
}

/* --- command line ---------------------------------------------------------------------------------------- */

static const char usage_text[] =
    "Usage: crash_explorer [OPTION]...\n"
    "Run random workloads on qcow2 images, make states that a power cut may leave, check each.\n\n"
    "  --states N         distinct states with damaged metadata to check (500)\n"
    "  --seed S           of the first workload (1)\n"
    "  --size BYTES       of the virtual disk (16M)\n"
    "  --cluster-size B   of all images (4k to 64k, in turn)\n"
    "  --sessions N       times that a workload opens the image (3)\n"
    "  --ops N            guest requests per session (90)\n"
    "  --no-bitmaps       no persistent bitmaps\n"
    "  --guest-only       no internal snapshots, no changes of size\n"
    "  --only K           check state K of the first workload only, and print what was written\n"
    "  --dump N           write the first N states that count to crash-SEED-STATE.qcow2\n"
    "  --keep-going       don't stop at the first failure\n"
    "  --plant BUG        plant an ordering bug: drop-flush, inner-flush or hoist; succeeds if "
    "found\n";

enum {
    OPT_STATES = 256,
    OPT_SEED,
    OPT_SIZE,
    OPT_CLUSTER,
    OPT_SESSIONS,
    OPT_OPS,
    OPT_NO_BITMAPS,
    OPT_GUEST_ONLY,
    OPT_ONLY,
    OPT_DUMP,
    OPT_KEEP_GOING,
    OPT_PLANT,
    OPT_HELP
};

static const struct option long_options[] = {
    {"states", required_argument, NULL, OPT_STATES},
    {"seed", required_argument, NULL, OPT_SEED},
    {"size", required_argument, NULL, OPT_SIZE},
    {"cluster-size", required_argument, NULL, OPT_CLUSTER},
    {"sessions", required_argument, NULL, OPT_SESSIONS},
    {"ops", required_argument, NULL, OPT_OPS},
    {"no-bitmaps", no_argument, NULL, OPT_NO_BITMAPS},
    {"guest-only", no_argument, NULL, OPT_GUEST_ONLY},
    {"only", required_argument, NULL, OPT_ONLY},
    {"dump", required_argument, NULL, OPT_DUMP},
    {"keep-going", no_argument, NULL, OPT_KEEP_GOING},
    {"plant", required_argument, NULL, OPT_PLANT},
    {"help", no_argument, NULL, OPT_HELP},
    {0},
};

static bool is_planted_name(const char *name)
{
    for (int i = 0; planted_names[i]; i++) {
        if (strcmp(planted_names[i], name) == 0) {
            return true;
        }
    }
    return false;
}

/* 0, or an exit status plus 1. */
static int take_option(struct explorer *x, int option)
{
    uint64_t value = 0;
    ERROR_AUTO(err);

    if (option != OPT_NO_BITMAPS && option != OPT_GUEST_ONLY && option != OPT_KEEP_GOING &&
        option != OPT_PLANT && option != OPT_HELP &&
        (option == '?' || size_parse(optarg, "number", &value, &err) < 0)) {
        fprintf(report_file, "%s\n", option == '?' ? "try --help" : error_message(&err));
        return 3;
    }
    switch (option) {
    case OPT_STATES:
        x->states_wanted = value;
        break;
    case OPT_SEED:
        x->seed = value;
        break;
    case OPT_SIZE:
        x->size = round_up(MAX(value, MiB), MiB);
        break;
    case OPT_CLUSTER:
        x->cluster_size = (uint32_t)value;
        break;
    case OPT_SESSIONS:
        x->sessions = (unsigned)MIN(MAX(value, 1), MODEL_MAX_SESSIONS);
        break;
    case OPT_OPS:
        x->ops = (unsigned)value;
        break;
    case OPT_NO_BITMAPS:
        x->no_bitmaps = true;
        break;
    case OPT_GUEST_ONLY:
        x->guest_only = true;
        break;
    case OPT_ONLY:
        x->only = (int64_t)value;
        break;
    case OPT_DUMP:
        x->dump = value;
        break;
    case OPT_KEEP_GOING:
        x->keep_going = true;
        break;
    case OPT_PLANT:
        x->plant = optarg;
        if (!is_planted_name(optarg)) {
            fprintf(report_file, "no bug '%s' to plant; try --help\n", optarg);
            return 3;
        }
        break;
    default:
        fputs(usage_text, stdout);
        return 1;
    }
    return 0;
}

static void silence_library(void)
{
    FILE *null = fopen("/dev/null", "w");

    if (null) {
        stderr = null;
    }
}

static int finish(const struct explorer *x, double seconds)
{
    printf("%" PRIu64 " states counted: %" PRIu64 " made, %" PRIu64
           " distinct ones checked, %" PRIu64 " failed, %.0f states per second\n",
           x->counted, x->made, x->checked, x->failed, (double)x->checked / MAX(seconds, 1e-3));
    if (x->ret) {
        return x->ret;
    }
    if (x->plant) {
        printf("planted bug '%s' %s\n", x->plant, x->failed ? "found" : "NOT found");
        return x->failed ? 0 : 1;
    }
    return x->failed ? 1 : 0;
}

int main(int argc, char **argv)
{
    struct explorer x = {
        .states_wanted = 500, .seed = 1, .size = 16 * MiB, .sessions = 3, .ops = 90, .only = -1};
    int option, status;
    int64_t begin;
    ERROR_AUTO(err);

    report_file = stderr;
    while ((option = getopt_long(argc, argv, "", long_options, NULL)) != -1) {
        status = take_option(&x, option);
        if (status) {
            return status - 1;
        }
    }
    if (reactor_init_main(&err) < 0) {
        fprintf(report_file, "%s\n", error_message(&err));
        return 1;
    }
    if (x.only < 0) {
        silence_library();
    }
    block_register_driver(&record_disk_driver);
    block_register_driver(&file_driver);
    qcow2_register_driver();
    begin = loop_now_ns();
    status = reactor_run_until_done(co_main, &x);
    status = status < 0 ? 1 : finish(&x, (double)(loop_now_ns() - begin) / 1e9);
    free(x.hashes);
    reactor_exit_main();
    return status;
}
