/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a migration goes through: one text, from the machine that ends to the one that goes on. Main
 * reactor only; `co_` functions yield.
 */
#ifndef TIDEMARK_CLI_MACHINE_MIGRATE_CHANNEL_H
#define TIDEMARK_CLI_MACHINE_MIGRATE_CHANNEL_H

#include <sys/types.h>

#include "base/error.h"
#include "base/strbuf.h"

struct migrate_channel {
    int fd;       /* -1: none */
    int listener; /* that waits for the other machine; -1: none */
    pid_t child;  /* of exec:, not waited for yet; 0: none */
    char *path;   /* owned: of the listener; NULL: none */
};

#define MIGRATE_CHANNEL_INIT ((struct migrate_channel){.fd = -1, .listener = -1})

/*
 * Open the channel of a URI, unix:PATH or exec:COMMAND. `incoming`: to receive. -EINVAL: another
 * URI; errors of the system.
 */
int migrate_channel_co_open(struct migrate_channel *c, const char *uri, bool incoming,
                            struct error *err);
/*
 * Wait for the other machine, and until something comes from there, or the end. -ECANCELED after
 * migrate_channel_cancel().
 */
int migrate_channel_co_wait(struct migrate_channel *c, struct error *err);
/* Send all of the text. */
int migrate_channel_co_send(struct migrate_channel *c, const char *text, size_t size,
                            struct error *err);
/* Receive up to the end. -EIO: it ended with nothing, or it is larger than a migration is. */
int migrate_channel_co_receive(struct migrate_channel *c, struct strbuf *text, struct error *err);
/* Whoever waits for the channel is woken, and fails. Does not yield. */
void migrate_channel_cancel(struct migrate_channel *c);
/* Close the channel, and wait for the command of exec: to end. */
void migrate_channel_co_close(struct migrate_channel *c);

#endif
