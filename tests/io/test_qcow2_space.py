# SPDX-License-Identifier: Apache-2.0
"""qcow2 where there is no more space: full file systems, devices, exports and parts that can't
grow.

A part of a file is one that `raw` cuts out by its option `size`.
"""

import json
import os
import unittest

from nbd_server import NbdServer
from qcow2_edit import Image
from tidemark import TestCase, img, io, nbd_uri, qemu_img, qemu_io, run, tool

KIB, MIB, TIB = 1 << 10, 1 << 20, 1 << 40
REFTABLE_OFFSET = 48  # in the header


class Full(TestCase):
    def part(self, image, size):
        """The image in the first `size` bytes of its file, which are there."""
        os.truncate(image, max(size, os.path.getsize(image)))
        return (f"driver=qcow2,discard=unmap,file.driver=raw,file.size={size},"
                f"file.file.driver=file,file.file.filename={image}")  # fmt: skip

    def io(self, options, *commands, **more):
        return io(options, *commands, options=("--image-opts",), **more)

    def end_of(self, image):
        return json.loads(qemu_img("check", "--output=json", image).stdout)["image-end-offset"]

    def bitmaps_of(self, image):
        """As QEMU's program lists them."""
        info = json.loads(qemu_img("info", "--output=json", image).stdout)
        return {b["name"]: b for b in info["format-specific"]["data"].get("bitmaps", [])}

    def dirty_bytes(self, image, bitmap):
        """As QEMU's server exports them."""
        return sum(e["length"] for e in self.bitmap_extents(image, bitmap) if not e["data"])


class InsideAnotherImage(Full):
    """An image whose file is another image: that records its size, and is not longer for a write
    past its end, which would be lost when it is opened again."""

    def check(self, fmt, options=()):
        inner = self.path(f"inner.{fmt}")
        img("convert", "-f", "raw", "-O", fmt, *options, self.create("a.qcow2", "64M"), inner)
        disk = f"driver=qcow2,file.driver={fmt},file.file.driver=file,file.file.filename={inner}"
        result = self.io(disk, "write -P 1 0 32M", check=False)
        self.assertIn("No space left on device", result.stdout)
        if fmt in ("qcow2", "vdi", "qed", "parallels"):
            img("check", "-q", "-f", fmt, inner)
        self.io(disk, "read -P 0 0 64M")

    def test_is_full_at_the_end_of_that(self):
        for fmt in "qcow2", "vpc", "vdi", "vmdk", "vhdx", "qed", "parallels":
            with self.subTest(format=fmt):
                self.check(fmt)

    def test_is_no_corruption_of_that(self):
        self.check("qcow2", ("-o", "cluster_size=512"))


class GivenBack(Full):
    """What was discarded is used before a write fails."""

    def test_in_a_part(self):
        image = self.create("a.qcow2", "4M")
        disk = self.part(image, 2 * MIB)
        self.io(disk, "write -P 1 0 1M", "discard 0 512k", "write -P 2 2M 1M", "discard 2M 1M",
                "write -P 3 3M 1M", "read -P 1 512k 512k", "read -P 3 3M 1M")  # fmt: skip
        self.assertEqual(os.path.getsize(image), 2 * MIB)
        qemu_img("check", image)

    def test_in_an_export(self):
        image = self.create("a.qcow2", "4M")
        os.truncate(image, 2 * MIB)
        server = self.own(NbdServer(self.dir, "-f", "raw", "--discard=unmap", image))
        options = ("-d", "unmap")
        io(server.uri(), "write -P 1 0 1M", "discard 0 512k", "write -P 2 2M 1M", fmt="qcow2", options=options)
        result = io(server.uri(), "write -P 3 3M 1M", fmt="qcow2", check=False)
        self.assertIn("No space left on device", result.stdout + result.stderr)
        server.stop()
        qemu_img("check", image)

    def test_on_a_full_file_system(self):
        """A reader of a snapshot gives back what it has read, so a small file system takes it all.
        """
        small, disk = self.path("small"), self.create("disk.raw", "32M", "raw")
        os.mkdir(small)
        io(disk, "write -P 7 0 32M", fmt="raw")
        make = " ".join([*tool("img"), "create", "-q", "-f", "qcow2", f"{small}/t.qcow2", "32M"])
        how = "-m" if os.geteuid() == 0 else "-rm"
        script = f'mount -t tmpfs -o size=4m tmpfs {small}; {make}; exec "$@"'
        socket = self.path("s")
        daemon = self.daemon(
            "--blockdev", f"driver=raw,node-name=disk,file.driver=file,file.filename={disk}",
            "--blockdev", "driver=qcow2,node-name=temporary,discard=unmap,file.driver=file,"
                          f"file.discard=unmap,file.filename={small}/t.qcow2",
            "--blockdev", "driver=copy-before-write,node-name=cbw,file=disk,target=temporary,"
                          "on-cbw-error=break-snapshot",
            "--blockdev", "driver=snapshot-access,node-name=snapshot,file=cbw,discard=unmap",
            "--nbd-server", f"addr.type=unix,addr.path={socket}",
            "--export", "nbd,id=a,node-name=cbw,name=guest,writable=on",
            "--export", "nbd,id=b,node-name=snapshot,name=snapshot,writable=on",
            program=["unshare", how, "sh", "-ec", script, "sh", *tool("daemon")],
        )  # fmt: skip
        for i in range(0, 32, 2):
            io(nbd_uri(socket, "guest"), f"write -P 1 {i}M 2M", fmt="raw")
            io(nbd_uri(socket, "snapshot"), f"read -P 7 {i}M 2M", f"discard {i}M 2M", fmt="raw",
               options=("-d", "unmap"))  # fmt: skip
        daemon.quit()


class OnADevice(Full):
    def test_zeroes_behind_its_end_are_a_want_of_space(self):
        """New tables are zeroed in large pieces."""
        image = self.create("a.qcow2", "4M", options=("-o", "cluster_size=512"))
        os.truncate(image, 1 * MIB)
        as_root = [] if os.geteuid() == 0 else ["sudo", "-n"]
        device = run(*as_root, "losetup", "-f", "--show", image).stdout.strip()
        self.addCleanup(run, *as_root, "losetup", "-d", device)
        run(*as_root, "chmod", "666", device)
        options = f"driver=qcow2,file.driver=host_device,file.filename={device}"
        result = self.io(options, "write -P 1 0 2M", "write -P 1 2M 1M", check=False)
        said = result.stdout + result.stderr
        self.assertEqual(said.count("write failed: No space left on device"), 2, said)
        qemu_img("check", "-f", "qcow2", device)


class NoSpareCluster(Full):
    """A change for which there is no room fails in words, changes nothing, and leaves the image in
    order.
    """

    def make(self):
        image = self.path("a.qcow2")
        if os.path.exists(image):
            os.unlink(image)
        self.create("a.qcow2", "8M", options=("-o", "cluster_size=4k"))
        io(image, "write -P 1 0 1M", "write -z 1M 64k", fmt="qcow2")
        img("snapshot", "-f", "qcow2", "-c", "s", image)
        io(image, "write -P 2 0 128k", "write -P 3 4M 64k", fmt="qcow2")
        return image

    def content(self, image):
        out = self.path("out.raw")
        qemu_img("convert", "-O", "raw", image, out)
        with open(out, "rb") as f:
            return f.read(8 * MIB)

    def go_through(self, *words, most=12):
        """With one more spare cluster each time, until it works."""
        for spare in range(most):
            image = self.make()
            before, disk = self.content(image), self.part(image, self.end_of(image) + spare * 4 * KIB)
            size = os.path.getsize(image)
            result = img(*[disk if word == "DISK" else word for word in words], check=False)
            self.assertEqual(os.path.getsize(image), size)
            qemu_img("check", image)
            if result.returncode == 0:
                return spare
            self.assertIn("No space left on device", result.stderr)
            self.assertTrue(self.content(image) == before, f"{words}: {spare} spare clusters")
        self.fail(f"{words}: still no room with {most} clusters")

    def test_snapshots(self):
        self.assertEqual(self.go_through("snapshot", "--image-opts", "-c", "t", "DISK"), 2)
        self.assertEqual(self.go_through("snapshot", "--image-opts", "-a", "s", "DISK"), 1)
        self.assertEqual(self.go_through("snapshot", "--image-opts", "-d", "s", "DISK"), 0)

    def test_size(self):
        self.go_through("resize", "-q", "--image-opts", "DISK", "4G")
        self.assertEqual(self.go_through("resize", "-q", "--image-opts", "--shrink", "DISK", "6M"), 0)

    def test_bitmaps(self):
        self.assertEqual(self.go_through("bitmap", "--image-opts", "--add", "DISK", "b"), 2)

    def test_bits_of_a_new_bitmap(self):
        """There is room for its table when it is added, and for nothing when the disk is full."""
        image = self.make()
        disk = self.part(image, self.end_of(image) + 2 * 4 * KIB)
        img("bitmap", "--image-opts", "--add", "-g", "4k", disk, "b")
        result = self.io(disk, "write -P 4 0 64k", "write -P 5 64k 64k")
        self.assertIn("no space to store bitmap 'b' exactly: ", result.stderr)
        qemu_img("check", image)
        self.assertEqual(self.bitmaps_of(image)["b"]["flags"], ["auto"])
        self.assertEqual(self.dirty_bytes(image, "b"), 8 * MIB)

    def test_bits_of_a_stored_bitmap(self):
        image = self.make()
        img("bitmap", "-f", "qcow2", "--add", "-g", "4k", image, "b")
        io(image, "write -P 4 0 64k", fmt="qcow2")
        result = self.io(self.part(image, self.end_of(image)), "write -P 5 64k 64k")
        self.assertEqual(result.stderr, "")
        qemu_img("check", image)
        self.assertEqual(self.bitmaps_of(image)["b"]["flags"], ["auto"])
        self.assertEqual(self.dirty_bytes(image, "b"), 128 * KIB)

    def test_bitmaps_survive_a_disk_that_can_not_grow(self):
        image = self.make()
        img("bitmap", "-f", "qcow2", "--add", image, "b")
        result = img("resize", "-q", "--image-opts", self.part(image, self.end_of(image)), "4G", check=False)
        self.assertIn("No space left on device", result.stderr)
        info = json.loads(qemu_img("info", "--output=json", image).stdout)
        self.assertEqual(info["virtual-size"], 8 * MIB)
        self.assertEqual(info["format-specific"]["data"]["bitmaps"][0]["flags"], ["auto"])

    def test_amend(self):
        self.go_through("amend", "-q", "--image-opts", "-o", "refcount_bits=64", "DISK")
        self.go_through("amend", "-q", "--image-opts", "-o", "refcount_bits=8", "DISK")
        self.go_through("amend", "-q", "--image-opts", "-o", "compat=0.10", "DISK")

    def test_preallocation_names_what_cannot_grow(self):
        image = self.make()
        disk = self.part(image, self.end_of(image) + 64 * KIB)
        result = img("resize", "-q", "--image-opts", "--preallocation=metadata", disk, "9M", check=False)
        self.assertIn("its size is fixed", result.stderr)
        qemu_img("check", image)


class FullFileSystem(Full):
    """A file of holes can grow by its length alone, but its clusters find no place."""

    def test_bitmaps(self):
        image, out = self.path("small/a.qcow2"), self.path("a.qcow2")
        os.mkdir(self.path("small"))
        how = "-m" if os.geteuid() == 0 else "-rm"
        program = " ".join(tool("img")), " ".join(tool("io"))
        fill = " ".join(f"-c 'write {MIB + i * 4 * KIB} 4k'" for i in range(512))
        script = f"""mount -t tmpfs -o size=2m tmpfs {self.path("small")}
            {program[0]} create -q -f qcow2 -o cluster_size=4k {image} 8M
            {program[0]} bitmap -f qcow2 --add -g 4k {image} stored
            {program[1]} -f qcow2 -c 'write 0 64k' {image}
            {program[0]} bitmap -f qcow2 --add -g 4k {image} new
            {program[1]} -f qcow2 -t writeback {fill} {image} >/dev/null || true
            cp {image} {out}"""
        run("unshare", how, "sh", "-ec", script)
        qemu_img("check", out)
        self.assertEqual([b["flags"] for b in self.bitmaps_of(out).values()], [["auto"], ["auto"]])
        self.assertGreater(self.dirty_bytes(out, "stored"), 128 * KIB)
        self.assertGreater(self.dirty_bytes(out, "new"), 64 * KIB)


class Rebuilt(Full):
    """New refcounts take gaps of the file."""

    def damage(self, image):
        """The refcount table names nothing any more."""
        edit = Image(image)
        edit.write(edit.u64(REFTABLE_OFFSET), bytes(64 * KIB))

    def make(self):
        image = self.create("a.qcow2", "16M")
        io(image, "write -P 1 0 64k", "write -P 2 8M 64k", "write -P 3 4M 1M", "flush", "write -P 4 15M 64k",
           "flush", "discard 4M 1M", fmt="qcow2", options=("-d", "unmap"))  # fmt: skip
        return image

    def assert_whole(self, image):
        qemu_img("check", image)
        qemu_io(image, "read -P 1 0 64k", "read -P 2 8M 64k", "read -P 4 15M 64k", "read -P 0 4M 1M", fmt="qcow2")

    def test_where_the_file_cannot_grow(self):
        image = self.make()
        self.damage(image)
        size = os.path.getsize(image)
        img("check", "-q", "-r", "all", "--image-opts", self.part(image, size))
        self.assertEqual(os.path.getsize(image), size)
        self.assert_whole(image)

    def test_where_the_file_ends_far_away(self):
        image = self.make()
        self.damage(image)
        os.truncate(image, 8 * TIB)
        img("check", "-q", "-f", "qcow2", "-r", "all", image)
        self.assertEqual(os.path.getsize(image), 8 * TIB)
        self.assertLess(Image(image).u64(REFTABLE_OFFSET), 4 * MIB)
        self.assert_whole(image)

    def test_another_width_fits_into_gaps(self):
        for bits in (1, 64):
            image = self.make()
            size = os.path.getsize(image)
            img("amend", "-q", "--image-opts", "-o", f"refcount_bits={bits}", self.part(image, size))
            self.assert_whole(image)
            os.unlink(image)

    def test_small_clusters_with_many_blocks(self):
        image = self.create("small.qcow2", "16M", options=("-o", "cluster_size=512"))
        io(image, "write -P 1 0 16M", fmt="qcow2")
        for bits in (64, 1, 16):
            img("amend", "-q", "-f", "qcow2", "-o", f"refcount_bits={bits}", image)
            qemu_img("check", image)
        qemu_io(image, "read -P 1 0 16M", fmt="qcow2")


class NewFiles(TestCase):
    """Lengths of new files, as qemu-img makes them."""

    def lengths(self, tool, *options):
        files = [self.path("a.qcow2"), self.path("a.raw")]
        tool("create", "-q", "-f", "qcow2", "-o", ",".join(["preallocation=off", *options]), files[0], "64M")
        lengths = [os.path.getsize(file) for file in files if os.path.exists(file)]
        for file in files:
            if os.path.exists(file):
                os.unlink(file)
        return lengths

    def test_are_those_of_qemu_img(self):
        for options in ((), ("cluster_size=512",), ("extended_l2=on",), (f"data_file={self.path('a.raw')}",)):
            with self.subTest(options=options):
                self.assertEqual(self.lengths(img, *options), self.lengths(qemu_img, *options))

    def test_the_l1_table_has_its_space(self):
        """Else a full file system might have none for the entry that frees what was discarded."""
        image = self.create("a.qcow2", "32T")
        table = 32 * TIB // (512 * MIB) * 8
        self.assertGreater(os.stat(image).st_blocks * 512, table)


class FullRefcounts(TestCase):
    """Refcounts of 2 bits count two snapshots and the disk."""

    def setUp(self):
        super().setUp()
        self.image = self.create("a.qcow2", "1M", options=("-o", "refcount_bits=2"))
        io(self.image, "write -P 1 0 1M", fmt="qcow2")
        img("snapshot", "-f", "qcow2", "-c", "s", self.image)
        io(self.image, "write -P 2 0 64k", fmt="qcow2")
        img("snapshot", "-f", "qcow2", "-c", "t", self.image)

    def test_a_snapshot_is_applied(self):
        img("snapshot", "-f", "qcow2", "-a", "s", self.image)
        qemu_img("check", self.image)
        qemu_io(self.image, "read -P 1 0 1M", fmt="qcow2")
        img("snapshot", "-f", "qcow2", "-a", "t", self.image)
        qemu_img("check", self.image)
        qemu_io(self.image, "read -P 2 0 64k", "read -P 1 64k 960k", fmt="qcow2")

    def test_not_what_can_not_be_counted_even_so(self):
        """Three snapshots have what the disk has not."""
        image = self.create("b.qcow2", "1M")
        io(image, "write -P 1 0 1M", fmt="qcow2")
        for name in ("s", "t", "u"):
            img("snapshot", "-f", "qcow2", "-c", name, image)
        io(image, "write -P 3 0 1M", fmt="qcow2")
        img("amend", "-q", "-f", "qcow2", "-o", "refcount_bits=2", image)
        result = img("snapshot", "-f", "qcow2", "-a", "s", image, check=False)
        self.assertIn("refcounts of 2 bits can't count one more", result.stderr)
        qemu_img("check", image)
        qemu_io(image, "read -P 3 0 1M", fmt="qcow2")


if __name__ == "__main__":
    unittest.main()
