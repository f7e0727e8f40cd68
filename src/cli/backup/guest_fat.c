/* SPDX-License-Identifier: Apache-2.0 */
/* FAT, by mtools(1). */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "cli/backup/guest_files.h"

static int fat_root(struct guest_entry *ret_entry)
{
    *ret_entry = (struct guest_entry){.mode = S_IFDIR | 0755, .path = strdup("/")};
    return ret_entry->path ? 0 : -ENOMEM;
}

/* Patterns in names would be expanded. */
static bool is_plain(const char *path)
{
    return !strpbrk(path, "*?[]\\");
}

/* A line of `mdir -b`: "::/DIR/NAME", with a slash at the end for a directory. */
static int add_listed_line(struct guest_entries *entries, const char *line)
{
    size_t size = strlen(line);
    struct guest_entry e = {.mode = S_IFREG | 0644, .size = GUEST_SIZE_UNKNOWN};
    const char *slash;

    if (strncmp(line, "::/", 3) != 0 || size < 4 || !is_plain(line)) {
        entries->left_out++;
        return 0;
    }
    e.path = strdup(line + 2);
    if (!e.path) {
        return -ENOMEM;
    }
    if (line[size - 1] == '/') {
        e.mode = S_IFDIR | 0755;
        e.path[size - 3] = '\0';
    }
    slash = strrchr(e.path, '/');
    e.name = strdup(slash + 1);
    if (!e.name) {
        free(e.path);
        return -ENOMEM;
    }
    return guest_entries_add(entries, e);
}

/* "::PATH", malloc'ed. */
static char *mtools_name(const char *path)
{
    char *name;

    return asprintf(&name, "::%s", path) < 0 ? NULL : name;
}

static int fat_list(const struct guest_volume *v, const struct guest_entry *dir,
                    struct guest_entries *ret_entries, struct error *err)
{
    char *name AUTO_FREE = NULL, *output AUTO_FREE = NULL;
    char *rest = NULL;
    int r;

    if (asprintf(&name, "::%s%s", dir->path, strcmp(dir->path, "/") == 0 ? "" : "/") < 0) {
        name = NULL;
        return error_out_of_memory(err);
    }
    r = guest_run(v, (const char *const[]){"-c", "mdir", "-a", "-b", "-i", v->file, name, NULL},
                  &output, err);
    for (char *line = r < 0 ? NULL : strtok_r(output, "\n", &rest); r == 0 && line;
         line = strtok_r(NULL, "\n", &rest)) {
        r = add_listed_line(ret_entries, line) < 0 ? error_out_of_memory(err) : 0;
    }
    return r;
}

static int fat_take(const struct guest_volume *v, const struct guest_entries *entries,
                    const char *folder, const char *prefix, struct error *err)
{
    int r = 0;

    for (size_t i = 0; r == 0 && i < entries->count; i++) {
        char *name AUTO_FREE = NULL, *to AUTO_FREE = NULL, *output AUTO_FREE = NULL;

        if (!S_ISREG(entries->list[i].mode)) {
            continue;
        }
        name = mtools_name(entries->list[i].path);
        if (!name || asprintf(&to, "%s/%s%zu", folder, prefix, i) < 0) {
            return error_out_of_memory(err);
        }
        r = guest_run(v, (const char *const[]){"-c", "mcopy", "-n", "-i", v->file, name, to, NULL},
                      &output, err);
    }
    return r;
}

static const char *const fat_types[] = {"vfat", NULL};

const struct guest_driver guest_fat = {
    .types = fat_types,
    .program = "mtools",
    .package = "mtools",
    .root = fat_root,
    .list = fat_list,
    .take = fat_take,
    .ignores_case = true,
};
