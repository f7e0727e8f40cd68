/* SPDX-License-Identifier: Apache-2.0 */
/* The face backups: lists the backups of a disk, or the repositories below a directory. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "backup/catalogue.h"
#include "backup/condition.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "base/shell_word.h"
#include "cli/args.h"
#include "cli/backup/faces.h"
#include "cli/cli.h"
#include "cli/observe.h"

static const struct cli_usage backups_usage = {
    .synopsis = "DIR",
    .about = "Lists the backups in the directory of a disk, oldest first, with their contents and "
             "costs. For a\n"
             "directory above those, lists the disks below it, each with its newest backup and "
             "what is wrong.",
    .examples = "@/backups/disk\n"
                "@/backups\n"
                "        all disks of all machines\n"
                "@--output=json /backups/disk\n"
                "        all details of each backup",
};

/* --- one disk --------------------------------------------------------------------------------- */

/* Warn of a damaged description: backups can be read without it, but no new one can be made. */
static void warn_about_description(const struct repository *r)
{
    if (r->problem) {
        char *word AUTO_FREE = shell_word(r->path);

        cli_warn("%s; 'tidemark repair %s' makes it again", r->problem, word ?: r->path);
    }
}

static void print_table(const struct repository *r, const struct condition *c)
{
    printf("%-20s  %-11s  %10s  %10s  %10s  %10s  %8s\n", "ID", "KIND", "DISK", "CHANGED", "MOVED",
           "STORED", "TIME");
    for (size_t i = 0; i < r->count; i++) {
        const struct repository_entry *e = &r->entries[i];
        const struct manifest *m = &e->manifest;
        char disk[16], changed[16], moved[16], stored[16];

        if (c->problems[i]) {
            printf("%-20s  damaged: %s\n", e->id, c->problems[i]);
            continue;
        }
        printf("%-20s  %-11s  %10s  %10s  %10s  %10s  %6.1f s\n", e->id,
               manifest_is_full(m) ? "full" : "incremental", backup_size(m->virtual_size, disk),
               backup_size(m->changed, changed), backup_size(m->moved, moved),
               backup_size(m->stored, stored), (double)m->duration_ms / 1000);
    }
}

static int print_list_json(const struct repository *r, const struct condition *c)
{
    struct json_object *list = json_object_new_array();

    for (size_t i = 0; i < r->count; i++) {
        struct json_object *o;
        char when[CONDITION_TIME_SIZE];

        if (r->entries[i].problem) {
            o = json_object_new_object();
            json_object_object_add(o, "id", json_object_new_string(r->entries[i].id));
        } else {
            o = manifest_to_json(&r->entries[i].manifest);
        }
        if (c->problems[i]) {
            json_object_object_add(o, "problem", json_object_new_string(c->problems[i]));
        }
        if (c->verified.list[i].at) {
            condition_time(c->verified.list[i].at, when);
            json_object_object_add(o, "verified-utc", json_object_new_string(when));
        }
        json_object_array_add(list, o);
    }
    return backup_print_json(list);
}

/* --- many disks ------------------------------------------------------------------------------- */

/* What a list of disks says of one. */
struct summary {
    const struct repository_entry *newest; /* also if it is damaged; NULL: there is none */
    const struct repository_entry *sound;  /* the newest that is; NULL: there is none */
    const struct manifest *m;              /* the newest that can be read; NULL: there is none */
    bool newest_damaged;
    size_t damaged;
    uint64_t stored;
};

static int summarise(const struct repository *r, struct summary *ret_summary)
{
    CONDITION_AUTO(condition);
    const struct repository_entry *last = repository_last(r);
    struct summary s = {.newest = r->count ? &r->entries[r->count - 1] : NULL,
                        .m = last ? &last->manifest : NULL};

    if (condition_read(r, &condition) < 0) {
        return -ENOMEM;
    }
    s.damaged = condition.damaged;
    for (size_t i = 0; i < r->count; i++) {
        s.newest_damaged = condition.problems[i] != NULL;
        s.sound = condition.problems[i] ? s.sound : &r->entries[i];
        s.stored += r->entries[i].manifest.stored;
    }
    *ret_summary = s;
    return 0;
}

/* What is wrong, the worst first; NULL: nothing. */
static const char *state_of(const struct catalogue_entry *e, const struct summary *s, char *buf,
                            size_t size)
{
    if (s->newest_damaged) {
        snprintf(buf, size, "the newest backup, %s, is damaged", s->newest->id);
    } else if (s->damaged) {
        snprintf(buf, size, "%zu %s damaged", s->damaged,
                 s->damaged == 1 ? "backup is" : "backups are");
    } else if (e->problem || e->repository.problem) {
        return e->problem ? e->problem : e->repository.problem;
    } else {
        return s->newest ? NULL : "no backup yet";
    }
    return buf;
}

static const char *or_dash(const char *s)
{
    return s && *s ? s : "-";
}

static void print_catalogue_row(const struct catalogue_entry *e, const struct summary *s, int width)
{
    char disk[16], stored[16], buf[128];
    const char *state = state_of(e, s, buf, sizeof(buf));

    printf("%-*s  %-12s  %-12s  %7zu  %-20s  %10s  %10s  %s\n", width, e->path,
           or_dash(s->m ? s->m->machine : NULL), or_dash(s->m ? s->m->node : NULL),
           e->repository.count, s->newest ? s->newest->id : "-",
           s->m ? backup_size(s->m->virtual_size, disk) : "-", backup_size(s->stored, stored),
           state ? state : "in order");
}

static void print_catalogue(const struct catalogue *c, const struct summary *summaries)
{
    int width = 4;

    for (size_t i = 0; i < c->count; i++) {
        width = MAX(width, (int)MIN(strlen(c->list[i].path), (size_t)60));
    }
    printf("%-*s  %-12s  %-12s  %7s  %-20s  %10s  %10s  %s\n", width, "PATH", "MACHINE", "NODE",
           "BACKUPS", "NEWEST", "DISK", "STORED", "STATE");
    for (size_t i = 0; i < c->count; i++) {
        print_catalogue_row(&c->list[i], &summaries[i], width);
    }
}

static void add_cell_text(struct json_object *o, const char *key, const char *value)
{
    if (value && *value) {
        json_object_object_add(o, key, json_object_new_string(value));
    }
}

static struct json_object *catalogue_row_json(const struct catalogue_entry *e,
                                              const struct summary *s)
{
    struct json_object *o = json_object_new_object();
    char buf[128];

    add_cell_text(o, "path", e->path);
    add_cell_text(o, "id", e->repository.id);
    json_object_object_add(o, "backups", json_object_new_uint64(e->repository.count));
    json_object_object_add(o, "damaged", json_object_new_uint64(s->damaged));
    json_object_object_add(o, "stored-bytes", json_object_new_uint64(s->stored));
    add_cell_text(o, "newest", s->newest ? s->newest->id : NULL);
    if (s->sound) {
        add_cell_text(o, "newest-sound", s->sound->id);
        add_cell_text(o, "newest-sound-utc", s->sound->manifest.begin.utc);
    }
    if (s->m) {
        add_cell_text(o, "machine", s->m->machine);
        add_cell_text(o, "node", s->m->node);
        add_cell_text(o, "disk", s->m->disk);
        json_object_object_add(o, "virtual-size", json_object_new_uint64(s->m->virtual_size));
    }
    add_cell_text(o, "problem", state_of(e, s, buf, sizeof(buf)));
    return o;
}

static int print_catalogue_json(const struct catalogue *c, const struct summary *summaries)
{
    struct json_object *o = json_object_new_object(), *list = json_object_new_array();

    json_object_object_add(o, "root", json_object_new_string(c->root));
    json_object_object_add(o, "repositories", list);
    for (size_t i = 0; i < c->count; i++) {
        json_object_array_add(list, catalogue_row_json(&c->list[i], &summaries[i]));
    }
    return backup_print_json(o);
}

/* --- the face --------------------------------------------------------------------------------- */

static int list_repository(const struct repository *r, bool json)
{
    CONDITION_AUTO(condition);
    ERROR_AUTO(err);

    if (condition_read(r, &condition) < 0) {
        error_out_of_memory(&err);
        return backup_fail(&err, json);
    }
    warn_about_description(r);
    if (json) {
        return print_list_json(r, &condition);
    }
    if (r->count == 0) {
        printf("There are no backups in '%s' yet.\n", r->path);
    } else {
        print_table(r, &condition);
    }
    return 0;
}

static int summarise_all(const struct catalogue *c, struct summary *ret_summaries,
                         struct error *err)
{
    int r = ret_summaries ? 0 : -ENOMEM;

    for (size_t i = 0; r == 0 && i < c->count; i++) {
        r = summarise(&c->list[i].repository, &ret_summaries[i]);
    }
    return r < 0 ? error_out_of_memory(err) : 0;
}

/* `why` says why the directory is no repository: that is printed if there is none below it. */
static int list_catalogue(const char *root, bool json, struct error *why)
{
    __attribute__((cleanup(catalogue_clear))) struct catalogue c = {0};
    struct summary *summaries AUTO_FREE = NULL;
    ERROR_AUTO(err);

    if (catalogue_read(root, &c, &err) < 0) {
        return backup_fail(&err, json);
    }
    if (c.count == 0) {
        return backup_fail(why, json);
    }
    summaries = calloc(c.count, sizeof(*summaries));
    if (summarise_all(&c, summaries, &err) < 0) {
        return backup_fail(&err, json);
    }
    if (json) {
        return print_catalogue_json(&c, summaries);
    }
    print_catalogue(&c, summaries);
    return 0;
}

int cli_backups_main(int argc, char **argv)
{
    REPOSITORY_AUTO(repository);
    CLI_OBSERVE_AUTO(observe);
    const char *output = NULL;
    bool json;
    int status;
    ERROR_AUTO(err);
    const struct cli_arg args[] = {
        BACKUP_KEY_ARGS,
        {"output", 0, CLI_VALUE, &output, "FORMAT", "'human' or 'json'"},
        CLI_OBSERVE_ARGS(observe),
        CLI_ARG_END,
    };
    int first = cli_args_parse(args, &backups_usage, argc, argv);

    if (first < 0) {
        return cli_exit_status(first, &err);
    }
    if (first != argc - 1) {
        cli_usage_error(&err, &backups_usage, "expecting one directory");
        return cli_report(&err);
    }
    if (!cli_observe(&observe, &status)) {
        return status;
    }
    if (cli_parse_output(output, &json, &err) < 0) {
        return cli_report(&err);
    }
    status = repository_open(argv[first], &repository, &err);
    if (status == -ENOENT) {
        return cli_end_output(list_catalogue(argv[first], json, &err));
    }
    return cli_end_output(status < 0 ? backup_fail(&err, json)
                                     : list_repository(&repository, json));
}
