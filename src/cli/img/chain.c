/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/img/chain.h"

#include <errno.h>

#include "cli/cli.h"

bool img_wants_chain_bitmaps(bool yes, bool no)
{
    return yes || (!no && !cli_is_compat());
}

int img_check_chain_bitmaps(bool yes, bool no, struct error *err)
{
    return yes && no ? error_set(err, EINVAL, "--bitmaps and --no-bitmaps exclude each other") : 0;
}

int img_co_check_chain_bitmaps(struct chain_bitmaps *c, struct block_node *to, struct error *err)
{
    int r = chain_bitmaps_co_check(c, to, err);

    if (r == -EEXIST) {
        error_hint(err,
                   "Remove the latter ('%s bitmap --remove'), or leave all bitmaps where they are "
                   "with --no-bitmaps",
                   cli_program());
    }
    return r;
}
