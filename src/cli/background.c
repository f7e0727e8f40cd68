/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/background.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/log.h"

/* Wait until the child serves, or has failed and printed why. Returns the exit status. */
static int wait_for_child(pid_t child, int ready_fd)
{
    int status = 0;
    char byte;
    ssize_t n;

    do {
        n = read(ready_fd, &byte, 1);
    } while (n < 0 && errno == EINTR);
    close(ready_fd);
    if (n == 1) {
        return 0;
    }
    waitpid(child, &status, 0);
    return WIFEXITED(status) && WEXITSTATUS(status) ? WEXITSTATUS(status) : 1;
}

int cli_go_to_background(int *ret_ready_fd, struct error *err)
{
    int pipe_fds[2];
    pid_t child;

    if (pipe2(pipe_fds, O_CLOEXEC) < 0) {
        return error_set_errno(err, errno, "Could not make a pipe");
    }
    child = fork();
    if (child < 0) {
        return error_set_errno(err, errno, "Failed to fork");
    }
    if (child > 0) {
        close(pipe_fds[1]);
        exit(wait_for_child(child, pipe_fds[0]));
    }
    close(pipe_fds[0]);
    *ret_ready_fd = pipe_fds[1];
    setsid();
    return 0;
}

/*
 * File systems that know no locks are fine. The lock belongs to the open file, so that it is not
 * lost with another descriptor of the same file.
 */
static int lock_pid_file(int fd, const char *path, struct error *err)
{
    struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET};

    if (fcntl(fd, F_OFD_SETLK, &lock) < 0 && (errno == EAGAIN || errno == EACCES)) {
        return error_set(err, EAGAIN,
                         "Cannot lock pid file '%s': the process that has written it is running",
                         path);
    }
    return 0;
}

int cli_write_pid_file(const char *path, struct error *err)
{
    int r, fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0666);

    if (fd < 0) {
        return error_set_errno(err, errno, "Could not create '%s'", path);
    }
    r = lock_pid_file(fd, path, err);
    /* Not a file, but a terminal or a pipe, has no length. */
    if (r == 0 &&
        ((ftruncate(fd, 0) < 0 && errno != EINVAL) || dprintf(fd, "%ld\n", (long)getpid()) < 0)) {
        r = error_set_errno(err, errno, "Could not create '%s'", path);
    }
    if (r < 0) {
        close(fd);
    }
    /* Otherwise it stays open, with the lock. */
    return r;
}

void cli_announce_serving(int ready_fd, bool keep_errors)
{
    int null;

    if (ready_fd < 0) {
        return;
    }
    null = open("/dev/null", O_RDWR | O_CLOEXEC);
    if (null >= 0) {
        dup2(null, STDIN_FILENO);
        dup2(null, STDOUT_FILENO);
        if (!keep_errors) {
            dup2(null, STDERR_FILENO);
        }
        close(null);
    }
    if (write(ready_fd, "", 1) < 0) {
        log_warning("The process that started this one has gone");
    }
    close(ready_fd);
}
