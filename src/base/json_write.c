/* SPDX-License-Identifier: Apache-2.0 */
#include "base/json_write.h"

#include <limits.h>
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/cleanup.h"

/*
 * Deepest indentation. A client's own "id" is sent back, and may be nested deeply and wide: spaces
 * must not multiply its size.
 */
#define INDENT_LEVELS_MAX 32

/* Its address is in values of json_text_new(). */
static char text_mark;

static void write_value(struct strbuf *out, struct json_object *value, bool pretty, int level);

/*
 * Decode the code point at *p, and advance *p. Bytes that are no well-formed UTF-8 give U+FFFD:
 * strings can come from file names, which are any bytes. C0 80 is a NUL in a key (base/json_lex.h).
 */
static uint32_t next_code_point(const unsigned char **p, const unsigned char *end)
{
    static const uint32_t least[] = {0, 0x80, 0x800, 0x10000};
    unsigned char lead = *(*p)++;
    int more = lead < 0x80                    ? 0
               : lead >= 0xC2 && lead <= 0xDF ? 1
               : lead >= 0xE0 && lead <= 0xEF ? 2
               : lead >= 0xF0 && lead <= 0xF4 ? 3
                                              : -1;
    uint32_t code;

    if (lead == 0xC0 && *p < end && **p == 0x80) {
        (*p)++;
        return 0;
    }
    if (more <= 0) {
        return more == 0 ? lead : 0xFFFD;
    }
    if (end - *p < more) {
        return 0xFFFD;
    }
    code = lead & (0x3Fu >> more);
    for (int i = 0; i < more; i++) {
        if (((*p)[i] & 0xC0) != 0x80) {
            return 0xFFFD;
        }
        code = code << 6 | ((*p)[i] & 0x3F);
    }
    if (code < least[more] || code > 0x10FFFF || (code >= 0xD800 && code <= 0xDFFF)) {
        return 0xFFFD;
    }
    *p += more;
    return code;
}

/* The letter of the short escape of a character; 0 if it has none. */
static char short_escape(uint32_t code)
{
    static const char codes[] = "\"\\\b\f\n\r\t", letters[] = "\"\\bfnrt";
    const char *at = code > 0 && code < 0x80 ? strchr(codes, (int)code) : NULL;

    return at ? letters[at - codes] : '\0';
}

/* Number of bytes that need no escape. */
static size_t unescaped_run(const unsigned char *p, const unsigned char *end)
{
    const unsigned char *start = p;

    while (p < end && *p >= 0x20 && *p < 0x7F && *p != '"' && *p != '\\') {
        p++;
    }
    return (size_t)(p - start);
}

/* Strings up to this length, in bytes, are put together on the stack. */
#define STRING_SHORT 254

/* The most frequent kind: a short string of which `plain` bytes, all, need no escape. */
static void write_plain_string(struct strbuf *out, const char *text, size_t plain)
{
    char quoted[STRING_SHORT + 2];

    quoted[0] = '"';
    memcpy(quoted + 1, text, plain);
    quoted[plain + 1] = '"';
    strbuf_append(out, quoted, plain + 2);
}

static void write_string(struct strbuf *out, const char *text, size_t len)
{
    const unsigned char *p = (const unsigned char *)text, *end = p + len;
    size_t plain = unescaped_run(p, end);

    if (plain == len && len <= STRING_SHORT) {
        write_plain_string(out, text, len);
        return;
    }
    strbuf_append(out, "\"", 1);
    for (; p < end; plain = unescaped_run(p, end)) {
        char escape[] = {'\\', '\0'};
        uint32_t code;

        strbuf_append(out, p, plain);
        p += plain;
        if (p == end) {
            break;
        }
        code = next_code_point(&p, end);
        escape[1] = short_escape(code);
        if (escape[1]) {
            strbuf_append(out, escape, sizeof(escape));
        } else if (code > 0xFFFF) {
            strbuf_printf(out, "\\u%04X\\u%04X", 0xD800 + ((code - 0x10000) >> 10),
                          0xDC00 + ((code - 0x10000) & 0x3FF));
        } else {
            strbuf_printf(out, "\\u%04X", code);
        }
    }
    strbuf_append(out, "\"", 1);
}

static void new_line(struct strbuf *out, bool pretty, int level)
{
    if (pretty) {
        strbuf_printf(out, "\n%*s", MIN(level, INDENT_LEVELS_MAX) * 4, "");
    }
}

static void separate(struct strbuf *out, bool pretty, bool first, int level)
{
    if (!first) {
        strbuf_puts(out, pretty ? "," : ", ");
    }
    new_line(out, pretty, level);
}

/* --- members in the order of QEMU's monitor --------------------------------------------------- */

/* Members of an object that are sorted on the stack. */
#define MEMBERS_FEW 32

struct member {
    /* The place, then how late it was added: of equal places the latest comes first. */
    uint64_t order;
    const char *key;
    size_t length; /* of the key */
    struct json_object *value;
};

/*
 * The order in which QEMU prints members is that of a hash table of names with 512 buckets, and the
 * hash of the Trivial Database: the length, then each letter shifted by a cycle of positions, then
 * a step of a congruential generator.
 */
static unsigned place_of(const char *name, size_t length)
{
    static const unsigned char shifts[] = {0,  5,  10, 15, 20, 1,  6,  11, 16, 21, 2,  7,
                                           12, 17, 22, 3,  8,  13, 18, 23, 4,  9,  14, 19};
    uint32_t sum = UINT32_C(0x238f13af) * (uint32_t)length;

    for (size_t i = 0, shift = 0; i < length; i++) {
        sum += (uint32_t)(unsigned char)name[i] << shifts[shift];
        shift = shift + 1 < sizeof(shifts) ? shift + 1 : 0;
    }
    return (UINT32_C(1103515243) * sum + 12345) % 512;
}

static int compare_members(const void *a, const void *b)
{
    const struct member *x = a, *y = b;

    return (x->order > y->order) - (x->order < y->order);
}

/* Few members are sorted in place: answers consist of many small objects. */
static void sort_members(struct member *members, size_t count)
{
    if (count > MEMBERS_FEW) {
        qsort(members, count, sizeof(*members), compare_members);
        return;
    }
    for (size_t i = 1; i < count; i++) {
        struct member m = members[i];
        size_t at = i;

        for (; at > 0 && members[at - 1].order > m.order; at--) {
            members[at] = members[at - 1];
        }
        members[at] = m;
    }
}

static void write_members(struct strbuf *out, const struct member *members, size_t count,
                          bool pretty, int level)
{
    for (size_t i = 0; i < count; i++) {
        separate(out, pretty, i == 0, level + 1);
        write_string(out, members[i].key, members[i].length);
        strbuf_append(out, ": ", 2);
        write_value(out, members[i].value, pretty, level + 1);
    }
}

static void write_object(struct strbuf *out, struct json_object *object, bool pretty, int level)
{
    struct member few[MEMBERS_FEW];
    size_t count = (size_t)json_object_object_length(object), i = 0;
    AUTO_FREE struct member *many = count > ARRAY_SIZE(few) ? malloc(count * sizeof(*many)) : NULL;
    struct member *members = count > ARRAY_SIZE(few) ? many : few;

    if (!members) {
        out->failed = true;
        return;
    }
    json_object_object_foreach(object, key, value)
    {
        size_t length = strlen(key);
        uint64_t place = place_of(key, length);

        members[i] = (struct member){place << 32 | (UINT32_MAX - i), key, length, value};
        i++;
    }
    sort_members(members, i);
    strbuf_puts(out, "{");
    write_members(out, members, i, pretty, level);
    new_line(out, pretty, level);
    strbuf_puts(out, "}");
}

static void write_array(struct strbuf *out, struct json_object *array, bool pretty, int level)
{
    strbuf_puts(out, "[");
    for (size_t i = 0; i < json_object_array_length(array); i++) {
        separate(out, pretty, i == 0, level + 1);
        write_value(out, json_object_array_get_idx(array, i), pretty, level + 1);
    }
    new_line(out, pretty, level);
    strbuf_puts(out, "]");
}

static void write_integer(struct strbuf *out, struct json_object *value)
{
    int64_t number = json_object_get_int64(value);
    uint64_t rest = number < 0 ? 0 - (uint64_t)number : json_object_get_uint64(value);
    char digits[24];
    size_t at = sizeof(digits);

    do {
        digits[--at] = (char)('0' + rest % 10);
        rest /= 10;
    } while (rest > 0);
    if (number < 0) {
        digits[--at] = '-';
    }
    strbuf_append(out, digits + at, sizeof(digits) - at);
}

static void write_value(struct strbuf *out, struct json_object *value, bool pretty, int level)
{
    switch (json_object_get_type(value)) {
    case json_type_null:
        strbuf_puts(out, "null");
        break;
    case json_type_boolean:
        strbuf_puts(out, json_object_get_boolean(value) ? "true" : "false");
        break;
    case json_type_int:
        write_integer(out, value);
        break;
    case json_type_double:
        if (isfinite(json_object_get_double(value))) {
            strbuf_printf(out, "%.17g", json_object_get_double(value));
        } else {
            strbuf_puts(out, "null");
        }
        break;
    case json_type_string:
        if (json_object_get_userdata(value) == &text_mark) {
            strbuf_append(out, json_object_get_string(value),
                          (size_t)json_object_get_string_len(value));
            break;
        }
        write_string(out, json_object_get_string(value), (size_t)json_object_get_string_len(value));
        break;
    case json_type_object:
        write_object(out, value, pretty, level);
        break;
    case json_type_array:
        write_array(out, value, pretty, level);
        break;
    }
}

void json_write(struct strbuf *out, struct json_object *value, bool pretty)
{
    write_value(out, value, pretty, 0);
}

struct json_object *json_text_new(const struct strbuf *text)
{
    struct json_object *o = text->failed || text->len > INT_MAX
                                ? NULL
                                : json_object_new_string_len(strbuf_str(text), (int)text->len);

    if (o) {
        json_object_set_userdata(o, &text_mark, NULL);
    }
    return o;
}
