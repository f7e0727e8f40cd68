# SPDX-License-Identifier: Apache-2.0
"""x-blockdev-checksums: digests of what a reader gets; a disk that hangs holds up no monitor."""

import base64
import hashlib
import json
import os
import random
import signal
import threading
import time

import tidemark
from qmp import QmpError

KIB, MIB = 1 << 10, 1 << 20
SUMS = "x-blockdev-checksums"


def digests_of(data, granularity):
    """A last block that is short is filled up with zeroes."""
    blocks = (data[i : i + granularity] for i in range(0, len(data), granularity))
    return [hashlib.sha256(b.ljust(granularity, b"\0")).digest() for b in blocks]


class ChecksumsCase(tidemark.TestCase):
    def setUp(self):
        super().setUp()
        self.server = self.daemon()
        self.qmp = self.server.qmp

    def add(self, driver, node, **more):
        self.qmp.command("blockdev-add", driver=driver, node_name=node, **more)

    def ask(self, node, offset, length, granularity, qmp=None):
        """The digests, and of how many bytes they are."""
        answer = (qmp or self.qmp).command(
            SUMS, node_name=node, offset=offset, length=length, granularity=granularity
        )
        raw = base64.b64decode(answer["sha256"], validate=True)
        list_ = [raw[i : i + 32] for i in range(0, len(raw), 32)]
        self.assertEqual(len(list_), -(-answer["length"] // granularity))
        self.assertLessEqual(answer["length"], length)
        return list_, answer["length"]

    def ask_all(self, node, size, granularity, qmp=None):
        found, offset = [], 0
        while offset < size:
            some, length = self.ask(node, offset, size - offset, granularity, qmp)
            self.assertGreater(length, 0)
            found += some
            offset += length
        return found

    def refused(self, desc, qmp=None, **arguments):
        arguments = {"node-name": "disk", "offset": 0, "length": MIB, "granularity": 65536} | arguments
        with self.assertRaises(QmpError) as caught:
            (qmp or self.qmp).command(SUMS, **arguments)
        self.assertIn(desc, caught.exception.desc)


class Results(ChecksumsCase):
    def random_disk(self, size, seed):
        """With holes, zeroes that are stored, and data, of odd sizes."""
        rng, data = random.Random(seed), bytearray(size)
        path = self.path(f"{seed}.raw")
        with open(path, "wb") as f:
            f.truncate(size)
            offset = 0
            while offset < size:
                length = min(rng.choice((512, 4096, 65536, 200 * KIB, 3 * MIB)), size - offset)
                kind = rng.choice(("hole", "hole", "data", "zero"))
                if kind != "hole":
                    data[offset : offset + length] = (
                        rng.randbytes(length) if kind == "data" else bytes(length)
                    )
                    os.pwrite(f.fileno(), data[offset : offset + length], offset)
                offset += length
        return path, bytes(data)

    def test_digests_are_those_of_the_contents(self):
        size = 70 * MIB + 5 * KIB + 512
        path, data = self.random_disk(size, 1)
        image = self.path("disk.qcow2")
        tidemark.img("convert", "-f", "raw", "-O", "qcow2", path, image)
        self.add("file", "raw", filename=path)
        self.add("qcow2", "qcow2", file={"driver": "file", "filename": image})
        for node, granularity in ("raw", 4096), ("raw", 65536), ("qcow2", 65536), ("qcow2", MIB):
            with self.subTest(node, granularity=granularity):
                self.assertEqual(
                    self.ask_all(node, size, granularity), digests_of(data, granularity)
                )
        for offset, length in (3 * MIB, 5 * MIB + 777), (65536, 1), (70 * MIB, 5 * KIB + 512):
            some, done = self.ask("qcow2", offset, length, 65536)
            self.assertEqual(done, length)
            self.assertEqual(some, digests_of(data[offset : offset + length], 65536))

    def test_a_hole_is_not_read(self):
        self.add("null-co", "hole", size=1 << 40, read_zeroes=True)
        rule = {"event": "none", "iotype": "read", "sector": -1, "errno": 5}
        self.add("blkdebug", "disk", image="hole", inject_error=[rule])
        some, length = self.ask("disk", 1 << 30, 64 * MIB, MIB)
        self.assertEqual((some, length), (digests_of(bytes(64 * MIB), MIB), 64 * MIB))

    def test_several_at_once(self):
        size = 20 * MIB
        path, data = self.random_disk(size, 2)
        self.add("file", "disk", filename=path)
        found = []

        def ask():
            with self.server.connect() as qmp:
                found.append(self.ask_all("disk", size, 65536, qmp))

        threads = [threading.Thread(target=ask) for _ in range(6)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        self.assertEqual(found, [digests_of(data, 65536)] * 6)
        self.qmp.command("blockdev-del", node_name="disk")

    def test_a_frozen_view(self):
        """What a backup asks for: the disk as it was, while it is written."""
        path, data = self.random_disk(8 * MIB, 3)
        self.add("file", "disk", filename=path)
        self.add("null-co", "hidden", size=8 * MIB)
        self.add("file", "temp", filename=self.create("temp.raw", "8M", fmt="raw"))
        self.add("copy-before-write", "cbw", file="disk", target="temp")
        self.add("snapshot-access", "snap", file="cbw")
        sock = self.path("nbd.sock")
        self.qmp.command("nbd-server-start", addr={"type": "unix", "data": {"path": sock}})
        self.qmp.command("block-export-add", type="nbd", id="e", node_name="cbw", writable=True)
        self.qmp.command(
            "block-export-add", type="nbd", id="s", node_name="snap", name="s", writable=True
        )
        tidemark.io(tidemark.nbd_uri(sock, "cbw"), "write -P 7 1M 3M", fmt="raw")
        self.assertEqual(self.ask_all("snap", 8 * MIB, 65536), digests_of(data, 65536))
        tidemark.io(tidemark.nbd_uri(sock, "s"), "discard 2M 64k", fmt="raw")
        self.ask("snap", 0, 2 * MIB, 65536)
        self.refused("offset 2097152: Permission denied", node_name="snap", offset=2 * MIB)


class Refusals(ChecksumsCase):
    def test_arguments(self):
        self.add("null-co", "disk", size=10 * MIB + 1, read_zeroes=True)
        self.refused("Cannot find", node_name="none")
        for granularity in 0, 2048, 65537, 2 * MIB, 1 << 63:
            self.refused("power of 2 from 4 KiB to 1 MiB", granularity=granularity)
        self.refused("multiple of the granularity", offset=4096)
        for offset, length in (0, 0), (10 * MIB, 2), (11 * MIB, 1), (0, (1 << 64) - 1):
            self.refused("which has 10485761 bytes", offset=offset, length=length)
        self.ask("disk", 10 * MIB, 1, 65536)

    def test_an_error_names_node_and_offset(self):
        rule = {"event": "none", "iotype": "read", "sector": 5 * MIB // 512, "errno": 5}
        self.add("null-co", "zeroes", size=10 * MIB)
        self.add("blkdebug", "disk", image="zeroes", inject_error=[rule])
        self.ask("disk", 0, 5 * MIB, 65536)
        self.refused(
            f"Could not read node 'disk' at offset {5 * MIB}: Input/output error", length=8 * MIB
        )
        self.ask("disk", 6 * MIB, 4 * MIB, 65536)
        self.qmp.command("blockdev-del", node_name="disk")


class SlowDisks(ChecksumsCase):
    def add_storage(self, size):
        """A disk of another process, which can be stopped."""
        image, sock = self.create("disk.qcow2", str(size)), self.path("disk.sock")
        tidemark.io(image, f"write 0 {size}", fmt="qcow2")
        os.truncate(image, 4 * size)  # an NBD server's disk does not grow
        self.storage = self.daemon(
            "--blockdev", f"driver=file,node-name=disk,filename={image}",
            "--nbd-server", f"addr.type=unix,addr.path={sock}",
            "--export", "nbd,id=e,node-name=disk,writable=on",
            name="storage",
        )  # fmt: skip
        self.addCleanup(self.storage.process.send_signal, signal.SIGCONT)
        server = {"type": "unix", "path": sock}
        self.add("nbd", "file", export="disk", server=server)
        self.add("qcow2", "disk", file="file")

    def send(self, qmp, length):
        arguments = {"node-name": "disk", "offset": 0, "length": length, "granularity": 65536}
        qmp.send_raw(json.dumps({"execute": SUMS, "arguments": arguments}))

    def delete_snapshot(self):
        """A command that keeps the node for as long as it waits for the disk."""
        with self.server.connect() as other:
            message = {"execute": "blockdev-snapshot-delete-internal-sync"}
            message["arguments"] = {"device": "disk", "name": "s"}
            other.send_raw(json.dumps(message))

    def del_fails(self):
        answer = self.qmp.execute("blockdev-del", {"node-name": "disk"})
        self.assertIn("in use", answer["error"]["desc"])

    def test_a_disk_that_hangs_is_given_up(self):
        """Others are answered meanwhile; what was begun ends when the disk answers."""
        self.add_storage(4 * MIB)
        self.add("null-co", "other", size=MIB, read_zeroes=True)
        self.qmp.command("blockdev-snapshot-internal-sync", device="disk", name="s")
        self.ask_all("disk", 4 * MIB, 65536)
        tidemark.freeze(self.storage.process.pid)
        with self.server.connect() as waiting:
            self.send(waiting, 4 * MIB)
            self.del_fails()
            self.qmp.command("query-named-block-nodes")
            self.ask("other", 0, MIB, 65536)
            self.delete_snapshot()
            answer = waiting.receive_answer()
            self.assertEqual(answer["error"]["desc"], "Node 'disk' has not answered for 3 s")
            self.ask("other", 0, MIB, 65536)
        self.storage.process.send_signal(signal.SIGCONT)
        tidemark.wait_until(
            lambda: "return" in self.qmp.execute("blockdev-del", {"node-name": "disk"}),
            "the end of what was begun",
        )

    def test_commands_for_a_disk_that_hangs_do_not_gather(self):
        self.add_storage(4 * MIB)
        self.ask_all("disk", 4 * MIB, 65536)
        tidemark.freeze(self.storage.process.pid)
        self.refused("Node 'disk' has not answered for 3 s")
        self.refused("Node 'disk' does not answer what was read before")
        self.del_fails()
        self.storage.process.send_signal(signal.SIGCONT)
        tidemark.wait_until(self.answers, "an answer")
        self.qmp.command("blockdev-del", node_name="disk")

    def answers(self):
        try:
            return self.ask_all("disk", 4 * MIB, 65536)
        except QmpError:
            return None

    def test_a_connection_that_is_cut_leaves_nothing(self):
        self.add_storage(4 * MIB)
        tidemark.freeze(self.storage.process.pid)
        with self.server.connect() as leaving:
            self.send(leaving, 4 * MIB)
            self.qmp.command("query-version")
        self.storage.process.send_signal(signal.SIGCONT)
        tidemark.wait_until(
            lambda: "return" in self.qmp.execute("blockdev-del", {"node-name": "disk"}),
            "the end of what was begun",
        )

    def test_a_leased_view_goes_when_what_was_begun_ends(self):
        """A backup that is killed, or gives up, while the disk hangs."""
        self.add_storage(4 * MIB)
        self.add("file", "temp", filename=self.create("temp.raw", str(4 * MIB), fmt="raw"))
        self.add("copy-before-write", "cbw", file="disk", target="temp")
        self.add("snapshot-access", "snap", file="cbw")
        with self.server.connect() as leaving:
            leaving.command("x-tidemark-lease", node_name="snap")
            tidemark.freeze(self.storage.process.pid)
            self.refused("Node 'snap' has not answered for 3 s", leaving, **{"node-name": "snap"})
        self.assertIn("snap", self.nodes())
        self.storage.process.send_signal(signal.SIGCONT)
        tidemark.wait_until(
            lambda: not {"snap", "cbw", "temp"} & self.nodes(), "the end of the lease"
        )
        self.qmp.command("blockdev-del", node_name="disk")

    def nodes(self):
        return {n["node-name"] for n in self.qmp.command("query-named-block-nodes", flat=True)}

    def test_a_slow_disk_gets_an_answer_in_parts(self):
        self.qmp.command("object-add", qom_type="throttle-group", id="t", limits={"bps-read": 4 * MIB})
        self.add("null-co", "zeroes", size=64 * MIB)
        self.add("throttle", "disk", file="zeroes", throttle_group="t")
        self.ask("disk", 0, 8 * MIB, 65536)  # what a pause has saved up
        _, length = self.ask("disk", 0, 64 * MIB, 65536)
        self.assertGreaterEqual(length, MIB)
        self.assertLess(length, 32 * MIB)

    def test_a_disk_that_changes_its_size_meanwhile(self):
        path = self.create("disk.raw", "32M", fmt="raw")
        tidemark.io(path, "write 0 32M", fmt="raw")
        self.add("file", "disk", filename=path)
        end = time.monotonic() + 1
        answers = []

        def ask():
            with self.server.connect() as qmp:
                while time.monotonic() < end:
                    answers.append(
                        qmp.execute(
                            SUMS,
                            {"node-name": "disk", "offset": 0, "length": 32 * MIB, "granularity": 65536},
                        )
                    )

        thread = threading.Thread(target=ask)
        thread.start()
        while time.monotonic() < end:
            for size in 8 * MIB, 40 * MIB:
                self.qmp.command("block_resize", node_name="disk", size=size)
        thread.join()
        for answer in answers:
            if "error" in answer:
                desc = answer["error"]["desc"]
                self.assertTrue("The area is not within" in desc or "Could not read node" in desc, desc)
        self.qmp.command("blockdev-del", node_name="disk")
