/* SPDX-License-Identifier: Apache-2.0 */
/* Exports of type "nbd": their options, their bitmaps, and the rules for these. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "block/bitmaps.h"
#include "block/option_types.h"
#include "export/export_type.h"
#include "export/nbd_server.h"
#include "nbd/server.h"
#include "nbd/stats.h"
#include "schema/define.h"
#include "tls/tls.h"

/* The state of an export. */
struct nbd_state {
    char *name;
    char *description; /* NULL: none */
    bool allocation_depth, merged;
    uint64_t max_clients;             /* 0: no limit */
    bool is_default;                  /* for clients that name none */
    bool lease;                       /* the exported view goes with its last client */
    struct export *export;            /* that this is the state of */
    struct json_object *wanted;       /* reference to the list of bitmaps; NULL: none */
    struct block_bitmap **bitmaps;    /* each taken (busy) */
    struct block_root **bitmap_roots; /* for each, the one on its node */
    size_t bitmap_count;
    char *authz_id;          /* of x-tls-authz; NULL: all clients may use it */
    struct tls_authz *authz; /* reference; NULL: none */
    struct nbd_export *nbd;  /* NULL: not prepared yet */
};

/* Of the option x-merged. */
static bool merged_default = true;

void export_nbd_offer_merged(bool offer)
{
    merged_default = offer;
}

/* --- options -------------------------------------------------------------------------------- */

static void nbd_state_free(void *state)
{
    struct nbd_state *s = state;

    if (s->nbd) {
        nbd_export_free(s->nbd);
    }
    for (size_t i = 0; i < s->bitmap_count; i++) {
        block_bitmap_give(s->bitmaps[i]);
    }
    tls_authz_unref(s->authz);
    free(s->authz_id);
    free(s->bitmaps);
    free(s->bitmap_roots);
    json_object_put(s->wanted);
    free(s->name);
    free(s->description);
    free(s);
}

OBJECT(nbd_options, "BlockExportOptionsNbd",
       OPT("name", schema_str, .dflt = "the name of the node", .help = "by which clients find it"),
       OPT("description", schema_str, .help = "shown to clients"),
       OPT("bitmaps", block_bitmaps_or_names_type,
           .help = "clients can read them, as qemu:dirty-bitmap:NAME"),
       OPT("allocation-depth", schema_bool, .dflt = "false",
           .help = "clients can read in which image of the chain data are"),
       OPT("x-default", schema_bool, .dflt = "false", UNSTABLE,
           .help = "clients that ask for the name \"\" get this export"),
       OPT("x-max-connections", schema_uint32, .dflt = "0", UNSTABLE,
           .help = "clients of this export at a time; 0: no limit of its own"),
       OPT("x-tls-authz", schema_str, UNSTABLE,
           .help = "id of an authz object: only clients that it allows see and use the export"),
       OPT("x-lease", schema_bool, .dflt = "false", UNSTABLE,
           .help = "the export, and the view that it shows, go with the last client"),
       OPT("x-merged", schema_bool, .dflt = "true; with the names of QEMU's programs false",
           UNSTABLE,
           .help = "clients can read allocation and dirty bits in one list: see docs/nbd.md"));

static int take_nbd_options(struct nbd_state *s, const struct export_config *config,
                            struct options *opts, struct error *err)
{
    int r = options_take_str(opts, "name", &s->name, err);

    UNLESS_FAILED(r, options_take_str(opts, "description", &s->description, err));
    UNLESS_FAILED(r, options_take_bool(opts, "allocation-depth", false, &s->allocation_depth, err));
    UNLESS_FAILED(r, options_take_bool(opts, "x-default", false, &s->is_default, err));
    UNLESS_FAILED(
        r, options_take_uint(opts, "x-max-connections", 0, UINT32_MAX, &s->max_clients, err));
    UNLESS_FAILED(r, options_take_str(opts, "x-tls-authz", &s->authz_id, err));
    UNLESS_FAILED(r, options_take_bool(opts, "x-lease", false, &s->lease, err));
    UNLESS_FAILED(r, options_take_bool(opts, "x-merged", merged_default, &s->merged, err));
    UNLESS_FAILED(r, options_take_list(opts, "bitmaps", &s->wanted, err));
    if (r < 0) {
        return r;
    }
    if (!export_nbd_server()) {
        return error_set(err, EINVAL, "NBD server not running");
    }
    if (!s->name) {
        s->name = strdup(config->node_name);
    }
    return s->name ? 0 : error_out_of_memory(err);
}

static int nbd_state_parse(const struct export_config *config, struct options *opts,
                           void **ret_state, struct error *err)
{
    struct nbd_state *s = calloc(1, sizeof(*s));
    int r;

    if (!s) {
        return error_out_of_memory(err);
    }
    r = take_nbd_options(s, config, opts, err);
    if (r < 0) {
        nbd_state_free(s);
        return r;
    }
    *ret_state = s;
    return 0;
}

/* --- bitmaps -------------------------------------------------------------------------------- */

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

/* The bitmap that an element of the option `bitmaps` names. */
static int find_wanted(struct json_object *item, struct block_node *node,
                       struct block_bitmap **ret_bitmap, struct error *err)
{
    struct json_object *owner = NULL, *name = item;

    if (json_object_is_type(item, json_type_object)) {
        json_object_object_get_ex(item, "node", &owner);
        json_object_object_get_ex(item, "name", &name);
    }
    if (!json_object_is_type(name, json_type_string) ||
        (owner && !json_object_is_type(owner, json_type_string))) {
        return error_set(
            err, EINVAL,
            "An element of 'bitmaps' has to be the name of a bitmap, or an object with "
            "the strings 'node' and 'name'");
    }
    *ret_bitmap = owner ? block_bitmap_lookup(json_object_get_string(owner),
                                              json_object_get_string(name), NULL, err)
                        : search_bitmap(node, json_object_get_string(name), err);
    return *ret_bitmap ? 0 : -ENOENT;
}

/*
 * Clients of a read-only export, and of a point in time, were promised contents that stay. So a
 * bitmap that may still be marked is refused there. In a node that cannot be written, an enabled
 * bitmap does not change either; nor in a node that has nothing to do with the exported one, and
 * that nobody writes.
 */
static int co_check_bitmap(struct block_bitmap *b, struct block_node *exported, bool contents_stay,
                           struct error *err)
{
    struct block_node *owner = block_bitmap_node(b);
    int r = block_bitmap_check(b, BLOCK_BITMAP_REFUSE_INCONSISTENT, err);

    if (r < 0) {
        return r;
    }
    if (contents_stay && block_bitmap_enabled(b) && !block_node_is_read_only(owner) &&
        (block_node_is_joined(exported, owner) || block_node_used_perm(owner) & BLOCK_PERM_WRITE)) {
        return block_uses_qemu_names()
                   ? error_set(err, EINVAL, "Enabled bitmap '%s' incompatible with readonly export",
                               block_bitmap_name(b))
                   : error_set(err, EINVAL,
                               "Enabled bitmap '%s' incompatible with readonly export: node '%s' "
                               "can be written, and the bitmap would change; disable it first "
                               "(block-dirty-bitmap-disable)",
                               block_bitmap_name(b), block_node_name(owner));
    }
    return block_co_bitmap_fetch(b, err);
}

/*
 * A root on the owner of a bitmap: the node stays, keeps its size, and is drained together with the
 * readers of the bitmap. An enabled bitmap is offered as one that does not change: so no user may
 * begin to write its node while the export lives.
 */
static int co_take_bitmap(struct nbd_state *s, const struct export_access *access,
                          struct block_bitmap *b, bool contents_stay, struct error *err)
{
    unsigned shared = BLOCK_PERM_ALL & ~(unsigned)BLOCK_PERM_RESIZE;
    int r = co_check_bitmap(b, block_root_node(access->root), contents_stay, err);

    if (r < 0) {
        return r;
    }
    if (contents_stay && block_bitmap_enabled(b)) {
        shared &= ~(unsigned)BLOCK_PERM_WRITE;
    }
    r = export_co_attach(access->export, block_bitmap_node(b), 0, shared,
                         &s->bitmap_roots[s->bitmap_count], err);
    if (r < 0) {
        return r;
    }
    block_root_stay(s->bitmap_roots[s->bitmap_count]);
    block_bitmap_take(b, export_user(access->export));
    s->bitmaps[s->bitmap_count++] = b;
    return 0;
}

static int co_take_bitmaps(struct nbd_state *s, const struct export_access *access,
                           struct error *err)
{
    struct block_node *node = block_root_node(access->root);
    bool contents_stay = !access->writable || block_node_is_frozen_view(node);
    size_t count = s->wanted ? json_object_array_length(s->wanted) : 0;

    s->bitmaps = calloc(count + 1, sizeof(struct block_bitmap *));
    s->bitmap_roots = calloc(count + 1, sizeof(struct block_root *));
    if (!s->bitmaps || !s->bitmap_roots) {
        return error_out_of_memory(err);
    }
    for (size_t i = 0; i < count; i++) {
        struct block_bitmap *b = NULL;
        int r = find_wanted(json_object_array_get_idx(s->wanted, i), node, &b, err);

        UNLESS_FAILED(r, co_take_bitmap(s, access, b, contents_stay, err));
        if (r < 0) {
            return r;
        }
    }
    return 0;
}

/* --- life ----------------------------------------------------------------------------------- */

static void nbd_unused(void *arg)
{
    export_lease_ended(((struct nbd_state *)arg)->export);
}

static void nbd_request_failed(void *arg, const char *request, uint64_t offset, uint64_t length,
                               int error)
{
    export_note_io_error(((struct nbd_state *)arg)->export, request, offset, length, error);
}

/* x-tls-authz: the server has to know who its clients are. */
static int take_authz(struct nbd_state *s, struct error *err)
{
    if (!s->authz_id) {
        return 0;
    }
    if (!export_nbd_server_identifies_clients()) {
        return error_set(err, EINVAL,
                         "x-tls-authz needs an NBD server with TLS credentials by which clients "
                         "identify themselves");
    }
    return tls_authz_ref(s->authz_id, &s->authz, err);
}

static int nbd_co_prepare(void *state, const struct export_access *access, struct error *err)
{
    struct nbd_state *s = state;
    struct nbd_export_config config = {
        .name = s->name,
        .description = s->description,
        .root = access->root,
        .writable = access->writable,
        .writethrough = access->writethrough,
        .allocation_depth = s->allocation_depth,
        .merged = s->merged,
        .max_clients = (unsigned)s->max_clients,
        .is_default = s->is_default,
        .reactor = access->reactor,
        .latencies = access->latencies,
        .on_unused = s->lease ? nbd_unused : NULL,
        .on_error = nbd_request_failed,
        .arg = s,
    };
    int r;

    s->export = access->export;
    if (s->lease && !block_node_is_frozen_view(block_root_node(access->root))) {
        return error_set(err, EINVAL,
                         "Option 'x-lease' is for snapshot-access nodes, which '%s' "
                         "is not",
                         block_node_name(block_root_node(access->root)));
    }
    r = take_authz(s, err);
    UNLESS_FAILED(r, co_take_bitmaps(s, access, err));
    if (r < 0) {
        return r;
    }
    /* That yielded. */
    if (!export_nbd_server()) {
        return error_set(err, EINVAL, "NBD server not running");
    }
    config.authz = s->authz;
    config.bitmaps = s->bitmaps;
    config.bitmap_roots = s->bitmap_roots;
    config.bitmap_count = s->bitmap_count;
    return nbd_export_new(export_nbd_server(), &config, &s->nbd, err);
}

static void nbd_publish(void *state)
{
    nbd_export_publish(((struct nbd_state *)state)->nbd);
}

/* A node that is resized before it is prepared has its new size then. */
static void nbd_resized(void *state, uint64_t size)
{
    struct nbd_state *s = state;

    if (s->nbd) {
        nbd_export_set_size(s->nbd, size);
    }
}

static void nbd_stop_accepting(void *state)
{
    nbd_export_unpublish(((struct nbd_state *)state)->nbd);
}

static void nbd_co_disconnect(void *state)
{
    nbd_export_co_disconnect(((struct nbd_state *)state)->nbd);
}

static size_t nbd_client_count(const void *state)
{
    return nbd_export_client_count(((const struct nbd_state *)state)->nbd);
}

static void nbd_read_stats(const void *state, uint64_t *ret_values)
{
    nbd_export_read_stats(((const struct nbd_state *)state)->nbd, ret_values);
}

/* What a visit of clients carries. */
struct client_visit {
    export_client_fn *fn;
    void *arg;
};

static void visit_nbd_client(const struct nbd_connection_info *info, const uint64_t *values,
                             void *arg)
{
    const struct client_visit *v = arg;
    struct export_client client = {.peer = info->peer, .serial = info->serial, .values = values};

    v->fn(&client, v->arg);
}

static void nbd_foreach_client(const void *state, export_client_fn *fn, void *arg)
{
    struct client_visit v = {.fn = fn, .arg = arg};

    nbd_export_foreach_connection(((const struct nbd_state *)state)->nbd, visit_nbd_client, &v);
}

_Static_assert(NBD_STATS <= EXPORT_STATS_WIDTH_MAX, "room for what an export counts");

static const struct export_type nbd_type = {
    .help = "a disk for clients of the NBD server",
    .options = &nbd_options,
    .name = "nbd",
    .title = "NBD export",
    .may_be_inactive = true,
    .parse = nbd_state_parse,
    .resized = nbd_resized,
    .co_prepare = nbd_co_prepare,
    .publish = nbd_publish,
    .stop_accepting = nbd_stop_accepting,
    .co_disconnect = nbd_co_disconnect,
    .co_free = nbd_state_free,
    .client_count = nbd_client_count,
    .stats = nbd_stats,
    .stats_group = "export",
    .client_stats = nbd_stats,
    .read_stats = nbd_read_stats,
    .foreach_client = nbd_foreach_client,
};

void export_nbd_register_type(void)
{
    export_register_type(&nbd_type);
}
