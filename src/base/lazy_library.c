/* SPDX-License-Identifier: Apache-2.0 */
#include "base/lazy_library.h"

#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <stdbool.h>
#include <string.h>

#include "base/debug.h"

/* guards loading, of all libraries */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static int load_locked(struct lazy_library *lib, struct error *err)
{
    void *handle;

    MUTEX_ASSERT_HELD(&lock);
    handle = dlopen(lib->file, RTLD_NOW | RTLD_LOCAL);
    if (!handle) {
        return error_set(err, ENOENT, "Could not load a library that this needs: %s", dlerror());
    }
    for (size_t i = 0; i < lib->count; i++) {
        void *symbol = dlsym(handle, lib->names[i]);

        if (!symbol) {
            error_set(err, ENOENT, "The library '%s' is not the one that this needs: %s", lib->file,
                      dlerror());
            dlclose(handle);
            return -ENOENT;
        }
        memcpy((char *)lib->table + i * sizeof(symbol), &symbol, sizeof(symbol));
    }
    atomic_store_explicit(&lib->loaded, true, memory_order_release);
    return 0;
}

int lazy_library_load(struct lazy_library *lib, struct error *err)
{
    int r = 0;

    if (atomic_load_explicit(&lib->loaded, memory_order_acquire)) {
        return 0;
    }
    pthread_mutex_lock(&lock);
    if (!lib->loaded) {
        r = load_locked(lib, err);
    }
    pthread_mutex_unlock(&lock);
    return r;
}
