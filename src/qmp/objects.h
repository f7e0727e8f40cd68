/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Objects that only a daemon has: an iothread is a reactor that exports can be bound to. Main
 * reactor only.
 */
#ifndef TIDEMARK_QMP_OBJECTS_H
#define TIDEMARK_QMP_OBJECTS_H

struct reactor;
struct block_node;
struct user_object;

/* Register the type. Once, at start. Does not yield. */
void qmp_register_objects(void);

/*
 * The reactor of the iothread `id`; NULL if there is none. *ret_object is a reference, which keeps
 * the iothread from being deleted: the caller gives it back (user_object_unref()) when nothing that
 * it has started runs there. Does not yield.
 */
struct reactor *qmp_find_iothread(const char *id, struct user_object **ret_object);

/*
 * The thread that exports of a node are served in by default: that of the node, or of one below.
 * NULL: none. No reference is taken.
 */
struct user_object *qmp_iothread_of_node(struct block_node *node);

#endif
