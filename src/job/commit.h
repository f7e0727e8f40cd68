/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The job "commit" of images in the middle of a chain: copies what they have into the image below
 * them, and takes them out of the chain (QAPI schema of QEMU: block-commit). A commit of the active
 * image is a mirror to the base: commit_active.h.
 *
 * Main reactor. `co_` functions run in a coroutine and yield.
 */
#ifndef TIDEMARK_JOB_COMMIT_H
#define TIDEMARK_JOB_COMMIT_H

#include "job/chain.h"
#include "job/job.h"

struct commit_params {
    /* The device: nobody else has a job on it meanwhile. */
    struct block_node *root;
    /* From `top` down to the node above `base`, nothing is needed afterwards. No writer uses it. */
    struct block_node *top, *base;
    /* What the images above record as their backing file; NULL: the name of the base. */
    const char *backing_file;
    /* Record the format of a base that has none of its own as "raw". */
    bool mask_protocol;
    enum job_on_error on_error;
    /* Of the filter that the job puts on `top`; NULL: a generated name. */
    const char *filter_name;
};

/*
 * Whether jobs use the nodes that a commit changes, active or not, or the images above it, whose
 * headers it writes. -EBUSY, with a sentence.
 */
int commit_co_check_nodes(const struct commit_params *params, struct error *err);
/*
 * Make the job and put its filter on `top`. Within a graph change, whose permissions the caller
 * settles; `top` is drained. Then commit_start(), or job_co_discard() within the same change.
 * Strings are copied. -EBUSY: a node is used by another job. Errors of job_new().
 */
int commit_co_new(const struct commit_params *params, const struct job_config *config,
                  struct job **ret_job, struct error *err);
/* Let it run. The base has been made writable by `writable`, which becomes the job's. */
void commit_start(struct job *job, struct chain_writable *writable);

#endif
