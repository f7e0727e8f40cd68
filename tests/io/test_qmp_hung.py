# SPDX-License-Identifier: Apache-2.0
"""A disk hangs with a guest's write in flight: commands about it wait for it, and delay nobody."""

import json
import os
import signal
import subprocess
import time

import tidemark


class HungDiskTest(tidemark.TestCase):
    def setUp(self):
        super().setUp()
        image, sock = self.create("disk.qcow2"), self.path("disk.sock")
        # Its bits are read when they are first needed.
        tidemark.img("bitmap", "-f", "qcow2", "--add", image, "stored")
        tidemark.io(image, "write 0 1M", fmt="qcow2")
        os.truncate(image, 16 << 20)  # an NBD server's disk does not grow
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
        self.qmp.command("query-named-block-nodes")  # counts the bits

    def hang(self):
        """Stop the storage, and let a guest write to it."""
        tidemark.freeze(self.storage.process.pid)
        guest = subprocess.Popen(self.guest_command, stdout=subprocess.DEVNULL)
        self.addCleanup(guest.wait)
        self.addCleanup(guest.kill)
        tidemark.wait_until(self.is_in_flight, "the guest's write")

    def is_in_flight(self):
        stats = self.qmp.command("x-tidemark-query-stats", target="node")
        return any(
            o["group"] == "nbd" and o["labels"]["node"] == "file" and o["stats"]["requests-in-flight"]
            for o in stats
        )

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
        """The start of a mirror reads bits of a bitmap."""
        self.qmp.command("blockdev-add", driver="null-co", node_name="target", size=64 << 20)
        with self.server.connect() as waiting:
            tidemark.freeze(self.storage.process.pid)
            mirror = {"job-id": "j", "device": "disk", "target": "target", "sync": "bitmap",
                      "bitmap": "stored", "bitmap-mode": "never"}  # fmt: skip
            waiting.send_raw(json.dumps({"execute": "blockdev-mirror", "arguments": mirror}))
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
            self.assert_unanswered(waiting)
            self.storage.process.send_signal(signal.SIGCONT)
            self.assertIn("return", waiting.receive_answer())
            self.qmp.command("query-named-block-nodes")

    def test_the_bits_that_a_mirror_reads_delay_no_other_disk(self):
        self.add_spare()
        self.qmp.command("blockdev-add", driver="null-co", node_name="target", size=64 << 20)
        mirror = {"job-id": "m", "device": "disk", "target": "target", "sync": "bitmap",
                  "bitmap": "stored", "bitmap-mode": "never"}  # fmt: skip
        with self.server.connect() as waiting:
            self.check_delays_nobody(
                waiting, "blockdev-mirror", mirror, lambda: self.go_on_elsewhere(1)
            )

    def go_on_elsewhere(self, number):
        """What a manager does with its other disks."""
        qmp, name = self.qmp, f"n{number}"
        qmp.command("block-dirty-bitmap-add", node="spare", name="b", persistent=True)
        qmp.command("block-dirty-bitmap-remove", node="spare", name="b")
        qmp.command("block_resize", node_name="spare", size=(1 + number) << 20)
        qmp.command("blockdev-add", driver="null-co", node_name=name, size=1 << 20)
        qmp.command("block-export-add", type="nbd", id=name, node_name=name, name=name)
        qmp.command("block-export-del", id=name)
        qmp.command("blockdev-snapshot-internal-sync", device="spare", name=name)
        qmp.command("blockdev-snapshot-delete-internal-sync", device="spare", name=name)
        qmp.command("blockdev-backup", job_id="j", device=name, target="other", sync="full")
        while qmp.wait_event("JOB_STATUS_CHANGE")["data"]["status"] != "null":
            pass
        qmp.command("blockdev-del", node_name=name)

    def look_and_mark(self):
        """What changes no edges."""
        self.qmp.command("block-dirty-bitmap-add", node="spare", name="b", persistent=True)
        self.qmp.command("block-dirty-bitmap-remove", node="spare", name="b")
        self.qmp.command("object-add", qom_type="throttle-group", id="t")
        self.qmp.command("object-del", id="t")

    def assert_unanswered(self, monitor):
        monitor.sock.settimeout(0.05)
        with self.assertRaises(TimeoutError):
            print(monitor.receive_answer())
        monitor.sock.settimeout(20)

    def check_delays_nobody(self, waiting, command, arguments, go_on):
        """The command waits for its disk, and for no guest; a query and other disks go on."""
        tidemark.freeze(self.storage.process.pid)
        waiting.send_raw(json.dumps({"execute": command, "arguments": arguments}))
        time.sleep(0.1)
        go_on()
        names = {n["node-name"] for n in self.qmp.command("query-named-block-nodes")}
        self.assertLessEqual({"disk", "spare", "other"}, names)
        self.assert_unanswered(waiting)
        self.storage.process.send_signal(signal.SIGCONT)
        self.assertIn("return", waiting.receive_answer(), command)

    def add_spare(self):
        image = self.create("spare.qcow2", "1M")
        self.qmp.command(
            "blockdev-add", driver="qcow2", node_name="spare",
            file={"driver": "file", "filename": image},
        )  # fmt: skip

    def test_commands_that_write_metadata_delay_no_other_disk(self):
        bitmap = {"node": "disk", "name": "b"}
        self.add_spare()
        with self.server.connect() as waiting:
            for number, (command, arguments) in enumerate(
                (
                    ("block-dirty-bitmap-add", {**bitmap, "persistent": True}),
                    ("block-dirty-bitmap-disable", bitmap),
                    (
                        "transaction",
                        {
                            "actions": [
                                {"type": "block-dirty-bitmap-enable", "data": bitmap},
                                {"type": "block-dirty-bitmap-clear", "data": bitmap},
                            ]
                        },
                    ),
                    ("block-dirty-bitmap-remove", bitmap),
                    ("block_resize", {"node-name": "disk", "size": 65 << 20}),
                    ("blockdev-snapshot-internal-sync", {"device": "disk", "name": "s"}),
                    ("x-tidemark-snapshot-apply", {"device": "disk", "name": "s"}),
                    ("blockdev-snapshot-delete-internal-sync", {"device": "disk", "name": "s"}),
                )
            ):
                with self.subTest(command):
                    self.check_delays_nobody(
                        waiting, command, arguments, lambda n=number: self.go_on_elsewhere(n + 1)
                    )

    def test_graph_changes_that_wait_for_a_disk_delay_no_query_and_no_bitmap(self):
        self.add_spare()
        self.qmp.command("block-dirty-bitmap-add", node="disk", name="b", persistent=True)
        with self.server.connect() as waiting:
            reopened = {"driver": "qcow2", "node-name": "disk", "file": "file", "read-only": True}
            subprocess.run(self.guest_command, check=True, stdout=subprocess.DEVNULL)
            self.qmp.command("block-export-del", id="e")
            self.check_delays_nobody(
                waiting, "blockdev-reopen", {"options": [reopened]}, self.look_and_mark
            )

    def test_transactions_that_wait_for_a_disk_delay_no_graph_change(self):
        """One that an action fails whose bitmap is stored, and one that ends with a flush."""
        self.add_spare()
        bitmap = {"node": "disk", "name": "b", "persistent": True}
        overlay = {"node-name": "disk", "snapshot-file": self.path("overlay.qcow2")}
        overlay["snapshot-node-name"] = "overlay"
        failing = [
            {"type": "block-dirty-bitmap-add", "data": bitmap},
            {"type": "abort", "data": {}},
        ]
        snapshot = [{"type": "blockdev-snapshot-sync", "data": overlay}]
        with self.server.connect() as waiting:
            for actions, answer in (failing, "error"), (snapshot, "return"):
                with self.subTest(answer):
                    self.storage.process.send_signal(signal.SIGCONT)  # after a failure
                    subprocess.run(self.guest_command, check=True, stdout=subprocess.DEVNULL)
                    tidemark.freeze(self.storage.process.pid)
                    message = {"execute": "transaction", "arguments": {"actions": actions}}
                    waiting.send_raw(json.dumps(message))
                    time.sleep(0.1)
                    self.change_another_graph()
                    self.assert_unanswered(waiting)
                    self.storage.process.send_signal(signal.SIGCONT)
                    self.assertIn(answer, waiting.receive_answer())

    def test_a_guest_goes_on_while_the_size_of_its_disk_is_changed(self):
        """By a FUSE client, next to a graph change that hangs: before, and during that."""
        rule = {"event": "none", "iotype": "write", "sector": 0, "errno": 0, "delay-ns": 10**9}
        file = {"driver": "file", "filename": self.create("slow.qcow2", "1M")}
        file = {"driver": "blkdebug", "image": file, "inject-error": [rule]}
        self.qmp.command("blockdev-add", driver="qcow2", node_name="slow", file=file)
        mounted = self.path("mounted")
        with open(mounted, "w", encoding="ascii"):
            pass
        self.qmp.command(
            "block-export-add", type="fuse", id="f", node_name="slow", mountpoint=mounted,
            writable=True,
        )  # fmt: skip
        self.qmp.command(
            "block-export-add", type="nbd", id="s", node_name="slow", name="slow", writable=True
        )
        write = ["-f", "raw", "-c", "write 0 64k", tidemark.nbd_uri(self.path("nbd.sock"), "slow")]
        subprocess.run([*tidemark.tool("io"), *write], check=True, stdout=subprocess.DEVNULL)
        self.qmp.command("block-dirty-bitmap-add", node="disk", name="b", persistent=True)
        subprocess.run(self.guest_command, check=True, stdout=subprocess.DEVNULL)
        self.qmp.command("block-export-del", id="e")
        reopened = {"driver": "qcow2", "node-name": "disk", "file": "file", "read-only": True}
        with self.server.connect() as waiting:
            for pause in 0.3, 0:
                script = f"sleep {0.3 - pause}; truncate -s +1M {mounted}"
                grow = subprocess.Popen(["sh", "-c", script])
                self.addCleanup(grow.wait)
                self.addCleanup(self.storage.process.send_signal, signal.SIGCONT)
                time.sleep(pause)
                tidemark.freeze(self.storage.process.pid)
                message = {"execute": "blockdev-reopen", "arguments": {"options": [reopened]}}
                waiting.send_raw(json.dumps(message))
                time.sleep(1.5)
                subprocess.run(
                    [*tidemark.tool("io"), *write], check=True, timeout=20,
                    stdout=subprocess.DEVNULL,
                )  # fmt: skip
                self.assert_unanswered(waiting)
                self.storage.process.send_signal(signal.SIGCONT)
                self.assertIn("return", waiting.receive_answer())
                self.assertEqual(grow.wait(), 0)
                self.qmp.command("blockdev-reopen", options=[{**reopened, "read-only": False}])
                self.qmp.command(
                    "block-dirty-bitmap-add", node="disk", name=f"c{pause}", persistent=True
                )

    def give_the_disk_a_backing_file(self):
        self.qmp.command("block-export-del", id="e", mode="hard")
        tidemark.wait_until(lambda: not self.qmp.command("query-block-exports"), "no export")
        self.qmp.command("blockdev-del", node_name="disk")
        for node in (
            {"driver": "null-co", "node-name": "below", "size": 64 << 20, "read-zeroes": True},
            {"driver": "qcow2", "node-name": "disk", "file": "file", "backing": "below"},
            {"driver": "null-co", "node-name": "target", "size": 64 << 20},
        ):
            self.qmp.command("blockdev-add", **node)
        self.qmp.command("block-export-add", type="nbd", id="e", node_name="disk", writable=True)

    def change_another_graph(self):
        self.look_and_mark()
        self.qmp.command("blockdev-add", driver="null-co", node_name="n", size=1 << 20)
        self.qmp.command("blockdev-del", node_name="n")

    def wait_for_no_job(self):
        tidemark.wait_until(lambda: not self.qmp.command("query-jobs"), "the job's end")

    def test_a_job_begins_and_others_go_on_while_a_guest_waits(self):
        self.add_spare()
        self.give_the_disk_a_backing_file()
        more = {"job-id": "j", "device": "disk"}
        for command, arguments in (
            ("blockdev-mirror", {**more, "target": "target", "sync": "full"}),
            ("block-commit", {**more, "base-node": "below"}),
            ("blockdev-backup", {**more, "target": "target", "sync": "full"}),
            ("block-stream", more),
        ):
            with self.subTest(command), self.server.connect() as waiting:
                self.hang()
                waiting.send_raw(json.dumps({"execute": command, "arguments": arguments}))
                time.sleep(0.1)
                self.change_another_graph()
                self.assert_unanswered(waiting)
                self.storage.process.send_signal(signal.SIGCONT)
                self.assertIn("return", waiting.receive_answer(), command)
                self.qmp.execute("job-cancel", {"id": "j"})
                self.wait_for_no_job()

    def test_a_job_ends_and_others_go_on_while_a_guest_waits(self):
        """Also while a query waits for the same disk."""
        self.add_spare()
        self.give_the_disk_a_backing_file()
        more = {"job-id": "j", "device": "disk", "speed": 65536}
        for command, arguments in (
            ("blockdev-mirror", {**more, "target": "target", "sync": "full"}),
            ("block-commit", {**more, "base-node": "below"}),
            ("blockdev-backup", {**more, "target": "target", "sync": "full"}),
            ("block-stream", more),
        ):
            with self.subTest(command):
                answer = self.qmp.execute(command, arguments)
                self.assertIn("return", answer, command)
                self.hang()
                self.qmp.command("query-named-block-nodes")
                self.qmp.command("job-cancel", id="j")
                for _ in range(2):
                    self.change_another_graph()
                    self.qmp.execute("job-cancel", {"id": "j"})
                self.storage.process.send_signal(signal.SIGCONT)
                self.wait_for_no_job()

    def test_the_last_steps_of_a_job_on_a_disk_that_hangs(self):
        """They delay nobody, and the job can be cancelled."""
        self.add_spare()
        self.give_the_disk_a_backing_file()
        self.qmp.command("block-stream", job_id="j", device="disk", auto_finalize=False)
        tidemark.wait_until(lambda: self.job_status() == "pending", "the job's work")
        self.hang()
        self.qmp.command("job-finalize", id="j")  # is answered before that
        self.assertEqual(self.job_status(), "pending")
        self.change_another_graph()
        self.qmp.command("job-cancel", id="j")
        self.storage.process.send_signal(signal.SIGCONT)
        event = self.qmp.wait_event("BLOCK_JOB_CANCELLED")
        self.assertEqual(event["data"]["device"], "j")
        nodes = self.qmp.command("query-named-block-nodes", flat=True)
        (disk,) = (node for node in nodes if node["node-name"] == "disk")
        self.assertEqual(disk["backing_file_depth"], 1)

    def job_status(self):
        (job,) = self.qmp.command("query-jobs")
        return job["status"]

    def test_a_guest_goes_on_while_a_change_of_its_disk_waits_for_another_graph(self):
        """
        A job ends, or a snapshot is taken, while a write is in flight, and then a change hangs at
        another disk.
        """
        overlay = {"driver": "file", "filename": self.create("overlay.qcow2", "1M")}
        rule = {"event": "none", "iotype": "write", "sector": 0, "errno": 0, "delay-ns": 10**9}
        file = {"driver": "null-co", "size": 1 << 20}
        for node in (
            {"driver": "null-co", "node-name": "target", "size": 1 << 20},
            {"driver": "blkdebug", "node-name": "slow", "image": file, "inject-error": [rule]},
        ):
            self.qmp.command("blockdev-add", **node)
        self.qmp.command(
            "block-export-add", type="nbd", id="s", node_name="slow", name="slow", writable=True
        )
        guest = [*tidemark.tool("io"), "-f", "raw"]
        uri = tidemark.nbd_uri(self.path("nbd.sock"), "slow")
        subprocess.run(self.guest_command, check=True, stdout=subprocess.DEVNULL)
        self.qmp.command("block-export-del", id="e")
        reopened = {"driver": "qcow2", "node-name": "disk", "file": "file"}
        message = {"execute": "blockdev-reopen"}
        more = {"job-id": "j", "device": "slow", "target": "target", "sync": "full"}
        for number, command in enumerate(("blockdev-backup", "blockdev-mirror", "blockdev-add")):
            with (
                self.subTest(command),
                self.server.connect() as waiting,
                self.server.connect() as other,
            ):
                self.qmp.command(
                    "block-dirty-bitmap-add", node="disk", name=f"b{number}", persistent=True
                )
                if command == "blockdev-add":
                    self.qmp.command(
                        command, driver="qcow2", node_name="overlay", file=overlay, backing=None
                    )
                else:
                    self.assertIn("return", self.qmp.execute(command, {**more, "speed": 4096}))
                write = subprocess.Popen(
                    [*guest, "-c", "write 0 64k", uri], stdout=subprocess.DEVNULL
                )
                self.addCleanup(write.wait)
                self.addCleanup(write.kill)
                time.sleep(0.3)
                tidemark.freeze(self.storage.process.pid)
                if command == "blockdev-add":
                    snapshot = {"node": "slow", "overlay": "overlay"}
                    other.send_raw(
                        json.dumps({"execute": "blockdev-snapshot", "arguments": snapshot})
                    )
                    time.sleep(0.1)
                else:
                    self.qmp.command("block-job-cancel", device="j", force=True)
                message["arguments"] = {"options": [{**reopened, "read-only": True}]}
                waiting.send_raw(json.dumps(message))
                time.sleep(1.5)
                self.assert_unanswered(waiting)
                subprocess.run(
                    [*guest, "-c", "read 0 64k", uri], check=True, timeout=20,
                    stdout=subprocess.DEVNULL,
                )  # fmt: skip
                self.assertEqual(write.wait(), 0)
                self.storage.process.send_signal(signal.SIGCONT)
                self.assertIn("return", waiting.receive_answer())
                if command == "blockdev-add":
                    self.assertEqual(other.receive_answer(), {"return": {}})
                self.wait_for_no_job()
                self.qmp.command("blockdev-reopen", options=[{**reopened, "read-only": False}])

    def test_commands_for_the_same_disk_wait_their_turn(self):
        self.add_spare()
        self.qmp.command(
            "blockdev-add", driver="raw", node_name="above", file="disk", read_only=True,
        )  # fmt: skip
        add = {"node": "disk", "name": "b", "persistent": True}
        with self.server.connect() as first, self.server.connect() as second:
            tidemark.freeze(self.storage.process.pid)
            first.send_raw(json.dumps({"execute": "block-dirty-bitmap-add", "arguments": add}))
            time.sleep(0.1)
            # The node above is joined with it.
            remove = {"node-name": "above"}
            second.send_raw(json.dumps({"execute": "blockdev-del", "arguments": remove}))
            self.look_and_mark()
            self.assert_unanswered(second)
            self.storage.process.send_signal(signal.SIGCONT)
            self.assertIn("return", first.receive_answer())
            self.assertIn("return", second.receive_answer())
