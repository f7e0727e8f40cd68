/* SPDX-License-Identifier: Apache-2.0 */
/* The sub-commands of `tidemark img`: each runs in a coroutine on the main reactor and returns its exit status. */
#ifndef TIDEMARK_CLI_IMG_IMG_H
#define TIDEMARK_CLI_IMG_IMG_H

#include "base/progress.h"
#include "cli/args.h"
#include "cli/cli.h"
#include "cli/image.h"

int img_amend_main(int argc, char **argv);
int img_bench_main(int argc, char **argv);
int img_bitmap_main(int argc, char **argv);
int img_check_main(int argc, char **argv);
int img_commit_main(int argc, char **argv);
int img_compare_main(int argc, char **argv);
int img_convert_main(int argc, char **argv);
int img_create_main(int argc, char **argv);
int img_dd_main(int argc, char **argv);
int img_info_main(int argc, char **argv);
int img_map_main(int argc, char **argv);
int img_measure_main(int argc, char **argv);
int img_rebase_main(int argc, char **argv);
int img_resize_main(int argc, char **argv);
int img_snapshot_main(int argc, char **argv);

/* Begin to show progress on standard output, if `wanted`: as qemu-img, or as a bar on a terminal. */
void img_progress_begin(struct progress *p, bool wanted, uint64_t total);

/* Rows that most sub-commands have. */
#define IMG_ARG_OBJECT(items)                                                                      \
    {                                                                                              \
        "object", 0, CLI_REPEAT, &(items), "DEF", "an object that others refer to: TYPE,id=ID,..." \
    }
#define IMG_ARG_IMAGE_OPTS(flag)                                                                   \
    {                                                                                              \
        "image-opts", 0, CLI_FLAG, &(flag), NULL,                                                  \
            "FILENAME is options: driver=...,file.filename=..."                                    \
    }
#define IMG_ARG_FORMAT(var)                                                                        \
    {                                                                                              \
        "format", 'f', CLI_VALUE, &(var), "FMT", "format of the image; guessed if it is only read" \
    }
#define IMG_ARG_QUIET(flag)                                                                        \
    {                                                                                              \
        "quiet", 'q', CLI_FLAG, &(flag), NULL, "print errors only"                                 \
    }
#define IMG_ARG_SHARE(flag)                                                                        \
    {                                                                                              \
        "force-share", 'U', CLI_FLAG, &(flag), NULL,                                               \
            "read an image that is in use (may be inconsistent)"                                   \
    }
#define IMG_ARG_OUTPUT(var)                                                                        \
    {                                                                                              \
        "output", 0, CLI_VALUE, &(var), "FORM", "human (default) or json"                          \
    }
/* Another name or letter of the row above it, that help does not show. */
#define IMG_ARG_ALSO(name, letter, kind, target)                                                   \
    {                                                                                              \
        name, letter, kind, target, "", NULL                                                       \
    }
#define IMG_ARG_END                                                                                \
    {                                                                                              \
        NULL, 0, CLI_FLAG, NULL, NULL, NULL                                                        \
    }

/*
 * The beginning of a sub-command: parse, and return from the calling function if that ends it. `first` becomes the index of
 * the first argument that is no option.
 */
#define IMG_PARSE(first, args, usage)                                                              \
    int first = cli_args_parse(args, usage, argc, argv);                                           \
    if (first < 0) {                                                                               \
        return first == CLI_ARGS_HELP ? 0 : 1;                                                     \
    }

#endif
