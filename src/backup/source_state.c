/* SPDX-License-Identifier: Apache-2.0 */
/* What the daemon has: answers of QMP, none of which is trusted to have the right form. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "backup/source.h"
#include "base/cleanup.h"

void source_state_clear(struct source_state *s)
{
    for (size_t i = 0; i < s->bitmap_count; i++) {
        free(s->bitmaps[i].name);
    }
    for (size_t i = 0; i < s->export_count; i++) {
        free(s->exports[i]);
    }
    for (size_t i = 0; i < s->moved_count; i++) {
        free(s->moved_exports[i]);
    }
    free(s->bitmaps);
    free(s->exports);
    free(s->moved_exports);
    *s = (struct source_state){0};
}

static const char *string_of(struct json_object *o, const char *key)
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

/* The elements of a list; 0 if it is none. */
static size_t length_of(struct json_object *list)
{
    return json_object_is_type(list, json_type_array) ? json_object_array_length(list) : 0;
}

static int add_bitmap(struct source_state *s, struct json_object *b)
{
    struct source_bitmap *list = realloc(s->bitmaps, (s->bitmap_count + 1) * sizeof(*list));
    char *name = strdup(string_of(b, "name"));

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

static int take_node(const struct source *s, struct source_state *state, struct json_object *node)
{
    struct json_object *v, *bitmaps;
    size_t prefix = strlen(s->prefix);

    state->found = true;
    state->read_only = bool_of(node, "ro");
    state->stores_bitmaps = strcmp(string_of(node, "drv"), "qcow2") == 0;
    if (json_object_object_get_ex(node, "image", &v) &&
        json_object_object_get_ex(v, "virtual-size", &v) && json_object_get_int64(v) > 0) {
        state->virtual_size = (uint64_t)json_object_get_int64(v);
    }
    if (!json_object_object_get_ex(node, "dirty-bitmaps", &bitmaps)) {
        return 0;
    }
    for (size_t i = 0; i < length_of(bitmaps); i++) {
        struct json_object *b = json_object_array_get_idx(bitmaps, i);
        const char *name = string_of(b, "name");

        if (strncmp(name, s->prefix, prefix) == 0 && name[prefix] == '-' &&
            add_bitmap(state, b) < 0) {
            return -ENOMEM;
        }
    }
    return 0;
}

static int take_nodes(const struct source *s, struct source_state *state, struct json_object *list)
{
    for (size_t i = 0; i < length_of(list); i++) {
        struct json_object *node = json_object_array_get_idx(list, i);
        const char *name = string_of(node, "node-name");
        size_t len = strlen(name);

        if (strcmp(name, s->node) == 0) {
            int rc = take_node(s, state, node);
            if (rc < 0) {
                return rc;
            }
        } else if (strcmp(name, s->cbw) == 0) {
            state->has_cbw = true;
        } else if (strcmp(name, s->snap) == 0) {
            state->has_snap = true;
        } else if (strcmp(name, s->temp) == 0) {
            state->has_temp = true;
        } else if (strncmp(name, "tidemark-", 9) == 0 && len > 13 &&
                   strcmp(name + len - 4, "-cbw") == 0) {
            state->others = true;
        }
    }
    return 0;
}

static int add_export(char ***list, size_t *count, const char *id)
{
    char **grown = realloc(*list, (*count + 1) * sizeof(*grown));

    if (!grown) {
        return -ENOMEM;
    }
    *list = grown;
    grown[*count] = strdup(id);
    if (!grown[*count]) {
        return -ENOMEM;
    }
    (*count)++;
    return 0;
}

static int take_exports(const struct source *s, struct source_state *state,
                        struct json_object *list)
{
    int rc = 0;

    for (size_t i = 0; rc == 0 && i < length_of(list); i++) {
        struct json_object *e = json_object_array_get_idx(list, i);
        const char *id = string_of(e, "id");
        const char *node = string_of(e, "node-name");

        if (strcmp(id, s->prefix) == 0) {
            state->has_export = true;
        } else if (bool_of(e, "shutting-down")) {
            continue;
        } else if (strcmp(node, s->node) == 0) {
            rc = add_export(&state->exports, &state->export_count, id);
        } else if (strcmp(node, s->cbw) == 0) {
            rc = add_export(&state->moved_exports, &state->moved_count, id);
        }
    }
    return rc;
}

int source_co_inspect(struct source *s, struct source_state *ret, struct error *err)
{
    SOURCE_STATE_AUTO(state);
    struct json_object *nodes = NULL, *exports = NULL;
    int rc;

    rc = qmp_client_co_execute(s->qmp, "query-named-block-nodes", NULL, &nodes, err);
    rc = rc < 0 ? rc : qmp_client_co_execute(s->qmp, "query-block-exports", NULL, &exports, err);
    if (rc == 0 && (take_nodes(s, &state, nodes) < 0 || take_exports(s, &state, exports) < 0)) {
        rc = error_set(err, ENOMEM, "Out of memory");
    }
    json_object_put(nodes);
    json_object_put(exports);
    if (rc < 0) {
        return rc;
    }
    *ret = state;
    state = (struct source_state){0};
    return 0;
}

char *source_bitmap_name(const struct source *s, const char *id)
{
    char *name;

    return asprintf(&name, "%s-%s", s->prefix, id) < 0 ? NULL : name;
}

const struct source_bitmap *source_find_bitmap(const struct source *s,
                                               const struct source_state *state, const char *id)
{
    char *name AUTO_FREE = source_bitmap_name(s, id);

    for (size_t i = 0; name && i < state->bitmap_count; i++) {
        if (strcmp(state->bitmaps[i].name, name) == 0) {
            return &state->bitmaps[i];
        }
    }
    return NULL;
}
