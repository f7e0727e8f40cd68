/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A set: backups of several disks of one machine, taken at one moment. Below the root, each disk
 * has a directory of backups of its own (backup/repository.h), and each set one in `sets`:
 *
 *     ROOT/DISK/...                a repository per disk
 *     ROOT/sets/<id>/set.json      machine, moments, and for each disk directory and backup
 *                    definition    of the machine, as it was given
 *
 * A set exists when its directory has its name, which it gets after all backups have theirs: all of
 * it, or nothing. The backups of a set that was cut off in between are points in time of single
 * disks, and the next ones build on them. Where the
 * repositories of the disks have a key, sets have its code; where those are encrypted, both files
 * are sealed (backup/stored.h). Nothing here yields; everything may block.
 */
#ifndef TIDEMARK_BACKUP_SET_H
#define TIDEMARK_BACKUP_SET_H

#include <json-c/json.h>
#include <stdbool.h>
#include <stddef.h>

#include "backup/key.h"
#include "backup/manifest.h"
#include "base/error.h"
#include "base/sha256.h"

#define SET_DIRECTORY "sets"
/* The files of a set. */
#define SET_FILE "set.json"
#define SET_DEFINITION "definition"
#define SET_DISKS_MAX 256

struct set_disk {
    char *directory; /* in the root */
    char *node;
    char backup[BACKUP_ID_SIZE];
    char *problem; /* why it cannot be restored, by set_list_examine(); NULL: nothing known */
};

struct set {
    char id[BACKUP_ID_SIZE];
    char *machine;                           /* NULL: not named */
    char *definition;                        /* name of the file it was; NULL: none */
    char definition_sha256[SHA256_HEX_SIZE]; /* "": not known, in sets of earlier versions */
    struct backup_moment begin, end;
    struct set_disk *disks;
    size_t count;
    bool damaged;  /* only the id is known */
    bool denied;   /* damaged is only said because this user may not read it */
    bool has_code; /* of some key, right or wrong */
};

/* That of the repositories of the disks. */
struct set_key {
    const struct backup_key *key;  /* authenticates; NULL: there is none */
    const struct backup_key *seal; /* encrypts both files; NULL: they are not encrypted */
};

/* What is wrong with a description; NULL: nothing. */
const char *set_describe_damage(const struct set *s);

/* Release what `s` holds, and make it empty. */
void set_clear(struct set *s);
/*
 * The set as JSON, with the code of the key (NULL: none) and a checksum at its end: a new
 * reference. NULL: no memory.
 */
struct json_object *set_to_json(const struct set *s, const struct backup_key *key);
/*
 * Read the description of set `id`; checksum and code are removed from `o`. *ret_code: 0, or
 * -EBADMSG if the program has a key, and the description no code or a wrong one: somebody without
 * the key has made or changed it. -EBADMSG: it is damaged; -EKEYREJECTED: it has another key; both
 * with nothing in *ret_set.
 */
int set_from_json(struct json_object *o, const char *id, struct set *ret_set, int *ret_code,
                  struct error *err);

/* What a run has made: the root, and the directory of sets in it. */
struct set_root_made {
    bool root, sets;
};

/*
 * Make the root and its directory of sets, if they are absent. -EINVAL: it is something else.
 * *ret_made is set also on failure. Does not yield.
 */
int set_make_root(const char *root, struct set_root_made *ret_made, struct error *err);
/* Remove what a run that fails has made, where nothing is in it. Does not yield. */
void set_unmake_root(const char *root, const struct set_root_made *made);
/* Whether `name` may be the directory of a disk. */
bool set_name_is_valid(const char *name);
/*
 * An unused id for the current time, which no other run gets: returns a descriptor that keeps it,
 * to be released by set_release(), or -errno. What killed runs have kept is removed. -EEXIST or
 * -EAGAIN: too many runs have begun in this second; -ENOENT: the directory was removed.
 */
int set_reserve(const char *root, char ret_id[static BACKUP_ID_SIZE], struct error *err);
/* Give up what set_reserve() has kept, unless the set was written; close the descriptor. */
void set_release(const char *root, const char *id, int kept);
/* The text of a definition, at most 16 MiB; *ret_text is malloc'ed. */
int set_read_definition(const char *path, char **ret_text, struct error *err);
/*
 * Write a set, whose id is reserved, with the text of a definition (NULL: none), and sync it. It
 * exists when it gets its name, by set_commit(), which needs no more room.
 */
int set_write(const char *root, const struct set *s, const char *definition,
              const struct set_key *key, struct error *err);
int set_commit(const char *root, const struct set *s, struct error *err);

/*
 * Both, for the copy of a set, with the id that it has. -EBUSY: another run does that, or was
 * killed in it: see set_remove_left().
 */
int set_add(const char *root, const struct set *s, const char *definition,
            const struct set_key *key, struct error *err);
/* The same in the place of a damaged set of that id, which goes when the new one is written. */
int set_replace(const char *root, const struct set *s, const char *definition,
                const struct set_key *key, struct error *err);
/*
 * The definition that a set has; *ret_text is malloc'ed. -EBADMSG: it is lost, or not the one that
 * the set was made with; -ENOENT: the set is gone.
 */
int set_load_definition(const char *root, const struct set *s, char **ret_text, struct error *err);
/* Take the checksum of the definition into a set that has none. Errors as above. */
int set_sum_definition(const char *root, struct set *s, struct error *err);

/* Replace the description of a set that exists, in one step. */
int set_rewrite(const char *root, const struct set *s, const struct set_key *key,
                struct error *err);

/* Remove what killed runs have left next to the sets: no reader sees it. */
int set_remove_left(const char *root, struct error *err);

/* Remove a set; the backups stay. */
int set_remove(const char *root, const char *id, struct error *err);

struct set_list {
    struct set *list; /* oldest first */
    size_t count;
};
/*
 * All sets of a root, damaged ones too; with a key, those are damaged that have no code by it.
 * *ret_list is to be cleared by the caller. -ENOKEY: sets are encrypted; -EKEYREJECTED: with
 * another key.
 */
int set_read_all(const char *root, struct set_list *ret_list, struct error *err);
/*
 * A set that counts as damaged because it has no code by the key, or a wrong one: nothing in it is
 * to be believed. -EBADMSG: its description is damaged; others as set_read_all().
 */
int set_read_unproved(const char *root, const char *id, struct set *ret_set, struct error *err);
/*
 * Of sets that are damaged or not whole, forget those that are not there any more: a prune, which
 * removes a set before its backups, did so after the list was read.
 */
void set_list_drop_removed(struct set_list *list, const char *root);
/* Release what the list holds, and make it empty. */
void set_list_clear(struct set_list *list);
/*
 * By id, or by an id that begins so and no other does; NULL: the newest. NULL with `err` set: there
 * is none, or it is damaged.
 */
const struct set *set_find(const struct set_list *list, const char *id, struct error *err);
/*
 * Find out which backups of the sets are gone, damaged, or of another set: `problem` of each. Sets
 * that were removed meanwhile leave the list. 0, -ENOMEM, -ENOKEY, -EKEYREJECTED.
 */
int set_list_examine(struct set_list *list, const char *root, struct error *err);
/* After that: add what the last verification has found (backup/condition.h). Errors as above. */
int set_list_take_found_damage(struct set_list *list, const char *root, struct error *err);
/*
 * Find out which sets are what the manifests of their backups say, which have the code of the
 * program's key: `problem` of each disk that is not. *ret_key is that of the disks; `key` NULL:
 * none of them has one.
 */
int set_list_prove(struct set_list *list, const char *root, struct set_key *ret_key,
                   struct error *err);
/* The first disk of the set with a problem; NULL: there is none. */
const struct set_disk *set_problem_disk(const struct set *s);
/* Whether directory `id` in `dir` is a set, and no backup. */
bool set_is_at(int dir, const char *id);
/*
 * After backups in the directory of one disk, ROOT/DISK, were removed: remove the sets none of
 * whose backups exist any more. A disk whose backups can't be listed counts as one that has them.
 */
int set_remove_empty(const char *disk_directory, struct error *err);

#endif
