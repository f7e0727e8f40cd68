/* SPDX-License-Identifier: Apache-2.0 */
#include "backup/upload_lock.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "backup/repository.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "base/iov.h"
#include "base/time_units.h"
#include "loop/loop.h"

#define LOCK_NAME REPOSITORY_OWN_PREFIX "upload"
#define FREE_WORDS "free"
#define HOST_SIZE 65
#define BEAT_NS (2 * NS_PER_SECOND)
/* Of a copy on an unknown machine: how often its file is looked at, and how long in all. */
#define WATCH_NS NS_PER_SECOND
#define WATCH_COUNT 10
/* More than what passes between one's look at a free lock and one's words in it. */
#define SETTLE_NS (300 * NS_PER_MS)

static void pause_ns(int64_t ns)
{
    struct timespec t = ns_to_timespec(ns);

    nanosleep(&t, NULL);
}

/* --- the words in the file: place, process/its start, name of the machine, beats -------------- */

/* The processes that a number means: the machine since its start, and the name space. */
static void get_place(char *ret_place, size_t size)
{
    char boot[64] = "", space[64] = "";
    FILE *f = fopen("/proc/sys/kernel/random/boot_id", "re");

    if (f) {
        if (fscanf(f, "%60s", boot) != 1) {
            boot[0] = '\0';
        }
        fclose(f);
    }
    if (readlink("/proc/self/ns/pid", space, sizeof(space) - 1) < 0) {
        space[0] = '\0';
    }
    snprintf(ret_place, size, "%s/%s", boot, space);
}

/*
 * When a process began, in ticks since the start of the machine: numbers are used again, and that
 * of the first process of a container is always the same. 0: there is no such process, or it has
 * ended.
 */
static unsigned long long start_of(long process)
{
    unsigned long long start = 0;
    char path[64], text[1024];
    const char *rest;
    size_t size;
    FILE *f;

    snprintf(path, sizeof(path), "/proc/%ld/stat", process);
    f = fopen(path, "re");
    if (!f) {
        return 0;
    }
    size = fread(text, 1, sizeof(text) - 1, f);
    fclose(f);
    text[size] = '\0';
    rest = strrchr(text, ')'); /* the name before that may have spaces */
    if (rest && strncmp(rest, ") Z", 3) == 0) {
        return 0;
    }
    for (int field = 2; rest && field < 22; field++) {
        rest = strchr(rest + 1, ' ');
    }
    if (rest) {
        start = strtoull(rest, NULL, 10);
    }
    return start;
}

static int put_words(struct upload_lock *lock, const char *words, struct error *err)
{
    char text[UPLOAD_LOCK_SIZE];
    struct iovec vec;
    int r;

    /* Always of one size: servers may refuse to cut files. */
    snprintf(text, sizeof(text), "%-*s", (int)sizeof(text) - 1, words);
    text[sizeof(text) - 1] = '\n';
    r = remote_file_write(lock->file, 0, iov_from_buf(&vec, text, sizeof(text)));
    return r < 0
               ? error_set_errno(err, -r, "Could not write '%s' in '%s'", LOCK_NAME, lock->address)
               : 0;
}

/* An empty or short file is a new one. */
static int get_words(const struct upload_lock *lock, char ret_words[UPLOAD_LOCK_SIZE],
                     struct error *err)
{
    uint64_t size = 0;
    struct iovec vec;
    int r = remote_file_size(lock->file, &size, err);

    memset(ret_words, 0, UPLOAD_LOCK_SIZE);
    if (r == 0 && size >= UPLOAD_LOCK_SIZE) {
        r = remote_file_read(lock->file, 0, iov_from_buf(&vec, ret_words, UPLOAD_LOCK_SIZE));
        if (r < 0) {
            error_set_errno(err, -r, "Could not read '%s' in '%s'", LOCK_NAME, lock->address);
        }
    }
    ret_words[UPLOAD_LOCK_SIZE - 1] = '\0';
    for (size_t n = strlen(ret_words); n > 0 && ret_words[n - 1] == ' '; n--) {
        ret_words[n - 1] = '\0';
    }
    return r;
}

static int beat(struct upload_lock *lock, struct error *err)
{
    char place[160], host[HOST_SIZE] = "";

    get_place(place, sizeof(place));
    gethostname(host, sizeof(host) - 1);
    snprintf(lock->words, sizeof(lock->words), "%s %ld/%llu %s %" PRIu64, place, (long)getpid(),
             start_of((long)getpid()), host, ++lock->beats);
    lock->beat_ns = loop_now_ns();
    return put_words(lock, lock->words, err);
}

/* --- whether another one is alive ------------------------------------------------------------- */

enum life { LIFE_NONE, LIFE_UNKNOWN, LIFE_HERE };

/* What is known without waiting; *ret_process is for messages. */
static enum life look_at(const char *words, long *ret_process, char ret_host[HOST_SIZE])
{
    char place[160], ours[160], process[48], *end;
    unsigned long long start;

    if (sscanf(words, "%159s %47s %64s", place, process, ret_host) != 3) {
        return LIFE_NONE;
    }
    *ret_process = strtol(process, &end, 10);
    start = *end == '/' ? strtoull(end + 1, NULL, 10) : 0;
    get_place(ours, sizeof(ours));
    if (strcmp(place, ours) != 0 || start == 0) {
        return LIFE_UNKNOWN;
    }
    if (start_of(*ret_process) == start) {
        return LIFE_HERE;
    }
    /* The processes of other users may be hidden. */
    return start_of(*ret_process) == 0 && kill((pid_t)*ret_process, 0) < 0 && errno == EPERM
               ? LIFE_UNKNOWN
               : LIFE_NONE;
}

/* Whether the file changes while it is watched. */
static int watch(const struct upload_lock *lock, const char *words, volatile sig_atomic_t *stop,
                 bool *ret_changes, struct error *err)
{
    char now[UPLOAD_LOCK_SIZE];
    int r = 0;

    *ret_changes = false;
    for (int i = 0; r == 0 && !*ret_changes && i < WATCH_COUNT; i++) {
        if (stop && *stop) {
            return error_set(err, EINTR, "Stopped");
        }
        pause_ns(WATCH_NS);
        r = get_words(lock, now, err);
        *ret_changes = r == 0 && strcmp(now, words) != 0;
    }
    return r;
}

static int check_alone(const struct upload_lock *lock, volatile sig_atomic_t *stop,
                       struct error *err)
{
    char words[UPLOAD_LOCK_SIZE], host[HOST_SIZE] = "";
    long process = 0;
    bool lives;
    int r = get_words(lock, words, err);
    enum life life = r < 0 ? LIFE_NONE : look_at(words, &process, host);

    lives = life == LIFE_HERE;
    if (life == LIFE_UNKNOWN) {
        r = watch(lock, words, stop, &lives, err);
    }
    if (r == 0 && lives) {
        r = error_set(err, EBUSY, "Another copy to '%s' is under way: process %ld on %s",
                      lock->address, process, host);
    }
    return r;
}

/* --- the lock --------------------------------------------------------------------------------- */

int upload_lock_take(struct upload_lock *lock, struct remote_dir *dir, const char *address,
                     volatile sig_atomic_t *stop, struct error *err)
{
    int r;

    *lock = (struct upload_lock){.address = address};
    r = remote_dir_open_file(dir, LOCK_NAME, O_RDWR | O_CREAT, &lock->file, err);
    if (r < 0) {
        lock->file = NULL;
        return r;
    }
    r = check_alone(lock, stop, err);
    UNLESS_FAILED(r, beat(lock, err));
    if (r == 0) {
        pause_ns(SETTLE_NS);
        r = upload_lock_confirm(lock, err);
    }
    if (r < 0) {
        remote_file_close(TAKE_PTR(lock->file));
    }
    return r;
}

int upload_lock_confirm(struct upload_lock *lock, struct error *err)
{
    char words[UPLOAD_LOCK_SIZE];
    int r = get_words(lock, words, err);

    if (r == 0 && strcmp(words, lock->words) != 0) {
        r = error_set(err, EBUSY, "Another copy to '%s' has begun meanwhile", lock->address);
    }
    UNLESS_FAILED(r, beat(lock, err));
    return r;
}

int upload_lock_keep(struct upload_lock *lock, struct error *err)
{
    return loop_now_ns() - lock->beat_ns < BEAT_NS ? 0 : upload_lock_confirm(lock, err);
}

void upload_lock_release(struct upload_lock *lock)
{
    if (lock->file && upload_lock_confirm(lock, NULL) == 0) {
        put_words(lock, FREE_WORDS, NULL);
    }
    remote_file_close(TAKE_PTR(lock->file));
}
