/* SPDX-License-Identifier: Apache-2.0 */
#include "base/strbuf.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static bool strbuf_reserve(struct strbuf *sb, size_t more)
{
    size_t need = sb->len + more + 1;

    if (sb->failed) {
        return false;
    }
    if (need > sb->capacity) {
        size_t capacity = need < 64 ? 64 : need + need / 2;
        char *data = realloc(sb->data, capacity);

        if (!data) {
            sb->failed = true;
            return false;
        }
        sb->data = data;
        sb->capacity = capacity;
    }
    return true;
}

void strbuf_append(struct strbuf *sb, const void *data, size_t len)
{
    /* With a length of 0, `data` may be NULL, which memcpy() does not allow. */
    if (len > 0 && strbuf_reserve(sb, len)) {
        memcpy(sb->data + sb->len, data, len);
        sb->len += len;
        sb->data[sb->len] = '\0';
    }
}

void strbuf_puts(struct strbuf *sb, const char *s)
{
    strbuf_append(sb, s, strlen(s));
}

void strbuf_printf(struct strbuf *sb, const char *fmt, ...)
{
    va_list ap;
    int n;

    va_start(ap, fmt);
    n = vsnprintf(NULL, 0, fmt, ap);
    va_end(ap);
    if (n < 0 || !strbuf_reserve(sb, (size_t)n)) {
        sb->failed = true;
        return;
    }
    va_start(ap, fmt);
    vsnprintf(sb->data + sb->len, (size_t)n + 1, fmt, ap);
    va_end(ap);
    sb->len += (size_t)n;
}

void strbuf_clear(struct strbuf *sb)
{
    free(sb->data);
    *sb = STRBUF_INIT;
}

const char *strbuf_str(const struct strbuf *sb)
{
    return sb->data ? sb->data : "";
}

char *strbuf_take(struct strbuf *sb)
{
    char *s = sb->failed ? NULL : sb->data ? sb->data : strdup("");

    if (sb->failed) {
        free(sb->data);
    }
    *sb = STRBUF_INIT;
    return s;
}
