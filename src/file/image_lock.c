/* SPDX-License-Identifier: Apache-2.0 */
#include "file/image_lock.h"

#include <errno.h>
#include <fcntl.h>

#include "block/block.h"

#define PERM_BASE 100
#define UNSHARED_BASE 200
#define PERM_BITS 4

static int lock_byte(int fd, short type, off_t byte)
{
    struct flock fl = {.l_type = type, .l_whence = SEEK_SET, .l_start = byte, .l_len = 1};

    return fcntl(fd, F_OFD_SETLK, &fl) < 0 ? -errno : 0;
}

/* 1 if another open file description has locked the byte, 0 if none has, or -errno. */
static int is_held_by_another(int fd, off_t byte)
{
    struct flock fl = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = byte, .l_len = 1};

    if (fcntl(fd, F_OFD_GETLK, &fl) < 0) {
        return -errno;
    }
    return fl.l_type != F_UNLCK;
}

bool image_lock_is_supported(int fd)
{
    return is_held_by_another(fd, PERM_BASE) >= 0;
}

static void release_bytes(struct image_lock *l, unsigned perm, unsigned unshared)
{
    for (unsigned n = 0; n < PERM_BITS; n++) {
        if (perm & (1u << n)) {
            lock_byte(l->fd, F_UNLCK, PERM_BASE + n);
        }
        if (unshared & (1u << n)) {
            lock_byte(l->fd, F_UNLCK, UNSHARED_BASE + n);
        }
    }
    l->perm &= ~perm;
    l->unshared &= ~unshared;
}

static int acquire_bytes(struct image_lock *l, unsigned perm, unsigned unshared, const char *name,
                         struct error *err)
{
    for (unsigned n = 0; n < PERM_BITS; n++) {
        unsigned bit = 1u << n;
        int r = 0;

        if (perm & bit) {
            r = lock_byte(l->fd, F_RDLCK, PERM_BASE + n);
            l->perm |= r < 0 ? 0 : bit;
        }
        if (r == 0 && (unshared & bit)) {
            r = lock_byte(l->fd, F_RDLCK, UNSHARED_BASE + n);
            l->unshared |= r < 0 ? 0 : bit;
        }
        if (r < 0) {
            return error_set_errno(err, -r, "Failed to lock byte %u of '%s'", PERM_BASE + n, name);
        }
    }
    return 0;
}

/* -EAGAIN if another user holds byte `base` + n for an n in `mask`; `how` is for the message. */
static int check_bytes(int fd, unsigned base, unsigned mask, const char *how, const char *name,
                       struct error *err)
{
    for (unsigned n = 0; n < PERM_BITS; n++) {
        char names[64];
        int r = mask & (1u << n) ? is_held_by_another(fd, base + n) : 0;

        if (r < 0) {
            return error_set_errno(err, -r, "Failed to query locks of '%s'", name);
        }
        if (r > 0) {
            error_set(err, EAGAIN, "Failed to get %s\"%s\" lock", how,
                      block_perm_names(1u << n, names, sizeof(names)));
            error_hint(err, "Is another process using the image [%s]?", name);
            return -EAGAIN;
        }
    }
    return 0;
}

int image_lock_set(struct image_lock *l, unsigned perm, unsigned shared, const char *name,
                   struct error *err)
{
    unsigned sole = BLOCK_PERM_ALL & ~shared, unshared = sole | l->closed;
    unsigned old_perm = l->perm, old_unshared = l->unshared;
    int r = acquire_bytes(l, perm & ~old_perm, unshared & ~old_unshared, name, err);

    if (r == 0) {
        r = check_bytes(l->fd, UNSHARED_BASE, perm & ~old_perm, "", name, err);
    }
    if (r == 0) {
        r = check_bytes(l->fd, PERM_BASE, sole & ~l->sole, "shared ", name, err);
    }
    if (r < 0) {
        release_bytes(l, l->perm & ~old_perm, l->unshared & ~old_unshared);
    } else {
        release_bytes(l, l->perm & ~perm, l->unshared & ~unshared);
        l->sole = sole;
    }
    return r;
}

int image_lock_copy(const struct image_lock *l, int fd, const char *name, struct error *err)
{
    struct image_lock copy = {.fd = fd};

    return acquire_bytes(&copy, l->perm, l->unshared, name, err);
}
