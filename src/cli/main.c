/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One program with several faces, its commands. `tidemark COMMAND ...` runs one. Called by the name
 * of one of QEMU's tools (the links in build/compat), the program is the face that replaces that
 * tool.
 */
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/checked.h"
#include "cli/cli.h"
#include "cli/suggest.h"

struct face {
    const char *name;
    const char *program;     /* for messages */
    const char *compat_name; /* QEMU's tool; NULL if there is none */
    int (*main)(int argc, char **argv);
    const char *about;
};

static const struct face faces[] = {
    {"daemon", "tidemark daemon", "qemu-storage-daemon", cli_daemon_main,
     "serve disks: block graph, NBD exports, QMP socket (as qemu-storage-daemon)"},
    {"img", "tidemark img", "qemu-img", cli_img_main,
     "make, inspect, check, convert and compare images (as qemu-img)"},
    {"io", "tidemark io", "qemu-io", cli_io_main,
     "scripted reads and writes on one image, for tests and repair (as qemu-io)"},
    {"nbd", "tidemark nbd", "qemu-nbd", cli_nbd_main,
     "serve one image over NBD, or list a server's exports (as qemu-nbd)"},
    {"track", "tidemark track", NULL, cli_track_main,
     "serve a raw file or device as it is, with bitmaps of what changes"},
    {"backup", "tidemark backup", NULL, cli_backup_main,
     "back up a disk of a running daemon, incrementally where possible"},
    {"backups", "tidemark backups", NULL, cli_backups_main, "list the backups in a directory"},
    {"restore", "tidemark restore", NULL, cli_restore_main,
     "write a disk as it was at the time of a backup"},
    {"serve", "tidemark serve", NULL, cli_serve_main,
     "serve a disk as it was at the time of a backup over NBD, at once"},
    {"mount", "tidemark mount", NULL, cli_mount_main,
     "show backups as files: each point in time, verified, to look into"},
    {"files", "tidemark files", NULL, cli_files_main,
     "list and take files out of the file systems of a backup"},
    {"sets", "tidemark sets", NULL, cli_sets_main,
     "list and restore backups of several disks at one moment"},
    {"verify", "tidemark verify", NULL, cli_verify_main, "check that backups can be restored"},
    {"prune", "tidemark prune", NULL, cli_prune_main,
     "remove backups by rules; what later ones need of them is kept"},
    {"copy", "tidemark copy", NULL, cli_copy_main,
     "copy the backups of a directory to another one, incrementally"},
    {"audit", "tidemark audit", NULL, cli_audit_main,
     "find changes of a disk that its bitmap missed"},
    {"test-restore", "tidemark test-restore", NULL, cli_test_restore_main,
     "prove a backup by restoring it, and looking at its file systems"},
    {"metrics", "tidemark metrics", NULL, cli_metrics_main,
     "figures of directories of backups, for Prometheus"},
    {"repair", "tidemark repair", NULL, cli_repair_main,
     "make again what is lost in a directory of backups"},
};

static void print_faces(void)
{
    printf("usage: tidemark COMMAND [arguments]\n"
           "       tidemark COMMAND --help\n"
           "\n"
           "Tidemark stores, serves and backs up virtual disks: a qcow2 and raw engine, an NBD "
           "server\n"
           "with fleecing, and incremental backups of disks in use.\n"
           "\n"
           "commands:\n");
    for (size_t i = 0; i < ARRAY_SIZE(faces); i++) {
        printf("  %-12s %s\n", faces[i].name, faces[i].about);
    }
    printf("\n"
           "examples:\n"
           "  tidemark img create -f qcow2 disk.qcow2 20G\n"
           "        a new disk of 20 GiB that takes space as it is written\n"
           "  tidemark img convert -p -O qcow2 disk.raw disk.qcow2\n"
           "        a raw image as qcow2, holes and zeroes left out, with progress\n"
           "  tidemark io -f qcow2 -c 'write -P 7 0 64k' -c 'read -P 7 0 64k' disk.qcow2\n"
           "        write 64 KiB of sevens and verify them\n"
           "\n"
           "Called as qemu-img, qemu-io, qemu-nbd or qemu-storage-daemon it replaces that "
           "tool.\n");
}

static int run_face(const struct face *face, bool compat, int argc, char **argv)
{
    cli_set_program(compat ? face->compat_name : face->program, compat);
    return face->main(argc, argv);
}

/*
 * A standard descriptor that is closed would be the next one that is opened: messages would be
 * written to an image, and a server that goes to the background would put /dev/null over a socket.
 * What takes the place refuses to be used as the descriptor is, as a closed one does.
 */
static bool fill_standard_descriptors(void)
{
    static const int modes[] = {
        [STDIN_FILENO] = O_WRONLY, [STDOUT_FILENO] = O_RDONLY, [STDERR_FILENO] = O_RDONLY};

    for (int fd = 0; fd < (int)ARRAY_SIZE(modes); fd++) {
        int filler = fd;

        if (fcntl(fd, F_GETFD) < 0) {
            /* Gets the lowest descriptor that is free. */
            filler = open("/dev/null", modes[fd]);
        }
        if (filler != fd) {
            return false;
        }
    }
    return true;
}

static int fail_unknown(const char *name)
{
    struct cli_suggestion suggestion = cli_suggest(name);

    for (size_t i = 0; i < ARRAY_SIZE(faces); i++) {
        cli_suggest_word(&suggestion, faces[i].name);
    }
    if (suggestion.best) {
        return cli_fail("There is no command '%s'; did you mean 'tidemark %s'?", name,
                        suggestion.best);
    }
    return cli_fail("There is no command '%s'; 'tidemark --help' lists them", name);
}

int main(int argc, char **argv)
{
    const char *slash = argc > 0 ? strrchr(argv[0], '/') : NULL;
    const char *called = slash ? slash + 1 : argc > 0 ? argv[0] : "tidemark";

    if (!fill_standard_descriptors()) {
        return 1;
    }
    for (size_t i = 0; i < ARRAY_SIZE(faces); i++) {
        if (faces[i].compat_name && strcmp(called, faces[i].compat_name) == 0) {
            return run_face(&faces[i], true, argc, argv);
        }
    }
    if (argc < 2) {
        return cli_fail("A command is missing; 'tidemark --help' lists them");
    }
    if (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0 ||
        strcmp(argv[1], "help") == 0) {
        print_faces();
        return 0;
    }
    if (strcmp(argv[1], "--version") == 0 || strcmp(argv[1], "-V") == 0) {
        cli_print_version();
        return 0;
    }
    for (size_t i = 0; i < ARRAY_SIZE(faces); i++) {
        if (strcmp(argv[1], faces[i].name) == 0) {
            return run_face(&faces[i], false, argc - 1, argv + 1);
        }
    }
    return fail_unknown(argv[1]);
}
