/* SPDX-License-Identifier: Apache-2.0 */
#include <pthread.h>

#include "vhdx/image.h"

#define POLYNOMIAL 0x82f63b78u /* reflected */

/* table[k][b]: of byte b, followed by k zeroes. */
static uint32_t table[8][256];
static pthread_once_t table_once = PTHREAD_ONCE_INIT;

static void fill_table(void)
{
    for (uint32_t b = 0; b < 256; b++) {
        uint32_t crc = b;

        for (int i = 0; i < 8; i++) {
            crc = crc >> 1 ^ (crc & 1 ? POLYNOMIAL : 0);
        }
        table[0][b] = crc;
    }
    for (int k = 1; k < 8; k++) {
        for (uint32_t b = 0; b < 256; b++) {
            table[k][b] = table[k - 1][b] >> 8 ^ table[0][table[k - 1][b] & 0xff];
        }
    }
}

/* A fuzzer would spend most of its time on counting these comparisons. */
#ifdef __clang__
__attribute__((no_sanitize("coverage", "address", "undefined")))
#endif
static uint32_t
crc32c_add_bytes(uint32_t crc, const uint8_t *b, size_t size)
{
    for (; size >= 8; size -= 8, b += 8) {
        crc ^= b[0] | (uint32_t)b[1] << 8 | (uint32_t)b[2] << 16 | (uint32_t)b[3] << 24;
        crc = table[7][crc & 0xff] ^ table[6][crc >> 8 & 0xff] ^ table[5][crc >> 16 & 0xff] ^
              table[4][crc >> 24] ^ table[3][b[4]] ^ table[2][b[5]] ^ table[1][b[6]] ^
              table[0][b[7]];
    }
    while (size-- > 0) {
        crc = crc >> 8 ^ table[0][(crc ^ *b++) & 0xff];
    }
    return crc;
}

uint32_t vhdx_checksum(const uint8_t *b, size_t size, size_t field)
{
    static const uint8_t zeroes[4];
    uint32_t crc;

    pthread_once(&table_once, fill_table);
    crc = crc32c_add_bytes(UINT32_MAX, b, field);
    crc = crc32c_add_bytes(crc, zeroes, sizeof(zeroes));
    return ~crc32c_add_bytes(crc, b + field + 4, size - field - 4);
}
