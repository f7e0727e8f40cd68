/* SPDX-License-Identifier: Apache-2.0 */
/* JSON as QMP monitors print it: one line with ", " and ": ", or indented by 4. ASCII only. Does not yield. */
#ifndef TIDEMARK_QMP_JSON_WRITE_H
#define TIDEMARK_QMP_JSON_WRITE_H

#include <json-c/json.h>
#include <stdbool.h>

#include "base/strbuf.h"

/* Append `value` to `out`. Numbers that JSON can't express (infinity) become null. */
void qmp_json_write(struct strbuf *out, struct json_object *value, bool pretty);

#endif
