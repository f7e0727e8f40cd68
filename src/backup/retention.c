/* SPDX-License-Identifier: Apache-2.0 */
#include "backup/retention.h"

#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/checked.h"
#include "base/cleanup.h"

#define SPAN_MAX 10000

static const char *const names[RETENTION_RULES] = {
    "last", "hourly", "daily", "weekly", "monthly", "yearly", "within",
};

const char *retention_rule_name(enum retention_rule rule)
{
    return names[rule];
}

bool retention_is_set(const struct retention *r)
{
    for (size_t i = 0; i < RETENTION_RULES; i++) {
        if (r->count[i]) {
            return true;
        }
    }
    return r->has_within;
}

static unsigned *span_part(struct retention_span *span, char unit)
{
    return unit == 'y'   ? &span->years
           : unit == 'm' ? &span->months
           : unit == 'd' ? &span->days
           : unit == 'h' ? &span->hours
                         : NULL;
}

int retention_parse_span(const char *text, struct retention_span *ret_span, struct error *err)
{
    struct retention_span span = {0};
    const char *p = text;

    while (*p) {
        char *end = NULL;
        unsigned long n = *p >= '0' && *p <= '9' ? strtoul(p, &end, 10) : ULONG_MAX;
        unsigned *part = end ? span_part(&span, *end) : NULL;

        if (!part || n > SPAN_MAX || *part) {
            break;
        }
        *part = (unsigned)n;
        p = end + 1;
    }
    if (*p || p == text) {
        return error_set(err, EINVAL,
                         "'%s' is no length of time: numbers with y, m (months), d and h, as in "
                         "'1y6m' or '36h'",
                         text);
    }
    *ret_span = span;
    return 0;
}

/* The moment that lies a span before another one. */
static int64_t before(int64_t moment, const struct retention_span *span)
{
    time_t t = (time_t)moment;
    struct tm tm;

    if (!localtime_r(&t, &tm)) {
        return INT64_MIN;
    }
    tm.tm_year -= (int)span->years;
    tm.tm_mon -= (int)span->months;
    tm.tm_mday -= (int)span->days;
    tm.tm_hour -= (int)span->hours;
    tm.tm_isdst = -1;
    return mktime(&tm);
}

/* Days since 1970-01-01 of a date of the Gregorian calendar. */
static int64_t day_number(const struct tm *tm)
{
    struct tm date = {.tm_year = tm->tm_year, .tm_mon = tm->tm_mon, .tm_mday = tm->tm_mday};

    return timegm(&date) / (INT64_C(24) * 60 * 60);
}

/* A number that backups of one hour, day ... have in common, and no others. */
static int64_t period_of(enum retention_rule rule, int64_t moment)
{
    time_t t = (time_t)moment;
    struct tm tm;

    if (!localtime_r(&t, &tm)) {
        return 0;
    }
    switch (rule) {
    case RETENTION_HOURLY:
        return (moment + tm.tm_gmtoff) / (INT64_C(60) * 60);
    case RETENTION_DAILY:
        return day_number(&tm);
    case RETENTION_WEEKLY:
        return (day_number(&tm) + 3) / 7; /* the first Thursday was day 0 */
    case RETENTION_MONTHLY:
        return (int64_t)tm.tm_year * 12 + tm.tm_mon;
    default:
        return tm.tm_year;
    }
}

static bool has_number(const int64_t *list, size_t count, int64_t n)
{
    for (size_t i = 0; i < count; i++) {
        if (list[i] == n) {
            return true;
        }
    }
    return false;
}

/* Keep the newest of each bucket. The clock may have stepped back, so buckets can come again. */
static void apply_buckets(enum retention_rule rule, uint64_t most, const int64_t *times,
                          size_t count, int64_t *used, unsigned *ret_reasons)
{
    size_t n = 0;

    for (size_t i = 0; i < count && n < most; i++) {
        int64_t bucket = times[i] == INT64_MIN ? 0 : period_of(rule, times[i]);

        if (times[i] != INT64_MIN && !has_number(used, n, bucket)) {
            used[n++] = bucket;
            ret_reasons[i] |= 1u << rule;
        }
    }
}

int retention_apply(const struct retention *r, int64_t now, const int64_t *times, size_t count,
                    unsigned *ret_reasons)
{
    int64_t *used AUTO_FREE = calloc(count + 1, sizeof(*used));
    int64_t newest = INT64_MIN, limit;

    if (!used) {
        return -ENOMEM;
    }
    memset(ret_reasons, 0, count * sizeof(*ret_reasons));
    for (size_t i = 0; i < count; i++) {
        newest = times[i] <= now ? MAX(newest, times[i]) : newest;
        ret_reasons[i] |= i < r->count[RETENTION_LAST] ? 1u << RETENTION_LAST : 0;
    }
    for (enum retention_rule rule = RETENTION_HOURLY; rule <= RETENTION_YEARLY; rule++) {
        apply_buckets(rule, r->count[rule], times, count, used, ret_reasons);
    }
    limit = r->has_within ? before(newest == INT64_MIN ? now : newest, &r->within) : INT64_MAX;
    for (size_t i = 0; i < count; i++) {
        ret_reasons[i] |= times[i] >= limit ? 1u << RETENTION_WITHIN : 0;
    }
    return 0;
}
