# SPDX-License-Identifier: Apache-2.0
"""External data files."""

import json
import os
import subprocess
import unittest

from tidemark import TestCase, compat, img, io, qemu_img, qemu_io, run, tool


class DataFile(TestCase):
    def test_a_raw_one_excludes_a_backing_file(self):
        path = self.create("a.qcow2", "1M", "qcow2", ("-o", f"data_file={self.path('d')},data_file_raw=on"))
        self.create("b.raw", "1M", "raw")
        result = img("rebase", "-f", "qcow2", "-u", "-b", "b.raw", "-F", "raw", path, check=False)
        self.assertEqual(result.returncode, 1)
        self.assertIn("Backing file and data-file-raw cannot be used at the same time", result.stderr)
        img("rebase", "-f", "qcow2", "-u", "-b", "", path)
        self.assertNotIn("backing", img("info", path).stdout)

    def test_a_small_disk_grows_with_the_cache_that_it_may_have(self):
        """All of the new area is mapped at once: 32 MiB of tables, which do not stay in RAM."""
        path = self.create("a.qcow2", "1M", "qcow2", ("-o", f"data_file={self.path('d')},data_file_raw=on"))
        node = f"driver=qcow2,l2-cache-size=1M,file.filename={path}"
        used = []
        # A build with a sanitizer would keep what is freed.
        environment = {**os.environ, "ASAN_OPTIONS": os.environ.get("ASAN_OPTIONS", "") + ":quarantine_size_mb=1"}
        for more in ("1M", "256G"):
            command = [*tool("img"), "resize", "-q", "--image-opts", node, "+" + more]
            with subprocess.Popen(command, env=environment) as process:
                _, status, usage = os.wait4(process.pid, 0)
                process.returncode = status
            self.assertEqual(status, 0)
            used.append(usage.ru_maxrss)
        self.assertLess(used[1] - used[0], 16 << 10)
        self.assertEqual(img("check", path).returncode, 0)

    def test_what_a_shrunk_disk_had_does_not_come_back(self):
        """A data file keeps what is past the end; a disk that grows over it, mapped, reads zeroes.
        """
        for raw in ("off", "on"):
            path = self.path(f"{raw}.qcow2")
            data = f"data_file={self.path(raw + '.data')},data_file_raw={raw}"
            img("create", "-f", "qcow2", "-o", data, path, "4M")
            io(path, "write -P 1 0 4M", fmt="qcow2")
            img("resize", "-f", "qcow2", "--shrink", path, "1M")
            img("resize", "-f", "qcow2", "--preallocation=metadata", path, "3M")
            io(path, "read -P 1 0 1M", "read -P 0 1M 2M", fmt="qcow2")

    def test_a_raw_data_file_is_the_disk_after_it_has_grown(self):
        """Also where it held something past the end of the disk, and with space for it if that is
        wanted.
        """
        for mode in ("off", "falloc"):
            path, data = self.path(f"{mode}.qcow2"), self.path(f"{mode}.data")
            img("create", "-f", "qcow2", "-o", f"data_file={data},data_file_raw=on", path, "1000k")
            io(path, "write -P 1 0 1000k", fmt="qcow2")
            with open(data, "ab") as file:
                end = file.tell()
                file.write(b"other" * 1000)
            img("resize", "-f", "qcow2", f"--preallocation={mode}", path, "3001k")
            # What it held stays, as with QEMU: the file is the disk.
            rest = end + 5000
            io(path, "read -P 1 0 1000k", f"read -P 0 {rest} {(3001 << 10) - rest}", fmt="qcow2")
            with open(data, "rb") as file:
                file.seek(end)
                self.assertEqual(file.read(5000), b"other" * 1000)
            img("compare", "-f", "raw", "-F", "qcow2", data, path)
            self.assertEqual(os.path.getsize(data), 3001 << 10)
            qemu_img("check", path)
            if mode == "falloc":
                self.assertGreaterEqual(os.stat(data).st_blocks * 512, 2970 << 10)
            # QEMU finds all of it in the raw image, too.
            with open(data, "r+b") as file:
                file.seek(2 << 20)
                file.write(b"x" * 512)
            qemu_io(path, "read -P 120 2M 512", fmt="qcow2")

    def test_zeroes_of_the_disk_are_zeroes_of_a_raw_data_file(self):
        """Others read the file by itself, which knows no zero clusters."""
        for command in ("write -z 0 64k", "write -z -u 0 64k", "write -z 4k 8k"):
            image, data = self.path("zero.qcow2"), self.path("zero.raw")
            options = f"data_file={data},data_file_raw=on"
            img("create", "-q", "-f", "qcow2", "-o", options, image, "1M")
            io(image, "write -P 7 0 128k", command, fmt="qcow2")
            offset, length = (4096, 8192) if " 4k" in command else (0, 65536)
            with open(data, "rb") as f:
                contents = f.read(128 << 10)
            self.assertEqual(contents[offset : offset + length], bytes(length), command)
            self.assertEqual(contents[offset + length :], b"\7" * ((128 << 10) - offset - length), command)

    def test_zeroes_next_to_zeroes_need_no_data(self):
        """Where the rest of a cluster has nothing, all of it becomes a zero cluster."""
        for raw, before in (("off", ()), ("on", ("write -z 0 128k",))):
            image, data = self.path(f"part-{raw}.qcow2"), self.path(f"part-{raw}.data")
            options = f"data_file={data},data_file_raw={raw}"
            img("create", "-q", "-f", "qcow2", "-o", options, image, "1M")
            zero = ("write -z 5000 3000", "write -z -u 65000 1000")
            io(image, *before, *zero, "write -P 1 128k 1k", "write -z 130k 1k", fmt="qcow2")
            parts = json.loads(img("map", "--output=json", "-f", "qcow2", "-l", "192k", image).stdout)
            self.assertEqual([p["start"] for p in parts if p["data"]], [128 << 10], parts)
            io(image, "read -P 0 0 128k", "read -P 1 128k 1k", "read -P 0 129k 63k", fmt="qcow2")

    def test_events_are_those_of_the_image(self):
        """blkdebug below the image has them, and blkdebug below the data file none, as in QEMU."""
        image = self.path("events.qcow2")
        for below, failed in (("file", 1), ("data-file", 0)):
            img("create", "-q", "-f", "qcow2", "-o", f"data_file={image}.data", image, "1M")
            names = {"file": image, "data-file": f"{image}.data"}
            options = [f"driver=qcow2,{below}.driver=blkdebug,{below}.image.filename={names.pop(below)}"]
            options += [f"{child}.filename={name}" for child, name in names.items()]
            options += [f"{below}.inject-error.{i}.event={event}"
                        for i, event in enumerate(("write_aio", "read_aio", "cow_write"))]  # fmt: skip
            words = ["-c", "write -P 1 0 4k", "-c", "read -P 1 0 4k", "-c", "flush"]
            result = run(*tool("io"), "--image-opts", *words, ",".join(options), check=False)
            self.assertEqual(result.returncode, failed, result.stdout + result.stderr)

    def test_a_data_file_ends_with_the_disk(self):
        for raw in ("off", "on"):
            path, data = self.path(f"{raw}.qcow2"), self.path(f"{raw}.data")
            img("create", "-f", "qcow2", "-o", f"data_file={data},data_file_raw={raw}", path, "1M")
            io(path, "write -P 1 0 1M", fmt="qcow2")
            for size in (300 << 10, 2 << 20):
                img("resize", "-f", "qcow2", "--shrink", path, size)
                self.assertEqual(os.path.getsize(data), size)

    def test_what_is_mapped_already_is_left_alone(self):
        """The last cluster, of which the disk had a part: the data at the beginning of the file is
        not zeroed for it.
        """
        for mode in ("metadata", "falloc", "full"):
            path = self.path(f"{mode}.qcow2")
            img("create", "-f", "qcow2", "-o", f"data_file={path}.data", path, "1000k")
            io(path, "write -P 1 0 1000k", fmt="qcow2")
            img("resize", "-f", "qcow2", f"--preallocation={mode}", path, "2M")
            io(path, "read -P 1 0 1000k", "read -P 0 1000k 1048k", fmt="qcow2")

    def test_a_name_longer_than_a_sector(self):
        data = self.path("./" * 400 + "long.data")
        path = self.path("long.qcow2")
        img("create", "-f", "qcow2", "-o", f"data_file={data}", path, "4M")
        io(path, "write -P 1 0 1M", fmt="qcow2")
        img("bitmap", "-f", "qcow2", "--add", path, "b0")
        img("resize", "-f", "qcow2", path, "8M")
        img("amend", "-f", "qcow2", "-o", "lazy_refcounts=on", path)
        img("bitmap", "-f", "qcow2", "--remove", path, "b0")
        qemu_img("check", path)
        qemu_io(path, "read -P 1 0 1M", fmt="qcow2")

    def test_a_relative_name_is_seen_from_the_working_directory(self):
        """By us and by QEMU, in create and open."""
        os.mkdir(self.path("images"))
        options = ("-o", "data_file=images/d.raw")
        img("create", "-f", "qcow2", *options, "images/ours.qcow2", "1M", cwd=self.dir)
        self.assertTrue(os.path.exists(self.path("images/d.raw")))
        io("images/ours.qcow2", "write -P 1 0 64k", fmt="qcow2", cwd=self.dir)
        qemu_io("images/ours.qcow2", "read -P 1 0 64k", fmt="qcow2", cwd=self.dir)
        qemu_img("create", "-f", "qcow2", *options, "images/theirs.qcow2", "1M", cwd=self.dir)
        io("images/theirs.qcow2", "write -P 2 0 64k", fmt="qcow2", cwd=self.dir)
        with open(self.path("images/d.raw"), "rb") as f:
            self.assertEqual(f.read(1), b"\2")
        result = io("ours.qcow2", "read 0 64k", fmt="qcow2", cwd=self.path("images"), check=False)
        self.assertIn("Could not open 'images/d.raw'", result.stderr)

    def test_the_option_without_a_data_file(self):
        """The file is opened first, as by QEMU."""
        path, other = self.path("alone.qcow2"), self.path("other")
        img("create", "-f", "qcow2", path, "1M")
        with open(other, "wb") as file:
            file.truncate(1 << 20)
        only = "'data-file' can only be set for images with an external data file"
        for name, words in ((other, only), (self.path("no"), "Could not open")):
            options = f"driver=qcow2,file.filename={path},data-file.filename={name}"
            result = io(options, "read 0 512", options=["--image-opts"], check=False)
            self.assertIn(words, result.stderr)

    def test_no_snapshots(self):
        path = self.path("s.qcow2")
        img("create", "-f", "qcow2", "-o", f"data_file={path}.data", path, "1M")
        result = img("snapshot", "-f", "qcow2", "-c", "s", path, check=False)
        self.assertIn("Could not create snapshot 's': Operation not supported", result.stderr)

    def test_an_error_that_a_flush_returned_is_not_returned_again(self):
        """When the image is closed. One that no flush has returned is."""
        path = self.path("f.qcow2")
        img("create", "-f", "qcow2", "-o", f"data_file={path}.data", path, "1M")
        options = (f"driver=qcow2,file.filename={path},data-file.driver=blkdebug,"
                   f"data-file.image.filename={path}.data,data-file.inject-error.0.event=none,"
                   "data-file.inject-error.0.iotype=flush")  # fmt: skip
        for commands, said in ((["write 0 512", "flush"], ""), (["write 0 512"], "Could not flush")):
            words = [w for c in commands for w in ("-c", c)]
            result = run(compat("qemu-io"), "-t", "writeback", "--image-opts", *words, options,
                         check=False)  # fmt: skip
            self.assertEqual(result.returncode, 1)
            self.assertIn(said, result.stderr)
            self.assertEqual(bool(said), bool(result.stderr), result.stderr)

    def test_nothing_is_compressed(self):
        """Not even what would be stored as it is."""
        path = self.path("plain.qcow2")
        img("create", "-f", "qcow2", "-o", f"data_file={path}.data", path, "4M")
        result = io(path, "write -c -P 1 0 64k", fmt="qcow2", check=False)
        self.assertIn("Operation not supported", result.stdout + result.stderr)
        qemu_img("check", path)

    def test_the_first_cluster_lies_at_offset_0(self):
        """Which is the place of nothing elsewhere: a check does not take it for that."""
        for extended in ("off", "on"):
            path = self.path(f"first-{extended}.qcow2")
            img("create", "-f", "qcow2", "-o", f"data_file={path}.data,extended_l2={extended}", path, "4M")
            io(path, "write -P 1 0 64k", "write -P 2 64k 4k", fmt="qcow2")
            img("check", "-f", "qcow2", path)


class OnADevice(TestCase):
    def test_a_data_file_that_is_a_block_device(self):
        """By its name in the image alone."""
        back = self.path("back.img")
        with open(back, "wb") as file:
            file.truncate(4 << 20)
        as_root = () if os.geteuid() == 0 else ("sudo", "-n")
        device = run(*as_root, "losetup", "-f", "--show", back).stdout.strip()
        self.addCleanup(run, *as_root, "losetup", "-d", device)
        if as_root:
            run(*as_root, "chown", str(os.geteuid()), device)
        path = self.path("disk.qcow2")
        qemu_img("create", "-q", "-f", "qcow2", "-o", f"data_file={device}", path, "4M")
        io(path, "write -P 7 1M 1M", fmt="qcow2")
        qemu_io(path, "read -P 7 1M 1M", fmt="qcow2")


if __name__ == "__main__":
    unittest.main()
