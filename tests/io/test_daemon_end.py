# SPDX-License-Identifier: Apache-2.0
"""How the daemon ends when something hangs: servers that are silent, storage that stops, clients
that never come.
"""

import json
import os
import signal
import socket
import time

import tidemark
from nbd_raw import FLUSH, WRITE, RawClient
from nbd_server import Nbdkit, NbdServer


class DaemonEndTest(tidemark.TestCase):
    def setUp(self):
        super().setUp()
        self.image = self.create("disk.qcow2")
        self.nbd = self.path("nbd")

    def silent_server(self):
        """The path of a socket that takes connections and says nothing."""
        path = self.path("silent")
        server = socket.socket(socket.AF_UNIX)
        self.addCleanup(server.close)
        server.bind(path)
        server.listen()
        return path

    def silent_node(self):
        return {
            "driver": "nbd",
            "node-name": "silent",
            "server": {"type": "unix", "path": self.silent_server()},
        }

    def disk_options(self, *more):
        return (
            "--blockdev",
            f"driver=qcow2,node-name=disk,file.driver=file,file.filename={self.image}",
            *more,
            "--nbd-server",
            f"addr.type=unix,addr.path={self.nbd}",
            "--export",
            "type=nbd,id=disk,node-name=disk,writable=on",
        )

    def client(self, name):
        client = RawClient(self.nbd)
        self.addCleanup(client.sock.close)
        client.go(name, structured=False)
        return client

    def write(self, client):
        """A write that is answered."""
        client.request(WRITE, 0, 512, payload=bytes(512))
        self.assertEqual(client.simple_reply(), (1, 0))

    def started(self, *options):
        return self.own(
            tidemark.Process([*tidemark.tool("daemon"), *options], self.path("log"))
        )

    def stored_bitmaps(self):
        info = json.loads(tidemark.qemu_img("info", "--output=json", self.image).stdout)
        return [
            (b["name"], b["flags"]) for b in info["format-specific"]["data"].get("bitmaps", [])
        ]

    def assert_ends_soon(self, server, sig=signal.SIGTERM, expect=0):
        begin = time.monotonic()
        server.stop(sig=sig, expect=expect)
        self.assertLess(time.monotonic() - begin, 10)

    # Before it is up.

    def test_a_signal_ends_the_wait_for_a_first_client(self):
        path = self.path("c")
        server = self.started("--chardev", f"socket,id=c,path={path},server=on", "--monitor", "c")
        server.wait_for(lambda: os.path.exists(path), "the socket")
        time.sleep(0.2)
        self.assert_ends_soon(server)
        self.assertIn("before it is up", server.log())

    def test_a_signal_ends_a_start_that_hangs(self):
        server = self.started(*self.disk_options("--blockdev", json.dumps(self.silent_node())))
        time.sleep(0.5)
        self.assert_ends_soon(server)
        self.assertEqual(tidemark.img("check", self.image).returncode, 0)

    # Opening what does not answer.

    def test_others_go_on_while_a_server_is_silent(self):
        server = self.daemon(*self.disk_options())
        client = self.client(b"disk")
        node = self.silent_node()
        with server.connect() as other:
            for name, arguments in (
                ("blockdev-add", node),
                ("transaction", {"actions": [{"type": "blockdev-add", "data": node | {"node-name": "b"}}]}),
            ):
                hanging = server.connect()
                self.addCleanup(hanging.close)
                hanging.send_raw(json.dumps({"execute": name, "arguments": arguments}) + "\n")
            time.sleep(0.2)
            other.command("block-dirty-bitmap-add", node="disk", name="b", persistent=True)
            self.write(client)
        self.assert_ends_soon(server)
        self.assertIn("'blockdev-add' has not come to its end", server.log())
        self.assertIn("'transaction' has not come to its end", server.log())
        self.assertEqual(self.stored_bitmaps(), [("b", ["auto"])])

    def test_quit_ends_it_while_a_server_is_silent(self):
        server = self.daemon(*self.disk_options())
        with server.connect() as other:
            server.qmp.send_raw(
                json.dumps({"execute": "blockdev-add", "arguments": self.silent_node()})
            )
            time.sleep(0.2)
            self.assertEqual(other.execute("quit"), {"return": {}})
        self.assertEqual(server.wait(10), 0)

    def test_what_an_image_being_opened_keeps_is_completed(self):
        server = self.daemon(*self.disk_options())
        server.qmp.command("block-dirty-bitmap-add", node="disk", name="b", persistent=True)
        self.write(self.client(b"disk"))
        node = {"driver": "copy-before-write", "node-name": "top", "file": "disk"}
        node["target"] = self.silent_node()
        hanging = server.connect()
        self.addCleanup(hanging.close)
        hanging.send_raw(json.dumps({"execute": "blockdev-add", "arguments": node}))
        time.sleep(0.2)
        self.assert_ends_soon(server)
        self.assertEqual(self.stored_bitmaps(), [("b", ["auto"])])

    # Storage that hangs.

    def with_hanging_disk(self):
        """The daemon with a healthy disk and one that hangs within a request."""
        raw = self.create("hung.raw", "1M", fmt="raw")
        below = self.own(NbdServer(self.dir, "-f", "raw", raw, name="below"))
        server = self.daemon(
            *self.disk_options(
                "--blockdev",
                f"driver=nbd,node-name=hung,server.type=unix,server.path={below.socket}",
            ),
            "--export",
            "type=nbd,id=hung,node-name=hung,writable=on",
        )
        server.qmp.command("block-dirty-bitmap-add", node="disk", name="b", persistent=True)
        self.write(self.client(b"disk"))
        client = self.client(b"hung")
        self.write(client)
        tidemark.freeze(below.pid)
        client.request(WRITE, 0, 512, payload=bytes(512))
        tidemark.wait_until(lambda: self.in_flight(server, "hung"), "the request that hangs", 60)
        return server

    def in_flight(self, server, node):
        """How many operations on a node have not ended."""
        found = server.qmp.command("x-tidemark-query-stats", target="node")
        return sum(f["stats"].get("in-flight", 0) for f in found if f["labels"]["node"] == node)

    def assert_ended_in_haste(self, server):
        self.assertIn("export 'hung' on node 'hung' cannot be closed", server.log())
        self.assertNotIn("export 'disk'", server.log())
        self.assertIn("node 'hung' is left incomplete", server.log())
        self.assertNotIn("'disk' is left", server.log())
        self.assertEqual(self.stored_bitmaps(), [("b", ["auto"])])

    def test_a_second_signal_ends_it_though_storage_hangs(self):
        server = self.with_hanging_disk()
        os.kill(server.pid, signal.SIGTERM)
        time.sleep(0.5)
        self.assertTrue(server.is_running())
        self.assert_ends_soon(server, expect=1)
        self.assert_ended_in_haste(server)

    def test_others_go_on_while_requests_hang(self):
        server = self.with_hanging_disk()
        hung_bitmap = ("block-dirty-bitmap-add", {"node": "hung", "name": "c"})
        for name, arguments in (
            ("transaction", {"actions": [{"type": hung_bitmap[0], "data": hung_bitmap[1]}]}),
            ("nbd-server-stop", {}),
        ):
            hanging = server.connect()
            self.addCleanup(hanging.close)
            hanging.send_raw(json.dumps({"execute": name, "arguments": arguments}))
            with server.connect(timeout=5) as other:
                other.command("block-dirty-bitmap-add", node="disk", name=name)
                self.assertIn("hung", [e["id"] for e in other.command("query-block-exports")])
        os.kill(server.pid, signal.SIGTERM)
        time.sleep(0.2)
        self.assert_ends_soon(server, expect=1)
        self.assertEqual(self.stored_bitmaps(), [("b", ["auto"])])

    def test_a_slow_disk_does_not_hang(self):
        """Each of its writes takes a second, and a guest's flush needs several."""
        os.truncate(self.image, 4 << 20)
        slow = self.own(
            Nbdkit(self.dir, "--filter=delay", "file", self.image, "wdelay=900ms")
        )  # fmt: skip
        options = (f"driver=qcow2,node-name=disk,file.driver=nbd,file.server.type=unix,"
                   f"file.server.path={slow.socket}")  # fmt: skip
        daemon = self.daemon("--blockdev", options, *self.disk_options()[2:])
        client = self.client(b"disk")
        client.request(WRITE, 0, 65536, payload=bytes(65536))
        self.assertEqual(client.simple_reply()[1], 0)
        client.request(FLUSH)
        time.sleep(0.1)
        os.kill(daemon.process.pid, signal.SIGTERM)
        self.assertEqual(daemon.wait(20), 0, daemon.log())
        self.assertNotIn("given up", daemon.log())

    def test_a_signal_after_quit_ends_it_though_storage_hangs(self):
        server = self.with_hanging_disk()
        server.qmp.command("quit")
        time.sleep(0.3)
        self.assert_ends_soon(server, sig=signal.SIGINT, expect=1)
        self.assert_ended_in_haste(server)

    def test_an_image_that_a_mirror_reads_is_completed_though_the_read_hangs(self):
        server = self.daemon()
        self.image = self.create("over.qcow2", "1M")
        minute = {"event": "none", "iotype": "read", "errno": 0, "delay-ns": 60 * 10**9}
        for node in (
            {"driver": "blkdebug", "node-name": "below", "inject-error": [minute],
             "image": {"driver": "null-co", "size": 1 << 20}},
            {"driver": "qcow2", "node-name": "over", "backing": "below",
             "file": {"driver": "file", "filename": self.image}},
            {"driver": "null-co", "node-name": "target", "size": 1 << 20},
        ):  # fmt: skip
            server.qmp.command("blockdev-add", **node)
        server.qmp.command("block-dirty-bitmap-add", node="over", name="b", persistent=True)
        server.qmp.command(
            "blockdev-mirror", job_id="j", device="over", target="target", sync="full"
        )
        tidemark.wait_until(lambda: self.in_flight(server, "below"), "the read to hang", 60)
        server.qmp.command("quit")
        self.assertEqual(server.wait(20), 1, server.log())
        self.assertNotIn("'over' is left", server.log())
        self.assertEqual(self.stored_bitmaps(), [("b", ["auto"])])

    def test_quit_is_enough_beside_a_command_that_hangs(self):
        image = self.create("hung.qcow2", "1M")
        below = self.own(NbdServer(self.dir, "-f", "raw", image, name="below"))
        server = self.daemon(*self.disk_options())
        server.qmp.command("block-dirty-bitmap-add", node="disk", name="b", persistent=True)
        address = {"type": "unix", "path": below.socket}
        file = {"driver": "nbd", "node-name": "file", "server": address}
        server.qmp.command("blockdev-add", driver="qcow2", node_name="hung", file=file)
        self.write(self.client(b"disk"))
        tidemark.freeze(below.pid)
        with server.connect() as hanging:
            bitmap = {"node": "hung", "name": "b", "persistent": True}
            hanging.send_raw(
                json.dumps({"execute": "block-dirty-bitmap-add", "arguments": bitmap})
            )
            tidemark.wait_until(lambda: self.in_flight(server, "file"), "the command to hang", 60)
            with server.connect(timeout=10) as other:
                self.assertEqual(other.execute("quit"), {"return": {}})
            self.assertEqual(server.wait(10), 1)
        self.assertIn("at: the command that runs", server.log())
        self.assertNotIn("'disk'", server.log())
        self.assertEqual(self.stored_bitmaps(), [("b", ["auto"])])
