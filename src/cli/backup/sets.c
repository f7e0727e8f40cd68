/* SPDX-License-Identifier: Apache-2.0 */
/* The face that lists and restores sets: backups of several disks at one moment. */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "backup/backup.h"
#include "backup/files.h"
#include "backup/set.h"
#include "base/cleanup.h"
#include "cli/args.h"
#include "cli/backup/faces.h"
#include "cli/cli.h"
#include "cli/observe.h"

static const struct cli_usage sets_usage = {
    .synopsis = "ROOT\n"
                "       tidemark sets ROOT --restore DIR [--at ID] [--format FORMAT]",
    .about = "Lists the sets below ROOT: backups of several disks that were taken at one moment. "
             "With\n"
             "--restore, writes all disks of a set, the newest one by default, to new files in "
             "DIR, which\n"
             "are named after the disks, if all of them can be restored. One disk is restored by\n"
             "'tidemark restore ROOT/DISK'. A set of which backups were pruned or are damaged is "
             "listed with\n"
             "what is missing, and goes when the last of its backups is pruned.",
    .examples = "@/backups/vm\n"
                "@/backups/vm --restore /srv/vm --at 20261120T0930 --format qcow2",
};

static void print_sets(const struct set_list *all)
{
    printf("%-20s  %-16s  %-27s  %s\n", "SET", "MACHINE", "MOMENT", "DISKS");
    for (size_t i = 0; i < all->count; i++) {
        const struct set *s = &all->list[i];

        if (s->damaged) {
            printf("%-20s  %s\n", s->id, s->denied ? "MAY NOT BE READ" : "DAMAGED");
            continue;
        }
        printf("%-20s  %-16s  %-27s ", s->id, s->machine ? s->machine : "-", s->begin.utc);
        for (size_t k = 0; k < s->count; k++) {
            printf(" %s/%s%s", s->disks[k].directory, s->disks[k].backup,
                   s->disks[k].problem ? "!" : "");
        }
        printf("\n");
        for (size_t k = 0; k < s->count; k++) {
            if (s->disks[k].problem) {
                printf("  NOT WHOLE: %s: %s\n", s->disks[k].directory, s->disks[k].problem);
            }
        }
    }
}

static struct json_object *problems_json(const struct set *s)
{
    struct json_object *list = json_object_new_array();

    for (size_t i = 0; i < s->count; i++) {
        struct json_object *o;

        if (!s->disks[i].problem) {
            continue;
        }
        o = json_object_new_object();
        json_object_object_add(o, "directory", json_object_new_string(s->disks[i].directory));
        json_object_object_add(o, "problem", json_object_new_string(s->disks[i].problem));
        json_object_array_add(list, o);
    }
    return list;
}

static struct json_object *set_json(const struct set *s)
{
    struct json_object *o;

    if (s->damaged) {
        o = json_object_new_object();
        json_object_object_add(o, "id", json_object_new_string(s->id));
        json_object_object_add(o, "damaged", json_object_new_boolean(true));
        return o;
    }
    o = set_to_json(s, NULL);
    if (o) {
        json_object_object_add(o, "problems", problems_json(s));
    }
    return o;
}

static int list_sets(const struct set_list *all, bool json)
{
    struct json_object *list;

    if (!json) {
        print_sets(all);
        return 0;
    }
    list = json_object_new_array();
    for (size_t i = 0; i < all->count; i++) {
        json_object_array_add(list, set_json(&all->list[i]));
    }
    return backup_print_json(list);
}

/* --- restoring --- */

static char *target_of(const struct set_disk *disk, const char *directory, const char *format)
{
    char *target;

    return asprintf(&target, "%s/%s.%s", directory, disk->directory, format) < 0 ? NULL : target;
}

/* `list` gets what was restored. */
static int co_restore_disk(const char *root, const struct set_disk *disk, const char *directory,
                           const char *format, struct json_object *list, struct error *err)
{
    char *from AUTO_FREE = files_join(root, disk->directory);
    char *target AUTO_FREE = target_of(disk, directory, format);
    struct restore_options options = {
        .dir = from, .target = target, .at = disk->backup, .format = format, .stop = &backup_stop};
    struct restore_result result;
    struct json_object *o;
    int r;

    if (!from || !target) {
        return error_out_of_memory(err);
    }
    r = restore_co_run(&options, &result, err);
    if (r < 0) {
        return r;
    }
    o = json_object_new_object();
    json_object_object_add(o, "directory", json_object_new_string(disk->directory));
    json_object_object_add(o, "id", json_object_new_string(result.id));
    json_object_object_add(o, "target", json_object_new_string(target));
    json_object_object_add(o, "virtual-size", json_object_new_uint64(result.virtual_size));
    json_object_object_add(o, "written-bytes", json_object_new_uint64(result.written));
    json_object_array_add(list, o);
    return 0;
}

/* Nothing is restored of a set of which not all can be. */
static int check_listed_set(const struct set *s, const char *directory, const char *format,
                            struct error *err)
{
    const struct set_disk *lost = set_problem_disk(s);
    struct stat st;

    if (lost) {
        error_set(err, EBADMSG, "Disk '%s': %s", lost->directory, lost->problem);
        error_hint(err,
                   "'tidemark verify' looks at it again, and 'tidemark restore' restores other "
                   "disks, from their own directories.");
        return -EBADMSG;
    }
    for (size_t i = 0; i < s->count; i++) {
        char *target AUTO_FREE = target_of(&s->disks[i], directory, format);

        if (!target) {
            return error_out_of_memory(err);
        }
        if (lstat(target, &st) == 0) {
            return error_set(err, EEXIST, "'%s' exists", target);
        }
    }
    return 0;
}

static int co_restore_set(const char *root, const struct set *s, const char *directory,
                          const char *format, struct json_object *list, struct error *err)
{
    int r = check_listed_set(s, directory, format, err);

    if (r == 0 && mkdir(directory, 0700) < 0 && errno != EEXIST) {
        r = error_set_errno(err, errno, "Could not make directory '%s'", directory);
    }
    for (size_t i = 0; r == 0 && i < s->count; i++) {
        r = co_restore_disk(root, &s->disks[i], directory, format, list, err);
    }
    if (r < 0) {
        error_prepend(err, "Set %s is not restored: ", s->id);
    }
    return r;
}

static void print_restored(const struct json_object *list)
{
    for (size_t i = 0; i < json_object_array_length(list); i++) {
        struct json_object *o = json_object_array_get_idx(list, i);
        char size[16];

        printf(
            "Backup %s of %s is restored to '%s': disk %s, verified\n",
            json_object_get_string(json_object_object_get(o, "id")),
            json_object_get_string(json_object_object_get(o, "directory")),
            json_object_get_string(json_object_object_get(o, "target")),
            backup_size(json_object_get_uint64(json_object_object_get(o, "virtual-size")), size));
    }
}

/* Also a failure says which disks were restored before it. Returns the exit status, or -errno. */
static int co_restore_and_print(const char *root, const struct set *s, const char *directory,
                                const char *format, bool json, struct error *err)
{
    struct json_object *list = json_object_new_array(), *o;
    int r = co_restore_set(root, s, directory, format, list, err);

    if (r < 0 || !json) {
        if (!json) {
            print_restored(list);
        }
        json_object_put(list);
        return r;
    }
    o = json_object_new_object();
    json_object_object_add(o, "set", json_object_new_string(s->id));
    json_object_object_add(o, "disks", list);
    return backup_print_json(o);
}

/* What is on the command line. */
struct sets_words {
    const char *root, *at, *directory, *format, *output;
    struct cli_observe observe;
    bool definition, json;
};

static int parse_sets_words(int argc, char **argv, struct sets_words *w, struct error *err)
{
    const struct cli_arg args[] = {
        {"restore", 0, CLI_VALUE, &w->directory, "DIR", "write all disks of a set to files in DIR"},
        {"at", 0, CLI_VALUE, &w->at, "ID",
         "this set (the beginning of its ID is enough; default: the newest)"},
        {"definition", 0, CLI_FLAG, &w->definition, NULL,
         "print the definition of the machine that is kept with a set"},
        {"format", 'f', CLI_VALUE, &w->format, "FORMAT", "'raw' (default) or 'qcow2'"},
        BACKUP_KEY_ARGS,
        {"output", 0, CLI_VALUE, &w->output, "FORMAT", "'human' or 'json'"},
        CLI_OBSERVE_ARGS(w->observe),
        CLI_ARG_END,
    };
    int first = cli_args_parse(args, &sets_usage, argc, argv);

    if (first < 0) {
        return first;
    }
    if (first != argc - 1) {
        return cli_usage_error(err, &sets_usage, "expecting one directory");
    }
    if (w->directory && w->definition) {
        return cli_usage_error(err, &sets_usage, "--restore and --definition exclude each other");
    }
    if (!w->directory && ((w->at && !w->definition) || w->format)) {
        return cli_usage_error(err, &sets_usage, "--at and --format need --restore");
    }
    w->format = w->format ? w->format : "raw";
    if (strcmp(w->format, "raw") != 0 && strcmp(w->format, "qcow2") != 0) {
        return cli_usage_error(err, &sets_usage, "--format needs 'raw' or 'qcow2', not '%s'",
                               w->format);
    }
    w->root = argv[first];
    return cli_parse_output(w->output, &w->json, err);
}

static void sets_words_clear(struct sets_words *w)
{
    cli_observe_clear(&w->observe);
}

static int print_definition(const struct set_list *all, const struct sets_words *w,
                            struct error *err)
{
    const struct set *s = set_find(all, w->at, err);
    char *text AUTO_FREE = NULL;
    int r;

    if (!s) {
        return -ENOENT;
    }
    if (!s->definition) {
        return error_set(err, ENOENT, "Set %s has no definition", s->id);
    }
    r = set_load_definition(w->root, s, &text, err);
    if (r == 0) {
        fputs(text, stdout);
    }
    return r;
}

static int sets_co_main(int argc, char **argv, struct error *err)
{
    __attribute__((cleanup(sets_words_clear))) struct sets_words w = {0};
    struct set_list all = {0};
    const struct set *s;
    int r = parse_sets_words(argc, argv, &w, err), status;

    if (r < 0) {
        return r;
    }
    if (!cli_observe(&w.observe, &status)) {
        return status;
    }
    r = set_read_all(w.root, &all, err);
    UNLESS_FAILED(r, set_list_examine(&all, w.root, err));
    UNLESS_FAILED(r, set_list_take_found_damage(&all, w.root, err));
    if (r == 0 && !w.directory && !w.definition) {
        r = list_sets(&all, w.json);
    } else if (r == 0 && w.definition) {
        r = print_definition(&all, &w, err);
    } else if (r == 0) {
        backup_catch_signals();
        s = set_find(&all, w.at, err);
        r = s ? co_restore_and_print(w.root, s, w.directory, w.format, w.json, err) : -ENOENT;
    }
    set_list_clear(&all);
    return r < 0 ? backup_fail(err, w.json) : r;
}

int cli_sets_main(int argc, char **argv)
{
    return cli_run(sets_co_main, argc, argv);
}
