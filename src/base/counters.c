/* SPDX-License-Identifier: Apache-2.0 */
#include "base/counters.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#define CACHE_LINE 64

static _Thread_local unsigned this_index = COUNTERS_SHARDS;

/* Additions without a shard go here. */
static _Alignas(CACHE_LINE) uint8_t nowhere[COUNTERS_SIZE_MAX];

void counters_set_index(unsigned index)
{
    assert(index <= COUNTERS_SHARDS);
    this_index = index;
}

unsigned counters_index(void)
{
    return this_index;
}

size_t stat_table_width(const struct stat_desc *table)
{
    size_t width = 0;

    for (; table->name; table++) {
        width += stat_width(table);
    }
    return width;
}

void counters_init(struct counters *c, size_t size)
{
    assert(size <= COUNTERS_SIZE_MAX);
    c->size = (size + CACHE_LINE - 1) / CACHE_LINE * CACHE_LINE;
    for (unsigned i = 0; i < COUNTERS_SHARDS; i++) {
        atomic_init(&c->shards[i], NULL);
    }
}

void counters_release(struct counters *c)
{
    for (unsigned i = 0; i < COUNTERS_SHARDS; i++) {
        free(atomic_load(&c->shards[i]));
        atomic_store(&c->shards[i], NULL);
    }
}

void *counters_shard_new(struct counters *c, unsigned index)
{
    void *shard = index < COUNTERS_SHARDS ? aligned_alloc(CACHE_LINE, c->size) : NULL;

    if (!shard) {
        return nowhere;
    }
    memset(shard, 0, c->size);
    /* A reader on another thread sees zeroes in it, or later values. */
    atomic_store_explicit(&c->shards[index], shard, memory_order_release);
    return shard;
}

static void merge(const struct stat_desc *table, const struct counter *shard, uint64_t *values)
{
    for (; table->name; table++) {
        for (size_t width = stat_width(table); width > 0; width--) {
            uint64_t value = counter_read(shard++);

            if (table->kind != STAT_PEAK) {
                *values += value;
            } else if (value > *values) {
                *values = value;
            }
            values++;
        }
    }
}

void counters_read(struct counters *c, const struct stat_desc *table, uint64_t *ret_values)
{
    memset(ret_values, 0, stat_table_width(table) * sizeof(*ret_values));
    for (unsigned i = 0; i < COUNTERS_SHARDS; i++) {
        const void *shard = atomic_load_explicit(&c->shards[i], memory_order_acquire);

        if (shard) {
            merge(table, shard, ret_values);
        }
    }
}
