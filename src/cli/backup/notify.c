/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/backup/notify.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "cli/cli.h"

const char *backup_notify_program;
static struct json_object *noted;

void backup_note_result(struct json_object *result)
{
    if (result) {
        json_object_put(noted);
        noted = json_object_get(result);
    }
}

/* What a run that noted nothing tells: a wrong command line, or one that has no result. */
static const char *nothing_noted(int status)
{
    return status == 0
               ? "{}"
               : "{\"error\": {\"kind\": \"failed\", \"message\": \"Standard error says why\"}}";
}

/* A file, so that a program which does not read it can't hold this one up. -1: none. */
static int result_file(int status)
{
    const char *text = noted ? json_object_to_json_string_ext(noted, JSON_C_TO_STRING_PRETTY)
                             : nothing_noted(status);
    int fd = memfd_create("result", MFD_CLOEXEC);

    if (fd >= 0 && (write(fd, text, strlen(text)) < 0 || write(fd, "\n", 1) < 0 ||
                    lseek(fd, 0, SEEK_SET) < 0)) {
        close(fd);
        return -1;
    }
    return fd;
}

/* Returns 0, or the errno of what failed; *ret_status is that of waitpid(2). */
static int run_program(const char *face, int status, int *ret_status)
{
    char text[12];
    char *argv[] = {(char *)(uintptr_t)backup_notify_program, (char *)(uintptr_t)face, text, NULL};
    posix_spawn_file_actions_t actions;
    posix_spawnattr_t attributes;
    sigset_t none;
    int fd AUTO_CLOSE = result_file(status);
    pid_t child;
    int r;

    if (fd < 0) {
        return errno;
    }
    snprintf(text, sizeof(text), "%d", status);
    sigemptyset(&none);
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, fd, STDIN_FILENO);
    posix_spawn_file_actions_adddup2(&actions, STDERR_FILENO, STDOUT_FILENO);
    posix_spawnattr_init(&attributes);
    posix_spawnattr_setsigmask(&attributes, &none);
    posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGMASK);
    r = posix_spawnp(&child, backup_notify_program, &actions, &attributes, argv, environ);
    posix_spawn_file_actions_destroy(&actions);
    posix_spawnattr_destroy(&attributes);
    while (r == 0 && waitpid(child, ret_status, 0) < 0) {
        r = errno == EINTR ? 0 : errno;
    }
    return r;
}

int backup_notify(const char *face, int status)
{
    int ended = 0, r;

    if (!backup_notify_program) {
        return status;
    }
    r = run_program(face, status, &ended);
    if (r != 0) {
        cli_warn("Could not run '%s': %s", backup_notify_program, strerror(r));
    } else if (!WIFEXITED(ended) || WEXITSTATUS(ended) != 0) {
        cli_warn("'%s' failed", backup_notify_program);
    }
    json_object_put(noted);
    noted = NULL;
    return status;
}
