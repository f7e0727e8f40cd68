# SPDX-License-Identifier: Apache-2.0
"""A file system that stops answering, as a frozen one does: who goes on, and how it ends."""

import json
import os
import signal
import time

import tidemark
from hung_file import HungFileCase, MIB, PATIENCE
from nbd_raw import FLUSH


class HungFile(HungFileCase):
    def test_other_disks_are_served(self):
        # On each of the reactors, some that are connected before and some after.
        good = [self.client("good") for _ in range(8)]
        sick = self.let_hang(1)
        good += [self.client("good") for _ in range(8)]
        for client in good:
            self.use(client)
        self.thaw()
        self.assert_complete(sick, 1)

    def test_many_requests_that_hang_leave_room_for_others(self):
        good = self.client("good")
        sick = self.let_hang(64)
        for client in sick:
            client.request(FLUSH)
        for _ in range(20):
            self.use(good)
        self.thaw()
        for client in sick:
            for _ in range(65):
                self.assertEqual(client.simple_reply(), (1, 0))

    def test_many_direct_writes_that_hang_leave_room_for_others(self):
        qmp = self.server.qmp
        qmp.command("block-export-del", id="sick")
        qmp.command("blockdev-del", **{"node-name": "sick"})
        node = {"driver": "raw", "node-name": "sick", "cache": {"direct": True},
                "file": {"driver": "file", "filename": self.sick}}  # fmt: skip
        qmp.command("blockdev-add", **node)
        export = {"id": "sick", "node-name": "sick", "name": "sick", "writable": True}
        qmp.command("block-export-add", type="nbd", **export)
        good = self.client("good")
        sick = self.let_hang(100, clients=8)
        for _ in range(20):
            self.use(good)
        self.thaw()
        self.assert_complete(sick, 100)

    def test_reads_of_the_disk_are_answered(self):
        # Freezing stops writers only.
        other = self.client("sick")
        self.let_hang(1)
        self.assertEqual(self.read(other, 0), b"s" * 4096)

    def test_a_connection_goes_on_receiving(self):
        (sick,) = self.let_hang(1, clients=1)
        self.assertEqual(self.read(sick, 0), b"s" * 4096)
        self.thaw()
        self.assert_complete([sick], 1)

    def test_commands_are_answered(self):
        self.let_hang(4)
        qmp = self.server.qmp
        qmp.command("query-block-exports")
        qmp.command("blockdev-add", driver="null-co", **{"node-name": "null", "size": MIB})
        node = {"driver": "file", "filename": self.sick, "node-name": "again", "read-only": True}
        qmp.command("blockdev-add", **node)
        qmp.command("blockdev-del", **{"node-name": "again"})

    def test_a_new_name_of_a_backing_file_delays_no_other_disk(self):
        qmp = self.server.qmp
        path = os.path.join(self.mount, "top.qcow2")
        tidemark.img("create", "-q", "-f", "qcow2", "-u", "-b", "a", "-F", "raw", path, "16M")
        for read_only in False, True:
            name = f"top{read_only}"
            qmp.command("blockdev-add", driver="qcow2", node_name=name, read_only=read_only,
                        file={"driver": "file", "filename": path}, backing="good")  # fmt: skip
            self.freeze()
            arguments = {"device": name, "image-node-name": name, "backing-file": f"b{read_only}"}
            qmp.send_raw(json.dumps({"execute": "change-backing-file", "arguments": arguments}))
            with self.server.connect(timeout=PATIENCE) as other:
                other.command("query-jobs")
                other.command("blockdev-add", driver="null-co", node_name="other", size=MIB)
                other.command("blockdev-del", node_name="other")
            self.thaw()
            self.assertEqual(qmp.receive_answer(), {"return": {}})
            qmp.command("blockdev-del", node_name=name)
            out = tidemark.img("info", "-f", "qcow2", "--output=json", path).stdout
            self.assertEqual(json.loads(out)["backing-filename"], f"b{read_only}")

    def add_chain(self):
        """top -> middle -> base, with nothing in them, where the file system can be frozen."""
        below = None
        for name in "base", "middle", "top":
            path = os.path.join(self.mount, name)
            backing = ("-b", os.path.join(self.mount, below), "-F", "qcow2") if below else ()
            tidemark.img("create", "-q", "-f", "qcow2", *backing, path, "16M")
            self.server.qmp.command(
                "blockdev-add", driver="qcow2", node_name=name, backing=below,
                file={"driver": "file", "filename": path},
            )  # fmt: skip
            below = name

    def test_the_last_steps_of_jobs_delay_no_other_disk(self):
        """Reads are answered, so that the jobs come to the headers that they write."""
        qmp = self.server.qmp
        for command, more in (
            ("block-commit", {"top_node": "middle", "base_node": "base"}),
            ("block-stream", {}),
        ):
            with self.subTest(command):
                self.add_chain()
                self.freeze()
                qmp.command(command, job_id="j", device="top", **more)
                time.sleep(0.5)
                with self.server.connect(timeout=PATIENCE) as other:
                    begun = time.monotonic()
                    other.command("query-named-block-nodes")
                    other.command("block-dirty-bitmap-add", node="good", name="b")
                    other.command("block-dirty-bitmap-remove", node="good", name="b")
                    if command == "block-stream":
                        other.command("blockdev-add", driver="null-co", node_name="n", size=MIB)
                        other.command("blockdev-del", node_name="n")
                    self.assertLess(time.monotonic() - begun, PATIENCE / 2)
                    (job,) = other.command("query-jobs")
                    self.assertEqual(job["id"], "j")
                self.thaw()
                qmp.wait_event("BLOCK_JOB_COMPLETED")
                qmp.command("blockdev-del", node_name="top")
                for name in "middle", "base":
                    qmp.command("blockdev-del", node_name=name)

    def test_sockets_there_are_left(self):
        """Nobody waits for the file of a socket to go."""
        qmp = self.server.qmp
        qmp.command("nbd-server-stop")
        address = {"type": "unix", "data": {"path": os.path.join(self.mount, "socket")}}
        chardev = {"type": "unix", "data": {"path": os.path.join(self.mount, "chardev")}}
        qmp.command("nbd-server-start", addr=address)
        backend = {"type": "socket", "data": {"addr": chardev, "server": True, "wait": False}}
        qmp.command("chardev-add", id="c", backend=backend)
        self.freeze()
        for name, arguments in ("nbd-server-stop", {}), ("chardev-remove", {"id": "c"}):
            with self.subTest(name), self.server.connect(timeout=PATIENCE) as other:
                qmp.send_raw(json.dumps({"execute": name, "arguments": arguments}) + "\n")
                other.command("query-named-block-nodes")
                qmp.sock.settimeout(PATIENCE)
                self.assertEqual(qmp.receive_answer(), {"return": {}})
        self.thaw()
        for name in "socket", "chardev":
            path = os.path.join(self.mount, name)
            tidemark.wait_until(lambda path=path: not os.path.exists(path), path)

    def test_the_time_limit_of_copy_before_write_holds(self):
        qmp = self.server.qmp
        cbw = {"driver": "copy-before-write", "node-name": "cbw", "file": "good", "target": "sick",
               "on-cbw-error": "break-snapshot", "cbw-timeout": 1}  # fmt: skip
        good = self.client("good")
        for offset in range(0, 2 * MIB, 4096):
            self.write(good, offset, b"1")
        qmp.command("block-export-del", id="sick")
        qmp.transaction(
            ("blockdev-add", cbw), ("blockdev-replace", {"export": "good", "node-name": "cbw"})
        )
        self.write(good, 0, b"2")
        self.freeze()
        begin = time.monotonic()
        self.write(good, MIB, b"2")
        self.assertGreater(time.monotonic() - begin, 0.9)
        self.use(self.client("good"))

    def test_it_ends_when_told_to(self):
        self.client("sick")
        self.freeze()
        self.server.stop(timeout=PATIENCE)

    def test_it_ends_with_its_pid_file_there(self):
        server = self.daemon(
            "--pidfile", os.path.join(self.mount, "pid"),
            *self.disk("other", self.create("other.raw", "1M", "raw")),
            name="other",
        )  # fmt: skip
        self.freeze()
        server.process.send_signal(signal.SIGTERM)
        # The process itself is gone as soon as the system lets go of its thread.
        tidemark.wait_until(lambda: self.state(server.pid) == "Z", "the end", PATIENCE)
        self.thaw()
        self.assertEqual(server.wait(PATIENCE), 0)

    @staticmethod
    def state(pid):
        with open(f"/proc/{pid}/stat", encoding="ascii") as stat:
            return stat.read().rsplit(")", 1)[1].split()[0]

    def test_it_ends_once_requests_that_hung_can(self):
        self.let_hang(8)
        self.thaw()
        self.server.stop(timeout=PATIENCE)

    def test_jobs_on_it_do_not_keep_others_from_being_stored(self):
        qmp = self.server.qmp
        disk = self.create("disk.qcow2", 16 * MIB)
        tidemark.img("bitmap", "-f", "qcow2", "--add", disk, "x")
        tidemark.io(disk, "write -P 7 0 1M", fmt="qcow2")
        file = {"driver": "file", "filename": disk}
        qmp.command(
            "blockdev-add", driver="qcow2", node_name="disk", file=file, durable_bitmaps="off"
        )
        qmp.command("block-dirty-bitmap-clear", node="disk", name="x")
        self.assertIn("in-use", self.bitmap_flags(disk))
        self.use(self.client("good"))
        qmp.command("block-export-del", id="sick")
        qmp.wait_event("BLOCK_EXPORT_DELETED")
        self.freeze()
        qmp.command("blockdev-backup", job_id="j", device="good", target="sick", sync="full")
        time.sleep(0.5)
        self.assertEqual(qmp.command("query-jobs")[0]["status"], "running")
        for _ in range(2):
            os.kill(self.server.process.pid, signal.SIGTERM)
            time.sleep(0.5)
        # The process itself is gone as soon as the system lets go of its thread.
        tidemark.wait_until(lambda: "in-use" not in self.bitmap_flags(disk), "it to be stored", 5)
        self.thaw()
        self.assertEqual(self.server.wait(PATIENCE), 1)
        tidemark.run(tidemark.qemu("qemu-img"), "check", "-q", "-f", "qcow2", disk)

    @staticmethod
    def bitmap_flags(disk):
        out = tidemark.img("info", "-U", "-f", "qcow2", "--output=json", disk).stdout
        (bitmap,) = json.loads(out)["format-specific"]["data"]["bitmaps"]
        return bitmap["flags"]
