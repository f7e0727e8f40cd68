/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What was read from a web server lately: blocks of a file, the one that was used longest ago goes
 * first. Any thread; does not yield.
 */
#ifndef TIDEMARK_HTTP_CACHE_H
#define TIDEMARK_HTTP_CACHE_H

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/checked.h"
#include "base/iov.h"
#include "base/list.h"

#define HTTP_BLOCK (64 * KiB)
#define HTTP_CACHE_BUCKETS 64u

struct http_cache {
    pthread_mutex_t lock;                    /* guards all below */
    struct list buckets[HTTP_CACHE_BUCKETS]; /* of struct cached_block, by number */
    struct list by_use;                      /* the one that was used longest ago first */
    size_t count, max;
};

/* Empty; at most `bytes` are kept, but one block in any case. */
void http_cache_init(struct http_cache *c, uint64_t bytes);
void http_cache_destroy(struct http_cache *c);

/*
 * Copy to the bytes of `iov` from `at` on what the block with `offset` of the file has from there
 * on. Returns how many bytes; 0: the block is not there.
 */
size_t http_cache_copy(struct http_cache *c, uint64_t offset, struct iov iov, size_t at);
/* Whether the block with this offset is there. */
bool http_cache_has(struct http_cache *c, uint64_t offset);
/*
 * Keep `size` bytes of the file from `offset` on, a multiple of HTTP_BLOCK. What the last block
 * lacks is past the end of the file. For lack of memory some blocks are not kept.
 */
void http_cache_add(struct http_cache *c, uint64_t offset, const uint8_t *data, size_t size);

#endif
