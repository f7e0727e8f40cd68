/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A stream of JSON values from somebody who may be hostile, as objects of json-c.
 *
 * The language is what QEMU's programs take and no other: RFC 8259, strings also in single quotes, integers of 64 bits
 * with or without a sign (others become doubles), keys of an object at most once, no code point that is no character.
 * No library reads it: json-c takes trailing commas, keys given twice, 01, and lone surrogates, and clamps
 * integers; jansson has neither unsigned integers of 64 bits nor single quotes.
 *
 *     START --token--> VALUE --brackets balanced--> START          (a value was read, or it was malformed)
 *                          | a character that begins no token, or a limit
 *                          +---------> SKIP --newline or 0xFF--> START
 *
 * Each way back to START gives one value or one error. A malformed value is read up to its last bracket before
 * its error is told, so that nothing inside it is taken for a message. A byte 0xFF (which no UTF-8 has) starts anew at any
 * place, as QEMU's QMP specification recommends for clients that want to synchronise. Does not yield.
 */
#ifndef TIDEMARK_BASE_JSON_READ_H
#define TIDEMARK_BASE_JSON_READ_H

#include <json-c/json.h>
#include <stddef.h>

#include "base/error.h"

/* Of one value. */
struct json_limits {
    size_t bytes;  /* of all tokens; what stands between them costs nothing */
    size_t tokens; /* numbers, strings, words, brackets, commas, colons */
    size_t depth;  /* open brackets */
    size_t memory; /* what json-c needs for it, estimated: an empty object takes near 1 KiB */
};

struct json_reader;

/* NULL: out of memory. `limits` has to stay. */
struct json_reader *json_reader_new(const struct json_limits *limits);
void json_reader_free(struct json_reader *r); /* NULL is fine */

/*
 * Look at up to `size` bytes until one value ends; *ret_used of them are done with. Returns 1 with a new reference in
 * *ret (NULL stands for null); 0 if more bytes are needed; -EINVAL with a sentence for what was no JSON. After either,
 * call again with the rest.
 */
int json_reader_feed(struct json_reader *r, const char *data, size_t size, size_t *ret_used,
                     struct json_object **ret, struct error *err);

/* A text that is one value. As above, without 0. */
int json_read_text(const char *text, size_t size, const struct json_limits *limits,
                   struct json_object **ret, struct error *err);

#endif
