/* SPDX-License-Identifier: Apache-2.0 */
/* Vectors, sizes, percent-encoding and files: what everything else counts on. */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/checked.h"
#include "base/error.h"
#include "base/fd_io.h"
#include "base/inet.h"
#include "base/iov.h"
#include "base/percent.h"
#include "base/shell_word.h"
#include "base/size.h"

/* --- vectors ---------------------------------------------------------------------------------- */

/* 16 bytes in four elements, one of them empty, that lie in memory backwards. */
struct pieces {
    char memory[16];
    struct iovec vec[4];
    struct iov iov;
};

static void make_pieces(struct pieces *p)
{
    memset(p->memory, 0, sizeof(p->memory));
    p->vec[0] = (struct iovec){p->memory + 11, 5};
    p->vec[1] = (struct iovec){p->memory + 11, 0};
    p->vec[2] = (struct iovec){p->memory + 4, 7};
    p->vec[3] = (struct iovec){p->memory, 4};
    p->iov = (struct iov){.vec = p->vec, .count = 4, .size = 16};
}

static void test_copies_follow_the_vector(void **state)
{
    struct pieces p;
    char back[16];

    make_pieces(&p);
    iov_copy_from_buf(p.iov, 0, "abcdefghijklmnop", 16);
    assert_memory_equal(p.memory, "mnopfghijklabcde", 16);
    iov_copy_to_buf(p.iov, 3, back, 10);
    assert_memory_equal(back, "defghijklm", 10);
    iov_fill(p.iov, 4, 'x', 9);
    assert_memory_equal(p.memory, "xnopxxxxxxxabcdx", 16);
}

static void test_slice_at_the_borders_of_elements(void **state)
{
    struct iovec out[4];
    struct pieces p;

    make_pieces(&p);
    assert_int_equal(iov_slice(p.iov, 5, 7, out, 4), 1);
    assert_ptr_equal(out[0].iov_base, p.memory + 4);
    assert_int_equal(out[0].iov_len, 7);
    assert_int_equal(iov_slice(p.iov, 4, 2, out, 4), 2);
    assert_ptr_equal(out[0].iov_base, p.memory + 15);
    assert_ptr_equal(out[1].iov_base, p.memory + 4);
    assert_int_equal(out[1].iov_len, 1);
    assert_int_equal(iov_slice(p.iov, 16, 0, out, 4), 0);
}

static void test_slice_that_just_fits_and_one_that_does_not(void **state)
{
    struct iovec out[3];
    struct pieces p;

    make_pieces(&p);
    assert_int_equal(iov_slice(p.iov, 0, 16, out, 3), 3);
    assert_int_equal(iov_slice(p.iov, 0, 16, out, 2), -E2BIG);
}

static void test_part_of_many_elements(void **state)
{
    enum { COUNT = 4 * IOV_PART_LOCAL };
    struct iovec vec[COUNT];
    char memory[COUNT];
    struct iov iov = {.vec = vec, .count = COUNT, .size = COUNT};
    IOV_PART_AUTO(part);

    for (int i = 0; i < COUNT; i++) {
        vec[i] = (struct iovec){memory + i, 1};
    }
    assert_int_equal(iov_part_set(&part, iov, 0, COUNT), 0);
    assert_int_equal(part.iov.count, COUNT);
    assert_ptr_equal(part.iov.vec, vec);
    assert_int_equal(iov_part_set(&part, iov, 3, IOV_PART_LOCAL), 0);
    assert_int_equal(part.iov.count, IOV_PART_LOCAL);
    assert_ptr_equal(part.iov.vec[0].iov_base, memory + 3);
}

static void test_a_byte_anywhere_is_not_zero(void **state)
{
    struct pieces p;

    make_pieces(&p);
    assert_true(iov_is_zero(p.iov));
    for (int i = 0; i < 16; i++) {
        p.memory[i] = 1;
        assert_false(iov_is_zero(p.iov));
        p.memory[i] = 0;
    }
}

static void test_a_byte_anywhere_in_a_buffer_is_not_zero(void **state)
{
    char buffer[300] = {0};

    for (size_t i = 0; i < sizeof(buffer); i++) {
        assert_true(buffer_is_zero(buffer, sizeof(buffer)));
        buffer[i] = 1;
        assert_false(buffer_is_zero(buffer, sizeof(buffer)));
        assert_true(buffer_is_zero(buffer, i));
        assert_true(buffer_is_zero(buffer + i + 1, sizeof(buffer) - i - 1));
        buffer[i] = 0;
    }
}

/* --- sizes ------------------------------------------------------------------------------------ */

static void test_rounding_up_does_not_wrap(void **state)
{
    assert_int_equal(round_up(0, 512), 0);
    assert_int_equal(round_up(1, 512), 512);
    assert_int_equal(round_up(512, 512), 512);
    assert_int_equal(round_up(7, 1), 7);
    assert_int_equal(round_up(UINT64_MAX - 511, 512), UINT64_MAX - 511);
    assert_int_equal(round_up(UINT64_MAX - 510, 512), UINT64_MAX - 511);
    assert_int_equal(round_up(UINT64_MAX, 512), UINT64_MAX - 511);
    assert_int_equal(round_up(UINT64_MAX, 1), UINT64_MAX);
}

static void assert_size(const char *text, uint64_t expected)
{
    uint64_t bytes = 0;
    ERROR_AUTO(err);

    assert_int_equal(size_parse(text, "size", &bytes, &err), 0);
    assert_true(bytes == expected);
}

static void assert_no_size(const char *text, int errnum)
{
    uint64_t bytes = 7;
    ERROR_AUTO(err);

    assert_int_equal(size_parse(text, "size", &bytes, &err), -errnum);
    assert_int_equal(bytes, 7);
}

static void test_sizes(void **state)
{
    assert_size("0", 0);
    assert_size("1.5k", 1536);
    assert_size("7E", 7 * (UINT64_C(1) << 60));
    assert_size("9223372036854775807", INT64_MAX);
    assert_size("0x1b", 27); /* a digit, not a unit */
    assert_size(" \t\n+2k", 2048);
}

static void test_sizes_with_fractions(void **state)
{
    assert_size(".5M", 512 << 10);
    assert_size("+.5M", 512 << 10);
    assert_size("1.", 1);
    assert_size("2.k", 2048);
    assert_size("1024.0", 1024);
    assert_size("2.0b", 2);
    assert_size(".0", 0);
    assert_size("1.1M", 1153434); /* 1153433.6 */
    assert_size("1.999k", 2047);  /* 2046.976 */
    assert_size(".1k", 102);      /* 102.4 */
}

static void test_sizes_that_are_too_large(void **state)
{
    assert_no_size("8E", ERANGE);
    assert_no_size("7.9999999999999999999E", ERANGE);
    assert_no_size("16E", ERANGE);
    assert_no_size("17E", ERANGE); /* 1E, were it to wrap */
    assert_no_size("9223372036854775808", ERANGE);
    assert_no_size("99999999999999999999", ERANGE);
}

static void test_words_that_are_no_sizes(void **state)
{
    assert_no_size("", EINVAL);
    assert_no_size("k", EINVAL);
    assert_no_size("-1", EINVAL);
    assert_no_size("1kk", EINVAL);
    assert_no_size("1.5", EINVAL);
    assert_no_size("2.5b", EINVAL);
    assert_no_size(".", EINVAL);
    assert_no_size(".M", EINVAL);
    assert_no_size("0x", EINVAL);
    assert_no_size("0x1M", EINVAL); /* mebibytes, or a digit too many? */
    assert_no_size("0x1.5k", EINVAL);
    assert_no_size("0x 1", EINVAL);
    assert_no_size("+ 1", EINVAL);
    assert_no_size("+-1", EINVAL);
    assert_no_size("1e3", EINVAL);
    assert_no_size("1.5.2", EINVAL);
    assert_no_size("1 ", EINVAL);
}

/* --- percent ---------------------------------------------------------------------------------- */

static void assert_decodes(const char *text, const char *expected)
{
    char *decoded = percent_decode(text, strlen(text));

    if (expected) {
        assert_string_equal(decoded, expected);
    } else {
        assert_null(decoded);
    }
    free(decoded);
}

static void test_percent_decoding(void **state)
{
    assert_decodes("a%20b%2Fc%2f", "a b/c/");
    assert_decodes("%25", "%");
    assert_decodes("%ff", "\xff");
}

static void test_a_zero_byte_would_cut_a_name_short(void **state)
{
    assert_decodes("disk%00.raw", NULL);
}

static void test_percent_signs_that_stand_for_nothing(void **state)
{
    assert_decodes("%", NULL);
    assert_decodes("a%2", NULL);
    assert_decodes("%g0", NULL);
    assert_decodes("%0g", NULL);
}

static void test_ports_beyond_65535_are_refused(void **state)
{
    static const char *const wrong[] = {"65536", "70000", "99999999999999999999999"};
    struct addrinfo hints = {.ai_flags = AI_NUMERICHOST, .ai_socktype = SOCK_STREAM}, *list;

    assert_int_equal(inet_lookup("127.0.0.1", "65535", &hints, &list), 0);
    freeaddrinfo(list);
    for (size_t i = 0; i < ARRAY_SIZE(wrong); i++) {
        assert_int_equal(inet_lookup("127.0.0.1", wrong[i], &hints, &list), EAI_SERVICE);
    }
}

/* --- files ------------------------------------------------------------------------------------ */

static int open_unnamed_file(void)
{
    FILE *file = tmpfile();
    int fd;

    assert_non_null(file);
    fd = dup(fileno(file));
    fclose(file);
    assert_true(fd >= 0);
    return fd;
}

static void test_a_read_ends_at_the_end_of_the_file(void **state)
{
    int fd = open_unnamed_file();
    char buf[16];

    assert_int_equal(fd_write_at(fd, "0123456789", 10, 100), 0);
    assert_int_equal(fd_read_at(fd, buf, 4, 102), 4);
    assert_memory_equal(buf, "2345", 4);
    assert_int_equal(fd_read_at(fd, buf, sizeof(buf), 105), 5);
    assert_memory_equal(buf, "56789", 5);
    assert_int_equal(fd_read_at(fd, buf, sizeof(buf), 110), 0);
    close(fd);
}

static void test_files_that_cannot_be_read_or_written(void **state)
{
    char buf[4] = {0};
    int fd = open("/dev/full", O_WRONLY | O_CLOEXEC);

    assert_int_equal(fd_read_at(fd, buf, sizeof(buf), 0), -EBADF);
    assert_int_equal(fd_write_at(fd, buf, sizeof(buf), 0), -ENOSPC);
    close(fd);
}

/* A file that may have no more than 6 bytes takes a write in part. */
static void test_a_write_goes_on_after_a_part(void **state)
{
    int fd = open_unnamed_file();
    struct rlimit before, small;
    char buf[8];

    signal(SIGXFSZ, SIG_IGN);
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &before), 0);
    small = (struct rlimit){.rlim_cur = 6, .rlim_max = before.rlim_max};
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &small), 0);
    assert_int_equal(fd_write_at(fd, "01234567", 8, 0), -EFBIG);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &before), 0);
    assert_int_equal(fd_read_at(fd, buf, sizeof(buf), 0), 6);
    close(fd);
}

/* --- shells ----------------------------------------------------------------------------------- */

static void shells_take_words_as_they_were_meant(void **state)
{
    static const char *const cases[][2] = {
        {"", "\"\""},
        {"/backups/disk-1_2.x", "/backups/disk-1_2.x"},
        {"-x", "./-x"},
        {"/my backups/\"1\"", "/my\\ backups/\\\"1\\\""},
        {"a'b\\c", "a\\'b\\\\c"},
        {"$HOME`x`~*?[{(#;&|<!", "\\$HOME\\`x\\`\\~\\*\\?\\[\\{\\(\\#\\;\\&\\|\\<\\!"},
        {"a\nb\t", "a\"\n\"b\\\t"},
        {"M\xc3\xbcller", "M\xc3\xbcller"},
    };

    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        char *word = shell_word(cases[i][0]);

        assert_string_equal(word, cases[i][1]);
        free(word);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_copies_follow_the_vector),
        cmocka_unit_test(test_slice_at_the_borders_of_elements),
        cmocka_unit_test(test_slice_that_just_fits_and_one_that_does_not),
        cmocka_unit_test(test_part_of_many_elements),
        cmocka_unit_test(test_a_byte_anywhere_is_not_zero),
        cmocka_unit_test(test_a_byte_anywhere_in_a_buffer_is_not_zero),
        cmocka_unit_test(test_rounding_up_does_not_wrap),
        cmocka_unit_test(test_sizes),
        cmocka_unit_test(test_sizes_with_fractions),
        cmocka_unit_test(test_sizes_that_are_too_large),
        cmocka_unit_test(test_words_that_are_no_sizes),
        cmocka_unit_test(shells_take_words_as_they_were_meant),
        cmocka_unit_test(test_percent_decoding),
        cmocka_unit_test(test_a_zero_byte_would_cut_a_name_short),
        cmocka_unit_test(test_percent_signs_that_stand_for_nothing),
        cmocka_unit_test(test_ports_beyond_65535_are_refused),
        cmocka_unit_test(test_a_read_ends_at_the_end_of_the_file),
        cmocka_unit_test(test_files_that_cannot_be_read_or_written),
        cmocka_unit_test(test_a_write_goes_on_after_a_part),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
