# SPDX-License-Identifier: Apache-2.0
"""Failing media below a qcow2 image in the midst of allocation: the error reaches the client, the
image stays sound, and what was flushed is there.
"""

import errno
import resource
import shutil
import signal
import unittest

import nbd
from tidemark import TestCase, can_connect, img, io, nbd_uri, qemu_img, run, tool

MIB = 1 << 20
IMAGE = object()  # stands for the image in a command


class Failing(TestCase):
    """blkdebug fails one request, once; which one goes through all that a command causes. The raw
    node announces every request as an event, whatever it is to qcow2.
    """

    def rules(self, kind, number, code):
        """A configuration that fails the request `number` (from 1 on) of a kind."""
        event = {"write": "write_aio", "read": "read_aio", "flush": "flush_to_disk"}[kind]
        lines = []
        for state in range(1, number):
            lines += ["[set-state]", f'event = "{event}"', f'state = "{state}"',
                      f'new_state = "{state + 1}"']  # fmt: skip
        lines += ["[inject-error]", f'event = "{event}"', f'state = "{number}"', f'errno = "{code}"',
                  f'iotype = "{kind}"', 'once = "on"', 'immediately = "off"']  # fmt: skip
        path = self.path(f"{kind}-{number}.conf")
        with open(path, "w", encoding="utf-8") as config:
            config.write("\n".join(lines) + "\n")
        return path

    def faulty(self, image, kind, number, code=errno.EIO):
        """Options that open an image so."""
        return ",".join([
            "driver=qcow2,discard=unmap", "file.driver=raw", "file.file.driver=blkdebug",
            f"file.file.config={self.rules(kind, number, code)}",
            "file.file.image.driver=file", f"file.file.image.filename={image}",
        ])  # fmt: skip


class InjectedErrors(Failing):
    commands = ["write -P 1 0 64k", "flush", "write -P 2 4M 192k", "write -z 0 4k", "discard 4M 64k",
                "write -P 3 33M 4k", "flush", "write -P 4 4k 60k", "flush"]  # fmt: skip

    def run_commands(self, kind, number, code):
        """Run them; what was printed, or None if all succeeded: the request to fail never came."""
        image = self.create("disk.qcow2", "64M")
        words = [word for command in self.commands for word in ("-c", command)]
        result = run(*tool("io"), "--image-opts", *words, self.faulty(image, kind, number, code), check=False)
        output = result.stdout + result.stderr
        self.assertGreaterEqual(result.returncode, 0, output)
        failed = result.returncode != 0 or "rror" in output
        check = qemu_img("check", "-f", "qcow2", image, check=False)
        self.assertIn(check.returncode, (0, 3), f"{kind} {number}: {check.stdout}{check.stderr}")
        if not failed:
            io(image, "read -P 0 0 4k", "read -P 4 4k 60k", "read -P 2 4160k 128k", "read -P 3 33M 4k",
               fmt="qcow2")  # fmt: skip
        return output if failed else None

    def go_through(self, kind, code, text):
        seen, reported = 0, 0
        for number in range(1, 200):
            output = self.run_commands(kind, number, code)
            if output is None:
                break
            seen += 1
            reported += text in output
        self.assertGreater(seen, 3, f"hardly any {kind} was there to fail")
        self.assertLess(seen, 199)
        # A flush that fails is reported by the exit status only, as qemu-io does.
        if kind != "flush":
            self.assertGreater(reported, 0)

    def test_each_write_can_fail_with_eio(self):
        self.go_through("write", errno.EIO, "Input/output error")

    def test_each_write_can_fail_with_enospc(self):
        self.go_through("write", errno.ENOSPC, "No space left on device")

    def test_each_flush_can_fail(self):
        self.go_through("flush", errno.EIO, "Input/output error")

    def test_each_read_can_fail(self):
        self.go_through("read", errno.EIO, "Input/output error")


class FailingChanges(Failing):
    """A change of the whole image that fails anywhere leaves the disk and its snapshots as they
    were, or changed.
    """

    looks = ((), ("-l", "s"), ("-l", "t"))

    def bytes_of(self, image, *look):
        out = self.path("out.raw")
        qemu_img("convert", "-O", "raw", *look, image, out)
        with open(out, "rb") as file:
            return file.read(MIB)

    def make(self):
        image, base = self.path("made.qcow2"), self.create("base.raw", "1M", "raw")
        io(base, "write -P 9 0 1M", fmt="raw")
        img("create", "-q", "-f", "qcow2", "-o", "cluster_size=4k", "-b", base, "-F", "raw", image, "1M")
        io(image, "write -P 1 0 64k", "write -z 16k 16k", "write -z 960k 8k", fmt="qcow2")
        img("snapshot", "-f", "qcow2", "-c", "s", image)
        io(image, "write -P 2 0 24k", "write -z 40k 8k", fmt="qcow2")
        img("snapshot", "-f", "qcow2", "-c", "t", image)
        io(image, "write -z 0 4k", fmt="qcow2")
        return image

    def go_through(self, kind, *command):
        made = self.make()
        before = [self.bytes_of(made, *look) for look in self.looks]
        for number in range(1, 300):
            image = self.path("disk.qcow2")
            shutil.copyfile(made, image)
            words = [self.faulty(image, kind, number) if word is IMAGE else word for word in command]
            result = run(*tool("img"), *words, check=False)
            output = f"{kind} {number}: {result.stdout}{result.stderr}"
            self.assertIn(result.returncode, (0, 1), output)
            check = qemu_img("check", "-f", "qcow2", image, check=False)
            self.assertIn(check.returncode, (0, 3), f"{output}{check.stdout}{check.stderr}")
            self.assertEqual([self.bytes_of(image, *look) for look in self.looks], before, output)
            if result.returncode == 0:
                break
        self.assertGreater(number, 3, f"hardly any {kind} was there to fail")
        self.assertLess(number, 299)

    def test_version_down(self):
        for kind in ("write", "flush", "read"):
            self.go_through(kind, "amend", "--image-opts", "-o", "compat=0.10", IMAGE)

    def test_refcount_width(self):
        for kind in ("write", "flush", "read"):
            self.go_through(kind, "amend", "--image-opts", "-o", "refcount_bits=32", IMAGE)

    def test_preallocated_growth(self):
        for preallocation in ("metadata", "full"):
            for kind in ("write", "flush", "read"):
                self.go_through(kind, "resize", "--image-opts", f"--preallocation={preallocation}", IMAGE, "3M")

    def test_one_more_snapshot(self):
        for kind in ("write", "flush", "read"):
            self.go_through(kind, "snapshot", "--image-opts", "-c", "u", IMAGE)


class FullDisk(TestCase):
    """A file that may not grow any more, which is what a full file system is to its writer."""

    limit = 8 * MIB

    def limit_file_size(self):
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (self.limit, self.limit))

    def start(self, image, limited):
        socket = self.path("nbd")
        daemon = self.daemon(
            "--blockdev", f"driver=file,node-name=file,filename={image}",
            "--blockdev", "driver=qcow2,node-name=disk,file=file",
            "--nbd-server", f"addr.type=unix,addr.path={socket}",
            "--export", "type=nbd,id=e,node-name=disk,name=disk,writable=on",
            preexec_fn=self.limit_file_size if limited else None,
            connect=False,
        )  # fmt: skip
        daemon.wait_for(lambda: can_connect(socket), "the NBD server")
        client = nbd.NBD()
        client.connect_uri(nbd_uri(socket, "disk"))
        return daemon, client

    def fill(self, client):
        """Write until there is no space; the offsets of the writes that succeeded."""
        written = []
        for offset in range(0, 64 * MIB, MIB // 2):
            try:
                client.pwrite(bytes([1 + offset // (MIB // 2)]) * 65536, offset)
            except nbd.Error as error:
                self.assertEqual(error.errno, "ENOSPC")
                return written
            written.append(offset)
            client.flush()
        self.fail("the disk never got full")

    def assert_written(self, client, written):
        for offset in written:
            data = bytes(client.pread(65536, offset))
            self.assertEqual(data, bytes([1 + offset // (MIB // 2)]) * 65536, f"at {offset}")

    def test_client_sees_enospc_and_nothing_is_lost(self):
        image = self.create("disk.qcow2", "64M")
        daemon, client = self.start(image, limited=True)
        written = self.fill(client)
        self.assertGreater(len(written), 10)
        self.assert_written(client, written)
        client.pwrite(b"\xee" * 65536, written[0])  # allocated already: needs no space
        client.flush()
        client.pwrite(bytes([1 + written[0] // (MIB // 2)]) * 65536, written[0])
        client.shutdown()
        daemon.stop(expect=None)
        check = qemu_img("check", "-f", "qcow2", image, check=False)
        self.assertIn(check.returncode, (0, 3), check.stdout + check.stderr)

        daemon, client = self.start(image, limited=False)
        self.assert_written(client, written)
        client.pwrite(b"\xdd" * MIB, 60 * MIB)
        client.flush()
        self.assertEqual(bytes(client.pread(MIB, 60 * MIB)), b"\xdd" * MIB)
        client.shutdown()
        daemon.stop()


class WriteLog(TestCase):
    def test_an_empty_log_is_appended_to(self):
        disk, log = self.create("disk.raw", "1M", "raw"), self.path("log")
        with open(log, "w", encoding="ascii"):
            pass
        node = f"driver=blklogwrites,file.filename={disk},log.filename={log},log-append=on"
        sizes = []
        for _ in range(2):
            run(*tool("io"), "--image-opts", "-c", "write -P 1 0 64k", node)
            with open(log, "rb") as file:
                sizes.append(len(file.read()))
        self.assertGreaterEqual(sizes[0], 65536 + 1024)
        self.assertGreaterEqual(sizes[1], sizes[0] + 65536 + 512)


if __name__ == "__main__":
    unittest.main()
