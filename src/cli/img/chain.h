/* SPDX-License-Identifier: Apache-2.0 */
/* What `img commit` and `img rebase` share: bitmaps of images that leave a backing chain. */
#ifndef TIDEMARK_CLI_IMG_CHAIN_H
#define TIDEMARK_CLI_IMG_CHAIN_H

#include <stdbool.h>

#include "copy/chain_bitmaps.h"

/*
 * Whether bitmaps are carried over, given --bitmaps (`yes`) and --no-bitmaps (`no`). Without
 * either: yes as tidemark, no as qemu-img, because scripts for qemu-img add and merge the bitmaps
 * themselves after the command. Does not yield.
 */
bool img_wants_chain_bitmaps(bool yes, bool no);
/* -EINVAL if both are given. */
int img_check_chain_bitmaps(bool yes, bool no, struct error *err);
/* As chain_bitmaps_co_check(), with a hint for users of the command line. Yields. */
int img_co_check_chain_bitmaps(struct chain_bitmaps *c, struct block_node *to, struct error *err);

#endif
