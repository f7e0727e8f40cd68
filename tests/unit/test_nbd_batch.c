/* SPDX-License-Identifier: Apache-2.0 */
/* When an NBD server holds replies back for more requests. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include <unistd.h>

#include "nbd/batch.h"

/* A thread that loses its processor for longer than a batch is held learns that nothing comes. */
#define LOOKS_MAX 100000

/*
 * A batch of `n` requests that are there at once, then an empty socket for good. True if it was
 * held for a moment.
 */
static bool serve(struct nbd_batch *b, unsigned n)
{
    bool held = false;

    for (unsigned i = 0; i < n; i++) {
        nbd_batch_count(b);
    }
    while (nbd_batch_hold(b)) {
        held = true;
    }
    nbd_batch_end(b);
    return held;
}

/*
 * As above, but the requests come one by one, each found by one more look. *ret_answered: how many
 * were answered together.
 */
static void serve_trickle(struct nbd_batch *b, unsigned n, unsigned *ret_answered)
{
    nbd_batch_count(b);
    while (nbd_batch_hold(b)) {
        if (b->received < n) {
            nbd_batch_count(b);
        }
    }
    *ret_answered = b->received;
    nbd_batch_end(b);
}

static void lone_requests_are_answered_at_once(void **state)
{
    struct nbd_batch b;
    unsigned held = 0;

    nbd_batch_init(&b);
    for (int i = 0; i < 5000; i++) {
        held += serve(&b, 1);
    }
    /* One moment in some hundred requests, to find out. */
    assert_in_range(held, 1, 20);
}

static void nothing_is_held_while_nothing_waits_for_an_answer(void **state)
{
    struct nbd_batch b;

    nbd_batch_init(&b);
    b.until_probe = 0;
    assert_false(nbd_batch_hold(&b));
    assert_false(nbd_batch_is_holding(&b));
}

/* Then the socket is not looked at again before the reply has left. */
static void a_lone_request_is_known_to_be_alone(void **state)
{
    struct nbd_batch b;
    unsigned answered;

    nbd_batch_init(&b);
    assert_false(nbd_batch_is_single(&b));
    nbd_batch_count(&b);
    assert_true(nbd_batch_is_single(&b));
    nbd_batch_count(&b);
    assert_false(nbd_batch_is_single(&b));
    nbd_batch_end(&b);
    /* When the depth is measured, and where many are in flight, more may come. */
    b.until_probe = 0;
    nbd_batch_count(&b);
    assert_false(nbd_batch_is_single(&b));
    for (int i = 0; i < 300 || (b.depth == 0 && i < LOOKS_MAX); i++) {
        serve_trickle(&b, 32, &answered);
    }
    nbd_batch_count(&b);
    assert_false(nbd_batch_is_single(&b));
}

static void many_in_flight_are_answered_together(void **state)
{
    struct nbd_batch b;
    unsigned answered = 0;

    nbd_batch_init(&b);
    for (int i = 0; i < 300 || (answered < 8 && i < LOOKS_MAX); i++) {
        serve_trickle(&b, 32, &answered);
    }
    assert_in_range(answered, 8, 32);
}

static void a_client_that_sends_less_is_soon_not_waited_for(void **state)
{
    struct nbd_batch b;
    unsigned answered;
    bool held = true;

    nbd_batch_init(&b);
    for (int i = 0; i < 300; i++) {
        serve_trickle(&b, 32, &answered);
    }
    for (int i = 0; i < 32 && held; i++) {
        held = serve(&b, 1);
    }
    assert_false(held);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(lone_requests_are_answered_at_once),
        cmocka_unit_test(nothing_is_held_while_nothing_waits_for_an_answer),
        cmocka_unit_test(a_lone_request_is_known_to_be_alone),
        cmocka_unit_test(many_in_flight_are_answered_together),
        cmocka_unit_test(a_client_that_sends_less_is_soon_not_waited_for),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
