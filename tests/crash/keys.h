/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The kinds "luks", "luks-detached" and "luks-qcow2": key slots of an encrypted disk in use are
 * filled, replaced and erased between the requests of the guest. There are KEYS passphrases; each
 * is in any number of slots, also in none. After a crash those open the disk that are not
 * concerned by a change that was going on, and of those that are, what was or what shall be: at
 * least one.
 */
#ifndef TIDEMARK_TESTS_KEYS_H
#define TIDEMARK_TESTS_KEYS_H

#include "guest.h"
#include "image.h"
#include "verifier.h"

#define KEYS 4u

/* Main reactor. Make the passphrases known, once. Does not yield. */
int keys_init(struct error *err);
/* A new disk has the first passphrase, in its first slot. Does not yield. */
void keys_reset(void);
/* The passphrase to open it with now. Does not yield. */
unsigned keys_valid(void);

/* In a coroutine; these yield. Change some slot. */
int keys_co_change(struct guest *g, struct block_node *node);
/* After a crash: which of them open the disk? disks->key becomes one that does. */
int keys_co_verify(struct verifier *v, struct image_disks *disks, struct error *err);

#endif
