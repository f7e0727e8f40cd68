/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/backup/guest_files.h"

#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "cli/backup/program.h"

#define WORDS_MAX 12

void guest_entry_clear(struct guest_entry *e)
{
    free(e->name);
    free(e->path);
    *e = (struct guest_entry){0};
}

void guest_entries_clear(struct guest_entries *e)
{
    for (size_t i = 0; i < e->count; i++) {
        guest_entry_clear(&e->list[i]);
    }
    free(e->list);
    *e = (struct guest_entries){0};
}

/* Whether a name can be that of a file in a directory of this machine. */
static bool is_name(const char *name)
{
    return *name && strlen(name) <= NAME_MAX && !strchr(name, '/') && strcmp(name, ".") != 0 &&
           strcmp(name, "..") != 0;
}

int guest_entries_add(struct guest_entries *e, struct guest_entry entry)
{
    struct guest_entry *list;

    if (!is_name(entry.name)) {
        guest_entry_clear(&entry);
        e->left_out++;
        return 0;
    }
    list = realloc(e->list, (e->count + 1) * sizeof(*list));
    if (!list) {
        guest_entry_clear(&entry);
        return -ENOMEM;
    }
    e->list = list;
    list[e->count++] = entry;
    return 0;
}

int guest_run(const struct guest_volume *v, const char *const *words, char **ret_output,
              struct error *err)
{
    char *argv[WORDS_MAX + 2] = {(char *)(uintptr_t)v->program};
    int r;

    for (size_t i = 0; i < WORDS_MAX && words[i]; i++) {
        argv[i + 1] = (char *)(uintptr_t)words[i];
    }
    r = program_run(argv, ret_output, v->stop, err);
    if (r > 0) {
        const char *text = *ret_output;

        return error_set(err, EIO, "'%s' failed: %.*s", v->program, (int)strcspn(text, "\n"), text);
    }
    return r;
}
