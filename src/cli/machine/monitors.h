/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Where the machine meets its clients: -chardev, -mon, -qmp, -monitor, -qtest. A conversation is
 * QMP, the human monitor or qtest; it takes place on standard input and output, on a socket that
 * was inherited or connected to, or on one that clients connect to. Main reactor only; `co_`
 * functions yield.
 */
#ifndef TIDEMARK_CLI_MACHINE_MONITORS_H
#define TIDEMARK_CLI_MACHINE_MONITORS_H

#include <stdbool.h>

#include "base/error.h"

/* The option -chardev: type and id, and what the type takes. Errors of the socket. */
int machine_co_add_chardev(const char *text, struct error *err);
/* The option -mon: [chardev=]ID,mode=control|readline,pretty=. */
int machine_add_monitor(const char *text, struct error *err);

enum machine_talk {
    MACHINE_TALK_QMP,
    MACHINE_TALK_QMP_PRETTY,
    MACHINE_TALK_HMP,
    MACHINE_TALK_QTEST
};
/*
 * The short forms -qmp, -qmp-pretty, -monitor, -qtest: "stdio", "unix:PATH,server=on,wait=off",
 * "chardev:ID", "none" and "null".
 */
int machine_co_add_talk(enum machine_talk talk, const char *text, struct error *err);

/* Remove the files of listening sockets, accept nobody, and end all lines. */
void machine_monitors_co_end(void);

#endif
