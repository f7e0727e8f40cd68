/* SPDX-License-Identifier: Apache-2.0 */
#include "base/json_read.h"

#include <errno.h>
#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "base/json_lex.h"

/* What json-c takes for a value of each kind, about; and for a place in an array, or in an object. */
#define COST_OBJECT 900
#define COST_ARRAY 128
#define COST_SCALAR 64
#define COST_ELEMENT 16
#define COST_MEMBER 128

/* Room in an array that json-c takes at once; its own default is 32. */
#define ARRAY_ROOM 4

/* What may come next. */
enum expect {
    EXPECT_VALUE,
    EXPECT_VALUE_OR_END, /* after [ */
    EXPECT_KEY_OR_END,   /* after { */
    EXPECT_KEY,          /* after a comma in an object */
    EXPECT_COLON,
    EXPECT_SEPARATOR, /* or the end of the array or object */
    EXPECT_NOTHING,   /* the value is complete */
};

struct json_reader {
    const struct json_limits *limits;
    struct json_lexer lexer;
    struct strbuf decoded; /* the string at hand */
    bool skipping;         /* up to the end of the line */

    /* The value that is being read. */
    enum expect expect;
    struct json_object *root; /* owned */
    struct json_object *
        *open;          /* owned; arrays and objects not closed yet, borrowed, from the outermost */
    size_t depth;       /* of `open` */
    char *key;          /* owned; waits for its value */
    struct error error; /* why the rest of it is only counted */
    long braces, brackets; /* open ones */
    size_t tokens, bytes, cost;
};

struct json_reader *json_reader_new(const struct json_limits *limits)
{
    struct json_reader *r = calloc(1, sizeof(*r));

    if (!r) {
        return NULL;
    }
    r->limits = limits;
    r->open = calloc(limits->depth ? limits->depth : 1, sizeof(struct json_object *));
    if (!r->open) {
        free(r);
        return NULL;
    }
    return r;
}

static void drop_value(struct json_reader *r)
{
    json_object_put(r->root);
    r->root = NULL;
    r->depth = 0;
    free(r->key);
    r->key = NULL;
}

static void start_anew(struct json_reader *r)
{
    drop_value(r);
    json_lex_next(&r->lexer);
    error_clear(&r->error);
    r->expect = EXPECT_VALUE;
    r->braces = r->brackets = 0;
    r->tokens = r->bytes = r->cost = 0;
}

void json_reader_free(struct json_reader *r)
{
    if (r) {
        start_anew(r);
        strbuf_clear(&r->lexer.text);
        strbuf_clear(&r->decoded);
        free(r->open);
        free(r);
    }
}

/* --- values ---------------------------------------------------------------------------------------- */

static int out_of_memory(struct error *err)
{
    return error_set(err, ENOMEM, "Out of memory for a JSON value");
}

static int syntax_error(struct error *err, const char *what)
{
    return error_set(err, EINVAL, "JSON parse error, %s", what);
}

/* Put a value (consumed in any case) where it belongs. */
static int add_value(struct json_reader *r, struct json_object *value, struct error *err)
{
    struct json_object *parent = r->depth > 0 ? r->open[r->depth - 1] : NULL;
    int result;

    if (!parent) {
        r->root = value;
        r->expect = EXPECT_NOTHING;
        return 0;
    }
    r->expect = EXPECT_SEPARATOR;
    if (json_object_is_type(parent, json_type_array)) {
        r->cost += COST_ELEMENT;
        result = json_object_array_add(parent, value);
    } else if (json_object_object_get_ex(parent, r->key, NULL)) {
        json_object_put(value);
        return syntax_error(err, "duplicate key");
    } else {
        r->cost += COST_MEMBER + strlen(r->key);
        result = json_object_object_add(parent, r->key, value);
        free(r->key);
        r->key = NULL;
    }
    if (result < 0) {
        json_object_put(value);
        return out_of_memory(err);
    }
    return 0;
}

static int open_container(struct json_reader *r, bool is_object, struct error *err)
{
    struct json_object *value =
        is_object ? json_object_new_object() : json_object_new_array_ext(ARRAY_ROOM);
    int result;

    if (!value) {
        return out_of_memory(err);
    }
    r->cost += is_object ? COST_OBJECT : COST_ARRAY;
    result = add_value(r, value, err);
    if (result >= 0) {
        r->open[r->depth++] = value;
        r->expect = is_object ? EXPECT_KEY_OR_END : EXPECT_VALUE_OR_END;
    }
    return result;
}

static int close_container(struct json_reader *r)
{
    r->depth--;
    r->expect = r->depth > 0 ? EXPECT_SEPARATOR : EXPECT_NOTHING;
    return 0;
}

static int take_key(struct json_reader *r, struct error *err)
{
    r->decoded.len = 0;
    if (json_decode_string(&r->lexer.text, true, &r->decoded, err) < 0) {
        return -EINVAL;
    }
    r->key = r->decoded.failed ? NULL : strdup(r->decoded.len ? r->decoded.data : "");
    r->expect = EXPECT_COLON;
    return r->key ? 0 : out_of_memory(err);
}

static int new_string(struct json_reader *r, struct json_object **ret, struct error *err)
{
    r->decoded.len = 0;
    if (json_decode_string(&r->lexer.text, false, &r->decoded, err) < 0) {
        return -EINVAL;
    }
    r->cost += r->decoded.len;
    if (r->decoded.failed || r->decoded.len > INT32_MAX) {
        return out_of_memory(err);
    }
    *ret = json_object_new_string_len(r->decoded.len ? r->decoded.data : "", (int)r->decoded.len);
    return *ret ? 0 : out_of_memory(err);
}

static int new_number(struct json_reader *r, bool is_integer, struct json_object **ret,
                      struct error *err)
{
    const char *text = strbuf_str(&r->lexer.text);
    double number;

    if (is_integer) {
        long long integer;
        unsigned long long natural;

        errno = 0;
        integer = strtoll(text, NULL, 10);
        if (errno == 0) {
            *ret = json_object_new_int64(integer);
            return *ret ? 0 : out_of_memory(err);
        }
        errno = 0;
        natural = strtoull(text, NULL, 10);
        if (errno == 0 && text[0] != '-') {
            *ret = json_object_new_uint64(natural);
            return *ret ? 0 : out_of_memory(err);
        }
    }
    number = strtod(text, NULL);
    if (!isfinite(number)) {
        return error_set(err, EINVAL, "JSON parse error, number '%.40s' is out of range", text);
    }
    *ret = json_object_new_double(number);
    return *ret ? 0 : out_of_memory(err);
}

static int new_word(struct json_reader *r, struct json_object **ret, struct error *err)
{
    const char *text = strbuf_str(&r->lexer.text);

    if (strcmp(text, "null") == 0) {
        return 0;
    }
    if (strcmp(text, "true") != 0 && strcmp(text, "false") != 0) {
        return error_set(err, EINVAL, "JSON parse error, invalid keyword '%s'", text);
    }
    *ret = json_object_new_boolean(text[0] == 't');
    return *ret ? 0 : out_of_memory(err);
}

static int take_scalar(struct json_reader *r, enum json_token token, struct error *err)
{
    struct json_object *value = NULL;
    int result;

    r->cost += COST_SCALAR;
    switch (token) {
    case JSON_STRING:
        result = new_string(r, &value, err);
        break;
    case JSON_KEYWORD:
        result = new_word(r, &value, err);
        break;
    default:
        result = new_number(r, token == JSON_INTEGER, &value, err);
        break;
    }
    return result < 0 ? result : add_value(r, value, err);
}

/* --- grammar --------------------------------------------------------------------------------------- */

static int take_value(struct json_reader *r, enum json_token token, char punct, struct error *err)
{
    if (token != JSON_PUNCT) {
        return take_scalar(r, token, err);
    }
    if (punct == '{' || punct == '[') {
        return open_container(r, punct == '{', err);
    }
    return syntax_error(err, "expecting value");
}

/* Something other than a string where a key should be. */
static int no_key(struct json_reader *r, enum json_token token, char punct, struct error *err)
{
    struct json_object *word = NULL;
    bool is_value = token != JSON_PUNCT || punct == '{' || punct == '[';
    int result = token == JSON_KEYWORD ? new_word(r, &word, err) : 0;

    json_object_put(word);
    return result < 0
               ? result
               : syntax_error(err, is_value ? "key is not a string in object" : "expecting value");
}

static int take_separator(struct json_reader *r, char punct, struct error *err)
{
    bool in_object = json_object_is_type(r->open[r->depth - 1], json_type_object);

    if (punct == (in_object ? '}' : ']')) {
        return close_container(r);
    }
    if (punct == ',') {
        r->expect = in_object ? EXPECT_KEY : EXPECT_VALUE;
        return 0;
    }
    return syntax_error(err,
                        in_object ? "expected separator in dict" : "expected separator in list");
}

static int take_token(struct json_reader *r, enum json_token token, struct error *err)
{
    char punct = '\0';

    if (token == JSON_PUNCT) {
        punct = r->lexer.text.data[0];
    }
    switch (r->expect) {
    case EXPECT_VALUE_OR_END:
        if (punct == ']') {
            return close_container(r);
        }
        return take_value(r, token, punct, err);
    case EXPECT_KEY_OR_END:
        if (punct == '}') {
            return close_container(r);
        }
        return token == JSON_STRING ? take_key(r, err) : no_key(r, token, punct, err);
    case EXPECT_KEY:
        return token == JSON_STRING ? take_key(r, err) : no_key(r, token, punct, err);
    case EXPECT_COLON:
        r->expect = EXPECT_VALUE;
        return punct == ':' ? 0 : syntax_error(err, "missing : in object pair");
    case EXPECT_SEPARATOR:
        return take_separator(r, punct, err);
    default:
        return take_value(r, token, punct, err);
    }
}

/* --- stream ---------------------------------------------------------------------------------------- */

static int over_limit(const struct json_reader *r, struct error *err)
{
    const struct json_limits *max = r->limits;

    if (r->bytes + r->lexer.text.len > max->bytes) {
        return error_set(err, EINVAL, "JSON token size limit exceeded");
    }
    if (r->tokens > max->tokens) {
        return error_set(err, EINVAL, "JSON token count limit exceeded");
    }
    if (r->braces + r->brackets > (long)max->depth) {
        return error_set(err, EINVAL, "JSON nesting depth limit exceeded");
    }
    if (r->cost > max->memory) {
        return error_set(err, EINVAL, "JSON memory limit exceeded");
    }
    return 0;
}

/* A token is complete. Returns whether the value ends with it; -EINVAL: a limit. */
static int end_token(struct json_reader *r, enum json_token token, struct error *err)
{
    char punct = token == JSON_PUNCT ? r->lexer.text.data[0] : '\0';

    r->braces += (punct == '{') - (punct == '}');
    r->brackets += (punct == '[') - (punct == ']');
    r->tokens++;
    if (over_limit(r, err) < 0) {
        return -EINVAL;
    }
    if (!error_is_set(&r->error) && take_token(r, token, &r->error) < 0) {
        drop_value(r);
    }
    r->bytes += r->lexer.text.len;
    json_lex_next(&r->lexer);
    return r->braces < 0 || r->brackets < 0 || (r->braces == 0 && r->brackets == 0);
}

/* A value is over: it, or its error. */
static int finish(struct json_reader *r, struct json_object **ret, struct error *err)
{
    int result = 1;

    if (error_is_set(&r->error)) {
        error_move(err, &r->error);
        result = -EINVAL;
    } else {
        *ret = r->root;
        r->root = NULL;
    }
    start_anew(r);
    return result;
}

/* The error is in `err`; what follows up to the end of the line is not looked at. */
static int give_up_line(struct json_reader *r, char last)
{
    start_anew(r);
    r->skipping = last != '\n' && (unsigned char)last != 0xFF;
    return -EINVAL;
}

static int stray_character(struct json_reader *r, char last, struct error *err)
{
    error_set(err, EINVAL, "JSON parse error, stray '%.200s'", strbuf_str(&r->lexer.text));
    return give_up_line(r, last);
}

int json_reader_feed(struct json_reader *r, const char *data, size_t size, size_t *ret_used,
                     struct json_object **ret, struct error *err)
{
    size_t i = 0;

    while (i < size) {
        enum json_lex_result result;
        enum json_token token;
        int ended;

        if (r->skipping) {
            r->skipping = data[i] != '\n' && (unsigned char)data[i] != 0xFF;
            i++;
            continue;
        }
        i += json_lex_span(&r->lexer, data + i, size - i);
        if (r->bytes + r->lexer.text.len > r->limits->bytes) {
            *ret_used = i;
            over_limit(r, err);
            return give_up_line(r, '\0');
        }
        if (i == size) {
            break;
        }
        result = json_lex_char(&r->lexer, data[i], &token);
        if (r->lexer.text.failed) {
            *ret_used = i + 1;
            out_of_memory(err);
            return give_up_line(r, data[i]);
        }
        i += result != JSON_LEX_TOKEN_BEFORE;
        *ret_used = i;
        if (result == JSON_LEX_STRAY) {
            return stray_character(r, data[i - 1], err);
        }
        if (result == JSON_LEX_MORE) {
            continue;
        }
        ended = end_token(r, token, err);
        if (ended < 0) {
            return give_up_line(r, '\0');
        }
        if (ended > 0) {
            return finish(r, ret, err);
        }
    }
    *ret_used = size;
    return 0;
}

/* Feed all of a text; what a second value in it makes is an error. */
static int read_all(struct json_reader *r, const char *text, size_t size, struct json_object **ret,
                    struct error *err)
{
    bool have = false;
    size_t used;

    for (; size > 0; text += used, size -= used) {
        struct json_object *value = NULL;
        int result = json_reader_feed(r, text, size, &used, &value, err);

        if (result > 0 && have) {
            json_object_put(value);
            result = error_set(err, EINVAL, "Expecting at most one JSON value");
        }
        if (result < 0) {
            return result;
        }
        if (result > 0) {
            *ret = value;
            have = true;
        }
    }
    return have;
}

int json_read_text(const char *text, size_t size, const struct json_limits *limits,
                   struct json_object **ret, struct error *err)
{
    struct json_reader *r = json_reader_new(limits);
    struct json_object *value = NULL, *last = NULL;
    int result;

    if (!r) {
        return out_of_memory(err);
    }
    result = read_all(r, text, size, &value, err);
    if (result >= 0) {
        /* The end of the text ends a number or a word. */
        int more = read_all(r, " ", 1, &last, err);

        if (more >= 0 && (r->tokens > 0 || r->lexer.state != JSON_LEX_START || !(result || more))) {
            more = syntax_error(err, "premature EOI");
        } else if (more > 0 && result > 0) {
            more = error_set(err, EINVAL, "Expecting at most one JSON value");
        }
        result = more < 0 ? more : 1;
    }
    json_reader_free(r);
    if (result < 0) {
        json_object_put(value);
        json_object_put(last);
        return result;
    }
    *ret = value ?: last;
    return 1;
}
