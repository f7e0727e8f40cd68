/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A leaf driver "memory-file" for tests: files in memory that grow as they are written, outlive
 * their nodes, and can be made to fail. Option: name. Filenames "memory:NAME" also make them.
 */
#ifndef TIDEMARK_TESTS_MEMORY_FILE_H
#define TIDEMARK_TESTS_MEMORY_FILE_H

#include <pthread.h>
#include <stdint.h>

#include "block/driver.h"

#define MEMORY_FILE_READ 1u
#define MEMORY_FILE_WRITE 2u /* also zeroes */
#define MEMORY_FILE_DISCARD 4u
#define MEMORY_FILE_FLUSH 8u

#define MEMORY_FILE_SCRIPT 16

struct memory_file_op {
    unsigned kind;
    uint64_t offset, length;
};

#define MEMORY_FILE_LOG 4096

struct memory_file {
    char name[64];
    pthread_mutex_t lock; /* guards all below */
    uint8_t *data;
    uint64_t size, capacity;
    uint64_t limit;      /* bytes; what would make it longer fails with ENOSPC */
    unsigned fail_kinds; /* fail with fail_errno... */
    unsigned fail_after; /* ...after this number of requests of these kinds */
    int fail_errno;
    /* What the file says of its storage if it tells: `stored` bytes, or -errno. */
    bool tells_stored;
    int stored_result;
    uint64_t stored;
    /* Flushes to come, by number from 0: the result; 1: they wait until it is another one. */
    bool scripted;
    unsigned flushes;
    int script[MEMORY_FILE_SCRIPT];
    /* Operations that changed or flushed the file; the first ones since the log was cleared. */
    struct memory_file_op log[MEMORY_FILE_LOG];
    unsigned log_count;
};

extern const struct block_driver memory_file_driver;

/* By name; made if there is none. */
struct memory_file *memory_file(const char *name);
/* At least this number of bytes; new ones are zero. */
void memory_file_grow(struct memory_file *f, uint64_t size);
/* The file has this size, and is all zeroes. Takes as long as there are pages that were touched. */
void memory_file_clear(struct memory_file *f, uint64_t size);
/* Contents of `to` become those of `from`: what a crash that loses nothing would leave. */
void memory_file_copy(struct memory_file *to, const struct memory_file *from);
/* kinds 0: no more failures. */
void memory_file_fail(struct memory_file *f, unsigned kinds, unsigned after, int errnum);
/* The next MEMORY_FILE_SCRIPT flushes wait for memory_file_end_flush(); or none does any more. */
void memory_file_script(struct memory_file *f, bool scripted);
/* The result of flush `n` of the script: it ends. */
void memory_file_end_flush(struct memory_file *f, unsigned n, int result);
/* How many flushes of the script were begun. */
unsigned memory_file_flushes(struct memory_file *f);
void memory_file_free_all(void);

#endif
