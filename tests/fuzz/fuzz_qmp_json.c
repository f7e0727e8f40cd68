/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The reader of QMP messages against any bytes, in pieces of any size. What it accepts is written,
 * read again, and written again, with nothing lost, or a client would not find its own "id".
 *
 * Input: the first byte chooses the size of the pieces.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "base/json_read.h"
#include "base/strbuf.h"
#include "base/json_write.h"

/* Small, so that each is met. */
static const struct json_limits limits = {
    .bytes = 4096, .tokens = 300, .depth = 20, .memory = 65536};
static const struct json_limits wide = {
    .bytes = 65536, .tokens = 1024, .depth = 64, .memory = 1048576};

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void must(bool holds)
{
    if (!holds) {
        abort();
    }
}

/* The text of the value that a text is. */
static void read_and_write(const struct strbuf *text, struct strbuf *ret)
{
    struct json_object *value = NULL;
    ERROR_AUTO(err);

    must(json_read_text(text->data, text->len, &wide, &value, &err) > 0);
    json_write(ret, value, false);
    json_object_put(value);
}

/*
 * Members of one place in the order of QEMU's monitor change places each time (base/json_write.h),
 * so that every other text is the same.
 */
static void check_round_trip(struct json_object *value)
{
    STRBUF_AUTO(first);
    STRBUF_AUTO(second);
    STRBUF_AUTO(third);
    STRBUF_AUTO(fourth);

    json_write(&first, value, false);
    read_and_write(&first, &second);
    read_and_write(&second, &third);
    read_and_write(&third, &fourth);
    /* -0.0 is written as -0, which is the integer 0. */
    must(strstr(strbuf_str(&first), "-0") || strcmp(strbuf_str(&first), strbuf_str(&third)) == 0);
    must(strcmp(strbuf_str(&second), strbuf_str(&fourth)) == 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct json_reader *reader = json_reader_new(&limits);
    size_t piece = size > 0 ? 1 + data[0] : 1;

    for (size_t at = 1; at < size;) {
        size_t left = size - at, used = 0, given = left < piece ? left : piece;
        struct json_object *value = NULL;
        ERROR_AUTO(err);
        int r = json_reader_feed(reader, (const char *)data + at, given, &used, &value, &err);

        must(used <= given && (used > 0 || r != 0));
        must(r >= 0 || error_is_set(&err));
        if (r > 0) {
            check_round_trip(value);
            json_object_put(value);
        }
        at += used;
    }
    json_reader_free(reader);
    return 0;
}
