/* SPDX-License-Identifier: Apache-2.0 */
#include "http/content_range.h"

#include <strings.h>

struct cursor {
    const char *at, *end;
};

static void skip_space(struct cursor *c)
{
    while (c->at < c->end && (*c->at == ' ' || *c->at == '\t')) {
        c->at++;
    }
}

static bool take_range_char(struct cursor *c, char wanted)
{
    if (c->at == c->end || *c->at != wanted) {
        return false;
    }
    c->at++;
    return true;
}

static bool take_range_number(struct cursor *c, uint64_t *ret_value)
{
    const char *begin = c->at;
    uint64_t value = 0;

    while (c->at < c->end && *c->at >= '0' && *c->at <= '9') {
        if (__builtin_mul_overflow(value, 10, &value) ||
            __builtin_add_overflow(value, (uint64_t)(*c->at - '0'), &value)) {
            return false;
        }
        c->at++;
    }
    *ret_value = value;
    return c->at > begin && value <= INT64_MAX;
}

static bool take_span(struct cursor *c, struct content_range *range)
{
    range->is_satisfied = !take_range_char(c, '*');
    return !range->is_satisfied ||
           (take_range_number(c, &range->first) && take_range_char(c, '-') &&
            take_range_number(c, &range->last) && range->first <= range->last);
}

bool content_range_parse(const char *text, size_t size, struct content_range *ret_range)
{
    static const char unit[] = "bytes";
    const size_t unit_size = sizeof(unit) - 1;
    struct cursor c = {text, text + size};
    struct content_range range = {0};

    skip_space(&c);
    if ((size_t)(c.end - c.at) < unit_size || strncasecmp(c.at, unit, unit_size) != 0) {
        return false;
    }
    c.at += unit_size;
    skip_space(&c);
    if (!take_span(&c, &range) || !take_range_char(&c, '/')) {
        return false;
    }
    range.has_total = !take_range_char(&c, '*');
    if (range.has_total && !take_range_number(&c, &range.total)) {
        return false;
    }
    while (c.at < c.end && (*c.at == ' ' || *c.at == '\t' || *c.at == '\r' || *c.at == '\n')) {
        c.at++;
    }
    if (c.at != c.end || (range.has_total && range.is_satisfied && range.last >= range.total) ||
        (!range.is_satisfied && !range.has_total)) {
        return false;
    }
    *ret_range = range;
    return true;
}
