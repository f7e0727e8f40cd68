/* SPDX-License-Identifier: Apache-2.0 */
/* Queries of the daemon. The form of the answers is not trusted. */
#include <errno.h>
#include <libgen.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "backup/daemon_disk.h"
#include "backup/files.h"
#include "backup/fleece.h"
#include "base/cleanup.h"

static void free_strings(char **list, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        free(list[i]);
    }
    free(list);
}

void daemon_state_clear(struct daemon_state *s)
{
    for (size_t i = 0; i < s->bitmap_count; i++) {
        free(s->bitmaps[i].name);
    }
    free(s->bitmaps);
    free_strings(s->exports, s->export_count);
    free_strings(s->moved_exports, s->moved_count);
    free_strings(s->others, s->other_count);
    free_strings(s->sockets, s->socket_count);
    free(s->disk);
    free(s->temp_image);
    *s = (struct daemon_state){0};
}

const char *source_string(struct json_object *o, const char *key)
{
    struct json_object *v;

    if (json_object_object_get_ex(o, key, &v) && json_object_is_type(v, json_type_string)) {
        return json_object_get_string(v);
    }
    return "";
}

static bool bool_of(struct json_object *o, const char *key)
{
    struct json_object *v;

    return json_object_object_get_ex(o, key, &v) && json_object_get_boolean(v);
}

size_t source_length(struct json_object *list)
{
    return json_object_is_type(list, json_type_array) ? json_object_array_length(list) : 0;
}

bool source_name_repository(const char *name, char ret_text[static REPOSITORY_ID_SIZE])
{
    const char *id = name + strlen(SOURCE_PREFIX);
    size_t digits = REPOSITORY_ID_SIZE - 1;

    if (strncmp(name, SOURCE_PREFIX, strlen(SOURCE_PREFIX)) != 0 || strlen(id) <= digits ||
        strspn(id, "0123456789abcdef") != digits || id[digits] != '-') {
        return false;
    }
    memcpy(ret_text, id, digits);
    ret_text[digits] = '\0';
    return true;
}

/* --- paths --- */

static char *existing(const char *format, const char *a, const char *b)
{
    char *path AUTO_FREE = NULL;
    struct stat st;

    /* NOLINTNEXTLINE(clang-diagnostic-format-nonliteral): one of the two below */
    if (asprintf(&path, format, a, b) < 0) {
        path = NULL;
        return NULL;
    }
    return stat(path, &st) == 0 ? TAKE_PTR(path) : NULL;
}

/*
 * A path as this process has to open it. A relative path is relative to the daemon's directory; if
 * that is hidden from this process, maybe to that of the daemon's socket.
 */
char *source_daemon_path(const struct qmp_client *qmp, const char *path)
{
    char *socket AUTO_FREE = strdup(qmp_client_path(qmp));
    char process[16], *found;

    if (!path[0] || path[0] == '/' || !socket || qmp_client_host(qmp)) {
        return path[0] && socket ? strdup(path) : NULL;
    }
    snprintf(process, sizeof(process), "%d", (int)qmp_client_peer(qmp).pid);
    found = existing("/proc/%s/cwd/%s", process, path);
    found = found ? found : existing("%s/%s", dirname(socket), path);
    return found ? found : strdup(path);
}

/* --- nodes --- */

static int add_bitmap(struct daemon_state *s, struct json_object *b)
{
    struct source_bitmap *list = realloc(s->bitmaps, (s->bitmap_count + 1) * sizeof(*list));
    char *name = strdup(source_string(b, "name"));

    if (list) {
        s->bitmaps = list;
    }
    if (!list || !name) {
        free(name);
        return -ENOMEM;
    }
    list[s->bitmap_count++] = (struct source_bitmap){
        .name = name,
        .recording = bool_of(b, "recording"),
        .busy = bool_of(b, "busy"),
        .persistent = bool_of(b, "persistent"),
        .inconsistent = bool_of(b, "inconsistent"),
    };
    return 0;
}

/* Such an image cannot store bitmaps: they live as long as the daemon. */
static bool is_version_2(struct json_object *node)
{
    struct json_object *image, *specific, *data;

    return json_object_object_get_ex(node, "image", &image) &&
           json_object_object_get_ex(image, "format-specific", &specific) &&
           json_object_object_get_ex(specific, "data", &data) &&
           strcmp(source_string(data, "compat"), "0.10") == 0;
}

/* The filename in json:{...}, of an image on which a format and filters may be; "": none. */
static const char *filename_in_json(struct json_object *options)
{
    struct json_object *below = options;

    while (json_object_object_get_ex(below, "file", &below)) {
        options = below;
    }
    return source_string(options, "filename");
}

/* The file of the disk, by its canonical path. */
static int take_disk_file(const struct daemon_disk *s, struct daemon_state *state, const char *file)
{
    char *path AUTO_FREE = NULL;

    /* Nothing, or a URI. */
    if (!file[0] || (file[0] != '/' && strcspn(file, ":") < strcspn(file, "/"))) {
        return 0;
    }
    path = source_daemon_path(s->qmp, file);
    if (!path) {
        return -ENOMEM;
    }
    state->disk = realpath(path, NULL);
    if (!state->disk && path[0] == '/') {
        state->disk = TAKE_PTR(path);
    }
    /* A name that a manifest cannot hold counts as none. */
    if (state->disk && !manifest_name_is_valid(state->disk)) {
        free(state->disk);
        state->disk = NULL;
    }
    return 0;
}

static int take_disk(const struct daemon_disk *s, struct daemon_state *state,
                     struct json_object *node)
{
    const char *file = source_string(node, "file");
    struct json_object *options = NULL;
    int r;

    if (strncmp(file, "json:", 5) == 0) {
        options = json_tokener_parse(file + 5);
        file = options ? filename_in_json(options) : "";
    }
    r = take_disk_file(s, state, file);
    json_object_put(options);
    return r;
}

static int take_node(const struct daemon_disk *s, struct daemon_state *state,
                     struct json_object *node)
{
    struct json_object *v, *bitmaps;
    size_t prefix = strlen(s->prefix);
    int r;

    state->found = true;
    state->read_only = bool_of(node, "ro");
    state->encrypted = bool_of(node, "encrypted");
    state->stores_bitmaps = strcmp(source_string(node, "drv"), "qcow2") == 0 && !is_version_2(node);
    r = take_disk(s, state, node);
    if (r < 0) {
        return r;
    }
    if (json_object_object_get_ex(node, "image", &v) &&
        json_object_object_get_ex(v, "virtual-size", &v) && json_object_get_int64(v) > 0) {
        state->virtual_size = (uint64_t)json_object_get_int64(v);
    }
    if (!json_object_object_get_ex(node, "dirty-bitmaps", &bitmaps)) {
        return 0;
    }
    for (size_t i = 0; i < source_length(bitmaps); i++) {
        struct json_object *b = json_object_array_get_idx(bitmaps, i);
        const char *name = source_string(b, "name");

        if (strncmp(name, s->prefix, prefix) == 0 && name[prefix] == '-' &&
            add_bitmap(state, b) < 0) {
            return -ENOMEM;
        }
    }
    return 0;
}

static int append_name(char ***list, size_t *count, const char *text)
{
    char **grown = realloc(*list, (*count + 1) * sizeof(*grown));

    if (!grown) {
        return -ENOMEM;
    }
    *list = grown;
    grown[*count] = strdup(text);
    if (!grown[*count]) {
        return -ENOMEM;
    }
    (*count)++;
    return 0;
}

/* QEMU describes the temporary image by json:{...}: there the node below has the path. */
static int take_temp_image(const struct daemon_disk *s, struct daemon_state *state,
                           const char *file)
{
    if (state->temp_image || strncmp(file, "json:", 5) == 0) {
        return 0;
    }
    state->temp_image = source_daemon_path(s->qmp, file);
    return state->temp_image ? 0 : -ENOMEM;
}

/* The socket of the NBD server that a run, of any repository, may have started. */
static int take_state_socket(const struct daemon_disk *s, struct daemon_state *state,
                             struct json_object *node)
{
    const char *name = source_string(node, "node-name");
    char repository[REPOSITORY_ID_SIZE], *path AUTO_FREE = NULL, *socket AUTO_FREE = NULL;
    size_t len = strlen(name);

    if (!source_name_repository(name, repository) || len < 5 ||
        strcmp(name + len - 5, "-file") != 0) {
        return 0;
    }
    path = source_daemon_path(s->qmp, source_string(node, "file"));
    socket = path ? files_join(dirname(path), FLEECE_SOCKET) : NULL;
    if (!socket) {
        return -ENOMEM;
    }
    return fleece_is_socket(socket) ? append_name(&state->sockets, &state->socket_count, socket)
                                    : 0;
}

/* Take a filter: of a run to this repository, or of another repository on the same disk. */
static int take_own_node(const struct daemon_disk *s, struct daemon_state *state,
                         struct json_object *node, const char *file)
{
    const char *name = source_string(node, "node-name");
    char repository[REPOSITORY_ID_SIZE];
    size_t len = strlen(name);

    if (strcmp(name, s->cbw) == 0) {
        state->has_cbw = strcmp(source_string(node, "drv"), "copy-before-write") == 0;
    } else if (strcmp(name, s->snap) == 0) {
        state->has_snap = true;
    } else if (strcmp(name, s->temp) == 0) {
        state->has_temp = true;
        return take_temp_image(s, state, source_string(node, "file"));
    } else if (strcmp(name, s->file) == 0) {
        return take_temp_image(s, state, source_string(node, "file"));
    } else if (source_name_repository(name, repository) && len > 4 &&
               strcmp(name + len - 4, "-cbw") == 0 && file[0] &&
               strcmp(file, source_string(node, "file")) == 0) {
        return append_name(&state->others, &state->other_count, repository);
    }
    return 0;
}

static int take_state_nodes(const struct daemon_disk *s, struct daemon_state *state,
                            struct json_object *list)
{
    const char *file = "";
    int r = 0;

    for (size_t i = 0; r == 0 && i < source_length(list); i++) {
        struct json_object *node = json_object_array_get_idx(list, i);

        if (strcmp(source_string(node, "node-name"), s->node) == 0) {
            file = source_string(node, "file");
            r = take_node(s, state, node);
        }
    }
    for (size_t i = 0; r == 0 && i < source_length(list); i++) {
        r = take_own_node(s, state, json_object_array_get_idx(list, i), file);
        UNLESS_FAILED(r, take_state_socket(s, state, json_object_array_get_idx(list, i)));
    }
    return r;
}

static int take_exports(const struct daemon_disk *s, struct daemon_state *state,
                        struct json_object *list)
{
    int r = 0;

    for (size_t i = 0; r == 0 && i < source_length(list); i++) {
        struct json_object *e = json_object_array_get_idx(list, i);
        const char *id = source_string(e, "id");
        const char *node = source_string(e, "node-name");

        if (strcmp(id, s->prefix) == 0) {
            state->has_export = true;
        } else if (bool_of(e, "shutting-down")) {
            continue;
        } else if (strcmp(node, s->node) == 0) {
            r = append_name(&state->exports, &state->export_count, id);
        } else if (strcmp(node, s->cbw) == 0) {
            r = append_name(&state->moved_exports, &state->moved_count, id);
        }
    }
    return r;
}

/* --- devices --- */

/* Whether a device has this name: its own, or that of the guest's device ("vd0" of its path). */
static bool is_named_device(struct json_object *device, const char *name)
{
    const char *qdev = source_string(device, "qdev"), *found = strstr(qdev, name);
    const char *end = found ? found + strlen(name) : "";

    return strcmp(source_string(device, "device"), name) == 0 || strcmp(qdev, name) == 0 ||
           (found && found > qdev && found[-1] == '/' && (!*end || *end == '/'));
}

static struct json_object *find_node(struct json_object *nodes, const char *name)
{
    for (size_t i = 0; i < source_length(nodes); i++) {
        struct json_object *node = json_object_array_get_idx(nodes, i);

        if (strcmp(source_string(node, "node-name"), name) == 0) {
            return node;
        }
    }
    return NULL;
}

const char *daemon_skip_own_filter(struct json_object *nodes, const char *name)
{
    struct json_object *filter = find_node(nodes, name);
    char repository[REPOSITORY_ID_SIZE];

    if (!filter || !source_name_repository(name, repository)) {
        return name;
    }
    for (size_t i = 0; i < source_length(nodes); i++) {
        struct json_object *node = json_object_array_get_idx(nodes, i);
        const char *driver = source_string(node, "drv");

        if (strcmp(source_string(node, "file"), source_string(filter, "file")) == 0 &&
            !source_name_repository(source_string(node, "node-name"), repository) &&
            strcmp(driver, "file") != 0 && strcmp(driver, "host_device") != 0) {
            return source_string(node, "node-name");
        }
    }
    return name;
}

int daemon_co_find_node(struct qmp_client *qmp, const char *name, char **ret_node,
                        struct error *err)
{
    struct json_object *nodes = NULL, *devices = NULL, *inserted;
    const char *found = name;
    int r = qmp_client_co_execute(qmp, "query-named-block-nodes", NULL, &nodes, err);

    if (r == 0 && !find_node(nodes, name) &&
        qmp_client_co_execute(qmp, "query-block", NULL, &devices, NULL) == 0) {
        for (size_t i = 0; i < source_length(devices); i++) {
            struct json_object *device = json_object_array_get_idx(devices, i);

            if (is_named_device(device, name) &&
                json_object_object_get_ex(device, "inserted", &inserted)) {
                found = daemon_skip_own_filter(nodes, source_string(inserted, "node-name"));
            }
        }
    }
    if (r == 0) {
        *ret_node = strdup(found);
        r = *ret_node ? 0 : error_out_of_memory(err);
    }
    json_object_put(nodes);
    json_object_put(devices);
    return r;
}

int daemon_disk_co_inspect(struct daemon_disk *s, struct daemon_state *ret_state, struct error *err)
{
    DAEMON_STATE_AUTO(state);
    struct json_object *nodes = NULL, *exports = NULL;
    int r;

    r = qmp_client_co_execute(s->qmp, "query-named-block-nodes", NULL, &nodes, err);
    UNLESS_FAILED(r, qmp_client_co_execute(s->qmp, "query-block-exports", NULL, &exports, err));
    if (r == 0 &&
        (take_state_nodes(s, &state, nodes) < 0 || take_exports(s, &state, exports) < 0)) {
        r = error_out_of_memory(err);
    }
    json_object_put(nodes);
    json_object_put(exports);
    if (r < 0) {
        return r;
    }
    *ret_state = state;
    state = (struct daemon_state){0};
    return 0;
}

const struct source_bitmap *daemon_find_bitmap(const struct daemon_state *state, const char *name)
{
    for (size_t i = 0; i < state->bitmap_count; i++) {
        if (strcmp(state->bitmaps[i].name, name) == 0) {
            return &state->bitmaps[i];
        }
    }
    return NULL;
}
