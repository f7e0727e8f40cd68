/* SPDX-License-Identifier: Apache-2.0 */
/* What must hold in every state that a crash can leave. */
#ifndef TIDEMARK_TESTS_VERIFY_H
#define TIDEMARK_TESTS_VERIFY_H

#include "base/error.h"
#include "states.h"
#include "workload.h"

/*
 * Load the state into `disk` (a record disk named "crashed") and check, with the image opened read-only and then writable:
 *
 *   - it opens, `check` finds no corruption, only leaks, and no more after the image was opened for writing and closed; an
 *     image that is marked dirty is checked only after it was opened for writing;
 *   - it has a size that it may have, and each sector holds what model_allows();
 *   - internal snapshots that were made and not deleted are there, and hold what they held when they were made;
 *   - a persistent bitmap that was stored is there; it is inconsistent, or covers all that differs from the time it was
 *     begun, and it is consistent if the image was closed.
 *
 * -EILSEQ and a sentence if not. Main reactor, in a coroutine; yields.
 */
int verify_co_state(struct workload *w, const struct crash_state *state, struct block_node *disk,
                    struct error *err);

#endif
