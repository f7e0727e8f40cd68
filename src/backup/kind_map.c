/* SPDX-License-Identifier: Apache-2.0 */
#include "backup/kind_map.h"

#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"

/* Clusters of a group; a leaf has 4 bits for each. */
#define GROUP 128u
#define LEAF_SIZE (GROUP / 2)
#define SLAB_LEAVES 1024u
#define NO_LEAF UINT32_MAX

int kind_map_init(struct kind_map *ret_map, uint64_t count)
{
    *ret_map = (struct kind_map){.count = count, .free_leaf = NO_LEAF};
    ret_map->groups = calloc(count / GROUP + 1, sizeof(*ret_map->groups));
    return ret_map->groups ? 0 : -ENOMEM;
}

void kind_map_clear(struct kind_map *m)
{
    for (size_t i = 0; i < m->slab_count; i++) {
        free(m->slabs[i]);
    }
    free(m->slabs);
    free(m->groups);
    *m = (struct kind_map){.free_leaf = NO_LEAF};
}

/* --- leaves ----------------------------------------------------------------------------------- */

static uint8_t *leaf_at(const struct kind_map *m, uint32_t leaf)
{
    return m->slabs[leaf / SLAB_LEAVES] + (size_t)(leaf % SLAB_LEAVES) * LEAF_SIZE;
}

static int add_slab(struct kind_map *m)
{
    uint8_t **slabs = realloc(m->slabs, (m->slab_count + 1) * sizeof(*slabs));
    uint8_t *slab = malloc((size_t)SLAB_LEAVES * LEAF_SIZE);

    m->slabs = slabs ?: m->slabs;
    if (!slabs || !slab) {
        free(slab);
        return -ENOMEM;
    }
    m->slabs[m->slab_count++] = slab;
    return 0;
}

/* The first bytes of a free leaf are the number of the next one. */
static int take_kind_leaf(struct kind_map *m, unsigned kind, uint32_t *ret_leaf)
{
    uint32_t leaf = m->free_leaf;

    if (leaf != NO_LEAF) {
        memcpy(&m->free_leaf, leaf_at(m, leaf), sizeof(m->free_leaf));
    } else {
        if (m->leaf_count == m->slab_count * SLAB_LEAVES) {
            int r = m->leaf_count < NO_LEAF - KIND_MAP_KINDS - 1 ? add_slab(m) : -ENOMEM;

            if (r < 0) {
                return r;
            }
        }
        leaf = m->leaf_count++;
    }
    memset(leaf_at(m, leaf), (int)(kind | kind << 4), LEAF_SIZE);
    *ret_leaf = leaf;
    return 0;
}

static void give_leaf(struct kind_map *m, uint32_t leaf)
{
    memcpy(leaf_at(m, leaf), &m->free_leaf, sizeof(m->free_leaf));
    m->free_leaf = leaf;
}

static unsigned get_in_leaf(const uint8_t *leaf, unsigned within)
{
    return leaf[within / 2] >> within % 2 * 4 & 0xf;
}

static void set_kind_in_leaf(uint8_t *leaf, unsigned within, unsigned kind)
{
    unsigned shift = within % 2 * 4;

    leaf[within / 2] = (uint8_t)((leaf[within / 2] & 0xf0 >> shift) | kind << shift);
}

/* Whether all clusters of a leaf are of the kind. */
static bool is_uniform(const uint8_t *leaf, unsigned kind)
{
    return leaf[0] == (kind | kind << 4) && memcmp(leaf, leaf + 1, LEAF_SIZE - 1) == 0;
}

/* --- clusters --------------------------------------------------------------------------------- */

unsigned kind_map_get(const struct kind_map *m, uint64_t index)
{
    uint32_t group = m->groups[index / GROUP];

    return group < KIND_MAP_KINDS ? group
                                  : get_in_leaf(leaf_at(m, group - KIND_MAP_KINDS), index % GROUP);
}

/* A part of a group. */
static int set_kind_part(struct kind_map *m, uint32_t *group, unsigned within, unsigned count,
                         unsigned kind)
{
    uint8_t *leaf;

    if (*group == kind) {
        return 0;
    }
    if (*group < KIND_MAP_KINDS) {
        uint32_t number;
        int r = take_kind_leaf(m, *group, &number);

        if (r < 0) {
            return r;
        }
        *group = number + KIND_MAP_KINDS;
    }
    leaf = leaf_at(m, *group - KIND_MAP_KINDS);
    for (unsigned i = within; i < within + count; i++) {
        set_kind_in_leaf(leaf, i, kind);
    }
    if (is_uniform(leaf, kind)) {
        give_leaf(m, *group - KIND_MAP_KINDS);
        *group = kind;
    }
    return 0;
}

int kind_map_set(struct kind_map *m, uint64_t first, uint64_t count, unsigned kind)
{
    while (count > 0) {
        uint32_t *group = &m->groups[first / GROUP];
        unsigned within = first % GROUP, n = (unsigned)MIN(count, (uint64_t)GROUP - within);

        if (n == GROUP) {
            if (*group >= KIND_MAP_KINDS) {
                give_leaf(m, *group - KIND_MAP_KINDS);
            }
            *group = kind;
        } else {
            int r = set_kind_part(m, group, within, n, kind);

            if (r < 0) {
                return r;
            }
        }
        first += n;
        count -= n;
    }
    return 0;
}

uint64_t kind_map_run_end(const struct kind_map *m, uint64_t first, uint64_t end)
{
    unsigned kind = kind_map_get(m, first);

    while (first < end) {
        uint32_t group = m->groups[first / GROUP];

        if (group < KIND_MAP_KINDS) {
            if (group != kind) {
                return first;
            }
            first = round_up(first + 1, GROUP);
        } else if (get_in_leaf(leaf_at(m, group - KIND_MAP_KINDS), first % GROUP) == kind) {
            first++;
        } else {
            return first;
        }
    }
    return end;
}
