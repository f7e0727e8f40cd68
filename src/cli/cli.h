/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the faces of the program share: its name in messages, how errors reach the user, sizes on
 * the command line, and the start of the machinery below.
 *
 * Functions return 0 or -errno with a `struct error`. Only the edge prints it and chooses an exit
 * status: cli_run() for what runs in a coroutine, and the few functions of a face outside it.
 */
#ifndef TIDEMARK_CLI_CLI_H
#define TIDEMARK_CLI_CLI_H

#include <signal.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"

/* The faces. argv[0] is the name of the face. Each returns the exit status of the process. */
int cli_img_main(int argc, char **argv);
int cli_io_main(int argc, char **argv);
int cli_nbd_main(int argc, char **argv);
int cli_daemon_main(int argc, char **argv);
int cli_backup_main(int argc, char **argv);
int cli_backups_main(int argc, char **argv);
int cli_restore_main(int argc, char **argv);
int cli_sets_main(int argc, char **argv);
int cli_verify_main(int argc, char **argv);
int cli_prune_main(int argc, char **argv);
int cli_copy_main(int argc, char **argv);
int cli_serve_main(int argc, char **argv);
int cli_mount_main(int argc, char **argv);
int cli_files_main(int argc, char **argv);
int cli_audit_main(int argc, char **argv);
int cli_metrics_main(int argc, char **argv);
int cli_test_restore_main(int argc, char **argv);
int cli_repair_main(int argc, char **argv);
int cli_track_main(int argc, char **argv);

/* --- the name of the program ------------------------------------------------------------------ */

/* The name in messages: "tidemark img", or "qemu-img" when called by that name. Borrowed. */
const char *cli_program(void);
/* Whether it was called by the name of one of QEMU's tools. */
bool cli_is_compat(void);
/* Set both. `name` is borrowed for the life of the process. */
void cli_set_program(const char *name, bool compat);
/* Print the line of --version, in QEMU's grammar when called by the name of its tool. */
void cli_print_version(void);

/* --- messages --------------------------------------------------------------------------------- */

/* Print "program: sentence" on standard error, after flushing standard output. Returns 1. */
int cli_fail(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
/* The same for `err`, with its hint on a line of its own. Clears `err`. Returns 1. */
int cli_report(struct error *err);
/*
 * Flush standard output at the end of a program that cli_run() does not run. Returns `status`, or 1
 * with a message if it is 0 and not all could be written.
 */
int cli_end_output(int status);
/*
 * The exit status for what a face or sub-command returned: `result` itself if it is not negative, 0
 * after CLI_ARGS_HELP, else 1. Prints and clears the error in `err`, if there is one.
 */
int cli_exit_status(int result, struct error *err);
/* Print "program: warning: sentence" likewise, unless --log-level leaves warnings out. */
void cli_warn(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

/* --- values ----------------------------------------------------------------------------------- */

/* As size_parse(), without a sentence. -EINVAL, -ERANGE. */
int cli_size(const char *text, uint64_t *ret_bytes);
/*
 * Parse a size in bytes within [min, max]. `name` names the value in the error ("image size").
 * -EINVAL: not a size; -ERANGE: not within.
 */
int cli_parse_size(const char *text, const char *name, uint64_t min, uint64_t max,
                   uint64_t *ret_bytes, struct error *err);
/* The same for an option that may be absent: leaves *ret_bytes alone when `text` is NULL. */
int cli_take_size(const char *text, const char *name, uint64_t min, uint64_t max,
                  uint64_t *ret_bytes, struct error *err);
/* The same two for a number without a suffix; decimal, hexadecimal (0x) or octal (0). */
int cli_parse_number(const char *text, const char *name, uint64_t min, uint64_t max,
                     uint64_t *ret_value, struct error *err);
int cli_take_number(const char *text, const char *name, uint64_t min, uint64_t max,
                    uint64_t *ret_value, struct error *err);
/* Parse the value of --output, "human" (also NULL) or "json". -EINVAL. */
int cli_parse_output(const char *text, bool *ret_json, struct error *err);

/* --- running ---------------------------------------------------------------------------------- */

struct cli_items;
/* Make the objects of --object options, until cli_run() ends. CLI_ARGS_HELP: help was printed. */
int cli_add_objects(const struct cli_items *objects, struct error *err);

/*
 * The data of a secret in the value of --object, which is a part of the command line and has been
 * read, is overwritten there, so that neither `ps` nor a core dump shows it. Of an object in JSON
 * that has such a member nothing stays.
 */
void cli_hide_secret(const char *object);

/* Let the process open as many files as its hard limit permits. */
void cli_raise_file_limit(void);

/* Register all drivers and types of objects of the layers below, once. */
void cli_register_drivers(void);

/*
 * The signals that end a server, to be blocked and read from a signalfd. Call it before they are
 * blocked: a signal that the caller of the process blocked is left out, because a signalfd would
 * deliver it all the same.
 */
void cli_end_signals(sigset_t *ret_set);

/*
 * Make this thread the main reactor, register the drivers, and run `co_main` as a coroutine.
 * Returns cli_exit_status() of what it returned; 1 if the machinery cannot start or standard output
 * cannot be written.
 */
int cli_run(int (*co_main)(int argc, char **argv, struct error *err), int argc, char **argv);
/* The same for a coroutine that takes `arg`, after the command line was parsed. */
int cli_run_with(int (*co_main)(void *arg, struct error *err), void *arg);

#endif
