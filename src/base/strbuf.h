/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A growing string. Always NUL-terminated. When memory runs out it turns "failed" and stays so;
 * the caller asks once at the end. Does not yield.
 */
#ifndef TIDEMARK_BASE_STRBUF_H
#define TIDEMARK_BASE_STRBUF_H

#include <stdbool.h>
#include <stddef.h>

struct strbuf {
    char *data;      /* owned; NULL while empty */
    size_t len;      /* without the NUL */
    size_t capacity; /* bytes allocated */
    bool failed;
};

#define STRBUF_INIT ((struct strbuf){0})
#define STRBUF_AUTO(name) __attribute__((cleanup(strbuf_clear))) struct strbuf name = STRBUF_INIT

void strbuf_append(struct strbuf *sb, const void *data, size_t len);
void strbuf_puts(struct strbuf *sb, const char *s);
void strbuf_printf(struct strbuf *sb, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
void strbuf_clear(struct strbuf *sb);

/* The text; "" while empty. Borrowed until the next change. */
const char *strbuf_str(const struct strbuf *sb);

/* Hand the text over (malloc'ed, never NULL unless memory ran out) and start again empty. */
char *strbuf_take(struct strbuf *sb);

#endif
