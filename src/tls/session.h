/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A TLS session (RFC 8446, RFC 5246) over a connected non-blocking socket.
 *
 *   plaintext  put() --> GnuTLS --> out [ records ] -- flush() --> socket
 *             recv() <-- GnuTLS <-- in  [ records ] <-- refill --- socket
 *
 * GnuTLS never sees the socket: it writes to and reads from the two buffers. So a turn of many
 * small messages leaves in one send(), the arithmetic of the handshake runs on the offload pool,
 * and nothing in it can block.
 *
 * The kernel can make the records that are sent (kTLS), where the socket is one of TCP:
 *
 *   plaintext ----------------------------------------> socket [ records ]
 *
 * A session is used on one reactor at a time. Two coroutines may use it: one that sends, and one
 * that receives. `co_` functions yield; the others do not.
 */
#ifndef TIDEMARK_TLS_SESSION_H
#define TIDEMARK_TLS_SESSION_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>
#include <sys/uio.h>

#include "base/error.h"
#include "tls/tls.h"

struct tls_session;

/*
 * Make a session of the end that `creds` are for. The credentials have to outlive it; `fd` is still
 * the caller's. `hostname` (of a client; may be NULL) is the name that the server's certificate has
 * to be for. `authz` (of a server; may be NULL) has to allow the peer, and lives until the
 * handshake is over. -ENOMEM, -EINVAL.
 */
int tls_session_new(const struct tls_creds *creds, int fd, const char *hostname,
                    const struct tls_authz *authz, struct tls_session **ret_session,
                    struct error *err);
/* Release a session, without a goodbye. NULL is fine. */
void tls_session_free(struct tls_session *s);

/*
 * Negotiate, then check the peer: its certificate, its name, its authorization. Nothing may be sent
 * or received before this has returned 0. The caller limits its time, by shutdown(2) of the socket.
 * -EPERM: the peer is refused. -EINVAL, -EIO, -ECONNRESET: the handshake failed.
 */
int tls_session_co_handshake(struct tls_session *s, struct error *err);

/*
 * After the handshake, before anything is sent: let the kernel make the records to be sent, if it
 * can do so and the credentials allow it. The peer notices nothing. Yields.
 */
void tls_session_co_use_kernel(struct tls_session *s);
/*
 * Whether the kernel makes them. Then plaintext is written to the socket as if there were no TLS
 * (sendmsg, splice), and neither put() nor flush() is used.
 */
bool tls_session_uses_kernel(const struct tls_session *s);
/* If the kernel makes them: the socket has taken no more. To be called before the wait for room. */
void tls_session_socket_is_full(const struct tls_session *s);
/* What a log says of a connection with this session (NULL: none), after its verb. Static string. */
const char *tls_session_words(const struct tls_session *s);

/*
 * Receive what is there. Bytes; 0: the peer has closed the session properly; -EAGAIN: nothing is
 * there; or another -errno, after which tls_session_failure() says more. The co_ variant waits
 * instead of -EAGAIN.
 */
ssize_t tls_session_recv(struct tls_session *s, void *buf, size_t size);
ssize_t tls_session_co_recv(struct tls_session *s, void *buf, size_t size);

/*
 * Encrypt the beginning of a vector into the buffer that tls_session_flush() sends. Bytes taken,
 * which is more than 0 after a flush that returned 0; or -errno.
 */
ssize_t tls_session_put(struct tls_session *s, const struct iovec *vec, int count);
/* Send the buffer. 0: all is sent; -EAGAIN: the socket is full; or another -errno. */
int tls_session_flush(struct tls_session *s);
/* Encrypt and send all of a vector. 0 or -errno. */
int tls_session_co_send(struct tls_session *s, const struct iovec *vec, int count);

/* Close the session towards the peer, if the socket takes that at once. */
void tls_session_bye(struct tls_session *s);

/*
 * Of a server, after the handshake: who the peer is, as authorization knows him: the subject of his
 * certificate, or the name of his key. NULL: he did not say, or it was not verified. Borrowed.
 */
const char *tls_session_identity(const struct tls_session *s);

/* Why the session has failed; "" if it has not. A static string. */
const char *tls_session_failure(const struct tls_session *s);

#endif
