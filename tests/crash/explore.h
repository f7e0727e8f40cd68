/* SPDX-License-Identifier: Apache-2.0 */
/* From seeds to workloads to states, each checked. */
#ifndef TIDEMARK_TESTS_EXPLORE_H
#define TIDEMARK_TESTS_EXPLORE_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "config.h"

struct seen {
    uint64_t *slots; /* open addressing; 0 is free */
    uint64_t count, used;
};

struct explorer {
    /* options */
    uint64_t states_wanted;
    uint64_t seed;
    uint64_t size;
    const char *config;    /* NULL: another kind for each workload */
    uint32_t cluster_size; /* 0: as the kind says */
    unsigned sessions, ops;
    bool no_bitmaps, guest_only;
    const char *plant;
    bool keep_going;
    uint64_t uncounted_every; /* of states with all metadata, one of this number is checked */
    int64_t end_ns;           /* loop_now_ns() after which no workload begins; 0: none */
    uint64_t dump;            /* write this number of states to files, for other programs */
    int64_t only;             /* state of the first workload to be checked; -1: all */
    FILE *report;             /* for failures */
    /* results */
    uint64_t made, dumped, checked, counted, failed, workloads;
    uint64_t counted_by_kind[CRASH_CONFIG_KINDS], workloads_by_kind[CRASH_CONFIG_KINDS];
    uint64_t next_seed; /* behind the last one used */
    int ret;
    /* inside */
    uint64_t failed_before; /* the present workload */
    struct seen counted_hashes, checked_hashes;
};

/* Main reactor, in a coroutine; yields. */
void explore_co_run(struct explorer *x);
void explore_release(struct explorer *x);

#endif
