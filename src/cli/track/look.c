/* SPDX-License-Identifier: Apache-2.0 */
/* A disk as the system shows it. */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/fs.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "cli/track/record.h"

#define NS_PER_S 1000000000ll

/* The first line of a file, without the newline; false if there is none. */
static bool read_look_line(const char *path, char *text, size_t size)
{
    FILE *file = fopen(path, "re");
    bool ok = file && fgets(text, (int)size, file);

    if (ok) {
        text[strcspn(text, "\n")] = '\0';
    }
    if (file) {
        fclose(file);
    }
    return ok && text[0];
}

/* --- devices ---------------------------------------------------------------------------------- */

/* The identity of the device in the folder `dir` of sysfs. */
static bool name_by(const char *dir, char *identity, size_t size)
{
    /* What is written into the device or assigned to it, before what depends on where it is. */
    static const char *const files[] = {"dm/uuid",          "md/uuid", "wwid",
                                        "device/wwid",      "serial",  "device/serial",
                                        "loop/backing_file"};
    char path[PATH_MAX], value[256];

    for (size_t i = 0; i < ARRAY_SIZE(files); i++) {
        snprintf(path, sizeof(path), "%s/%s", dir, files[i]);
        if (read_look_line(path, value, sizeof(value))) {
            snprintf(identity, size, "%s %s", files[i], value);
            return true;
        }
    }
    return false;
}

static void identify_device(const char *dir, dev_t device, char *identity, size_t size)
{
    char path[PATH_MAX], number[16];

    if (name_by(dir, identity, size)) {
        return;
    }
    snprintf(path, sizeof(path), "%s/partition", dir);
    if (read_look_line(path, number, sizeof(number))) {
        snprintf(path, sizeof(path), "%s/..", dir);
        if (name_by(path, identity, size)) {
            size_t used = strlen(identity);

            snprintf(identity + used, size - used, " partition %s", number);
            return;
        }
    }
    snprintf(identity, size, "number %u:%u", major(device), minor(device));
}

/* Columns of /sys/block/.../stat, from 0; older systems end before the second one. */
#define SECTORS_WRITTEN 6
#define SECTORS_DISCARDED 13

/*
 * Sectors that were written and discarded since the device exists; -1 if the system does not say.
 */
static int64_t count_changed_sectors(const char *dir)
{
    char path[PATH_MAX], line[512];
    char *at = line, *end;
    uint64_t sum = 0;
    int column = 0;

    snprintf(path, sizeof(path), "%s/stat", dir);
    if (!read_look_line(path, line, sizeof(line))) {
        return -1;
    }
    for (; column <= SECTORS_DISCARDED; column++, at = end) {
        uint64_t value = strtoull(at, &end, 10);

        if (end == at) {
            break;
        }
        sum += column == SECTORS_WRITTEN || column == SECTORS_DISCARDED ? value : 0;
    }
    return column > SECTORS_WRITTEN ? (int64_t)sum : -1;
}

static int look_at_device(int fd, dev_t device, struct track_disk *disk)
{
    char dir[64], sequence[24] = "";

    if (ioctl(fd, BLKGETSIZE64, &disk->size) < 0) {
        return -errno;
    }
    /* What another program has written may be in the page cache only. */
    if (fsync(fd) < 0) {
        return -errno;
    }
    disk->device = true;
    snprintf(dir, sizeof(dir), "/sys/dev/block/%u:%u", major(device), minor(device));
    identify_device(dir, device, disk->identity, sizeof(disk->identity));
    disk->changed_sectors = count_changed_sectors(dir);
    if (!read_look_line("/proc/sys/kernel/random/boot_id", disk->boot, sizeof(disk->boot))) {
        disk->changed_sectors = -1;
    }
    /* A number is given to a device once in a boot: another one there began to count at 0. */
    snprintf(dir, sizeof(dir), "/sys/dev/block/%u:%u/diskseq", major(device), minor(device));
    if (read_look_line(dir, sequence, sizeof(sequence))) {
        size_t used = MIN(strlen(disk->boot), (size_t)18);

        snprintf(disk->boot + used, sizeof(disk->boot) - used, "/%s", sequence);
    }
    return 0;
}

/* --- files ------------------------------------------------------------------------------------ */

/* Between the number of an inode and the time when it was made. */
#define MADE ", made "

static int look_at_tracked_file(int fd, struct track_disk *disk)
{
    struct statx st;
    size_t used;

    if (statx(fd, "", AT_EMPTY_PATH, STATX_BASIC_STATS | STATX_BTIME, &st) < 0) {
        return -errno;
    }
    disk->size = st.stx_size;
    disk->mtime_ns = st.stx_mtime.tv_sec * NS_PER_S + st.stx_mtime.tv_nsec;
    disk->ctime_ns = st.stx_ctime.tv_sec * NS_PER_S + st.stx_ctime.tv_nsec;
    snprintf(disk->identity, sizeof(disk->identity), "inode %" PRIu64, (uint64_t)st.stx_ino);
    if (st.stx_mask & STATX_BTIME) {
        used = strlen(disk->identity);
        snprintf(disk->identity + used, sizeof(disk->identity) - used, MADE "%" PRId64 ".%09u",
                 (int64_t)st.stx_btime.tv_sec, (unsigned)st.stx_btime.tv_nsec);
    }
    return 0;
}

/* --- all -------------------------------------------------------------------------------------- */

bool track_same_identity(const char *a, const char *b)
{
    const char *made_a = strstr(a, MADE), *made_b = strstr(b, MADE);
    size_t size;

    if (!made_a == !made_b) {
        return strcmp(a, b) == 0;
    }
    /* A system may begin to say when a file was made. */
    size = made_a ? (size_t)(made_a - a) : (size_t)(made_b - b);
    return strncmp(a, b, size) == 0 && strlen(made_a ? b : a) == size;
}

int track_look(const char *path, struct track_disk *ret_disk, struct error *err)
{
    AUTO_CLOSE int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    struct track_disk disk = {.changed_sectors = -1};
    struct stat st = {0};
    int r = fd < 0 || fstat(fd, &st) < 0 ? -errno : 0;

    if (r == 0 && !S_ISREG(st.st_mode) && !S_ISBLK(st.st_mode)) {
        return error_set(err, EINVAL, "'%s' is neither a file nor a block device", path);
    }
    if (r == 0 && S_ISBLK(st.st_mode)) {
        r = look_at_device(fd, st.st_rdev, &disk);
    } else if (r == 0) {
        r = look_at_tracked_file(fd, &disk);
    }
    if (r < 0) {
        return error_set_errno(err, -r, "Could not look at '%s'", path);
    }
    *ret_disk = disk;
    return 0;
}
