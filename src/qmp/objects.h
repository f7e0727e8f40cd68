/* SPDX-License-Identifier: Apache-2.0 */
/* Objects that only a daemon has: iothread, a reactor that exports can be pinned to. Main reactor only. */
#ifndef TIDEMARK_QMP_OBJECTS_H
#define TIDEMARK_QMP_OBJECTS_H

struct reactor;
struct user_object;

/* Add the type. Once, at start. Does not yield. */
void qmp_register_objects(void);

/*
 * NULL if there is none. *ret_object keeps it from being deleted, until the caller gives that reference back: when nothing of his
 * runs there any more. Does not yield.
 */
struct reactor *qmp_find_iothread(const char *id, struct user_object **ret_object);

#endif
