/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Memory for keys and passphrases. It is erased when it is freed, is left out of core dumps, and is
 * kept out of swap space as far as the process may lock memory. An allocation takes whole pages, so
 * this is for few and long-lived objects. Any thread; nothing here yields.
 */
#ifndef TIDEMARK_BASE_SECRET_MEMORY_H
#define TIDEMARK_BASE_SECRET_MEMORY_H

#include <stdbool.h>
#include <stddef.h>

/* Memory of `size` bytes, zeroed, aligned to 16 bytes; NULL: out of memory. */
void *secret_alloc(size_t size);

/* Erase and free; NULL is fine. */
void secret_free(void *p);

/* As realloc(), erasing the old memory. NULL: out of memory, and `p` is as before. */
void *secret_realloc(void *p, size_t size);

/* Whether two areas are equal, in a time that depends on `size` only. */
bool secret_equal(const void *a, const void *b, size_t size);

/* For AUTO_SECRET: a pointer to secret memory that is freed when its scope ends. */
static inline void secret_cleanup(void *p)
{
    secret_free(*(void **)p);
}
#define AUTO_SECRET __attribute__((cleanup(secret_cleanup)))

#endif
