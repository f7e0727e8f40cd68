/* SPDX-License-Identifier: Apache-2.0 */
/* The life of a client: connect, close; and the listing of exports. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "base/cleanup.h"
#include "base/log.h"
#include "base/time_units.h"
#include "nbd/client_internal.h"

/* How long a server may take to hang up after the client has said goodbye. */
#define GOODBYE_NS 1000000000LL

static void target_clear(struct nbd_target *t)
{
    socket_address_clear(&t->address);
    free((char *)(uintptr_t)t->tls.hostname);
    free(t->export_name);
    for (size_t i = 0; i < t->context_count; i++) {
        free(t->contexts[i]);
    }
}

/* A copy; NULL of NULL. False if out of memory. */
static bool copy_string(const char *from, char **ret_copy)
{
    *ret_copy = from ? strdup(from) : NULL;
    return !from || *ret_copy;
}

/* The name that the server's certificate has to be for. */
static const char *certificate_name(const struct nbd_client_tls *tls,
                                    const struct socket_address *address)
{
    return tls->hostname || address->path ? tls->hostname : address->host;
}

static int target_init(struct nbd_target *t, const struct socket_address *address,
                       const struct nbd_client_tls *tls, const char *export_name,
                       const char *const *contexts, size_t context_count)
{
    char *hostname = NULL;
    bool ok = socket_address_copy(address, &t->address) == 0 &&
              copy_string(tls ? certificate_name(tls, address) : NULL, &hostname) &&
              copy_string(export_name, &t->export_name);

    t->tls = (struct nbd_client_tls){.creds = tls ? tls->creds : NULL, .hostname = hostname};
    for (; ok && t->context_count < context_count; t->context_count++) {
        ok = copy_string(contexts[t->context_count], &t->contexts[t->context_count]);
        if (!ok) {
            break;
        }
    }
    return ok ? 0 : -ENOMEM;
}

static void client_free(struct nbd_client *c)
{
    nbd_wire_close(&c->wire);
    nbd_reconnect_destroy(c);
    target_clear(&c->target);
    nbd_agreement_clear(&c->agreed);
    error_clear(&c->fault);
    co_semaphore_destroy(&c->room);
    co_group_destroy(&c->group);
    pthread_mutex_destroy(&c->lock);
    free(c->buffer);
    free(c);
}

static struct nbd_client *client_new(size_t context_count)
{
    struct nbd_client *c = calloc(1, sizeof(*c));

    if (!c) {
        return NULL;
    }
    c->wire.fd = -1;
    c->home = reactor_current();
    c->context_count = context_count;
    co_semaphore_init(&c->room, NBD_CLIENT_IN_FLIGHT);
    co_group_init(&c->group);
    pthread_mutex_init(&c->lock, NULL);
    list_init(&c->send_queue);
    nbd_reconnect_init(c);
    c->buffer = malloc(NBD_CLIENT_BUFFER);
    if (!c->buffer) {
        client_free(c);
        return NULL;
    }
    return c;
}

/* Start sender and receiver. */
static int client_co_start(struct nbd_client *c, struct error *err)
{
    int r;

    co_group_add(&c->group);
    r = reactor_spawn(c->home, nbd_client_co_receiver, c);
    if (r == 0) {
        co_group_add(&c->group);
        r = reactor_spawn(c->home, nbd_client_co_sender, c);
        if (r < 0) {
            co_group_done(&c->group);
            shutdown(c->wire.fd, SHUT_RDWR);
            co_group_wait(&c->group);
        }
    }
    return r < 0 ? error_set_errno(err, -r, "Could not start the NBD client") : 0;
}

/* A client that has not connected yet. */
static int client_make(const struct socket_address *address, const struct nbd_client_tls *tls,
                       const char *export_name, const char *const *contexts, size_t context_count,
                       int64_t timeout_ns, struct nbd_client **ret_client, struct error *err)
{
    struct nbd_client *c = client_new(context_count);

    if (!c) {
        return error_out_of_memory(err);
    }
    c->target.timeout_ns = timeout_ns;
    if (target_init(&c->target, address, tls, export_name, contexts, context_count) < 0) {
        client_free(c);
        return error_out_of_memory(err);
    }
    *ret_client = c;
    return 0;
}

/* Connect, and start. After a failure the client is still the caller's. */
static int client_co_begin(struct nbd_client *c, struct error *err)
{
    char who[512];
    int r = nbd_co_attempt(&c->target, &c->wire, &c->agreed, err);

    if (r == 0) {
        c->server = nbd_server_id_of(c->wire.fd);
    }
    c->wide = c->agreed.extended;
    if (c->target.address.fd) {
        /* A descriptor is used once: its number may mean another file by the next attempt. */
        c->target.address.fd[0] = '\0';
    }
    UNLESS_FAILED(r, client_co_start(c, err));
    if (r == 0) {
        log_info("%s: connected%s", nbd_client_describe(c, who, sizeof(who)),
                 tls_session_words(c->wire.tls));
    }
    return r;
}

int nbd_client_co_connect(const struct socket_address *address, const struct nbd_client_tls *tls,
                          const char *export_name, const char *const *contexts,
                          size_t context_count, int64_t timeout_ns, struct nbd_client **ret_client,
                          struct error *err)
{
    struct nbd_client *c;
    int r;

    if (context_count > NBD_CLIENT_CONTEXT_MAX) {
        return error_set(err, EINVAL, "%zu metadata contexts were asked for; at most %d can be",
                         context_count, NBD_CLIENT_CONTEXT_MAX);
    }
    r = client_make(address, tls, export_name, contexts, context_count, timeout_ns, &c, err);
    if (r < 0) {
        return r;
    }
    r = client_co_begin(c, err);
    if (r < 0) {
        client_free(c);
        return r;
    }
    *ret_client = c;
    return 0;
}

int nbd_client_co_connect_again(const struct nbd_client *like, int64_t timeout_ns,
                                struct nbd_client **ret_attempt, struct nbd_client **ret_client,
                                struct error *err)
{
    const struct nbd_target *t = &like->target;
    struct nbd_client *c;
    int r = client_make(&t->address, t->tls.creds ? &t->tls : NULL, t->export_name,
                        (const char *const *)t->contexts, t->context_count, timeout_ns, &c, err);

    if (r < 0) {
        return r;
    }
    *ret_attempt = c;
    r = client_co_begin(c, err);
    *ret_attempt = NULL;
    if (r < 0) {
        client_free(c);
        return r;
    }
    *ret_client = c;
    return 0;
}

/* A server that was asked has this long to answer something. */
#define SILENCE_NS (2 * NS_PER_SECOND)

/* Whether what was in flight at an earlier call still is, and nothing was answered since. */
static bool is_silent(struct nbd_client *c)
{
    uint64_t answer = c->given_up.answer;
    bool waits = c->newest_answer == answer && answer < c->given_up.requests;
    int64_t now = loop_now_ns();

    if (!waits) {
        c->given_up.answer = c->newest_answer;
        c->given_up.requests = c->requests;
        c->given_up.since_ns = now;
    }
    return waits && now - c->given_up.since_ns >= SILENCE_NS;
}

void nbd_client_give_up(struct nbd_client *c)
{
    char who[512];
    bool silent;

    pthread_mutex_lock(&c->lock);
    silent = is_silent(c);
    pthread_mutex_unlock(&c->lock);
    if (silent && c->wire.fd >= 0) {
        log_warning("%s: does not answer requests that were given up: the connection is cut",
                    nbd_client_describe(c, who, sizeof(who)));
        shutdown(c->wire.fd, SHUT_RDWR);
    }
    if (silent) {
        nbd_reconnect_abort(c);
    }
}

void nbd_client_cut(struct nbd_client *c)
{
    char who[512];

    if (!c->cut) {
        log_warning("%s: the connection is cut by command",
                    nbd_client_describe(c, who, sizeof(who)));
    }
    c->cut = true;
    if (c->wire.fd >= 0) {
        shutdown(c->wire.fd, SHUT_RDWR);
    }
    nbd_reconnect_abort(c);
}

void nbd_client_co_close(struct nbd_client *c)
{
    struct nbd_deadline deadline;

    if (!c) {
        return;
    }
    pthread_mutex_lock(&c->lock);
    c->closing = true;
    nbd_client_wake_sender_locked(c);
    pthread_mutex_unlock(&c->lock);
    nbd_reconnect_abort(c);
    nbd_deadline_begin(&deadline, &c->wire.fd, GOODBYE_NS);
    co_group_wait(&c->group);
    (void)nbd_deadline_end(&deadline, 0, NULL);
    client_free(c);
}

int nbd_client_co_list(const struct socket_address *address, const struct nbd_client_tls *tls,
                       int64_t timeout_ns, struct nbd_export_info **ret_list, size_t *ret_count,
                       struct error *err)
{
    struct nbd_wire wire CLEANUP(nbd_wire_close) = {.fd = -1};
    struct nbd_client_tls named;
    struct nbd_deadline deadline;
    ERROR_AUTO(local);
    int r = nbd_co_dial(address, timeout_ns, &wire.fd, err);

    if (r < 0) {
        return r;
    }
    if (tls) {
        named = *tls;
        named.hostname = certificate_name(tls, address);
    }
    nbd_deadline_begin(&deadline, &wire.fd, timeout_ns);
    r = nbd_handshake_co_list(&wire, tls ? &named : NULL, ret_list, ret_count, &local);
    r = nbd_deadline_end(&deadline, r, &local);
    if (r < 0) {
        error_move(err, &local);
    }
    return r;
}

/* --- figures ---------------------------------------------------------------------------------- */

enum { REQUESTS, RECONNECTS, IN_FLIGHT, UNFLUSHED_BYTES, CONNECTED, CLIENT_STATS };

const struct stat_desc nbd_client_stats[] = {
    [REQUESTS] = {"requests", "Requests to the server", STAT_COUNTER, STAT_COUNT},
    [RECONNECTS] = {"reconnects", "Times that a lost connection was restored", STAT_COUNTER,
                    STAT_COUNT},
    [IN_FLIGHT] = {"requests_in_flight", "Requests without a reply", STAT_GAUGE, STAT_COUNT},
    [UNFLUSHED_BYTES] = {"unflushed", "Bytes of writes kept until a flush, to repeat them",
                         STAT_GAUGE, STAT_BYTES},
    [CONNECTED] = {"connected", "Connections that are there", STAT_GAUGE, STAT_COUNT},
    [CLIENT_STATS] = {.name = NULL},
};

void nbd_client_add_stats(struct nbd_client *c, uint64_t *values)
{
    pthread_mutex_lock(&c->lock);
    for (unsigned i = 0; i < NBD_CLIENT_IN_FLIGHT; i++) {
        values[IN_FLIGHT] += c->slot[i] != NULL;
    }
    values[REQUESTS] += c->requests;
    values[RECONNECTS] += c->reconnects;
    values[UNFLUSHED_BYTES] += c->unflushed_bytes;
    values[CONNECTED] += !c->lost && !c->broken;
    pthread_mutex_unlock(&c->lock);
}

void nbd_client_read_stats(struct nbd_client *c, uint64_t *ret_values)
{
    memset(ret_values, 0, CLIENT_STATS * sizeof(*ret_values));
    nbd_client_add_stats(c, ret_values);
}

struct nbd_server_id nbd_client_server(struct nbd_client *c)
{
    struct nbd_server_id id;

    pthread_mutex_lock(&c->lock);
    id = c->server;
    pthread_mutex_unlock(&c->lock);
    return id;
}

struct nbd_client_state nbd_client_state(struct nbd_client *c)
{
    struct nbd_client_state state;

    pthread_mutex_lock(&c->lock);
    state = (struct nbd_client_state){
        .usable = !c->broken && !c->lost,
        .reconnects = c->reconnects,
        .requests = c->requests,
        .newest_answer = c->newest_answer,
    };
    pthread_mutex_unlock(&c->lock);
    return state;
}
