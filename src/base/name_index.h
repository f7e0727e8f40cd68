/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Finds entries by their names, however many there are: a hash table whose links are members of the
 * entries, as those of lists are. Several entries may have the same name. Without memory to grow it
 * becomes slow, but nothing fails. No locks; none of these yields.
 */
#ifndef TIDEMARK_BASE_NAME_INDEX_H
#define TIDEMARK_BASE_NAME_INDEX_H

#include <stddef.h>
#include <stdint.h>

/* A member of the entry; all zero while it is in no index. */
struct name_entry {
    const char *name; /* borrowed; NULL: in no index */
    struct name_entry *next;
    uint32_t hash;
};

/* All zero at first. It keeps its memory, which depends on how many entries there were at most. */
struct name_index {
    struct name_entry **buckets; /* owned; NULL: `only` is the one bucket */
    size_t bucket_count;         /* a power of two */
    size_t count;
    struct name_entry *only;
};

/* Add an entry that is in no index; `name` stays valid until the entry is removed. */
void name_index_add(struct name_index *index, struct name_entry *entry, const char *name);
/* Nothing happens if the entry is in no index. */
void name_index_remove(struct name_index *index, struct name_entry *entry);

/* The entry of this name that was added last; NULL: there is none. */
struct name_entry *name_index_find(const struct name_index *index, const char *name);
/* The entry of the same name that was added before this one; NULL: there is none. */
struct name_entry *name_index_find_next(const struct name_entry *entry);

#endif
