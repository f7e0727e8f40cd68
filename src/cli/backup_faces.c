/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/backup_faces.h"

#include <errno.h>
#include <stddef.h>
#include <string.h>

#include "cli/cli.h"
#include "cli/image.h"

volatile sig_atomic_t backup_stop;

static void on_signal(int number)
{
    backup_stop = 1;
}

void backup_catch_signals(void)
{
    static const int signals[] = {SIGINT, SIGTERM, SIGHUP};
    struct sigaction action = {.sa_handler = on_signal, .sa_flags = (int)SA_RESETHAND};

    for (size_t i = 0; i < sizeof(signals) / sizeof(signals[0]); i++) {
        struct sigaction old;

        /* What the caller ignores (nohup) stays ignored. */
        if (sigaction(signals[i], NULL, &old) == 0 && old.sa_handler != SIG_IGN) {
            sigaction(signals[i], &action, NULL);
        }
    }
}

int backup_progress(bool flag, const char *text, enum progress_mode *ret)
{
    bool json = text && strcmp(text, "json") == 0;

    if (text && !json && strcmp(text, "human") != 0) {
        cli_fail("--progress must be 'human' or 'json', not '%s'", text);
        return -EINVAL;
    }
    *ret = json ? PROGRESS_JSON : flag || text ? PROGRESS_SHOWN : PROGRESS_AUTO;
    return 0;
}

static const struct {
    int code;
    const char *name;
} kinds[] = {
    {EBADMSG, "damaged"}, {EBUSY, "busy"},      {EINTR, "stopped"},
    {ENOSPC, "no-space"}, {EDQUOT, "no-space"},
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

    for (size_t i = 0; i < sizeof(kinds) / sizeof(kinds[0]); i++) {
        name = err->code == kinds[i].code ? kinds[i].name : name;
    }
    if (json) {
        struct json_object *o = json_object_new_object(), *e = json_object_new_object();

        json_object_object_add(o, "error", e);
        json_object_object_add(e, "kind", json_object_new_string(name));
        json_object_object_add(e, "message", json_object_new_string(error_message(err)));
        if (err->hint) {
            json_object_object_add(e, "hint", json_object_new_string(err->hint));
        }
        backup_print_json(o);
    }
    cli_report(err);
    return BACKUP_FAILED;
}
