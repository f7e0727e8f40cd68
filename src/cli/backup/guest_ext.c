/* SPDX-License-Identifier: Apache-2.0 */
/* ext2, ext3 and ext4, by debugfs(8). Files are named by their inodes, so names are not quoted. */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "cli/backup/guest_files.h"

#define ROOT_INODE 2

static int ext_root(struct guest_entry *ret_entry)
{
    *ret_entry = (struct guest_entry){.mode = S_IFDIR | 0755, .inode = ROOT_INODE};
    return 0;
}

/* A number between slashes: "/NUMBER"; *at moves behind it. */
static bool take_field(char **at, int base, uint64_t *ret_value)
{
    char *end;

    if (**at != '/' || (*at)[1] < '0' || (*at)[1] > '9') {
        return false;
    }
    errno = 0;
    *ret_value = strtoull(*at + 1, &end, base);
    *at = end;
    return errno == 0;
}

/* A line of `ls -p`: "/INODE/MODE/UID/GID/NAME/SIZE/". False: it is none. */
static bool parse_debugfs_line(char *line, struct guest_entry *ret_entry)
{
    char *end = line + strlen(line), *name, *size, *rest;
    uint64_t mode, uid, gid;

    if (!take_field(&line, 10, &ret_entry->inode) || !take_field(&line, 8, &mode) ||
        !take_field(&line, 10, &uid) || !take_field(&line, 10, &gid) || *line != '/' ||
        end - line < 2 || end[-1] != '/') {
        return false;
    }
    name = line + 1;
    end[-1] = '\0';
    size = strrchr(name, '/');
    if (!size) {
        return false;
    }
    *size++ = '\0';
    ret_entry->mode = (mode_t)mode;
    ret_entry->size = strtoull(size, &rest, 10);
    ret_entry->name = *rest ? NULL : strdup(name);
    return ret_entry->name != NULL;
}

static int ext_list(const struct guest_volume *v, const struct guest_entry *dir,
                    struct guest_entries *ret_entries, struct error *err)
{
    char *output AUTO_FREE = NULL;
    char command[48], *rest = NULL;
    int r;

    snprintf(command, sizeof(command), "ls -p <%" PRIu64 ">", dir->inode);
    r = guest_run(v, (const char *const[]){"-R", command, v->file, NULL}, &output, err);
    for (char *line = r < 0 ? NULL : strtok_r(output, "\n", &rest); r == 0 && line;
         line = strtok_r(NULL, "\n", &rest)) {
        struct guest_entry e = {0};

        if (strncmp(line, "debugfs ", 8) == 0) {
            continue;
        }
        if (!parse_debugfs_line(line, &e)) {
            ret_entries->left_out++;
        } else if (e.inode == 0) { /* a place for a name, which is not used */
            free(e.name);
        } else if (strcmp(e.name, ".") == 0 || strcmp(e.name, "..") == 0) {
            free(e.name);
        } else {
            r = guest_entries_add(ret_entries, e);
            r = r < 0 ? error_out_of_memory(err) : 0;
        }
    }
    return r;
}

/* All files of a directory by one run, since opening a file system takes a while. */
static int ext_take(const struct guest_volume *v, const struct guest_entries *entries,
                    const char *folder, const char *prefix, struct error *err)
{
    char *commands AUTO_FREE = NULL, *output AUTO_FREE = NULL;
    FILE *f;
    int r;

    if (asprintf(&commands, "%s/commands", v->folder) < 0) {
        commands = NULL;
        return error_out_of_memory(err);
    }
    f = fopen(commands, "we");
    if (!f) {
        return error_set_errno(err, errno, "Could not make '%s'", commands);
    }
    for (size_t i = 0; i < entries->count; i++) {
        if (S_ISREG(entries->list[i].mode)) {
            fprintf(f, "dump <%" PRIu64 "> \"%s/%s%zu\"\n", entries->list[i].inode, folder, prefix,
                    i);
        }
    }
    if (fclose(f) != 0) {
        return error_set_errno(err, errno, "Could not write '%s'", commands);
    }
    r = guest_run(v, (const char *const[]){"-f", commands, v->file, NULL}, &output, err);
    unlink(commands);
    return r;
}

static const char *const ext_types[] = {"ext2", "ext3", "ext4", NULL};

const struct guest_driver guest_ext = {
    .types = ext_types,
    .program = "debugfs",
    .package = "e2fsprogs",
    .root = ext_root,
    .list = ext_list,
    .take = ext_take,
};
