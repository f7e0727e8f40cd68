# SPDX-License-Identifier: Apache-2.0
"""Images with damage of one kind: we refuse, mark and say what QEMU refuses, marks and says."""

import re
import shutil
import unittest

from qcow2_edit import COPIED, ZERO, Image
from tidemark import TestCase, compat, img, io, nbd_uri, qemu, run

SPEED = re.compile(r"ops; .* \(.*/sec and .* ops/sec\)")
CORRUPT = 2
MISPLACED = 0x200


def is_marked(path):
    return bool(Image(path).u64(72) & CORRUPT)


class Corrupt(TestCase):
    def setUp(self):
        super().setUp()
        self.source = self.create("source.qcow2", "64M")
        io(self.source, "write -P 1 0 128k", fmt="qcow2")
        self.image = Image(self.source)
        self.entry = self.image.l2_place(0)

    def copies(self):
        ours, theirs = self.path("ours.qcow2"), self.path("theirs.qcow2")
        shutil.copyfile(self.source, ours)
        shutil.copyfile(self.source, theirs)
        return ours, theirs

    def both(self, *commands, options=()):
        """The same commands on a copy each: status, output and mark have to be the same."""
        results = []
        words = [word for command in commands for word in ("-c", command)]
        for name, path in zip((compat("qemu-io"), qemu("qemu-io")), self.copies()):
            result = run(name, *options, *words, path, check=False)
            text = SPEED.sub("ops", result.stdout + result.stderr).replace(path, "IMAGE")
            results.append((result.returncode, text, is_marked(path)))
        self.assertEqual(results[0], results[1])
        return results[0]

    def refused(self, word, *commands):
        _, text, marked = self.both(*commands)
        self.assertIn("qcow2: Marking image as corrupt: " + word, text)
        self.assertEqual(text.count("qcow2: "), 1)
        self.assertTrue(marked)

    def overlap(self, place, name):
        self.image.put64(self.entry, place | COPIED)
        word = f"Preventing invalid write on metadata (overlaps with {name})"
        self.refused(word, "write -P 5 0 512")

    def test_data_over_tables(self):
        table = self.image.l2_table()
        refblock = self.image.refblock()
        for place, name in (
            (self.image.l1, "active L1 table"),
            (self.image.reftable, "refcount table"),
            (refblock, "refcount block"),
            (table, "active L2 table"),
        ):
            self.overlap(place, name)

    def test_a_table_over_another(self):
        self.image.put64(self.image.l1, self.image.l1 | COPIED)
        word = "Preventing invalid write on metadata (overlaps with active L1 table)"
        self.refused(word, "write -P 5 0 512")

    def test_header_with_refcount_0(self):
        self.image.put_refcount(0, 0)
        self.refused("Preventing invalid write on metadata (overlaps with qcow2_header)",
                     "write 1M 64k")

    def test_refcounts_of_0(self):
        for n in range(8):
            self.image.put_refcount(n * self.image.cluster_size, 0)
        self.refused("Preventing invalid allocation of compressed cluster at offset 0",
                     "write -c 1M 64k")

    def test_long_table_at_0(self):
        """Where nothing is counted, an L1 table that needs refcount blocks of its own would begin
        at 0.
        """
        path = self.create("short.qcow2", "1M", options=("-o", "cluster_size=512,refcount_bits=64"))
        image = Image(path)
        image.write(image.reftable, bytes(image.cluster_size))
        result = img("resize", "-f", "qcow2", path, "512M", check=False)
        word = "Preventing invalid write on metadata (overlaps with qcow2_header)"
        self.assertIn(word, result.stderr)
        self.assertEqual(image.read(0, 4), b"QFI\xfb")
        self.assertTrue(is_marked(path))

    def test_new_table_at_0(self):
        for n in range(8):
            self.image.put_refcount(n * self.image.cluster_size, 0)
        self.image.put64(self.image.l1, 0)
        self.refused("Preventing invalid allocation of L2 table at offset 0", "write 1M 64k")

    def test_misplaced_table(self):
        self.image.put64(self.image.l1, self.image.l2_table() + MISPLACED | COPIED)
        self.refused("L2 table offset 0x40200 unaligned (L1 index: 0)", "read 0 64k")

    def test_misplaced_data(self):
        self.image.put64(self.entry, self.image.host(0) + MISPLACED | COPIED)
        self.refused("Cluster allocation offset 0x50200 unaligned (L2 offset: 0x40000, L2 index: 0)",
                     "read 0 64k")
        self.image.put64(self.entry, self.image.host(0) | COPIED | ZERO)
        self.refused("Preallocated zero cluster offset 0x50200 unaligned (guest offset: 0)",
                     "write 0 64k")

    def test_compressed_clusters_beside_a_data_file(self):
        # Both copies use one data file: it is not written.
        self.source = self.create("source.qcow2", "1M", options=("-o", f"data_file={self.path('data')}"))
        io(self.source, "write -P 1 0 128k", fmt="qcow2")
        self.image = Image(self.source)
        self.image.put64(self.image.l2_place(0), 1 << 62 | 0x50000)
        word = "Compressed cluster entry found in image with external data file"
        self.refused(word, "read 64k 64k", "read 0 64k")
        self.refused(word, "write 0 512")
        _, text, marked = self.both("read 0 64k", "read 64k 64k", options=("-r",))
        self.assertFalse(marked)
        self.assertIn("qcow2: Image is corrupt: " + word, text)
        for change in ("discard 0 64k", "write -z 0 64k", "write -zu 0 64k"):
            status, text, marked = self.both(change, "read -P 0 0 64k", options=("-d", "unmap"))
            self.assertEqual((status, marked), (0, False), text)
        results = []
        for name, path in zip((compat("qemu-img"), qemu("qemu-img")), self.copies()):
            result = run(name, "check", path, check=False)
            results.append((result.returncode, result.stdout, result.stderr))
        self.assertEqual(results[0], results[1])
        self.assertIn("ERROR compressed cluster 0 with data file", results[0][2])

    def test_flags_that_a_snapshot_would_change_in_other_tables(self):
        self.source = self.create("source.qcow2", "1G")
        io(self.source, "write -P 1 0 128k", fmt="qcow2")
        self.image = Image(self.source)
        self.image.put64(self.image.l1 + 8, self.image.l1 | COPIED)
        for name, path in zip((compat("qemu-img"), qemu("qemu-img")), self.copies()):
            before = Image(path).read(self.image.l1, 65536)
            result = run(name, "snapshot", "-c", "s", path, check=False)
            self.assertEqual(result.returncode, 1)
            self.assertIn("Preventing invalid write on metadata (overlaps with active L1 table)", result.stderr)
            self.assertTrue(is_marked(path))
            self.assertEqual(Image(path).read(self.image.l1, 65536), before, name)

    def test_misplaced_refcount_block(self):
        self.image.put64(self.image.reftable, self.image.refblock() + MISPLACED)
        self.refused("Refblock offset 0x20200 unaligned (reftable index: 0)", "write 1M 64k")

    def test_a_marked_image_keeps_its_size(self):
        self.image.put64(self.entry, self.image.l2_table() | COPIED)
        self.refused("Preventing invalid write on metadata", "write -P 5 0 512", "truncate 128G")
        ours, theirs = Image(self.path("ours.qcow2")), Image(self.path("theirs.qcow2"))
        self.assertEqual(ours.file_size(), theirs.file_size())

    def is_whole(self, path):
        """A repair finds everything that was written."""
        img("check", "-q", "-f", "qcow2", "-r", "all", path, check=False)
        io(path, "read -P 1 0 128k", fmt="qcow2")

    def test_a_shrink_with_lost_refcounts_changes_nothing(self):
        """What has no refcount is not free: it was cut off, up to the whole file."""
        refblock, cluster = self.image.refblock(), self.image.cluster_size
        size = self.image.file_size()
        faults = {
            "There are no references in the refcount table": lambda i: i.put64(i.reftable, 0),
            f"Refblock at {refblock:#x} has the refcount 0": lambda i: i.write(refblock, bytes(cluster)),
            "Refblock at 0x1000000000 is not covered": lambda i: i.put64(i.reftable + 8, 1 << 36),
            "Refblock offset 0x20200 unaligned": lambda i: i.put64(i.reftable, refblock + MISPLACED),
        }
        for word, damage in faults.items():
            with self.subTest(word):
                path, _ = self.copies()
                damage(Image(path))
                result = img("resize", "-f", "qcow2", "--shrink", path, "32M", check=False)
                self.assertEqual(result.returncode, 1)
                self.assertIn("Marking image as corrupt: " + word, result.stderr)
                self.assertIn("Failed to discard unused refblocks", result.stderr)
                image = Image(path)
                self.assertTrue(is_marked(path))
                self.assertEqual((image.u64(24), image.file_size()), (64 << 20, size))
                self.is_whole(path)

    def test_a_shrink_cuts_off_nothing_in_use(self):
        """Data and tables of the disk and of a snapshot, from each cluster on without refcounts."""
        img("snapshot", "-f", "qcow2", "-c", "s", self.source)
        io(self.source, "write -P 2 1M 64k", fmt="qcow2")
        self.image = Image(self.source)
        size, cluster = self.image.file_size(), self.image.cluster_size
        for first in range(self.image.refblock() // cluster + 1, size // cluster):
            with self.subTest(first):
                path, _ = self.copies()
                for n in range(first, size // cluster):
                    Image(path).put_refcount(n * cluster, 0)
                result = img("resize", "-f", "qcow2", "--shrink", path, "32M", check=False)
                self.assertEqual((result.returncode, is_marked(path)), (1, True), result.stderr)
                self.assertIn(f"Cluster {first * cluster:#x} is in use, but its refcount is 0",
                              result.stderr)  # fmt: skip
                self.assertEqual(Image(path).file_size(), size)
                self.is_whole(path)

    def test_a_refcount_table_beyond_the_end_is_built_again_in_the_file(self):
        size = self.image.file_size()
        self.image.put64(48, 1 << 36)
        self.is_whole(self.source)
        self.assertLess(self.image.file_size(), 2 * size)

    def test_monitors_are_told(self):
        self.image.put64(self.image.l1, self.image.l2_table() + MISPLACED | COPIED)
        path, uri = self.path("nbd.sock"), nbd_uri(self.path("nbd.sock"), "disk")
        for writable, fatal in (("off", False), ("on", True)):
            daemon = self.daemon(
                "--blockdev", f"driver=file,node-name=file,filename={self.source}",
                "--blockdev", f"driver=qcow2,node-name=disk,file=file,read-only={'off' if fatal else 'on'}",
                "--nbd-server", f"addr.type=unix,addr.path={path}",
                "--export", f"type=nbd,id=e,node-name=disk,writable={writable}",
                name=f"writable-{writable}",  # the socket of a killed one may still seem to answer
            )  # fmt: skip
            self.assertNotEqual(run(qemu("qemu-io"), "-f", "raw", "-r", "-c", "read 0 64k", uri,
                                    check=False).returncode, 0)  # fmt: skip
            event = daemon.qmp.wait_event("BLOCK_IMAGE_CORRUPTED")["data"]
            message = "L2 table offset 0x40200 unaligned (L1 index: 0)"
            self.assertEqual(
                event, {"device": "", "node-name": "disk", "msg": message, "fatal": fatal}
            )
            self.assertEqual(is_marked(self.source), fatal)
            daemon.kill()

    def test_what_does_no_harm(self):
        self.image.put64(self.entry, self.image.host(0) + MISPLACED | COPIED)
        status, text, marked = self.both("discard 0 64k", "read -P 0 0 64k",
                                         options=("-d", "unmap"))
        self.assertEqual((status, marked), (0, False))
        self.assertIn("qcow2: Image is corrupt: Cannot free unaligned cluster 0x50200; further "
                      "non-fatal corruption events will be suppressed", text)

    def test_a_place_that_holds_nothing_is_repaired(self):
        # With extended entries: no subcluster has data, so the place can go.
        self.source = self.create("source.qcow2", "1M", options=("-o", "extended_l2=on"))
        io(self.source, "write 4k 2k", "write -z 4k 2k", fmt="qcow2")
        image = Image(self.source)
        place = image.l2_table()
        image.put64(place, image.u64(place) + MISPLACED)
        results = []
        for name, path in zip((compat("qemu-img"), qemu("qemu-img")), self.copies()):
            result = run(name, "check", "-r", "all", path, check=False)
            results.append((result.returncode, result.stdout, result.stderr))
            self.assertEqual(Image(path).u64(place), 0, name)
        self.assertEqual(results[0], results[1])
        self.assertIn("Preallocated cluster is not properly aligned", results[0][2])

    def test_read_only_images_are_not_marked(self):
        self.image.put64(self.entry, self.image.host(0) + MISPLACED | COPIED)
        _, text, marked = self.both("read 0 64k", "read 0 64k", "read 64k 64k", options=("-r",))
        self.assertFalse(marked)
        self.assertEqual(text.count("qcow2: Image is corrupt: Cluster allocation offset"), 1)

    def test_marked_images_open_read_only(self):
        self.image.put64(72, self.image.u64(72) | CORRUPT)
        status, text, _ = self.both("read 0 64k")
        self.assertEqual(status, 1)
        self.assertIn("qcow2: Image is corrupt; cannot be opened read/write", text)
        self.assertEqual(self.both("read 0 64k", options=("-r",))[0], 0)

    def test_checks_can_be_turned_off(self):
        self.image.put64(self.entry, self.image.l2_table() | COPIED)
        opened = "open -o overlap-check=constant IMAGE"
        for check, refused in (("constant", False), ("cached", True), ("all", True)):
            ours, theirs = self.copies()
            for name, path in ((compat("qemu-io"), ours), (qemu("qemu-io"), theirs)):
                words = opened.replace("constant", check).replace("IMAGE", path)
                run(name, "-c", words, "-c", "write 0 512", check=False)
                self.assertEqual(is_marked(path), refused, (name, check))


    def test_a_write_that_waits_fails_too(self):
        # The cluster that a new one is made of is copied while the image is found corrupt.
        base = self.create("base.qcow2", "1G")
        self.source = self.create("source.qcow2", "1G", options=("-b", base, "-F", "qcow2"))
        io(base, "write -P 2 0 64k", fmt="qcow2")
        io(self.source, "write 0 64k", "write 512M 64k", fmt="qcow2")
        image = Image(self.source)
        image.put_refcount(image.host(0), 0)
        image.put_refcount(image.l2_table(1), 0)
        image.put64(image.l2_place(0), 0)
        commands = (
            "open -o file.driver=blkdebug IMAGE",
            "break cow_read 0",
            "aio_write 0k 1k",
            "wait_break 0",
            "write 64k 64k",
            "resume 0",
            "aio_flush",
        )
        for name, path in zip((compat("qemu-io"), qemu("qemu-io")), self.copies()):
            words = [w for c in commands for w in ("-c", c.replace("IMAGE", path))]
            result = run(name, *words, check=False)
            self.assertIn("(overlaps with active L2 table)", result.stderr)
            self.assertIn("aio_write failed: No medium found", result.stdout + result.stderr)
            self.assertTrue(is_marked(path))


class Options(TestCase):
    """What `reopen` says of options, and that they are in force."""

    def both(self, *commands):
        results = []
        words = [word for command in commands for word in ("-c", command)]
        for name, path in (("qemu-io", "a.qcow2"), ("qemu-io", "b.qcow2")):
            program = compat(name) if path == "a.qcow2" else qemu(name)
            path = self.create(path, "8M")
            result = run(program, *words, path, check=False)
            text = SPEED.sub("ops", result.stdout + result.stderr).replace(path, "IMAGE")
            results.append((result.returncode, text))
        self.assertEqual(results[0], results[1])
        return results[0]

    def test_conflicts(self):
        for options in (
            "lazy-refcounts=42",
            "cache-size=1M,l2-cache-size=64k,refcount-cache-size=64k",
            "cache-size=1M,l2-cache-size=2M",
            "l2-cache-entry-size=33k",
            "refcount-cache-size=256T",
            "cache-clean-interval=-1",
            "overlap-check=blubb",
            "overlap-check.template=blubb",
            "overlap-check=constant,overlap-check.template=all",
            "overlap-check.template=none,overlap-check=all",
            "overlap-check.active-l2=maybe",
        ):
            status, text = self.both(f"reopen -o {options}", "write -P 3 0 64k", "read -P 3 0 64k")
            self.assertIn("wrote", text, options)
            self.assertEqual(status, 1, options)

    def test_options_are_kept_and_changed(self):
        for options in (
            ("cache-size=1M", "l2-cache-size=512k", "refcount-cache-size=128k", "cache-size=2M"),
            ("overlap-check=all", "overlap-check.active-l2=off", "overlap-check.template=none"),
            ("overlap-check=none", "overlap-check=none,overlap-check.template=none"),
            ("cache-clean-interval=5", "cache-clean-interval=0"),
            ("pass-discard-snapshot=on,pass-discard-other=on", "pass-discard-request=off"),
        ):
            commands = [f"reopen -o {o}" for o in options]
            status, _ = self.both(*commands, "write -P 3 0 64k", "read -P 3 0 64k")
            self.assertEqual(status, 0, options)

    def test_an_option_stays_in_force_over_a_reopen(self):
        path = self.create("a.qcow2", "8M")
        io(path, "write 0 128k", fmt="qcow2")
        image = Image(path)
        image.put64(image.l2_place(0), image.l2_table() | COPIED)
        words = ("reopen -o overlap-check=none", "reopen -o cache-size=1M", "write 0 512")
        self.assertNotIn("corrupt", io(path, *words, fmt="qcow2", check=False).stderr)
        self.assertFalse(is_marked(path))


if __name__ == "__main__":
    unittest.main()
