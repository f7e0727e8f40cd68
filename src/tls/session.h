/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A TLS session (RFC 8446, RFC 5246) over a connected non-blocking socket.
 *
 *   plaintext  put() --> GnuTLS --> out [ records ] -- flush() --> socket
 *             recv() <-- GnuTLS <-- in  [ records ] <-- refill --- socket
 *
 * GnuTLS never sees the socket: it writes to and reads from the two buffers. So a turn of many small messages leaves
 * in one send(), the handshake's arithmetic runs on the offload pool, and nothing in it can block.
 *
 * A session is used on one reactor at a time; two coroutines may use it, one that sends and one that receives.
 */
#ifndef TIDEMARK_TLS_SESSION_H
#define TIDEMARK_TLS_SESSION_H

#include <stddef.h>
#include <sys/types.h>
#include <sys/uio.h>

#include "base/error.h"
#include "tls/tls.h"

struct tls_session;

/*
 * Make a session of the end that `creds` are for; they have to outlive it. `fd` stays the caller's. `hostname` (client; may
 * be NULL) is what a certificate has to be for; `authz` (server; may be NULL) has to allow the peer, and must live until the
 * handshake is over. -ENOMEM, -EINVAL. Does not yield.
 */
int tls_session_new(const struct tls_creds *creds, int fd, const char *hostname,
                    const struct tls_authz *authz, struct tls_session **ret, struct error *err);
/* NULL is fine. Does not yield. */
void tls_session_free(struct tls_session *s);

/*
 * Negotiate, then check the peer: its certificate, its name, its authorization. Nothing may be sent or received before it
 * has returned 0. The time it takes is the caller's to limit, by shutdown(2) of the socket. Yields.
 */
int tls_session_co_handshake(struct tls_session *s, struct error *err);

/*
 * Receive what is there: bytes (0: the peer has closed the session properly), -EAGAIN, or another -errno, after which
 * tls_session_failure() says more. Does not yield; the co_ variant waits instead of -EAGAIN.
 */
ssize_t tls_session_recv(struct tls_session *s, void *buf, size_t size);
ssize_t tls_session_co_recv(struct tls_session *s, void *buf, size_t size);

/*
 * Encrypt the beginning of a vector into the buffer, from which flush() sends: bytes taken, more than 0 after a flush() that
 * returned 0, or -errno. flush(): 0 when all is sent, -EAGAIN when the socket is full, or another -errno. Neither yields.
 */
ssize_t tls_session_put(struct tls_session *s, const struct iovec *vec, int count);
int tls_session_flush(struct tls_session *s);
/* Both, until all is sent. 0 or -errno. Yields. */
int tls_session_co_send(struct tls_session *s, const struct iovec *vec, int count);

/* Tell the peer that nothing more comes, if the socket takes it at once. Does not yield. */
void tls_session_bye(struct tls_session *s);

/* Why it has failed, a sentence; "" if it has not. */
const char *tls_session_failure(const struct tls_session *s);

#endif
