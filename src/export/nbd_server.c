/* SPDX-License-Identifier: Apache-2.0 */
/* The NBD server of the process: its listening socket, its start and its stop. */
#include <errno.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/log.h"
#include "block/control_lock.h"
#include "block/socket_address.h"
#include "export/export.h"
#include "export/nbd_server.h"
#include "loop/loop.h"
#include "nbd/server.h"
#include "tls/tls.h"

/* Clients that wait to be accepted. */
#define BACKLOG 512

/* All of it belongs to the main reactor. */
static struct {
    /* NULL: none. */
    struct nbd_server *server;
    /* The server starts or stops; it stops. */
    bool busy;
    bool stopping;
    /* The coroutine that waits for the end of the stop; NULL: none. */
    struct co *stop_waiter;
    /* The socket to remove at the end; NULL: none. */
    char *unix_path;
    /* TCP; 0: none. */
    unsigned port;
    /* References; NULL: none. */
    struct tls_creds *creds;
    struct tls_authz *authz;
} state;

struct nbd_server *export_nbd_server(void)
{
    return state.busy ? NULL : state.server;
}

bool export_nbd_server_is_running(void)
{
    return state.server != NULL;
}

bool export_nbd_server_identifies_clients(void)
{
    return state.creds && tls_creds_identify_peer(state.creds);
}

unsigned export_nbd_server_port(void)
{
    return state.port;
}

size_t export_nbd_server_connections(void)
{
    return state.server ? nbd_server_client_count(state.server) : 0;
}

static unsigned port_of(int fd)
{
    struct sockaddr_storage addr = {0};
    socklen_t len = sizeof(addr);

    if (getsockname(fd, (struct sockaddr *)&addr, &len) < 0) {
        return 0;
    }
    if (addr.ss_family == AF_INET) {
        return ntohs(((struct sockaddr_in *)&addr)->sin_port);
    }
    return addr.ss_family == AF_INET6 ? ntohs(((struct sockaddr_in6 *)&addr)->sin6_port) : 0;
}

/* --- start and stop ------------------------------------------------------------------------- */

static int co_start_nbd_server(const struct export_nbd_server_config *config, struct error *err)
{
    struct nbd_server_config sc = {
        .max_connections = config->max_connections,
        .max_per_address = config->max_per_address,
        .handshake_seconds = config->handshake_max_seconds,
        .tls_creds = state.creds,
        .tls_authz = state.authz,
        .on_disconnect = config->on_disconnect,
        .arg = config->arg,
    };
    AUTO_FREE char *path = NULL;
    struct nbd_server *server;
    int fd = -1;
    int r = 0;

    if (config->listen_fd >= 0) {
        fd = config->listen_fd;
    } else {
        r = socket_address_co_listen(config->address, BACKLOG, &fd, err);
    }

    if (r < 0) {
        return r;
    }
    if (config->listen_fd < 0 && socket_address_is_file(config->address)) {
        path = strdup(config->address->path);
    }
    r = nbd_server_new(&sc, &server, err);
    if (r == 0) {
        nbd_server_hold(server, config->hold);
        r = nbd_server_co_listen(server, fd, err);
        if (r < 0) {
            nbd_server_free(server);
        }
    }
    if (r < 0) {
        if (fd != config->listen_fd) {
            close(fd);
        }
        if (path) {
            (void)loop_co_unlink_soon(path);
        }
        return r;
    }
    state.port = port_of(fd);
    state.unix_path = TAKE_PTR(path);
    state.server = server;
    if (state.unix_path) {
        log_info("NBD server: listens on unix:%s", state.unix_path);
    } else if (state.port) {
        log_info("NBD server: listens on TCP port %u", state.port);
    } else {
        log_info("NBD server: listens");
    }
    return 0;
}

static void drop_tls(void)
{
    tls_creds_unref(state.creds);
    tls_authz_unref(state.authz);
    state.creds = NULL;
    state.authz = NULL;
}

static int take_tls(const struct export_nbd_server_config *config, struct error *err)
{
    int r = 0;

    if (config->tls_creds) {
        r = tls_creds_ref(config->tls_creds, TLS_SERVER, &state.creds, err);
    } else if (config->tls_authz) {
        r = error_set(err, EINVAL, "tls-authz is not permitted without tls-creds");
    }
    if (r == 0 && config->tls_authz) {
        r = tls_authz_ref(config->tls_authz, &state.authz, err);
    }
    if (r == 0 && state.authz && !tls_creds_identify_peer(state.creds)) {
        r = error_set(err, EINVAL,
                      "tls-authz needs TLS credentials by which clients identify themselves: '%s' "
                      "are anonymous, or have verify-peer=off",
                      config->tls_creds);
    }
    if (r < 0) {
        drop_tls();
    }
    return r;
}

int export_co_nbd_server_start(const struct export_nbd_server_config *config, struct error *err)
{
    int r;

    if (state.server || state.busy) {
        return error_set(err, EBUSY, "NBD server already running");
    }
    r = take_tls(config, err);
    if (r < 0) {
        return r;
    }
    state.busy = true;
    r = co_start_nbd_server(config, err);
    state.busy = false;
    if (r < 0) {
        drop_tls();
    }
    return r;
}

static void co_remove_socket(void)
{
    AUTO_FREE char *path = TAKE_PTR(state.unix_path);

    if (path) {
        (void)loop_co_unlink_soon(path);
    }
}

void export_nbd_server_keep_file(void)
{
    free(state.unix_path);
    state.unix_path = NULL;
}

void export_nbd_server_let_in(void)
{
    if (state.server) {
        nbd_server_hold(state.server, false);
    }
}

void export_co_nbd_server_stop_accepting(void)
{
    if (state.server) {
        nbd_server_stop_accepting(state.server);
        co_remove_socket();
    }
}

void export_nbd_server_end_accepting(void)
{
    if (state.server) {
        nbd_server_stop_accepting(state.server);
        if (state.unix_path) {
            unlink(state.unix_path);
        }
        export_nbd_server_keep_file();
    }
}

/*
 * Disconnect all clients, delete the exports, release the server. Waits for requests in work; the
 * path of the socket is free before, so that none is removed that another server puts there.
 */
static void co_stop_server(void)
{
    nbd_server_stop_accepting(state.server);
    co_remove_socket();
    nbd_server_co_disconnect_all(state.server);
    block_co_control_lock();
    export_co_del_all("nbd");
    block_control_unlock();
    nbd_server_free(state.server);
    state.server = NULL;
    state.port = 0;
    drop_tls();
    state.busy = state.stopping = false;
    log_info("NBD server: stopped");
}

/* Wake the coroutine that waits for the stop. */
static void wake_stop_waiter(void)
{
    if (state.stop_waiter) {
        struct co *co = state.stop_waiter;

        state.stop_waiter = NULL;
        co_wake(co);
    }
}

static void co_stopper(void *arg)
{
    co_stop_server();
    wake_stop_waiter();
}

static void stop_wait_over(struct loop_timer *timer)
{
    wake_stop_waiter();
}

int export_co_nbd_server_stop_within(int64_t timeout_ns, struct error *err)
{
    struct loop_timer timer;
    bool held;

    if (!state.server || (state.busy && !state.stopping) || state.stop_waiter) {
        return error_set(err, ENOENT, "NBD server not running");
    }
    /*
     * Requests in flight may hang, and the end of an export takes the control lock: other commands
     * go on meanwhile.
     */
    held = block_control_pause();
    if (!state.stopping) {
        state.busy = state.stopping = true;
        if (reactor_spawn(reactor_main(), co_stopper, NULL) < 0) {
            co_stop_server();
            block_co_control_resume(held);
            return 0;
        }
    }
    loop_timer_init(&timer, stop_wait_over);
    if (timeout_ns >= 0) {
        loop_timer_arm(&timer, loop_now_ns() + timeout_ns);
    }
    state.stop_waiter = co_self();
    co_suspend();
    loop_timer_disarm(&timer);
    block_co_control_resume(held);
    return state.stopping
               ? error_set(err, ETIMEDOUT,
                           "The NBD server has disconnected its clients, but %zu of them have "
                           "requests in work that don't end; it stops when they do",
                           export_nbd_server_connections())
               : 0;
}

int export_co_nbd_server_stop(struct error *err)
{
    return export_co_nbd_server_stop_within(-1, err);
}
