# SPDX-License-Identifier: Apache-2.0
"""Commands that are refused: our daemon's sentences are those of QEMU's."""

import tidemark

MIRROR = {"job-id": "j", "device": "top", "target": "t", "sync": "full"}
COMMANDS = [
    ("blockdev-add", {"driver": "null-co", "node-name": "1st"}),
    ("block-commit", {"job-id": "j", "device": "top", "filter-node-name": "a b"}),
    ("block-commit", {"job-id": "j", "device": "top", "top-node": "base"}),
    ("block-stream", {"job-id": "j", "device": "top", "base-node": "t"}),
    ("block-stream", {"job-id": "j", "device": "top", "backing-file": "x"}),
    ("blockdev-mirror", MIRROR | {"target": "mid"}),
    ("blockdev-mirror", MIRROR | {"target": "top"}),
    ("blockdev-mirror", MIRROR | {"replaces": "mid"}),
    ("blockdev-mirror", MIRROR | {"replaces": "base"}),
    ("blockdev-mirror", MIRROR | {"replaces": "none"}),
    ("blockdev-snapshot", {"node": "top", "overlay": "top"}),
    ("blockdev-snapshot", {"node": "mid", "overlay": "t"}),
    ("drive-backup", MIRROR | {"target": "DIR/new", "sync": "top", "format": "raw"}),
    ("blockdev-snapshot-internal-sync", {"device": "mid", "name": "s"}),
]


class Refusals(tidemark.TestCase):
    in_memory = True

    def answers(self, name):
        program = [tidemark.qemu("qemu-storage-daemon")] if name == "qemu" else None
        server = self.own(tidemark.Daemon(self.dir, name=name, program=program))
        below = None
        for node in "base", "mid", "top", "t":
            path = self.path(f"{name}-{node}.qcow2")
            tidemark.img("create", "-q", "-f", "qcow2", path, "1M")
            server.qmp.command(
                "blockdev-add", driver="qcow2", node_name=node,
                file={"driver": "file", "filename": path},
                backing=None if node == "t" else below)  # fmt: skip
            below = node
        return [server.qmp.execute(command, arguments | self.target(arguments))
                for command, arguments in COMMANDS]  # fmt: skip

    def target(self, arguments):
        """The target, with the real directory in place of DIR."""
        target = arguments.get("target")
        return {"target": target.replace("DIR", self.dir)} if target else {}

    def test_agree(self):
        for command, ours, qemus in zip(
            COMMANDS, self.answers("ours"), self.answers("qemu"), strict=True
        ):
            with self.subTest(command):
                self.assertIn("error", qemus)
                self.assertEqual(ours, qemus)
