/* SPDX-License-Identifier: Apache-2.0 */
#include "job/create.h"

#include <stdlib.h>

#include "block/block.h"
#include "block/control.h"
#include "block/control_lock.h"
#include "block/options.h"

/* --- create ----------------------------------------------------------------------------------- */

static void create_ref_release(struct create_ref *ref)
{
    free(ref->name);
    options_free(ref->opts);
    *ref = (struct create_ref){0};
}

void create_params_release(struct create_params *params)
{
    free(params->filename);
    options_free(params->opts);
    create_ref_release(&params->file);
    create_ref_release(&params->data_file);
    *params = (struct create_params){0};
}

/* A reference to the node; *ret_node is NULL where `ref` is none. */
static int co_resolve_target(struct create_ref *ref, struct block_node **ret_node,
                             struct error *err)
{
    struct options *opts = ref->opts;

    *ret_node = NULL;
    if (opts) {
        ref->opts = NULL;
        return block_co_open(opts, BLOCK_OPEN_RDWR, ret_node, err);
    }
    if (ref->name) {
        *ret_node = block_node_lookup(ref->name, err);
        if (!*ret_node) {
            return -ENOENT;
        }
        block_node_ref(*ret_node);
    }
    return 0;
}

static int co_format_nodes(struct create_params *p, struct options *opts, struct error *err)
{
    struct block_node *file = NULL, *data_file = NULL;
    int r = co_resolve_target(&p->file, &file, err);

    UNLESS_FAILED(r, co_resolve_target(&p->data_file, &data_file, err));
    if (r < 0) {
        options_free(opts);
    } else {
        r = block_co_format_node(p->driver, file, data_file, p->size, opts, err);
    }
    block_co_unref(data_file);
    block_co_unref(file);
    return r;
}

static int co_create_run(struct job *job, void *state, struct error *err)
{
    struct create_params *p = state;
    struct options *opts = p->opts;
    int r;

    job_progress_set_total(job, 1);
    p->opts = NULL;
    if (p->filename) {
        r = block_co_create_exactly(p->driver, p->filename, p->size, opts, err);
    } else {
        block_co_control_lock();
        r = co_format_nodes(p, opts, err);
        block_control_unlock();
    }
    job_progress_add(job, 1);
    return r;
}

static void co_create_clean(struct job *job, void *state)
{
    create_params_release(state);
}

static const struct job_driver create_job = {
    .type = "create",
    .state_size = sizeof(struct create_params),
    .co_run = co_create_run,
    .co_clean = co_create_clean,
};

int create_start(const struct job_config *config, struct create_params *params, struct error *err)
{
    struct job *job;
    int r = job_new(&create_job, config, &job, err);

    if (r < 0) {
        return r;
    }
    *(struct create_params *)job_state(job) = *params;
    *params = (struct create_params){0};
    job_start(job);
    return 0;
}

/* --- amend ------------------------------------------------------------------------------------ */

struct amend {
    /* with a reference, after block_co_amend_begin() */
    struct block_node *node;
    struct options *opts;
    bool force;
};

static int co_amend_run(struct job *job, void *state, struct error *err)
{
    struct amend *a = state;
    int r;

    job_progress_set_total(job, 1);
    r = block_co_change_keys(a->node, a->opts, a->force, err);
    job_progress_add(job, 1);
    return r;
}

static void co_amend_clean(struct job *job, void *state)
{
    struct amend *a = state;

    block_co_amend_end(a->node);
    block_co_unref(a->node);
    options_free(a->opts);
}

static const struct job_driver amend_job = {
    .type = "amend",
    .state_size = sizeof(struct amend),
    .co_run = co_amend_run,
    .co_clean = co_amend_clean,
};

int amend_co_start(const struct job_config *config, struct block_node *node, struct options *opts,
                   bool force, struct error *err)
{
    AUTO_OPTIONS struct options *held = opts;
    struct job *job;
    int r = block_co_amend_begin(node, err);

    if (r < 0) {
        return r;
    }
    r = job_new(&amend_job, config, &job, err);
    if (r < 0) {
        block_co_amend_end(node);
        return r;
    }
    *(struct amend *)job_state(job) = (struct amend){block_node_ref(node), held, force};
    held = NULL;
    job_start(job);
    return 0;
}
