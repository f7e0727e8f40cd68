/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Jobs with a driver of the test: states and their order, transactions, pauses, the speed limit,
 * the copy loop and its error policies.
 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/checked.h"
#include "base/time_units.h"
#include "block/control_lock.h"
#include "co_test.h"
#include "job/copy_loop.h"
#include "job/job.h"
#include "loop/loop.h"

/* What the jobs of a test do, and what was seen of them. */
static struct plan {
    int result;        /* of co_run */
    bool wait;         /* co_run goes from pause point to pause point until `wait` is false */
    bool release_lock; /* co_commit lets commands run */
    int prepare;       /* of co_prepare */
    char events[2048];
} plan;

static int test_co_run(struct job *job, void *state, struct error *err)
{
    int r = 0;

    while (plan.wait && r == 0) {
        job_co_sleep(job, NS_PER_MS);
        r = job_co_pause_point(job);
    }
    return r < 0 ? r : plan.result;
}

static void note(const char *what)
{
    snprintf(plan.events + strlen(plan.events), sizeof(plan.events) - strlen(plan.events), "%s ",
             what);
}

static int test_co_prepare(struct job *job, void *state, struct error *err)
{
    note("prepare");
    return plan.prepare;
}

static void test_co_commit(struct job *job, void *state)
{
    note("commit");
    if (plan.release_lock) {
        block_control_unlock();
        loop_co_sleep(5 * NS_PER_MS);
        block_co_control_lock();
    }
}

static void test_co_abort(struct job *job, void *state)
{
    note("abort");
}

static void test_co_clean(struct job *job, void *state)
{
    note("clean");
}

static const struct job_driver test_driver = {
    .type = "backup",
    .block_job = true,
    .co_run = test_co_run,
    .co_prepare = test_co_prepare,
    .co_commit = test_co_commit,
    .co_abort = test_co_abort,
    .co_clean = test_co_clean,
};

static const char *failing; /* the job whose co_prepare fails */

static int named_co_prepare(struct job *job, void *state, struct error *err)
{
    note(job_id(job));
    return failing && strcmp(job_id(job), failing) == 0 ? -EPERM : 0;
}

static const struct job_driver plain_driver = {
    .type = "backup",
    .block_job = true,
    .co_run = test_co_run,
    .co_prepare = named_co_prepare,
    .co_commit = test_co_commit,
    .co_abort = test_co_abort,
};

/* As a mirror, whose users move in co_prepare. */
static const struct job_driver final_driver = {
    .type = "mirror",
    .block_job = true,
    .co_run = test_co_run,
    .prepare_is_final = true,
    .co_prepare = named_co_prepare,
    .co_commit = test_co_commit,
    .co_abort = test_co_abort,
};

static void on_event(const struct job_event *event)
{
    static const char *const names[] = {"", "READY", "PENDING", "COMPLETED", "CANCELLED", "ERROR"};
    char text[64];

    snprintf(text, sizeof(text), "%s:%s", event->info.id,
             event->kind == JOB_EVENT_STATUS ? job_status_name(event->info.status)
                                             : names[event->kind]);
    note(text);
}

static void begin(void)
{
    plan = (struct plan){0};
    job_set_event_fn(on_event);
}

static struct job *make_job(const char *id, struct job_txn *txn, bool automatic)
{
    struct job_config config = JOB_CONFIG_INIT;
    struct job *job;

    config.id = id;
    config.txn = txn;
    config.auto_finalize = automatic;
    assert_int_equal(job_new(&test_driver, &config, &job, NULL), 0);
    return job;
}

static struct job *start_job(const char *id, bool automatic)
{
    struct job *job = make_job(id, NULL, automatic);

    job_start(job);
    return job;
}

static void co_wait_until_gone(void)
{
    for (int i = 0; job_next(NULL) && i < 5000; i++) {
        loop_co_sleep(NS_PER_MS);
    }
    assert_null(job_next(NULL));
}

static void co_wait_status(struct job *job, enum job_status status)
{
    for (int i = 0; job_get_info(job).status != status && i < 5000; i++) {
        loop_co_sleep(NS_PER_MS);
    }
    assert_int_equal(job_get_info(job).status, status);
}

static void co_a_job_runs_to_its_end(void)
{
    begin();
    start_job("j", true);
    co_wait_until_gone();
    assert_string_equal(plan.events, "j:created j:running j:waiting j:pending prepare commit clean "
                                     "j:COMPLETED j:concluded j:null ");
}

static void co_a_failed_job_is_aborted(void)
{
    begin();
    plan.result = -EIO;
    start_job("j", true);
    co_wait_until_gone();
    assert_string_equal(plan.events, "j:created j:running j:aborting abort clean j:COMPLETED "
                                     "j:concluded j:null ");
}

static void co_a_job_whose_last_step_fails_is_aborted(void)
{
    begin();
    plan.prepare = -EPERM;
    start_job("j", true);
    co_wait_until_gone();
    assert_string_equal(plan.events, "j:created j:running j:waiting j:pending prepare j:aborting "
                                     "abort clean j:COMPLETED j:concluded j:null ");
}

static void co_pause_cancel_and_resume(void)
{
    struct job *job;

    begin();
    plan.wait = true;
    job = start_job("j", true);
    loop_co_sleep(2 * NS_PER_MS);
    assert_int_equal(job_resume(job, NULL), -EINVAL);
    assert_int_equal(job_pause(job, NULL), 0);
    assert_int_equal(job_pause(job, NULL), -EINVAL);
    co_wait_status(job, JOB_PAUSED);
    assert_int_equal(job_resume(job, NULL), 0);
    co_wait_status(job, JOB_RUNNING);
    assert_int_equal(job_pause(job, NULL), 0);
    co_wait_status(job, JOB_PAUSED);
    block_co_control_lock();
    assert_int_equal(job_co_cancel(job, true, NULL), 0);
    block_control_unlock();
    co_wait_until_gone();
    assert_string_equal(plan.events, "j:created j:running j:paused j:running j:paused j:running "
                                     "j:aborting abort clean j:CANCELLED j:concluded j:null ");
}

/* Make two jobs that end together, and let the first one do its work. */
static void co_make_group(bool automatic, struct job **ret_a, struct job **ret_b)
{
    struct job_txn *txn = job_txn_new();

    begin();
    *ret_a = make_job("a", txn, automatic);
    *ret_b = make_job("b", txn, automatic);
    job_txn_unref(txn);
    job_start(*ret_a);
    co_wait_status(*ret_a, JOB_WAITING);
}

static void co_jobs_of_a_group_wait_for_each_other(void)
{
    struct job *a, *b;

    co_make_group(true, &a, &b);
    job_start(b);
    co_wait_until_gone();
    assert_string_equal(plan.events,
                        "a:created b:created a:running a:waiting b:running b:waiting a:pending "
                        "b:pending prepare prepare commit clean a:COMPLETED a:concluded a:null "
                        "commit clean b:COMPLETED b:concluded b:null ");
}

static void co_one_of_a_group_fails_for_all(void)
{
    struct job *a, *b;

    co_make_group(true, &a, &b);
    plan.result = -EIO;
    job_start(b);
    co_wait_until_gone();
    assert_string_equal(plan.events,
                        "a:created b:created a:running a:waiting b:running b:aborting abort clean "
                        "b:COMPLETED b:concluded b:null a:aborting abort clean a:CANCELLED "
                        "a:concluded a:null ");
}

static void co_a_cancel_of_one_that_waits_ends_the_group(void)
{
    struct job *a, *b;

    co_make_group(true, &a, &b);
    plan.wait = true;
    job_start(b);
    loop_co_sleep(2 * NS_PER_MS);
    block_co_control_lock();
    assert_int_equal(job_co_cancel(a, false, NULL), 0);
    block_control_unlock();
    co_wait_until_gone();
    assert_non_null(strstr(plan.events, "a:CANCELLED a:concluded a:null b:aborting abort clean "
                                        "b:CANCELLED b:concluded b:null "));
}

static void co_a_group_waits_for_one_finalize(void)
{
    struct job *a, *b;

    co_make_group(false, &a, &b);
    job_start(b);
    co_wait_status(b, JOB_PENDING);
    assert_non_null(strstr(plan.events, "a:pending a:PENDING b:pending b:PENDING "));
    block_co_control_lock();
    assert_int_equal(job_co_finalize(b, NULL), 0);
    block_control_unlock();
    assert_null(job_next(NULL));
}

/* Jobs "m" and "n" with a final step, and "b" without; what was seen since they were pending. */
static const char *co_end_mixed_group(const char *which_fails)
{
    static const struct {
        const char *id;
        const struct job_driver *driver;
    } wanted[] = {{"m", &final_driver}, {"b", &plain_driver}, {"n", &final_driver}};
    struct job_txn *txn = job_txn_new();
    struct job *jobs[ARRAY_SIZE(wanted)];

    begin();
    failing = which_fails;
    for (size_t i = 0; i < ARRAY_SIZE(wanted); i++) {
        struct job_config config = JOB_CONFIG_INIT;

        config.id = wanted[i].id;
        config.txn = txn;
        assert_int_equal(job_new(wanted[i].driver, &config, &jobs[i], NULL), 0);
    }
    job_txn_unref(txn);
    for (size_t i = 0; i < ARRAY_SIZE(wanted); i++) {
        job_start(jobs[i]);
    }
    co_wait_until_gone();
    return strstr(plan.events, "n:pending ") + strlen("n:pending ");
}

static void co_final_steps_come_last(void)
{
    assert_string_equal(co_end_mixed_group(NULL),
                        "b m n commit m:COMPLETED m:concluded m:null commit b:COMPLETED "
                        "b:concluded b:null commit n:COMPLETED n:concluded n:null ");
}

static void co_no_final_step_is_made_if_another_job_fails(void)
{
    assert_string_equal(co_end_mixed_group("b"),
                        "b b:aborting abort b:COMPLETED b:concluded b:null m:aborting abort "
                        "m:CANCELLED m:concluded m:null n:aborting abort n:CANCELLED n:concluded "
                        "n:null ");
}

static void co_what_took_effect_is_not_called_cancelled(void)
{
    assert_string_equal(co_end_mixed_group("n"),
                        "b m n n:aborting abort n:COMPLETED n:concluded n:null commit m:COMPLETED "
                        "m:concluded m:null b:aborting abort b:CANCELLED b:concluded b:null ");
}

static void co_a_job_that_takes_effect_is_not_cancelled(void)
{
    struct job *job;

    begin();
    plan.release_lock = true;
    job = start_job("j", true);
    while (!strstr(plan.events, "commit")) {
        loop_co_sleep(NS_PER_MS);
    }
    block_co_control_lock();
    assert_int_equal(job_co_cancel(job, true, NULL), -EPERM);
    assert_int_equal(job_co_finalize(job, NULL), -EPERM);
    assert_false(job_awaits_end(job));
    job_co_await_effect(job);
    assert_null(job_find("j"));
    block_control_unlock();
    assert_string_equal(plan.events, "j:created j:running j:waiting j:pending prepare commit clean "
                                     "j:COMPLETED j:concluded j:null ");
}

static void co_a_job_that_is_not_started_leaves_nothing(void)
{
    struct job_config config = JOB_CONFIG_INIT;
    struct job *job;

    begin();
    config.id = "j";
    assert_int_equal(job_new(&test_driver, &config, &job, NULL), 0);
    assert_int_equal(job_new(&test_driver, &config, &job, NULL), -EEXIST);
    job_co_discard(job);
    assert_null(job_find("j"));
    assert_string_equal(plan.events, "j:created abort clean j:null ");
    config.id = "1";
    assert_int_equal(job_new(&test_driver, &config, &job, NULL), -EINVAL);
}

/* --- the copy loop ---------------------------------------------------------------------------- */

#define DISK (4 * MiB)
#define PIECE (64 * KiB)

static struct copying {
    struct dirty_bitmap *todo;
    unsigned calls, in_flight, most_in_flight;
    unsigned char copied[DISK / PIECE];
    int fail_times; /* how many pieces fail */
    uint64_t owes;  /* bytes that the first piece moves in addition */
    struct copy_loop_params params;
    int r;
} copying;

static int test_co_copy(void *arg, const struct copy_piece_plan *piece, bool *ret_reading)
{
    copying.calls++;
    copying.in_flight++;
    job_pace_after(copying.params.job, copying.owes);
    copying.owes = 0;
    copying.most_in_flight = MAX(copying.most_in_flight, copying.in_flight);
    loop_co_sleep(NS_PER_MS / 10);
    copying.in_flight--;
    if (copying.fail_times > 0) {
        copying.fail_times--;
        return -EIO;
    }
    for (uint64_t at = piece->offset; at < piece->offset + piece->length; at += PIECE) {
        copying.copied[at / PIECE]++;
    }
    return 0;
}

static int copying_co_run(struct job *job, void *state, struct error *err)
{
    copying.params.job = job;
    copying.r = copy_loop_co_run(&copying.params);
    return copying.r;
}

static const struct job_driver copying_driver = {
    .type = "mirror",
    .block_job = true,
    .co_run = copying_co_run,
};

static struct job *start_copying(enum job_on_error policy, int fail_times, uint64_t speed)
{
    struct job_config config = JOB_CONFIG_INIT;
    struct job *job;

    begin();
    copying = (struct copying){.todo = dirty_bitmap_new(DISK, PIECE), .fail_times = fail_times};
    dirty_bitmap_set(copying.todo, 0, DISK);
    copying.params = (struct copy_loop_params){
        .todo = copying.todo,
        .chunk = PIECE,
        .workers = 4,
        .on_target_error = policy,
        .co_copy = test_co_copy,
    };
    config.id = "c";
    config.speed = speed;
    assert_int_equal(job_new(&copying_driver, &config, &job, NULL), 0);
    job_progress_set_total(job, DISK);
    job_start(job);
    return job;
}

static void co_the_loop_copies_everything_once(void)
{
    start_copying(JOB_ON_ERROR_REPORT, 0, 0);
    co_wait_until_gone();
    assert_int_equal(copying.r, 0);
    assert_int_equal(copying.calls, DISK / PIECE);
    assert_int_equal(copying.most_in_flight, 4);
    for (size_t i = 0; i < ARRAY_SIZE(copying.copied); i++) {
        assert_int_equal(copying.copied[i], 1);
    }
    dirty_bitmap_free(copying.todo);
}

static void co_an_ignored_error_is_tried_again(void)
{
    start_copying(JOB_ON_ERROR_IGNORE, 3, 0);
    co_wait_until_gone();
    assert_int_equal(copying.r, 0);
    assert_int_equal(dirty_bitmap_count(copying.todo), 0);
    for (size_t i = 0; i < ARRAY_SIZE(copying.copied); i++) {
        assert_int_equal(copying.copied[i], 1);
    }
    dirty_bitmap_free(copying.todo);
}

static void co_a_reported_error_leaves_its_piece_dirty(void)
{
    start_copying(JOB_ON_ERROR_REPORT, 1, 0);
    co_wait_until_gone();
    assert_int_equal(copying.r, -EIO);
    assert_true(dirty_bitmap_get(copying.todo, 0));
    dirty_bitmap_free(copying.todo);
}

static void co_an_error_that_stops_waits_for_the_user(void)
{
    struct job *job = start_copying(JOB_ON_ERROR_STOP, 1, 0);

    co_wait_status(job, JOB_PAUSED);
    assert_int_equal(job_get_info(job).io_status, JOB_IO_FAILED);
    assert_int_equal(job_resume(job, NULL), 0);
    assert_int_equal(job_get_info(job).io_status, JOB_IO_OK);
    co_wait_until_gone();
    assert_int_equal(copying.r, 0);
    for (size_t i = 0; i < ARRAY_SIZE(copying.copied); i++) {
        assert_int_equal(copying.copied[i], 1);
    }
    dirty_bitmap_free(copying.todo);
}

static void co_verbs_end_the_sleep_of_a_low_speed(void)
{
    struct job *job = start_copying(JOB_ON_ERROR_REPORT, 0, 1);
    int64_t start = loop_now_ns();

    loop_co_sleep(2 * NS_PER_MS);
    assert_true(copying.calls < 4);
    assert_int_equal(job_pause(job, NULL), 0);
    co_wait_status(job, JOB_PAUSED);
    assert_int_equal(job_resume(job, NULL), 0);
    assert_int_equal(job_set_speed(job, 0, NULL), 0);
    co_wait_until_gone();
    assert_int_equal(copying.r, 0);
    assert_true(loop_now_ns() - start < 5 * NS_PER_SECOND);
    dirty_bitmap_free(copying.todo);
}

static void co_a_limit_that_is_lifted_ends_the_sleep(void)
{
    struct job *job = start_copying(JOB_ON_ERROR_REPORT, 0, 1);
    int64_t start = loop_now_ns();

    loop_co_sleep(2 * NS_PER_MS);
    assert_true(copying.calls < 4);
    assert_int_equal(job_set_speed(job, 0, NULL), 0);
    co_wait_until_gone();
    assert_int_equal(copying.r, 0);
    assert_true(loop_now_ns() - start < 5 * NS_PER_SECOND);
    dirty_bitmap_free(copying.todo);
}

/* A pause ends the wait of a piece, which is not copied before its time for that. */
static void co_a_pause_lets_no_piece_through(void)
{
    struct job *job = start_copying(JOB_ON_ERROR_REPORT, 0, 1);

    for (int i = 0; i < 5; i++) {
        loop_co_sleep(2 * NS_PER_MS);
        assert_int_equal(job_pause(job, NULL), 0);
        co_wait_status(job, JOB_PAUSED);
        assert_int_equal(copying.calls, 1);
        assert_int_equal(dirty_bitmap_count(copying.todo), DISK - PIECE);
        assert_int_equal(job_resume(job, NULL), 0);
    }
    assert_int_equal(job_set_speed(job, 0, NULL), 0);
    co_wait_until_gone();
    for (size_t i = 0; i < ARRAY_SIZE(copying.copied); i++) {
        assert_int_equal(copying.copied[i], 1);
    }
    dirty_bitmap_free(copying.todo);
}

/* What a piece moves in addition counts for the limit: the next one waits for 100 s. */
static void co_what_could_not_wait_counts_for_the_limit(void)
{
    const uint64_t speed = 1000 * GiB;
    struct job *job = start_copying(JOB_ON_ERROR_REPORT, 0, speed);

    copying.owes = 100 * speed;
    loop_co_sleep(50 * NS_PER_MS);
    assert_int_equal(copying.calls, 1);
    assert_int_equal(job_set_speed(job, 0, NULL), 0);
    co_wait_until_gone();
    assert_int_equal(copying.r, 0);
    assert_int_equal(copying.calls, DISK / PIECE);
    dirty_bitmap_free(copying.todo);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        CO_TEST(co_a_job_runs_to_its_end),
        CO_TEST(co_a_failed_job_is_aborted),
        CO_TEST(co_a_job_whose_last_step_fails_is_aborted),
        CO_TEST(co_pause_cancel_and_resume),
        CO_TEST(co_jobs_of_a_group_wait_for_each_other),
        CO_TEST(co_one_of_a_group_fails_for_all),
        CO_TEST(co_a_cancel_of_one_that_waits_ends_the_group),
        CO_TEST(co_a_group_waits_for_one_finalize),
        CO_TEST(co_final_steps_come_last),
        CO_TEST(co_no_final_step_is_made_if_another_job_fails),
        CO_TEST(co_what_took_effect_is_not_called_cancelled),
        CO_TEST(co_a_job_that_takes_effect_is_not_cancelled),
        CO_TEST(co_a_job_that_is_not_started_leaves_nothing),
        CO_TEST(co_the_loop_copies_everything_once),
        CO_TEST(co_an_ignored_error_is_tried_again),
        CO_TEST(co_a_reported_error_leaves_its_piece_dirty),
        CO_TEST(co_an_error_that_stops_waits_for_the_user),
        CO_TEST(co_what_could_not_wait_counts_for_the_limit),
        CO_TEST(co_verbs_end_the_sleep_of_a_low_speed),
        CO_TEST(co_a_limit_that_is_lifted_ends_the_sleep),
        CO_TEST(co_a_pause_lets_no_piece_through),
    };

    if (co_test_setup() < 0) {
        return 1;
    }
    return cmocka_run_group_tests(tests, NULL, co_test_teardown);
}
