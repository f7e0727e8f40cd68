/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/cli.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "base/log.h"
#include "block/user_object.h"
#include "cli/args.h"
#include "base/size.h"
#include "loop/loop.h"

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
        const char *word = strcmp(program, "qemu-nbd") == 0 ? "" : "version ";

        printf("%s %s" QEMU_VERSION " (Tidemark " TIDEMARK_VERSION ")\n", program, word);
    } else {
        printf("tidemark " TIDEMARK_VERSION "\n");
    }
}

void cli_end_signals(sigset_t *ret)
{
    static const int ends[] = {SIGTERM, SIGINT, SIGHUP};
    sigset_t blocked;

    sigemptyset(ret);
    sigemptyset(&blocked);
    (void)pthread_sigmask(SIG_BLOCK, NULL, &blocked);
    for (size_t i = 0; i < sizeof(ends) / sizeof(ends[0]); i++) {
        if (!sigismember(&blocked, ends[i])) {
            sigaddset(ret, ends[i]);
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

void cli_warn(const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    fflush(stdout);
    log_vprint(LOG_LEVEL_WARNING, fmt, ap);
    va_end(ap);
}

static int out_of_range(const char *name, uint64_t min, uint64_t max)
{
    if (max < INT64_MAX || min > 0) {
        cli_fail("Invalid %s specified. Must be between %" PRIu64 " and %" PRIu64 ".", name, min,
                 max);
    } else {
        cli_fail("Invalid %s specified. Must be between 0 and %" PRId64 ".", name, INT64_MAX);
    }
    return -ERANGE;
}

static bool is_negative_number(const char *text)
{
    return text[0] == '-' && text[1] && text[strspn(text + 1, "0123456789") + 1] == '\0';
}

int cli_size(const char *text, uint64_t *ret)
{
    const char *dot = strchr(text, '.');
    const char *end = dot ? dot + 1 + strspn(dot + 1, "0") : text;
    char whole[32];

    /* A fraction of nothing: size_parse() has fractions of larger units only. */
    if (dot && end > dot + 1 && (*end == '\0' || strcasecmp(end, "b") == 0) &&
        (size_t)(dot - text) < sizeof(whole)) {
        snprintf(whole, sizeof(whole), "%.*s", (int)(dot - text), text);
        text = whole;
    }
    return size_parse(text, "size", ret, NULL);
}

int cli_parse_size(const char *text, const char *name, uint64_t min, uint64_t max, uint64_t *ret)
{
    uint64_t value;
    int rc = cli_size(text, &value);

    if (rc == -ERANGE || is_negative_number(text) || (rc == 0 && (value < min || value > max))) {
        return out_of_range(name, min, max);
    }
    if (rc < 0) {
        cli_fail("Invalid %s specified: '%s'.", name, text);
        return -EINVAL;
    }
    *ret = value;
    return 0;
}

int cli_parse_number(const char *text, const char *name, uint64_t min, uint64_t max, uint64_t *ret)
{
    char *end;
    uint64_t value;

    errno = 0;
    value = strtoull(text, &end, 0);
    if (end == text || *end) {
        cli_fail("Invalid %s specified: '%s'.", name, text);
        return -EINVAL;
    }
    if (errno || is_negative_number(text) || value < min || value > max) {
        return out_of_range(name, min, max);
    }
    *ret = value;
    return 0;
}

int cli_add_objects(const struct cli_items *objects)
{
    for (size_t i = 0; i < objects->count; i++) {
        struct options *opts;
        ERROR_AUTO(err);
        int rc = options_parse(objects->item[i].value, "qom-type", &opts, &err);

        if (rc == 0) {
            rc = user_object_add(opts, &err);
        }
        if (rc < 0) {
            return cli_report(&err);
        }
    }
    return 0;
}

struct run {
    int (*co_main)(int argc, char **argv);
    int argc;
    char **argv;
    int status;
};

static void run_entry(void *arg)
{
    struct run *r = arg;

    r->status = r->co_main(r->argc, r->argv);
}

int cli_run(int (*co_main)(int argc, char **argv), int argc, char **argv)
{
    ERROR_AUTO(err);
    struct run r = {.co_main = co_main, .argc = argc, .argv = argv, .status = 1};
    int rc;

    if (reactor_init_main(&err) < 0) {
        return cli_report(&err);
    }
    cli_register_drivers();
    rc = reactor_run_until_done(run_entry, &r);
    if (rc < 0) {
        r.status = cli_fail("Could not start: %s", strerror(-rc));
    }
    user_objects_release();
    reactor_exit_main();
    if (fflush(stdout) != 0 || ferror(stdout)) {
        r.status = r.status ? r.status : cli_fail("Could not write to standard output");
    }
    return r.status;
}
