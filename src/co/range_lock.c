/* SPDX-License-Identifier: Apache-2.0 */
/*
 * An entry is in the index from the request until the unlock. It is granted when it conflicts
 *   - with no granted entry, and
 *   - with no earlier entry that waits and that has been passed `passes` times.
 * While it conflicts with such an entry, it waits for that one and then looks again. A granted
 * entry waits for nothing here, and a waiting entry waits for granted and for earlier entries only,
 * so there is no cycle.
 */
#include <assert.h>

#include "co/stall.h"
#include "co/sync.h"
#include "co/wake_list.h"

void range_lock_init(struct range_lock *l)
{
    pthread_mutex_init(&l->guard, NULL);
    range_index_init(&l->entries);
    l->passes = 0;
}

void range_lock_let_pass(struct range_lock *l, uint64_t passes)
{
    l->passes = passes;
}

void range_lock_destroy(struct range_lock *l)
{
    /* The thread that unlocked last may be about to release the guard. */
    pthread_mutex_lock(&l->guard);
    assert(range_index_is_empty(&l->entries));
    pthread_mutex_unlock(&l->guard);
    pthread_mutex_destroy(&l->guard);
}

struct wanted_range {
    /* need not be in the index */
    const struct range_entry *entry;
    uint64_t passes;
};

/*
 * Whether w->entry has to wait for `item`. The difference of the serials is an upper limit of how
 * many entries have passed the earlier one.
 */
static bool entries_conflict(const struct range_item *item, const void *arg)
{
    const struct range_entry *other = container_of(item, struct range_entry, item);
    const struct wanted_range *w = arg;
    uint64_t serial = w->entry->item.serial;

    return other != w->entry && (other->exclusive || w->entry->exclusive) &&
           (other->granted ||
            (other->item.serial < serial && serial - other->item.serial > w->passes));
}

/* An entry that `e` has to wait for; NULL if there is none. */
static struct range_entry *find_conflict_locked(struct range_lock *l, const struct range_entry *e,
                                                uint64_t offset, uint64_t length)
{
    struct wanted_range w = {.entry = e, .passes = l->passes};
    struct range_item *item;

    MUTEX_ASSERT_HELD(&l->guard);
    item = range_index_find(&l->entries, offset, length, entries_conflict, &w);
    return item ? container_of(item, struct range_entry, item) : NULL;
}

static void entry_init(struct range_entry *e, bool exclusive)
{
    e->exclusive = exclusive;
    e->granted = false;
    co_queue_init(&e->blocked);
}

void co_range_lock(struct range_lock *l, struct range_entry *e, uint64_t offset, uint64_t length,
                   bool exclusive)
{
    struct range_entry *other;

    entry_init(e, exclusive);
    pthread_mutex_lock(&l->guard);
    range_index_add(&l->entries, &e->item, offset, length);
    while ((other = find_conflict_locked(l, e, offset, length))) {
        int64_t since = co_stall_clock();

        co_queue_wait_for_release(&other->blocked, &l->guard, "an overlapping request", NULL, -1);
        co_stall_check(since, "range lock", l, __builtin_return_address(0));
        pthread_mutex_lock(&l->guard);
    }
    e->granted = true;
    pthread_mutex_unlock(&l->guard);
}

bool range_trylock(struct range_lock *l, struct range_entry *e, uint64_t offset, uint64_t length,
                   bool exclusive)
{
    bool granted;

    entry_init(e, exclusive);
    e->item.serial = UINT64_MAX;
    pthread_mutex_lock(&l->guard);
    granted = !find_conflict_locked(l, e, offset, length);
    if (granted) {
        e->granted = true;
        range_index_add(&l->entries, &e->item, offset, length);
    }
    pthread_mutex_unlock(&l->guard);
    return granted;
}

void range_unlock(struct range_lock *l, struct range_entry *e)
{
    struct list woken = LIST_INIT(woken);

    pthread_mutex_lock(&l->guard);
    range_index_remove(&l->entries, &e->item);
    list_splice(&woken, &e->blocked.waiters);
    pthread_mutex_unlock(&l->guard);
    co_wake_list(&woken);
}
