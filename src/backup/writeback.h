/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Writing back early: the kernel begins to write out what a large file has got, while more is being
 * made for the file. So little is left for the sync at the end, which has to wait for the storage.
 * Nothing becomes stable by that, and no error is reported: both are the business of the sync.
 */
#ifndef TIDEMARK_BACKUP_WRITEBACK_H
#define TIDEMARK_BACKUP_WRITEBACK_H

#include <stdbool.h>
#include <stdint.h>

/* A file that is written about from its beginning to its end. */
struct writeback {
    int fd;         /* borrowed */
    uint64_t begun; /* bytes that the kernel was asked to write out */
    bool runs;      /* a coroutine waits for the kernel's answer */
};

/*
 * The caller has written most of the bytes before `end`. Every 32 MiB one call passes what is new
 * to the kernel, and waits until the kernel has taken the requests; other calls return at once.
 * `fd` is a file or block device; on anything else nothing happens. Main reactor; yields.
 */
void writeback_co_push(struct writeback *w, uint64_t end);

/* The same for a file that grows as it is written: `end` is its size. */
void writeback_co_push_all(struct writeback *w);

#endif
