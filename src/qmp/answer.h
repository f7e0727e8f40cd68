/* SPDX-License-Identifier: Apache-2.0 */
/* Parts of answers. None of these functions yields. */
#ifndef TIDEMARK_QMP_ANSWER_H
#define TIDEMARK_QMP_ANSWER_H

#include <json-c/json.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/strbuf.h"

struct qmp_call;

/* The release of QEMU whose QMP this follows; query-version returns it. */
#define QMP_QEMU_MAJOR 10
#define QMP_QEMU_MINOR 0
#define QMP_QEMU_MICRO 50

/* {"qemu": {...}, "package": ...}: a new reference. */
struct json_object *qmp_version_json(void);

/* Add a member to an object; a string that is NULL is left out. */
void qmp_put_str(struct json_object *to, const char *name, const char *value);
void qmp_put_uint(struct json_object *to, const char *name, uint64_t value);
void qmp_put_bool(struct json_object *to, const char *name, bool value);

/* Likewise, of long answers: `name` is a literal that `to` has not, and is not copied. */
void qmp_put_new(struct json_object *to, const char *name, struct json_object *value);

/* A list that may be long: its elements become text at once, if the answer may be text. */
struct qmp_list {
    struct strbuf text;
    struct json_object *array; /* NULL: text */
};

/* An empty list in the answer of `call`. Without memory qmp_list_end() fails. */
void qmp_list_begin(struct qmp_list *list, const struct qmp_call *call);
/* `element` is consumed. */
void qmp_list_add(struct qmp_list *list, struct json_object *element);
/* The list as a value; NULL: no memory. `list` has nothing any more. */
struct json_object *qmp_list_end(struct qmp_list *list);

#endif
