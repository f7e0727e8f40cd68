/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/machine/hmp.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "base/list.h"
#include "block/control_lock.h"
#include "cli/machine/call.h"
#include "cli/machine/lines.h"
#include "qmp/command_lock.h"

#define PROMPT "(qemu) "

/* --- words ------------------------------------------------------------------------------------ */

/*
 * Take the next word off a line: "..." is one, in which a backslash takes the next character. The
 * word is written over the line. NULL at the end.
 */
static char *next_word(char **line, struct error *err)
{
    char *from = *line, *word, *to;
    bool quoted;

    while (*from == ' ' || *from == '\t') {
        from++;
    }
    if (!*from) {
        *line = from;
        return NULL;
    }
    quoted = *from == '"';
    from += quoted;
    word = to = from;
    while (*from && (quoted ? *from != '"' : *from != ' ' && *from != '\t')) {
        from += quoted && *from == '\\' && from[1];
        *to++ = *from++;
    }
    if (quoted && *from != '"') {
        error_set(err, EINVAL, "unterminated string literal");
    }
    *line = from + (*from != '\0');
    *to = '\0';
    return word;
}

/* --- commands --------------------------------------------------------------------------------- */

static int co_run_quit(struct hmp *hmp, int argc, char **argv, struct error *err)
{
    machine_emit_shutdown("host-qmp-quit");
    hmp->quit = true;
    return 0;
}

/* Run a command of QMP that takes no arguments. */
static int co_run_cont(struct hmp *hmp, int argc, char **argv, struct error *err)
{
    return machine_co_qmp("cont", json_object_new_object(), NULL, err);
}

static int co_run_stop(struct hmp *hmp, int argc, char **argv, struct error *err)
{
    return machine_co_qmp("stop", json_object_new_object(), NULL, err);
}

static int co_run_reset(struct hmp *hmp, int argc, char **argv, struct error *err)
{
    return machine_co_qmp("system_reset", json_object_new_object(), NULL, err);
}

static int co_run_help(struct hmp *hmp, int argc, char **argv, struct error *err);

static const struct hmp_command own_commands[] = {
    {"cont", "c", 0, 0, "", "resume emulation", co_run_cont},
    {"help", "?", 0, 1, "[cmd]", "show the help", co_run_help},
    {"info", NULL, 0, HMP_WORDS_MAX, "[subcommand]", "show various information", hmp_co_info},
    {"qemu-io", NULL, 2, 3, "[-d] [device] \"[command]\"",
     "run a qemu-io command on a block device", hmp_co_qemu_io},
    {"quit", "q", 0, 0, "", "quit the emulator", co_run_quit},
    {"stop", "s", 0, 0, "", "stop emulation", co_run_stop},
    {"system_reset", NULL, 0, 0, "", "reset the system", co_run_reset},
    {0},
};

static const struct hmp_command *const tables[] = {own_commands, hmp_disk_commands,
                                                   hmp_server_commands};

static const struct hmp_command *find_hmp_command(const char *name)
{
    for (size_t t = 0; t < ARRAY_SIZE(tables); t++) {
        for (const struct hmp_command *c = tables[t]; c->name; c++) {
            if (strcmp(c->name, name) == 0 || (c->alias && strcmp(c->alias, name) == 0)) {
                return c;
            }
        }
    }
    return NULL;
}

static void print_help_line(struct hmp *hmp, const struct hmp_command *c)
{
    hmp_printf(hmp, "%s%s%s %s -- %s\n", c->name, c->alias ? "|" : "", c->alias ?: "", c->arguments,
               c->about);
}

static int co_run_help(struct hmp *hmp, int argc, char **argv, struct error *err)
{
    const struct hmp_command *only = argc > 0 ? find_hmp_command(argv[0]) : NULL;

    if (argc > 0 && !only) {
        hmp_printf(hmp, "unknown command: '%s'\n", argv[0]);
    }
    for (size_t t = 0; t < ARRAY_SIZE(tables); t++) {
        for (const struct hmp_command *c = tables[t]; c->name; c++) {
            if (argc == 0 || c == only) {
                print_help_line(hmp, c);
            }
        }
    }
    return 0;
}

static int co_run_hmp_words(struct hmp *hmp, char *line, struct error *err)
{
    char *argv[HMP_WORDS_MAX + 1], *name = next_word(&line, err), *word;
    const struct hmp_command *c;
    int argc = 0;

    if (!name) {
        return 0;
    }
    c = find_hmp_command(name);
    if (!c) {
        hmp_printf(hmp, "unknown command: '%s'\n", name);
        return 0;
    }
    while (!error_is_set(err) && argc < HMP_WORDS_MAX && (word = next_word(&line, err))) {
        argv[argc++] = word;
    }
    if (error_is_set(err) || argc < c->min_args || argc > c->max_args) {
        hmp_printf(hmp,
                   argc > c->max_args ? "%s: extraneous characters at the end of line\n"
                                      : "%s: string expected\n",
                   name);
        hmp_printf(hmp, "Try \"help %s\" for more information\n", name);
        error_clear(err);
        return 0;
    }
    return c->co_run(hmp, argc, argv, err);
}

void hmp_co_run(struct hmp *hmp, const char *line)
{
    AUTO_FREE char *copy = strdup(line);
    ERROR_AUTO(err);

    if (copy && co_run_hmp_words(hmp, copy, &err) < 0 && error_is_set(&err)) {
        hmp_printf(hmp, "%s%s\n", hmp->plain_error ? "" : "Error: ", error_message(&err));
        if (err.hint) {
            hmp_printf(hmp, "%s\n", err.hint);
        }
    }
}

/* --- by QMP ----------------------------------------------------------------------------------- */

int machine_co_human_monitor_command(struct qmp_call *call, struct json_object *args,
                                     struct json_object **ret_value, struct error *err)
{
    struct hmp hmp = {0};

    hmp_co_run(&hmp, qmp_get_str(args, "command-line"));
    *ret_value = json_object_new_string(strbuf_str(&hmp.out));
    strbuf_clear(&hmp.out);
    call->quit_after_reply = hmp.quit;
    return 0;
}

/* --- on a socket ------------------------------------------------------------------------------ */

static void (*quit_fn)(void);

static void co_send_text(struct machine_lines *lines, const char *text)
{
    machine_lines_co_send(lines, text, strlen(text));
}

/* A terminal would show what is typed; scripts expect that, too. */
static void co_hmp_line(struct machine_lines *lines, const char *line)
{
    struct hmp hmp = {0};
    ERROR_AUTO(err);
    bool takes_commands = qmp_co_lock_command(&err) >= 0;

    if (takes_commands) {
        co_send_text(lines, line);
        co_send_text(lines, "\r\n");
        hmp_co_run(&hmp, line);
    }
    block_control_unlock();
    if (!takes_commands) {
        return;
    }
    machine_lines_co_send(lines, strbuf_str(&hmp.out), hmp.out.len);
    strbuf_clear(&hmp.out);
    if (hmp.quit) {
        quit_fn();
    } else {
        co_send_text(lines, PROMPT);
    }
}

/* A conversation that has no prompt yet, as the machine is being made. */
struct unprompted {
    struct list link;
    int fd; /* a duplicate */
};

static struct list unprompted = LIST_INIT(unprompted);
static bool is_made;

/* A new socket has room for what is sent first. */
static void send_first(int fd, const char *text)
{
    (void)!send(fd, text, strlen(text), MSG_NOSIGNAL | MSG_DONTWAIT);
}

void hmp_prompt(void)
{
    is_made = true;
    while (!list_is_empty(&unprompted)) {
        struct unprompted *first = LIST_FIRST(&unprompted, struct unprompted, link);

        list_remove(&first->link);
        send_first(first->fd, PROMPT);
        close(first->fd);
        free(first);
    }
}

static int prompt_later(int fd, struct error *err)
{
    struct unprompted *u = malloc(sizeof(*u));

    if (!u) {
        return error_out_of_memory(err);
    }
    u->fd = fcntl(fd, F_DUPFD_CLOEXEC, 0);
    if (u->fd < 0) {
        int r = error_set_errno(err, errno, "Could not duplicate the socket of a monitor");

        free(u);
        return r;
    }
    list_append(&unprompted, &u->link);
    return 0;
}

/* The greeting stands before what the rest of the start prints, the prompt after that. */
static int greet(int fd, struct error *err)
{
    char text[128];

    snprintf(text, sizeof(text), "QEMU %d.%d.%d monitor - type 'help' for more information\r\n",
             QMP_QEMU_MAJOR, QMP_QEMU_MINOR, QMP_QEMU_MICRO);
    send_first(fd, text);
    if (!is_made) {
        return prompt_later(fd, err);
    }
    send_first(fd, PROMPT);
    return 0;
}

int hmp_start(int fd, struct chardev *chardev, void (*on_quit)(void), struct error *err)
{
    static const struct machine_lines_ops ops = {co_hmp_line};

    int r = greet(fd, err);

    quit_fn = on_quit;
    if (r < 0) {
        close(fd);
        return r;
    }
    return machine_lines_start(fd, &ops, chardev, err);
}
