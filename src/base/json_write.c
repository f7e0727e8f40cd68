/* SPDX-License-Identifier: Apache-2.0 */
#include "base/json_write.h"

#include <inttypes.h>
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

static void write_string(struct strbuf *out, const char *text, size_t len)
{
    const unsigned char *p = (const unsigned char *)text, *end = p + len;

    strbuf_append(out, "\"", 1);
    while (p < end) {
        size_t plain = unescaped_run(p, end);
        uint32_t code;

        strbuf_append(out, p, plain);
        p += plain;
        if (p == end) {
            break;
        }
        code = next_code_point(&p, end);
        if (short_escape(code)) {
            strbuf_printf(out, "\\%c", short_escape(code));
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

struct member {
    unsigned place;
    size_t index; /* as it was added */
    const char *key;
    struct json_object *value;
};

/*
 * The order in which QEMU prints members is that of a hash table of names with 512 buckets, and the
 * hash of the Trivial Database: the length, then each letter shifted by a cycle of positions, then
 * a step of a congruential generator.
 */
static unsigned place_of(const char *name)
{
    static const unsigned char shifts[] = {0,  5,  10, 15, 20, 1,  6,  11, 16, 21, 2,  7,
                                           12, 17, 22, 3,  8,  13, 18, 23, 4,  9,  14, 19};
    uint32_t sum = UINT32_C(0x238f13af) * (uint32_t)strlen(name);

    for (size_t i = 0; name[i]; i++) {
        sum += (uint32_t)(unsigned char)name[i] << shifts[i % sizeof(shifts)];
    }
    return (UINT32_C(1103515243) * sum + 12345) % 512;
}

/* Members of equal places keep their order. */
static int compare_members(const void *a, const void *b)
{
    const struct member *x = a, *y = b;

    return x->place != y->place ? (x->place > y->place) - (x->place < y->place)
                                : (x->index > y->index) - (x->index < y->index);
}

static void write_members(struct strbuf *out, const struct member *members, size_t count,
                          bool pretty, int level)
{
    for (size_t i = 0; i < count; i++) {
        separate(out, pretty, i == 0, level + 1);
        write_string(out, members[i].key, strlen(members[i].key));
        strbuf_puts(out, ": ");
        write_value(out, members[i].value, pretty, level + 1);
    }
}

static void write_object(struct strbuf *out, struct json_object *object, bool pretty, int level)
{
    struct member few[32];
    size_t count = (size_t)json_object_object_length(object), i = 0;
    AUTO_FREE struct member *many = count > ARRAY_SIZE(few) ? malloc(count * sizeof(*many)) : NULL;
    struct member *members = count > ARRAY_SIZE(few) ? many : few;

    if (!members) {
        out->failed = true;
        return;
    }
    json_object_object_foreach(object, key, value)
    {
        members[i] = (struct member){place_of(key), i, key, value};
        i++;
    }
    qsort(members, count, sizeof(*members), compare_members);
    strbuf_puts(out, "{");
    write_members(out, members, count, pretty, level);
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

    if (number < 0) {
        strbuf_printf(out, "%" PRId64, number);
    } else {
        strbuf_printf(out, "%" PRIu64, json_object_get_uint64(value));
    }
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
