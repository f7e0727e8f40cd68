# SPDX-License-Identifier: Apache-2.0
"""Large reads that are sent from the page cache without a copy: when, and what clients see."""

import os
import random
import time
import unittest

import nbd
from nbd_raw import READ, RawClient
from tidemark import TestCase, img, io

MIB = 1 << 20
DATA = 1  # NBD_REPLY_TYPE_OFFSET_DATA
SIZE = 16 * MIB


class Pages(TestCase):
    def serve(self, *nodes, export="d", writable="on", objects=()):
        """A daemon with nodes; the last one is exported."""
        self.socket = self.path("nbd")
        words = [word for o in objects for word in ("--object", o)]
        words += [word for node in nodes for word in ("--blockdev", node)]
        self.server = self.daemon(
            *words, "--nbd-server", f"addr.type=unix,addr.path={self.socket}", "--export",
            f"nbd,id=e,node-name={export},name=,writable={writable}",
        )  # fmt: skip
        return self.server

    def client(self):
        handle = nbd.NBD()
        handle.connect_unix(self.socket)
        return handle

    def uncopied(self):
        (export,) = self.server.qmp.command("x-tidemark-query-stats", target="export")
        return export["stats"]["read-uncopied"]

    def image(self, fmt, content, *options):
        raw = self.path("content.raw")
        with open(raw, "wb") as file:
            file.write(content)
        if fmt == "raw":
            return raw
        path = self.path("disk." + fmt)
        img("convert", "-f", "raw", "-O", fmt, *options, raw, path)
        return path

    def node(self, fmt, path, name="d", **more):
        rest = "".join(f",{key.replace('_', '-')}={value}" for key, value in more.items())
        return f"driver={fmt},node-name={name},file.driver=file,file.filename={path}{rest}"

    def slow_reader(self, offset, length):
        """A client that has asked for data and does not read the reply. It was read from the disk
        already."""
        slow = self.own_client(RawClient(self.socket))
        slow.go()
        before = self.uncopied()
        slow.request(READ, offset, length)
        self.wait_until(lambda: self.uncopied() >= before + length, "the read")
        return slow

    def own_client(self, client):
        self.addCleanup(client.__exit__, None, None, None)
        return client

    def wait_until(self, condition, what):
        deadline = time.monotonic() + 20
        while not condition():
            self.assertLess(time.monotonic(), deadline, what)
            time.sleep(0.01)

    def reply(self, client):
        """The contents that the chunks of a read have."""
        data = {}
        for kind, payload in client.chunks():
            if kind == DATA:
                data[int.from_bytes(payload[:8], "big")] = payload[8:]
        return b"".join(data[at] for at in sorted(data))

    # --- what is read

    def test_all_lengths_and_places(self):
        choose = random.Random(1)
        content = bytearray(choose.randbytes(SIZE))
        for at in range(0, SIZE, MIB):
            length = choose.randrange(200000)
            content[at + 100000 : at + 100000 + length] = bytes(length)
        for fmt, options in (
            ("raw", ()), ("qcow2", ()), ("qcow2", ("-o", "cluster_size=4k")),
            ("qcow2", ("-o", "cluster_size=512")), ("qcow2", ("-o", "extended_l2=on")),
        ):  # fmt: skip
            with self.subTest(fmt=fmt, options=options):
                self.serve(self.node(fmt, self.image(fmt, content, *options)))
                handle = self.client()
                places = [(0, SIZE), (0, MIB), (1, MIB), (4095, 65536), (123457, 3 * MIB),
                          (SIZE - 65537, 65537), (99999, 4 * MIB + 1)]  # fmt: skip
                for _ in range(30):
                    length = choose.randrange(65536, 3 * MIB)
                    places.append((choose.randrange(SIZE - length), length))
                for offset, length in places:
                    self.assertTrue(
                        handle.pread(length, offset) == content[offset : offset + length],
                        (offset, length),
                    )
                self.assertEqual(self.uncopied() > 0, "cluster_size=512" not in options)
                self.end_processes()

    def read_through(self, filter_options, limits=""):
        """Serve a disk below a filter; the seconds that it takes to read all, in parts."""
        content = random.Random(3).randbytes(SIZE)
        file = f"file.driver=file,file.filename={self.image('raw', content)}"
        self.serve(
            f"driver=raw,node-name=r,{file}", f"{filter_options},node-name=d,file=r",
            objects=[f"throttle-group,id=g{limits}"],
        )  # fmt: skip
        handle, began = self.client(), time.monotonic()
        for at in range(0, SIZE, MIB // 2):
            self.assertTrue(handle.pread(MIB // 2, at) == content[at : at + MIB // 2], at)
        return time.monotonic() - began

    def test_filters_that_leave_reads_alone(self):
        throttle = "driver=throttle,throttle-group=g"
        for options, limits in (
            (throttle, ""),
            (throttle, ",x-bps-write=1"),
            ("driver=preallocate", ""),
        ):
            with self.subTest(options=options, limits=limits):
                self.read_through(options, limits)
                self.assertEqual(self.uncopied(), SIZE)
                self.end_processes()

    def test_a_limit_that_is_reached_holds(self):
        took = self.read_through("driver=throttle,throttle-group=g", f",x-bps-read={16 * MIB}")
        # A twentieth of a second passes at once, and a read may overdraw.
        self.assertGreater(took, 0.85)

    def test_holes_between_data(self):
        content = bytearray(random.Random(2).randbytes(SIZE))
        for at in range(0, SIZE, 512 * 1024):
            content[at : at + 128 * 1024] = bytes(128 * 1024)
        for fmt in ("raw", "qcow2"):
            path = self.image(fmt, content)
            if fmt == "raw":
                for at in range(0, SIZE, 512 * 1024):
                    io(path, f"discard {at} 128k", fmt="raw", options=("-d", "unmap"))
            self.serve(self.node(fmt, path))
            handle = self.client()
            for offset in range(0, SIZE, 4 * MIB):
                got = handle.pread(4 * MIB, offset)
                self.assertTrue(got == content[offset : offset + 4 * MIB])
            self.assertGreater(self.uncopied(), SIZE // 2)
            self.end_processes()

    def test_many_at_once_with_writes_between(self):
        """More than there are pipes, from two connections."""
        content = random.Random(3).randbytes(SIZE)
        self.serve(self.node("qcow2", self.image("qcow2", content)))
        first, second = self.client(), self.client()
        reads = []
        for _ in range(3):
            for offset in range(0, SIZE // 2, 256 * 1024):
                buf = nbd.Buffer(256 * 1024)
                reads.append((first, first.aio_pread(buf, offset), buf, offset))
            data = bytes([len(reads) % 256]) * MIB
            second.pwrite(data, SIZE // 2)
        while first.aio_in_flight() > 0:
            first.poll(-1)
        for handle, cookie, buf, offset in reads:
            self.assertTrue(handle.aio_command_completed(cookie))
            self.assertTrue(buf.to_bytearray() == content[offset : offset + 256 * 1024], offset)
        self.assertTrue(second.pread(MIB, SIZE // 2) == data)

    def test_what_is_not_in_memory_is_read_as_ever(self):
        content = random.Random(4).randbytes(SIZE)
        path = self.image("raw", content)
        self.serve(self.node("raw", path))
        handle = self.client()
        with open(path, "rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 4 * MIB, MIB, os.POSIX_FADV_DONTNEED)
        self.assertTrue(handle.pread(MIB, 4 * MIB) == content[4 * MIB : 5 * MIB])

    def test_what_is_written_past_the_end_meanwhile_stays(self):
        """Whether pages can be handed over is found out by a hole, which must hit nothing: a file
        below qcow2 grows at any time.
        """
        size = 4 * MIB
        path = self.path("grows.raw")
        with open(path, "wb") as disk:
            disk.write(b"d" * size)
        self.serve(self.node("raw", path))
        with open(path, "ab") as disk:
            disk.write(b"w" * size)
        self.assertTrue(self.client().pread(MIB, 0) == b"d" * MIB)
        self.assertEqual(self.uncopied(), MIB)
        with open(path, "rb") as disk:
            self.assertTrue(disk.read() == b"d" * size + b"w" * size, "there is a hole in it")

    def test_a_file_that_became_shorter(self):
        content = random.Random(5).randbytes(SIZE)
        path = self.image("raw", content)
        self.serve(self.node("raw", path))
        os.truncate(path, MIB)
        handle = self.client()
        self.assertTrue(
            handle.pread(MIB, MIB // 2) == content[MIB // 2 : MIB] + bytes(MIB // 2)
        )

    # --- clients that do not read

    def test_freed_clusters_do_not_show_what_is_written_there_later(self):
        content = b"a" * MIB + bytes(SIZE - MIB)
        for discard in ("ignore", "unmap"):
            for snapshot in (False, True):
                with self.subTest(discard=discard, snapshot=snapshot):
                    self.freed_clusters(content, discard, snapshot)
                self.end_processes()

    def freed_clusters(self, content, discard, snapshot):
        path = self.image("qcow2", content)
        self.serve(self.node("qcow2", path, discard="unmap", **{"file.discard": discard}))
        slow, other = self.slow_reader(0, MIB), self.client()
        if snapshot:
            self.server.qmp.command(
                "blockdev-snapshot-internal-sync", device="d", name="s"
            )
        other.trim(MIB, 0)
        other.flush()
        if snapshot:
            self.server.qmp.command("blockdev-snapshot-delete-internal-sync", device="d", name="s")
            other.flush()
        before = os.stat(path).st_size
        for offset in (2, 3, 4):
            other.pwrite(b"b" * MIB, offset * MIB)
        other.flush()
        # The space was used again.
        self.assertLess(os.stat(path).st_size, before + 3 * MIB)
        self.assertEqual(set(self.reply(slow)) - {0}, {ord("a")})
        self.assertTrue(other.pread(3 * MIB, 2 * MIB) == b"b" * (3 * MIB))
        other.shutdown()
        self.server.qmp.command("quit")
        self.server.wait()
        self.assertIn("No errors", img("check", path).stdout)

    def test_writes_to_the_same_place_do_not_wait(self):
        for fmt in ("raw", "qcow2"):
            self.serve(self.node(fmt, self.image(fmt, b"a" * SIZE)))
            slow, other = self.slow_reader(0, MIB), self.client()
            begin = time.monotonic()
            other.pwrite(b"b" * MIB, 0)
            other.flush()
            self.assertLess(time.monotonic() - begin, 5)
            self.assertTrue(other.pread(MIB, 0) == b"b" * MIB)
            # Either is right: the read has not ended.
            self.assertLessEqual(set(self.reply(slow)), set(b"ab"))
            self.end_processes()

    def test_a_client_that_goes_leaves_nothing(self):
        self.serve(self.node("raw", self.image("raw", b"a" * SIZE)))
        counts = []
        for _ in range(60):
            counts.append(len(os.listdir(f"/proc/{self.server.pid}/fd")))
            slow = RawClient(self.socket)
            slow.go()
            for offset in range(8):
                slow.request(READ, offset * MIB, MIB)
            slow.__exit__(None, None, None)
        handle = self.client()
        self.assertTrue(handle.pread(4 * MIB, 0) == b"a" * (4 * MIB))
        # Pipes are made as they are needed, up to a limit.
        self.assertLess(counts[-1], 300)
        self.assertLess(max(counts[40:]) - max(counts[20:40]), 40)

    # --- contents that were promised to stay

    def test_points_in_time_are_copied(self):
        path = self.image("qcow2", b"a" * SIZE)
        img("create", "-q", "-f", "qcow2", self.path("temp.qcow2"), str(SIZE))
        self.serve(
            self.node("qcow2", path, "disk"),
            self.node("qcow2", self.path("temp.qcow2"), "temp"),
            "driver=copy-before-write,node-name=cbw,file=disk,target=temp",
            "driver=snapshot-access,node-name=snap,file=cbw",
            export="snap", writable="off",
        )  # fmt: skip
        self.server.qmp.command("block-export-add", id="live", type="nbd", name="live",
                                node_name="cbw", writable=True)  # fmt: skip
        slow = self.own_client(RawClient(self.socket))
        slow.go()
        slow.request(READ, 0, MIB)
        time.sleep(0.2)
        live = nbd.NBD()
        live.set_export_name("live")
        live.connect_unix(self.socket)
        live.pwrite(b"b" * MIB, 0)
        self.assertEqual(set(self.reply(slow)), set(b"a"))

    def test_a_backing_file_that_is_written_is_copied(self):
        base = self.image("qcow2", b"a" * SIZE)
        for read_only in ("off", "on"):
            top = self.path(f"top-{read_only}.qcow2")
            img("create", "-q", "-f", "qcow2", "-b", base, "-F", "qcow2", top)
            self.serve(
                self.node("qcow2", base, "base", **{"read-only": read_only}),
                self.node("qcow2", top, "d", backing="base"),
            )
            handle = self.client()
            self.assertTrue(handle.pread(MIB, 0) == b"a" * MIB)
            self.assertEqual(self.uncopied() > 0, read_only == "on")
            self.end_processes()

    def test_a_backing_file_that_is_written_below_a_filter_is_copied(self):
        base = self.image("raw", b"a" * SIZE)
        top = self.path("top.qcow2")
        img("create", "-q", "-f", "qcow2", "-b", base, "-F", "raw", top)
        for above in (
            "driver=throttle,throttle-group=g,file=base",
            "driver=raw,file=file",
        ):
            for read_only in ("off", "on"):
                with self.subTest(above=above, read_only=read_only):
                    self.serve(
                        f"driver=file,node-name=file,filename={base},read-only={read_only}",
                        f"driver=raw,node-name=base,file=file,read-only={read_only}",
                        f"{above},node-name=above,read-only=on",
                        self.node("qcow2", top, "d", backing="above"),
                        objects=["throttle-group,id=g"],
                    )
                    handle = self.client()
                    self.assertTrue(handle.pread(MIB, 0) == b"a" * MIB)
                    self.assertEqual(self.uncopied() > 0, read_only == "on")
                    self.end_processes()


if __name__ == "__main__":
    unittest.main()
