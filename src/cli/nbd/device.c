/* SPDX-License-Identifier: Apache-2.0 */
/*
 * --connect and --disconnect: a device /dev/nbdN of the kernel that is a client of this server.
 *
 * The handshake is made here, of the oldest form, since the kernel knows simple replies only; then
 * the kernel gets the socket.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/byteorder.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "base/log.h"
#include "block/socket_address.h"
#include "cli/nbd/command_line.h"
#include "cli/nbd/netlink.h"
#include "loop/loop.h"
#include "nbd/proto.h"

#define HANDSHAKE_NS 10000000000LL
#define SECTOR 512

/* The number at the end of "/dev/nbdN". */
static int device_index(const char *path, const char *verb, uint32_t *ret_index, struct error *err)
{
    const char *name = strrchr(path, '/');
    struct stat st;
    uint64_t index = 0;

    name = name ? name + 1 : path;
    if (stat(path, &st) < 0) {
        return error_set_errno(err, errno, "%s %s", verb, path);
    }
    if (!S_ISBLK(st.st_mode) || strncmp(name, "nbd", 3) != 0 ||
        name[3 + strspn(name + 3, "0123456789")] || !name[3]) {
        return error_set(err, ENOTBLK,
                         "%s %s: it is not a device of the kernel's NBD client "
                         "(/dev/nbd0, /dev/nbd1, ...)",
                         verb, path);
    }
    index = strtoull(name + 3, NULL, 10);
    if (index > INT32_MAX) {
        return error_set(err, ENODEV, "%s %s", verb, path);
    }
    *ret_index = (uint32_t)index;
    return 0;
}

int nbd_device_check(const char *path, struct error *err)
{
    uint32_t index;

    return device_index(path, "Failed to open", &index, err);
}

static int co_read_all(int fd, void *buf, size_t size)
{
    for (size_t done = 0; done < size;) {
        ssize_t n = loop_co_recv(fd, (uint8_t *)buf + done, size - done);

        if (n <= 0) {
            return n < 0 ? (int)n : -ECONNRESET;
        }
        done += (size_t)n;
    }
    return 0;
}

/* Choose the export of a server that is in this process, so it is not checked. */
static int co_choose_export(int fd, const char *name, uint64_t *ret_size, uint16_t *ret_flags)
{
    uint8_t hello[NBD_SERVER_HELLO_SIZE], head[4 + NBD_OPTION_HEADER_SIZE], reply[10];
    struct iovec vec[] = {
        {.iov_base = head, .iov_len = sizeof(head)},
        {.iov_base = (void *)(uintptr_t)name, .iov_len = strlen(name)},
    };
    struct msghdr msg = {.msg_iov = vec, .msg_iovlen = ARRAY_SIZE(vec)};
    ssize_t n;
    int r = co_read_all(fd, hello, sizeof(hello));

    if (r < 0) {
        return r;
    }
    store_be32(head, NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES);
    nbd_option_header_encode(head + 4, NBD_OPT_EXPORT_NAME, (uint32_t)strlen(name));
    n = loop_co_sendmsg(fd, &msg, MSG_NOSIGNAL);
    if (n != (ssize_t)(sizeof(head) + strlen(name))) {
        return n < 0 ? (int)n : -EIO;
    }
    r = co_read_all(fd, reply, sizeof(reply));
    if (r == 0) {
        *ret_size = load_be64(reply);
        *ret_flags = load_be16(reply + 8);
    }
    return r;
}

int nbd_device_co_connect(const char *path, const char *socket_path, const char *export_name,
                          struct error *err)
{
    struct socket_address address = {.path = (char *)(uintptr_t)socket_path};
    AUTO_CLOSE int fd = -1;
    uint64_t size = 0;
    uint16_t flags = 0;
    uint32_t index = 0;
    int r = device_index(path, "Failed to open", &index, err);

    UNLESS_FAILED(r, socket_address_co_connect(&address, 0, HANDSHAKE_NS, &fd, err));
    if (r < 0) {
        return r;
    }
    r = co_choose_export(fd, export_name, &size, &flags);
    if (r < 0) {
        return error_set_errno(err, -r, "Could not connect %s to the server", path);
    }
    r = nbd_netlink_co_connect(index, fd, size, SECTOR, flags, err);
    if (r < 0) {
        error_prepend(err, "Failed to connect %s: ", path);
        return r;
    }
    log_notice("NBD device %s is now connected", path);
    return 0;
}

int nbd_device_co_disconnect(const char *path, struct error *err)
{
    uint32_t index = 0;
    int r = device_index(path, "Cannot open", &index, err);

    if (r < 0) {
        return r;
    }
    r = nbd_netlink_co_disconnect(index, err);
    if (r < 0) {
        error_prepend(err, "Cannot disconnect %s: ", path);
    }
    return r;
}
