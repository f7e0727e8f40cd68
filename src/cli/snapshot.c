/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/snapshot.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/cleanup.h"
#include "base/size.h"
#include "base/time_units.h"
#include "block/control.h"
#include "cli/cli.h"

static void add_number(struct json_object *o, const char *key, uint64_t value)
{
    json_object_object_add(o, key, json_object_new_uint64(value));
}

static struct json_object *snapshot_json(const struct block_snapshot_info *s)
{
    struct json_object *o = json_object_new_object();

    json_object_object_add(o, "id", json_object_new_string(s->id));
    json_object_object_add(o, "name", json_object_new_string(s->name));
    add_number(o, "vm-state-size", s->vm_state_size);
    add_number(o, "date-sec", s->date_sec);
    add_number(o, "date-nsec", s->date_nsec);
    add_number(o, "vm-clock-sec", s->vm_clock_nsec / NS_PER_SECOND);
    add_number(o, "vm-clock-nsec", s->vm_clock_nsec % NS_PER_SECOND);
    if (s->icount != UINT64_MAX) {
        add_number(o, "icount", s->icount);
    }
    return o;
}

struct json_object *cli_co_snapshots(struct block_node *node)
{
    AUTO_FREE struct block_snapshot_info *list = NULL;
    struct json_object *array;
    size_t count = 0;

    if (block_co_snapshot_list(node, &list, &count, NULL) < 0 || count == 0) {
        return NULL;
    }
    array = json_object_new_array();
    for (size_t i = 0; i < count; i++) {
        json_object_array_add(array, snapshot_json(&list[i]));
    }
    return array;
}

static uint64_t number_of(struct json_object *o, const char *key)
{
    return json_object_get_uint64(json_object_object_get(o, key));
}

#define ROW_FORMAT "%-7s %-16s %8s %19s %15s %10s\n"

void cli_format_snapshot_head(struct strbuf *sb)
{
    strbuf_printf(sb, ROW_FORMAT, "ID", "TAG", "VM_SIZE", "DATE", "VM_CLOCK", "ICOUNT");
}

void cli_format_snapshot(struct strbuf *sb, struct json_object *o, const char *id)
{
    uint64_t seconds = number_of(o, "vm-clock-sec");
    time_t when = (time_t)number_of(o, "date-sec");
    char size[24], date[32] = "", clock[48], icount[24] = "--";
    struct json_object *value;
    struct tm tm;

    if (localtime_r(&when, &tm)) {
        strftime(date, sizeof(date), "%Y-%m-%d %H:%M:%S", &tm);
    }
    snprintf(clock, sizeof(clock), "%04" PRIu64 ":%02u:%02u.%03u", seconds / 3600,
             (unsigned)(seconds / 60 % 60), (unsigned)(seconds % 60),
             (unsigned)(number_of(o, "vm-clock-nsec") / NS_PER_MS));
    if (json_object_object_get_ex(o, "icount", &value)) {
        snprintf(icount, sizeof(icount), "%" PRIu64, json_object_get_uint64(value));
    }
    strbuf_printf(sb, ROW_FORMAT, id ?: json_object_get_string(json_object_object_get(o, "id")),
                  json_object_get_string(json_object_object_get(o, "name")),
                  size_format(number_of(o, "vm-state-size"), size, sizeof(size)), date, clock,
                  icount);
}

void cli_print_snapshots(struct json_object *array)
{
    STRBUF_AUTO(text);

    strbuf_puts(&text, "Snapshot list:\n");
    cli_format_snapshot_head(&text);
    for (size_t i = 0; i < json_object_array_length(array); i++) {
        cli_format_snapshot(&text, json_object_array_get_idx(array, i), NULL);
    }
    fputs(strbuf_str(&text), stdout);
}

/* --- reading one ------------------------------------------------------------------------------ */

#define PREFIX "snapshot."

/* Split "snapshot.id=1,snapshot.name=x". The caller frees both parts, which must be NULL before. */
static int parse_form(const char *text, char **ret_id, char **ret_name, struct error *err)
{
    AUTO_FREE char *copy = strdup(text);
    char *cursor = copy;
    char *part;

    while (copy && (part = strsep(&cursor, ",")) != NULL) {
        char **target = strncmp(part, PREFIX "id=", 12) == 0     ? ret_id
                        : strncmp(part, PREFIX "name=", 14) == 0 ? ret_name
                                                                 : NULL;

        if (!target) {
            error_set(err, EINVAL, "Invalid parameter '%.*s'", (int)strcspn(part, "="), part);
            error_hint(err, "%s: Failed in parsing snapshot param `%s'", cli_program(), text);
            return -EINVAL;
        }
        free(*target);
        *target = strdup(strchr(part, '=') + 1);
    }
    return 0;
}

int cli_check_snapshot(const char *text, struct error *err)
{
    AUTO_FREE char *id = NULL;
    AUTO_FREE char *name = NULL;

    if (!text || strncmp(text, PREFIX, strlen(PREFIX)) != 0) {
        return 0;
    }
    return parse_form(text, &id, &name, err);
}

int cli_co_show_snapshot(struct block_node *node, const char *text, struct error *err)
{
    AUTO_FREE char *id = NULL;
    AUTO_FREE char *name = NULL;
    int r;

    if (strncmp(text, PREFIX, strlen(PREFIX)) == 0) {
        r = parse_form(text, &id, &name, err);
        UNLESS_FAILED(r, block_co_snapshot_show(node, id, name, err));
    } else {
        r = block_co_snapshot_show(node, text, NULL, NULL);
        if (r < 0) {
            r = block_co_snapshot_show(node, NULL, text, err);
        }
    }
    error_prepend(err, "Failed to load snapshot: ");
    return r;
}
