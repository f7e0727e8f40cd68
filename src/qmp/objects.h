/* SPDX-License-Identifier: Apache-2.0 */
/* Objects that only a daemon has: iothread, a reactor that exports can be pinned to. Main reactor only. */
#ifndef TIDEMARK_QMP_OBJECTS_H
#define TIDEMARK_QMP_OBJECTS_H

struct reactor;

/* Add the type. Once, at start. Does not yield. */
void qmp_register_objects(void);

/* NULL if there is none. It cannot be deleted any more then. Does not yield. */
struct reactor *qmp_find_iothread(const char *id);

#endif
