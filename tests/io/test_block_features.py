# SPDX-License-Identifier: Apache-2.0
"""What the layer below the formats offers: detect-zeroes, copy-on-read, breakpoints, events, VM
state, and the formats it refuses by name.
"""

import json
import os
import shutil
import subprocess
import unittest

from tidemark import TestCase, compat, img, io, nbd_uri, qemu_img, qemu_io, run, tool

LUKS = b"LUKS\xba\xbe"
HEADERS = {
    "vmdk": (0, b"KDMV"),
    "vhdx": (0, b"vhdxfile"),
    "vdi": (64, b"\x7f\x10\xda\xbe"),
    "vpc": (0, b"conectix"),
    "parallels": (0, b"WithoutFreeSpace\2\0\0\0"),
    "cloop": (0, b"#!/bin/sh\n#V2.0 Format\n"),
    "qcow": (0, b"QFI\xfb\0\0\0\1"),
}


def with_options(options, *commands, check=True):
    """tidemark io on an image that options name."""
    words = [word for command in commands for word in ("-c", command)]
    return run(*tool("io"), "--image-opts", *words, options, check=check)


def extents(path):
    """What our map and QEMU's say of an image, which has to be the same."""
    ours = json.loads(img("map", "--output=json", "-f", "qcow2", path).stdout)
    theirs = json.loads(qemu_img("map", "--output=json", "-f", "qcow2", path).stdout)
    for extent in theirs:
        extent.setdefault("compressed", False)
    keys = ("start", "length", "depth", "zero", "data")
    assert [[e[k] for k in keys] for e in ours] == [[e[k] for k in keys] for e in theirs]
    return ours


class DetectZeroes(TestCase):
    def write_zeroes(self, mode, *commands):
        path = self.create("disk.qcow2", "1M")
        options = f"driver=qcow2,discard=unmap,detect-zeroes={mode},file.driver=file,file.filename={path}"
        with_options(options, *commands, "read -P 0 64k 64k")
        return [e for e in extents(path) if e["start"] == 65536][0]

    def test_off_stores_zeroes(self):
        self.assertTrue(self.write_zeroes("off", "write -P 0 64k 64k")["data"])

    def test_on_stores_none(self):
        extent = self.write_zeroes("on", "write -P 0 64k 64k")
        self.assertEqual((extent["zero"], extent["data"]), (True, False))

    def test_unmap_gives_the_cluster_back(self):
        extent = self.write_zeroes("unmap", "write -P 5 64k 64k", "write -P 0 64k 64k")
        self.assertEqual((extent["zero"], "offset" in extent), (True, False))

    def test_on_keeps_the_cluster(self):
        extent = self.write_zeroes("on", "write -P 5 64k 64k", "write -P 0 64k 64k")
        self.assertTrue(extent["zero"])
        self.assertFalse(extent["data"])

    def test_one_byte_that_is_not_zero_is_kept(self):
        path = self.create("disk.qcow2", "1M")
        options = f"driver=qcow2,detect-zeroes=on,file.driver=file,file.filename={path}"
        source = self.path("source")
        with open(source, "wb") as file:
            file.write(bytes(65535) + b"\1")
        with_options(options, f"write -s {source} 0 64k", "read -P 0 0 65535", "read -P 1 65535 1")

    def test_unmap_needs_discard(self):
        path = self.create("disk.qcow2", "1M")
        result = with_options(
            f"driver=qcow2,discard=ignore,detect-zeroes=unmap,file.driver=file,file.filename={path}",
            "length",
            check=False,
        )
        self.assertIn("setting detect-zeroes to unmap is not allowed without setting discard "
                      "operation to unmap", result.stderr)  # fmt: skip


class CopyOnRead(TestCase):
    def setUp(self):
        super().setUp()
        self.base = self.create("base.qcow2", "4M")
        self.middle = self.path("middle.qcow2")
        self.top = self.path("top.qcow2")
        io(self.base, "write -P 1 0 1M", fmt="qcow2")
        qemu_img("create", "-f", "qcow2", "-b", self.base, "-F", "qcow2", self.middle)
        io(self.middle, "write -P 2 1M 1M", fmt="qcow2")
        qemu_img("create", "-f", "qcow2", "-b", self.middle, "-F", "qcow2", self.top)

    def stored(self):
        """Guest ranges that the top has itself."""
        ranges = []
        for e in extents(self.top):
            if e["depth"] == 0 and e["present"]:
                if ranges and ranges[-1][1] == e["start"]:
                    ranges[-1][1] += e["length"]
                else:
                    ranges.append([e["start"], e["start"] + e["length"]])
        return ranges

    def test_what_is_read_is_kept_in_whole_clusters(self):
        io(self.top, "read -P 1 70000 10", fmt="qcow2", options=["-C"])
        self.assertEqual(self.stored(), [[65536, 131072]])
        qemu_img("rebase", "-u", "-f", "qcow2", "-b", "", self.top)
        io(self.top, "read -P 1 64k 64k", "read -P 0 0 64k", fmt="qcow2")

    def test_zeroes_are_kept_as_zeroes(self):
        io(self.top, "read -P 0 3M 1M", fmt="qcow2", options=["-C"])
        self.assertEqual(self.stored(), [[3 << 20, 4 << 20]])
        self.assertFalse([e for e in extents(self.top) if e["depth"] == 0 and e["data"]])

    def test_what_is_there_is_not_copied_over(self):
        io(self.top, "write -P 9 64k 64k", fmt="qcow2")
        io(self.top, "read 0 192k", "read -P 9 64k 64k", "read -P 1 128k 64k",
           fmt="qcow2", options=["-C"])  # fmt: skip
        self.assertEqual(self.stored(), [[0, 196608]])
        qemu_img("check", "-f", "qcow2", self.top)

    def test_nothing_is_copied_from_below_the_bottom(self):
        options = json.dumps({
            "driver": "copy-on-read",
            "bottom": "middle",
            "file": {
                "driver": "qcow2",
                "file": {"driver": "file", "filename": self.top},
                "backing": {
                    "driver": "qcow2",
                    "node-name": "middle",
                    "file": {"driver": "file", "filename": self.middle},
                },
            },
        })  # fmt: skip
        with_options(options, "read -P 1 0 1M", "read -P 2 1M 1M", "read -P 0 3M 1M")
        self.assertEqual(self.stored(), [[1 << 20, 2 << 20]])

    def test_raw_nodes_on_the_image_change_nothing(self):
        """Also where others may not write: the copies leave what is read as it was."""
        image = {"driver": "qcow2", "file": {"driver": "file", "filename": self.top}}
        for _ in range(2):
            image = {"driver": "copy-on-read", "file": {"driver": "raw", "file": image}}
        with_options(json.dumps(image), "read -P 1 0 1M", "read -P 2 1M 1M")
        self.assertEqual(self.stored(), [[0, 2 << 20]])
        daemon = self.daemon(
            "--blockdev", json.dumps({"node-name": "c", **image}),
            "--nbd-server", f"addr.type=unix,addr.path={self.path('nbd')}",
            "--export", "nbd,id=e,node-name=c",
        )  # fmt: skip
        uri = f"nbd+unix:///c?socket={self.path('nbd')}"
        io(uri, "read -P 0 3M 1M", fmt="raw", options=["-r"])
        daemon.quit()
        self.assertEqual(self.stored(), [[0, 2 << 20], [3 << 20, 4 << 20]])

    def test_bottom_has_to_be_in_the_chain(self):
        options = (
            "driver=copy-on-read,bottom=other,file.driver=qcow2,file.file.driver=file,"
            f"file.file.filename={self.top}"
        )
        self.assertIn("'other' not found", with_options(options, "length", check=False).stderr)

    def test_read_only_image_is_refused(self):
        result = io(self.top, "length", fmt="qcow2", options=["-C", "-r"], check=False)
        self.assertIn("Can't use copy-on-read on read-only device", result.stderr)

    def test_a_write_waits_for_the_copy_below_it(self):
        """The copy is held up before it is written: the write that comes meanwhile must win."""
        options = (
            f"driver=copy-on-read,file.driver=qcow2,file.file.driver=blkdebug,"
            f"file.file.image.driver=file,file.file.image.filename={self.top}"
        )
        out = with_options(
            options, "break write_aio A", "aio_read -P 1 0 64k", "wait_break A",
            "aio_write -P 7 4k 4k", "sleep 50", "resume A", "aio_flush",
            "read -P 1 0 4k", "read -P 7 4k 4k", "read -P 1 8k 56k",
        ).stdout  # fmt: skip
        self.assertNotIn("verification failed", out)
        self.assertLess(out.index("read 65536"), out.index("wrote 4096"))


class Compress(TestCase):
    """A filter: what is written through it is stored compressed."""

    def setUp(self):
        super().setUp()
        self.path_of_image = self.create("c.qcow2", "1000000")

    def through_filter(self, *commands, **more):
        return with_options(
            "driver=compress,file.driver=qcow2,file.file.driver=file,"
            f"file.file.filename={self.path_of_image}",
            *commands,
            **more,
        )

    def compressed_clusters(self):
        report = json.loads(qemu_img("check", "--output=json", self.path_of_image).stdout)
        return report.get("compressed-clusters", 0)

    def test_whole_clusters_are_compressed_whatever_the_request(self):
        self.through_filter("write -P 1 0 64k", "write -P 2 100k 100", "write -P 3 190k 10k")
        self.assertEqual(self.compressed_clusters(), 4)
        qemu_io(self.path_of_image, "read -P 1 0 64k", "read -P 0 64k 36k", "read -P 2 100k 100",
                "read -P 3 190k 10k", fmt="qcow2")  # fmt: skip

    def test_the_last_cluster_may_be_cut_off(self):
        self.through_filter("write -P 4 999000 1000", "read -P 4 999000 1000", "read -P 0 983040 10k")
        self.assertEqual(self.compressed_clusters(), 1)

    def test_what_was_written_can_be_changed(self):
        self.through_filter("write -P 5 0 128k", "write -P 6 4k 4k", "write -z 64k 4k",
                            "discard 128k 64k", "flush")  # fmt: skip
        qemu_io(self.path_of_image, "read -P 5 0 4k", "read -P 6 4k 4k", "read -P 5 8k 56k",
                "read -P 0 64k 4k", "read -P 5 68k 60k", fmt="qcow2")  # fmt: skip

    def test_an_overlay_with_larger_clusters_is_written(self):
        """A snapshot puts it below the filter."""
        overlay, place = self.path("overlay.qcow2"), self.path("n")
        img("create", "-q", "-f", "qcow2", "-o", "cluster_size=256k", overlay, "1000000")
        server = self.daemon(
            *("--blockdev", f"driver=qcow2,node-name=disk,file.driver=file,file.filename={self.path_of_image}"),
            *("--blockdev", "driver=compress,node-name=guest,file=disk"),
            *("--blockdev", f"driver=qcow2,node-name=overlay,backing=,file.driver=file,file.filename={overlay}"),
            *("--nbd-server", f"addr.type=unix,addr.path={place}"),
            *("--export", "type=nbd,id=e,node-name=guest,writable=on"),
        )
        server.qmp.command("blockdev-snapshot", node="disk", overlay="overlay")
        io(nbd_uri(place, "guest"), "write -P 9 64k 64k", "write -P 8 512k 256k", fmt="raw")
        server.quit()
        io(overlay, "read -P 9 64k 64k", "read -P 8 512k 256k", fmt="qcow2")

    def test_a_format_that_compresses_nothing_is_refused(self):
        raw = self.create("r.raw", "1M", fmt="raw")
        result = with_options(f"driver=compress,file.driver=raw,file.file.driver=file,file.file.filename={raw}",
                              "length", check=False)  # fmt: skip
        self.assertIn("Compression is not supported for underlying format: raw", result.stderr)


class Breakpoints(TestCase):
    def test_request_stands_until_resumed(self):
        path = self.create("disk.qcow2", "1M")
        out = io(f"blkdebug::{path}", "break write_aio A", "aio_write -P 3 0 4k", "wait_break A",
                 "read -P 0 0 4k", "resume A", "aio_flush", "read -P 3 0 4k",
                 fmt="qcow2").stdout  # fmt: skip
        self.assertLess(out.index("blkdebug: Suspended request 'A'"), out.index("read 4096"))
        self.assertLess(out.index("blkdebug: Resuming request 'A'"), out.index("wrote 4096"))

    def test_what_is_never_resumed_does_not_hang_the_end(self):
        path = self.create("disk.qcow2", "1M")
        io(f"blkdebug::{path}", "break write_aio A", "aio_write -P 3 0 4k", "wait_break A", fmt="qcow2")
        io(path, "read -P 3 0 4k", fmt="qcow2")

    def test_nothing_is_flushed_after_reads_that_failed(self):
        """That would fail too, and be reported as if something had been written."""
        path = self.create("disk.qcow2", "1M")
        io(path, "write 0 64k", fmt="qcow2")
        options = f"driver=qcow2,file.driver=blkdebug,file.image.driver=file,file.image.filename={path}"
        options += ",file.inject-error.0.event=l2_load"
        result = with_options(options, "read 0 64k", check=False)
        self.assertEqual(result.stdout, "read failed: Input/output error\n")
        self.assertEqual(result.stderr, "")

    def test_errors_are_told(self):
        path = self.create("disk.raw", "1M", "raw")
        for command in ("break write_aio A", "resume A", "remove_break A"):
            result = io(path, command, fmt="raw", check=False)
            self.assertEqual(result.returncode, 1)
            self.assertIn("Could not", result.stdout)

    def test_parts_of_an_unaligned_write_are_events(self):
        path = self.create("disk.raw", "64k", "raw")
        options = f"driver=raw,file.driver=blkdebug,file.align=4096,file.image.driver=file,file.image.filename={path}"
        out = with_options(
            options, "break pwritev_rmw_after_tail A", "aio_write -P 1 1k 1k", "wait_break A",
            "aio_write -P 2 5k 512", "aio_write -P 3 2k 1k", "sleep 50", "resume A", "aio_flush",
            "read -P 0 0 1k", "read -P 1 1k 1k", "read -P 3 2k 1k", "read -P 2 5k 512",
        ).stdout  # fmt: skip
        self.assertNotIn("verification failed", out)

    def test_a_write_that_waits_for_a_block_does_not_bar_its_other_blocks(self):
        path = self.create("disk.raw", "64k", "raw")
        options = f"driver=raw,file.driver=blkdebug,file.align=4096,file.image.driver=file,file.image.filename={path}"
        out = with_options(
            options, "break pwritev_rmw_after_tail A", "aio_write -P 1 0 512", "wait_break A",
            "aio_write -P 2 2k 4k", "break pwritev_rmw_after_head B", "aio_write -P 3 7k 512",
            "wait_break B", "resume A", "sleep 50", "resume B", "aio_flush", "read -P 1 0 512",
            "read -P 0 512 1536", "read -P 2 2k 4k", "read -P 0 6k 1k", "read -P 3 7k 512",
        ).stdout  # fmt: skip
        self.assertNotIn("verification failed", out)


class Events(TestCase):
    """Each event inside qcow2 can fail what follows it, the user hears of it, and the image stays
    sound.
    """

    def fail_at(self, event, commands, cluster_size, before=()):
        path = self.create("disk.qcow2", "256M", options=["-o", f"cluster_size={cluster_size}"])
        config = self.path("rules.conf")
        with open(config, "w", encoding="utf-8") as file:
            file.write(f'[inject-error]\nevent = "{event}"\nerrno = "28"\nonce = "on"\n')
        if before:
            io(path, *before, fmt="qcow2")
        words = [word for command in commands for word in ("-c", command)]
        result = run(*tool("io"), "-t", "writethrough", "-f", "qcow2", *words,
                     f"blkdebug:{config}:{path}", check=False)  # fmt: skip
        check = qemu_img("check", "-f", "qcow2", path, check=False)
        self.assertIn(check.returncode, (0, 3), f"{event}: {check.stdout}{check.stderr}")
        self.assertIn("No space left on device", result.stdout + result.stderr, event)

    def test_write(self):
        for event in ("l1_update", "l2_update", "l2_alloc_write", "write_aio", "refblock_load",
                      "refblock_update_part", "refblock_alloc", "cluster_alloc"):  # fmt: skip
            with self.subTest(event=event):
                self.fail_at(event, ["write 0 128k"], 1024)

    def test_read(self):
        for event in ("l2_load", "read_aio"):
            with self.subTest(event=event):
                self.fail_at(event, ["read 0 128k"], 1024, before=["write 0 128k"])

    def test_new_refcount_table(self):
        for event in ("refblock_alloc_hookup", "refblock_alloc_write", "refblock_alloc_write_blocks",
                      "refblock_alloc_write_table", "refblock_alloc_switch_table", "reftable_grow"):  # fmt: skip
            with self.subTest(event=event):
                self.fail_at(event, ["write 0 16M"], 512)

    def test_longer_l1_table(self):
        for event in ("l1_grow_alloc_table", "l1_grow_write_table", "l1_grow_activate_table"):
            with self.subTest(event=event):
                self.fail_at(event, ["write -b 0 64k"], 1024)

    def test_copied_parts(self):
        for event in ("cow_read", "cow_write"):
            self.fail_at(event, ["write 1k 512"], 65536, before=["write -c 0 64k"])

    def test_zeroes_around_the_data(self):
        """Where a cluster was used before: what a write leaves of it is zeroed."""
        before = ["write 0 64k", "discard 0 64k"]
        self.fail_at("cluster_alloc_space", ["write 1k 512"], 65536, before=before)

    def test_new_refcounts(self):
        path = self.create("disk.qcow2", "1M")
        config = self.path("rules.conf")
        io(path, "write -P 3 0 64k", fmt="qcow2")
        with open(path, "r+b") as file:
            file.seek(65536)
            file.write(bytes(8))  # no refcount block any more
        with open(config, "w", encoding="utf-8") as file:
            file.write('[inject-error]\nevent = "refblock_update"\nonce = "on"\n')
        words = ("check", "-q", "-f", "qcow2", "-r", "all")
        result = img(*words, f"blkdebug:{config}:{path}", check=False)
        self.assertIn("Input/output error", result.stderr)
        img(*words, path)
        qemu_img("check", "-f", "qcow2", path)
        qemu_io(path, "read -P 3 0 64k", fmt="qcow2")

    def test_compressed(self):
        for event in ("write_compressed", "l2_update_compressed"):
            self.fail_at(event, ["write -c 0 64k"], 65536)
        self.fail_at("read_compressed", ["read 0 64k"], 65536, before=["write -c 0 64k"])


class VmState(TestCase):
    def test_is_kept_beside_the_disk(self):
        path = self.create("disk.qcow2", "64M")
        io(path, "write -P 1 0 64M", "write -b -P 5 0 1M", "write -b -P 6 4k 4k", fmt="qcow2")
        io(path, "read -P 1 0 64M", "read -b -P 5 0 4k", "read -b -P 6 4k 4k", "read -b -P 5 8k 1M",
           fmt="qcow2", check=False)  # fmt: skip
        run(compat("qemu-io"), "-f", "qcow2", "-c", "read -b -P 6 4k 4k", path)
        qemu_img("check", "-f", "qcow2", path)

    def test_does_not_show_when_the_disk_grows_over_it(self):
        path = self.create("disk.qcow2", "64M", options=["-o", "cluster_size=4k"])
        io(path, "write -b -P 5 0 1M", fmt="qcow2")
        img("resize", "-f", "qcow2", path, "128M")
        io(path, "read -P 0 64M 64M", fmt="qcow2")
        qemu_img("check", "-f", "qcow2", path)

    def test_growth_where_the_l1_table_is_longer_than_a_refcount_block_counts(self):
        for bits in (1, 16, 64):
            with self.subTest(refcount_bits=bits):
                path = self.create(f"disk{bits}.qcow2", "1M",
                                   options=["-o", f"cluster_size=512,refcount_bits={bits}"])  # fmt: skip
                io(path, "write -P 7 0 1M", fmt="qcow2")
                img("resize", "-f", "qcow2", path, "2G")
                io(path, "write -P 9 1900M 1M", "read -P 7 0 1M", "read -P 9 1900M 1M", fmt="qcow2")
                qemu_img("check", "-f", "qcow2", path)

    def test_raw_has_none(self):
        path = self.create("disk.raw", "1M", "raw")
        result = io(path, "write -b 0 4k", fmt="raw", check=False)
        self.assertIn("not supported", result.stdout)


class PartOfAFile(TestCase):
    """An image in a part of a file, with the options offset and size of raw."""

    SIZE = 1 << 20

    def setUp(self):
        super().setUp()
        self.image = self.create("a.qcow2", "4M", options=("-o", "cluster_size=4096"))
        with open(self.image, "r+b") as f:
            f.truncate(self.SIZE)
            f.seek(self.SIZE)
            f.write(b"behind")
        file = {"driver": "file", "filename": self.image}
        part = {"driver": "raw", "size": self.SIZE, "file": file}
        self.part = "json:" + json.dumps({"driver": "qcow2", "file": part})

    def tearDown(self):
        with open(self.image, "rb") as f:
            self.assertEqual(f.read()[self.SIZE :], b"behind")

    def test_writes_do_not_go_behind_it(self):
        for command in ("write 0 2M", "write -z -u 0 4M", "write -z 0 2M"):
            io(self.part, command, check=False)
        err = io(self.part, "write 0 2M", check=False).stdout
        self.assertIn("No space left on device", err)

    def test_bitmaps_that_find_no_room_are_an_error(self):
        io(self.part, *(f"write {n * 4}k 4k" for n in range(256)), check=False)
        result = img("bitmap", "--add", self.part, "b", check=False)
        self.assertEqual(result.returncode, 1)
        self.assertIn("No space left on device", result.stderr)


class RefusedFormats(TestCase):
    def test_images_are_refused_by_name(self):
        for name in ("cloop",):
            offset, magic = HEADERS[name]
            with self.subTest(name=name):
                path = self.create(f"image.{name}", "1M", "raw")
                with open(path, "r+b") as file:
                    file.seek(offset)
                    file.write(magic)
                result = run(*tool("img"), "info", path, check=False)
                self.assertEqual(result.returncode, 1)
                self.assertIn(f"The format '{name}' is not supported", result.stderr)
                img("info", "-f", "raw", path)

    def test_names_are_refused(self):
        path = self.create("disk.raw", "1M", "raw")
        for name in "cloop", "dmg":
            with self.subTest(name=name):
                result = run(*tool("img"), "info", "-f", name, path, check=False)
                self.assertEqual(result.returncode, 1)
                self.assertIn(f"The format '{name}' is not supported", result.stderr)
                result = run(*tool("img"), "create", "-f", name, self.path("new"), "1M", check=False)
                self.assertEqual(result.returncode, 1)
                self.assertFalse(os.path.exists(self.path("new")))

    def test_images_that_end_with_a_signature_are_refused(self):
        """Disk images of Apple have no header."""
        path = self.path("image.DMG")
        with open(path, "wb") as file:
            file.write(bytes(4096) + b"koly" + bytes(508))
        result = img("convert", "-O", "raw", path, self.path("out"), check=False)
        self.assertEqual(result.returncode, 1)
        self.assertIn("The format 'dmg' is not supported", result.stderr)
        self.assertFalse(os.path.exists(self.path("out")))
        img("info", "-f", "raw", path)
        # neither the name nor the signature alone
        other = self.path("image.raw")
        shutil.copyfile(path, other)
        os.truncate(path, 4096)
        for name in path, other:
            self.assertIn("file format: raw", img("info", name).stdout)

    def test_a_guest_cannot_make_a_guessed_raw_image_one_of_them(self):
        path = self.create("disk.raw", "1M", "raw")
        source = self.path("source")
        with open(source, "wb") as file:
            file.write(LUKS + bytes(506))
        result = subprocess.run(
            [compat("qemu-io"), "-c", f"write -s {source} 0 512", path],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        self.assertIn("Operation not permitted", result.stdout)
        io(path, f"write -s {source} 0 512", fmt="raw")


if __name__ == "__main__":
    unittest.main()
