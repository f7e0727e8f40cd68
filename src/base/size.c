/* SPDX-License-Identifier: Apache-2.0 */
#include "base/size.h"

#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"

/* log2 of the unit that a suffix stands for; -1 for none. */
static int suffix_shift(char c)
{
    static const char suffixes[] = "bkmgtpe";
    const char *p = c ? strchr(suffixes, tolower((unsigned char)c)) : NULL;

    return p ? (int)(p - suffixes) * 10 : -1;
}

/* Add the fraction [digits, end), in units of 2^shift bytes, to *value. 0 or -ERANGE. */
static int add_fraction(const char *digits, const char *end, int shift, uint64_t *value)
{
    double fraction = 0, scale = 0.1;

    for (const char *p = digits; p < end; p++, scale /= 10) {
        fraction += (*p - '0') * scale;
    }
    if (add_overflows(*value, (uint64_t)(fraction * (double)(1ULL << shift)), value)) {
        return -ERANGE;
    }
    return 0;
}

int size_parse(const char *text, const char *what, uint64_t *ret_bytes, struct error *err)
{
    const char *fraction = NULL, *fraction_end = NULL;
    char *end;
    const char *digits = text + strspn(text, " ");
    uint64_t value;
    int shift = 0;

    digits += *digits == '+';
    if (!isdigit((unsigned char)digits[0])) {
        goto invalid;
    }
    errno = 0;
    value = strtoull(digits, &end,
                     digits[0] == '0' && tolower((unsigned char)digits[1]) == 'x' ? 16 : 10);
    if (errno == ERANGE) {
        goto range;
    }
    if (*end == '.') {
        fraction = ++end;
        while (isdigit((unsigned char)*end)) {
            end++;
        }
        fraction_end = end;
    }
    if (*end) {
        shift = suffix_shift(*end);
        if (shift < 0 || end[1]) {
            goto invalid;
        }
    }
    if (fraction && shift == 0) {
        goto invalid;
    }
    if (mul_overflows(value, 1ULL << shift, &value) ||
        (fraction && add_fraction(fraction, fraction_end, shift, &value) < 0) ||
        value > INT64_MAX) {
        goto range;
    }
    *ret_bytes = value;
    return 0;
invalid:
    return error_set(err, EINVAL,
                     "%s expects a size in bytes, with an optional suffix k, M, G, T, P or E; "
                     "found '%s'",
                     what, text);
range:
    return error_set(err, ERANGE, "%s: size '%s' is larger than 8 EiB - 1", what, text);
}

const char *size_format(uint64_t bytes, char *buf, size_t buf_size)
{
    static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
    double v = (double)bytes;
    size_t unit = 0;

    while (v >= 999.5 && unit < ARRAY_SIZE(units) - 1) {
        v /= 1024;
        unit++;
    }
    snprintf(buf, buf_size, "%.3g %s", v, units[unit]);
    return buf;
}
