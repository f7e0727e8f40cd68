/* SPDX-License-Identifier: Apache-2.0 */
/*
 * JSON text to tokens, one character at a time, and the value of a string token. Used by json_read.c only. RFC 8259 with
 * one addition, which QEMU has, too: strings may stand in single quotes. Does not yield.
 */
#ifndef TIDEMARK_BASE_JSON_LEX_H
#define TIDEMARK_BASE_JSON_LEX_H

#include <stdbool.h>
#include <stddef.h>

#include "base/error.h"
#include "base/strbuf.h"

enum json_token {
    JSON_PUNCT,   /* one of { } [ ] , : */
    JSON_STRING,  /* with its quotes, not decoded */
    JSON_INTEGER, /* no fraction, no exponent */
    JSON_FRACTION,
    JSON_KEYWORD, /* lower-case letters, which need not mean anything */
};

enum json_lex_state {
    JSON_LEX_START,
    JSON_LEX_STRING,
    JSON_LEX_ESCAPE, /* after a backslash */
    JSON_LEX_MINUS,
    JSON_LEX_ZERO,
    JSON_LEX_DIGITS,
    JSON_LEX_POINT, /* a digit has to follow, as after the next two */
    JSON_LEX_E,
    JSON_LEX_E_SIGN,
    JSON_LEX_DECIMALS,
    JSON_LEX_EXPONENT,
    JSON_LEX_KEYWORD,
};

struct json_lexer {
    enum json_lex_state state;
    char quote;         /* of the string */
    struct strbuf text; /* of the token so far */
};

enum json_lex_result {
    JSON_LEX_MORE,         /* c was taken; no token is complete */
    JSON_LEX_TOKEN,        /* c was taken as the last of a token */
    JSON_LEX_TOKEN_BEFORE, /* a token ended before c: give c again */
    JSON_LEX_STRAY,        /* c can't be there; `text` has what led to it, and it */
};

/* Give one character. *ret is the kind of token that lx->text holds then, until json_lex_next(). */
enum json_lex_result json_lex_char(struct json_lexer *lx, char c, enum json_token *ret);

/* Done with a token, or with an error: start anew. */
void json_lex_next(struct json_lexer *lx);

/* How many characters of the string that is being read can be taken at once; 0 outside strings. Takes them. */
size_t json_lex_span(struct json_lexer *lx, const char *data, size_t size);

/*
 * The value of a string token. NUL (which JSON can only write as \u0000) is left to the caller: with `as_key` it becomes
 * the bytes C0 80, so that a C string holds it and it equals no other key. -EINVAL: an escape that JSON has not; what
 * is no UTF-8; a surrogate without its pair; a code point that is reserved as no character.
 */
int json_decode_string(const struct strbuf *token, bool as_key, struct strbuf *ret,
                       struct error *err);

#endif
