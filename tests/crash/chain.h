/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A chain of images in use, changed by the commands of the monitor while a guest works on it:
 *
 *   the kind             what happens in each session
 *   job-stream           block-stream into the image on top
 *   job-commit           block-commit of images in the middle
 *   job-commit-active    block-commit of the image on top, completed: the guest moves down
 *   job-mirror           blockdev-mirror to an empty image, completed: the guest moves there
 *   live-snapshot        blockdev-snapshot: the guest moves to an overlay
 *   live-changes         block_resize up and down, blockdev-reopen
 *
 * Where the chain is too short for that, there is a snapshot instead. Some jobs are cancelled. In
 * some sessions the guest uses the image on top through a filter of its own, which jobs find there.
 * What the guest has after a crash is what the header of the image on top leads to; model_set_top()
 * says which one that is at any time.
 */
#ifndef TIDEMARK_TESTS_CHAIN_H
#define TIDEMARK_TESTS_CHAIN_H

#include "image.h"
#include "workload.h"

struct guest;

struct chain {
    struct workload *w;
    const struct image_disks *disks;
    struct error *err;
    uint64_t random;
    unsigned top;  /* the disk of the image that the guest has */
    unsigned next; /* the first disk whose image was not used yet; RECORD_DISKS: none is left */
    bool filtered; /* the guest has a filter above the image on top */
    bool limited;  /* which is throttle, and has a group */
};

/* Main reactor, in a coroutine; all yield. Contents of all images, before anything is logged. */
int chain_co_fill(struct chain *c);
/* Open the images; *ret_node is what the guest gets. */
int chain_co_open(struct chain *c, struct block_node **ret_node);
/* Let the guest work, some requests before, some while, and some after something is done. */
int chain_co_work(struct chain *c, struct guest *g, unsigned requests);
/* The guest is gone: complete the image on top, close all. */
int chain_co_close(struct chain *c);

#endif
