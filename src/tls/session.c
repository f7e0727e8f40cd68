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

#define IN_SIZE (128 * KiB)
#define OUT_SIZE (256 * KiB)
#define RECORD_MAX (16 * KiB) /* plaintext in a record, RFC 8446, section 5.1 */
/* What a record can take in the buffer, and what GnuTLS may have to send before it (key update). */
#define RECORD_ROOM (RECORD_MAX + 4 * KiB)

struct tls_session {
    gnutls_session_t gnutls;
    const struct tls_creds *creds;
    const struct tls_authz *authz;
    char *hostname; /* owned; NULL: none */
    int fd;

    size_t in_pos, in_end;   /* received and not yet taken by GnuTLS, in `in` */
    size_t out_pos, out_end; /* to be sent, in `out` */
    bool in_ended;           /* the socket has nothing more */
    bool ended;              /* the peer has closed the session */
    const char *failure;     /* a static string; "": none */

    uint8_t in[IN_SIZE];
    uint8_t out[OUT_SIZE];
    uint8_t stage[RECORD_MAX]; /* small messages gather here to a record */
};

/* --- what GnuTLS calls ------------------------------------------------------------------------------- */

static ssize_t pull(gnutls_transport_ptr_t arg, void *to, size_t size)
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

static int pull_timeout(gnutls_transport_ptr_t arg, unsigned ms)
{
    const struct tls_session *s = arg;

    return s->in_end > s->in_pos || s->in_ended;
}

static ssize_t push(gnutls_transport_ptr_t arg, const void *data, size_t size)
{
    struct tls_session *s = arg;
    size_t n = MIN(size, OUT_SIZE - s->out_end);

    if (n == 0) {
        gnutls_transport_set_errno(s->gnutls, EAGAIN);
        return -1;
    }
    memcpy(s->out + s->out_end, data, n);
    s->out_end += n;
    return (ssize_t)n;
}

/* --- life -------------------------------------------------------------------------------------------------- */

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

static int configure(struct tls_session *s)
{
    int rc = gnutls_priority_set(s->gnutls, s->creds->priority);

    if (rc == 0) {
        rc = set_credentials(s);
    }
    if (rc == 0 && s->hostname && s->creds->kind == TLS_X509 && !is_address(s->hostname)) {
        rc = gnutls_server_name_set(s->gnutls, GNUTLS_NAME_DNS, s->hostname, strlen(s->hostname));
    }
    gnutls_transport_set_ptr(s->gnutls, s);
    gnutls_transport_set_pull_function(s->gnutls, pull);
    gnutls_transport_set_pull_timeout_function(s->gnutls, pull_timeout);
    gnutls_transport_set_push_function(s->gnutls, push);
    return rc;
}

int tls_session_new(const struct tls_creds *creds, int fd, const char *hostname,
                    const struct tls_authz *authz, struct tls_session **ret, struct error *err)
{
    /* The buffers need no zeroes. */
    struct tls_session *s = malloc(sizeof(*s));
    unsigned flags = creds->endpoint == TLS_SERVER ? GNUTLS_SERVER : GNUTLS_CLIENT;
    int rc;

    if (!s) {
        return error_set(err, ENOMEM, "Out of memory");
    }
    memset(s, 0, offsetof(struct tls_session, in));
    s->fd = fd;
    s->authz = authz;
    s->failure = "";
    s->hostname = hostname ? strdup(hostname) : NULL;
    rc = gnutls_init(&s->gnutls, flags | GNUTLS_NONBLOCK | GNUTLS_NO_SIGNAL | GNUTLS_NO_TICKETS);
    if (rc < 0 || (hostname && !s->hostname)) {
        free(s->hostname);
        free(s);
        return error_set(err, ENOMEM, "Out of memory");
    }
    s->creds = creds;
    rc = configure(s);
    if (rc < 0) {
        tls_session_free(s);
        return tls_error(err, rc, "Cannot set up a TLS session");
    }
    *ret = s;
    return 0;
}

void tls_session_free(struct tls_session *s)
{
    if (s) {
        gnutls_deinit(s->gnutls);
        free(s->hostname);
        free(s);
    }
}

const char *tls_session_failure(const struct tls_session *s)
{
    return s->failure;
}

/* What GnuTLS says went wrong, as -errno. */
static int fail(struct tls_session *s, int rc)
{
    s->failure = gnutls_strerror(rc);
    return rc == GNUTLS_E_PREMATURE_TERMINATION ? -ECONNRESET : -EIO;
}

static bool is_again(int64_t rc)
{
    return rc == GNUTLS_E_AGAIN || rc == GNUTLS_E_INTERRUPTED;
}

/* --- the socket ------------------------------------------------------------------------------------------ */

/* A peer that is gone is gone, however the socket tells it: -errno. */
static int socket_failed(struct tls_session *s, int errnum)
{
    if (errnum == ECONNRESET || errnum == EPIPE) {
        return fail(s, GNUTLS_E_PREMATURE_TERMINATION);
    }
    return errnum == EWOULDBLOCK ? -EAGAIN : -errnum;
}

/* Room for more of the socket; GnuTLS has taken all there was. */
static void take_in(struct tls_session *s, ssize_t n)
{
    s->in_pos = 0;
    s->in_end = n > 0 ? (size_t)n : 0;
    s->in_ended = n == 0;
}

/* 0 with something in the buffer or its end noted; or -errno. */
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

static int co_flush(struct tls_session *s)
{
    int ret;

    while ((ret = tls_session_flush(s)) == -EAGAIN) {
        ret = loop_co_poll(s->fd, POLLOUT, -1);
        if (ret < 0) {
            return ret;
        }
    }
    return ret;
}

/* --- handshake --------------------------------------------------------------------------------------------- */

/* The peer's certificate for a name (client), and its authorization (server). */
static int check_certificate(struct tls_session *s, struct error *err)
{
    unsigned count = 0;
    const gnutls_datum_t *chain = gnutls_certificate_get_peers(s->gnutls, &count);
    gnutls_datum_t dn = {0};
    gnutls_x509_crt_t cert;
    int rc, r = 0;

    if (!chain || count == 0) {
        return error_set(err, EPERM, "No certificate peers");
    }
    rc = gnutls_x509_crt_init(&cert);
    if (rc < 0) {
        return tls_error(err, rc, "Cannot initialize certificate");
    }
    rc = gnutls_x509_crt_import(cert, &chain[0], GNUTLS_X509_FMT_DER);
    if (rc == 0 && s->authz) {
        /* In the order of the certificate, as QEMU's users have it in their lists. */
        rc = gnutls_x509_crt_get_dn3(cert, &dn, GNUTLS_X509_DN_FLAG_COMPAT);
    }
    if (rc < 0) {
        r = tls_error(err, rc, "Cannot read the peer's certificate");
    } else if (s->authz && !tls_authz_allows(s->authz, (const char *)dn.data)) {
        r = error_set(err, EPERM, "TLS x509 authz check for %s is denied", (const char *)dn.data);
    } else if (s->creds->endpoint == TLS_CLIENT && !s->hostname) {
        r = error_set(err, EPERM, "No hostname for certificate validation");
    } else if (s->creds->endpoint == TLS_CLIENT &&
               !gnutls_x509_crt_check_hostname(cert, s->hostname)) {
        r = error_set(err, EPERM, "Certificate does not match the hostname %s", s->hostname);
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
    int rc;

    if (!s->creds->verify_peer) {
        return 0;
    }
    rc = gnutls_certificate_verify_peers(s->gnutls, &wanted, 1, &status);
    if (rc < 0) {
        return tls_error(err, rc, "Verify failed");
    }
    if (status != 0) {
        return error_set(err, EPERM, "%s", tls_x509_fault(status));
    }
    return check_certificate(s, err);
}

static int check_psk(struct tls_session *s, struct error *err)
{
    const char *user;

    if (!s->authz) {
        return 0;
    }
    user = gnutls_psk_server_get_username(s->gnutls);
    if (user && tls_authz_allows(s->authz, user)) {
        return 0;
    }
    return error_set(err, EPERM, "TLS PSK authz check for %s is denied", user ? user : "(none)");
}

/* What the offload pool does: arithmetic and files, not the socket. */
struct step {
    struct tls_session *s;
    struct error *err;
    int result; /* of the check, once the handshake is over */
};

static int do_step(void *arg)
{
    struct step *step = arg;
    struct tls_session *s = step->s;
    int rc = gnutls_handshake(s->gnutls);

    if (rc < 0) {
        return rc;
    }
    if (s->creds->kind == TLS_X509) {
        step->result = check_x509(s, step->err);
    } else if (s->creds->kind == TLS_PSK && s->creds->endpoint == TLS_SERVER) {
        step->result = check_psk(s, step->err);
    }
    return 0;
}

static int handshake_lost(const struct tls_session *s, int ret, struct error *err)
{
    return error_set(err, -ret, "TLS handshake failed: %s",
                     s->failure[0] ? s->failure : strerror(-ret));
}

int tls_session_co_handshake(struct tls_session *s, struct error *err)
{
    struct step step = {.s = s, .err = err};
    int rc, r;

    for (;;) {
        rc = loop_co_offload(do_step, &step);
        r = co_flush(s);
        if (rc < 0 && !is_again(rc) && rc != GNUTLS_E_WARNING_ALERT_RECEIVED) {
            fail(s, rc);
            return tls_error(err, rc, "TLS handshake failed");
        }
        if (r < 0) {
            return handshake_lost(s, r, err);
        }
        if (rc == 0) {
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

/* --- data ---------------------------------------------------------------------------------------------------- */

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
            /* What came before it was sound; the failure will be met again. */
            return done > 0 ? (ssize_t)done : fail(s, (int)n);
        } else if (s->in_pos < s->in_end) {
            if (s->in_pos == before) {
                return fail(s, GNUTLS_E_INTERNAL_ERROR);
            }
        } else if (done > 0) {
            break;
        } else {
            int ret = refill(s);

            if (ret < 0) {
                return ret;
            }
        }
    }
    return (ssize_t)done;
}

ssize_t tls_session_co_recv(struct tls_session *s, void *buf, size_t size)
{
    ssize_t n;

    while ((n = tls_session_recv(s, buf, size)) == -EAGAIN) {
        int ret = co_refill(s);

        if (ret < 0) {
            return ret;
        }
    }
    return n;
}

/* The next record's plaintext: a part of an element as it lies there, or several small ones in `stage`. */
static struct iovec next_record(struct tls_session *s, const struct iovec **vec, int *count,
                                size_t *offset)
{
    size_t n = 0;

    while (*count > 0 && n < RECORD_MAX) {
        const uint8_t *data = (const uint8_t *)(*vec)->iov_base + *offset;
        size_t left = (*vec)->iov_len - *offset, part = MIN(left, RECORD_MAX - n);

        *offset += part;
        if (part == left) {
            (*vec)++;
            (*count)--;
            *offset = 0;
        }
        if (n == 0 && part == RECORD_MAX) {
            return (struct iovec){.iov_base = (void *)(uintptr_t)data, .iov_len = part};
        }
        memcpy(s->stage + n, data, part);
        n += part;
    }
    return (struct iovec){.iov_base = s->stage, .iov_len = n};
}

/* GnuTLS makes several of one for a peer that wants smaller ones (RFC 8449): at least 512 bytes. */
static int put_record(struct tls_session *s, const struct iovec *record)
{
    size_t done = 0;

    while (done < record->iov_len) {
        ssize_t n = gnutls_record_send(s->gnutls, (const uint8_t *)record->iov_base + done,
                                       record->iov_len - done);

        if (n <= 0) {
            return fail(s, n < 0 ? (int)n : GNUTLS_E_INTERNAL_ERROR);
        }
        done += (size_t)n;
    }
    return 0;
}

/* Encrypt as much as there is room for; vector and offset in its first element move on. Bytes, or -errno. */
static ssize_t put_some(struct tls_session *s, const struct iovec **vec, int *count, size_t *offset)
{
    size_t done = 0;

    while (*count > 0 && OUT_SIZE - s->out_end >= RECORD_ROOM) {
        struct iovec record = next_record(s, vec, count, offset);
        int ret;

        if (record.iov_len == 0) {
            break;
        }
        ret = put_record(s, &record);
        if (ret < 0) {
            return ret;
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

int tls_session_co_send(struct tls_session *s, const struct iovec *vec, int count)
{
    size_t offset = 0;
    int ret;

    while ((ret = co_flush(s)) == 0 && count > 0) {
        ssize_t n = put_some(s, &vec, &count, &offset);

        if (n < 0) {
            return (int)n;
        }
    }
    return ret;
}

void tls_session_bye(struct tls_session *s)
{
    if (OUT_SIZE - s->out_end >= RECORD_ROOM) {
        (void)gnutls_bye(s->gnutls, GNUTLS_SHUT_WR);
        (void)tls_session_flush(s);
    }
}
