/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The face `tidemark nbd`: serve one image over NBD, or list what a server offers; in the grammar
 * of qemu-nbd(8). This file has the command line.
 */
#include "cli/nbd/command_line.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/checked.h"
#include "cli/cli.h"
#include "cli/image.h"
#include "cli/snapshot.h"
#include "nbd/proto.h"

static const struct cli_usage usage = {
    .synopsis = "FILE | -L",
    .about =
        "Serves FILE, a disk image, over the NBD protocol, on TCP or on a unix socket. Ends when "
        "the last\n"
        "client has left, unless --persistent is given. With -L lists the exports of another "
        "server.",
    .examples = "@-t -f qcow2 -k /run/disk.sock disk.qcow2\n"
                "@-t -f raw -r -e 8 -p 10809 -x golden golden.img\n"
                "@-L -k /run/disk.sock",
};

/* --- checks ----------------------------------------------------------------------------------- */

static int refuse_unsupported(const struct nbd_command_line *cl, struct error *err)
{
    if (cl->connect || cl->disconnect) {
        return error_set(
            err, ENOTSUP,
            "--%s is not supported: this program does not set up the NBD client of the "
            "kernel; nbd-client(8) does, or nbdfuse(1) without /dev/nbd*",
            cl->connect ? "connect" : "disconnect");
    }
    return 0;
}

/* A socket that was passed excludes the options that say where to listen. */
static int check_activation(const struct nbd_command_line *cl, struct error *err)
{
    const struct {
        bool given;
        const char *what;
    } useless[] = {
        {cl->socket != NULL, "Unix socket"},
        {cl->bind != NULL, "The interface"},
        {cl->port != NULL, "TCP port number"},
        {cl->selinux != NULL, "SELinux label"},
    };

    if (nbd_passed_sockets() == 0) {
        return 0;
    }
    if (cl->list) {
        return error_set(err, EINVAL, "List mode is incompatible with socket activation");
    }
    for (size_t i = 0; i < ARRAY_SIZE(useless); i++) {
        if (useless[i].given) {
            return error_set(err, EINVAL, "%s can't be set when using socket activation",
                             useless[i].what);
        }
    }
    if (nbd_passed_sockets() > 1) {
        return error_set(err, EINVAL,
                         "One socket can be served, and LISTEN_FDS says that %ld were passed",
                         nbd_passed_sockets());
    }
    return 0;
}

static int check_selinux(const struct nbd_command_line *cl, struct error *err)
{
    if (!cl->selinux) {
        return 0;
    }
    if (!cl->socket) {
        return error_set(err, EINVAL, "--selinux-label is not permitted without --socket");
    }
    cli_warn("--selinux-label has no effect: this build knows nothing of SELinux, and the socket "
             "gets the label that the system's policy gives it");
    return 0;
}

static int check_tls(const struct nbd_command_line *cl, struct error *err)
{
    if (cl->tls_authz && !cl->tls_creds) {
        return error_set(err, EINVAL, "--tls-authz is not permitted without --tls-creds");
    }
    if (cl->tls_hostname && !cl->tls_creds) {
        return error_set(err, EINVAL, "--tls-hostname is not permitted without --tls-creds");
    }
    if (cl->tls_hostname && !cl->list) {
        return error_set(err, EINVAL, "TLS hostname is only supported with export list");
    }
    if (cl->tls_authz && cl->list) {
        return error_set(err, EINVAL, "TLS authorization is incompatible with export list");
    }
    return 0;
}

static int check_list_mode(const struct nbd_command_line *cl, int rest, struct error *err)
{
    if (rest > 0) {
        return error_set(err, EINVAL, "List mode is incompatible with a file name");
    }
    if (cl->name || cl->description || cl->offset || cl->bitmaps.count || cl->depth ||
        cl->discard || cl->format || cl->cache || cl->no_cache || cl->aio || cl->load_snapshot ||
        cl->snapshot || cl->stats || cl->serving.metrics || cl->serving.slow_request) {
        return error_set(err, EINVAL, "List mode is incompatible with per-device settings");
    }
    if (cl->fork) {
        return error_set(err, EINVAL, "List mode is incompatible with forking");
    }
    return 0;
}

static int check_texts(const struct nbd_command_line *cl, struct error *err)
{
    uint64_t port;

    if (cl->name && strlen(cl->name) > NBD_STRING_MAX) {
        return error_set(err, EINVAL, "export name '%s' too long", cl->name);
    }
    if (cl->description && strlen(cl->description) > NBD_STRING_MAX) {
        return error_set(err, EINVAL, "export description '%s' too long", cl->description);
    }
    if (cl->socket && (cl->bind || cl->port)) {
        return error_set(err, EINVAL, "A unix socket has no %s",
                         cl->port ? "port" : "address to bind to");
    }
    if (cl->socket && cl->socket[0] != '/' && cli_is_compat()) {
        return error_set(err, EINVAL, "socket path must be absolute");
    }
    return cli_take_number(cl->port, "port", cl->list ? 1 : 0, 65535, &port, err);
}

static int check_serve_mode(struct nbd_command_line *cl, int rest, struct error *err)
{
    int r;

    if (rest != 1) {
        return cli_usage_error(err, &usage, "Invalid number of arguments");
    }
    if (cl->image_opts && cl->format) {
        return error_set(err, EINVAL, "--image-opts and -f are mutually exclusive");
    }
    if (cl->no_cache && cl->cache) {
        return error_set(err, EINVAL, "-n and --cache can only be specified once");
    }
    if (cl->stats && cl->fork) {
        return error_set(err, EINVAL, "--stats is incompatible with forking");
    }
    if (cl->no_cache) {
        cl->cache = "none";
    }
    r = cli_check_cache_mode(cl->cache, "cache mode", err);
    if (r == 0 && !cli_is_discard_mode(cl->discard)) {
        r = error_set(err, EINVAL, "Invalid discard mode `%s'", cl->discard);
    }
    cl->max_clients = 1;
    UNLESS_FAILED(r, cli_take_number(cl->shared, "shared device number", 0, INT32_MAX,
                                     &cl->max_clients, err));
    UNLESS_FAILED(r, cli_take_number(cl->handshake_limit, "handshake limit", 0, UINT32_MAX,
                                     &cl->handshake_seconds, err));
    if (r == 0 && cli_check_aio_mode(cl->aio, NULL) < 0) {
        r = error_set(err, EINVAL, "Invalid aio mode '%s'", cl->aio);
    }
    UNLESS_FAILED(r, cli_take_size(cl->offset, "offset", 0, INT64_MAX, &cl->offset_bytes, err));
    UNLESS_FAILED(r, cli_serving_apply(&cl->serving, err));
    return r;
}

static int check_nbd_command_line(struct nbd_command_line *cl, int rest, struct error *err)
{
    int r = refuse_unsupported(cl, err);

    cl->read_only = cl->read_only || cl->load_snapshot;
    UNLESS_FAILED(r, check_activation(cl, err));
    UNLESS_FAILED(r, check_selinux(cl, err));
    UNLESS_FAILED(r, check_tls(cl, err));
    UNLESS_FAILED(r, check_texts(cl, err));
    UNLESS_FAILED(r, cli_check_snapshot(cl->load_snapshot, err));
    UNLESS_FAILED(r, cl->list ? check_list_mode(cl, rest, err) : check_serve_mode(cl, rest, err));
    return r;
}

/* --- running ---------------------------------------------------------------------------------- */

static int co_nbd_main(void *arg, struct error *err)
{
    const struct nbd_command_line *cl = arg;
    struct tls_creds *creds = NULL;
    int r = cli_add_objects(&cl->objects, err);

    if (r < 0) {
        return r;
    }
    if (cl->tls_creds) {
        r = tls_creds_ref(cl->tls_creds, cl->list ? TLS_CLIENT : TLS_SERVER, &creds, err);
        if (r < 0) {
            error_prepend(err, "Failed to get TLS creds: ");
            return r;
        }
    }
    r = cl->list ? nbd_co_list(cl, creds, err) : nbd_co_serve(cl, err);
    tls_creds_unref(creds);
    return r;
}

/* Wait until the child serves, or has failed and printed why. Returns the exit status. */
static int wait_for_child(pid_t child, int ready_fd)
{
    int status = 0;
    char byte;
    ssize_t n;

    do {
        n = read(ready_fd, &byte, 1);
    } while (n < 0 && errno == EINTR);
    close(ready_fd);
    if (n == 1) {
        return 0;
    }
    waitpid(child, &status, 0);
    return WIFEXITED(status) && WEXITSTATUS(status) ? WEXITSTATUS(status) : 1;
}

/* --fork: go on in a child. Returns 0 in the child; the parent ends here. */
static int go_to_background(struct nbd_command_line *cl, struct error *err)
{
    int pipe_fds[2];
    pid_t child;

    if (pipe2(pipe_fds, O_CLOEXEC) < 0) {
        return error_set_errno(err, errno, "Could not make a pipe");
    }
    child = fork();
    if (child < 0) {
        return error_set_errno(err, errno, "Failed to fork");
    }
    if (child > 0) {
        close(pipe_fds[1]);
        exit(wait_for_child(child, pipe_fds[0]));
    }
    close(pipe_fds[0]);
    cl->ready_fd = pipe_fds[1];
    setsid();
    return 0;
}

/* Returns the exit status. */
static int run_nbd(struct nbd_command_line *cl)
{
    ERROR_AUTO(err);

    cli_observe_server();
    if (cl->fork && go_to_background(cl, &err) < 0) {
        return cli_report(&err);
    }
    if (!cl->list) {
        cli_end_signals(&cl->end_signals);
        /* The signal of this process to itself: the last client has left. */
        sigaddset(&cl->end_signals, SIGUSR1);
        /* Before there are threads, so that all of them leave these signals to the signalfd. */
        pthread_sigmask(SIG_BLOCK, &cl->end_signals, NULL);
    }
    return cli_run_with(co_nbd_main, cl);
}

static void nbd_command_line_clear(struct nbd_command_line *cl)
{
    cli_items_clear(&cl->bitmaps);
    cli_items_clear(&cl->objects);
    cli_observe_clear(&cl->observe);
}

int cli_nbd_main(int argc, char **argv)
{
    __attribute__((cleanup(nbd_command_line_clear))) struct nbd_command_line cl = {.ready_fd = -1};
    const struct cli_arg args[] = {
        {"format", 'f', CLI_VALUE, &cl.format, "FORMAT", "format of the image (raw, qcow2)"},
        {"image-opts", 0, CLI_FLAG, &cl.image_opts, NULL,
         "FILE is a list of options: driver=...,..."},
        {"read-only", 'r', CLI_FLAG, &cl.read_only, NULL, "refuse writes"},
        {"port", 'p', CLI_VALUE, &cl.port, "PORT", "TCP port (default 10809)"},
        {"bind", 'b', CLI_VALUE, &cl.bind, "HOST", "address to listen on (default: all)"},
        {"socket", 'k', CLI_VALUE, &cl.socket, "PATH", "listen on a unix socket instead"},
        {"shared", 'e', CLI_VALUE, &cl.shared, "NUM",
         "clients at a time (default 1; 0: any number)"},
        {"handshake-limit", 0, CLI_VALUE, &cl.handshake_limit, "SECONDS",
         "drop clients that take longer to choose an export\n"
         "(default 10; 0: no limit)"},
        {"persistent", 't', CLI_FLAG, &cl.persistent, NULL, "go on when the last client has left"},
        {"export-name", 'x', CLI_VALUE, &cl.name, "NAME",
         "name of the export for clients (default: empty)"},
        {"description", 'D', CLI_VALUE, &cl.description, "TEXT",
         "description that clients can read"},
        {"bitmap", 'B', CLI_REPEAT, &cl.bitmaps, "NAME", "offer a dirty bitmap of the image"},
        {"allocation-depth", 'A', CLI_FLAG, &cl.depth, NULL, "offer the allocation depth"},
        {"snapshot", 's', CLI_FLAG, &cl.snapshot, NULL,
         "writes go to a temporary file and are lost at the end"},
        {"load-snapshot", 'l', CLI_VALUE, &cl.load_snapshot, "SNAPSHOT",
         "serve an internal snapshot, read-only: its ID or name"},
        {"offset", 'o', CLI_VALUE, &cl.offset, "BYTES", "where in the image the disk begins"},
        {"nocache", 'n', CLI_FLAG, &cl.no_cache, NULL, "same as --cache=none"},
        {"cache", 0, CLI_VALUE, &cl.cache, "MODE",
         "none, writeback (default), writethrough, directsync, unsafe"},
        {"discard", 0, CLI_VALUE, &cl.discard, "MODE", "ignore (default) or unmap"},
        {"detect-zeroes", 0, CLI_VALUE, &cl.detect_zeroes, "MODE", "off (default), on, unmap"},
        {"aio", 0, CLI_VALUE, &cl.aio, "MODE",
         "threads, native or io_uring: checked, without effect"},
        {"fork", 0, CLI_FLAG, &cl.fork, NULL, "go to the background once clients can connect"},
        {"pid-file", 0, CLI_VALUE, &cl.pid_file, "PATH", "write the process ID to a file"},
        {"list", 'L', CLI_FLAG, &cl.list, NULL, "list the exports of a server"},
        CLI_ARG_OBJECT(cl.objects),
        {"tls-creds", 0, CLI_VALUE, &cl.tls_creds, "ID",
         "use TLS, with these credentials (--object tls-creds-...)"},
        {"tls-authz", 0, CLI_VALUE, &cl.tls_authz, "ID",
         "accept only clients that this object allows (--object authz-...)"},
        {"tls-hostname", 0, CLI_VALUE, &cl.tls_hostname, "NAME",
         "with -L: the name in the server's certificate"},
        {"selinux-label", 0, CLI_VALUE, &cl.selinux, "LABEL",
         "accepted without effect, with a warning"},
        {"stats", 0, CLI_FLAG, &cl.stats, NULL,
         "show each second what clients do: rates, latencies, errors"},
        {"verbose", 'v', CLI_FLAG, &cl.observe.verbose, NULL, "verbose: as --log-level=notice"},
        CLI_SERVING_ARGS(cl.serving),
        CLI_OBSERVE_ARGS(cl.observe),
        {"version", 'V', CLI_FLAG, &cl.version, NULL, "print the version"},
        /* Known, and refused by name. */
        {"connect", 'c', CLI_VALUE, &cl.connect, "DEV", NULL},
        {"disconnect", 'd', CLI_FLAG, &cl.disconnect, NULL, NULL},
        CLI_ARG_END,
    };
    ERROR_AUTO(err);
    int first = cli_args_parse(args, &usage, argc, argv);
    int status;

    if (first < 0) {
        return cli_exit_status(first, &err);
    }
    if (cl.version) {
        cli_print_version();
        return 0;
    }
    if (!cli_observe(&cl.observe, &status)) {
        return status;
    }
    if (check_nbd_command_line(&cl, argc - first, &err) < 0) {
        return cli_report(&err);
    }
    cl.file = cl.list ? NULL : argv[first];
    return run_nbd(&cl);
}
