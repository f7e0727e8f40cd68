/* SPDX-License-Identifier: Apache-2.0 */
/* The face repair: makes again what can be made again in a repository. */
#include "backup/repair.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "cli/args.h"
#include "cli/backup/faces.h"
#include "cli/cli.h"
#include "cli/observe.h"

static const struct cli_usage repair_usage = {
    .synopsis = "DIR",
    .about = "Makes again what is lost or damaged in a directory of backups and can be made again: "
             "the file\n"
             "repository.json, checksum files (from the images) and manifests (where image and "
             "checksums agree).\n"
             "Names what cannot. With --new-id, gives a copied directory an ID of its own. "
             "Otherwise the original\n"
             "and the copy remove each other's bitmaps, and every backup is a full one.\n"
             "The exit status is 0, 1 if nothing could be done, 2 if something stays damaged.",
    .examples = "@/backups/disk\n"
                "  cp -a /backups/disk /mnt/second && tidemark repair --new-id /mnt/second",
};

static int print_repair_json(const struct repair_result *result)
{
    struct json_object *o = json_object_new_object(), *list = json_object_new_array();

    json_object_object_add(o, "path", json_object_new_string(result->path));
    if (result->sets) {
        json_object_object_add(o, "sets", json_object_new_uint64(result->sets));
    } else {
        json_object_object_add(o, "id", json_object_new_string(result->id));
        json_object_object_add(o, "backups", json_object_new_uint64(result->backups));
    }
    json_object_object_add(o, "items", list);
    for (size_t i = 0; i < result->count; i++) {
        const struct repair_item *item = &result->items[i];
        struct json_object *row = json_object_new_object();

        if (item->id[0]) {
            json_object_object_add(row, "id", json_object_new_string(item->id));
        }
        json_object_object_add(row, "file", json_object_new_string(item->file));
        json_object_object_add(row, "repaired", json_object_new_boolean(item->repaired));
        json_object_object_add(row, "problem", json_object_new_string(item->problem));
        json_object_array_add(list, row);
    }
    return backup_print_json(o);
}

static void print_repair(const struct repair_result *result)
{
    for (size_t i = 0; i < result->count; i++) {
        const struct repair_item *item = &result->items[i];

        printf("%-20s  %s %s: %s\n", item->id[0] ? item->id : "-", item->file,
               item->repaired ? result->sets ? "has the code of the key" : "is made again"
                              : "CAN'T BE REPAIRED",
               item->problem);
    }
    if (result->sets) {
        printf("'%s' has %zu %s\n", result->path, result->sets, result->sets == 1 ? "set" : "sets");
        return;
    }
    printf("'%s' is repository %s, with %zu %s\n", result->path, result->id, result->backups,
           result->backups == 1 ? "backup" : "backups");
}

static int take_append_only(const char *text, struct repair_options *options, struct error *err)
{
    if (!text) {
        return 0;
    }
    if (strcmp(text, "on") != 0 && strcmp(text, "off") != 0) {
        return error_set(err, EINVAL, "--append-only must be 'on' or 'off', not '%s'", text);
    }
    if (options->sign || options->new_id) {
        return error_set(err, EINVAL, "--append-only can't be combined with other changes");
    }
    options->append_only = strcmp(text, "on") == 0;
    return 0;
}

static int repair_co_main(int argc, char **argv, struct error *err)
{
    struct repair_options options = {.append_only = -1, .stop = &backup_stop};
    __attribute__((cleanup(repair_result_clear))) struct repair_result result = {0};
    CLI_OBSERVE_AUTO(observe);
    const char *output = NULL, *append_only = NULL;
    bool json;
    int status, first;
    const struct cli_arg args[] = {
        {"sign", 0, CLI_FLAG, &options.sign, NULL,
         "give it the key, as it is now: what is in it is authentic from then\n"
         "on; of a root of sets: give sets a code of the key that have none,\n"
         "where the manifests of their backups agree"},
        {"new-id", 0, CLI_FLAG, &options.new_id, NULL, "give it another ID"},
        {"append-only", 0, CLI_VALUE, &append_only, "on|off",
         "'on': from then on it only grows; 'off': it can be changed and\n"
         "pruned again"},
        BACKUP_KEY_ARGS,
        {"output", 0, CLI_VALUE, &output, "FORMAT", "'human' or 'json'"},
        CLI_OBSERVE_ARGS(observe),
        CLI_ARG_END,
    };

    first = cli_args_parse(args, &repair_usage, argc, argv);
    if (first < 0) {
        return first;
    }
    if (first != argc - 1) {
        return cli_usage_error(err, &repair_usage, "expecting one directory");
    }
    if (!cli_observe(&observe, &status)) {
        return status;
    }
    status = cli_parse_output(output, &json, err);
    if (status < 0) {
        return status;
    }
    status = take_append_only(append_only, &options, err);
    if (status < 0) {
        return status;
    }
    options.dir = argv[first];
    backup_catch_signals();
    if (repair_co_run(&options, &result, err) < 0) {
        return backup_fail(err, json);
    }
    if (!json) {
        print_repair(&result);
    } else if (print_repair_json(&result) != 0) {
        return BACKUP_FAILED;
    }
    return result.unrepaired ? BACKUP_DAMAGED : 0;
}

int cli_repair_main(int argc, char **argv)
{
    return cli_run(repair_co_main, argc, argv);
}
