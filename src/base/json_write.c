/* SPDX-License-Identifier: Apache-2.0 */
#include "base/json_write.h"

#include <assert.h>
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

/* Objects with up to this many members are sorted in place. */
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

/* Anything but an array or an object. */
static void write_scalar(struct strbuf *out, struct json_object *value)
{
    switch (json_object_get_type(value)) {
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
    default:
        strbuf_puts(out, "null");
        break;
    }
}

/* --- nested values ---------------------------------------------------------------------------- */

/*
 * A client nests its "id" as deep as it likes, so arrays and objects that are open are on a stack
 * of our own and not on that of the thread. Both arrays move to the heap when they grow.
 */
#define OPEN_FEW 16
#define MEMBERS_ON_STACK 64

/* An array or object of which a part is written. */
struct open_value {
    struct json_object *array; /* NULL: an object */
    size_t next, count;
    size_t members; /* of an object: index of the first one in `members` of the writer */
};

struct writer {
    struct strbuf *out;
    bool pretty;
    struct open_value *open;
    size_t depth, open_room;
    /* The members of all objects that are open, sorted. */
    struct member *members;
    size_t member_count, member_room;
    struct open_value open_few[OPEN_FEW];
    struct member members_few[MEMBERS_ON_STACK];
};

/*
 * `array`, or a larger one in its place, that has room for `need` elements of `size` bytes. *room
 * is how many it has; `few`: where it is at first. NULL if out of memory: `array` stays.
 */
static void *with_room(void *array, const void *few, size_t *room, size_t need, size_t size)
{
    size_t more = MAX(*room * 2, need);
    void *larger;

    if (need <= *room) {
        return array;
    }
    larger = realloc(array == few ? NULL : array, more * size);
    if (larger && array == few) {
        memcpy(larger, few, *room * size);
    }
    *room = larger ? more : *room;
    return larger;
}

/* Push the members of an object, in the order in which they are written. */
static bool push_members(struct writer *w, struct json_object *object, struct open_value *ret_value)
{
    size_t count = (size_t)json_object_object_length(object), i = 0;
    struct member *members = with_room(w->members, w->members_few, &w->member_room,
                                       w->member_count + count, sizeof(*members));

    if (!members) {
        return false;
    }
    w->members = members;
    members += w->member_count;
    json_object_object_foreach(object, key, value)
    {
        size_t length = strlen(key);
        uint64_t place = place_of(key, length);

        members[i] = (struct member){place << 32 | (UINT32_MAX - i), key, length, value};
        i++;
    }
    sort_members(members, i);
    *ret_value = (struct open_value){.count = i, .members = w->member_count};
    w->member_count += i;
    return true;
}

/* Begin a value: a scalar is written, an array or object is opened. False if out of memory. */
static bool begin_value(struct writer *w, struct json_object *value)
{
    bool is_array = json_object_is_type(value, json_type_array);
    struct open_value open = {.array = value}, *all;

    if (!is_array && !json_object_is_type(value, json_type_object)) {
        write_scalar(w->out, value);
        return true;
    }
    if (is_array) {
        open.count = json_object_array_length(value);
    } else if (!push_members(w, value, &open)) {
        return false;
    }
    all = with_room(w->open, w->open_few, &w->open_room, w->depth + 1, sizeof(*all));
    if (!all) {
        return false;
    }
    w->open = all;
    strbuf_puts(w->out, is_array ? "[" : "{");
    w->open[w->depth++] = open;
    return true;
}

/* Write the next part of the innermost array or object, or its end. False if out of memory. */
static bool continue_value(struct writer *w)
{
    struct open_value *open = &w->open[w->depth - 1];
    const struct member *m;
    size_t i = open->next;

    if (i == open->count) {
        w->member_count -= open->array ? 0 : open->count;
        w->depth--;
        new_line(w->out, w->pretty, (int)w->depth);
        strbuf_puts(w->out, open->array ? "]" : "}");
        return true;
    }
    separate(w->out, w->pretty, i == 0, (int)w->depth);
    open->next++;
    if (open->array) {
        return begin_value(w, json_object_array_get_idx(open->array, i));
    }
    m = &w->members[open->members + i];
    assert(m->key);
    write_string(w->out, m->key, m->length);
    strbuf_append(w->out, ": ", 2);
    return begin_value(w, m->value);
}

void json_write(struct strbuf *out, struct json_object *value, bool pretty)
{
    struct writer w = {
        .out = out,
        .pretty = pretty,
        .open_room = OPEN_FEW,
        .member_room = MEMBERS_ON_STACK,
    };
    bool ok;

    w.open = w.open_few;
    w.members = w.members_few;
    for (ok = begin_value(&w, value); ok && w.depth > 0;) {
        ok = continue_value(&w);
    }
    if (!ok) {
        out->failed = true;
    }
    if (w.open != w.open_few) {
        free(w.open);
    }
    if (w.members != w.members_few) {
        free(w.members);
    }
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
