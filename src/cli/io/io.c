/* SPDX-License-Identifier: Apache-2.0 */
/* The face `tidemark io`: the command line, the prompt, and running one line. */
#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "cli/args.h"
#include "cli/cli.h"
#include "cli/io/command.h"
#include "cli/io/util.h"
#include "cli/observe.h"
#include "loop/loop.h"

#define WORDS_MAX 1100 /* a readv of 1,024 parts, and its options */

static const struct cli_usage usage = {
    .synopsis = "[FILENAME]",
    .about = "Reads and writes one image by commands, from -c options or from standard input. The "
             "exit status is 1\n"
             "if a command failed. '-c help' lists the commands.",
    .examples = "@-f raw -c 'write -P 7 0 64k' -c 'read -P 7 0 64k' disk.raw\n"
                "@-r -f qcow2 -c map disk.qcow2",
};

/* --- one line --------------------------------------------------------------------------------- */

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

static int check_needs(struct io *io, const struct io_command *c, struct error *err)
{
    if ((c->needs & IO_NEEDS_IMAGE) && !io->disk.node) {
        fflush(stdout);
        fprintf(stderr, "no file open, try 'help open'\n");
        return -EINVAL;
    }
    if ((c->needs & IO_NEEDS_WRITE) && block_node_is_read_only(io->disk.node)) {
        return error_set(err, EINVAL, "Block node is read-only");
    }
    return 0;
}

/* Take the options out of argv; other arguments are moved to its end. */
static int parse_command_options(const struct io_command *c, int argc, char **argv,
                                 struct io_args *ret_args)
{
    unsigned given = 0;
    int letter;

    optind = 0;
    opterr = 1;
    fflush(stdout); /* getopt prints to standard error */
    while (c->letters && (letter = getopt(argc, argv, c->letters)) != -1) {
        if (letter == '?') {
            return io_usage(c);
        }
        ret_args->set[letter] = ++given;
        ret_args->value[letter] = optarg;
    }
    ret_args->argc = c->letters ? argc - optind : argc - 1;
    ret_args->argv = argv + argc - ret_args->argc;
    return 0;
}

static int co_run_words(struct io *io, int argc, char **argv, struct error *err)
{
    const struct io_command *c = io_find_command(argv[0]);
    struct io_args args = {.argc = 0};
    int r;

    if (!c) {
        fflush(stdout);
        fprintf(stderr, "command \"%s\" not found\n", argv[0]);
        return -EINVAL;
    }
    r = check_needs(io, c, err);
    if (r == 0 && !check_argument_count(c, argc - 1)) {
        return -EINVAL;
    }
    UNLESS_FAILED(r, parse_command_options(c, argc, argv, &args));
    return r < 0 ? r : c->co_run(io, c, &args, err);
}

int io_co_run_text(struct io *io, const char *line, struct error *err)
{
    AUTO_FREE char *text = strdup(line);
    AUTO_FREE char **words = calloc(WORDS_MAX + 1, sizeof(*words));
    char *cursor = text;
    char *word;
    int n = 0;

    if (!text || !words) {
        return error_out_of_memory(err);
    }
    while ((word = strsep(&cursor, " \t\n")) != NULL) {
        if (*word && n == WORDS_MAX) {
            return error_set(err, E2BIG, "a command has at most %d arguments", WORDS_MAX);
        }
        if (*word) {
            words[n++] = word;
        }
    }
    return n > 0 ? co_run_words(io, n, words, err) : 0;
}

/* Run one line and print its error: the edge of a command. */
static void co_run_line(struct io *io, const char *line)
{
    ERROR_AUTO(err);

    if (io_co_run_text(io, line, &err) < 0) {
        io->failed = true;
        if (error_is_set(&err)) {
            cli_report(&err);
        }
    }
}

/* --- the prompt ------------------------------------------------------------------------------- */

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
        /* In a thread of its own, so that aio requests go on meanwhile. */
        loop_co_offload(read_line, &line);
        if (line.ended) {
            break;
        }
        co_run_line(io, line.text);
    }
    free(line.text);
}

/* --- the command line ------------------------------------------------------------------------- */

struct io_command_line {
    struct cli_items commands, objects;
    struct cli_items caches; /* -n, which has no value, and -t: the last one counts */
    struct cli_observe observe;
    const char *format, *discard, *aio;
    bool image_opts, read_only, snapshot, copy_on_read, misalign, native_aio;
    bool force_share, version;
};

static void io_command_line_clear(struct io_command_line *l)
{
    cli_items_clear(&l->commands);
    cli_items_clear(&l->objects);
    cli_items_clear(&l->caches);
    cli_observe_clear(&l->observe);
}

static int check_command_line(const struct io_command_line *l, struct error *err)
{
    int r = 0;

    for (size_t i = 0; i < l->caches.count; i++) {
        UNLESS_FAILED(r, cli_check_cache_mode(l->caches.item[i].value, "cache", err));
    }
    UNLESS_FAILED(r, cli_check_aio_mode(l->aio, err));
    UNLESS_FAILED(r, cli_add_objects(&l->objects, err));
    if (r < 0) {
        return r;
    }
    if (!cli_is_discard_mode(l->discard)) {
        return error_set(err, EINVAL, "Invalid discard option: %s", l->discard);
    }
    if (l->format && l->image_opts) {
        return error_set(err, EINVAL, "--image-opts and -f are mutually exclusive");
    }
    return 0;
}

static const char *cache_of(const struct io_command_line *l)
{
    const struct cli_item *last = l->caches.count ? &l->caches.item[l->caches.count - 1] : NULL;

    return last ? last->value ?: "none" : IO_CACHE_DEFAULT;
}

static struct io_opening opening_of(const struct io_command_line *l, const char *filename)
{
    return (struct io_opening){
        .name = strdup(filename),
        .format = l->format ? strdup(l->format) : NULL,
        .cache = strdup(cache_of(l)),
        .discard = l->discard ? strdup(l->discard) : NULL,
        .image_opts = l->image_opts,
        .read_only = l->read_only,
        .force_share = l->force_share,
        .overlay = l->snapshot,
        .copy_on_read = l->copy_on_read,
        .native_aio = l->native_aio || (l->aio && strcmp(l->aio, "native") == 0),
    };
}

/* Run the commands of -c, or of standard input. Returns the exit status. */
static int co_run_all(const struct io_command_line *l, const char *filename, struct error *err)
{
    struct io io = {.misalign = l->misalign, .image_opts = l->image_opts};
    int r = 0;

    co_group_init(&io.in_flight);
    if (filename) {
        io.opening = opening_of(l, filename);
        r = io_co_open(&io, err);
    }
    if (r == 0) {
        for (size_t i = 0; i < l->commands.count && !io.quit; i++) {
            co_run_line(&io, l->commands.item[i].value);
        }
        if (l->commands.count == 0) {
            co_run_input(&io);
        }
    }
    if (io.disk.node) {
        r = io_co_close(&io, err);
    }
    io_opening_clear(&io.opening);
    co_group_destroy(&io.in_flight);
    return r < 0 || io.failed ? 1 : 0;
}

static int co_io_main(int argc, char **argv, struct error *err)
{
    __attribute__((cleanup(io_command_line_clear))) struct io_command_line l = {0};
    int first, status, r;
    const struct cli_arg args[] = {
        {"cmd", 'c', CLI_REPEAT, &l.commands, "COMMAND",
         "run a command; may be given several times"},
        {"format", 'f', CLI_VALUE, &l.format, "FMT", "format of the image"},
        {"read-only", 'r', CLI_FLAG, &l.read_only, NULL, "open read-only"},
        {"snapshot", 's', CLI_FLAG, &l.snapshot, NULL, "write to a temporary overlay"},
        {"nocache", 'n', CLI_ACTION, &l.caches, NULL, "as -t none"},
        {"copy-on-read", 'C', CLI_FLAG, &l.copy_on_read, NULL,
         "copy from backing files what is read"},
        {"misalign", 'm', CLI_FLAG, &l.misalign, NULL, "use unaligned buffers"},
        {"native-aio", 'k', CLI_FLAG, &l.native_aio, NULL, "as -i native"},
        {"aio", 'i', CLI_VALUE, &l.aio, "MODE",
         "threads, native or io_uring: checked, without effect"},
        {"cache", 't', CLI_REPEAT, &l.caches, "CACHE",
         "none, writeback, writethrough (default), directsync or unsafe"},
        {"discard", 'd', CLI_VALUE, &l.discard, "MODE", "unmap (default) or ignore"},
        CLI_OBSERVE_ARGS(l.observe),
        CLI_ARG_FORCE_SHARE(l.force_share),
        CLI_ARG_IMAGE_OPTS(l.image_opts),
        CLI_ARG_OBJECT(l.objects),
        {"version", 'V', CLI_FLAG, &l.version, NULL, "print the version"},
        CLI_ARG_END,
    };

    first = cli_args_parse(args, &usage, argc, argv);
    if (first < 0) {
        return first;
    }
    if (l.version) {
        cli_print_version();
        return 0;
    }
    if (first < argc - 1) {
        return cli_usage_error(err, &usage, "Expecting one image file name");
    }
    if (!cli_observe(&l.observe, &status)) {
        return status;
    }
    r = check_command_line(&l, err);
    return r < 0 ? r : co_run_all(&l, first < argc ? argv[first] : NULL, err);
}

int cli_io_main(int argc, char **argv)
{
    return cli_run(co_io_main, argc, argv);
}
