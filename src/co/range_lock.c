/* SPDX-License-Identifier: Apache-2.0 */
/*
 * An entry joins the list when it is asked for and stays until it is unlocked. It is granted once no
 * earlier entry conflicts with it; what it finds in its way, it waits for, and then it looks
 * again. Everybody waits for earlier entries only, so there is no cycle.
 */
#include <assert.h>

#include "co/sync.h"
#include "co/wake_list.h"

void range_lock_init(struct range_lock *l)
{
    pthread_mutex_init(&l->guard, NULL);
    list_init(&l->entries);
}

void range_lock_destroy(struct range_lock *l)
{
    /* Who unlocked last may be about to release the guard. */
    pthread_mutex_lock(&l->guard);
    assert(list_is_empty(&l->entries));
    pthread_mutex_unlock(&l->guard);
    pthread_mutex_destroy(&l->guard);
}

/* Written so that offset + length need not fit. An empty range overlaps nothing. */
static bool overlaps(const struct range_entry *a, const struct range_entry *b)
{
    if (a->length == 0 || b->length == 0) {
        return false;
    }
    return a->offset <= b->offset ? b->offset - a->offset < a->length
                                  : a->offset - b->offset < b->length;
}

/* The first entry before `e` in the list (before its end, if `e` is not in it) that conflicts. */
static struct range_entry *find_conflict_locked(struct range_lock *l, const struct range_entry *e)
{
    struct range_entry *other;

    LIST_FOREACH (other, &l->entries, link) {
        if (other == e) {
            break;
        }
        if ((other->exclusive || e->exclusive) && overlaps(other, e)) {
            return other;
        }
    }
    return NULL;
}

static void entry_init(struct range_entry *e, uint64_t offset, uint64_t length, bool exclusive)
{
    list_init(&e->link);
    e->offset = offset;
    e->length = length;
    e->exclusive = exclusive;
    co_queue_init(&e->blocked);
}

void co_range_lock(struct range_lock *l, struct range_entry *e, uint64_t offset, uint64_t length,
                   bool exclusive)
{
    struct range_entry *other;

    entry_init(e, offset, length, exclusive);
    pthread_mutex_lock(&l->guard);
    list_append(&l->entries, &e->link);
    while ((other = find_conflict_locked(l, e))) {
        co_queue_wait_release(&other->blocked, &l->guard);
        pthread_mutex_lock(&l->guard);
    }
    pthread_mutex_unlock(&l->guard);
}

bool range_trylock(struct range_lock *l, struct range_entry *e, uint64_t offset, uint64_t length,
                   bool exclusive)
{
    bool granted;

    entry_init(e, offset, length, exclusive);
    pthread_mutex_lock(&l->guard);
    granted = !find_conflict_locked(l, e);
    if (granted) {
        list_append(&l->entries, &e->link);
    }
    pthread_mutex_unlock(&l->guard);
    return granted;
}

void range_unlock(struct range_lock *l, struct range_entry *e)
{
    struct list woken = LIST_INIT(woken);

    pthread_mutex_lock(&l->guard);
    list_remove(&e->link);
    list_splice(&woken, &e->blocked.waiters);
    pthread_mutex_unlock(&l->guard);
    co_wake_list(&woken);
}
