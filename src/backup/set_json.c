/* SPDX-License-Identifier: Apache-2.0 */
/* The description of a set as JSON, with its checksum, and its code if there is a key. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "backup/repository.h"
#include "backup/set.h"
#include "base/cleanup.h"
#include "base/sha256.h"

#define SET_FORMAT "tidemark-set"
#define SET_VERSION 1
#define NAME_MAX_LENGTH 200

void set_clear(struct set *s)
{
    for (size_t i = 0; i < s->count; i++) {
        free(s->disks[i].directory);
        free(s->disks[i].node);
        free(s->disks[i].problem);
    }
    free(s->disks);
    free(s->machine);
    free(s->definition);
    *s = (struct set){0};
}

bool set_name_is_valid(const char *name)
{
    size_t len = strlen(name);

    return len > 0 && len <= NAME_MAX_LENGTH && name[0] != '.' &&
           strcmp(name, SET_DIRECTORY) != 0 &&
           strspn(name, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-") == len;
}

static int set_checksum(struct json_object *o, char ret_text[static SHA256_HEX_SIZE])
{
    uint8_t digest[SHA256_SIZE];
    size_t len;
    const char *text = json_object_to_json_string_length(
        o, JSON_C_TO_STRING_PLAIN | JSON_C_TO_STRING_NOSLASHESCAPE, &len);

    if (!text || sha256_of_buffer(text, len, digest) < 0) {
        return -ENOMEM;
    }
    sha256_to_hex(digest, ret_text);
    return 0;
}

static void add_set_text(struct json_object *o, const char *key, const char *text)
{
    json_object_object_add(o, key, text ? json_object_new_string(text) : NULL);
}

static void add_set_moment(struct json_object *o, const char *key, const struct backup_moment *t)
{
    struct json_object *m = json_object_new_object();

    add_set_text(m, "utc", t->utc);
    json_object_object_add(m, "monotonic-ns", json_object_new_int64(t->monotonic_ns));
    json_object_object_add(o, key, m);
}

struct json_object *set_to_json(const struct set *s, const struct backup_key *key)
{
    struct json_object *o = json_object_new_object(), *disks = json_object_new_array();
    char checksum[SHA256_HEX_SIZE], mac[SHA256_HEX_SIZE];

    add_set_text(o, "format", SET_FORMAT);
    json_object_object_add(o, "version", json_object_new_int(SET_VERSION));
    add_set_text(o, "id", s->id);
    add_set_text(o, "machine", s->machine);
    add_set_text(o, "definition", s->definition);
    if (s->definition_sha256[0]) {
        add_set_text(o, "definition-sha256", s->definition_sha256);
    }
    add_set_moment(o, "begin", &s->begin);
    add_set_moment(o, "end", &s->end);
    for (size_t i = 0; i < s->count; i++) {
        struct json_object *d = json_object_new_object();

        add_set_text(d, "directory", s->disks[i].directory);
        add_set_text(d, "node", s->disks[i].node);
        add_set_text(d, "backup", s->disks[i].backup);
        json_object_array_add(disks, d);
    }
    json_object_object_add(o, "disks", disks);
    if (key) {
        add_set_text(o, "key", key->check);
        backup_kdf_to_json(&key->kdf, o);
        if (backup_key_authenticate(key, o, mac) < 0) {
            json_object_put(o);
            return NULL;
        }
        add_set_text(o, "mac", mac);
    }
    if (set_checksum(o, checksum) < 0) {
        json_object_put(o);
        return NULL;
    }
    add_set_text(o, "sha256", checksum);
    return o;
}

/* A string without control characters; NULL: there is none. Borrowed. */
static const char *set_text(struct json_object *o, const char *key)
{
    struct json_object *v;
    const char *text;

    if (!json_object_object_get_ex(o, key, &v) || !json_object_is_type(v, json_type_string)) {
        return NULL;
    }
    text = json_object_get_string(v);
    return manifest_name_is_valid(text) ? text : NULL;
}

static bool take_set_moment(struct json_object *o, const char *key,
                            struct backup_moment *ret_moment)
{
    struct json_object *m, *ns;
    const char *utc = json_object_object_get_ex(o, key, &m) ? set_text(m, "utc") : NULL;

    if (!utc || strlen(utc) >= sizeof(ret_moment->utc) ||
        !json_object_object_get_ex(m, "monotonic-ns", &ns)) {
        return false;
    }
    snprintf(ret_moment->utc, sizeof(ret_moment->utc), "%s", utc);
    ret_moment->monotonic_ns = json_object_get_int64(ns);
    return true;
}

static bool take_set_disk(struct set *s, struct json_object *o)
{
    const char *directory = set_text(o, "directory"), *node = set_text(o, "node");
    const char *backup = set_text(o, "backup");
    struct set_disk *d = &s->disks[s->count];

    if (!directory || !node || !backup || !set_name_is_valid(directory) ||
        !backup_id_is_valid(backup)) {
        return false;
    }
    d->directory = strdup(directory);
    d->node = strdup(node);
    memcpy(d->backup, backup, strlen(backup) + 1);
    s->count++;
    return d->directory && d->node;
}

/*
 * Whether it has the code of the program's key, if there is one; that is removed from `o`.
 * -EKEYREJECTED: it has another key; -EBADMSG: it has no code, or a wrong one.
 */
static int check_set_code(struct json_object *o, struct error *err)
{
    const struct backup_key *key;
    const char *check = set_text(o, "key");
    struct backup_kdf kdf;
    int r;

    backup_kdf_from_json(o, &kdf);
    r = backup_key_get(&kdf, &key, err);
    if (r < 0 || !key) {
        return r;
    }
    if (check && strcmp(check, key->check) != 0) {
        return error_set(err, EKEYREJECTED, "Set '%s' has another key than the given one",
                         set_text(o, "id"));
    }
    return repository_code_is_right(key, o) ? 0 : -EBADMSG;
}

static bool take_set(struct json_object *o, const char *id, struct set *s)
{
    const char *format = set_text(o, "format"), *own = set_text(o, "id");
    const char *stored = set_text(o, "sha256");
    char *expected AUTO_FREE = stored ? strdup(stored) : NULL;
    char actual[SHA256_HEX_SIZE];
    struct json_object *disks = NULL;
    size_t count;

    if (!expected || !format || strcmp(format, SET_FORMAT) != 0 || !own || strcmp(own, id) != 0) {
        return false;
    }
    json_object_object_del(o, "sha256");
    if (set_checksum(o, actual) < 0 || strcmp(actual, expected) != 0) {
        return false;
    }
    json_object_object_get_ex(o, "disks", &disks);
    count = json_object_is_type(disks, json_type_array) ? json_object_array_length(disks) : 0;
    if (count == 0 || count > SET_DISKS_MAX || !take_set_moment(o, "begin", &s->begin) ||
        !take_set_moment(o, "end", &s->end)) {
        return false;
    }
    memcpy(s->id, id, strlen(id) + 1);
    s->machine = set_text(o, "machine") ? strdup(set_text(o, "machine")) : NULL;
    s->definition = set_text(o, "definition") ? strdup(set_text(o, "definition")) : NULL;
    snprintf(s->definition_sha256, sizeof(s->definition_sha256), "%s",
             set_text(o, "definition-sha256") ?: "");
    s->disks = calloc(count, sizeof(*s->disks));
    for (size_t i = 0; s->disks && i < count; i++) {
        if (!take_set_disk(s, json_object_array_get_idx(disks, i))) {
            return false;
        }
    }
    return s->disks != NULL;
}

int set_from_json(struct json_object *o, const char *id, struct set *ret_set, int *ret_code,
                  struct error *err)
{
    int r = take_set(o, id, ret_set) ? 0 : -EBADMSG;

    if (r == 0) {
        ret_set->has_code = set_text(o, "mac") != NULL;
        *ret_code = check_set_code(o, err);
        r = *ret_code == -EBADMSG ? 0 : *ret_code;
    }
    if (r < 0) {
        set_clear(ret_set);
    }
    return r;
}
