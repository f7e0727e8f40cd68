/* SPDX-License-Identifier: Apache-2.0 */
#include "base/percent.h"

#include <stdlib.h>
#include <string.h>

static int percent_digit(char c)
{
    if (c >= '0' && c <= '9') {
        return c - '0';
    }
    c |= 0x20;
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

char *percent_decode(const char *text, size_t size)
{
    char *out = malloc(size + 1);
    size_t n = 0;

    if (!out) {
        return NULL;
    }
    for (size_t i = 0; i < size; i++) {
        if (text[i] == '%') {
            int high = i + 2 < size ? percent_digit(text[i + 1]) : -1;
            int low = i + 2 < size ? percent_digit(text[i + 2]) : -1;

            if (high < 0 || low < 0 || high + low == 0) {
                free(out);
                return NULL;
            }
            out[n++] = (char)(high * 16 + low);
            i += 2;
        } else {
            out[n++] = text[i];
        }
    }
    out[n] = '\0';
    return out;
}

char *percent_encode(const char *text, const char *special)
{
    static const char digits[] = "0123456789ABCDEF";
    char *out = malloc(3 * strlen(text) + 1), *to = out;

    if (!out) {
        return NULL;
    }
    for (; *text; text++) {
        unsigned char c = (unsigned char)*text;

        if (c == '%' || strchr(special, c)) {
            *to++ = '%';
            *to++ = digits[c >> 4];
            *to++ = digits[c & 15];
        } else {
            *to++ = *text;
        }
    }
    *to = '\0';
    return out;
}
