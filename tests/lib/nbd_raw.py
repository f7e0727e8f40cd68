# SPDX-License-Identifier: Apache-2.0
"""The NBD protocol by hand, for tests that a well-behaved client library can't make."""

import socket
import struct

IHAVEOPT = 0x49484156454F5054
REPLY_MAGIC = 0x0003E889045565A9
REQUEST_MAGIC = 0x25609513
SIMPLE_MAGIC = 0x67446698
CHUNK_MAGIC = 0x668E33EF
EXTENDED_REQUEST_MAGIC = 0x21E41C71
EXTENDED_CHUNK_MAGIC = 0x6E8A278C

EXPORT_NAME, ABORT, LIST, STARTTLS, INFO, GO, STRUCTURED, LIST_META, SET_META = (
    1, 2, 3, 5, 6, 7, 8, 9, 10)  # fmt: skip
EXTENDED_HEADERS = 11
ACK, SERVER, REP_INFO, META_CONTEXT = 1, 2, 3, 4
ERR_UNSUP, ERR_POLICY, ERR_INVALID, ERR_UNKNOWN, ERR_TOO_BIG = (
    0x80000001, 0x80000002, 0x80000003, 0x80000006, 0x80000009)  # fmt: skip
READ, WRITE, DISC, FLUSH, TRIM, CACHE, WRITE_ZEROES, BLOCK_STATUS = range(8)
EPERM, EIO, EINVAL, ENOSPC = 1, 5, 22, 28


def string(text):
    return struct.pack(">I", len(text)) + text


def go_data(name, *infos):
    return string(name) + struct.pack(f">H{len(infos)}H", len(infos), *infos)


def meta_data(name, *queries):
    return string(name) + struct.pack(">I", len(queries)) + b"".join(map(string, queries))


class RawClient:
    """A connection on which bytes are sent as the test wants them."""

    def __init__(self, path, flags=3, timeout=20):
        """path: of a unix socket, or a port of this machine."""
        is_port = isinstance(path, int)
        self.sock = socket.socket(socket.AF_INET if is_port else socket.AF_UNIX)
        self.sock.settimeout(timeout)
        self.sock.connect(("127.0.0.1", path) if is_port else path)
        self.structured = False
        self.extended = False  # 32-byte headers
        if flags is not None:
            self.hello = self.receive(18)
            self.send(struct.pack(">I", flags))

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.sock.close()

    def send(self, data):
        self.sock.sendall(data)

    def receive(self, size):
        data = bytearray()
        while len(data) < size:
            part = self.sock.recv(size - len(data))
            if not part:
                raise EOFError(f"the server closed after {len(data)} of {size} bytes")
            data += part
        return bytes(data)

    def is_closed(self):
        """Wait for the server to hang up; what it sends before is dropped."""
        try:
            while self.sock.recv(65536):
                pass
        except ConnectionResetError:
            pass
        return True

    # --- options

    def option(self, number, data=b"", length=None):
        length = len(data) if length is None else length
        self.send(struct.pack(">QII", IHAVEOPT, number, length) + data)

    def reply(self):
        """One answer to an option: (type, data)."""
        magic, _, kind, length = struct.unpack(">QIII", self.receive(20))
        assert magic == REPLY_MAGIC, hex(magic)
        return kind, self.receive(length)

    def ask(self, number, data=b""):
        """Send an option; all answers up to the last."""
        self.option(number, data)
        replies = [self.reply()]
        while replies[-1][0] in (SERVER, REP_INFO, META_CONTEXT):
            replies.append(self.reply())
        return replies

    def negotiate_structured(self):
        assert self.ask(STRUCTURED) == [(ACK, b"")]
        self.structured = True

    def negotiate_extended(self):
        assert self.ask(EXTENDED_HEADERS) == [(ACK, b"")]
        self.structured = self.extended = True

    def go(self, name=b"", structured=True, contexts=()):
        if structured and not self.extended:
            self.negotiate_structured()
        if contexts:
            assert self.ask(SET_META, meta_data(name, *contexts))[-1][0] == ACK
        replies = self.ask(GO, go_data(name))
        assert replies[-1][0] == ACK, replies
        return replies

    # --- requests

    def header(self, kind, offset, length, flags, cookie):
        form, magic = (
            (">IHHQQQ", EXTENDED_REQUEST_MAGIC) if self.extended else (">IHHQQI", REQUEST_MAGIC)
        )
        return struct.pack(form, magic, flags, kind, cookie, offset, length)

    def request(self, kind, offset=0, length=0, flags=0, cookie=1, payload=b""):
        self.send(self.header(kind, offset, length, flags, cookie) + payload)

    def request_often(self, count, kind, offset, length):
        """Requests with cookies from 0 on, in one piece: each piece takes much room of a socket."""
        self.send(b"".join(self.header(kind, offset, length, 0, n) for n in range(count)))

    def simple_reply(self):
        """(cookie, error) of a simple reply; data is left to the caller."""
        magic, error, cookie = struct.unpack(">IIQ", self.receive(16))
        assert magic == SIMPLE_MAGIC, hex(magic)
        return cookie, error

    def chunk(self):
        """(cookie, flags, type, payload)."""
        if self.extended:
            magic, flags, kind, cookie, self.chunk_offset, length = struct.unpack(
                ">IHHQQQ", self.receive(32)
            )
            assert magic == EXTENDED_CHUNK_MAGIC, hex(magic)
            return cookie, flags, kind, self.receive(length)
        magic, flags, kind, cookie, length = struct.unpack(">IHHQI", self.receive(20))
        assert magic == CHUNK_MAGIC, hex(magic)
        return cookie, flags, kind, self.receive(length)

    def chunks(self):
        """All chunks of one reply: [(type, payload)], the last one is DONE."""
        result = []
        while True:
            _, flags, kind, payload = self.chunk()
            result.append((kind, payload))
            if flags & 1:
                return result

    def error(self):
        """The error of a structured reply; 0 if there is none."""
        for kind, payload in self.chunks():
            if kind & 0x8000:
                return struct.unpack(">I", payload[:4])[0]
        return 0
