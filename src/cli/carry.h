/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Persistent bitmaps of images that leave a chain, carried over to one that stays: `commit` writes images into one below them,
 * `rebase` takes images out from under one. Whatever differential could be computed with the chain as it was can be computed with
 * what is left of it, exact or a superset (docs/bitmaps.md). On the main reactor, in a coroutine.
 */
#ifndef TIDEMARK_CLI_CARRY_H
#define TIDEMARK_CLI_CARRY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"
#include "block/block.h"

struct carry_item;

struct carry {
    struct carry_item *item; /* owned; one per bitmap of an image */
    size_t count;
};

/*
 * Whether to do it, by what the command line says. If it says nothing: scripts written for qemu-img add and merge bitmaps by themselves
 * after the command, and rely on that they are not there yet.
 */
bool carry_is_wanted(bool yes, bool no);
/*
 * Take note of the bitmaps of `node`, the image number `depth` of the chain from above (the top is 1). `size` in bytes: that of the
 * disk they are carried to. The user is warned of inconsistent ones, which no differential can use, and they are left out.
 * -ENOMEM
 */
int carry_co_collect(struct carry *c, struct block_node *node, int depth, uint64_t size,
                     struct error *err);
/*
 * Before anything is written: look whether `to` can take them. -EINVAL if its bitmap of one of these names is inconsistent:
 * the result would pass for a record that it is not. What its format can't store is told as a warning, and
 * forgotten: it is still in the image it came from.
 */
int carry_co_check(struct carry *c, struct block_node *to, struct error *err);
/*
 * The image number `depth` stores [offset, offset + length), in bytes: bitmaps of images below it that are enabled would
 * record that if it were written to their image, and they do now.
 */
void carry_mark(struct carry *c, uint64_t offset, uint64_t length, int depth);
/* The same for what all images would record. */
void carry_mark_all(struct carry *c, uint64_t offset, uint64_t length);
/*
 * Merge into the bitmaps of the same names of `to`; those that it lacks are made. One that was recording anywhere is
 * recording in `to`. Yields.
 */
int carry_co_store(const struct carry *c, struct block_node *to, struct error *err);
void carry_clear(struct carry *c);

#endif
