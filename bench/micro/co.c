/* SPDX-License-Identifier: Apache-2.0 */
/* What coroutines cost on one thread: switches, starts, and a mutex nobody waits for. */
#include <stdio.h>
#include <time.h>

#include "co/sync.h"

#define ROUNDS 2000000

static struct list runnable = LIST_INIT(runnable);

static void enqueue(struct co_home *home, struct co *co)
{
    list_append(&runnable, co_link(co));
}

static struct co_home home = {.enqueue = enqueue};

static void run_all(void)
{
    while (!list_is_empty(&runnable)) {
        struct list *l = runnable.next;

        list_remove(l);
        co_resume(co_from_link(l));
    }
}

static double now_ns(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (double)ts.tv_sec * 1e9 + (double)ts.tv_nsec;
}

static void report(const char *what, double begin, double count)
{
    printf("%-44s %7.1f ns\n", what, (now_ns() - begin) / count);
}

static void nothing(void *arg)
{
}

static void reschedule(void *arg)
{
    for (int i = 0; i < ROUNDS / *(int *)arg; i++) {
        co_reschedule();
    }
}

static void bench_switch(int coroutines)
{
    char what[64];
    double begin = now_ns();

    for (int i = 0; i < coroutines; i++) {
        if (co_spawn(&home, reschedule, &coroutines) < 0) {
            return;
        }
    }
    run_all();
    snprintf(what, sizeof(what), "switch (half a reschedule), %d coroutines", coroutines);
    report(what, begin, 2.0 * ROUNDS);
}

static void bench_start(void)
{
    double begin = now_ns();

    for (int i = 0; i < ROUNDS; i++) {
        (void)co_run(&home, nothing, NULL);
    }
    report("co_run of an empty function", begin, ROUNDS);
    begin = now_ns();
    for (int i = 0; i < ROUNDS; i++) {
        (void)co_spawn(&home, nothing, NULL);
        run_all();
    }
    report("co_spawn of an empty function", begin, ROUNDS);
}

static void lock_and_unlock(void *arg)
{
    struct co_mutex mutex;
    struct range_lock ranges;
    double begin;

    co_mutex_init(&mutex);
    begin = now_ns();
    for (int i = 0; i < ROUNDS; i++) {
        co_mutex_lock(&mutex);
        co_mutex_unlock(&mutex);
    }
    report("uncontended mutex, lock and unlock", begin, ROUNDS);
    co_mutex_destroy(&mutex);

    range_lock_init(&ranges);
    begin = now_ns();
    for (int i = 0; i < ROUNDS; i++) {
        struct range_entry entry;

        co_range_lock(&ranges, &entry, 0, 4096, true);
        range_unlock(&ranges, &entry);
    }
    report("uncontended range, lock and unlock", begin, ROUNDS);
    range_lock_destroy(&ranges);
}

int main(void)
{
    bench_switch(1);
    bench_switch(32);
    bench_switch(1000);
    bench_start();
    (void)co_run(&home, lock_and_unlock, NULL);
    co_thread_cleanup();
    return 0;
}
