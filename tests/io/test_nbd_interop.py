# SPDX-License-Identifier: Apache-2.0
"""Our NBD server with other people's clients, and our client with other people's servers."""

import json
import random
import unittest

from nbd_server import Nbdkit, NbdServer, QemuNbd
from tidemark import TestCase, img, io, qemu, qemu_img, qemu_io, run

SIZE = 16 << 20


class InteropTest(TestCase):
    def setUp(self):
        super().setUp()
        self.disk = self.path("disk.raw")
        data = random.Random(4).randbytes(1 << 20)
        with open(self.disk, "wb") as disk:
            disk.truncate(SIZE)
            for offset in (0, 3 << 20, SIZE - (1 << 20)):
                disk.seek(offset)
                disk.write(data)

    def serve(self, *arguments):
        return self.own(NbdServer(self.dir, "-f", "raw", *arguments, self.disk))

    def assert_same(self, path):
        with open(path, "rb") as copy, open(self.disk, "rb") as disk:
            self.assertTrue(copy.read() == disk.read(), f"{path} differs")

    # --- our server

    def test_nbdcopy_reads_and_writes(self):
        server = self.serve()
        run(qemu("nbdcopy"), server.uri(), self.path("out.raw"))
        self.assert_same(self.path("out.raw"))
        new = self.path("new.raw")
        with open(new, "wb") as disk:
            disk.write(random.Random(5).randbytes(SIZE))
        run(qemu("nbdcopy"), "--flush", new, server.uri())
        self.assert_same(new)

    def test_nbdinfo_sees_everything(self):
        server = self.serve("-x", "disk", "-D", "some text")
        info = json.loads(run(qemu("nbdinfo"), "--no-content", "--json", server.uri("disk")).stdout)
        export = info["exports"][0]
        self.assertEqual(export["export-size"], SIZE)
        self.assertEqual(export["description"], "some text")
        self.assertEqual(export["contexts"], ["base:allocation", "x-tidemark:merged"])
        for feature in ("can_cache", "can_df", "can_fast_zero", "can_flush", "can_fua",
                        "can_multi_conn", "can_trim", "can_zero"):  # fmt: skip
            self.assertTrue(export[feature], feature)
        self.assertFalse(export["is_read_only"])

    def test_qemu_img_converts_and_compares(self):
        server = self.serve("-r")
        out = self.path("out.qcow2")
        qemu_img("convert", "-f", "raw", "-O", "qcow2", server.uri(), out)
        qemu_img("compare", out, server.uri())
        want = json.loads(qemu_img("map", "-f", "raw", "--output=json", "-U", self.disk).stdout)
        found = json.loads(qemu_img("map", "--output=json", server.uri()).stdout)
        self.assertEqual(found, want)

    def test_qemu_io_uses_every_command(self):
        server = self.serve()
        qemu_io(
            server.uri(), "write -P 1 0 1M", "write -f -P 2 1M 64k", "write -z 4k 4k",
            "write -z -u 64k 64k", "discard 2M 64k", "flush", "read -P 1 0 4k", "read -P 0 4k 4k",
            "read -P 2 1M 64k", "read -P 0 64k 64k", fmt="raw",
        )  # fmt: skip

    def test_qemu_nbd_lists_our_export(self):
        server = self.serve("-r", "-x", "disk")
        text = run(qemu("qemu-nbd"), "-L", "-k", server.socket).stdout
        self.assertIn("exports available: 1\n export: 'disk'\n", text)
        self.assertIn("flags: 0x58f ( readonly flush fua df multi cache )", text)
        self.assertIn("max block: 33554432", text)
        self.assertIn("base:allocation", text)

    # --- our client

    def servers(self):
        """Servers of the same disk by others, one after the other."""
        yield self.own(QemuNbd(self.dir, "-f", "raw", self.disk))
        self.end_processes()
        yield self.own(Nbdkit(self.dir, "file", self.disk))
        self.end_processes()
        # Without structured replies, and with odd limits.
        yield self.own(Nbdkit(self.dir, "--no-sr", "file", self.disk, name="no-sr"))
        self.end_processes()
        yield self.own(
            Nbdkit(
                self.dir, "--filter=blocksize-policy", "file", self.disk, "blocksize-minimum=4096",
                "blocksize-preferred=65536", "blocksize-maximum=262144",
                "blocksize-error-policy=error", name="limits",
            )
        )  # fmt: skip

    def test_our_client_reads_from_all_servers(self):
        for server in self.servers():
            with self.subTest(server=server.command):
                out = self.path("out.raw")
                img("convert", "-f", "raw", "-O", "raw", server.uri(), out)
                self.assert_same(out)
                img("compare", "-f", "raw", "-F", "raw", server.uri(), out)

    def test_our_client_writes_to_all_servers(self):
        for server in self.servers():
            with self.subTest(server=server.command):
                io(
                    server.uri(), "write -P 7 0 2M", "write -P 8 1000 5000", "write -z 64k 64k",
                    "discard 4M 1M", "flush", "read -P 7 0 1000", "read -P 8 1000 5000",
                    "read -P 7 6000 4k", "read -P 0 64k 64k", "read -P 7 128k 1M", fmt="raw",
                )  # fmt: skip

    def test_our_map_agrees_with_theirs(self):
        server = self.own(QemuNbd(self.dir, "-r", "-f", "raw", self.disk))
        theirs = json.loads(qemu_img("map", "--output=json", server.uri()).stdout)
        ours = json.loads(img("map", "--output=json", server.uri()).stdout)

        def essence(extents):
            return [(e["start"], e["length"], e["zero"], e["data"]) for e in extents]

        self.assertEqual(essence(ours), essence(theirs))

    def test_every_form_of_address_opens(self):
        server = self.own(QemuNbd(self.dir, "-r", "-x", "a b", "-f", "raw", self.disk))
        for name in (
            f"nbd+unix:///a%20b?socket={server.socket}",
            f"nbd:unix:{server.socket}:exportname=a b",
            'json:{"driver":"nbd","export":"a b","server":{"type":"unix","path":"%s"}}'
            % server.socket,
        ):
            with self.subTest(name=name):
                info = json.loads(img("info", "--output=json", name).stdout)
                self.assertEqual(info["virtual-size"], SIZE)

    def test_absent_export_and_server_are_told(self):
        server = self.serve("-x", "disk")
        result = img("info", server.uri("other"), check=False)
        self.assertEqual(result.returncode, 1)
        self.assertIn("Requested export not available", result.stderr)
        self.assertIn("server reported: export 'other' not present", result.stderr)
        result = img("info", "nbd+unix:///?socket=/nowhere/s", check=False)
        self.assertIn("Failed to connect to '/nowhere/s': No such file", result.stderr)

    def test_size_of_an_export_stays_and_a_format_may_use_it(self):
        server = self.serve()
        for size in ("1M", "64M"):
            result = img("resize", "--shrink", "-f", "raw", server.uri(), size, check=False)
            self.assertEqual(result.returncode, 1)
            self.assertIn("Cannot", result.stderr)
        img("create", "-q", "-f", "qcow2", server.uri(), "64M")
        io(
            server.uri(), "write -P 5 40M 64k", "write -P 6 1000 2000", "read -P 5 40M 64k",
            "read -P 0 0 1000", "read -P 6 1000 2000", "read -P 0 3000 128k", "read -P 0 10M 64k",
            fmt="qcow2",
        )  # fmt: skip
        qemu_img("check", "-f", "qcow2", server.uri())

    def test_raw_disk_is_made_in_an_export_that_exists(self):
        server = self.serve()
        img("create", "-q", "-f", "qcow2", server.uri(), "1M")
        self.assertEqual(json.loads(img("info", "--output=json", server.uri()).stdout)["format"],
                         "qcow2")  # fmt: skip
        io(server.uri(), "write -P 7 1M 64k", fmt="raw")
        img("create", "-q", "-f", "raw", "-o", "preallocation=off", server.uri(), "8M")
        info = json.loads(img("info", "--output=json", server.uri()).stdout)
        self.assertEqual(info["format"], "raw")
        self.assertGreaterEqual(info["virtual-size"], 8 << 20)
        io(server.uri(), "read -P 0 0 512", "read -P 7 1M 64k", fmt="raw")
        for arguments, sentence in (
            (("-f", "raw", server.uri(), "1G"), "Cannot grow NBD nodes"),
            (
                ("-f", "raw", "-o", "preallocation=full", server.uri(), "1M"),
                "Unsupported preallocation mode 'full'",
            ),
            (
                ("-f", "raw", "nbd+unix:///?socket=/nowhere/s", "1M"),
                "Protocol driver 'nbd' does not support creating new images, so an existing image "
                "must be selected as the target; however, opening the given target as an existing "
                "image failed: ",
            ),
        ):
            result = img("create", *arguments, check=False)
            self.assertEqual(result.returncode, 1, result.stdout)
            self.assertIn(sentence, result.stderr)

    def test_convert_without_n_writes_a_raw_disk_to_an_export(self):
        server = self.serve()
        source = self.path("source.qcow2")
        img("create", "-q", "-f", "qcow2", source, "8M")
        io(source, "write -P 3 64k 1M", fmt="qcow2")
        img("convert", "-f", "qcow2", "-O", "raw", source, server.uri())
        io(server.uri(), "read -P 0 0 64k", "read -P 3 64k 1M", fmt="raw")

    def test_read_only_server_is_not_opened_for_writing(self):
        server = self.serve("-r")
        result = io(server.uri(), "write 0 512", fmt="raw", check=False)
        self.assertNotEqual(result.returncode, 0)
        self.assertIn("does not allow writing", result.stderr)
        io(server.uri(), "read 0 512", fmt="raw", options=("-r",))


if __name__ == "__main__":
    unittest.main()
