# SPDX-License-Identifier: Apache-2.0
"""query-named-block-nodes, and a file system that does not answer what it asks about a file."""

import json
import os
import signal
import socket
import time

import tidemark
from test_fuse import LIBC


class HungQuery(tidemark.TestCase):
    """Files that another daemon serves by FUSE, which hangs when it is stopped."""

    def setUp(self):
        super().setUp()
        options, self.files = [], []
        for i in range(6):
            self.files.append(self.path(f"mnt{i}"))
            with open(self.files[-1], "w", encoding="ascii"):
                pass
            options += [
                "--blockdev", f"null-co,node-name=n{i},size=1M,read-zeroes=on",
                "--export", f"fuse,id=e{i},node-name=n{i},mountpoint={self.files[-1]},writable=on",
            ]  # fmt: skip
        self.storage = self.daemon(*options, name="storage")
        self.addCleanup(self.let_go)

    def let_go(self):
        self.storage.process.send_signal(signal.SIGCONT)
        self.end_processes()
        for path in self.files:
            LIBC.umount2(os.fsencode(path), 2)

    def nodes(self, qmp):
        return {n["node-name"]: n for n in qmp.command("query-named-block-nodes", flat=True)}

    def test_the_query_is_answered_without_the_size(self):
        good = self.create("good.qcow2", "1M")
        server = self.daemon(
            "--blockdev", f"driver=qcow2,node-name=good,file.driver=file,file.filename={good}"
        )
        for i, path in enumerate(self.files):
            server.qmp.command("blockdev-add", driver="file", node_name=f"f{i}", filename=path)
        names = {f"f{i}" for i in range(len(self.files))}
        before = self.nodes(server.qmp)
        for name in names:
            self.assertIn("actual-size", before[name]["image"])
        tidemark.freeze(self.storage.process.pid)
        with server.connect() as other:
            for _ in range(3):
                began = time.monotonic()
                now = self.nodes(server.qmp)
                # A second for all of them, not for each.
                self.assertLess(time.monotonic() - began, 5)
                for name in names:
                    self.assertNotIn("actual-size", now[name]["image"])
                self.assertIn("actual-size", now["good"]["image"])
                self.assertEqual(now["f0"]["image"]["virtual-size"], 1 << 20)
                other.command("query-jobs")
        threads = len(os.listdir(f"/proc/{server.process.pid}/task"))
        for _ in range(20):
            server.qmp.command("query-named-block-nodes")
        self.assertLessEqual(len(os.listdir(f"/proc/{server.process.pid}/task")), threads)
        self.storage.process.send_signal(signal.SIGCONT)
        tidemark.wait_until(
            lambda: all("actual-size" in self.nodes(server.qmp)[n]["image"] for n in names),
            "the sizes",
        )
        server.stop()

    def test_a_node_can_be_removed_whose_answer_is_late(self):
        server = self.daemon()
        for _ in range(2):
            server.qmp.command("blockdev-add", driver="file", node_name="f", filename=self.files[0])
            tidemark.freeze(self.storage.process.pid)
            self.assertNotIn("actual-size", self.nodes(server.qmp)["f"]["image"])
            server.qmp.send_raw(json.dumps(
                {"execute": "blockdev-del", "arguments": {"node-name": "f"}}))  # fmt: skip
            self.storage.process.send_signal(signal.SIGCONT)
            self.assertEqual(server.qmp.receive_answer(), {"return": {}})
        server.stop()

    def test_the_closing_of_passed_descriptors_delays_nobody(self):
        server = self.daemon()
        for number, (put, name, away) in enumerate((
            ("getfd", {"fdname": "n"}, "closefd"),
            ("add-fd", {"fdset-id": 1}, "remove-fd"),
        )):  # fmt: skip
            with self.subTest(away), server.connect() as waiting:
                fd = os.open(self.files[number], os.O_RDWR)
                message = {"execute": put, "arguments": name}
                socket.send_fds(waiting.sock, [json.dumps(message).encode()], [fd])
                os.close(fd)
                self.assertIn("return", waiting.receive_answer())
                tidemark.freeze(self.storage.process.pid)
                waiting.send_raw(json.dumps({"execute": away, "arguments": name}))
                time.sleep(0.1)
                server.qmp.command("blockdev-add", driver="null-co", node_name="n", size=512)
                self.assertEqual(server.qmp.command("query-fdsets"), [])
                server.qmp.command("blockdev-del", node_name="n")
                self.storage.process.send_signal(signal.SIGCONT)
                self.assertEqual(waiting.receive_answer(), {"return": {}})
        server.stop()

    def test_descriptors_that_a_monitor_leaves_behind_delay_nobody(self):
        server = self.daemon()
        for _ in range(2):
            waiting = server.connect()
            fd = os.open(self.files[0], os.O_RDWR)
            socket.send_fds(waiting.sock, [b'{"execute": "query-version"}'], [fd])
            os.close(fd)
            self.assertIn("return", waiting.receive_answer())
            tidemark.freeze(self.storage.process.pid)
            waiting.close()
            time.sleep(0.1)
            server.qmp.command("query-version")
            server.qmp.command("query-named-block-nodes")
            self.storage.process.send_signal(signal.SIGCONT)
        server.stop()

    def test_a_file_whose_closing_hangs_does_not_delay_the_end(self):
        server = self.daemon()
        server.qmp.command("blockdev-add", driver="file", node_name="f", filename=self.files[0])
        tidemark.freeze(self.storage.process.pid)
        server.qmp.command("quit")
        server.wait_for(lambda: "cannot be closed" in server.log(), "the end")  # 20 s, not 30
        self.assertIn("at: closing nodes\n", server.log())
        self.assertIn("node 'f' cannot be closed", server.log())
        self.storage.process.send_signal(signal.SIGCONT)
        self.assertEqual(server.wait(), 1)

    def test_a_job_that_closes_its_target_delays_no_command(self):
        image, path = self.create("target.raw", "1M", "raw"), self.path("mnt")
        with open(path, "w", encoding="ascii"):
            self.files.append(path)
        self.storage.qmp.command("blockdev-add", driver="file", node_name="t", filename=image)
        self.storage.qmp.command("block-export-add", type="fuse", id="t", node_name="t",
                                 mountpoint=path, writable=True)  # fmt: skip
        server = self.daemon("--blockdev", "null-co,node-name=disk,size=1M,read-zeroes=on")
        server.qmp.command("drive-backup", job_id="j", device="disk", target=path, format="raw",
                           mode="existing", sync="full", auto_finalize=False)  # fmt: skip
        server.qmp.wait_event("BLOCK_JOB_PENDING")
        tidemark.freeze(self.storage.process.pid)
        server.qmp.command("job-finalize", id="j")
        self.assertIn("disk", self.nodes(server.qmp))
        self.assertEqual(len(server.qmp.command("query-jobs")), 1)
        self.storage.process.send_signal(signal.SIGCONT)
        server.qmp.wait_event("BLOCK_JOB_COMPLETED")
        server.stop()
