# SPDX-License-Identifier: Apache-2.0
"""Jobs that are cancelled by force while their target or base does not answer: guests go on, other
commands are answered, and where the storage is a server the job ends without it.
"""

import errno
import os
import signal
import time
import unittest

import tidemark
from hung_file import HungFileCase
from nbd_raw import FLUSH, READ, WRITE, RawClient
from nbd_server import NbdServer, Nbdkit
from qmp import QmpError

MIB = 1 << 20
SIZE = 4 * MIB
END = 20  # a server is left after 5 s


class GiveUpCase(tidemark.TestCase):
    """Disk "disk", which guests use, and node "sick" behind a server of its own."""

    def setUp(self):
        super().setUp()
        self.disk = self.create("disk.raw", SIZE, "raw")
        self.far = self.create("far", SIZE, self.far_format())
        os.truncate(self.far, 4 * SIZE if self.far_format() == "qcow2" else SIZE)
        self.remote = self.own(NbdServer(self.dir, "-f", "raw", self.far))
        self.addCleanup(os.kill, self.remote.pid, signal.SIGCONT)
        self.nbd = self.path("guest.sock")
        self.server = self.daemon("--nbd-server", f"addr.type=unix,addr.path={self.nbd}")
        self.qmp = self.server.qmp
        self.add_nodes()
        self.qmp.command(
            "block-export-add", type="nbd", id="e", node_name="disk", name="e", writable=True
        )
        self.count = 0

    @staticmethod
    def far_format():
        return "raw"

    def far_node(self, **more):
        server = {"type": "unix", "path": self.remote.socket}
        return {"driver": "nbd", "server": server, **more}

    def add_nodes(self):
        self.qmp.command("blockdev-add", **self.far_node(**{"node-name": "sick"}))
        self.qmp.command("blockdev-add", driver="raw", node_name="disk",
                         file={"driver": "file", "filename": self.disk})  # fmt: skip

    def guest(self):
        client = RawClient(self.nbd, timeout=END)
        self.addCleanup(client.sock.close)
        client.go(b"e", structured=False)
        return client

    def use(self, client):
        self.count += 1
        data = bytes([self.count]) * 4096
        offset = self.count * 65536
        client.request(WRITE, offset, 4096, payload=data)
        self.assertEqual(client.simple_reply()[1], 0)
        client.request(READ, offset, 4096)
        self.assertEqual(client.simple_reply()[1], 0)
        self.assertEqual(client.receive(4096), data)
        client.request(FLUSH)
        self.assertEqual(client.simple_reply()[1], 0)

    def let_hang(self):
        tidemark.freeze(self.remote.pid)

    def resume(self):
        os.kill(self.remote.pid, signal.SIGCONT)

    def status(self, job="j"):
        return {j["id"]: j["status"] for j in self.other.command("query-jobs")}.get(job)

    def wait_status(self, status):
        tidemark.wait_until(lambda: self.status() == status, f"job j to be {status}", END)

    def start(self, command, **more):
        self.other = self.server.connect(timeout=END)
        self.addCleanup(self.other.close)
        self.qmp.command(command, job_id="j", **more)

    def start_ready(self, command="blockdev-mirror", **more):
        self.start(command, **more)
        self.qmp.wait_event("BLOCK_JOB_READY")

    def start_pending(self, command="blockdev-mirror", **more):
        self.start_ready(command, auto_finalize=False, **more)
        self.qmp.command("job-complete", id="j")
        self.qmp.wait_event("BLOCK_JOB_PENDING")

    def finalize(self):
        """It hangs, and commands of another monitor are answered."""
        self.qmp.send_raw('{"execute": "job-finalize", "arguments": {"id": "j"}}\n')
        with self.assertRaises(TimeoutError):
            self.qmp.sock.settimeout(0.3)
            self.qmp.receive_answer()
        self.qmp.sock.settimeout(END)
        self.other.command("query-named-block-nodes")
        self.assertEqual(self.status(), "pending")

    def is_in_flight(self, node):
        """Whether a request has reached the node, and has not ended."""
        stats = self.other.command("x-tidemark-query-stats", target="node")
        return any(s["labels"]["node"] == node and s["stats"].get("in-flight", 0) for s in stats)

    def wait_in_flight(self, node):
        tidemark.wait_until(lambda: self.is_in_flight(node), "the guest's write")

    def wait_cancelled(self):
        event = self.other.wait_event("BLOCK_JOB_CANCELLED", END)
        self.assertNotIn("error", event["data"])
        self.wait_status(None)
        self.assertEqual(self.other.command("query-block-exports")[0]["node-name"], "disk")


class Mirrors(GiveUpCase):
    mirror = {"device": "disk", "target": "sick", "sync": "full"}

    def waiting_guest(self):
        """Its write waits for the target."""
        guest = self.guest()
        guest.request(WRITE, 0, 4096, payload=b"w" * 4096)
        self.wait_in_flight("sick")
        return guest

    def check_all_goes_on(self, guest):
        self.assertEqual(guest.simple_reply()[1], 0)
        self.use(guest)
        self.use(self.guest())
        self.wait_cancelled()
        self.use(guest)
        self.assertIn("the connection is cut", self.server.log())

    def test_one_that_is_finalized(self):
        self.start_pending(**self.mirror)
        self.let_hang()
        guest = self.waiting_guest()
        self.finalize()
        for verb in "pause", "complete", "finalize":
            with self.assertRaisesRegex(QmpError, f"cannot accept command verb '{verb}'"):
                self.other.command(f"job-{verb}", id="j")
        self.other.command("job-cancel", id="j")
        self.check_all_goes_on(guest)
        self.assertIn("return", self.qmp.receive_answer())

    def test_one_that_waits_to_be_finalized(self):
        self.start_pending(**self.mirror)
        self.let_hang()
        guest = self.waiting_guest()
        self.other.command("job-cancel", id="j")
        self.check_all_goes_on(guest)

    def test_one_that_is_ready(self):
        self.start_ready(copy_mode="write-blocking", **self.mirror)
        self.let_hang()
        guest = self.waiting_guest()
        self.other.command("job-cancel", id="j")
        self.check_all_goes_on(guest)

    def test_one_that_is_cancelled_softly_first(self):
        self.start_ready(copy_mode="write-blocking", **self.mirror)
        self.let_hang()
        guest = self.waiting_guest()
        self.other.command("block-job-cancel", device="j")
        self.assertEqual(self.status(), "ready")
        self.other.command("block-job-cancel", device="j", force=True)
        self.check_all_goes_on(guest)

    def test_a_server_that_answers_is_not_left(self):
        self.start_pending(**self.mirror)
        self.let_hang()
        guest = self.waiting_guest()
        self.finalize()
        self.other.command("job-cancel", id="j")
        self.resume()
        self.assertEqual(guest.simple_reply()[1], 0)
        self.wait_cancelled()
        self.start_ready(**self.mirror)
        self.qmp.command("job-complete", id="j")
        self.assertNotIn("error", self.qmp.wait_event("BLOCK_JOB_COMPLETED")["data"])
        self.assertNotIn("is cut", self.server.log())
        self.use(guest)


class LastCopies(GiveUpCase):
    """What the target has refused is copied when the job is finalized, with the disk stopped."""

    def test_guests_do_not_wait_for_them_after_a_cancel(self):
        trigger = self.path("refuse")
        slow = self.own(
            Nbdkit(self.dir, "--filter=error", "--filter=delay", "memory", str(SIZE),
                   "error-pwrite=EIO", "error-pwrite-rate=100%", f"error-pwrite-file={trigger}",
                   f"wdelay={END}")
        )  # fmt: skip
        self.qmp.command("blockdev-add", driver="nbd", node_name="slow",
                         server={"type": "unix", "path": slow.socket})  # fmt: skip
        self.start_pending(device="disk", target="slow", sync="none")
        with open(trigger, "wb"):
            pass
        guest = self.guest()
        self.use(guest)
        os.unlink(trigger)
        self.finalize()
        guest.request(WRITE, 0, 4096, payload=b"w" * 4096)
        guest.sock.settimeout(0.3)
        with self.assertRaises(TimeoutError):
            guest.simple_reply()
        guest.sock.settimeout(END / 2)
        self.other.command("job-cancel", id="j")
        self.assertEqual(guest.simple_reply()[1], 0)
        self.assertNotIn("is cut", self.server.log())  # which takes 2.5 s at least
        self.wait_cancelled()
        self.use(guest)
        slow.kill()

    def test_guests_go_on_after_one_that_fails_like_a_cancel(self):
        """The target's error is ECANCELED, and nobody has cancelled the job."""
        fault = {"event": "none", "iotype": "write", "errno": errno.ECANCELED, "sector": 128}
        self.qmp.command("blockdev-add", driver="blkdebug", node_name="odd",
                         image=self.far_node(), **{"inject-error": [fault]})  # fmt: skip
        self.start_pending(device="disk", target="odd", sync="none")
        guest = self.guest()
        self.use(guest)
        self.qmp.command("job-finalize", id="j")
        self.wait_status(None)
        self.use(guest)


class SlowServers(GiveUpCase):
    """Servers that answer after a while are not left, whoever has given up requests before."""

    mirror = {"device": "disk", "target": "slow", "sync": "none", "copy_mode": "write-blocking"}

    def add_slow(self):
        slow = self.own(Nbdkit(self.dir, "--filter=delay", "memory", str(SIZE), "wdelay=700ms"))
        self.qmp.command("blockdev-add", driver="nbd", node_name="slow",
                         server={"type": "unix", "path": slow.socket})  # fmt: skip

    def write(self, guest):
        guest.request(WRITE, 0, 4096, payload=b"w" * 4096)
        self.wait_in_flight("slow")

    def check_not_left(self, guest):
        self.assertEqual(guest.simple_reply()[1], 0)
        self.wait_status(None)
        self.assertNotIn("is cut", self.server.log())

    def test_by_the_second_job_that_is_cancelled(self):
        self.add_slow()
        guest = self.guest()
        for _ in range(2):
            self.start_ready(**self.mirror)
            self.other.command("job-cancel", id="j")
            self.wait_cancelled()
        self.start_ready(**self.mirror)
        self.write(guest)
        self.other.command("job-cancel", id="j")
        self.check_not_left(guest)


class LastFlush(GiveUpCase):
    """A target whose flushes wait, each until the test lets it end."""

    def add_target(self):
        flushes = self.path("flush")
        target = self.own(
            Nbdkit(self.dir, "eval", "thread_model=echo parallel", f"get_size=echo {SIZE}",
                   "pread=head -c $3 /dev/zero", "can_write=exit 0", "pwrite=cat >/dev/null",
                   "can_flush=exit 0", f"flush=[ -e {flushes}.armed ] || exit 0;"
                   f" echo >>{flushes}; n=$(wc -l <{flushes});"
                   f" while [ ! -e {flushes}.$n ]; do sleep 0.05; done")
        )  # fmt: skip
        self.qmp.command("blockdev-add", driver="nbd", node_name="target",
                         server={"type": "unix", "path": target.socket})  # fmt: skip

    def let_end(self, name):
        with open(self.path(f"flush.{name}"), "x"):
            pass

    def wait_flush(self, number):
        path = self.path("flush")
        tidemark.wait_until(
            lambda: os.path.exists(path) and os.path.getsize(path) == number, "a flush"
        )

    def hang(self):
        """The guest, which goes on while the last flush hangs."""
        self.add_target()
        self.start_ready(device="disk", target="target", sync="none", copy_mode="write-blocking")
        guest = self.guest()
        self.write(guest)  # so there is something to flush
        self.let_end("armed")
        self.other.command("block-job-cancel", device="j")
        self.wait_flush(1)
        self.write(guest)
        self.let_end(1)
        self.wait_flush(2)
        self.read(guest)
        return guest

    def test_guests_go_on_when_it_hangs(self):
        """It is made while the disk is stopped, right after one that succeeded."""
        guest = self.hang()
        self.assertEqual(self.status(), "ready")
        for n in range(2, 9):
            self.let_end(n)
        self.assertNotIn("error", self.qmp.wait_event("BLOCK_JOB_COMPLETED")["data"])
        self.use(guest)

    def test_after_a_cancel_other_commands_stop_the_disk_although_it_hangs(self):
        guest = self.hang()
        self.other.command("block-job-cancel", device="j", force=True)
        self.other.command("block-dirty-bitmap-add", node="disk", name="b")
        self.assertTrue(self.is_in_flight("target"))
        for n in range(2, 9):
            self.let_end(n)
        self.wait_cancelled()
        self.use(guest)

    def write(self, guest):
        guest.request(WRITE, 0, 4096, payload=b"w" * 4096)
        self.assertEqual(guest.simple_reply()[1], 0)

    def read(self, guest):
        guest.request(READ, 0, 4096)
        self.assertEqual(guest.simple_reply()[1], 0)
        self.assertEqual(guest.receive(4096), b"w" * 4096)


class SlowRead(GiveUpCase):
    """A guest's read of the disk waits until the test lets it end."""

    def add_nodes(self):
        disk = self.own(
            Nbdkit(self.dir, "eval", "thread_model=echo parallel", f"get_size=echo {SIZE}",
                   f"pread=[ $4 != 65536 ] || while [ ! -e {self.path('end')} ]; do sleep 0.05;"
                   " done; head -c $3 /dev/zero", "can_write=exit 0", "pwrite=cat >/dev/null")
        )  # fmt: skip
        self.qmp.command("blockdev-add", driver="nbd", node_name="disk",
                         server={"type": "unix", "path": disk.socket})  # fmt: skip
        self.qmp.command("blockdev-add", **self.far_node(node_name="sick"))

    def read(self, guest):
        guest.request(READ, 0, 4096)
        self.assertEqual(guest.simple_reply()[1], 0)
        guest.receive(4096)

    def test_others_go_on_while_a_mirror_would_stop_the_disk(self):
        self.start_ready(device="disk", target="sick", sync="none")
        slow, guest = self.guest(), self.guest()
        slow.request(READ, 65536, 4096)
        self.wait_in_flight("disk")
        self.qmp.command("job-complete", id="j")
        for _ in range(10):
            self.read(guest)
            time.sleep(0.05)
        self.assertIn(self.status(), ("ready", "pending"))
        with open(self.path("end"), "x"):
            pass
        self.assertEqual(slow.simple_reply()[1], 0)
        slow.receive(4096)
        self.assertNotIn("error", self.qmp.wait_event("BLOCK_JOB_COMPLETED")["data"])


class Backups(GiveUpCase):
    def test_guests_write_although_the_target_hangs(self):
        """What they overwrite waits in memory, and gets to the target when that answers."""
        with open(self.disk, "r+b") as f:
            f.write(b"o" * SIZE)
        self.start("blockdev-backup", device="disk", target="sick", sync="full", speed=65536)
        guest = self.guest()
        self.let_hang()
        for _ in range(20):
            self.use(guest)
        self.assertEqual(self.status(), "running")
        self.resume()
        self.other.command("block-job-set-speed", device="j", speed=0)
        event = self.other.wait_event("BLOCK_JOB_COMPLETED", END)
        self.assertNotIn("error", event["data"])
        with open(self.far, "rb") as f:
            self.assertEqual(f.read(), b"o" * SIZE)

    def test_one_that_runs(self):
        self.start("blockdev-backup", device="disk", target="sick", sync="full", speed=65536)
        self.let_hang()
        guest = self.guest()
        guest.request(WRITE, 3 * MIB, 4096, payload=b"w" * 4096)
        self.other.command("block-job-set-speed", device="j", speed=0)
        self.other.command("job-cancel", id="j")
        self.assertEqual(guest.simple_reply()[1], 0)
        self.use(guest)
        self.wait_cancelled()
        self.use(guest)


class Commands(GiveUpCase):
    """Commands that stop the disk for a moment, while copies of a job hang on their target."""

    def start_and_let_hang(self, command, **more):
        with open(self.disk, "r+b") as f:
            f.write(b"o" * SIZE)
        self.start(command, device="disk", target="sick", sync="full", speed=65536, **more)
        self.let_hang()
        self.other.command("block-job-set-speed", device="j", speed=0)
        self.wait_in_flight("sick")

    def check_all_are_answered(self):
        guest = self.guest()
        self.use(guest)
        self.other.command("block-dirty-bitmap-add", node="disk", name="b")
        self.other.command("transaction", actions=[
            {"type": "block-dirty-bitmap-clear", "data": {"node": "disk", "name": "b"}},
            {"type": "block-dirty-bitmap-add", "data": {"node": "disk", "name": "c"}},
        ])  # fmt: skip
        self.use(guest)
        self.other.command("blockdev-add", driver="raw", node_name="above", file="disk")
        self.other.command("block-export-add", type="nbd", id="above", node_name="above")
        self.use(guest)
        self.other.command("block-export-del", id="above", mode="hard")
        self.other.wait_event("BLOCK_EXPORT_DELETED")
        self.other.command("blockdev-del", node_name="above")
        self.other.command("block-export-del", id="e", mode="hard")
        self.other.wait_event("BLOCK_EXPORT_DELETED")
        self.assertEqual(self.status(), "running")
        self.other.command("query-named-block-nodes")

    def check_job_ends(self, event):
        """Whoever stops the target has waited for the copies."""
        self.qmp.send_raw('{"execute": "block-dirty-bitmap-add",'
                          ' "arguments": {"node": "sick", "name": "b"}}\n')  # fmt: skip
        with self.assertRaises(TimeoutError):
            self.qmp.sock.settimeout(0.3)
            self.qmp.receive_answer()
        self.qmp.sock.settimeout(END)
        self.resume()
        self.assertIn("return", self.qmp.receive_answer())
        data = self.other.wait_event(event, END)["data"]
        self.assertNotIn("error", data)

    def test_beside_a_mirror(self):
        self.start_and_let_hang("blockdev-mirror")
        self.check_all_are_answered()
        self.check_job_ends("BLOCK_JOB_READY")

    def test_guests_go_on_while_one_waits_for_a_guest(self):
        """A guest's write waits for the target; reads do not, although the command does."""
        self.start_ready(device="disk", target="sick", sync="none", copy_mode="write-blocking")
        self.let_hang()
        waiting, guest = self.guest(), self.guest()
        waiting.request(WRITE, 0, 4096, payload=b"w" * 4096)
        self.wait_in_flight("sick")
        self.qmp.send_raw('{"execute": "block-dirty-bitmap-add",'
                          ' "arguments": {"node": "disk", "name": "b"}}\n')  # fmt: skip
        time.sleep(0.2)  # until the disk is stopped for the first time
        for _ in range(3):
            guest.request(READ, MIB, 4096)
            self.assertEqual(guest.simple_reply()[1], 0)
            guest.receive(4096)
            time.sleep(0.3)
        self.other.command("query-named-block-nodes")
        self.other.command("job-cancel", id="j")
        self.assertEqual(waiting.simple_reply()[1], 0)
        self.assertIn("return", self.qmp.receive_answer())
        self.use(guest)

    def test_beside_a_backup(self):
        self.start_and_let_hang("blockdev-backup")
        self.check_all_are_answered()
        self.check_job_ends("BLOCK_JOB_COMPLETED")
        with open(self.far, "rb") as f:
            self.assertEqual(f.read(), b"o" * SIZE)


class Commits(GiveUpCase):
    """The base of the disk is on the server."""

    @staticmethod
    def far_format():
        return "qcow2"

    def add_nodes(self):
        self.qmp.command("blockdev-add", driver="qcow2", node_name="base", file=self.far_node())
        for name, backing in ("mid", "base"), ("disk", "mid"):
            path = self.create(name + ".qcow2", SIZE)
            if name == "mid":
                tidemark.io(path, "write -P 3 0 64k", fmt="qcow2")
            self.qmp.command("blockdev-add", driver="qcow2", node_name=name, backing=backing,
                             file={"driver": "file", "filename": path})  # fmt: skip

    def write(self, guest, offset):
        """A whole cluster: nothing of it is in the base."""
        guest.request(WRITE, offset, 65536, payload=b"c" * 65536)

    def go_on(self, guest):
        self.write(guest, MIB)
        self.assertEqual(guest.simple_reply()[1], 0)

    def test_an_active_one_that_is_finalized(self):
        """The server is not left: it has a part of the disk."""
        self.start_pending("block-commit", device="disk")
        guest, waiting = self.guest(), self.guest()
        self.let_hang()
        self.write(waiting, 0)
        self.wait_in_flight("base")
        self.finalize()
        self.other.command("job-cancel", id="j")
        self.go_on(guest)
        self.assertIn(self.status(), ("pending", "aborting"))
        self.resume()
        self.assertEqual(waiting.simple_reply()[1], 0)
        self.wait_cancelled()
        self.go_on(guest)

    def test_one_of_an_image_between(self):
        """It has a bitmap, which the base has to store."""
        self.qmp.command("block-dirty-bitmap-add", node="mid", name="b", persistent=True)
        self.start("block-commit", device="disk", top_node="mid", auto_finalize=False)
        self.qmp.wait_event("BLOCK_JOB_PENDING")
        guest = self.guest()
        self.let_hang()
        self.finalize()
        self.go_on(guest)
        self.other.command("job-cancel", id="j")
        self.go_on(guest)
        self.resume()
        self.wait_cancelled()
        self.go_on(guest)


class Files(HungFileCase):
    """The target is a file that hangs. Nothing can leave it: the job ends when it answers."""

    def setUp(self):
        super().setUp()
        self.qmp = self.server.qmp
        self.qmp.command("block-export-del", id="sick", mode="hard")
        tidemark.wait_until(
            lambda: len(self.qmp.command("query-block-exports")) == 1, "the end of the export"
        )
        self.other = self.server.connect(timeout=10)
        self.addCleanup(self.other.close)

    @property
    def options(self):
        return "--trace", f"block_drain_begin,file={self.path('trace')}"

    def drains(self):
        """How often nodes have been stopped."""
        with open(self.path("trace"), encoding="utf-8") as trace:
            return len(trace.readlines())

    def status(self):
        return {j["id"]: j["status"] for j in self.other.command("query-jobs")}.get("j")

    def start_pending(self):
        self.qmp.command("blockdev-mirror", job_id="j", device="good", target="sick", sync="full",
                         auto_finalize=False)  # fmt: skip
        self.qmp.wait_event("BLOCK_JOB_READY")
        self.qmp.command("job-complete", id="j")
        self.qmp.wait_event("BLOCK_JOB_PENDING")

    def start_ready(self, **more):
        self.qmp.command("blockdev-mirror", job_id="j", device="good", target="sick", sync="full",
                         copy_mode="write-blocking", **more)  # fmt: skip
        self.qmp.wait_event("BLOCK_JOB_READY")

    def write_that_waits(self):
        """A guest's write that the target does not let through."""
        waiting = self.client("good")
        self.freeze()
        waiting.request(WRITE, 8192, 4096, payload=b"w" * 4096)
        tidemark.wait_until(
            lambda: any(
                s["labels"]["node"] == "sick" and s["stats"].get("in-flight", 0)
                for s in self.other.command("x-tidemark-query-stats", target="node")
            ),
            "the guest's write",
        )
        return waiting

    def end(self, waiting, guest):
        self.use(guest)
        self.thaw()
        self.assertEqual(waiting.simple_reply(), (1, 0))
        self.other.wait_event("BLOCK_JOB_CANCELLED")
        tidemark.wait_until(lambda: self.status() is None, "the end of the job")
        self.use(guest)

    def test_guests_go_on_although_the_file_of_the_target_hangs(self):
        """The job waits for it, and a write that is in flight."""
        self.start_pending()
        guest = self.client("good")
        self.use(guest)
        waiting = self.write_that_waits()
        self.qmp.send_raw('{"execute": "job-finalize", "arguments": {"id": "j"}}\n')
        tidemark.wait_until(lambda: self.status() == "pending", "the job")
        self.other.command("query-named-block-nodes")
        self.other.command("job-cancel", id="j")
        self.end(waiting, guest)

    def test_reads_go_on_when_one_is_completed_while_a_write_waits(self):
        self.start_ready()
        guest = self.client("good")
        waiting = self.write_that_waits()
        drains = self.drains()
        self.qmp.command("job-complete", id="j")
        time.sleep(0.3)  # until the job would have stopped the disk
        for _ in range(3):
            self.read(guest, 0)
        self.assertIn(self.status(), ("ready", "pending"))
        self.assertEqual(self.drains(), drains)
        self.qmp.command("job-cancel", id="j")
        self.end(waiting, guest)

    def test_guests_go_on_while_a_mirror_with_restart_follows_them(self):
        """Each second the job stops the disk, to see what is in the target."""
        self.start_ready(x_restart={"bitmap": "b"})
        guest = self.client("good")
        waiting = self.write_that_waits()
        time.sleep(1.5)  # until the job would have stopped the disk
        self.read(guest, 0)
        self.assertEqual(self.status(), "ready")
        self.qmp.command("job-cancel", id="j")
        self.end(waiting, guest)

    def test_guests_go_on_after_a_change_of_the_mode_and_a_cancel(self):
        """The job waits until the write has ended that began before the change."""
        self.start_ready()
        guest = self.client("good")
        waiting = self.write_that_waits()
        for mode in "background", "write-blocking":
            self.qmp.command("block-job-change", id="j", type="mirror", copy_mode=mode)
        time.sleep(0.3)  # until the job has stopped the disk
        self.qmp.command("job-pause", id="j")
        self.qmp.command("job-resume", id="j")
        self.qmp.command("job-cancel", id="j")
        self.end(waiting, guest)

    def test_a_finalize_does_not_keep_its_client_waiting(self):
        self.start_pending()
        guest = self.client("good")
        waiting = self.write_that_waits()
        self.qmp.command("job-finalize", id="j")
        self.assertEqual(self.status(), "pending")
        for verb in "pause", "complete", "finalize", "dismiss":
            with self.assertRaisesRegex(QmpError, f"cannot accept command verb '{verb}'"):
                self.qmp.command(f"job-{verb}", id="j")
        self.qmp.command("job-cancel", id="j")
        self.end(waiting, guest)

    def test_a_cancel_of_one_that_is_pending_does_not_keep_its_client_waiting(self):
        self.start_pending()
        guest = self.client("good")
        waiting = self.write_that_waits()
        self.qmp.command("job-cancel", id="j")
        self.assertEqual(self.status(), "aborting")
        with self.assertRaisesRegex(QmpError, "'aborting' cannot accept command verb 'cancel'"):
            self.qmp.command("job-cancel", id="j")
        self.qmp.command("blockdev-add", driver="null-co", node_name="n", size=MIB)
        self.qmp.command("blockdev-del", node_name="n")
        self.end(waiting, guest)

    def test_a_cancel_that_can_do_no_more_says_why(self):
        """A commit has a write in flight to a file that hangs, and nobody can take it back."""
        overlay = self.create("overlay.qcow2", "16M")
        tidemark.io(overlay, "write -P 7 0 8M", fmt="qcow2")
        file = {"driver": "file", "filename": overlay}
        self.qmp.command("blockdev-add", driver="qcow2", node_name="top", file=file, backing="sick")
        self.freeze()
        self.qmp.command("block-commit", job_id="j", device="top")
        time.sleep(0.3)
        began = time.monotonic()
        self.qmp.command("job-cancel", id="j")
        self.assertEqual(self.status(), "running")

        def is_refused():
            try:
                self.qmp.command("job-cancel", id="j")
            except QmpError as refusal:
                self.assertIn("can't end yet", str(refusal))
                self.assertIn(self.sick, str(refusal))
                return True
            return False

        tidemark.wait_until(is_refused, "a refusal", 20)
        self.assertGreater(time.monotonic() - began, 4)
        tidemark.wait_until(lambda: "can't end yet" in self.server.log(), "the log", 10)
        self.use(self.client("good"))
        self.thaw()
        self.other.wait_event("BLOCK_JOB_CANCELLED")
        tidemark.wait_until(lambda: self.status() is None, "the end of the job")
        self.qmp.command("blockdev-del", node_name="top")


if __name__ == "__main__":
    unittest.main()
