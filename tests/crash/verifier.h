/* SPDX-License-Identifier: Apache-2.0 */
/* Between the files that verify a state. */
#ifndef TIDEMARK_TESTS_VERIFIER_H
#define TIDEMARK_TESTS_VERIFIER_H

#include "block/gate.h"
#include "verify.h"

/* What the sectors of a disk hold, seen in one way. */
struct view {
    uint32_t *values; /* as read; MODEL_ZERO where nothing was read */
    /* After the crash: what it should hold now; MODEL_ANY after a discard. */
    uint32_t *expected;
    uint32_t *untouched; /* as it was before that, MODEL_ANY where anything was done */
};

enum verify_phase {
    VERIFY_CRASHED, /* as the crash left it */
    VERIFY_AGAIN,   /* the image was written to after the crash, and closed */
    VERIFY_SECOND,  /* another crash came while it was written to */
};

struct verifier {
    struct workload *w;
    struct crash_state *state;
    const struct image_disks *disks;
    struct block_node *node; /* the image */
    struct block_edge *edge;
    enum verify_phase phase;
    bool had_snapshot; /* AFTERMATH_SNAPSHOT was made and taken away after the crash */
    uint64_t stable;   /* model_stable_until() the crash */
    struct view disk;
    struct view raw; /* the external data file alone; what is not stable may differ from the disk */
    uint64_t sectors;                      /* that the disk has */
    const struct model_snapshot *snapshot; /* that the node shows; NULL: the disk itself */
    bool has_bitmap[MODEL_MAX_BITMAPS], has_consistent[MODEL_MAX_BITMAPS]; /* found so far */
    bool below;   /* the node is an image below that of the guest: what it holds is no matter */
    bool spoiled; /* and not even its bitmaps say anything: model_is_spoiled() */
};

/* verify_data.c: read all of the edge's node and compare; sets values. */
int verify_co_data(struct verifier *v, struct error *err);
/* The external data file by itself. */
int verify_raw_data_file(struct verifier *v, struct error *err);
/* verify_parts.c */
/* Clusters that the disk is mapped to lie within the file wholly, for readers of other makes. */
int verify_co_file_covers(struct verifier *v, struct error *err);
/* Those of the node: notes which are there. */
int verify_co_bitmaps(struct verifier *v, struct error *err);
/* Those that have to be there have been found, in whichever image. */
int verify_bitmaps_found(const struct verifier *v, struct error *err);
/* All are listed, and one of them holds what it shall. The node shows that one afterwards. */
int verify_co_snapshots(struct verifier *v, struct error *err);
#define AFTERMATH_SNAPSHOT "after"
/* verify_chain.c: the images below, and sometimes those that are in the chain no more. */
int verify_co_chain(struct verifier *v, struct error *err);
/* aftermath.c: a guest that goes on after the crash. Changes `expected`. */
int aftermath_co_write(struct verifier *v, struct error *err);

#endif
