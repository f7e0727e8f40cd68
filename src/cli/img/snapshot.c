/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <string.h>

#include "base/cleanup.h"
#include "block/control.h"
#include "cli/img/img.h"

static const struct cli_usage usage = {
    .command = "snapshot",
    .synopsis = "FILENAME",
    .about = "Lists, makes, applies or deletes snapshots within an image. An applied snapshot "
             "makes the disk what it\n"
             "was then; what was written since is lost.",
    .examples = "  snapshot -l disk.qcow2\n"
                "  snapshot -f qcow2 -c before-upgrade disk.qcow2\n"
                "  snapshot -f qcow2 -a before-upgrade disk.qcow2",
};

struct request {
    bool list, quiet;
    const char *create, *apply, *delete;
};

static int co_list(const struct cli_disk *disk)
{
    struct json_object *array = cli_co_snapshots(disk->node);

    if (array) {
        cli_print_snapshots(array);
    }
    json_object_put(array);
    return 0;
}

/*
 * Deletes by name alone, as the one thing that can't be taken back: "1" may be the name of one snapshot and the ID
 * of another. The first is meant if several have the name.
 */
static int co_delete(struct block_node *node, const char *name, struct error *err)
{
    AUTO_FREE struct block_snapshot_info *list = NULL;
    size_t count = 0;
    int rc;

    rc = block_co_snapshot_list(node, &list, &count, err);
    if (rc < 0) {
        return rc;
    }
    for (size_t i = 0; i < count; i++) {
        if (strcmp(list[i].name, name) == 0) {
            return block_co_snapshot_delete(node, list[i].id, err);
        }
    }
    return error_set(err, ENOENT, "snapshot not found");
}

/* Do the one action that is wanted; *ret_what and *ret_name tell which, for messages. */
static int co_act(const struct request *r, struct block_node *node, const char **ret_what,
                  const char **ret_name, struct error *err)
{
    if (r->create) {
        *ret_what = "create";
        *ret_name = r->create;
        return block_co_snapshot_create(node, r->create, err);
    }
    if (r->apply) {
        *ret_what = "apply";
        *ret_name = r->apply;
        return block_co_snapshot_apply(node, r->apply, err);
    }
    *ret_what = "delete";
    *ret_name = r->delete;
    return co_delete(node, r->delete, err);
}

static int co_change(const struct request *r, struct cli_disk *disk)
{
    const char *what, *name;
    ERROR_AUTO(err);
    int rc;

    rc = co_act(r, disk->node, &what, &name, &err);
    if (rc < 0) {
        error_prepend(&err, "Could not %s snapshot '%s': ", what, name);
        return cli_report(&err);
    }
    return cli_co_finish_disk(disk, &err) < 0 ? cli_report(&err) : 0;
}

int img_snapshot_main(int argc, char **argv)
{
    struct cli_image image = {0};
    struct request r = {0};
    int actions;
    bool writes;
    ERROR_AUTO(err);
    CLI_DISK_AUTO(disk);
    CLI_ITEMS_AUTO(objects);
    const struct cli_arg args[] = {
        {"list", 'l', CLI_FLAG, &r.list, NULL, "list (the default)"},
        {"create", 'c', CLI_VALUE, &r.create, "NAME", "make a snapshot of the disk as it is"},
        {"apply", 'a', CLI_VALUE, &r.apply, "SNAPSHOT", "go back to a snapshot, by ID or name"},
        {"delete", 'd', CLI_VALUE, &r.delete, "NAME", "delete a snapshot, by its name"},
        IMG_ARG_FORMAT(image.format),
        IMG_ARG_QUIET(r.quiet),
        IMG_ARG_SHARE(image.force_share),
        IMG_ARG_IMAGE_OPTS(image.image_opts),
        IMG_ARG_OBJECT(objects),
        IMG_ARG_END,
    };
    IMG_PARSE(first, args, &usage);

    actions = r.list + !!r.create + !!r.apply + !!r.delete;
    if (actions > 1) {
        return cli_usage_fail(&usage, "Cannot mix '-l', '-a', '-c', '-d'");
    }
    if (first != argc - 1) {
        return cli_usage_fail(&usage, "Expecting one image file name");
    }
    if (cli_add_objects(&objects)) {
        return 1;
    }
    image.name = argv[first];
    writes = actions == 1 && !r.list;
    if (cli_co_open_disk(&image, writes ? BLOCK_OPEN_RDWR : 0, &disk, &err) < 0) {
        return cli_report(&err);
    }
    return writes ? co_change(&r, &disk) : co_list(&disk);
}
