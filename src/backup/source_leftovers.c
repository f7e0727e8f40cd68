/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What backups to any directory have in a daemon, found by names: filters with temporary images,
 * and bitmaps.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "backup/daemon_disk.h"
#include "base/cleanup.h"

void source_leftovers_clear(struct source_leftovers *l)
{
    for (size_t i = 0; i < l->count; i++) {
        free(l->list[i].node);
        free(l->list[i].temp_image);
    }
    free(l->list);
    *l = (struct source_leftovers){0};
}

/*
 * The entry of this repository on this node (may be NULL); a new one if there is none. NULL: no
 * memory.
 */
static struct source_leftover *get_leftover(struct source_leftovers *l, const char *repository,
                                            const char *node)
{
    struct source_leftover *list, *e;

    for (size_t i = 0; i < l->count; i++) {
        e = &l->list[i];
        if (strcmp(e->repository, repository) == 0 &&
            (node && e->node ? strcmp(e->node, node) == 0 : node == e->node)) {
            return e;
        }
    }
    list = realloc(l->list, (l->count + 1) * sizeof(*list));
    if (!list) {
        return NULL;
    }
    l->list = list;
    e = &list[l->count];
    *e = (struct source_leftover){.node = node ? strdup(node) : NULL};
    if (node && !e->node) {
        return NULL;
    }
    memcpy(e->repository, repository, sizeof(e->repository));
    l->count++;
    return e;
}

static int take_bitmaps(struct source_leftovers *l, struct json_object *node)
{
    struct json_object *bitmaps, *count;

    if (!json_object_object_get_ex(node, "dirty-bitmaps", &bitmaps)) {
        return 0;
    }
    for (size_t i = 0; i < source_length(bitmaps); i++) {
        struct json_object *b = json_object_array_get_idx(bitmaps, i);
        char repository[REPOSITORY_ID_SIZE];
        struct source_leftover *e;

        if (!source_name_repository(source_string(b, "name"), repository)) {
            continue;
        }
        e = get_leftover(l, repository, source_string(node, "node-name"));
        if (!e) {
            return -ENOMEM;
        }
        e->bitmaps++;
        if (json_object_object_get_ex(b, "count", &count)) {
            e->dirty += json_object_get_uint64(count);
        }
    }
    return 0;
}

static bool leftover_ends_with(const char *name, const char *end)
{
    size_t n = strlen(name), m = strlen(end);

    return n > m && strcmp(name + n - m, end) == 0;
}

/* The disk under a filter: the format node with the same file. NULL: none. */
static const char *disk_of_leftover(struct json_object *nodes, struct json_object *filter)
{
    const char *file = source_string(filter, "file");
    char ignored[REPOSITORY_ID_SIZE];

    for (size_t i = 0; file[0] && i < source_length(nodes); i++) {
        struct json_object *node = json_object_array_get_idx(nodes, i);
        const char *name = source_string(node, "node-name");

        if (name[0] != '#' && !source_name_repository(name, ignored) &&
            strcmp(source_string(node, "file"), file) == 0) {
            return name;
        }
    }
    return NULL;
}

/* A repository has one disk: the one with its bitmaps, if there are any. */
static struct source_leftover *get_of_filter(struct source_leftovers *l, const char *repository,
                                             struct json_object *nodes, struct json_object *filter)
{
    for (size_t i = 0; i < l->count; i++) {
        if (strcmp(l->list[i].repository, repository) == 0) {
            return &l->list[i];
        }
    }
    return get_leftover(l, repository, disk_of_leftover(nodes, filter));
}

/* The name of the temporary image has the repository, but not the disk. */
static int take_temp(struct qmp_client *qmp, struct source_leftovers *l, struct json_object *node,
                     const char *repository)
{
    for (size_t i = 0; i < l->count; i++) {
        struct source_leftover *e = &l->list[i];

        if (strcmp(e->repository, repository) == 0 && e->filter && !e->temp_image) {
            const char *file = source_string(node, "file");

            /* QEMU describes the image by json:{...}, and the node below it by its path. */
            if (strncmp(file, "json:", 5) == 0) {
                return 0;
            }
            e->temp_image = source_daemon_path(qmp, file);
            return e->temp_image ? 0 : -ENOMEM;
        }
    }
    return 0;
}

static int take_all(struct qmp_client *qmp, struct json_object *nodes, struct source_leftovers *l)
{
    char repository[REPOSITORY_ID_SIZE];
    int r = 0;

    for (size_t i = 0; r == 0 && i < source_length(nodes); i++) {
        r = take_bitmaps(l, json_object_array_get_idx(nodes, i));
    }
    for (size_t i = 0; r == 0 && i < source_length(nodes); i++) {
        struct json_object *node = json_object_array_get_idx(nodes, i);
        const char *name = source_string(node, "node-name");

        if (source_name_repository(name, repository) && leftover_ends_with(name, "-cbw")) {
            struct source_leftover *e = get_of_filter(l, repository, nodes, node);

            r = e ? 0 : -ENOMEM;
            if (e) {
                e->filter = true;
            }
        }
    }
    for (size_t i = 0; r == 0 && i < source_length(nodes); i++) {
        struct json_object *node = json_object_array_get_idx(nodes, i);
        const char *name = source_string(node, "node-name");

        if (source_name_repository(name, repository) &&
            (leftover_ends_with(name, "-temp") || leftover_ends_with(name, "-file"))) {
            r = take_temp(qmp, l, node, repository);
        }
    }
    return r;
}

static void keep_node(struct source_leftovers *l, const char *node)
{
    size_t kept = 0;

    for (size_t i = 0; i < l->count; i++) {
        if (!l->list[i].node || strcmp(l->list[i].node, node) == 0) {
            l->list[kept++] = l->list[i];
        } else {
            free(l->list[i].node);
            free(l->list[i].temp_image);
        }
    }
    l->count = kept;
}

int source_co_leftovers(struct qmp_client *qmp, const char *node,
                        struct source_leftovers *ret_leftovers, struct error *err)
{
    struct source_leftovers l = {0};
    struct json_object *nodes = NULL;
    int r = qmp_client_co_execute(qmp, "query-named-block-nodes", NULL, &nodes, err);

    if (r == 0 && take_all(qmp, nodes, &l) < 0) {
        r = error_out_of_memory(err);
    }
    json_object_put(nodes);
    if (r < 0) {
        source_leftovers_clear(&l);
        return r;
    }
    if (node) {
        keep_node(&l, node);
    }
    *ret_leftovers = l;
    return 0;
}
