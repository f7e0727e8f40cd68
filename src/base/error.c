/* SPDX-License-Identifier: Apache-2.0 */
#include "base/error.h"

#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#undef error_set
#undef error_set_errno
#undef error_set_class
#undef error_out_of_memory

int error_vset(struct error *err, int errnum, const char *fmt, va_list ap)
{
    if (err && err->code == 0) {
        err->code = errnum;
        if (vasprintf(&err->message, fmt, ap) < 0) {
            err->message = NULL;
        }
    }
    return -errnum;
}

int error_set(struct error *err, int errnum, const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    error_vset(err, errnum, fmt, ap);
    va_end(ap);
    return -errnum;
}

int error_out_of_memory(struct error *err)
{
    return error_set(err, ENOMEM, "Out of memory");
}

int error_set_errno(struct error *err, int errnum, const char *fmt, ...)
{
    va_list ap;
    char *joined = NULL;

    if (!err || err->code != 0) {
        return -errnum;
    }
    va_start(ap, fmt);
    error_vset(err, errnum, fmt, ap);
    va_end(ap);
    if (err->message && asprintf(&joined, "%s: %s", err->message, strerror(errnum)) >= 0) {
        free(err->message);
        err->message = joined;
    }
    return -errnum;
}

int error_set_class(struct error *err, enum error_class error_class, int errnum, const char *fmt,
                    ...)
{
    va_list ap;

    if (err && err->code == 0) {
        err->error_class = error_class;
    }
    va_start(ap, fmt);
    error_vset(err, errnum, fmt, ap);
    va_end(ap);
    return -errnum;
}

static void vprepend(struct error *err, bool once, const char *fmt, va_list ap)
{
    char *prefix = NULL, *joined = NULL;

    if (!error_is_set(err) || vasprintf(&prefix, fmt, ap) < 0) {
        return;
    }
    if ((!once || strncmp(error_message(err), prefix, strlen(prefix)) != 0) &&
        asprintf(&joined, "%s%s", prefix, error_message(err)) >= 0) {
        free(err->message);
        err->message = joined;
    }
    free(prefix);
}

void error_prepend(struct error *err, const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    vprepend(err, false, fmt, ap);
    va_end(ap);
}

void error_prepend_once(struct error *err, const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    vprepend(err, true, fmt, ap);
    va_end(ap);
}

void error_hint(struct error *err, const char *fmt, ...)
{
    va_list ap;
    char *hint = NULL;

    if (!error_is_set(err)) {
        return;
    }
    va_start(ap, fmt);
    if (vasprintf(&hint, fmt, ap) >= 0) {
        free(err->hint);
        err->hint = hint;
    }
    va_end(ap);
}

void error_move(struct error *to, struct error *from)
{
    if (!to || to->code != 0) {
        error_clear(from);
        return;
    }
    *to = *from;
    *from = ERROR_INIT;
}

void error_clear(struct error *err)
{
    free(err->message);
    free(err->hint);
    *err = ERROR_INIT;
}

const char *error_message(const struct error *err)
{
    return err->message ? err->message : strerror(err->code);
}
