/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The jobs "create", which makes an image or a file, and "amend". Main reactor; the control lock is
 * held.
 */
#ifndef TIDEMARK_JOB_CREATE_H
#define TIDEMARK_JOB_CREATE_H

#include <stdint.h>

#include "base/error.h"
#include "job/job.h"

struct block_driver;
struct block_node;
struct options;

/* A node that exists, by name; or the options of one that is opened for as long as it is needed. */
struct create_ref {
    char *name;
    struct options *opts;
};

struct create_params {
    /* One of block_create_options_type: it makes files, or formats nodes. */
    const struct block_driver *driver;
    /* Bytes. */
    uint64_t size;
    /* Creation options by qemu-img's names. */
    struct options *opts;
    /* Of a driver that makes files: the path. NULL for the others. */
    char *filename;
    /*
     * Of a format: where the image goes, and a second node that its driver knows (the data file of
     * qcow2, the detached header of luks); both members NULL: there is none.
     */
    struct create_ref file, data_file;
};

/* Free what the members point to. Does not yield. */
void create_params_release(struct create_params *params);

/*
 * Make and start the job. What params point to is the job's on success. Errors of job_new(); all
 * others are the job's. Does not yield.
 */
int create_start(const struct job_config *config, struct create_params *params, struct error *err);

/*
 * A job that changes keys of an encrypted image, with the options of block_co_change_keys()
 * (consumed). -EPERM, -EAGAIN, -EACCES of block_co_amend_begin(); errors of job_new(); all others
 * are the job's. Yields.
 */
int amend_co_start(const struct job_config *config, struct block_node *node, struct options *opts,
                   bool force, struct error *err);

#endif
