/* SPDX-License-Identifier: Apache-2.0 */
/* Merging the extents of separate NBD contexts. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include <stdlib.h>

#include "base/checked.h"
#include "nbd/client.h"
#include "nbd/proto.h"

#define BYTES 300

/* Random extents of at least `least` bytes, and the flags of each byte in `flags`. */
static struct nbd_extents random_extents(unsigned *seed, size_t least, uint64_t most_flags,
                                         uint64_t *flags)
{
    struct nbd_extents e = {.list = calloc(BYTES, sizeof(*e.list))};
    size_t at = 0;

    assert_non_null(e.list);
    while (at < least) {
        uint64_t length = 1 + (uint64_t)rand_r(seed) % 20;
        uint64_t value = (uint64_t)rand_r(seed) % (most_flags + 1);

        length = MIN(length, BYTES - at);
        e.list[e.count++] = (struct nbd_extent){.length = length, .flags = value};
        for (uint64_t i = 0; i < length; i++) {
            flags[at++] = value;
        }
    }
    for (; at < BYTES; at++) {
        flags[at] = UINT64_MAX; /* not reported */
    }
    return e;
}

static uint64_t wanted(uint64_t base, uint64_t depth, uint64_t dirty)
{
    return (base & 3) |
           (depth == 1  ? NBD_MERGED_LOCAL
            : depth > 1 ? NBD_MERGED_BACKING
                        : 0) |
           nbd_merged_of_depth((unsigned)depth) | (dirty & 1 ? NBD_MERGED_DIRTY : 0);
}

static void each_byte_has_the_flags_of_all_contexts(void **state)
{
    for (unsigned round = 0; round < 2000; round++) {
        unsigned seed = round, has = round % 8;
        uint64_t base[BYTES], depth[BYTES], dirty[BYTES];
        struct nbd_extents b = random_extents(&seed, 1 + seed % 200, 7, base);
        struct nbd_extents d = random_extents(&seed, 1 + seed % 150, 3, depth);
        struct nbd_extents bits = random_extents(&seed, 1 + seed % 250, 1, dirty);
        uint64_t length = 1 + (uint64_t)rand_r(&seed) % BYTES, at = 0;
        struct nbd_extents merged;

        assert_int_equal(nbd_extents_merge(has & 1 ? &b : NULL, has & 2 ? &d : NULL,
                                           has & 4 ? &bits : NULL, length, &merged),
                         0);
        for (size_t i = 0; i < merged.count; i++) {
            assert_true(merged.list[i].length > 0);
            assert_true(i == 0 || merged.list[i].flags != merged.list[i - 1].flags);
            for (uint64_t n = 0; n < merged.list[i].length; n++, at++) {
                assert_true(at < length);
                assert_int_equal(merged.list[i].flags,
                                 wanted(has & 1 ? base[at] : 0, has & 2 ? depth[at] : 1,
                                        has & 4 ? dirty[at] : 0));
            }
        }
        /* It ends where the first of them does. */
        assert_true(at == length || ((has & 1) && base[at] == UINT64_MAX) ||
                    ((has & 2) && depth[at] == UINT64_MAX) ||
                    ((has & 4) && dirty[at] == UINT64_MAX));
        nbd_extents_clear(&merged);
        nbd_extents_clear(&b);
        nbd_extents_clear(&d);
        nbd_extents_clear(&bits);
    }
}

static void impossible_depths_are_backing_files(void **state)
{
    struct nbd_extent huge = {.length = 5, .flags = UINT64_MAX};
    struct nbd_extents depth = {.list = &huge, .count = 1}, merged;

    assert_int_equal(nbd_extents_merge(NULL, &depth, NULL, 5, &merged), 0);
    assert_int_equal(merged.count, 1);
    assert_int_equal((uint32_t)merged.list[0].flags, NBD_MERGED_BACKING);
    assert_int_equal(nbd_merged_depth(merged.list[0].flags), UINT32_MAX);
    nbd_extents_clear(&merged);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(each_byte_has_the_flags_of_all_contexts),
        cmocka_unit_test(impossible_depths_are_backing_files),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
