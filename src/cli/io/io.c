/* SPDX-License-Identifier: Apache-2.0 */
/* `tidemark io`: the command line, the prompt, and running one line. */
#include "cli/io/io.h"

#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "cli/args.h"
#include "cli/img/img.h"
#include "cli/observe.h"
#include "loop/loop.h"

#define WORDS_MAX 1100 /* a readv of 1,024 parts, and its options */

static const struct io_command *const tables[] = {
    io_rw_commands, io_aio_commands, io_break_commands, io_image_commands, io_misc_commands,
};

static const struct cli_usage usage = {
    .synopsis = "[FILENAME]",
    .about = "Reads and writes one image by commands, from -c options or from standard input. The "
             "exit status is 1\n"
             "if a command failed. '-c help' lists the commands.",
    .examples = "  -f raw -c 'write -P 7 0 64k' -c 'read -P 7 0 64k' disk.raw\n"
                "  -r -f qcow2 -c map disk.qcow2",
};

const struct io_command *io_find_command(const char *name)
{
    for (size_t t = 0; t < ARRAY_SIZE(tables); t++) {
        for (const struct io_command *c = tables[t]; c->name; c++) {
            if (strcmp(c->name, name) == 0 || (c->alias && strcmp(c->alias, name) == 0)) {
                return c;
            }
        }
    }
    return NULL;
}

void io_for_each_command(void (*fn)(const struct io_command *command))
{
    const struct io_command *next[ARRAY_SIZE(tables)];

    /* The tables are in order; take the least of their heads, until all are at their ends. */
    for (size_t t = 0; t < ARRAY_SIZE(tables); t++) {
        next[t] = tables[t];
    }
    for (;;) {
        size_t least = ARRAY_SIZE(tables);

        for (size_t t = 0; t < ARRAY_SIZE(tables); t++) {
            if (next[t]->name &&
                (least == ARRAY_SIZE(tables) || strcmp(next[t]->name, next[least]->name) < 0)) {
                least = t;
            }
        }
        if (least == ARRAY_SIZE(tables)) {
            return;
        }
        fn(next[least]++);
    }
}

/* --- one line ---------------------------------------------------------------------------------------- */

static bool check_argument_count(const struct io_command *c, int given)
{
    if (given >= c->min_args && (c->max_args < 0 || given <= c->max_args)) {
        return true;
    }
    fflush(stdout);
    fprintf(stderr, "bad argument count %d to %s, expected ", given, c->name);
    if (c->max_args < 0) {
        fprintf(stderr, "at least %d arguments\n", c->min_args);
    } else if (c->min_args == c->max_args) {
        fprintf(stderr, "%d arguments\n", c->min_args);
    } else {
        fprintf(stderr, "between %d and %d arguments\n", c->min_args, c->max_args);
    }
    return false;
}

static bool check_image(struct io *io, const struct io_command *c)
{
    if ((c->needs & IO_NEEDS_IMAGE) && !io->disk.node) {
        fflush(stdout);
        fprintf(stderr, "no file open, try 'help open'\n");
        return false;
    }
    if ((c->needs & IO_NEEDS_WRITE) && block_node_is_read_only(io->disk.node)) {
        cli_fail("Block node is read-only");
        return false;
    }
    return true;
}

/* Take the options out of argv; what is no option is moved to its end. */
static int parse_options(const struct io_command *c, int argc, char **argv, struct io_args *ret)
{
    int letter;

    optind = 0;
    opterr = 1;
    fflush(stdout); /* getopt prints to standard error */
    while (c->letters && (letter = getopt(argc, argv, c->letters)) != -1) {
        if (letter == '?') {
            return io_usage(c);
        }
        ret->set[letter] = true;
        ret->value[letter] = optarg;
    }
    ret->argc = c->letters ? argc - optind : argc - 1;
    ret->argv = argv + argc - ret->argc;
    return 0;
}

static int co_run_words(struct io *io, int argc, char **argv)
{
    const struct io_command *c = io_find_command(argv[0]);
    struct io_args args = {.argc = 0};
    int rc;

    if (!c) {
        fflush(stdout);
        fprintf(stderr, "command \"%s\" not found\n", argv[0]);
        return -EINVAL;
    }
    if (!check_argument_count(c, argc - 1) || !check_image(io, c)) {
        return -EINVAL;
    }
    rc = parse_options(c, argc, argv, &args);
    return rc < 0 ? rc : c->co_run(io, c, &args);
}

void io_co_run_line(struct io *io, const char *line)
{
    AUTO_FREE char *text = strdup(line);
    AUTO_FREE char **words = calloc(WORDS_MAX + 1, sizeof(*words));
    char *cursor = text;
    char *word;
    int n = 0;

    if (!text || !words) {
        io->failed = true;
        cli_fail("Out of memory");
        return;
    }
    while ((word = strsep(&cursor, " \t\n")) != NULL) {
        if (*word && n == WORDS_MAX) {
            io->failed = true;
            cli_fail("a command has at most %d arguments", WORDS_MAX);
            return;
        }
        if (*word) {
            words[n++] = word;
        }
    }
    if (n > 0 && co_run_words(io, n, words) < 0) {
        io->failed = true;
    }
}

/* --- the prompt ----------------------------------------------------------------------------------------- */

struct input_line {
    char *text;
    size_t room;
    bool ended;
};

static int read_line(void *arg)
{
    struct input_line *line = arg;

    line->ended = getline(&line->text, &line->room, stdin) < 0;
    return 0;
}

static void co_run_input(struct io *io)
{
    struct input_line line = {0};

    while (!io->quit) {
        fputs(cli_is_compat() ? "qemu-io> " : "io> ", stdout);
        fflush(stdout);
        /* On a thread of its own, so that aio requests go on meanwhile. */
        loop_co_offload(read_line, &line);
        if (line.ended) {
            break;
        }
        io_co_run_line(io, line.text);
    }
    free(line.text);
}

/* --- the command line ------------------------------------------------------------------------------------ */

struct command_line {
    struct cli_items commands, objects;
    const char *format, *cache, *discard, *aio;
    struct cli_observe observe;
    bool image_opts, read_only, snapshot, no_cache, copy_on_read, misalign, native_aio;
    bool force_share, version;
};

static int check_command_line(const struct command_line *l)
{
    if (cli_check_cache_mode(l->cache, "cache") < 0 || cli_check_aio_mode(l->aio) < 0 ||
        cli_add_objects(&l->objects)) {
        return 1;
    }
    if (l->discard && strcmp(l->discard, "unmap") != 0 && strcmp(l->discard, "on") != 0 &&
        strcmp(l->discard, "ignore") != 0 && strcmp(l->discard, "off") != 0) {
        return cli_fail("Invalid discard option: %s", l->discard);
    }
    if (l->format && l->image_opts) {
        return cli_fail("--image-opts and -f are mutually exclusive");
    }
    return 0;
}

static int co_run_all(struct command_line *l, const char *filename)
{
    struct io io = {.misalign = l->misalign};

    co_group_init(&io.in_flight);
    if (filename) {
        io.opening = (struct io_opening){
            .name = strdup(filename),
            .format = l->format ? strdup(l->format) : NULL,
            .cache = l->no_cache ? strdup("none") : strdup(l->cache ?: IO_CACHE_DEFAULT),
            .discard = l->discard ? strdup(l->discard) : NULL,
            .image_opts = l->image_opts,
            .read_only = l->read_only,
            .force_share = l->force_share,
            .overlay = l->snapshot,
            .copy_on_read = l->copy_on_read,
            .native_aio = l->native_aio || (l->aio && strcmp(l->aio, "native") == 0),
        };
        if (io_co_open(&io) < 0) {
            io_opening_clear(&io.opening);
            return 1;
        }
    }
    for (size_t i = 0; i < l->commands.count && !io.quit; i++) {
        io_co_run_line(&io, l->commands.item[i].value);
    }
    if (l->commands.count == 0) {
        co_run_input(&io);
    }
    if (io.disk.node && io_co_close(&io) < 0) {
        io.failed = true;
    }
    io_opening_clear(&io.opening);
    co_group_destroy(&io.in_flight);
    return io.failed ? 1 : 0;
}

static int co_io_main(int argc, char **argv)
{
    struct command_line l = {0};
    int status;
    const struct cli_arg args[] = {
        {"cmd", 'c', CLI_REPEAT, &l.commands, "COMMAND", "run this; may be given several times"},
        {"format", 'f', CLI_VALUE, &l.format, "FMT", "format of the image"},
        {"read-only", 'r', CLI_FLAG, &l.read_only, NULL, "open read-only"},
        {"snapshot", 's', CLI_FLAG, &l.snapshot, NULL, "write to a temporary overlay"},
        {"nocache", 'n', CLI_FLAG, &l.no_cache, NULL, "as -t none"},
        {"copy-on-read", 'C', CLI_FLAG, &l.copy_on_read, NULL,
         "copy from backing files what is read"},
        {"misalign", 'm', CLI_FLAG, &l.misalign, NULL, "use unaligned buffers"},
        {"native-aio", 'k', CLI_FLAG, &l.native_aio, NULL, "as -i native"},
        {"aio", 'i', CLI_VALUE, &l.aio, "MODE",
         "threads, native or io_uring: checked, and done as by default"},
        {"cache", 't', CLI_VALUE, &l.cache, "CACHE",
         "none, writeback, writethrough (default), directsync or unsafe"},
        {"discard", 'd', CLI_VALUE, &l.discard, "MODE", "unmap (default) or ignore"},
        CLI_OBSERVE_ARGS(l.observe),
        IMG_ARG_SHARE(l.force_share),
        IMG_ARG_IMAGE_OPTS(l.image_opts),
        IMG_ARG_OBJECT(l.objects),
        {"version", 'V', CLI_FLAG, &l.version, NULL, "show the version"},
        IMG_ARG_END,
    };
    int first = cli_args_parse(args, &usage, argc, argv);

    if (first < 0) {
        status = first == CLI_ARGS_HELP ? 0 : 1;
    } else if (l.version) {
        cli_print_version();
        status = 0;
    } else if (first < argc - 1) {
        status = cli_usage_fail(&usage, "Expecting one image file name");
    } else if (cli_observe(&l.observe, &status)) {
        status = check_command_line(&l) || co_run_all(&l, first < argc ? argv[first] : NULL);
    }
    cli_items_clear(&l.commands);
    cli_items_clear(&l.objects);
    cli_observe_clear(&l.observe);
    return status;
}

int cli_io_main(int argc, char **argv)
{
    return cli_run(co_io_main, argc, argv);
}
