/* SPDX-License-Identifier: Apache-2.0 */
/* trace-event-get-state and trace-event-set-state, as in QEMU's qapi/trace.json. */
#include <errno.h>

#include "qmp/commands.h"
#include "trace/trace.h"

/* A name without a wildcard has to be that of an event. */
static int check_name(const char *name, struct error *err)
{
    if (!trace_is_pattern(name) && !trace_next_event(name, NULL)) {
        return error_set(err, EINVAL, "unknown event \"%s\"", name);
    }
    return 0;
}

int qmp_co_trace_event_get_state(struct qmp_call *call, struct json_object *args,
                                 struct json_object **ret_value, struct error *err)
{
    const char *name = qmp_get_str(args, "name");
    const struct trace_event *event = NULL;
    struct json_object *list;
    int r = check_name(name, err);

    if (r < 0) {
        return r;
    }
    list = json_object_new_array();
    while ((event = trace_next_event(name, event))) {
        struct json_object *o = json_object_new_object();

        qmp_put_str(o, "name", trace_event_name(event));
        qmp_put_str(o, "state", trace_event_is_enabled(event) ? "enabled" : "disabled");
        json_object_array_add(list, o);
    }
    *ret_value = list;
    return 0;
}

/* `ignore-unavailable` is about events that were left out of a build, of which there are none. */
int qmp_co_trace_event_set_state(struct qmp_call *call, struct json_object *args,
                                 struct json_object **ret_value, struct error *err)
{
    const char *name = qmp_get_str(args, "name");
    bool enable = qmp_get_bool(args, "enable", false);
    const struct trace_event *event = NULL;
    int r = check_name(name, err);

    while (r == 0 && (event = trace_next_event(name, event))) {
        trace_event_enable(event, enable);
    }
    return r;
}
