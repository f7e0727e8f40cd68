/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/observe.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/log.h"
#include "block/options.h"
#include "cli/cli.h"
#include "trace/trace.h"

static bool trace_asks_for_help(const char *text)
{
    return strcmp(text, "help") == 0 || strcmp(text, "?") == 0;
}

static void print_events(void)
{
    for (const struct trace_event *e = NULL; (e = trace_next_event("*", e));) {
        printf("%s\n", trace_event_name(e));
    }
}

static void apply_pattern(const char *pattern)
{
    if (!trace_apply(pattern)) {
        cli_warn("trace event '%s' does not exist", pattern + (pattern[0] == '-'));
    }
}

/* A pattern a line. Empty lines, and those that begin with '#', are skipped. */
static int apply_file(const char *path, struct error *err)
{
    FILE *file = fopen(path, "re");
    AUTO_FREE char *line = NULL;
    size_t room = 0;
    int r = 0;

    if (!file) {
        return error_set_errno(err, errno, "Could not open '%s'", path);
    }
    while (getline(&line, &room, file) >= 0) {
        line[strcspn(line, "\n")] = '\0';
        if (line[0] && line[0] != '#') {
            apply_pattern(line);
        }
    }
    if (ferror(file)) {
        r = error_set_errno(err, errno, "Could not read '%s'", path);
    }
    fclose(file);
    return r;
}

/* One --trace. 1: help was asked for and printed. */
static int apply_trace(const char *value, struct error *err)
{
    AUTO_FREE char *enable = NULL, *events = NULL, *file = NULL;
    struct options AUTO_OPTIONS *opts = NULL;
    int r = options_parse(value, "enable", &opts, err);

    if (r < 0 || (r = options_take_str(opts, "enable", &enable, err)) < 0 ||
        (r = options_take_str(opts, "events", &events, err)) < 0 ||
        (r = options_take_str(opts, "file", &file, err)) < 0 ||
        (r = options_check_empty(opts, "--trace", err)) < 0) {
        return r;
    }
    if (enable && trace_asks_for_help(enable)) {
        print_events();
        return 1;
    }
    if (file && (r = trace_open_file(file, err)) < 0) {
        return r;
    }
    if (enable) {
        apply_pattern(enable);
    }
    return events ? apply_file(events, err) : 0;
}

static int apply_log_level(const struct cli_observe *o, struct error *err)
{
    enum log_level level = LOG_LEVEL_WARNING;

    if (o->log_level && !log_level_parse(o->log_level, &level)) {
        return error_set(err, EINVAL,
                         "Invalid log level '%s': must be error, warning, notice, info or debug",
                         o->log_level);
    }
    if (o->verbose && level < LOG_LEVEL_NOTICE) {
        level = LOG_LEVEL_NOTICE;
    }
    log_set_level(level);
    return 0;
}

/*
 * How many words `option` and its value take at argv[1]: the value is the next word, or follows
 * `mark`. 0: not there.
 */
static int find_option(const char *option, const char *mark, int argc, char **argv,
                       const char **ret_value)
{
    size_t length = strlen(option), mark_length = strlen(mark);
    const char *rest = argv[1] + length;

    if (strncmp(argv[1], option, length) != 0) {
        return 0;
    }
    if (*rest && strncmp(rest, mark, mark_length) == 0) {
        *ret_value = rest + mark_length;
        return 1;
    }
    if (!*rest && argc > 2) {
        *ret_value = argv[2];
        return 2;
    }
    return 0;
}

int cli_observe_take(struct cli_observe *o, int argc, char **argv)
{
    const char *value;
    int words = find_option("--log-level", "=", argc, argv, &value);

    if (words > 0) {
        o->log_level = value;
        return words;
    }
    words = find_option("--trace", "=", argc, argv, &value);
    if (words == 0) {
        words = find_option("-T", "", argc, argv, &value);
    }
    return words > 0 && cli_items_append(&o->traces, "trace", value) ? words : 0;
}

bool cli_observe(struct cli_observe *o, int *ret_status)
{
    ERROR_AUTO(err);
    int r = apply_log_level(o, &err);

    for (size_t i = 0; i < o->traces.count && r == 0; i++) {
        r = apply_trace(o->traces.item[i].value, &err);
    }
    if (r != 0) {
        *ret_status = r > 0 ? 0 : cli_report(&err);
    }
    return r == 0;
}

void cli_observe_server(void)
{
    log_set_server(true);
    trace_crash_init();
}
