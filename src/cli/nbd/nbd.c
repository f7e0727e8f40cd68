/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The face `tidemark nbd`: serve one image over NBD, or list what a server offers; in the grammar
 * of qemu-nbd(8). This file has the command line.
 */
#include "cli/nbd/command_line.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/checked.h"
#include "cli/background.h"
#include "cli/cli.h"
#include "cli/image.h"
#include "cli/snapshot.h"
#include "nbd/proto.h"

/* The socket of a device, where QEMU's program has it. */
#define DEVICE_SOCKET "/var/lock/qemu-nbd-%s"

static const struct cli_usage usage = {
    .synopsis = "FILE | -L [NBD-URI] | -d DEV",
    .about =
        "Serves FILE, a disk image, over the NBD protocol, on TCP or on a unix socket. Ends when "
        "the last\n"
        "client has left, unless --persistent is given. With -L lists the exports of another "
        "server.",
    .examples = "@-t -f qcow2 -k /run/disk.sock disk.qcow2\n"
                "@-t -f raw -r -e 8 -p 10809 -x golden golden.img\n"
                "@-L -k /run/disk.sock\n"
                "@-L 'nbds://host/?tls-certificates=/etc/pki/nbd'",
    .like_qemu_nbd = true,
};

/* --- checks ----------------------------------------------------------------------------------- */

/* --disconnect names a device, and nothing else counts. */
static int check_disconnect(const struct nbd_command_line *cl, struct error *err)
{
    if (cl->connect || cl->list || cl->fork || cl->persistent || cl->read_only || cl->snapshot ||
        cl->image_opts || cl->format || cl->socket || cl->port || cl->bind || cl->name ||
        cl->pid_file || cl->tls_creds) {
        return error_set(err, EINVAL, "--disconnect excludes the options for serving an image");
    }
    return 0;
}

/* --connect: the kernel is a client on a unix socket, which has no TLS there. */
static int check_device(struct nbd_command_line *cl, int rest, struct error *err)
{
    const char *name = cl->connect ? strrchr(cl->connect, '/') : NULL;

    if (cl->disconnect) {
        return rest != 1         ? cli_usage_error(err, &usage, "Invalid number of arguments")
               : cli_is_compat() ? 0
                                 : check_disconnect(cl, err);
    }
    if (!cl->connect) {
        return 0;
    }
    if (cl->list) {
        return error_set(err, EINVAL, "List mode is incompatible with per-device settings");
    }
    if (cl->tls_creds) {
        return error_set(err, EINVAL, "TLS is not supported with a host device");
    }
    if ((cl->port || cl->bind) && !cli_is_compat()) {
        return error_set(err, EINVAL, "A host device is connected by a unix socket (--socket)");
    }
    if (!cl->socket) {
        if (asprintf(&cl->device_socket, DEVICE_SOCKET, name ? name + 1 : cl->connect) < 0) {
            cl->device_socket = NULL;
            return error_out_of_memory(err);
        }
        cl->socket = cl->device_socket;
    }
    cl->fork = cl->fork || !cl->observe.verbose;
    return nbd_device_check(cl->connect, err);
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

/* What qemu-nbd accepts with -L without effect. */
static int check_list_useless(const struct nbd_command_line *cl, struct error *err)
{
    const struct {
        bool given;
        const char *name;
    } useless[] = {
        {cl->persistent, "--persistent"},
        {cl->shared != NULL, "--shared"},
        {cl->detect_zeroes != NULL, "--detect-zeroes"},
        {cl->image_opts, "--image-opts"},
        {cl->handshake_limit != NULL, "--handshake-limit"},
        {cl->pid_file != NULL, "--pid-file"},
        {cl->selinux != NULL, "--selinux-label"},
    };

    for (size_t i = 0; i < ARRAY_SIZE(useless); i++) {
        if (useless[i].given) {
            return error_set(err, EINVAL, "List mode is incompatible with %s", useless[i].name);
        }
    }
    return 0;
}

/* `server`: the argument, the address of a server; NULL: there is none. */
static int check_list_mode(const struct nbd_command_line *cl, int rest, const char *server,
                           struct error *err)
{
    if (rest > 1 || (server && (cli_is_compat() || strncmp(server, "nbd", 3) != 0))) {
        return error_set(err, EINVAL, "List mode is incompatible with a file name");
    }
    if (server && (cl->socket || cl->bind || cl->port)) {
        return error_set(err, EINVAL, "The address of the server is given twice");
    }
    if (cl->name || cl->description || cl->offset || cl->bitmaps.count || cl->depth ||
        cl->discard || cl->format || cl->cache || cl->aio || cl->load_snapshot || cl->snapshot ||
        cl->stats || cl->serving.metrics || cl->serving.slow_request || cl->per_address) {
        return error_set(err, EINVAL, "List mode is incompatible with per-device settings");
    }
    if (cl->fork) {
        return error_set(err, EINVAL, "List mode is incompatible with forking");
    }
    return cli_is_compat() ? 0 : check_list_useless(cl, err);
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
    /* qemu-nbd takes both, and listens at the socket. */
    if (cl->socket && (cl->bind || cl->port) && !cli_is_compat()) {
        return error_set(err, EINVAL, "A unix socket has no %s",
                         cl->port ? "port" : "address to bind to");
    }
    if (cl->socket && cl->socket[0] != '/' && cli_is_compat()) {
        return error_set(err, EINVAL, "socket path must be absolute");
    }
    return cli_take_number(cl->port, "port", cl->list ? 1 : 0, 65535, &port, err);
}

/* An option that can be given once: its value, unless it was given otherwise already. */
static int take_once(const struct cli_items *items, const char *name, const char **value,
                     struct error *err)
{
    if (items->count > 1) {
        return error_set(err, EINVAL, "%s can only be specified once", name);
    }
    *value = items->count ? items->item[0].value : *value;
    return 0;
}

static int take_modes(struct nbd_command_line *cl, struct error *err)
{
    int r = take_once(&cl->caches, "-n and --cache", &cl->cache, err);

    if (r == 0 && cl->caches.count > 0 && !cl->cache) {
        cl->cache = "none"; /* -n, which has no value */
    }
    UNLESS_FAILED(r, take_once(&cl->discards, "--discard", &cl->discard, err));
    UNLESS_FAILED(r, take_once(&cl->aios, "--aio", &cl->aio, err));
    return r;
}

/* The modes of cache, discards, zeroes and I/O, in the words of qemu-nbd. */
static int check_modes(const struct nbd_command_line *cl, struct error *err)
{
    static const char *const detect[] = {"off", "on", "unmap"};
    bool known = !cl->detect_zeroes;

    for (size_t i = 0; i < ARRAY_SIZE(detect) && !known; i++) {
        known = strcmp(cl->detect_zeroes, detect[i]) == 0;
    }
    if (cli_check_cache_mode(cl->cache, "", NULL) < 0) {
        return error_set(err, EINVAL, "Invalid cache mode `%s'", cl->cache);
    }
    if (!cli_is_discard_mode(cl->discard)) {
        return error_set(err, EINVAL, "Invalid discard mode `%s'", cl->discard);
    }
    if (!known) {
        return error_set(err, EINVAL,
                         "Failed to parse detect_zeroes mode: invalid parameter value: %s",
                         cl->detect_zeroes);
    }
    if (cl->detect_zeroes && strcmp(cl->detect_zeroes, "unmap") == 0 &&
        (!cl->discard || (strcmp(cl->discard, "unmap") != 0 && strcmp(cl->discard, "on") != 0))) {
        return error_set(err, EINVAL,
                         "setting detect-zeroes to unmap is not allowed without "
                         "setting discard operation to unmap");
    }
    if (cli_check_aio_mode(cl->aio, NULL) < 0) {
        return error_set(err, EINVAL, "Invalid aio mode '%s'", cl->aio);
    }
    return 0;
}

/* The sentence for a number that is none, or too large. */
static int check_number_of_nbd(int r, const char *name, const char *text, struct error *err)
{
    if (r < 0) {
        error_clear(err);
        return error_set(err, EINVAL, "Invalid %s '%s'", name, text);
    }
    return 0;
}

static int take_numbers(struct nbd_command_line *cl, struct error *err)
{
    int r =
        cli_take_number(cl->shared, "shared device number", 0, INT32_MAX, &cl->max_clients, NULL);

    r = check_number_of_nbd(r, "shared device number", cl->shared, err);
    UNLESS_FAILED(r, cli_take_number(cl->per_address, "number of clients per address", 0,
                                     UINT32_MAX, &cl->max_per_address, err));
    if (r < 0) {
        return r;
    }
    r = check_number_of_nbd(cli_take_number(cl->handshake_limit, "handshake limit", 0, UINT32_MAX,
                                            &cl->handshake_seconds, NULL),
                            "handshake limit", cl->handshake_limit, err);
    if (r < 0) {
        return r;
    }
    return check_number_of_nbd(
        cli_take_size(cl->offset, "offset", 0, INT64_MAX, &cl->offset_bytes, NULL), "offset",
        cl->offset, err);
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
    if (cl->snapshot && (cl->read_only || cl->load_snapshot) && !cli_is_compat()) {
        return error_set(err, EINVAL, "--snapshot has no effect with %s: nothing can be written",
                         cl->load_snapshot ? "--load-snapshot" : "--read-only");
    }
    if (cl->stats && cl->fork) {
        return error_set(err, EINVAL, "--stats is incompatible with forking");
    }
    cl->max_clients = 1;
    r = check_modes(cl, err);
    UNLESS_FAILED(r, take_numbers(cl, err));
    UNLESS_FAILED(r, cli_serving_apply(&cl->serving, err));
    return r;
}

static int check_nbd_command_line(struct nbd_command_line *cl, int rest, struct error *err)
{
    int r = check_device(cl, rest, err);

    if (r < 0 || cl->disconnect) {
        return r;
    }
    cl->read_only = cl->read_only || cl->load_snapshot;
    UNLESS_FAILED(r, check_activation(cl, err));
    UNLESS_FAILED(r, check_selinux(cl, err));
    UNLESS_FAILED(r, check_tls(cl, err));
    UNLESS_FAILED(r, check_texts(cl, err));
    UNLESS_FAILED(r, take_modes(cl, err));
    UNLESS_FAILED(r, cli_check_snapshot(cl->load_snapshot, err));
    UNLESS_FAILED(r, cl->list ? check_list_mode(cl, rest, cl->file, err)
                              : check_serve_mode(cl, rest, err));
    return r;
}

/* --- running ---------------------------------------------------------------------------------- */

static int co_nbd_main(void *arg, struct error *err)
{
    const struct nbd_command_line *cl = arg;
    struct tls_creds *creds = NULL;
    int r;

    if (cl->disconnect) {
        r = nbd_device_co_disconnect(cl->file, err);
        if (r == 0) {
            printf("%s disconnected\n", cl->file);
        }
        return r;
    }
    r = cli_add_objects(&cl->objects, err);
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
    r = cl->co_prepare ? cl->co_prepare(cl->prepare_arg, err) : 0;
    UNLESS_FAILED(r, cl->list ? nbd_co_list(cl, creds, err) : nbd_co_serve(cl, err));
    tls_creds_unref(creds);
    return r;
}

int nbd_run(struct nbd_command_line *cl)
{
    ERROR_AUTO(err);

    cli_observe_server();
    /* A socket is passed to a process by its ID, which is another one in the background. */
    cl->socket_was_passed = nbd_passed_sockets() > 0;
    if (cl->fork && cli_go_to_background(&cl->ready_fd, &err) < 0) {
        return cli_report(&err);
    }
    if (!cl->list && !cl->disconnect) {
        cli_end_signals(&cl->end_signals);
        /* The signal of this process to itself: the last client has left. */
        sigaddset(&cl->end_signals, SIGRTMIN);
        /* Before there are threads, so that all of them leave these signals to the signalfd. */
        pthread_sigmask(SIG_BLOCK, &cl->end_signals, NULL);
        /* qemu-nbd is not ended by it, and programs ask for progress with it. */
        (void)signal(SIGUSR1, SIG_IGN);
    }
    return cli_run_with(co_nbd_main, cl);
}

void nbd_command_line_clear(struct nbd_command_line *cl)
{
    cli_items_clear(&cl->bitmaps);
    cli_items_clear(&cl->objects);
    cli_items_clear(&cl->caches);
    cli_items_clear(&cl->discards);
    cli_items_clear(&cl->aios);
    cli_observe_clear(&cl->observe);
    free(cl->device_socket);
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
        {"max-per-address", 0, CLI_VALUE, &cl.per_address, "NUM",
         "clients at a time of one address (default 0: any number)"},
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
        {"nocache", 'n', CLI_ACTION, &cl.caches, NULL, "same as --cache=none"},
        {"cache", 0, CLI_REPEAT, &cl.caches, "MODE",
         "none, writeback (default), writethrough, directsync, unsafe"},
        {"discard", 0, CLI_REPEAT, &cl.discards, "MODE", "ignore (default) or unmap"},
        {"detect-zeroes", 0, CLI_VALUE, &cl.detect_zeroes, "MODE", "off (default), on, unmap"},
        {"aio", 0, CLI_REPEAT, &cl.aios, "MODE",
         "threads, native or io_uring: checked, without effect"},
        {"fork", 0, CLI_FLAG, &cl.fork, NULL, "go to the background once clients can connect"},
        {"pid-file", 0, CLI_VALUE, &cl.pid_file, "PATH", "write the process ID to a file"},
        {"connect", 'c', CLI_VALUE, &cl.connect, "DEV",
         "make the device DEV (/dev/nbd0) a client, and go to the\n"
         "background, unless --verbose is given"},
        {"disconnect", 'd', CLI_FLAG, &cl.disconnect, NULL,
         "disconnect the device FILE from its server"},
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
    cl.file = argv[first];
    if (check_nbd_command_line(&cl, argc - first, &err) < 0) {
        return cli_report(&err);
    }
    return nbd_run(&cl);
}
