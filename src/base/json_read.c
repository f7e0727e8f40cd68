/* SPDX-License-Identifier: Apache-2.0 */
#include "base/json_read.h"

#include <errno.h>
#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "base/json_lex.h"
#include "base/json_string.h"

/* Bytes that json-c needs, about: for a value of each kind, per array element and object member. */
#define COST_OBJECT 900
#define COST_ARRAY 128
#define COST_SCALAR 64
#define COST_ELEMENT 16
#define COST_MEMBER 128

/* Initial capacity of an array; the default of json-c is 32. */
#define ARRAY_ROOM 4

/* Which token the grammar allows next. */
enum json_expect {
    EXPECT_VALUE,
    /* after [ */
    EXPECT_VALUE_OR_END,
    /* after { */
    EXPECT_KEY_OR_END,
    /* after a comma in an object */
    EXPECT_KEY,
    EXPECT_COLON,
    /* a comma, or the end of the array or object */
    EXPECT_SEPARATOR,
    /* the value is complete */
    EXPECT_NOTHING,
};

struct json_reader {
    const struct json_limits *limits;
    struct json_lexer lexer;
    /* the value of the latest string token */
    struct strbuf decoded;
    /* ignore everything up to the end of the line: the state SKIP */
    bool skipping;

    /* --- the value that is being read */
    enum json_expect expect;
    /* owned */
    struct json_object *root;
    /* owned array of `depth` borrowed arrays and objects that are open, the outermost first */
    struct json_object **open;
    size_t depth;
    /* owned; the key whose value comes next */
    char *key;
    /* filled: the value is malformed, and only the brackets of the rest matter */
    struct error error;
    /* open ones */
    long braces, brackets;
    /* counts for the limits */
    size_t tokens, bytes, cost;
};

struct json_reader *json_reader_new(const struct json_limits *limits)
{
    struct json_reader *reader = calloc(1, sizeof(*reader));

    if (!reader) {
        return NULL;
    }
    reader->limits = limits;
    reader->lexer.text = reader->decoded = STRBUF_SECRET;
    reader->open = calloc(limits->depth ? limits->depth : 1, sizeof(struct json_object *));
    if (!reader->open) {
        free(reader);
        return NULL;
    }
    return reader;
}

static void drop_value(struct json_reader *reader)
{
    json_object_put(reader->root);
    reader->root = NULL;
    reader->depth = 0;
    free(reader->key);
    reader->key = NULL;
}

static void start_value(struct json_reader *reader)
{
    drop_value(reader);
    json_lex_next(&reader->lexer);
    strbuf_reset(&reader->lexer.text);
    strbuf_reset(&reader->decoded);
    error_clear(&reader->error);
    reader->expect = EXPECT_VALUE;
    reader->braces = reader->brackets = 0;
    reader->tokens = reader->bytes = reader->cost = 0;
}

void json_reader_free(struct json_reader *reader)
{
    if (reader) {
        start_value(reader);
        strbuf_clear(&reader->lexer.text);
        strbuf_clear(&reader->decoded);
        free(reader->open);
        free(reader);
    }
}

/* --- values */

static int json_out_of_memory(struct error *err)
{
    return error_set(err, ENOMEM, "Out of memory for a JSON value");
}

static int json_syntax_error(struct error *err, const char *what)
{
    return error_set(err, EINVAL, "JSON parse error, %s", what);
}

/* Add a value, whose reference is consumed in any case, to the array or object that is open. */
static int add_json_value(struct json_reader *reader, struct json_object *value, struct error *err)
{
    struct json_object *parent = reader->depth > 0 ? reader->open[reader->depth - 1] : NULL;
    int r;

    if (!parent) {
        reader->root = value;
        reader->expect = EXPECT_NOTHING;
        return 0;
    }
    reader->expect = EXPECT_SEPARATOR;
    if (json_object_is_type(parent, json_type_array)) {
        reader->cost += COST_ELEMENT;
        r = json_object_array_add(parent, value);
    } else if (json_object_object_get_ex(parent, reader->key, NULL)) {
        json_object_put(value);
        return json_syntax_error(err, "duplicate key");
    } else {
        reader->cost += COST_MEMBER + strlen(reader->key);
        r = json_object_object_add(parent, reader->key, value);
        free(reader->key);
        reader->key = NULL;
    }
    if (r < 0) {
        json_object_put(value);
        return json_out_of_memory(err);
    }
    return 0;
}

static int open_container(struct json_reader *reader, bool is_object, struct error *err)
{
    struct json_object *value =
        is_object ? json_object_new_object() : json_object_new_array_ext(ARRAY_ROOM);
    int r;

    if (!value) {
        return json_out_of_memory(err);
    }
    reader->cost += is_object ? COST_OBJECT : COST_ARRAY;
    r = add_json_value(reader, value, err);
    if (r >= 0) {
        reader->open[reader->depth++] = value;
        reader->expect = is_object ? EXPECT_KEY_OR_END : EXPECT_VALUE_OR_END;
    }
    return r;
}

static int close_container(struct json_reader *reader)
{
    reader->depth--;
    reader->expect = reader->depth > 0 ? EXPECT_SEPARATOR : EXPECT_NOTHING;
    return 0;
}

static int take_key(struct json_reader *reader, struct error *err)
{
    reader->decoded.len = 0;
    if (json_decode_string(&reader->lexer.text, true, &reader->decoded, err) < 0) {
        return -EINVAL;
    }
    reader->key =
        reader->decoded.failed ? NULL : strdup(reader->decoded.len ? reader->decoded.data : "");
    reader->expect = EXPECT_COLON;
    return reader->key ? 0 : json_out_of_memory(err);
}

static int new_string(struct json_reader *reader, struct json_object **ret_value, struct error *err)
{
    reader->decoded.len = 0;
    if (json_decode_string(&reader->lexer.text, false, &reader->decoded, err) < 0) {
        return -EINVAL;
    }
    reader->cost += reader->decoded.len;
    if (reader->decoded.failed) {
        return json_out_of_memory(err);
    }
    *ret_value = json_string_new(strbuf_str(&reader->decoded), reader->decoded.len);
    return *ret_value ? 0 : json_out_of_memory(err);
}

static int new_number(struct json_reader *reader, bool is_integer, struct json_object **ret_value,
                      struct error *err)
{
    const char *text = strbuf_str(&reader->lexer.text);
    double number;

    if (is_integer) {
        long long integer;
        unsigned long long natural;

        errno = 0;
        integer = strtoll(text, NULL, 10);
        if (errno == 0) {
            *ret_value = json_object_new_int64(integer);
            return *ret_value ? 0 : json_out_of_memory(err);
        }
        errno = 0;
        natural = strtoull(text, NULL, 10);
        if (errno == 0 && text[0] != '-') {
            *ret_value = json_object_new_uint64(natural);
            return *ret_value ? 0 : json_out_of_memory(err);
        }
    }
    number = strtod(text, NULL);
    if (!isfinite(number)) {
        return error_set(err, EINVAL, "JSON parse error, number '%.40s' is out of range", text);
    }
    *ret_value = json_object_new_double(number);
    return *ret_value ? 0 : json_out_of_memory(err);
}

static int new_word(struct json_reader *reader, struct json_object **ret_value, struct error *err)
{
    const char *text = strbuf_str(&reader->lexer.text);

    if (strcmp(text, "null") == 0) {
        return 0;
    }
    if (strcmp(text, "true") != 0 && strcmp(text, "false") != 0) {
        return error_set(err, EINVAL, "JSON parse error, invalid keyword '%s'", text);
    }
    *ret_value = json_object_new_boolean(text[0] == 't');
    return *ret_value ? 0 : json_out_of_memory(err);
}

static int take_scalar(struct json_reader *reader, enum json_token token, struct error *err)
{
    struct json_object *value = NULL;
    int r;

    reader->cost += COST_SCALAR;
    switch (token) {
    case JSON_STRING:
        r = new_string(reader, &value, err);
        break;
    case JSON_KEYWORD:
        r = new_word(reader, &value, err);
        break;
    default:
        r = new_number(reader, token == JSON_INTEGER, &value, err);
        break;
    }
    if (r < 0) {
        return r;
    }
    return add_json_value(reader, value, err);
}

/* --- grammar */

static int take_value(struct json_reader *reader, enum json_token token, char punct,
                      struct error *err)
{
    if (token != JSON_PUNCT) {
        return take_scalar(reader, token, err);
    }
    if (punct == '{' || punct == '[') {
        return open_container(reader, punct == '{', err);
    }
    return json_syntax_error(err, "expecting value");
}

/* A token that is no string stands where a key should be. Returns -EINVAL. */
static int no_key(struct json_reader *reader, enum json_token token, char punct, struct error *err)
{
    struct json_object *word = NULL;
    bool is_value = token != JSON_PUNCT || punct == '{' || punct == '[';
    int r = token == JSON_KEYWORD ? new_word(reader, &word, err) : 0;

    json_object_put(word);
    return r < 0 ? r
                 : json_syntax_error(err, is_value ? "key is not a string in object"
                                                   : "expecting value");
}

static int take_separator(struct json_reader *reader, char punct, struct error *err)
{
    bool in_object = json_object_is_type(reader->open[reader->depth - 1], json_type_object);

    if (punct == (in_object ? '}' : ']')) {
        return close_container(reader);
    }
    if (punct == ',') {
        reader->expect = in_object ? EXPECT_KEY : EXPECT_VALUE;
        return 0;
    }
    return json_syntax_error(err, in_object ? "expected separator in dict"
                                            : "expected separator in list");
}

static int take_token(struct json_reader *reader, enum json_token token, struct error *err)
{
    char punct = '\0';

    if (token == JSON_PUNCT) {
        punct = reader->lexer.text.data[0];
    }
    switch (reader->expect) {
    case EXPECT_VALUE_OR_END:
        if (punct == ']') {
            return close_container(reader);
        }
        return take_value(reader, token, punct, err);
    case EXPECT_KEY_OR_END:
        if (punct == '}') {
            return close_container(reader);
        }
        return token == JSON_STRING ? take_key(reader, err) : no_key(reader, token, punct, err);
    case EXPECT_KEY:
        return token == JSON_STRING ? take_key(reader, err) : no_key(reader, token, punct, err);
    case EXPECT_COLON:
        reader->expect = EXPECT_VALUE;
        return punct == ':' ? 0 : json_syntax_error(err, "missing : in object pair");
    case EXPECT_SEPARATOR:
        return take_separator(reader, punct, err);
    default:
        return take_value(reader, token, punct, err);
    }
}

/* --- stream */

static int over_limit(const struct json_reader *reader, struct error *err)
{
    const struct json_limits *max = reader->limits;

    if (reader->bytes + reader->lexer.text.len > max->bytes) {
        return error_set(err, EINVAL, "JSON token size limit exceeded");
    }
    if (reader->tokens > max->tokens) {
        return error_set(err, EINVAL, "JSON token count limit exceeded");
    }
    if (reader->braces + reader->brackets > (long)max->depth) {
        return error_set(err, EINVAL, "JSON nesting depth limit exceeded");
    }
    if (reader->cost > max->memory) {
        return error_set(err, EINVAL, "JSON memory limit exceeded");
    }
    return 0;
}

/* A token is complete. Returns 1 if it ends the value, else 0; -EINVAL: a limit is exceeded. */
static int end_token(struct json_reader *reader, enum json_token token, struct error *err)
{
    char punct = token == JSON_PUNCT ? reader->lexer.text.data[0] : '\0';

    reader->braces += (punct == '{') - (punct == '}');
    reader->brackets += (punct == '[') - (punct == ']');
    reader->tokens++;
    if (over_limit(reader, err) < 0) {
        return -EINVAL;
    }
    if (!error_is_set(&reader->error) && take_token(reader, token, &reader->error) < 0) {
        drop_value(reader);
    }
    reader->bytes += reader->lexer.text.len;
    json_lex_next(&reader->lexer);
    return reader->braces < 0 || reader->brackets < 0 ||
           (reader->braces == 0 && reader->brackets == 0);
}

/* The value has ended: return 1 and the value, or its error. */
static int finish_value(struct json_reader *reader, struct json_object **ret_value,
                        struct error *err)
{
    int r = 1;

    if (error_is_set(&reader->error)) {
        error_move(err, &reader->error);
        r = -EINVAL;
    } else {
        *ret_value = reader->root;
        reader->root = NULL;
    }
    start_value(reader);
    return r;
}

/* Ignore the rest of the line, unless `last` ends it. The caller has filled `err`. */
static int give_up_line(struct json_reader *reader, char last)
{
    start_value(reader);
    reader->skipping = last != '\n' && (unsigned char)last != 0xFF;
    return -EINVAL;
}

static int stray_character(struct json_reader *reader, char last, struct error *err)
{
    error_set(err, EINVAL, "JSON parse error, stray '%.200s'", strbuf_str(&reader->lexer.text));
    return give_up_line(reader, last);
}

int json_reader_feed(struct json_reader *reader, const char *data, size_t size, size_t *ret_used,
                     struct json_object **ret_value, struct error *err)
{
    size_t i = 0;

    while (i < size) {
        enum json_lex_result lexed;
        enum json_token token;
        int ended;

        if (reader->skipping) {
            reader->skipping = data[i] != '\n' && (unsigned char)data[i] != 0xFF;
            i++;
            continue;
        }
        i += json_lex_span(&reader->lexer, data + i, size - i);
        if (reader->bytes + reader->lexer.text.len > reader->limits->bytes) {
            *ret_used = i;
            over_limit(reader, err);
            return give_up_line(reader, '\0');
        }
        if (i == size) {
            break;
        }
        lexed = json_lex_char(&reader->lexer, data[i], &token);
        if (reader->lexer.text.failed) {
            *ret_used = i + 1;
            json_out_of_memory(err);
            return give_up_line(reader, data[i]);
        }
        i += lexed != JSON_LEX_TOKEN_BEFORE;
        *ret_used = i;
        if (lexed == JSON_LEX_STRAY) {
            return stray_character(reader, data[i - 1], err);
        }
        if (lexed == JSON_LEX_MORE) {
            continue;
        }
        ended = end_token(reader, token, err);
        if (ended < 0) {
            return give_up_line(reader, '\0');
        }
        if (ended > 0) {
            return finish_value(reader, ret_value, err);
        }
    }
    *ret_used = size;
    return 0;
}

/* Read all of a text. Returns whether it contains a value; a second value is an error. */
static int read_all(struct json_reader *reader, const char *text, size_t size,
                    struct json_object **ret_value, struct error *err)
{
    bool have = false;
    size_t used;

    for (; size > 0; text += used, size -= used) {
        struct json_object *value = NULL;
        int r = json_reader_feed(reader, text, size, &used, &value, err);

        if (r > 0 && have) {
            json_object_put(value);
            r = error_set(err, EINVAL, "Expecting at most one JSON value");
        }
        if (r < 0) {
            return r;
        }
        if (r > 0) {
            *ret_value = value;
            have = true;
        }
    }
    return have;
}

int json_read_text(const char *text, size_t size, const struct json_limits *limits,
                   struct json_object **ret_value, struct error *err)
{
    struct json_reader *reader = json_reader_new(limits);
    struct json_object *value = NULL, *last = NULL;
    int r;

    if (!reader) {
        return json_out_of_memory(err);
    }
    r = read_all(reader, text, size, &value, err);
    if (r >= 0) {
        /* A number or a word at the end of the text needs a character that ends it. */
        int more = read_all(reader, " ", 1, &last, err);

        if (more >= 0 &&
            (reader->tokens > 0 || reader->lexer.state != JSON_LEX_START || !(r || more))) {
            more = json_syntax_error(err, "premature EOI");
        } else if (more > 0 && r > 0) {
            more = error_set(err, EINVAL, "Expecting at most one JSON value");
        }
        r = more < 0 ? more : 1;
    }
    json_reader_free(reader);
    if (r < 0) {
        json_object_put(value);
        json_object_put(last);
        return r;
    }
    *ret_value = value ?: last;
    return 1;
}
