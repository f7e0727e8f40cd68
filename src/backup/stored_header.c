/* SPDX-License-Identifier: Apache-2.0 */
/* The header of sealed files, and small files that are one piece. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "backup/files.h"
#include "backup/stored_internal.h"
#include "base/aead.h"
#include "base/byteorder.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "base/hmac.h"

#define VERSION 1

/* Places in the header. */
#define AT_KIND 12
#define AT_PIECE 16
#define AT_SALT 32
#define SALT_SIZE 32
#define AT_KDF_SALT 64
#define AT_KDF_LOG_N 80
#define AT_NONCE 100
#define AT_TAG 112

static const char magic[8] = "TIDESEAL";

/* --- header ----------------------------------------------------------------------------------- */

int stored_derive_key(const struct backup_key *seal, const uint8_t *header,
                      uint8_t ret_key[static AEAD_KEY_SIZE])
{
    uint8_t message[SALT_SIZE + 4];

    memcpy(message, header + AT_SALT, SALT_SIZE);
    memcpy(message + SALT_SIZE, header + AT_KIND, 4);
    return hmac_sha256(seal->seal, sizeof(seal->seal), message, sizeof(message), ret_key);
}

int stored_begin_header(const struct backup_key *seal, enum stored_kind kind, uint32_t piece,
                        uint8_t ret_header[static STORED_HEADER_SIZE])
{
    memset(ret_header, 0, STORED_HEADER_SIZE);
    memcpy(ret_header, magic, sizeof(magic));
    store_le32(ret_header + 8, VERSION);
    store_le32(ret_header + AT_KIND, kind);
    store_le32(ret_header + AT_PIECE, piece);
    memcpy(ret_header + AT_KDF_SALT, seal->kdf.salt, BACKUP_SALT_SIZE);
    store_le32(ret_header + AT_KDF_LOG_N, seal->kdf.log_n);
    return getrandom(ret_header + AT_SALT, SALT_SIZE, 0) == SALT_SIZE ? 0 : -EIO;
}

static struct aead_message header_message(uint8_t *header)
{
    return (struct aead_message){
        .nonce = header + AT_NONCE, .aad = header, .aad_size = AT_NONCE, .tag = header + AT_TAG};
}

int stored_seal_header(const uint8_t *key, uint8_t *header, uint64_t size)
{
    struct aead_message m = header_message(header);
    struct aead *a = aead_new(key, 1);
    int r = a ? 0 : -EIO;

    store_le64(header + STORED_AT_SIZE, size);
    if (r == 0 && getrandom(header + AT_NONCE, AEAD_NONCE_SIZE, 0) != AEAD_NONCE_SIZE) {
        r = -EIO;
    }
    UNLESS_FAILED(r, aead_seal(a, &m));
    aead_free(a);
    return r;
}

bool stored_is_sealed(const void *data, size_t size, struct backup_kdf *ret_kdf)
{
    const uint8_t *header = data;

    if (size < STORED_HEADER_SIZE || memcmp(header, magic, sizeof(magic)) != 0) {
        return false;
    }
    memcpy(ret_kdf->salt, header + AT_KDF_SALT, BACKUP_SALT_SIZE);
    ret_kdf->log_n = load_le32(header + AT_KDF_LOG_N);
    return true;
}

/* Check everything that a header says. */
int stored_open_header(const struct backup_key *seal, enum stored_kind kind, uint32_t piece,
                       uint8_t *header, size_t size, const char *shown, uint8_t *ret_key,
                       struct error *err)
{
    struct aead_message m = header_message(header);
    struct aead *a;
    int r;

    if (size < STORED_HEADER_SIZE || memcmp(header, magic, sizeof(magic)) != 0) {
        return error_set(err, EBADMSG, "'%s' was changed: it is not encrypted", shown);
    }
    if (load_le32(header + 8) != VERSION) {
        return error_set(err, EBADMSG, "'%s' is encrypted in a way that this program does not know",
                         shown);
    }
    if (load_le32(header + AT_KIND) != kind || load_le32(header + AT_PIECE) != piece) {
        return error_set(err, EBADMSG, "'%s' was changed: another file was put in its place",
                         shown);
    }
    r = stored_derive_key(seal, header, ret_key);
    a = r == 0 ? aead_new(ret_key, 0) : NULL;
    r = a ? aead_open(a, &m) : -EIO;
    aead_free(a);
    if (r == -EBADMSG) {
        return error_set(err, EBADMSG, "'%s' was changed, or has another key", shown);
    }
    return r < 0 ? error_set_errno(err, -r, "Could not decrypt '%s'", shown) : 0;
}

/* --- texts ------------------------------------------------------------------------------------ */

/* A text and its header, in one piece. */
static struct aead_message text_message(uint8_t *sealed, uint8_t *text, size_t size,
                                        const uint8_t *header, bool seals)
{
    uint8_t *contents = sealed + STORED_HEADER_SIZE + AEAD_NONCE_SIZE;

    return (struct aead_message){
        .nonce = sealed + STORED_HEADER_SIZE,
        .aad = header,
        .aad_size = STORED_HEADER_SIZE,
        .in = seals ? text : contents,
        .out = seals ? contents : text,
        .size = size,
        .tag = contents + size,
    };
}

int stored_seal_text(const struct backup_key *seal, enum stored_kind kind, const void *text,
                     size_t size, uint8_t **ret_data, size_t *ret_size)
{
    size_t total = STORED_HEADER_SIZE + STORED_OVERHEAD + size;
    uint8_t *data AUTO_FREE = malloc(total), key[AEAD_KEY_SIZE];
    struct aead *a = NULL;
    int r = data ? stored_begin_header(seal, kind, 0, data) : -ENOMEM;

    UNLESS_FAILED(r, stored_derive_key(seal, data, key));
    UNLESS_FAILED(r, stored_seal_header(key, data, size));
    if (r == 0 && getrandom(data + STORED_HEADER_SIZE, AEAD_NONCE_SIZE, 0) != AEAD_NONCE_SIZE) {
        r = -EIO;
    }
    if (r == 0) {
        const struct aead_message m = text_message(data, (uint8_t *)text, size, data, true);

        a = aead_new(key, 1);
        r = a ? aead_seal(a, &m) : -EIO;
    }
    aead_free(a);
    explicit_bzero(key, sizeof(key));
    if (r == 0) {
        *ret_data = TAKE_PTR(data);
        *ret_size = total;
    }
    return r;
}

int stored_open_text(const struct backup_key *seal, enum stored_kind kind, const void *data,
                     size_t size, const char *shown, char **ret_text, size_t *ret_size,
                     struct error *err)
{
    uint8_t *copy AUTO_FREE = malloc(size + 1), key[AEAD_KEY_SIZE];
    char *text AUTO_FREE = malloc(size + 1);
    size_t length;
    struct aead *a;
    int r;

    if (!copy || !text) {
        return error_out_of_memory(err);
    }
    memcpy(copy, data, size);
    r = stored_open_header(seal, kind, 0, copy, size, shown, key, err);
    if (r < 0) {
        explicit_bzero(key, sizeof(key));
        return r;
    }
    length = size - MIN(size, STORED_HEADER_SIZE + STORED_OVERHEAD);
    if (load_le64(copy + STORED_AT_SIZE) != length) {
        explicit_bzero(key, sizeof(key));
        return error_set(err, EBADMSG, "'%s' was changed: it was cut, or something follows it",
                         shown);
    }
    a = aead_new(key, 0);
    if (a) {
        const struct aead_message m = text_message(copy, (uint8_t *)text, length, copy, false);

        r = aead_open(a, &m);
    } else {
        r = -EIO;
    }
    aead_free(a);
    explicit_bzero(key, sizeof(key));
    if (r < 0) {
        return r == -EBADMSG ? error_set(err, EBADMSG, "'%s' was changed", shown)
                             : error_set_errno(err, -r, "Could not decrypt '%s'", shown);
    }
    text[length] = '\0';
    *ret_text = TAKE_PTR(text);
    *ret_size = length;
    return 0;
}

int stored_read_at(int dir, const char *name, size_t max, const struct backup_key *seal,
                   enum stored_kind kind, const char *shown, char **ret_text, size_t *ret_size,
                   struct error *err)
{
    char *data AUTO_FREE = NULL;
    size_t size;
    int r = files_read_at(dir, name, max + STORED_HEADER_SIZE + STORED_OVERHEAD, shown, &data,
                          &size, err);

    if (r < 0) {
        return r;
    }
    if (seal) {
        return stored_open_text(seal, kind, data, size, shown, ret_text, ret_size, err);
    }
    *ret_text = TAKE_PTR(data);
    *ret_size = size;
    return 0;
}

int stored_write_at(int dir, const char *name, const char *text, const struct backup_key *seal,
                    enum stored_kind kind, const char *shown, struct error *err)
{
    uint8_t *data AUTO_FREE = NULL;
    size_t size = 0;
    int r;

    if (!seal) {
        return files_write_at(dir, name, text, shown, err);
    }
    r = stored_seal_text(seal, kind, text, strlen(text), &data, &size);
    if (r < 0) {
        return error_set_errno(err, -r, "Could not encrypt '%s'", shown);
    }
    return files_write_bytes_at(dir, name, data, size, shown, err);
}
