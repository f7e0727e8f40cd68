/* SPDX-License-Identifier: Apache-2.0 */
/* The face copy: a second repository. */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "backup/repository_copy.h"
#include "backup/set_root.h"
#include "base/cleanup.h"
#include "base/shell_word.h"
#include "cli/args.h"
#include "cli/backup/faces.h"
#include "cli/cli.h"
#include "cli/observe.h"

#define LAST_MAX 1000000

static const struct cli_usage copy_usage = {
    .synopsis = "SRC DST",
    .about = "Copies the backups in directory SRC to directory DST, which is made if it does not "
             "exist. Each run\n"
             "copies what is new. The copy has an ID of its own, and may be pruned by other rules. "
             "A backup of\n"
             "which DST lacks what it builds on is merged with that. All checksums are compared on "
             "the way;\n"
             "after a kill the next run continues. DST may be an address: "
             "sftp://[USER@]HOST[:PORT]/PATH.\n"
             "The exit status is 0, 1 if something failed, 2 if all is done but there are damaged "
             "backups in SRC.",
    .examples = "@/backups/disk /mnt/second/disk\n"
                "@/backups/disk sftp://backup@store.example/srv/backups/disk\n"
                "@--last 1 /backups/disk /mnt/usb/disk\n"
                "        only the newest point in time, as a full backup",
};

static int print_copy_json(const struct repository_copy_options *o,
                           const struct repository_copy_result *result)
{
    struct json_object *json = json_object_new_object();

    json_object_object_add(json, "target", json_object_new_string(o->to));
    json_object_object_add(json, "id", json_object_new_string(result->id));
    json_object_object_add(json, "copied", json_object_new_uint64(result->copied));
    json_object_object_add(json, "merged", json_object_new_uint64(result->merged));
    json_object_object_add(json, "present", json_object_new_uint64(result->present));
    json_object_object_add(json, "damaged", json_object_new_uint64(result->damaged));
    json_object_object_add(json, "written-bytes", json_object_new_uint64(result->bytes));
    return backup_print_json(json);
}

static void print_damaged(const struct repository_copy_options *o, size_t damaged)
{
    char *word AUTO_FREE = shell_word(o->from);

    if (damaged) {
        printf("  %zu damaged, and left out: 'tidemark verify %s' says why\n", damaged,
               word ?: o->from);
    }
}

static void print_copy(const struct repository_copy_options *o,
                       const struct repository_copy_result *result)
{
    char written[16];

    printf("%zu %s copied to '%s' (repository %s), %s written; %zu %s there already\n",
           result->copied, result->copied == 1 ? "backup is" : "backups are", o->to, result->id,
           backup_size(result->bytes, written), result->present,
           result->present == 1 ? "was" : "were");
    if (result->merged) {
        printf("  %zu of them with what they build on, as that is not in the copy\n",
               result->merged);
    }
    print_damaged(o, result->damaged);
}

static void print_copy_of_root(const struct repository_copy_options *o,
                               const struct copy_root_result *result)
{
    const struct repository_copy_result *disks = &result->disks;
    char *word AUTO_FREE = shell_word(o->from);
    char written[16];

    printf("%zu %s, %zu %s copied to '%s', %s written; %zu %s there already\n", result->sets,
           result->sets == 1 ? "set" : "sets", disks->copied,
           disks->copied == 1 ? "backup" : "backups", o->to, backup_size(disks->bytes, written),
           disks->present, disks->present == 1 ? "backup was" : "backups were");
    print_damaged(o, disks->damaged);
    if (result->left_out) {
        printf("  %zu %s not whole, and left out: 'tidemark sets %s' says why\n", result->left_out,
               result->left_out == 1 ? "set is" : "sets are", word ?: o->from);
    }
}

static int co_copy_root(const struct repository_copy_options *options, const char *machine,
                        bool json, struct error *err)
{
    struct copy_root_result result = {0};
    const struct repository_copy_result *disks = &result.disks;
    struct json_object *o;

    if (copy_root_co_run(options, machine, &result, err) < 0) {
        return backup_fail(err, json);
    }
    if (json) {
        o = json_object_new_object();
        json_object_object_add(o, "sets", json_object_new_uint64(result.sets));
        json_object_object_add(o, "sets-left-out", json_object_new_uint64(result.left_out));
        json_object_object_add(o, "copied", json_object_new_uint64(disks->copied));
        json_object_object_add(o, "merged", json_object_new_uint64(disks->merged));
        json_object_object_add(o, "present", json_object_new_uint64(disks->present));
        json_object_object_add(o, "damaged", json_object_new_uint64(disks->damaged));
        json_object_object_add(o, "written-bytes", json_object_new_uint64(disks->bytes));
        backup_print_json(o);
    } else {
        print_copy_of_root(options, &result);
    }
    return disks->damaged || result.left_out ? BACKUP_DAMAGED : 0;
}

static int copy_co_main(int argc, char **argv, struct error *err)
{
    struct repository_copy_options options = {.stop = &backup_stop};
    struct repository_copy_result result = {0};
    const char *output = NULL, *progress = NULL, *last = NULL, *machine = NULL;
    CLI_OBSERVE_AUTO(observe);
    bool json, shown = false;
    int first, status, r;
    const struct cli_arg args[] = {
        {"at", 0, CLI_VALUE, &options.at, "ID", "only this backup"},
        {"last", 0, CLI_VALUE, &last, "N", "only the N newest backups"},
        BACKUP_VM_ARG(machine),
        BACKUP_PROGRESS_ARGS(shown, progress),
        BACKUP_KEY_ARGS,
        BACKUP_ENCRYPT_ARG,
        BACKUP_APPEND_ONLY_ARG,
        {"output", 0, CLI_VALUE, &output, "FORMAT", "'human' or 'json'"},
        CLI_OBSERVE_ARGS(observe),
        CLI_ARG_END,
    };

    first = cli_args_parse(args, &copy_usage, argc, argv);
    if (first < 0) {
        return first;
    }
    if (first != argc - 2) {
        return cli_usage_error(err, &copy_usage,
                               "expecting a directory, and another or an address");
    }
    if (options.at && last) {
        return cli_usage_error(err, &copy_usage, "--at and --last exclude each other");
    }
    if (!cli_observe(&observe, &status)) {
        return status;
    }
    r = cli_parse_output(output, &json, err);
    UNLESS_FAILED(r, backup_progress(shown, progress, &options.progress, err));
    UNLESS_FAILED(r, cli_take_number(last, "--last", 1, LAST_MAX, &options.last, err));
    if (r < 0) {
        return r;
    }
    options.from = argv[first];
    options.to = argv[first + 1];
    backup_catch_signals();
    if (machine || set_is_root(options.from)) {
        return co_copy_root(&options, machine, json, err);
    }
    if (repository_copy_co_run(&options, &result, err) < 0) {
        return backup_fail(err, json);
    }
    if (!json) {
        print_copy(&options, &result);
    } else if (print_copy_json(&options, &result) != 0) {
        return BACKUP_FAILED;
    }
    return result.damaged ? BACKUP_DAMAGED : 0;
}

int cli_copy_main(int argc, char **argv)
{
    return cli_run(copy_co_main, argc, argv);
}
