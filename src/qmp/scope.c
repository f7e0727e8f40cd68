/* SPDX-License-Identifier: Apache-2.0 */
#include "qmp/scope.h"

#include <string.h>

#include "base/checked.h"
#include "job/job.h"
#include "qmp/dispatch.h"
#include "qmp/named.h"
#include "qmp/schema.h"
#include "qmp/transaction.h"

/* --- what the arguments name ------------------------------------------------------------------ */

static bool string_is_apart(const char *string, void *arg)
{
    struct block_node *node = block_node_find(string), *exported = qmp_node_of_export(string);
    const struct job *job = job_find(string);

    return !(node && block_node_is_joined(node, arg)) &&
           !(exported && block_node_is_joined(exported, arg)) && !(job && job_is_joined(job, arg));
}

static bool args_meet(const struct block_control_scope *scope, struct block_node *node)
{
    const struct qmp_scope *s = container_of(scope, struct qmp_scope, scope);

    return !qmp_foreach_string(s->args, string_is_apart, node);
}

/*
 * A verb that tells a job that works something, such as its end by force, waits for nobody: so a
 * job can be given up whatever else waits for its disk. The end of one that has done its work
 * changes the graph; once it has begun, verbs wait for it no longer than they say.
 */
static bool verb_meets(const struct block_control_scope *scope, struct block_node *node)
{
    const struct qmp_scope *s = container_of(scope, struct qmp_scope, scope);
    const char *id = qmp_get_str(s->args, "id") ?: qmp_get_str(s->args, "device");
    const struct job *job = id ? job_find(id) : NULL;

    return job && job_awaits_end(job);
}

/* --- kinds of commands ------------------------------------------------------------------------ */

static bool begins_with_one_of(const char *name, const char *const *list)
{
    while (*list && strncmp(name, *list, strlen(*list)) != 0) {
        list++;
    }
    return *list;
}

/* Whether it touches what its arguments do not name. */
static bool touches_anything(const char *name, struct json_object *args)
{
    return strcmp(name, "nbd-server-stop") == 0 ||
           (strcmp(name, "blockdev-set-active") == 0 && !qmp_get_str(args, "node-name"));
}

static bool actions_keep_graph(struct json_object *args)
{
    struct json_object *list = qmp_get(args, "actions");
    bool keep = json_object_is_type(list, json_type_array);

    for (size_t i = 0; keep && i < json_object_array_length(list); i++) {
        struct json_object *element = json_object_array_get_idx(list, i), *type;
        const struct qmp_action *action = NULL;

        /* Nothing is checked yet. */
        if (json_object_is_type(element, json_type_object) &&
            json_object_object_get_ex(element, "type", &type) &&
            json_object_is_type(type, json_type_string)) {
            action = qmp_find_action(json_object_get_string(type));
        }
        keep = action && action->keeps_graph;
    }
    return keep;
}

static bool command_keeps_graph(const char *name, struct json_object *args)
{
    static const char *const beginnings[] = {"add-fd",
                                             "block-dirty-bitmap-",
                                             "block-job-change",
                                             "block-job-dismiss",
                                             "block-job-pause",
                                             "block-job-resume",
                                             "block-job-set-speed",
                                             "block-latency-histogram-set",
                                             "block-set-write-threshold",
                                             "blockdev-snapshot-delete-internal-sync",
                                             "blockdev-snapshot-internal-sync",
                                             "chardev-",
                                             "closefd",
                                             "getfd",
                                             "job-dismiss",
                                             "job-pause",
                                             "job-resume",
                                             "nbd-server-start",
                                             "object-",
                                             "qmp_capabilities",
                                             "qom-",
                                             "query-",
                                             "quit",
                                             "remove-fd",
                                             "ringbuf-",
                                             "trace-event-",
                                             "x-debug-",
                                             "x-tidemark-query-",
                                             NULL};

    return strcmp(name, "transaction") == 0 ? actions_keep_graph(args)
                                            : begins_with_one_of(name, beginnings);
}

/* A name that the daemon has not is refused, and one that a face adds may touch anything. */
static bool is_known_command(const char *name)
{
    for (const struct qmp_command *c = qmp_commands; c->name; c++) {
        if (strcmp(c->name, name) == 0) {
            return qmp_find_command(name) == c;
        }
    }
    return false;
}

static bool is_verb_for_work(const char *name)
{
    static const char *const verbs[] = {
        "block-job-cancel", "block-job-pause", "block-job-resume", "block-job-set-speed",
        "job-cancel",       "job-pause",       "job-resume",       NULL};

    return begins_with_one_of(name, verbs);
}

static bool is_finalize(const char *name)
{
    return strcmp(name, "job-finalize") == 0 || strcmp(name, "block-job-finalize") == 0;
}

void qmp_begin_scope(struct qmp_scope *s, struct json_object *request)
{
    struct json_object *execute = NULL;
    const char *name;

    *s = (struct qmp_scope){0};
    if (!json_object_is_type(request, json_type_object) ||
        !json_object_object_get_ex(request, "execute", &execute)) {
        return;
    }
    name = json_object_get_string(execute);
    (void)json_object_object_get_ex(request, "arguments", &s->args);
    if (!name || !is_known_command(name) || touches_anything(name, s->args)) {
        return;
    }
    s->scope.command = name;
    s->scope.keeps_graph = command_keeps_graph(name, s->args);
    s->scope.meets = strncmp(name, "query-", 6) == 0 ? NULL : args_meet;
    if (is_verb_for_work(name)) {
        s->scope.keeps_graph = true;
        s->scope.meets = verb_meets;
    } else if (is_finalize(name)) {
        s->scope.meets = verb_meets;
    }
    block_control_begin_scope(&s->scope);
    s->begun = true;
}

void qmp_end_scope(struct qmp_scope *s)
{
    if (s->begun) {
        block_control_end_scope(&s->scope);
    }
}
