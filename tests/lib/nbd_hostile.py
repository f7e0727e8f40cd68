# SPDX-License-Identifier: Apache-2.0
"""An NBD server that lies, stalls or breaks off as a test wants, and the parts of its answers."""

import socket
import struct
import threading

from nbd_raw import (
    ACK, CHUNK_MAGIC, ERR_UNSUP, EXTENDED_CHUNK_MAGIC, EXTENDED_HEADERS, EXTENDED_REQUEST_MAGIC,
    FLUSH, GO, META_CONTEXT, READ, REPLY_MAGIC, SET_META, SIMPLE_MAGIC, STRUCTURED,
)  # fmt: skip

SIZE = 1 << 20


class Final(bytes):
    """An answer to an option after which the server hangs up."""


class Hostile:
    """A server for one client at a time that answers as `replies` says.

    info: what GO answers before its ACK; on_request(send, kind, cookie, offset, length).
    """

    def __init__(
        self, path, info=None, on_request=None, hello=None, structured=True, linger=0,
        context=None, on_option=None, extended=False,
    ):  # fmt: skip
        self.linger = linger  # seconds that it stays connected after the client's goodbye
        self.context = context  # id of base:allocation; None: there is none
        self.on_option = on_option  # makes the bytes of the answer to every option
        self.closed = threading.Event()
        self.info = info if info is not None else [export_info()]
        self.on_request = on_request
        self.hello = hello or b"NBDMAGICIHAVEOPT\0\3"
        self.structured = structured
        self.extended = extended
        self.flags_seen = []
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(path)
        self.listener.listen()
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def run(self):
        while True:
            try:
                sock, _ = self.listener.accept()
            except OSError:
                return
            with sock:
                try:
                    self.talk(sock)
                except (EOFError, OSError):
                    pass

    def talk(self, sock):
        def receive(size):
            data = b""
            while len(data) < size:
                part = sock.recv(size - len(data))
                if not part:
                    raise EOFError
                data += part
            return data

        sock.sendall(self.hello)
        if len(self.hello) < 16:
            return
        receive(4)
        while True:
            _, option, length = struct.unpack(">QII", receive(16))
            receive(length)
            if self.on_option:
                answer = self.on_option(option)
                sock.sendall(answer)
                if isinstance(answer, Final):
                    return
            elif option == EXTENDED_HEADERS and self.extended:
                sock.sendall(reply(option, ACK))
            elif option == STRUCTURED and self.structured:
                sock.sendall(reply(option, ACK))
            elif option == SET_META and self.context is not None:
                name = struct.pack(">I", self.context) + b"base:allocation"
                sock.sendall(reply(option, META_CONTEXT, name) + reply(option, ACK))
            elif option == GO:
                for kind, data in self.info:
                    sock.sendall(reply(option, kind, data))
                sock.sendall(reply(option, ACK))
                break
            else:
                sock.sendall(reply(option, ERR_UNSUP))
        while True:
            form = ">IHHQQQ" if self.extended else ">IHHQQI"
            magic, flags, kind, cookie, offset, length = struct.unpack(
                form, receive(struct.calcsize(form))
            )
            if self.extended and magic != EXTENDED_REQUEST_MAGIC:
                return
            self.flags_seen.append((kind, flags))
            if kind == 1:
                receive(length)
            if kind == 2:
                self.closed.wait(self.linger)
                return
            self.on_request(sock.sendall, kind, cookie, offset, length)

    def close(self):
        self.closed.set()
        self.listener.close()


def reply(option, kind, data=b"", length=None):
    length = len(data) if length is None else length
    return struct.pack(">QIII", REPLY_MAGIC, option, kind, length) + data


def export_info(size=SIZE, flags=1):
    return (3, struct.pack(">HQH", 0, size, flags))


def block_sizes(minimum, preferred, maximum):
    return (3, struct.pack(">HIII", 3, minimum, preferred, maximum))


def chunk(cookie, kind, payload, flags=1, length=None):
    length = len(payload) if length is None else length
    return struct.pack(">IHHQI", CHUNK_MAGIC, flags, kind, cookie, length) + payload


def extended_chunk(cookie, kind, payload, flags=1, length=None, offset=4096):
    length = len(payload) if length is None else length
    head = struct.pack(">IHHQQQ", EXTENDED_CHUNK_MAGIC, flags, kind, cookie, offset, length)
    return head + payload


class HeldFlush:
    """Answers of a server for Hostile: it does not answer the first flush, or every one, before
    `end` is set.
    """

    def __init__(self, every=False):
        self.every = every
        self.begun, self.end = threading.Event(), threading.Event()

    def answer(self, send, kind, cookie, offset, length):
        reply = struct.pack(">IIQ", SIMPLE_MAGIC, 0, cookie)
        if kind != FLUSH or (self.begun.is_set() and not self.every):
            send(reply + (bytes(length) if kind == READ else b""))
            return
        self.begun.set()

        def answer_late():
            self.end.wait()
            send(reply)

        threading.Thread(target=answer_late, daemon=True).start()
