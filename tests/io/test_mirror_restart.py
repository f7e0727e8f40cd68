# SPDX-License-Identifier: Apache-2.0
"""Mirrors that continue where they were interrupted (docs/mirror.md): the link is cut, either side
ends, guests write meanwhile. The copy is compared byte by byte, and what was sent is counted.
"""

import os
import random
import socket
import threading
import time
import unittest

import nbd_raw
from qmp import QmpError
from tidemark import TestCase, img, io, nbd_uri, run, tool

MIB = 1 << 20
SIZE = 48 * MIB
NAME = "move-1b7e"


class Link:
    """A socket that passes bytes on to another, until it is cut."""

    def __init__(self, path, to):
        self.path, self.to = path, to
        self.pairs = []
        self.passed = 0  # bytes from the client
        self.limit = None  # the link is cut when that has passed
        self.closed = False
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(path)
        self.listener.listen(16)
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while not self.closed:
            try:
                client, _ = self.listener.accept()
                server = socket.socket(socket.AF_UNIX)
                server.connect(self.to)
            except OSError:
                continue
            self.pairs.append((client, server))
            for source, sink in ((client, server), (server, client)):
                threading.Thread(target=self.copy, args=(source, sink), daemon=True).start()

    def copy(self, source, sink):
        try:
            while data := source.recv(65536):
                sink.sendall(data)
                if any(source is client for client, _ in self.pairs):
                    self.passed += len(data)
                    if self.limit is not None and self.passed >= self.limit:
                        self.cut()
        except OSError:
            pass

    def cut(self):
        pairs, self.pairs = self.pairs, []
        self.limit = None
        for pair in pairs:
            for end in pair:
                try:
                    end.shutdown(socket.SHUT_RDWR)
                except OSError:
                    pass
                end.close()

    def close(self):
        self.closed = True
        self.cut()
        self.listener.close()
        os.unlink(self.path)


class Case(TestCase):
    size = SIZE
    in_memory = True

    def setUp(self):
        super().setUp()
        self.random = random.Random()
        self.source = self.create("source", self.size)
        self.target = self.create("target", self.size)
        data = self.path("data")
        with open(data, "wb") as file:
            file.write(os.urandom(self.size))
        run(*tool("img"), "convert", "-n", "-f", "raw", "-O", "qcow2", data, self.source)
        os.unlink(data)
        img("bitmap", "--add", "-f", "qcow2", self.target, NAME)
        self.start_target()
        self.start_source()

    def start_target(self):
        sock = self.path("target.sock")
        if os.path.exists(sock):
            os.unlink(sock)
        self.there = self.daemon(
            *["--blockdev", f"file,node-name=file,filename={self.target}"],
            *["--blockdev", "qcow2,node-name=target,file=file"],
            *["--nbd-server", f"addr.type=unix,addr.path={sock}"],
            *["--export", f"nbd,id=e,node-name=target,name=t,writable=on,bitmaps.0={NAME}"],
            name="there",
        )
        self.link = Link(self.path("link"), sock)
        self.addCleanup(lambda link=self.link: link.closed or link.close())

    def start_source(self):
        sock = self.path("source.sock")
        if os.path.exists(sock):
            os.unlink(sock)
        self.here = self.daemon(
            *["--blockdev", f"file,node-name=file,filename={self.source}"],
            *["--blockdev", "qcow2,node-name=disk,file=file"],
            *["--nbd-server", f"addr.type=unix,addr.path={sock},max-connections=0"],
            *["--export", "nbd,id=e,node-name=disk,name=disk,writable=on"],
            name="here",
        )

    def guest_writes(self, count=8):
        """Random writes into the source."""
        with nbd_raw.RawClient(self.path("source.sock")) as client:
            client.go(b"disk", structured=False)
            for _ in range(count):
                offset = self.random.randrange(self.size // 4096) * 4096
                client.request(nbd_raw.WRITE, offset, 4096, payload=os.urandom(4096))
                self.assertEqual(client.simple_reply()[1], 0)

    def mirror(self, **more):
        """Connect to the target and start."""
        self.here.qmp.command(
            "blockdev-add",
            driver="nbd",
            node_name="remote",
            server={"type": "unix", "path": self.link.path},
            export="t",
        )
        self.here.qmp.command(
            "blockdev-mirror",
            **{
                "job-id": "move",
                "device": "disk",
                "target": "remote",
                "sync": "full",
                "auto-dismiss": False,
                "x-restart": {"bitmap": NAME},
                **more,
            },
        )

    def job(self):
        return self.here.qmp.command("query-jobs")[0]

    def wait_status(self, *wanted, timeout=30):
        deadline = time.monotonic() + timeout
        while (status := self.job()["status"]) not in wanted:
            self.assertLess(time.monotonic(), deadline, self.job())
            time.sleep(0.005)
        return status

    def end_job(self):
        self.wait_status("concluded")
        self.here.qmp.command("job-dismiss", id="move")
        self.here.qmp.command("blockdev-del", node_name="remote")

    def complete(self):
        """Let the mirror end; compare; how many bytes it had to copy."""
        self.assertEqual(self.wait_status("ready", "concluded"), "ready", self.job())
        total = self.job()["total-progress"]
        self.here.qmp.command("block-job-cancel", device="move")
        self.wait_status("concluded")
        self.assertNotIn("error", self.job())
        self.end_job()
        self.here.quit()
        self.there.quit()
        self.assertEqual(
            run("qemu-img", "compare", self.source, self.target).stdout.strip(),
            "Images are identical.",
        )
        return total

    def received(self):
        """Bytes that have arrived, by the bitmap of the target."""
        return self.there.qmp.bitmaps("target")[NAME]["count"]


class Restart(Case):
    def test_whole_mirror_leaves_no_bitmap_behind_after_the_pivot(self):
        self.mirror()
        self.wait_status("ready")
        self.assertIn(NAME, self.here.qmp.bitmaps("disk"))
        self.here.qmp.command("job-complete", id="move")
        self.wait_status("concluded")
        self.assertEqual(self.here.qmp.bitmaps("disk"), {})

    def cut_once(self, fraction):
        """Cut the link after a part; what had arrived, and what was left."""
        self.link.limit = self.link.passed + int(fraction * self.size)
        self.mirror()
        self.wait_status("concluded")
        self.assertIn("error", self.job())
        self.end_job()
        arrived = self.received()
        self.assertGreater(arrived, 0.7 * fraction * self.size)
        return arrived

    def test_what_arrived_is_not_sent_again(self):
        arrived = self.cut_once(0.6)
        self.mirror()
        total = self.complete()
        again = total - (self.size - arrived)
        self.assertLess(again, 0.05 * arrived)

    def test_what_guests_write_meanwhile_is_sent(self):
        self.cut_once(0.5)
        self.guest_writes(50)
        self.mirror()
        self.guest_writes(50)
        self.complete()

    def test_both_sides_end_in_order(self):
        arrived = self.cut_once(0.6)
        self.here.quit()
        self.there.quit()
        self.link.close()
        self.start_target()
        self.start_source()
        self.guest_writes(10)
        self.mirror()
        total = self.complete()
        self.assertLess(total - (self.size - arrived), 0.05 * arrived + 10 * 65536)

    def test_a_source_that_was_killed_while_it_mirrors_sends_little(self):
        arrived = self.cut_once(0.6)
        self.mirror()
        self.here.kill()
        self.start_source()
        self.mirror()
        # The window that was worked on, and the regions of the activity log that it is in.
        self.assertLess(self.complete() - (self.size - arrived), 0.2 * arrived + 2 * 1048576)

    def test_a_source_that_is_killed_again_and_again_gets_through(self):
        for n in range(4):
            self.link.limit = self.link.passed + int(self.random.uniform(0.05, 0.2) * self.size)
            self.mirror()
            self.guest_writes(5)
            if n % 2:
                self.wait_status("concluded")
            self.here.kill()
            self.link.close()
            self.there.quit()
            self.start_target()
            self.start_source()
            bitmap = self.here.qmp.bitmaps("disk")[NAME]
            self.assertFalse(bitmap.get("inconsistent"))
        self.mirror()
        self.complete()

    def test_a_source_that_was_killed_after_the_cut_sends_what_is_missing(self):
        arrived = self.cut_once(0.6)
        self.guest_writes(10)
        self.here.kill()
        self.start_source()
        self.mirror()
        # Each write may have made 1 MiB more dirty, in the activity log.
        self.assertLess(self.complete() - (self.size - arrived), 0.05 * arrived + 10 * 1048576)

    def test_a_target_that_was_killed_gets_everything(self):
        self.cut_once(0.6)
        self.there.kill()
        self.link.close()
        img("bitmap", "--remove", "-f", "qcow2", self.target, NAME)
        img("bitmap", "--add", "-f", "qcow2", self.target, NAME)
        self.start_target()
        self.mirror()
        self.complete()

    def test_a_new_mirror_does_not_trust_an_old_bitmap_of_the_target(self):
        io(nbd_uri(self.link.path, "t"), "write -P 0x55 0 12M", fmt="raw")
        self.cut_once(0.1)
        self.mirror()
        self.complete()

    def test_what_others_wrote_to_the_target(self):
        self.cut_once(0.6)
        self.there.qmp.command("block-dirty-bitmap-add", node="target", name="others")
        self.there.qmp.command("block-export-del", id="e", mode="hard")
        self.there.qmp.wait_event("BLOCK_EXPORT_DELETED")
        self.there.qmp.command(
            "block-export-add",
            **{"type": "nbd", "id": "e", "node-name": "target", "name": "t", "writable": True},
            bitmaps=[NAME, "others"],
        )
        io(nbd_uri(self.link.path, "t"), "write -P 0x55 1M 4M", fmt="raw")
        self.mirror(**{"x-restart": {"bitmap": NAME, "target-changes": "others"}})
        self.complete()

    def test_soft_cancel_leaves_a_base_for_the_next(self):
        self.mirror()
        self.wait_status("ready")
        self.here.qmp.command("block-job-cancel", device="move")
        self.end_job()
        self.guest_writes(10)
        self.mirror()
        self.assertLessEqual(self.complete(), 10 * 65536)

    def test_errors(self):
        for more, wanted in (
            ({"sync": "top"}, "needs sync 'full'"),
            ({"target-is-zero": True}, "exclude each other"),
        ):
            with self.subTest(wanted), self.assertRaises(QmpError) as caught:
                self.mirror(**more)
            self.assertIn(wanted, caught.exception.desc)
            self.here.qmp.command("blockdev-del", node_name="remote")
        self.here.qmp.command("block-dirty-bitmap-add", node="disk", name=NAME, disabled=True)
        with self.assertRaisesRegex(QmpError, "is disabled"):
            self.mirror()
        self.assertIsNone(self.here.qmp.node("mirror"))


class ManyCuts(Case):
    """The link, or a side, ends again and again, until the mirror is through."""

    cuts = 30

    def test_many_cuts(self):
        sent = 0
        for _ in range(self.cuts):
            mode = self.random.choice(("background", "write-blocking"))
            self.link.limit = self.link.passed + self.random.randrange(self.size // 20)
            try:
                self.mirror(**{"copy-mode": mode})
            except QmpError:  # cut before the start
                if self.here.qmp.node("remote"):
                    self.here.qmp.command("blockdev-del", node_name="remote")
                continue
            self.guest_writes(self.random.randrange(6))
            status = self.wait_status("concluded", "ready")
            sent += self.job()["current-progress"]
            if status == "ready":
                self.here.qmp.command("job-cancel", id="move")
            self.end_job()
            if self.random.random() < 0.2:
                self.here.quit()
                self.start_source()
            if self.random.random() < 0.2:
                self.link.close()
                self.there.quit()
                self.start_target()
        self.link.limit = None
        self.mirror()
        sent += self.complete()
        # Each cut may cost two windows, and what was in flight.
        self.assertLess(sent, 4 * self.size)


if __name__ == "__main__":
    unittest.main()
