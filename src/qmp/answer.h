/* SPDX-License-Identifier: Apache-2.0 */
/* Parts of answers. None of these functions yields. */
#ifndef TIDEMARK_QMP_ANSWER_H
#define TIDEMARK_QMP_ANSWER_H

#include <json-c/json.h>
#include <stdbool.h>
#include <stdint.h>

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

#endif
