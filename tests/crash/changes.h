/* SPDX-License-Identifier: Apache-2.0 */
/* What is done to an image between the requests of a guest. */
#ifndef TIDEMARK_TESTS_CHANGES_H
#define TIDEMARK_TESTS_CHANGES_H

#include "guest.h"

/* Sectors of a disk of any size from a quarter of the largest on; often whole clusters. */
uint64_t changes_random_size(const struct workload *w, uint64_t *random);

/* Add, clear, merge, disable, enable or remove a persistent bitmap, or nothing. */
int changes_co_bitmaps(struct guest *g, struct block_node *node);
/* Clear one as a part of a change that is made later, and when that was made. */
int changes_co_clear_any(struct guest *g, struct block_node *node);
void changes_end_clear(struct guest *g);
/* Change the size, make, apply or delete an internal snapshot, amend the image, or nothing. */
int changes_co_disk(struct guest *g, struct block_node *node);

#endif
