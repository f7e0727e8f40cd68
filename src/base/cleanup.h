/* SPDX-License-Identifier: Apache-2.0 */
/* Scoped cleanup: a variable marked with one of these is released when its scope ends. */
#ifndef TIDEMARK_BASE_CLEANUP_H
#define TIDEMARK_BASE_CLEANUP_H

#include <stdlib.h>
#include <unistd.h>

#define CLEANUP(fn) __attribute__((cleanup(fn)))

static inline void cleanup_free(void *pointer_to_pointer)
{
    free(*(void **)pointer_to_pointer);
}

static inline void cleanup_close(const int *fd)
{
    if (*fd >= 0) {
        close(*fd);
    }
}

#define AUTO_FREE CLEANUP(cleanup_free)
#define AUTO_CLOSE CLEANUP(cleanup_close)

/* Take a pointer out of an AUTO_FREE variable, so that it outlives the scope. */
#define TAKE_PTR(var)                                                                              \
    ({                                                                                             \
        __typeof__(var) taken_ = (var);                                                            \
        (var) = NULL;                                                                              \
        taken_;                                                                                    \
    })

/* The same for an AUTO_CLOSE descriptor. */
#define TAKE_FD(var)                                                                               \
    ({                                                                                             \
        int taken_ = (var);                                                                        \
        (var) = -1;                                                                                \
        taken_;                                                                                    \
    })

#endif
