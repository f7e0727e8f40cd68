/* SPDX-License-Identifier: Apache-2.0 */
#include "backup/stored.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include "backup/stored_internal.h"
#include "base/aead.h"
#include "base/byteorder.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "base/fd_io.h"
#include "base/secret_memory.h"

#define SEALED_PIECE (STORED_PIECE + STORED_OVERHEAD)
#define BATCH 32u /* pieces */

/* In secret memory if there is a key. */
struct stored {
    int fd;
    bool sealed;
    enum stored_kind kind;
    uint8_t key[AEAD_KEY_SIZE];
    uint8_t header[STORED_HEADER_SIZE];
    /* guards what follows, and writes of parts of a piece */
    pthread_mutex_t lock;
    uint64_t size;
    uint64_t pieces; /* that the file has */
    bool finished;   /* the header says what the file has */
};

/* --- plain input and output ------------------------------------------------------------------- */

static int read_bytes(int fd, void *data, size_t size, uint64_t offset)
{
    ssize_t n = fd_read_at(fd, data, size, offset);

    return n < 0 ? (int)n : (size_t)n < size ? -EIO : 0;
}

/* --- opening ---------------------------------------------------------------------------------- */

static struct stored *new_stored(int fd, bool sealed, enum stored_kind kind)
{
    struct stored *s = sealed ? secret_alloc(sizeof(*s)) : calloc(1, sizeof(*s));

    if (s) {
        *s = (struct stored){.fd = fd, .sealed = sealed, .kind = kind};
        pthread_mutex_init(&s->lock, NULL);
    }
    return s;
}

struct stored *stored_create(int fd, const struct backup_key *seal, enum stored_kind kind)
{
    struct stored *s = new_stored(fd, seal != NULL, kind);

    if (s && seal &&
        (stored_begin_header(seal, kind, STORED_PIECE, s->header) < 0 ||
         stored_derive_key(seal, s->header, s->key) < 0)) {
        stored_free(s);
        s = NULL;
    }
    return s;
}

/* The header of a file, and whether the file has the size that it says. */
static int read_header(struct stored *s, const struct backup_key *seal, const char *shown,
                       struct error *err)
{
    struct stat st;
    ssize_t n = pread(s->fd, s->header, STORED_HEADER_SIZE, 0);
    int r;

    if (n < 0 || fstat(s->fd, &st) < 0) {
        return error_set_errno(err, errno, "Could not read '%s'", shown);
    }
    r = stored_open_header(seal, s->kind, STORED_PIECE, s->header, (size_t)n, shown, s->key, err);
    if (r < 0) {
        return r;
    }
    s->size = load_le64(s->header + STORED_AT_SIZE);
    s->finished = true;
    s->pieces = s->size / STORED_PIECE + (s->size % STORED_PIECE != 0);
    if (s->size > INT64_MAX / 2 ||
        (uint64_t)st.st_size != STORED_HEADER_SIZE + s->pieces * SEALED_PIECE) {
        return error_set(err, EBADMSG, "'%s' was changed: it was cut, or something follows it",
                         shown);
    }
    return 0;
}

int stored_open(int fd, const struct backup_key *seal, enum stored_kind kind, const char *shown,
                struct stored **ret_stored, struct error *err)
{
    struct stored *s = new_stored(fd, seal != NULL, kind);
    int r;

    if (!s) {
        return error_out_of_memory(err);
    }
    r = seal ? read_header(s, seal, shown, err) : 0;
    if (r < 0) {
        stored_free(s);
        return r;
    }
    *ret_stored = s;
    return 0;
}

void stored_free(struct stored *s)
{
    if (!s) {
        return;
    }
    pthread_mutex_destroy(&s->lock);
    if (s->sealed) {
        secret_free(s);
    } else {
        free(s);
    }
}

uint64_t stored_size(struct stored *s)
{
    struct stat st;
    uint64_t size;

    if (!s->sealed) {
        return fstat(s->fd, &st) < 0 ? 0 : (uint64_t)st.st_size;
    }
    pthread_mutex_lock(&s->lock);
    size = s->size;
    pthread_mutex_unlock(&s->lock);
    return size;
}

/* --- pieces ----------------------------------------------------------------------------------- */

static uint64_t place_of_piece(uint64_t piece)
{
    return STORED_HEADER_SIZE + piece * SEALED_PIECE;
}

static void fill_aad(enum stored_kind kind, uint64_t piece, uint8_t ret_aad[static 12])
{
    store_le64(ret_aad, piece);
    store_le32(ret_aad + 8, kind);
}

/* Encrypt `count` pieces (at most BATCH), and write them; `data` NULL: zeroes. */
static int write_pieces(struct stored *s, uint64_t first, unsigned count, const uint8_t *data)
{
    static const uint8_t zeroes[STORED_PIECE];
    uint8_t nonces[BATCH * AEAD_NONCE_SIZE], aad[12];
    uint8_t *buf AUTO_FREE = malloc((size_t)count * SEALED_PIECE);
    ssize_t random = (ssize_t)count * AEAD_NONCE_SIZE;
    struct aead *a = aead_new(s->key, 1);
    int r = buf && a && getrandom(nonces, (size_t)random, 0) == random ? 0 : -ENOMEM;

    for (unsigned i = 0; r == 0 && i < count; i++) {
        uint8_t *to = buf + (size_t)i * SEALED_PIECE;
        const struct aead_message m = {
            .nonce = to,
            .aad = aad,
            .aad_size = sizeof(aad),
            .in = data ? data + (size_t)i * STORED_PIECE : zeroes,
            .out = to + AEAD_NONCE_SIZE,
            .size = STORED_PIECE,
            .tag = to + AEAD_NONCE_SIZE + STORED_PIECE,
        };

        memcpy(to, nonces + (size_t)i * AEAD_NONCE_SIZE, AEAD_NONCE_SIZE);
        fill_aad(s->kind, first + i, aad);
        r = aead_seal(a, &m);
    }
    UNLESS_FAILED(r, fd_write_at(s->fd, buf, (size_t)count * SEALED_PIECE, place_of_piece(first)));
    aead_free(a);
    return r;
}

/* Read `count` pieces (at most BATCH), and decrypt them. */
static int read_pieces(struct stored *s, uint64_t first, unsigned count, uint8_t *data)
{
    uint8_t aad[12];
    uint8_t *buf AUTO_FREE = malloc((size_t)count * SEALED_PIECE);
    struct aead *a = aead_new(s->key, 0);
    int r = buf && a ? read_bytes(s->fd, buf, (size_t)count * SEALED_PIECE, place_of_piece(first))
                     : -ENOMEM;

    for (unsigned i = 0; r == 0 && i < count; i++) {
        uint8_t *from = buf + (size_t)i * SEALED_PIECE;
        const struct aead_message m = {
            .nonce = from,
            .aad = aad,
            .aad_size = sizeof(aad),
            .in = from + AEAD_NONCE_SIZE,
            .out = data + (size_t)i * STORED_PIECE,
            .size = STORED_PIECE,
            .tag = from + AEAD_NONCE_SIZE + STORED_PIECE,
        };

        fill_aad(s->kind, first + i, aad);
        r = aead_open(a, &m);
    }
    aead_free(a);
    return r;
}

/* --- reading and writing ---------------------------------------------------------------------- */

int stored_read(struct stored *s, void *buf, size_t size, uint64_t offset)
{
    uint8_t *to = buf, *pieces AUTO_FREE = NULL;
    uint64_t end;

    if (!s->sealed) {
        return read_bytes(s->fd, buf, size, offset);
    }
    if (add_overflows(offset, size, &end) || end > stored_size(s)) {
        return -EIO;
    }
    while (size > 0) {
        uint64_t first = offset / STORED_PIECE, within = offset % STORED_PIECE;
        unsigned count = (unsigned)MIN(div_round_up(within + size, STORED_PIECE), BATCH);
        size_t n = MIN(size, count * (size_t)STORED_PIECE - within);
        bool straight = n == count * (size_t)STORED_PIECE;
        int r;

        if (!straight && !pieces && !(pieces = malloc(BATCH * (size_t)STORED_PIECE))) {
            return -ENOMEM;
        }
        r = read_pieces(s, first, count, straight ? to : pieces);
        if (r < 0) {
            return r;
        }
        if (!straight) {
            memcpy(to, pieces + within, n);
        }
        to += n;
        size -= n;
        offset += n;
    }
    return 0;
}

/* Fill up to a piece with zeroes. */
static int fill_gap_locked(struct stored *s, uint64_t piece)
{
    while (s->pieces < piece) {
        unsigned count = (unsigned)MIN(piece - s->pieces, BATCH);
        int r = write_pieces(s, s->pieces, count, NULL);

        if (r < 0) {
            return r;
        }
        s->pieces += count;
    }
    return 0;
}

static void grow_locked(struct stored *s, uint64_t size)
{
    if (size > s->size) {
        s->size = size;
        s->finished = false;
    }
}

/* Write a part of a piece. */
static int write_part_locked(struct stored *s, const uint8_t *from, size_t size, uint64_t offset)
{
    uint64_t piece = offset / STORED_PIECE;
    uint8_t data[STORED_PIECE] = {0};
    int r = piece < s->pieces ? read_pieces(s, piece, 1, data) : fill_gap_locked(s, piece);

    if (r == 0) {
        memcpy(data + offset % STORED_PIECE, from, size);
        r = write_pieces(s, piece, 1, data);
    }
    if (r == 0) {
        s->pieces = MAX(s->pieces, piece + 1);
        grow_locked(s, offset + size);
    }
    return r;
}

/* Write whole pieces. Only what is before them is written under the lock. */
static int write_whole(struct stored *s, const uint8_t *from, size_t size, uint64_t offset)
{
    uint64_t first = offset / STORED_PIECE, count = size / STORED_PIECE;
    int r;

    pthread_mutex_lock(&s->lock);
    r = fill_gap_locked(s, first);
    if (r == 0) {
        s->pieces = MAX(s->pieces, first + count);
        grow_locked(s, offset + size);
    }
    pthread_mutex_unlock(&s->lock);
    for (uint64_t done = 0, n; r == 0 && done < count; done += n) {
        n = MIN(count - done, BATCH);
        r = write_pieces(s, first + done, (unsigned)n, from + done * STORED_PIECE);
    }
    return r;
}

int stored_write(struct stored *s, const void *buf, size_t size, uint64_t offset)
{
    const uint8_t *from = buf;
    int r = 0;

    if (!s->sealed) {
        return fd_write_at(s->fd, buf, size, offset);
    }
    while (r == 0 && size > 0) {
        size_t within = offset % STORED_PIECE;
        size_t n = within || size < STORED_PIECE ? MIN(size, STORED_PIECE - within)
                                                 : size - size % STORED_PIECE;

        if (n % STORED_PIECE == 0) {
            r = write_whole(s, from, n, offset);
        } else {
            pthread_mutex_lock(&s->lock);
            r = write_part_locked(s, from, n, offset);
            pthread_mutex_unlock(&s->lock);
        }
        from += n;
        size -= n;
        offset += n;
    }
    return r;
}

/* What is cut off a piece becomes zeroes. */
static int shorten_locked(struct stored *s, uint64_t size)
{
    static const uint8_t zeroes[STORED_PIECE];
    uint64_t pieces = div_round_up(size, STORED_PIECE);
    int r = 0;

    if (size % STORED_PIECE) {
        r = write_part_locked(s, zeroes, STORED_PIECE - size % STORED_PIECE, size);
    }
    if (r == 0 && ftruncate(s->fd, (off_t)place_of_piece(pieces)) < 0) {
        r = -errno;
    }
    if (r == 0) {
        s->pieces = pieces;
        s->size = size;
        s->finished = false;
    }
    return r;
}

int stored_truncate(struct stored *s, uint64_t size)
{
    int r;

    if (!s->sealed) {
        return ftruncate(s->fd, (off_t)size) < 0 ? -errno : 0;
    }
    pthread_mutex_lock(&s->lock);
    if (size < s->size) {
        r = shorten_locked(s, size);
    } else {
        r = fill_gap_locked(s, div_round_up(size, STORED_PIECE));
        if (r == 0) {
            grow_locked(s, size);
        }
    }
    pthread_mutex_unlock(&s->lock);
    return r;
}

int stored_finish(struct stored *s)
{
    int r = 0;

    if (!s->sealed) {
        return 0;
    }
    pthread_mutex_lock(&s->lock);
    if (!s->finished) {
        r = stored_seal_header(s->key, s->header, s->size);
        UNLESS_FAILED(r, fd_write_at(s->fd, s->header, STORED_HEADER_SIZE, 0));
        s->finished = r == 0;
    }
    pthread_mutex_unlock(&s->lock);
    return r;
}
