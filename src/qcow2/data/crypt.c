/* SPDX-License-Identifier: Apache-2.0 */
#include "qcow2/data/crypt.h"

#include <endian.h>
#include <errno.h>
#include <nettle/aes.h>
#include <nettle/cbc.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "block/user_object.h"

/* Most bytes that are encrypted or decrypted at a time. */
#define PIECE_MAX (256 * KiB)

struct qcow2_crypt {
    struct aes128_ctx encrypt, decrypt; /* constant after open */
};

/* --- key -------------------------------------------------------------------------------------- */

/* The key is the beginning of the password, padded with zeroes. */
static int set_key(struct qcow2 *q, const char *secret_id, struct error *err)
{
    AUTO_FREE char *password = NULL;
    uint8_t key[AES128_KEY_SIZE] = {0};
    size_t size;
    int r = secret_get(secret_id, &password, &size, err);

    if (r < 0) {
        return r;
    }
    memcpy(key, password, MIN(size, sizeof(key)));
    explicit_bzero(password, size);
    q->crypt = malloc(sizeof(*q->crypt));
    if (q->crypt) {
        aes128_set_encrypt_key(&q->crypt->encrypt, key);
        aes128_set_decrypt_key(&q->crypt->decrypt, key);
    }
    explicit_bzero(key, sizeof(key));
    return q->crypt ? 0 : error_out_of_memory(err);
}

static int check_format(const struct qcow2 *q, const char *format, struct error *err)
{
    if (format && q->crypt_method == CRYPT_NONE) {
        return error_set(err, EINVAL,
                         "No encryption in image header, but options specified format '%s'",
                         format);
    }
    if (format && strcmp(format, "aes") != 0) {
        return error_set(err, EINVAL,
                         "Header reported 'aes' encryption format but options specify '%s'",
                         format);
    }
    return 0;
}

int qcow2_crypt_open(struct qcow2 *q, struct options *opts, struct error *err)
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
    UNLESS_FAILED(r, check_format(q, format, err));
    if (r < 0 || q->crypt_method == CRYPT_NONE || (!secret_id && metadata_only)) {
        return r;
    }
    if (!secret_id) {
        return error_set(err, EINVAL, "Parameter 'encrypt.key-secret' is required for cipher");
    }
    return set_key(q, secret_id, err);
}

void qcow2_crypt_close(struct qcow2 *q)
{
    if (q->crypt) {
        explicit_bzero(q->crypt, sizeof(*q->crypt));
    }
    free(q->crypt);
    q->crypt = NULL;
}

/* --- data ------------------------------------------------------------------------------------- */

static void decrypt_blocks(const void *ctx, size_t size, uint8_t *dst, const uint8_t *src)
{
    aes128_decrypt(ctx, size, dst, src);
}

/* Encrypt or decrypt whole sectors in place. Each has its number on the disk as its vector. */
static void transform(const struct qcow2_crypt *crypt, bool encrypt, uint64_t guest, uint8_t *data,
                      size_t size)
{
    for (uint8_t *sector = data; sector < data + size; sector += SECTOR_SIZE) {
        uint64_t number = htole64(guest / SECTOR_SIZE);
        uint8_t iv[AES_BLOCK_SIZE] = {0};

        memcpy(iv, &number, sizeof(number));
        if (encrypt) {
            cbc_aes128_encrypt(&crypt->encrypt, iv, SECTOR_SIZE, sector, sector);
        } else {
            cbc_decrypt(&crypt->decrypt, decrypt_blocks, AES_BLOCK_SIZE, iv, SECTOR_SIZE, sector,
                        sector);
        }
        guest += SECTOR_SIZE;
    }
}

static uint8_t *new_piece(size_t size)
{
    void *piece = NULL;

    return posix_memalign(&piece, 4096, MIN(round_up(size, SECTOR_SIZE), PIECE_MAX)) == 0 ? piece
                                                                                          : NULL;
}

int qcow2_co_read_encrypted(struct qcow2 *q, uint64_t guest, uint64_t host, struct iov iov)
{
    /*
     * Copying old contents of a cluster may begin or end within a sector, at the end of the disk.
     */
    size_t before = guest % SECTOR_SIZE;
    AUTO_FREE uint8_t *piece = q->crypt ? new_piece(before + iov.size) : NULL;
    int r = 0;

    if (!piece) {
        return q->crypt ? -ENOMEM : -EIO;
    }
    for (size_t done = 0, n; done < iov.size && r == 0; done += n) {
        uint64_t skip = (guest + done) % SECTOR_SIZE;
        size_t size = MIN(round_up(skip + iov.size - done, SECTOR_SIZE), PIECE_MAX);

        n = MIN(size - skip, iov.size - done);
        r = block_co_pread(q->data, host + done - skip, piece, size);
        if (r == 0) {
            transform(q->crypt, false, guest + done - skip, piece, size);
            iov_copy_from_buf(iov, done, piece + skip, n);
        }
    }
    return r;
}

int qcow2_co_write_encrypted(struct qcow2 *q, uint64_t guest, uint64_t host, struct iov iov)
{
    AUTO_FREE uint8_t *piece = q->crypt ? new_piece(iov.size) : NULL;
    int r = 0;

    if (!piece) {
        return q->crypt ? -ENOMEM : -EIO;
    }
    if (!is_aligned(guest | iov.size, SECTOR_SIZE)) {
        return -EINVAL;
    }
    for (size_t done = 0, n; done < iov.size && r == 0; done += n) {
        n = MIN(iov.size - done, PIECE_MAX);
        iov_copy_to_buf(iov, done, piece, n);
        transform(q->crypt, true, guest + done, piece, n);
        r = block_co_pwrite(q->data, host + done, piece, n, 0);
    }
    return r;
}
