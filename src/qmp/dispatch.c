/* SPDX-License-Identifier: Apache-2.0 */
#include "qmp/dispatch.h"

#include <errno.h>
#include <string.h>

#include "base/checked.h"
#include "block/passed_fd.h"
#include "qmp/answer.h"
#include "qmp/request_kind.h"
#include "trace/events.h"

static const char *class_name(enum error_class error_class)
{
    switch (error_class) {
    case ERROR_CLASS_COMMAND_NOT_FOUND:
        return "CommandNotFound";
    case ERROR_CLASS_DEVICE_NOT_ACTIVE:
        return "DeviceNotActive";
    case ERROR_CLASS_DEVICE_NOT_FOUND:
        return "DeviceNotFound";
    case ERROR_CLASS_KVM_MISSING_CAP:
        return "KVMMissingCap";
    default:
        return "GenericError";
    }
}

static void add_error(struct json_object *answer, const struct error *err)
{
    struct json_object *o = json_object_new_object();

    qmp_put_str(o, "class", class_name(err->error_class));
    qmp_put_str(o, "desc", error_message(err));
    json_object_object_add(answer, "error", o);
}

struct json_object *qmp_error_answer(const struct error *err)
{
    struct json_object *answer = json_object_new_object();

    add_error(answer, err);
    return answer;
}

struct json_object *qmp_refusal(struct json_object *request, const struct error *err)
{
    struct json_object *answer = json_object_new_object(), *id;

    if (json_object_object_get_ex(request, "id", &id)) {
        json_object_object_add(answer, "id", json_object_get(id));
    }
    add_error(answer, err);
    return answer;
}

struct json_object *qmp_greeting(void)
{
    struct json_object *greeting = json_object_new_object(), *o = json_object_new_object();
    struct json_object *capabilities = json_object_new_array();

    json_object_object_add(o, "version", qmp_version_json());
    json_object_array_add(capabilities, json_object_new_string("oob"));
    json_object_object_add(o, "capabilities", capabilities);
    json_object_object_add(greeting, "QMP", o);
    return greeting;
}

/*
 * Check the form of the request. `ret_name` is the member that names the command: "exec-oob" is for
 * clients that have said that they use it.
 */
static int check_request_form(const struct qmp_call *call, struct json_object *request,
                              const char **ret_name, struct error *err)
{
    struct json_object *value;
    bool oob = call->oob && json_object_object_get_ex(request, "exec-oob", NULL);
    const char *name = oob ? "exec-oob" : "execute";

    json_object_object_foreach(request, key, member)
    {
        (void)member;
        if (strcmp(key, "execute") != 0 && strcmp(key, "arguments") != 0 &&
            strcmp(key, "id") != 0 && !(oob && strcmp(key, "exec-oob") == 0)) {
            return error_set(err, EINVAL, "QMP input member '%s' is unexpected", key);
        }
    }
    if (oob && json_object_object_get_ex(request, "execute", NULL)) {
        return error_set(err, EINVAL, "QMP input member 'execute' clashes with 'exec-oob'");
    }
    if (!json_object_object_get_ex(request, name, &value)) {
        return error_set(err, EINVAL, "QMP input lacks member 'execute'");
    }
    if (!json_object_is_type(value, json_type_string)) {
        return error_set(err, EINVAL, "QMP input member '%s' must be a string", name);
    }
    if (strlen(json_object_get_string(value)) != (size_t)json_object_get_string_len(value)) {
        return error_set_class(err, ERROR_CLASS_COMMAND_NOT_FOUND, EINVAL,
                               "The command %s, with a NUL character behind, has not been found",
                               json_object_get_string(value));
    }
    if (json_object_object_get_ex(request, "arguments", &value) &&
        !json_object_is_type(value, json_type_object)) {
        return error_set(err, EINVAL, "QMP input member 'arguments' must be an object");
    }
    *ret_name = name;
    return 0;
}

/* Run a command, which may use descriptors by the names that its monitor gave them. */
static int co_execute(const struct qmp_command *command, struct qmp_call *call,
                      struct json_object *args, struct json_object **ret_value, struct error *err)
{
    struct fd_names_use use;
    int r;

    if (!call->fd_names) {
        return command->co_run(call, args, ret_value, err);
    }
    fd_names_begin(&use, call->fd_names);
    r = command->co_run(call, args, ret_value, err);
    fd_names_end(&use);
    return r;
}

/* Find the command of a request. */
static int find_command(const struct qmp_call *call, struct json_object *request,
                        const struct qmp_command **ret_command, struct error *err)
{
    const char *member = "execute", *name;
    int r = check_request_form(call, request, &member, err);

    if (r < 0) {
        return r;
    }
    name = qmp_get_str(request, member);
    if (!call->negotiated && strcmp(name, "qmp_capabilities") != 0) {
        return error_set_class(err, ERROR_CLASS_COMMAND_NOT_FOUND, EINVAL,
                               "Expecting capabilities negotiation with 'qmp_capabilities'");
    }
    *ret_command = qmp_find_command(name);
    if (!*ret_command) {
        return error_set_class(err, ERROR_CLASS_COMMAND_NOT_FOUND, EINVAL,
                               "The command %s has not been found", name);
    }
    if (strcmp(member, "exec-oob") == 0 && !qmp_allows_oob(name)) {
        return error_set(err, EINVAL, "The command %s does not support OOB", name);
    }
    return 0;
}

static int co_run(struct qmp_call *call, struct json_object *request,
                  struct json_object **ret_value, struct error *err)
{
    struct json_object *args = qmp_get(request, "arguments");
    const struct qmp_command *command = NULL;
    int r = find_command(call, request, &command, err);

    if (r < 0) {
        return r;
    }
    args = args ? json_object_get(args) : json_object_new_object();
    r = schema_check(command->args, args, 0, err);
    if (r >= 0) {
        trace_qmp_command_begin(command->name);
        r = co_execute(command, call, args, ret_value, err);
        trace_qmp_command_end(command->name, r);
    }
    json_object_put(args);
    return r;
}

struct json_object *qmp_co_dispatch(struct qmp_call *call, struct json_object *request)
{
    struct json_object *result = NULL, *answer, *id;
    ERROR_AUTO(err);
    int r = co_run(call, request, &result, &err);

    if (r < 0) {
        if (!error_is_set(&err)) {
            error_set_errno(&err, -r, "The command failed");
        }
        json_object_put(result);
        return qmp_refusal(request, &err);
    }
    answer = json_object_new_object();
    json_object_object_add(answer, "return", result ?: json_object_new_object());
    if (json_object_object_get_ex(request, "id", &id)) {
        json_object_object_add(answer, "id", json_object_get(id));
    }
    return answer;
}
