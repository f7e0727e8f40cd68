/* SPDX-License-Identifier: Apache-2.0 */
#include "filter/discard_parts.h"

#include <stdlib.h>
#include <string.h>

#include "base/checked.h"

/* Most clusters, and most pieces of a cluster that do not touch: half a megabyte in all. */
#define CLUSTERS_MAX 1024
#define PIECES_MAX 64u

struct piece {
    uint32_t from, to;
};

struct part_cluster {
    struct list in_bucket, in_age;
    uint64_t number;
    /* in order; no two of them touch */
    unsigned count;
    struct piece pieces[PIECES_MAX];
};

void discard_parts_init(struct discard_parts *p)
{
    for (unsigned i = 0; i < DISCARD_PARTS_BUCKETS; i++) {
        list_init(&p->buckets[i]);
    }
    list_init(&p->by_age);
    p->count = 0;
}

static void forget_cluster(struct discard_parts *p, struct part_cluster *c)
{
    list_remove(&c->in_bucket);
    list_remove(&c->in_age);
    p->count--;
    free(c);
}

void discard_parts_clear(struct discard_parts *p)
{
    while (!list_is_empty(&p->by_age)) {
        forget_cluster(p, LIST_FIRST(&p->by_age, struct part_cluster, in_age));
    }
}

/* Find the cluster, or remember it without pieces. NULL if out of memory. */
static struct part_cluster *find_part_cluster(struct discard_parts *p, uint64_t number)
{
    struct list *bucket = &p->buckets[number % DISCARD_PARTS_BUCKETS];
    struct part_cluster *c;

    LIST_FOREACH (c, bucket, in_bucket) {
        if (c->number == number) {
            list_remove(&c->in_age);
            list_append(&p->by_age, &c->in_age);
            return c;
        }
    }
    if (p->count == CLUSTERS_MAX) {
        forget_cluster(p, LIST_FIRST(&p->by_age, struct part_cluster, in_age));
    }
    c = calloc(1, sizeof(*c));
    if (c) {
        c->number = number;
        list_append(bucket, &c->in_bucket);
        list_append(&p->by_age, &c->in_age);
        p->count++;
    }
    return c;
}

/* Add [from, to), joined with the pieces that it touches; without room for it nothing changes. */
static void add_discarded_piece(struct part_cluster *c, uint32_t from, uint32_t to)
{
    unsigned first = 0, last;

    while (first < c->count && c->pieces[first].to < from) {
        first++;
    }
    last = first;
    while (last < c->count && c->pieces[last].from <= to) {
        last++;
    }
    /* [first, last) touch the new piece, and become one with it. */
    if (last > first) {
        from = MIN(from, c->pieces[first].from);
        to = MAX(to, c->pieces[last - 1].to);
    } else if (c->count == PIECES_MAX) {
        return;
    }
    memmove(&c->pieces[first + 1], &c->pieces[last], (c->count - last) * sizeof(c->pieces[0]));
    c->count = c->count - (last - first) + 1;
    c->pieces[first] = (struct piece){from, to};
}

bool discard_parts_add(struct discard_parts *p, uint64_t number, uint32_t size, uint32_t from,
                       uint32_t to)
{
    struct part_cluster *c = find_part_cluster(p, number);

    if (!c) {
        return false;
    }
    add_discarded_piece(c, from, to);
    if (c->pieces[0].from > 0 || c->pieces[0].to < size) {
        return false;
    }
    forget_cluster(p, c);
    return true;
}
