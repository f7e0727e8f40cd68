/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Access to big- and little-endian numbers at any address, for file formats and network protocols:
 * load_be16() to load_le64(), store_be16() to store_le64(). None of these yields.
 */
#ifndef TIDEMARK_BASE_BYTEORDER_H
#define TIDEMARK_BASE_BYTEORDER_H

#include <endian.h>
#include <stdint.h>
#include <string.h>

#define BYTEORDER_ACCESSORS_(bits)                                                                 \
    static inline uint##bits##_t load_be##bits(const void *p)                                      \
    {                                                                                              \
        uint##bits##_t v;                                                                          \
        memcpy(&v, p, sizeof(v));                                                                  \
        return be##bits##toh(v);                                                                   \
    }                                                                                              \
    static inline uint##bits##_t load_le##bits(const void *p)                                      \
    {                                                                                              \
        uint##bits##_t v;                                                                          \
        memcpy(&v, p, sizeof(v));                                                                  \
        return le##bits##toh(v);                                                                   \
    }                                                                                              \
    static inline void store_be##bits(void *p, uint##bits##_t v)                                   \
    {                                                                                              \
        v = htobe##bits(v);                                                                        \
        memcpy(p, &v, sizeof(v));                                                                  \
    }                                                                                              \
    static inline void store_le##bits(void *p, uint##bits##_t v)                                   \
    {                                                                                              \
        v = htole##bits(v);                                                                        \
        memcpy(p, &v, sizeof(v));                                                                  \
    }

BYTEORDER_ACCESSORS_(16)
BYTEORDER_ACCESSORS_(32)
BYTEORDER_ACCESSORS_(64)

/* Store the characters of a signature, without the NUL at its end. */
static inline void store_signature(uint8_t *to, const char *text)
{
    while (*text) {
        *to++ = (uint8_t)*text++;
    }
}

#endif
