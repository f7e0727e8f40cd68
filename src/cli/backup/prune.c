/* SPDX-License-Identifier: Apache-2.0 */
/* The face prune: removes backups by rules. */
#include "backup/prune.h"
#include "backup/set_root.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "cli/args.h"
#include "cli/backup/faces.h"
#include "cli/cli.h"
#include "cli/observe.h"

#define COUNT_MAX 1000000

static const struct cli_usage prune_usage = {
    .synopsis = "[--keep-...] DIR",
    .about = "Removes backups that no --keep option keeps. Those that are kept stay restorable at "
             "every moment:\n"
             "what they need of a removed one is merged into the next one that is kept, so the "
             "oldest one\n"
             "kept is a full backup, and no new full backup is ever needed. The newest backup is "
             "always kept,\n"
             "since the next one builds on it. Damaged backups stay, and no rule counts them.\n"
             "Hours, days, weeks (from Monday), months and years are those of local time (TZ).\n"
             "If DIR is the root of sets, the rules count sets, and all disks are pruned.\n"
             "The exit status is 0, 1 if something failed, 2 if all is done but there are damaged "
             "backups.",
    .examples = "@--keep-last 3 --keep-daily 7 --keep-weekly 5 --keep-monthly 12 "
                "/backups/disk\n"
                "@--keep-within 30d --dry-run /backups/disk\n"
                "        what would be removed if all of the last 30 days are kept\n"
                "@--remove 20261120T093000Z /backups/disk",
};

/* What is on the command line, and not in prune_options. */
struct prune_words {
    const char *keep[RETENTION_RULES];
    struct cli_items remove;
    const char **remove_ids;
    const char *max_chain, *machine, *output, *progress;
    struct cli_observe observe;
    bool json, shown;
};

static void prune_words_clear(struct prune_words *w)
{
    cli_items_clear(&w->remove);
    free(w->remove_ids);
    cli_observe_clear(&w->observe);
}

/* Returns 0, or what cli_exit_status() takes. */
static int parse_prune_words(int argc, char **argv, struct prune_options *o, struct prune_words *w,
                             struct error *err)
{
    const struct cli_arg args[] = {
        {"keep-last", 0, CLI_VALUE, &w->keep[RETENTION_LAST], "N", "keep the N newest backups"},
        {"keep-hourly", 0, CLI_VALUE, &w->keep[RETENTION_HOURLY], "N",
         "keep the newest of each hour, for the N latest hours with backups"},
        {"keep-daily", 0, CLI_VALUE, &w->keep[RETENTION_DAILY], "N", "the same for days"},
        {"keep-weekly", 0, CLI_VALUE, &w->keep[RETENTION_WEEKLY], "N", "for weeks"},
        {"keep-monthly", 0, CLI_VALUE, &w->keep[RETENTION_MONTHLY], "N", "for months"},
        {"keep-yearly", 0, CLI_VALUE, &w->keep[RETENTION_YEARLY], "N", "for years"},
        {"keep-within", 0, CLI_VALUE, &w->keep[RETENTION_WITHIN], "SPAN",
         "keep all that are at most this much older than the newest: '36h',\n"
         "'30d', '1y6m' (m: months)"},
        {"remove", 0, CLI_REPEAT, &w->remove, "ID", "remove this backup; may repeat"},
        {"max-chain", 0, CLI_VALUE, &w->max_chain, "N",
         "where a backup would be more than the Nth of its chain, make it a\n"
         "full one, from what is stored (default: 100; 0: no limit)"},
        BACKUP_VM_ARG(w->machine),
        {"dry-run", 'n', CLI_FLAG, &o->dry_run, NULL,
         "change nothing, and tell what would be done"},
        BACKUP_PROGRESS_ARGS(w->shown, w->progress),
        BACKUP_KEY_ARGS,
        {"output", 0, CLI_VALUE, &w->output, "FORMAT", "'human' or 'json'"},
        CLI_OBSERVE_ARGS(w->observe),
        CLI_ARG_END,
    };
    int first = cli_args_parse(args, &prune_usage, argc, argv);

    if (first < 0) {
        return first;
    }
    if (first != argc - 1) {
        return cli_usage_error(err, &prune_usage, "expecting one directory");
    }
    o->dir = argv[first];
    return 0;
}

static int take_retention_rules(struct prune_options *o, const struct prune_words *w,
                                struct error *err)
{
    int r = 0;

    for (enum retention_rule rule = 0; rule < RETENTION_WITHIN; rule++) {
        char option[32];

        snprintf(option, sizeof(option), "--keep-%s", retention_rule_name(rule));
        UNLESS_FAILED(
            r, cli_take_number(w->keep[rule], option, 0, COUNT_MAX, &o->keep.count[rule], err));
    }
    if (r == 0 && w->keep[RETENTION_WITHIN]) {
        o->keep.has_within = true;
        r = retention_parse_span(w->keep[RETENTION_WITHIN], &o->keep.within, err);
    }
    return r;
}

static int check_prune_words(struct prune_options *o, struct prune_words *w, struct error *err)
{
    int r = cli_parse_output(w->output, &w->json, err);

    UNLESS_FAILED(r, backup_progress(w->shown, w->progress, &o->progress, err));
    UNLESS_FAILED(r, take_retention_rules(o, w, err));
    o->max_chain = 100;
    UNLESS_FAILED(r,
                  cli_take_number(w->max_chain, "--max-chain", 0, COUNT_MAX, &o->max_chain, err));
    if (r < 0) {
        return r;
    }
    if (!retention_is_set(&o->keep) && w->remove.count == 0 && !w->max_chain) {
        return cli_usage_error(err, &prune_usage,
                               "which backups to keep? No --keep option is given");
    }
    w->remove_ids = calloc(w->remove.count + 1, sizeof(*w->remove_ids));
    if (!w->remove_ids) {
        return error_out_of_memory(err);
    }
    for (size_t i = 0; i < w->remove.count; i++) {
        w->remove_ids[i] = w->remove.item[i].value;
    }
    o->remove = w->remove_ids;
    o->remove_count = w->remove.count;
    return 0;
}

/* --- what was done --- */

static const char *fate_name(enum prune_fate fate)
{
    return fate == PRUNE_KEPT ? "kept" : fate == PRUNE_REMOVED ? "removed" : "damaged";
}

static struct json_object *reasons_json(const struct prune_item *item)
{
    struct json_object *list = json_object_new_array();

    for (enum retention_rule rule = 0; rule < RETENTION_RULES; rule++) {
        if (item->reasons & (1u << rule)) {
            json_object_array_add(list, json_object_new_string(retention_rule_name(rule)));
        }
    }
    if (item->newest) {
        json_object_array_add(list, json_object_new_string("newest"));
    }
    return list;
}

static struct json_object *item_json(const struct prune_item *item)
{
    struct json_object *o = json_object_new_object();

    json_object_object_add(o, "id", json_object_new_string(item->id));
    json_object_object_add(o, "fate", json_object_new_string(fate_name(item->fate)));
    json_object_object_add(o, "reasons", reasons_json(item));
    json_object_object_add(o, "takes-over", json_object_new_uint64(item->takes_over));
    json_object_object_add(o, "becomes-full", json_object_new_boolean(item->becomes_full));
    if (item->problem) {
        json_object_object_add(o, "problem", json_object_new_string(item->problem));
    }
    return o;
}

static struct json_object *prune_json(const struct prune_result *result)
{
    struct json_object *o = json_object_new_object(), *list = json_object_new_array();

    for (size_t i = 0; i < result->count; i++) {
        json_object_array_add(list, item_json(&result->items[i]));
    }
    json_object_object_add(o, "backups", list);
    json_object_object_add(o, "removed", json_object_new_uint64(result->removed));
    json_object_object_add(o, "damaged", json_object_new_uint64(result->damaged));
    json_object_object_add(o, "stored-bytes-before", json_object_new_uint64(result->stored_before));
    json_object_object_add(o, "stored-bytes-after", json_object_new_uint64(result->stored_after));
    return o;
}

static int print_prune_json(const struct prune_options *options, const struct prune_result *result)
{
    struct json_object *o = prune_json(result);

    json_object_object_add(o, "dry-run", json_object_new_boolean(options->dry_run));
    return backup_print_json(o);
}

static void print_item(const struct prune_item *item)
{
    const char *mark = item->reasons || item->newest || item->problem ? ";" : "";

    printf("%-20s  %-7s", item->id, fate_name(item->fate));
    for (enum retention_rule rule = 0; rule < RETENTION_RULES; rule++) {
        if (item->reasons & (1u << rule)) {
            printf(" %s", retention_rule_name(rule));
        }
    }
    if (item->newest) {
        printf(" newest");
    }
    if (item->problem) {
        printf(": %s", item->problem);
    }
    if (item->takes_over && item->becomes_full) {
        printf("%s full, from %zu backups", mark, item->takes_over + 1);
    } else if (item->takes_over) {
        printf("%s takes over %zu", mark, item->takes_over);
    }
    printf("\n");
}

static void print_prune(const struct prune_options *options, const struct prune_result *result)
{
    char before[16], after[16];

    for (size_t i = 0; i < result->count; i++) {
        print_item(&result->items[i]);
    }
    if (options->dry_run) {
        printf("%zu of %zu backups would be removed\n", result->removed, result->count);
    } else {
        printf("%zu of %zu backups removed, stored %s, before %s\n", result->removed, result->count,
               backup_size(result->stored_after, after),
               backup_size(result->stored_before, before));
    }
}

/* --- all disks of a root of sets --- */

static int print_root_json(const struct prune_options *options,
                           const struct prune_root_result *result)
{
    struct json_object *o = json_object_new_object(), *sets = json_object_new_array();
    struct json_object *disks = json_object_new_array();

    for (size_t i = 0; i < result->set_count; i++) {
        json_object_array_add(sets, item_json(&result->sets[i]));
    }
    for (size_t i = 0; i < result->root.count; i++) {
        struct json_object *disk = prune_json(&result->disks[i]);

        json_object_object_add(disk, "directory", json_object_new_string(result->root.disks[i]));
        json_object_array_add(disks, disk);
    }
    json_object_object_add(o, "dry-run", json_object_new_boolean(options->dry_run));
    json_object_object_add(o, "sets", sets);
    json_object_object_add(o, "disks", disks);
    return backup_print_json(o);
}

static void print_root(const struct prune_options *options, const struct prune_root_result *result)
{
    printf("Sets:\n");
    for (size_t i = 0; i < result->set_count; i++) {
        print_item(&result->sets[i]);
    }
    for (size_t i = 0; i < result->root.count; i++) {
        printf("Disk '%s':\n", result->root.disks[i]);
        print_prune(options, &result->disks[i]);
    }
}

static int co_prune_root(const struct prune_options *options, const struct prune_words *w,
                         struct error *err)
{
    __attribute__((cleanup(prune_root_result_clear))) struct prune_root_result result = {0};
    size_t damaged = 0;
    int status = 0;

    if (prune_root_co_run(options, w->machine, &result, err) < 0) {
        return backup_fail(err, w->json);
    }
    for (size_t i = 0; i < result.set_count; i++) {
        damaged += result.sets[i].fate == PRUNE_DAMAGED;
    }
    for (size_t i = 0; i < result.root.count; i++) {
        damaged += result.disks[i].damaged;
    }
    if (w->json) {
        status = print_root_json(options, &result);
    } else {
        print_root(options, &result);
    }
    return status == 0 && damaged ? BACKUP_DAMAGED : status;
}

static int prune_co_main(int argc, char **argv, struct error *err)
{
    struct prune_options options = {.stop = &backup_stop};
    __attribute__((cleanup(prune_words_clear))) struct prune_words words = {0};
    __attribute__((cleanup(prune_result_clear))) struct prune_result result = {0};
    int r = parse_prune_words(argc, argv, &options, &words, err);
    int status = 0;

    UNLESS_FAILED(r, check_prune_words(&options, &words, err));
    if (r < 0) {
        return r;
    }
    if (!cli_observe(&words.observe, &status)) {
        return status;
    }
    backup_catch_signals();
    if (words.machine || set_is_root(options.dir)) {
        return co_prune_root(&options, &words, err);
    }
    if (prune_co_run(&options, &result, err) < 0) {
        return backup_fail(err, words.json);
    }
    if (words.json) {
        status = print_prune_json(&options, &result);
    } else {
        print_prune(&options, &result);
    }
    return status == 0 && result.damaged ? BACKUP_DAMAGED : status;
}

int cli_prune_main(int argc, char **argv)
{
    return cli_run(prune_co_main, argc, argv);
}
