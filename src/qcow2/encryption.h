/* SPDX-License-Identifier: Apache-2.0 */
/* Encryption of new images, and changes of their keys. data/crypt.h says what encryption is. */
#ifndef TIDEMARK_QCOW2_ENCRYPTION_H
#define TIDEMARK_QCOW2_ENCRYPTION_H

#include "block/driver.h"
#include "luks/options.h"
#include "qcow2/header/format.h"

struct qcow2;

/* The encryption of a new image. */
struct qcow2_new_encryption {
    enum crypt_method method;
    /* of CRYPT_LUKS; of CRYPT_AES its secret_id */
    struct luks_format luks;
};

/*
 * Take the options "encrypt.*" and "encryption". The secret has to exist.
 * qcow2_new_encryption_release() frees what the result points to. -EINVAL, -ENOENT. Does not yield.
 */
int qcow2_take_new_encryption(struct options *opts, struct qcow2_new_encryption *ret_encryption,
                              struct error *err);
void qcow2_new_encryption_release(struct qcow2_new_encryption *e);

/* Bytes that the header of LUKS takes in the file; 0: there is none. Does not yield. */
uint64_t qcow2_luks_size(const struct qcow2_new_encryption *e);

/* Write that header at an offset in the file. Yields. */
int qcow2_co_write_luks(struct block_edge *file, uint64_t offset,
                        const struct qcow2_new_encryption *e, struct error *err);

/* Add the options that open an image with this encryption. -ENOMEM. Does not yield. */
int qcow2_add_key_options(const struct qcow2_new_encryption *e, struct options *opts,
                          struct error *err);

/*
 * Take a change of key slots from the options "encrypt.*": *ret_given says whether there is one.
 * luks_change_release() frees what the result points to. -EINVAL if the image has no LUKS. Does not
 * yield.
 */
int qcow2_take_key_change(const struct qcow2 *q, struct options *opts,
                          struct luks_change *ret_change, bool *ret_given, struct error *err);

/* See co_change_keys of struct block_driver; the options are "encrypt.*". Yields. */
int qcow2_co_change_keys(struct qcow2 *q, struct options *opts, bool force, struct error *err);

#endif
