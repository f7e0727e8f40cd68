/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Makes errno look up its address at each use. A coroutine may continue on another thread than the
 * one on which it was suspended, and the C library allows compilers to keep the address of errno
 * for the length of a function. The build includes this header before every source file.
 */
#ifndef TIDEMARK_BASE_THIS_ERRNO_H
#define TIDEMARK_BASE_THIS_ERRNO_H

#include <errno.h>

/* The address of the calling thread's errno. Does not yield. */
static inline int *errno_of_this_thread(void)
{
    int *(*location)(void) = __errno_location;

    /* The compiler no longer knows which function this is, and so must call it. */
    __asm__("" : "+r"(location));
    return location();
}

#undef errno
#define errno (*errno_of_this_thread())

#endif
