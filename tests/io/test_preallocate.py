# SPDX-License-Identifier: Apache-2.0
"""The filter preallocate: files grow in large steps, and end where their data end."""

import os
import signal
import tempfile

import tidemark
from guest import Guest
from qmp import QmpError

MIB = 1 << 20


class PreallocateTest(tidemark.TestCase):
    def setUp(self):
        super().setUp()
        self.image = self.path("disk.qcow2")
        tidemark.img("create", "-f", "qcow2", self.image, "64M")

    def node(self, image=None, **options):
        """Options of qcow2 over the filter over the file."""
        return {
            "driver": "qcow2",
            "node-name": "disk",
            "file": {
                "driver": "preallocate",
                "node-name": "filter",
                "file": {"driver": "file", "node-name": "file", "filename": image or self.image},
                **options,
            },
        }

    def serve(self, node=None):
        daemon = self.daemon("--nbd-server", f"addr.type=unix,addr.path={self.path('nbd')}")
        daemon.qmp.command("blockdev-add", **(node or self.node()))
        daemon.qmp.command(
            "block-export-add", type="nbd", id="e", node_name="disk", name="disk", writable=True
        )
        return daemon

    def write(self, offset, length):
        uri = f"nbd+unix:///disk?socket={self.path('nbd')}"
        tidemark.io(uri, f"write -P 7 {offset} {length}", fmt="raw")

    def size(self, image=None):
        return os.path.getsize(image or self.image)

    def seen(self, daemon):
        """Sizes of the filter and of the file."""
        nodes = daemon.qmp.command("query-named-block-nodes", flat=True)
        sizes = {node["node-name"]: node["image"]["virtual-size"] for node in nodes}
        return sizes["filter"], sizes["file"]

    def check(self, length="1M", image=None):
        tidemark.qemu_img("check", image or self.image)
        tidemark.qemu_io(image or self.image, f"read -P 7 0 {length}")

    def test_a_file_grows_past_its_data_and_is_cut_at_the_end(self):
        daemon = self.serve()
        self.write(0, "1M")
        visible, real = self.seen(daemon)
        self.assertLess(visible, 2 * MIB)
        self.assertEqual(real, self.size())
        self.assertEqual(real % MIB, 0)
        self.assertGreater(real, 128 * MIB)
        self.assertGreater(os.stat(self.image).st_blocks * 512, 128 * MIB)
        daemon.stop()
        self.assertLess(self.size(), 2 * MIB)
        self.check()

    def test_the_step_and_its_end_are_options(self):
        daemon = self.serve(self.node(**{"prealloc-size": 20 * MIB, "prealloc-align": 5 * MIB}))
        self.write(0, "1M")
        self.assertEqual(self.size(), 25 * MIB)
        self.write("1M", "22M")
        self.assertEqual(self.size(), 25 * MIB)
        self.write("23M", "3M")
        self.assertEqual(self.size(), 50 * MIB)
        daemon.stop()

    def test_the_space_is_given_back_without_its_last_writer(self):
        daemon = self.daemon()
        node = self.node()
        node["file"] = "filter"
        daemon.qmp.command("blockdev-add", **self.node()["file"])
        daemon.qmp.command("blockdev-add", **node)
        self.write_through_export(daemon)
        self.assertGreater(self.size(), 100 * MIB)
        daemon.qmp.command("block-export-del", id="e")
        daemon.wait_for(lambda: not daemon.qmp.command("query-block-exports"), "the export's end")
        daemon.qmp.command("blockdev-del", node_name="disk")
        self.assertLess(self.size(), 2 * MIB)
        visible, real = self.seen(daemon)
        self.assertEqual(visible, real)
        daemon.qmp.command("blockdev-add", **node)
        daemon.stop()

    def write_through_export(self, daemon):
        address = {"type": "unix", "data": {"path": self.path("nbd")}}
        daemon.qmp.command("nbd-server-start", addr=address)
        daemon.qmp.command(
            "block-export-add", type="nbd", id="e", node_name="disk", name="disk", writable=True
        )
        self.write(0, "1M")

    def test_reopening_read_only_cuts_and_reopening_takes_options(self):
        daemon = self.serve()
        self.write(0, "1M")
        daemon.qmp.command("block-export-del", id="e")
        daemon.wait_for(lambda: not daemon.qmp.command("query-block-exports"), "the export's end")
        daemon.qmp.command("blockdev-reopen", options=[{**self.node(), "read-only": True}])
        self.assertLess(self.size(), 2 * MIB)
        options = {"prealloc-size": 2 * MIB, "prealloc-align": 5 * MIB}
        daemon.qmp.command("blockdev-reopen", options=[self.node(**options)])
        daemon.qmp.command(
            "block-export-add", type="nbd", id="e", node_name="disk", name="disk", writable=True
        )
        self.write("1M", "1M")
        self.assertEqual(self.size(), 5 * MIB)
        daemon.stop()
        self.check("2M")

    def test_an_image_that_is_only_read(self):
        before = self.size()
        daemon = self.daemon()
        node = self.node(**{"read-only": True})
        node["file"]["file"]["read-only"] = True
        daemon.qmp.command("blockdev-add", **node, read_only=True)
        visible, real = self.seen(daemon)
        self.assertEqual(visible, real)
        daemon.stop()
        self.assertEqual(self.size(), before)

    def test_a_reopen_that_fails_keeps_the_options(self):
        daemon = self.serve(self.node(**{"prealloc-size": 2 * MIB, "prealloc-align": 4 * MIB}))
        with self.assertRaisesRegex(QmpError, "not aligned to 512"):
            daemon.qmp.command("blockdev-reopen", options=[self.node(**{"prealloc-align": 7})])
        self.write(0, "1M")
        self.assertEqual(self.size(), 4 * MIB)
        daemon.stop()

    def test_an_overlay_leaves_a_base_that_is_cut(self):
        daemon = self.serve()
        self.write(0, "1M")
        daemon.qmp.command(
            "blockdev-snapshot-sync",
            node_name="disk",
            snapshot_node_name="top",
            snapshot_file=self.path("top.qcow2"),
        )
        self.assertLess(self.size(), 2 * MIB)
        self.write("1M", "1M")
        daemon.stop()
        self.check()

    def test_resizing_leaves_the_file_as_without_the_filter(self):
        plain = self.path("plain.qcow2")
        tidemark.img("create", "-f", "qcow2", plain, "64M")
        for mode in "off", "metadata", "falloc", "full":
            with self.subTest(mode=mode):
                for image in self.image, plain:
                    tidemark.img("create", "-f", "qcow2", image, "10M")
                lines = ("write 0 10M", f"truncate -m {mode} 50M")
                tidemark.io(plain, *lines, fmt="qcow2")
                options = f"driver=qcow2,file.driver=preallocate,file.file.filename={self.image}"
                tidemark.io(options, *lines, options=("--image-opts",))
                ours, other = os.stat(self.image), os.stat(plain)
                self.assertLessEqual(abs(ours.st_size - other.st_size), 65536)
                self.assertLess(abs(ours.st_blocks - other.st_blocks) * 512, MIB)
                tidemark.qemu_img("check", self.image)

    def test_after_a_crash_the_image_is_whole(self):
        daemon = self.serve()
        self.write(0, "1M")
        daemon.stop(sig=signal.SIGKILL, expect=-9)
        self.assertGreater(self.size(), 100 * MIB)
        self.check()
        daemon = self.serve()
        self.write("1M", "1M")
        daemon.stop()
        self.check("2M")

    def test_a_file_that_cannot_be_allocated_is_written_all_the_same(self):
        node = self.node()
        node["file"]["file"] = {
            "driver": "blkdebug",
            "image": node["file"]["file"],
            "inject-error": [{"event": "none", "iotype": "write-zeroes", "errno": 28, "once": True}],
        }
        daemon = self.serve(node)
        self.write(0, "1M")
        self.assertLess(self.size(), 2 * MIB)
        daemon.stop()
        self.check()

    def test_file_systems_in_memory(self):
        with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
            image = os.path.join(folder, "disk.qcow2")
            tidemark.img("create", "-f", "qcow2", image, "64M")
            daemon = self.serve(self.node(image, **{"prealloc-align": 4 * MIB}))
            self.write(0, "1M")
            self.assertEqual(self.size(image), 132 * MIB)
            daemon.stop()
            self.check(image=image)

    def test_many_writers_at_once(self):
        daemon = self.serve(self.node(**{"prealloc-size": 256 * 1024, "prealloc-align": 65536}))
        part = 8 * MIB
        guests = [Guest(self.path("nbd"), "disk", i * part, part, seed=i) for i in range(6)]
        tidemark.wait_until(lambda: all(g.written > 300 for g in guests), "writes")
        for guest in guests:
            guest.stop()
        daemon.stop()
        tidemark.qemu_img("check", self.image)
        raw = self.path("copy.raw")
        tidemark.qemu_img("convert", "-O", "raw", self.image, raw)
        for guest in guests:
            guest.check(raw)

    def test_others_may_not_write_to_the_file(self):
        daemon = self.serve()
        with self.assertRaisesRegex(QmpError, "Permission conflict on node 'file'"):
            daemon.qmp.command(
                "block-export-add", type="nbd", id="f", node_name="file", writable=True
            )
        daemon.stop()

    def test_what_makes_no_sense_is_refused(self):
        daemon = self.daemon()
        cases = [
            ({"prealloc-align": 5}, "prealloc-align parameter of preallocate filter is not align"),
            ({"prealloc-size": 5}, "prealloc-size parameter of preallocate filter is not aligned"),
            ({"prealloc-size": -512}, "prealloc-size"),
            ({"prealloc": 512}, "'file.prealloc' is unexpected"),
        ]
        for options, sentence in cases:
            with self.assertRaisesRegex(QmpError, sentence):
                daemon.qmp.command("blockdev-add", **self.node(**options))
        daemon.qmp.command("blockdev-add", **self.node(**{"prealloc-size": 2**63 - 512}))
        daemon.stop()


if __name__ == "__main__":
    tidemark.unittest.main()
