/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Several connections to one export.
 *
 * One whose connection has ended is passed over, and replaced when there is much to do; reads that
 * it took with it are done by the first.
 *
 * What keeps a read from seeing old data: the server promises that its connections see each other's
 * acknowledged changes (NBD_FLAG_CAN_MULTI_CONN). Where lost connections are restored, the first
 * repeats acknowledged changes to a server that may have forgotten them. Others are not restored,
 * and a new one is used only after the first has had an answer to a request that was made later, on
 * the connection that it had before the new one was made: so the new one is not one to a later
 * server, where something has still to be repeated. And it is used only until the first is
 * restored, which may be at a later server.
 *
 * If the first is lost before that answer, the new one is closed at once: the server may have no
 * place for both.
 */
#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/checked.h"
#include "base/log.h"
#include "nbd/client_internal.h"
#include "nbd/client_pool.h"

/*
 * Requests go to the first connection while it has less than this to do: to wake another reactor
 * costs more than a small request. Bytes.
 */
#define SPREAD_BYTES ((size_t)512 * 1024)
/* What there is to do for each connection when another one is made. Bytes. */
#define GROW_BYTES ((size_t)1024 * 1024)
/* Limit of one connect in the background, and the pause after one that failed. */
#define GROW_TIMEOUT_NS 20000000000LL
#define GROW_PAUSE_NS 30000000000LL
/* How often it is tested whether a new connection can be used. */
#define PROOF_NS 10000000LL
/* Reactors that all pools of the process share. */
#define POOL_REACTORS_MAX 4

struct nbd_member {
    /* NULL: there is none. */
    struct nbd_client *client;
    /* The reactor of the connection. */
    struct reactor *home;
    /* Bytes of requests in work. */
    atomic_size_t bytes;
    /* How often the first connection had been restored when this one was made. */
    uint64_t reconnects;
};

struct nbd_pool {
    /* Guards the members but the first, whose `client` and `home` are constant. */
    pthread_mutex_t lock;
    struct nbd_member members[NBD_POOL_MAX];
    unsigned max;
    bool repeats;
    /* A coroutine makes a connection; it is in `growth`. */
    atomic_bool growing;
    struct co_group growth;
    /* No others are made. */
    atomic_bool closing;
    /* No earlier than this. */
    atomic_int_least64_t next_growth_ns;
    /* The connection that is being made; both are used on the reactor `attempt_home`. */
    struct nbd_client *attempt;
    bool attempt_is_cut;
    struct reactor *attempt_home;
};

/* Made when they are needed, by the main reactor; they stay for the life of the process. */
static struct reactor *pool_reactors[POOL_REACTORS_MAX];
static unsigned pool_reactor_count, pool_reactor_next;

/* --- more connections ------------------------------------------------------------------------- */

/* The reactor of the next connection. Where there is one processor, the main one. */
static struct reactor *next_reactor(void)
{
    unsigned want =
        (unsigned)MIN(MAX(sysconf(_SC_NPROCESSORS_ONLN) - 1, 0), (long)POOL_REACTORS_MAX);
    struct reactor *fresh;

    if (pool_reactor_count < want && reactor_create("nbd-client", &fresh, NULL) == 0) {
        pool_reactors[pool_reactor_count++] = fresh;
        return fresh;
    }
    return pool_reactor_count ? pool_reactors[pool_reactor_next++ % pool_reactor_count]
                              : reactor_main();
}

/*
 * Whether a new connection is one to what the first is connected to: to the same process or
 * address, and an export that looks the same. Another server may have come to the path or name
 * meanwhile.
 */
static bool is_the_same(struct nbd_client *first, struct nbd_client *fresh)
{
    struct nbd_server_id a = nbd_client_server(first), b = nbd_client_server(fresh);
    const char *old = first->agreed.description ?: "", *now = fresh->agreed.description ?: "";

    return nbd_server_ids_equal(&a, &b) && strcmp(old, now) == 0 &&
           fresh->agreed.size == first->agreed.size && fresh->agreed.flags == first->agreed.flags &&
           fresh->agreed.min_block <= first->agreed.min_block &&
           fresh->agreed.max_block >= first->agreed.max_block;
}

static void co_close_client(void *arg)
{
    nbd_client_co_close(arg);
}

/* Whether a connection, if it is there, is used for requests; lock held. */
static bool member_is_usable(struct nbd_pool *p, struct nbd_member *m)
{
    return m->client && nbd_client_state(m->client).usable &&
           (m == &p->members[0] || nbd_client_state(nbd_pool_first(p)).reconnects == m->reconnects);
}

/*
 * A place for a connection; NULL: there is none. *ret_dead: one that was there, and that nobody
 * uses; the caller closes it.
 */
static struct nbd_member *find_pool_place(struct nbd_pool *p, struct nbd_member *ret_dead)
{
    struct nbd_member *place = NULL;

    ret_dead->client = NULL;
    pthread_mutex_lock(&p->lock);
    for (unsigned i = 1; i < p->max && !place; i++) {
        struct nbd_member *m = &p->members[i];

        if (!m->client || (atomic_load(&m->bytes) == 0 && !member_is_usable(p, m))) {
            place = m;
            ret_dead->client = m->client;
            ret_dead->home = m->home;
            m->client = NULL;
        }
    }
    pthread_mutex_unlock(&p->lock);
    return place;
}

static void add_member(struct nbd_pool *p, struct nbd_member *place, struct nbd_client *fresh,
                       uint64_t reconnects)
{
    pthread_mutex_lock(&p->lock);
    place->client = fresh;
    place->home = p->attempt_home;
    place->reconnects = reconnects;
    pthread_mutex_unlock(&p->lock);
}

/*
 * Wait until the first has had an answer to a request that was made later than `then`. False if
 * that does not happen.
 */
static bool co_prove(struct nbd_pool *p, const struct nbd_client_state *then)
{
    int64_t end = loop_now_ns() + GROW_TIMEOUT_NS;

    while (!p->attempt_is_cut && loop_now_ns() < end) {
        struct nbd_client_state now = nbd_client_state(nbd_pool_first(p));

        if (!now.usable || now.reconnects != then->reconnects) {
            return false;
        }
        if (now.newest_answer > then->requests) {
            return true;
        }
        loop_co_sleep(PROOF_NS);
    }
    return false;
}

/* Make a connection on its reactor. 0 or -errno. */
static int co_make_member(struct nbd_pool *p, struct nbd_member *place, struct error *err)
{
    struct nbd_client *first = nbd_pool_first(p), *fresh;
    struct nbd_client_state before = nbd_client_state(first), after;
    int r;

    if (p->attempt_is_cut || !before.usable) {
        return -ECANCELED;
    }
    r = nbd_client_co_connect_again(first, GROW_TIMEOUT_NS, &p->attempt, &fresh, err);
    if (r < 0) {
        return r;
    }
    after = nbd_client_state(first);
    if (!is_the_same(first, fresh) || after.reconnects != before.reconnects ||
        (p->repeats && !co_prove(p, &after))) {
        nbd_client_co_close(fresh);
        return -ESTALE;
    }
    add_member(p, place, fresh, after.reconnects);
    return 0;
}

/* Whether there is work for another connection; lock held. */
static bool wants_more(struct nbd_pool *p)
{
    size_t bytes = 0, count = 0;

    for (unsigned i = 0; i < p->max; i++) {
        if (p->members[i].client) {
            bytes += atomic_load(&p->members[i].bytes);
            count += member_is_usable(p, &p->members[i]);
        }
    }
    return count < p->max && bytes >= count * GROW_BYTES;
}

static void co_grow_at_home(void *arg)
{
    struct nbd_pool *p = arg;
    struct nbd_member dead, *place = find_pool_place(p, &dead);
    char who[512];
    ERROR_AUTO(err);
    int r = place ? co_make_member(p, place, &err) : -ENOSPC;

    if (dead.client) {
        loop_co_call_on(dead.home, co_close_client, dead.client);
    }
    if (r == 0) {
        return;
    }
    if (error_is_set(&err) && !p->attempt_is_cut) {
        log_info("%s: there will be no further connection for now: %s",
                 nbd_client_describe(nbd_pool_first(p), who, sizeof(who)), error_message(&err));
    }
    atomic_store(&p->next_growth_ns, loop_now_ns() + GROW_PAUSE_NS);
}

/* On the main reactor. */
static void pool_co_grow(void *arg)
{
    struct nbd_pool *p = arg;

    bool more = true;

    while (more && !atomic_load(&p->closing) && loop_now_ns() >= atomic_load(&p->next_growth_ns)) {
        p->attempt_home = next_reactor();
        p->attempt_is_cut = false;
        loop_co_call_on(p->attempt_home, co_grow_at_home, p);
        pthread_mutex_lock(&p->lock);
        more = wants_more(p);
        pthread_mutex_unlock(&p->lock);
    }
    atomic_store(&p->growing, false);
    co_group_done(&p->growth);
}

/* Begin to make a connection, unless one is being made. */
static void grow_pool(struct nbd_pool *p)
{
    if (atomic_load(&p->closing) || loop_now_ns() < atomic_load(&p->next_growth_ns) ||
        atomic_exchange(&p->growing, true)) {
        return;
    }
    co_group_add(&p->growth);
    if (reactor_spawn(reactor_main(), pool_co_grow, p) < 0) {
        atomic_store(&p->growing, false);
        co_group_done(&p->growth);
    }
}

/* --- choice ----------------------------------------------------------------------------------- */

/*
 * The connection for a request of `bytes`, more than 0, which are counted until they are taken off
 * member->bytes again.
 */
static struct nbd_member *take_member(struct nbd_pool *p, size_t bytes, bool change)
{
    struct nbd_member *best = &p->members[0];
    size_t least = atomic_load(&best->bytes);
    bool grow;

    if (least < SPREAD_BYTES || p->max == 1 || (change && p->repeats)) {
        atomic_fetch_add(&best->bytes, bytes);
        return best;
    }
    pthread_mutex_lock(&p->lock);
    for (unsigned i = 1; i < p->max; i++) {
        size_t load = atomic_load(&p->members[i].bytes);

        if (load < least && member_is_usable(p, &p->members[i])) {
            best = &p->members[i];
            least = load;
        }
    }
    atomic_fetch_add(&best->bytes, bytes);
    grow = wants_more(p);
    pthread_mutex_unlock(&p->lock);
    if (grow) {
        grow_pool(p);
    }
    return best;
}

int nbd_pool_co_preadv(struct nbd_pool *p, uint64_t offset, struct iov iov)
{
    size_t bytes = MAX(iov.size, 1u);
    struct nbd_member *m = take_member(p, bytes, false);
    int r = nbd_client_co_preadv(m->client, offset, iov);
    bool again = r == -EIO && m != &p->members[0] && !nbd_client_state(m->client).usable;

    atomic_fetch_sub(&m->bytes, bytes);
    return again ? nbd_client_co_preadv(nbd_pool_first(p), offset, iov) : r;
}

int nbd_pool_co_pwritev(struct nbd_pool *p, uint64_t offset, struct iov iov, bool fua)
{
    size_t bytes = MAX(iov.size, 1u);
    struct nbd_member *m = take_member(p, bytes, true);
    int r = nbd_client_co_pwritev(m->client, offset, iov, fua);

    atomic_fetch_sub(&m->bytes, bytes);
    return r;
}

struct nbd_client *nbd_pool_first(const struct nbd_pool *p)
{
    return p->members[0].client;
}

void nbd_pool_read_stats(struct nbd_pool *p, uint64_t *ret_values)
{
    nbd_client_read_stats(nbd_pool_first(p), ret_values);
    pthread_mutex_lock(&p->lock);
    for (unsigned i = 1; i < p->max; i++) {
        if (p->members[i].client) {
            nbd_client_add_stats(p->members[i].client, ret_values);
        }
    }
    pthread_mutex_unlock(&p->lock);
}

/* --- life ------------------------------------------------------------------------------------- */

int nbd_pool_new(struct nbd_client *first, unsigned max, bool repeats, struct nbd_pool **ret_pool)
{
    struct nbd_pool *p = calloc(1, sizeof(*p));

    if (!p) {
        return -ENOMEM;
    }
    p->members[0].client = first;
    p->members[0].home = reactor_current();
    /* A descriptor is no address to connect to again. */
    p->max = (first->agreed.flags & NBD_FLAG_CAN_MULTI_CONN) && !first->target.address.fd
                 ? MIN(max, NBD_POOL_MAX)
                 : 1;
    p->repeats = repeats;
    pthread_mutex_init(&p->lock, NULL);
    co_group_init(&p->growth);
    *ret_pool = p;
    return 0;
}

static void co_cut_attempt(void *arg)
{
    struct nbd_pool *p = arg;

    p->attempt_is_cut = true;
    if (p->attempt && p->attempt->wire.fd >= 0) {
        shutdown(p->attempt->wire.fd, SHUT_RDWR);
    }
}

/* What is done to a connection, on its reactor. */
struct member_call {
    struct nbd_pool *pool;
    struct nbd_member *member;
    void (*fn)(struct nbd_client *c);
};

/*
 * On the reactor of the connection, which is closed there: it stays until this coroutine yields.
 */
static void co_call_member(void *arg)
{
    const struct member_call *m = arg;
    struct nbd_client *client;

    pthread_mutex_lock(&m->pool->lock);
    client = m->member->home == reactor_current() ? m->member->client : NULL;
    pthread_mutex_unlock(&m->pool->lock);
    if (client) {
        m->fn(client);
    }
}

static void co_call_members(struct nbd_pool *p, void (*fn)(struct nbd_client *c))
{
    for (unsigned i = 0; i < p->max; i++) {
        struct member_call m = {.pool = p, .member = &p->members[i], .fn = fn};
        struct reactor *home;

        pthread_mutex_lock(&p->lock);
        home = m.member->client ? m.member->home : NULL;
        pthread_mutex_unlock(&p->lock);
        if (home) {
            loop_co_call_on(home, co_call_member, &m);
        }
    }
}

/* Make no further connection, and end the attempt that is under way. */
static void co_stop_growth(struct nbd_pool *p)
{
    atomic_store(&p->closing, true);
    if (atomic_load(&p->growing) && p->attempt_home) {
        loop_co_call_on(p->attempt_home, co_cut_attempt, p);
    }
}

void nbd_pool_co_give_up(struct nbd_pool *p)
{
    co_call_members(p, nbd_client_give_up);
}

void nbd_pool_co_cut(struct nbd_pool *p)
{
    co_stop_growth(p);
    co_call_members(p, nbd_client_cut);
}

void nbd_pool_co_close(struct nbd_pool *p)
{
    if (!p) {
        return;
    }
    co_stop_growth(p);
    co_group_wait(&p->growth);
    /* The first is the last: a flush may have gone there. */
    for (unsigned i = p->max; i-- > 0;) {
        if (p->members[i].client) {
            loop_co_call_on(p->members[i].home, co_close_client, p->members[i].client);
        }
    }
    co_group_destroy(&p->growth);
    pthread_mutex_destroy(&p->lock);
    free(p);
}
