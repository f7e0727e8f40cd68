/* SPDX-License-Identifier: Apache-2.0 */
/*
 * User-creatable objects: what --object and object-add make, known by an id for those who use it
 * later. Layers register the types they have. Main reactor only. None of these functions yields.
 */
#ifndef TIDEMARK_BLOCK_USER_OBJECT_H
#define TIDEMARK_BLOCK_USER_OBJECT_H

#include "base/error.h"
#include "block/options.h"

struct user_object;

struct user_object_type {
    const char *name; /* the "qom-type" */
    /*
     * Make one from what it takes of `opts` (without qom-type and id; what is left is refused). 0
     * or -errno.
     */
    int (*create)(const char *id, struct options *opts, void **ret, struct error *err);
    void (*destroy)(void *data);
    const char *const
        *options; /* what create() takes, for --help: "name=<type>", sorted; NULL ends it */
};

/* Once, at start; the type lives as long as the process. */
void user_object_register_type(const struct user_object_type *type);

/* Sorted by name: NULL begins, NULL ends. */
const struct user_object_type *user_object_next_type(const struct user_object_type *type);

/*
 * Make the object that `opts` (consumed; members qom-type and id) describes. -EINVAL: type unknown,
 * id malformed, options wrong; -EEXIST: the id is taken.
 */
int user_object_add(struct options *opts, struct error *err);

/* Destroy it. -ENOENT; -EBUSY while somebody holds a reference. */
int user_object_del(const char *id, struct error *err);

/* A reference, which keeps it from being deleted; NULL if there is none of this id. */
struct user_object *user_object_ref(const char *id);
void user_object_unref(struct user_object *o); /* NULL is fine */

const struct user_object_type *user_object_type_of(const struct user_object *o);
void *user_object_data(const struct user_object *o); /* what create() returned */

/* Destroy all, newest first: at the end of the process, when nothing uses them any more. */
void user_objects_release(void);

/* --- the type "secret" (secret.c) --- */

void secret_register_type(void);
/*
 * The bytes of a secret, with a NUL behind them (malloc'ed). -ENOENT; -EINVAL if the object is
 * none.
 */
int secret_get(const char *id, char **ret, size_t *ret_size, struct error *err);

#endif
