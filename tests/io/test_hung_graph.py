# SPDX-License-Identifier: Apache-2.0
"""Changes of the graph that wait for a disk which hangs: others can still change the graph."""

import json

import tidemark
from hung_file import PATIENCE
from hung_image import HungImageCase


class HungGraph(HungImageCase):
    def start(self, command, **arguments):
        """A command of its own monitor, which waits for the disk."""
        monitor = self.server.connect(timeout=PATIENCE)
        self.addCleanup(monitor.close)
        monitor.send_raw(json.dumps({"execute": command, "arguments": arguments}) + "\n")
        return monitor

    def assert_waits(self, monitor):
        monitor.sock.settimeout(0.1)
        self.assertRaises(TimeoutError, monitor.receive_answer)
        monitor.sock.settimeout(4 * PATIENCE)

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
