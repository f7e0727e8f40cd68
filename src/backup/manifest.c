/* SPDX-License-Identifier: Apache-2.0 */
#include "backup/manifest.h"

#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/time_units.h"

#define FORMAT "tidemark-backup"
#define VERSION 1

void manifest_clear(struct manifest *m)
{
    free(m->reason);
    free(m->machine);
    free(m->machine_id);
    free(m->node);
    free(m->disk);
    free(m->bitmap);
    *m = (struct manifest){0};
}

static char *copy_text(const char *s, bool *failed)
{
    char *copy = s ? strdup(s) : NULL;

    *failed = *failed || (s && !copy);
    return copy;
}

int manifest_copy(const struct manifest *m, struct manifest *ret_manifest)
{
    struct manifest copy = *m;
    bool failed = false;

    copy.reason = copy_text(m->reason, &failed);
    copy.machine = copy_text(m->machine, &failed);
    copy.machine_id = copy_text(m->machine_id, &failed);
    copy.node = copy_text(m->node, &failed);
    copy.disk = copy_text(m->disk, &failed);
    copy.bitmap = copy_text(m->bitmap, &failed);
    if (failed) {
        manifest_clear(&copy);
    }
    *ret_manifest = copy;
    return failed ? -ENOMEM : 0;
}

bool backup_id_is_valid(const char *id)
{
    size_t len = strlen(id);

    return len > 0 && len < BACKUP_ID_SIZE && id[0] != '-' && strspn(id, "0123456789TZ-") == len;
}

/* The time, and nothing or the number of a backup of the same second after it. */
static bool is_complete_id(const char *text)
{
    size_t time = strspn(text, "0123456789T");
    const char *number = text + time + 2;

    if (time != strlen("20261120T093000") || text[time] != 'Z') {
        return false;
    }
    return !text[time + 1] ||
           (text[time + 1] == '-' && *number && !number[strspn(number, "0123456789")]);
}

bool backup_id_is_meant(const char *id, const char *text)
{
    return is_complete_id(text) ? strcmp(id, text) == 0 : strncmp(id, text, strlen(text)) == 0;
}

static bool has_control_characters(const char *s)
{
    while (*s && (unsigned char)*s >= 0x20 && *s != 0x7f) {
        s++;
    }
    return *s != '\0';
}

bool manifest_name_is_valid(const char *name)
{
    return strlen(name) <= MANIFEST_NAME_MAX && !has_control_characters(name);
}

void backup_moment_now(struct backup_moment *ret_moment)
{
    struct timespec utc, mono;
    struct tm tm;
    char date[24];

    clock_gettime(CLOCK_REALTIME, &utc);
    clock_gettime(CLOCK_MONOTONIC, &mono);
    gmtime_r(&utc.tv_sec, &tm);
    strftime(date, sizeof(date), "%Y-%m-%dT%H:%M:%S", &tm);
    snprintf(ret_moment->utc, sizeof(ret_moment->utc), "%s.%06uZ", date,
             (unsigned)(utc.tv_nsec / 1000) % 1000000);
    ret_moment->monotonic_ns = ns_from_timespec(mono);
}

int64_t backup_moment_seconds(const struct backup_moment *moment)
{
    struct tm tm = {0};
    const char *end = strptime(moment->utc, "%Y-%m-%dT%H:%M:%S", &tm);

    return end && (*end == '.' || *end == 'Z') ? (int64_t)timegm(&tm) : INT64_MIN;
}

/* --- writing --- */

static void add_field(struct json_object *o, const char *key, const char *value)
{
    json_object_object_add(o, key, value ? json_object_new_string(value) : NULL);
}

static void add_uint(struct json_object *o, const char *key, uint64_t value)
{
    json_object_object_add(o, key, json_object_new_uint64(value));
}

static void add_moment(struct json_object *o, const char *key, const struct backup_moment *t)
{
    struct json_object *m = json_object_new_object();

    add_field(m, "utc", t->utc);
    json_object_object_add(m, "monotonic-ns", json_object_new_int64(t->monotonic_ns));
    json_object_object_add(o, key, m);
}

static void add_file(struct json_object *o, const char *key, uint64_t size, const char *sha256)
{
    struct json_object *f = json_object_new_object();

    add_uint(f, "size", size);
    add_field(f, "sha256", sha256);
    json_object_object_add(o, key, f);
}

/*
 * SHA-256 of the compact form without the checksum itself, slashes not escaped. Manifests of
 * earlier versions were hashed with escaped slashes.
 */
static int checksum_of(struct json_object *o, int flags, char ret_text[static SHA256_HEX_SIZE])
{
    uint8_t digest[SHA256_SIZE];
    size_t len;
    const char *text = json_object_to_json_string_length(o, JSON_C_TO_STRING_PLAIN | flags, &len);

    if (!text || sha256_of_buffer(text, len, digest) < 0) {
        return -ENOMEM;
    }
    sha256_to_hex(digest, ret_text);
    return 0;
}

struct json_object *manifest_to_json(const struct manifest *m)
{
    struct json_object *o = json_object_new_object();
    struct json_object *checkpoint = json_object_new_object();
    char checksum[SHA256_HEX_SIZE];

    if (!o || !checkpoint) {
        json_object_put(o);
        json_object_put(checkpoint);
        return NULL;
    }
    add_field(o, "format", FORMAT);
    add_uint(o, "version", VERSION);
    add_field(o, "id", m->id);
    add_uint(o, "sequence", m->sequence);
    add_field(o, "kind", manifest_is_full(m) ? "full" : "incremental");
    add_field(o, "parent", manifest_is_full(m) ? NULL : m->parent);
    add_field(o, "reason", m->reason);
    if (m->rebuilt) {
        json_object_object_add(o, "rebuilt", json_object_new_boolean(true));
    }
    if (m->repository[0]) {
        add_field(o, "repository", m->repository);
    }
    if (m->machine) {
        add_field(o, "machine", m->machine);
    }
    if (m->machine_id) {
        add_field(o, "machine-id", m->machine_id);
    }
    add_field(o, "node", m->node);
    if (m->disk) {
        add_field(o, "disk", m->disk);
    }
    if (m->disk_encrypted) {
        json_object_object_add(o, "disk-encrypted", json_object_new_boolean(true));
    }
    if (m->protection) {
        add_field(o, "protection", m->protection);
    }
    add_field(o, "bitmap", m->bitmap);
    if (m->set[0]) {
        add_field(o, "set", m->set);
    }
    json_object_object_add(o, "checkpoint", checkpoint);
    add_moment(checkpoint, "begin", &m->begin);
    add_moment(checkpoint, "end", &m->end);
    add_uint(o, "virtual-size", m->virtual_size);
    add_uint(o, "cluster-size", m->cluster_size);
    add_uint(o, "changed-bytes", m->changed);
    add_uint(o, "moved-bytes", m->moved);
    add_uint(o, "stored-bytes", m->stored);
    if (m->patched) {
        add_uint(o, "patched-bytes", m->patched);
    }
    add_uint(o, "duration-ms", m->duration_ms);
    add_file(o, "image", m->image_size, m->image_sha256);
    add_file(o, "checksums", m->sums_size, m->sums_sha256);
    if (m->mac[0]) {
        add_field(o, "mac", m->mac);
    }
    if (checksum_of(o, JSON_C_TO_STRING_NOSLASHESCAPE, checksum) < 0) {
        json_object_put(o);
        return NULL;
    }
    add_field(o, "sha256", checksum);
    return o;
}

/* --- reading --- */

/* The value of `key`, which must be of `type`; else NULL, with *err set. */
static struct json_object *get_field(struct json_object *o, const char *key, enum json_type type,
                                     const char *where, struct error *err)
{
    struct json_object *v;

    if (!json_object_object_get_ex(o, key, &v)) {
        error_set(err, EINVAL, "Manifest '%s' has no '%s'", where, key);
        return NULL;
    }
    if (!json_object_is_type(v, type)) {
        error_set(err, EINVAL, "Manifest '%s': '%s' is no %s", where, key, json_type_to_name(type));
        return NULL;
    }
    return v;
}

static int get_uint(struct json_object *o, const char *key, const char *where, uint64_t *ret_value,
                    struct error *err)
{
    struct json_object *v = get_field(o, key, json_type_int, where, err);

    if (!v) {
        return -EINVAL;
    }
    if (json_object_get_int64(v) < 0 || json_object_get_uint64(v) > INT64_MAX) {
        return error_set(err, EINVAL, "Manifest '%s': '%s' is out of range", where, key);
    }
    *ret_value = json_object_get_uint64(v);
    return 0;
}

/* A string without control characters, at most `max` bytes long. Borrowed. */
static const char *get_string(struct json_object *o, const char *key, size_t max, const char *where,
                              struct error *err)
{
    struct json_object *v = get_field(o, key, json_type_string, where, err);
    const char *s;
    size_t len;

    if (!v) {
        return NULL;
    }
    s = json_object_get_string(v);
    len = (size_t)json_object_get_string_len(v);
    if (len > max || strlen(s) != len) {
        error_set(err, EINVAL, "Manifest '%s': '%s' is too long or holds a NUL", where, key);
        return NULL;
    }
    if (has_control_characters(s)) {
        error_set(err, EINVAL, "Manifest '%s': '%s' holds control characters", where, key);
        return NULL;
    }
    return s;
}

/* Copy a string into a fixed field of `room` bytes, which includes the NUL. */
static int copy_field(struct json_object *o, const char *key, char *ret_text, size_t room,
                      const char *where, struct error *err)
{
    const char *s = get_string(o, key, room - 1, where, err);

    if (!s) {
        return -EINVAL;
    }
    memcpy(ret_text, s, strlen(s) + 1);
    return 0;
}

static int dup_string(struct json_object *o, const char *key, char **ret_text, const char *where,
                      struct error *err)
{
    const char *s = get_string(o, key, MANIFEST_NAME_MAX, where, err);

    if (!s) {
        return -EINVAL;
    }
    *ret_text = strdup(s);
    return *ret_text ? 0 : error_out_of_memory(err);
}

/* *ret_text stays as it is if there is no such member. */
static int dup_optional(struct json_object *o, const char *key, char **ret_text, const char *where,
                        struct error *err)
{
    return json_object_object_get_ex(o, key, NULL) ? dup_string(o, key, ret_text, where, err) : 0;
}

/*
 * Manifests of earlier versions have no member "repository"; there the name of the bitmap begins
 * with the id.
 */
static int get_repository(struct json_object *o, struct manifest *m, const char *where,
                          struct error *err)
{
    static const char prefix[] = "tidemark-";
    size_t before = sizeof(prefix) - 1, size = sizeof(m->repository) - 1;

    if (json_object_object_get_ex(o, "repository", NULL)) {
        if (copy_field(o, "repository", m->repository, sizeof(m->repository), where, err) < 0) {
            return -EINVAL;
        }
    } else if (strncmp(m->bitmap, prefix, before) == 0 && strlen(m->bitmap) > before + size &&
               m->bitmap[before + size] == '-') {
        memcpy(m->repository, m->bitmap + before, size);
    }
    if (m->repository[0] && strspn(m->repository, "0123456789abcdef") != size) {
        return error_set(err, EINVAL, "Manifest '%s': 'repository' is not the id of one", where);
    }
    return 0;
}

static int get_id(struct json_object *o, const char *key, char *ret_text, const char *where,
                  struct error *err)
{
    int r = copy_field(o, key, ret_text, BACKUP_ID_SIZE, where, err);

    if (r == 0 && !backup_id_is_valid(ret_text)) {
        r = error_set(err, EINVAL, "Manifest '%s': '%s' is not the id of a backup", where, key);
    }
    return r;
}

static int get_hash(struct json_object *o, const char *key, char *ret_text, const char *where,
                    struct error *err)
{
    int r = copy_field(o, key, ret_text, SHA256_HEX_SIZE, where, err);

    if (r == 0 && (strlen(ret_text) != SHA256_HEX_SIZE - 1 ||
                   strspn(ret_text, "0123456789abcdef") != SHA256_HEX_SIZE - 1)) {
        r = error_set(err, EINVAL, "Manifest '%s': '%s' is not a SHA-256", where, key);
    }
    return r;
}

static int get_moment(struct json_object *checkpoint, const char *key,
                      struct backup_moment *ret_moment, const char *where, struct error *err)
{
    struct json_object *m = get_field(checkpoint, key, json_type_object, where, err);
    uint64_t ns = 0;

    if (!m || copy_field(m, "utc", ret_moment->utc, sizeof(ret_moment->utc), where, err) < 0 ||
        get_uint(m, "monotonic-ns", where, &ns, err) < 0) {
        return -EINVAL;
    }
    ret_moment->monotonic_ns = (int64_t)ns;
    return 0;
}

static int get_file(struct json_object *o, const char *key, uint64_t *ret_size, char *ret_sha256,
                    const char *where, struct error *err)
{
    struct json_object *f = get_field(o, key, json_type_object, where, err);

    if (!f || get_uint(f, "size", where, ret_size, err) < 0) {
        return -EINVAL;
    }
    return get_hash(f, "sha256", ret_sha256, where, err);
}

/* The checksum is the last member: remove it, and compare it with the checksum of the rest. */
static int check_checksum(struct json_object *o, const char *where, struct error *err)
{
    char stored[SHA256_HEX_SIZE], actual[SHA256_HEX_SIZE], earlier[SHA256_HEX_SIZE];
    int r = get_hash(o, "sha256", stored, where, err);

    if (r < 0) {
        return r;
    }
    json_object_object_del(o, "sha256");
    if (checksum_of(o, JSON_C_TO_STRING_NOSLASHESCAPE, actual) < 0 ||
        checksum_of(o, 0, earlier) < 0) {
        return error_out_of_memory(err);
    }
    if (strcmp(stored, actual) != 0 && strcmp(stored, earlier) != 0) {
        return error_set(err, EINVAL, "Manifest '%s' was changed: its checksum does not match",
                         where);
    }
    return 0;
}

static int parse_head(struct json_object *o, const char *where, uint32_t *ret_cluster_size,
                      struct error *err)
{
    const char *format = get_string(o, "format", MANIFEST_NAME_MAX, where, err);
    uint64_t version = 0, cluster_size = 0;

    if (!format || get_uint(o, "version", where, &version, err) < 0) {
        return -EINVAL;
    }
    if (strcmp(format, FORMAT) != 0) {
        return error_set(err, EINVAL, "'%s' is not the manifest of a backup", where);
    }
    if (version != VERSION) {
        return error_set(err, EINVAL,
                         "Manifest '%s' has version %" PRIu64 ", this program knows version %d",
                         where, version, VERSION);
    }
    if (check_checksum(o, where, err) < 0 ||
        get_uint(o, "cluster-size", where, &cluster_size, err) < 0) {
        return -EINVAL;
    }
    if (cluster_size != BACKUP_CLUSTER_SIZE && cluster_size != BACKUP_FULL_CLUSTER_SIZE) {
        return error_set(err, EINVAL, "Manifest '%s': cluster size %" PRIu64 ", expected %u or %u",
                         where, cluster_size, BACKUP_CLUSTER_SIZE, BACKUP_FULL_CLUSTER_SIZE);
    }
    *ret_cluster_size = (uint32_t)cluster_size;
    return 0;
}

static int parse_kind(struct json_object *o, struct manifest *m, const char *where,
                      struct error *err)
{
    const char *kind = get_string(o, "kind", MANIFEST_NAME_MAX, where, err);
    struct json_object *reason;

    if (!kind) {
        return -EINVAL;
    }
    if (strcmp(kind, "full") == 0) {
        return dup_string(o, "reason", &m->reason, where, err);
    }
    if (strcmp(kind, "incremental") != 0) {
        return error_set(err, EINVAL, "Manifest '%s': no kind of backup: '%s'", where, kind);
    }
    if (json_object_object_get_ex(o, "reason", &reason) && reason &&
        dup_string(o, "reason", &m->reason, where, err) < 0) {
        return -EINVAL;
    }
    return get_id(o, "parent", m->parent, where, err);
}

static int parse_fields(struct json_object *o, struct manifest *m, const char *where,
                        struct error *err)
{
    struct json_object *checkpoint;

    if (parse_head(o, where, &m->cluster_size, err) < 0 || get_id(o, "id", m->id, where, err) < 0 ||
        get_uint(o, "sequence", where, &m->sequence, err) < 0 || parse_kind(o, m, where, err) < 0 ||
        dup_string(o, "node", &m->node, where, err) < 0 ||
        dup_string(o, "bitmap", &m->bitmap, where, err) < 0 ||
        get_repository(o, m, where, err) < 0 ||
        (json_object_object_get_ex(o, "set", NULL) && get_id(o, "set", m->set, where, err) < 0) ||
        dup_optional(o, "machine", &m->machine, where, err) < 0 ||
        dup_optional(o, "machine-id", &m->machine_id, where, err) < 0 ||
        dup_optional(o, "disk", &m->disk, where, err) < 0) {
        return -EINVAL;
    }
    m->rebuilt = json_object_object_get_ex(o, "rebuilt", NULL);
    m->disk_encrypted = json_object_object_get_ex(o, "disk-encrypted", NULL);
    checkpoint = get_field(o, "checkpoint", json_type_object, where, err);
    if (!checkpoint || get_moment(checkpoint, "begin", &m->begin, where, err) < 0 ||
        get_moment(checkpoint, "end", &m->end, where, err) < 0) {
        return -EINVAL;
    }
    if (get_uint(o, "virtual-size", where, &m->virtual_size, err) < 0 ||
        get_uint(o, "changed-bytes", where, &m->changed, err) < 0 ||
        get_uint(o, "moved-bytes", where, &m->moved, err) < 0 ||
        get_uint(o, "stored-bytes", where, &m->stored, err) < 0 ||
        (json_object_object_get_ex(o, "patched-bytes", NULL) &&
         get_uint(o, "patched-bytes", where, &m->patched, err) < 0) ||
        get_uint(o, "duration-ms", where, &m->duration_ms, err) < 0 ||
        get_file(o, "image", &m->image_size, m->image_sha256, where, err) < 0 ||
        get_file(o, "checksums", &m->sums_size, m->sums_sha256, where, err) < 0 ||
        (json_object_object_get_ex(o, "mac", NULL) && get_hash(o, "mac", m->mac, where, err) < 0)) {
        return -EINVAL;
    }
    if (m->virtual_size == 0 || m->virtual_size > INT64_MAX - BACKUP_FULL_CLUSTER_SIZE) {
        return error_set(err, EINVAL, "Manifest '%s': 'virtual-size' is out of range", where);
    }
    return 0;
}

static bool is_blank(const char *text, size_t from, size_t end)
{
    static const char blanks[] = {' ', '\t', '\r', '\n'};

    while (from < end && memchr(blanks, text[from], sizeof(blanks))) {
        from++;
    }
    return from == end;
}

static const char *why_no_object(enum json_tokener_error e)
{
    return e == json_tokener_success    ? "it holds another value"
           : e == json_tokener_continue ? "it is cut short"
                                        : json_tokener_error_desc(e);
}

int manifest_parse(const char *text, size_t size, const char *where, struct manifest *ret_manifest,
                   struct error *err)
{
    struct manifest m = {0};
    struct json_tokener *tok;
    struct json_object *o;
    int r;

    if (size > MANIFEST_SIZE_MAX) {
        return error_set(err, EINVAL, "Manifest '%s' is longer than %lu bytes", where,
                         MANIFEST_SIZE_MAX);
    }
    tok = json_tokener_new();
    if (!tok) {
        return error_out_of_memory(err);
    }
    json_tokener_set_flags(tok, JSON_TOKENER_STRICT | JSON_TOKENER_ALLOW_TRAILING_CHARS);
    o = json_tokener_parse_ex(tok, text, (int)size);
    if (!o || !json_object_is_type(o, json_type_object)) {
        r = error_set(err, EINVAL, "Manifest '%s' is not a JSON object: %s", where,
                      why_no_object(json_tokener_get_error(tok)));
    } else {
        r = parse_fields(o, &m, where, err);
        if (r == 0 && !is_blank(text, json_tokener_get_parse_end(tok), size)) {
            r = error_set(err, EINVAL, "Manifest '%s' was changed: something follows it", where);
        }
    }
    json_object_put(o);
    json_tokener_free(tok);
    if (r < 0) {
        manifest_clear(&m);
        return r;
    }
    *ret_manifest = m;
    return 0;
}
