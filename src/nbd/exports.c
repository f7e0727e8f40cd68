/* SPDX-License-Identifier: Apache-2.0 */
/* The exports of a server, and which clients they have. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "block/bitmaps.h"
#include "nbd/server_internal.h"

static struct nbd_export *find_by_name(struct list *list, const char *name)
{
    struct nbd_export *e;

    LIST_FOREACH (e, list, link) {
        if (strcmp(e->name, name) == 0) {
            return e;
        }
    }
    return NULL;
}

static struct nbd_export *find_default(struct list *list)
{
    struct nbd_export *e;

    LIST_FOREACH (e, list, link) {
        if (e->is_default) {
            return e;
        }
    }
    return NULL;
}

struct nbd_export *nbd_server_find_export(struct nbd_server *s, const char *name)
{
    struct nbd_export *e = find_by_name(&s->exports, name);

    return e || name[0] ? e : find_default(&s->exports);
}

static int check_export_config(struct nbd_server *s, const struct nbd_export_config *config,
                               struct error *err)
{
    const struct nbd_export *other;

    if (strlen(config->name) > NBD_STRING_MAX) {
        return error_set(err, EINVAL, "export name '%.40s...' too long", config->name);
    }
    if (config->description && strlen(config->description) > NBD_STRING_MAX) {
        return error_set(err, EINVAL, "description '%.40s...' too long", config->description);
    }
    for (size_t i = 0; i < config->bitmap_count; i++) {
        /* The longest prefix of a context with a bitmap. */
        if (strlen(NBD_CONTEXT_DIRTY_BITMAP) + strlen(block_bitmap_name(config->bitmaps[i])) >
            NBD_STRING_MAX) {
            return error_set(err, EINVAL, "Bitmap name '%.40s...' too long",
                             block_bitmap_name(config->bitmaps[i]));
        }
        for (size_t j = 0; j < i; j++) {
            /* Bitmaps of two nodes may have the same name: then the context has both. */
            if (config->bitmaps[i] == config->bitmaps[j]) {
                return error_set(err, EINVAL, "Bitmap '%s' is given twice",
                                 block_bitmap_name(config->bitmaps[i]));
            }
        }
    }
    if (find_by_name(&s->exports, config->name) || find_by_name(&s->prepared, config->name)) {
        return error_set(err, EEXIST, "NBD server already has export named '%s'", config->name);
    }
    other = find_default(&s->exports) ?: find_default(&s->prepared);
    if (config->is_default && other) {
        return error_set(err, EEXIST, "Export '%s' is the default of the NBD server already",
                         other->name);
    }
    return 0;
}

static uint16_t transmission_flags(const struct nbd_server *s,
                                   const struct nbd_export_config *config)
{
    unsigned flags =
        NBD_FLAG_HAS_FLAGS | NBD_FLAG_SEND_FLUSH | NBD_FLAG_SEND_FUA | NBD_FLAG_SEND_CACHE;

    if (config->writable) {
        flags |= NBD_FLAG_SEND_TRIM | NBD_FLAG_SEND_WRITE_ZEROES | NBD_FLAG_SEND_FAST_ZERO;
    } else {
        flags |= NBD_FLAG_READ_ONLY;
    }
    if (s->config.max_connections != 1 && config->max_clients != 1) {
        flags |= NBD_FLAG_CAN_MULTI_CONN;
    }
    return (uint16_t)flags;
}

static void export_release(struct nbd_export *e)
{
    free(e->name);
    free(e->description);
    free(e->bitmaps);
    free(e->bitmap_edges);
    nbd_contexts_release(e);
    free(e);
}

int nbd_export_new(struct nbd_server *s, const struct nbd_export_config *config,
                   struct nbd_export **ret_export, struct error *err)
{
    struct nbd_export *e;
    int r = check_export_config(s, config, err);

    if (r < 0) {
        return r;
    }
    e = calloc(1, sizeof(*e));
    if (!e) {
        return error_out_of_memory(err);
    }
    e->name = strdup(config->name);
    e->description = config->description ? strdup(config->description) : NULL;
    e->bitmaps = calloc(config->bitmap_count + 1, sizeof(struct block_bitmap *));
    e->bitmap_edges = calloc(config->bitmap_count + 1, sizeof(struct block_edge *));
    if (!e->name || (config->description && !e->description) || !e->bitmaps || !e->bitmap_edges) {
        export_release(e);
        return error_out_of_memory(err);
    }
    for (size_t i = 0; i < config->bitmap_count; i++) {
        e->bitmaps[i] = config->bitmaps[i];
        e->bitmap_edges[i] = block_root_edge(config->bitmap_roots[i]);
    }
    e->bitmap_count = config->bitmap_count;
    if (nbd_contexts_init(e, config->allocation_depth, config->merged) < 0) {
        export_release(e);
        return error_out_of_memory(err);
    }
    e->server = s;
    e->serial = s->next_serial++;
    e->root = config->root;
    e->edge = block_root_edge(config->root);
    e->size = block_node_size(block_root_node(config->root));
    e->flags = transmission_flags(s, config);
    e->writable = config->writable;
    e->writethrough = config->writethrough;
    e->max_clients = config->max_clients;
    e->is_default = config->is_default;
    e->authz = config->authz;
    e->reactor = config->reactor;
    e->latencies = config->latencies;
    e->on_error = config->on_error;
    e->on_unused = config->on_unused;
    e->arg = config->arg;
    list_init(&e->clients);
    list_append(&s->prepared, &e->link);
    *ret_export = e;
    return 0;
}

/*
 * An image whose format was guessed to be raw is offered by sectors: then each write of its first
 * sector can be checked, so that no guest makes another format of it.
 */
static uint32_t min_block_of(const struct nbd_export *e, const struct block_node *node)
{
    uint32_t block = MAX(block_node_limits(node)->request_alignment, 1u);

    if (block_node_settings(node).probed) {
        block = MAX(block, 512u);
    }
    block = MIN(block, NBD_MIN_BLOCK_MAX);
    return is_aligned(e->size, block) ? block : 1;
}

struct nbd_block_sizes nbd_export_block_sizes(const struct nbd_export *e)
{
    const struct block_node *node = block_edge_node(e->edge);
    const struct block_limits *limits = block_node_limits(node);
    struct nbd_block_sizes sizes = {.minimum = min_block_of(e, node),
                                    .maximum = NBD_MAX_BLOCK_SIZE};

    sizes.preferred = MAX(NBD_PREFERRED_BLOCK_MIN, sizes.minimum);
    if (is_power_of_2(limits->opt_transfer)) {
        sizes.preferred = MAX(sizes.preferred, MIN(limits->opt_transfer, NBD_MAX_BLOCK_SIZE));
    }
    if (limits->max_transfer >= sizes.preferred) {
        sizes.maximum =
            (uint32_t)MIN(round_down(limits->max_transfer, sizes.minimum), NBD_MAX_BLOCK_SIZE);
    }
    return sizes;
}

void nbd_export_publish(struct nbd_export *e)
{
    list_remove(&e->link);
    list_append(&e->server->exports, &e->link);
}

void nbd_export_set_size(struct nbd_export *e, uint64_t size)
{
    atomic_store(&e->size, size);
}

void nbd_export_unpublish(struct nbd_export *e)
{
    e->on_unused = NULL;
    list_remove(&e->link);
}

void nbd_connection_attach(struct nbd_connection *c, struct nbd_export *e)
{
    c->export = e;
    counter_set(&c->counters.values[NBD_STAT_CLIENTS], 1);
    if (c->tls && tls_session_uses_kernel(c->tls)) {
        counter_set(&c->counters.values[NBD_STAT_KTLS], 1);
    }
    counter_set(&c->counters.values[NBD_STAT_CONNECTIONS], 1);
    list_append(&e->clients, &c->export_link);
    e->client_count++;
}

/* The objects with files of all exports, or of one, each once, as references. How many. */
static size_t collect_authz(const struct nbd_server *s, const struct nbd_export *only,
                            struct tls_authz **list)
{
    const struct nbd_export *e;
    size_t count = 0;

    LIST_FOREACH (e, &s->exports, link) {
        size_t i = 0;

        if (!e->authz || (only && e != only) || !tls_authz_is_in_file(e->authz)) {
            continue;
        }
        while (i < count && list[i] != e->authz) {
            i++;
        }
        if (i == count) {
            tls_authz_hold(e->authz);
            list[count++] = e->authz;
        }
    }
    return count;
}

int nbd_exports_co_read_authz(struct nbd_server *s, const struct nbd_export *only)
{
    AUTO_FREE struct tls_authz **list = NULL;
    const struct nbd_export *e;
    size_t count = 0;

    LIST_FOREACH (e, &s->exports, link) {
        count += e->authz != NULL;
    }
    if (count == 0) {
        return 0;
    }
    list = calloc(count, sizeof(struct tls_authz *));
    if (!list) {
        return -ENOMEM;
    }
    count = collect_authz(s, only, list);
    for (size_t i = 0; i < count; i++) {
        tls_authz_co_refresh(list[i]);
        tls_authz_unref(list[i]);
    }
    return 0;
}

bool nbd_export_admits(const struct nbd_export *e, const struct nbd_connection *c)
{
    const char *identity = c->tls ? tls_session_identity(c->tls) : NULL;

    return !e->authz || (identity && tls_authz_allows_as_read(e->authz, identity));
}

bool nbd_export_is_full(const struct nbd_export *e)
{
    return e->max_clients > 0 && e->client_count >= e->max_clients;
}

void nbd_connection_detach(struct nbd_connection *c)
{
    struct nbd_export *e = c->export;

    if (!e) {
        return;
    }
    c->export = NULL;
    list_remove(&c->export_link);
    nbd_counters_retire(&c->counters, e->past);
    e->client_count--;
    if (e->client_count == 0 && e->on_unused) {
        e->on_unused(e->arg);
    }
    if (e->client_count == 0 && e->free_waiter) {
        struct co *co = e->free_waiter;

        e->free_waiter = NULL;
        co_wake(co);
    }
}

void nbd_export_co_disconnect(struct nbd_export *e)
{
    struct nbd_connection *c;

    nbd_export_unpublish(e);
    block_root_begin_end(e->root);
    LIST_FOREACH (c, &e->clients, export_link) {
        nbd_connection_begin_end(c);
    }
    while (e->client_count > 0) {
        e->free_waiter = co_self();
        co_suspend();
    }
}

void nbd_export_free(struct nbd_export *e)
{
    nbd_export_unpublish(e);
    export_release(e);
}

size_t nbd_export_client_count(const struct nbd_export *e)
{
    return e->client_count;
}
