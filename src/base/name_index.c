/* SPDX-License-Identifier: Apache-2.0 */
#include "base/name_index.h"

#include <stdlib.h>
#include <string.h>

#define FIRST_BUCKETS 64

/* FNV-1a, 32 bits. */
static uint32_t hash_of_name(const char *name)
{
    uint32_t hash = 2166136261u;

    for (; *name; name++) {
        hash = (hash ^ (unsigned char)*name) * 16777619u;
    }
    return hash;
}

static struct name_entry **name_bucket(const struct name_index *index, uint32_t hash)
{
    return index->buckets ? &index->buckets[hash & (index->bucket_count - 1)]
                          : (struct name_entry **)(uintptr_t)&index->only;
}

static void put_in_bucket(struct name_index *index, struct name_entry *entry)
{
    struct name_entry **bucket = name_bucket(index, entry->hash);

    entry->next = *bucket;
    *bucket = entry;
}

/* Entries of a bucket change their order: put them back from the last on. */
static struct name_entry *reversed_bits(struct name_entry *chain)
{
    struct name_entry *result = NULL;

    while (chain) {
        struct name_entry *entry = chain;

        chain = entry->next;
        entry->next = result;
        result = entry;
    }
    return result;
}

/* Without memory the table stays as it is. */
static void grow_index(struct name_index *index)
{
    size_t old_count = index->buckets ? index->bucket_count : 1;
    struct name_entry **old = index->buckets ? index->buckets : &index->only;
    size_t count = index->buckets ? 2 * old_count : FIRST_BUCKETS;
    struct name_entry **buckets = calloc(count, sizeof(struct name_entry *));
    struct name_index grown = {.buckets = buckets, .bucket_count = count, .count = index->count};

    if (!buckets) {
        return;
    }
    for (size_t i = 0; i < old_count; i++) {
        struct name_entry *entry = reversed_bits(old[i]);

        while (entry) {
            struct name_entry *next = entry->next;

            put_in_bucket(&grown, entry);
            entry = next;
        }
    }
    free(index->buckets);
    *index = grown;
}

void name_index_add(struct name_index *index, struct name_entry *entry, const char *name)
{
    if (!index->buckets || index->count >= index->bucket_count) {
        grow_index(index);
    }
    entry->name = name;
    entry->hash = hash_of_name(name);
    put_in_bucket(index, entry);
    index->count++;
}

void name_index_remove(struct name_index *index, struct name_entry *entry)
{
    struct name_entry **place;

    if (!entry->name) {
        return;
    }
    place = name_bucket(index, entry->hash);
    while (*place != entry) {
        place = &(*place)->next;
    }
    *place = entry->next;
    *entry = (struct name_entry){0};
    index->count--;
}

static struct name_entry *first_of_name(struct name_entry *entry, uint32_t hash, const char *name)
{
    while (entry && (entry->hash != hash || strcmp(entry->name, name) != 0)) {
        entry = entry->next;
    }
    return entry;
}

struct name_entry *name_index_find(const struct name_index *index, const char *name)
{
    uint32_t hash = hash_of_name(name);

    return first_of_name(*name_bucket(index, hash), hash, name);
}

struct name_entry *name_index_find_next(const struct name_entry *entry)
{
    return first_of_name(entry->next, entry->hash, entry->name);
}
