/* SPDX-License-Identifier: Apache-2.0 */
/* --chardev: flat options, which become a ChardevBackend. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "base/cleanup.h"
#include "base/log.h"
#include "chardev/internal.h"
#include "loop/loop.h"

/* The socket on whose first client the start of the program waits; -1: none. */
static int waiting_fd = -1;

/* --- moving options --------------------------------------------------------------------------- */

/* Move the option `key`, if it is there, to the member `name`. */
static int move_option(struct options *opts, const char *key, struct json_object *to,
                       const char *name, struct error *err)
{
    AUTO_FREE char *text = NULL;
    int r = options_take_text(opts, key, &text, err);

    if (r >= 0 && text) {
        json_object_object_add(to, name, json_object_new_string(text));
    }
    return r;
}

/* Likewise for a list of keys, which ends with NULL and are the names of the members, too. */
static int move_options(struct options *opts, const char *const *keys, struct json_object *to,
                        struct error *err)
{
    int r = 0;

    for (; *keys && r >= 0; keys++) {
        r = move_option(opts, *keys, to, *keys, err);
    }
    return r;
}

static int missing(const char *type, const char *what, struct error *err)
{
    return error_set(err, EINVAL, "chardev: %s: no %s given", type, what);
}

/* --- sockets ---------------------------------------------------------------------------------- */

static int move_address(struct options *opts, struct json_object *addr, struct error *err)
{
    static const char *const unix_keys[] = {"path", "abstract", "tight", NULL};
    static const char *const inet_keys[] = {"host", "port", "to", "ipv4", "ipv6", NULL};
    struct json_object *data = json_object_new_object();
    int given = options_has(opts, "path") + options_has(opts, "fd") + options_has(opts, "host");
    const char *type = options_has(opts, "path")   ? "unix"
                       : options_has(opts, "host") ? "inet"
                                                   : "fd";
    int r = 0;

    json_object_object_add(addr, "data", data);
    if (given > 1) {
        return error_set(err, EINVAL, "None or one of 'path', 'fd' or 'host' option required.");
    }
    if (given == 0 && options_has(opts, "port")) {
        /* QEMU wants a host; without one all addresses are meant. */
        type = "inet";
        options_set_str(opts, "host", "");
    }
    if (strcmp(type, "unix") == 0) {
        r = move_options(opts, unix_keys, data, err);
    } else if (strcmp(type, "inet") == 0) {
        r = options_has(opts, "port") ? move_options(opts, inet_keys, data, err)
                                      : missing("socket", "port", err);
    } else {
        r = given ? move_option(opts, "fd", data, "str", err)
                  : missing("socket", "path, host or fd", err);
    }
    json_object_object_add(addr, "type", json_object_new_string(type));
    return r;
}

static int move_socket(struct options *opts, struct json_object *data, struct error *err)
{
    static const char *const keys[] = {"tls-creds", "tls-authz",    "server", "wait",
                                       "nodelay",   "telnet",       "tn3270", "websocket",
                                       "reconnect", "reconnect-ms", NULL};
    struct json_object *addr = json_object_new_object();
    bool nowait, delay, server;
    int r;

    json_object_object_add(data, "addr", addr);
    /* Older forms: "server,nowait", and delay=off for nodelay=on. */
    if (options_has(opts, "nowait")) {
        r = options_take_bool(opts, "nowait", false, &nowait, err);
        UNLESS_FAILED(r, (options_default_str(opts, "wait", nowait ? "off" : "on"), 0));
    }
    if (options_has(opts, "delay")) {
        r = options_take_bool(opts, "delay", false, &delay, err);
        UNLESS_FAILED(r, (options_default_str(opts, "nodelay", delay ? "off" : "on"), 0));
    }
    options_default_str(opts, "server", "off");
    server = options_is_text(opts, "server", "on") || options_is_text(opts, "server", "yes") ||
             options_is_text(opts, "server", "true") || options_is_text(opts, "server", "y");
    if (server) {
        options_default_str(opts, "wait", "on");
    }
    r = move_address(opts, addr, err);
    return r < 0 ? r : move_options(opts, keys, data, err);
}

/* --- other types ------------------------------------------------------------------------------ */

static int move_file(struct options *opts, struct json_object *data, struct error *err)
{
    int r = options_has(opts, "path") ? move_option(opts, "path", data, "out", err)
                                      : missing("file", "filename", err);

    UNLESS_FAILED(r, move_option(opts, "input-path", data, "in", err));
    return r < 0 ? r : move_option(opts, "append", data, "append", err);
}

static int move_pipe(struct options *opts, struct json_object *data, struct error *err)
{
    return options_has(opts, "path") ? move_option(opts, "path", data, "device", err)
                                     : missing("pipe", "device path", err);
}

static int move_pty(struct options *opts, struct json_object *data, struct error *err)
{
    return move_option(opts, "path", data, "path", err);
}

static int move_ringbuf(struct options *opts, struct json_object *data, struct error *err)
{
    uint64_t size = 0;
    int r = 0;

    if (options_has(opts, "size")) {
        r = options_take_size(opts, "size", 0, &size, err);
        json_object_object_add(data, "size", json_object_new_int64((int64_t)size));
    }
    return r;
}

static int move_stdio(struct options *opts, struct json_object *data, struct error *err)
{
    return move_option(opts, "signal", data, "signal", err);
}

static int move_nothing(struct options *opts, struct json_object *data, struct error *err)
{
    return 0;
}

static const struct {
    const char *type;
    int (*move)(struct options *opts, struct json_object *data, struct error *err);
} movers[] = {
    {"file", move_file}, {"memory", move_ringbuf},  {"null", move_nothing},  {"pipe", move_pipe},
    {"pty", move_pty},   {"ringbuf", move_ringbuf}, {"socket", move_socket}, {"stdio", move_stdio},
};

/* --- --chardev -------------------------------------------------------------------------------- */

/* A chardev has one user here: mux=off, the default of QEMU, says no more than that. */
static int check_mux(struct options *opts, struct error *err)
{
    bool mux;
    int r = options_take_bool(opts, "mux", false, &mux, err);

    return r >= 0 && mux ? error_set(err, ENOTSUP, "chardev: 'mux' is not supported") : r;
}

/* Name the first option that is left. */
static int refuse_rest(const struct options *opts, struct error *err)
{
    struct json_object *rest = options_to_json(opts);
    int r = 0;

    json_object_object_foreach(rest, key, value)
    {
        (void)value;
        r = error_set(err, EINVAL, "Invalid parameter '%s'", key);
        break;
    }
    json_object_put(rest);
    return r;
}

/* What is in the wrapper of a type. */
static const struct schema_type *type_of_data(const char *type)
{
    return schema_find_variant(&chardev_backend_type, type)->members[0].type;
}

/* Convert the options of a chardev; *ret_backend is a new reference. */
static int to_backend(struct options *opts, const char *type, struct json_object **ret_backend,
                      struct error *err)
{
    static const char *const common[] = {"logfile", "logappend", NULL};
    struct json_object *backend = json_object_new_object(), *data = json_object_new_object();
    int r = -ENOENT;

    json_object_object_add(backend, "type", json_object_new_string(type));
    json_object_object_add(backend, "data", data);
    for (size_t i = 0; i < sizeof(movers) / sizeof(movers[0]); i++) {
        if (strcmp(movers[i].type, type) == 0) {
            r = movers[i].move(opts, data, err);
        }
    }
    if (r == -ENOENT) {
        r = error_set(err, EINVAL, "'%s' is not a valid char driver name", type);
    }
    UNLESS_FAILED(r, move_options(opts, common, data, err));
    UNLESS_FAILED(r, check_mux(opts, err));
    UNLESS_FAILED(r, refuse_rest(opts, err));
    UNLESS_FAILED(r, schema_check(type_of_data(type), data,
                                  SCHEMA_CHECK_KEYVAL | SCHEMA_CHECK_SUFFIXES, err));
    if (r < 0) {
        json_object_put(backend);
        return r;
    }
    *ret_backend = backend;
    return 0;
}

static int co_wait_for_client(struct chardev *c, int fd, struct error *err)
{
    int r;

    log_notice("waiting for a client of chardev '%s'", c->id);
    waiting_fd = fd;
    r = loop_co_poll(fd, POLLIN, -1);
    r = waiting_fd < 0 ? -ECANCELED : r;
    waiting_fd = -1;
    return r < 0 ? error_set_errno(err, -r, "Waiting for a client of chardev '%s' failed", c->id)
                 : 0;
}

void chardev_stop_waiting(void)
{
    if (waiting_fd >= 0) {
        shutdown(waiting_fd, SHUT_RDWR);
        waiting_fd = -1;
    }
}

int chardev_co_add(struct options *opts_, struct chardev **ret_chardev, struct error *err)
{
    AUTO_OPTIONS struct options *opts = opts_;
    AUTO_FREE char *type = NULL, *id = NULL;
    struct json_object *backend = NULL, *data;
    struct chardev *c = NULL;
    int r = options_take_str(opts, "backend", &type, err);

    UNLESS_FAILED(r, options_take_str(opts, "id", &id, err));
    if (r >= 0 && !id) {
        r = error_set(err, EINVAL, "chardev: no id specified");
    }
    if (r >= 0 && !type) {
        r = error_set(err, EINVAL, "chardev: \"%s\" missing backend", id);
    }
    UNLESS_FAILED(r, to_backend(opts, type, &backend, err));
    UNLESS_FAILED(r, chardev_co_new(id, backend, &c, err));
    if (r >= 0 && c->ops == &chardev_socket_ops) {
        json_object_object_get_ex(backend, "data", &data);
        if (chardev_flag(data, "wait", false)) {
            r = co_wait_for_client(c, container_of(c, struct socket_chardev, base)->fd, err);
        }
    }
    json_object_put(backend);
    if (r >= 0 && ret_chardev) {
        *ret_chardev = c;
    }
    return r;
}
