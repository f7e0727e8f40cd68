# SPDX-License-Identifier: Apache-2.0
"""A TLS client that does what Python's own does not: small records, pre-shared keys, new keys."""

import ctypes


class GnutlsClient:
    """TLS on a socket by GnuTLS, as user `alice`."""

    CLIENT, CRD_PSK, KEY_HEX, KU_PEER, SHUT_WR, AGAIN = 2, 4, 1, 1, 1, -28

    class Datum(ctypes.Structure):
        _fields_ = [("data", ctypes.c_char_p), ("size", ctypes.c_uint)]

    def __init__(self, sock, key, version, cipher=None, record_limit=16384):
        """version: "TLS1.2"; cipher: as "AES-128-GCM"; record_limit: of records that are taken."""
        self.lib = lib = ctypes.CDLL("libgnutls.so.30")
        self.session, self.creds = ctypes.c_void_p(), ctypes.c_void_p()
        datum = self.Datum(key.encode(), len(key))
        ciphers = f":-CIPHER-ALL:+{cipher}" if cipher else ""
        priority = f"NORMAL:-VERS-ALL:+VERS-{version}:+ECDHE-PSK:+PSK{ciphers}"
        lib.gnutls_record_set_max_recv_size.argtypes = ctypes.c_void_p, ctypes.c_size_t
        for call in lib.gnutls_record_send, lib.gnutls_record_recv:
            call.argtypes = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t
            call.restype = ctypes.c_ssize_t
        sock.setblocking(True)
        for rc in (
            lib.gnutls_init(ctypes.byref(self.session), self.CLIENT),
            lib.gnutls_psk_allocate_client_credentials(ctypes.byref(self.creds)),
            lib.gnutls_psk_set_client_credentials(
                self.creds, b"alice", ctypes.byref(datum), self.KEY_HEX
            ),
            lib.gnutls_priority_set_direct(self.session, priority.encode(), None),
            lib.gnutls_credentials_set(self.session, self.CRD_PSK, self.creds),
            lib.gnutls_record_set_max_recv_size(self.session, record_limit),
            lib.gnutls_transport_set_int2(self.session, sock.fileno(), sock.fileno()) and 0,
            lib.gnutls_handshake(self.session),
        ):
            assert rc == 0, rc
        self.sock = sock

    def sendall(self, data):
        assert self.lib.gnutls_record_send(self.session, data, len(data)) == len(data)

    def recv(self, size):
        data = ctypes.create_string_buffer(size)
        got = self.AGAIN
        while got == self.AGAIN:  # after a key update
            got = self.lib.gnutls_record_recv(self.session, data, size)
        assert got >= 0, got
        return data.raw[:got]

    def update_key(self, ask):
        """ask: the peer is to change its key, too."""
        assert self.lib.gnutls_session_key_update(self.session, self.KU_PEER if ask else 0) == 0

    def goodbye(self):
        """Close the session towards the peer (close_notify); it may still send."""
        assert self.lib.gnutls_bye(self.session, self.SHUT_WR) == 0

    def renegotiate(self):
        """Another handshake of TLS 1.2: 0, or the error of GnuTLS."""
        return self.lib.gnutls_handshake(self.session)

    def close(self):
        self.lib.gnutls_deinit(self.session)
        self.lib.gnutls_psk_free_client_credentials(self.creds)
        self.sock.close()
