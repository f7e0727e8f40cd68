/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The human monitor: commands by lines, for people and scripts, on a socket or by the command
 * human-monitor-command of QMP. Main reactor only; `co_` functions yield.
 */
#ifndef TIDEMARK_CLI_MACHINE_HMP_H
#define TIDEMARK_CLI_MACHINE_HMP_H

#include <json-c/json.h>
#include <stdbool.h>

#include "base/error.h"
#include "base/strbuf.h"
#include "qmp/commands.h"

struct chardev;

/* A line that runs. */
struct hmp {
    struct strbuf out; /* what it prints; lines end in \r\n */
    bool quit;         /* the machine ends */
    bool plain_error;  /* an error is printed without "Error: " before the sentence */
};

/* Words that a line may have. */
#define HMP_WORDS_MAX 32

struct hmp_command {
    const char *name, *alias;
    int min_args, max_args;
    const char *arguments, *about; /* for help */
    /* Run it; argv[0] is the first argument. 0, or -errno and an error that the caller prints. */
    int (*co_run)(struct hmp *hmp, int argc, char **argv, struct error *err);
};

/* The tables, each ended by a NULL name. */
extern const struct hmp_command hmp_disk_commands[], hmp_info_commands[], hmp_server_commands[];

/*
 * Take the flags (one letter each, of `letters`) out of the words. Returns which were given: bit N
 * stands for letter N of `letters`.
 */
unsigned hmp_take_flags(int *argc, char ***argv, const char *letters);

/*
 * The value of an argument of `command`: a size, which counts mebibytes if it has no unit, and is
 * at most INT64_MAX; or a number, decimal or with 0x. 0; -EINVAL and an error in the monitor's
 * words; -ENOMEM.
 */
int hmp_size(struct hmp *hmp, const char *command, const char *text, uint64_t *ret_bytes,
             struct error *err);
int hmp_number(struct hmp *hmp, const char *command, const char *text, int64_t *ret_number,
               struct error *err);

/* Print (hmp_print.c). */
void hmp_printf(struct hmp *hmp, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/* Run a line, with the control lock held, and print its errors. */
void hmp_co_run(struct hmp *hmp, const char *line);
/*
 * Serve the human monitor on a connected, non-blocking socket `fd`, which is consumed also on
 * failure. `on_quit` is called when a line ends the machine. The greeting comes at once, the first
 * prompt with hmp_prompt(). Does not yield.
 */
int hmp_start(int fd, struct chardev *chardev, void (*on_quit)(void), struct error *err);
/* The machine has been made: who was greeted before gets a prompt. Does not yield. */
void hmp_prompt(void);

/* Of QMP: runs a line, and returns what it prints. */
qmp_co_command machine_co_human_monitor_command;

/* The command `info`, whose first argument chooses what. */
int hmp_co_info(struct hmp *hmp, int argc, char **argv, struct error *err);
/* The command `commit` (hmp_commit.c). */
int hmp_co_run_commit(struct hmp *hmp, int argc, char **argv, struct error *err);
/* The command `qemu-io` (hmp_io.c). */
int hmp_co_qemu_io(struct hmp *hmp, int argc, char **argv, struct error *err);

#endif
