/* SPDX-License-Identifier: Apache-2.0 */
/* User-creatable objects (--object). Of QEMU's there is one that matters here: iothread. Main reactor only. */
#ifndef TIDEMARK_QMP_OBJECTS_H
#define TIDEMARK_QMP_OBJECTS_H

#include "base/error.h"
#include "block/options.h"

struct reactor;

/*
 * Make the object that `opts` (consumed; members qom-type and id) describes. An iothread is a reactor, which exports
 * can be pinned to. Other types are refused by name: -ENOTSUP. Does not yield.
 */
int qmp_object_add(struct options *opts, struct error *err);

/* NULL if there is none. Does not yield. */
struct reactor *qmp_find_iothread(const char *id);

/* At the end of the process, when nothing runs on them any more. */
void qmp_objects_release(void);

#endif
