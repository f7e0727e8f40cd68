/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a machine does around a checkpoint: hooks, and a freeze of its file systems by the guest
 * agent (QEMU's docs/interop/qemu-ga-ref). Main reactor, in a coroutine; yields.
 */
#ifndef TIDEMARK_BACKUP_QUIESCE_H
#define TIDEMARK_BACKUP_QUIESCE_H

#include <signal.h>
#include <stdbool.h>

#include "base/error.h"

/* All strings are borrowed. */
struct quiesce_options {
    const char *agent;                /* socket of the guest agent; NULL: nothing is frozen */
    unsigned timeout_s;               /* for each answer of the agent */
    const char *pre_hook, *post_hook; /* shell commands; NULL: none */
    const char *machine;              /* TIDEMARK_VM of the hooks; NULL: none */
    volatile sig_atomic_t *stop;      /* ends a hook that runs then; NULL: nobody stops it */
};

struct quiesce {
    const struct quiesce_options *options;
    int agent_fd; /* connected, and the file systems are frozen; -1: they are not */
    bool pre_ran; /* so the other hook has to run, too */
};

#define QUIESCE_INIT ((struct quiesce){.agent_fd = -1})

/*
 * Run the first hook, and freeze. On failure everything is thawed again, and the second hook has
 * run. What failed of that is the hint of the error.
 */
int quiesce_co_begin(struct quiesce *q, const struct quiesce_options *options, struct error *err);
/*
 * Thaw, whatever the agent answers, and run the second hook with the status of the checkpoint (0 or
 * an error) as TIDEMARK_STATUS ("ok", "failed"). The first error is returned; both are done in any
 * case. May be called again.
 */
int quiesce_co_end(struct quiesce *q, int status, struct error *err);
/* The same after a failure `status` with the error `err`; what fails becomes its hint. */
int quiesce_co_give_up(struct quiesce *q, int status, struct error *err);
/* Only thaw, for who cleans up after a killed run. */
int quiesce_co_thaw(const char *agent, unsigned timeout_s, struct error *err);

#endif
