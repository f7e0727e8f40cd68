/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Generic netlink, as far as one needs it for the family "nbd": a message has a header, a header of
 * the family, and attributes, which may contain attributes. All numbers are in the order of the
 * machine; everything is aligned to 4 bytes.
 */
#include "cli/nbd/netlink.h"

#include <errno.h>
#include <linux/genetlink.h>
#include <linux/nbd-netlink.h>
#include <linux/netlink.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "loop/loop.h"

enum {
    MESSAGE_MAX = 1024,
    ANSWER_MAX = 8192,
    /* One command at a time. */
    SEQUENCE = 1,
};

struct message {
    /* Aligned for the headers. */
    _Alignas(NLMSG_ALIGNTO) uint8_t bytes[MESSAGE_MAX];
    size_t size;
};

/* The members are as in struct nlmsghdr and struct genlmsghdr. */
static void begin_message(struct message *m, uint16_t type, uint16_t flags, uint8_t command)
{
    struct nlmsghdr h = {.nlmsg_type = type,
                         .nlmsg_flags = (uint16_t)(NLM_F_REQUEST | flags),
                         .nlmsg_seq = SEQUENCE};
    struct genlmsghdr g = {.cmd = command, .version = 1};

    *m = (struct message){.size = NLMSG_HDRLEN + GENL_HDRLEN};
    memcpy(m->bytes, &h, sizeof(h));
    memcpy(m->bytes + NLMSG_HDRLEN, &g, sizeof(g));
}

/* Append an attribute; all messages of this file fit. */
static void put_attribute(struct message *m, uint16_t type, const void *data, size_t size)
{
    struct nlattr a = {.nla_type = type, .nla_len = (uint16_t)(NLA_HDRLEN + size)};

    memcpy(m->bytes + m->size, &a, sizeof(a));
    if (size > 0) {
        memcpy(m->bytes + m->size + NLA_HDRLEN, data, size);
    }
    m->size += NLA_ALIGN(a.nla_len);
}

/* Begin an attribute that contains others; where it begins. */
static size_t begin_nest(struct message *m, uint16_t type)
{
    size_t start = m->size;

    put_attribute(m, type | NLA_F_NESTED, NULL, 0);
    return start;
}

static void end_nest(struct message *m, size_t start)
{
    struct nlattr a;

    memcpy(&a, m->bytes + start, sizeof(a));
    a.nla_len = (uint16_t)(m->size - start);
    memcpy(m->bytes + start, &a, sizeof(a));
}

static int co_send_message(int fd, struct message *m)
{
    struct iovec vec = {.iov_base = m->bytes, .iov_len = m->size};
    struct msghdr msg = {.msg_iov = &vec, .msg_iovlen = 1};
    uint32_t size = (uint32_t)m->size;
    ssize_t n;

    /* nlmsg_len is the first member. */
    memcpy(m->bytes, &size, sizeof(size));
    n = loop_co_sendmsg(fd, &msg, 0);
    return n < 0 ? (int)n : 0;
}

/* The attribute CTRL_ATTR_FAMILY_ID of an answer. 0: there is none. */
static uint16_t find_family_id(const uint8_t *body, size_t size)
{
    size_t at = GENL_HDRLEN;
    struct nlattr a;
    uint16_t id;

    while (at + NLA_HDRLEN <= size) {
        memcpy(&a, body + at, sizeof(a));
        if (a.nla_len < NLA_HDRLEN || a.nla_len > size - at) {
            return 0;
        }
        if (a.nla_type == CTRL_ATTR_FAMILY_ID && a.nla_len >= NLA_HDRLEN + sizeof(id)) {
            memcpy(&id, body + at + NLA_HDRLEN, sizeof(id));
            return id;
        }
        at += NLA_ALIGN(a.nla_len);
    }
    return 0;
}

/*
 * Read answers up to the acknowledgement. *ret_family, unless NULL, becomes the id in an answer.
 * The result is the kernel's: 0 or -errno.
 */
static int co_read_netlink_answer(int fd, uint16_t *ret_family)
{
    _Alignas(NLMSG_ALIGNTO) uint8_t buf[ANSWER_MAX];

    for (;;) {
        ssize_t n = loop_co_recv(fd, buf, sizeof(buf));
        size_t at = 0;

        if (n <= 0) {
            return n < 0 ? (int)n : -ECONNRESET;
        }
        while (at + NLMSG_HDRLEN <= (size_t)n) {
            struct nlmsghdr h;
            int32_t error;

            memcpy(&h, buf + at, sizeof(h));
            if (h.nlmsg_len < NLMSG_HDRLEN || h.nlmsg_len > (size_t)n - at) {
                return -EPROTO;
            }
            if (h.nlmsg_type == NLMSG_ERROR && h.nlmsg_len >= NLMSG_HDRLEN + sizeof(error)) {
                memcpy(&error, buf + at + NLMSG_HDRLEN, sizeof(error));
                return error;
            }
            if (ret_family) {
                *ret_family = find_family_id(buf + at + NLMSG_HDRLEN, h.nlmsg_len - NLMSG_HDRLEN);
            }
            at += NLMSG_ALIGN(h.nlmsg_len);
        }
    }
}

/* A socket, and the number of the family. */
static int co_open_family(int *ret_fd, uint16_t *ret_family, struct error *err)
{
    static const char name[] = NBD_GENL_FAMILY_NAME;
    AUTO_CLOSE int fd =
        socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC | SOCK_NONBLOCK, NETLINK_GENERIC);
    struct message m;
    int r;

    if (fd < 0) {
        return error_set_errno(err, errno, "Could not open a netlink socket");
    }
    begin_message(&m, GENL_ID_CTRL, NLM_F_ACK, CTRL_CMD_GETFAMILY);
    put_attribute(&m, CTRL_ATTR_FAMILY_NAME, name, sizeof(name));
    *ret_family = 0;
    r = co_send_message(fd, &m);
    UNLESS_FAILED(r, co_read_netlink_answer(fd, ret_family));
    if (r == -ENOENT || (r == 0 && *ret_family == 0)) {
        error_set(err, ENOENT, "The kernel has no NBD client");
        error_hint(err, "Load the module 'nbd' (modprobe nbd), if the system has it.");
        return -ENOENT;
    }
    if (r < 0) {
        return error_set_errno(err, -r, "Could not find the NBD client of the kernel");
    }
    *ret_fd = TAKE_FD(fd);
    return 0;
}

/* Send a command whose attributes `put` appends. */
static int co_netlink_command(uint8_t command, void (*put)(struct message *m, const void *arg),
                              const void *arg, struct error *err)
{
    AUTO_CLOSE int fd = -1;
    struct message m;
    uint16_t family = 0;
    int r = co_open_family(&fd, &family, err);

    if (r < 0) {
        return r;
    }
    begin_message(&m, family, NLM_F_ACK, command);
    put(&m, arg);
    r = co_send_message(fd, &m);
    UNLESS_FAILED(r, co_read_netlink_answer(fd, NULL));
    return r < 0 ? error_set_errno(err, -r, "The NBD client of the kernel refuses") : 0;
}

struct connect_args {
    uint32_t index;
    int fd;
    uint64_t size, block_size, server_flags, client_flags;
};

static void put_connect(struct message *m, const void *arg)
{
    const struct connect_args *c = arg;
    uint32_t fd = (uint32_t)c->fd;
    size_t sockets, item;

    put_attribute(m, NBD_ATTR_INDEX, &c->index, sizeof(c->index));
    put_attribute(m, NBD_ATTR_SIZE_BYTES, &c->size, sizeof(c->size));
    put_attribute(m, NBD_ATTR_BLOCK_SIZE_BYTES, &c->block_size, sizeof(c->block_size));
    put_attribute(m, NBD_ATTR_SERVER_FLAGS, &c->server_flags, sizeof(c->server_flags));
    put_attribute(m, NBD_ATTR_CLIENT_FLAGS, &c->client_flags, sizeof(c->client_flags));
    sockets = begin_nest(m, NBD_ATTR_SOCKETS);
    item = begin_nest(m, NBD_SOCK_ITEM);
    put_attribute(m, NBD_SOCK_FD, &fd, sizeof(fd));
    end_nest(m, item);
    end_nest(m, sockets);
}

int nbd_netlink_co_connect(uint32_t index, int fd, uint64_t size, uint32_t block_size,
                           uint16_t flags, struct error *err)
{
    struct connect_args args = {
        .index = index, .fd = fd, .size = size, .block_size = block_size, .server_flags = flags};

    return co_netlink_command(NBD_CMD_CONNECT, put_connect, &args, err);
}

static void put_index(struct message *m, const void *arg)
{
    put_attribute(m, NBD_ATTR_INDEX, arg, sizeof(uint32_t));
}

int nbd_netlink_co_disconnect(uint32_t index, struct error *err)
{
    return co_netlink_command(NBD_CMD_DISCONNECT, put_index, &index, err);
}
