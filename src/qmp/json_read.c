/* SPDX-License-Identifier: Apache-2.0 */
#include "qmp/json_read.h"

#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

enum read_state { READ_START, READ_MESSAGE, READ_SKIP, READ_SKIP_LINE };

struct qmp_json_reader {
    struct json_tokener *tokener;
    enum read_state state;
    struct json_object *value; /* complete for json-c, while the scanner is at its last bracket */
    struct error error;        /* why the message is being skipped */
    size_t bytes, containers, commas; /* of this message */
    unsigned depth;                   /* open brackets */
    char quote;                       /* the string's delimiter; 0 outside strings */
    bool escaped;                     /* after a backslash */
};

struct qmp_json_reader *qmp_json_reader_new(void)
{
    struct qmp_json_reader *r = calloc(1, sizeof(*r));

    if (!r) {
        return NULL;
    }
    /* json-c counts the value inside the innermost brackets as a level, too. */
    r->tokener = json_tokener_new_ex(QMP_JSON_DEPTH_MAX + 2);
    if (!r->tokener) {
        free(r);
        return NULL;
    }
    json_tokener_set_flags(r->tokener, JSON_TOKENER_VALIDATE_UTF8);
    return r;
}

static void start_anew(struct qmp_json_reader *r)
{
    json_tokener_reset(r->tokener);
    json_object_put(r->value);
    r->value = NULL;
    error_clear(&r->error);
    r->state = READ_START;
    r->bytes = r->containers = r->commas = 0;
    r->depth = 0;
    r->quote = 0;
    r->escaped = false;
}

void qmp_json_reader_free(struct qmp_json_reader *r)
{
    if (r) {
        start_anew(r);
        json_tokener_free(r->tokener);
        free(r);
    }
}

/* A message is over: its object or its error. */
static int finish(struct qmp_json_reader *r, struct json_object **ret, struct error *err)
{
    int result = 1;

    if (error_is_set(&r->error)) {
        error_move(err, &r->error);
        result = -EINVAL;
    } else if (!json_object_is_type(r->value, json_type_object)) {
        result = error_set(err, EINVAL, "QMP input must be a JSON object");
    } else {
        *ret = json_object_get(r->value);
    }
    start_anew(r);
    return result;
}

static bool is_space(char c)
{
    return c == ' ' || c == '\t' || c == '\r' || c == '\n';
}

/* Characters of numbers and of true, false, null. Keeps json-c from NaN and comments. */
static bool is_bare(char c)
{
    return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || (c != '\0' && strchr("+-.E:,", c));
}

/* Follow one character. Returns false for one that can't be there; *ret_end tells that the message is complete. */
static bool scan(struct qmp_json_reader *r, char c, bool *ret_end)
{
    if (r->quote) {
        if (r->escaped) {
            r->escaped = false;
        } else if (c == '\\') {
            r->escaped = true;
        } else if (c == r->quote) {
            r->quote = 0;
            *ret_end = r->depth == 0;
        }
        return (unsigned char)c >= 0x20;
    }
    switch (c) {
    case '"':
    case '\'':
        r->quote = c;
        return true;
    case '{':
    case '[':
        r->depth++;
        r->containers++;
        return true;
    case '}':
    case ']':
        if (r->depth > 0) {
            r->depth--;
        }
        *ret_end = r->depth == 0;
        return true;
    default:
        r->commas += c == ',';
        /* A bare word or number outside brackets ends at a space; json-c has seen it whole by then. */
        *ret_end = r->depth == 0 && is_space(c);
        return is_space(c) || is_bare(c);
    }
}

static int over_limit(struct qmp_json_reader *r, struct error *err)
{
    if (r->depth > QMP_JSON_DEPTH_MAX) {
        return error_set(err, EINVAL, "JSON nesting depth limit exceeded");
    }
    if (r->containers > QMP_JSON_CONTAINERS_MAX || r->commas > QMP_JSON_COMMAS_MAX) {
        return error_set(err, EINVAL, "JSON token count limit exceeded");
    }
    if (r->bytes > QMP_JSON_BYTES_MAX) {
        return error_set(err, EINVAL, "JSON message size limit exceeded");
    }
    return 0;
}

/* Hand [data, data + size) of the message to json-c; sets r->value or r->error. */
static void parse(struct qmp_json_reader *r, const char *data, size_t size)
{
    enum json_tokener_error status;

    if (size == 0 || r->state != READ_MESSAGE) {
        return;
    }
    if (r->value) {
        /* json-c was content before the brackets were balanced. */
        error_set(&r->error, EINVAL, "JSON parse error, unbalanced brackets");
        r->state = READ_SKIP;
        return;
    }
    r->value = json_tokener_parse_ex(r->tokener, data, (int)size);
    status = json_tokener_get_error(r->tokener);
    if (status != json_tokener_success && status != json_tokener_continue) {
        error_set(&r->error, EINVAL, "JSON parse error, %s", json_tokener_error_desc(status));
        r->state = READ_SKIP;
    } else if (status == json_tokener_success &&
               json_tokener_get_parse_end(r->tokener) < size - (is_space(data[size - 1]) ? 1 : 0)) {
        error_set(&r->error, EINVAL, "JSON parse error, text after the value");
        r->state = READ_SKIP;
    }
}

/* The error is in `err`; what follows up to the end of the line is not looked at. */
static int give_up_line(struct qmp_json_reader *r, char last)
{
    start_anew(r);
    r->state = last == '\n' ? READ_START : READ_SKIP_LINE;
    return -EINVAL;
}

int qmp_json_reader_feed(struct qmp_json_reader *r, const char *data, size_t size, size_t *ret_used,
                         struct json_object **ret, struct error *err)
{
    size_t begin = 0; /* of what json-c has not got yet */

    for (size_t i = 0; i < size; i++) {
        char c = data[i];
        bool end = false;

        if ((unsigned char)c == 0xFF) {
            *ret_used = i + 1;
            start_anew(r);
            return error_set(err, EINVAL, "JSON parse error, stray 0xFF: starting anew");
        }
        if (r->state == READ_SKIP_LINE) {
            r->state = c == '\n' ? READ_START : READ_SKIP_LINE;
            begin = i + 1;
            continue;
        }
        if (r->state == READ_START) {
            begin = i;
            if (is_space(c)) {
                continue;
            }
            r->state = READ_MESSAGE;
        }
        r->bytes++;
        if (!scan(r, c, &end)) {
            *ret_used = i + 1;
            error_set(err, EINVAL, "JSON parse error, invalid character%s",
                      r->quote ? " in string" : "");
            return give_up_line(r, c);
        }
        if (over_limit(r, err) < 0) {
            *ret_used = i + 1;
            return give_up_line(r, c);
        }
        if (end) {
            *ret_used = i + 1;
            parse(r, data + begin, i + 1 - begin);
            if (!r->value && !error_is_set(&r->error) &&
                json_tokener_get_error(r->tokener) == json_tokener_continue) {
                error_set(&r->error, EINVAL, "JSON parse error, unbalanced brackets");
            }
            return finish(r, ret, err);
        }
    }
    if (r->state == READ_MESSAGE) {
        parse(r, data + begin, size - begin);
    }
    *ret_used = size;
    return 0;
}
