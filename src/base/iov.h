/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Scatter/gather vectors. Lengths and offsets are bytes. No function here checks ranges: the caller
 * passes ranges that lie within the vector. None yields.
 */
#ifndef TIDEMARK_BASE_IOV_H
#define TIDEMARK_BASE_IOV_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/uio.h>

/* A borrowed vector: whoever makes one owns the array and the memory. */
struct iov {
    const struct iovec *vec;
    /* elements of `vec` */
    int count;
    /* sum of the lengths */
    size_t size;
};

/* A vector over one buffer. `storage` is memory for its element, used as long as the vector. */
static inline struct iov iov_from_buf(struct iovec *storage, void *buf, size_t size)
{
    *storage = (struct iovec){.iov_base = buf, .iov_len = size};
    return (struct iov){.vec = storage, .count = 1, .size = size};
}

/*
 * Fill `out` (room for `out_count` elements) with the part [offset, offset + size) of `v`. Returns
 * the number of elements used, or -E2BIG if there is too little room.
 */
int iov_slice(struct iov v, size_t offset, size_t size, struct iovec *out, int out_count);

/* Elements that an iov_part keeps on the stack; more go to the heap. */
#define IOV_PART_LOCAL 8

/*
 * A part of a vector, with memory for its elements. Coroutine stacks are small and requests pass
 * through many layers, so no layer keeps a large array on the stack.
 */
struct iov_part {
    struct iov iov;
    /* owned; NULL while `local` has enough room */
    struct iovec *heap;
    struct iovec local[IOV_PART_LOCAL];
};

/* Defines `struct iov_part name`, released when the scope ends. */
#define IOV_PART_AUTO(name)                                                                        \
    __attribute__((cleanup(iov_part_release))) struct iov_part name;                               \
    (name).heap = NULL

/*
 * Set part->iov to [offset, offset + size) of `v`; may be called again. 0 or -ENOMEM. If that is
 * all of `v`, part->iov has the elements of `v` itself, so those are used as long as the part.
 */
int iov_part_set(struct iov_part *part, struct iov v, size_t offset, size_t size);

/* Free the memory. part->iov is invalid until the next iov_part_set(). */
static inline void iov_part_release(struct iov_part *part)
{
    if (__builtin_expect(part->heap != NULL, 0)) {
        free(part->heap);
        part->heap = NULL;
    }
}

/* Copy `size` bytes from `buf` to `v`, beginning at `offset` of `v`. */
void iov_copy_from_buf(struct iov v, size_t offset, const void *buf, size_t size);

/* Copy `size` bytes of `v`, beginning at `offset` of `v`, to `buf`. */
void iov_copy_to_buf(struct iov v, size_t offset, void *buf, size_t size);

/* Set each byte of [offset, offset + size) of `v` to `byte`. */
void iov_fill(struct iov v, size_t offset, int byte, size_t size);

/* Whether all bytes of `v` are zero; true for an empty one. */
bool iov_is_zero(struct iov v);

/* Whether `size` bytes at `buf` are all zero, at memory speed; true for a size of 0. */
bool buffer_is_zero(const void *buf, size_t size);

#endif
