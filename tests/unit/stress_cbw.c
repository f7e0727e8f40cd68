/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Guests write through copy-before-write, from one reactor or two, while others read the snapshot:
 * whatever the interleaving, it shows what the disk held in the beginning.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "cbw_fixture.h"
#include "co_test.h"

#include "base/checked.h"
#include "co/sync.h"
#include "filter/filter.h"
#include "loop/loop.h"

#define DISK_CLUSTERS 64u
#define DISK_SIZE ((uint64_t)DISK_CLUSTERS * CLUSTER)
#define SLOT 4096u
#define GUESTS 4u /* each writes slots of its own: slot % GUESTS */
#define READERS 3u
/* Orders of one thread, in which ThreadSanitizer has nothing to find, and takes long. */
#ifdef __SANITIZE_THREAD__
#define SEEDS 4u
#else
#define SEEDS 40u
#endif

struct stress {
    struct cbw_graph g;
    struct co_group group;
    struct reactor *reactors[3];
    unsigned reactor_count;
    unsigned rounds;
    uint64_t seed;
    atomic_uint wrong_reads, failed_requests;
};

struct actor {
    struct stress *s;
    unsigned index;
    uint64_t random;
};

static uint64_t next_random(uint64_t *state)
{
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state;
}

static void guest(void *arg)
{
    struct actor *a = arg;
    struct stress *s = a->s;

    for (unsigned i = 0; i < s->rounds; i++) {
        uint64_t slot = next_random(&a->random) % (DISK_SIZE / SLOT / GUESTS) * GUESTS + a->index;
        unsigned what = next_random(&a->random) % 8;
        uint8_t buf[SLOT];
        int ret;

        memset(buf, 0xe0 + (int)a->index, sizeof(buf));
        if (what == 0) {
            ret = block_co_write_zeroes(s->g.guest, slot * SLOT, SLOT, 0);
        } else if (what == 1) {
            ret = block_co_discard(s->g.guest, slot * SLOT, SLOT);
        } else {
            ret = block_co_pwrite(s->g.guest, slot * SLOT, buf, SLOT, 0);
        }
        if (ret < 0) {
            atomic_fetch_add(&s->failed_requests, 1);
        }
    }
    co_group_done(&s->group);
}

static void reader(void *arg)
{
    struct actor *a = arg;
    struct stress *s = a->s;

    for (unsigned i = 0; i < s->rounds; i++) {
        uint64_t offset = next_random(&a->random) % (DISK_SIZE / SLOT) * SLOT;
        uint64_t length = (1 + next_random(&a->random) % 48) * SLOT;

        if (cbw_reads_original(s->g.snapshot, offset, MIN(length, DISK_SIZE - offset)) != 1) {
            atomic_fetch_add(&s->wrong_reads, 1);
        }
    }
    co_group_done(&s->group);
}

static void run_actors(void *arg)
{
    struct stress *s = arg;
    struct actor actors[GUESTS + READERS];
    /*
     * Whole clusters, or the blocks that guests touch. (An area in such pieces is read from the
     * disk also where a guest writes, so that two threads would race for the memory of the disk.)
     */
    bool parts = s->seed % 2 && s->reactor_count == 1;

    cbw_graph_open(&s->g, DISK_SIZE, parts ? ",\"min-cluster-size\":0" : "", 0);
    co_group_init(&s->group);
    for (unsigned i = 0; i < GUESTS + READERS; i++) {
        struct reactor *r = s->reactors[i % s->reactor_count];

        actors[i] =
            (struct actor){.s = s, .index = i, .random = s->seed * 0x9e3779b97f4a7c15u + i + 1};
        co_group_add(&s->group);
        if (reactor_spawn(r, i < GUESTS ? guest : reader, &actors[i]) < 0) {
            co_group_done(&s->group);
            atomic_fetch_add(&s->failed_requests, 1);
        }
    }
    co_group_wait(&s->group);
    co_group_destroy(&s->group);
    if (cbw_reads_original(s->g.snapshot, 0, DISK_SIZE) != 1) {
        atomic_fetch_add(&s->wrong_reads, 1);
    }
    cbw_graph_close(&s->g);
}

static void frozen_under_every_seed(void **state)
{
    for (uint64_t seed = 1; seed <= SEEDS; seed++) {
        struct stress s = {
            .reactors = {reactor_main()}, .reactor_count = 1, .rounds = 60, .seed = seed};

        reactor_set_seed(reactor_main(), seed);
        assert_int_equal(reactor_run_until_done(run_actors, &s), 0);
        reactor_set_seed(reactor_main(), 0);
        if (s.wrong_reads || s.failed_requests) {
            fail_msg("seed %llu: %u wrong reads, %u failed requests", (unsigned long long)seed,
                     s.wrong_reads, s.failed_requests);
        }
    }
}

static void frozen_under_two_reactors(void **state)
{
    struct reactor *a, *b;

    assert_int_equal(reactor_create("guests", &a, NULL), 0);
    assert_int_equal(reactor_create("readers", &b, NULL), 0);
    for (uint64_t seed = 1; seed <= 6; seed++) {
        struct stress s = {
            .reactors = {a, b, reactor_main()}, .reactor_count = 3, .rounds = 400, .seed = seed};

        assert_int_equal(reactor_run_until_done(run_actors, &s), 0);
        assert_int_equal(s.wrong_reads, 0);
        assert_int_equal(s.failed_requests, 0);
    }
    reactor_destroy(b);
    reactor_destroy(a);
}

static int setup(void **state)
{
    block_register_driver(&memory_disk_driver);
    filter_register_drivers();
    return co_test_setup();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(frozen_under_every_seed),
        cmocka_unit_test(frozen_under_two_reactors),
    };

    return cmocka_run_group_tests(tests, setup, co_test_teardown);
}
