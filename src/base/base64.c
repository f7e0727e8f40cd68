/* SPDX-License-Identifier: Apache-2.0 */
#include "base/base64.h"

#include <errno.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

int base64_decode(char *text, size_t *size, struct error *err)
{
    size_t count = 0, out = 0, padding = 0;
    unsigned bits = 0;

    for (size_t i = 0; i < *size; i++) {
        const char *digit = text[i] ? strchr(digits, text[i]) : NULL;

        if (text[i] && strchr(" \t\r\n", text[i])) {
            continue;
        }
        if (text[i] == '=') {
            padding++;
            continue;
        }
        if (!digit || padding > 0) {
            return error_set(err, EINVAL, "Base64 data contains invalid characters");
        }
        bits = bits << 6 | (unsigned)(digit - digits);
        if (++count % 4 != 1) {
            text[out++] = (char)(bits >> (6 - 2 * ((count - 1) % 4)));
        }
    }
    if ((count + padding) % 4 != 0 || padding > 2) {
        return error_set(err, EINVAL, "Base64 data has a wrong length");
    }
    text[out] = '\0';
    *size = out;
    return 0;
}

char *base64_encode(const void *data, size_t size)
{
    const unsigned char *bytes = data;
    char *text = malloc((size + 2) / 3 * 4 + 1), *p = text;

    for (size_t i = 0; text && i < size; i += 3) {
        size_t left = size - i;
        uint32_t bits = (uint32_t)bytes[i] << 16 | (left > 1 ? (uint32_t)bytes[i + 1] << 8 : 0) |
                        (left > 2 ? bytes[i + 2] : 0);

        *p++ = digits[bits >> 18];
        *p++ = digits[bits >> 12 & 63];
        *p++ = left > 1 ? digits[bits >> 6 & 63] : '=';
        *p++ = left > 2 ? digits[bits & 63] : '=';
    }
    if (text) {
        *p = '\0';
    }
    return text;
}
