/* SPDX-License-Identifier: Apache-2.0 */
/* Serving one image. */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "base/log.h"
#include "block/socket_address.h"
#include "cli/background.h"
#include "cli/cli.h"
#include "cli/image.h"
#include "cli/nbd/command_line.h"
#include "export/export.h"
#include "export/nbd_server.h"
#include "loop/loop.h"
#include "nbd/proto.h"

#define EXPORT_ID "tidemark-nbd"
#define FIRST_PASSED_FD 3 /* sd_listen_fds(3) */

/* The last client has left, unless `left` others are connected. */
static void client_left(void *arg, size_t left)
{
    const struct nbd_command_line *cl = arg;

    if (left == 0 && !cl->persistent) {
        export_nbd_server_end_accepting();
        kill(getpid(), SIGRTMIN);
    }
}

long nbd_passed_sockets(void)
{
    const char *pid = getenv("LISTEN_PID"), *count = getenv("LISTEN_FDS");

    if (!pid || !count || strtol(pid, NULL, 10) != getpid()) {
        return 0;
    }
    return MAX(strtol(count, NULL, 10), 0);
}

/* *ret_fd is the listening socket that was passed; -1: none was. */
static int take_passed_socket(const struct nbd_command_line *cl, int *ret_fd, struct error *err)
{
    socklen_t size = sizeof(int);
    int listening = 0;

    if (!cl->socket_was_passed) {
        *ret_fd = -1;
        return 0;
    }
    if (getsockopt(FIRST_PASSED_FD, SOL_SOCKET, SO_ACCEPTCONN, &listening, &size) < 0 ||
        !listening || fcntl(FIRST_PASSED_FD, F_SETFD, FD_CLOEXEC) < 0 ||
        fcntl(FIRST_PASSED_FD, F_SETFL, O_NONBLOCK) < 0) {
        return error_set(err, EINVAL,
                         "Socket activation failed: LISTEN_FDS says that a socket was passed, and "
                         "descriptor %d is no listening socket",
                         FIRST_PASSED_FD);
    }
    *ret_fd = FIRST_PASSED_FD;
    return 0;
}

/* Put a raw node on the image, which begins at --offset. */
static int co_apply_offset(const struct nbd_command_line *cl, struct cli_disk *disk,
                           struct error *err)
{
    struct options *opts;
    struct block_node *part;
    int r;

    if (cl->offset_bytes == 0) {
        return 0;
    }
    if (cl->offset_bytes >= block_node_size(disk->node)) {
        return error_set(err, EINVAL,
                         "Offset (%" PRIu64 ") has to be smaller than the image size (%" PRIu64 ")",
                         cl->offset_bytes, block_node_size(disk->node));
    }
    opts = options_new();
    if (!opts) {
        return error_out_of_memory(err);
    }
    options_set_str(opts, "driver", "raw");
    options_set_uint(opts, "offset", cl->offset_bytes);
    options_set_str(opts, "file", block_node_name(disk->node));
    options_set_bool(opts, "read-only", cl->read_only);
    r = block_co_open(opts, cl->read_only ? 0 : BLOCK_OPEN_RDWR, &part, err);
    if (r == 0) {
        block_co_unref(disk->node);
        disk->node = part;
    }
    return r;
}

/* The error of opening as qemu-nbd says it, under its name. */
static void put_in_words_of_nbd(const char *file, struct error *err)
{
    if (cli_is_compat() && strncmp(error_message(err), "Failed to load snapshot", 23) != 0) {
        error_prepend(err, "Failed to blk_new_open '%s': ", file);
    }
}

static int co_open_served_image(const struct nbd_command_line *cl, struct cli_disk *disk,
                                struct error *err)
{
    AUTO_FREE char *extra = NULL;
    struct cli_image image = {
        .name = cl->file,
        .format = cl->format,
        .cache = cl->cache,
        .discard = cl->discard ?: "ignore",
        .native_aio = cl->aio && strcmp(cl->aio, "native") == 0,
        .image_opts = cl->image_opts,
        .snapshot = cl->load_snapshot,
        .overlay = cl->snapshot && !cl->read_only,
    };
    int r;

    if (cl->detect_zeroes) {
        if (asprintf(&extra, "detect-zeroes=%s", cl->detect_zeroes) < 0) {
            extra = NULL;
            return error_out_of_memory(err);
        }
        image.extra_options = extra;
    }
    r = cli_co_open_disk_plainly(&image, cl->read_only ? 0 : BLOCK_OPEN_RDWR, disk, err);
    if (r < 0) {
        put_in_words_of_nbd(cl->file, err);
        return r;
    }
    /* The export has a root of its own. */
    block_co_root_release(disk->root);
    disk->root = NULL;
    disk->edge = NULL;
    return co_apply_offset(cl, disk, err);
}

static int co_start_server_of_face(const struct nbd_command_line *cl, struct error *err)
{
    struct export_nbd_server_config config = EXPORT_NBD_SERVER_CONFIG_INIT;
    const struct socket_address address = {
        .path = (char *)(uintptr_t)cl->socket,
        .host = (char *)(uintptr_t)cl->bind,
        .port = (char *)(uintptr_t)(cl->port ?: NBD_DEFAULT_PORT),
    };

    if (take_passed_socket(cl, &config.listen_fd, err) < 0) {
        return -EINVAL;
    }
    config.address = &address;
    config.max_connections = (unsigned)cl->max_clients;
    config.max_per_address = (unsigned)cl->max_per_address;
    if (cl->handshake_limit) {
        config.handshake_max_seconds = (unsigned)cl->handshake_seconds;
    }
    config.tls_creds = cl->tls_creds;
    config.tls_authz = cl->tls_authz;
    config.on_disconnect = client_left;
    config.arg = (void *)(uintptr_t)cl;
    /* Clients that connect early wait until the export is there. */
    config.hold = true;
    return export_co_nbd_server_start(&config, err);
}

/* The options of the export, as its type has them; NULL: out of memory. */
static struct options *export_options(const struct nbd_command_line *cl)
{
    struct options *opts = options_new(), *bitmaps = options_new();

    if (!opts || !bitmaps) {
        options_free(opts);
        options_free(bitmaps);
        return NULL;
    }
    options_set_str(opts, "name", cl->name ?: "");
    if (cl->description) {
        options_set_str(opts, "description", cl->description);
    }
    options_set_bool(opts, "allocation-depth", cl->depth);
    for (size_t i = 0; i < cl->bitmaps.count; i++) {
        char key[24];

        snprintf(key, sizeof(key), "%zu", i);
        options_set_str(bitmaps, key, cl->bitmaps.item[i].value);
    }
    options_set_child(opts, "bitmaps", bitmaps);
    return opts;
}

static int co_add_nbd_export(const struct nbd_command_line *cl, const struct cli_disk *disk,
                             struct error *err)
{
    AUTO_OPTIONS struct options *opts = export_options(cl);
    struct export_config config = EXPORT_CONFIG_INIT;

    if (!opts) {
        return error_out_of_memory(err);
    }
    config.type = "nbd";
    config.id = EXPORT_ID;
    config.node_name = block_node_name(disk->node);
    config.writable = !cl->read_only;
    config.writethrough = disk->writethrough;
    config.options = opts;
    return export_co_add(&config, err);
}

/* Wait until a signal arrives. */
static void co_wait_for_end(int fd)
{
    struct signalfd_siginfo info;

    for (;;) {
        int r = loop_co_poll(fd, POLLIN, -1);

        if (r < 0 && r != -EINTR) {
            return;
        }
        if (read(fd, &info, sizeof(info)) == sizeof(info)) {
            return;
        }
    }
}

/* Flush what clients wrote and did not flush. */
static int co_flush_served_disk(const struct nbd_command_line *cl, const struct cli_disk *disk,
                                struct error *err)
{
    struct block_root *root;
    int r;

    if (cl->read_only) {
        return 0;
    }
    /* The gate passes a flush only for a user that may write. */
    r = block_co_root_new(disk->node, "the last flush", BLOCK_PERM_WRITE, BLOCK_PERM_ALL, &root,
                          err);
    if (r < 0) {
        return r;
    }
    r = block_co_flush(block_root_edge(root));
    block_co_root_release(root);
    return r < 0 ? error_set_errno(err, -r, "Could not flush '%s'", cl->file) : 0;
}

/* --- a signal while the image is opened ------------------------------------------------------- */

#define LOOK_NS (NS_PER_SECOND / 10)

struct opening {
    struct loop_timer timer;
    const struct nbd_command_line *cl;
};

/* The signal stays pending, and ends the server if it gets as far as that. */
static void look_for_signal(struct loop_timer *timer)
{
    const struct opening *o = container_of(timer, struct opening, timer);
    sigset_t pending, wanted;

    if (sigpending(&pending) == 0 && sigandset(&wanted, &pending, &o->cl->end_signals) == 0 &&
        !sigisemptyset(&wanted)) {
        *o->cl->stop = 1;
    }
    loop_timer_arm(timer, loop_now_ns() + LOOK_NS);
}

static int co_open_until_signal(const struct nbd_command_line *cl, struct cli_disk *disk,
                                struct error *err)
{
    struct opening o = {.cl = cl};
    int r;

    loop_timer_init(&o.timer, look_for_signal);
    if (cl->stop) {
        loop_timer_arm(&o.timer, loop_now_ns() + LOOK_NS);
    }
    r = co_open_served_image(cl, disk, err);
    loop_timer_disarm(&o.timer);
    return r;
}

/* --- serving ---------------------------------------------------------------------------------- */

/* Serve the opened image until the end. */
static int co_serve_export(const struct nbd_command_line *cl, const struct cli_disk *disk,
                           int end_fd, struct error *err)
{
    int r = co_start_server_of_face(cl, err);

    if (r < 0) {
        return r;
    }
    r = co_add_nbd_export(cl, disk, err);
    if (cl->pid_file) {
        UNLESS_FAILED(r, cli_write_pid_file(cl->pid_file, err));
    }
    if (r == 0) {
        export_nbd_server_let_in();
    }
    if (cl->connect) {
        UNLESS_FAILED(r, nbd_device_co_connect(cl->connect, cl->socket, cl->name ?: "", err));
    }
    if (r == 0) {
        cli_announce_serving(cl->ready_fd, cl->observe.verbose);
        if (cl->stats) {
            nbd_live_begin(EXPORT_ID);
        }
        co_wait_for_end(end_fd);
        nbd_live_end();
        if (cl->connect) {
            /* It fails if that is why the server ends. */
            (void)nbd_device_co_disconnect(cl->connect, NULL);
        }
    }
    export_co_nbd_server_stop(NULL);
    return r;
}

int nbd_co_serve(const struct nbd_command_line *cl, struct error *err)
{
    ERROR_AUTO(finish_error);
    AUTO_CLOSE int end_fd = -1;
    CLI_DISK_AUTO(disk);
    int r;

    end_fd = signalfd(-1, &cl->end_signals, SFD_CLOEXEC | SFD_NONBLOCK);
    if (end_fd < 0) {
        return error_set_errno(err, errno, "Could not watch for signals");
    }
    r = cli_serving_co_start(&cl->serving, err);
    UNLESS_FAILED(r, co_open_until_signal(cl, &disk, err));
    UNLESS_FAILED(r, co_serve_export(cl, &disk, end_fd, err));
    cli_serving_co_stop();
    if (r < 0) {
        return r;
    }
    r = co_flush_served_disk(cl, &disk, err);
    r = error_first(r, cli_co_finish_disk(&disk, &finish_error));
    error_move(err, &finish_error);
    return r;
}
