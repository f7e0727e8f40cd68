/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How a face is observed: the options --trace and --log-level, which all faces have. None of this
 * yields.
 */
#ifndef TIDEMARK_CLI_OBSERVE_H
#define TIDEMARK_CLI_OBSERVE_H

#include <stdbool.h>

#include "cli/args.h"

struct cli_observe {
    struct cli_items traces; /* values of --trace, in order */
    const char *log_level;   /* NULL: not given */
    bool verbose;            /* -v: at least LOG_LEVEL_NOTICE, for faces that have it */
};

/* Release what it owns. */
static inline void cli_observe_clear(struct cli_observe *o)
{
    cli_items_clear(&o->traces);
}
#define CLI_OBSERVE_AUTO(name)                                                                     \
    __attribute__((cleanup(cli_observe_clear))) struct cli_observe name = {0}

/* Rows of a table of arguments (cli/args.h) for `o`, a struct cli_observe. */
/* clang-format off */
#define CLI_OBSERVE_ARGS(o)                                                                        \
    {"trace", 'T', CLI_REPEAT, &(o).traces, "PATTERN",                                             \
     "trace: [[enable=]PATTERN][,events=FILE][,file=FILE]; or help"},                              \
    {"log-level", 0, CLI_VALUE, &(o).log_level, "LEVEL",                                           \
     "print messages up to: error, warning (default), notice, info, debug"}
/* clang-format on */

/*
 * How many words of argv, from argv[1] on, are one of these options, given before a sub-command; it
 * is noted in `o`. 0: no such option is there. The words are borrowed.
 */
int cli_observe_take(struct cli_observe *o, int argc, char **argv);

/*
 * Carry the options out. True: go on. False: exit with *ret_status, as help was printed, or an
 * error was reported. Before threads start.
 */
bool cli_observe(struct cli_observe *o, int *ret_status);

/*
 * The face is a server: a failure that only the log reports is an error there, the latest trace
 * events are recorded, and a crash logs them. After cli_observe(), before threads start.
 */
void cli_observe_server(void);

#endif
