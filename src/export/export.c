/* SPDX-License-Identifier: Apache-2.0 */
/* Exports and the rules they keep. One kind so far: NBD. */
#include "export/export.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/list.h"
#include "block/bitmaps.h"
#include "block/control_lock.h"
#include "block/user_object.h"
#include "export/internal.h"
#include "loop/loop.h"
#include "nbd/server.h"

struct export
{
    struct list link; /* in `exports` */
    char *id;
    bool writable;
    bool published;
    bool shutting_down;
    struct block_root *root;
    struct user_object *reactor_object; /* referenced; NULL: none */
    struct nbd_export *nbd;
    struct block_bitmap **bitmaps;    /* each taken (busy) */
    struct block_root **bitmap_roots; /* for each, one on its node */
    size_t bitmap_count;
    struct list waiters; /* of struct gone_waiter */
};

/* Somebody who waits until an export is gone; lies on their stack. */
struct gone_waiter {
    struct list link;
    struct co *co;
};

/* All exports, oldest first. Main reactor. */
static struct list exports = LIST_INIT(exports);
static void (*event_fn)(enum export_event event, const char *id, void *arg);
static void *event_arg;

void export_set_event_fn(void (*fn)(enum export_event event, const char *id, void *arg), void *arg)
{
    event_fn = fn;
    event_arg = arg;
}

static struct export *find(const char *id)
{
    struct export *e;

    LIST_FOREACH (e, &exports, link) {
        if (strcmp(e->id, id) == 0) {
            return e;
        }
    }
    return NULL;
}

/* An id as QEMU wants it: a letter, then letters, digits, '-', '.', '_'. */
static bool id_is_wellformed(const char *id)
{
    static const char letters[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

    return id[0] && strchr(letters, id[0]) && strlen(id) <= 255 &&
           id[strspn(id, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._")] ==
               '\0';
}

/* --- bitmaps ------------------------------------------------------------------------------------- */

/* In the exported node, else down its backing chain. */
static struct block_bitmap *search_bitmap(struct block_node *node, const char *name,
                                          struct error *err)
{
    for (struct block_node *n = node; n; n = block_node_filter_or_backing(n)) {
        struct block_bitmap *b = block_bitmap_find(n, name);

        if (b) {
            return b;
        }
    }
    error_set(err, ENOENT, "Bitmap '%s' is not found", name);
    return NULL;
}

/*
 * Clients of a read-only export, and those of a point in time, were promised a view that stays, so a bitmap that may still be marked is
 * refused there. In a node that nobody can write, an enabled bitmap doesn't change either.
 */
static int co_check_bitmap(struct block_bitmap *b, bool view_stays, struct error *err)
{
    int ret = block_bitmap_check(b, BLOCK_BITMAP_REFUSE_INCONSISTENT, err);

    if (ret < 0) {
        return ret;
    }
    if (view_stays && b->enabled && !block_node_is_read_only(b->node)) {
        return error_set(err, EINVAL,
                         "Enabled bitmap '%s' incompatible with readonly export: node '%s' can be "
                         "written, and the bitmap would change; disable it first "
                         "(block-dirty-bitmap-disable)",
                         b->name, block_node_name(b->node));
    }
    return block_co_bitmap_fetch(b, err);
}

static void co_give_bitmaps(struct export *e)
{
    for (size_t i = 0; i < e->bitmap_count; i++) {
        block_bitmap_give(e->bitmaps[i]);
        block_co_root_release(e->bitmap_roots[i]);
    }
    free(e->bitmaps);
    free(e->bitmap_roots);
    e->bitmaps = NULL;
    e->bitmap_roots = NULL;
    e->bitmap_count = 0;
}

/*
 * A root on the owner of a bitmap: it stays, has its size, and is drained with the bitmap's readers. An enabled one is shown as what does
 * not change: so nobody may begin to write its node as long as the export lives.
 */
static int co_take_bitmap(struct export *e, struct block_bitmap *b, bool view_stays,
                          const char *user, struct error *err)
{
    unsigned shared = BLOCK_PERM_ALL & ~BLOCK_PERM_RESIZE;
    int ret = co_check_bitmap(b, view_stays, err);

    if (view_stays && b->enabled) {
        shared &= ~BLOCK_PERM_WRITE;
    }
    ret = ret < 0
              ? ret
              : block_co_root_new(b->node, user, 0, shared, &e->bitmap_roots[e->bitmap_count], err);
    if (ret == 0) {
        block_bitmap_take(b, user);
        e->bitmaps[e->bitmap_count++] = b;
    }
    return ret;
}

static int co_take_bitmaps(struct export *e, struct block_node *node,
                           const struct export_config *config, const char *user, struct error *err)
{
    bool view_stays = !config->writable || block_node_is_frozen_view(node);
    int ret = 0;

    e->bitmaps = calloc(config->bitmap_count + 1, sizeof(struct block_bitmap *));
    e->bitmap_roots = calloc(config->bitmap_count + 1, sizeof(struct block_root *));
    if (!e->bitmaps || !e->bitmap_roots) {
        return error_set(err, ENOMEM, "Out of memory");
    }
    for (size_t i = 0; i < config->bitmap_count && ret == 0; i++) {
        const struct export_bitmap *want = &config->bitmaps[i];
        struct block_bitmap *b = want->node_name
                                     ? block_bitmap_lookup(want->node_name, want->name, NULL, err)
                                     : search_bitmap(node, want->name, err);

        ret = b ? co_take_bitmap(e, b, view_stays, user, err) : -ENOENT;
    }
    return ret;
}

/* --- life ---------------------------------------------------------------------------------------- */

/* Undo whatever of it was done. */
static void co_release(struct export *e)
{
    if (e->nbd) {
        nbd_export_co_free(e->nbd);
    }
    co_give_bitmaps(e);
    block_co_root_release(e->root);
    user_object_unref(e->reactor_object);
    free(e->id);
    free(e);
}

static int attach_root(struct export *e, struct block_node *node,
                       const struct export_config *config, const char *user, struct error *err)
{
    unsigned perm = BLOCK_PERM_CONSISTENT_READ;
    unsigned shared = BLOCK_PERM_ALL & ~BLOCK_PERM_RESIZE;

    if (config->writable) {
        perm |= BLOCK_PERM_WRITE;
    }
    if (!config->shared_writers) {
        shared &= ~BLOCK_PERM_WRITE;
    }
    if (config->writable && block_node_is_read_only(node)) {
        return error_set(err, EROFS, "Cannot export read-only node as writable");
    }
    return block_co_root_new(node, user, perm, shared, &e->root, err);
}

static int check_config(const struct export_config *config, struct block_node **ret_node,
                        struct error *err)
{
    if (!config->type || strcmp(config->type, "nbd") != 0) {
        return error_set(err, EINVAL, "Export type '%s' is not supported; it has to be 'nbd'",
                         config->type ? config->type : "");
    }
    if (!id_is_wellformed(config->id)) {
        return error_set(err, EINVAL, "Invalid block export id");
    }
    if (find(config->id)) {
        return error_set(err, EEXIST, "Block export id '%s' is already in use", config->id);
    }
    *ret_node = block_node_lookup(config->node_name, err);
    if (!*ret_node) {
        return -ENOENT;
    }
    if (!export_nbd_server()) {
        return error_set(err, EINVAL, "NBD server not running");
    }
    return 0;
}

/* Whether an export that is not published yet has the name. */
static bool is_reserved(const char *name)
{
    struct export *e;

    LIST_FOREACH (e, &exports, link) {
        if (!e->published && strcmp(nbd_export_name(e->nbd), name) == 0) {
            return true;
        }
    }
    return false;
}

static int co_set_up(struct export *e, struct block_node *node, const struct export_config *config,
                     struct error *err)
{
    struct nbd_export_config nbd = {
        .name = config->name ? config->name : config->node_name,
        .description = config->description,
        .writable = config->writable,
        .writethrough = config->writethrough,
        .allocation_depth = config->allocation_depth,
        .reactor = config->reactor,
    };
    char user[300];
    int ret;

    snprintf(user, sizeof(user), "NBD export '%s'", config->id);
    ret = attach_root(e, node, config, user, err);
    if (ret == 0) {
        ret = co_take_bitmaps(e, node, config, user, err);
    }
    /* It may have yielded: look again. */
    if (ret == 0 && find(config->id)) {
        ret = error_set(err, EEXIST, "Block export id '%s' is already in use", config->id);
    }
    if (ret == 0 && is_reserved(nbd.name)) {
        ret = error_set(err, EEXIST, "NBD server already has export named '%s'", nbd.name);
    }
    if (ret == 0 && !export_nbd_server()) {
        ret = error_set(err, EINVAL, "NBD server not running");
    }
    if (ret < 0) {
        return ret;
    }
    nbd.root = e->root;
    nbd.bitmaps = e->bitmaps;
    nbd.bitmap_roots = e->bitmap_roots;
    nbd.bitmap_count = e->bitmap_count;
    return nbd_export_new(export_nbd_server(), &nbd, &e->nbd, err);
}

int export_co_prepare(const struct export_config *config, struct export **ret_export,
                      struct error *err)
{
    struct block_node *node = NULL;
    struct export *e;
    int ret = check_config(config, &node, err);

    if (ret < 0) {
        return ret;
    }
    e = calloc(1, sizeof(*e));
    if (!e) {
        return error_set(err, ENOMEM, "Out of memory");
    }
    list_init(&e->waiters);
    e->writable = config->writable;
    e->id = strdup(config->id);
    block_node_ref(node);
    ret = e->id ? co_set_up(e, node, config, err) : error_set(err, ENOMEM, "Out of memory");
    block_co_unref(node);
    if (ret < 0) {
        co_release(e);
        return ret;
    }
    e->reactor_object = config->reactor_object;
    list_append(&exports, &e->link);
    *ret_export = e;
    return 0;
}

void export_publish(struct export *e)
{
    e->published = true;
    nbd_export_publish(e->nbd);
}

void export_co_discard(struct export *e)
{
    list_remove(&e->link);
    co_release(e);
}

int export_co_add(const struct export_config *config, struct error *err)
{
    struct export *e = NULL;
    int ret = export_co_prepare(config, &e, err);

    if (e) {
        export_publish(e);
    }
    return ret;
}

/* The nodes that an export uses, referenced: its last use of one is not to be the one that closes it. NULL: no memory. */
static struct block_node **hold_nodes(const struct export *e)
{
    struct block_node **nodes = calloc(e->bitmap_count + 2, sizeof(struct block_node *));

    if (nodes) {
        nodes[0] = block_node_ref(block_root_node(e->root));
        for (size_t i = 0; i < e->bitmap_count; i++) {
            nodes[i + 1] = block_node_ref(block_root_node(e->bitmap_roots[i]));
        }
    }
    return nodes;
}

static void co_give_nodes(struct block_node **nodes)
{
    for (size_t i = 0; nodes && nodes[i]; i++) {
        block_co_unref(nodes[i]);
    }
    free(nodes);
}

/*
 * The end of an export that is shutting down. It can be found by its id until its clients are gone. A node that only it has used
 * is closed when others can go on.
 */
static void co_tear_down(void *arg)
{
    struct export *e = arg;
    struct gone_waiter *w, *next;
    struct list waiters = LIST_INIT(waiters);
    struct block_node **nodes;
    AUTO_FREE char *id = NULL;

    nbd_export_co_free(TAKE_PTR(e->nbd));
    /* Who no longer finds the export finds its node free. */
    block_co_root_settle(e->root);
    block_co_control_lock();
    list_remove(&e->link);
    list_splice(&waiters, &e->waiters);
    id = TAKE_PTR(e->id);
    nodes = hold_nodes(e);
    co_release(e);
    block_control_unlock();
    co_give_nodes(nodes);
    if (event_fn) {
        event_fn(EXPORT_EVENT_DELETED, id, event_arg);
    }
    LIST_FOREACH_SAFE (w, next, &waiters, link) {
        list_remove(&w->link);
        co_wake(w->co);
    }
}

/* What is waited for takes the control lock. */
static void co_wait_gone(struct export *e)
{
    struct gone_waiter w = {.co = co_self()};
    bool held = block_control_pause();

    list_append(&e->waiters, &w.link);
    co_suspend();
    block_co_control_resume(held);
}

/* Begin to shut down; e may be gone when this returns, unless `wait`. */
static int co_shut_down(struct export *e, bool wait, struct error *err)
{
    int ret;

    e->shutting_down = true;
    nbd_export_unpublish(e->nbd);
    ret = reactor_spawn(reactor_main(), co_tear_down, e);
    if (ret < 0) {
        return error_set_errno(err, -ret, "Could not shut down the export '%s'", e->id);
    }
    if (wait) {
        co_wait_gone(e);
    }
    return 0;
}

int export_co_del(const char *id, enum export_del_mode mode, bool wait, struct error *err)
{
    struct export *e = find(id);

    if (!e) {
        return error_set(err, ENOENT, "Export '%s' is not found", id);
    }
    if (e->shutting_down) {
        return error_set(err, EBUSY, "Export '%s' is already shutting down", id);
    }
    if (mode == EXPORT_DEL_SAFE && nbd_export_client_count(e->nbd) > 0) {
        error_set(err, EBUSY, "export '%s' still in use", id);
        error_hint(err, "Use mode='hard' to force client disconnect");
        return -EBUSY;
    }
    return co_shut_down(e, wait, err);
}

void export_co_del_all(void)
{
    while (!list_is_empty(&exports)) {
        struct export *e = LIST_FIRST(&exports, struct export, link);

        if (e->shutting_down) {
            co_wait_gone(e);
        } else if (co_shut_down(e, true, NULL) < 0) {
            /* No coroutine to be had: do it in this one. */
            bool held = block_control_pause();

            co_tear_down(e);
            block_co_control_resume(held);
        }
    }
}

int export_co_replace_node(const char *id, struct block_node *node, struct error *err)
{
    struct export *e = find(id);

    if (!e) {
        return error_set(err, ENOENT, "Export '%s' is not found", id);
    }
    if (e->shutting_down) {
        return error_set(err, EBUSY, "Export '%s' is already shutting down", id);
    }
    return block_co_root_replace(e->root, node, err);
}

static void fill_info(const struct export *e, struct export_info *ret)
{
    *ret = (struct export_info){
        .id = e->id,
        .type = "nbd",
        .name = e->nbd ? nbd_export_name(e->nbd) : "",
        .node = block_root_node(e->root),
        .shutting_down = e->shutting_down,
        .writable = e->writable,
        .connections = e->nbd ? nbd_export_client_count(e->nbd) : 0,
    };
}

bool export_find(const char *id, struct export_info *ret)
{
    struct export *e = find(id);

    if (!e) {
        return false;
    }
    fill_info(e, ret);
    return true;
}

void export_foreach(bool (*fn)(const struct export_info *info, void *arg), void *arg)
{
    struct export *e;

    LIST_FOREACH (e, &exports, link) {
        struct export_info info;

        fill_info(e, &info);
        if (!fn(&info, arg)) {
            return;
        }
    }
}
