/* SPDX-License-Identifier: Apache-2.0 */
#include "nbd_peer.h"

#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#include "export/nbd_server.h"
#include "loop/loop.h"
#include "nbd/proto.h"
#include "nbd/server.h"

void nbd_peer_put_option(struct strbuf *out, uint32_t option, const void *data, size_t size)
{
    uint8_t header[NBD_OPTION_HEADER_SIZE];

    nbd_option_header_encode(header, option, (uint32_t)size);
    strbuf_append(out, header, sizeof(header));
    strbuf_append(out, data, size);
}

void nbd_peer_co_send(int fd, const void *data, size_t size)
{
    const char *bytes = data;
    char scrap[4096];
    size_t sent = 0;
    ssize_t n;

    while (sent < size) {
        n = send(fd, bytes + sent, size - sent, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (n > 0) {
            sent += (size_t)n;
        }
        if (n < 0 && loop_co_poll(fd, POLLIN | POLLOUT, -1) < 0) {
            return;
        }
        while ((n = recv(fd, scrap, sizeof(scrap), MSG_DONTWAIT)) > 0) {
        }
        if (n == 0) {
            return;
        }
    }
}

void nbd_peer_co_run(nbd_peer_co_talk_fn *talk, void *arg)
{
    char scrap[4096];
    int fds[2];

    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, fds) < 0) {
        abort();
    }
    if (nbd_server_add_client(export_nbd_server(), fds[0]) < 0) {
        abort();
    }
    talk(arg, fds[1]);
    shutdown(fds[1], SHUT_WR);
    while (loop_co_recv(fds[1], scrap, sizeof(scrap)) > 0) {
    }
    close(fds[1]);
    while (export_nbd_server_connections() > 0) {
        loop_co_sleep(10000);
    }
}
