# SPDX-License-Identifier: Apache-2.0
"""Chardevs: sockets that listen, connect and connect again, TLS, files, pipes, terminals, ring
buffers, and the commands about them."""

import base64
import json
import os
import select
import socket
import ssl
import tempfile
import time

import tidemark
from qmp import Qmp, QmpError
from tls_creds import Authority, x509


class ChardevTest(tidemark.TestCase):
    def start(self, *arguments, name="daemon", **more):
        """A daemon with these options, and with a monitor of its own."""
        server = self.daemon(*arguments, name=name, **more)
        self.qmp = server.qmp
        return server

    def start_with(self, chardev, *arguments, monitor="pretty=off", **more):
        options = (*arguments, "--chardev", chardev, "--monitor", f"chardev=c,{monitor}")
        return self.start(*options, **more)

    def refused(self, wanted, command, **arguments):
        with self.assertRaises(QmpError) as caught:
            self.qmp.command(command, **arguments)
        self.assertEqual(caught.exception.desc, wanted)

    def filenames(self):
        return {c["label"]: c["filename"] for c in self.qmp.command("query-chardev")}

    def listen(self, path):
        sock = socket.socket(socket.AF_UNIX)
        self.addCleanup(sock.close)
        sock.bind(path)
        sock.listen()
        sock.settimeout(20)
        return sock

    def accept(self, listener):
        sock = listener.accept()[0]
        self.addCleanup(sock.close)
        return Qmp(sock)


class ClientTest(ChardevTest):
    def test_it_connects(self):
        path = self.path("manager")
        listener = self.listen(path)
        server = self.start_with(f"socket,id=c,path={path}")
        with self.accept(listener) as client:
            self.assertIn("qemu", client.command("query-version"))
            self.assertEqual(self.filenames()["c"], f"unix:{path}")
        tidemark.wait_until(lambda: self.filenames()["c"] == f"disconnected:unix:{path}", "the end")
        listener.settimeout(0.2)
        with self.assertRaises(socket.timeout):
            listener.accept()
        server.stop()
        self.assertTrue(os.path.exists(path))

    def test_nobody_listens(self):
        result = tidemark.run(
            *tidemark.tool("daemon"), "--chardev", f"socket,id=c,path={self.path('none')}", check=False
        )
        self.assertEqual(result.returncode, 1)
        self.assertIn(
            f"Failed to connect to '{self.path('none')}': No such file or directory", result.stderr
        )

    def test_it_connects_again(self):
        path = self.path("manager")
        for name, option in ("ms", "reconnect-ms=50"), ("seconds", "reconnect=1"):
            with self.subTest(option):
                server = self.start_with(f"socket,id=c,path={path},{option}", name=name)
                self.assertEqual(self.filenames()["c"], f"disconnected:unix:{path}")
                message = "Unable to connect character device c: "
                tidemark.wait_until(lambda: message in server.log(), "the first attempt")
                for _ in range(2):
                    listener = self.listen(path)
                    with self.accept(listener) as client:
                        self.assertIn("qemu", client.command("query-version"))
                    listener.close()
                    os.unlink(path)
                server.stop()

    def test_it_ends_while_it_waits_to_connect(self):
        server = self.start_with(f"socket,id=c,path={self.path('none')},reconnect=100")
        began = time.monotonic()
        server.stop()
        self.assertLess(time.monotonic() - began, 5)

    def test_tcp(self):
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
            self.start_with(f"socket,id=c,host=127.0.0.1,port={port},nodelay=on")
            with self.accept(listener) as client:
                self.assertIn("qemu", client.command("query-version"))
                own = client.sock.getpeername()[1]
                self.assertEqual(
                    self.filenames()["c"], f"tcp:127.0.0.1:{own} <-> 127.0.0.1:{port}"
                )

    def test_a_connection_that_was_inherited(self):
        ours, theirs = socket.socketpair()
        self.addCleanup(ours.close)
        with theirs:
            self.start_with(f"socket,id=c,fd={theirs.fileno()}", pass_fds=[theirs.fileno()])
        with Qmp(ours) as client:
            self.assertIn("qemu", client.command("query-version"))


class ServerTest(ChardevTest):
    def test_abstract_names(self):
        name = f"tidemark-chardev-{os.getpid()}"
        self.start_with(f"socket,id=c,path={name},abstract=on,server=on,wait=off")
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect("\0" + name)
            with Qmp(sock) as client:
                self.assertIn("qemu", client.command("query-version"))
        self.assertIn(f"unix:{name},abstract=on,tight=on,server=on", self.filenames()["c"])

    def test_ports(self):
        with socket.create_server(("127.0.0.1", 0)) as busy:
            port = busy.getsockname()[1]
            last = min(port + 50, 65535)
            self.start_with(
                f"socket,id=c,host=127.0.0.1,port={port},to={last},ipv4=on,server=on,wait=off"
            )
        shown = self.filenames()["c"]
        self.assertRegex(shown, r"^disconnected:tcp:127\.0\.0\.1:\d+,server=on$")
        self.assertNotIn(f":{port},", shown)
        with socket.create_connection(("127.0.0.1", int(shown.split(":")[3].split(",")[0]))) as sock:
            with Qmp(sock) as client:
                self.assertIn("qemu", client.command("query-version"))
                own = sock.getsockname()
                self.assertEqual(
                    self.filenames()["c"],
                    shown.removeprefix("disconnected:") + f" <-> {own[0]}:{own[1]}",
                )

    def test_what_is_sent_is_recorded(self):
        path, log = self.path("c.sock"), self.path("log")
        for append, name in ("off", "one"), ("on", "two"):
            server = self.start_with(
                f"socket,id=c,path={path},server=on,wait=off,logfile={log},logappend={append}",
                name=name,
            )
            with Qmp(path) as client:
                self.assertIn("qemu", client.command("query-version"))
            server.stop()
        with open(log, encoding="ascii") as lines:
            messages = [json.loads(line) for line in lines]
        self.assertEqual([next(iter(m)) for m in messages], ["QMP", "return", "return"] * 2)


class TlsTest(ChardevTest):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory(prefix="tm-tls-")
        cls.addClassCleanup(cls.folder.cleanup)
        cls.ca = Authority(cls.folder.name, "ca")
        cls.server_creds = cls.ca.make("server", "server")
        cls.client_creds = cls.ca.make("client", "client")
        cls.other_creds = cls.ca.make("client2", "client")

    def setUp(self):
        super().setUp()
        self.sock_path = self.path("c.sock")

    def context(self, creds=None, server=False):
        creds = creds or (self.server_creds if server else self.client_creds)
        context = ssl.create_default_context(
            ssl.Purpose.CLIENT_AUTH if server else ssl.Purpose.SERVER_AUTH, cafile=self.ca.cert
        )
        kind = "server" if server else "client"
        context.load_cert_chain(
            os.path.join(creds, f"{kind}-cert.pem"), os.path.join(creds, f"{kind}-key.pem")
        )
        return context

    def serve(self, more="", *objects):
        return self.start_with(
            f"socket,id=c,path={self.sock_path},server=on,wait=off,tls-creds=tls0{more}",
            "--object", x509("server", self.server_creds), *objects,
        )  # fmt: skip

    def connect(self, creds=None):
        sock = socket.socket(socket.AF_UNIX)
        self.addCleanup(sock.close)
        sock.settimeout(20)
        sock.connect(self.sock_path)
        return Qmp(self.context(creds).wrap_socket(sock, server_hostname="disk.example"))

    def test_a_monitor_in_tls(self):
        server = self.serve()
        clients = [self.connect() for _ in range(3)]
        for client in clients:
            text = "x" * 200_000
            self.assertEqual(client.execute("query-block-exports", id=text)["id"], text)
        clients[0].close()
        self.assertIn("qemu", clients[1].command("query-version"))
        server.stop()

    def test_who_is_allowed(self):
        server = self.serve(
            ",tls-authz=a", "--object", "authz-simple,id=a,identity=O=Tests,,CN=client"
        )
        identities = []
        for creds, allowed in (self.client_creds, True), (self.other_creds, False):
            try:
                with self.connect(creds) as client:
                    client.command("query-version")
                identities.append(True)
            except (OSError, EOFError):
                identities.append(False)
            self.assertEqual(identities[-1], allowed, server.log())

    def test_an_authorization_that_is_not_there_allows_nobody(self):
        self.serve(",tls-authz=later")
        with self.assertRaises((OSError, EOFError)):
            self.connect()
        self.qmp.command(
            "object-add", qom_type="authz-simple", id="later", identity="O=Tests,CN=client"
        )
        with self.connect() as client:
            self.assertIn("qemu", client.command("query-version"))

    def test_clients_without_tls_get_no_greeting_and_block_nobody(self):
        self.serve()
        silent = socket.socket(socket.AF_UNIX)
        self.addCleanup(silent.close)
        silent.connect(self.sock_path)
        with socket.socket(socket.AF_UNIX) as plain:
            plain.settimeout(20)
            plain.connect(self.sock_path)
            plain.sendall(b'{"execute": "qmp_capabilities"}\n' * 10)
            data = b""
            try:
                while chunk := plain.recv(4096):
                    data += chunk
            except ConnectionError:
                pass
            self.assertNotIn(b"QMP", data)
        with self.connect() as client:
            self.assertIn("qemu", client.command("query-version"))
        self.assertEqual(select.select([silent], [], [], 0.1)[0], [])

    def test_it_connects_in_tls(self):
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
            self.start_with(
                f"socket,id=c,host=127.0.0.1,port={port},tls-creds=tls0,reconnect-ms=50",
                "--object", x509("client", self.client_creds),
            )  # fmt: skip
            listener.settimeout(20)
            for _ in range(2):
                sock = listener.accept()[0]
                with Qmp(self.context(server=True).wrap_socket(sock, server_side=True)) as client:
                    self.assertIn("qemu", client.command("query-version"))

    def test_options_that_exclude_each_other(self):
        self.start("--object", x509("server", self.server_creds))
        address = {"type": "unix", "data": {"path": self.sock_path}}
        for wanted, more in (
            ("No TLS credentials with id 'nope'", {"tls-creds": "nope"}),
            ("'tls_authz' option requires 'tls_creds' option", {"tls-authz": "nope"}),
        ):
            self.refused(
                f"Failed to add chardev 'x': {wanted}",
                "chardev-add",
                id="x",
                backend={"type": "socket", "data": {"addr": address, **more}},
            )


class OtherTypesTest(ChardevTest):
    def test_null(self):
        server = self.start_with("null,id=c")
        self.assertEqual(self.filenames()["c"], "null")
        server.stop()

    def test_file(self):
        commands = self.path("in")
        with open(commands, "w", encoding="ascii") as f:
            f.write('{"execute": "qmp_capabilities"}\n{"execute": "query-version"}\n')
        server = self.start_with(f"file,id=c,path={self.path('out')},input-path={commands}")

        def lines():
            with open(self.path("out"), encoding="ascii") as f:
                return f.read().splitlines()

        tidemark.wait_until(lambda: len(lines()) == 3, "three messages")
        self.assertIn("qemu", json.loads(lines()[2])["return"])
        server.stop()

    def test_pipe(self):
        for name in "p.in", "p.out":
            os.mkfifo(self.path(name))
        server = self.start_with(f"pipe,id=c,path={self.path('p')}")
        with open(self.path("p.out"), encoding="ascii") as output:
            self.assertIn("QMP", json.loads(output.readline()))
            with open(self.path("p.in"), "w", encoding="ascii") as commands:
                commands.write('{"execute": "qmp_capabilities"}\n')
            self.assertEqual(json.loads(output.readline()), {"return": {}})
        server.stop()

    def test_a_terminal_is_opened_again_and_again(self):
        link = self.path("tty")
        server = self.start_with(f"pty,id=c,path={link}")
        self.assertEqual(self.filenames()["c"], "pty:" + os.readlink(link))
        said = f"char device redirected to {os.readlink(link)} (label c)"
        self.assertIn(said, server.log().splitlines())
        for _ in range(2):
            fd = os.open(link, os.O_RDWR | os.O_NOCTTY)
            with open(fd, "r+b", buffering=0) as tty:
                self.assertIn(b'"QMP"', self.read_line(tty))
                tty.write(b'{"execute": "qmp_capabilities"}\n')
                self.assertEqual(json.loads(self.read_line(tty)), {"return": {}})
            time.sleep(0.3)
        server.stop()
        self.assertFalse(os.path.islink(link))

    def read_line(self, tty):
        line = b""
        while not line.endswith(b"\n"):
            self.assertTrue(select.select([tty], [], [], 20)[0], "the terminal says nothing")
            line += os.read(tty.fileno(), 1)
        return line

    def test_a_ring_buffer_has_what_was_sent(self):
        self.start_with("ringbuf,id=c,size=4096")
        text = tidemark.wait_until(
            lambda: self.qmp.command("ringbuf-read", device="c", size=1000), "the greeting"
        )
        self.assertIn("QMP", json.loads(text))


class CommandTest(ChardevTest):
    def setUp(self):
        super().setUp()
        self.start()

    def add(self, id_, kind, command="chardev-add", **data):
        data = {key.replace("_", "-"): value for key, value in data.items()}
        return self.qmp.command(command, id=id_, backend={"type": kind, "data": data})

    def unix(self, path):
        return {"type": "unix", "data": {"path": path}}

    def test_adding_and_removing(self):
        path = self.path("new.sock")
        self.assertEqual(self.add("n", "null"), {})
        self.assertEqual(self.add("s", "socket", addr=self.unix(path)), {})
        pty = self.add("p", "pty")["pty"]
        self.assertTrue(os.path.exists(pty))
        shown = self.filenames()
        self.assertEqual(shown["n"], "null")
        self.assertEqual(shown["s"], f"disconnected:unix:{path},server=on")
        self.assertEqual(shown["p"], "pty:" + pty)
        self.assertTrue(os.path.exists(path))
        for name in "n", "s", "p":
            self.qmp.command("chardev-remove", id=name)
        self.assertFalse(os.path.exists(path))
        self.assertEqual(list(self.filenames()), ["qmp-daemon"])

    def test_refusals(self):
        def refused(wanted, *arguments, **data):
            with self.assertRaises(QmpError) as caught:
                self.add(*arguments, **data)
            self.assertEqual(caught.exception.desc, wanted)

        none = self.path("none")
        refused("Chardev with id 'qmp-daemon' already exists", "qmp-daemon", "null")
        refused(
            "Failed to add chardev 'r': size of ringbuf chardev must be power of two",
            "r", "ringbuf", size=100,
        )  # fmt: skip
        refused(
            f"Failed to add chardev 'c': Failed to connect to '{none}': No such file or directory",
            "c", "socket", addr=self.unix(none), server=False,
        )  # fmt: skip
        refused(
            "Failed to add chardev 'c': 'reconnect' option is incompatible with socket in server "
            "listen mode",
            "c", "socket", addr=self.unix(none), reconnect=1,
        )  # fmt: skip
        refused(
            f"Failed to add chardev 'p': Could not open '{none}': No such file or directory",
            "p", "pipe", device=none,
        )  # fmt: skip
        refused(
            "Failed to add chardev 't': chardev: socket: 'telnet' is not supported",
            "t", "socket", addr=self.unix(none), telnet=True,
        )  # fmt: skip
        refused("Chardev 'x' does not exist", "x", "null", "chardev-change")
        refused(
            "Chardev user does not support chardev hotswap", "qmp-daemon", "null", "chardev-change"
        )
        self.refused("Chardev 'qmp-daemon' is busy", "chardev-remove", id="qmp-daemon")
        self.refused("Chardev 'x' not found", "chardev-remove", id="x")
        self.refused("Chardev 'x' not found", "chardev-send-break", id="x")
        self.assertEqual(self.qmp.command("chardev-send-break", id="qmp-daemon"), {})
        self.assertEqual(list(self.filenames()), ["qmp-daemon"])

    def test_changing(self):
        self.add("c", "null")
        self.add("c", "ringbuf", "chardev-change", size=64)
        self.assertEqual(self.filenames()["c"], "ringbuf")

    def test_the_types_are_listed(self):
        names = {b["name"] for b in self.qmp.command("query-chardev-backends")}
        self.assertEqual(
            names, {"file", "memory", "null", "pipe", "pty", "ringbuf", "socket", "stdio"}
        )

    def test_ring_buffers(self):
        self.refused("Device 'r' not found", "ringbuf-read", device="r", size=1)
        self.refused(
            "qmp-daemon is not a ringbuf device", "ringbuf-write", device="qmp-daemon", data="x"
        )
        self.add("r", "ringbuf", size=8)
        self.qmp.command("ringbuf-write", device="r", data="abc")
        self.refused(
            "Base64 data contains invalid characters",
            "ringbuf-write", device="r", data="!!", format="base64",
        )  # fmt: skip
        data = base64.b64encode(b"defghij").decode()
        self.qmp.command("ringbuf-write", device="r", data=data, format="base64")
        self.refused("size must be greater than zero", "ringbuf-read", device="r", size=0)
        self.assertEqual(self.qmp.command("ringbuf-read", device="r", size=4), "cdef")
        self.assertEqual(
            self.qmp.command("ringbuf-read", device="r", size=400, format="base64"),
            base64.b64encode(b"ghij").decode(),
        )
        self.assertEqual(self.qmp.command("ringbuf-read", device="r", size=400), "")
        data = base64.b64encode(b"\xff\0a").decode()
        self.qmp.command("ringbuf-write", device="r", data=data, format="base64")
        self.assertEqual(self.qmp.command("ringbuf-read", device="r", size=4), "\ufffd\0a")

    def test_connecting_blocks_no_other_monitor(self):
        """A server whose queue of connections is full does not answer."""
        path = self.path("full")
        listener = self.listen(path)
        listener.listen(0)
        waiting = [socket.socket(socket.AF_UNIX) for _ in range(3)]
        for sock in waiting:
            self.addCleanup(sock.close)
            sock.setblocking(False)
            try:
                sock.connect(path)
            except BlockingIOError:
                break
        message = {
            "execute": "chardev-add",
            "arguments": {
                "id": "c",
                "backend": {"type": "socket", "data": {"addr": self.unix(path), "server": False}},
            },
        }
        self.qmp.send_raw(json.dumps(message))
        with tidemark.wait_until(lambda: self.processes[0].connect(), "a second monitor") as other:
            for _ in range(3):
                self.assertIn("qemu", other.command("query-version"))
            with self.assertRaises(QmpError) as caught:
                other.command("chardev-remove", id="c")
            self.assertEqual(caught.exception.desc, "Chardev 'c' is busy")
        accepted = [listener.accept()[0] for _ in range(2)]
        self.assertEqual(self.qmp.receive_answer(), {"return": {}})
        for sock in accepted:
            sock.close()

    def test_without_its_log_nothing_else_is_closed(self):
        opened = f"/proc/{self.processes[0].pid}/fd/0"
        before = os.readlink(opened)
        for kind, data in (
            ("file", {"out": self.path("out")}),
            ("socket", {"addr": self.unix(self.path("new.sock"))}),
            ("pty", {}),
        ):
            with self.assertRaises(QmpError):
                self.add("c", kind, logfile=self.path("none/log"), **data)
            self.assertEqual(os.readlink(opened), before)
        self.assertFalse(os.path.exists(self.path("new.sock")))

    def test_one_whose_log_hangs_can_be_used(self):
        os.mkfifo(self.path("log"))
        backend = {"type": "ringbuf", "data": {"logfile": self.path("log")}}
        message = {"execute": "chardev-add", "arguments": {"id": "r", "backend": backend}}
        self.qmp.send_raw(json.dumps(message))
        with tidemark.wait_until(lambda: self.processes[0].connect(), "a second monitor") as other:
            tidemark.wait_until(
                lambda: any(c["label"] == "r" for c in other.command("query-chardev")), "the chardev"
            )
            other.command("ringbuf-write", device="r", data="abc")
            self.assertEqual(other.command("ringbuf-read", device="r", size=4), "abc")
        with open(self.path("log"), encoding="ascii"):
            self.assertEqual(self.qmp.receive_answer(), {"return": {}})
