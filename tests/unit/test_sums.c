/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Checksum files of backups: what is longer than it says, and runs longer than a field of 32 bits.
 */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "backup/sums.h"
#include "base/cleanup.h"

#define PATH "sums"
#define DISK (1u << 20)

static void test_a_file_with_something_behind_its_end_is_refused(void **state)
{
    int fd AUTO_CLOSE = open(PATH, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    uint8_t digest[SUMS_DIGEST_SIZE] = {1};
    struct stored *file = stored_create(fd, NULL, STORED_SUMS);
    struct sums_runs runs = {0};
    struct sums sums;

    assert_int_equal(sums_runs_add(&runs, 2, 1, SUMS_DATA), 0);
    assert_int_equal(sums_write_digests(file, 0, digest, 1), 0);
    assert_int_equal(sums_write_finish(file, &runs, DISK), 0);
    stored_free(file);
    sums_runs_clear(&runs);
    assert_int_equal(sums_open(open(PATH, O_RDONLY | O_CLOEXEC), NULL, PATH, DISK, &sums, NULL), 0);
    sums_close(&sums);
    assert_int_equal(lseek(fd, 0, SEEK_END) > 0 && write(fd, "", 1) == 1, 1);
    assert_int_equal(sums_open(open(PATH, O_RDONLY | O_CLOEXEC), NULL, PATH, DISK, &sums, NULL),
                     -EINVAL);
    unlink(PATH);
}

static uint64_t clusters_of(const struct sums_runs *r)
{
    uint64_t count = 0;

    for (size_t i = 0; i < r->count; i++) {
        assert_int_equal(r->list[i].digest, count);
        count += r->list[i].count;
    }
    return count;
}

static void test_runs_longer_than_32_bits_are_split(void **state)
{
    const uint64_t most = UINT32_MAX;
    struct sums_runs runs = {0};

    assert_int_equal(sums_runs_add(&runs, 0, most - 1, SUMS_ZERO), 0);
    assert_int_equal(sums_runs_add(&runs, most - 1, 10, SUMS_ZERO), 0);
    assert_int_equal(runs.count, 2);
    assert_true(runs.list[1].first == most);
    assert_true(clusters_of(&runs) == most + 9);
    assert_int_equal(sums_runs_add(&runs, most + 9, 3 * most, SUMS_ZERO), 0);
    assert_true(clusters_of(&runs) == 4 * most + 9);
    assert_true(runs.digests == 4 * most + 9);
    sums_runs_clear(&runs);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_file_with_something_behind_its_end_is_refused),
        cmocka_unit_test(test_runs_longer_than_32_bits_are_split),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
