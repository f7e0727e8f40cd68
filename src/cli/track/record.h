/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What is remembered of a tracked disk, a raw file or block device, to notice changes that nobody
 * tracked. It is a JSON file next to the image with the bitmaps: "IMAGE.state".
 *
 * While the disk is served the record says so (`clean` is false). A clean end writes it again, with
 * all that the system tells about the disk and a fingerprint of samples. So after a clean end a
 * change is noticed as far as sizes, times, counters and the identity of the device show it, and
 * mostly if it hit a sample; after a crash, of the program or the machine, only size and identity
 * can be compared.
 *
 * Nothing here yields; everything may block.
 */
#ifndef TIDEMARK_CLI_TRACK_RECORD_H
#define TIDEMARK_CLI_TRACK_RECORD_H

#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"
#include "base/sha256.h"

#define TRACK_IDENTITY_SIZE 320
#define TRACK_BOOT_SIZE 40

/* A disk as the system shows it. */
struct track_disk {
    bool device;
    /* in bytes */
    uint64_t size;
    /*
     * "inode N, made SECONDS", the latter if the file system knows it: numbers of inodes are given
     * again. Or what names the device across boots, as "dm/uuid LVM-..."
     */
    char identity[TRACK_IDENTITY_SIZE];
    /* of a file: ns since the epoch */
    int64_t mtime_ns, ctime_ns;
    /* of a device: which boot and, since then, sectors written or discarded; -1: not known */
    char boot[TRACK_BOOT_SIZE];
    int64_t changed_sectors;
};

/*
 * -EINVAL if it is neither a file nor a block device; the errors of opening it. What the system has
 * not written to a device yet is written first, so that it is counted.
 */
int track_look(const char *path, struct track_disk *ret_disk, struct error *err);
/* Whether both identities can be of one disk or file. */
bool track_same_identity(const char *a, const char *b);

enum track_verdict {
    /* There is no record that can be read. */
    TRACK_UNKNOWN,
    /* As it was at the last clean end. */
    TRACK_UNCHANGED,
    /* It was not ended cleanly; size and identity are the same. */
    TRACK_CRASHED,
    /* It is another one, or was changed. */
    TRACK_CHANGED,
};

/*
 * Compare the disk, and the image with its bitmaps, with the record. *ret_why is a sentence for all
 * but TRACK_UNCHANGED; the caller frees it (NULL: no memory).
 */
enum track_verdict track_compare(const char *path, const char *image, const char *record,
                                 char **ret_why);

/*
 * Write the record: `clean` after the end, with a fingerprint. On stable storage when it returns 0.
 */
int track_write_record(const char *path, const char *image, const char *record, bool clean,
                       struct error *err);

#endif
