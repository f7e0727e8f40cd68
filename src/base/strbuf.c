/* SPDX-License-Identifier: Apache-2.0 */
#include "base/strbuf.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* A secret reset() keeps no more than this. */
#define KEEP_MAX 65536

static void free_text(const struct strbuf *sb)
{
    if (sb->secret && sb->data) {
        explicit_bzero(sb->data, sb->capacity);
    }
    free(sb->data);
}

/* As realloc(), which would leave the old text where it was. */
static char *grow(struct strbuf *sb, size_t capacity)
{
    char *data;

    if (!sb->secret) {
        return realloc(sb->data, capacity);
    }
    data = malloc(capacity);
    if (data && sb->data) {
        memcpy(data, sb->data, sb->len + 1);
        free_text(sb);
    }
    return data;
}

static bool strbuf_reserve(struct strbuf *sb, size_t more)
{
    size_t need = sb->len + more + 1;

    if (sb->failed) {
        return false;
    }
    if (need > sb->capacity) {
        size_t capacity = need < 64 ? 64 : need + need / 2;
        char *data = grow(sb, capacity);

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
    bool secret = sb->secret;

    free_text(sb);
    *sb = secret ? STRBUF_SECRET : STRBUF_INIT;
}

void strbuf_reset(struct strbuf *sb)
{
    if (sb->capacity > KEEP_MAX) {
        strbuf_clear(sb);
        return;
    }
    if (sb->data && sb->secret) {
        explicit_bzero(sb->data, sb->capacity);
    } else if (sb->data) {
        sb->data[0] = '\0';
    }
    sb->len = 0;
    sb->failed = false;
}

const char *strbuf_str(const struct strbuf *sb)
{
    return sb->data ? sb->data : "";
}

char *strbuf_take(struct strbuf *sb)
{
    char *s = sb->failed ? NULL : sb->data ? sb->data : strdup("");

    if (sb->failed) {
        free_text(sb);
    }
    *sb = sb->secret ? STRBUF_SECRET : STRBUF_INIT;
    return s;
}
