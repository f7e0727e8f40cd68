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
extern const struct hmp_command hmp_disk_commands[], hmp_info_commands[];

/* Print (hmp_print.c). */
void hmp_printf(struct hmp *hmp, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/* Run a line, with the control lock held, and print its errors. */
void hmp_co_run(struct hmp *hmp, const char *line);
/*
 * Serve the human monitor on a connected, non-blocking socket `fd`, which is consumed also on
 * failure. `on_quit` is called when a line ends the machine. Does not yield.
 */
int hmp_start(int fd, struct chardev *chardev, void (*on_quit)(void), struct error *err);

/* Of QMP: runs a line, and returns what it prints. */
qmp_co_command machine_co_human_monitor_command;

/* The command `info`, whose first argument chooses what. */
int hmp_co_info(struct hmp *hmp, int argc, char **argv, struct error *err);
/* The command `qemu-io` (hmp_io.c). */
int hmp_co_qemu_io(struct hmp *hmp, int argc, char **argv, struct error *err);

#endif
