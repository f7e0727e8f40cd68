/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the faces of the program share: its name in messages, how errors reach the user, sizes on the command line,
 * and the start of the machinery below.
 */
#ifndef TIDEMARK_CLI_CLI_H
#define TIDEMARK_CLI_CLI_H

#include <signal.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"

/* The faces. Each gets argv[0] set to its name and returns the exit status of the process. */
int cli_img_main(int argc, char **argv);
int cli_io_main(int argc, char **argv);
int cli_nbd_main(int argc, char **argv);
int cli_daemon_main(int argc, char **argv);
int cli_backup_main(int argc, char **argv);
int cli_backups_main(int argc, char **argv);
int cli_restore_main(int argc, char **argv);
int cli_verify_main(int argc, char **argv);
int cli_repair_main(int argc, char **argv);

/* What messages call the program: "tidemark img", or "qemu-img" when called by that name. */
const char *cli_program(void);
/* Whether it was called by the name of one of QEMU's tools. */
bool cli_is_compat(void);
/* `name` is borrowed for the life of the process. */
void cli_set_program(const char *name, bool compat);
/* The line of --version, with QEMU's grammar when called by the name of its tool. */
void cli_print_version(void);

/*
 * The signals that end a server, for a signalfd: before they are blocked for that. One that the caller blocked is not among
 * them: a signalfd would see it in spite of that.
 */
void cli_end_signals(sigset_t *ret);

/* "program: sentence" on standard error, after what was printed so far. Returns 1, an exit status. */
int cli_fail(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
/* The same for what is in `err`, with its hint on a line of its own; `err` is empty afterwards. Returns 1. */
int cli_report(struct error *err);
/* "program: warning: sentence", likewise, unless --log-level leaves warnings out. */
void cli_warn(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

/* size_parse() that takes "1024.0" and "1024.0b", too. Tells nobody. */
int cli_size(const char *text, uint64_t *ret);
/*
 * Parse a size in bytes within [min, max]. On failure the user has been told, by the name of the value ("image
 * size"), and -EINVAL or -ERANGE is returned.
 */
int cli_parse_size(const char *text, const char *name, uint64_t min, uint64_t max, uint64_t *ret);
/* A plain number within [min, max]; as above. */
int cli_parse_number(const char *text, const char *name, uint64_t min, uint64_t max, uint64_t *ret);

struct cli_items;
/* Make the objects that --object options describe. Returns 0 or 1 (told). They live until cli_run() ends. */
int cli_add_objects(const struct cli_items *objects);

/* Make all drivers and types of objects of the layers below known. */
void cli_register_drivers(void);

/*
 * Make this thread the main reactor, register the drivers, run `co_main(argc, argv)` as a coroutine and return what
 * it returned. 1 if the machinery can't start.
 */
int cli_run(int (*co_main)(int argc, char **argv), int argc, char **argv);

#endif
