/* SPDX-License-Identifier: Apache-2.0 */
/* `tidemark nbd`: serve one image over NBD, or list what a server offers; in the grammar of qemu-nbd(8). */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "base/log.h"
#include "cli/args.h"
#include "cli/cli.h"
#include "cli/image.h"
#include "cli/observe.h"
#include "export/export.h"
#include "export/nbd_server.h"
#include "loop/loop.h"
#include "nbd/client.h"
#include "nbd/proto.h"
#include "tls/tls.h"

#define EXPORT_ID "tidemark-nbd"
#define FIRST_PASSED_FD 3 /* sd_listen_fds(3) */
#define LIST_TIMEOUT_NS 30000000000LL

static const struct cli_usage usage = {
    .synopsis = "FILE | -L",
    .about =
        "Serves FILE, a disk image, over the NBD protocol, on TCP or on a unix socket. Ends when "
        "the last\n"
        "client has left, unless it is persistent. With -L lists the exports of another server.",
    .examples = "  -t -f qcow2 -k /run/disk.sock disk.qcow2\n"
                "  -t -f raw -r -e 8 -p 10809 -x golden golden.img\n"
                "  -L -k /run/disk.sock",
};

/* The command line. */
static struct {
    const char *format, *bind, *port, *socket, *shared, *name, *description, *offset, *cache;
    const char *discard, *detect_zeroes, *pid_file, *aio;
    struct cli_observe observe;
    const char *connect, *load_snapshot, *tls_creds, *tls_authz, *tls_hostname, *selinux;
    struct cli_items bitmaps, objects;
    bool read_only, persistent, depth, list, fork, version, image_opts, no_cache;
    bool snapshot, disconnect;
    const char *file; /* FILE; NULL with -L */
    int ready_fd;     /* a byte goes here when clients can connect; -1: nobody waits */
    sigset_t ends;    /* signals that end it, blocked, and read from a signalfd */
    const char *handshake_limit;
    uint64_t max_clients, offset_bytes, handshake_seconds;
} cl = {.ready_fd = -1};

static const struct cli_arg args[] = {
    {"format", 'f', CLI_VALUE, &cl.format, "FORMAT", "format of the image (raw, qcow2)"},
    {"image-opts", 0, CLI_FLAG, &cl.image_opts, NULL, "FILE is a list of options: driver=...,..."},
    {"read-only", 'r', CLI_FLAG, &cl.read_only, NULL, "refuse writes"},
    {"port", 'p', CLI_VALUE, &cl.port, "PORT", "TCP port (default 10809)"},
    {"bind", 'b', CLI_VALUE, &cl.bind, "HOST", "address to listen on (default: all)"},
    {"socket", 'k', CLI_VALUE, &cl.socket, "PATH", "listen on a unix socket instead"},
    {"shared", 'e', CLI_VALUE, &cl.shared, "NUM", "clients at a time (default 1; 0: any number)"},
    {"handshake-limit", 0, CLI_VALUE, &cl.handshake_limit, "SECONDS",
     "drop clients who take longer to choose an export (default 10; 0: no limit)"},
    {"persistent", 't', CLI_FLAG, &cl.persistent, NULL, "go on when the last client has left"},
    {"export-name", 'x', CLI_VALUE, &cl.name, "NAME", "name that clients ask for (default: empty)"},
    {"description", 'D', CLI_VALUE, &cl.description, "TEXT", "description that clients can read"},
    {"bitmap", 'B', CLI_REPEAT, &cl.bitmaps, "NAME", "offer a dirty bitmap of the image"},
    {"allocation-depth", 'A', CLI_FLAG, &cl.depth, NULL, "offer the allocation depth"},
    {"load-snapshot", 'l', CLI_VALUE, &cl.load_snapshot, "SNAPSHOT",
     "serve an internal snapshot, read-only: its ID or name"},
    {"offset", 'o', CLI_VALUE, &cl.offset, "BYTES", "where in the image the disk begins"},
    {"nocache", 'n', CLI_FLAG, &cl.no_cache, NULL, "same as --cache=none"},
    {"cache", 0, CLI_VALUE, &cl.cache, "MODE",
     "none, writeback (default), writethrough, directsync, unsafe"},
    {"discard", 0, CLI_VALUE, &cl.discard, "MODE", "ignore (default) or unmap"},
    {"detect-zeroes", 0, CLI_VALUE, &cl.detect_zeroes, "MODE", "off (default), on, unmap"},
    {"aio", 0, CLI_VALUE, &cl.aio, "MODE", "threads, native or io_uring: checked only"},
    {"fork", 0, CLI_FLAG, &cl.fork, NULL, "go to the background once clients can connect"},
    {"pid-file", 0, CLI_VALUE, &cl.pid_file, "PATH", "write the process id there"},
    {"list", 'L', CLI_FLAG, &cl.list, NULL, "list the exports of a server"},
    {"object", 0, CLI_REPEAT, &cl.objects, "DEF", "an object that others refer to: TYPE,id=ID,..."},
    {"tls-creds", 0, CLI_VALUE, &cl.tls_creds, "ID",
     "use TLS, with these credentials (--object tls-creds-...)"},
    {"tls-authz", 0, CLI_VALUE, &cl.tls_authz, "ID",
     "let in only whom this allows (--object authz-...)"},
    {"tls-hostname", 0, CLI_VALUE, &cl.tls_hostname, "NAME",
     "with -L: the name that the server's certificate is for"},
    {"selinux-label", 0, CLI_VALUE, &cl.selinux, "LABEL", "taken, and told to have no effect"},
    {"verbose", 'v', CLI_FLAG, &cl.observe.verbose, NULL, "verbose: as --log-level=info"},
    CLI_OBSERVE_ARGS(cl.observe),
    {"version", 'V', CLI_FLAG, &cl.version, NULL, "print the version"},
    /* Known, and refused by name. */
    {"connect", 'c', CLI_VALUE, &cl.connect, "DEV", NULL},
    {"disconnect", 'd', CLI_FLAG, &cl.disconnect, NULL, NULL},
    {"snapshot", 's', CLI_FLAG, &cl.snapshot, NULL, NULL},
    {NULL, 0, CLI_FLAG, NULL, NULL, NULL},
};

/* --- listing ------------------------------------------------------------------------------------- */

static void print_flags(unsigned flags)
{
    static const char *const names[] = {
        NULL,    "readonly", "flush", "fua",       "rotational",          "trim", "zeroes", "df",
        "multi", "resize",   "cache", "fast-zero", "block-status-payload"};

    printf("  flags: 0x%x (", flags);
    for (size_t i = 1; i < ARRAY_SIZE(names); i++) {
        if (flags & (1u << i)) {
            printf(" %s", names[i]);
        }
    }
    printf(" )\n");
}

/* A text of the server, with what a terminal could take for a command written as its hexadecimal bytes. */
static void print_text(const char *before, const char *text, const char *after)
{
    fputs(before, stdout);
    for (const unsigned char *p = (const unsigned char *)text; *p; p++) {
        if (*p < ' ' || *p == 0x7f) {
            printf("\\x%02x", *p);
        } else if (*p == 0xc2 && p[1] >= 0x80 && p[1] < 0xa0) {
            printf("\\x%02x\\x%02x", p[0], p[1]);
            p++;
        } else {
            putchar(*p);
        }
    }
    puts(after);
}

static void print_export(const struct nbd_export_info *e)
{
    print_text(" export: '", e->name, "'");
    if (e->description) {
        print_text("  description: ", e->description, "");
    }
    if (e->has_info) {
        printf("  size:  %llu\n", (unsigned long long)e->size);
        print_flags(e->flags);
    }
    if (e->has_block_sizes) {
        printf("  min block: %u\n  opt block: %u\n  max block: %u\n", e->min_block,
               e->preferred_block, e->max_block);
        printf("  transaction size: %s-bit\n", e->extended ? "64" : "32");
    }
    if (e->context_count > 0) {
        printf("  available meta contexts: %zu\n", e->context_count);
        for (size_t i = 0; i < e->context_count; i++) {
            print_text("   ", e->contexts[i], "");
        }
    }
}

static int co_list(const struct tls_creds *creds)
{
    struct nbd_client_tls tls = {.creds = creds, .hostname = cl.tls_hostname};
    struct nbd_address address = {
        .path = (char *)(uintptr_t)cl.socket,
        .host = (char *)(uintptr_t)(cl.bind ?: "localhost"),
        .port = (char *)(uintptr_t)(cl.port ?: NBD_DEFAULT_PORT),
    };
    struct nbd_export_info *list;
    ERROR_AUTO(err);
    size_t count;

    if (nbd_client_co_list(&address, creds ? &tls : NULL, LIST_TIMEOUT_NS, &list, &count, &err) <
        0) {
        return cli_report(&err);
    }
    printf("exports available: %zu\n", count);
    for (size_t i = 0; i < count; i++) {
        print_export(&list[i]);
    }
    nbd_export_list_free(list, count);
    return 0;
}

/* --- serving ------------------------------------------------------------------------------------- */

static void client_left(void *arg, size_t left)
{
    if (left == 0 && !cl.persistent) {
        export_nbd_server_stop_accepting();
        kill(getpid(), SIGUSR1);
    }
}

/* How many sockets the service manager passed, as sd_listen_fds(3) says. */
static long passed_sockets(void)
{
    const char *pid = getenv("LISTEN_PID"), *count = getenv("LISTEN_FDS");

    if (!pid || !count || strtol(pid, NULL, 10) != getpid()) {
        return 0;
    }
    return MAX(strtol(count, NULL, 10), 0);
}

/* The socket that was passed; -1: none. */
static int take_passed_socket(void)
{
    if (passed_sockets() == 0 || fcntl(FIRST_PASSED_FD, F_SETFD, FD_CLOEXEC) < 0 ||
        fcntl(FIRST_PASSED_FD, F_SETFL, O_NONBLOCK) < 0) {
        return -1;
    }
    return FIRST_PASSED_FD;
}

/* Put a raw node over it that begins at --offset. */
static int co_apply_offset(struct cli_disk *disk, struct error *err)
{
    struct options *opts;
    struct block_node *part;
    int ret;

    if (cl.offset_bytes == 0) {
        return 0;
    }
    if (cl.offset_bytes >= block_node_size(disk->node)) {
        return error_set(err, EINVAL, "Offset (%llu) has to be smaller than the image size (%llu)",
                         (unsigned long long)cl.offset_bytes,
                         (unsigned long long)block_node_size(disk->node));
    }
    opts = options_new();
    if (!opts) {
        return error_set(err, ENOMEM, "Out of memory");
    }
    options_set_str(opts, "driver", "raw");
    options_set_uint(opts, "offset", cl.offset_bytes);
    options_set_str(opts, "file", block_node_name(disk->node));
    options_set_bool(opts, "read-only", cl.read_only);
    ret = block_co_open(opts, cl.read_only ? 0 : BLOCK_OPEN_RDWR, &part, err);
    if (ret == 0) {
        block_co_unref(disk->node);
        disk->node = part;
    }
    return ret;
}

static int co_open_image(struct cli_disk *disk, struct error *err)
{
    AUTO_FREE char *extra = NULL;
    struct cli_image image = {
        .name = cl.file,
        .format = cl.format,
        .cache = cl.cache,
        .discard = cl.discard ?: "ignore",
        .native_aio = cl.aio && strcmp(cl.aio, "native") == 0,
        .image_opts = cl.image_opts,
        .snapshot = cl.load_snapshot,
    };
    int ret;

    if (cl.detect_zeroes) {
        if (asprintf(&extra, "detect-zeroes=%s", cl.detect_zeroes) < 0) {
            extra = NULL;
            return error_set(err, ENOMEM, "Out of memory");
        }
        image.extra_options = extra;
    }
    ret = cli_co_open_disk(&image, cl.read_only ? 0 : BLOCK_OPEN_RDWR, disk, err);
    if (ret < 0) {
        error_prepend(err, "Failed to blk_new_open '%s': ", cl.file);
        return ret;
    }
    /* The export has a root of its own. */
    block_co_root_release(disk->root);
    disk->root = NULL;
    disk->edge = NULL;
    return co_apply_offset(disk, err);
}

static int co_start_server(struct error *err)
{
    struct export_nbd_server_config config = EXPORT_NBD_SERVER_CONFIG_INIT;

    config.unix_path = cl.socket;
    config.host = cl.bind;
    config.port = cl.port;
    config.listen_fd = take_passed_socket();
    config.max_connections = (unsigned)cl.max_clients;
    if (cl.handshake_limit) {
        config.handshake_max_seconds = (unsigned)cl.handshake_seconds;
    }
    config.tls_creds = cl.tls_creds;
    config.tls_authz = cl.tls_authz;
    config.on_disconnect = client_left;
    /* Who comes early is to find the export. */
    config.hold = true;
    return export_co_nbd_server_start(&config, err);
}

/* The options of the export, as its type has them; NULL: out of memory. */
static struct options *export_options(void)
{
    struct options *opts = options_new(), *bitmaps = options_new();

    if (!opts || !bitmaps) {
        options_free(opts);
        options_free(bitmaps);
        return NULL;
    }
    options_set_str(opts, "name", cl.name ?: "");
    if (cl.description) {
        options_set_str(opts, "description", cl.description);
    }
    options_set_bool(opts, "allocation-depth", cl.depth);
    for (size_t i = 0; i < cl.bitmaps.count; i++) {
        char key[24];

        snprintf(key, sizeof(key), "%zu", i);
        options_set_str(bitmaps, key, cl.bitmaps.item[i].value);
    }
    options_set_child(opts, "bitmaps", bitmaps);
    return opts;
}

static int co_add_export(const struct cli_disk *disk, struct error *err)
{
    AUTO_OPTIONS struct options *opts = export_options();
    struct export_config config = EXPORT_CONFIG_INIT;

    if (!opts) {
        return error_set(err, ENOMEM, "Out of memory");
    }
    config.type = "nbd";
    config.id = EXPORT_ID;
    config.node_name = block_node_name(disk->node);
    config.writable = !cl.read_only;
    config.writethrough = disk->writethrough;
    config.options = opts;
    return export_co_add(&config, err);
}

/* It stays when the server has ended, as qemu-nbd's: who asked for it removes it, maybe at this moment. */
static int write_pid_file(void)
{
    FILE *f = fopen(cl.pid_file, "w");

    if (!f || fprintf(f, "%ld\n", (long)getpid()) < 0 || fflush(f) != 0) {
        cli_fail("Failed to store PID in '%s': %s", cl.pid_file, strerror(errno));
        if (f) {
            fclose(f);
        }
        return -1;
    }
    fclose(f);
    return 0;
}

/* Let the process that the user started end, and the terminal go; --verbose keeps telling. */
static void tell_ready(void)
{
    int null;

    if (cl.ready_fd < 0) {
        return;
    }
    null = open("/dev/null", O_RDWR | O_CLOEXEC);
    if (null >= 0) {
        dup2(null, STDIN_FILENO);
        dup2(null, STDOUT_FILENO);
        if (!cl.observe.verbose) {
            dup2(null, STDERR_FILENO);
        }
        close(null);
    }
    if (write(cl.ready_fd, "", 1) < 0) {
        log_warning("The process that started this one has gone");
    }
    close(cl.ready_fd);
}

/* Until a signal says that it is enough. */
static void co_wait_for_end(int fd)
{
    struct signalfd_siginfo info;

    for (;;) {
        int ret = loop_co_poll(fd, POLLIN, -1);

        if (ret < 0 && ret != -EINTR) {
            return;
        }
        if (read(fd, &info, sizeof(info)) == sizeof(info)) {
            return;
        }
    }
}

/* What clients wrote and did not flush. */
static int co_flush_disk(const struct cli_disk *disk, struct error *err)
{
    struct block_root *root;
    int ret;

    if (cl.read_only) {
        return 0;
    }
    /* A flush goes only where its user may write. */
    ret = block_co_root_new(disk->node, "the last flush", BLOCK_PERM_WRITE, BLOCK_PERM_ALL, &root,
                            err);
    if (ret < 0) {
        return ret;
    }
    ret = block_co_flush(block_root_edge(root));
    block_co_root_release(root);
    return ret < 0 ? error_set_errno(err, -ret, "Could not flush '%s'", cl.file) : 0;
}

static int co_serve_disk(struct cli_disk *disk, int end_fd)
{
    ERROR_AUTO(err);
    int status;

    if (co_open_image(disk, &err) < 0) {
        return cli_report(&err);
    }
    if (co_start_server(&err) < 0) {
        return cli_report(&err);
    }
    if (co_add_export(disk, &err) < 0) {
        export_co_nbd_server_stop(NULL);
        return cli_report(&err);
    }
    if (cl.pid_file && write_pid_file() < 0) {
        export_co_nbd_server_stop(NULL);
        return 1;
    }
    export_nbd_server_let_in();
    tell_ready();
    co_wait_for_end(end_fd);
    export_co_nbd_server_stop(NULL);
    status = co_flush_disk(disk, &err) < 0 ? cli_report(&err) : 0;
    if (cli_co_finish_disk(disk, &err) < 0) {
        status = cli_report(&err);
    }
    return status;
}

static int co_serve(void)
{
    AUTO_CLOSE int end_fd = -1;
    CLI_DISK_AUTO(disk);

    end_fd = signalfd(-1, &cl.ends, SFD_CLOEXEC | SFD_NONBLOCK);
    if (end_fd < 0) {
        return cli_fail("Could not watch for signals: %s", strerror(errno));
    }
    return co_serve_disk(&disk, end_fd);
}

static int co_main(int argc, char **argv)
{
    struct tls_creds *creds = NULL;
    ERROR_AUTO(err);
    int ret;

    if (cli_add_objects(&cl.objects)) {
        return 1;
    }
    if (cl.tls_creds &&
        tls_creds_ref(cl.tls_creds, cl.list ? TLS_CLIENT : TLS_SERVER, &creds, &err) < 0) {
        error_prepend(&err, "Failed to get TLS creds: ");
        return cli_report(&err);
    }
    ret = cl.list ? co_list(creds) : co_serve();
    tls_creds_unref(creds);
    return ret;
}

/* --- the command line ------------------------------------------------------------------------------ */

static int refuse_unsupported(void)
{
    const struct {
        bool given;
        const char *option;
    } refused[] = {
        {cl.connect != NULL, "--connect"},
        {cl.disconnect, "--disconnect"},
        {cl.snapshot, "--snapshot"},
    };

    for (size_t i = 0; i < ARRAY_SIZE(refused); i++) {
        if (refused[i].given) {
            return cli_fail("%s is not supported", refused[i].option);
        }
    }
    return 0;
}

/* A socket that was passed leaves nothing to be said of where to listen. */
static int check_activation(void)
{
    const struct {
        bool given;
        const char *what;
    } useless[] = {
        {cl.socket != NULL, "Unix socket"},
        {cl.bind != NULL, "The interface"},
        {cl.port != NULL, "TCP port number"},
        {cl.selinux != NULL, "SELinux label"},
    };

    if (passed_sockets() == 0) {
        return 0;
    }
    if (cl.list) {
        return cli_fail("List mode is incompatible with socket activation");
    }
    for (size_t i = 0; i < ARRAY_SIZE(useless); i++) {
        if (useless[i].given) {
            return cli_fail("%s can't be set when using socket activation", useless[i].what);
        }
    }
    if (passed_sockets() > 1) {
        return cli_fail("One socket can be served, and LISTEN_FDS says that %ld were passed",
                        passed_sockets());
    }
    return 0;
}

static int check_selinux(void)
{
    if (!cl.selinux) {
        return 0;
    }
    if (!cl.socket) {
        return cli_fail("--selinux-label is not permitted without --socket");
    }
    cli_warn("--selinux-label has no effect: this build knows nothing of SELinux, and the socket "
             "gets the label that the system's policy gives it");
    return 0;
}

static int check_tls(void)
{
    if (cl.tls_authz && !cl.tls_creds) {
        return cli_fail("--tls-authz is not permitted without --tls-creds");
    }
    if (cl.tls_hostname && !cl.tls_creds) {
        return cli_fail("--tls-hostname is not permitted without --tls-creds");
    }
    if (cl.tls_hostname && !cl.list) {
        return cli_fail("TLS hostname is only supported with export list");
    }
    if (cl.tls_authz && cl.list) {
        return cli_fail("TLS authorization is incompatible with export list");
    }
    return 0;
}

static int check_list_mode(int rest)
{
    if (rest > 0) {
        return cli_fail("List mode is incompatible with a file name");
    }
    if (cl.name || cl.description || cl.offset || cl.bitmaps.count || cl.depth || cl.discard ||
        cl.format || cl.cache || cl.no_cache || cl.aio || cl.load_snapshot) {
        return cli_fail("List mode is incompatible with per-device settings");
    }
    if (cl.fork) {
        return cli_fail("List mode is incompatible with forking");
    }
    return 0;
}

static int check_texts(void)
{
    uint64_t port;

    if (cl.name && strlen(cl.name) > NBD_STRING_MAX) {
        return cli_fail("export name '%s' too long", cl.name);
    }
    if (cl.description && strlen(cl.description) > NBD_STRING_MAX) {
        return cli_fail("export description '%s' too long", cl.description);
    }
    if (cl.socket && (cl.bind || cl.port)) {
        return cli_fail("A unix socket has no %s", cl.port ? "port" : "address to bind to");
    }
    if (cl.socket && cl.socket[0] != '/' && cli_is_compat()) {
        return cli_fail("socket path must be absolute");
    }
    if (cl.port && cli_parse_number(cl.port, "port", cl.list ? 1 : 0, 65535, &port) < 0) {
        return 1;
    }
    return 0;
}

static int check_serve_mode(int rest)
{
    if (rest != 1) {
        return cli_usage_fail(&usage, "Invalid number of arguments");
    }
    if (cl.image_opts && cl.format) {
        return cli_fail("--image-opts and -f are mutually exclusive");
    }
    if (cl.no_cache && cl.cache) {
        return cli_fail("-n and --cache can only be specified once");
    }
    if (cl.no_cache) {
        cl.cache = "none";
    }
    if (cli_check_cache_mode(cl.cache, "cache mode") < 0) {
        return 1;
    }
    if (cl.discard && strcmp(cl.discard, "unmap") != 0 && strcmp(cl.discard, "on") != 0 &&
        strcmp(cl.discard, "ignore") != 0 && strcmp(cl.discard, "off") != 0) {
        return cli_fail("Invalid discard mode `%s'", cl.discard);
    }
    cl.max_clients = 1;
    if (cl.shared &&
        cli_parse_number(cl.shared, "shared device number", 0, INT32_MAX, &cl.max_clients) < 0) {
        return 1;
    }
    if (cl.handshake_limit && cli_parse_number(cl.handshake_limit, "handshake limit", 0, UINT32_MAX,
                                               &cl.handshake_seconds) < 0) {
        return 1;
    }
    if (cl.aio && strcmp(cl.aio, "threads") != 0 && strcmp(cl.aio, "native") != 0 &&
        strcmp(cl.aio, "io_uring") != 0) {
        return cli_fail("Invalid aio mode '%s'", cl.aio);
    }
    if (cl.offset && cli_parse_size(cl.offset, "offset", 0, INT64_MAX, &cl.offset_bytes) < 0) {
        return 1;
    }
    return 0;
}

/* --fork: the child goes on; the parent waits until it serves or has failed. Returns the parent's status, -1 in the child. */
static int go_to_background(void)
{
    int pipe_fds[2], status = 0;
    char byte;
    ssize_t n;
    pid_t child;

    if (pipe2(pipe_fds, O_CLOEXEC) < 0) {
        return cli_fail("Could not make a pipe: %s", strerror(errno));
    }
    child = fork();
    if (child < 0) {
        return cli_fail("Failed to fork: %s", strerror(errno));
    }
    if (child == 0) {
        close(pipe_fds[0]);
        cl.ready_fd = pipe_fds[1];
        setsid();
        return -1;
    }
    close(pipe_fds[1]);
    do {
        n = read(pipe_fds[0], &byte, 1);
    } while (n < 0 && errno == EINTR);
    close(pipe_fds[0]);
    if (n == 1) {
        return 0;
    }
    waitpid(child, &status, 0);
    return WIFEXITED(status) && WEXITSTATUS(status) ? WEXITSTATUS(status) : 1;
}

static int run(int argc, char **argv)
{
    int first = cli_args_parse(args, &usage, argc, argv);
    int ret;

    if (first < 0) {
        return first == CLI_ARGS_HELP ? 0 : 1;
    }
    if (cl.version) {
        cli_print_version();
        return 0;
    }
    if (!cli_observe(&cl.observe, &ret)) {
        return ret;
    }
    cl.read_only = cl.read_only || cl.load_snapshot;
    if (refuse_unsupported() || check_activation() || check_selinux() || check_tls() ||
        check_texts() || cli_check_snapshot(cl.load_snapshot) < 0 ||
        (cl.list ? check_list_mode(argc - first) : check_serve_mode(argc - first))) {
        return 1;
    }
    cli_observe_server();
    if (cl.fork) {
        ret = go_to_background();
        if (ret >= 0) {
            return ret;
        }
    }
    if (!cl.list) {
        cl.file = argv[first];
        cli_end_signals(&cl.ends);
        /* This one is ours: the last client has left. */
        sigaddset(&cl.ends, SIGUSR1);
        /* Before there are threads, so that all of them leave these signals to the signalfd. */
        pthread_sigmask(SIG_BLOCK, &cl.ends, NULL);
    }
    return cli_run(co_main, argc, argv);
}

int cli_nbd_main(int argc, char **argv)
{
    int ret = run(argc, argv);

    cli_items_clear(&cl.bitmaps);
    cli_items_clear(&cl.objects);
    cli_observe_clear(&cl.observe);
    return ret;
}
