# SPDX-License-Identifier: Apache-2.0
"""A disk hangs with a guest's write in flight: commands about it wait for it, and delay nobody."""

import json
import signal
import subprocess
import time

import tidemark


class HungDiskTest(tidemark.TestCase):
    def setUp(self):
        super().setUp()
        image, sock = self.create("disk.qcow2"), self.path("disk.sock")
        self.storage = self.daemon(
            "--blockdev", f"driver=file,node-name=disk,filename={image}",
            "--nbd-server", f"addr.type=unix,addr.path={sock}",
            "--export", "nbd,id=e,node-name=disk,writable=on",
            name="storage",
        )  # fmt: skip
        self.server = self.daemon()
        self.qmp = self.server.qmp
        server = {"type": "unix", "path": sock}
        for node in (
            {"driver": "nbd", "node-name": "file", "export": "disk", "server": server},
            {"driver": "qcow2", "node-name": "disk", "file": "file"},
            {"driver": "null-co", "node-name": "other", "size": 1 << 20},
        ):
            self.qmp.command("blockdev-add", **node)
        path = self.path("nbd.sock")
        self.qmp.command("nbd-server-start", addr={"type": "unix", "data": {"path": path}})
        self.qmp.command("block-export-add", type="nbd", id="e", node_name="disk", writable=True)
        self.guest_command = [
            *tidemark.tool("io"), "-f", "raw", "-c", "write 0 64k", tidemark.nbd_uri(path, "disk"),
        ]  # fmt: skip
        self.addCleanup(self.storage.process.send_signal, signal.SIGCONT)

    def hang(self):
        """Stop the storage, and let a guest write to it."""
        tidemark.freeze(self.storage.process.pid)
        guest = subprocess.Popen(self.guest_command, stdout=subprocess.DEVNULL)
        self.addCleanup(guest.wait)
        time.sleep(0.2)

    def test_other_monitors_are_answered_at_once(self):
        bitmap = {"node": "disk", "name": "b"}
        with self.server.connect() as waiting:
            for number, (command, arguments) in enumerate(
                (
                    ("query-named-block-nodes", {}),
                    ("query-blockstats", {"query-nodes": True}),
                    ("x-debug-query-block-graph", {}),
                    ("block-dirty-bitmap-add", bitmap),
                    ("block-dirty-bitmap-clear", bitmap),
                    ("block-dirty-bitmap-remove", bitmap),
                    ("block_resize", {"node-name": "disk", "size": 65 << 20}),
                    ("block-export-add", {"type": "nbd", "id": "x", "node-name": "disk", "name": "x"}),
                    ("block-export-del", {"id": "x"}),
                    ("blockdev-add", {"driver": "raw", "node-name": "r", "file": "file"}),
                )
            ):
                with self.subTest(command):
                    self.hang()
                    waiting.send_raw(json.dumps({"execute": command, "arguments": arguments}))
                    began = time.monotonic()
                    for _ in range(3):
                        self.qmp.command("query-named-block-nodes")
                        self.qmp.command("block-dirty-bitmap-add", node="other", name="o")
                        self.qmp.command("block-dirty-bitmap-remove", node="other", name="o")
                    self.assertLess(time.monotonic() - began, 5)
                    self.storage.process.send_signal(signal.SIGCONT)
                    answer = waiting.receive_answer()
                    if command != "blockdev-add":  # the file has a writer already
                        self.assertIn("return", answer, f"{number}: {command}")

    def test_commands_that_only_look_are_answered_whatever_hangs(self):
        """The resize has begun, and waits for its own request, not for a guest's."""
        with self.server.connect() as waiting:
            tidemark.freeze(self.storage.process.pid)
            resize = {"node-name": "disk", "size": 65 << 20}
            waiting.send_raw(json.dumps({"execute": "block_resize", "arguments": resize}))
            began = time.monotonic()
            for command in (
                "query-version",
                "query-commands",
                "query-qmp-schema",
                "query-jobs",
                "query-block-jobs",
                "query-block-exports",
                "query-nbd-server",
                "query-chardev",
                "query-blockstats",
                "query-stats-schemas",
                "x-debug-query-block-graph",
                "x-tidemark-query-stats",
            ):
                self.qmp.command(command)
            with self.server.connect() as newcomer:
                newcomer.command("query-fdsets")
                newcomer.command("query-chardev-backends")
            # The first one has waited for the one that hangs, which has not ended.
            self.assertGreater(time.monotonic() - began, 1)
            self.storage.process.send_signal(signal.SIGCONT)
            self.assertIn("return", waiting.receive_answer())
            self.qmp.command("query-named-block-nodes")
