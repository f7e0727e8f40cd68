/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Shared libraries that few runs need. Loading them takes longer than a short command, so each is
 * loaded at its first use. tools/lazy-library writes the code that calls this.
 */
#ifndef TIDEMARK_BASE_LAZY_LIBRARY_H
#define TIDEMARK_BASE_LAZY_LIBRARY_H

#include <stdatomic.h>
#include <stddef.h>

#include "base/error.h"

struct lazy_library {
    /* the soname */
    const char *file;
    /* of the symbols that are needed, `count` */
    const char *const *names;
    size_t count;
    /* `count` pointers to functions, in the order of `names`; set when loaded */
    void *table;
    atomic_bool loaded;
};

/*
 * Load the library, if it is not loaded yet; it stays loaded. Returns 0, or -ENOENT if the library
 * or one of the symbols does not exist. Any thread; blocks, but does not yield.
 */
int lazy_library_load(struct lazy_library *lib, struct error *err);

#endif
