/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Splits JSON text into tokens, one character at a time, and decodes string tokens. For json_read.c
 * only. The language is RFC 8259, and strings in single quotes, which QEMU's programs also accept.
 * None of these functions yields.
 */
#ifndef TIDEMARK_BASE_JSON_LEX_H
#define TIDEMARK_BASE_JSON_LEX_H

#include <stdbool.h>
#include <stddef.h>

#include "base/error.h"
#include "base/strbuf.h"

enum json_token {
    /* one of { } [ ] , : */
    JSON_PUNCT,
    /* with its quotes, not decoded */
    JSON_STRING,
    /* a number without fraction and exponent */
    JSON_INTEGER,
    /* any other number */
    JSON_FRACTION,
    /* lower-case letters; not necessarily true, false or null */
    JSON_KEYWORD,
};

enum json_lex_state {
    JSON_LEX_START,
    JSON_LEX_STRING,
    /* after a backslash in a string */
    JSON_LEX_ESCAPE,
    /* after a minus sign; a digit must follow */
    JSON_LEX_MINUS,
    JSON_LEX_ZERO,
    JSON_LEX_DIGITS,
    /* after the point; a digit must follow */
    JSON_LEX_POINT,
    /* after the e of an exponent; a sign or a digit must follow */
    JSON_LEX_E,
    /* after the sign of an exponent; a digit must follow */
    JSON_LEX_E_SIGN,
    JSON_LEX_DECIMALS,
    JSON_LEX_EXPONENT,
    JSON_LEX_KEYWORD,
};

/* Starts as zeroes. */
struct json_lexer {
    enum json_lex_state state;
    /* the quote that ends the present string */
    char quote;
    /* the present token so far */
    struct strbuf text;
};

enum json_lex_result {
    /* `c` was taken; no token is complete */
    JSON_LEX_MORE,
    /* `c` was taken; it completes a token */
    JSON_LEX_TOKEN,
    /* a token was complete before `c`; pass `c` again after json_lex_next() */
    JSON_LEX_TOKEN_BEFORE,
    /* `c` is not valid here; `text` holds the token so far and `c` */
    JSON_LEX_STRAY,
};

/*
 * Process one character. When a token is complete, *ret_token is its kind and lx->text its text,
 * until json_lex_next(). The caller checks lx->text.failed, which means out of memory.
 */
enum json_lex_result json_lex_char(struct json_lexer *lx, char c, enum json_token *ret_token);

/* Begin the next token, after a complete one or after an error. */
void json_lex_next(struct json_lexer *lx);

/*
 * Take the characters from `data` on that continue the present string and neither end it nor begin
 * an escape. Returns their number; 0 outside strings.
 */
size_t json_lex_span(struct json_lexer *lx, const char *data, size_t size);

/*
 * Append the value of a string token to `out`. The value may contain NUL, which JSON can write only
 * as \u0000. With `as_key`, NUL becomes the bytes C0 80, so that a C string can hold the key and
 * the key equals no other. Returns 0, or -EINVAL for an escape that JSON does not define, for
 * invalid UTF-8, for an unpaired surrogate, and for a code point that Unicode reserves as a
 * noncharacter.
 */
int json_decode_string(const struct strbuf *token, bool as_key, struct strbuf *out,
                       struct error *err);

/*
 * The length in bytes of the UTF-8 sequence at `p`, which is before `end`; 0 if it is invalid, is
 * longer than there are bytes, or is a code point that Unicode reserves as a noncharacter.
 */
size_t json_utf8_length(const unsigned char *p, const unsigned char *end);

#endif
