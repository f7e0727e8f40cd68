/* SPDX-License-Identifier: Apache-2.0 */
#include "base/size.h"

#include <ctype.h>
#include <errno.h>
#include <stdbool.h>
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

/*
 * Add the fraction [digits, end), in units of 2^shift bytes, to *value, rounded to whole bytes.
 * 0, -EINVAL (bytes have no fractions) or -ERANGE.
 */
static int add_fraction(const char *digits, const char *end, int shift, uint64_t *value)
{
    double fraction = 0, scale = 0.1;

    if (shift == 0) {
        return (size_t)(end - digits) == strspn(digits, "0") ? 0 : -EINVAL;
    }

    for (const char *p = digits; p < end; p++, scale /= 10) {
        fraction += (*p - '0') * scale;
    }
    if (add_overflows(*value, (uint64_t)(fraction * (double)(1ULL << shift) + 0.5), value)) {
        return -ERANGE;
    }
    return 0;
}

/*
 * Read the number at `text`: the digits before a fraction, and what follows them. 0, -EINVAL or
 * -ERANGE.
 */
static int parse_whole(const char *text, bool hexadecimal, uint64_t *value, const char **ret_end)
{
    char *end;

    if (!isdigit((unsigned char)text[0])) {
        *value = 0;
        *ret_end = text;
        return text[0] == '.' && isdigit((unsigned char)text[1]) ? 0 : -EINVAL;
    }
    errno = 0;
    *value = strtoull(text, &end, hexadecimal ? 16 : 10);
    *ret_end = end;
    return -errno;
}

static int parse(const char *text, uint64_t *ret_bytes)
{
    const char *fraction = NULL, *fraction_end = NULL, *end;
    const char *digits = text + strspn(text, " \t\n\v\f\r");
    bool hexadecimal;
    uint64_t value;
    int shift = 0;
    int r;

    digits += *digits == '+';
    hexadecimal = digits[0] == '0' && tolower((unsigned char)digits[1]) == 'x';
    r = parse_whole(digits, hexadecimal, &value, &end);
    if (r < 0) {
        return r;
    }
    /* What follows hexadecimal digits could be one of them (B, E) or a unit: nothing may. */
    if (hexadecimal && *end) {
        return -EINVAL;
    }
    if (*end == '.') {
        fraction = ++end;
        end += strspn(end, "0123456789");
        fraction_end = end;
    }
    if (*end) {
        shift = suffix_shift(*end);
        if (shift < 0 || end[1]) {
            return -EINVAL;
        }
    }
    if (mul_overflows(value, 1ULL << shift, &value)) {
        return -ERANGE;
    }
    if (fraction) {
        r = add_fraction(fraction, fraction_end, shift, &value);
    }
    if (r < 0 || value > INT64_MAX) {
        return r < 0 ? r : -ERANGE;
    }
    *ret_bytes = value;
    return 0;
}

int size_parse(const char *text, const char *what, uint64_t *ret_bytes, struct error *err)
{
    int r = parse(text, ret_bytes);

    if (r == -ERANGE) {
        return error_set(err, ERANGE, "%s: size '%s' is larger than 8 EiB - 1", what, text);
    }
    if (r < 0) {
        return error_set(err, EINVAL,
                         "%s expects a size in bytes, with an optional suffix k, M, G, T, P or E; "
                         "found '%s'",
                         what, text);
    }
    return 0;
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
