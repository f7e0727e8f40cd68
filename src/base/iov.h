/* SPDX-License-Identifier: Apache-2.0 */
/* Scatter/gather vectors. Lengths and offsets are bytes. None of these functions yields. */
#ifndef TIDEMARK_BASE_IOV_H
#define TIDEMARK_BASE_IOV_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

/* A borrowed vector: who makes one owns the array and the memory it points to. */
struct iov {
    const struct iovec *vec;
    int count;
    size_t size; /* sum of the lengths */
};

/* A vector over one buffer; `storage` must live as long as the result. */
static inline struct iov iov_from_buf(struct iovec *storage, void *buf, size_t size)
{
    *storage = (struct iovec){.iov_base = buf, .iov_len = size};
    return (struct iov){.vec = storage, .count = 1, .size = size};
}

/* Sum of the lengths of `count` elements. */
size_t iov_total(const struct iovec *vec, int count);

/*
 * Fill `out` (room for `out_count` elements) with the part [offset, offset + size) of `v`.
 * Returns the number of elements used, or -E2BIG when they don't fit. The range must lie within
 * `v`.
 */
int iov_slice(struct iov v, size_t offset, size_t size, struct iovec *out, int out_count);

/*
 * A part of a vector that lives in a scope: few elements on the stack, many on the heap. Coroutine stacks are small and
 * requests pass through many layers, so no layer keeps a large array on the stack.
 */
#define IOV_PART_LOCAL 8
struct iov_part {
    struct iov iov;
    struct iovec *heap; /* NULL while `local` is enough */
    struct iovec local[IOV_PART_LOCAL];
};

#define IOV_PART_AUTO(name)                                                                        \
    __attribute__((cleanup(iov_part_release))) struct iov_part name;                               \
    (name).heap = NULL

/* part->iov becomes [offset, offset + size) of `v`; may be called again. 0 or -ENOMEM. */
int iov_part_set(struct iov_part *part, struct iov v, size_t offset, size_t size);
void iov_part_release(struct iov_part *part);

/* Copy between [offset, offset + size) of `v` and a flat buffer. The range must lie within `v`. */
void iov_copy_from_buf(struct iov v, size_t offset, const void *buf, size_t size);
void iov_copy_to_buf(struct iov v, size_t offset, void *buf, size_t size);

/* Fill [offset, offset + size) of `v` with a byte. */
void iov_fill(struct iov v, size_t offset, int byte, size_t size);

/* Whether all bytes are zero. */
bool iov_is_zero(struct iov v);

/* Whether `size` bytes at `buf` are all zero; runs at memory speed. size may be 0 (true). */
bool buffer_is_zero(const void *buf, size_t size);

#endif
