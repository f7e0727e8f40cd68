# SPDX-License-Identifier: Apache-2.0
"""Changes of the graph that wait for a disk which hangs: others can still change the graph."""

import json
import struct
import threading

import tidemark
from hung_file import PATIENCE
from hung_image import HungImageCase
from nbd_hostile import Hostile, export_info
from nbd_raw import FLUSH, READ, SIMPLE_MAGIC, WRITE, RawClient


class Waiting:
    """For test cases with a daemon `server`."""

    def start(self, command, **arguments):
        """A command of its own monitor, which waits for the disk."""
        monitor = self.server.connect(timeout=PATIENCE)
        self.addCleanup(monitor.close)
        monitor.send_raw(json.dumps({"execute": command, "arguments": arguments}) + "\n")
        return monitor

    def assert_waits(self, monitor, seconds=0.1):
        monitor.sock.settimeout(seconds)
        self.assertRaises(TimeoutError, monitor.receive_answer)
        monitor.sock.settimeout(4 * PATIENCE)


class HungGraph(Waiting, HungImageCase):
    def change_graph(self):
        with self.server.connect(timeout=4 * PATIENCE) as other:
            answers = [other.execute("blockdev-add", {"driver": "null-co", "node-name": "new"})]
            if "return" in answers[0]:
                answers.append(other.execute("blockdev-del", {"node-name": "new"}))
        return answers

    def check_nobody_else_waits(self, command, **arguments):
        self.freeze()
        waiting = self.start(command, **arguments)
        self.assertEqual(self.change_graph(), [{"return": {}}] * 2)
        self.assert_waits(waiting)
        self.thaw()
        self.assertEqual(waiting.receive_answer(), {"return": {}})

    def test_what_an_export_leaves_is_flushed_first(self):
        self.server.qmp.command("blockdev-add", driver="null-co", node_name="spare", size=8 << 20)
        self.write()
        self.check_nobody_else_waits("blockdev-replace", export="sick", **{"node-name": "spare"})

    def test_what_becomes_read_only_is_completed_first(self):
        self.write()
        self.server.qmp.command("block-export-del", id="sick", mode="hard")
        self.server.qmp.wait_event("BLOCK_EXPORT_DELETED")
        file = self.server.qmp.command("query-named-block-nodes")
        names = [n["node-name"] for n in file if n["image"]["filename"] == self.sick]
        names.remove("sick")
        self.check_nobody_else_waits(
            "blockdev-reopen",
            options=[{"driver": "qcow2", "node-name": "sick", "file": names[0],
                      "read-only": True}],
        )  # fmt: skip

    def test_who_needs_the_graph_learns_who_has_it(self):
        self.server.qmp.command(
            "blockdev-add", driver="qcow2", node_name="overlay", backing=None,
            file={"driver": "file", "filename": self.create("overlay.qcow2", "8M")},
        )  # fmt: skip
        self.freeze()
        waiting = self.start(
            "transaction",
            actions=[
                {"type": "block-dirty-bitmap-add",
                 "data": {"node": "sick", "name": "b", "persistent": True}},
                {"type": "blockdev-snapshot", "data": {"node": "good", "overlay": "overlay"}},
            ],
        )  # fmt: skip
        self.assert_waits(waiting)
        (answer,) = self.change_graph()
        said = answer["error"]["desc"]
        self.assertIn("The command 'transaction' keeps others from changing the graph", said)
        self.assertIn("node 'sick'", said)
        self.thaw()
        self.assertEqual(waiting.receive_answer(), {"return": {}})
        self.assertEqual(self.change_graph(), [{"return": {}}] * 2)
        self.server.stop()
        info = json.loads(tidemark.img("info", "--output=json", self.sick).stdout)
        (bitmap,) = info["format-specific"]["data"]["bitmaps"]
        self.assertEqual((bitmap["name"], bitmap["flags"]), ("b", ["auto"]))


class SlowFlush(Waiting, tidemark.TestCase):
    """A server that answers the first flush late, and others at once."""

    def setUp(self):
        super().setUp()
        self.flushes, self.end = threading.Event(), threading.Event()
        self.addCleanup(self.end.set)
        self.size = 8 << 20
        path = self.path("remote")
        info = [export_info(self.size, flags=1 | 4)]
        remote = Hostile(path, info=info, on_request=self.answer, structured=False)
        self.addCleanup(remote.close)
        self.nbd = self.path("nbd.sock")
        self.server = self.daemon(
            "--blockdev", f"nbd,node-name=remote,server.type=unix,server.path={path}",
            "--blockdev", "raw,node-name=middle,file=remote",
            "--blockdev", "raw,node-name=disk,file=middle",
            "--blockdev", f"null-co,node-name=other,size={self.size}",
            "--blockdev", f"null-co,node-name=spare,size={self.size}",
            "--nbd-server", f"addr.type=unix,addr.path={self.nbd}",
            "--export", "nbd,id=e,node-name=disk,name=e,writable=on",
        )  # fmt: skip

    def answer(self, send, kind, cookie, offset, length):
        reply = struct.pack(">IIQ", SIMPLE_MAGIC, 0, cookie)
        if kind != FLUSH or self.flushes.is_set():
            send(reply + (bytes(length) if kind == READ else b""))
            return
        self.flushes.set()

        def answer_late():
            self.end.wait()
            send(reply)

        threading.Thread(target=answer_late, daemon=True).start()

    def test_what_is_flushed_ahead_stays_where_it_is(self):
        with RawClient(self.nbd, timeout=PATIENCE) as client:
            client.go(b"e", structured=False)
            client.request(WRITE, 4096, 4096, payload=b"s" * 4096)
            self.assertEqual(client.simple_reply(), (1, 0))
        first = self.start("blockdev-replace", export="e", **{"node-name": "spare"})
        self.assertTrue(self.flushes.wait(PATIENCE))
        second = self.start(
            "blockdev-reopen", options=[{"driver": "raw", "node-name": "disk", "file": "other"}]
        )
        self.assert_waits(second, 1)
        self.end.set()
        self.assertEqual(first.receive_answer(), {"return": {}})
        self.assertEqual(second.receive_answer(), {"return": {}})
        self.server.qmp.command("blockdev-del", node_name="middle")
        self.server.stop()
