# SPDX-License-Identifier: Apache-2.0
"""A web server with one file, which can misbehave."""

import base64
import http.server
import re
import socket
import ssl
import threading
import time
import urllib.parse


class QuietServer(http.server.ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def handle_error(self, request, client_address):
        """A client that goes away is no error of the test."""


def basic(user):
    return "Basic " + base64.b64encode(user.encode()).decode()


class HttpServer:
    """Serves `content` at /disk. Attributes change what it does, at any time:

    ranges      whether it obeys the header Range
    misbehave   a function of the number of a request of data, its first byte and the handler that
                is called before the answer; True: it has answered
    user        "name:password" that is asked for
    cookie      the header Cookie that is asked for
    redirect    /moved redirects to this URL
    tag         ETag
    modified    Last-Modified
    encoding    Content-Encoding
    range_max   bytes that it sends for a range at most
    proxy_user  "name:password" that is asked for as a proxy, for which it answers by itself

    files       contents of other paths

    `requests` are (first, last) of the requests that it has answered with data.
    """

    def __init__(self, content, tls=None):
        self.content = content
        self.ranges = True
        self.misbehave = None
        self.user = self.cookie = self.redirect = self.tag = self.proxy_user = None
        self.modified = self.encoding = self.range_max = None
        self.requests = []
        self.connections = 0
        self.count = 0
        self.files = {}
        owner = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self):
                super().setup()
                owner.connections += 1

            def log_message(self, *unused):
                pass

            def do_HEAD(self):
                owner.answer(self, head=True)

            def do_GET(self):
                owner.answer(self)

        self.server = QuietServer(("127.0.0.1", 0), Handler)
        self.scheme = "http"
        if tls:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*tls)
            self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
            self.scheme = "https"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def url(self, path="/disk"):
        return f"{self.scheme}://127.0.0.1:{self.server.server_address[1]}{path}"

    def stop(self):
        self.server.shutdown()
        self.server.server_close()

    def fail(self, handler, status, **headers):
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    def is_allowed(self, handler):
        if self.proxy_user and handler.headers.get("Proxy-Authorization") != basic(
            self.proxy_user
        ):
            self.fail(handler, 407, Proxy_Authenticate='Basic realm="proxy"')
            return False
        if self.user and handler.headers.get("Authorization") != basic(self.user):
            self.fail(handler, 401, WWW_Authenticate='Basic realm="disks"')
            return False
        if self.cookie and handler.headers.get("Cookie") != self.cookie:
            self.fail(handler, 403)
            return False
        return True

    def answer(self, handler, head=False):
        path = urllib.parse.urlsplit(handler.path).path
        if path == "/moved" and self.redirect:
            self.fail(handler, 302, Location=self.redirect)
        elif path != "/disk" and path not in self.files:
            self.fail(handler, 404)
        elif self.is_allowed(handler):
            self.send(handler, self.files.get(path, self.content), head)

    def send(self, handler, content, head):
        size = len(content)
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", handler.headers.get("Range", ""))
        first, last = 0, size - 1
        if self.ranges and wanted:
            first = int(wanted[1])
            last = min(int(wanted[2]) if wanted[2] else size - 1, size - 1)
            last = min(last, first + self.range_max - 1) if self.range_max else last
        if not head:
            self.count += 1
            if self.misbehave and self.misbehave(self.count, first, handler):
                return
        if self.ranges and wanted and first >= size:
            self.fail(handler, 416, Content_Range=f"bytes */{size}")
            return
        handler.send_response(206 if self.ranges and wanted else 200)
        if self.ranges:
            handler.send_header("Accept-Ranges", "bytes")
            if wanted:
                handler.send_header("Content-Range", f"bytes {first}-{last}/{size}")
        for name, value in (
            ("ETag", self.tag),
            ("Last-Modified", self.modified),
            ("Content-Encoding", self.encoding),
        ):
            if value:
                handler.send_header(name, value)
        handler.send_header("Content-Length", str(last + 1 - first))
        handler.end_headers()
        if not head:
            self.requests.append((first, last))
            handler.wfile.write(content[first : last + 1])


class Http2Server:
    """Serves `content` over HTTP/2, to a client that reads it from its beginning, in one request
    for each piece; the first `resets` requests of data are reset instead. It knows a request by its
    number alone, for headers are compressed."""

    FRAME_HEADERS, FRAME_RESET, FRAME_SETTINGS = 1, 3, 4

    def __init__(self, content, tls, resets):
        self.content = content
        self.resets = resets
        self.reset_count = 0
        self.opened = False
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*tls)
        context.set_alpn_protocols(["h2"])
        self.socket = context.wrap_socket(socket.create_server(("127.0.0.1", 0)), server_side=True)
        threading.Thread(target=self.accept, daemon=True).start()

    def url(self):
        return f"https://127.0.0.1:{self.socket.getsockname()[1]}/disk"

    def accept(self):
        while True:
            try:
                connection, _ = self.socket.accept()
            except OSError:
                return
            threading.Thread(target=self.talk, args=(connection,), daemon=True).start()

    def talk(self, connection):
        with connection, connection.makefile("rb") as stream:
            stream.read(24)  # the preface
            self.send(connection, self.FRAME_SETTINGS, 0, 0, b"")
            while head := stream.read(9):
                kind, flags, number = head[3], head[4], int.from_bytes(head[5:9], "big")
                stream.read(int.from_bytes(head[:3], "big"))
                if kind == self.FRAME_SETTINGS and not flags & 1:
                    self.send(connection, kind, 1, 0, b"")
                elif kind == self.FRAME_HEADERS:
                    self.answer(connection, number)

    def answer(self, connection, number):
        size = len(self.content)
        last = size - 1 if self.opened else 0
        if self.opened and self.reset_count < self.resets:
            self.reset_count += 1
            self.send(connection, self.FRAME_RESET, 0, number, (2).to_bytes(4, "big"))
            return
        self.opened = True
        name, value = b"content-range", f"bytes 0-{last}/{size}".encode()
        status = b"\x8a"  # 206, in the static table of RFC 7541
        header = b"\0" + bytes([len(name)]) + name + bytes([len(value)]) + value
        self.send(connection, self.FRAME_HEADERS, 4, number, status + header)
        for at in range(0, last + 1, 16384):
            piece = self.content[at : min(at + 16384, last + 1)]
            self.send(connection, 0, at + len(piece) > last, number, piece)

    @staticmethod
    def send(connection, kind, flags, number, payload):
        head = len(payload).to_bytes(3, "big") + bytes([kind, flags]) + number.to_bytes(4, "big")
        connection.sendall(head + payload)

    def stop(self):
        self.socket.close()


def respond(handler, first, last, size, body, status=206):
    """Promise bytes first to last of a file of `size` bytes, send `body`, and close."""
    handler.send_response(status)
    handler.send_header("Content-Range", f"bytes {first}-{last}/{size}")
    handler.send_header("Content-Length", str(last + 1 - first))
    handler.end_headers()
    handler.wfile.write(body)
    handler.wfile.flush()
    return hang_up(handler)


def hang_up(handler):
    handler.close_connection = True
    try:
        handler.connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass  # the client was faster
    return True


def hang(seconds=60):
    time.sleep(seconds)
    return True
