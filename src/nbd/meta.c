/* SPDX-License-Identifier: Apache-2.0 */
/* Metadata contexts of an export, and which of them a client selected. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "nbd/server_internal.h"

void nbd_selection_clear(struct nbd_selection *sel)
{
    free(sel->bitmaps);
    *sel = (struct nbd_selection){0};
}

int nbd_selection_init(struct nbd_selection *sel, const struct nbd_export *e)
{
    nbd_selection_clear(sel);
    if (e->bitmap_count > 0) {
        sel->bitmaps = calloc(e->bitmap_count, sizeof(*sel->bitmaps));
        if (!sel->bitmaps) {
            return -ENOMEM;
        }
    }
    sel->bitmap_count = e->bitmap_count;
    sel->export_serial = e->serial;
    return 0;
}

static void select_context(struct nbd_selection *sel, bool *flag)
{
    if (!*flag) {
        *flag = true;
        sel->selected++;
    }
}

void nbd_selection_all(struct nbd_selection *sel, const struct nbd_export *e)
{
    nbd_selection_add(sel, e, "base:", true);
    nbd_selection_add(sel, e, "qemu:", true);
}

void nbd_selection_add(struct nbd_selection *sel, const struct nbd_export *e, const char *query,
                       bool list)
{
    static const char prefix[] = NBD_CONTEXT_DIRTY_BITMAP;
    const size_t prefix_len = sizeof(prefix) - 1;
    bool all_base = list && strcmp(query, "base:") == 0;
    bool all_qemu = list && strcmp(query, "qemu:") == 0;
    bool all_bitmaps = all_qemu || (list && strcmp(query, prefix) == 0);

    if (all_base || strcmp(query, NBD_CONTEXT_BASE_ALLOCATION) == 0) {
        select_context(sel, &sel->base);
    }
    if (e->allocation_depth && (all_qemu || strcmp(query, NBD_CONTEXT_ALLOCATION_DEPTH) == 0)) {
        select_context(sel, &sel->depth);
    }
    if (!all_bitmaps && strncmp(query, prefix, prefix_len) != 0) {
        return;
    }
    for (size_t i = 0; i < e->bitmap_count; i++) {
        if (all_bitmaps || strcmp(query + prefix_len, block_bitmap_name(e->bitmaps[i])) == 0) {
            select_context(sel, &sel->bitmaps[i]);
        }
    }
}

bool nbd_selection_at(const struct nbd_selection *sel, const struct nbd_export *e, size_t i,
                      uint32_t *ret_id, bool *ret_selected, struct strbuf *name)
{
    if (i >= NBD_CONTEXT_ID_BITMAP + sel->bitmap_count) {
        return false;
    }
    *ret_id = (uint32_t)i;
    strbuf_clear(name);
    if (i == NBD_CONTEXT_ID_BASE) {
        *ret_selected = sel->base;
        strbuf_puts(name, NBD_CONTEXT_BASE_ALLOCATION);
    } else if (i == NBD_CONTEXT_ID_DEPTH) {
        *ret_selected = sel->depth;
        strbuf_puts(name, NBD_CONTEXT_ALLOCATION_DEPTH);
    } else {
        *ret_selected = sel->bitmaps[i - NBD_CONTEXT_ID_BITMAP];
        strbuf_puts(name, NBD_CONTEXT_DIRTY_BITMAP);
        strbuf_puts(name, block_bitmap_name(e->bitmaps[i - NBD_CONTEXT_ID_BITMAP]));
    }
    return true;
}
