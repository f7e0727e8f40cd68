/* SPDX-License-Identifier: Apache-2.0 */
/*
 * crash_explorer: tests the write ordering of qcow2 and of other formats, and of jobs on chains of
 * images in use.
 *
 *   for each workload (seed):   choose a kind of image        config.c
 *                               run it over record disks      workload.c, guest.c, changes.c,
 *                                                             keys.c, chain.c, monitor.c,
 *                                                             record_disk.c
 *     for each crash time:      make a state that power loss  states.c
 *                               may leave
 *                               open it, compare with the     verify.c, verify_chain.c,
 *                               model, continue               aftermath.c, model.c
 *
 * A state counts once, and only if a metadata write was lost, torn or overtaken. All is
 * reproducible from the seeds, which a failure names; the state is written to a file.
 */
#include <fcntl.h>
#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/checked.h"
#include "base/size.h"
#include "block/driver.h"
#include "explore.h"
#include "file/drivers.h"
#include "filter/filter.h"
#include "filter/throttle_group.h"
#include "keys.h"
#include "loop/loop.h"
#include "luks/luks.h"
#include "model.h"
#include "monitor.h"
#include "planted.h"
#include "qcow2/qcow2.h"
#include "parallels/parallels.h"
#include "qcow1/qcow1.h"
#include "qed/qed.h"
#include "vdi/vdi.h"
#include "vhdx/vhdx.h"
#include "vmdk/vmdk.h"
#include "vpc/vpc.h"
#include "record_disk.h"

static const char usage_text[] =
    "Usage: crash_explorer [OPTION]...\n"
    "Run random workloads on images, make states that a power cut may leave, check each.\n\n"
    "  --states N         distinct states with damaged metadata to check (500)\n"
    "  --seconds N        begin no workload after this time (no limit)\n"
    "  --uncounted N      check one in N of the states whose metadata are all there (4)\n"
    "  --seed S           of the first workload (1)\n"
    "  --config KIND      of all images; 'list' prints kinds and groups (another one for each "
    "workload)\n"
    "  --size BYTES       of the virtual disk (16M)\n"
    "  --cluster-size B   of all images (as the kind says)\n"
    "  --sessions N       times that a workload opens the image (3)\n"
    "  --ops N            guest requests per session (90)\n"
    "  --no-bitmaps       no persistent bitmaps\n"
    "  --guest-only       no internal snapshots, no changes of size\n"
    "  --only K           check state K of the first workload only, and print what was written\n"
    "  --dump N           write N of the states to crash-SEED-STATE.qcow2 (.data, .base)\n"
    "  --keep-going       don't stop at the first failure\n"
    "  --plant BUG        plant an ordering bug; succeeds if it is found. 'list' prints them\n";

enum {
    OPT_STATES = 256,
    OPT_SECONDS,
    OPT_UNCOUNTED,
    OPT_SEED,
    OPT_CONFIG,
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
    {"seconds", required_argument, NULL, OPT_SECONDS},
    {"uncounted", required_argument, NULL, OPT_UNCOUNTED},
    {"seed", required_argument, NULL, OPT_SEED},
    {"config", required_argument, NULL, OPT_CONFIG},
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

/* --- command line ----------------------------------------------------------------------------- */

/*
 * 0 if `name` is one of the names; else an exit status plus 1, the names or a complaint being
 * printed.
 */
static int take_name(struct explorer *x, const char *const *names, const char *name)
{
    bool list = strcmp(name, "list") == 0;

    for (int i = 0; names[i]; i++) {
        if (list) {
            printf("%s\n", names[i]);
        } else if (strcmp(names[i], name) == 0) {
            return 0;
        }
    }
    if (!list) {
        fprintf(x->report, "there is no '%s'; try 'list'\n", name);
    }
    return list ? 1 : 3;
}

static int take_number(struct explorer *x, int option)
{
    uint64_t value = 0;
    ERROR_AUTO(err);

    if (size_parse(optarg, "number", &value, &err) < 0) {
        fprintf(x->report, "%s\n", error_message(&err));
        return 3;
    }
    switch (option) {
    case OPT_STATES:
        x->states_wanted = value;
        break;
    case OPT_SECONDS:
        x->end_ns = loop_now_ns() + (int64_t)MIN(value, INT32_MAX) * 1000000000;
        break;
    case OPT_UNCOUNTED:
        x->uncounted_every = MAX(value, 1);
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
        /* A commit may come after each. */
        x->sessions = (unsigned)MIN(MAX(value, 1), MODEL_MAX_SESSIONS / 2);
        break;
    case OPT_OPS:
        x->ops = (unsigned)value;
        break;
    case OPT_ONLY:
        x->only = (int64_t)value;
        break;
    case OPT_DUMP:
        x->dump = value;
        break;
    default:
        break;
    }
    return 0;
}

/* 0, or an exit status plus 1. */
static int take_option(struct explorer *x, int option)
{
    switch (option) {
    case OPT_CONFIG:
        x->config = optarg;
        return take_name(x, crash_config_names, optarg);
    case OPT_PLANT:
        x->plant = optarg;
        return take_name(x, planted_names, optarg);
    case OPT_NO_BITMAPS:
        x->no_bitmaps = true;
        return 0;
    case OPT_GUEST_ONLY:
        x->guest_only = true;
        return 0;
    case OPT_KEEP_GOING:
        x->keep_going = true;
        return 0;
    case OPT_HELP:
        fputs(usage_text, stdout);
        return 1;
    case '?':
        fprintf(x->report, "try --help\n");
        return 3;
    default:
        return take_number(x, option);
    }
}

/* What the library says on standard error about images that are damaged on purpose. */
static void silence_library(struct explorer *x)
{
    int copy = dup(STDERR_FILENO), null = open("/dev/null", O_WRONLY | O_CLOEXEC);
    FILE *report = copy >= 0 ? fdopen(copy, "w") : NULL;

    if (report && null >= 0) {
        x->report = report;
        dup2(null, STDERR_FILENO);
    }
}

static int finish(const struct explorer *x, double seconds)
{
    for (unsigned i = 0; i < CRASH_CONFIG_KINDS; i++) {
        if (x->workloads_by_kind[i] > 0) {
            printf("  %-16s %8" PRIu64 " states of %" PRIu64 " workloads\n", crash_config_names[i],
                   x->counted_by_kind[i], x->workloads_by_kind[i]);
        }
    }
    printf("%" PRIu64 " states counted, all distinct, of seeds %" PRIu64 " to %" PRIu64 ": %" PRIu64
           " made, %" PRIu64 " checked, %" PRIu64 " failed, %.0f s, %.0f counted per second\n",
           x->counted, x->seed, x->next_seed - 1, x->made, x->checked, x->failed, seconds,
           (double)x->counted / MAX(seconds, 1e-3));
    if (x->ret) {
        return x->ret;
    }
    if (x->plant) {
        printf("planted bug '%s' %s\n", x->plant, x->failed ? "found" : "NOT found");
        return x->failed ? 0 : 1;
    }
    return x->failed ? 1 : 0;
}

static void co_main(void *arg)
{
    explore_co_run(arg);
}

int main(int argc, char **argv)
{
    struct explorer x = {.states_wanted = 500,
                         .seed = 1,
                         .size = 16 * MiB,
                         .sessions = 3,
                         .ops = 90,
                         .uncounted_every = 4,
                         .only = -1,
                         .report = stderr};
    int option, status;
    int64_t begin;
    ERROR_AUTO(err);

    while ((option = getopt_long(argc, argv, "", long_options, NULL)) != -1) {
        status = take_option(&x, option);
        if (status) {
            return status - 1;
        }
    }
    if (reactor_init_main(&err) < 0) {
        fprintf(x.report, "%s\n", error_message(&err));
        return 1;
    }
    if (x.only < 0) {
        silence_library(&x);
    }
    block_register_driver(&record_disk_driver);
    block_register_driver(&file_driver);
    filter_register_drivers();
    throttle_group_register_type();
    monitor_init();
    qcow2_register_driver();
    vmdk_register_driver();
    vpc_register_driver();
    vhdx_register_driver();
    vdi_register_driver();
    qed_register_driver();
    parallels_register_driver();
    qcow1_register_driver();
    luks_register_driver();
    if (keys_init(&err) < 0) {
        fprintf(x.report, "%s\n", error_message(&err));
        return 1;
    }
    begin = loop_now_ns();
    status = reactor_run_until_done(co_main, &x);
    status = status < 0 ? 1 : finish(&x, (double)(loop_now_ns() - begin) / 1e9);
    explore_release(&x);
    reactor_exit_main();
    return status;
}
