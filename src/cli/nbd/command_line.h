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
    const char *discard, *detect_zeroes, *pid_file, *aio, *handshake_limit, *per_address;
    const char *connect, *load_snapshot, *tls_creds, *tls_authz, *tls_hostname, *selinux;
    struct cli_items bitmaps, objects;
    /* As often as they were given: once is the most. */
    struct cli_items caches, discards, aios;
    struct cli_serving serving;
    struct cli_observe observe;
    bool read_only, persistent, depth, list, fork, version, image_opts;
    bool snapshot, disconnect, stats;

    /* What follows from it. */
    const char *file;    /* with -L the URI of a server, with -d a device; NULL: none */
    char *device_socket; /* owned; with -c, where `socket` is not given */
    /* Called before the image is opened; NULL: nothing to do. Yields. */
    int (*co_prepare)(void *arg, struct error *err);
    void *prepare_arg;
    /* Becomes true if a signal asks for the end while the image is opened; NULL: nobody looks. */
    volatile sig_atomic_t *stop;
    uint64_t max_clients;     /* 0: any number */
    uint64_t max_per_address; /* 0: any number */
    uint64_t offset_bytes;
    uint64_t handshake_seconds; /* if handshake_limit */
    bool socket_was_passed;     /* to this process, or to the one that went to the background */
    sigset_t end_signals;       /* blocked, and read from a signalfd */
    int ready_fd;               /* gets a byte when clients can connect; -1: nobody waits */
};

/*
 * Serve as the command line says, which was checked: go to the background if wanted, start the
 * machinery. Returns the exit status of the process. Does not yield.
 */
int nbd_run(struct nbd_command_line *cl);
/* Release what it owns. Does not yield. */
void nbd_command_line_clear(struct nbd_command_line *cl);
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
/*
 * --connect and --disconnect (device.c). Check that there is such a device of the kernel; -ENOENT,
 * -ENOTBLK. Does not yield.
 */
int nbd_device_check(const char *path, struct error *err);
/*
 * Make a device of the kernel a client of the server of this process that listens on a unix socket,
 * or disconnect it from its server. Errors of the check, and of nbd_netlink_co_connect().
 */
int nbd_device_co_connect(const char *path, const char *socket_path, const char *export_name,
                          struct error *err);
int nbd_device_co_disconnect(const char *path, struct error *err);
/* Serve the image until a signal, or the last client, ends it. */
int nbd_co_serve(const struct nbd_command_line *cl, struct error *err);

#endif
