# SPDX-License-Identifier: Apache-2.0
"""Sealed files of encrypted repositories, read as docs/backup.md describes them, by OpenSSL."""

import ctypes
import hashlib
import hmac
import struct

HEADER, PIECE, OVERHEAD = 128, 8192, 28
MANIFEST, IMAGE, SUMS, SET, DEFINITION = 1, 2, 3, 6, 7

crypto = ctypes.CDLL("libcrypto.so.3")
crypto.EVP_aes_256_gcm.restype = ctypes.c_void_p
crypto.EVP_CIPHER_CTX_new.restype = ctypes.c_void_p
for name in ("DecryptInit_ex", "DecryptUpdate", "DecryptFinal_ex", "CIPHER_CTX_ctrl",
             "CIPHER_CTX_free"):  # fmt: skip
    getattr(crypto, f"EVP_{name}").argtypes = None
SET_TAG = 0x11


def decrypt(key, nonce, tag, aad, data):
    """The contents; an exception if anything was changed."""
    ctx = ctypes.c_void_p(crypto.EVP_CIPHER_CTX_new())
    out, done = ctypes.create_string_buffer(len(data) + 16), ctypes.c_int()
    try:
        crypto.EVP_DecryptInit_ex(ctx, ctypes.c_void_p(crypto.EVP_aes_256_gcm()), None, key, nonce)
        crypto.EVP_DecryptUpdate(ctx, None, ctypes.byref(done), aad, len(aad))
        if data:
            crypto.EVP_DecryptUpdate(ctx, out, ctypes.byref(done), data, len(data))
        crypto.EVP_CIPHER_CTX_ctrl(ctx, SET_TAG, 16, tag)
        if crypto.EVP_DecryptFinal_ex(ctx, ctypes.create_string_buffer(16),
                                      ctypes.byref(done)) != 1:  # fmt: skip
            raise ValueError("changed")
    finally:
        crypto.EVP_CIPHER_CTX_free(ctx)
    return out.raw[: len(data)]


def hmac_sha256(key, message):
    return hmac.new(key, message, hashlib.sha256).digest()


class Sealed:
    """A sealed file, of the contents of a key file."""

    def __init__(self, path, material, kind):
        with open(path, "rb") as f:
            self.data = f.read()
        magic, version, own_kind, self.piece = struct.unpack_from("<8sIII", self.data)
        assert (magic, version, own_kind) == (b"TIDESEAL", 1, kind)
        self.kind = kind
        self.size = struct.unpack_from("<Q", self.data, 24)[0]
        seal = hmac_sha256(material, b"tidemark backup: sealed files")
        self.key = hmac_sha256(seal, self.data[32:64] + struct.pack("<I", kind))
        decrypt(self.key, self.data[100:112], self.data[112:128], self.data[:100], b"")

    def pieces(self):
        """Nonce, contents and tag of each."""
        size = self.piece or self.size
        for at in range(HEADER, len(self.data), size + OVERHEAD):
            piece = self.data[at : at + size + OVERHEAD]
            yield piece[:12], piece[12:-16], piece[-16:]

    def nonces(self):
        """All nonces under the key of the file."""
        return [self.data[100:112]] + [nonce for nonce, _, _ in self.pieces()]

    def contents(self):
        result = bytearray()
        for n, (nonce, data, tag) in enumerate(self.pieces()):
            aad = struct.pack("<QI", n, self.kind) if self.piece else self.data[:HEADER]
            result += decrypt(self.key, nonce, tag, aad, data)
        return bytes(result[: self.size])
