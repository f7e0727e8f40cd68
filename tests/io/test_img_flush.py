# SPDX-License-Identifier: Apache-2.0
"""What a tool has reported as done is stable, and it fails if that could not be had."""

import os
import re
import unittest

import nbd
from tidemark import Process, TestCase, can_connect, compat, img, io, run, tool, wait_until

WRITES = ("pwrite64", "pwritev", "pwritev2", "ftruncate", "fallocate", "copy_file_range")
SYNCS = ("fsync", "fdatasync")


class Files(TestCase):
    """Seen by strace; without io_uring, whose requests are no system calls."""

    def last_calls(self, *command):
        """Whether each file (by descriptor path) was synced after it was changed last."""
        trace = self.path("trace")
        wanted = ",".join((*WRITES, *SYNCS, "io_uring_setup"))
        run("strace", "-f", "-y", "-o", trace, "-e", f"trace={wanted}",
            "-e", "inject=io_uring_setup:error=ENOSYS", *command)  # fmt: skip
        stable = {}
        with open(trace, encoding="utf-8", errors="replace") as lines:
            for line in lines:
                # Before the call can have failed or be unfinished: all are made one after the
                # other.
                call = re.search(r"^\d+ +(\w+)\((.*)", line)
                if not call or call[1] not in WRITES + SYNCS:
                    continue
                paths = re.findall(r"<(/[^>]*)>", call[2].split('"')[0] if call[1][0] == "p" else call[2])
                if paths:
                    stable[os.path.basename(paths[-1])] = call[1] in SYNCS or "RWF_DSYNC" in line
        return stable

    def assert_stable(self, path, *command):
        self.assertIs(self.last_calls(*command).get(os.path.basename(path)), True, command)

    def source(self):
        path = self.path("source.raw")
        with open(path, "wb") as f:
            f.write(os.urandom(1 << 20))
        return path

    def test_copies(self):
        source = self.source()
        for fmt, *options in (
            ("raw", "convert", "-t", "writeback"),
            ("raw", "convert", "-t", "none"),
            ("raw", "convert", "-t", "writeback", "-C"),
            ("raw", "convert", "-t", "writeback", "-W"),
            ("qcow2", "convert", "-t", "writeback"),
            ("qcow2", "convert", "-t", "writeback", "-c"),
        ):
            with self.subTest(options=options, fmt=fmt):
                target = self.path("target")
                self.assert_stable(target, *tool("img"), *options, "-f", "raw", "-O", fmt, source, target)
        target = self.path("dd")
        self.assert_stable(target, *tool("img"), "dd", "-f", "raw", f"if={source}", f"of={target}")

    def test_unsafe_files_are_left_to_the_system(self):
        source, target = self.source(), self.path("target")
        for fmt in ("raw", "qcow2"):
            calls = self.last_calls(*tool("img"), "convert", "-f", "raw", "-O", fmt, source, target)
            self.assertIs(calls["target"], False, fmt)

    def test_changes(self):
        raw = self.create("disk.raw", "1M", "raw")
        self.assert_stable(raw, *tool("img"), "resize", "-f", "raw", raw, "2M")
        self.assert_stable(raw, *tool("img"), "bench", "-w", "-c", "4", "-f", "raw", raw)
        disk = self.create("disk.qcow2", "1M")
        for command in (
            ("resize", "-f", "qcow2", disk, "2M"),
            ("snapshot", "-f", "qcow2", "-c", "one", disk),
            ("snapshot", "-f", "qcow2", "-a", "one", disk),
            ("snapshot", "-f", "qcow2", "-d", "one", disk),
            ("bitmap", "-f", "qcow2", "--add", disk, "b"),
            ("bitmap", "-f", "qcow2", "--remove", disk, "b"),
            ("amend", "-f", "qcow2", "-o", "lazy_refcounts=on", disk),
        ):
            with self.subTest(command=command):
                self.assert_stable(disk, *tool("img"), *command)

    def test_chains(self):
        base = self.create("base.qcow2", "1M")
        other = self.create("other.qcow2", "1M")
        top = self.path("top.qcow2")
        img("create", "-q", "-f", "qcow2", "-b", base, "-F", "qcow2", top)
        io(other, "write 0 64k", fmt="qcow2")
        io(top, "write 64k 64k", fmt="qcow2")
        self.assert_stable(top, *tool("img"), "rebase", "-f", "qcow2", "-b", other, "-F", "qcow2", top)
        self.assert_stable(other, *tool("img"), "commit", "-f", "qcow2", "-d", top)

    def test_new_files_with_their_space(self):
        for mode in ("falloc", "full"):
            path = self.path(f"{mode}.raw")
            self.assert_stable(path, *tool("img"), "create", "-f", "raw", "-o", f"preallocation={mode}", path, "1M")
        path = self.path("new.qcow2")
        self.assert_stable(path, *tool("img"), "create", "-f", "qcow2", path, "1M")

    def test_io(self):
        raw = self.create("disk.raw", "1M", "raw")
        for command in ("write 0 64k", "write -z 0 64k", "discard 0 64k", "truncate 2M", "aio_write 0 4k"):
            for cache in ("writeback", "writethrough", "none"):
                with self.subTest(command=command, cache=cache):
                    self.assert_stable(raw, *tool("io"), "-t", cache, "-f", "raw", "-c", command, raw)


class OurServer(TestCase):
    def test_what_a_client_left_unflushed_is_flushed_at_the_end(self):
        path, trace = self.create("disk.raw", "1M", "raw"), self.path("trace")
        for cache, synced in (("writeback", True), ("unsafe", False)):
            command = ["strace", "-f", "-o", trace, "-e", "trace=fdatasync,fsync,io_uring_setup", "-e",
                       "inject=io_uring_setup:error=ENOSYS", *tool("nbd"), "--cache", cache, "-f", "raw", "-k",
                       self.path("s"), path]  # fmt: skip
            server = self.own(Process(command, self.path("log")))
            wait_until(lambda: can_connect(self.path("s")), "the server")
            client = nbd.NBD()
            client.connect_unix(self.path("s"))
            client.pwrite(b"x" * 512, 0)
            client.shutdown()
            server.wait()
            with open(trace, encoding="utf-8") as lines:
                self.assertEqual("sync(" in lines.read(), synced, cache)


class Servers(TestCase):
    """nbdkit's log tells what a server was asked."""

    def requests(self, command):
        log = self.path("log")
        run("nbdkit", "-U", "-", "--filter=log", "memory", "4M", f"logfile={log}", "--run", command)
        with open(log, encoding="utf-8") as lines:
            text = lines.read()
        os.unlink(log)
        return re.findall(r"(Write|Zero|Trim|Flush) id=\d+ (?:offset=.* (fua=\d))?", text)

    def assert_flushed(self, command):
        requests = [kind for kind, _ in self.requests(command)]
        self.assertIn("Write", requests, command)
        self.assertEqual(requests[-1], "Flush", command)

    def test_every_cache_mode(self):
        """A server can keep what was written in its own memory: it gets a flush even where files
        would not be.
        """
        source = self.create("source.raw", "1M", "raw")
        io(source, "write 0 1M", fmt="raw")
        for name in ("unsafe", "writeback", "none", "writethrough"):
            for fmt in ("raw", "qcow2"):
                target = f'-n -f raw -O raw {source} "$uri"'
                if fmt == "qcow2":
                    target = f'-f raw -O qcow2 {source} "$uri"'
                with self.subTest(cache=name, fmt=fmt):
                    self.assert_flushed(f"{' '.join(tool('img'))} convert -t {name} {target}")

    def test_other_tools(self):
        img_, io_ = " ".join(tool("img")), " ".join(tool("io"))
        self.assert_flushed(f'{img_} bench -w -c 4 -f raw "$uri"')
        self.assert_flushed(f'{io_} -t unsafe -f raw -c "write 0 64k" "$uri"')
        self.assert_flushed(f'{io_} -f raw -c "write 0 64k" -c "close" "$uri"')

    def test_io_writes_are_stable_each(self):
        commands = ('write 0 64k', 'writev 0 4k 4k', 'aio_write 0 4k', 'write -z 0 64k')
        words = " ".join(f'-c "{c}"' for c in commands)
        for options, fua in (("", "fua=1"), ("-t writethrough", "fua=1"), ("-t writeback", "fua=0"), ("-n", "fua=0")):
            with self.subTest(options=options):
                found = self.requests(f'{" ".join(tool("io"))} {options} -f raw {words} "$uri"')
                changes = [flag for kind, flag in found if kind in ("Write", "Zero") and flag]
                self.assertEqual(changes, [fua] * len(commands))


class Failures(TestCase):
    """An error that only the flush shows is the command's error."""

    def server(self, command):
        """A server that takes all writes and fails each flush."""
        return run("nbdkit", "-U", "-", "eval", "get_size=echo 4M", "pread=head -c $3 /dev/zero",
                   "pwrite=cat >/dev/null", "zero=exit 0", "can_zero=exit 0", "can_write=exit 0", "can_flush=exit 0",
                   "flush=echo ENOSPC full >&2; exit 1", "--run", command, check=False)  # fmt: skip

    def assert_fails(self, result):
        self.assertEqual(result.returncode, 1, result.stderr)
        self.assertIn("No space left on device", result.stderr)

    def test_of_a_server(self):
        source = self.create("source.raw", "1M", "raw")
        io(source, "write 0 1M", fmt="raw")
        img_, io_ = " ".join(tool("img")), " ".join(tool("io"))
        for command in (
            f'{img_} convert -n -f raw -O raw {source} "$uri"',
            f'{img_} convert -n -t writeback -f raw -O raw {source} "$uri"',
            f'{img_} bench -q -w -c 4 -f raw "$uri"',
            f'{io_} -t writeback -f raw -c "write -q 0 64k" "$uri"',
            f'{io_} -t writeback -f raw -c "write -q 0 64k" -c close "$uri"',
        ):
            with self.subTest(command=command):
                self.assert_fails(self.server(command))

    def test_of_a_file(self):
        path = self.create("disk.raw", "1M", "raw")
        faulty = (f"driver=raw,file.driver=blkdebug,file.image.driver=file,file.image.filename={path},"
                  "file.inject-error.0.event=flush_to_disk,file.inject-error.0.iotype=flush,"
                  "file.inject-error.0.errno=28")  # fmt: skip
        source = self.create("source.raw", "1M", "raw")
        self.assert_fails(img("convert", "-n", "-t", "writeback", "--target-image-opts", "-f", "raw", source, faulty,
                              check=False))  # fmt: skip
        self.assert_fails(img("resize", "--image-opts", faulty, "2M", check=False))
        self.assert_fails(img("bench", "-q", "-w", "-c", "4", "--image-opts", faulty, check=False))
        for program in (tool("io"), [compat("qemu-io")]):
            command = [*program, "-t", "writeback", "--image-opts", "-c", "write 0 4k", faulty]
            self.assert_fails(run(*command, check=False))

    def test_qemu_io_says_no_more_after_a_command_that_failed(self):
        path = self.create("disk.raw", "1M", "raw")
        faulty = (f"driver=raw,file.driver=blkdebug,file.image.driver=file,file.image.filename={path},"
                  "file.inject-error.0.event=none,file.inject-error.0.errno=28")  # fmt: skip
        result = run(compat("qemu-io"), "-t", "writeback", "--image-opts", "-c", "write 0 4k", faulty, check=False)
        self.assertEqual((result.returncode, result.stderr), (1, ""), result.stdout)
        self.assertIn("write failed: No space left on device", result.stdout)


if __name__ == "__main__":
    unittest.main()
