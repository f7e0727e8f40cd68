/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Which backups a policy keeps. A rule of N hours (days, weeks ...) keeps the newest backup of each
 * of the N latest hours that have one, in local time; weeks begin on Monday. A backup is kept if
 * any rule keeps it. Nothing yields; no I/O.
 */
#ifndef TIDEMARK_BACKUP_RETENTION_H
#define TIDEMARK_BACKUP_RETENTION_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"

enum retention_rule {
    RETENTION_LAST,
    RETENTION_HOURLY,
    RETENTION_DAILY,
    RETENTION_WEEKLY,
    RETENTION_MONTHLY,
    RETENTION_YEARLY,
    RETENTION_WITHIN,
    RETENTION_RULES,
};

/* A length of time as people say it: months and years are as long as the calendar has them. */
struct retention_span {
    unsigned years, months, days, hours;
};

struct retention {
    uint64_t count[RETENTION_RULES]; /* 0: the rule keeps nothing; [RETENTION_WITHIN] is unused */
    bool has_within;
    struct retention_span within; /* before the newest backup */
};

/* "last", "hourly" ...: the word of an option and of a report. */
const char *retention_rule_name(enum retention_rule rule);

/* Whether there is any rule. */
bool retention_is_set(const struct retention *r);

/* Parse a span such as "36h", "7d", "1y6m". -EINVAL. */
int retention_parse_span(const char *text, struct retention_span *ret_span, struct error *err);

/*
 * Apply the rules to backups of these times (seconds since the epoch), newest first. ret_reasons[i]
 * gets a bit (1 << rule) for each rule that keeps backup i; 0: it is not kept. A time of INT64_MIN
 * is not known: such a backup is kept by RETENTION_LAST only. RETENTION_WITHIN counts from the
 * newest time that is not after `now`, so that a backup that was taken while the clock was ahead
 * does not make all others old; later ones are kept. -ENOMEM.
 */
int retention_apply(const struct retention *r, int64_t now, const int64_t *times, size_t count,
                    unsigned *ret_reasons);

#endif
