/* SPDX-License-Identifier: Apache-2.0 */
/* What must hold in every state that a crash can leave. */
#ifndef TIDEMARK_TESTS_VERIFY_H
#define TIDEMARK_TESTS_VERIFY_H

#include "base/error.h"
#include "image.h"
#include "states.h"
#include "workload.h"

/*
 * Show the state in `disks` and check, with the image opened read-only, for writing, and read-only
 * again:
 *
 *   - it opens, and `check` finds leaks at most. An image that is marked dirty is checked after it
 *     was opened for writing. In an image of version 2, only if the crash came within an operation
 *     on internal snapshots, COPIED flags may be wrong; a repair mends these, and nothing is left;
 *   - its size is one that the model allows, and so is the contents of each sector
 *     (model_allows()); likewise of a raw data file read alone;
 *   - internal snapshots that were made and not deleted exist, with the contents of their time;
 *   - a persistent bitmap that was stored exists; it is inconsistent, or covers all differences
 *     since it was begun; it is consistent if the image was closed;
 *   - of a chain, all of this holds for the image that users have. In the moment in which they get
 *     another one, it holds for either. Images below it, and those that have left the chain, open,
 *     too, with leaks at most, and a bitmap may be in any of the chain;
 *   - writes, zeroes and discards after the crash change their ranges and nothing else, and all of
 *     the above holds after them. Some images are repaired before and after that, without findings
 *     afterwards; some are committed; some suffer another crash then.
 *
 * -EILSEQ and a sentence if not. Main reactor, in a coroutine; yields.
 */
int verify_co_state(struct workload *w, struct crash_state *state, const struct image_disks *disks,
                    struct error *err);

#endif
