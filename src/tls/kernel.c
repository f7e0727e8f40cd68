/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Records made by the kernel (kTLS, linux/tls.h): keys and the number of the next record go from
 * GnuTLS to the socket, which from then on encrypts all that is written to it.
 */
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include <linux/tls.h>

#include "tls/internal.h"

#ifndef SOL_TLS
#define SOL_TLS 282
#endif

/* Of a record with an alert: RFC 8446, sections 5.1 and 6. */
#define RECORD_ALERT 21
#define ALERT_WARNING 1
#define ALERT_CLOSE_NOTIFY 0

/* What TLS_TX takes: the beginning is the same for all ciphers. */
union kernel_keys {
    struct tls_crypto_info info;
    struct tls12_crypto_info_aes_gcm_128 aes128;
    struct tls12_crypto_info_aes_gcm_256 aes256;
    struct tls12_crypto_info_chacha20_poly1305 chacha;
};

/* The parts of a cipher's structure, in that. */
struct layout {
    uint16_t cipher;
    socklen_t size;
    /* The beginning of the nonce, of `salt_size` bytes, and the rest of it. */
    uint8_t *salt, *iv, *key, *number;
    size_t salt_size, iv_size, key_size;
};

#define AES_LAYOUT(keys, bits)                                                                     \
    (struct layout)                                                                                \
    {                                                                                              \
        .cipher = TLS_CIPHER_AES_GCM_##bits, .size = sizeof((keys)->aes##bits),                    \
        .salt = (keys)->aes##bits.salt, .salt_size = sizeof((keys)->aes##bits.salt),               \
        .iv = (keys)->aes##bits.iv, .iv_size = sizeof((keys)->aes##bits.iv),                       \
        .key = (keys)->aes##bits.key, .key_size = sizeof((keys)->aes##bits.key),                   \
        .number = (keys)->aes##bits.rec_seq                                                        \
    }

/* False: the kernel has no such cipher. */
static bool find_layout(union kernel_keys *keys, gnutls_cipher_algorithm_t cipher,
                        struct layout *ret_layout)
{
    switch (cipher) {
    case GNUTLS_CIPHER_AES_128_GCM:
        *ret_layout = AES_LAYOUT(keys, 128);
        return true;
    case GNUTLS_CIPHER_AES_256_GCM:
        *ret_layout = AES_LAYOUT(keys, 256);
        return true;
    case GNUTLS_CIPHER_CHACHA20_POLY1305:
        *ret_layout = (struct layout){
            .cipher = TLS_CIPHER_CHACHA20_POLY1305,
            .size = sizeof(keys->chacha),
            .iv = keys->chacha.iv,
            .iv_size = sizeof(keys->chacha.iv),
            .key = keys->chacha.key,
            .key_size = sizeof(keys->chacha.key),
            .number = keys->chacha.rec_seq,
        };
        return true;
    default:
        return false;
    }
}

/* The structure for the session's cipher; its size. -ENOTSUP: the kernel has no such cipher. */
static int fill_keys(gnutls_session_t gnutls, union kernel_keys *keys)
{
    bool is_tls12 = gnutls_protocol_get_version(gnutls) == GNUTLS_TLS1_2;
    gnutls_datum_t mac, iv, key;
    unsigned char number[8];
    struct layout l;

    memset(keys, 0, sizeof(*keys));
    if ((!is_tls12 && gnutls_protocol_get_version(gnutls) != GNUTLS_TLS1_3) ||
        !find_layout(keys, gnutls_cipher_get(gnutls), &l) ||
        gnutls_record_get_state(gnutls, 0, &mac, &iv, &key, number) < 0 || key.size != l.key_size ||
        iv.size < l.salt_size) {
        return -ENOTSUP;
    }
    keys->info.version = is_tls12 ? TLS_1_2_VERSION : TLS_1_3_VERSION;
    keys->info.cipher_type = l.cipher;
    memcpy(l.key, key.data, l.key_size);
    memcpy(l.number, number, sizeof(number));
    if (l.salt_size > 0) {
        memcpy(l.salt, iv.data, l.salt_size);
    }
    if (iv.size == l.salt_size + l.iv_size) {
        memcpy(l.iv, iv.data + l.salt_size, l.iv_size);
    } else if (is_tls12 && iv.size == l.salt_size && l.iv_size == sizeof(number)) {
        /* The rest of the nonce is in each record (RFC 5288): GnuTLS takes its number, too. */
        memcpy(l.iv, number, l.iv_size);
    } else {
        return -ENOTSUP;
    }
    return (int)l.size;
}

/*
 * The kernel makes records of the greatest length, which not every peer takes (RFC 8449, RFC 6066).
 * GnuTLS does not tell the limit, but shows it: the record that it makes here leaves for nowhere,
 * and its number is used again. 0 or -ENOTSUP.
 */
static int check_record_size(gnutls_session_t gnutls)
{
    static const uint8_t text[TLS_RECORD_MAX];
    unsigned char number[8];
    ssize_t n;

    if (gnutls_record_get_state(gnutls, 0, NULL, NULL, NULL, number) < 0) {
        return -ENOTSUP;
    }
    n = gnutls_record_send(gnutls, text, sizeof(text));
    return gnutls_record_set_state(gnutls, 0, number) < 0 || n < (ssize_t)sizeof(text) ? -ENOTSUP
                                                                                       : 0;
}

int tls_kernel_take_over(gnutls_session_t gnutls, int fd)
{
    union kernel_keys keys;
    int r = fill_keys(gnutls, &keys);

    if (r > 0 && check_record_size(gnutls) < 0) {
        r = -ENOTSUP;
    }

    if (r > 0 && setsockopt(fd, IPPROTO_TCP, TCP_ULP, "tls", sizeof("tls")) < 0) {
        r = -errno;
    }
    if (r > 0) {
        r = setsockopt(fd, SOL_TLS, TLS_TX, &keys, (socklen_t)r) < 0 ? -errno : 0;
    }
    explicit_bzero(&keys, sizeof(keys));
    return r;
}

void tls_kernel_push(int fd)
{
    int on = 1;

    /* tcp(7): "setting this option forces an explicit flush of pending output". */
    (void)setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
}

int tls_kernel_send_close(int fd)
{
    uint8_t alert[] = {ALERT_WARNING, ALERT_CLOSE_NOTIFY};
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(sizeof(uint8_t))];
    } control = {0};
    struct iovec vec = {.iov_base = alert, .iov_len = sizeof(alert)};
    struct msghdr msg = {.msg_iov = &vec,
                         .msg_iovlen = 1,
                         .msg_control = control.bytes,
                         .msg_controllen = sizeof(control.bytes)};
    struct cmsghdr *type = CMSG_FIRSTHDR(&msg);

    type->cmsg_level = SOL_TLS;
    type->cmsg_type = TLS_SET_RECORD_TYPE;
    type->cmsg_len = CMSG_LEN(sizeof(uint8_t));
    *CMSG_DATA(type) = RECORD_ALERT;
    return sendmsg(fd, &msg, MSG_DONTWAIT | MSG_NOSIGNAL) < 0 ? -errno : 0;
}
