/* SPDX-License-Identifier: Apache-2.0 */
#include "backup/verified.h"

#include <errno.h>
#include <fcntl.h>
#include <json-c/json.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "backup/files.h"
#include "backup/stored.h"
#include "base/cleanup.h"

#define FILE_NAME REPOSITORY_OWN_PREFIX "verified"

/* The directory of the file; the caller closes it. */
static int open_place(const struct repository *r, struct error *err)
{
    return files_open_dir_at(r->fd, r->append_only ? REPOSITORY_WORK : ".", r->path, err);
}

#define FILE_SIZE_MAX (64ul * 1024 * 1024)

void verified_clear(struct verified *v)
{
    free(v->list);
    *v = (struct verified){0};
}

static struct json_object *verified_member(struct json_object *o, const char *key,
                                           enum json_type type)
{
    struct json_object *value;

    return json_object_object_get_ex(o, key, &value) && json_object_is_type(value, type) ? value
                                                                                         : NULL;
}

static void take_entry(struct json_object *o, const struct manifest *m, struct verified_entry *e)
{
    const char *image =
        json_object_get_string(verified_member(o, "image-sha256", json_type_string));

    if (!image || strcmp(image, m->image_sha256) != 0) {
        return;
    }
    e->at = json_object_get_int64(verified_member(o, "at", json_type_int));
    e->sound = json_object_get_boolean(verified_member(o, "sound", json_type_boolean));
    e->position = json_object_get_uint64(verified_member(o, "position", json_type_int));
}

int verified_load(const struct repository *r, struct verified *ret_verified)
{
    char *text AUTO_FREE = NULL;
    struct json_object *all = NULL;
    int dir AUTO_CLOSE = open_place(r, NULL);
    size_t size;

    ret_verified->list = calloc(r->count ?: 1, sizeof(*ret_verified->list));
    if (!ret_verified->list) {
        return -ENOMEM;
    }
    ret_verified->count = r->count;
    if (dir >= 0 && stored_read_at(dir, FILE_NAME, FILE_SIZE_MAX, repository_seal(r),
                                   STORED_VERIFIED, FILE_NAME, &text, &size, NULL) == 0) {
        all = json_tokener_parse(text);
    }
    for (size_t i = 0; json_object_is_type(all, json_type_object) && i < r->count; i++) {
        struct json_object *o = verified_member(all, r->entries[i].id, json_type_object);

        if (o && !r->entries[i].problem) {
            take_entry(o, &r->entries[i].manifest, &ret_verified->list[i]);
        }
    }
    json_object_put(all);
    return 0;
}

static struct json_object *verified_json(const struct repository *r, const struct verified *v)
{
    struct json_object *all = json_object_new_object();

    for (size_t i = 0; i < v->count; i++) {
        const struct verified_entry *e = &v->list[i];
        struct json_object *o;

        if (r->entries[i].problem || (!e->at && !e->position)) {
            continue;
        }
        o = json_object_new_object();
        json_object_object_add(o, "at", json_object_new_int64(e->at));
        json_object_object_add(o, "sound", json_object_new_boolean(e->sound));
        json_object_object_add(o, "position", json_object_new_uint64(e->position));
        json_object_object_add(o, "image-sha256",
                               json_object_new_string(r->entries[i].manifest.image_sha256));
        json_object_object_add(all, r->entries[i].id, o);
    }
    return all;
}

int verified_store(const struct repository *r, const struct verified *v, struct error *err)
{
    char *shown AUTO_FREE = files_join(r->path, FILE_NAME);
    struct json_object *all = verified_json(r, v);
    int dir AUTO_CLOSE = open_place(r, err);
    char name[64], random[13];
    int result;

    if (!shown || !all) {
        json_object_put(all);
        return error_out_of_memory(err);
    }
    result = dir < 0 ? dir : files_random_name(random, sizeof(random), err);
    if (result == 0) {
        snprintf(name, sizeof(name), REPOSITORY_TMP "verified-%s", random);
        result = stored_write_at(dir, name, json_object_to_json_string(all), repository_seal(r),
                                 STORED_VERIFIED, shown, err);
    }
    if (result == 0 && renameat(dir, name, dir, FILE_NAME) < 0) {
        result = error_set_errno(err, errno, "Could not replace '%s'", shown);
        unlinkat(dir, name, 0);
    }
    json_object_put(all);
    return result;
}
