/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The manifest describes one backup, as a JSON file that ends with a checksum of itself. Nothing
 * here yields.
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
/*
 * The image of a full backup has larger clusters, which compress better and faster. What is
 * recorded, compared and merged are clusters of BACKUP_CLUSTER_SIZE in all backups.
 */
#define BACKUP_FULL_CLUSTER_BITS 18
#define BACKUP_FULL_CLUSTER_SIZE (1u << BACKUP_FULL_CLUSTER_BITS)
#define BACKUP_FULL_CLUSTER_PARTS (BACKUP_FULL_CLUSTER_SIZE / BACKUP_CLUSTER_SIZE)
#define MANIFEST_SIZE_MAX (1024ul * 1024)
#define MANIFEST_TIME_SIZE 40
#define MANIFEST_NAME_MAX 1023

/*
 * A moment on two clocks. The monotonic one can be compared with that of other programs since the
 * same boot.
 */
struct backup_moment {
    char utc[MANIFEST_TIME_SIZE]; /* ISO 8601 with microseconds */
    int64_t monotonic_ns;
};

struct manifest {
    char id[BACKUP_ID_SIZE];
    uint64_t sequence;           /* grows with each backup of a repository */
    char parent[BACKUP_ID_SIZE]; /* "" for a full backup */
    /* Why a full one was taken, or why the whole disk was read for an incremental one; or NULL. */
    char *reason;
    bool rebuilt;             /* made by a repair: node and times are guesses */
    char set[BACKUP_ID_SIZE]; /* that it was taken with (backup/set.h); "" if it was alone */
    char repository[9];       /* id of the repository it was made in; "" if not known */
    char *machine;            /* name of the machine that the disk was on; NULL if not known */
    char *machine_id;         /* the same, never given twice; NULL if not known */
    char *node;
    char *disk;          /* file of the node's contents; NULL if not known */
    bool disk_encrypted; /* on its storage; the backup has what the guest wrote */
    /* How the files of the backup are protected: a word of docs/backup.md. NULL: not said. */
    const char *protection;
    char *bitmap; /* records what changed since; "" if there is none */
    /*
     * The checkpoint was made between these moments: right before the command was sent, and right
     * after its answer.
     */
    struct backup_moment begin, end;
    uint64_t virtual_size;
    /* Of the qcow2 image, in bytes; programs before 0.2 know BACKUP_CLUSTER_SIZE only. */
    uint32_t cluster_size;
    uint64_t changed; /* bytes marked by the bitmap or, in a full backup, allocated on the disk */
    uint64_t moved;   /* bytes that were read over NBD */
    uint64_t stored;  /* bytes that the backup takes on disk */
    uint64_t patched; /* bytes of the image that merges have written over since it was made */
    uint64_t duration_ms; /* of the whole run */
    uint64_t image_size;  /* bytes of the qcow2 file */
    char image_sha256[SHA256_HEX_SIZE];
    char mac[SHA256_HEX_SIZE]; /* by the key of the repository; "" if there is none */
    uint64_t sums_size;        /* bytes of the checksum file */
    char sums_sha256[SHA256_HEX_SIZE];
};

/* A copy that owns what it holds. -ENOMEM; then *ret_manifest is empty. */
int manifest_copy(const struct manifest *m, struct manifest *ret_manifest);
/* Release what `m` holds, and make it empty. */
void manifest_clear(struct manifest *m);
/* Whether the backup is a full one. */
static inline bool manifest_is_full(const struct manifest *m)
{
    return m->parent[0] == '\0';
}

/* Whether `id` has the form of a backup's id, and so may become part of a path. */
bool backup_id_is_valid(const char *id);
/*
 * Whether the id is meant by `text`: its beginning, or all of it. A text that is a whole id means
 * only that one, as "<time>" is the beginning of "<time>-2", which is another backup.
 */
bool backup_id_is_meant(const char *id, const char *text);

/* Whether `name` may be a string in a manifest: not too long, and without control characters. */
bool manifest_name_is_valid(const char *name);

/* A moment in seconds since the epoch; INT64_MIN if its text is none. */
int64_t backup_moment_seconds(const struct backup_moment *moment);
/*
 * Enter the machine that this program runs on. Its id is a hash, since /etc/machine-id is to be
 * kept private. Without such a file, there is only a name. -ENOMEM.
 */
int manifest_set_machine(struct manifest *m);

/* The current time. */
void backup_moment_now(struct backup_moment *ret_moment);

/* The manifest as JSON, with the checksum at its end: a new reference. NULL: no memory. */
struct json_object *manifest_to_json(const struct manifest *m);

/*
 * Parse JSON text of `size` bytes; `where` is for messages. Every field and the checksum are
 * checked. -EINVAL, -ENOMEM; then *ret_manifest is empty.
 */
int manifest_parse(const char *text, size_t size, const char *where, struct manifest *ret_manifest,
                   struct error *err);

#endif
