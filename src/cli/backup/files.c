/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The face that lists and takes files out of a backup, without root and without mounting anything:
 * the volume is copied to a temporary file, which programs that know the file system read. What is
 * taken is written below one directory of this machine, each directory by its descriptor, so that
 * no name and no link of the guest leads elsewhere.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <unistd.h>

#include "backup/files.h"
#include "backup/point.h"
#include "backup/scratch.h"
#include "backup/volumes.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "base/shell_word.h"
#include "block/block.h"
#include "cli/args.h"
#include "cli/backup/faces.h"
#include "cli/backup/guest_files.h"
#include "cli/backup/program.h"
#include "cli/cli.h"
#include "cli/json.h"
#include "cli/observe.h"

#define PREFIX ".tidemark-files-"
#define DEPTH_MAX 200

static const struct cli_usage files_usage = {
    .synopsis = "DIR [PATH]",
    .about =
        "Lists files in the file systems of a backup, and takes them out. Without PATH lists the\n"
        "partitions. PATH is a file or directory in one of them; with --to it is copied, with "
        "everything\n"
        "below it. Nothing is mounted, and root is not needed: ext2 to ext4 are read by debugfs, "
        "FAT by\n"
        "mtools. The partition is copied to a temporary file for that. Links and devices are left "
        "out.",
    .examples = "@/backups/disk\n"
                "@/backups/disk --partition 2 /etc\n"
                "@/backups/disk --at 20261120T0930 --partition 2 /etc/fstab --to /tmp",
};

static const struct guest_driver *const guest_drivers[] = {&guest_ext, &guest_fat};

struct files_face {
    const char *dir, *path, *at, *to, *scratch, *output, *number;
    uint64_t partition;
    bool json;
    struct cli_observe observe;

    struct scratch folder;
    char *copy, *program;
    struct json_object *result; /* an array */
    size_t taken, left_out;
};

/* --- volumes ---------------------------------------------------------------------------------- */

static void list_volumes(struct files_face *f, const struct volumes *volumes)
{
    for (size_t i = 0; i < volumes->count; i++) {
        const struct volume *v = &volumes->list[i];
        struct json_object *o = json_object_new_object();
        char size[16];

        json_object_object_add(o, "partition", json_object_new_int((int)v->number));
        json_object_object_add(o, "offset", json_object_new_uint64(v->offset));
        json_object_object_add(o, "size", json_object_new_uint64(v->size));
        json_object_object_add(o, "type", json_object_new_string(v->type));
        json_object_array_add(f->result, o);
        if (!f->json) {
            printf("%9u  %10s  %s\n", v->number, backup_size(v->size, size),
                   v->type[0] ? v->type : "unknown");
        }
    }
}

static const struct guest_driver *find_guest_driver(const char *type)
{
    for (size_t i = 0; i < ARRAY_SIZE(guest_drivers); i++) {
        for (const char *const *t = guest_drivers[i]->types; *t; t++) {
            if (strcmp(*t, type) == 0) {
                return guest_drivers[i];
            }
        }
    }
    return NULL;
}

/* The volume that the user means: the one of that number, or the only one that can be read. */
static int choose_volume(const struct files_face *f, const struct volumes *volumes,
                         const struct volume **ret_volume, struct error *err)
{
    const struct volume *found = NULL;

    for (size_t i = 0; i < volumes->count; i++) {
        const struct volume *v = &volumes->list[i];

        if (f->number ? v->number != f->partition : !find_guest_driver(v->type)) {
            continue;
        }
        if (found) {
            error_set(err, EINVAL, "There are several file systems on this disk");
            error_hint(err, "Name one by --partition; without PATH they are listed.");
            return -EINVAL;
        }
        found = v;
    }
    if (!found && f->number) {
        return error_set(err, ENOENT, "There is no partition %s on this disk", f->number);
    }
    if (!found) {
        found = volumes->count ? &volumes->list[0] : NULL;
    }
    *ret_volume = found;
    return found ? 0 : error_set(err, ENOENT, "There is nothing on this disk");
}

static int find_reader(struct files_face *f, const struct volume *v,
                       struct guest_volume *ret_volume, struct error *err)
{
    const struct guest_driver *d = find_guest_driver(v->type);

    if (!d) {
        char *word AUTO_FREE = shell_word(f->dir);

        error_set(err, ENOTSUP, "Partition %u (%s) can't be read here", v->number,
                  v->type[0] ? v->type : "unknown");
        error_hint(err,
                   "Install libguestfs-tools, and run 'tidemark serve %s -k SOCKET --fork', then "
                   "'guestfish --ro --format=raw -a nbd://?socket=SOCKET'.",
                   word ?: f->dir);
        return -ENOTSUP;
    }
    f->program = program_find(d->program);
    if (!f->program) {
        error_set(err, ENOENT, "'%s' is needed to read %s, and is not installed", d->program,
                  v->type);
        error_hint(err, "Install the package %s.", d->package);
        return -ENOENT;
    }
    *ret_volume = (struct guest_volume){.driver = d, .program = f->program, .stop = &backup_stop};
    return 0;
}

static int make_files_folder(struct files_face *f, struct error *err)
{
    int r = scratch_make(f->scratch, "files", &f->folder, err);

    if (r < 0) {
        return r;
    }
    f->copy = files_join(f->folder.path, "volume.raw");
    return f->copy ? 0 : error_out_of_memory(err);
}

static int co_copy_volume(struct files_face *f, struct block_edge *edge, const struct volume *v,
                          struct error *err)
{
    int fd AUTO_CLOSE = -1;
    int r = make_files_folder(f, err);

    if (r < 0) {
        return r;
    }
    fd = open(f->copy, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    return fd < 0 ? error_set_errno(err, errno, "Could not make '%s'", f->copy)
                  : volume_co_extract(edge, v, fd, &backup_stop, err);
}

/* --- listing ---------------------------------------------------------------------------------- */

static void print_entry(struct files_face *f, const struct guest_entry *e)
{
    struct json_object *o = json_object_new_object();
    char type = S_ISDIR(e->mode) ? 'd' : S_ISLNK(e->mode) ? 'l' : S_ISREG(e->mode) ? '-' : '?';
    char size[24] = "-";

    json_object_object_add(o, "name", json_object_new_string(e->name));
    json_object_object_add(o, "type",
                           json_object_new_string(type == 'd'   ? "directory"
                                                  : type == 'l' ? "link"
                                                  : type == '-' ? "file"
                                                                : "other"));
    json_object_object_add(o, "mode", json_object_new_int((int)(e->mode & 07777)));
    if (type == '-' && e->size != GUEST_SIZE_UNKNOWN) {
        json_object_object_add(o, "size", json_object_new_uint64(e->size));
        snprintf(size, sizeof(size), "%llu", (unsigned long long)e->size);
    }
    json_object_array_add(f->result, o);
    if (!f->json) {
        printf("%c %04o %15s  ", type, (unsigned)(e->mode & 07777), size);
        for (const char *c = e->name; *c; c++) {
            putchar((unsigned char)*c < ' ' || *c == 0x7f ? '?' : *c);
        }
        putchar('\n');
    }
}

static void print_guest_entries(struct files_face *f, const struct guest_entries *entries)
{
    for (size_t i = 0; i < entries->count; i++) {
        print_entry(f, &entries->list[i]);
    }
    f->left_out += entries->left_out;
}

/* --- finding ---------------------------------------------------------------------------------- */

/* Take the entry of that name out of the list; its name is NULL if there is none. */
static struct guest_entry pick_entry(struct guest_entries *entries, const char *name, size_t size,
                                     bool ignores_case)
{
    struct guest_entry found = {0};

    for (size_t i = 0; i < entries->count && !found.name; i++) {
        struct guest_entry *e = &entries->list[i];

        if (strlen(e->name) == size && (ignores_case ? strncasecmp(e->name, name, size) == 0
                                                     : memcmp(e->name, name, size) == 0)) {
            found = *e;
            *e = (struct guest_entry){0};
            e->name = strdup("");
        }
    }
    return found;
}

/* The entry of a path, from the root on. Links are not followed. */
static int find_path(const struct guest_volume *v, const char *path, struct guest_entry *ret_entry,
                     struct error *err)
{
    const char *at = path;
    int r = v->driver->root(ret_entry);

    if (r < 0) {
        return error_out_of_memory(err);
    }
    for (;;) {
        GUEST_ENTRIES_AUTO(entries);
        size_t size;

        at += strspn(at, "/");
        size = strcspn(at, "/");
        if (size == 0) {
            return 0;
        }
        if (!S_ISDIR(ret_entry->mode)) {
            return error_set(err, ENOTDIR, "'%.*s' is no directory", (int)(at - path), path);
        }
        r = v->driver->list(v, ret_entry, &entries, err);
        if (r < 0) {
            return r;
        }
        guest_entry_clear(ret_entry);
        *ret_entry = pick_entry(&entries, at, size, v->driver->ignores_case);
        at += size;
        if (!ret_entry->name) {
            return error_set(err, ENOENT, "There is no '%.*s' in this file system",
                             (int)(at - path), path);
        }
    }
}

/* --- taking ----------------------------------------------------------------------------------- */

static int take_entries(struct files_face *f, const struct guest_volume *v,
                        const struct guest_entries *entries, int to, int depth, struct error *err);

static int take_directory(struct files_face *f, const struct guest_volume *v,
                          const struct guest_entry *e, int to, int depth, struct error *err)
{
    GUEST_ENTRIES_AUTO(entries);
    int dir AUTO_CLOSE = -1;
    int r;

    if (depth == DEPTH_MAX) {
        return error_set(err, ELOOP, "Directories are nested more than %d levels deep", DEPTH_MAX);
    }
    dir = files_make_dir_at(to, e->name, e->name, err);
    if (dir < 0) {
        return dir;
    }
    r = v->driver->list(v, e, &entries, err);
    f->left_out += entries.left_out;
    UNLESS_FAILED(r, take_entries(f, v, &entries, dir, depth + 1, err));
    return r;
}

/* Give a file that was taken under another name its own one. */
static int finish_file(struct files_face *f, const struct guest_entry *e, int to, const char *name,
                       struct error *err)
{
    int fd AUTO_CLOSE = openat(to, name, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
    struct stat st;

    if (fd < 0 || fstat(fd, &st) < 0) {
        return error_set_errno(err, errno, "Could not read '%s'", e->name);
    }
    if (e->size != GUEST_SIZE_UNKNOWN && (uint64_t)st.st_size != e->size) {
        return error_set(err, EIO, "'%s' should have %llu bytes, and %lld could be read", e->name,
                         (unsigned long long)e->size, (long long)st.st_size);
    }
    fchmod(fd, e->mode & 0777);
    if (renameat2(to, name, to, e->name, RENAME_NOREPLACE) < 0) {
        return error_set_errno(err, errno, "Could not make '%s'", e->name);
    }
    f->taken++;
    return 0;
}

/* Regular files first, which a driver reads together; then directories, one by one. */
static int take_entries(struct files_face *f, const struct guest_volume *v,
                        const struct guest_entries *entries, int to, int depth, struct error *err)
{
    char prefix[48], folder[48], random[9];
    int r = files_random_name(random, sizeof(random), err);

    snprintf(prefix, sizeof(prefix), PREFIX "%s-", random);
    snprintf(folder, sizeof(folder), "/proc/%d/fd/%d", (int)getpid(), to);
    UNLESS_FAILED(r, v->driver->take(v, entries, folder, prefix, err));
    for (size_t i = 0; i < entries->count; i++) {
        const struct guest_entry *e = &entries->list[i];
        char name[80];

        snprintf(name, sizeof(name), "%s%zu", prefix, i);
        if (S_ISREG(e->mode)) {
            UNLESS_FAILED(r, finish_file(f, e, to, name, err));
            unlinkat(to, name, 0);
        } else if (S_ISDIR(e->mode)) {
            UNLESS_FAILED(r, take_directory(f, v, e, to, depth, err));
        } else {
            f->left_out++;
        }
    }
    return r;
}

static int take_path(struct files_face *f, const struct guest_volume *v, struct guest_entry *e,
                     struct error *err)
{
    struct guest_entries one = {.list = e, .count = 1}, all = {0};
    int to AUTO_CLOSE = files_open_dir(f->to, err);
    int r;

    if (to < 0) {
        return to;
    }
    if (e->name) {
        r = take_entries(f, v, &one, to, 0, err);
    } else {
        r = v->driver->list(v, e, &all, err); /* the root directory has no name */
        UNLESS_FAILED(r, take_entries(f, v, &all, to, 0, err));
        guest_entries_clear(&all);
    }
    /* All files by one call, as there may be thousands. */
    if (r == 0 && syncfs(to) < 0) {
        r = error_set_errno(err, errno, "Could not write to '%s'", f->to);
    }
    return r;
}

static int use_path(struct files_face *f, struct guest_volume *v, struct error *err)
{
    GUEST_ENTRIES_AUTO(entries);
    struct guest_entry e = {0};
    int r;

    v->file = f->copy;
    v->folder = f->folder.path;
    r = find_path(v, f->path, &e, err);
    if (r == 0 && f->to) {
        r = take_path(f, v, &e, err);
    } else if (r == 0 && S_ISDIR(e.mode)) {
        r = v->driver->list(v, &e, &entries, err);
        if (r == 0) {
            print_guest_entries(f, &entries);
        }
    } else if (r == 0) {
        print_entry(f, &e);
    }
    guest_entry_clear(&e);
    return r;
}

/* --- all of it -------------------------------------------------------------------------------- */

static int co_use_disk(struct files_face *f, struct block_edge *edge, struct error *err)
{
    const struct volume *volume = NULL;
    struct guest_volume guest;
    VOLUMES_AUTO(volumes);
    int r = volumes_co_find(edge, &volumes, err);

    if (r == 0 && volumes.problem) {
        cli_warn("%s", volumes.problem);
    }
    if (r < 0 || !f->path) {
        if (r == 0) {
            list_volumes(f, &volumes);
        }
        return r;
    }
    r = choose_volume(f, &volumes, &volume, err);
    UNLESS_FAILED(r, find_reader(f, volume, &guest, err));
    UNLESS_FAILED(r, co_copy_volume(f, edge, volume, err));
    UNLESS_FAILED(r, use_path(f, &guest, err));
    return r;
}

static int co_open_point(const struct files_face *f, struct block_node **ret_node,
                         struct error *err)
{
    struct options *opts = options_new();

    if (!opts) {
        return error_out_of_memory(err);
    }
    options_set_str(opts, "driver", POINT_DRIVER);
    options_set_str(opts, "repository", f->dir);
    if (f->at) {
        options_set_str(opts, "at", f->at);
    }
    return block_co_open(opts, 0, ret_node, err);
}

static int co_files(struct files_face *f, struct error *err)
{
    struct block_node *node = NULL;
    struct block_root *root = NULL;
    int r = co_open_point(f, &node, err);

    UNLESS_FAILED(r, block_co_root_new(node, "files", BLOCK_PERM_CONSISTENT_READ, BLOCK_PERM_ALL,
                                       &root, err));
    UNLESS_FAILED(r, co_use_disk(f, block_root_edge(root), err));
    block_co_root_release(root);
    block_co_unref(node);
    return r;
}

static int parse_files_words(int argc, char **argv, struct files_face *f, struct error *err)
{
    const struct cli_arg args[] = {
        {"at", 0, CLI_VALUE, &f->at, "ID",
         "the backup, or an unambiguous beginning of its ID\n"
         "(default: the newest)"},
        {"partition", 0, CLI_VALUE, &f->number, "NUMBER",
         "which partition; 0: the disk has none (default: the only one\n"
         "that can be read)"},
        {"to", 0, CLI_VALUE, &f->to, "FOLDER", "copy PATH into this directory, which exists"},
        {"dir", 0, CLI_VALUE, &f->scratch, "DIR",
         "where there is room for a copy of the partition, for a while\n"
         "(default: $TMPDIR, or /var/tmp)"},
        BACKUP_KEY_ARGS,
        {"output", 0, CLI_VALUE, &f->output, "FORMAT", "'human' or 'json'"},
        CLI_OBSERVE_ARGS(f->observe),
        CLI_ARG_END,
    };
    int first = cli_args_parse(args, &files_usage, argc, argv);
    int r;

    if (first < 0) {
        return first;
    }
    if (first != argc - 1 && first != argc - 2) {
        return cli_usage_error(err, &files_usage, "expecting a directory, and a path");
    }
    f->dir = argv[first];
    f->path = first == argc - 2 ? argv[first + 1] : NULL;
    if (f->to && !f->path) {
        return cli_usage_error(err, &files_usage, "--to needs a path");
    }
    if (f->number && !f->path) {
        return cli_usage_error(err, &files_usage, "--partition needs a path");
    }
    r = cli_take_number(f->number, "--partition", 0, UINT32_MAX, &f->partition, err);
    UNLESS_FAILED(r, cli_parse_output(f->output, &f->json, err));
    return r;
}

static void files_clear(struct files_face *f)
{
    scratch_remove(&f->folder);
    free(f->copy);
    free(f->program);
    json_object_put(f->result);
    cli_observe_clear(&f->observe);
}

static int files_co_main(int argc, char **argv, struct error *err)
{
    CLEANUP(files_clear) struct files_face f = {.folder = SCRATCH_INIT};
    int r = parse_files_words(argc, argv, &f, err), status;

    if (r < 0) {
        return r;
    }
    if (!cli_observe(&f.observe, &status)) {
        return status;
    }
    backup_catch_signals();
    point_stop_by(&backup_stop);
    setenv("MTOOLS_SKIP_CHECK", "1", 1);
    f.result = json_object_new_array();
    r = co_files(&f, err);
    if (r < 0) {
        return backup_fail(err, f.json);
    }
    if (f.left_out) {
        cli_warn("%zu links, devices or names that can't be used here are left out", f.left_out);
    }
    if (f.json) {
        cli_print_json(f.result);
    } else if (f.to) {
        printf("%zu %s\n", f.taken, f.taken == 1 ? "file" : "files");
    }
    return 0;
}

int cli_files_main(int argc, char **argv)
{
    return cli_run(files_co_main, argc, argv);
}
