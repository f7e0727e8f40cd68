/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A sparse file in memory that can lie on top of another one, which shows through where nothing was
 * written: what differs between two states of a disk is all that a state takes, in memory and time.
 */
#ifndef TIDEMARK_TESTS_PAGES_H
#define TIDEMARK_TESTS_PAGES_H

#include <stddef.h>
#include <stdint.h>

#define PAGE_BYTES 4096u

struct page {
    uint8_t *data;
    uint64_t hash; /* 0: unknown */
};

struct pages {
    uint64_t size;       /* of the file, bytes; what lies behind reads as zeroes */
    struct pages *below; /* NULL: none. Must not change while something lies on it */
    uint64_t below_end;  /* bytes of it that are not cut off */
    struct page *pages;
    size_t slots;
    size_t *own; /* numbers of the pages with data */
    size_t own_count, own_capacity;
};

/* Forget what was written and lie on `below` (NULL: be empty). */
void pages_reset(struct pages *f, struct pages *below);
void pages_release(struct pages *f);
void pages_resize(struct pages *f, uint64_t size);
/* Ranges may reach over the end: reads see zeroes there, writes are cut off. */
void pages_read(const struct pages *f, uint64_t offset, void *buf, uint64_t length);
void pages_write(struct pages *f, uint64_t offset, const void *buf, uint64_t length);
void pages_zero(struct pages *f, uint64_t offset, uint64_t length);
/* The same for the same size and contents, whatever lies on what. Never 0. */
uint64_t pages_hash(struct pages *f);

#endif
