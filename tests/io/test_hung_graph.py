# SPDX-License-Identifier: Apache-2.0
"""Changes of the graph that wait for a disk which hangs: others can still change the graph."""

import json
import os
import time

import tidemark
from hung_file import PATIENCE
from hung_image import HungImageCase
from nbd_hostile import HeldFlush, Hostile, export_info
from nbd_raw import WRITE, RawClient


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

    def test_the_end_of_a_lease_keeps_nobody_waiting(self):
        image = self.create("temporary.qcow2", "8M")
        leaving = self.server.connect(timeout=PATIENCE)
        leaving.command("x-tidemark-lease", node_name="view")
        target = {"driver": "qcow2", "node-name": "target",
                  "file": {"driver": "file", "filename": image}}  # fmt: skip
        filter_ = {"driver": "copy-before-write", "node-name": "filter", "file": "sick",
                   "target": "target"}  # fmt: skip
        view = {"driver": "snapshot-access", "node-name": "view", "file": "filter"}
        self.server.qmp.command(
            "transaction",
            actions=[
                {"type": "blockdev-add", "data": target},
                {"type": "blockdev-add", "data": filter_},
                {"type": "blockdev-replace", "data": {"export": "sick", "node-name": "filter"}},
                {"type": "blockdev-add", "data": view},
            ],
        )  # fmt: skip
        with RawClient(self.nbd, timeout=4 * PATIENCE) as client:
            client.go(b"sick", structured=False)
            self.freeze()
            client.request(WRITE, 4096, 4096, payload=b"s" * 4096)
            time.sleep(0.5)
            leaving.close()
            self.server.wait_for(lambda: self.server.qmp.node("view") is None, "the lease's end")
            self.assertEqual(self.change_graph(), [{"return": {}}] * 2)
            self.thaw()
            self.assertEqual(client.simple_reply(), (1, 0))
        self.server.wait_for(lambda: self.server.qmp.node("target") is None, "the filter's end")
        self.server.wait_for(lambda: not os.path.exists(image), "the image's end")


class SlowFlush(Waiting, tidemark.TestCase):
    """A server that answers the first flush late, and others at once."""

    def setUp(self):
        super().setUp()
        self.flush = HeldFlush()
        self.addCleanup(self.flush.end.set)
        size = 8 << 20
        path = self.path("remote")
        remote = Hostile(
            path, info=[export_info(size, 1 | 4)], on_request=self.flush.answer, structured=False
        )
        self.addCleanup(remote.close)
        self.nbd = self.path("nbd.sock")
        self.server = self.daemon(
            "--blockdev", f"nbd,node-name=remote,server.type=unix,server.path={path}",
            "--blockdev", "raw,node-name=middle,file=remote",
            "--blockdev", "raw,node-name=disk,file=middle",
            "--blockdev", f"null-co,node-name=other,size={size}",
            "--blockdev", f"null-co,node-name=spare,size={size}",
            "--nbd-server", f"addr.type=unix,addr.path={self.nbd}",
            "--export", "nbd,id=e,node-name=disk,name=e,writable=on",
        )  # fmt: skip

    def test_what_is_flushed_ahead_stays_where_it_is(self):
        with RawClient(self.nbd, timeout=PATIENCE) as client:
            client.go(b"e", structured=False)
            client.request(WRITE, 4096, 4096, payload=b"s" * 4096)
            self.assertEqual(client.simple_reply(), (1, 0))
        first = self.start("blockdev-replace", export="e", **{"node-name": "spare"})
        self.assertTrue(self.flush.begun.wait(PATIENCE))
        second = self.start(
            "blockdev-reopen", options=[{"driver": "raw", "node-name": "disk", "file": "other"}]
        )
        self.assert_waits(second, 1)
        self.flush.end.set()
        self.assertEqual(first.receive_answer(), {"return": {}})
        self.assertEqual(second.receive_answer(), {"return": {}})
        self.server.qmp.command("blockdev-del", node_name="middle")
        self.server.stop()
