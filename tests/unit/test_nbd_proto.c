/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/cleanup.h"
#include "block/block.h"
#include "nbd/bufpool.h"
#include "nbd/client.h"
#include "nbd/proto.h"

/* --- wire ------------------------------------------------------------------------------------- */

static void request_has_the_layout_of_the_specification(void **state)
{
    static const uint8_t want[NBD_REQUEST_SIZE] = {
        0x25, 0x60, 0x95, 0x13, 0x00, 0x11, 0x00, 0x06, 1,    2,    3,    4,    5,    6,
        7,    8,    0x10, 0x20, 0x30, 0x40, 0x50, 0x60, 0x70, 0x80, 0xaa, 0xbb, 0xcc, 0xdd,
    };
    struct nbd_request r = {.cookie = 0x0102030405060708,
                            .offset = 0x1020304050607080,
                            .length = 0xaabbccdd,
                            .flags = NBD_CMD_FLAG_FUA | NBD_CMD_FLAG_FAST_ZERO,
                            .type = NBD_CMD_WRITE_ZEROES};
    struct nbd_request back;
    uint8_t buf[NBD_REQUEST_SIZE];

    nbd_request_encode(buf, &r);
    assert_memory_equal(buf, want, sizeof(want));
    assert_true(nbd_request_decode(buf, &back));
    assert_int_equal(back.cookie, r.cookie);
    assert_int_equal(back.offset, r.offset);
    assert_int_equal(back.length, r.length);
    assert_int_equal(back.flags, r.flags);
    assert_int_equal(back.type, r.type);
    buf[0] ^= 1;
    assert_false(nbd_request_decode(buf, &back));
}

static void extended_headers_have_the_layout_of_the_specification(void **state)
{
    static const uint8_t request[NBD_EXTENDED_REQUEST_SIZE] = {
        0x21, 0xe4, 0x1c, 0x71, 0,    0x20, 0,    1,    1, 2, 3, 4, 5,    6,    7,    8,
        0x10, 0x20, 0x30, 0x40, 0x50, 0x60, 0x70, 0x80, 9, 8, 7, 6, 0xaa, 0xbb, 0xcc, 0xdd,
    };
    static const uint8_t reply[NBD_EXTENDED_CHUNK_HEADER_SIZE] = {
        0x6e, 0x8a, 0x27, 0x8c, 0,    1,    0,    6,    1, 2, 3, 4, 5,    6,    7,    8,
        0x10, 0x20, 0x30, 0x40, 0x50, 0x60, 0x70, 0x80, 0, 0, 0, 0, 0xaa, 0xbb, 0xcc, 0xdd,
    };
    struct nbd_chunk chunk = {.cookie = 0x0102030405060708,
                              .offset = 0x1020304050607080,
                              .length = 0xaabbccdd,
                              .flags = NBD_CHUNK_FLAG_DONE,
                              .type = NBD_CHUNK_BLOCK_STATUS_EXT};
    uint8_t buf[NBD_EXTENDED_CHUNK_HEADER_SIZE];
    struct nbd_request r;

    assert_true(nbd_extended_request_decode(request, &r));
    assert_int_equal(r.flags, NBD_CMD_FLAG_PAYLOAD_LEN);
    assert_int_equal(r.type, NBD_CMD_WRITE);
    assert_int_equal(r.cookie, chunk.cookie);
    assert_int_equal(r.offset, chunk.offset);
    assert_int_equal(r.length, 0x09080706aabbccdd);
    assert_false(nbd_extended_request_decode(reply, &r));
    nbd_extended_chunk_encode(buf, &chunk);
    assert_memory_equal(buf, reply, sizeof(reply));
}

static void replies_are_told_apart_by_their_magic(void **state)
{
    struct nbd_chunk chunk = {.cookie = 7, .length = 9, .flags = NBD_CHUNK_FLAG_DONE, .type = 5};
    struct nbd_chunk back;
    uint8_t buf[NBD_CHUNK_HEADER_SIZE] = {0};
    uint32_t error;
    bool simple;

    nbd_chunk_encode(buf, &chunk);
    for (size_t size = 0; size < NBD_CHUNK_HEADER_SIZE; size++) {
        assert_int_equal(nbd_reply_decode(buf, size, false, &back, &simple, &error), 0);
    }
    assert_int_equal(nbd_reply_decode(buf, sizeof(buf), false, &back, &simple, &error),
                     NBD_CHUNK_HEADER_SIZE);
    assert_false(simple);
    assert_memory_equal(&back, &chunk, sizeof(chunk));

    nbd_simple_reply_encode(buf, NBD_ENOSPC, 8);
    assert_int_equal(
        nbd_reply_decode(buf, NBD_SIMPLE_REPLY_SIZE - 1, false, &back, &simple, &error), 0);
    assert_int_equal(nbd_reply_decode(buf, NBD_SIMPLE_REPLY_SIZE, false, &back, &simple, &error),
                     NBD_SIMPLE_REPLY_SIZE);
    assert_true(simple);
    assert_int_equal(error, NBD_ENOSPC);
    assert_int_equal(back.cookie, 8);

    buf[3] ^= 1;
    assert_int_equal(nbd_reply_decode(buf, sizeof(buf), false, &back, &simple, &error), -EPROTO);
}

static void cursor_never_reads_past_the_end(void **state)
{
    static const uint8_t data[] = {0, 0, 0, 5, 'a', 'b', 'c'};
    struct nbd_cursor c = {.data = data, .left = sizeof(data)};

    assert_null(nbd_get_string(&c));
    assert_true(c.failed);
    assert_int_equal(nbd_get_u16(&c), 0);
    assert_null(nbd_get_bytes(&c, 0));

    c = (struct nbd_cursor){.data = data, .left = 3};
    assert_int_equal(nbd_get_u32(&c), 0);
    assert_true(c.failed);
}

/* A length-prefixed string of `size` bytes 'x' in a message of exactly that size. */
static bool string_passes(size_t size)
{
    AUTO_FREE char *text = malloc(size + 1);
    STRBUF_AUTO(sb);
    struct nbd_cursor c;
    AUTO_FREE char *got = NULL;

    memset(text, 'x', size);
    text[size] = '\0';
    nbd_put_string(&sb, text);
    c = (struct nbd_cursor){.data = (uint8_t *)sb.data, .left = sb.len};
    got = nbd_get_string(&c);
    assert_true(!got == c.failed);
    return got && strcmp(got, text) == 0 && c.left == 0;
}

static void strings_have_up_to_4096_bytes(void **state)
{
    assert_true(string_passes(0));
    assert_true(string_passes(4096));
    assert_false(string_passes(4097));
}

static void string_with_a_nul_is_refused(void **state)
{
    static const uint8_t data[] = {0, 0, 0, 3, 'a', 0, 'b'};
    struct nbd_cursor c = {.data = data, .left = sizeof(data)};

    assert_null(nbd_get_string(&c));
    assert_true(c.failed);
}

static void errors_keep_their_meaning_both_ways(void **state)
{
    static const int errnums[] = {EPERM,  EIO,       ENOMEM,  EINVAL,
                                  ENOSPC, EOVERFLOW, ENOTSUP, ESHUTDOWN};

    for (size_t i = 0; i < sizeof(errnums) / sizeof(errnums[0]); i++) {
        assert_int_equal(nbd_error_to_errno(nbd_error_from_errno(errnums[i])), errnums[i]);
    }
    assert_int_equal(nbd_error_from_errno(EROFS), NBD_EPERM);
    assert_int_equal(nbd_error_from_errno(EACCES), NBD_EPERM);
    block_use_qemu_names(true);
    assert_int_equal(nbd_error_from_errno(EACCES), NBD_EINVAL);
    block_use_qemu_names(false);
    assert_int_equal(nbd_error_from_errno(EFBIG), NBD_ENOSPC);
    assert_int_equal(nbd_error_from_errno(EISDIR), NBD_EINVAL);
    assert_int_equal(nbd_error_to_errno(4711), EINVAL);
    assert_int_equal(nbd_error_to_errno(0), 0);
}

/* --- addresses -------------------------------------------------------------------------------- */

static void assert_address(const char *uri, const char *path, const char *host, const char *port,
                           const char *name)
{
    struct socket_address a = {0};
    AUTO_FREE char *export = NULL;
    ERROR_AUTO(err);

    if (nbd_address_parse(uri, &a, &export, &err) < 0) {
        fail_msg("%s: %s", uri, error_message(&err));
    }
    assert_string_equal(a.path ?: "-", path ?: "-");
    assert_string_equal(a.host ?: "-", host ?: "-");
    assert_string_equal(a.port ?: "-", port ?: "-");
    assert_string_equal(export, name);
    socket_address_clear(&a);
}

static void addresses_of_every_form_are_understood(void **state)
{
    assert_address("nbd:unix:/run/a.sock", "/run/a.sock", NULL, NULL, "");
    assert_address("nbd:unix:/run/a:exportname=x:y", "/run/a", NULL, NULL, "x:y");
    assert_address("nbd:localhost:10809", NULL, "localhost", "10809", "");
    assert_address("nbd:[::1]:1:exportname=d", NULL, "::1", "1", "d");
    assert_address("nbd://host", NULL, "host", NULL, "");
    assert_address("nbd://host:99/a/b%20c", NULL, "host", "99", "a/b c");
    assert_address("nbd+tcp://[fe80::1]:7//x", NULL, "fe80::1", "7", "/x");
    assert_address("nbd+unix:///?socket=/tmp/a%2fb", "/tmp/a/b", NULL, NULL, "");
    assert_address("nbd+unix:///disk?socket=s", "s", NULL, NULL, "disk");
}

static void malformed_addresses_are_refused(void **state)
{
    static const char *const wrong[] = {
        "nbd:",
        "nbd:host",
        "nbd:unix:",
        "nbd://",
        "nbd:///x",
        "nbd://[::1/x",
        "nbd+unix:///x",
        "nbd+unix:///x?sock=/a",
        "nbd+unix://h/x?socket=/a",
        "nbd://h/%zz",
        "nbd://h/a%0",
        "nbd://h/a%00b",
        "nbd://h/x?y=z",
        "http://h/",
        "nbd+unix:///x?socket=",
    };

    for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++) {
        struct socket_address a = {0};
        char *export = NULL;
        ERROR_AUTO(err);

        if (nbd_address_parse(wrong[i], &a, &export, &err) != -EINVAL) {
            fail_msg("'%s' was taken", wrong[i]);
        }
        assert_non_null(strstr(error_message(&err), wrong[i]));
    }
}

/* --- buffers ---------------------------------------------------------------------------------- */

static void buffers_are_aligned_large_enough_and_used_again(void **state)
{
    static const size_t sizes[] = {1, 4096, 4097, 65536, 1 << 20, 32 << 20};
    struct bufpool pool = {0};
    struct pooled b;

    for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
        void *first;

        assert_true(bufpool_get(&pool, sizes[i], &b));
        assert_true(pooled_size(&b) >= sizes[i]);
        assert_int_equal((uintptr_t)b.data % 4096, 0);
        memset(b.data, 0xff, sizes[i]);
        first = b.data;
        bufpool_put(&pool, &b);
        assert_null(b.data);
        bufpool_put(&pool, &b);
        assert_true(bufpool_get(&pool, sizes[i], &b));
        if (sizes[i] < BUFPOOL_KEEP / 2) {
            assert_ptr_equal(b.data, first);
        }
        bufpool_put(&pool, &b);
        assert_true(pool.kept <= BUFPOOL_KEEP);
    }
    assert_false(bufpool_get(&pool, (32 << 20) + 1, &b));
    bufpool_trim(&pool);
    assert_int_equal(pool.kept, 0);
}

static void texts_of_peers_have_no_control_bytes(void **state)
{
    char text[] = "a\nb\x1b[2J\x7f\xc2\x9b\xc3\xa4";

    nbd_replace_control_bytes(text, sizeof(text) - 1);
    assert_string_equal(text, "a?b?[2J???\xc3\xa4");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(texts_of_peers_have_no_control_bytes),
        cmocka_unit_test(request_has_the_layout_of_the_specification),
        cmocka_unit_test(extended_headers_have_the_layout_of_the_specification),
        cmocka_unit_test(replies_are_told_apart_by_their_magic),
        cmocka_unit_test(cursor_never_reads_past_the_end),
        cmocka_unit_test(strings_have_up_to_4096_bytes),
        cmocka_unit_test(string_with_a_nul_is_refused),
        cmocka_unit_test(errors_keep_their_meaning_both_ways),
        cmocka_unit_test(addresses_of_every_form_are_understood),
        cmocka_unit_test(malformed_addresses_are_refused),
        cmocka_unit_test(buffers_are_aligned_large_enough_and_used_again),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
