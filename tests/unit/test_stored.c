/* SPDX-License-Identifier: Apache-2.0 */
/* Sealed files against a model in memory: any order, any sizes; and what others have changed. */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "backup/stored.h"
#include "base/cleanup.h"

#define ROOM (20 * STORED_PIECE)
#define PIECE_BYTES (STORED_PIECE + 28)

static const struct backup_key seal = {.seal = {1, 2, 3}}, other = {.seal = {3, 2, 1}};
static uint8_t model[ROOM], read_back[ROOM];

static int new_file(void)
{
    char path[] = "stored-XXXXXX";
    int fd = mkostemp(path, O_CLOEXEC);

    assert_true(fd >= 0);
    unlink(path);
    return fd;
}

static void assert_contents(struct stored *s, size_t size)
{
    assert_int_equal(stored_size(s), size);
    for (size_t at = 0, step = 1; at < size; at += step) {
        step = at + 3 * step + 1 < size ? 3 * step + 1 : size - at;
        assert_int_equal(stored_read(s, read_back + at, step, at), 0);
    }
    assert_memory_equal(read_back, model, size);
    assert_int_equal(stored_read(s, read_back, 1, size), -EIO);
}

/* Writes and truncations of all kinds; returns the size. */
static size_t change_at_random(struct stored *s, unsigned steps)
{
    size_t size = stored_size(s);

    for (unsigned i = 0; i < steps; i++) {
        size_t at = (size_t)rand() % ROOM, length = 1 + (size_t)rand() % (ROOM - at);

        if (i % 5 == 4) {
            assert_int_equal(stored_truncate(s, at), 0);
            memset(model + at, 0, ROOM - at);
            size = at;
            continue;
        }
        if (i % 3 == 0) {
            at -= at % STORED_PIECE;
            length = STORED_PIECE * (1 + (size_t)rand() % 3);
            length = at + length > ROOM ? ROOM - at : length;
        }
        memset(model + at, rand(), length);
        assert_int_equal(stored_write(s, model + at, length, at), 0);
        size = at + length > size ? at + length : size;
    }
    return size;
}

static void test_any_writes_are_read_back(void **state)
{
    for (int sealed = 0; sealed < 2; sealed++) {
        const struct backup_key *key = sealed ? &seal : NULL;
        int fd AUTO_CLOSE = new_file();
        struct stored *s = stored_create(fd, key, STORED_SUMS);
        size_t size = 0;

        srand(7);
        memset(model, 0, sizeof(model));
        for (int i = 0; i < 20; i++) {
            size = change_at_random(s, 6);
            assert_contents(s, size);
            assert_int_equal(stored_finish(s), 0);
            stored_free(s);
            assert_int_equal(stored_open(fd, key, STORED_SUMS, "file", &s, NULL), 0);
            assert_contents(s, size);
        }
        stored_free(s);
    }
}

/* A file of three pieces and a bit. */
static int make_file(void)
{
    int fd = new_file();
    struct stored *s = stored_create(fd, &seal, STORED_IMAGE);

    memset(model, 5, sizeof(model));
    assert_int_equal(stored_write(s, model, 3 * STORED_PIECE + 10, 0), 0);
    assert_int_equal(stored_finish(s), 0);
    stored_free(s);
    return fd;
}

/* Whether the file can be read whole, and is what it was. */
static bool reads_well(int fd, const struct backup_key *key, enum stored_kind kind)
{
    struct stored *s;
    bool good;

    if (stored_open(fd, key, kind, "file", &s, NULL) < 0) {
        return false;
    }
    good = stored_read(s, read_back, 3 * STORED_PIECE + 10, 0) == 0;
    stored_free(s);
    assert_true(!good || memcmp(read_back, model, 3 * STORED_PIECE + 10) == 0);
    return good;
}

static void test_every_byte_counts(void **state)
{
    int fd AUTO_CLOSE = make_file();
    struct stat st;

    assert_int_equal(fstat(fd, &st), 0);
    assert_int_equal(st.st_size, STORED_HEADER_SIZE + 4 * PIECE_BYTES);
    assert_true(reads_well(fd, &seal, STORED_IMAGE));
    for (off_t at = 0; at < st.st_size; at += at < 200 ? 1 : 61) {
        uint8_t byte;

        assert_int_equal(pread(fd, &byte, 1, at), 1);
        byte ^= 1;
        assert_int_equal(pwrite(fd, &byte, 1, at), 1);
        assert_false(reads_well(fd, &seal, STORED_IMAGE));
        byte ^= 1;
        assert_int_equal(pwrite(fd, &byte, 1, at), 1);
    }
    assert_true(reads_well(fd, &seal, STORED_IMAGE));
}

static void test_other_keys_kinds_and_sizes(void **state)
{
    int fd AUTO_CLOSE = make_file();

    assert_false(reads_well(fd, &other, STORED_IMAGE));
    assert_false(reads_well(fd, &seal, STORED_SUMS));
    assert_int_equal(ftruncate(fd, STORED_HEADER_SIZE + 3 * PIECE_BYTES), 0);
    assert_false(reads_well(fd, &seal, STORED_IMAGE));
    assert_int_equal(ftruncate(fd, STORED_HEADER_SIZE + 4 * PIECE_BYTES), 0);
    assert_false(reads_well(fd, &seal, STORED_IMAGE));
}

static void test_pieces_that_change_places(void **state)
{
    static uint8_t first[PIECE_BYTES], second[PIECE_BYTES];
    int fd AUTO_CLOSE = make_file();

    assert_int_equal(pread(fd, first, PIECE_BYTES, STORED_HEADER_SIZE), PIECE_BYTES);
    assert_int_equal(pread(fd, second, PIECE_BYTES, STORED_HEADER_SIZE + PIECE_BYTES), PIECE_BYTES);
    /* The same contents, in another place. */
    assert_int_equal(pwrite(fd, second, PIECE_BYTES, STORED_HEADER_SIZE), PIECE_BYTES);
    assert_false(reads_well(fd, &seal, STORED_IMAGE));
}

static void test_a_file_that_was_not_completed_does_not_open(void **state)
{
    int fd AUTO_CLOSE = new_file();
    struct stored *s = stored_create(fd, &seal, STORED_IMAGE), *again;

    assert_int_equal(stored_write(s, model, 2 * STORED_PIECE, 0), 0);
    assert_int_equal(stored_open(fd, &seal, STORED_IMAGE, "file", &again, NULL), -EBADMSG);
    stored_free(s);
}

static void test_texts(void **state)
{
    uint8_t *data;
    char *text;
    size_t size, length;

    assert_int_equal(stored_seal_text(&seal, STORED_MANIFEST, "{}", 2, &data, &size), 0);
    assert_int_equal(
        stored_open_text(&seal, STORED_MANIFEST, data, size, "m", &text, &length, NULL), 0);
    assert_string_equal(text, "{}");
    free(text);
    assert_int_equal(stored_open_text(&seal, STORED_SET, data, size, "m", &text, &length, NULL),
                     -EBADMSG);
    for (size_t i = 0; i < size; i++) {
        data[i] ^= 4;
        assert_int_equal(
            stored_open_text(&seal, STORED_MANIFEST, data, size, "m", &text, &length, NULL),
            -EBADMSG);
        data[i] ^= 4;
        assert_int_equal(
            stored_open_text(&seal, STORED_MANIFEST, data, i, "m", &text, &length, NULL), -EBADMSG);
    }
    free(data);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_any_writes_are_read_back),
        cmocka_unit_test(test_every_byte_counts),
        cmocka_unit_test(test_other_keys_kinds_and_sizes),
        cmocka_unit_test(test_pieces_that_change_places),
        cmocka_unit_test(test_a_file_that_was_not_completed_does_not_open),
        cmocka_unit_test(test_texts),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
