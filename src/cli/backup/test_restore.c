/* SPDX-License-Identifier: Apache-2.0 */
/* The face that proves a backup by using it: restores it, and looks at what is on the disk. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "backup/backup.h"
#include "backup/files.h"
#include "backup/scratch.h"
#include "backup/volumes.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "base/time_units.h"
#include "cli/args.h"
#include "cli/backup/boot.h"
#include "cli/backup/faces.h"
#include "cli/backup/notify.h"
#include "cli/backup/program.h"
#include "cli/cli.h"
#include "cli/json.h"
#include "cli/observe.h"

#define BOOT_SECONDS 300
#define DETAIL_MAX 300
#define MARKER_MAX 1000

static const struct cli_usage test_restore_usage = {
    .synopsis = "DIR",
    .about =
        "Proves a backup by using it: restores it to a temporary file, checks the partition table "
        "and\n"
        "every file system that has a checker here, and with --boot starts the disk in QEMU and "
        "waits\n"
        "for a text on its serial console. Nothing of it stays.\n"
        "The exit status is 0 if all that was tried succeeded, 2 if something failed, 1 if it "
        "could "
        "not\n"
        "be tried.",
    .examples = "@/backups/disk\n"
                "@/backups/disk --dir /scratch --boot --marker 'login:'",
};

/* Checkers leave their file as they like: it is a copy. */
static const struct checker {
    const char *type, *program, *package;
    const char *words[4];
    int worst; /* exit status that still means: sound */
} checkers[] = {
    /* A file system in use has a journal to replay: that is no damage. */
    {"ext2", "e2fsck", "e2fsprogs", {"-f", "-p"}, 3},
    {"ext3", "e2fsck", "e2fsprogs", {"-f", "-p"}, 3},
    {"ext4", "e2fsck", "e2fsprogs", {"-f", "-p"}, 3},
    {"vfat", "fsck.vfat", "dosfstools", {"-n"}, 0},
    {"xfs", "xfs_repair", "xfsprogs", {"-n", "-f"}, 0},
    {"btrfs", "btrfs", "btrfs-progs", {"check", "--readonly"}, 0},
    {"ntfs", "ntfsfix", "ntfs-3g", {"-n"}, 0},
};

struct test {
    struct restore_options restore;
    const char *dir, *output, *progress, *marker, *qemu, *limit;
    struct cli_items qemu_words;
    bool json, shown, boot;
    uint64_t boot_seconds;
    struct cli_observe observe;

    struct scratch folder;
    char *disk; /* in it: the restored disk, and a copy of one volume */
    char *copy;
    struct json_object *result;
    bool failed;
};

/* --- results ---------------------------------------------------------------------------------- */

/* A line for the user, unless only JSON is printed. */
static void say_step(const struct test *t, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));

static void say_step(const struct test *t, const char *fmt, ...)
{
    va_list ap;

    if (!t->json) {
        va_start(ap, fmt);
        vprintf(fmt, ap);
        va_end(ap);
        fflush(stdout);
    }
}

static void add_report_text(struct json_object *o, const char *key, const char *text)
{
    json_object_object_add(o, key, json_object_new_string(text));
}

/* The end of a text in one line, without control characters. */
static void shorten(const char *text, char ret[static DETAIL_MAX])
{
    size_t size = strlen(text), n = 0;

    while (size > 0 && (unsigned char)text[size - 1] <= ' ') {
        size--;
    }
    for (size_t i = size - MIN(size, DETAIL_MAX - 1); i < size; i++) {
        bool gap = (unsigned char)text[i] <= ' ';

        if (!gap || (n > 0 && ret[n - 1] != ' ')) {
            ret[n++] = gap ? ' ' : text[i];
        }
    }
    ret[n] = '\0';
}

/* --- file systems ----------------------------------------------------------------------------- */

static const struct checker *find_checker(const char *type)
{
    for (size_t i = 0; i < ARRAY_SIZE(checkers); i++) {
        if (strcmp(checkers[i].type, type) == 0) {
            return &checkers[i];
        }
    }
    return NULL;
}

static void note_volume(struct test *t, const struct volume *v, const char *result,
                        const char *detail)
{
    struct json_object *o = json_object_new_object(), *list;
    char size[16];

    json_object_object_add(o, "partition", json_object_new_int((int)v->number));
    json_object_object_add(o, "offset", json_object_new_uint64(v->offset));
    json_object_object_add(o, "size", json_object_new_uint64(v->size));
    add_report_text(o, "type", v->type);
    add_report_text(o, "result", result);
    add_report_text(o, "detail", detail);
    json_object_object_get_ex(t->result, "volumes", &list);
    json_object_array_add(list, o);
    say_step(t, "  %s %u: %s, %s: %s%s%s\n", v->number ? "partition" : "volume", v->number,
             backup_size(v->size, size), v->type[0] ? v->type : "unknown", result,
             detail[0] ? ": " : "", detail);
}

/* A new empty file, or -errno. */
static int make_copy_file(const struct test *t, struct error *err)
{
    int fd;

    unlink(t->copy);
    fd = open(t->copy, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    return fd < 0 ? error_set_errno(err, errno, "Could not make '%s'", t->copy) : fd;
}

static int co_run_checker(struct test *t, struct block_edge *edge, const struct volume *v,
                          const struct checker *c, const char *program, struct error *err)
{
    char *argv[8] = {(char *)(uintptr_t)program};
    char *output AUTO_FREE = NULL;
    int fd AUTO_CLOSE = make_copy_file(t, err);
    char detail[DETAIL_MAX];
    size_t n = 1;
    int r;

    for (size_t i = 0; i < ARRAY_SIZE(c->words) && c->words[i]; i++) {
        argv[n++] = (char *)(uintptr_t)c->words[i];
    }
    argv[n] = t->copy;
    r = fd < 0 ? fd : volume_co_extract(edge, v, fd, t->restore.stop, err);
    if (r == 0) {
        r = program_run(argv, &output, t->restore.stop, err);
    }
    unlink(t->copy);
    if (r < 0) {
        return r;
    }
    shorten(output, detail);
    t->failed = t->failed || r > c->worst;
    note_volume(t, v, r > c->worst ? "damaged" : "sound", r > c->worst ? detail : "");
    return 0;
}

static int co_test_volume(struct test *t, struct block_edge *edge, const struct volume *v,
                          struct error *err)
{
    const struct checker *c = find_checker(v->type);
    char *program AUTO_FREE = c ? program_find(c->program) : NULL;
    char why[DETAIL_MAX];

    if (!c) {
        note_volume(t, v, "not checked", "");
        return 0;
    }
    if (!program) {
        snprintf(why, sizeof(why), "%s is not installed (package %s)", c->program, c->package);
        note_volume(t, v, "not checked", why);
        return 0;
    }
    return co_run_checker(t, edge, v, c, program, err);
}

static int co_test_volumes(struct test *t, struct block_edge *edge, struct error *err)
{
    VOLUMES_AUTO(volumes);
    int r = volumes_co_find(edge, &volumes, err);

    if (r < 0) {
        return r;
    }
    add_report_text(t->result, "table", volumes.table);
    say_step(t, "  partition table: %s%s%s\n", volumes.table[0] ? volumes.table : "none",
             volumes.problem ? ", damaged: " : "", volumes.problem ?: "");
    if (volumes.problem) {
        add_report_text(t->result, "table-problem", volumes.problem);
        t->failed = true;
    }
    json_object_object_add(t->result, "volumes", json_object_new_array());
    for (size_t i = 0; r == 0 && i < volumes.count; i++) {
        r = co_test_volume(t, edge, &volumes.list[i], err);
    }
    return r;
}

static int co_test_contents(struct test *t, struct error *err)
{
    struct block_node *node = NULL;
    struct block_root *root = NULL;
    int r = block_co_open_filename(t->disk, "raw", NULL, 0, &node, err);

    UNLESS_FAILED(r, block_co_root_new(node, "test-restore", BLOCK_PERM_CONSISTENT_READ,
                                       BLOCK_PERM_CONSISTENT_READ, &root, err));
    UNLESS_FAILED(r, co_test_volumes(t, block_root_edge(root), err));
    block_co_root_release(root);
    block_co_unref(node);
    return r;
}

/* --- start ------------------------------------------------------------------------------------ */

static int test_boot(struct test *t, struct error *err)
{
    char *program AUTO_FREE = program_find(t->qemu);
    char *tail AUTO_FREE = NULL;
    struct boot_options o = {.program = program,
                             .words = &t->qemu_words,
                             .disk = t->disk,
                             .marker = t->marker,
                             .limit_ns = (int64_t)t->boot_seconds * NS_PER_SECOND,
                             .stop = t->restore.stop};
    struct json_object *boot = json_object_new_object();
    char detail[DETAIL_MAX] = "";
    int64_t ns = 0;
    int r;

    json_object_object_add(t->result, "boot", boot);
    if (!program) {
        error_set(err, ENOENT, "'%s' is not installed", t->qemu);
        error_hint(err, "Install the package qemu-system-x86, or name another emulator by --qemu.");
        return -ENOENT;
    }
    r = boot_disk(&o, &ns, &tail, err);
    if (r < 0) {
        return r;
    }
    if (r == 0) {
        t->failed = true;
        shorten(tail, detail);
        add_report_text(boot, "console", detail);
    }
    json_object_object_add(boot, "booted", json_object_new_boolean(r));
    json_object_object_add(boot, "seconds", json_object_new_double((double)ns / NS_PER_SECOND));
    say_step(t,
             r ? "  start: '%s' after %.1f s%s\n"
               : "  start: no '%s' in %.1f s; its console ended: %s\n",
             t->marker, (double)ns / NS_PER_SECOND, detail);
    return 0;
}

/* --- all of it -------------------------------------------------------------------------------- */

static int make_folder(struct test *t, struct error *err)
{
    int r = scratch_make(t->dir, "test", &t->folder, err);

    if (r < 0) {
        return r;
    }
    t->disk = files_join(t->folder.path, "disk.raw");
    t->copy = files_join(t->folder.path, "volume.raw");
    return t->disk && t->copy ? 0 : error_out_of_memory(err);
}

static int co_test(struct test *t, struct error *err)
{
    struct restore_result restored;
    char written[16];
    int r = make_folder(t, err);

    t->restore.target = t->disk;
    UNLESS_FAILED(r, restore_co_run(&t->restore, &restored, err));
    if (r < 0) {
        return r;
    }
    add_report_text(t->result, "id", restored.id);
    json_object_object_add(t->result, "written-bytes", json_object_new_uint64(restored.written));
    say_step(t, "Backup %s: restored, %s, every cluster verified\n", restored.id,
             backup_size(restored.written, written));
    r = co_test_contents(t, err);
    if (t->boot) {
        UNLESS_FAILED(r, test_boot(t, err));
    }
    return r;
}

static int parse_test_words(int argc, char **argv, struct test *t, struct error *err)
{
    const struct cli_arg args[] = {
        {"at", 0, CLI_VALUE, &t->restore.at, "ID",
         "the backup, or an unambiguous beginning of its ID\n"
         "(default: the newest)"},
        {"dir", 0, CLI_VALUE, &t->dir, "DIR",
         "where there is room for the restored disk, for a while\n"
         "(default: $TMPDIR, or /var/tmp)"},
        {"boot", 0, CLI_FLAG, &t->boot, NULL, "start the disk in QEMU"},
        {"marker", 0, CLI_VALUE, &t->marker, "TEXT",
         "what its serial console shows when it is up (default: 'login:')"},
        {"boot-limit", 0, CLI_VALUE, &t->limit, "SECONDS", "how long to wait (default: 300)"},
        {"qemu", 0, CLI_VALUE, &t->qemu, "PROGRAM", "the emulator (default: qemu-system-x86_64)"},
        {"qemu-arg", 0, CLI_REPEAT, &t->qemu_words, "ARG",
         "another argument for it, such as a firmware; may be repeated"},
        BACKUP_KEY_ARGS,
        BACKUP_NOTIFY_ARG,
        BACKUP_PROGRESS_ARGS(t->shown, t->progress),
        {"output", 0, CLI_VALUE, &t->output, "FORMAT", "'human' or 'json'"},
        CLI_OBSERVE_ARGS(t->observe),
        CLI_ARG_END,
    };
    int first = cli_args_parse(args, &test_restore_usage, argc, argv), r;

    if (first < 0) {
        return first;
    }
    if (first != argc - 1) {
        return cli_usage_error(err, &test_restore_usage, "expecting one directory");
    }
    if (!t->boot && (t->limit || t->qemu || t->marker || t->qemu_words.count)) {
        return cli_usage_error(err, &test_restore_usage, "what is about QEMU needs --boot");
    }
    if (t->marker && (!t->marker[0] || strlen(t->marker) > MARKER_MAX)) {
        return cli_usage_error(err, &test_restore_usage, "--marker needs 1 to %d bytes",
                               MARKER_MAX);
    }
    t->restore.dir = argv[first];
    t->marker = t->marker ?: "login:";
    t->qemu = t->qemu ?: "qemu-system-x86_64";
    t->boot_seconds = BOOT_SECONDS;
    r = cli_take_number(t->limit, "--boot-limit", 1, 86400, &t->boot_seconds, err);
    UNLESS_FAILED(r, cli_parse_output(t->output, &t->json, err));
    UNLESS_FAILED(r, backup_progress(t->shown, t->progress, &t->restore.progress, err));
    return r;
}

static void test_clear(struct test *t)
{
    scratch_remove(&t->folder);
    free(t->disk);
    free(t->copy);
    cli_items_clear(&t->qemu_words);
    cli_observe_clear(&t->observe);
    json_object_put(t->result);
}

static int test_restore_co_main(int argc, char **argv, struct error *err)
{
    CLEANUP(test_clear)
    struct test t = {.restore = {.format = "raw", .stop = &backup_stop}, .folder = SCRATCH_INIT};
    int r = parse_test_words(argc, argv, &t, err), status;

    if (r < 0) {
        return r;
    }
    if (!cli_observe(&t.observe, &status)) {
        return status;
    }
    backup_catch_signals();
    t.result = json_object_new_object();
    r = co_test(&t, err);
    if (r == -EBADMSG) {
        /* A backup that can't be restored has failed the test. */
        backup_fail(err, t.json);
        return BACKUP_DAMAGED;
    }
    if (r < 0) {
        return backup_fail(err, t.json);
    }
    json_object_object_add(t.result, "passed", json_object_new_boolean(!t.failed));
    backup_note_result(t.result);
    if (t.json) {
        cli_print_json(t.result);
    }
    say_step(&t, "%s\n", t.failed ? "The test failed." : "The test succeeded.");
    return t.failed ? BACKUP_DAMAGED : 0;
}

int cli_test_restore_main(int argc, char **argv)
{
    return backup_notify("test-restore", cli_run(test_restore_co_main, argc, argv));
}
