/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A library to preload: kTLS for programs on a kernel that has none. What TCP_ULP and TLS_TX
 * (linux/tls.h) set is kept here, and all that is written to the socket from then on leaves as
 * records by these keys, as the kernel would make them. It is made from the documents of the kernel
 * and the RFCs, by another library's ciphers than the keys come from in the program: a peer that
 * understands the records shows that the keys were handed over right.
 *
 * As in Linux up to 6.4, records before a splice() that finds the socket full leave only with the
 * next ones: there will be no room, unless TCP is made to send what it has. Every fourth splice()
 * finds the socket full.
 *
 * When such a socket is closed, a line on the standard error output says how many bytes it was
 * given, and by which call. $KTLS_STAND_IN: "ulp" refuses TCP_ULP, and "tx" TLS_TX; other values
 * refuse nothing.
 */
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <linux/tls.h>
#include <openssl/evp.h>

#ifndef SOL_TLS
#define SOL_TLS 282
#endif

enum {
    FDS = 1024,
    RECORD = 16384,
    HEADER = 5,
    TAG = 16,
    DATA = 23, /* the type of a record */
};

static struct kernel_socket {
    bool ulp, tx;
    bool tls13;
    const EVP_CIPHER *cipher;
    uint8_t key[32], nonce[12], explicit_nonce[8], number[8];
    bool has_explicit_nonce;
    size_t sent, spliced;
    unsigned splices;
    /* TCP holds records back. */
    bool holds;
} sockets[FDS];

static struct kernel_socket *socket_of(int fd)
{
    return fd >= 0 && fd < FDS && sockets[fd].tx ? &sockets[fd] : NULL;
}

static int fail(int errnum)
{
    errno = errnum;
    return -1;
}

static bool is_refused(const char *what)
{
    const char *refused = getenv("KTLS_STAND_IN");

    return refused && strcmp(refused, what) == 0;
}

static int set_ulp(int fd, const char *name)
{
    int domain = 0;
    socklen_t size = sizeof(domain);

    if (getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &size) < 0 ||
        (domain != AF_INET && domain != AF_INET6)) {
        return fail(EOPNOTSUPP);
    }
    if (strcmp(name, "tls") != 0 || is_refused("ulp") || fd >= FDS) {
        return fail(ENOENT);
    }
    sockets[fd] = (struct kernel_socket){.ulp = true};
    return 0;
}

static void set_gcm(struct kernel_socket *s, const uint8_t *salt, const uint8_t *iv)
{
    memcpy(s->nonce, salt, 4);
    memcpy(s->nonce + 4, iv, 8);
    memcpy(s->explicit_nonce, iv, 8);
    s->has_explicit_nonce = !s->tls13;
}

static int set_tx(int fd, const void *value, socklen_t size)
{
    const struct tls_crypto_info *info = value;
    const struct tls12_crypto_info_aes_gcm_128 *aes128 = value;
    const struct tls12_crypto_info_aes_gcm_256 *aes256 = value;
    const struct tls12_crypto_info_chacha20_poly1305 *chacha = value;
    struct kernel_socket *s = fd < FDS ? &sockets[fd] : NULL;

    if (!s || !s->ulp || is_refused("tx") || size < sizeof(*info)) {
        return fail(EINVAL);
    }
    if (s->tx) {
        return fail(EBUSY);
    }
    s->tls13 = info->version == TLS_1_3_VERSION;
    if (!s->tls13 && info->version != TLS_1_2_VERSION) {
        return fail(EINVAL);
    }
    if (info->cipher_type == TLS_CIPHER_AES_GCM_128 && size == sizeof(*aes128)) {
        s->cipher = EVP_aes_128_gcm();
        memcpy(s->key, aes128->key, sizeof(aes128->key));
        memcpy(s->number, aes128->rec_seq, sizeof(s->number));
        set_gcm(s, aes128->salt, aes128->iv);
    } else if (info->cipher_type == TLS_CIPHER_AES_GCM_256 && size == sizeof(*aes256)) {
        s->cipher = EVP_aes_256_gcm();
        memcpy(s->key, aes256->key, sizeof(aes256->key));
        memcpy(s->number, aes256->rec_seq, sizeof(s->number));
        set_gcm(s, aes256->salt, aes256->iv);
    } else if (info->cipher_type == TLS_CIPHER_CHACHA20_POLY1305 && size == sizeof(*chacha)) {
        s->cipher = EVP_chacha20_poly1305();
        memcpy(s->key, chacha->key, sizeof(chacha->key));
        memcpy(s->number, chacha->rec_seq, sizeof(s->number));
        memcpy(s->nonce, chacha->iv, sizeof(chacha->iv));
    } else {
        return fail(EINVAL);
    }
    s->tx = true;
    return 0;
}

int setsockopt(int fd, int level, int name, const void *value, socklen_t size)
{
    if (level == IPPROTO_TCP && name == TCP_ULP) {
        return set_ulp(fd, value);
    }
    if (level == SOL_TLS) {
        return name == TLS_TX ? set_tx(fd, value, size) : fail(ENOPROTOOPT);
    }
    if (level == IPPROTO_TCP && name == TCP_NODELAY && socket_of(fd)) {
        socket_of(fd)->holds = false;
    }
    return (int)syscall(SYS_setsockopt, fd, level, name, value, size);
}

static void increment(uint8_t *number)
{
    for (int i = 7; i >= 0 && ++number[i] == 0; i--) {
    }
}

/* A record of `size` bytes of text at `to`; its size. */
static size_t make_record(struct kernel_socket *s, uint8_t type, uint8_t *text, size_t size,
                          uint8_t *to)
{
    size_t before = HEADER + (s->has_explicit_nonce ? 8 : 0), length;
    uint8_t nonce[12], extra[13];
    EVP_CIPHER_CTX *ctx = EVP_CIPHER_CTX_new();
    int n, extra_size, ok = ctx != NULL;

    memcpy(nonce, s->nonce, sizeof(nonce));
    if (s->has_explicit_nonce) {
        memcpy(nonce + 4, s->explicit_nonce, 8);
        memcpy(to + HEADER, s->explicit_nonce, 8);
    } else {
        for (int i = 0; i < 8; i++) {
            nonce[4 + i] ^= s->number[i];
        }
    }
    if (s->tls13) {
        text[size++] = type;
    }
    length = before - HEADER + size + TAG;
    memcpy(to, (uint8_t[]){s->tls13 ? DATA : type, 3, 3, length >> 8, length & 255}, HEADER);
    if (s->tls13) {
        memcpy(extra, to, extra_size = HEADER);
    } else {
        memcpy(extra, s->number, 8);
        memcpy(extra + 8, (uint8_t[]){type, 3, 3, size >> 8, size & 255}, HEADER);
        extra_size = 13;
    }
    ok = ok && EVP_EncryptInit_ex(ctx, s->cipher, NULL, s->key, nonce) &&
         EVP_EncryptUpdate(ctx, NULL, &n, extra, extra_size) &&
         EVP_EncryptUpdate(ctx, to + before, &n, text, (int)size) &&
         EVP_EncryptFinal_ex(ctx, to + before + n, &n) &&
         EVP_CIPHER_CTX_ctrl(ctx, EVP_CTRL_AEAD_GET_TAG, TAG, to + before + size);
    EVP_CIPHER_CTX_free(ctx);
    increment(s->number);
    increment(s->explicit_nonce);
    return ok ? HEADER + length : 0;
}

/* `text` has room for the type behind it. All of the record leaves; `size` or -1. */
static ssize_t send_record(int fd, struct kernel_socket *s, uint8_t type, uint8_t *text,
                           size_t size)
{
    static _Thread_local uint8_t record[RECORD + 256];
    size_t length = make_record(s, type, text, size, record), done = 0;

    while (done < length) {
        ssize_t n = syscall(SYS_sendto, fd, record + done, length - done, MSG_NOSIGNAL, NULL, 0);

        if (n < 0 && errno == EAGAIN) {
            poll(&(struct pollfd){.fd = fd, .events = POLLOUT}, 1, -1);
        } else if (n < 0) {
            return -1;
        } else {
            done += (size_t)n;
        }
    }
    return length > 0 ? (ssize_t)size : fail(EIO);
}

static bool has_room(int fd)
{
    return !sockets[fd].holds && poll(&(struct pollfd){.fd = fd, .events = POLLOUT}, 1, 0) == 1;
}

static uint8_t record_type(const struct msghdr *msg)
{
    struct cmsghdr *control = msg->msg_controllen > 0 ? CMSG_FIRSTHDR(msg) : NULL;

    if (control && control->cmsg_level == SOL_TLS && control->cmsg_type == TLS_SET_RECORD_TYPE) {
        return *CMSG_DATA(control);
    }
    return DATA;
}

ssize_t sendmsg(int fd, const struct msghdr *msg, int flags)
{
    static _Thread_local uint8_t text[RECORD + 1];
    struct kernel_socket *s = socket_of(fd);
    size_t size = 0;

    if (!s) {
        return syscall(SYS_sendmsg, fd, msg, flags);
    }
    if (!has_room(fd)) {
        return fail(EAGAIN);
    }
    /* At most one record: callers have to go on with the rest. */
    for (size_t i = 0; i < msg->msg_iovlen && size < RECORD; i++) {
        size_t part = msg->msg_iov[i].iov_len;

        part = part < RECORD - size ? part : RECORD - size;
        memcpy(text + size, msg->msg_iov[i].iov_base, part);
        size += part;
    }
    s->sent += size;
    return send_record(fd, s, record_type(msg), text, size);
}

ssize_t send(int fd, const void *data, size_t size, int flags)
{
    struct iovec vec = {.iov_base = (void *)(uintptr_t)data, .iov_len = size};

    return sendmsg(fd, &(struct msghdr){.msg_iov = &vec, .msg_iovlen = 1}, flags);
}

ssize_t splice(int from, off64_t *from_offset, int to, off64_t *to_offset, size_t size,
               unsigned flags)
{
    static _Thread_local uint8_t text[RECORD + 1];
    struct kernel_socket *s = socket_of(to);
    ssize_t n;

    if (!s) {
        return syscall(SYS_splice, from, from_offset, to, to_offset, size, flags);
    }
    if (!has_room(to) || ++s->splices % 4 == 0) {
        s->holds = true;
        return fail(EAGAIN);
    }
    n = read(from, text, size < RECORD ? size : RECORD);
    s->spliced += n > 0 ? (size_t)n : 0;
    return n > 0 ? send_record(to, s, DATA, text, (size_t)n) : n;
}

int close(int fd)
{
    if (fd >= 0 && fd < FDS) {
        if (sockets[fd].tx) {
            dprintf(STDERR_FILENO, "kTLS: %zu bytes sent, %zu spliced\n", sockets[fd].sent,
                    sockets[fd].spliced);
        }
        sockets[fd] = (struct kernel_socket){0};
    }
    return (int)syscall(SYS_close, fd);
}
