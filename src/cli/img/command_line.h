/* SPDX-License-Identifier: Apache-2.0 */
/* What the command lines of the sub-commands of `tidemark img` share. None of this yields. */
#ifndef TIDEMARK_CLI_IMG_COMMAND_LINE_H
#define TIDEMARK_CLI_IMG_COMMAND_LINE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/progress.h"
#include "cli/args.h"
#include "cli/cli.h"
#include "cli/image.h"

/*
 * Parse a command line that ends with one filename, which becomes image->name. Returns 0, a
 * cli_args_result, or -EINVAL.
 */
int img_parse(const struct cli_arg *args, const struct cli_usage *usage, int argc, char **argv,
              struct cli_image *image, struct error *err);
/*
 * Check the cache mode of `image`, whose option is called `cache_option` in errors ("cache"), and
 * make the objects of the command line.
 */
int img_prepare(const struct cli_image *image, const char *cache_option,
                const struct cli_items *objects, struct error *err);
/* As cli_parse_output(); an error also says where the help is. */
int img_parse_output(const struct cli_usage *usage, const char *text, bool *ret_json,
                     struct error *err);

/* An option that the rest of the command line leaves without effect. */
struct img_useless {
    bool given;
    const char *name;
};

/*
 * Refuse the first one that was given; `where` says when it has no effect ("without --write").
 * -EINVAL. Under QEMU's name they are accepted, as by qemu-img.
 */
int img_refuse_useless(const struct img_useless *options, size_t count, const char *where,
                       struct error *err);
/* Show progress on standard output, if `wanted`: as qemu-img, or as a bar on a terminal. */
void img_progress_begin(struct progress *p, bool wanted, uint64_t total);

#endif
