/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Throttle groups under a clock that the test moves: rates, bursts, fairness, limits that change,
 * and who does not wait.
 */
#include <errno.h>
#include <json-c/json.h>
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
#include "base/time_units.h"
#include "block/user_object.h"
#include "file/file_drivers.h"
#include "filter/filter.h"
#include "filter/throttle_group.h"
#include "loop/loop.h"

#define MEMBERS 3
#define MOST_DEPTH 40
#define STEP_NS NS_PER_MS
#define REST_NS (100 * NS_PER_SECOND) /* after which all buckets are empty */

static _Atomic int64_t now_ns = NS_PER_SECOND;

static int64_t read_test_clock(void)
{
    return atomic_load(&now_ns);
}

/* --- a group, and users of its members -------------------------------------------------------- */

struct user;

struct stream {
    struct user *user;
    bool is_write, ended;
};

/* A throttled disk whose user has `depth` requests in flight. */
struct user {
    struct block_node *node;
    struct block_root *root;
    struct block_edge *edge;
    size_t bytes;     /* of a request */
    uint64_t done[2]; /* requests that have ended, by direction */
    atomic_bool stop;
    struct stream streams[MOST_DEPTH];
    unsigned depth;
};

struct throttled {
    struct user users[MEMBERS];
    struct throttle_group *group;
    struct user_object *object;
};

static void add_group(const char *id, const char *limits)
{
    char json[512];
    struct options *opts = NULL;
    ERROR_AUTO(err);

    snprintf(json, sizeof(json), "{\"qom-type\":\"throttle-group\",\"id\":\"%s\",\"limits\":{%s}}",
             id, limits);
    if (options_parse(json, NULL, &opts, &err) < 0 || user_object_add(opts, &err) < 0) {
        fail_msg("%s", error_message(&err));
    }
}

static void open_throttled(struct throttled *t, const char *limits)
{
    char json[256];

    memset(t, 0, sizeof(*t));
    atomic_fetch_add(&now_ns, REST_NS);
    add_group("g", limits);
    t->group = throttle_group_find("g", &t->object, NULL);
    assert_non_null(t->group);
    for (int i = 0; i < MEMBERS; i++) {
        struct user *u = &t->users[i];

        snprintf(json, sizeof(json),
                 "{\"driver\":\"throttle\",\"node-name\":\"t%d\",\"throttle-group\":\"g\","
                 "\"file\":{\"driver\":\"null-co\",\"size\":1048576}}",
                 i);
        u->node = fixture_open(json);
        assert_int_equal(block_co_root_new(u->node, "user",
                                           BLOCK_PERM_CONSISTENT_READ | BLOCK_PERM_WRITE,
                                           BLOCK_PERM_ALL, &u->root, NULL),
                         0);
        u->edge = block_root_edge(u->root);
    }
}

static void request_stream(void *arg)
{
    struct stream *s = arg;
    struct user *u = s->user;
    uint8_t *buf = calloc(1, u->bytes);

    while (!atomic_load(&u->stop)) {
        int r = s->is_write ? block_co_pwrite(u->edge, 0, buf, u->bytes, 0)
                            : block_co_pread(u->edge, 0, buf, u->bytes);

        assert_int_equal(r, 0);
        u->done[s->is_write]++;
        co_reschedule();
    }
    free(buf);
    s->ended = true;
}

/* Start `depth` requests, the last `writes` of which are writes. */
static void start_user(struct user *u, unsigned depth, unsigned writes, size_t bytes)
{
    u->bytes = bytes;
    u->depth = depth;
    for (unsigned i = 0; i < depth; i++) {
        u->streams[i] = (struct stream){.user = u, .is_write = i >= depth - writes};
        assert_int_equal(reactor_spawn(reactor_main(), request_stream, &u->streams[i]), 0);
    }
    let_others_run();
}

static void pass_time(int64_t ns)
{
    for (int64_t passed = 0; passed < ns; passed += STEP_NS) {
        atomic_fetch_add(&now_ns, STEP_NS);
        for (int i = 0; i < 3; i++) {
            throttle_clock_changed();
            co_reschedule();
        }
    }
}

static void end_user(struct user *u)
{
    atomic_store(&u->stop, true);
    block_root_begin_end(u->root);
    block_co_root_release(u->root);
    for (unsigned i = 0; i < u->depth; i++) {
        while (!u->streams[i].ended) {
            co_reschedule();
        }
    }
    block_co_unref(u->node);
}

static void close_throttled(struct throttled *t)
{
    for (int i = 0; i < MEMBERS; i++) {
        end_user(&t->users[i]);
    }
    user_object_unref(t->object);
    assert_int_equal(user_object_del("g", NULL), 0);
}

static uint64_t done_by(const struct user *u)
{
    return u->done[0] + u->done[1];
}

static void assert_near(double value, double wanted, double tolerance)
{
    if (value < wanted * (1 - tolerance) || value > wanted * (1 + tolerance)) {
        fail_msg("%f is not within %.1f%% of %f", value, tolerance * 100, wanted);
    }
}

/* --- rates ------------------------------------------------------------------------------------ */

/* Bytes and requests a second in ten seconds from the first request on. */
static void check_rate(const char *limits, unsigned writes, size_t bytes, double wanted)
{
    struct throttled t;

    open_throttled(&t, limits);
    start_user(&t.users[0], 16, writes, bytes);
    pass_time(10 * NS_PER_SECOND);
    assert_near((double)(done_by(&t.users[0])) / 10, wanted, 0.01);
    close_throttled(&t);
}

static void the_rate_is_the_limit(void *arg)
{
    check_rate("\"bps-total\":8388608", 8, 4096, 2048);
    check_rate("\"bps-read\":8388608", 0, 65536, 128);
    check_rate("\"bps-write\":3000000", 16, 512, 3000000 / 512.0);
    check_rate("\"iops-total\":500", 5, 65536, 500);
    check_rate("\"iops-read\":77", 0, 512, 77);
    check_rate("\"iops-write\":12345", 16, 512, 12345);
}

static int64_t lease_of(struct throttle_buckets *b, unsigned reactor)
{
    const struct throttle_prepaid *p = &b->leases[reactor].bytes[0];

    return atomic_load(&p->granted) - atomic_load(&p->taken);
}

/* What reactors take in advance is poured at once; what they do not use goes back. */
static void a_lease_is_of_one_reactor(void *arg)
{
    struct throttle_buckets *b = aligned_alloc(_Alignof(struct throttle_buckets), sizeof(*b));
    struct throttle_bucket *bucket = &b->all[THROTTLE_BPS_READ];
    struct throttle_limits limits;

    memset(b, 0, sizeof(*b));
    throttle_limits_init(&limits);
    limits.values[THROTTLE_BPS_READ].avg = 40000000;
    throttle_buckets_set(b, &limits, 0);
    assert_int_equal(throttle_buckets_counts(b, false), THROTTLE_COUNTS_BYTES);
    assert_int_equal(throttle_buckets_counts(b, true), 0);
    throttle_buckets_prepay(b, false, 0);
    throttle_buckets_prepay(b, false, 1);
    assert_int_equal(lease_of(b, 0), 1000000);
    assert_int_equal(lease_of(b, 1), 500000);
    assert_int_equal((int64_t)bucket->level, 1500000);
    assert_int_equal(throttle_buckets_wait(b, false, 0), 0);
    assert_false(throttle_take_lease(&b->leases[2], THROTTLE_COUNTS_BYTES, false, 4096));
    assert_false(throttle_take_lease(&b->leases[1], THROTTLE_COUNTS_BYTES, false, 500001));
    assert_true(throttle_take_lease(&b->leases[1], THROTTLE_COUNTS_BYTES, false, 4096));
    assert_true(throttle_take_lease(&b->leases[0], THROTTLE_COUNTS_BYTES, false, 8192));
    throttle_return_lease(&b->leases[0], THROTTLE_COUNTS_BYTES, false, 8192);
    throttle_buckets_reclaim(b, 0);
    assert_int_equal((int64_t)bucket->level, 500000);
    assert_int_equal(lease_of(b, 1), 500000 - 4096);
    throttle_buckets_reclaim_all(b);
    assert_int_equal((int64_t)bucket->level, 4096);
    assert_int_equal(lease_of(b, 1), 0);
    /* A request that took its part while another thread took back what was left, unseen there. */
    throttle_use_lease(&b->leases[1], THROTTLE_COUNTS_BYTES, false, 512, 1);
    assert_false(throttle_take_lease(&b->leases[1], THROTTLE_COUNTS_BYTES, false, 512));
    throttle_buckets_reclaim(b, 1);
    assert_int_equal((int64_t)bucket->level, 4096 + 512);
    assert_int_equal(lease_of(b, 1), 0);
    free(b);
}

static void a_large_request_counts_as_several(void *arg)
{
    check_rate("\"iops-total\":1000,\"iops-size\":4096", 0, 16384, 250);
    check_rate("\"iops-total\":1000,\"iops-size\":65536", 0, 16384, 1000);
}

static void the_lower_of_two_limits_holds(void *arg)
{
    check_rate("\"bps-total\":1048576,\"iops-total\":100", 4, 4096, 100);
    check_rate("\"bps-total\":1048576,\"iops-total\":5000", 4, 4096, 256);
}

static void directions_have_limits_of_their_own(void *arg)
{
    struct throttled t;

    open_throttled(&t, "\"iops-read\":200,\"iops-write\":50");
    start_user(&t.users[0], 20, 10, 4096);
    pass_time(10 * NS_PER_SECOND);
    assert_near((double)t.users[0].done[0] / 10, 200, 0.01);
    assert_near((double)t.users[0].done[1] / 10, 50, 0.01);
    close_throttled(&t);
}

/* Ten seconds of a burst at ten times the rate, and then the rate. */
static void a_burst_lasts_as_long_as_it_may(void *arg)
{
    struct throttled t;
    uint64_t before;

    open_throttled(&t, "\"iops-total\":100,\"iops-total-max\":1000,\"iops-total-max-length\":10");
    start_user(&t.users[0], 16, 0, 512);
    pass_time(5 * NS_PER_SECOND);
    assert_near((double)done_by(&t.users[0]), 5 * 1000 + 100, 0.01);
    pass_time(20 * NS_PER_SECOND);
    before = done_by(&t.users[0]);
    pass_time(10 * NS_PER_SECOND);
    assert_near((double)(done_by(&t.users[0]) - before), 1000, 0.01);
    close_throttled(&t);
}

/* A busy machine lets the group act five times a second only. */
static void what_came_late_is_not_lost(void *arg)
{
    struct throttled t;

    open_throttled(&t, "\"iops-total\":100");
    start_user(&t.users[0], 40, 20, 512);
    for (int i = 0; i < 50; i++) {
        atomic_fetch_add(&now_ns, 199 * NS_PER_MS);
        pass_time(NS_PER_MS);
    }
    assert_near((double)done_by(&t.users[0]) / 10, 100, 0.01);
    close_throttled(&t);
}

/* Who asks for nothing is owed nothing, but for what passes at once. */
static void idle_time_is_not_kept(void *arg)
{
    struct throttled t;
    uint64_t before;

    open_throttled(&t, "\"iops-total\":1000");
    start_user(&t.users[0], 1, 0, 512);
    pass_time(NS_PER_SECOND);
    end_user(&t.users[0]);
    pass_time(5 * NS_PER_SECOND);
    start_user(&t.users[1], 40, 20, 512);
    before = done_by(&t.users[1]);
    pass_time(100 * NS_PER_MS);
    assert_in_range(before, 40, 80);
    assert_in_range(done_by(&t.users[1]), 100, 190);
    end_user(&t.users[1]);
    end_user(&t.users[2]);
    user_object_unref(t.object);
    assert_int_equal(user_object_del("g", NULL), 0);
}

/* --- fairness --------------------------------------------------------------------------------- */

/* Of what passes after the first requests, which find the bucket empty. */
static void members_have_equal_shares(void *arg)
{
    struct throttled t;
    uint64_t before[4];

    open_throttled(&t, "\"iops-total\":900");
    start_user(&t.users[0], 40, 20, 4096);
    start_user(&t.users[1], 1, 0, 4096);
    start_user(&t.users[2], 7, 7, 4096);
    for (int i = 0; i < 2; i++) {
        uint64_t now[] = {t.users[0].done[0], t.users[0].done[1], done_by(&t.users[1]),
                          done_by(&t.users[2])};

        for (int j = 0; j < 4 && i > 0; j++) {
            /* Reads of 0 and 1, writes of 0 and 2: a quarter each. */
            assert_near((double)(now[j] - before[j]), 2250, 0.01);
        }
        memcpy(before, now, sizeof(before));
        pass_time(10 * NS_PER_SECOND);
    }
    close_throttled(&t);
}

static void a_member_alone_has_everything(void *arg)
{
    struct throttled t;

    open_throttled(&t, "\"iops-total\":900");
    start_user(&t.users[1], 4, 0, 4096);
    pass_time(10 * NS_PER_SECOND);
    assert_near((double)done_by(&t.users[1]), 9000, 0.01);
    close_throttled(&t);
}

/* --- change ----------------------------------------------------------------------------------- */

static void set_limits(struct throttled *t, const char *json)
{
    struct json_object *limits = json_tokener_parse(json);
    ERROR_AUTO(err);

    if (throttle_group_set(t->group, limits, &err) < 0) {
        fail_msg("%s", error_message(&err));
    }
    json_object_put(limits);
}

static void limits_change_while_requests_wait(void *arg)
{
    struct throttled t;
    uint64_t before;

    open_throttled(&t, "\"iops-total\":1");
    start_user(&t.users[0], 16, 8, 4096);
    pass_time(2 * NS_PER_SECOND);
    assert_in_range(done_by(&t.users[0]), 1, 4);
    set_limits(&t, "{\"iops-total\":1000}");
    before = done_by(&t.users[0]);
    pass_time(10 * NS_PER_SECOND);
    assert_near((double)(done_by(&t.users[0]) - before), 10000, 0.01);
    set_limits(&t, "{\"iops-total\":0}");
    before = done_by(&t.users[0]);
    let_others_run();
    assert_true(done_by(&t.users[0]) > before + 16);
    close_throttled(&t);
}

static int64_t value_of(const struct throttled *t, const char *name)
{
    struct json_object *all = throttle_group_get(t->group), *value;
    int64_t number;

    assert_true(json_object_object_get_ex(all, name, &value));
    number = json_object_get_int64(value);
    json_object_put(all);
    return number;
}

static void assert_refused(struct throttled *t, const char *json, const char *sentence)
{
    struct json_object *limits = json_tokener_parse(json);
    ERROR_AUTO(err);

    assert_true(throttle_group_set(t->group, limits, &err) < 0);
    if (!strstr(error_message(&err), sentence)) {
        fail_msg("%s: %s", json, error_message(&err));
    }
    json_object_put(limits);
}

static void a_change_that_is_refused_changes_nothing(void *arg)
{
    struct throttled t;

    open_throttled(&t, "\"iops-total\":100");
    set_limits(&t, "{\"bps-total\":7}");
    assert_refused(&t, "{\"bps-read\":7}", "cannot be used at the same time");
    assert_refused(&t, "{\"iops-total\":0,\"iops-size\":5}", "iops size requires an iops value");
    assert_refused(&t, "{\"bogus\":0}", "'limits.bogus' is unexpected");
    assert_refused(&t, "5", "'limits', expected: object");
    assert_refused(&t, "{\"bps-total\":\"8\"}", "'limits.bps-total', expected: integer");
    assert_refused(&t, "{\"bps-total-max-length\":4294967296}", "in the range [0, 4294967295]");
    assert_int_equal(value_of(&t, "bps-total"), 7);
    assert_int_equal(value_of(&t, "iops-total"), 100);
    assert_int_equal(value_of(&t, "iops-size"), 0);
    assert_int_equal(value_of(&t, "bps-read-max-length"), 1);
    close_throttled(&t);
}

static void properties_are_read_and_set(void *arg)
{
    struct throttled t;
    struct json_object *value = NULL, *limits = json_tokener_parse("{\"iops-total\":9}");

    open_throttled(&t, "\"iops-total\":100");
    assert_int_equal(user_object_get(t.object, "x-iops-total", &value, NULL), 0);
    assert_int_equal(json_object_get_int64(value), 100);
    assert_int_equal(user_object_set(t.object, "x-iops-total", value, NULL), -EINVAL);
    json_object_put(value);
    assert_int_equal(user_object_set(t.object, "limits", limits, NULL), 0);
    json_object_put(limits);
    assert_int_equal(user_object_get(t.object, "limits", &value, NULL), 0);
    assert_true(json_object_object_get_ex(value, "iops-total", &limits));
    assert_int_equal(json_object_get_int64(limits), 9);
    assert_int_equal(user_object_set(t.object, "x-iops", value, NULL), -ENOENT);
    assert_int_equal(user_object_get(t.object, "x-iops", &limits, NULL), -ENOENT);
    json_object_put(value);
    close_throttled(&t);
}

/* --- who does not wait ------------------------------------------------------------------------ */

static void a_drain_lets_all_pass_and_they_are_paid_for(void *arg)
{
    struct throttled t;
    uint64_t before;

    open_throttled(&t, "\"iops-total\":20");
    start_user(&t.users[0], 10, 5, 4096);
    start_user(&t.users[1], 10, 5, 4096);
    pass_time(NS_PER_SECOND);
    before = done_by(&t.users[1]);
    block_co_drain_begin(t.users[0].node);
    block_drain_end(t.users[0].node);
    assert_int_equal(done_by(&t.users[1]), before);
    before = done_by(&t.users[0]) + before;
    pass_time(400 * NS_PER_MS);
    assert_in_range(done_by(&t.users[0]) + done_by(&t.users[1]), before, before + 1);
    before = done_by(&t.users[0]) + done_by(&t.users[1]);
    pass_time(10 * NS_PER_SECOND);
    assert_near((double)(done_by(&t.users[0]) + done_by(&t.users[1]) - before), 200, 0.02);
    close_throttled(&t);
}

/* However much passed early, later requests wait a second for it at most. */
static void what_passes_early_makes_no_debt_for_ever(void *arg)
{
    struct throttled t;
    uint64_t before;

    open_throttled(&t, "\"bps-total\":1048576");
    start_user(&t.users[0], 20, 0, 1048576);
    block_co_drain_begin(t.users[0].node);
    block_drain_end(t.users[0].node);
    before = done_by(&t.users[0]);
    pass_time(1200 * NS_PER_MS);
    assert_true(done_by(&t.users[0]) > before);
    close_throttled(&t);
}

/* The user of one member ends: close_throttled() waits for requests that may pass in an hour. */
static void the_end_of_a_user_waits_for_no_limit(void *arg)
{
    struct throttled t;
    int64_t begin;

    open_throttled(&t, "\"bps-total\":1");
    for (int i = 0; i < MEMBERS; i++) {
        start_user(&t.users[i], 10, 5, 4096);
    }
    begin = loop_now_ns();
    close_throttled(&t);
    assert_true(loop_now_ns() - begin < 5 * NS_PER_SECOND);
}

/* --- reactors --------------------------------------------------------------------------------- */

#define REACTORS 3

struct racer {
    struct user *user;
    struct co_group *group;
    uint64_t done;
};

static void race(void *arg)
{
    struct racer *r = arg;
    uint8_t buf[512] = {0};

    while (!atomic_load(&r->user->stop)) {
        assert_int_equal(r->done & 1 ? block_co_pread(r->user->edge, 0, buf, sizeof(buf))
                                     : block_co_pwrite(r->user->edge, 0, buf, sizeof(buf), 0),
                         0);
        r->done++;
        co_reschedule();
    }
    co_group_done(r->group);
}

/* In the time of the system: what reactors take in advance adds up to no more than the limit. */
static void reactors_share_the_limit(void *arg)
{
    const double rate = 50000;
    struct throttled t;
    struct reactor *reactors[REACTORS] = {reactor_main()};
    struct racer racers[MEMBERS * 2];
    struct co_group group;
    uint64_t done = 0;
    int64_t begin;

    throttle_set_clock(NULL);
    open_throttled(&t, "\"iops-total\":50000");
    co_group_init(&group);
    for (int i = 1; i < REACTORS; i++) {
        assert_int_equal(reactor_create("sharer", &reactors[i], NULL), 0);
    }
    begin = loop_now_ns();
    for (unsigned i = 0; i < MEMBERS * 2; i++) {
        racers[i] = (struct racer){&t.users[i % MEMBERS], &group, 0};
        co_group_add(&group);
        assert_int_equal(reactor_spawn(reactors[i % REACTORS], race, &racers[i]), 0);
    }
    loop_co_sleep(400 * NS_PER_MS);
    for (int i = 0; i < MEMBERS; i++) {
        atomic_store(&t.users[i].stop, true);
    }
    co_group_wait(&group);
    co_group_destroy(&group);
    for (unsigned i = 0; i < MEMBERS * 2; i++) {
        done += racers[i].done;
    }
    /* What the bucket holds at the start, and those that are on their way. */
    assert_true((double)done <= rate * (double)(loop_now_ns() - begin) / (double)NS_PER_SECOND +
                                    rate / 20 + MEMBERS * 2);
    assert_true((double)done > rate / 20);
    close_throttled(&t);
    for (int i = 1; i < REACTORS; i++) {
        reactor_destroy(reactors[i]);
    }
    throttle_set_clock(read_test_clock);
}

/* In the time of the system: limits change, and drains come and go, meanwhile. */
static void members_on_several_reactors(void *arg)
{
    struct throttled t;
    struct reactor *reactors[REACTORS] = {reactor_main()};
    struct racer racers[MEMBERS * 8];
    struct co_group group;
    int64_t begin;

    throttle_set_clock(NULL);
    open_throttled(&t, "\"iops-total\":20000");
    co_group_init(&group);
    for (int i = 1; i < REACTORS; i++) {
        assert_int_equal(reactor_create("racer", &reactors[i], NULL), 0);
    }
    begin = loop_now_ns();
    for (unsigned i = 0; i < MEMBERS * 8; i++) {
        racers[i] = (struct racer){&t.users[i % MEMBERS], &group, 0};
        co_group_add(&group);
        assert_int_equal(reactor_spawn(reactors[i % REACTORS], race, &racers[i]), 0);
    }
    for (int i = 0; i < 50; i++) {
        loop_co_sleep(5 * NS_PER_MS);
        set_limits(&t, i & 1 ? "{\"iops-total\":20000}" : "{\"iops-total\":5000}");
        block_co_drain_begin(t.users[i % MEMBERS].node);
        block_drain_end(t.users[i % MEMBERS].node);
    }
    assert_true(loop_now_ns() - begin < 20 * NS_PER_SECOND);
    for (int i = 0; i < MEMBERS; i++) {
        atomic_store(&t.users[i].stop, true);
    }
    set_limits(&t, "{\"iops-total\":0}");
    co_group_wait(&group);
    co_group_destroy(&group);
    for (unsigned i = 0; i < MEMBERS * 8; i++) {
        assert_true(racers[i].done > 5);
    }
    close_throttled(&t);
    for (int i = 1; i < REACTORS; i++) {
        reactor_destroy(reactors[i]);
    }
    throttle_set_clock(read_test_clock);
}

static int setup(void **state)
{
    filter_register_drivers();
    file_register_drivers();
    throttle_group_register_type();
    throttle_set_clock(read_test_clock);
    return co_test_setup();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        CO_TEST(the_rate_is_the_limit),
        CO_TEST(a_large_request_counts_as_several),
        CO_TEST(a_lease_is_of_one_reactor),
        CO_TEST(the_lower_of_two_limits_holds),
        CO_TEST(directions_have_limits_of_their_own),
        CO_TEST(a_burst_lasts_as_long_as_it_may),
        CO_TEST(what_came_late_is_not_lost),
        CO_TEST(idle_time_is_not_kept),
        CO_TEST(members_have_equal_shares),
        CO_TEST(a_member_alone_has_everything),
        CO_TEST(limits_change_while_requests_wait),
        CO_TEST(a_change_that_is_refused_changes_nothing),
        CO_TEST(properties_are_read_and_set),
        CO_TEST(a_drain_lets_all_pass_and_they_are_paid_for),
        CO_TEST(what_passes_early_makes_no_debt_for_ever),
        CO_TEST(the_end_of_a_user_waits_for_no_limit),
        CO_TEST(members_on_several_reactors),
        CO_TEST(reactors_share_the_limit),
    };

    return cmocka_run_group_tests(tests, setup, co_test_teardown);
}
