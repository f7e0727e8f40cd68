/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Options of image creation as -o gives them: lists "name=value,...", in which ",," stands for a
 * comma. None of these functions yields.
 */
#ifndef TIDEMARK_CLI_CREATION_OPTIONS_H
#define TIDEMARK_CLI_CREATION_OPTIONS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "block/block.h"
#include "block/options.h"
#include "cli/args.h"

#define CREATION_OPTIONS_MAX 64

struct creation_option {
    char *name;
    char *value;
};

/* Options by name; a later value replaces an earlier one. Start with {0}. */
struct creation_options {
    struct creation_option entry[CREATION_OPTIONS_MAX];
    size_t count;
};

/* Free what is held, and leave `o` empty. */
void creation_options_clear(struct creation_options *o);
/* Declares `struct creation_options name`, empty, released when the scope ends. */
#define CREATION_OPTIONS_AUTO(name)                                                                \
    __attribute__((cleanup(creation_options_clear))) struct creation_options name = {.count = 0}

/* The value of an option; NULL if it is not there. Borrowed until the next change. */
const char *creation_options_get(const struct creation_options *o, const char *name);
/* Set an option. -ENOMEM; -E2BIG if there are CREATION_OPTIONS_MAX others. */
int creation_options_set(struct creation_options *o, const char *name, const char *value,
                         struct error *err);
/* Add what -o texts say (NULL: nothing). -EINVAL if one is malformed; else as above. */
int creation_options_parse(struct creation_options *o, const struct cli_items *texts,
                           struct error *err);
/*
 * Check names by what the format `driver` and the protocol of `filename` (NULL: unknown) can
 * create, and bring values into the form in which they are printed: sizes as bytes, switches as
 * "on" and "off". -EINVAL.
 */
int creation_options_check(struct creation_options *o, const struct block_driver *driver,
                           const char *filename, struct error *err);

/*
 * Whether an -o text asks for help. False if one is malformed: that is an error where it is parsed.
 */
bool cli_wants_option_help(const struct cli_items *texts);
/* The value of one option in -o texts, NULL if it is not there. The caller frees it. */
int cli_creation_option(const struct cli_items *texts, const char *name, char **ret_value,
                        struct error *err);
/* All options of -o texts, values as given. The caller frees them. */
int cli_creation_options(const struct cli_items *texts, struct options **ret_options,
                         struct error *err);
/* -EINVAL if a format lacks one of the options. An unknown format is fine. */
int cli_check_creation_options(const char *format, const struct cli_items *texts,
                               struct error *err);
/* A driver that can create images. -ENOENT: there is none of that name; -ENOTSUP: it cannot. */
int cli_find_creatable(const char *format, const struct block_driver **ret_driver,
                       struct error *err);
/* Print the line of one option: "  name=<type>  - help". */
void cli_print_option_desc(const struct block_option_desc *desc);
/* Print the options of a format, and of the protocol of `filename` if that is not NULL. */
int cli_print_option_help(const char *format, const char *filename, struct error *err);

#endif
