/* SPDX-License-Identifier: Apache-2.0 */
#include "tls/session.h"

#include <arpa/inet.h>
#include <assert.h>
#include <errno.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "loop/loop.h"
#include "tls/internal.h"

/* The two buffers. Bytes. */
#define IN_SIZE (128 * KiB)
#define OUT_SIZE (256 * KiB)
/*
 * Bytes of the buffer that a record may take, with what GnuTLS may send before it (a key update).
 */
#define RECORD_ROOM (TLS_RECORD_MAX + 4 * KiB)
/* Elements per sendmsg(). */
#define PLAIN_PARTS 256

struct tls_session {
    gnutls_session_t gnutls;
    const struct tls_creds *creds;
    const struct tls_authz *authz;
    /* Owned; NULL: none. */
    char *hostname;
    /* Of a server: who the peer is; owned; NULL: that is not known. */
    char *identity;
    int fd;

    /* The bytes of `in` that were received and that GnuTLS has not taken yet. */
    size_t in_pos, in_end;
    /* The bytes of `out` that are to be sent. */
    size_t out_pos, out_end;
    /* The stream of the socket has ended. */
    bool in_ended;
    /* The peer has closed the session. */
    bool ended;
    /* The kernel makes the records that are sent: those of GnuTLS are dropped. */
    bool kernel_sends;
    /* The peer has asked for new keys of these records. */
    bool keys_asked;
    /* A static string; "": none. */
    const char *failure;

    uint8_t in[IN_SIZE];
    uint8_t out[OUT_SIZE];
    /* Small messages gather here to a record. */
    uint8_t stage[TLS_RECORD_MAX];
};

/* --- what GnuTLS calls ---------------------------------------------------------------------- */

static ssize_t tls_pull(gnutls_transport_ptr_t arg, void *to, size_t size)
{
    struct tls_session *s = arg;
    size_t n = MIN(size, s->in_end - s->in_pos);

    if (n == 0 && !s->in_ended) {
        gnutls_transport_set_errno(s->gnutls, EAGAIN);
        return -1;
    }
    memcpy(to, s->in + s->in_pos, n);
    s->in_pos += n;
    return (ssize_t)n;
}

static int tls_pull_timeout(gnutls_transport_ptr_t arg, unsigned ms)
{
    const struct tls_session *s = arg;

    return s->in_end > s->in_pos || s->in_ended;
}

static ssize_t tls_push(gnutls_transport_ptr_t arg, const void *data, size_t size)
{
    struct tls_session *s = arg;
    size_t n = MIN(size, OUT_SIZE - s->out_end);

    if (s->kernel_sends) {
        return (ssize_t)size;
    }
    if (n == 0) {
        gnutls_transport_set_errno(s->gnutls, EAGAIN);
        return -1;
    }
    memcpy(s->out + s->out_end, data, n);
    s->out_end += n;
    return (ssize_t)n;
}

/* --- life ----------------------------------------------------------------------------------- */

static bool is_address(const char *host)
{
    struct in6_addr any;

    return inet_pton(AF_INET, host, &any) == 1 || inet_pton(AF_INET6, host, &any) == 1;
}

static int set_credentials(struct tls_session *s)
{
    const struct tls_creds *c = s->creds;
    bool server = c->endpoint == TLS_SERVER;

    switch (c->kind) {
    case TLS_ANON:
        return gnutls_credentials_set(s->gnutls, GNUTLS_CRD_ANON,
                                      server ? (void *)c->anon_server : (void *)c->anon_client);
    case TLS_PSK:
        return gnutls_credentials_set(s->gnutls, GNUTLS_CRD_PSK,
                                      server ? (void *)c->psk_server : (void *)c->psk_client);
    case TLS_X509:
        if (server && c->verify_peer) {
            gnutls_certificate_server_set_request(s->gnutls, GNUTLS_CERT_REQUEST);
        }
        return gnutls_credentials_set(s->gnutls, GNUTLS_CRD_CERTIFICATE, c->x509);
    }
    return GNUTLS_E_INTERNAL_ERROR;
}

static int configure_session(struct tls_session *s)
{
    int code = gnutls_priority_set(s->gnutls, s->creds->priority);

    if (code == 0) {
        code = set_credentials(s);
    }
    if (code == 0 && s->hostname && s->creds->kind == TLS_X509 && !is_address(s->hostname)) {
        code = gnutls_server_name_set(s->gnutls, GNUTLS_NAME_DNS, s->hostname, strlen(s->hostname));
    }
    gnutls_transport_set_ptr(s->gnutls, s);
    gnutls_transport_set_pull_function(s->gnutls, tls_pull);
    gnutls_transport_set_pull_timeout_function(s->gnutls, tls_pull_timeout);
    gnutls_transport_set_push_function(s->gnutls, tls_push);
    return code;
}

int tls_session_new(const struct tls_creds *creds, int fd, const char *hostname,
                    const struct tls_authz *authz, struct tls_session **ret_session,
                    struct error *err)
{
    /* The buffers need no zeroes. */
    struct tls_session *s = malloc(sizeof(*s));
    unsigned flags = creds->endpoint == TLS_SERVER ? GNUTLS_SERVER : GNUTLS_CLIENT;
    int code;

    if (!s) {
        return error_out_of_memory(err);
    }
    memset(s, 0, offsetof(struct tls_session, in));
    s->fd = fd;
    s->authz = authz;
    s->failure = "";
    s->hostname = hostname ? strdup(hostname) : NULL;
    code = gnutls_init(&s->gnutls, flags | GNUTLS_NONBLOCK | GNUTLS_NO_SIGNAL | GNUTLS_NO_TICKETS);
    if (code < 0 || (hostname && !s->hostname)) {
        free(s->hostname);
        free(s);
        return error_out_of_memory(err);
    }
    s->creds = creds;
    code = configure_session(s);
    if (code < 0) {
        tls_session_free(s);
        return tls_error(err, code, "Cannot set up a TLS session");
    }
    *ret_session = s;
    return 0;
}

void tls_session_free(struct tls_session *s)
{
    if (s) {
        gnutls_deinit(s->gnutls);
        free(s->hostname);
        free(s->identity);
        free(s);
    }
}

const char *tls_session_identity(const struct tls_session *s)
{
    return s->identity;
}

const char *tls_session_failure(const struct tls_session *s)
{
    return s->failure;
}

/* Note a failure of GnuTLS. -errno. */
static int session_failed(struct tls_session *s, int code)
{
    s->failure = s->keys_asked ? "The peer asks for new keys, which the kernel cannot change"
                               : gnutls_strerror(code);
    return code == GNUTLS_E_PREMATURE_TERMINATION ? -ECONNRESET : -EIO;
}

static bool is_again(int64_t code)
{
    return code == GNUTLS_E_AGAIN || code == GNUTLS_E_INTERRUPTED;
}

/* --- the socket ----------------------------------------------------------------------------- */

/* -errno. The errors by which a socket reports that the peer is gone count as one. */
static int socket_failed(struct tls_session *s, int errnum)
{
    if (errnum == ECONNRESET || errnum == EPIPE) {
        return session_failed(s, GNUTLS_E_PREMATURE_TERMINATION);
    }
    return errnum == EWOULDBLOCK ? -EAGAIN : -errnum;
}

/* `n` bytes of the socket are in the buffer, of which GnuTLS had taken all. */
static void take_in(struct tls_session *s, ssize_t n)
{
    s->in_pos = 0;
    s->in_end = n > 0 ? (size_t)n : 0;
    s->in_ended = n == 0;
}

/* Receive into the buffer. 0: there are bytes, or the end was noted; or -errno. */
static int refill(struct tls_session *s)
{
    ssize_t n;

    assert(s->in_pos == s->in_end);
    do {
        n = recv(s->fd, s->in, IN_SIZE, MSG_DONTWAIT);
    } while (n < 0 && errno == EINTR);
    if (n < 0) {
        return socket_failed(s, errno);
    }
    take_in(s, n);
    return 0;
}

static int co_refill(struct tls_session *s)
{
    ssize_t n = loop_co_recv(s->fd, s->in, IN_SIZE);

    if (n < 0) {
        return socket_failed(s, (int)-n);
    }
    take_in(s, n);
    return 0;
}

int tls_session_flush(struct tls_session *s)
{
    while (s->out_pos < s->out_end) {
        ssize_t n =
            send(s->fd, s->out + s->out_pos, s->out_end - s->out_pos, MSG_DONTWAIT | MSG_NOSIGNAL);

        if (n >= 0) {
            s->out_pos += (size_t)n;
        } else if (errno != EINTR) {
            return socket_failed(s, errno);
        }
    }
    s->out_pos = s->out_end = 0;
    return 0;
}

static int session_co_flush(struct tls_session *s)
{
    int r;

    while ((r = tls_session_flush(s)) == -EAGAIN) {
        r = loop_co_poll(s->fd, POLLOUT, -1);
        if (r < 0) {
            return r;
        }
    }
    return r;
}

/* --- handshake ------------------------------------------------------------------------------ */

/* The name in the peer's certificate (client), and its authorization (server). */
static int check_certificate(struct tls_session *s, struct error *err)
{
    unsigned count = 0;
    const gnutls_datum_t *chain = gnutls_certificate_get_peers(s->gnutls, &count);
    gnutls_datum_t dn = {0};
    gnutls_x509_crt_t cert;
    int code, r = 0;

    if (!chain || count == 0) {
        return error_set(err, EPERM, "No certificate peers");
    }
    code = gnutls_x509_crt_init(&cert);
    if (code < 0) {
        return tls_error(err, code, "Cannot initialize certificate");
    }
    code = gnutls_x509_crt_import(cert, &chain[0], GNUTLS_X509_FMT_DER);
    if (code == 0 && s->creds->endpoint == TLS_SERVER) {
        /* In the order of the certificate, as in the lists that QEMU's users have. */
        code = gnutls_x509_crt_get_dn3(cert, &dn, GNUTLS_X509_DN_FLAG_COMPAT);
    }
    if (code < 0) {
        r = tls_error(err, code, "Cannot read the peer's certificate");
    } else if (s->authz && !tls_authz_allows(s->authz, (const char *)dn.data)) {
        r = error_set(err, EPERM, "TLS x509 authz check for %s is denied", (const char *)dn.data);
    } else if (s->creds->endpoint == TLS_CLIENT && !s->hostname) {
        r = error_set(err, EPERM, "No hostname for certificate validation");
    } else if (s->creds->endpoint == TLS_CLIENT &&
               !gnutls_x509_crt_check_hostname(cert, s->hostname)) {
        r = error_set(err, EPERM, "Certificate does not match the hostname %s", s->hostname);
    }
    if (r == 0 && dn.data) {
        s->identity = strdup((const char *)dn.data);
        r = s->identity ? 0 : error_out_of_memory(err);
    }
    gnutls_free(dn.data);
    gnutls_x509_crt_deinit(cert);
    return r;
}

static int check_x509(struct tls_session *s, struct error *err)
{
    bool server = s->creds->endpoint == TLS_SERVER;
    const char *purpose = server ? GNUTLS_KP_TLS_WWW_CLIENT : GNUTLS_KP_TLS_WWW_SERVER;
    gnutls_typed_vdata_st wanted = {
        .type = GNUTLS_DT_KEY_PURPOSE_OID,
        .data = (unsigned char *)(uintptr_t)purpose,
    };
    unsigned status = 0;
    int code;

    if (!s->creds->verify_peer) {
        return 0;
    }
    code = gnutls_certificate_verify_peers(s->gnutls, &wanted, 1, &status);
    if (code < 0) {
        return tls_error(err, code, "Verify failed");
    }
    if (status != 0) {
        return error_set(err, EPERM, "%s", tls_x509_fault(status));
    }
    return check_certificate(s, err);
}

static int check_psk(struct tls_session *s, struct error *err)
{
    const char *user = gnutls_psk_server_get_username(s->gnutls);

    if (!s->authz || (user && tls_authz_allows(s->authz, user))) {
        s->identity = user ? strdup(user) : NULL;
        return user && !s->identity ? error_out_of_memory(err) : 0;
    }
    return error_set(err, EPERM, "TLS PSK authz check for %s is denied", user ? user : "(none)");
}

/* A step of the handshake, for the offload pool: arithmetic and files, not the socket. */
struct handshake_step {
    struct tls_session *s;
    struct error *err;
    /* Of the check of the peer, when the handshake is over. */
    int result;
};

static int do_handshake_step(void *arg)
{
    struct handshake_step *step = arg;
    struct tls_session *s = step->s;
    int code = gnutls_handshake(s->gnutls);

    if (code < 0) {
        return code;
    }
    if (s->creds->kind == TLS_X509) {
        step->result = check_x509(s, step->err);
    } else if (s->creds->kind == TLS_PSK && s->creds->endpoint == TLS_SERVER) {
        step->result = check_psk(s, step->err);
    }
    return 0;
}

static int handshake_lost(const struct tls_session *s, int r, struct error *err)
{
    return error_set(err, -r, "TLS handshake failed: %s",
                     s->failure[0] ? s->failure : strerror(-r));
}

int tls_session_co_handshake(struct tls_session *s, struct error *err)
{
    struct handshake_step step = {.s = s, .err = err};
    int code, r;

    for (;;) {
        code = loop_co_offload(do_handshake_step, &step);
        r = session_co_flush(s);
        if (code < 0 && !is_again(code) && code != GNUTLS_E_WARNING_ALERT_RECEIVED) {
            session_failed(s, code);
            return tls_error(err, code, "TLS handshake failed");
        }
        if (r < 0) {
            return handshake_lost(s, r, err);
        }
        if (code == 0) {
            return step.result;
        }
        if (s->in_pos == s->in_end) {
            r = co_refill(s);
            if (r < 0) {
                return handshake_lost(s, r, err);
            }
        }
    }
}

/* --- records made by the kernel ------------------------------------------------------------- */

/*
 * RFC 8446, section 4.6.3: a peer that asks for new keys gets no data by the old ones. GnuTLS would
 * change them when it sends next.
 */
static int refuse_new_keys(gnutls_session_t gnutls, unsigned type, unsigned when, unsigned incoming,
                           const gnutls_datum_t *message)
{
    struct tls_session *s = gnutls_session_get_ptr(gnutls);

    if (incoming && message->size > 0 && message->data[message->size - 1] != 0) {
        s->keys_asked = true;
        return GNUTLS_E_UNIMPLEMENTED_FEATURE;
    }
    return 0;
}

static int do_use_kernel(void *arg)
{
    const struct tls_session *s = arg;

    return tls_kernel_take_over(s->gnutls, s->fd);
}

void tls_session_co_use_kernel(struct tls_session *s)
{
    assert(s->out_pos == s->out_end);
    s->kernel_sends = s->creds->allow_kernel;
    if (s->kernel_sends && loop_co_offload(do_use_kernel, s) < 0) {
        s->kernel_sends = false;
    }
    if (s->kernel_sends) {
        gnutls_session_set_ptr(s->gnutls, s);
        gnutls_handshake_set_hook_function(s->gnutls, GNUTLS_HANDSHAKE_KEY_UPDATE, GNUTLS_HOOK_PRE,
                                           refuse_new_keys);
    }
}

bool tls_session_uses_kernel(const struct tls_session *s)
{
    return s->kernel_sends;
}

void tls_session_socket_is_full(const struct tls_session *s)
{
    if (s->kernel_sends) {
        tls_kernel_push(s->fd);
    }
}

const char *tls_session_words(const struct tls_session *s)
{
    return !s ? "" : s->kernel_sends ? " by TLS of the kernel (kTLS)" : " by TLS";
}

/* --- data ----------------------------------------------------------------------------------- */

ssize_t tls_session_recv(struct tls_session *s, void *buf, size_t size)
{
    size_t done = 0;

    while (done < size && !s->ended) {
        size_t before = s->in_pos;
        ssize_t n = gnutls_record_recv(s->gnutls, (uint8_t *)buf + done, size - done);

        if (n > 0) {
            done += (size_t)n;
        } else if (n == 0) {
            s->ended = true;
        } else if (!is_again(n)) {
            /* The bytes before it are valid; the next call fails again. */
            return done > 0 ? (ssize_t)done : session_failed(s, (int)n);
        } else if (s->in_pos < s->in_end) {
            if (s->in_pos == before) {
                return session_failed(s, GNUTLS_E_INTERNAL_ERROR);
            }
        } else if (done > 0) {
            break;
        } else {
            int r = refill(s);

            if (r < 0) {
                return r;
            }
        }
    }
    return (ssize_t)done;
}

ssize_t tls_session_co_recv(struct tls_session *s, void *buf, size_t size)
{
    ssize_t n;

    while ((n = tls_session_recv(s, buf, size)) == -EAGAIN) {
        int r = co_refill(s);

        if (r < 0) {
            return r;
        }
    }
    return n;
}

/*
 * The plaintext of the next record: a part of an element in place, or small ones copied to `stage`.
 */
static struct iovec next_record(struct tls_session *s, const struct iovec **vec, int *count,
                                size_t *offset)
{
    size_t n = 0;

    while (*count > 0 && n < TLS_RECORD_MAX) {
        const uint8_t *data = (const uint8_t *)(*vec)->iov_base + *offset;
        size_t left = (*vec)->iov_len - *offset, part = MIN(left, TLS_RECORD_MAX - n);

        *offset += part;
        if (part == left) {
            (*vec)++;
            (*count)--;
            *offset = 0;
        }
        if (n == 0 && part == TLS_RECORD_MAX) {
            return (struct iovec){.iov_base = (void *)(uintptr_t)data, .iov_len = part};
        }
        memcpy(s->stage + n, data, part);
        n += part;
    }
    return (struct iovec){.iov_base = s->stage, .iov_len = n};
}

/* For a peer that wants smaller records (RFC 8449) GnuTLS makes several, of at least 512 bytes. */
static int put_record(struct tls_session *s, const struct iovec *record)
{
    size_t done = 0;

    while (done < record->iov_len) {
        ssize_t n = gnutls_record_send(s->gnutls, (const uint8_t *)record->iov_base + done,
                                       record->iov_len - done);

        if (n <= 0) {
            return session_failed(s, n < 0 ? (int)n : GNUTLS_E_INTERNAL_ERROR);
        }
        done += (size_t)n;
    }
    return 0;
}

/*
 * Encrypt as much as there is room for. The vector, and the offset in its first element, are
 * advanced. Bytes, or -errno.
 */
static ssize_t put_some(struct tls_session *s, const struct iovec **vec, int *count, size_t *offset)
{
    size_t done = 0;

    while (*count > 0 && OUT_SIZE - s->out_end >= RECORD_ROOM) {
        struct iovec record = next_record(s, vec, count, offset);
        int r;

        if (record.iov_len == 0) {
            break;
        }
        r = put_record(s, &record);
        if (r < 0) {
            return r;
        }
        done += record.iov_len;
    }
    return (ssize_t)done;
}

ssize_t tls_session_put(struct tls_session *s, const struct iovec *vec, int count)
{
    size_t offset = 0;

    return put_some(s, &vec, &count, &offset);
}

/* To a socket whose records the kernel makes. 0 or -errno. */
static int co_send_plain(struct tls_session *s, const struct iovec *vec, int count)
{
    size_t offset = 0;

    while (count > 0) {
        struct iovec part[PLAIN_PARTS];
        struct msghdr msg = {.msg_iov = part, .msg_iovlen = (size_t)MIN(count, PLAIN_PARTS)};
        ssize_t n;

        memcpy(part, vec, msg.msg_iovlen * sizeof(*part));
        part[0].iov_base = (uint8_t *)part[0].iov_base + offset;
        part[0].iov_len -= offset;
        n = loop_co_sendmsg(s->fd, &msg, MSG_NOSIGNAL);
        if (n < 0) {
            return socket_failed(s, (int)-n);
        }
        for (offset += (size_t)n; count > 0 && offset >= vec->iov_len; vec++, count--) {
            offset -= vec->iov_len;
        }
    }
    return 0;
}

int tls_session_co_send(struct tls_session *s, const struct iovec *vec, int count)
{
    size_t offset = 0;
    int r;

    if (s->kernel_sends) {
        return co_send_plain(s, vec, count);
    }
    while ((r = session_co_flush(s)) == 0 && count > 0) {
        ssize_t n = put_some(s, &vec, &count, &offset);

        if (n < 0) {
            return (int)n;
        }
    }
    return r;
}

void tls_session_bye(struct tls_session *s)
{
    if (s->kernel_sends) {
        (void)tls_kernel_send_close(s->fd);
    } else if (OUT_SIZE - s->out_end >= RECORD_ROOM) {
        (void)gnutls_bye(s->gnutls, GNUTLS_SHUT_WR);
        (void)tls_session_flush(s);
    }
}
