# SPDX-License-Identifier: Apache-2.0
"""yank: a connection that hangs is cut, and who waits for it is answered."""

import contextlib
import json
import signal
import socket
import subprocess
import threading

import tidemark
from qmp import Qmp


class Yank(tidemark.TestCase):
    def setUp(self):
        super().setUp()
        image, self.sock = self.create("disk.raw", "1M", "raw"), self.path("disk.sock")
        self.storage = self.daemon(
            "--blockdev", f"driver=file,node-name=disk,filename={image}",
            "--nbd-server", f"addr.type=unix,addr.path={self.sock}",
            "--export", "nbd,id=e,node-name=disk,writable=on",
            name="storage",
        )  # fmt: skip
        self.server = self.daemon()
        self.qmp = self.server.qmp
        self.addCleanup(self.storage.process.send_signal, signal.SIGCONT)

    def add(self, **options):
        server = {"type": "unix", "path": self.sock}
        self.qmp.command(
            "blockdev-add", driver="nbd", node_name="n", export="disk", server=server, **options
        )
        self.qmp.command("blockdev-add", driver="raw", node_name="above", file="n")

    def yank(self, qmp=None, kind="execute", **instance):
        message = {kind: "yank", "arguments": {"instances": [instance]}}
        qmp = qmp or self.qmp
        qmp.send_raw(json.dumps(message) + "\n")
        return qmp.receive_answer()

    def assert_unanswered(self, monitor):
        monitor.sock.settimeout(0.2)
        self.assertRaises(TimeoutError, monitor.receive_answer)
        monitor.sock.settimeout(20)

    def test_it_lists_what_it_can_cut(self):
        self.add()
        self.qmp.command("chardev-add", id="null", backend={"type": "null", "data": {}})
        self.assertEqual(
            self.qmp.command("query-yank"),
            [{"type": "block-node", "node-name": "n"}, {"type": "chardev", "id": "qmp-daemon"}],
        )

    def test_all_or_nothing(self):
        self.add()
        good = {"type": "block-node", "node-name": "n"}
        for bad in (
            {"type": "block-node", "node-name": "above"},
            {"type": "block-node", "node-name": "qmp-daemon"},
            {"type": "chardev", "id": "n"},
        ):
            answer = self.qmp.execute("yank", {"instances": [good, bad]})
            expected = {"class": "DeviceNotFound", "desc": "Instance not found"}
            self.assertEqual(answer["error"], expected)
        self.assertIn("return", self.qmp.execute("yank", {"instances": []}))
        self.write(expect=0)

    def export(self):
        path = self.path("nbd.sock")
        self.qmp.command("nbd-server-start", addr={"type": "unix", "data": {"path": path}})
        self.qmp.command("block-export-add", type="nbd", id="e", node_name="above", writable=True)
        return tidemark.nbd_uri(path, "above")

    def write(self, expect):
        command = ["-f", "raw", "-c", "write 0 4k", self.export()]
        done = subprocess.run([*tidemark.tool("io"), *command], timeout=60, capture_output=True)
        self.assertEqual(done.returncode, expect, done)

    def check_guest_is_released(self, **options):
        self.add(**options)
        command = ["-f", "raw", "-c", "write 0 4k", self.export()]
        tidemark.freeze(self.storage.process.pid)
        with subprocess.Popen([*tidemark.tool("io"), *command], stderr=subprocess.PIPE) as guest:
            tidemark.wait_until(
                lambda: self.figure("requests_in_flight"), "the request is on its way"
            )
            self.assertIsNone(guest.poll())
            self.assertIn("return", self.yank(**{"type": "block-node", "node-name": "n"}))
            self.assertIn(b"Input/output error", guest.communicate(timeout=60)[1])
        # For good, though the server answers again.
        self.storage.process.send_signal(signal.SIGCONT)
        with self.server.connect() as other:
            self.assertIn("return", self.yank(other, **{"type": "block-node", "node-name": "n"}))
        done = subprocess.run([*tidemark.tool("io"), *command], timeout=60, capture_output=True)
        self.assertEqual(done.returncode, 1, done)
        self.assertEqual(self.server.log().count("the connection is cut by command"), 1)
        self.qmp.command("block-export-del", id="e")
        tidemark.wait_until(lambda: not self.qmp.command("query-block-exports"), "no export")
        self.qmp.command("blockdev-del", node_name="above")
        self.qmp.command("blockdev-del", node_name="n")

    def figure(self, name):
        answer = self.qmp.command("x-tidemark-query-stats", target="node")
        return any(
            entry["labels"].get("node") == "n" and entry["stats"].get(name.replace("_", "-"))
            for entry in answer
        )

    def test_a_guest_is_released(self):
        self.check_guest_is_released()

    def test_a_guest_is_released_whose_connection_would_be_restored(self):
        self.check_guest_is_released(**{"reconnect-delay": 3600})

    def test_a_lost_connection_is_not_restored(self):
        """A guest waits for that, until it is cut."""
        self.add(**{"reconnect-delay": 3600})
        command = ["-f", "raw", "-c", "write 0 4k", self.export()]
        self.storage.process.kill()
        with subprocess.Popen([*tidemark.tool("io"), *command], stderr=subprocess.PIPE) as guest:
            tidemark.wait_until(
                lambda: self.figure("requests_in_flight"), "the request is on its way"
            )
            self.assertIsNone(guest.poll())
            self.assertIn("return", self.yank(**{"type": "block-node", "node-name": "n"}))
            self.assertIn(b"Input/output error", guest.communicate(timeout=60)[1])
        self.assertEqual(self.server.log().count("the connection is cut by command"), 1)
        self.server.stop(expect=1)  # what was never flushed

    def test_a_guest_is_released_while_the_host_of_the_server_does_not_answer(self):
        with socket.create_server(("127.0.0.1", 0), backlog=0) as listener:
            host, port = listener.getsockname()
            relay = threading.Thread(target=self.relay, args=(listener,))
            relay.start()
            server = {"type": "inet", "host": host, "port": f"{port}"}
            self.qmp.command("blockdev-add", driver="nbd", node_name="n", export="disk",
                             server=server, reconnect_delay=3600)  # fmt: skip
            self.qmp.command("blockdev-add", driver="raw", node_name="above", file="n")
            command = ["-f", "raw", "-c", "write 0 4k", self.export()]
            # One connection fills the queue, and the kernel takes no notice of others.
            with socket.create_connection((host, port)):
                self.storage.kill()
                relay.join()
                with subprocess.Popen([*tidemark.tool("io"), *command],
                                      stderr=subprocess.PIPE) as guest:  # fmt: skip
                    tidemark.wait_until(lambda: self.connects_to(port), "an attempt to connect")
                    self.assertIsNone(guest.poll())
                    self.assertIn("return", self.yank(**{"type": "block-node", "node-name": "n"}))
                    self.assertIn(b"Input/output error", guest.communicate(timeout=15)[1])
        self.server.kill()

    def relay(self, listener):
        """One client of the listener talks to the server until that ends."""
        with listener.accept()[0] as client, socket.socket(socket.AF_UNIX) as server:
            server.connect(self.sock)
            back = threading.Thread(target=self.copy, args=(client, server))
            back.start()
            self.copy(server, client)
            client.shutdown(socket.SHUT_RDWR)
            back.join()

    @staticmethod
    def copy(source, sink):
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)

    def connects_to(self, port):
        with open("/proc/net/tcp", encoding="ascii") as table:
            rows = [line.split()[2:4] for line in table]
        return [f"0100007F:{port:04X}", "02"] in rows

    def test_several_connections_are_cut(self):
        self.check_guest_is_released(**{"x-connections": 4})

    def test_a_command_that_waits_is_answered(self):
        """By another monitor, and out of band by its own."""
        for kind in "execute", "exec-oob":
            with self.subTest(kind), self.server.connect(negotiate=False) as waiting:
                waiting.execute("qmp_capabilities", {"enable": ["oob"]})
                self.storage.process.send_signal(signal.SIGCONT)
                self.add()
                tidemark.freeze(self.storage.process.pid)
                options = {"driver": "qcow2", "node-name": "q", "file": "n"}
                waiting.send_raw(json.dumps({"execute": "blockdev-add", "arguments": options}))
                self.assert_unanswered(waiting)
                instance = {"type": "block-node", "node-name": "n"}
                if kind == "execute":
                    self.assertIn("return", self.yank(**instance))
                else:
                    self.assertIn("return", self.yank(waiting, kind, **instance))
                self.assertIn("error", waiting.receive_answer())
                for name in "above", "n":
                    self.qmp.command("blockdev-del", node_name=name)

    def test_clients_of_a_chardev_are_cut(self):
        path = self.path("c")
        addr = {"type": "unix", "data": {"path": path}}
        log = self.path("c.log")
        with Qmp(self.server.qmp_path) as first, self.server.connect() as second:
            first.send_raw('{"execute": "yank", "arguments": {"instances": '
                           '[{"type": "chardev", "id": "qmp-daemon"}]}}\n')  # fmt: skip
            for monitor in first, second, self.qmp:
                with self.assertRaises((EOFError, ConnectionError)):
                    while True:
                        monitor.receive()
        with self.server.connect() as again:
            again.command("chardev-add", id="c", backend={
                "type": "socket", "data": {"addr": addr, "server": True, "wait": False,
                                           "logfile": log}})  # fmt: skip
            self.assertIn("return", self.yank(again, type="chardev", id="c"))
            again.command("chardev-remove", id="c")
