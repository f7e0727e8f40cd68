/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Which other files an image may have opened, by the names that it records: the extents of a VMDK
 * descriptor, the parents of VMDK, VHD and VHDX images. An image may come from anybody, and these
 * names could be those of the host's own files.
 */
#ifndef TIDEMARK_BLOCKMAP_OTHER_FILES_H
#define TIDEMARK_BLOCKMAP_OTHER_FILES_H

#include "block/driver.h"
#include "schema/schema.h"

enum other_files {
    OTHER_FILES_NONE,
    /* In the directory of the image, and no link to another one. */
    OTHER_FILES_DIRECTORY,
    OTHER_FILES_ANY
};

/* The type of the option, and the option as a member of a driver's options. */
extern const struct schema_type other_files_type;
#define OTHER_FILES_MEMBER                                                                         \
    OPT("x-other-files", other_files_type, .dflt = "none",                                         \
        .help = "which other files the image may have opened by the names that it records: none, " \
                "those in its directory, or any")

/* What the option is by default: NONE until this is called, at start. Does not yield. */
void other_files_set_default(enum other_files allowed);
/* Take the option "x-other-files". -EINVAL. Does not yield. */
int other_files_take(struct options *opts, enum other_files *ret_allowed, struct error *err);
/* Let the backing file have the same option, unless the user says more of it. Does not yield. */
int other_files_pass_on(struct options *opts, enum other_files allowed, struct error *err);
/*
 * The path of the file that the image of `node` calls `name`, if that may be opened; the caller
 * frees it. `what` is the file's part: "extent". -EACCES: it is not allowed; -EINVAL: the image has
 * no directory, or the name is empty; -ENOMEM. The node stays open. Yields.
 */
int other_files_co_resolve(const struct block_node *node, enum other_files allowed,
                           const char *name, const char *what, char **ret_path, struct error *err);

#endif
