/* SPDX-License-Identifier: Apache-2.0 */
/*
 * JSON as QEMU prints it, on monitors and in file names: in one line with ", " and ": ", or
 * indented by 4. ASCII only. Members of objects stand in the order in which QEMU prints them, since
 * test suites compare text. Nothing here yields.
 */
#ifndef TIDEMARK_BASE_JSON_WRITE_H
#define TIDEMARK_BASE_JSON_WRITE_H

#include <json-c/json.h>
#include <stdbool.h>

#include "base/strbuf.h"

/*
 * Append `value` to `out`. Numbers that JSON cannot express (infinity) become null. Without memory
 * out->failed is set.
 */
void json_write(struct strbuf *out, struct json_object *value, bool pretty);

/*
 * A value that stands for `text`, which json_write() wrote in one line, and may be a part of what
 * it writes in one line. Long answers are made of such parts, so that not all their objects exist
 * at the same time. Others than json_write() take it for a string. NULL: no memory.
 */
struct json_object *json_text_new(const struct strbuf *text);

#endif
