/* SPDX-License-Identifier: Apache-2.0 */
#include "http/cache.h"

#include <stdlib.h>
#include <string.h>

#include "base/checked.h"

struct cached_block {
    struct list in_bucket, by_use;
    uint64_t number;
    size_t size;
    uint8_t data[HTTP_BLOCK];
};

void http_cache_init(struct http_cache *c, uint64_t bytes)
{
    pthread_mutex_init(&c->lock, NULL);
    for (unsigned i = 0; i < HTTP_CACHE_BUCKETS; i++) {
        list_init(&c->buckets[i]);
    }
    list_init(&c->by_use);
    c->count = 0;
    c->max = MAX(bytes / HTTP_BLOCK, 1);
}

static void drop_block(struct http_cache *c, struct cached_block *b)
{
    list_remove(&b->in_bucket);
    list_remove(&b->by_use);
    free(b);
    c->count--;
}

void http_cache_destroy(struct http_cache *c)
{
    while (!list_is_empty(&c->by_use)) {
        drop_block(c, LIST_FIRST(&c->by_use, struct cached_block, by_use));
    }
    pthread_mutex_destroy(&c->lock);
}

static struct cached_block *find_block_locked(struct http_cache *c, uint64_t number)
{
    struct cached_block *b;

    LIST_FOREACH (b, &c->buckets[number % HTTP_CACHE_BUCKETS], in_bucket) {
        if (b->number == number) {
            return b;
        }
    }
    return NULL;
}

size_t http_cache_copy(struct http_cache *c, uint64_t offset, struct iov iov, size_t at)
{
    size_t from = offset % HTTP_BLOCK, n = 0;
    struct cached_block *b;

    pthread_mutex_lock(&c->lock);
    b = find_block_locked(c, offset / HTTP_BLOCK);
    if (b && from < b->size) {
        n = MIN(b->size - from, iov.size - at);
        iov_copy_from_buf(iov, at, b->data + from, n);
        list_remove(&b->by_use);
        list_append(&c->by_use, &b->by_use);
    }
    pthread_mutex_unlock(&c->lock);
    return n;
}

bool http_cache_has(struct http_cache *c, uint64_t offset)
{
    bool has;

    pthread_mutex_lock(&c->lock);
    has = find_block_locked(c, offset / HTTP_BLOCK) != NULL;
    pthread_mutex_unlock(&c->lock);
    return has;
}

static void add_block_locked(struct http_cache *c, uint64_t number, const uint8_t *data,
                             size_t size)
{
    struct cached_block *b = find_block_locked(c, number);

    if (b) {
        return;
    }
    while (c->count >= c->max) {
        drop_block(c, LIST_FIRST(&c->by_use, struct cached_block, by_use));
    }
    b = malloc(sizeof(*b));
    if (b) {
        b->number = number;
        b->size = size;
        memcpy(b->data, data, size);
        list_append(&c->buckets[number % HTTP_CACHE_BUCKETS], &b->in_bucket);
        list_append(&c->by_use, &b->by_use);
        c->count++;
    }
}

void http_cache_add(struct http_cache *c, uint64_t offset, const uint8_t *data, size_t size)
{
    pthread_mutex_lock(&c->lock);
    for (size_t at = 0; at < size; at += HTTP_BLOCK) {
        add_block_locked(c, (offset + at) / HTTP_BLOCK, data + at, MIN(size - at, HTTP_BLOCK));
    }
    pthread_mutex_unlock(&c->lock);
}
