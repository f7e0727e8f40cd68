# SPDX-License-Identifier: Apache-2.0
"""What a client got acknowledged as stable is stable: FUA and flushes reach whatever stores the
data.
"""

import os
import re

import nbd
from nbd_server import Nbdkit, NbdServer
from tidemark import TestCase, nbd_uri, run

SIZE = 4 << 20
FUA = nbd.CMD_FLAG_FUA
CHANGE = re.compile(r" (Write|Trim|Zero) id=\d+ .*\bfua=([01])")


class Recorded(TestCase):
    """A server of ours on a server that logs what it is asked."""

    def setUp(self):
        super().setUp()
        self.log = self.path("requests")
        self.below = self.own(
            Nbdkit(self.dir, "--filter=log", "memory", f"size={SIZE}", f"logfile={self.log}")
        )

    def connect(self, *arguments):
        words = ("-f", "raw", "--discard=unmap", *arguments, self.below.uri())
        handle = nbd.NBD()
        handle.connect_unix(self.own(NbdServer(self.dir, *words)).socket)
        return handle

    def requests(self):
        """What arrived since the last call: "Write", "Write+", "Trim", "Zero", with + for FUA, and
        "Flush".
        """
        with open(self.log, encoding="utf-8") as log:
            lines = log.readlines()
        fresh, self.seen = lines[getattr(self, "seen", 0) :], len(lines)
        found = []
        for line in fresh:
            change = CHANGE.search(line)
            if change:
                found.append(change.group(1) + ("+" if change.group(2) == "1" else ""))
            elif re.search(r" Flush id=", line):
                found.append("Flush")
        return found

    def assert_stable(self, change, word):
        """`change` was made, and made stable by itself or by a flush after it."""
        self.requests()
        change()
        found = self.requests()
        self.assertIn(word, {name.rstrip("+") for name in found}, found)
        last = max(i for i, name in enumerate(found) if name.rstrip("+") == word)
        self.assertTrue(found[last].endswith("+") or "Flush" in found[last:], found)

    def assert_not_flushed(self, change, word):
        self.requests()
        change()
        self.assertEqual(set(self.requests()), {word})


class Server(Recorded):
    def test_write_with_fua(self):
        handle = self.connect()
        self.assert_stable(lambda: handle.pwrite(b"a" * 4096, 4096, FUA), "Write")

    def test_write_without_fua_is_not_slowed_down(self):
        handle = self.connect()
        self.assert_not_flushed(lambda: handle.pwrite(b"a" * 4096, 4096), "Write")

    def test_zeroes_with_fua(self):
        handle = self.connect()
        self.assert_stable(lambda: handle.zero(65536, 65536, FUA), "Zero")

    def test_trim_with_fua(self):
        handle = self.connect()
        self.assert_stable(lambda: handle.trim(65536, 65536, FUA), "Trim")

    def test_flush(self):
        handle = self.connect()
        handle.pwrite(b"a" * 4096, 4096)
        self.requests()
        handle.flush()
        self.assertEqual(self.requests(), ["Flush"])

    def test_writethrough_makes_each_change_stable(self):
        handle = self.connect("--cache=writethrough")
        self.assert_stable(lambda: handle.pwrite(b"a" * 4096, 4096), "Write")
        self.assert_stable(lambda: handle.zero(65536, 65536), "Zero")
        self.assert_stable(lambda: handle.trim(65536, 65536), "Trim")


class Leaver(Recorded):
    """What one client wrote and did not flush is made stable by the flush of another."""

    def client(self, daemon, name, writable):
        daemon.qmp.command("block-export-add", type="nbd", id=name, name=name, writable=writable,
                           **{"node-name": "disk"})  # fmt: skip
        handle = nbd.NBD()
        handle.connect_uri(nbd_uri(self.path("nbd.sock"), name))
        return handle

    def test_flushes_after_a_writer_has_left(self):
        below = f"driver=nbd,server.type=unix,server.path={self.below.socket}"
        daemon = self.daemon(
            "--blockdev", f"{below},node-name=below", "--blockdev", "driver=raw,node-name=disk,file=below",
            "--nbd-server", f"addr.type=unix,addr.path={self.path('nbd.sock')}",
        )  # fmt: skip
        writer = self.client(daemon, "writer", True)
        writer.pwrite(b"a" * 4096, 0)
        writer.shutdown()
        daemon.qmp.command("block-export-del", id="writer", mode="hard")
        self.client(daemon, "reader", False).flush()
        self.client(daemon, "another", True).flush()
        self.assertIn("Flush", self.requests())


class Format(Recorded):
    """FUA of a guest is a commit of qcow2."""

    def test_write_with_fua_into_qcow2(self):
        run(os.path.join(os.environ["TIDEMARK_BUILD"], "tidemark"), "img", "create", "-q", "-f",
            "qcow2", self.below.uri(), "2M")  # fmt: skip
        handle = nbd.NBD()
        server = self.own(NbdServer(self.dir, "-f", "qcow2", self.below.uri()))
        handle.connect_unix(server.socket)
        self.assert_stable(lambda: handle.pwrite(b"a" * 4096, 4096, FUA), "Write")


class File(TestCase):
    """A file of ours, watched from outside. The engine of threads makes calls that strace can see.
    """

    def calls(self, *commands, inject=()):
        disk = self.path("disk.raw")
        with open(disk, "wb") as f:
            f.truncate(SIZE)
        trace = self.path("trace")
        words = [w for command in commands for w in ("-c", command)]
        run("strace", "-f", "-qq", "-o", trace, "-e", "trace=pwritev2,fdatasync,fsync,pwritev", *inject,
            os.path.join(os.environ["TIDEMARK_BUILD"], "tidemark"), "io", "-t", "writeback", "-f", "raw", *words, disk,
            env={**os.environ, "TIDEMARK_LOOP": "epoll"})  # fmt: skip
        with open(trace, encoding="utf-8") as f:
            return f.read()

    def test_write_with_fua_is_synced_by_the_system(self):
        self.assertRegex(self.calls("write -f 0 4k"), r"pwritev2\(.*RWF_DSYNC")

    def test_write_with_fua_is_synced_where_the_system_knows_no_such_writes(self):
        calls = self.calls("write -f 0 4k", "write 0 4k", inject=("-e", "inject=pwritev2:error=EOPNOTSUPP"))
        self.assertRegex(calls, r"(?s)pwritev\(.*fdatasync\(\d+.*pwritev\(")

    def test_flush_is_a_sync(self):
        calls = self.calls("write 0 4k", "flush", "write 0 4k")
        self.assertRegex(calls, r"(?s)fdatasync\(\d+.*pwritev\(")
