/* SPDX-License-Identifier: Apache-2.0 */
#include "filter/held_data.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define BUCKETS 4096u
#define DATA_ALIGNMENT 4096u
#define SLAB_ITEMS 64u
/* Bytes of items that should be spare. */
#define SPARE_BYTES (4 * MiB)

struct held_slab {
    struct list link; /* in h->slabs */
    uint8_t *data;    /* of all items */
    struct held_item items[SLAB_ITEMS];
};

void held_init(struct held_data *h)
{
    *h = (struct held_data){.buckets = NULL};
    list_init(&h->order);
    list_init(&h->spare);
    list_init(&h->slabs);
}

int held_allow(struct held_data *h, uint32_t cluster, uint32_t unit, uint64_t limit)
{
    if (unit > HELD_MAX) {
        return 0;
    }
    h->buckets = calloc(BUCKETS, sizeof(*h->buckets));
    if (!h->buckets) {
        return -ENOMEM;
    }
    for (unsigned i = 0; i < BUCKETS; i++) {
        list_init(&h->buckets[i]);
    }
    h->cluster = cluster;
    h->unit = unit;
    h->limit = limit;
    return 0;
}

static void destroy_item(struct held_item *item)
{
    free(item->data);
    free(item);
}

static void free_slab(struct held_slab *slab)
{
    free(slab->data);
    free(slab);
}

void held_destroy(struct held_data *h)
{
    struct held_slab *slab, *next_slab;
    struct held_item *item, *next;

    LIST_FOREACH_SAFE (item, next, &h->order, in_order) {
        if (item->length != h->unit) {
            destroy_item(item);
        }
    }
    LIST_FOREACH_SAFE (slab, next_slab, &h->slabs, link) {
        free_slab(slab);
    }
    free(h->buckets);
    h->buckets = NULL;
}

bool held_is_empty(const struct held_data *h)
{
    return h->count == 0;
}

uint64_t held_bytes(const struct held_data *h)
{
    return h->table_bytes;
}

bool held_has_room(const struct held_data *h)
{
    return h->bytes < h->limit;
}

/* --- items ------------------------------------------------------------------------------------ */

static struct held_item *new_item(uint64_t length)
{
    struct held_item *item = calloc(1, sizeof(*item));
    void *data;

    if (!item || posix_memalign(&data, DATA_ALIGNMENT, length)) {
        free(item);
        return NULL;
    }
    item->data = data;
    list_init(&item->in_bucket);
    list_init(&item->in_order);
    return item;
}

bool held_wants_slab(const struct held_data *h)
{
    return (uint64_t)h->spare_count * h->unit < SPARE_BYTES && h->slab_bytes < h->limit;
}

struct held_slab *held_new_slab(uint32_t unit)
{
    struct held_slab *slab = calloc(1, sizeof(*slab));
    void *data;

    if (!slab || posix_memalign(&data, DATA_ALIGNMENT, (size_t)SLAB_ITEMS * unit)) {
        free(slab);
        return NULL;
    }
    slab->data = data;
    memset(data, 0, (size_t)SLAB_ITEMS * unit);
    return slab;
}

void held_add_slab(struct held_data *h, struct held_slab *slab)
{
    for (unsigned i = 0; i < SLAB_ITEMS; i++) {
        struct held_item *item = &slab->items[i];

        item->data = slab->data + (size_t)i * h->unit;
        list_init(&item->in_bucket);
        list_init(&item->in_order);
        list_append(&h->spare, &item->in_order);
    }
    list_append(&h->slabs, &slab->link);
    h->spare_count += SLAB_ITEMS;
    h->slab_bytes += (uint64_t)SLAB_ITEMS * h->unit;
}

static struct held_item *take_spare_item(struct held_data *h)
{
    struct held_item *item;

    if (list_is_empty(&h->spare)) {
        struct held_slab *slab = held_new_slab(h->unit);

        if (!slab) {
            return NULL;
        }
        held_add_slab(h, slab);
    }
    item = LIST_FIRST(&h->spare, struct held_item, in_order);
    list_remove(&item->in_order);
    h->spare_count--;
    return item;
}

struct held_item *held_reserve(struct held_data *h, uint64_t offset, uint64_t length)
{
    struct held_item *item;

    if (!h->buckets || length > HELD_MAX || h->bytes + length > h->limit) {
        return NULL;
    }
    item = length == h->unit ? take_spare_item(h) : new_item(length);
    if (item) {
        item->offset = offset;
        item->length = length;
        item->taken = false;
        h->bytes += length;
    }
    return item;
}

void held_free(struct held_data *h, struct held_item *item)
{
    h->bytes -= item->length;
    if (item->length == h->unit) {
        list_prepend(&h->spare, &item->in_order);
        h->spare_count++;
    } else {
        destroy_item(item);
    }
}

static struct list *held_bucket_of(const struct held_data *h, uint64_t offset)
{
    return &h->buckets[offset / h->cluster % BUCKETS];
}

void held_add(struct held_data *h, struct held_item *item)
{
    list_append(held_bucket_of(h, item->offset), &item->in_bucket);
    list_append(&h->order, &item->in_order);
    h->count++;
    h->table_bytes += item->length;
}

/* --- a cluster -------------------------------------------------------------------------------- */

/* Of the items in one cluster, the first IDLE one that ends after `offset`; NULL: none. */
static struct held_item *first_idle_in_cluster(const struct held_data *h, uint64_t offset)
{
    uint64_t cluster = offset / h->cluster;
    struct held_item *item, *first = NULL;

    LIST_FOREACH (item, held_bucket_of(h, offset), in_bucket) {
        if (!item->taken && item->offset / h->cluster == cluster &&
            item->offset + item->length > offset && (!first || item->offset < first->offset)) {
            first = item;
        }
    }
    return first;
}

bool held_next(const struct held_data *h, uint64_t offset, uint64_t end, uint64_t *ret_offset,
               uint64_t *ret_length)
{
    if (h->count == 0) {
        return false;
    }
    while (offset < end) {
        const struct held_item *item = first_idle_in_cluster(h, offset);

        if (item && item->offset < end) {
            *ret_offset = MAX(offset, item->offset);
            *ret_length = MIN(end, item->offset + item->length) - *ret_offset;
            return true;
        }
        offset = round_down(offset, h->cluster) + h->cluster;
    }
    return false;
}

/* --- items that a copy writes ----------------------------------------------------------------- */

void held_take(struct held_data *h, uint64_t offset, uint64_t end, struct list *items)
{
    while (h->count > 0 && offset < end) {
        struct held_item *item = first_idle_in_cluster(h, offset);

        if (item && item->offset < end) {
            item->taken = true;
            list_remove(&item->in_order);
            list_append(items, &item->in_order);
            offset = item->offset + item->length;
        } else {
            offset = round_down(offset, h->cluster) + h->cluster;
        }
    }
}

void held_put_back(struct held_data *h, struct list *items)
{
    while (!list_is_empty(items)) {
        struct held_item *item = LIST_FIRST(items, struct held_item, in_order);

        list_remove(&item->in_order);
        item->taken = false;
        list_append(&h->order, &item->in_order);
    }
}

void held_drop(struct held_data *h, struct list *items)
{
    while (!list_is_empty(items)) {
        struct held_item *item = LIST_FIRST(items, struct held_item, in_order);

        list_remove(&item->in_order);
        list_remove(&item->in_bucket);
        h->count--;
        h->table_bytes -= item->length;
        held_free(h, item);
    }
}

void held_fill(const struct list *items, uint64_t offset, void *buf, uint64_t length)
{
    const struct held_item *item;

    LIST_FOREACH (item, items, in_order) {
        uint64_t from = MAX(offset, item->offset);
        uint64_t to = MIN(offset + length, item->offset + item->length);

        if (from < to) {
            memcpy((uint8_t *)buf + (from - offset), item->data + (from - item->offset), to - from);
        }
    }
}

/* --- what there is ---------------------------------------------------------------------------- */

const struct held_item *held_at(const struct held_data *h, uint64_t offset, uint64_t length,
                                uint64_t *ret_run)
{
    uint64_t end = offset + length;

    for (uint64_t at = offset; h->count > 0 && at < end;
         at = round_down(at, h->cluster) + h->cluster) {
        const struct held_item *item;
        uint64_t first = end;

        LIST_FOREACH (item, held_bucket_of(h, at), in_bucket) {
            if (item->offset <= offset && offset < item->offset + item->length) {
                return item;
            }
            if (item->offset > offset) {
                first = MIN(first, item->offset);
            }
        }
        if (first < end && first / h->cluster == at / h->cluster) {
            *ret_run = first - offset;
            return NULL;
        }
    }
    *ret_run = length;
    return NULL;
}

const struct held_item *held_oldest(const struct held_data *h)
{
    return h->bytes <= h->limit / 2 || list_is_empty(&h->order)
               ? NULL
               : LIST_FIRST(&h->order, struct held_item, in_order);
}

void held_mark(const struct held_data *h, struct dirty_bitmap *dest)
{
    const struct held_item *item;

    for (unsigned i = 0; h->count > 0 && i < BUCKETS; i++) {
        LIST_FOREACH (item, &h->buckets[i], in_bucket) {
            dirty_bitmap_set(dest, item->offset, item->length);
        }
    }
}
