/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/backup/program.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/spawn.h"

#define OUTPUT_MAX (1u << 20)

char *program_find(const char *name)
{
    const char *path = getenv("PATH");
    char *dirs AUTO_FREE = NULL;
    char *rest = NULL;

    if (strchr(name, '/')) {
        return access(name, X_OK) == 0 ? strdup(name) : NULL;
    }
    if (asprintf(&dirs, "%s:/usr/sbin:/sbin", path ?: "/usr/bin:/bin") < 0) {
        dirs = NULL;
        return NULL;
    }
    for (char *dir = strtok_r(dirs, ":", &rest); dir; dir = strtok_r(NULL, ":", &rest)) {
        char *found;

        if (asprintf(&found, "%s/%s", dir, name) < 0) {
            return NULL;
        }
        if (access(found, X_OK) == 0) {
            return found;
        }
        free(found);
    }
    return NULL;
}

int program_start(char *const *argv, int out_fd, pid_t *ret_child, struct error *err)
{
    posix_spawn_file_actions_t actions;
    int r;

    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_addopen(&actions, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
    posix_spawn_file_actions_adddup2(&actions, out_fd, STDOUT_FILENO);
    posix_spawn_file_actions_adddup2(&actions, out_fd, STDERR_FILENO);
    r = spawn_program(argv, environ, &actions, ret_child);
    posix_spawn_file_actions_destroy(&actions);
    return r < 0 ? error_set_errno(err, -r, "Could not start '%s'", argv[0]) : 0;
}

/* The text in a file, up to OUTPUT_MAX. NULL: no memory. */
static char *read_output(int fd)
{
    char *text = malloc(OUTPUT_MAX + 1);
    ssize_t n = text ? pread(fd, text, OUTPUT_MAX, 0) : -1;

    if (text) {
        text[n > 0 ? n : 0] = '\0';
    }
    return text;
}

int program_run(char *const *argv, char **ret_output, volatile sig_atomic_t *stop,
                struct error *err)
{
    int out AUTO_CLOSE = memfd_create("output", MFD_CLOEXEC);
    pid_t child;
    int r, status = 0;

    if (out < 0) {
        return error_set_errno(err, errno, "Could not make a file for the output of '%s'", argv[0]);
    }
    r = program_start(argv, out, &child, err);
    if (r < 0) {
        return r;
    }
    while (waitpid(child, &status, 0) < 0) {
        if (errno != EINTR) {
            return error_set_errno(err, errno, "Could not wait for '%s'", argv[0]);
        }
        if (stop && *stop) {
            kill(child, SIGTERM);
        }
    }
    if (stop && *stop) {
        return error_set(err, EINTR, "Stopped");
    }
    if (!WIFEXITED(status)) {
        return error_set(err, EIO, "'%s' was ended by signal %d", argv[0], WTERMSIG(status));
    }
    if (ret_output) {
        *ret_output = read_output(out);
        if (!*ret_output) {
            return error_out_of_memory(err);
        }
    }
    return WEXITSTATUS(status);
}
