/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The NBD client against a server that sends anything, in the handshake and as replies.
 *
 * Input: the first byte's bits choose how far a well-behaved server comes before the fuzzer's
 * bytes: 1 the hello, 2 extended headers, 4 structured replies, 8 metadata contexts, 16 the answer
 * to GO; with 32 the client lists exports instead. The cookie of the n-th request is n << 32.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/byteorder.h"
#include "base/log.h"
#include "base/strbuf.h"
#include "loop/loop.h"
#include "nbd/client.h"
#include "nbd/proto.h"

#define SIZE (1u << 20)
/* Longest time that a connection may take; only a fault needs it. */
#define TIMEOUT_NS 5000000000LL

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerInitialize(int *argc, char ***argv);

static void put_reply(struct strbuf *out, uint32_t option, uint32_t type, const struct strbuf *data)
{
    uint8_t header[NBD_OPTION_REPLY_HEADER_SIZE];
    size_t size = data ? data->len : 0;

    nbd_option_reply_encode(header, option, type, (uint32_t)size);
    strbuf_append(out, header, sizeof(header));
    if (size > 0) {
        strbuf_append(out, data->data, size);
    }
}

/* The contexts that the client asks for are granted by their numbers. */
static void put_context(struct strbuf *out, uint32_t id, const char *name)
{
    STRBUF_AUTO(data);

    nbd_put_u32(&data, id);
    strbuf_puts(&data, name);
    put_reply(out, NBD_OPT_SET_META_CONTEXT, NBD_REP_META_CONTEXT, &data);
}

static void put_answer_to_go(struct strbuf *out)
{
    STRBUF_AUTO(info);
    uint8_t bytes[12];

    store_be16(bytes, NBD_INFO_EXPORT);
    store_be64(bytes + 2, SIZE);
    store_be16(bytes + 10, NBD_FLAG_HAS_FLAGS | NBD_FLAG_SEND_FLUSH | NBD_FLAG_SEND_FUA |
                               NBD_FLAG_SEND_TRIM | NBD_FLAG_SEND_WRITE_ZEROES | NBD_FLAG_SEND_DF);
    strbuf_append(&info, bytes, sizeof(bytes));
    put_reply(out, NBD_OPT_GO, NBD_REP_INFO, &info);
    put_reply(out, NBD_OPT_GO, NBD_REP_ACK, NULL);
}

/* The beginning that the first byte of the input asks for. */
static void put_hello(struct strbuf *out, uint8_t how)
{
    uint8_t hello[NBD_SERVER_HELLO_SIZE];

    if (how & 1) {
        store_be64(hello, NBD_MAGIC);
        store_be64(hello + 8, NBD_OPTION_MAGIC);
        store_be16(hello + 16, NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES);
        strbuf_append(out, hello, sizeof(hello));
    }
    if (how & 2) {
        put_reply(out, NBD_OPT_EXTENDED_HEADERS, NBD_REP_ACK, NULL);
    } else if (how & 4) {
        put_reply(out, NBD_OPT_EXTENDED_HEADERS, NBD_REP_ERR_UNSUP, NULL);
        put_reply(out, NBD_OPT_STRUCTURED_REPLY, NBD_REP_ACK, NULL);
    }
    if (how & 8) {
        put_context(out, 5, NBD_CONTEXT_BASE_ALLOCATION);
        put_context(out, 9, NBD_CONTEXT_ALLOCATION_DEPTH);
        put_reply(out, NBD_OPT_SET_META_CONTEXT, NBD_REP_ACK, NULL);
    }
    if (how & 16) {
        put_answer_to_go(out);
    }
}

struct peer {
    const struct strbuf *out;
    int fd;
    bool ended;
};

/* The server: send all of it, and forget what comes back, until the client hangs up. */
static void co_peer(void *arg)
{
    struct peer *p = arg;
    size_t sent = 0;
    char scrap[4096];
    ssize_t n = 1;

    while (sent < p->out->len && n != 0) {
        n = send(p->fd, p->out->data + sent, p->out->len - sent, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (n > 0) {
            sent += (size_t)n;
        } else if (loop_co_poll(p->fd, POLLIN | POLLOUT, -1) < 0) {
            break;
        }
        while ((n = recv(p->fd, scrap, sizeof(scrap), MSG_DONTWAIT)) > 0) {
        }
    }
    shutdown(p->fd, SHUT_WR);
    while (loop_co_recv(p->fd, scrap, sizeof(scrap)) > 0) {
    }
    close(p->fd);
    p->ended = true;
}

/* Whatever the server answers. */
static void co_use(struct nbd_client *c)
{
    static uint8_t buf[SIZE / 4];
    struct iovec vec = {.iov_base = buf, .iov_len = 5000};
    struct nbd_extents extents[2], merged = {0};

    (void)nbd_client_co_pread(c, 0, buf, 4096);
    (void)nbd_client_co_pread(c, 65536, buf, sizeof(buf));
    if (nbd_client_co_block_status(c, 4096, SIZE - 4096, false, extents) == 0) {
        if (nbd_extents_merge(&extents[0], &extents[1], NULL, SIZE - 4096, &merged) == 0) {
            nbd_extents_clear(&merged);
        }
        nbd_extents_clear(&extents[0]);
        nbd_extents_clear(&extents[1]);
    }
    (void)nbd_client_co_pwritev(c, 512, (struct iov){.vec = &vec, .count = 1, .size = 5000}, true);
    (void)nbd_client_co_write_zeroes(c, 0, SIZE, NBD_CMD_FLAG_NO_HOLE);
    (void)nbd_client_co_trim(c, 0, SIZE);
    (void)nbd_client_co_flush(c);
}

struct input {
    struct strbuf *out;
    bool list;
};

static void co_one(void *arg)
{
    static const char *const contexts[] = {NBD_CONTEXT_BASE_ALLOCATION,
                                           NBD_CONTEXT_ALLOCATION_DEPTH};
    const struct input *in = arg;
    char number[16];
    struct socket_address address = {.fd = number};
    struct peer peer = {.out = in->out};
    struct nbd_export_info *list;
    struct nbd_client *client;
    size_t count;
    int fds[2];

    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, fds) < 0) {
        abort();
    }
    peer.fd = fds[1];
    snprintf(number, sizeof(number), "%d", fds[0]);
    if (reactor_spawn(reactor_main(), co_peer, &peer) < 0) {
        abort();
    }
    if (in->list) {
        if (nbd_client_co_list(&address, NULL, TIMEOUT_NS, &list, &count, NULL) == 0) {
            nbd_export_list_free(list, count);
        }
    } else if (nbd_client_co_connect(&address, NULL, "x", contexts, 2, TIMEOUT_NS, &client, NULL) ==
               0) {
        co_use(client);
        nbd_client_co_close(client);
    }
    while (!peer.ended) {
        loop_co_sleep(10000);
    }
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    log_set_level(LOG_LEVEL_ERROR);
    if (reactor_init_main(NULL) < 0) {
        abort();
    }
    return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    STRBUF_AUTO(out);
    struct input in = {.out = &out};

    if (size == 0) {
        return 0;
    }
    in.list = data[0] & 32;
    put_hello(&out, data[0]);
    strbuf_append(&out, data + 1, size - 1);
    if (reactor_run_until_done(co_one, &in) < 0) {
        abort();
    }
    return 0;
}
