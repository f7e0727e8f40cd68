/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/machine/monitors.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "block/options.h"
#include "chardev/chardev.h"
#include "cli/daemon/run.h"
#include "cli/machine/clock.h"
#include "cli/machine/hmp.h"
#include "cli/machine/lines.h"
#include "qmp/monitors.h"

int machine_co_add_chardev(const char *text, struct error *err)
{
    struct options *opts;
    int r = options_parse(text, "backend", &opts, err);

    return r < 0 ? r : chardev_co_add(opts, NULL, err);
}

/* --- conversations ---------------------------------------------------------------------------- */

static int begin_hmp(struct chardev *c, int fd, void *arg, struct error *err)
{
    return hmp_start(fd, c, daemon_quit, err);
}

static int begin_qtest(struct chardev *c, int fd, void *arg, struct error *err)
{
    return machine_qtest_start(fd, c, err);
}

static int start_talk(const char *chardev_id, enum machine_talk talk, struct error *err)
{
    switch (talk) {
    case MACHINE_TALK_QMP:
    case MACHINE_TALK_QMP_PRETTY:
        return qmp_monitor_start(chardev_id, talk == MACHINE_TALK_QMP_PRETTY, err);
    case MACHINE_TALK_HMP:
        return chardev_attach(chardev_id, begin_hmp, NULL, err);
    default:
        return chardev_attach(chardev_id, begin_qtest, NULL, err);
    }
}

int machine_add_monitor(const char *text, struct error *err)
{
    static const char *const modes[] = {"readline", "control", NULL};
    AUTO_OPTIONS struct options *opts = NULL;
    AUTO_FREE char *id = NULL;
    bool pretty = false;
    int mode = 0, r = options_parse(text, "chardev", &opts, err);

    UNLESS_FAILED(r, options_take_str(opts, "chardev", &id, err));
    UNLESS_FAILED(r, options_take_enum(opts, "mode", modes, 0, &mode, err));
    UNLESS_FAILED(r, options_take_bool(opts, "pretty", false, &pretty, err));
    UNLESS_FAILED(r, options_check_empty(opts, "mon", err));
    if (r < 0) {
        return r;
    }
    return start_talk(id ?: "",
                      mode == 0 ? MACHINE_TALK_HMP
                      : pretty  ? MACHINE_TALK_QMP_PRETTY
                                : MACHINE_TALK_QMP,
                      err);
}

/* "unix:PATH,server,nowait" or "tcp:HOST:PORT,server,nowait" as the options of a chardev. */
static int short_form(const char *text, const char *id, struct options **ret_opts,
                      struct error *err)
{
    AUTO_FREE char *options = NULL;
    int r;

    if (strncmp(text, "unix:", 5) == 0) {
        r = asprintf(&options, "backend=socket,id=%s,path=%s", id, text + 5);
    } else if (strncmp(text, "tcp:", 4) == 0) {
        const char *host = text + 4;
        int length = (int)strcspn(host, ":");

        r = asprintf(&options, "backend=socket,id=%s,host=%.*s,port=%s", id, length, host,
                     host[length] ? host + length + 1 : "");
    } else {
        r = asprintf(&options, "id=%s,backend=%s", id, text);
    }
    if (r < 0) {
        options = NULL;
        return error_out_of_memory(err);
    }
    return options_parse(options, NULL, ret_opts, err);
}

int machine_co_add_talk(enum machine_talk talk, const char *text, struct error *err)
{
    static unsigned serial;
    struct options *opts;
    char id[32];
    int r;

    if (strcmp(text, "none") == 0) {
        return 0;
    }
    if (strncmp(text, "chardev:", 8) == 0) {
        return start_talk(text + 8, talk, err);
    }
    snprintf(id, sizeof(id), "compat_monitor%u", serial++);
    r = short_form(text, id, &opts, err);
    UNLESS_FAILED(r, chardev_co_add(opts, NULL, err));
    return r < 0 ? r : start_talk(id, talk, err);
}

/* --- the end ---------------------------------------------------------------------------------- */

void machine_monitors_co_end(void)
{
    chardev_co_close_all();
    machine_lines_co_end();
}
