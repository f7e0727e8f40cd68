/* SPDX-License-Identifier: Apache-2.0 */
#include "base/json_lex.h"

#include <errno.h>
#include <stdint.h>
#include <string.h>

/* --- tokens */

static bool is_digit(char c)
{
    return c >= '0' && c <= '9';
}

static bool is_lower(char c)
{
    return c >= 'a' && c <= 'z';
}

/*
 * Whether `c`, inside a string, is part of it, and neither ends it nor begins an escape. UTF-8 does
 * not contain the bytes FE and FF.
 */
static bool is_plain_char(const struct json_lexer *lx, char c)
{
    unsigned char byte = (unsigned char)c;

    return byte >= 0x20 && byte < 0xFE && c != '\\' && c != lx->quote;
}

size_t json_lex_span(struct json_lexer *lx, const char *data, size_t size)
{
    size_t n = 0;

    if (lx->state != JSON_LEX_STRING) {
        return 0;
    }
    while (n < size && is_plain_char(lx, data[n])) {
        n++;
    }
    strbuf_append(&lx->text, data, n);
    return n;
}

/*
 * In a number: the state after `c`; START if `c` is not part of it; -1 if the number is malformed.
 */
static int number_step(enum json_lex_state state, char c)
{
    switch (state) {
    case JSON_LEX_MINUS:
        return c == '0' ? (int)JSON_LEX_ZERO : is_digit(c) ? (int)JSON_LEX_DIGITS : -1;
    case JSON_LEX_ZERO:
    case JSON_LEX_DIGITS:
        if (is_digit(c)) {
            return state == JSON_LEX_ZERO ? -1 : (int)JSON_LEX_DIGITS;
        }
        return c == '.' ? JSON_LEX_POINT : c == 'e' || c == 'E' ? JSON_LEX_E : JSON_LEX_START;
    case JSON_LEX_POINT:
        return is_digit(c) ? (int)JSON_LEX_DECIMALS : -1;
    case JSON_LEX_DECIMALS:
        return is_digit(c) ? JSON_LEX_DECIMALS : c == 'e' || c == 'E' ? JSON_LEX_E : JSON_LEX_START;
    case JSON_LEX_E:
        if (c == '+' || c == '-') {
            return JSON_LEX_E_SIGN;
        }
        return is_digit(c) ? (int)JSON_LEX_EXPONENT : -1;
    case JSON_LEX_E_SIGN:
        return is_digit(c) ? (int)JSON_LEX_EXPONENT : -1;
    default:
        return is_digit(c) ? JSON_LEX_EXPONENT : JSON_LEX_START;
    }
}

static enum json_lex_result take_char(struct json_lexer *lx, enum json_lex_state state, char c)
{
    strbuf_append(&lx->text, &c, 1);
    lx->state = state;
    return JSON_LEX_MORE;
}

static enum json_lex_result stray_char(struct json_lexer *lx, char c)
{
    strbuf_append(&lx->text, &c, 1);
    return JSON_LEX_STRAY;
}

static enum json_lex_result begin_token(struct json_lexer *lx, char c, enum json_token *ret_token)
{
    if (c == ' ' || c == '\t' || c == '\r' || c == '\n') {
        return JSON_LEX_MORE;
    }
    if (c == '"' || c == '\'') {
        lx->quote = c;
        return take_char(lx, JSON_LEX_STRING, c);
    }
    if (is_lower(c)) {
        return take_char(lx, JSON_LEX_KEYWORD, c);
    }
    if (c == '-' || is_digit(c)) {
        return take_char(lx,
                         c == '-'   ? JSON_LEX_MINUS
                         : c == '0' ? JSON_LEX_ZERO
                                    : JSON_LEX_DIGITS,
                         c);
    }
    if (c != '\0' && strchr("{}[],:", c)) {
        take_char(lx, JSON_LEX_START, c);
        *ret_token = JSON_PUNCT;
        return JSON_LEX_TOKEN;
    }
    return stray_char(lx, c);
}

static enum json_lex_result in_string(struct json_lexer *lx, char c, enum json_token *ret_token)
{
    if (c == lx->quote) {
        take_char(lx, JSON_LEX_START, c);
        *ret_token = JSON_STRING;
        return JSON_LEX_TOKEN;
    }
    return c == '\\'              ? take_char(lx, JSON_LEX_ESCAPE, c)
           : is_plain_char(lx, c) ? take_char(lx, JSON_LEX_STRING, c)
                                  : stray_char(lx, c);
}

enum json_lex_result json_lex_char(struct json_lexer *lx, char c, enum json_token *ret_token)
{
    int next;

    switch (lx->state) {
    case JSON_LEX_START:
        return begin_token(lx, c, ret_token);
    case JSON_LEX_STRING:
        return in_string(lx, c, ret_token);
    case JSON_LEX_ESCAPE:
        /* json_decode_string() checks which escape it is. */
        return (unsigned char)c >= 0x20 && (unsigned char)c < 0xFE
                   ? take_char(lx, JSON_LEX_STRING, c)
                   : stray_char(lx, c);
    case JSON_LEX_KEYWORD:
        if (is_lower(c)) {
            return take_char(lx, JSON_LEX_KEYWORD, c);
        }
        *ret_token = JSON_KEYWORD;
        return JSON_LEX_TOKEN_BEFORE;
    default:
        next = number_step(lx->state, c);
        if (next < 0) {
            return stray_char(lx, c);
        }
        if (next != JSON_LEX_START) {
            return take_char(lx, (enum json_lex_state)next, c);
        }
        *ret_token = lx->state == JSON_LEX_ZERO || lx->state == JSON_LEX_DIGITS ? JSON_INTEGER
                                                                                : JSON_FRACTION;
        return JSON_LEX_TOKEN_BEFORE;
    }
}

/* A buffer of more bytes, which one long string needed, is not kept. */
#define KEPT_CAPACITY 65536

void json_lex_next(struct json_lexer *lx)
{
    if (lx->text.capacity > KEPT_CAPACITY || lx->text.failed) {
        strbuf_clear(&lx->text);
    }
    lx->text.len = 0;
    lx->state = JSON_LEX_START;
}

/* --- strings */

/*
 * Unicode reserves U+FDD0 to U+FDEF, and the last two code points of each plane, as noncharacters.
 */
static bool is_character(uint32_t code)
{
    return code <= 0x10FFFF && (code < 0xD800 || code > 0xDFFF) &&
           (code < 0xFDD0 || code > 0xFDEF) && (code & 0xFFFE) != 0xFFFE;
}

static void put_code_point(struct strbuf *out, uint32_t code, bool as_key)
{
    char utf8[4];
    size_t n;

    if (code == 0 && as_key) {
        strbuf_append(out, "\xC0\x80", 2);
        return;
    }
    if (code < 0x80) {
        utf8[0] = (char)code;
        n = 1;
    } else if (code < 0x800) {
        utf8[0] = (char)(0xC0 | code >> 6);
        n = 2;
    } else if (code < 0x10000) {
        utf8[0] = (char)(0xE0 | code >> 12);
        n = 3;
    } else {
        utf8[0] = (char)(0xF0 | code >> 18);
        n = 4;
    }
    for (size_t i = 1; i < n; i++) {
        utf8[i] = (char)(0x80 | (code >> (6 * (n - 1 - i)) & 0x3F));
    }
    strbuf_append(out, utf8, n);
}

size_t json_utf8_length(const unsigned char *p, const unsigned char *end)
{
    static const uint32_t least[] = {0, 0, 0x80, 0x800, 0x10000};
    size_t n = *p < 0x80 ? 1 : *p < 0xC2 ? 0 : *p < 0xE0 ? 2 : *p < 0xF0 ? 3 : *p < 0xF5 ? 4 : 0;
    uint32_t code;

    if (n <= 1) {
        return n;
    }
    if ((size_t)(end - p) < n) {
        return 0;
    }
    code = *p & (0x7Fu >> n);
    for (size_t i = 1; i < n; i++) {
        if ((p[i] & 0xC0) != 0x80) {
            return 0;
        }
        code = code << 6 | (p[i] & 0x3F);
    }
    return code >= least[n] && is_character(code) ? n : 0;
}

/* The value of four hexadecimal digits; -1 if they are not there. `end` is the closing quote. */
static int32_t hex4(const unsigned char *p, const unsigned char *end)
{
    int32_t code = 0;

    if (end - p < 4) {
        return -1;
    }
    for (int i = 0; i < 4; i++) {
        int lower = p[i] | 0x20;
        int digit = is_digit((char)p[i])           ? p[i] - '0'
                    : lower >= 'a' && lower <= 'f' ? lower - 'a' + 10
                                                   : -1;

        if (digit < 0) {
            return -1;
        }
        code = code << 4 | digit;
    }
    return code;
}

/* Decode an escape whose digits are at `p`. Returns the end of the escape; NULL: invalid. */
static const unsigned char *decode_unicode(const unsigned char *p, const unsigned char *end,
                                           bool as_key, struct strbuf *out, struct error *err)
{
    int32_t code = hex4(p, end), low = -1;
    size_t used = 4;

    if (code >= 0xD800 && code <= 0xDBFF && end - p >= 10 && p[4] == '\\' && p[5] == 'u') {
        low = hex4(p + 6, end);
        if (low >= 0xDC00 && low <= 0xDFFF) {
            code = 0x10000 + ((code & 0x3FF) << 10 | (low & 0x3FF));
            used = 10;
        }
    }
    if (code < 0 || !is_character((uint32_t)code)) {
        error_set(err, EINVAL, "JSON parse error, \\u%.*s is not a valid Unicode character",
                  (int)used, p);
        return NULL;
    }
    put_code_point(out, (uint32_t)code, as_key);
    return p + used;
}

/* Decode an escape; `p` is behind the backslash. Returns the end of the escape; NULL: invalid. */
static const unsigned char *decode_escape(const unsigned char *p, const unsigned char *end,
                                          bool as_key, struct strbuf *out, struct error *err)
{
    static const char letters[] = "\"'\\/bfnrt", values[] = "\"'\\/\b\f\n\r\t";
    const char *letter;

    if (*p == 'u') {
        return decode_unicode(p + 1, end, as_key, out, err);
    }
    letter = strchr(letters, *p);
    if (!letter) {
        error_set(err, EINVAL, "JSON parse error, invalid escape sequence in string");
        return NULL;
    }
    strbuf_append(out, &values[letter - letters], 1);
    return p + 1;
}

int json_decode_string(const struct strbuf *token, bool as_key, struct strbuf *out,
                       struct error *err)
{
    const unsigned char *p = (const unsigned char *)token->data + 1;
    const unsigned char *end = (const unsigned char *)token->data + token->len - 1;

    while (p < end) {
        const unsigned char *start = p;

        while (p < end && *p != '\\') {
            size_t n = json_utf8_length(p, end);

            if (n == 0) {
                return error_set(err, EINVAL, "JSON parse error, invalid UTF-8 sequence in string");
            }
            p += n;
        }
        strbuf_append(out, start, (size_t)(p - start));
        if (p < end && !(p = decode_escape(p + 1, end, as_key, out, err))) {
            return -EINVAL;
        }
    }
    return 0;
}
