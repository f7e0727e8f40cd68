/* SPDX-License-Identifier: Apache-2.0 */
#include "blockmap/other_files.h"

#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "loop/loop.h"
#include "schema/define.h"

static const char *const names[] = {"none", "directory", "any", NULL};
static enum other_files default_allowed = OTHER_FILES_NONE;

const struct schema_type other_files_type =
    ENUM_INIT("XTidemarkOtherFiles", "none", "directory", "any");

void other_files_set_default(enum other_files allowed)
{
    default_allowed = allowed;
}

int other_files_take(struct options *opts, enum other_files *ret_allowed, struct error *err)
{
    int value = (int)default_allowed;
    int r = options_take_enum(opts, "x-other-files", names, value, &value, err);

    if (r == 0) {
        *ret_allowed = (enum other_files)value;
    }
    return r;
}

int other_files_pass_on(struct options *opts, enum other_files allowed, struct error *err)
{
    AUTO_OPTIONS struct options *backing = options_new();

    if (!backing) {
        return error_out_of_memory(err);
    }
    options_set_str(backing, "x-other-files", names[allowed]);
    options_set_child(opts, "backing", TAKE_PTR(backing));
    return 0;
}

/* The directory of a path with links followed, with a '/' at its end. NULL: there is none. */
static char *co_real_directory(const char *path)
{
    AUTO_FREE char *copy = strdup(path);
    char *slash = copy ? strrchr(copy, '/') : NULL;

    if (!copy) {
        return NULL;
    }
    if (!slash) {
        return loop_co_real_path(".");
    }
    slash[slash == copy ? 1 : 0] = '\0';
    return loop_co_real_path(copy);
}

static bool co_is_beside(const char *image, const char *path)
{
    AUTO_FREE char *directory = co_real_directory(image);
    AUTO_FREE char *real = loop_co_real_path(path);
    AUTO_FREE char *other = co_real_directory(real ? real : path);

    return directory && other && strcmp(directory, other) == 0;
}

/* The filename of the file that the image is in, below filters and the like. */
static const char *file_below(const struct block_node *node)
{
    while (node->file) {
        node = node->file->node;
    }
    return block_node_filename(node);
}

static int no_directory(const struct block_node *node, struct error *err)
{
    const struct block_node *file = node->file ? node->file->node : node;
    const char *driver = node->driver->name;
    AUTO_FREE char *name = block_node_full_filename(file);

    return error_set(err, EINVAL,
                     "Cannot use relative paths with %s descriptor file '%s': Cannot generate a "
                     "base directory for %s nodes",
                     strcmp(driver, "vpc") == 0    ? "VHD"
                     : strcmp(driver, "vhdx") == 0 ? "VHDX"
                                                   : "VMDK",
                     name ? name : block_node_display_name(node), file->driver->name);
}

int other_files_co_resolve(const struct block_node *node, enum other_files allowed,
                           const char *name, const char *what, char **ret_path, struct error *err)
{
    const char *image = block_node_display_name(node);
    const char *base = file_below(node);
    AUTO_FREE char *path = NULL;

    if (allowed == OTHER_FILES_NONE) {
        error_set(err, EACCES, "Image '%s' has the %s '%s', another file, which it may not open",
                  image, what, name);
        error_hint(err, "Allow it with the option x-other-files=directory (that of the "
                        "image) or any");
        return -EACCES;
    }
    if (!*base || block_driver_of_filename(base)) {
        return no_directory(node, err);
    }
    if (!*name || block_driver_of_filename(name) || strncmp(name, "json:", 5) == 0) {
        return error_set(err, EACCES, "The %s '%s' of image '%s' is not a path of a file", what,
                         name, image);
    }
    path = block_resolve_relative(base, name);
    if (!path) {
        return error_out_of_memory(err);
    }
    if (allowed == OTHER_FILES_DIRECTORY && !co_is_beside(base, path)) {
        error_set(err, EACCES, "The %s '%s' of image '%s' is not in the directory of the image",
                  what, name, image);
        error_hint(err, "Allow it with the option x-other-files=any");
        return -EACCES;
    }
    *ret_path = TAKE_PTR(path);
    return 0;
}
