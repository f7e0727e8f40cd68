# SPDX-License-Identifier: Apache-2.0
"""A flush reaches what was written before filters were put in between."""

import unittest

import nbd
import tidemark

SIZE = 1 << 20
DATA = b"\5" * 65536


class FlushFilters(tidemark.TestCase):
    def start(self):
        """An overlay `disk` below a filter with users."""
        self.base = self.create("base.qcow2", SIZE)
        more = ["-b", self.base, "-F", "qcow2"]
        self.image = self.create("disk.qcow2", SIZE, options=more)
        tidemark.io(self.base, f"write -P 1 0 {SIZE}", fmt="qcow2")
        sock = self.path("nbd")
        self.server = self.daemon(
            "--object", "throttle-group,id=g",
            "--blockdev", f"file,node-name=file,filename={self.image}",
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


if __name__ == "__main__":
    unittest.main()
