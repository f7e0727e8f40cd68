/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The manifest: what one backup is, as a JSON file that ends with a checksum of itself. None of these functions
 * yields.
 */
#ifndef TIDEMARK_BACKUP_MANIFEST_H
#define TIDEMARK_BACKUP_MANIFEST_H

#include <json-c/json.h>
#include <stdbool.h>
#include <stdint.h>

#include "backup/digest.h"
#include "base/error.h"

#define BACKUP_ID_SIZE 33 /* with the NUL */
#define BACKUP_CLUSTER_BITS 16
#define BACKUP_CLUSTER_SIZE (1u << BACKUP_CLUSTER_BITS)
#define MANIFEST_SIZE_MAX (1024ul * 1024)
#define MANIFEST_TIME_SIZE 40
#define MANIFEST_NAME_MAX 1023

/* A moment on both clocks; the monotonic one can be compared with other programs' of the same boot. */
struct backup_moment {
    char utc[MANIFEST_TIME_SIZE]; /* ISO 8601 with microseconds */
    int64_t monotonic_ns;
};

struct manifest {
    char id[BACKUP_ID_SIZE];
    uint64_t sequence;           /* grows with each backup of a repository */
    char parent[BACKUP_ID_SIZE]; /* "" for a full backup */
    char *reason;                /* why a full one was taken; NULL for an incremental one */
    char repository[9];          /* id of the repository it was taken to; "" if not known */
    char *node;
    char *disk;   /* where the node's contents are: a filename; NULL if not known */
    char *bitmap; /* records what changed since; "" if there is none */
    /* The checkpoint fell between these two: right before it was asked for, and right after the answer. */
    struct backup_moment begin, end;
    uint64_t virtual_size;
    uint64_t changed; /* bytes that the bitmap or, in a full backup, the disk's allocation names */
    uint64_t moved;   /* bytes that were read over NBD */
    uint64_t stored;  /* bytes that the backup takes on disk */
    uint64_t duration_ms; /* of the whole run */
    uint64_t image_size;  /* bytes of the qcow2 file */
    char image_sha256[DIGEST_HEX_SIZE];
    uint64_t sums_size; /* bytes of the checksum file */
    char sums_sha256[DIGEST_HEX_SIZE];
};

void manifest_clear(struct manifest *m);
static inline bool manifest_is_full(const struct manifest *m)
{
    return m->parent[0] == '\0';
}

/* Whether it has the form of a backup's id: what may become part of a path. */
bool backup_id_is_valid(const char *id);

/* Whether it may be a string in a manifest: not too long, and without control characters. */
bool manifest_name_is_valid(const char *name);

/* Now. */
void backup_moment_now(struct backup_moment *ret);

/* As JSON, with the checksum at its end. A new reference; NULL: no memory. */
struct json_object *manifest_to_json(const struct manifest *m);

/*
 * From JSON text of `size` bytes; `where` is for messages. Nothing in it is trusted: every field is checked, and the
 * checksum. -EINVAL, -ENOMEM; then *ret is empty.
 */
int manifest_parse(const char *text, size_t size, const char *where, struct manifest *ret,
                   struct error *err);

#endif
