/* SPDX-License-Identifier: Apache-2.0 */
/* Metadata contexts of an export, and which of them a client selected. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "nbd/server_internal.h"

/* --- of an export ----------------------------------------------------------------------------- */

/* `bitmap_name`: appended to the name; NULL: the context has no bitmap. */
static void add_context(struct nbd_export *e, enum nbd_context_kind kind, const char *name,
                        size_t bitmap, const char *bitmap_name)
{
    struct nbd_context *context = &e->contexts[e->context_count++];
    STRBUF_AUTO(text);

    strbuf_puts(&text, name);
    strbuf_puts(&text, bitmap_name ?: "");
    *context = (struct nbd_context){
        .name = text.failed ? NULL : strdup(strbuf_str(&text)),
        .kind = kind,
        .bitmap = bitmap,
    };
}

int nbd_contexts_init(struct nbd_export *e, bool depth, bool merged)
{
    e->contexts = calloc(3 + 2 * e->bitmap_count, sizeof(*e->contexts));
    if (!e->contexts) {
        return -ENOMEM;
    }
    add_context(e, NBD_CONTEXT_IS_ALLOCATION, NBD_CONTEXT_BASE_ALLOCATION, 0, NULL);
    if (depth) {
        add_context(e, NBD_CONTEXT_IS_DEPTH, NBD_CONTEXT_ALLOCATION_DEPTH, 0, NULL);
    }
    for (size_t i = 0; i < e->bitmap_count; i++) {
        add_context(e, NBD_CONTEXT_IS_BITMAP, NBD_CONTEXT_DIRTY_BITMAP, i,
                    block_bitmap_name(e->bitmaps[i]));
    }
    if (merged) {
        add_context(e, NBD_CONTEXT_IS_MERGED, NBD_CONTEXT_MERGED, 0, NULL);
    }
    for (size_t i = 0; merged && i < e->bitmap_count; i++) {
        add_context(e, NBD_CONTEXT_IS_MERGED_BITMAP, NBD_CONTEXT_MERGED_BITMAP, i,
                    block_bitmap_name(e->bitmaps[i]));
    }
    for (size_t i = 0; i < e->context_count; i++) {
        if (!e->contexts[i].name) {
            return -ENOMEM;
        }
    }
    return 0;
}

void nbd_contexts_release(struct nbd_export *e)
{
    for (size_t i = 0; i < e->context_count; i++) {
        free(e->contexts[i].name);
    }
    free(e->contexts);
}

/* --- of a client ------------------------------------------------------------------------------ */

void nbd_selection_clear(struct nbd_selection *sel)
{
    free(sel->contexts);
    *sel = (struct nbd_selection){0};
}

int nbd_selection_init(struct nbd_selection *sel, const struct nbd_export *e)
{
    nbd_selection_clear(sel);
    sel->contexts = calloc(e->context_count, sizeof(*sel->contexts));
    if (!sel->contexts) {
        return -ENOMEM;
    }
    sel->context_count = e->context_count;
    sel->export_serial = e->serial;
    return 0;
}

static void select_context(struct nbd_selection *sel, size_t i)
{
    sel->selected += !sel->contexts[i];
    sel->contexts[i] = true;
}

void nbd_selection_all(struct nbd_selection *sel)
{
    for (size_t i = 0; i < sel->context_count; i++) {
        select_context(sel, i);
    }
}

/* A namespace ("base:"), or the part of a name in front of that of a bitmap. */
static bool is_wildcard(const char *query)
{
    static const char *const wildcards[] = {"base:", "qemu:", NBD_CONTEXT_DIRTY_BITMAP,
                                            "x-tidemark:", NBD_CONTEXT_MERGED_BITMAP};

    for (size_t i = 0; i < ARRAY_SIZE(wildcards); i++) {
        if (strcmp(query, wildcards[i]) == 0) {
            return true;
        }
    }
    return false;
}

void nbd_selection_add(struct nbd_selection *sel, const struct nbd_export *e, const char *query,
                       bool list)
{
    size_t compared = list && is_wildcard(query) ? strlen(query) : SIZE_MAX;

    for (size_t i = 0; i < e->context_count; i++) {
        if (strncmp(e->contexts[i].name, query, compared) == 0) {
            select_context(sel, i);
        }
    }
}
