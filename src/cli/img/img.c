/* SPDX-License-Identifier: Apache-2.0 */
/* The face `tidemark img`: offline work on image files. One file per sub-command. */
#include "cli/img/img.h"

#include <stdio.h>
#include <string.h>

#include "base/checked.h"
#include "base/progress.h"
#include "block/block.h"
#include "cli/args.h"
#include "cli/cli.h"
#include "cli/observe.h"
#include "cli/suggest.h"
#include "loop/loop.h"

struct img_command {
    const char *name;
    int (*co_run)(int argc, char **argv, struct error *err);
    const char *synopsis;
    const char *about;
};

static const struct img_command commands[] = {
    {"amend", img_co_amend, "[options] -o OPTIONS FILENAME",
     "change options that an image was made with"},
    {"bench", img_co_bench, "[options] FILENAME", "how fast an image can be read or written"},
    {"bitmap", img_co_bitmap, "[actions] FILENAME BITMAP",
     "add, remove, change or merge persistent dirty bitmaps"},
    {"check", img_co_check, "[options] FILENAME", "look for leaks and damage, and repair them"},
    {"commit", img_co_commit, "[options] FILENAME", "write an overlay into its backing file"},
    {"compare", img_co_compare, "[options] FILENAME1 FILENAME2",
     "whether two images read the same"},
    {"convert", img_co_convert, "[options] SOURCE... TARGET",
     "copy to another format, leaving out zeroes"},
    {"create", img_co_create, "[options] FILENAME [SIZE]", "make a new image"},
    {"dd", img_co_dd, "[options] if=INPUT of=OUTPUT", "copy blocks, as dd(1) does"},
    {"info", img_co_info, "[options] FILENAME", "what an image is, and what it is made of"},
    {"map", img_co_map, "[options] FILENAME", "which areas are stored, and where"},
    {"measure", img_co_measure, "[options] FILENAME", "how large a new image's file would be"},
    {"rebase", img_co_rebase, "[options] -b FILE FILENAME", "give an image another backing file"},
    {"rebuild-chain", img_co_rebuild_chain, "[options] NBD-URI DIRECTORY",
     "make the chain of images that an NBD server has"},
    {"resize", img_co_resize, "[options] FILENAME [+|-]SIZE", "change the size of the disk"},
    {"snapshot", img_co_snapshot, "[options] FILENAME", "snapshots within an image"},
};

/* What each command takes, one line each, for programs that search --help for an option. */
static void co_print_syntax(void)
{
    printf("\ncommand syntax:\n");
    cli_args_set_only_synopsis(true);
    for (size_t i = 0; i < ARRAY_SIZE(commands); i++) {
        char help[] = "--help";
        char *arguments[] = {(char *)commands[i].name, help, NULL};

        (void)commands[i].co_run(2, arguments, NULL);
    }
    cli_args_set_only_synopsis(false);
}

static void co_print_img_help(void)
{
    printf("usage: %s [--trace PATTERN] [--log-level LEVEL] COMMAND [options] ...\n"
           "       %s COMMAND --help\n"
           "\n"
           "Works on disk image files that no machine uses at the moment.\n"
           "\n"
           "commands:\n",
           cli_program(), cli_program());
    for (size_t i = 0; i < ARRAY_SIZE(commands); i++) {
        printf("  %-13s %-29s %s\n", commands[i].name, commands[i].synopsis, commands[i].about);
    }
    printf("\n"
           "options before the command:\n"
           "  -T, --trace PATTERN  trace: [[enable=]PATTERN][,events=FILE][,file=FILE]; or help\n"
           "  --log-level LEVEL    print messages up to: error, warning (default), notice, info, "
           "debug\n"
           "\n"
           "options of most commands:\n"
           "  -f FORMAT         format of the image, -O of the target; guessed if absent\n"
           "  -o OPTIONS        options of the new image; '-o help' lists them\n"
           "  -t, -T CACHE      cache mode of the image that is written, or read\n"
           "  -U                read an image that another program uses\n"
           "  -p, -q            show progress, be quiet\n"
           "  --image-opts      FILENAME is a list of the options of a node\n"
           "  --object OPTIONS  TLS credentials, or a secret\n");
    if (cli_is_compat()) {
        co_print_syntax();
    }
    printf(
        "\n"
        "FILENAME is a path, an NBD address (nbd://HOST/EXPORT, nbd+unix:///EXPORT?socket=PATH), "
        "or\n"
        "json:{...} with the options of a node. SIZE is in bytes, or has a suffix k, M, G, T, P or "
        "E.\n"
        "\n"
        "examples:\n"
        "  %s create -f qcow2 disk.qcow2 20G\n"
        "  %s create -f qcow2 -b base.qcow2 -F qcow2 overlay.qcow2\n"
        "  %s convert -p -O raw disk.qcow2 disk.raw\n"
        "  %s check -f qcow2 -r leaks disk.qcow2\n"
        "\n"
        "Supported formats:",
        cli_program(), cli_program(), cli_program(), cli_program());
    for (const struct block_driver *d = block_next_driver(NULL); d; d = block_next_driver(d)) {
        if (block_driver_is_usable(d)) {
            printf(" %s", block_driver_name(d));
        }
    }
    printf("\n");
}

/* As qemu-img says it, and in the own words with what the user may have meant. */
static int refuse_command(const char *name, struct error *err)
{
    struct cli_suggestion suggestion = cli_suggest(name);

    for (size_t i = 0; i < ARRAY_SIZE(commands); i++) {
        cli_suggest_word(&suggestion, commands[i].name);
    }
    if (cli_is_compat() || !suggestion.best) {
        return cli_usage_error(err, &(struct cli_usage){0}, "Command not found: %s", name);
    }
    return cli_usage_error(err, &(struct cli_usage){0}, "Command not found: %s; did you mean '%s'?",
                           name, suggestion.best);
}

static int co_img_main(int argc, char **argv, struct error *err)
{
    const char *name = argv[1];

    progress_listen();
    if (strcmp(name, "--help") == 0 || strcmp(name, "-h") == 0 || strcmp(name, "help") == 0) {
        co_print_img_help();
        return 0;
    }
    for (size_t i = 0; i < ARRAY_SIZE(commands); i++) {
        if (strcmp(commands[i].name, name) == 0) {
            return commands[i].co_run(argc - 1, argv + 1, err);
        }
    }
    return refuse_command(name, err);
}

int cli_img_main(int argc, char **argv)
{
    CLI_OBSERVE_AUTO(observe);
    ERROR_AUTO(err);
    int status;

    for (int words; argc > 1 && (words = cli_observe_take(&observe, argc, argv)) > 0;) {
        argc -= words;
        argv += words;
    }
    if (!cli_observe(&observe, &status)) {
        return status;
    }
    if (argc < 2) {
        cli_usage_error(&err, &(struct cli_usage){0}, "Not enough arguments");
        return cli_report(&err);
    }
    if (strcmp(argv[1], "--version") == 0 || strcmp(argv[1], "-V") == 0) {
        cli_print_version();
        return 0;
    }
    loop_set_may_block(true);
    return cli_run(co_img_main, argc, argv);
}
