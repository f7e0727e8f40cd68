/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The legacy encryption of qcow2 (crypt_method 1, the specification's section "Data encryption"), as programs before LUKS made
 * it: AES-128 in CBC mode, the password itself is the key, and the initialization vector is the number of the
 * sector on the disk. It is there so that the data of old images can be got at. It protects little: equal beginnings of a
 * sector show, the password is neither stretched nor verified, and a wrong one reads as noise. LUKS (method 2) is refused.
 *
 * What is encrypted are the sectors of allocated clusters; zero clusters, compressed ones, metadata and backing files are not.
 */
#ifndef TIDEMARK_QCOW2_DATA_CRYPT_H
#define TIDEMARK_QCOW2_DATA_CRYPT_H

#include "block/options.h"
#include "qcow2/image.h"

/*
 * Take the options "encrypt.format" and "encrypt.key-secret" of an image whose header was read. An encrypted image needs
 * a key unless it is opened for its metadata only (BLOCK_OPEN_NO_IO, BLOCK_OPEN_CHECK). -EINVAL, -ENOENT (no such secret)
 */
int qcow2_crypt_open(struct qcow2 *q, struct options *opts, struct error *err);
void qcow2_crypt_close(struct qcow2 *q);

/*
 * Read or write guest data of an encrypted image: [guest, guest + iov.size) lies at file offset `host`, in one piece, as
 * whole sectors where it is written. Yield. -EIO if the image was opened without a key.
 */
int qcow2_co_read_encrypted(struct qcow2 *q, uint64_t guest, uint64_t host, struct iov iov);
int qcow2_co_write_encrypted(struct qcow2 *q, uint64_t guest, uint64_t host, struct iov iov);

#endif
