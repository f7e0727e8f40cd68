/* SPDX-License-Identifier: Apache-2.0 */
/*
 * User-creatable objects: made by --object and object-add, and found by an id. Layers register the
 * types that they have. Main reactor only, unless said otherwise. Only user_object_co_add() yields.
 */
#ifndef TIDEMARK_BLOCK_USER_OBJECT_H
#define TIDEMARK_BLOCK_USER_OBJECT_H

#include "base/error.h"
#include "block/options.h"
#include "schema/schema.h"

struct user_object;

struct user_object_type {
    const char *name;   /* the "qom-type" */
    const char *parent; /* what QEMU derives the type from; NULL: "object" */
    /*
     * Make an object of the options that it takes from `opts`, which has no qom-type and id; the
     * caller refuses what is left. 0 or -errno.
     */
    int (*create)(const char *id, struct options *opts, void **ret_data, struct error *err);
    /*
     * create() reads files, which may hang: user_object_co_add() runs it on a thread of the offload
     * pool. It uses nothing of the main reactor but what is for any thread.
     */
    bool reads_files;
    void (*destroy)(void *data);
    /* The options of create(): a ...Properties of QEMU's schema. */
    const struct schema_type *properties;
    /* Names of options that are not shown; the last is NULL. NULL: all are. */
    const char *const *hidden;
    /*
     * The value of a property, a new reference; NULL: it is the option, or its default value. May
     * be NULL.
     */
    struct json_object *(*get)(void *data, const char *name);
    /*
     * Change a property of an object that may be in use; the value has the type of the property,
     * unless that is an object. 0 or -errno: nothing has changed. -EACCES without a sentence: it
     * can't be changed. NULL: none can.
     */
    int (*set)(void *data, const char *name, struct json_object *value, struct error *err);
    /* What it is for: one line without a full stop. */
    const char *help;
};

/* Once, at start; the type lives as long as the process. */
void user_object_register_type(const struct user_object_type *type);

/* ObjectOptions: a union over the types that are registered. */
extern const struct schema_type user_object_options_type;

/* Iterate over types, sorted by name: NULL begins, NULL ends. */
const struct user_object_type *user_object_next_type(const struct user_object_type *type);

/*
 * Make the object that `opts` (consumed; members qom-type and id) describes, which are checked
 * against the type. -EINVAL: type unknown, id malformed, options wrong; -EEXIST: the id is taken.
 */
int user_object_add(struct options *opts, struct error *err);
/*
 * As user_object_add(), for a program that serves others: the control lock is paused while files
 * are read. Until then the id is taken, but no object has it. Yields.
 */
int user_object_co_add(struct options *opts, struct error *err);

/* Destroy the object of that id. -ENOENT; -EBUSY while somebody has a reference. */
int user_object_del(const char *id, struct error *err);

/* Take a reference, which prevents deletion; NULL: no object has this id. Any thread. */
struct user_object *user_object_ref(const char *id);
/* Another reference of one that the caller has, or that somebody keeps meanwhile. Any thread. */
void user_object_hold(struct user_object *o);
void user_object_unref(struct user_object *o); /* NULL is fine. Any thread. */

/* Its type. Any thread. */
const struct user_object_type *user_object_type_of(const struct user_object *o);
void *user_object_data(const struct user_object *o); /* what create() returned. Any thread. */

/* Its id. */
const char *user_object_id(const struct user_object *o);
/* Iterate over objects, oldest first: NULL begins, NULL ends. No reference is taken. */
struct user_object *user_object_next(struct user_object *o);
/*
 * The value of a property: *ret_value gets a new reference. -ENOENT: the type has no such property;
 * -EACCES: it is not shown.
 */
int user_object_get(struct user_object *o, const char *name, struct json_object **ret_value,
                    struct error *err);
/* Change it. -ENOENT; -EACCES: it can't be changed; -EINVAL: the value does not fit. */
int user_object_set(struct user_object *o, const char *name, struct json_object *value,
                    struct error *err);

/* Destroy all objects, newest first, at the end of the process. */
void user_objects_release(void);

/* --- the type "secret" (secret.c) --- */

/* Register it; once, at start. */
void secret_register_type(void);
/*
 * A copy of the bytes of a secret, followed by a NUL, in secret memory; the caller frees it by
 * secret_free(). *ret_size does not count the NUL. -ENOENT; -EINVAL: the object is not a secret.
 * Any thread.
 */
int secret_get(const char *id, char **ret_text, size_t *ret_size, struct error *err);

#endif
