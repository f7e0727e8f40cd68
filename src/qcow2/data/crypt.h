/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Encryption of guest data (the specification's section "Data encryption").
 *
 * Method 2 is LUKS: a whole header of such a volume, with its key slots, lies in clusters that the
 * extension EXT_FULL_DISK_ENCRYPTION names; src/luks has the rest. The initialization vector of a
 * sector is made from its place in the file.
 *
 * Method 1 is what programs used before: AES-128 in CBC mode. The password itself is the key, and
 * the initialization vector is the number of the sector on the disk. It is implemented so that the
 * data of old images can be read. It protects little: equal beginnings of a sector show, the
 * password is neither stretched nor verified, and a wrong password reads as noise.
 *
 * Only sectors of allocated clusters are encrypted; zero clusters, compressed clusters, metadata
 * and backing files are not.
 */
#ifndef TIDEMARK_QCOW2_DATA_CRYPT_H
#define TIDEMARK_QCOW2_DATA_CRYPT_H

#include "block/options.h"
#include "luks/volume.h"
#include "qcow2/image.h"

/*
 * Take the options "encrypt.format" and "encrypt.key-secret", after the header was read. An
 * encrypted image needs a key unless only its metadata is used (BLOCK_OPEN_NO_IO,
 * BLOCK_OPEN_CHECK). -EINVAL, -ENOENT if there is no such secret, -EPERM if it opens no key slot.
 * Yields.
 */
int qcow2_co_crypt_open(struct qcow2 *q, struct options *opts, struct error *err);

/* Erase and free the key. Does not yield. */
void qcow2_crypt_close(struct qcow2 *q);

/* The LUKS volume of the image; NULL: it has none. Does not yield. */
struct luks_volume *qcow2_luks_volume(const struct qcow2 *q);

/*
 * Read or write guest data of an encrypted image: [guest, guest + iov.size) is contiguous at file
 * offset `host`; a write has whole sectors. Yield; any reactor. -EIO if the image was opened
 * without a key.
 */
int qcow2_co_read_encrypted(struct qcow2 *q, uint64_t guest, uint64_t host, struct iov iov);
int qcow2_co_write_encrypted(struct qcow2 *q, uint64_t guest, uint64_t host, struct iov iov);

#endif
