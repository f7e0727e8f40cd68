/* SPDX-License-Identifier: Apache-2.0 */
#include "luks/sectors.h"

#include <string.h>

#include "base/checked.h"
#include "loop/loop.h"

/* A reactor should not compute for longer without looking at other requests. */
#define COMPUTE_MAX_US 50

/* A request is divided into at most this many pieces. */
#define PIECES_MAX MIN(4, LOOP_OFFLOAD_ALL_MAX)

/* Part of a request: [offset, offset + size) of `iov`. */
struct crypt_piece {
    struct luks_cipher *cipher;
    /* of the first byte of `iov` */
    uint64_t sector;
    struct iov iov;
    /* encrypt to here, the place of the first byte of `iov`; NULL: decrypt in place */
    uint8_t *dst;
    size_t offset, size;
};

static int transform(const struct crypt_piece *p, size_t offset, uint8_t *data, size_t size)
{
    uint64_t sector = p->sector + offset / LUKS_SECTOR;

    return p->dst ? luks_cipher_encrypt(p->cipher, sector, p->dst + offset, data, size)
                  : luks_cipher_decrypt(p->cipher, sector, data, data, size);
}

/* A sector that lies in several elements of the vector. */
static int transform_scattered(const struct crypt_piece *p, size_t offset)
{
    uint8_t data[LUKS_SECTOR];
    int r;

    iov_copy_to_buf(p->iov, offset, data, sizeof(data));
    r = transform(p, offset, data, sizeof(data));
    if (r == 0 && !p->dst) {
        iov_copy_from_buf(p->iov, offset, data, sizeof(data));
    }
    return r;
}

static int transform_piece(void *arg)
{
    const struct crypt_piece *p = arg;
    const struct iovec *element = p->iov.vec;
    /* of the first byte of `element` */
    size_t start = 0;
    int r = 0;

    for (size_t at = p->offset, n; at < p->offset + p->size && r == 0; at += n) {
        while (start + element->iov_len <= at) {
            start += element->iov_len;
            element++;
        }
        n = MIN(start + element->iov_len, p->offset + p->size) - at;
        n = round_down(n, LUKS_SECTOR);
        if (n > 0) {
            r = transform(p, at, (uint8_t *)element->iov_base + (at - start), n);
        } else {
            r = transform_scattered(p, at);
            n = LUKS_SECTOR;
        }
    }
    return r;
}

static int co_transform(const struct crypt_piece *whole)
{
    struct crypt_piece pieces[PIECES_MAX];
    size_t least = MAX(luks_cipher_speed(whole->cipher) * COMPUTE_MAX_US, (size_t)LUKS_SECTOR);
    size_t count = MIN(div_round_up(whole->size, least), (size_t)PIECES_MAX);
    size_t each;

    if (whole->size <= least) {
        return transform_piece((void *)(uintptr_t)whole);
    }
    each = round_up(div_round_up(whole->size, count), LUKS_SECTOR);
    count = div_round_up(whole->size, each);
    for (size_t i = 0; i < count; i++) {
        pieces[i] = *whole;
        pieces[i].offset = i * each;
        pieces[i].size = MIN(each, whole->size - i * each);
    }
    return loop_co_offload_all(transform_piece, pieces, sizeof(pieces[0]), (unsigned)count);
}

int luks_co_decrypt(struct luks_cipher *c, uint64_t sector, struct iov iov)
{
    struct crypt_piece p = {.cipher = c, .sector = sector, .iov = iov, .size = iov.size};

    return co_transform(&p);
}

int luks_co_encrypt(struct luks_cipher *c, uint64_t sector, struct iov iov, uint8_t *dst)
{
    struct crypt_piece p = {
        .cipher = c, .sector = sector, .iov = iov, .dst = dst, .size = iov.size};

    return co_transform(&p);
}
