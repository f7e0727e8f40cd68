/* SPDX-License-Identifier: Apache-2.0 */
#include "qcow2/data/crypt.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "base/secret_memory.h"
#include "block/user_object.h"
#include "luks/sectors.h"
#include "luks/volume.h"
#include "qcow2/qcow2.h"

/* Most bytes that are encrypted or decrypted at a time. */
#define PIECE_MAX (2 * MiB)

struct qcow2_crypt {
    /* NULL: open for metadata only */
    struct luks_cipher *cipher;
    /* of method 2; NULL: method 1 */
    struct luks_volume *volume;
};

/* --- the header of LUKS ----------------------------------------------------------------------- */

static int co_read_luks(void *arg, uint64_t offset, void *buf, size_t size)
{
    const struct qcow2 *q = arg;

    return range_fits(offset, size, q->header.luks_size)
               ? block_co_pread(q->node->file, q->header.luks_offset + offset, buf, size)
               : -EINVAL;
}

static int co_write_luks(void *arg, uint64_t offset, const void *buf, size_t size)
{
    struct qcow2 *q = arg;
    int r = qcow2_check_writable(q);

    if (r == 0 && !range_fits(offset, size, q->header.luks_size)) {
        r = -EINVAL;
    }
    return r < 0 ? r : block_co_pwrite(q->node->file, q->header.luks_offset + offset, buf, size, 0);
}

static int co_flush_luks(void *arg)
{
    const struct qcow2 *q = arg;

    return block_co_flush(q->node->file);
}

static struct luks_io luks_io_of_image(struct qcow2 *q)
{
    return (struct luks_io){
        .co_read = co_read_luks, .co_write = co_write_luks, .co_flush = co_flush_luks, .arg = q};
}

/* --- open ------------------------------------------------------------------------------------- */

/* The key of method 1 is the beginning of the password, padded with zeroes. */
/* In this program; see qcow2_refuse_legacy_encryption(). */
static bool refuses_aes;

void qcow2_refuse_legacy_encryption(void)
{
    refuses_aes = true;
}

static int set_aes_key(struct qcow2 *q, const char *secret_id, struct error *err)
{
    const struct luks_encryption aes = {
        .alg = luks_find_cipher("aes-128"), .mode = LUKS_CBC, .ivgen = LUKS_PLAIN64};
    AUTO_SECRET uint8_t *key = secret_alloc(aes.alg->key_size);
    AUTO_SECRET char *password = NULL;
    size_t size;
    int r = key ? secret_get(secret_id, &password, &size, err) : error_out_of_memory(err);

    if (r < 0) {
        return r;
    }
    memcpy(key, password, MIN(size, aes.alg->key_size));
    return luks_cipher_new(&aes, key, &q->crypt->cipher, err);
}

static int co_open_luks(struct qcow2 *q, const char *secret_id, struct error *err)
{
    struct luks_io io = luks_io_of_image(q);
    int r = luks_co_open(&io, false, &q->crypt->volume, err);

    if (r == 0 && secret_id) {
        r = luks_co_unlock(q->crypt->volume, secret_id, err);
        q->crypt->cipher = q->crypt->volume->cipher;
    }
    return r;
}

static const char *method_name(const struct qcow2 *q)
{
    return q->crypt_method == CRYPT_LUKS ? "luks" : "aes";
}

static int check_format(const struct qcow2 *q, const char *format, struct error *err)
{
    if (format && q->crypt_method == CRYPT_NONE) {
        return error_set(err, EINVAL,
                         "No encryption in image header, but options specified format '%s'",
                         format);
    }
    if (format && strcmp(format, method_name(q)) != 0) {
        return error_set(err, EINVAL,
                         "Header reported '%s' encryption format but options specify '%s'",
                         method_name(q), format);
    }
    if (q->crypt_method == CRYPT_LUKS && q->header.luks_size == 0) {
        return error_set(err, EINVAL, "Missing CRYPTO header for crypt method %d", CRYPT_LUKS);
    }
    return 0;
}

int qcow2_co_crypt_open(struct qcow2 *q, struct options *opts, struct error *err)
{
    AUTO_OPTIONS struct options *group = NULL;
    AUTO_FREE char *text = NULL, *format = NULL, *secret_id = NULL;
    bool metadata_only = q->node->open_flags & (BLOCK_OPEN_NO_IO | BLOCK_OPEN_CHECK);
    int r = options_take_child(opts, "encrypt", &group, &text, err);

    if (r == 0 && text) {
        return error_set(err, EINVAL, "Parameter 'encrypt' expects an object");
    }
    if (r == 0 && group &&
        ((r = options_take_str(group, "format", &format, err)) < 0 ||
         (r = options_take_str(group, "key-secret", &secret_id, err)) < 0 ||
         (r = options_check_empty(group, "encrypt", err)) < 0)) {
        return r;
    }
    q->node->beyond_filename |= secret_id != NULL;
    UNLESS_FAILED(r, check_format(q, format, err));
    if (r < 0 || q->crypt_method == CRYPT_NONE) {
        return r;
    }
    if (q->crypt_method == CRYPT_AES && refuses_aes) {
        return error_set(err, ENOSYS,
                         "Use of AES-CBC encrypted qcow2 images is no longer supported in system "
                         "emulators");
    }
    if (!secret_id && !metadata_only) {
        return error_set(err, EINVAL, "Parameter 'encrypt.key-secret' is required for cipher");
    }
    q->crypt = calloc(1, sizeof(*q->crypt));
    if (!q->crypt) {
        return error_out_of_memory(err);
    }
    if (q->crypt_method == CRYPT_LUKS) {
        return co_open_luks(q, metadata_only ? NULL : secret_id, err);
    }
    return secret_id ? set_aes_key(q, secret_id, err) : 0;
}

void qcow2_crypt_close(struct qcow2 *q)
{
    if (!q->crypt) {
        return;
    }
    if (!q->crypt->volume) {
        luks_cipher_free(q->crypt->cipher);
    }
    luks_close(q->crypt->volume);
    free(q->crypt);
    q->crypt = NULL;
}

struct luks_volume *qcow2_luks_volume(const struct qcow2 *q)
{
    return q->crypt ? q->crypt->volume : NULL;
}

/* --- data ------------------------------------------------------------------------------------- */

/*
 * The number from which the initialization vector of a sector is made: its place on the disk with
 * method 1, and its place in the file with LUKS.
 */
static uint64_t sector_number(const struct qcow2 *q, uint64_t guest, uint64_t host)
{
    return (q->crypt_method == CRYPT_LUKS ? host : guest) / SECTOR_SIZE;
}

static uint8_t *new_piece(size_t size)
{
    void *piece = NULL;

    return posix_memalign(&piece, 4096, MIN(round_up(size, SECTOR_SIZE), PIECE_MAX)) == 0 ? piece
                                                                                          : NULL;
}

/* Whole sectors are decrypted where they are wanted. */
static int co_read_sectors(struct qcow2 *q, uint64_t guest, uint64_t host, struct iov iov)
{
    int r = block_co_preadv(q->data, host, iov, 0);

    return r < 0 ? r : luks_co_decrypt(q->crypt->cipher, sector_number(q, guest, host), iov);
}

/*
 * Copying old contents of a cluster may begin or end within a sector, at the end of the disk.
 */
static int co_read_parts_of_sectors(struct qcow2 *q, uint64_t guest, uint64_t host, struct iov iov)
{
    AUTO_FREE uint8_t *piece = new_piece(guest % SECTOR_SIZE + iov.size);
    struct iovec vec;
    int r = piece ? 0 : -ENOMEM;

    for (size_t done = 0, n; done < iov.size && r == 0; done += n) {
        uint64_t skip = (guest + done) % SECTOR_SIZE;
        size_t size = MIN(round_up(skip + iov.size - done, SECTOR_SIZE), PIECE_MAX);

        n = MIN(size - skip, iov.size - done);
        r = co_read_sectors(q, guest + done - skip, host + done - skip,
                            iov_from_buf(&vec, piece, size));
        if (r == 0) {
            iov_copy_from_buf(iov, done, piece + skip, n);
        }
    }
    return r;
}

int qcow2_co_read_encrypted(struct qcow2 *q, uint64_t guest, uint64_t host, struct iov iov)
{
    if (!q->crypt || !q->crypt->cipher) {
        return -EIO;
    }
    return is_aligned(guest | iov.size, SECTOR_SIZE)
               ? co_read_sectors(q, guest, host, iov)
               : co_read_parts_of_sectors(q, guest, host, iov);
}

int qcow2_co_write_encrypted(struct qcow2 *q, uint64_t guest, uint64_t host, struct iov iov)
{
    AUTO_FREE uint8_t *piece = NULL;
    int r = 0;

    if (!q->crypt || !q->crypt->cipher) {
        return -EIO;
    }
    if (!is_aligned(guest | iov.size, SECTOR_SIZE)) {
        return -EINVAL;
    }
    piece = new_piece(iov.size);
    if (!piece) {
        return -ENOMEM;
    }
    for (size_t done = 0, n; done < iov.size && r == 0; done += n) {
        IOV_PART_AUTO(part);

        n = MIN(iov.size - done, PIECE_MAX);
        r = iov_part_set(&part, iov, done, n);
        UNLESS_FAILED(r,
                      luks_co_encrypt(q->crypt->cipher, sector_number(q, guest + done, host + done),
                                      part.iov, piece));
        UNLESS_FAILED(r, block_co_pwrite(q->data, host + done, piece, n, 0));
    }
    return r;
}
