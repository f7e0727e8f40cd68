# SPDX-License-Identifier: Apache-2.0
"""A flush reaches what was written before filters were put in between."""

import unittest

import nbd
import tidemark

SIZE = 1 << 20
DATA = b"\5" * 65536


class FlushFilters(tidemark.TestCase):
    def start(self, file="file,node-name=file,filename=", more_of_file=""):
        """An overlay `disk` below a filter with users."""
        self.base = self.create("base.qcow2", SIZE)
        more = ["-b", self.base, "-F", "qcow2"]
        self.image = self.create("disk.qcow2", SIZE, options=more)
        tidemark.io(self.base, f"write -P 1 0 {SIZE}", fmt="qcow2")
        sock = self.path("nbd")
        self.server = self.daemon(
            "--object", "throttle-group,id=g",
            "--blockdev", f"{file}{self.image}{more_of_file}",
            "--blockdev", f"qcow2,node-name=base,file.driver=file,file.filename={self.base}",
            "--blockdev", "qcow2,node-name=disk,file=file,backing=base",
            "--blockdev", "throttle,node-name=users,throttle-group=g,file=disk",
            "--nbd-server", f"addr.type=unix,addr.path={sock}",
            "--export", "nbd,id=e,node-name=users,name=disk,writable=on",
        )  # fmt: skip
        self.qmp = self.server.qmp
        self.guest = nbd.NBD()
        self.guest.connect_uri(tidemark.nbd_uri(sock, "disk"))

    def target(self):
        path = self.create("target.raw", SIZE, "raw")
        self.qmp.command("blockdev-add", driver="file", node_name="target", filename=path)
        return "target"

    def test_the_filter_of_a_job(self):
        for command in "blockdev-backup", "block-stream":
            with self.subTest(command=command):
                self.start()
                self.guest.pwrite(DATA, 0)
                more = {} if command == "block-stream" else {"target": self.target(), "sync": "none"}
                self.qmp.command(command, job_id="j", device="disk", speed=1, **more)
                self.guest.flush()
                self.server.kill()
                tidemark.io(self.image, "read -P 5 0 64k", "read -P 1 64k 64k", fmt="qcow2")

    def test_an_overlay(self):
        """Nothing was written to the overlay; what guests have written is in its backing image,
        which stays writable, as it can not be flushed.
        """
        self.start("blkdebug,node-name=file,image.driver=file,image.filename=",
                   ",inject-error.0.event=none,inject-error.0.iotype=flush")  # fmt: skip
        overlay = self.create("overlay.qcow2", SIZE, options=["-b", self.image, "-F", "qcow2"])
        file = {"driver": "file", "filename": overlay}
        self.qmp.command("blockdev-add", driver="qcow2", node_name="o", backing=None, file=file)
        self.guest.pwrite(DATA, 0)
        self.qmp.command("blockdev-snapshot", node="disk", overlay="o")
        with self.assertRaisesRegex(nbd.Error, "Input/output error"):
            self.guest.flush()
        self.assertFalse(self.qmp.node("disk")["ro"])
        self.server.kill()


if __name__ == "__main__":
    unittest.main()
