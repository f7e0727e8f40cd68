/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Pulling from an NBD export. The bitmap is read first, on a connection of its own: outside the
 * areas that it marks, a view refuses even block status.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "backup/pull_input.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "base/list.h"
#include "base/time_units.h"
#include "nbd/proto.h"

#define CONNECT_TIMEOUT_NS (30 * NS_PER_SECOND)
/*
 * Timeout of all connections but the first: a server may have a limit, and then a connection waits.
 */
#define FURTHER_TIMEOUT_NS (2 * NS_PER_SECOND)
#define CONNECTIONS_MAX 2
/* Bytes per status request: a length that fits into 32 bits, with room for alignment. */
#define STATUS_BYTES (1ULL << 30)

struct pull_nbd {
    struct pull_input input;
    struct pull_nbd_config config;
    char *shown;
    struct nbd_client *clients[CONNECTIONS_MAX];
    struct nbd_client *asked; /* of the bitmap, while that is read */
    unsigned client_count, next_client;
};

static struct pull_nbd *nbd_of(struct pull_input *input)
{
    return container_of(input, struct pull_nbd, input);
}

/* Connect, asking for one metadata context. */
static int co_connect_pull(const struct pull_nbd *p, const char *context, int64_t timeout_ns,
                           struct nbd_client **ret_client, struct error *err)
{
    const struct pull_nbd_config *config = &p->config;
    const struct socket_address *address = config->address;
    char number[16];
    struct socket_address reached = {.fd = number};
    ERROR_AUTO(failure);
    int r = 0, fd;

    if (config->co_reach) {
        r = config->co_reach(config->co_reach_arg, &fd, err);
        if (r < 0) {
            return r;
        }
        snprintf(number, sizeof(number), "%d", fd);
        address = &reached;
    }
    r = nbd_client_co_connect(address, config->tls, config->export_name, &context, 1, timeout_ns,
                              ret_client, &failure);
    if (r == -ETIMEDOUT) {
        error_hint(&failure, "Has the server reached its number of connections (max-connections)?");
    } else if (r == -EPERM && config->tls && !config->tls->hostname && !address->host) {
        error_hint(&failure, "Name what the server's certificate is for with --tls-hostname.");
    } else if (r < 0 && !config->tls && strstr(error_message(&failure), "TLS negotiation")) {
        error_hint(&failure, "The NBD server wants TLS: name credentials with --tls-creds.");
    }
    if (r < 0) {
        error_move(err, &failure);
        error_prepend(err, "Could not reach %s: ", p->shown);
    }
    return r;
}

/* --- the bitmap --- */

static int co_read_bitmap(const struct pull_nbd *p, struct nbd_client *client,
                          pull_input_area *area, void *arg, struct error *err)
{
    uint64_t offset = 0, size = nbd_client_size(client);

    while (offset < size) {
        struct nbd_extents extents = {0};
        uint64_t ask = MIN(size - offset, STATUS_BYTES);
        int r = nbd_client_co_block_status(client, offset, ask, false, &extents);

        if (r == 0 && extents.count == 0) {
            r = -EPROTO;
        }
        for (size_t i = 0; r == 0 && i < extents.count; i++) {
            if (extents.list[i].flags & NBD_STATE_DIRTY) {
                r = area(arg, offset, extents.list[i].length);
            }
            offset += extents.list[i].length;
        }
        nbd_extents_clear(&extents);
        if (r < 0) {
            return error_set_errno(err, -r, "Could not read bitmap '%s' of %s", p->config.bitmap,
                                   p->shown);
        }
    }
    return 0;
}

static int co_changed_nbd(struct pull_input *input, pull_input_area *area, void *arg,
                          struct error *err)
{
    struct pull_nbd *p = nbd_of(input);
    struct nbd_client *client;
    char *context AUTO_FREE = NULL;
    int r;

    if (asprintf(&context, NBD_CONTEXT_DIRTY_BITMAP "%s", p->config.bitmap) < 0) {
        context = NULL;
        return error_out_of_memory(err);
    }
    r = co_connect_pull(p, context, CONNECT_TIMEOUT_NS, &client, err);
    if (r < 0) {
        return r;
    }
    p->asked = client;
    r = nbd_client_context(client, 0)
            ? co_read_bitmap(p, client, area, arg, err)
            : error_set(err, ENOENT, "Export '%s' does not offer bitmap '%s'",
                        p->config.export_name, p->config.bitmap);
    p->asked = NULL;
    nbd_client_co_close(client);
    return r;
}

/* --- reading --- */

static int check_pulled_export(const struct pull_nbd *p, const struct nbd_client *client,
                               uint64_t disk_size, struct error *err)
{
    if (nbd_client_size(client) < disk_size) {
        return error_set(err, EIO, "Export '%s' has %" PRIu64 " bytes, the disk has %" PRIu64,
                         p->config.export_name, nbd_client_size(client), disk_size);
    }
    return nbd_client_context(client, 0)
               ? 0
               : error_set(err, ENOTSUP, "Export '%s' does not tell what is allocated",
                           p->config.export_name);
}

static int co_begin_nbd(struct pull_input *input, uint64_t disk_size, struct error *err)
{
    struct pull_nbd *p = nbd_of(input);

    for (unsigned i = 0; i < MIN(p->config.connections, (unsigned)CONNECTIONS_MAX); i++) {
        ERROR_AUTO(attempt);
        int r = co_connect_pull(p, NBD_CONTEXT_BASE_ALLOCATION,
                                i == 0 ? CONNECT_TIMEOUT_NS : FURTHER_TIMEOUT_NS, &p->clients[i],
                                &attempt);
        if (r < 0 && i > 0) {
            break;
        }
        if (r < 0) {
            error_move(err, &attempt);
            return r;
        }
        p->client_count++;
        r = check_pulled_export(p, p->clients[i], disk_size, err);
        if (r < 0) {
            return r;
        }
        if (!(nbd_client_flags(p->clients[i]) & NBD_FLAG_CAN_MULTI_CONN)) {
            break;
        }
    }
    return 0;
}

static struct nbd_client *next_pull_client(struct pull_nbd *p)
{
    return p->clients[p->next_client++ % p->client_count];
}

static int co_data_nbd(struct pull_input *input, uint64_t offset, uint64_t length,
                       pull_input_area *area, void *arg)
{
    struct nbd_client *client = nbd_of(input)->clients[0];

    while (length > 0) {
        struct nbd_extents extents = {0};
        int r =
            nbd_client_co_block_status(client, offset, MIN(length, STATUS_BYTES), false, &extents);

        if (r == 0 && extents.count == 0) {
            r = -EPROTO;
        }
        for (size_t i = 0; r == 0 && i < extents.count; i++) {
            uint64_t n = MIN(length, extents.list[i].length);

            if (n > 0 && !(extents.list[i].flags & NBD_STATE_ZERO)) {
                r = area(arg, offset, n);
            }
            offset += n;
            length -= n;
        }
        nbd_extents_clear(&extents);
        if (r < 0) {
            return r;
        }
    }
    return 0;
}

static int co_read_nbd(struct pull_input *input, uint64_t offset, void *buf, uint64_t size)
{
    return nbd_client_co_pread(next_pull_client(nbd_of(input)), offset, buf, size);
}

static int co_digests_nbd(struct pull_input *input, uint64_t offset, uint64_t length,
                          uint8_t *ret_digests, uint64_t *ret_count)
{
    const struct pull_nbd_config *config = &nbd_of(input)->config;

    return config->co_digests
               ? config->co_digests(config->co_digests_arg, offset, length, ret_digests, ret_count)
               : -ENOTSUP;
}

/* Only a hint: if it fails, more is copied than need be. */
static void co_release_nbd(struct pull_input *input, uint64_t offset, uint64_t size)
{
    struct pull_nbd *p = nbd_of(input);
    struct nbd_client *client = next_pull_client(p);

    if (p->config.release && (nbd_client_flags(client) & NBD_FLAG_SEND_TRIM) &&
        !(nbd_client_flags(client) & NBD_FLAG_READ_ONLY)) {
        nbd_client_co_trim(client, offset, size);
    }
}

static void co_give_up_nbd(struct pull_input *input)
{
    struct pull_nbd *p = nbd_of(input);

    nbd_client_give_up_attempts();
    if (p->asked) {
        nbd_client_give_up(p->asked);
    }
    for (unsigned i = 0; i < p->client_count; i++) {
        nbd_client_give_up(p->clients[i]);
    }
}

static void co_close_nbd(struct pull_input *input)
{
    struct pull_nbd *p = nbd_of(input);

    for (unsigned i = 0; i < CONNECTIONS_MAX; i++) {
        nbd_client_co_close(p->clients[i]);
    }
    free(p->shown);
    free(p);
}

static const struct pull_input_ops pull_nbd_ops = {
    .co_changed = co_changed_nbd,
    .co_begin = co_begin_nbd,
    .co_data = co_data_nbd,
    .co_read = co_read_nbd,
    .co_digests = co_digests_nbd,
    .co_release = co_release_nbd,
    .co_give_up = co_give_up_nbd,
    .co_close = co_close_nbd,
};

int pull_nbd_new(const struct pull_nbd_config *config, struct pull_input **ret_input,
                 struct error *err)
{
    struct pull_nbd *p = calloc(1, sizeof(*p));

    if (!p || asprintf(&p->shown, "export '%s'", config->export_name) < 0) {
        free(p);
        return error_out_of_memory(err);
    }
    p->config = *config;
    p->input = (struct pull_input){
        .ops = &pull_nbd_ops,
        .shown = p->shown,
        .has_bitmap = config->bitmap != NULL,
    };
    *ret_input = &p->input;
    return 0;
}

void pull_input_co_close(struct pull_input *input)
{
    if (input) {
        input->ops->co_close(input);
    }
}
