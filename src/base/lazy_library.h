/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A shared library that few runs need: it is loaded when it is first needed, as loading takes longer than most of what a tool is
 * called for. What uses this is written by tools/lazy-library.
 */
#ifndef TIDEMARK_BASE_LAZY_LIBRARY_H
#define TIDEMARK_BASE_LAZY_LIBRARY_H

#include <stdatomic.h>
#include <stddef.h>

#include "base/error.h"

struct lazy_library {
    const char *file;         /* its soname */
    const char *const *names; /* of the symbols */
    size_t count;             /* of them */
    void *table;              /* `count` pointers, in the order of the names; set when loaded */
    atomic_bool loaded;
};

/* Have it loaded; it stays. -ENOENT if it, or one of its symbols, is not there. Any thread; may block, does not yield. */
int lazy_library_load(struct lazy_library *lib, struct error *err);

#endif
