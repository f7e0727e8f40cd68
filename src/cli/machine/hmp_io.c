/* SPDX-License-Identifier: Apache-2.0 */
/* The command qemu-io of the human monitor: commands of `tidemark io` on a disk or a node. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/time_units.h"
#include "cli/io/command.h"
#include "cli/machine/clock.h"
#include "cli/machine/device.h"
#include "cli/machine/disk.h"
#include "cli/machine/hmp.h"
#include "loop/loop.h"
#include "chardev/stdio_pair.h"

/* Commands that open or end something of the program. */
static const char *const not_here[] = {"open", "o", "close", "c", "quit", "q", NULL};

static bool is_not_here(const char *line)
{
    size_t len;

    line += strspn(line, " \t");
    len = strcspn(line, " \t");
    for (const char *const *name = not_here; *name; name++) {
        if (strlen(*name) == len && memcmp(*name, line, len) == 0) {
            return true;
        }
    }
    return false;
}

static bool needs_write(const char *line)
{
    char name[32];
    const struct io_command *c;

    if (sscanf(line, "%31s", name) != 1 || !(c = io_find_command(name))) {
        return false;
    }
    return c->needs & IO_NEEDS_WRITE;
}

/* The command prints on standard output: in the order of what monitors have printed. */
static int co_run_io(struct io *io, const char *line, struct error *err)
{
    int r;

    if (is_not_here(line)) {
        fflush(stdout);
        fprintf(stderr, "command \"%.*s\" not found\n", (int)strcspn(line, " "), line);
        return -EINVAL;
    }
    chardev_co_stdio_settle();
    machine_clock_command_begins();
    r = io_co_run_text(io, line, err);
    machine_clock_command_ends();
    loop_co_sleep(NS_PER_MS); /* events of the command come first: a turn of the loop sends them */
    chardev_co_stdio_settle();
    fflush(stdout);
    return r;
}

/* --- on a disk -------------------------------------------------------------------------------- */

static int co_run_on_disk(struct machine_disk *disk, const char *line, struct error *err)
{
    struct block_node *node = machine_disk_node(disk);
    int r = 0;

    if (node && needs_write(line) && !block_node_is_read_only(node) && !disk->written) {
        disk->written = true; /* stays: requests of aio_write may run on */
        r = machine_disk_co_set_perm(disk, err);
    }
    disk->io.disk = (struct cli_disk){0};
    if (node) {
        disk->io.disk = (struct cli_disk){.node = node,
                                          .root = disk->device.root,
                                          .edge = block_root_edge(disk->device.root),
                                          .name = disk->name,
                                          .writethrough = disk->writethrough};
    }
    UNLESS_FAILED(r, co_run_io(&disk->io, line, err));
    if (node && r >= 0) {
        disk->writethrough = disk->io.disk.writethrough;
    }
    disk->io.disk = (struct cli_disk){0};
    return r;
}

/* --- on a node -------------------------------------------------------------------------------- */

struct visit {
    struct io io;
    struct block_root *root;
};

/* Requests of aio_read and the like may still run: the root stays for as long. */
static void co_end_visit(void *arg)
{
    struct visit *v = arg;

    co_group_wait(&v->io.in_flight);
    block_co_root_release(v->root);
    co_group_destroy(&v->io.in_flight);
    free(v);
}

static int co_run_on_node(struct block_node *node, const char *line, struct error *err)
{
    struct visit *v = calloc(1, sizeof(*v));
    unsigned perm = BLOCK_PERM_CONSISTENT_READ;
    int r;

    if (!v) {
        return error_out_of_memory(err);
    }
    if (needs_write(line) && !block_node_is_read_only(node)) {
        perm |= BLOCK_PERM_WRITE;
    }
    co_group_init(&v->io.in_flight);
    v->io.co_reopen = machine_co_reopen;
    r = block_co_root_new(node, "qemu-io", perm, BLOCK_PERM_ALL, &v->root, err);
    if (r < 0) {
        co_group_destroy(&v->io.in_flight);
        free(v);
        return r;
    }
    v->io.disk = (struct cli_disk){.node = node,
                                   .root = v->root,
                                   .edge = block_root_edge(v->root),
                                   .name = block_node_name(node)};
    r = co_run_io(&v->io, line, err);
    v->io.disk = (struct cli_disk){0};
    if (reactor_spawn(reactor_main(), co_end_visit, v) < 0) {
        co_end_visit(v);
    }
    return r;
}

int hmp_co_qemu_io(struct hmp *hmp, int argc, char **argv, struct error *err)
{
    bool by_device = argc == 3 && strcmp(argv[0], "-d") == 0;
    const char *name = argv[argc - 2], *line = argv[argc - 1];
    struct machine_device *device = by_device ? machine_device_lookup(name, err) : NULL;
    struct machine_disk *disk = device ? machine_device_disk(device) : machine_disk_find(name);
    struct block_node *node;

    if (by_device && !device) {
        return -ENOENT;
    }
    hmp->plain_error = disk || block_node_find(name);
    if (disk) {
        return co_run_on_disk(disk, line, err);
    }
    node = block_node_find(name);
    if (!node) {
        return error_set(err, ENOENT, "Cannot find device='' nor node-name='%s'", name);
    }
    return co_run_on_node(node, line, err);
}
