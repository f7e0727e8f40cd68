/* SPDX-License-Identifier: Apache-2.0 */
/* The face that mounts backups: each point in time as an image file, by FUSE. */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include "backup/view.h"
#include "base/cleanup.h"
#include "cli/args.h"
#include "cli/background.h"
#include "cli/backup/faces.h"
#include "cli/cli.h"
#include "cli/observe.h"
#include "fuse/tree.h"

static const struct cli_usage mount_usage = {
    .synopsis = "DIR MOUNTPOINT",
    .about =
        "Shows backups as files in MOUNTPOINT, a directory, by FUSE: a directory per point in "
        "time,\n"
        "with an image of the disk as it was, and one of each partition. DIR has the backups of a\n"
        "disk, or several such directories below it. Nothing can be written. Every read is "
        "compared\n"
        "with its checksum: damage is an I/O error, and a message here.\n"
        "It ends on SIGINT or SIGTERM, or when MOUNTPOINT is unmounted (fusermount3 -u, umount).",
    .examples = "@--fork /backups/disk /mnt/backups\n"
                "        mount -o ro,noload,loop /mnt/backups/20261120T093000Z/partition-1.ext4 "
                "/mnt/then\n"
                "        debugfs -R 'ls /etc' /mnt/backups/20261120T093000Z/partition-1.ext4",
};

struct mount_face {
    const char *dir, *mountpoint, *pid_file;
    bool allow_other, fork;
    int ready_fd;
    sigset_t end_signals;
    struct cli_observe observe;
};

/* Reading what is mounted there itself would wait for ever. */
static int check_mountpoint(const struct mount_face *f, const struct backup_view *view,
                            struct error *err)
{
    char *path AUTO_FREE = realpath(f->mountpoint, NULL);
    const char *dir = backup_view_path(view);
    size_t size = path ? strlen(path) : 0, dir_size = strlen(dir);

    if (path && ((strncmp(path, dir, dir_size) == 0 &&
                  (!path[dir_size] || path[dir_size] == '/' || dir_size == 1)) ||
                 (strncmp(dir, path, size) == 0 && (dir[size] == '/' || size == 1)))) {
        return error_set(err, EINVAL, "'%s' and '%s': neither may be in the other", f->dir,
                         f->mountpoint);
    }
    return 0;
}

static int co_serve_mount(const struct mount_face *f, struct backup_view *view, int end_fd,
                          struct error *err)
{
    const struct fuse_tree_config config = {.mountpoint = f->mountpoint,
                                            .allow_other = f->allow_other,
                                            .ops = &backup_view_ops,
                                            .arg = view};
    struct fuse_tree *tree = NULL;
    int r = fuse_tree_co_mount(&config, &tree, err);

    if (f->pid_file) {
        UNLESS_FAILED(r, cli_write_pid_file(f->pid_file, err));
    }
    if (r == 0) {
        cli_announce_serving(f->ready_fd, f->observe.verbose);
        fuse_tree_co_serve(tree, end_fd);
    }
    fuse_tree_co_free(tree);
    return r;
}

static int co_mount_main(void *arg, struct error *err)
{
    const struct mount_face *f = arg;
    struct backup_view *view = NULL;
    int end_fd AUTO_CLOSE = signalfd(-1, &f->end_signals, SFD_CLOEXEC | SFD_NONBLOCK);
    int r;

    if (end_fd < 0) {
        return error_set_errno(err, errno, "Could not watch for signals");
    }
    r = backup_view_open(f->dir, &view, err);
    UNLESS_FAILED(r, check_mountpoint(f, view, err));
    UNLESS_FAILED(r, co_serve_mount(f, view, end_fd, err));
    backup_view_co_free(view);
    return r;
}

static void mount_clear(struct mount_face *f)
{
    cli_observe_clear(&f->observe);
}

int cli_mount_main(int argc, char **argv)
{
    CLEANUP(mount_clear) struct mount_face f = {.ready_fd = -1};
    const struct cli_arg args[] = {
        {"allow-other", 0, CLI_FLAG, &f.allow_other, NULL,
         "let users other than this one read everything, root too (for\n"
         "others than root, user_allow_other has to be in /etc/fuse.conf)"},
        {"fork", 0, CLI_FLAG, &f.fork, NULL, "go to the background once it is mounted"},
        {"pid-file", 0, CLI_VALUE, &f.pid_file, "PATH", "write the process ID to a file"},
        BACKUP_KEY_ARGS,
        CLI_OBSERVE_ARGS(f.observe),
        CLI_ARG_END,
    };
    ERROR_AUTO(err);
    int first = cli_args_parse(args, &mount_usage, argc, argv);
    int status;

    if (first < 0) {
        return cli_exit_status(first, &err);
    }
    if (first != argc - 2) {
        cli_usage_error(&err, &mount_usage, "expecting a directory of backups, and a mountpoint");
        return cli_report(&err);
    }
    f.dir = argv[first];
    f.mountpoint = argv[first + 1];
    if (!cli_observe(&f.observe, &status)) {
        return status;
    }
    cli_observe_server();
    if (f.fork && cli_go_to_background(&f.ready_fd, &err) < 0) {
        return cli_report(&err);
    }
    cli_end_signals(&f.end_signals);
    /* Before there are threads, so that all of them leave these signals to the signalfd. */
    pthread_sigmask(SIG_BLOCK, &f.end_signals, NULL);
    return cli_run_with(co_mount_main, &f);
}
