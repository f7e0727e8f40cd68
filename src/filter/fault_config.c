/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Files of fault rules:
 *
 *     # a comment
 *     [inject-error]
 *     event = "read_aio"
 *     errno = "5"
 *
 * A group begins with its name in brackets; an id in quotes may follow the name, and has no effect.
 * Values stand in double quotes, and can't contain one.
 */
#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "filter/fault.h"
#include "loop/loop.h"

#define LINE_MAX_LENGTH 1024
#define NAME_MAX_LENGTH 63

struct config_parser {
    const char *filename;
    unsigned line;
    char group[NAME_MAX_LENGTH + 1];
    struct options *opts; /* of the current group; NULL before the first */
};

static void cleanup_file(FILE **f)
{
    if (*f) {
        fclose(*f);
    }
}

/* Remove white space at both ends. */
static char *trim(char *text)
{
    size_t length;

    while (isspace((unsigned char)*text)) {
        text++;
    }
    length = strlen(text);
    while (length > 0 && isspace((unsigned char)text[length - 1])) {
        text[--length] = '\0';
    }
    return text;
}

static int config_syntax_error(const struct config_parser *p, const char *what, struct error *err)
{
    return error_set(err, EINVAL, "%s:%u: %s", p->filename, p->line, what);
}

static int finish_group(struct config_parser *p, struct fault_rules *rules, struct error *err)
{
    int r = 0;

    if (p->opts) {
        r = fault_rules_add(rules, p->group, p->opts, err);
        if (r < 0) {
            error_prepend(err, "%s:%u: ", p->filename, p->line);
        }
        options_free(p->opts);
        p->opts = NULL;
    }
    return r;
}

static int begin_group(struct config_parser *p, char *text, struct error *err)
{
    size_t length = strlen(text), name_length;

    if (text[length - 1] != ']') {
        return config_syntax_error(p, "']' expected at the end of a group's name", err);
    }
    text[length - 1] = '\0';
    text = trim(text + 1);
    name_length = strcspn(text, " \t\"");
    if (name_length == 0 || name_length > NAME_MAX_LENGTH) {
        return config_syntax_error(p, "a group's name expected after '['", err);
    }
    memcpy(p->group, text, name_length);
    p->group[name_length] = '\0';
    if (strcmp(p->group, "inject-error") != 0 && strcmp(p->group, "set-state") != 0) {
        return error_set(err, EINVAL, "%s:%u: there is no group '%s', only inject-error, set-state",
                         p->filename, p->line, p->group);
    }
    p->opts = options_new();
    return p->opts ? 0 : error_out_of_memory(err);
}

static int add_rule_value(struct config_parser *p, char *text, struct error *err)
{
    char *equals = strchr(text, '='), *key, *value, *quote;

    if (!equals) {
        return config_syntax_error(p, "'key = \"value\"' expected", err);
    }
    if (!p->opts) {
        return config_syntax_error(p, "no group defined", err);
    }
    *equals = '\0';
    key = trim(text);
    value = trim(equals + 1);
    quote = *value == '"' ? strchr(value + 1, '"') : NULL;
    if (!*key || !quote || quote[1] != '\0') {
        return config_syntax_error(p, "'key = \"value\"' expected", err);
    }
    *quote = '\0';
    options_set_str(p->opts, key, value + 1);
    return 0;
}

static int parse_line(struct config_parser *p, char *text, struct fault_rules *rules,
                      struct error *err)
{
    text = trim(text);
    if (*text == '\0' || *text == '#') {
        return 0;
    }
    if (*text == '[') {
        int r = finish_group(p, rules, err);
        if (r < 0) {
            return r;
        }
        return begin_group(p, text, err);
    }
    return add_rule_value(p, text, err);
}

static int load_rules(struct fault_rules *rules, const char *filename, struct error *err)
{
    struct config_parser p = {.filename = filename};
    FILE *file CLEANUP(cleanup_file) = fopen(filename, "re");
    char line[LINE_MAX_LENGTH];
    int r = 0;

    if (!file) {
        return error_set_errno(err, errno, "Could not read blkdebug config file '%s'", filename);
    }
    while (r == 0 && fgets(line, sizeof(line), file)) {
        p.line++;
        if (!strchr(line, '\n') && !feof(file)) {
            r = config_syntax_error(&p, "line is too long", err);
            break;
        }
        r = parse_line(&p, line, rules, err);
    }
    if (r == 0 && ferror(file)) {
        r = error_set(err, EIO, "Could not read blkdebug config file '%s'", filename);
    }
    if (r == 0) {
        r = finish_group(&p, rules, err);
    }
    options_free(p.opts);
    return r;
}

struct load_call {
    struct fault_rules *rules;
    const char *filename;
    struct error *err;
};

static int run_load(void *arg)
{
    const struct load_call *c = arg;

    return load_rules(c->rules, c->filename, c->err);
}

int fault_rules_co_load(struct fault_rules *rules, const char *filename, struct error *err)
{
    struct load_call c = {rules, filename, err};

    return loop_co_brief(run_load, &c);
}
