/* SPDX-License-Identifier: Apache-2.0 */
/*
 * States that the files can be in after a power cut, made from the log of their record disks.
 *
 * At time T: what was answered before a flush of the same disk, that itself was answered by T, is
 * there. Of what else had been sent by T, any part may be there: whole requests or single sectors
 * of them, and where they overlap, either one.
 */
#ifndef TIDEMARK_TESTS_STATES_H
#define TIDEMARK_TESTS_STATES_H

#include <stdbool.h>
#include <stdint.h>

#include "record_disk.h"

struct crash_state {
    uint64_t index; /* makes the random choices, with the seed */
    uint64_t time;  /* T */
    struct pages disks[RECORD_DISKS];
    uint64_t hash;       /* of the contents of all */
    bool metadata_hurt;  /* a metadata write was lost, torn, or overtaken by an earlier one */
    unsigned unstable;   /* requests that could be lost */
    unsigned lost, torn; /* how many were */
    const char *how;
};

struct crash_states {
    struct record_log *log;
    uint64_t seed;
    struct pages base[RECORD_DISKS]; /* what is stable, at a time that goes forward only */
    uint8_t *applied;                /* per log entry: in the base */
    size_t applied_end;              /* behind the last one that is */
};

void crash_states_init(struct crash_states *s, struct record_log *log, uint64_t seed);
void crash_states_clear(struct crash_states *s);
/*
 * Make state `index` at time `time`; times must not go down from call to call. Reuses the buffers
 * of *state.
 */
void crash_states_make(struct crash_states *s, uint64_t index, uint64_t time,
                       struct crash_state *state);
void crash_state_release(struct crash_state *state);

#endif
