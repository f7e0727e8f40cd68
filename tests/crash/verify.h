/* SPDX-License-Identifier: Apache-2.0 */
/* What must hold in every state that a crash can leave. */
#ifndef TIDEMARK_TESTS_VERIFY_H
#define TIDEMARK_TESTS_VERIFY_H

#include "base/error.h"
#include "image.h"
#include "states.h"
#include "workload.h"

/*
 * Show the state in `disks` and check, with the image opened read-only, for writing, and read-only again:
 *
 *   - it opens, `check` finds no corruption, only leaks. An image that is marked dirty is checked only after it was opened for
 *     writing. In an image of version 2, if the crash came within an operation on internal snapshots and only then, COPIED
 *     flags may be wrong; a repair puts that right, and leaves nothing else;
 *   - it has a size that it may have, and each sector holds what model_allows(); a raw data file alone does so, too;
 *   - internal snapshots that were made and not deleted are there, and hold what they held when they were made;
 *   - a persistent bitmap that was stored is there; it is inconsistent, or covers all that differs from the time it was
 *     begun, and it is consistent if the image was closed;
 *   - writes, zeroes and discards after the crash do what they say and touch nothing else; all of the above holds after
 *     them, too. Some of the images are repaired before and after that, which leaves nothing to complain of, some are
 *     committed; in some cases another crash comes then.
 *
 * -EILSEQ and a sentence if not. Main reactor, in a coroutine; yields.
 */
int verify_co_state(struct workload *w, struct crash_state *state, const struct image_disks *disks,
                    struct error *err);

#endif
