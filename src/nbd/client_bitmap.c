/* SPDX-License-Identifier: Apache-2.0 */
/* Reading a dirty bitmap of an export, by block status in its context. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "bitmap/bitmap.h"
#include "nbd/client.h"
#include "nbd/proto.h"

/* One request asks for this much, in bytes. */
#define STEP (1 * GiB)

static int co_read_extents(struct nbd_client *c, struct dirty_bitmap *bits)
{
    uint64_t offset = 0, size = nbd_client_size(c);

    while (offset < size) {
        struct nbd_extents extents = {0};
        int r = nbd_client_co_block_status(c, offset, MIN(STEP, size - offset), false, &extents);

        if (r < 0) {
            return r;
        }
        if (extents.count == 0) {
            return -EIO;
        }
        for (size_t i = 0; i < extents.count; i++) {
            if (extents.list[i].flags & NBD_STATE_DIRTY) {
                dirty_bitmap_set(bits, offset, extents.list[i].length);
            }
            offset += extents.list[i].length;
        }
        nbd_extents_clear(&extents);
    }
    return 0;
}

int nbd_client_co_read_bitmap(const struct socket_address *address,
                              const struct nbd_client_tls *tls, const char *export_name,
                              const char *name, int64_t timeout_ns, struct dirty_bitmap *bits,
                              struct error *err)
{
    AUTO_FREE char *context = NULL;
    const char *contexts[1];
    struct nbd_client *c;
    int r;

    if (asprintf(&context, "%s%s", NBD_CONTEXT_DIRTY_BITMAP, name) < 0) {
        context = NULL;
        return error_out_of_memory(err);
    }
    contexts[0] = context;
    r = nbd_client_co_connect(address, tls, export_name, contexts, 1, timeout_ns, &c, err);
    if (r < 0) {
        return r;
    }
    if (!nbd_client_context(c, 0)) {
        r = error_set(err, ENOENT, "Export '%s' does not offer the bitmap '%s'", export_name, name);
    } else if (nbd_client_size(c) != dirty_bitmap_size(bits)) {
        r = error_set(err, EINVAL, "Export '%s' has %llu bytes, expected %llu", export_name,
                      (unsigned long long)nbd_client_size(c),
                      (unsigned long long)dirty_bitmap_size(bits));
    } else {
        r = co_read_extents(c, bits);
        if (r < 0) {
            error_set_errno(err, -r, "Bitmap '%s' of export '%s' cannot be read", name,
                            export_name);
        }
    }
    nbd_client_co_close(c);
    return r;
}
