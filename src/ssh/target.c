/* SPDX-License-Identifier: Apache-2.0 */
/* The file and its server, from a filename or from options. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/percent.h"
#include "schema/define.h"
#include "ssh/remote_file.h"

static const char *const hash_names[] = {"md5", "sha1", "sha256", NULL};

void ssh_target_clear(struct ssh_target *t)
{
    free(t->host);
    free(t->port);
    free(t->path);
    free(t->user);
    free(t->hash);
    *t = (struct ssh_target){0};
}

char *ssh_target_filename(const struct ssh_target *t)
{
    AUTO_FREE char *path = percent_encode(t->path, "?");
    AUTO_FREE char *user = percent_encode(t->user ? t->user : "", "/?@");
    bool v6 = strchr(t->host, ':');
    char *name;

    return !path || !user ||
                   asprintf(&name, "ssh://%s%s%s%s%s:%s%s%s", user, t->user ? "@" : "",
                            v6 ? "[" : "", t->host, v6 ? "]" : "", t->port,
                            path[0] == '/' ? "" : "/", path) < 0
               ? NULL
               : name;
}

/* --- filename ------------------------------------------------------------------------------- */

static int malformed_ssh_address(const char *filename, const char *why, struct error *err)
{
    return error_set(err, EINVAL, "Invalid SSH address '%s': %s", filename, why);
}

/* Set an option to `size` bytes of the URI; an empty one is not set. */
static int set_part(struct options *opts, const char *key, const char *text, size_t size,
                    const char *filename, struct error *err)
{
    AUTO_FREE char *value = percent_decode(text, size);

    if (!value) {
        return malformed_ssh_address(filename, "an escape sequence is malformed", err);
    }
    if (value[0]) {
        options_set_str(opts, key, value);
    }
    return 0;
}

/* "host", "host:port", "[v6]:port" */
static int parse_ssh_authority(const char *filename, const char *text, size_t size,
                               struct options *server, struct error *err)
{
    bool bracketed = size > 0 && text[0] == '[';
    const char *end = text + size, *host = text + bracketed;
    const char *host_end = memchr(text, bracketed ? ']' : ':', size);
    const char *port = host_end ? host_end + bracketed : end;
    int r;

    if (bracketed && (!host_end || (port < end && port[0] != ':'))) {
        return malformed_ssh_address(filename, "an IPv6 address ends with ']'", err);
    }
    host_end = host_end ? host_end : end;
    if (host_end == host) {
        return malformed_ssh_address(filename, "the host is missing", err);
    }
    options_set_str(server, "port", SSH_DEFAULT_PORT);
    r = set_part(server, "host", host, (size_t)(host_end - host), filename, err);
    return r < 0 || port == end
               ? r
               : set_part(server, "port", port + 1, (size_t)(end - port - 1), filename, err);
}

static int parse_ssh_query(const char *filename, const char *query, struct options *opts,
                           struct error *err)
{
    static const char key[] = "host_key_check=";

    if (strncmp(query, key, strlen(key)) != 0) {
        return malformed_ssh_address(filename, "only the parameter 'host_key_check' is known", err);
    }
    query += strlen(key);
    return set_part(opts, "host_key_check", query, strlen(query), filename, err);
}

int ssh_target_parse_filename(const char *filename, struct options *opts, struct error *err)
{
    const char *rest = strchr(filename, ':') + 1, *path, *at;
    AUTO_OPTIONS struct options *server = options_new();
    size_t path_size;
    int r = 0;

    if (!server) {
        return error_out_of_memory(err);
    }
    if (strncmp(rest, "//", 2) != 0) {
        return malformed_ssh_address(filename, "expected ssh://HOST/PATH", err);
    }
    rest += 2;
    path = rest + strcspn(rest, "/?");
    path_size = strcspn(path, "?");
    at = memchr(rest, '@', (size_t)(path - rest));
    if (path_size < 2) {
        return malformed_ssh_address(filename, "the path is missing", err);
    }
    if (at) {
        r = set_part(opts, "user", rest, (size_t)(at - rest), filename, err);
        rest = at + 1;
    }
    UNLESS_FAILED(r, parse_ssh_authority(filename, rest, (size_t)(path - rest), server, err));
    UNLESS_FAILED(r, set_part(opts, "path", path, path_size, filename, err));
    if (r == 0 && path[path_size]) {
        r = parse_ssh_query(filename, path + path_size + 1, opts, err);
    }
    if (r < 0) {
        return r;
    }
    options_set_child(opts, "server", TAKE_PTR(server));
    return 0;
}

/* --- options -------------------------------------------------------------------------------- */

ENUM(check_mode_type, "SshHostKeyCheckMode", "none", "hash", "known_hosts");
static const struct schema_type check_hash_type = {
    .kind = SCHEMA_ENUM, .name = "SshHostKeyCheckHashType", .values = hash_names};
OBJECT(key_hash_type, "SshHostKeyHash", REQ("type", check_hash_type),
       REQ("hash", schema_str, .help = "hexadecimal"));
static const struct schema_type key_check_type = {
    .kind = SCHEMA_OBJECT,
    .name = "SshHostKeyCheck",
    .members = MEMBERS(REQ("mode", check_mode_type)),
    .tag = "mode",
    .variants = (const struct schema_variant[]){{"hash", &key_hash_type}, {NULL, NULL}},
};
OBJECT(ssh_server_type, "SshServerAddress", REQ("host", schema_str), REQ("port", schema_str));
const struct schema_type ssh_options_type =
    OBJECT_INIT("BlockdevOptionsSsh", REQ("server", ssh_server_type),
                REQ("path", schema_str, .help = "of the file on the server"),
                OPT("user", schema_str, .help = "default: the user who runs the program"),
                OPT("host-key-check", key_check_type, .help = "default: known_hosts"));

/* The port of the flat form is a number. */
static int take_flat_server(struct options *opts, struct ssh_target *t, struct error *err)
{
    uint64_t port;
    int r = options_take_text(opts, "host", &t->host, err);

    if (r < 0) {
        return r;
    }
    if (options_take_uint(opts, "port", 22, UINT16_MAX, &port, NULL) < 0) {
        return error_set(err, EINVAL, "Parameter 'port' expects a number");
    }
    return asprintf(&t->port, "%u", (unsigned)port) < 0 ? error_out_of_memory(err) : 0;
}

static int take_ssh_server(struct options *opts, struct ssh_target *t, struct error *err)
{
    AUTO_OPTIONS struct options *server = NULL;
    AUTO_FREE char *node_name = NULL;
    int r = options_take_child(opts, "server", &server, &node_name, err);

    if (r < 0) {
        return r;
    }
    if (node_name) {
        return error_set(err, EINVAL, "Parameter 'server' has to be an object");
    }
    if (server) {
        r = options_take_str(server, "host", &t->host, err);
        UNLESS_FAILED(r, options_take_str(server, "port", &t->port, err));
        UNLESS_FAILED(r, options_check_empty(server, "the SSH server address", err));
    } else {
        r = take_flat_server(opts, t, err);
    }
    if (r == 0 && (!t->host || !t->port)) {
        r = error_set(err, EINVAL, "Parameter '%s' is missing",
                      t->host ? "server.port" : "server.host");
    }
    return r;
}

/* "no", "yes", "md5:...", "sha1:...", "sha256:..." */
static int parse_flat_check(const char *text, struct ssh_target *t, struct error *err)
{
    if (strcmp(text, "no") == 0) {
        t->check = HOST_KEY_UNCHECKED;
        return 0;
    }
    if (strcmp(text, "yes") == 0) {
        return 0;
    }
    for (int i = 0; hash_names[i]; i++) {
        size_t size = strlen(hash_names[i]);

        if (strncmp(text, hash_names[i], size) == 0 && text[size] == ':') {
            t->check = HOST_KEY_HASH;
            t->hash_type = (enum host_key_hash)i;
            t->hash = strdup(text + size + 1);
            return t->hash ? 0 : error_out_of_memory(err);
        }
    }
    return error_set(err, EINVAL, "unknown host_key_check setting (%s)", text);
}

static int take_host_key_check(struct options *opts, struct ssh_target *t, struct error *err)
{
    static const char *const modes[] = {"none", "hash", "known_hosts", NULL};
    AUTO_OPTIONS struct options *check = NULL;
    AUTO_FREE char *flat = NULL;
    AUTO_FREE char *text = NULL;
    int mode = 0, type = 0, r;

    t->check = HOST_KEY_KNOWN_HOSTS;
    r = options_take_str(opts, "host_key_check", &flat, err);
    UNLESS_FAILED(r, options_take_child(opts, "host-key-check", &check, &text, err));
    if (r < 0) {
        return r;
    }
    if (flat || text) {
        return parse_flat_check(flat ? flat : text, t, err);
    }
    if (!check) {
        return 0;
    }
    r = options_take_enum(check, "mode", modes, HOST_KEY_KNOWN_HOSTS, &mode, err);
    UNLESS_FAILED(r, options_take_enum(check, "type", hash_names, 0, &type, err));
    UNLESS_FAILED(r, options_take_str(check, "hash", &t->hash, err));
    UNLESS_FAILED(r, options_check_empty(check, "host-key-check", err));
    if (r < 0) {
        return r;
    }
    t->check = (enum host_key_check)mode;
    t->hash_type = (enum host_key_hash)type;
    return t->check == HOST_KEY_HASH && !t->hash
               ? error_set(err, EINVAL, "Parameter 'host-key-check.hash' is missing")
               : 0;
}

int ssh_target_take(struct options *opts, struct ssh_target *ret_target, struct error *err)
{
    struct ssh_target *t = ret_target;
    int r = take_ssh_server(opts, t, err);

    UNLESS_FAILED(r, take_host_key_check(opts, t, err));
    UNLESS_FAILED(r, options_take_str(opts, "user", &t->user, err));
    UNLESS_FAILED(r, options_take_str(opts, "path", &t->path, err));
    if (r < 0) {
        return r;
    }
    return t->path && t->path[0] ? 0 : error_set(err, EINVAL, "Parameter 'path' is missing");
}
