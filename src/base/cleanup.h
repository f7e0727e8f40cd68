/* SPDX-License-Identifier: Apache-2.0 */
/* Scoped cleanup: a variable marked AUTO_ is released when its scope ends. None of these yields. */
#ifndef TIDEMARK_BASE_CLEANUP_H
#define TIDEMARK_BASE_CLEANUP_H

#include <stdlib.h>
#include <unistd.h>

/* Calls fn(&variable) at the end of the scope. */
#define CLEANUP(fn) __attribute__((cleanup(fn)))

/* Free the memory that *pointer_to_pointer points to. */
static inline void cleanup_free(void *pointer_to_pointer)
{
    free(*(void **)pointer_to_pointer);
}

/* Close *fd, unless it is negative. */
static inline void cleanup_close(const int *fd)
{
    if (*fd >= 0) {
        close(*fd);
    }
}

/* A pointer that is freed; initialize it, NULL is fine. */
#define AUTO_FREE CLEANUP(cleanup_free)

/* A file descriptor that is closed; initialize it, -1 is fine. */
#define AUTO_CLOSE CLEANUP(cleanup_close)

/* The pointer of an AUTO_FREE variable, which is set to NULL: the caller owns the memory. */
#define TAKE_PTR(var)                                                                              \
    ({                                                                                             \
        __typeof__(var) taken_ = (var);                                                            \
        (var) = NULL;                                                                              \
        taken_;                                                                                    \
    })

/* The same for an AUTO_CLOSE descriptor, which is set to -1. */
#define TAKE_FD(var)                                                                               \
    ({                                                                                             \
        int taken_ = (var);                                                                        \
        (var) = -1;                                                                                \
        taken_;                                                                                    \
    })

#endif
