/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The source that is a disk of a process with a QMP socket (backup/daemon_disk.h), read over NBD.
 * A run holds a lock on its temporary image (backup/fleece.h), by which others see that it lives.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "backup/daemon_disk.h"
#include "backup/files.h"
#include "backup/fleece.h"
#include "backup/stored.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "base/list.h"
#include "base/shell_word.h"
#include "base/time_units.h"
#include "loop/loop.h"

#define SECTOR 512u
#define EXPORT_ATTEMPTS 50
#define EXPORT_RETRY_NS (20 * NS_PER_MS)
/* With less free space than this, a message guesses that a full file system is the cause. */
#define LITTLE_SPACE (1 * MiB)

/* Shared by the disks of one daemon. */
struct daemon_connection {
    struct qmp_client *qmp;
    const struct daemon_method *method;
    size_t users;
};

/* How often exports and nodes are asked for, until both answers are of one time. */
#define EXPORT_LOOKS 50
#define EXPORT_LOOK_NS (100 * NS_PER_MS)

struct daemon_source {
    struct source source;
    struct daemon_connection *connection;
    const struct source_options *options;
    struct qmp_client *qmp;             /* of the connection */
    const struct daemon_method *method; /* as well */
    char *node;                         /* that source.name means */
    struct daemon_disk disk;
    struct daemon_state state;
    struct fleece fleece;
    char *temp_dir; /* where the daemon has made its temporary image; NULL: it is in `fleece` */
    char *file;     /* of a disk on another machine: "HOST:PATH" */
    struct socket_address address; /* of the NBD server */
    int server_fd; /* lock that keeps other runs from stopping the NBD server; -1: not needed */
};

static struct daemon_source *daemon_source_of(struct source *source)
{
    return container_of(source, struct daemon_source, source);
}

/* --- settling --- */

static int refuse_busy(const struct daemon_source *s, const char *repository, struct error *err)
{
    return error_set(err, EBUSY, "Another backup of node '%s' is under way, to repository %s",
                     s->source.name, repository);
}

/* What the daemon has made is gone with its node. */
static void remove_temp_image(const struct daemon_source *s, const struct daemon_state *state)
{
    if (state->temp_image && !qmp_client_host(s->qmp)) {
        fleece_remove_of_file(state->temp_image);
    }
}

/*
 * End a killed run to another directory, which has left its filter. Its bitmaps stay: with them the
 * next run to that directory continues.
 */
static int co_end_other(struct daemon_source *s, const char *repository, struct error *err)
{
    DAEMON_STATE_AUTO(state);
    struct daemon_disk other;
    enum fleece_owner owner;
    int r;

    daemon_disk_init(&other, s->qmp, s->node, repository);
    r = daemon_disk_co_inspect(&other, &state, err);
    if (r < 0) {
        return r;
    }
    owner = state.temp_image && !qmp_client_host(s->qmp) ? fleece_owner(state.temp_image)
            : state.has_temp                             ? FLEECE_UNKNOWN
                                                         : FLEECE_DEAD;
    if (owner == FLEECE_ALIVE) {
        return refuse_busy(s, repository, err);
    }
    if (owner == FLEECE_UNKNOWN) {
        char *socket AUTO_FREE = shell_word(s->options->qmp_socket);
        char *root AUTO_FREE = shell_word(repository);

        refuse_busy(s, repository, err);
        error_hint(err,
                   "If it was killed, 'tidemark backup --qmp %s --forget %s' removes what it has "
                   "left.",
                   socket ?: s->options->qmp_socket, root ?: repository);
        return -EBUSY;
    }
    r = s->method->co_take_down(&other, err);
    if (r == 0) {
        remove_temp_image(s, &state);
    }
    return r;
}

static int check_node(const struct daemon_source *s, struct error *err)
{
    const char *node = s->source.name;

    if (!s->state.found) {
        error_set(err, ENOENT, "The daemon at '%s' has no node '%s'", s->options->qmp_socket, node);
        error_hint(err, "Nodes are named by --blockdev node-name=... or blockdev-add.");
        return -ENOENT;
    }
    return s->state.virtual_size == 0 ? error_set(err, EINVAL, "Node '%s' is empty", node) : 0;
}

static int co_inspect_daemon(struct source *source, struct error *err)
{
    struct daemon_source *s = daemon_source_of(source);
    struct daemon_state *state = &s->state;
    int r = 0;

    if (!s->node) {
        r = daemon_co_find_node(s->qmp, source->name, &s->node, err);
    }
    daemon_disk_init(&s->disk, s->qmp, s->node, source->repository);
    daemon_state_clear(state);
    source->disk = (struct source_disk){0};
    UNLESS_FAILED(r, daemon_disk_co_inspect(&s->disk, state, err));
    UNLESS_FAILED(r, check_node(s, err));
    if (r < 0) {
        return r;
    }
    if (state->disk && qmp_client_host(s->qmp) && !s->file &&
        asprintf(&s->file, "%s:%s", qmp_client_host(s->qmp), state->disk) < 0) {
        s->file = NULL;
        return error_out_of_memory(err);
    }
    source->disk = (struct source_disk){
        .size = state->virtual_size,
        .file = s->file ? s->file : state->disk,
        .tracks = !state->read_only,
        .encrypted = state->encrypted,
        .bitmaps = state->bitmaps,
        .bitmap_count = state->bitmap_count,
    };
    /* The lock excludes runs to this directory, but a copy of the repository has the same id. */
    return state->temp_image && !qmp_client_host(s->qmp) &&
                   fleece_owner(state->temp_image) == FLEECE_ALIVE
               ? refuse_busy(s, source->repository, err)
               : 0;
}

static int co_settle_daemon(struct source *source, const char *last, struct error *err)
{
    struct daemon_source *s = daemon_source_of(source);
    int r = s->method->co_settle(&s->disk, last, err);

    for (size_t i = 0; r == 0 && i < s->state.other_count; i++) {
        r = co_end_other(s, s->state.others[i], err);
    }
    if (r == 0) {
        remove_temp_image(s, &s->state);
    }
    return r < 0 ? r : co_inspect_daemon(source, err);
}

/* --- the checkpoint --- */

/*
 * Whether the daemon has to make its temporary image: it is on another machine, or has another
 * user, to whom this one may not give a file.
 */
static bool daemon_makes_temp(const struct daemon_source *s)
{
    const struct ucred daemon = qmp_client_peer(s->qmp);

    return s->method == &tidemark_method &&
           (qmp_client_host(s->qmp) ||
            (geteuid() != 0 && daemon.uid != (uid_t)-1 && daemon.uid != geteuid()));
}

/* The directory for that, as fleece_init() would choose it. */
static int choose_temp_dir(struct daemon_source *s, struct error *err)
{
    const char *disk = s->state.disk, *slash = disk ? strrchr(disk, '/') : NULL;

    free(s->temp_dir);
    if (s->options->fleece_dir) {
        s->temp_dir = strdup(s->options->fleece_dir);
    } else if (slash && slash > disk && strncmp(disk, "/dev/", 5) != 0) {
        s->temp_dir = strndup(disk, (size_t)(slash - disk));
    } else {
        s->temp_dir = strdup("/var/tmp");
    }
    return s->temp_dir ? 0 : error_out_of_memory(err);
}

/* Record the place of the temporary image before the image is made. */
static int co_prepare_daemon(struct source *source, const struct repository_draft *draft,
                             struct error *err)
{
    struct daemon_source *s = daemon_source_of(source);
    const struct ucred daemon = qmp_client_peer(s->qmp);
    struct fleece *f = &s->fleece;
    char *shown AUTO_FREE = files_join(draft->path, REPOSITORY_FLEECE);
    int r;

    if (daemon_makes_temp(s)) {
        return choose_temp_dir(s, err);
    }
    r = fleece_init(f, s->options->fleece_dir, s->state.disk, source->repository, err);

    if (r == 0 && !shown) {
        r = error_out_of_memory(err);
    }
    UNLESS_FAILED(r, stored_write_at(draft->fd, REPOSITORY_FLEECE, f->dir, draft->seal,
                                     STORED_TEMPORARY, shown, err));
    return r < 0 ? r
                 : fleece_co_make(f, source->disk.size, s->method->needs_qcow2, daemon.uid,
                                  daemon.gid, err);
}

/* Another run, to another directory, may have begun since the daemon was queried. */
static void co_hint_at_others(struct daemon_source *s, struct error *err)
{
    DAEMON_STATE_AUTO(state);

    if (daemon_disk_co_inspect(&s->disk, &state, NULL) == 0 && state.other_count > 0) {
        error_hint(err, "A backup of the disk to another directory (repository %s) is under way.",
                   state.others[0]);
    }
}

static int co_checkpoint_daemon(struct source *const *sources, size_t count,
                                struct backup_moment *begin, struct backup_moment *end,
                                struct error *err)
{
    struct daemon_source *first = daemon_source_of(sources[0]);
    struct daemon_checkpoint *list AUTO_FREE = calloc(count, sizeof(*list));
    int r;

    if (!list) {
        return error_out_of_memory(err);
    }
    for (size_t i = 0; i < count; i++) {
        struct daemon_source *s = daemon_source_of(sources[i]);

        list[i] = (struct daemon_checkpoint){
            .disk = &s->disk,
            .state = &s->state,
            .started = s->source.started,
            .frozen = s->source.frozen,
            .whole = s->source.whole,
            .temp_path = s->temp_dir ? s->temp_dir : s->fleece.image,
            .temp_is_qcow2 = s->fleece.is_qcow2,
            .temp_size = s->temp_dir ? round_up(s->source.disk.size, SECTOR) : 0,
            .timeout_s = s->options->cbw_timeout_s,
        };
    }
    r = first->method->co_checkpoint(list, count, begin, end, err);
    if (r < 0) {
        error_prepend(err, "Could not make a checkpoint of node '%s': ", first->source.name);
        for (size_t i = 0; i < count; i++) {
            co_hint_at_others(daemon_source_of(sources[i]), err);
        }
    }
    return r;
}

/* --- the view --- */

/* A connection to the NBD server, which is at a unix socket of another machine. */
static int co_reach_server(void *arg, int *ret_fd, struct error *err)
{
    const struct daemon_source *s = arg;

    return qmp_client_co_tunnel(s->qmp, s->address.path, ret_fd, err);
}

static int co_digests_of_view(void *arg, uint64_t offset, uint64_t length, uint8_t *ret_digests,
                              uint64_t *ret_count)
{
    struct daemon_source *s = arg;

    return daemon_co_digests(&s->disk, offset, length, ret_digests, ret_count);
}

/* Whether this process can connect to the NBD server of another machine. */
static int check_reach(const struct daemon_source *s, struct error *err)
{
    if (!s->address.path || s->options->nbd_uri || !qmp_client_host(s->qmp) ||
        qmp_client_uses_ssh(s->qmp)) {
        return 0;
    }
    error_set(err, EHOSTUNREACH, "The NBD server of the daemon is at a unix socket of '%s', '%s'",
              qmp_client_host(s->qmp), s->address.path);
    error_hint(err, "Have it listen on TCP, or reach the daemon by ssh://.");
    return -EHOSTUNREACH;
}

static void release_server(struct daemon_source *s)
{
    if (s->server_fd >= 0) {
        close(s->server_fd);
        s->server_fd = -1;
    }
}

/*
 * Find the NBD server. If a run has started it, lock its socket, and then check once more that it
 * still runs.
 */
static int co_find_server(struct daemon_source *s, struct error *err)
{
    const char *uri = s->options->nbd_uri, *socket = s->fleece.socket;
    struct socket_address first = {0};
    char *name AUTO_FREE = NULL;
    int r = uri ? nbd_address_parse(uri, &s->address, &name, err)
                : s->method->co_nbd_address(&s->disk, socket, &s->address, err);

    UNLESS_FAILED(r, check_reach(s, err));
    if (r < 0 || uri || !s->address.path || qmp_client_host(s->qmp) ||
        !fleece_is_socket(s->address.path)) {
        return r;
    }
    s->server_fd = fleece_lock_socket(s->address.path, false);
    first = s->address;
    s->address = (struct socket_address){0};
    r = s->method->co_nbd_address(&s->disk, socket, &s->address, err);
    if (r == 0 &&
        (s->server_fd < 0 || !s->address.path || strcmp(s->address.path, first.path) != 0)) {
        r = error_set(err, EIO, "The NBD server at '%s' was stopped", first.path);
    }
    socket_address_clear(&first);
    return r;
}

/* Runs of other disks may start and stop a server of their own meanwhile: then query again. */
static int co_open_view_daemon(struct source *source, struct pull_input **ret_input,
                               struct error *err)
{
    struct daemon_source *s = daemon_source_of(source);
    const char *uri = s->options->nbd_uri;
    int r = -EIO;

    for (int i = 1; r < 0 && i <= EXPORT_ATTEMPTS; i++) {
        ERROR_AUTO(attempt);

        socket_address_clear(&s->address);
        release_server(s);
        r = co_find_server(s, &attempt);
        UNLESS_FAILED(r, s->method->co_export(&s->disk, source->frozen, &attempt));
        if (r < 0 && (uri || r != -EIO || i == EXPORT_ATTEMPTS)) {
            error_move(err, &attempt);
            return r;
        }
        if (r < 0) {
            loop_co_sleep(EXPORT_RETRY_NS);
        }
    }
    if (r == 0) {
        bool tunnel = !uri && s->address.path && qmp_client_uses_ssh(s->qmp);
        const struct pull_nbd_config config = {
            .address = &s->address,
            .co_reach = tunnel ? co_reach_server : NULL,
            .co_reach_arg = s,
            .tls = s->options->tls,
            .co_digests = s->method == &tidemark_method ? co_digests_of_view : NULL,
            .co_digests_arg = s,
            .export_name = s->disk.prefix,
            .bitmap = source->frozen,
            .release = true,
            .connections = 2,
        };
        /* A machine that is lost must not hold the run up for hours. */
        s->address.watched = true;
        r = pull_nbd_new(&config, ret_input, err);
    }
    return r;
}

static int watch_daemon(struct source *source, struct error *err)
{
    const struct daemon_source *s = daemon_source_of(source);

    if (!fleece_is_short_of_space(&s->fleece, s->method->temp_can_hurt)) {
        return 0;
    }
    error_set(err, ENOSPC, "Too little space is left in '%s'%s", s->fleece.place,
              s->fleece.next_to_disk ? ", where the disk is" : "");
    error_hint(err, "Old data of what the guest overwrites is kept there: name another place with "
                    "--fleece-dir.");
    return -ENOSPC;
}

/* --- the end --- */

static int co_end_daemon(struct source *source, const char *last, struct error *err)
{
    struct daemon_source *s = daemon_source_of(source);

    int r;

    release_server(s);
    r = s->method->co_settle(&s->disk, last, err);
    if (r == 0 && s->address.path && !qmp_client_host(s->qmp) &&
        fleece_is_socket(s->address.path)) {
        daemon_co_stop_server(s->qmp, s->address.path);
    }
    return r;
}

static bool is_nearly_full(const char *dir)
{
    struct statvfs fs;

    return statvfs(dir, &fs) == 0 && (uint64_t)fs.f_bavail * fs.f_frsize < LITTLE_SPACE;
}

/* The view breaks when the temporary image cannot be written. */
static void co_explain_daemon(struct source *source, bool view_failed, struct error *err)
{
    const struct daemon_source *s = daemon_source_of(source);
    const struct fleece *f = &s->fleece;
    const char *place = s->temp_dir ? s->temp_dir : f->place;

    if (!s->temp_dir && (view_failed || err->code == ENOSPC) && is_nearly_full(place)) {
        error_hint(err, "There is no space left in '%s'.", place);
    } else if (view_failed) {
        error_hint(err,
                   "If the daemon could not keep old data of what was overwritten meanwhile (in "
                   "'%s'), its log says so.",
                   place);
    }
}

static void close_connection(struct daemon_connection *c)
{
    if (--c->users == 0) {
        qmp_client_close(c->qmp);
        free(c);
    }
}

static void co_close_daemon(struct source *source)
{
    struct daemon_source *s = daemon_source_of(source);

    release_server(s);
    socket_address_clear(&s->address);
    fleece_clear(&s->fleece);
    daemon_state_clear(&s->state);
    close_connection(s->connection);
    free(s->node);
    free(s->temp_dir);
    free(s->file);
    free(s->source.name);
    free(s);
}

static const struct source_ops daemon_source_ops = {
    .co_inspect = co_inspect_daemon,
    .co_settle = co_settle_daemon,
    .co_prepare = co_prepare_daemon,
    .co_checkpoint = co_checkpoint_daemon,
    .co_open_view = co_open_view_daemon,
    .co_end = co_end_daemon,
    .watch = watch_daemon,
    .co_explain = co_explain_daemon,
    .co_close = co_close_daemon,
};

/* --- opening --- */

static int add_disk(const struct source_options *options, struct daemon_connection *c,
                    const char *name, struct source_list *list, struct error *err)
{
    struct daemon_source *s = calloc(1, sizeof(*s));

    if (!s || source_list_add(list, &s->source) < 0) {
        free(s);
        return error_out_of_memory(err);
    }
    s->source = (struct source){.ops = &daemon_source_ops, .name = strdup(name)};
    s->connection = c;
    s->qmp = c->qmp;
    s->method = c->method;
    s->options = options;
    s->fleece = FLEECE_INIT;
    s->server_fd = -1;
    c->users++;
    return s->source.name ? 0 : error_out_of_memory(err);
}

/* Devices of a machine, by the names of the guest's devices where they have some. */
static int co_add_devices(const struct source_options *options, struct daemon_connection *c,
                          struct source_list *list, struct error *err)
{
    struct json_object *devices = NULL, *inserted, *ro;
    ERROR_AUTO(why);
    int r = qmp_client_co_execute(c->qmp, "query-block", NULL, &devices, &why);

    /* QEMU's storage daemon does not know the command. */
    if (r < 0 && r != -ENOSYS) {
        error_move(err, &why);
        return r;
    }
    r = 0;
    for (size_t i = 0; r == 0 && i < source_length(devices); i++) {
        struct json_object *d = json_object_array_get_idx(devices, i);
        const char *name = source_string(d, "device");
        char qdev[64] = "";

        /* "/machine/peripheral/vd0/virtio-backend" */
        sscanf(source_string(d, "qdev"), "/machine/peripheral/%63[^/]", qdev);
        name = qdev[0] ? qdev : name;
        if (!json_object_object_get_ex(d, "inserted", &inserted) ||
            (json_object_object_get_ex(inserted, "ro", &ro) && json_object_get_boolean(ro))) {
            continue;
        }
        r = add_disk(options, c, name[0] ? name : source_string(inserted, "node-name"), list, err);
    }
    json_object_put(devices);
    return r;
}

static bool has_disk(const struct source_list *list, const char *name)
{
    for (size_t i = 0; i < list->count; i++) {
        if (strcmp(list->list[i]->name, name) == 0) {
            return true;
        }
    }
    return false;
}

static bool has_named_node(struct json_object *nodes, const char *name)
{
    for (size_t i = 0; i < source_length(nodes); i++) {
        if (strcmp(source_string(json_object_array_get_idx(nodes, i), "node-name"), name) == 0) {
            return true;
        }
    }
    return false;
}

/* Whether the two answers are of one time: each filter of ours that an export has is there. */
static bool exports_have_filters(struct json_object *exports, struct json_object *nodes)
{
    char ignored[REPOSITORY_ID_SIZE];

    for (size_t i = 0; i < source_length(exports); i++) {
        const char *node = source_string(json_object_array_get_idx(exports, i), "node-name");

        if (source_name_repository(node, ignored) && !has_named_node(nodes, node)) {
            return false;
        }
    }
    return true;
}

/*
 * Ask for exports and nodes. In between the filter of a run that has ended, or was killed, may go:
 * then nobody could say which disk the export has, and the backup would lack that disk.
 */
static int co_ask_exports(struct daemon_connection *c, struct json_object **ret_exports,
                          struct json_object **ret_nodes, struct error *err)
{
    int r = -EAGAIN;

    for (int i = 0; r == -EAGAIN && i < EXPORT_LOOKS; i++) {
        struct json_object *exports = NULL, *nodes = NULL;

        if (i > 0) {
            loop_co_sleep(EXPORT_LOOK_NS);
        }
        r = qmp_client_co_execute(c->qmp, "query-block-exports", NULL, &exports, err);
        UNLESS_FAILED(r,
                      qmp_client_co_execute(c->qmp, "query-named-block-nodes", NULL, &nodes, err));
        if (r == 0 && !exports_have_filters(exports, nodes)) {
            r = -EAGAIN;
        }
        if (r == 0) {
            *ret_exports = exports;
            *ret_nodes = nodes;
            return 0;
        }
        json_object_put(exports);
        json_object_put(nodes);
    }
    return r == -EAGAIN ? error_set(err, EAGAIN, "The exports at '%s' change all the time",
                                    qmp_client_path(c->qmp))
                        : r;
}

/* A storage daemon has no devices: its disks are what it exports, maybe through our filter. */
static int co_add_exported(const struct source_options *options, struct daemon_connection *c,
                           struct source_list *list, struct error *err)
{
    struct json_object *exports = NULL, *nodes = NULL;
    char ignored[REPOSITORY_ID_SIZE];
    int r = co_ask_exports(c, &exports, &nodes, err);

    /* The newest export comes first; disks are in the order in which they came. */
    for (size_t i = source_length(exports); r == 0 && i-- > 0;) {
        struct json_object *e = json_object_array_get_idx(exports, i);
        const char *node = daemon_skip_own_filter(nodes, source_string(e, "node-name"));

        if (strncmp(source_string(e, "id"), SOURCE_PREFIX, strlen(SOURCE_PREFIX)) != 0 &&
            !source_name_repository(node, ignored) && !has_disk(list, node)) {
            r = add_disk(options, c, node, list, err);
        }
    }
    json_object_put(exports);
    json_object_put(nodes);
    return r;
}

static int co_add_disks(const struct source_options *options, struct daemon_connection *c,
                        struct source_list *list, struct error *err)
{
    int r = 0;

    for (size_t i = 0; r == 0 && i < options->node_count; i++) {
        r = add_disk(options, c, options->nodes[i], list, err);
    }
    if (options->node_count > 0) {
        return r;
    }
    r = co_add_devices(options, c, list, err);
    if (r == 0 && list->count == 0) {
        r = co_add_exported(options, c, list, err);
    }
    if (r == 0) {
        daemon_co_warn_of_unused(c->qmp);
    }
    return r == 0 && list->count == 0
               ? error_set(err, ENOENT, "The machine at '%s' has no disks", options->qmp_socket)
               : r;
}

int source_daemon_co_open(const struct source_options *options, struct source_list *list,
                          struct error *err)
{
    struct daemon_connection *c = calloc(1, sizeof(*c));
    int r;

    if (!c) {
        return error_out_of_memory(err);
    }
    c->users = 1;
    r = qmp_client_co_connect(options->qmp_socket, options->qmp_tls, options->stop, &c->qmp, err);
    UNLESS_FAILED(r, daemon_co_choose_method(c->qmp, options->asks_cbw_timeout, &c->method, err));
    if (r == 0 && qmp_client_host(c->qmp) && c->method != &tidemark_method) {
        r = error_set(err, ENOTSUP, "'%s' is QEMU, which has to be on this machine",
                      options->qmp_socket);
        error_hint(err, "Run the backup there, and copy it here with 'tidemark copy'.");
    }
    UNLESS_FAILED(r, co_add_disks(options, c, list, err));
    close_connection(c);
    return r;
}

/* --- without a run --- */

int source_co_forget(struct qmp_client *qmp, const struct source_leftover *l, struct error *err)
{
    const struct daemon_method *method;
    struct daemon_disk disk;
    int r;

    if (!l->node) {
        return error_set(err, ENOENT, "The disk of repository %s is not known: name it with --node",
                         l->repository);
    }
    if (l->temp_image && !qmp_client_host(qmp) && fleece_owner(l->temp_image) == FLEECE_ALIVE) {
        return error_set(err, EBUSY, "A backup of node '%s' to repository %s is under way", l->node,
                         l->repository);
    }
    daemon_disk_init(&disk, qmp, l->node, l->repository);
    r = daemon_co_choose_method(qmp, false, &method, err);
    UNLESS_FAILED(r, method->co_settle(&disk, NULL, err));
    if (r == 0 && l->temp_image && !qmp_client_host(qmp)) {
        fleece_remove_of_file(l->temp_image);
    }
    return r;
}
