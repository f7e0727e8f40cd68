# SPDX-License-Identifier: Apache-2.0
"""x-blockdev-change: children of a quorum, with QEMU's answers, and with a guest on it."""

import os

import tidemark
from same_answers import SameAnswersCase

CHANGE = "x-blockdev-change"
MIB = 1 << 20


class Children(SameAnswersCase):
    def setUp(self):
        super().setUp()
        for name in "c0", "c1", "c2", "r":
            for folder in self.folders():
                with open(os.path.join(folder, name), "wb") as file:
                    file.truncate(MIB)
            self.same(
                "blockdev-add", {"driver": "file", "node-name": name, "filename": name}
            )
        self.same("blockdev-add", {"driver": "raw", "node-name": "raw", "file": "r"})
        self.same(
            "blockdev-add",
            {"driver": "quorum", "node-name": "q", "children": ["c0", "c1"], "vote-threshold": 2},
        )

    def test_answers(self):
        for arguments in (
            {"parent": "q"},
            {},
            {"parent": "q", "child": 5},
            {"parent": "q", "child": "children.0", "node": "c2"},
            {"parent": "none", "node": "c2"},
            {"parent": "none"},
            {"parent": "q", "node": "none"},
            {"parent": "q", "child": "none"},
            {"parent": "raw", "node": "c2"},
            {"parent": "raw", "child": "file"},
            {"parent": "q", "child": "children.0"},
            {"parent": "q", "node": "c0"},
            {"parent": "q", "node": "c2"},
            {"parent": "q", "node": "c2"},
            {"parent": "q", "child": "children.0"},
            {"parent": "q", "child": "children.0"},
            {"parent": "q", "child": "children.1"},
            {"parent": "q", "node": "c0"},
        ):
            self.same(CHANGE, arguments)

    def test_a_guest_writes_to_the_children_that_there_are(self):
        self.ours.command("nbd-server-start", addr={"type": "unix", "data": {"path": "s"}})
        self.ours.command("block-export-add", type="nbd", id="e", node_name="q", writable=True)
        uri = tidemark.nbd_uri(os.path.join(self.path("ours"), "s"), "q")
        tidemark.io(uri, "write -P 1 0 64k", fmt="raw")
        self.ours.command(CHANGE, parent="q", node="c2")
        tidemark.io(uri, "write -P 2 64k 64k", fmt="raw")
        self.ours.command(CHANGE, parent="q", child="children.0")
        tidemark.io(uri, "write -P 3 128k 64k", "flush", fmt="raw")
        self.daemons["ours"].quit()
        patterns = {"c0": [1, 2, 0], "c1": [1, 2, 3], "c2": [0, 2, 3]}
        for name, values in patterns.items():
            reads = [f"read -P {v} {i * 64}k 64k" for i, v in enumerate(values)]
            tidemark.io(os.path.join(self.path("ours"), name), *reads, fmt="raw")

    def test_a_child_that_may_not_join(self):
        """Nothing has changed then."""
        self.ours.command(
            "blockdev-add", driver="file", node_name="ro", filename="c2", read_only=True
        )
        self.ours.command("nbd-server-start", addr={"type": "unix", "data": {"path": "s"}})
        self.ours.command("block-export-add", type="nbd", id="e", node_name="q", writable=True)
        before = self.ours.command("x-debug-query-block-graph")
        self.assertIn("error", self.alone(CHANGE, {"parent": "q", "node": "ro"}))
        self.assertEqual(self.ours.command("x-debug-query-block-graph"), before)
        uri = tidemark.nbd_uri(os.path.join(self.path("ours"), "s"), "q")
        tidemark.io(uri, "write 0 64k", "read 0 64k", fmt="raw")
