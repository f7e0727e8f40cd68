/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/backup/boot.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "base/time_units.h"
#include "cli/backup/program.h"
#include "loop/loop.h"

/* How much of the console is kept. */
#define CONSOLE_MAX (64 * KiB)
#define TAIL 400u
/* A guest that is silent for this part of the limit is started again without KVM. */
#define QUIET_PART 3

struct console {
    char text[CONSOLE_MAX + 1];
    size_t size;
};

/* The emulator's arguments, NULL-terminated; each is borrowed but `drive`. NULL: no memory. */
static char **boot_words(const struct boot_options *o, bool kvm, char *drive)
{
    const char *const fixed[] = {"-machine",  kvm ? "accel=kvm:tcg" : "accel=tcg",
                                 "-m",        "1024",
                                 "-display",  "none",
                                 "-monitor",  "none",
                                 "-serial",   "stdio",
                                 "-nic",      "none",
                                 "-no-reboot"};
    size_t more = o->words->count;
    char **argv = calloc(ARRAY_SIZE(fixed) + more + 4, sizeof(*argv));
    size_t n = 0;

    if (!argv) {
        return NULL;
    }
    argv[n++] = (char *)(uintptr_t)o->program;
    for (size_t i = 0; i < ARRAY_SIZE(fixed); i++) {
        argv[n++] = (char *)(uintptr_t)fixed[i];
    }
    argv[n++] = (char *)(uintptr_t) "-drive";
    argv[n++] = drive;
    for (size_t i = 0; i < more; i++) {
        argv[n++] = (char *)(uintptr_t)o->words->item[i].value;
    }
    return argv;
}

/* "file=PATH,...", with commas of the path twice. */
static char *drive_word(const char *path)
{
    static const char before[] = "format=raw,if=virtio,cache=unsafe,file=";
    char *word = malloc(sizeof(before) + 2 * strlen(path)), *to;

    if (!word) {
        return NULL;
    }
    to = stpcpy(word, before);
    for (; *path; path++) {
        *to++ = *path;
        if (*path == ',') {
            *to++ = ',';
        }
    }
    *to = '\0';
    return word;
}

/* Append what was printed; the oldest half goes when there is no room. NULs become spaces. */
static void console_add(struct console *c, const char *text, size_t size)
{
    if (c->size + size > CONSOLE_MAX) {
        size_t half = MIN(c->size, CONSOLE_MAX / 2);

        memmove(c->text, c->text + (c->size - half), half);
        c->size = half;
    }
    for (size_t i = 0; i < size; i++) {
        c->text[c->size++] = text[i] ? text[i] : ' ';
    }
    c->text[c->size] = '\0';
}

/*
 * Returns 1: the marker came; 0: the emulator ended, or the time is up; -EINTR. -ETIME: nothing was
 * printed for `quiet_ns`, if that is not 0.
 */
static int watch_console(const struct boot_options *o, int fd, struct console *c,
                         int64_t deadline_ns, int64_t quiet_ns, struct error *err)
{
    int64_t heard_ns = loop_now_ns();
    char buf[4096];

    for (;;) {
        int64_t left = deadline_ns - loop_now_ns();
        struct pollfd p = {.fd = fd, .events = POLLIN};
        ssize_t n;

        if (*o->stop) {
            return error_set(err, EINTR, "Stopped");
        }
        if (left <= 0) {
            return 0;
        }
        if (quiet_ns && loop_now_ns() - heard_ns > quiet_ns) {
            return -ETIME;
        }
        if (poll(&p, 1, (int)MIN(left / NS_PER_MS + 1, 1000)) <= 0) {
            continue;
        }
        n = read(fd, buf, sizeof(buf));
        if (n == 0) {
            return 0;
        }
        heard_ns = loop_now_ns();
        console_add(c, buf, n > 0 ? (size_t)n : 0);
        if (strstr(c->text, o->marker)) {
            return 1;
        }
    }
}

static int run_emulator(const struct boot_options *o, char *const *argv, int64_t quiet_ns,
                        struct console *c, int64_t *ret_ns, struct error *err)
{
    int64_t started_ns = loop_now_ns();
    int pipe_fds[2], r, status;
    pid_t child;

    if (pipe2(pipe_fds, O_CLOEXEC) < 0) {
        return error_set_errno(err, errno, "Could not make a pipe");
    }
    r = program_start(argv, pipe_fds[1], &child, err);
    close(pipe_fds[1]);
    if (r == 0) {
        r = watch_console(o, pipe_fds[0], c, started_ns + o->limit_ns, quiet_ns, err);
        kill(child, SIGKILL);
        while (waitpid(child, &status, 0) < 0 && errno == EINTR) {
        }
    }
    close(pipe_fds[0]);
    *ret_ns = loop_now_ns() - started_ns;
    return r;
}

/*
 * Whether the emulator uses KVM, and nobody has asked for that: then a guest that is silent may be
 * the fault of KVM, which in some nested machines is there and does not work.
 */
static bool may_be_kvm(const struct boot_options *o)
{
    for (size_t i = 0; i < o->words->count; i++) {
        const char *word = o->words->item[i].value;

        if (strstr(word, "-accel") || strstr(word, "-machine") || strstr(word, "-M") ||
            strstr(word, "kvm")) {
            return false;
        }
    }
    return access("/dev/kvm", R_OK | W_OK) == 0;
}

static int try_to_boot(const struct boot_options *o, bool kvm, int64_t quiet_ns, struct console *c,
                       int64_t *ret_ns, struct error *err)
{
    char *drive AUTO_FREE = drive_word(o->disk);
    char **argv AUTO_FREE = boot_words(o, kvm, drive);

    return drive && argv ? run_emulator(o, argv, quiet_ns, c, ret_ns, err)
                         : error_out_of_memory(err);
}

int boot_disk(const struct boot_options *o, int64_t *ret_ns, char **ret_tail, struct error *err)
{
    struct console *c AUTO_FREE = calloc(1, sizeof(*c));
    int64_t quiet_ns = may_be_kvm(o) ? o->limit_ns / QUIET_PART : 0;
    int r;

    if (!c) {
        return error_out_of_memory(err);
    }
    r = try_to_boot(o, true, quiet_ns, c, ret_ns, err);
    if (r == -ETIME) {
        c->size = 0;
        r = try_to_boot(o, false, 0, c, ret_ns, err);
    }
    if (r == 0) {
        *ret_tail = strdup(c->text + (c->size - MIN(c->size, TAIL)));
        r = *ret_tail ? 0 : error_out_of_memory(err);
    }
    return r;
}
