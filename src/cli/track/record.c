/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/track/record.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <json-c/json.h>
#include <libgen.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "backup/files.h"
#include "base/checked.h"
#include "base/cleanup.h"

#define VERSION 1
#define RECORD_SIZE_MAX (64 * KiB)
#define SAMPLES 256u
#define SAMPLE_SIZE 4096u

/* --- fingerprint ------------------------------------------------------------------------------ */

/* The next of a sequence that looks random (splitmix64). */
static uint64_t next_number(uint64_t *state)
{
    uint64_t z = *state += 0x9e3779b97f4a7c15;

    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
    z = (z ^ z >> 27) * 0x94d049bb133111eb;
    return z ^ z >> 31;
}

static int add_fingerprint_sample(struct sha256 *sha, int fd, uint64_t offset)
{
    uint8_t data[SAMPLE_SIZE];
    ssize_t n = pread(fd, data, sizeof(data), (off_t)offset);

    return n < 0 ? -errno : sha256_add(sha, data, (size_t)n);
}

/* The digest of the first and last blocks, and of others that `seed` chooses. */
static int take_fingerprint(const char *path, uint64_t size, uint64_t seed, char *ret_hex)
{
    AUTO_CLOSE int fd = open(path, O_RDONLY | O_CLOEXEC);
    struct sha256 *sha = fd < 0 ? NULL : sha256_new();
    uint8_t digest[SHA256_SIZE];
    uint64_t blocks = div_round_up(size, SAMPLE_SIZE);
    int r = fd < 0 ? -errno : sha ? 0 : -ENOMEM;

    if (r == 0) {
        (void)posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED); /* of a device others can reach */
    }
    for (unsigned i = 0; i < SAMPLES && i < blocks && r == 0; i++) {
        uint64_t block = i < 16 ? i : i < 32 ? blocks - 1 - (i - 16) : next_number(&seed) % blocks;

        r = add_fingerprint_sample(sha, fd, block * SAMPLE_SIZE);
    }
    if (r == 0) {
        r = sha256_finish(sha, digest);
    }
    if (r == 0) {
        sha256_to_hex(digest, ret_hex);
    }
    sha256_free(sha);
    return r;
}

/* --- the file --------------------------------------------------------------------------------- */

static void put_int(struct json_object *o, const char *key, int64_t value)
{
    json_object_object_add(o, key, json_object_new_int64(value));
}

static void put_record_str(struct json_object *o, const char *key, const char *value)
{
    json_object_object_add(o, key, json_object_new_string(value));
}

static int64_t get_int(struct json_object *o, const char *key)
{
    return json_object_get_int64(json_object_object_get(o, key));
}

static const char *get_str(struct json_object *o, const char *key)
{
    const char *text = json_object_get_string(json_object_object_get(o, key));

    return text ? text : "";
}

static int put_fingerprint(struct json_object *o, const char *path, uint64_t size,
                           struct error *err)
{
    char hex[SHA256_HEX_SIZE];
    uint64_t seed = 0;
    int r;

    arc4random_buf(&seed, sizeof(seed));
    seed &= INT64_MAX;
    r = take_fingerprint(path, size, seed, hex);
    if (r < 0) {
        return error_set_errno(err, -r, "Could not read samples of '%s'", path);
    }
    put_int(o, "seed", (int64_t)seed);
    put_record_str(o, "fingerprint", hex);
    return 0;
}

static int describe_disk(const char *path, const char *image_path, bool clean,
                         struct json_object *o, struct error *err)
{
    struct track_disk disk, image;
    int r = track_look(path, &disk, err);

    UNLESS_FAILED(r, track_look(image_path, &image, err));
    if (r < 0) {
        return r;
    }
    put_int(o, "tidemark-track", VERSION);
    put_record_str(o, "path", path);
    json_object_object_add(o, "clean", json_object_new_boolean(clean));
    put_int(o, "size", (int64_t)disk.size);
    put_record_str(o, "identity", disk.identity);
    put_record_str(o, "image-identity", image.identity);
    if (!clean) {
        return 0;
    }
    put_int(o, "image-mtime-ns", image.mtime_ns);
    if (disk.device) {
        put_record_str(o, "boot", disk.boot);
        put_int(o, "changed-sectors", disk.changed_sectors);
    } else {
        put_int(o, "mtime-ns", disk.mtime_ns);
        put_int(o, "ctime-ns", disk.ctime_ns);
    }
    return put_fingerprint(o, path, disk.size, err);
}

/* Replace the file, stably. */
static int replace_file(const char *filename, const char *text, struct error *err)
{
    AUTO_FREE char *copy = strdup(filename), *base = strdup(filename), *fresh = NULL;
    AUTO_CLOSE int dir = -1;
    int r = copy && base ? 0 : -ENOMEM;

    if (r == 0 && asprintf(&fresh, "%s.new", basename(base)) < 0) {
        fresh = NULL;
        r = -ENOMEM;
    }
    if (r < 0) {
        return error_out_of_memory(err);
    }
    dir = files_open_dir(dirname(copy), err);
    if (dir < 0) {
        return dir;
    }
    (void)unlinkat(dir, fresh, 0);
    r = files_write_at(dir, fresh, text, filename, err);
    if (r == 0 && renameat(dir, fresh, dir, basename(base)) < 0) {
        r = error_set_errno(err, errno, "Could not replace '%s'", filename);
    }
    return UNLESS_FAILED(r, files_sync(dir, filename, err));
}

int track_write_record(const char *path, const char *image, const char *record, bool clean,
                       struct error *err)
{
    struct json_object *o = json_object_new_object();
    int r = o ? describe_disk(path, image, clean, o, err) : error_out_of_memory(err);

    if (r == 0) {
        const char *text = json_object_to_json_string_ext(o, JSON_C_TO_STRING_PRETTY);

        r = text ? replace_file(record, text, err) : error_out_of_memory(err);
    }
    json_object_put(o);
    return r;
}

/* The record; NULL if it can't be read, and why in `err`. */
static struct json_object *read_record(const char *record, struct error *err)
{
    AUTO_FREE char *copy = strdup(record), *base = strdup(record), *text = NULL;
    AUTO_CLOSE int dir = copy && base ? files_open_dir(dirname(copy), err) : -1;
    struct json_object *o;
    size_t size;

    if (dir < 0 ||
        files_read_at(dir, basename(base), RECORD_SIZE_MAX, record, &text, &size, err) < 0) {
        return NULL;
    }
    o = json_tokener_parse(text);
    if (!json_object_is_type(o, json_type_object) || get_int(o, "tidemark-track") != VERSION) {
        json_object_put(o);
        error_set(err, EINVAL, "'%s' is damaged, or of another version", record);
        return NULL;
    }
    return o;
}

/* --- comparing -------------------------------------------------------------------------------- */

/* What samples show to have changed; NULL: nothing. */
static char *find_change_of_samples(const char *path, const struct track_disk *disk,
                                    struct json_object *o)
{
    char hex[SHA256_HEX_SIZE];
    char *why = NULL;
    int r = take_fingerprint(path, disk->size, (uint64_t)get_int(o, "seed"), hex);

    if (r < 0) {
        r = asprintf(&why, "it can't be read: %s", strerror(-r));
    } else if (strcmp(hex, get_str(o, "fingerprint")) != 0) {
        r = asprintf(&why, "samples of its contents are others");
    }
    return r < 0 ? NULL : why;
}

/*
 * What has changed since a clean end; NULL: nothing that can be seen. A device does not count what
 * is written past it, through the disk that it is a part of or the file below it.
 */
static char *find_change_of_contents(const char *path, const struct track_disk *disk,
                                     struct json_object *o)
{
    int64_t sectors = disk->device ? get_int(o, "changed-sectors") : -1;
    char *why = NULL;
    int r = 0;

    if (!disk->device && get_int(o, "mtime-ns") != disk->mtime_ns) {
        r = asprintf(&why, "the time of its last change is another");
    } else if (!disk->device && get_int(o, "ctime-ns") != disk->ctime_ns) {
        r = asprintf(&why, "the time of the last change of its inode is another");
    } else if (sectors >= 0 && disk->changed_sectors >= 0 && sectors != disk->changed_sectors &&
               strcmp(get_str(o, "boot"), disk->boot) == 0) {
        r = asprintf(&why, "%" PRId64 " sectors of it were written",
                     disk->changed_sectors - sectors);
    } else {
        return find_change_of_samples(path, disk, o);
    }
    return r < 0 ? NULL : why;
}

/* What tells it from the disk of the record; NULL: nothing. */
static char *find_other_disk(const struct track_disk *disk, struct json_object *o)
{
    char *why = NULL;
    int r = 0;

    if ((uint64_t)get_int(o, "size") != disk->size) {
        r = asprintf(&why, "it had %" PRId64 " bytes, and has %" PRIu64, get_int(o, "size"),
                     disk->size);
    } else if (!track_same_identity(get_str(o, "identity"), disk->identity)) {
        r = asprintf(&why, "it is another one: it was '%s', and is '%s'", get_str(o, "identity"),
                     disk->identity);
    }
    return r < 0 ? NULL : why;
}

/*
 * What tells the image from that of the record; NULL: nothing. One that was changed since is
 * trusted: bitmaps can be added and cleared while nothing is served.
 */
static char *find_other_image(const char *path, const struct track_disk *image,
                              struct json_object *o)
{
    const char *was = get_str(o, "image-identity");
    char *why = NULL;
    int r = 0;

    if (was[0] && !track_same_identity(was, image->identity)) {
        r = asprintf(&why, "its bitmaps are in another file: '%s' was '%s', and is '%s'", path, was,
                     image->identity);
    } else if (image->mtime_ns < get_int(o, "image-mtime-ns")) {
        r = asprintf(&why, "its bitmaps are older: '%s' was put back", path);
    }
    return r < 0 ? NULL : why;
}

enum track_verdict track_compare(const char *path, const char *image_path, const char *record,
                                 char **ret_why)
{
    ERROR_AUTO(err);
    struct json_object *o = read_record(record, &err);
    enum track_verdict verdict;
    struct track_disk disk, image;

    if (!o || track_look(path, &disk, &err) < 0 || track_look(image_path, &image, &err) < 0) {
        *ret_why = strdup(error_message(&err));
        json_object_put(o);
        return TRACK_UNKNOWN;
    }
    *ret_why = find_other_disk(&disk, o);
    if (!*ret_why) {
        *ret_why = find_other_image(image_path, &image, o);
    }
    if (*ret_why) {
        verdict = TRACK_CHANGED;
    } else if (json_object_get_boolean(json_object_object_get(o, "clean"))) {
        *ret_why = find_change_of_contents(path, &disk, o);
        verdict = *ret_why ? TRACK_CHANGED : TRACK_UNCHANGED;
    } else {
        verdict = TRACK_CRASHED;
        *ret_why = strdup("tracking was not ended cleanly");
    }
    json_object_put(o);
    return verdict;
}
