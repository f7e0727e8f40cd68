/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A LUKS volume: its header, its key slots, and the cipher of its sectors. Where the header is
 * stored is up to the user (struct luks_io): a file of its own, the beginning of the file that has
 * the sectors, or clusters of a qcow2 image.
 *
 * Main reactor, coroutine; functions called `co_` yield. Keys are computed on threads of the
 * offload pool. Passphrases and keys are erased as soon as they were used.
 *
 * Changes of slots are ordered so that after a crash each slot is as before or as after:
 *
 *   activating   key material, iterations and salt are written, and stable, before the state, a
 *                number that does not reach over the end of a sector, becomes active
 *   erasing      the state is inactive, and that is stable, before the key material is overwritten
 *                with random bytes
 *   replacing    a slot that is active: its new key is stored in a free slot meanwhile, if there is
 *                one
 *
 * tests/crash/keys.h tests this.
 */
#ifndef TIDEMARK_LUKS_VOLUME_H
#define TIDEMARK_LUKS_VOLUME_H

#include "co/sync.h"
#include "luks/cipher.h"
#include "luks/header.h"

struct json_object;

/* Access to the header and to the key material. The functions return 0 or -errno. */
struct luks_io {
    int (*co_read)(void *arg, uint64_t offset, void *buf, size_t size);
    int (*co_write)(void *arg, uint64_t offset, const void *buf, size_t size);
    int (*co_flush)(void *arg);
    void *arg;
};

struct luks_volume {
    struct luks_io io;
    bool detached;
    struct luks_header header;
    /* NULL: the volume is locked */
    struct luks_cipher *cipher;
    /* the secret that it was unlocked with */
    char *secret_id;
    /* held by one change of slots */
    struct co_mutex changes;
};

/* How a volume is made. */
struct luks_format {
    struct luks_encryption encryption;
    const struct luks_hash *hash;
    /* what computing the key of a slot shall take */
    uint64_t iter_time_ms;
    char *secret_id;
};

/* A change of slots: see QEMU's QCryptoBlockAmendOptionsLUKS. */
struct luks_change {
    /* activate a slot, or erase slots */
    bool activate;
    /* IDs of secrets; NULL: not given */
    char *new_secret, *old_secret, *secret;
    bool has_slot, has_iter_time;
    uint64_t slot, iter_time_ms;
};

#define LUKS_ITER_TIME_MS 2000

/* Read the header. On success luks_close() frees the volume, which is locked. */
int luks_co_open(const struct luks_io *io, bool detached, struct luks_volume **ret_volume,
                 struct error *err);

/* Get the key with a secret. -EPERM: no active slot has this passphrase; -ENOENT: no secret. */
int luks_co_unlock(struct luks_volume *v, const char *secret_id, struct error *err);

/* Free; NULL is fine. Does not yield. */
void luks_close(struct luks_volume *v);

/* Bytes that the header of a new volume takes, with its key material. Does not yield. */
uint64_t luks_new_header_size(const struct luks_encryption *e);

/*
 * Whether there is a passphrase as a new volume needs one. To be asked before a file is changed:
 * luks_co_format() finds out too late. 0 or -errno. Does not yield.
 */
int luks_check_passphrase(const struct luks_format *format, struct error *err);

/*
 * Write the header of a new volume, with an active slot. The result is unlocked; the caller frees
 * it.
 */
int luks_co_format(const struct luks_io *io, bool detached, const struct luks_format *format,
                   struct luks_volume **ret_volume, struct error *err);

/*
 * Change slots. No other user of the header may be at work. `force` allows what may lose the key:
 * erasing the last slot, and replacing an active one.
 */
int luks_co_change(struct luks_volume *v, const struct luks_change *change, bool force,
                   struct error *err);

/* Free what the members point to. Does not yield. */
void luks_format_release(struct luks_format *format);
void luks_change_release(struct luks_change *change);

/* What `info` shows, by the names of QEMU's QCryptoBlockInfoLUKS. Does not yield. */
struct json_object *luks_volume_info(const struct luks_volume *v);

#endif
