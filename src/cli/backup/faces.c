/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/backup/faces.h"

#include <errno.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "backup/backup.h"
#include "backup/fleece.h"
#include "base/checked.h"
#include "cli/backup/notify.h"
#include "cli/cli.h"
#include "cli/json.h"

volatile sig_atomic_t backup_stop;

static void on_end_signal(int number)
{
    backup_stop = 1;
}

void backup_catch_signals(void)
{
    static const int signals[] = {SIGINT, SIGTERM, SIGHUP};
    struct sigaction action = {.sa_handler = on_end_signal, .sa_flags = (int)SA_RESETHAND};

    for (size_t i = 0; i < ARRAY_SIZE(signals); i++) {
        struct sigaction old;

        /* A signal that the caller ignores (nohup) stays ignored. */
        if (sigaction(signals[i], NULL, &old) == 0 && old.sa_handler != SIG_IGN) {
            sigaction(signals[i], &action, NULL);
        }
    }
    backup_key_source.stop = &backup_stop;
}

int backup_progress(bool flag, const char *text, enum progress_form *ret_form, struct error *err)
{
    bool json = text && strcmp(text, "json") == 0;

    if (text && !json && strcmp(text, "human") != 0) {
        return error_set(err, EINVAL, "--progress must be 'human' or 'json', not '%s'", text);
    }
    if (json) {
        *ret_form = PROGRESS_JSON;
    } else if (isatty(STDERR_FILENO)) {
        *ret_form = PROGRESS_BAR;
    } else {
        *ret_form = flag || text ? PROGRESS_LINES : PROGRESS_NONE;
    }
    return 0;
}

static const struct {
    int code;
    const char *name;
} kinds[] = {
    {EBADMSG, "damaged"}, {EBUSY, "busy"}, {EINTR, "stopped"},    {ENOSPC, "no-space"},
    {EDQUOT, "no-space"}, {ENOKEY, "key"}, {EKEYREJECTED, "key"},
};

int backup_print_json(struct json_object *o)
{
    if (!o) {
        return cli_fail("Out of memory");
    }
    cli_print_json(o);
    json_object_put(o);
    return 0;
}

int backup_fail(struct error *err, bool json)
{
    const char *name = "failed";
    struct json_object *o, *e;

    for (size_t i = 0; i < ARRAY_SIZE(kinds); i++) {
        name = err->code == kinds[i].code ? kinds[i].name : name;
    }
    o = json_object_new_object();
    e = json_object_new_object();
    json_object_object_add(o, "error", e);
    json_object_object_add(e, "kind", json_object_new_string(name));
    json_object_object_add(e, "message", json_object_new_string(error_message(err)));
    if (err->hint) {
        json_object_object_add(e, "hint", json_object_new_string(err->hint));
    }
    backup_note_result(o);
    if (json) {
        backup_print_json(o);
    } else {
        json_object_put(o);
    }
    cli_report(err);
    return BACKUP_FAILED;
}

/* --- leftovers in a daemon -------------------------------------------------------------------- */

static const char *leftover_state(const struct source_leftover *l)
{
    if (!l->filter) {
        return "bitmaps";
    }
    switch (l->temp_image ? fleece_owner(l->temp_image) : FLEECE_DEAD) {
    case FLEECE_ALIVE:
        return "running";
    case FLEECE_DEAD:
        return "cut-off";
    default:
        return "unknown";
    }
}

static struct json_object *leftover_json(const struct source_leftover *l)
{
    struct json_object *o = json_object_new_object();

    json_object_object_add(o, "repository", json_object_new_string(l->repository));
    json_object_object_add(o, "node", l->node ? json_object_new_string(l->node) : NULL);
    json_object_object_add(o, "state", json_object_new_string(leftover_state(l)));
    json_object_object_add(o, "bitmaps", json_object_new_uint64(l->bitmaps));
    json_object_object_add(o, "marked-bytes", json_object_new_uint64(l->dirty));
    if (l->temp_image) {
        json_object_object_add(o, "temporary-image", json_object_new_string(l->temp_image));
    }
    return o;
}

static void print_leftovers(const struct source_leftovers *all)
{
    printf("%-10s  %-16s  %-8s  %7s  %10s  %s\n", "REPOSITORY", "NODE", "STATE", "BITMAPS",
           "MARKED", "TEMPORARY IMAGE");
    for (size_t i = 0; i < all->count; i++) {
        const struct source_leftover *l = &all->list[i];
        char dirty[16];

        printf("%-10s  %-16s  %-8s  %7zu  %10s  %s\n", l->repository, l->node ? l->node : "?",
               leftover_state(l), l->bitmaps, backup_size(l->dirty, dirty),
               l->temp_image ? l->temp_image : "-");
    }
}

int backup_co_print_leftovers(const struct source_options *source, const char *node, bool json)
{
    struct source_leftovers all = {0};
    struct json_object *list;
    ERROR_AUTO(err);
    int status = 0;

    if (backup_co_leftovers(source, node, &all, &err) < 0) {
        return backup_fail(&err, json);
    }
    if (json) {
        list = json_object_new_array();
        for (size_t i = 0; i < all.count; i++) {
            json_object_array_add(list, leftover_json(&all.list[i]));
        }
        status = backup_print_json(list);
    } else if (all.count == 0) {
        printf("Backups have nothing in this daemon.\n");
    } else {
        print_leftovers(&all);
    }
    source_leftovers_clear(&all);
    return status;
}
