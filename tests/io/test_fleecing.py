# SPDX-License-Identifier: Apache-2.0
"""Reading a point in time of a disk in use, through the daemon."""

import os
import signal
import struct
import threading
import time

import tidemark
from nbd_raw import EPERM, READ, TRIM, WRITE, RawClient
from nbd_server import Nbdkit, NbdServer
from qmp import QmpError
from tidemark import io

MIB = 1 << 20
CLUSTER = 65536


class FleecingCase(tidemark.TestCase):
    """Disks filled with 0x11, each with an export `guest...` and views of it when a test asks."""

    def setUp(self):
        super().setUp()
        self.nbd = self.path("nbd.sock")
        self.server = self.daemon("--nbd-server", f"addr.type=unix,addr.path={self.nbd}")
        self.qmp = self.server.qmp

    def add_disk(self, name="disk", size="16M", fmt="raw"):
        path = self.create(f"{name}.{fmt}", size, fmt)
        io(path, f"write -P 0x11 0 {size}", fmt=fmt)
        self.qmp.command("blockdev-add", driver=fmt, node_name=name,
                         file={"driver": "file", "filename": path})  # fmt: skip
        self.qmp.command("block-export-add", type="nbd", id=f"guest-{name}", node_name=name,
                         name=f"guest-{name}", writable=True)  # fmt: skip

    def view_actions(self, name="disk", view="view", below=None, fmt="raw", size="16M", temp=None,
                     lease=False, **options):  # fmt: skip
        """Actions that put a filter above `below` and open and export a view of it."""
        if not temp:
            path = self.create(f"{view}.{fmt}", size, fmt)
            temp = {"driver": fmt, "discard": "unmap",
                    "file": {"driver": "file", "filename": path, "discard": "unmap"}}  # fmt: skip
        return [
            ("blockdev-add", {**temp, "node-name": f"{view}-temp"}),
            ("blockdev-add", {"driver": "copy-before-write", "node-name": f"{view}-cbw",
                              "file": below or name, "target": f"{view}-temp", **options}),
            ("blockdev-replace", {"export": f"guest-{name}", "node-name": f"{view}-cbw"}),
            ("blockdev-add", {"driver": "snapshot-access", "node-name": view,
                              "file": f"{view}-cbw"}),
            ("block-export-add", {"type": "nbd", "id": view, "node-name": view, "name": view,
                                  "writable": True, **({"x-lease": True} if lease else {})}),
        ]  # fmt: skip

    def add_view(self, *arguments, **more):
        self.qmp.transaction(*self.view_actions(*arguments, **more))

    def client(self, name):
        client = RawClient(self.nbd)
        self.addCleanup(client.sock.close)
        client.go(name.encode(), structured=False)
        return client

    def do(self, client, kind, offset, length, payload=b"", error=0):
        client.request(kind, offset, length, payload=payload)
        self.assertEqual(client.simple_reply(), (1, error))
        return client.receive(length) if kind == READ and error == 0 else b""

    def write(self, client, byte, offset, length):
        self.do(client, WRITE, offset, length, bytes([byte]) * length)


class Speed(FleecingCase):
    def test_readers_of_a_view_keep_off_the_reactors_of_guests(self):
        self.add_disk()
        self.add_view()

        def turns(name):
            found = self.qmp.command("x-tidemark-query-stats", target="reactor")
            return sum(r["stats"]["turns"] for r in found if r["labels"]["reactor"] == name)

        self.assertEqual(turns("nbd-view"), 0)
        guest = self.client("guest-disk")
        self.write(guest, 0x22, 0, 4096)
        self.assertEqual(turns("nbd-view"), 0)
        reader = self.client("view")
        before = turns("nbd-io")
        for i in range(64):
            self.assertEqual(self.do(reader, READ, i * 4096, 4096), b"\x11" * 4096)
        self.assertGreaterEqual(turns("nbd-view"), 64)
        self.assertLess(turns("nbd-io") - before, 32)

    def test_readers_of_a_view_get_the_processor_time_that_guests_leave(self):
        self.add_disk()
        self.add_view()
        for name in "guest-disk", "view":
            self.do(self.client(name), READ, 0, 512)
        niceness = {"nbd-io": set(), "nbd-view": set()}
        for task in os.listdir(f"/proc/{self.server.pid}/task"):
            with open(f"/proc/{self.server.pid}/task/{task}/stat", encoding="ascii") as f:
                name, fields = f.read().split("(")[1].rsplit(")", 1)
            if name in niceness:
                niceness[name].add(int(fields.split()[16]))
        (guests,), (views,) = niceness["nbd-io"], niceness["nbd-view"]
        self.assertEqual(views, min(guests + 10, 19))


class Discards(FleecingCase):
    """What the reader discards is free in the temporary image at once, and not written again."""

    def used(self, fmt):
        return os.stat(self.path(f"view.{fmt}")).st_blocks * 512

    def check(self, fmt, size, pieces, slack):
        """Copy everything by guest writes, discard it in pieces, write again."""
        self.add_disk(size=str(size))
        empty = {"raw": 0, "qcow2": 512 * 1024}[fmt]  # metadata
        self.add_view(fmt=fmt, size=str(size))
        guest, reader = self.client("guest-disk"), self.client("view")
        for at in range(0, size, MIB):
            self.write(guest, 0x22, at, min(MIB, size - at))
        self.assertGreaterEqual(self.used(fmt), size)
        for start, end in pieces:
            self.assertEqual(self.do(reader, READ, start, end - start), b"\x11" * (end - start))
            self.do(reader, TRIM, start, end - start)
        self.assertLessEqual(self.used(fmt), empty + slack)
        for at in range(0, size, MIB):
            self.write(guest, 0x33, at, min(MIB, size - at))
        self.assertLessEqual(self.used(fmt), empty + slack)

    def pieces(self, size, step):
        return [(at, min(at + step, size)) for at in range(0, size, step)]

    def test_raw(self):
        self.check("raw", 4 * MIB, self.pieces(4 * MIB, MIB), 0)

    def test_qcow2(self):
        self.check("qcow2", 4 * MIB, self.pieces(4 * MIB, MIB), 0)

    def test_pieces_that_end_within_clusters(self):
        size = 4 * MIB
        self.check("raw", size, self.pieces(size, 100000), 0)

    def test_pieces_in_any_order(self):
        size = 2 * MIB
        pieces = self.pieces(size, 12288)
        self.check("qcow2", size, pieces[::3] + pieces[2::3] + pieces[1::3], 0)

    def test_raw_disk_that_ends_within_a_cluster(self):
        size = 2 * MIB + 5 * 512
        self.check("raw", size, self.pieces(size, 90000), 0)

    def test_qcow2_disk_that_ends_within_a_cluster(self):
        size = 2 * MIB + 5 * 512
        self.check("qcow2", size, self.pieces(size, 90000), 0)


    def test_clusters_that_were_copied_in_part(self):
        """Small writes copy blocks of 4 KiB; reads find them among what is in the disk still."""
        for fmt, empty in ("raw", 0), ("qcow2", 512 * 1024):
            with self.subTest(fmt):
                name, size = f"part-{fmt}", 4 * MIB
                self.add_disk(name, str(size))
                path = self.create(f"{name}.temp", str(size), fmt)
                temp = {"driver": fmt, "discard": "unmap",
                        "file": {"driver": "file", "filename": path, "discard": "unmap"}}  # fmt: skip
                self.add_view(name, view=f"view-{fmt}", temp=temp, **{"min-cluster-size": 4096})
                guest, reader = self.client(f"guest-{name}"), self.client(f"view-{fmt}")
                for at in range(8192, size, 5 * 4096):
                    self.write(guest, 0x22, at + 512, 512)
                self.assertLessEqual(os.stat(path).st_blocks * 512, empty + size // 2)
                for at in range(0, size, 12288):
                    length = min(12288, size - at)
                    self.assertEqual(self.do(reader, READ, at, length), b"\x11" * length)
                    self.do(reader, TRIM, at, length)
                self.assertLessEqual(os.stat(path).st_blocks * 512, empty)


class BadTemporaryImages(FleecingCase):
    """The temporary image is full, slow or hangs: the guest goes on, without the snapshot."""

    BREAKS = {"on-cbw-error": "break-snapshot", "cbw-timeout": 1}
    COUNT = 1500

    def setUp(self):
        super().setUp()
        self.add_disk(size="128M")

    def figures(self):
        found = self.qmp.command("x-tidemark-query-stats", target="node")
        return next(o["stats"] for o in found
                    if o["group"] == "copy-before-write" and o["labels"] == {"node": "view-cbw"})  # fmt: skip

    def write_all_over(self, guest):
        """Latencies of writes, each to a cluster of its own at first, in seconds."""
        times = []
        for i in range(self.COUNT):
            begun = time.monotonic()
            self.write(guest, 0x22, i * 7 % 2048 * CLUSTER, 4096)
            times.append(time.monotonic() - begun)
        return times

    def assert_unharmed(self, times, reader, error=EPERM):
        times.sort()
        self.assertLess(times[int(len(times) * 0.99)], 0.03, times[-20:])
        self.assertLess(sum(times), 8)
        self.do(reader, READ, 0, 512, error=error)
        self.assertEqual(self.figures()["broken"], 1)

    def test_full(self):
        file = {"driver": "file", "filename": self.create("view.raw", "128M", "raw")}
        temp = {"driver": "blkdebug", "image": file,
                "inject-error": [{"event": "none", "iotype": "write", "errno": 28}]}  # fmt: skip
        self.add_view(temp=temp, **self.BREAKS)
        guest, reader = self.client("guest-disk"), self.client("view")
        self.assert_unharmed(self.write_all_over(guest), reader)
        self.assertEqual(self.do(guest, READ, 0, 1), b"\x22")
        self.assertIn("No space left on device", self.server.log())

    def test_slow(self):
        """100 ms for each write: no copy takes as long as the limit, but all of them together."""
        server = self.own(Nbdkit(self.dir, "--filter=delay", "memory", "128M", "wdelay=100ms"))
        temp = {"driver": "nbd", "server": {"type": "unix", "path": server.socket}}
        self.add_view(temp=temp, **self.BREAKS)
        guest, reader = self.client("guest-disk"), self.client("view")
        self.write(guest, 0x22, 0, 4096)
        self.assertEqual(self.do(reader, READ, 0, 512), b"\x11" * 512)
        self.assert_unharmed(self.write_all_over(guest), reader)
        self.assertGreaterEqual(self.figures()["copied-clusters"], 5)

    def test_hung(self):
        raw = self.create("below.raw", "128M", "raw")
        below = self.own(NbdServer(self.dir, "-f", "raw", raw, name="below"))
        self.addCleanup(lambda: below.is_running() and os.kill(below.pid, signal.SIGCONT))
        self.add_view(temp={"driver": "nbd", "server": {"type": "unix", "path": below.socket}},
                      **self.BREAKS)  # fmt: skip
        guest, reader = self.client("guest-disk"), self.client("view")
        tidemark.freeze(below.pid)
        self.assert_unharmed(self.write_all_over(guest), reader)
        self.assertEqual(self.figures()["timeouts"], 1)
        # The copy that timed out goes on; commands that stop the guest for a moment don't wait.
        begun = time.monotonic()
        self.qmp.command("block-dirty-bitmap-add", node="disk", name="b")
        self.qmp.command("block-export-del", id="view", mode="hard")
        self.qmp.command("blockdev-del", node_name="view")
        self.qmp.command("blockdev-replace", export="guest-disk", node_name="disk")
        self.write(guest, 0x33, 0, 4096)
        self.assertLess(time.monotonic() - begun, 1)
        os.kill(below.pid, signal.SIGCONT)
        self.qmp.command("blockdev-del", node_name="view-cbw")
        self.write(guest, 0x44, 0, 4096)
        self.assertEqual(self.do(guest, READ, 0, 1), b"\x44")

    def test_end_of_the_daemon_while_a_copy_hangs(self):
        raw = self.create("below.raw", "128M", "raw")
        below = self.own(NbdServer(self.dir, "-f", "raw", raw, name="below"))
        self.addCleanup(lambda: below.is_running() and os.kill(below.pid, signal.SIGCONT))
        self.add_view(temp={"driver": "nbd", "server": {"type": "unix", "path": below.socket}},
                      **self.BREAKS)  # fmt: skip
        guest = self.client("guest-disk")
        tidemark.freeze(below.pid)
        self.write(guest, 0x22, 0, 4096)
        begun = time.monotonic()
        os.kill(self.server.pid, signal.SIGTERM)
        time.sleep(0.5)
        os.kill(self.server.pid, signal.SIGTERM)
        self.server.wait(timeout=15)
        self.assertLess(time.monotonic() - begun, 10)


class Lease(FleecingCase):
    """A view that goes when its last client has gone."""

    def nodes(self):
        return {n["node-name"] for n in self.qmp.command("query-named-block-nodes", flat=True)
                if not n["node-name"].startswith("#")}  # fmt: skip

    def exports(self):
        return {e["id"]: e["node-name"] for e in self.qmp.command("query-block-exports")}

    def wait_gone(self, *nodes):
        tidemark.wait_until(lambda: not self.nodes() & set(nodes), "the end of the lease")

    def test_view_and_temporary_image_vanish(self):
        self.add_disk()
        for fmt in "raw", "qcow2":
            with self.subTest(fmt):
                self.add_view(fmt=fmt, lease=True)
                path = self.path(f"view.{fmt}")
                guest, reader, other = self.client("guest-disk"), self.client("view"), self.client("view")
                self.write(guest, 0x11, 0, MIB)
                self.assertEqual(self.do(reader, READ, 0, 512), b"\x11" * 512)
                other.sock.close()
                time.sleep(0.2)
                self.assertEqual(self.exports(), {"guest-disk": "view-cbw", "view": "view"})
                self.assertTrue(os.path.exists(path))
                reader.request(READ, 0, MIB)  # it does not take the answer
                reader.sock.close()
                self.wait_gone("view", "view-cbw", "view-temp")
                self.qmp.wait_event("BLOCK_EXPORT_DELETED")
                tidemark.wait_until(lambda: not os.path.exists(path), "the end of the file")
                self.assertEqual(self.exports(), {"guest-disk": "disk"})
                self.write(guest, 0x11, MIB, 4096)
                self.assertEqual(self.do(guest, READ, 0, 1), b"\x11")

    def test_each_view_has_its_lease(self):
        self.add_disk()
        self.add_view(lease=True)
        guest, first = self.client("guest-disk"), self.client("view")
        self.write(guest, 0x22, 0, 4096)
        self.add_view(view="later", below="view-cbw", lease=True)
        second = self.client("later")
        self.write(guest, 0x33, 0, 4096)
        first.sock.close()
        self.wait_gone("view", "view-cbw", "view-temp")
        self.write(guest, 0x44, 4096, 4096)
        self.assertEqual(self.do(second, READ, 0, 8192), b"\x22" * 4096 + b"\x11" * 4096)
        second.sock.close()
        self.wait_gone("later", "later-cbw", "later-temp")
        self.assertEqual(self.nodes(), {"disk"})

    def test_what_others_use_stays(self):
        self.add_disk()
        self.add_view(lease=True)
        self.qmp.command("blockdev-add", driver="snapshot-access", node_name="more",
                         file="view-cbw")  # fmt: skip
        self.client("view").sock.close()
        self.wait_gone("view")
        time.sleep(0.2)
        self.assertEqual(self.nodes(), {"disk", "view-cbw", "view-temp", "more"})
        self.assertEqual(self.exports(), {"guest-disk": "view-cbw"})

    def test_only_views_are_leased(self):
        self.add_disk()
        with self.assertRaises(QmpError) as caught:
            self.qmp.command("block-export-add", type="nbd", id="x", node_name="disk", name="x",
                             x_lease=True)  # fmt: skip
        self.assertIn("snapshot-access", caught.exception.desc)

    def leave_a_view_to_a_job(self):
        """The lease of a view has ended, and a job reads the view."""
        self.add_disk()
        leaving = self.server.connect()
        leaving.command("x-tidemark-lease", node_name="view")
        self.add_view()
        self.qmp.command("blockdev-add", driver="null-co", node_name="far", size=16 * MIB)
        self.qmp.command("blockdev-backup", job_id="j", device="view", target="far", sync="full",
                         speed=65536)  # fmt: skip
        leaving.close()
        tidemark.wait_until(lambda: "'view' stays, though its lease" in self.server.log(), "the log")

    def test_a_view_that_a_job_uses_goes_after_it(self):
        self.leave_a_view_to_a_job()
        self.assertIn("view", self.nodes())
        self.qmp.command("block-job-cancel", device="j", force=True)
        self.wait_gone("view", "view-cbw", "view-temp")
        self.assertEqual(self.exports(), {"guest-disk": "disk"})
        self.assertEqual(self.server.log().count("stays"), 1)

    def is_done(self, command, arguments):
        answer = self.qmp.execute(command, arguments)
        return "return" in answer or "find" in answer["error"]["desc"]

    def test_another_view_of_the_name_is_not_leased(self):
        """The one that was leased is deleted when its job has ended, before its lease is."""
        self.leave_a_view_to_a_job()
        self.qmp.command("block-job-cancel", device="j", force=True)
        tidemark.wait_until(lambda: not self.qmp.command("query-jobs"), "the end of the job")
        for command, arguments in (
            ("blockdev-del", {"node-name": "view"}),
            ("blockdev-replace", {"export": "guest-disk", "node-name": "disk"}),
            ("blockdev-del", {"node-name": "view-cbw"}),
            ("blockdev-del", {"node-name": "view-temp"}),
        ):
            # The end of the lease may come first.
            tidemark.wait_until(lambda: self.is_done(command, arguments), command)
        self.add_view()
        self.qmp.command("block-export-del", id="view", mode="hard")
        time.sleep(1.5)
        self.assertLessEqual({"view", "view-cbw", "view-temp"}, self.nodes())

    def test_a_view_that_a_job_uses_delays_no_end(self):
        self.leave_a_view_to_a_job()
        self.server.stop(timeout=20)


class Views(FleecingCase):
    def test_views_of_one_disk_are_each_exact(self):
        """Filters on top of each other, each with the contents that the disk had then."""
        self.add_disk()
        guest = self.client("guest-disk")
        below, readers, model = "disk", [], bytearray(b"\x11" * 16 * MIB)
        for n in range(3):
            view = f"view{n}"
            self.add_view(view=view, below=below, fmt=("raw", "qcow2")[n % 2])
            below = f"{view}-cbw"
            readers.append((self.client(view), bytes(model)))
            for i in range(40):
                at, length = (i * 37 + n * 11) % 255 * CLUSTER + i * 512, 4096 << (i % 6)
                length = min(length, len(model) - at)
                self.write(guest, 0x20 + n * 40 + i, at, length)
                model[at : at + length] = bytes([0x20 + n * 40 + i]) * length
        for reader, expected in readers:
            for at in range(0, 16 * MIB, MIB):
                self.assertEqual(self.do(reader, READ, at, MIB), expected[at : at + MIB])
        # Discards concern one view.
        self.do(readers[1][0], TRIM, 0, 16 * MIB)
        self.do(readers[1][0], READ, 0, 512, error=EPERM)
        self.assertEqual(self.do(readers[0][0], READ, 0, MIB), readers[0][1][:MIB])
        self.assertEqual(self.do(readers[2][0], READ, 0, MIB), readers[2][1][:MIB])

    def test_a_temporary_image_that_shows_the_disk(self):
        """The disk is its backing file, and readers use it itself. The guest writes below the
        filter until its device is moved. A read that has found nothing in the temporary image, and
        is slow to read the disk, is waited for by the guest's write.
        """
        self.add_disk()
        guest = self.client("guest-disk")
        self.qmp.command("object-add", qom_type="throttle-group", id="slow",
                         limits={"bps-read": 4 * MIB})  # fmt: skip
        self.qmp.command("blockdev-add", driver="qcow2", node_name="temp",
                         backing={"driver": "throttle", "throttle-group": "slow", "file": "disk"},
                         file={"driver": "file", "filename": self.create("t.qcow2", "16M")})  # fmt: skip
        self.qmp.command("blockdev-add", driver="copy-before-write", node_name="cbw", file="disk",
                         target="temp")  # fmt: skip
        self.write(guest, 0x11, 0, CLUSTER)
        self.qmp.command("blockdev-replace", export="guest-disk", node_name="cbw")
        self.qmp.command("block-export-add", type="nbd", id="temp", node_name="temp")
        reader = self.client("temp")
        self.assertEqual(self.do(reader, READ, 0, MIB), b"\x11" * MIB)
        self.write_under_a_slow_read(guest, reader)
        self.assertEqual(self.do(reader, READ, 8 * MIB, MIB), b"\x11" * MIB)
        self.qmp.command("block-export-del", id="temp", mode="hard")
        self.qmp.command("blockdev-replace", export="guest-disk", node_name="disk")
        self.qmp.command("blockdev-del", node_name="cbw")
        self.qmp.command("blockdev-del", node_name="temp")
        self.assertEqual(self.do(guest, READ, 8 * MIB, MIB), b"\x22" * MIB)

    def write_under_a_slow_read(self, guest, reader):
        """The read, of what is 0x11, began before the guest's write: it has what was there."""
        reader.request(READ, 8 * MIB, MIB)
        time.sleep(0.05)  # the read waits, for 0.2 s at least
        self.write(guest, 0x22, 8 * MIB, MIB)
        self.assertEqual(reader.simple_reply(), (1, 0))
        self.assertEqual(reader.receive(MIB), b"\x11" * MIB)

    def test_a_temporary_image_that_comes_to_show_the_disk(self):
        """The disk becomes its backing file when the filter exists already. Its readers exclude the
        guest's writes as well.
        """
        self.add_disk()
        self.qmp.command("block-export-del", id="guest-disk", mode="hard")
        self.qmp.command("object-add", qom_type="throttle-group", id="slow",
                         limits={"bps-read": 4 * MIB})  # fmt: skip
        self.qmp.command("blockdev-add", driver="throttle", throttle_group="slow",
                         node_name="slow-disk", file="disk")  # fmt: skip
        temp = {"driver": "qcow2", "node-name": "temp", "backing": None,
                "file": {"driver": "file", "filename": self.create("t.qcow2", "16M")}}  # fmt: skip
        self.qmp.command("blockdev-add", **temp)
        self.qmp.command("blockdev-add", driver="copy-before-write", node_name="cbw", file="disk",
                         target="temp")  # fmt: skip
        self.qmp.command("blockdev-reopen", options=[{**temp, "backing": "slow-disk"}])
        self.qmp.command("block-export-add", type="nbd", id="guest", node_name="cbw", writable=True)
        self.qmp.command("block-export-add", type="nbd", id="temp", node_name="temp")
        guest, reader = self.client("cbw"), self.client("temp")
        self.assertEqual(self.do(reader, READ, 0, MIB), b"\x11" * MIB)
        self.write_under_a_slow_read(guest, reader)

    def test_several_disks_at_one_moment(self):
        """A counter is written to one disk, then to the other: the views differ by one at most."""
        disks = ["a", "b"]
        for name in disks:
            self.add_disk(name)
        guests = [self.client(f"guest-{name}") for name in disks]
        stop = threading.Event()

        def count():
            number = 0
            while not stop.is_set():
                number += 1
                for guest in guests:
                    self.do(guest, WRITE, 0, 8, struct.pack(">Q", number))

        for guest in guests:
            self.do(guest, WRITE, 0, 8, bytes(8))
        thread = threading.Thread(target=count)
        thread.start()
        try:
            for n in range(10):
                time.sleep(0.02)
                actions = [self.view_actions(name, view=f"{name}{n}",
                                             below=f"{name}{n - 1}-cbw" if n else None)
                           for name in disks]  # fmt: skip
                self.qmp.transaction(*actions[0], *actions[1])
        finally:
            stop.set()
            thread.join()
        seen = []
        for n in range(10):
            a, b = (struct.unpack(">Q", self.do(self.client(f"{name}{n}"), READ, 0, 8))[0]
                    for name in disks)  # fmt: skip
            self.assertIn(a - b, (0, 1))
            seen.append(a)
        self.assertEqual(seen, sorted(seen))
        self.assertGreater(seen[-1], seen[0])

    def test_min_cluster_size_and_bitmap(self):
        self.add_disk()
        self.qmp.command("block-dirty-bitmap-add", node="disk", name="b")
        guest = self.client("guest-disk")
        self.write(guest, 0x22, 3 * MIB + 4096, 4096)
        self.add_view(bitmap={"node": "disk", "name": "b"}, **{"min-cluster-size": 1 << 20})
        reader = self.client("view")
        self.write(guest, 0x33, 3 * MIB + 4096, 4096)
        self.assertEqual(self.do(reader, READ, 3 * MIB, MIB),
                         b"\x11" * 4096 + b"\x22" * 4096 + b"\x11" * (MIB - 8192))  # fmt: skip
        self.do(reader, READ, 3 * MIB - 512, 512, error=EPERM)
        self.do(reader, READ, 4 * MIB, 512, error=EPERM)
        self.write(guest, 0x33, 8 * MIB, 4096)
        self.assertAlmostEqual(os.stat(self.path("view.raw")).st_blocks * 512, MIB, delta=65536)
