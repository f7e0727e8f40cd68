/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/cli.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/checked.h"
#include "base/log.h"
#include "base/size.h"
#include "block/block.h"
#include "block/user_object.h"
#include "blockmap/other_files.h"
#include "cli/args.h"
#include "cli/object_help.h"
#include "export/nbd_server.h"
#include "loop/loop.h"
#include "qcow2/qcow2.h"
#include "qmp/commands.h"
#include "schema/schema.h"
#include "ssh/tunnel.h"

/* The release of QEMU whose tools' grammar and output these faces follow. */
#define QEMU_VERSION "10.0.50"

static const char *program = "tidemark";
static bool compat;

const char *cli_program(void)
{
    return program;
}

bool cli_is_compat(void)
{
    return compat;
}

void cli_set_program(const char *name, bool is_compat)
{
    program = name;
    compat = is_compat;
    log_set_program(name);
}

void cli_print_version(void)
{
    if (compat) {
        /* Programs parse these lines, and QEMU's are not alike. */
        bool emulator = strncmp(program, "qemu-system-", strlen("qemu-system-")) == 0;
        const char *word = strcmp(program, "qemu-nbd") == 0 ? "" : "version ";

        printf("%s %s" QEMU_VERSION " (Tidemark " TIDEMARK_VERSION ")\n",
               emulator ? "QEMU emulator" : program, word);
    } else {
        printf("tidemark " TIDEMARK_VERSION "\n");
    }
}

void cli_end_signals(sigset_t *ret_set)
{
    static const int ends[] = {SIGTERM, SIGINT, SIGHUP};
    sigset_t blocked;

    sigemptyset(ret_set);
    sigemptyset(&blocked);
    (void)pthread_sigmask(SIG_BLOCK, NULL, &blocked);
    for (size_t i = 0; i < ARRAY_SIZE(ends); i++) {
        if (!sigismember(&blocked, ends[i])) {
            sigaddset(ret_set, ends[i]);
        }
    }
}

int cli_fail(const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    fflush(stdout);
    log_vprint(LOG_LEVEL_ERROR, fmt, ap);
    va_end(ap);
    return 1;
}

int cli_report(struct error *err)
{
    cli_fail("%s", error_message(err));
    if (err->hint) {
        fprintf(stderr, "%s\n", err->hint);
    }
    error_clear(err);
    return 1;
}

int cli_exit_status(int result, struct error *err)
{
    if (result == CLI_ARGS_HELP) {
        return 0;
    }
    if (error_is_set(err)) {
        cli_report(err);
    } else if (result < 0 && result != CLI_ARGS_BAD) {
        cli_fail("%s", strerror(-result));
    }
    return result < 0 ? 1 : result;
}

void cli_warn(const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    fflush(stdout);
    log_vprint(LOG_LEVEL_WARNING, fmt, ap);
    va_end(ap);
}

static int number_out_of_range(const char *name, uint64_t min, uint64_t max, struct error *err)
{
    if (max < INT64_MAX || min > 0) {
        return error_set(err, ERANGE,
                         "Invalid %s specified. Must be between %" PRIu64 " and %" PRIu64 ".", name,
                         min, max);
    }
    return error_set(err, ERANGE, "Invalid %s specified. Must be between 0 and %" PRId64 ".", name,
                     INT64_MAX);
}

static bool is_negative_number(const char *text)
{
    return text[0] == '-' && text[1] && text[strspn(text + 1, "0123456789") + 1] == '\0';
}

int cli_size(const char *text, uint64_t *ret_bytes)
{
    return size_parse(text, "size", ret_bytes, NULL);
}

int cli_parse_size(const char *text, const char *name, uint64_t min, uint64_t max,
                   uint64_t *ret_bytes, struct error *err)
{
    uint64_t value;
    int r = cli_size(text, &value);

    if (r == -ERANGE || is_negative_number(text) || (r == 0 && (value < min || value > max))) {
        return number_out_of_range(name, min, max, err);
    }
    if (r < 0) {
        return error_set(err, EINVAL, "Invalid %s specified: '%s'.", name, text);
    }
    *ret_bytes = value;
    return 0;
}

int cli_take_size(const char *text, const char *name, uint64_t min, uint64_t max,
                  uint64_t *ret_bytes, struct error *err)
{
    return text ? cli_parse_size(text, name, min, max, ret_bytes, err) : 0;
}

int cli_parse_number(const char *text, const char *name, uint64_t min, uint64_t max,
                     uint64_t *ret_value, struct error *err)
{
    char *end;
    uint64_t value;

    errno = 0;
    value = strtoull(text, &end, 0);
    if (end == text || *end) {
        return error_set(err, EINVAL, "Invalid %s specified: '%s'.", name, text);
    }
    if (errno || is_negative_number(text) || value < min || value > max) {
        return number_out_of_range(name, min, max, err);
    }
    *ret_value = value;
    return 0;
}

int cli_take_number(const char *text, const char *name, uint64_t min, uint64_t max,
                    uint64_t *ret_value, struct error *err)
{
    return text ? cli_parse_number(text, name, min, max, ret_value, err) : 0;
}

int cli_parse_output(const char *text, bool *ret_json, struct error *err)
{
    if (text && strcmp(text, "json") != 0 && strcmp(text, "human") != 0) {
        return error_set(err, EINVAL, "--output expects 'human' or 'json' not '%s'", text);
    }
    *ret_json = text && strcmp(text, "json") == 0;
    return 0;
}

int cli_add_objects(const struct cli_items *objects, struct error *err)
{
    for (size_t i = 0; i < objects->count; i++) {
        const char *value = objects->item[i].value;
        struct options *opts;
        int r;

        if (cli_asks_for_help(value)) {
            cli_print_object_help(value);
            return CLI_ARGS_HELP;
        }
        r = options_parse_strict(value, "qom-type", &opts, err);
        UNLESS_FAILED(r, user_object_add(opts, err));
        cli_hide_secret(objects->item[i].value);
        if (r < 0) {
            return r;
        }
    }
    return 0;
}

/* Up to a comma that is not doubled. */
static size_t keyval_length(const char *value)
{
    size_t n = 0;

    while (value[n] && (value[n] != ',' || value[n + 1] == ',')) {
        n += value[n] == ',' ? 2 : 1;
    }
    return n;
}

void cli_raise_file_limit(void)
{
    struct rlimit limit;

    if (getrlimit(RLIMIT_NOFILE, &limit) == 0 && limit.rlim_cur < limit.rlim_max) {
        limit.rlim_cur = limit.rlim_max;
        setrlimit(RLIMIT_NOFILE, &limit);
    }
}

void cli_hide_secret(const char *object)
{
    static const char key[] = "data=";
    char *at = (char *)(uintptr_t)object;

    if (object[0] == '{') {
        if (strstr(object, "data")) {
            memset(at + 1, 'x', strlen(at + 1));
        }
        return;
    }
    while ((at = strstr(at, key))) {
        at += strlen(key);
        memset(at, 'x', keyval_length(at));
    }
}

struct cli_run_state {
    int (*co_main)(void *arg, struct error *err);
    void *arg;
    int status;
};

static void co_run_main(void *arg)
{
    struct cli_run_state *run = arg;
    ERROR_AUTO(err);
    int result = run->co_main(run->arg, &err);

    run->status = cli_exit_status(result, &err);
}

/* Programs that are called by the names of QEMU's do by default what those do. */
static void choose_defaults(void)
{
    bool as_qemu = cli_is_compat();

    export_nbd_offer_merged(!as_qemu);
    qmp_show_own_members(!as_qemu);
    schema_take_plain_bytes(as_qemu);
    block_use_qemu_names(as_qemu);
    other_files_set_default(as_qemu ? OTHER_FILES_DIRECTORY : OTHER_FILES_NONE);
    if (as_qemu) {
        qcow2_durable_bitmaps_off_by_default();
    }
}

/*
 * Whether lost output is an error. Under QEMU's names a reader that has gone ("| grep -q"), or a
 * standard output that was closed, is none: scripts check the status of every program of a pipe.
 * A closed one is open for reading only by now.
 */
static bool output_counts(void)
{
    int flags = fcntl(STDOUT_FILENO, F_GETFL);
    struct stat st;

    if (!compat) {
        return true;
    }
    return flags >= 0 && (flags & O_ACCMODE) != O_RDONLY && fstat(STDOUT_FILENO, &st) == 0 &&
           !S_ISFIFO(st.st_mode) && !S_ISSOCK(st.st_mode);
}

int cli_end_output(int status)
{
    if ((fflush(stdout) != 0 || ferror(stdout)) && output_counts()) {
        return status ? status : cli_fail("Could not write to standard output");
    }
    return status;
}

int cli_run_with(int (*co_main)(void *arg, struct error *err), void *arg)
{
    ERROR_AUTO(err);
    struct cli_run_state run = {.co_main = co_main, .arg = arg, .status = 1};
    int r;

    if (reactor_init_main(&err) < 0) {
        return cli_report(&err);
    }
    cli_register_drivers();
    choose_defaults();
    r = reactor_run_until_done(co_run_main, &run);
    if (r < 0) {
        run.status = cli_fail("Could not start: %s", strerror(-r));
    }
    user_objects_release();
    reactor_exit_main();
    ssh_tunnels_end();
    return cli_end_output(run.status);
}

struct cli_words {
    int (*co_main)(int argc, char **argv, struct error *err);
    int argc;
    char **argv;
};

static int co_run_command_line(void *arg, struct error *err)
{
    struct cli_words *words = arg;

    return words->co_main(words->argc, words->argv, err);
}

int cli_run(int (*co_main)(int argc, char **argv, struct error *err), int argc, char **argv)
{
    struct cli_words words = {.co_main = co_main, .argc = argc, .argv = argv};

    return cli_run_with(co_run_command_line, &words);
}
