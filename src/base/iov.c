/* SPDX-License-Identifier: Apache-2.0 */
#include "base/iov.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"

/* A walk over the pieces of a range of `v`: each element's part. */
struct iov_walk {
    struct iov v;
    /* the next element */
    int index;
    /* bytes of that element before the range */
    size_t skip;
    /* bytes of the range from there on */
    size_t left;
};

static struct iov_walk iov_walk_start(struct iov v, size_t offset, size_t size)
{
    struct iov_walk w = {.v = v, .skip = offset, .left = size};

    while (w.index < v.count && w.skip >= v.vec[w.index].iov_len) {
        w.skip -= v.vec[w.index++].iov_len;
    }
    return w;
}

/* Set *ret_piece to the next piece, which is not empty; false at the end. */
static bool iov_walk_next(struct iov_walk *w, struct iovec *ret_piece)
{
    while (w->left > 0 && w->index < w->v.count) {
        const struct iovec *e = &w->v.vec[w->index++];
        size_t len = MIN(e->iov_len - w->skip, w->left);

        *ret_piece = (struct iovec){.iov_base = (char *)e->iov_base + w->skip, .iov_len = len};
        w->skip = 0;
        w->left -= len;
        if (len > 0) {
            return true;
        }
    }
    return false;
}

int iov_slice(struct iov v, size_t offset, size_t size, struct iovec *out, int out_count)
{
    struct iov_walk w = iov_walk_start(v, offset, size);
    struct iovec piece;
    int n = 0;

    while (iov_walk_next(&w, &piece)) {
        if (n == out_count) {
            return -E2BIG;
        }
        out[n++] = piece;
    }
    return n;
}

int iov_part_set(struct iov_part *part, struct iov v, size_t offset, size_t size)
{
    int n;

    iov_part_release(part);
    if (offset == 0 && size == v.size) {
        part->iov = v;
        return 0;
    }
    n = iov_slice(v, offset, size, part->local, IOV_PART_LOCAL);
    if (n == -E2BIG) {
        part->heap = malloc((size_t)v.count * sizeof(*part->heap));
        if (!part->heap) {
            return -ENOMEM;
        }
        n = iov_slice(v, offset, size, part->heap, v.count);
    }
    part->iov =
        (struct iov){.vec = part->heap ? part->heap : part->local, .count = n, .size = size};
    return 0;
}

void iov_copy_from_buf(struct iov v, size_t offset, const void *buf, size_t size)
{
    struct iov_walk w = iov_walk_start(v, offset, size);
    struct iovec piece;

    while (iov_walk_next(&w, &piece)) {
        memcpy(piece.iov_base, buf, piece.iov_len);
        buf = (const char *)buf + piece.iov_len;
    }
}

void iov_copy_to_buf(struct iov v, size_t offset, void *buf, size_t size)
{
    struct iov_walk w = iov_walk_start(v, offset, size);
    struct iovec piece;

    while (iov_walk_next(&w, &piece)) {
        memcpy(buf, piece.iov_base, piece.iov_len);
        buf = (char *)buf + piece.iov_len;
    }
}

void iov_fill(struct iov v, size_t offset, int byte, size_t size)
{
    struct iov_walk w = iov_walk_start(v, offset, size);
    struct iovec piece;

    while (iov_walk_next(&w, &piece)) {
        memset(piece.iov_base, byte, piece.iov_len);
    }
}

bool iov_is_zero(struct iov v)
{
    for (int i = 0; i < v.count; i++) {
        if (!buffer_is_zero(v.vec[i].iov_base, v.vec[i].iov_len)) {
            return false;
        }
    }
    return true;
}

bool buffer_is_zero(const void *buf, size_t size)
{
    const unsigned char *p = buf;
    uint64_t head[2] = {0};

    if (size == 0) {
        return true;
    }
    /*
     * Most buffers with data differ from zero in the first words. If those are zero, and each byte
     * equals the one sizeof(head) further on, then all bytes are zero.
     */
    memcpy(head, p, MIN(size, sizeof(head)));
    return (head[0] | head[1]) == 0 &&
           (size <= sizeof(head) || memcmp(p, p + sizeof(head), size - sizeof(head)) == 0);
}
