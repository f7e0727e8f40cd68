/* SPDX-License-Identifier: Apache-2.0 */
/* AES-256-GCM and scrypt, by published vectors (GCM's specification, cases 14 and 16; RFC 7914). */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "base/aead.h"

static void from_hex(const char *hex, uint8_t *ret_bytes)
{
    for (unsigned value; sscanf(hex, "%2x", &value) == 1; hex += 2) {
        *ret_bytes++ = (uint8_t)value;
    }
}

static void assert_hex(const uint8_t *bytes, const char *hex)
{
    uint8_t expected[128];

    from_hex(hex, expected);
    assert_memory_equal(bytes, expected, strlen(hex) / 2);
}

static void test_a_block_of_zeroes(void **state)
{
    static const uint8_t key[AEAD_KEY_SIZE], nonce[AEAD_NONCE_SIZE], zeroes[16];
    uint8_t out[16], tag[AEAD_TAG_SIZE];
    struct aead *a = aead_new(key, 1);

    assert_non_null(a);
    assert_int_equal(
        aead_seal(a,
                  &(struct aead_message){
                      .nonce = nonce, .in = zeroes, .out = out, .size = sizeof(out), .tag = tag}),
        0);
    assert_hex(out, "cea7403d4d606b6e074ec5d3baf39d18");
    assert_hex(tag, "d0d1c8a799996bf0265b98b5d48ab919");
    aead_free(a);
}

static void test_with_data_that_is_only_authenticated(void **state)
{
    uint8_t key[32], nonce[12], aad[20], data[60], tag[AEAD_TAG_SIZE];
    struct aead_message m = {.nonce = nonce,
                             .aad = aad,
                             .aad_size = sizeof(aad),
                             .in = data,
                             .out = data,
                             .size = sizeof(data),
                             .tag = tag};
    struct aead *a;

    from_hex("feffe9928665731c6d6a8f9467308308feffe9928665731c6d6a8f9467308308", key);
    from_hex("cafebabefacedbaddecaf888", nonce);
    from_hex("feedfacedeadbeeffeedfacedeadbeefabaddad2", aad);
    from_hex("d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a72"
             "1c3c0c95956809532fcf0e2449a6b525b16aedf5aa0de657ba637b39",
             data);
    a = aead_new(key, 1);
    assert_int_equal(aead_seal(a, &m), 0);
    aead_free(a);
    assert_hex(data, "522dc1f099567d07f47f37a32a84427d643a8cdcbfe5c0c97598a2bd2555d1aa"
                     "8cb08e48590dbb3da7b08b1056828838c5f61e6393ba7a0abcc9f662");
    assert_hex(tag, "76fc6ece0f4e1768cddf8853bb2d551b");

    a = aead_new(key, 0);
    aad[3] ^= 1;
    assert_int_equal(aead_open(a, &m), -EBADMSG);
    aad[3] ^= 1;
    from_hex("522dc1f099567d07f47f37a32a84427d643a8cdcbfe5c0c97598a2bd2555d1aa"
             "8cb08e48590dbb3da7b08b1056828838c5f61e6393ba7a0abcc9f662",
             data);
    assert_int_equal(aead_open(a, &m), 0);
    assert_hex(data, "d9313225f88406e5a55909c5aff5269a");
    aead_free(a);
}

static void test_passphrases_are_stretched_by_scrypt(void **state)
{
    uint8_t key[64];

    assert_int_equal(aead_stretch("password", 8, "NaCl", 4, 10, 16, key, sizeof(key)), 0);
    assert_hex(key, "fdbabe1c9d3472007856e7190d01e9fe7c6ad7cbc8237830e77376634b373162"
                    "2eaf30d92e22a3886ff109279d9830dac727afb94a83ee6d8360cbdfa2cc0640");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_block_of_zeroes),
        cmocka_unit_test(test_with_data_that_is_only_authenticated),
        cmocka_unit_test(test_passphrases_are_stretched_by_scrypt),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
