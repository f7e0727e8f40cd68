/* SPDX-License-Identifier: Apache-2.0 */
/* Conversations by lines on a socket: the human monitor, qtest. Main reactor only. */
#ifndef TIDEMARK_CLI_MACHINE_LINES_H
#define TIDEMARK_CLI_MACHINE_LINES_H

#include <stddef.h>

#include "base/error.h"

struct chardev;
struct machine_lines;

struct machine_lines_ops {
    /* A line, without its end. Yields. */
    void (*co_line)(struct machine_lines *lines, const char *line);
};

/*
 * Begin on a connected, non-blocking socket `fd`, which is consumed also on failure. `chardev`
 * learns of the end. -ENOMEM or -EAGAIN of co_spawn(). Does not yield.
 */
int machine_lines_start(int fd, const struct machine_lines_ops *ops, struct chardev *chardev,
                        struct error *err);
/* Send text; what can't be sent is lost. Yields. */
void machine_lines_co_send(struct machine_lines *lines, const char *text, size_t size);
/* End all conversations, and wait for that. Yields. */
void machine_lines_co_end(void);

#endif
