/* SPDX-License-Identifier: Apache-2.0 */
/* One qcow2 image, guests on four reactors: writes that allocate, zeroes, discards, flushes, reads. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "model_disk.h"
#include "qcow2_fixture.h"

#include "base/checked.h"

#define REACTORS 4
#define SIZE (8 * MiB)

static struct reactor *reactors[REACTORS];

static void run_guests(const char *create_options, const char *open_options, unsigned ops,
                       bool compressed)
{
    struct model_disk disk;
    struct image i;

    model_disk_init(&disk, SIZE);
    image_create("a", SIZE, create_options);
    for (unsigned round = 0; round < 2; round++) {
        image_open(&i, "a", open_options);
        model_disk_co_run(&(struct model_guests){
            .disk = &disk,
            .edge = i.edge,
            .reactors = reactors,
            .reactor_count = REACTORS,
            .per_reactor = 3,
            .ops = ops,
            .seed = round + 1,
            .cluster_size = i.node->limits.cluster_size,
            .compressed = compressed,
        });
        if (atomic_load(&disk.failures) == 0) {
            model_disk_co_verify(&disk, i.edge);
        }
        if (atomic_load(&disk.failures) > 0) {
            fail_msg("%s, %s: %s", create_options, open_options, disk.why);
        }
        image_close(&i);
        image_check("a", 0);
    }
    model_disk_release(&disk);
}

static void small_clusters_and_small_caches(void *arg)
{
    run_guests("cluster_size=512",
               ",l2-cache-size=512,l2-cache-entry-size=512,refcount-cache-size=512", 150, false);
}

static void compressed_and_plain_clusters(void *arg)
{
    run_guests("cluster_size=4k", "", 150, true);
}

static void large_clusters(void *arg)
{
    run_guests("cluster_size=64k", "", 60, false);
}

/* Entries of two words: readers must not see one old and one new. */
static void subclusters(void *arg)
{
    run_guests("cluster_size=16k,extended_l2=on", "", 80, true);
    run_guests("cluster_size=64k,extended_l2=on", ",l2-cache-size=1k,l2-cache-entry-size=512", 30,
               false);
}

static void co_start_reactors(void *arg)
{
    reactors[0] = reactor_main();
    for (unsigned n = 1; n < REACTORS; n++) {
        assert_int_equal(reactor_create("guest", &reactors[n], NULL), 0);
    }
}

static void co_stop_reactors(void *arg)
{
    for (unsigned n = 1; n < REACTORS; n++) {
        reactor_destroy(reactors[n]);
    }
}

static int setup(void **state)
{
    int r = qcow2_group_setup(state);

    return r < 0 ? r : reactor_run_until_done(co_start_reactors, NULL);
}

static int teardown(void **state)
{
    reactor_run_until_done(co_stop_reactors, NULL);
    return qcow2_group_teardown(state);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        CO_TEST(small_clusters_and_small_caches),
        CO_TEST(compressed_and_plain_clusters),
        CO_TEST(large_clusters),
        CO_TEST(subclusters),
    };

    return cmocka_run_group_tests(tests, setup, teardown);
}
