/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A stream of JSON objects from somebody who may be hostile.
 *
 * Bytes go to json-c's tokener as they arrive. A small scanner beside it follows strings and brackets: it finds the end
 * of each message, keeps the limits below, and finds the place to go on after an error:
 *
 *     START --{ or [--> MESSAGE --brackets balanced--> START           (an object was read)
 *                          | malformed: json-c says so
 *                          +---------> SKIP --brackets balanced--> START
 *                          | a limit, or a character that no JSON has outside strings
 *                          +---------> SKIP_LINE --newline--> START
 *
 * Each way back to START gives one object or one error. A byte 0xFF (which no UTF-8 has) starts anew at any place, as
 * QEMU's QMP specification recommends for clients that want to synchronise. Does not yield.
 */
#ifndef TIDEMARK_QMP_JSON_READ_H
#define TIDEMARK_QMP_JSON_READ_H

#include <json-c/json.h>
#include <stddef.h>

#include "base/error.h"

/*
 * Of one message: bytes, nested brackets, brackets in all (each costs json-c up to 1 KiB), and commas (each stands for
 * a value of up to 100 bytes). So a client can make the daemon take about 16 MiB.
 */
#define QMP_JSON_BYTES_MAX (1ul * 1024 * 1024)
#define QMP_JSON_DEPTH_MAX 128u
#define QMP_JSON_CONTAINERS_MAX 8192u
#define QMP_JSON_COMMAS_MAX 65536u

struct qmp_json_reader;

struct qmp_json_reader *qmp_json_reader_new(void); /* NULL: out of memory */
void qmp_json_reader_free(struct qmp_json_reader *r);

/*
 * Look at up to `size` bytes until one message ends; *ret_used of them are done with. Returns 1 with a new
 * reference in *ret; 0 if more bytes are needed; -EINVAL with a sentence for a message that was no JSON
 * object. After either, call again with the rest.
 */
int qmp_json_reader_feed(struct qmp_json_reader *r, const char *data, size_t size, size_t *ret_used,
                         struct json_object **ret, struct error *err);

#endif
