/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A growing string that always ends in NUL. When memory runs out, the string becomes "failed" and
 * stays so: later changes do nothing, and the caller checks once, at the end. None of these
 * functions yields.
 */
#ifndef TIDEMARK_BASE_STRBUF_H
#define TIDEMARK_BASE_STRBUF_H

#include <stdbool.h>
#include <stddef.h>

struct strbuf {
    /* owned; NULL while empty */
    char *data;
    /* without the NUL */
    size_t len;
    /* bytes allocated */
    size_t capacity;
    bool failed;
    /* no copy of the text stays in memory that is freed */
    bool secret;
};

#define STRBUF_INIT ((struct strbuf){0})
/* Of a text that may have passwords in it. */
#define STRBUF_SECRET ((struct strbuf){.secret = true})

/* Defines `struct strbuf name`, empty, cleared when the scope ends. */
#define STRBUF_AUTO(name) __attribute__((cleanup(strbuf_clear))) struct strbuf name = STRBUF_INIT

/* Likewise, STRBUF_SECRET. */
#define STRBUF_SECRET_AUTO(name)                                                                   \
    __attribute__((cleanup(strbuf_clear))) struct strbuf name = STRBUF_SECRET

/* Append `len` bytes, a string, or formatted text. */
void strbuf_append(struct strbuf *sb, const void *data, size_t len);
void strbuf_puts(struct strbuf *sb, const char *s);
void strbuf_printf(struct strbuf *sb, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* Free the text. The string is empty, no longer failed, and secret if it was. */
void strbuf_clear(struct strbuf *sb);
/* Likewise; the memory is kept for later texts, unless it is a lot, and erased if it is secret. */
void strbuf_reset(struct strbuf *sb);

/* The text, "" while empty. Borrowed until the next change. */
const char *strbuf_str(const struct strbuf *sb);

/*
 * The text, which the caller frees, and erases if it is secret; NULL if the string has failed. `sb`
 * is empty afterwards.
 */
char *strbuf_take(struct strbuf *sb);

#endif
