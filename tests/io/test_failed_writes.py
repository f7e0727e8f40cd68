# SPDX-License-Identifier: Apache-2.0
"""A tool that could not write, flush or read what it had to says so, and leaves alone what hangs on
it.
"""

import os
import re

import nbd
from nbd_server import NbdServer, Nbdkit
from tidemark import BUILD, TestCase, img, io, qemu_img, run, tool

MIB = 1 << 20


class Failing(TestCase):
    def broken(self, name, event, iotype, driver="raw", once=False):
        """Options of an image over a file of which all requests of a kind fail."""
        config = self.path(f"{os.path.basename(name)}.conf")
        with open(config, "w", encoding="utf-8") as f:
            f.write(f'[inject-error]\nevent = "{event}"\niotype = "{iotype}"\nerrno = "5"\n')
            f.write(f'once = "{"on" if once else "off"}"\nimmediately = "off"\n')
        return (
            f"driver={driver},file.driver=blkdebug,file.config={config},"
            f"file.image.driver=file,file.image.filename={name}"
        )

    def assert_fails(self, *words, text="Input/output error"):
        result = run(*tool("img"), *words, check=False)
        self.assertEqual(result.returncode, 1, result.stdout + result.stderr)
        self.assertIn(text, result.stderr)

    def file_of(self, size, byte, name):
        path = self.path(name)
        with open(path, "wb") as f:
            f.write(bytes([byte]) * size)
        return path


class Interrupted(TestCase):
    """Calls that signals interrupt, or that transfer a part, are made again and go on."""

    def setUp(self):
        super().setUp()
        library = os.path.join(BUILD, "tests", "tools", "libinterrupted.so")
        self.assertTrue(os.path.exists(library))
        # Without io_uring, whose requests are no calls. The sanitizer wants to be loaded first.
        asan = os.environ.get("ASAN_OPTIONS", "") + ":verify_asan_link_order=0"
        self.environment = {**os.environ, "LD_PRELOAD": library, "TIDEMARK_LOOP": "epoll",
                            "ASAN_OPTIONS": asan}  # fmt: skip

    def tool(self, name, *words):
        return run(*tool(name), *words, env=self.environment)

    def test_files_have_what_was_written(self):
        for fmt in ("qcow2", "raw"):
            for prealloc in ("off", "falloc", "full"):
                for cache in ("writeback", "none"):
                    with self.subTest(fmt=fmt, prealloc=prealloc, cache=cache):
                        path = self.path(f"{fmt}-{prealloc}-{cache}")
                        self.tool("img", "create", "-q", "-f", fmt, "-o",
                                  f"preallocation={prealloc}", path, "2M")  # fmt: skip
                        self.tool("io", "-f", fmt, "-t", cache, "-d", "unmap", "-c", "write -P 1 0 1M",
                                  "-c", "write -P 2 1000 70000", "-c", "write -zu 512k 100k",
                                  "-c", "write -z 700000 5000", "-c", "discard 64k 64k", "-c", "flush",
                                  "-c", "read -P 2 1000 60000", path)  # fmt: skip
                        self.tool("img", "resize", "-q", "-f", fmt, "--shrink", path, "900k")
                        self.tool("img", "resize", "-q", "-f", fmt, path, "1M")
                        io(path, "read -P 1 0 1000", "read -P 2 1000 60000", "read -P 1 256k 256k",
                           "read -P 0 512k 100k", "read -P 1 620k 60k", "read -P 0 700000 5000",
                           "read -P 0 900k 124k", fmt=fmt)  # fmt: skip
                        copy = self.path("copy")
                        self.tool("img", "convert", "-f", fmt, "-O", "qcow2", "-t", cache, path, copy)
                        img("compare", "-q", "-f", fmt, "-F", "qcow2", path, copy)
                        qemu_img("check", "-q", copy)


class Convert(Failing):
    """Of what happens to the target, nothing is passed over."""

    def into(self, source, target, *words):
        return ["convert", "-n", "-f", "raw", "--target-image-opts", *words, source, target]

    def test_a_write_that_fails(self):
        source, target = self.file_of(MIB, 1, "source"), self.file_of(MIB, 0, "target")
        for words in ((), ("-W",), ("-m", "1"), ("-S", "0")):
            with self.subTest(words=words):
                self.assert_fails(*self.into(source, self.broken(target, "write_aio", "write"), *words))

    def test_one_write_among_many_that_fails(self):
        source, target = self.file_of(24 * MIB, 1, "source"), self.file_of(MIB, 0, "target")
        os.truncate(target, 24 * MIB)
        for words in ((), ("-W",)):
            with self.subTest(words=words):
                broken = self.broken(target, "write_aio", "write", once=True)
                self.assert_fails(*self.into(source, broken, *words))

    def test_zeroes_that_fail(self):
        source, target = self.file_of(MIB, 0, "source"), self.file_of(MIB, 9, "target")
        broken = self.broken(target, "pwritev_zero", "write-zeroes")
        self.assert_fails(*self.into(source, broken))

    def test_a_qcow2_target_whose_tables_fail(self):
        source, target = self.file_of(MIB, 1, "source"), self.create("target", "1M")
        broken = self.broken(target, "l2_update", "write", driver="qcow2")
        self.assert_fails(*self.into(source, broken))

    def test_a_read_that_fails(self):
        source, target = self.file_of(MIB, 1, "source"), self.path("target")
        broken = self.broken(source, "read_aio", "read")
        self.assert_fails("convert", "--image-opts", "-O", "raw", broken, target)

    def test_writethrough_makes_each_write_stable(self):
        log = self.path("requests")
        below = self.own(Nbdkit(self.dir, "--filter=log", "memory", "size=1M", f"logfile={log}"))
        img("convert", "-n", "-t", "writethrough", "-f", "raw", "-O", "raw",
            self.file_of(MIB, 1, "source"), below.uri())  # fmt: skip
        with open(log, encoding="utf-8") as f:
            writes = re.findall(r" Write id=\d+ .*fua=(\d)", f.read())
        self.assertTrue(writes)
        self.assertEqual(set(writes), {"1"})


class Rebase(Failing):
    def test_the_backing_file_stays_when_a_copy_fails(self):
        old, new = self.file_of(MIB, 1, "old"), self.file_of(MIB, 2, "new")
        image = self.path("image")
        img("create", "-q", "-f", "qcow2", "-b", old, "-F", "raw", image, "1M")
        # Only the copy fails: a new name could be written afterwards.
        broken = self.broken(image, "write_aio", "write", driver="qcow2", once=True)
        self.assert_fails("rebase", "--image-opts", "-b", new, "-F", "raw", broken)
        self.assertIn(f"backing file: {old}", img("info", image).stdout)
        io(image, "read -P 1 0 1M", fmt="qcow2")


class Commit(Failing):
    def make(self):
        base, image = self.create("base", "1M"), self.path("image")
        img("create", "-q", "-f", "qcow2", "-b", base, "-F", "qcow2", image, "1M")
        io(image, "write -P 3 0 1M", fmt="qcow2")
        return base, image

    def commit_over(self, base, image, event, iotype):
        broken = self.broken(base, event, iotype, driver="qcow2")
        words = [f"backing.{word}" for word in broken.split(",")]
        options = ",".join(["driver=qcow2", "file.driver=file", f"file.filename={image}", *words])
        self.assert_fails("commit", "--image-opts", options)
        io(image, "read -P 3 0 1M", fmt="qcow2")

    def test_the_image_stays_when_a_write_to_the_base_fails(self):
        self.commit_over(*self.make(), "write_aio", "write")

    def test_the_image_stays_when_the_flush_of_the_base_fails(self):
        self.commit_over(*self.make(), "flush_to_disk", "flush")


class LastFlush(Failing):
    """What only the flush at the end shows is an error, too."""

    def test_of_dd(self):
        source, target = self.file_of(MIB, 1, "source"), self.path("target")
        result = run(
            "strace", "-f", "-qq", "-o", os.devnull, "-e", "trace=fdatasync", "-e", "inject=fdatasync:error=EIO",
            *tool("img"), "dd", "-f", "raw", "-O", "raw", f"if={source}", f"of={target}", "bs=1M",
            env={**os.environ, "TIDEMARK_LOOP": "epoll"}, check=False,
        )  # fmt: skip
        self.assertEqual(result.returncode, 1, result.stdout + result.stderr)
        self.assertIn("Input/output error", result.stderr)

    def test_of_a_server_that_ends(self):
        disk = self.file_of(MIB, 1, "disk")
        server = self.own(NbdServer(self.dir, "--image-opts", self.broken(disk, "flush_to_disk", "flush")))
        client = nbd.NBD()
        client.connect_unix(server.socket)
        client.pwrite(b"a" * 512, 0)
        client.shutdown()
        server.stop(expect=1)
        self.assertIn("Input/output error", server.log())
