# SPDX-License-Identifier: Apache-2.0
"""Persistent bitmaps after a crash: with the activity log they have all that was written, whatever
is killed, and at most as much in excess as the log has room for."""

import json
import os
import random
import struct
import threading
import unittest

import nbd
from nbd_server import NbdServer
from qmp import QmpError
from tidemark import (
    Daemon, TestCase, can_connect, compat, img, io, nbd_uri, qemu_img, qemu_io, run, wait_until,
)  # fmt: skip

K, M = 1024, 1048576
SIZE = 64 * M
GRANULARITY = 64 * K
AUTOCLEAR_ACTIVITY = 1 << 62
EXT_ACTIVITY = 0x54444C47
AUTOCLEAR_EXCESS = 1 << 60
EXT_EXCESS = 0x54444445
EXT_BITMAPS = 0x23852875


class Header:
    """What the header of an image says about the log."""

    def __init__(self, path):
        with open(path, "rb") as f:
            self.bytes = f.read(65536)
        self.autoclear = struct.unpack_from(">Q", self.bytes, 88)[0]
        self.extensions = {}
        at = struct.unpack_from(">I", self.bytes, 100)[0]
        while True:
            kind, size = struct.unpack_from(">II", self.bytes, at)
            if kind == 0:
                break
            self.extensions[kind] = self.bytes[at + 8 : at + 8 + size]
            at += 8 + (size + 7) // 8 * 8

    def has_log(self):
        return bool(self.autoclear & AUTOCLEAR_ACTIVITY)


class Case(TestCase):
    in_memory = True

    def setUp(self):
        super().setUp()
        self.image = self.path("a.qcow2")
        self.make()

    def make(self, size=SIZE, bitmap="b", options="cluster_size=64k"):
        img("create", "-q", "-f", "qcow2", "-o", options, self.image, str(size))
        img("bitmap", "--add", "-f", "qcow2", "-g", "64k", self.image, bitmap)

    def serve(self, durable=None, more=""):
        level = f",durable-bitmaps={durable}" if durable else ""
        options = f"driver=qcow2,discard=unmap,file.driver=file,file.filename={self.image}{level}{more}"
        return self.own(NbdServer(self.dir, "--image-opts", options))

    def connect(self, server):
        h = nbd.NBD()
        h.connect_unix(server.socket)
        return h

    def dirty(self, bitmap="b"):
        """The granules that are dirty, as a reader of the image sees them."""
        found, at = set(), 0
        server = NbdServer(self.dir, "-r", "-f", "qcow2", "-B", bitmap, self.image, name="reader")
        h = nbd.NBD()
        h.add_meta_context(f"qemu:dirty-bitmap:{bitmap}")
        h.connect_unix(server.socket)

        def extent(_context, _offset, entries, _error):
            nonlocal at
            for length, flags in zip(entries[::2], entries[1::2]):
                if flags:
                    found.update(range(at // GRANULARITY, -(-(at + length) // GRANULARITY)))
                at += length

        while at < h.get_size():
            h.block_status(min(h.get_size() - at, 1 << 30), at, extent)
        h.shutdown()
        server.stop()
        return found

    def flags(self, bitmap="b"):
        info = json.loads(img("info", "-U", "--output=json", "-f", "qcow2", self.image).stdout)
        for b in info["format-specific"]["data"].get("bitmaps", []):
            if b["name"] == bitmap:
                return b["flags"]
        return None

    def state(self, bitmap="b"):
        info = json.loads(img("info", "-U", "--output=json", "-f", "qcow2", self.image).stdout)
        bitmaps = info["format-specific"]["data"]["bitmaps"]
        return {b["name"]: b["x-tidemark-state"] for b in bitmaps}[bitmap]

    def kill(self, server):
        """The kernel closes the sockets of a process only when its last I/O has ended."""
        server.kill()
        wait_until(lambda: not can_connect(server.socket), "the end of the server")

    def killed_after(self, writes, durable=None, more=""):
        """Write and flush, then kill the server."""
        server = self.serve(durable, more)
        h = self.connect(server)
        for offset, length in writes:
            h.pwrite(b"x" * length, offset)
        h.flush()
        self.kill(server)

    def check(self, may_leak=False):
        status = img("check", "-q", "-f", "qcow2", self.image, check=False).returncode
        self.assertIn(status, (0, 3) if may_leak else (0,))
        status = qemu_img("check", "-q", "-f", "qcow2", self.image, check=False).returncode
        self.assertIn(status, (0, 3))
        return status


class AfterACrash(Case):
    def test_all_that_was_written_is_dirty_and_little_else(self):
        self.killed_after([(5 * M, 4 * K), (20 * M, 200 * K)])
        exact = {80, 320, 321, 322, 323}
        self.assertEqual(self.dirty() & exact, exact)
        self.assertLessEqual(len(self.dirty()), len(exact) + 16)
        self.assertEqual(self.flags(), ["in-use", "auto"])
        self.check()

    def test_it_stays_so_however_often_it_is_opened_for_reading(self):
        self.killed_after([(5 * M, 4 * K)])
        before = self.dirty()
        qemu_io(self.image, "read 0 4k", fmt="qcow2", options=("-r",))
        io(self.image, "read 0 4k", fmt="qcow2", options=("-r",))
        self.assertEqual(self.dirty(), before)

    def test_an_open_for_writing_and_a_close_make_it_clean(self):
        self.killed_after([(5 * M, 4 * K)])
        before = self.dirty()
        io(self.image, "read 0 4k", fmt="qcow2")
        self.assertEqual(self.dirty(), before)
        self.assertEqual(self.flags(), ["auto"])
        self.assertFalse(Header(self.image).has_log())
        self.assertEqual(self.check(), 0)

    def test_crash_after_crash_adds_up(self):
        written = set()
        for i in range(4):
            self.killed_after([(i * 15 * M, 4 * K)])
            written.add(i * 15 * 16)
            self.assertLessEqual(written, self.dirty())

    def test_discards_and_zeroes_count(self):
        io(self.image, "write -P 7 0 4M", fmt="qcow2")
        img("bitmap", "--clear", "-f", "qcow2", self.image, "b")
        server = self.serve()
        h = self.connect(server)
        h.trim(64 * K, 1 * M)
        h.zero(64 * K, 2 * M)
        h.zero(64 * K, 3 * M, nbd.CMD_FLAG_NO_HOLE)
        self.kill(server)
        self.assertLessEqual({16, 32, 48}, self.dirty())

    def test_a_program_that_does_not_know_the_log_makes_it_void(self):
        self.killed_after([(5 * M, 4 * K)])
        self.assertTrue(Header(self.image).has_log())
        qemu_io(self.image, "write 9M 4k", fmt="qcow2")
        self.assertFalse(Header(self.image).has_log())
        io(self.image, "write 11M 4k", fmt="qcow2")
        info = img("info", "-f", "qcow2", self.image).stdout
        self.assertIn("in-use", info)
        self.assertNotIn(EXT_ACTIVITY, Header(self.image).extensions)
        img("bitmap", "--remove", "-f", "qcow2", self.image, "b")
        img("bitmap", "--add", "-f", "qcow2", self.image, "b")
        self.assertEqual(self.dirty(), set())

    def test_repair_by_a_program_that_does_not_know_it(self):
        self.killed_after([(5 * M, 4 * K)])
        self.assertEqual(self.check(), 3)
        qemu_img("check", "-q", "-f", "qcow2", "-r", "leaks", self.image, check=False)
        qemu_io(self.image, *[f"write -P {i} {i}M 1M" for i in range(1, 40)], fmt="qcow2")
        io(self.image, "write 50M 4k", *[f"read -P {i} {i}M 1M" for i in range(1, 40)], fmt="qcow2")
        self.assertEqual(self.check(), 0)
        self.assertIn("in-use", self.flags())

    def test_repair_of_ours_keeps_it(self):
        self.killed_after([(5 * M, 4 * K)])
        before = self.dirty()
        img("check", "-q", "-f", "qcow2", "-r", "all", self.image)
        self.assertEqual(self.dirty(), before)
        self.check()

    def test_an_inconsistent_bitmap_stays_so_beside_others(self):
        """It was left by another program; the log says nothing of it."""
        self.killed_after([(5 * M, 4 * K)], durable="off")
        img("bitmap", "--add", "-f", "qcow2", "-g", "64k", self.image, "c")
        self.killed_after([(7 * M, 4 * K)])
        io(self.image, "write 8M 4k", fmt="qcow2")
        self.assertLessEqual({112, 128}, self.dirty("c"))
        self.assertIn("in-use", self.flags("b"))
        result = img("bitmap", "--merge", "b", "-f", "qcow2", self.image, "c", check=False)
        self.assertIn("inconsistent", result.stderr)
        img("resize", "-f", "qcow2", self.image, "+1M", check=False)
        img("bitmap", "--remove", "-f", "qcow2", self.image, "b")
        img("resize", "-q", "-f", "qcow2", self.image, "70M")
        self.assertLessEqual({112, 128}, self.dirty("c"))

    def test_a_damaged_log_is_not_used(self):
        self.killed_after([(5 * M, 4 * K)])
        at = Header(self.image).bytes.index(struct.pack(">I", EXT_ACTIVITY)) + 8
        with open(self.image, "r+b") as f:
            for field, value in ((4, ">I"), (8, ">Q"), (16, ">Q")):
                f.seek(at + field)
                f.write(struct.pack(value, 0x7FFFFFFF))
                f.flush()
                result = img("info", "-f", "qcow2", self.image)
                self.assertIn("activity log", result.stderr)
        io(self.image, "write 0 4k", fmt="qcow2")
        self.assertIn("in-use", self.flags())


class Levels(Case):
    def test_off_is_what_qemu_does(self):
        self.killed_after([(5 * M, 4 * K)], durable="off")
        self.assertFalse(Header(self.image).has_log())
        self.assertIn("in-use", self.flags())

    def test_a_disk_whose_flushes_are_ignored_has_none(self):
        self.killed_after([(5 * M, 4 * K)], more=",cache.no-flush=on")
        self.assertFalse(Header(self.image).has_log())

    def test_programs_named_as_qemus_do_what_they_do(self):
        run(compat("qemu-io"), "-f", "qcow2", "-c", "write 0 4k", "-c", "abort", self.image, check=False)
        self.assertFalse(Header(self.image).has_log())

    def test_an_unknown_level_is_refused(self):
        result = io(
            f"driver=qcow2,file.driver=file,file.filename={self.image},durable-bitmaps=maybe",
            "read 0 4k", options=("--image-opts",), check=False,
        )  # fmt: skip
        self.assertIn("durable-bitmaps", result.stderr)

    def test_what_is_in_excess_has_a_limit(self):
        rng = random.Random(5)
        for durable in "process", "power":
            self.make(1024 * M)
            writes = [(rng.randrange(1024 * M // (4 * K)) * 4 * K, 4 * K) for _ in range(2000)]
            self.killed_after(writes, durable, ",durable-bitmaps-size=4M")
            exact = {offset // GRANULARITY for offset, _ in writes}
            self.assertLessEqual(exact, self.dirty())
            self.assertLessEqual(len(self.dirty() - exact), 4 * M // GRANULARITY)
            # One image after another: what is dirty is stable, whatever was hot then.
            self.assertGreater(len(exact), 1500)

    def test_sequential_writes_heat_ahead(self):
        self.killed_after([(i * 64 * K, 64 * K) for i in range(512)])
        self.assertLessEqual(set(range(512)), self.dirty())
        self.assertLessEqual(len(self.dirty()), 512 + 16)


class CleanClose(Case):
    def test_it_leaves_a_plain_image(self):
        server = self.serve()
        h = self.connect(server)
        h.pwrite(b"x" * 65536, 0)
        self.assertTrue(Header(self.image).has_log())
        h.shutdown()
        server.stop()
        header = Header(self.image)
        self.assertEqual(header.autoclear, 1)
        self.assertNotIn(EXT_ACTIVITY, header.extensions)
        self.assertNotIn(b"activity", header.bytes)
        self.assertEqual(self.check(), 0)
        self.assertEqual(self.dirty(), {0})
        self.assertEqual(self.flags(), ["auto"])

    def test_an_image_without_recording_bitmaps_has_no_log(self):
        img("bitmap", "--disable", "-f", "qcow2", self.image, "b")
        self.killed_after([(5 * M, 4 * K)])
        self.assertFalse(Header(self.image).has_log())
        self.assertEqual(self.dirty(), set())
        self.assertEqual(self.flags(), [])


class Excess(Case):
    """What is dirty in excess is known as long as it is."""

    def setUp(self):
        super().setUp()
        img("bitmap", "--add", "--disable", "-f", "qcow2", self.image, "frozen")
        self.killed_after([(5 * M, 4 * K), (40 * M, 4 * K)])
        self.hot = 2 * GRANULARITY

    def open_and_close(self, offset=40 * M):
        io(self.image, f"write -q {offset} 4k", fmt="qcow2")

    def test_small_clusters_leave_no_room_for_it(self):
        os.unlink(self.image)
        self.make(options="cluster_size=2k")
        self.killed_after([(5 * M, 4 * K), (40 * M, 4 * K)])
        self.open_and_close()
        header = Header(self.image)
        self.assertEqual(header.autoclear, 1)
        self.assertNotIn(EXT_EXCESS, header.extensions)

    def test_a_clean_close_keeps_it(self):
        reason = self.state()["reason"]
        for _ in range(2):
            self.open_and_close()
            header = Header(self.image)
            self.assertEqual(header.autoclear, 1 | AUTOCLEAR_EXCESS)
            self.assertEqual(
                header.extensions[EXT_EXCESS], struct.pack(">IIQ", self.entry("b"), 1, self.hot)
            )
            self.assertEqual(
                self.state(), {"kind": "superset", "reason": reason, "excess": self.hot}
            )
            self.assertEqual(self.state("frozen"), {"kind": "exact"})
            self.assertEqual(self.check(), 0)
            info = qemu_img("info", "--output=json", self.image).stdout
            self.assertEqual(len(json.loads(info)["format-specific"]["data"]["bitmaps"]), 2)

    def entry(self, name):
        """Its number in the directory."""
        info = json.loads(qemu_img("info", "--output=json", self.image).stdout)
        return [b["name"] for b in info["format-specific"]["data"]["bitmaps"]].index(name)

    def test_it_ends_with_the_bitmap_it_is_of(self):
        self.open_and_close()
        img("bitmap", "--clear", "-f", "qcow2", self.image, "b")
        self.assertEqual(self.state(), {"kind": "exact"})
        header = Header(self.image)
        self.assertEqual(header.autoclear, 1)
        self.assertNotIn(EXT_EXCESS, header.extensions)
        self.assertNotIn(b"excess", header.bytes)

    def test_a_merge_takes_it_along(self):
        self.open_and_close()
        img("bitmap", "--merge", "b", "-f", "qcow2", self.image, "frozen")
        img("bitmap", "--remove", "-f", "qcow2", self.image, "b")
        self.assertEqual(self.state("frozen")["excess"], self.hot)

    def test_it_is_no_more_than_what_is_dirty(self):
        """Several regions are in one granule of the bitmap they are merged into."""
        self.killed_after([(9 * M, 4 * K), (9 * M + 192 * K, 4 * K)])
        img("bitmap", "--add", "--disable", "-g", "64M", "-f", "qcow2", self.image, "coarse")
        img("bitmap", "--merge", "b", "-f", "qcow2", self.image, "coarse")
        self.assertGreaterEqual(self.state()["excess"], 3 * GRANULARITY)
        self.assertEqual(self.state("coarse")["excess"], SIZE)
        img("resize", "-q", "-f", "qcow2", self.image, "128M")
        self.assertEqual(self.state("coarse")["excess"], SIZE)
        node = json.dumps({"driver": "qcow2", "node-name": "d", "file": {"driver": "file", "filename": self.image}})
        server = self.daemon("--blockdev", node)
        found = server.qmp.bitmaps("d")["coarse"]
        self.assertEqual(found["count"], SIZE)
        self.assertEqual(found["x-tidemark-state"]["excess"], SIZE)

    def test_operations_on_chains_and_copies_take_it_along(self):
        base, copy = self.path("base.qcow2"), self.path("copy.qcow2")
        img("create", "-q", "-f", "qcow2", base, str(SIZE))
        img("bitmap", "--add", "-f", "qcow2", "-g", "256k", base, "b")
        img("create", "-q", "-f", "qcow2", "-b", base, "-F", "qcow2", self.image)
        img("bitmap", "--add", "-f", "qcow2", "-g", "64k", self.image, "b")
        self.killed_after([(5 * M, 4 * K), (40 * M, 4 * K)])
        overlay = self.image
        img("convert", "-f", "qcow2", "-O", "qcow2", "--bitmaps", overlay, copy)
        img("commit", "-f", "qcow2", overlay)
        for self.image, expected in (overlay, self.hot), (copy, self.hot), (base, 4 * self.hot):
            self.assertEqual(self.state()["excess"], expected)

    def test_a_transaction_that_fails_changes_nothing_of_it(self):
        self.open_and_close()
        fails = ("block-dirty-bitmap-remove", {"node": "disk", "name": "no such bitmap"})
        file = {"driver": "file", "filename": self.image}
        node = {"driver": "qcow2", "node-name": "disk", "file": file}
        daemon = self.own(Daemon(self.dir, "--blockdev", json.dumps(node)))
        with daemon.connect() as qmp:
            for action in (
                ("block-dirty-bitmap-clear", {"node": "disk", "name": "b"}),
                ("block-dirty-bitmap-merge", {"node": "disk", "target": "frozen", "bitmaps": ["b"]}),
            ):
                with self.assertRaises(QmpError):
                    qmp.transaction(action, fails)
                state = {name: b["x-tidemark-state"] for name, b in qmp.bitmaps("disk").items()}
                self.assertEqual(state["b"]["excess"], self.hot)
                self.assertEqual(state["frozen"], {"kind": "exact"})
        daemon.quit()
        self.assertEqual(self.state()["excess"], self.hot)
        self.assertEqual(self.state("frozen"), {"kind": "exact"})

    def test_what_another_program_did_makes_none_exact(self):
        self.open_and_close()
        for command in (("--merge", "b"), ("--merge", "frozen")):
            qemu_img("bitmap", *command, "-f", "qcow2", self.image, "frozen" if "b" in command else "b")
        self.assertEqual(Header(self.image).autoclear, 1)
        for _ in range(2):
            for name in "b", "frozen":
                self.assertEqual(self.state(name)["kind"], "superset")
                self.assertEqual(self.state(name)["excess"], self.hot)
            self.open_and_close()

    def test_it_counts_granules_that_are_larger_than_regions(self):
        img("bitmap", "--add", "-f", "qcow2", "-g", "2M", self.image, "coarse")
        self.killed_after([(5 * M, 4 * K), (40 * M, 4 * K)])
        self.assertEqual(self.state("coarse")["excess"], 2 * 2 * M)
        self.open_and_close()
        self.assertEqual(self.state("coarse")["excess"], 2 * 2 * M)

    def test_a_second_crash_adds_to_it(self):
        self.killed_after([(20 * M, 4 * K)])
        self.open_and_close()
        self.assertGreaterEqual(self.state()["excess"], 3 * GRANULARITY)
        self.assertLessEqual({80, 320, 640}, self.dirty())
        self.assertEqual(len(self.dirty()), 3)


class Unreadable(Case):
    """A cluster of bits is on a part of the storage that can't be read."""

    def setUp(self):
        super().setUp()
        io(self.image, "write -q 3M 4k", fmt="qcow2")
        self.server = self.own(
            Daemon(
                self.dir,
                "--blockdev", json.dumps(self.disk(self.bits())),
                "--nbd-server", f"addr.type=unix,addr.path={self.path('nbd')}",
                "--export", "nbd,id=e,node-name=disk,name=disk,writable=on",
            )
        )  # fmt: skip
        self.qmp = self.server.qmp

    def bits(self):
        """Where the cluster of bits of the only bitmap is."""
        with open(self.image, "rb") as f:
            directory = struct.unpack_from(">Q", Header(self.image).extensions[EXT_BITMAPS], 16)[0]
            f.seek(directory)
            f.seek(struct.unpack(">Q", f.read(8))[0])
            return struct.unpack(">Q", f.read(8))[0]

    def disk(self, bad):
        rules = [
            {"event": "none", "iotype": "read", "sector": bad // 512, "once": False}
        ]
        file = {"driver": "file", "filename": self.image}
        return {
            "driver": "qcow2", "node-name": "disk",
            "file": {"driver": "blkdebug", "image": file, "inject-error": rules},
        }  # fmt: skip

    def test_all_that_it_covers_is_dirty_then(self):
        io(nbd_uri(self.path("nbd"), "disk"), "write 9M 4k", fmt="raw")
        self.server.stop()
        self.assertIn("a part of bitmap 'b' can't be read", self.server.log())
        found = json.loads(img("info", "--output=json", self.image).stdout)
        found = found["format-specific"]["data"]["bitmaps"][0]
        self.assertEqual(found["flags"], ["auto"])
        self.assertEqual(
            found["x-tidemark-state"],
            {
                "kind": "superset", "excess": SIZE - GRANULARITY,
                "reason": "a part of it could not be read from the image",
            },
        )  # fmt: skip
        img("check", "-q", self.image)

    def test_queries_warn_once(self):
        for _ in range(3):
            self.assertNotIn("inconsistent", self.qmp.bitmaps("disk")["b"])
        self.server.stop()
        self.assertEqual(self.server.log().count("Could not read bitmap 'b'"), 1)


class LargeHeader(Case):
    """An extension that we don't know leaves little room in a header of 4 KiB."""

    def fill(self, room):
        """`room`: bytes after the end mark."""
        self.make(options="cluster_size=4k")
        header = Header(self.image)
        start = struct.unpack_from(">I", header.bytes, 100)[0]
        bitmaps = header.extensions[EXT_BITMAPS]
        size = 4096 - room - start - 8 - len(bitmaps) - 8 - 8
        with open(self.image, "r+b") as f:
            f.seek(start)
            f.write(struct.pack(">II", EXT_BITMAPS, len(bitmaps)) + bitmaps)
            f.write(struct.pack(">II", 0x666F7265, size) + b"f" * size + bytes(8))

    def open_and_close(self):
        done = io(self.image, "write -q 40M 4k", fmt="qcow2")
        self.assertFalse(Header(self.image).has_log())
        self.assertEqual(self.check(), 0)
        return done.stderr

    def test_without_room_for_the_excess(self):
        for room in range(32, 56, 8):
            self.fill(room)
            self.killed_after([(5 * M, 4 * K)])
            self.assertTrue(Header(self.image).has_log())
            self.assertIn("no room to say", self.open_and_close())
            self.assertIn(5 * M // GRANULARITY, self.dirty())

    def test_without_room_for_the_log(self):
        self.fill(24)
        self.assertIn("inconsistent after a crash", self.open_and_close())
        self.assertEqual(self.state(), {"kind": "exact"})


class Kills(Case):
    """kill -9 in the midst of writes 16 deep: no write is missing, sent or answered."""

    def round(self, durable, rng, written, size):
        server = self.serve(durable)
        h = self.connect(server)
        stop = threading.Timer(rng.uniform(0.01, 0.08), server.kill)
        stop.start()
        try:
            while True:
                while h.aio_in_flight() < 16:
                    granule = rng.randrange(size // GRANULARITY)
                    written.add(granule)
                    h.aio_pwrite(
                        nbd.Buffer.from_bytearray(bytearray(4096)),
                        granule * GRANULARITY + rng.randrange(15) * 4096,
                    )
                h.poll(-1)
                while (cookie := h.aio_peek_command_completed()) > 0:
                    h.aio_command_completed(cookie)
        except nbd.Error:
            pass
        stop.join()
        self.kill(server)

    def kills(self, durable, count):
        rng = random.Random(count)
        kills = leaks = changed = in_excess = 0
        for n in range(count):
            written = set()
            size = SIZE << n % 2 * 8  # on the larger disk a region is more than a granule
            self.make(size)
            for _ in range(2):
                self.round(durable, rng, written, size)
                # Refcounts are written before what refers to clusters.
                leaks += self.check(may_leak=True) == 3
                dirty = self.dirty()
                self.assertLessEqual(self.answered(written), dirty)
                # The image says by how much too large the bitmap is.
                excess = len(dirty - written) * GRANULARITY
                self.assertLessEqual(excess, self.state().get("excess", 0))
                kills, changed, in_excess = kills + 1, changed + len(written), in_excess + excess
        if os.environ.get("TIDEMARK_KILLS"):
            print(
                f"# durable-bitmaps={durable}: {kills} kills, 0 granules missing, {leaks} images "
                f"with leaks, no other error; {changed * GRANULARITY // M} MiB written, "
                f"{in_excess // M} MiB in excess",
                flush=True,
            )

    def answered(self, written):
        """Of the granules that were written to, those that are in the image."""
        extents = json.loads(img("map", "-f", "qcow2", "--output=json", self.image).stdout)
        there = {
            e["start"] // GRANULARITY + i
            for e in extents
            if e["data"]
            for i in range(-(-e["length"] // GRANULARITY))
        }
        return written & there

    def test_process(self):
        self.kills("process", int(os.environ.get("TIDEMARK_KILLS", "13")))

    def test_power(self):
        self.kills("power", int(os.environ.get("TIDEMARK_KILLS", "12")))


class Room(Case):
    """An image that can't grow, without a free cluster."""

    def fill(self):
        """Until no cluster of the file is free, and none can be added."""
        io(self.image, "write 0 60M", fmt="qcow2")
        self.size = -(-os.path.getsize(self.image) // 65536) * 65536
        os.truncate(self.image, self.size)
        io(
            f"driver=qcow2,durable-bitmaps=off,file.driver=raw,file.size={self.size},"
            f"file.file.driver=file,file.file.filename={self.image}",
            *(f"write {60 * M + n * 64 * K} 64k" for n in range(40)),
            options=("--image-opts",), check=False,
        )  # fmt: skip

    def start(self):
        raw = f"driver=raw,node-name=raw,size={self.size},file.driver=file"
        raw += f",file.filename={self.image}"
        self.server = self.own(
            Daemon(
                self.dir,
                "--blockdev", raw,
                "--blockdev", "qcow2,node-name=disk,file=raw,discard=unmap",
                "--nbd-server", f"addr.type=unix,addr.path={self.path('nbd')},max-connections=0",
                "--export", "nbd,id=e,node-name=disk,name=disk,writable=on",
            )
        )  # fmt: skip

    def io(self, *commands):
        io(nbd_uri(self.path("nbd"), "disk"), *commands, fmt="raw")

    def given_up(self):
        for f in self.server.qmp.command("x-tidemark-query-stats", target="node"):
            if f["labels"]["node"] == "disk" and "activity-given-up" in f["stats"]:
                return f["stats"]["activity-given-up"]
        return None

    def test_a_log_that_had_no_room_comes_back(self):
        self.fill()
        self.start()
        self.io("write 5M 4k")
        self.assertEqual(self.given_up(), 1)
        self.assertIn("no room for the activity log", self.server.log())
        self.io("discard 32M 8M")
        self.io("flush")
        wait_until(lambda: self.given_up() == 0, "the log", timeout=60)
        self.io("write 7M 4k")
        self.kill(self.server)
        found = self.dirty()
        self.assertLessEqual({80, 112} | set(range(512, 640)), found)

    def kill(self, server):
        server.kill()
        wait_until(lambda: not can_connect(server.qmp_path), "the end of the daemon")


class Commands(Case):
    """Changes by commands are in the image when the command returns."""

    def setUp(self):
        super().setUp()
        self.start()

    def start(self):
        self.server = self.own(
            Daemon(
                self.dir,
                "--blockdev", f"file,node-name=file,filename={self.image}",
                "--blockdev", "qcow2,node-name=disk,file=file",
                "--nbd-server", f"addr.type=unix,addr.path={self.path('nbd')},max-connections=0",
                "--export", "nbd,id=e,node-name=disk,name=disk,writable=on",
            )
        )  # fmt: skip
        self.qmp = self.server.qmp

    def write(self, granule):
        io(nbd_uri(self.path("nbd"), "disk"), f"write {granule * 64}k 4k", fmt="raw")

    def crash(self):
        self.server.kill()
        wait_until(lambda: not can_connect(self.server.qmp_path), "the end of the daemon")
        self.start()
        return self.qmp.bitmaps("disk")

    def do(self, verb, **arguments):
        self.qmp.command("block-dirty-bitmap-" + verb, node="disk", **arguments)

    def test_add(self):
        self.do("add", name="n", persistent=True)
        self.write(3)
        found = self.crash()["n"]
        self.assertTrue(found["recording"] and not found.get("inconsistent"))
        self.assertGreaterEqual(found["count"], GRANULARITY)

    def test_add_without_a_write(self):
        self.do("add", name="n", persistent=True, disabled=True)
        self.assertEqual(self.crash()["n"]["count"], 0)

    def test_remove(self):
        self.write(3)
        self.do("remove", name="b")
        self.assertNotIn("b", self.crash())

    def test_clear(self):
        self.write(3)
        self.do("clear", name="b")
        self.write(900)
        self.crash()
        self.server.quit()
        self.assertIn(900, self.dirty())

    def test_disable(self):
        self.write(3)
        self.do("disable", name="b")
        self.write(900)
        found = self.crash()["b"]
        self.assertFalse(found["recording"])
        self.assertEqual(found["count"], GRANULARITY)

    def test_enable(self):
        self.do("disable", name="b")
        self.do("enable", name="b")
        self.write(900)
        found = self.crash()["b"]
        self.assertTrue(found["recording"])
        self.assertGreaterEqual(found["count"], GRANULARITY)

    def test_merge_is_stable_before_its_source_is_gone(self):
        self.write(3)
        self.do("add", name="all", persistent=True, disabled=True)
        self.qmp.transaction(
            ("block-dirty-bitmap-merge", {"node": "disk", "target": "all", "bitmaps": ["b"]}),
            ("block-dirty-bitmap-remove", {"node": "disk", "name": "b"}),
        )
        found = self.crash()
        self.assertEqual(found["all"]["count"], GRANULARITY)
        self.assertNotIn("b", found)

    def test_a_checkpoint_is_one_step(self):
        self.write(3)
        self.qmp.transaction(
            ("block-dirty-bitmap-disable", {"node": "disk", "name": "b"}),
            ("block-dirty-bitmap-add", {"node": "disk", "name": "c", "persistent": True}),
        )
        self.write(5)
        found = self.crash()
        self.assertEqual(found["b"]["count"], GRANULARITY)
        self.assertFalse(found["b"]["recording"])
        self.assertTrue(found["c"]["recording"])
        self.server.quit()
        self.assertIn(5, self.dirty("c"))

    def test_figures(self):
        self.write(3)
        (stats,) = [
            f["stats"]
            for f in self.qmp.command("x-tidemark-query-stats", target="node")
            if f["labels"]["node"] == "disk" and "activity-batches" in f["stats"]
        ]
        self.assertEqual(stats["activity-hot-bytes"], GRANULARITY)
        self.assertEqual(stats["activity-batches"], 1)
        self.assertEqual(self.crash()["b"]["x-tidemark-state"]["kind"], "superset")

    def test_resize_in_use(self):
        self.write(3)
        self.qmp.command("block_resize", node_name="disk", size=2 * SIZE)
        io(nbd_uri(self.path("nbd"), "disk"), f"write {SIZE + 9 * M} 4k", fmt="raw")
        self.crash()
        self.server.quit()
        self.assertLessEqual({3, (SIZE + 9 * M) // GRANULARITY}, self.dirty())
        self.check()

    def test_a_copy_from_below_is_no_reason_to_lose_one(self):
        """A stream changes nothing of the disk, and enters no log: there is one all the same."""
        self.server.quit()
        base = self.path("base.qcow2")
        img("create", "-q", "-f", "qcow2", base, str(SIZE))
        io(base, f"write 0 {32 * M}", fmt="qcow2")
        img("create", "-q", "-f", "qcow2", "-b", base, "-F", "qcow2", self.image)
        img("bitmap", "--add", "-f", "qcow2", "-g", "64k", self.image, "b")
        self.start()
        self.qmp.command("block-stream", job_id="s", device="disk", speed=M)
        wait_until(lambda: self.qmp.command("query-block-jobs")[0]["offset"] > 0, "a first copy")
        found = self.crash()["b"]
        self.assertNotIn("inconsistent", found)
        self.assertEqual(found["count"], 0)

    def test_a_higher_level_begins_with_a_sync(self):
        """What `process` has not synced is, before `power` counts on it."""

        def level(value):
            self.qmp.command("blockdev-reopen", options=[
                {"driver": "qcow2", "node-name": "disk", "file": "file", "durable-bitmaps": value},
            ])  # fmt: skip

        def flushes():
            nodes = self.qmp.command("query-blockstats", query_nodes=True)
            return next(n for n in nodes if n["node-name"] == "file")["stats"]["flush_operations"]

        level("process")
        self.write(3)
        before = flushes()
        level("process")
        self.assertEqual(flushes(), before)
        level("power")
        self.assertGreater(flushes(), before)

    def test_added_after_the_disk_got_another_size(self):
        """By going back to a snapshot, without a bitmap: the log is one for the new size."""
        self.do("remove", name="b")
        self.qmp.command("blockdev-snapshot-internal-sync", device="disk", name="large")
        self.qmp.command("block_resize", node_name="disk", size=2 * M)
        self.server.quit()
        self.start()
        self.qmp.command("x-tidemark-snapshot-apply", device="disk", name="large")
        self.do("add", name="b", persistent=True)
        self.write(3)
        self.write(900)
        self.crash()
        self.server.quit()
        self.assertLessEqual({3, 900}, self.dirty())
        self.check()


if __name__ == "__main__":
    unittest.main()
