/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Reads a stream of JSON values from an untrusted peer, into objects of json-c.
 *
 * The language is exactly what QEMU's programs accept: RFC 8259, and strings in single quotes;
 * integers of 64 bits, signed or unsigned (others become doubles); no duplicate keys in an object;
 * no noncharacters of Unicode. No library reads this language: json-c accepts trailing commas,
 * duplicate keys, 01 and unpaired surrogates, and clamps integers; jansson has neither unsigned
 * integers of 64 bits nor single quotes.
 *
 *      state    event                                         next    result
 *      START    a token                                       VALUE   none
 *      VALUE    a token that balances the brackets            START   the value, or its error
 *      any      a character that begins no token, or a limit  SKIP    an error
 *      SKIP     a newline or a byte 0xFF                      START   none
 *
 * A malformed value is read up to its last bracket before its error is returned, so that nothing
 * inside it is taken for a message. A byte 0xFF, which UTF-8 does not contain, ends the present
 * value at any place, as QEMU's QMP specification recommends for clients that want to synchronize.
 *
 * Strings erase themselves when they are freed (base/json_string.h), and the reader keeps nothing
 * of a value that has ended: messages have passwords.
 *
 * None of these functions yields.
 */
#ifndef TIDEMARK_BASE_JSON_READ_H
#define TIDEMARK_BASE_JSON_READ_H

#include <json-c/json.h>
#include <stddef.h>

#include "base/error.h"

/* Limits of one value. */
struct json_limits {
    /* in all its tokens; white space between them is not counted */
    size_t bytes;
    /* numbers, strings, words, brackets, commas, colons */
    size_t tokens;
    /* open brackets at any place */
    size_t depth;
    /* bytes that json-c needs for the value, estimated: about 1 KiB for an empty object */
    size_t memory;
};

struct json_reader;

/*
 * A reader in the state START; NULL: out of memory. `limits` is borrowed until the reader is freed.
 */
struct json_reader *json_reader_new(const struct json_limits *limits);

/* NULL is fine. */
void json_reader_free(struct json_reader *reader);

/*
 * Read from `data`, `size` bytes, until one value ends. *ret_used is how many bytes were read; pass
 * the others in the next call. Returns
 *   1        *ret_value is the value, a new reference; NULL for null
 *   0        all bytes were read, and the value is not complete
 *   -EINVAL  malformed, or a limit was exceeded
 *   -ENOMEM  out of memory
 * After an error the reader continues behind the malformed value or line.
 */
int json_reader_feed(struct json_reader *reader, const char *data, size_t size, size_t *ret_used,
                     struct json_object **ret_value, struct error *err);

/* Read a text that is exactly one value. Returns 1, or an error as above. */
int json_read_text(const char *text, size_t size, const struct json_limits *limits,
                   struct json_object **ret_value, struct error *err);

#endif
