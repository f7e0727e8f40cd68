/* SPDX-License-Identifier: Apache-2.0 */
/* blockdev-create, x-blockdev-amend, and their types: QEMU's qapi/block-core.json. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "block/block.h"
#include "block/option_types.h"
#include "block/options.h"
#include "job/create.h"
#include "qmp/commands.h"
#include "qmp/define.h"
#include "qmp/types.h"

/* --- types ------------------------------------------------------------------------------------ */

const struct schema_type qmp_type_blockdev_create =
    OBJECT_INIT("q_obj_blockdev-create-arg", REQ("job-id", schema_str),
                REQ("options", block_create_options_type));

const struct schema_type qmp_type_blockdev_amend = OBJECT_INIT(
    "q_obj_x-blockdev-amend-arg", REQ("job-id", schema_str), REQ("node-name", schema_str),
    REQ("options", block_amend_options_type), OPT("force", schema_bool));

/* --- blockdev-create -------------------------------------------------------------------------- */

/* A member of the options, and the creation option that it is; NULL: none. */
static const char *const option_names[][2] = {
    {"driver", NULL},
    {"filename", NULL},
    {"file", NULL},
    {"data-file", NULL},
    {"size", NULL},
    {"preallocation", "preallocation"},
    {"nocow", "nocow"},
    {"extent-size-hint", "extent_size_hint"},
    {"data-file-raw", "data_file_raw"},
    {"extended-l2", "extended_l2"},
    {"version", "compat"},
    {"backing-file", "backing_file"},
    {"backing-fmt", "backing_fmt"},
    {"cluster-size", "cluster_size"},
    {"table-size", "table_size"},
    {"lazy-refcounts", "lazy_refcounts"},
    {"refcount-bits", "refcount_bits"},
    {"compression-type", "compression_type"},
    {"key-secret", "key-secret"},
    {"cipher-alg", "cipher-alg"},
    {"cipher-mode", "cipher-mode"},
    {"ivgen-alg", "ivgen-alg"},
    {"ivgen-hash-alg", "ivgen-hash-alg"},
    {"hash-alg", "hash-alg"},
    {"iter-time", "iter-time"},
    {"subformat", "subformat"},
    {"force-size", "force_size"},
    {"adapter-type", "adapter_type"},
    {"hwversion", "hwversion"},
    {"toolsversion", "toolsversion"},
    {"zeroed-grain", "zeroed_grain"},
    {"log-size", "log_size"},
    {"block-size", "block_size"},
    {"block-state-zero", "block_state_zero"},
};

static void take_option(struct json_object *args, const char *from, const char *to,
                        struct options *opts)
{
    struct json_object *value = qmp_get(args, from);

    if (!value || !to) {
        return;
    }
    if (json_object_is_type(value, json_type_boolean)) {
        options_set_bool(opts, to, json_object_get_boolean(value));
    } else {
        options_set_str(opts, to, json_object_get_string(value));
    }
}

/* The members of a group, by the names "GROUP.member". */
static void take_option_group(struct json_object *args, const char *group, struct options *opts)
{
    struct json_object *members = qmp_get(args, group);
    char name[64];

    if (!members) {
        return;
    }
    json_object_object_foreach(members, key, value)
    {
        (void)value;
        snprintf(name, sizeof(name), "%s.%s", group, key);
        take_option(members, key, name, opts);
    }
}

/* The format AES has another name there. */
static void rename_aes(struct options *opts)
{
    if (options_is_text(opts, "encrypt.format", "qcow")) {
        options_set_str(opts, "encrypt.format", "aes");
    }
}

static int get_create_ref(struct json_object *args, const char *name, struct create_ref *ref,
                          struct error *err)
{
    struct json_object *value = qmp_get(args, name);

    if (value && json_object_is_type(value, json_type_string)) {
        ref->name = strdup(json_object_get_string(value));
        return ref->name ? 0 : error_out_of_memory(err);
    }
    if (value && json_object_is_type(value, json_type_object)) {
        return options_from_arguments(value, &ref->opts, err);
    }
    return value ? error_set(err, EINVAL,
                             "Invalid parameter type for 'options.%s', expected: "
                             "string or object",
                             name)
                 : 0;
}

static int get_create_params(struct json_object *args, struct create_params *p, struct error *err)
{
    const char *filename = qmp_get_str(args, "filename");
    int r;

    p->size = qmp_get_uint(args, "size", 0);
    p->opts = options_new();
    p->filename = filename ? strdup(filename) : NULL;
    if (!p->opts || (filename && !p->filename)) {
        return error_out_of_memory(err);
    }
    for (size_t i = 0; i < ARRAY_SIZE(option_names); i++) {
        take_option(args, option_names[i][0], option_names[i][1], p->opts);
    }
    take_option_group(args, "encrypt", p->opts);
    rename_aes(p->opts);
    r = get_create_ref(args, "file", &p->file, err);
    UNLESS_FAILED(r, get_create_ref(args, "data-file", &p->data_file, err));
    if (!qmp_get(args, "data-file")) {
        UNLESS_FAILED(r, get_create_ref(args, "header", &p->data_file, err));
    }
    return r;
}

int qmp_co_blockdev_create(struct qmp_call *call, struct json_object *args,
                           struct json_object **ret_value, struct error *err)
{
    struct json_object *options = qmp_get(args, "options");
    CLEANUP(create_params_release)
    struct create_params params = {
        .driver = block_find_driver(qmp_get_str(options, "driver")),
    };
    struct job_config config = {.id = qmp_get_str(args, "job-id"), .auto_finalize = true};
    int r;

    if (!schema_find_variant(&block_create_options_type, qmp_get_str(options, "driver"))) {
        return error_set(err, ENOTSUP, "Driver does not support blockdev-create");
    }
    r = get_create_params(options, &params, err);
    return r < 0 ? r : create_start(&config, &params, err);
}

/* --- x-blockdev-amend ------------------------------------------------------------------------- */

/* The options of block_co_change_keys(). NULL: no memory. */
static struct options *get_options_to_amend(struct json_object *args)
{
    struct options *opts = options_new();

    if (!opts) {
        return NULL;
    }
    json_object_object_foreach(args, key, value)
    {
        if (strcmp(key, "driver") != 0 && !json_object_is_type(value, json_type_object)) {
            take_option(args, key, key, opts);
        }
    }
    take_option_group(args, "encrypt", opts);
    options_drop(opts, "encrypt.format");
    return opts;
}

int qmp_co_x_blockdev_amend(struct qmp_call *call, struct json_object *args,
                            struct json_object **ret_value, struct error *err)
{
    const char *name = qmp_get_str(args, "node-name");
    const char *driver = qmp_get_str(qmp_get(args, "options"), "driver");
    struct block_node *node = block_node_find(name);
    struct job_config config = {.id = qmp_get_str(args, "job-id"), .auto_finalize = true};
    struct options *opts;

    if (!node) {
        return error_set(err, ENOENT, "Cannot find device='' nor node-name='%s'", name);
    }
    if (strcmp(block_driver_name(block_node_driver(node)), driver) != 0) {
        return error_set(err, EINVAL, "x-blockdev-amend doesn't support changing the block driver");
    }
    opts = get_options_to_amend(qmp_get(args, "options"));
    if (!opts) {
        return error_out_of_memory(err);
    }
    return amend_co_start(&config, node, opts, qmp_get_bool(args, "force", false), err);
}
