/* SPDX-License-Identifier: Apache-2.0 */
/*
 * errno, asked for anew each time. A coroutine may go on on another thread than the one it was suspended on, and the C
 * library lets compilers remember, for the length of a function, where errno is. Included ahead of every source file.
 */
#ifndef TIDEMARK_BASE_THIS_ERRNO_H
#define TIDEMARK_BASE_THIS_ERRNO_H

#include <errno.h>

static inline int *errno_of_this_thread(void)
{
    int *(*location)(void) = __errno_location;

    /* A pointer of which the compiler knows nothing any more. */
    __asm__("" : "+r"(location));
    return location();
}

#undef errno
#define errno (*errno_of_this_thread())

#endif
