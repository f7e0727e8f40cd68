/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The kind "joint": a second image, on the disk IMAGE_BASE_FILE, and changes of the bitmaps of both
 * that are one change. Change n adds a bitmap "joint-n" to each image, stops joint-(n - 1), and
 * removes joint-(n - 2); sometimes it clears one of the first image as well. After a crash both
 * images have the same of these.
 */
#ifndef TIDEMARK_TESTS_JOINT_H
#define TIDEMARK_TESTS_JOINT_H

#include "guest.h"
#include "image.h"
#include "verifier.h"

/* Main reactor, in a coroutine; all yield. The second image, for the time of a session. */
int joint_co_open(const struct image_disks *d, const struct crash_config *c, struct error *err);
int joint_co_close(struct error *err);
/* A change of both; `node` is the first image. */
int joint_co_change(struct guest *g, struct block_node *node);

/* After a crash: both have made the same changes, one that may be the last. */
int joint_co_verify(struct verifier *v, struct error *err);
/* Open the second image for writing, in some states. */
int joint_co_settle_second(struct verifier *v, struct error *err);
/* Both were opened for writing, and closed: nothing is left of a change. */
int joint_co_end(struct verifier *v, struct error *err);

#endif
