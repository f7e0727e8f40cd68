/* SPDX-License-Identifier: Apache-2.0 */
/* Making new images, for create, convert and dd. `co_` functions yield; the others do not. */
#ifndef TIDEMARK_CLI_CREATE_H
#define TIDEMARK_CLI_CREATE_H

#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"
#include "cli/args.h"

struct options;

/* A new image. All text is borrowed. */
struct cli_new_image {
    const char *filename;
    const char *format;
    const char *backing_file;             /* NULL: named by -o, or none */
    const char *backing_format;           /* NULL: named by -o, or none */
    const struct cli_items *option_texts; /* of -o; NULL: none */
    const char *size_text;                /* as given; NULL: see size */
    bool has_size;
    uint64_t size; /* bytes, if has_size */
    bool quiet;
    bool unsafe;   /* do not look at the backing file */
    bool announce; /* print the "Formatting" line */
    bool converts; /* the target of a conversion: errors do not begin with the filename */
};

/* Create the image. */
int cli_co_create(const struct cli_new_image *image, struct error *err);

/*
 * Print the line "Formatting ..." of an image that is about to be made: for
 * block_set_creation_fn().
 */
void cli_announce_creation(const char *format, const char *filename, uint64_t size,
                           const struct options *opts);

#endif
