/* SPDX-License-Identifier: Apache-2.0 */
/* What the files of `tidemark nbd` share. All `co_` functions yield; the others do not. */
#ifndef TIDEMARK_CLI_NBD_COMMAND_LINE_H
#define TIDEMARK_CLI_NBD_COMMAND_LINE_H

#include <signal.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"
#include "cli/args.h"
#include "cli/observe.h"
#include "cli/serving.h"
#include "tls/tls.h"

/* The command line. All text is borrowed; NULL: not given. */
struct nbd_command_line {
    const char *format, *bind, *port, *socket, *shared, *name, *description, *offset, *cache;
    const char *discard, *detect_zeroes, *pid_file, *aio, *handshake_limit;
    const char *connect, *load_snapshot, *tls_creds, *tls_authz, *tls_hostname, *selinux;
    struct cli_items bitmaps, objects;
    struct cli_serving serving;
    struct cli_observe observe;
    bool read_only, persistent, depth, list, fork, version, image_opts, no_cache;
    bool snapshot, disconnect, stats;

    /* What follows from it. */
    const char *file;     /* NULL with -L */
    uint64_t max_clients; /* 0: any number */
    uint64_t offset_bytes;
    uint64_t handshake_seconds; /* if handshake_limit */
    sigset_t end_signals;       /* blocked, and read from a signalfd */
    int ready_fd;               /* gets a byte when clients can connect; -1: nobody waits */
};

/* The number of sockets that the service manager passed, as sd_listen_fds(3) counts them. */
long nbd_passed_sockets(void);
/* Print the exports of the server that the command line names. `creds` NULL: without TLS. */
int nbd_co_list(const struct nbd_command_line *cl, const struct tls_creds *creds,
                struct error *err);
/*
 * --stats: show what the clients of an export do, from now on, until the end. The id is borrowed.
 * Main reactor; these do not yield.
 */
void nbd_live_begin(const char *export_id);
void nbd_live_end(void);
/* Serve the image until a signal, or the last client, ends it. */
int nbd_co_serve(const struct nbd_command_line *cl, struct error *err);

#endif
