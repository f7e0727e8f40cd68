# SPDX-License-Identifier: Apache-2.0
"""Files that can't grow and disks that fail: what was stored stays, and a check finds leaks at the
worst.
"""

import os
import re
import resource
import shutil
import signal
import unittest

from tidemark import TestCase, img, io, qemu_img, qemu_io

M = 1 << 20
EVENTS = """
l1_update l1_grow_alloc_table l1_grow_write_table l1_grow_activate_table l2_load l2_update l2_alloc_cow_read
l2_alloc_write read_aio read_compressed write_aio write_compressed cow_read cow_write reftable_load reftable_grow
reftable_update refblock_load refblock_update refblock_update_part refblock_alloc refblock_alloc_hookup
refblock_alloc_write refblock_alloc_write_blocks refblock_alloc_write_table refblock_alloc_switch_table
cluster_alloc cluster_alloc_bytes cluster_free flush_to_os flush_to_disk pwritev_rmw_head pwritev_rmw_tail pwritev
pwritev_zero pwritev_done l1_shrink_write_table l1_shrink_free_l2_clusters cluster_alloc_space
""".split()
# Old clusters are overwritten, zeroed and dropped; new ones are taken at many places.
WORK = (
    "write -P 2 64k 64k",
    "write -P 3 3M 100000",
    "write -z 256k 64k",
    "write -z -u 384k 64k",
    "discard 512k 64k",
    "write -c -P 4 5M 64k",
    "flush",
    "write -P 5 7M 300k",
    "write -P 6 1234567 1111",
    "flush",
)
UNTOUCHED = ((0, 65536), (131072, 131072), (655360, 393216))


class Trouble(TestCase):
    in_memory = True

    def setUp(self):
        super().setUp()
        self.image = self.path("a.qcow2")

    def make(self, options):
        img("create", "-q", "-f", "qcow2", "-o", options, self.image, "8M")
        io(self.image, "write -P 1 0 1M", fmt="qcow2")
        img("snapshot", "-f", "qcow2", "-c", "s", self.image)
        io(self.image, "write -P 1 512k 512k", fmt="qcow2")
        img("bitmap", "--add", "-f", "qcow2", "-g", "64k", self.image, "b")

    def verify(self):
        """Leaks at the worst; then what nobody touched, in the disk and in the snapshot."""
        status = qemu_img("check", "-q", "-f", "qcow2", self.image, check=False)
        self.assertIn(status.returncode, (0, 3), status.stdout + status.stderr)
        # What QEMU calls leaked may be the activity log, which only we know.
        ours = img("check", "-q", "-f", "qcow2", self.image, check=False)
        self.assertIn(ours.returncode, {0, status.returncode})
        reads = [f"read -P 1 {start} {length}" for start, length in UNTOUCHED]
        qemu_io(self.image, *reads, fmt="qcow2", options=("-r",))
        img("convert", "-f", "qcow2", "-l", "s", "-O", "raw", self.image, self.path("s.raw"))
        qemu_io(self.path("s.raw"), "read -P 1 0 1M", "read -P 0 1M 7M", fmt="raw")

    def test_files_that_cannot_grow(self):
        failed = 0
        for options in ("cluster_size=512", "cluster_size=65536"):
            self.make(options)
            original = self.image + ".orig"
            os.rename(self.image, original)
            for more in (0, 512, 5000, 70000, 140000, 200000, 300000):
                with self.subTest(options=options, more=more):
                    with open(original, "rb") as source, open(self.image, "wb") as target:
                        target.write(source.read())
                    limit = os.path.getsize(self.image) + more

                    def limited(limit=limit):
                        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
                        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

                    done = io(self.image, *WORK, fmt="qcow2", check=False, preexec_fn=limited)
                    failed += done.returncode
                    self.verify()
                    self.verify_acknowledged(done.stdout)
                    # With room again, all of it is possible.
                    io(self.image, *WORK, fmt="qcow2")
                    self.verify()
        self.assertGreaterEqual(failed, 4)

    def test_changes_of_files_that_cannot_grow(self):
        """Of what maps a disk: a cluster is referred to once the file has it, and given up once
        nothing refers to it.
        """
        original, base, before = self.path("original"), self.path("base.raw"), self.path("before.raw")
        img("create", "-q", "-f", "raw", base, "2M")
        io(base, "write -P 9 0 2M", fmt="raw")
        img("create", "-q", "-f", "qcow2", "-o", "cluster_size=4k", "-b", base, "-F", "raw", original, "2M")
        io(original, "write -P 1 0 256k", "write -z 16k 16k", "write -z 300k 64k", fmt="qcow2")
        img("snapshot", "-f", "qcow2", "-c", "s", original)
        img("convert", "-f", "qcow2", "-O", "raw", original, before)
        failed = 0
        for change in (
            ("amend", "-f", "qcow2", "-o", "compat=v2", self.image),
            ("resize", "-q", "-f", "qcow2", "--preallocation=metadata", self.image, "3M"),
        ):
            for more in (0, 4096, 8192, 20480, 65536, 102400):
                with self.subTest(change=change[0], more=more):
                    shutil.copy(original, self.image)
                    limit = os.path.getsize(self.image) + more

                    def limited(limit=limit):
                        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
                        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

                    failed += img(*change, check=False, preexec_fn=limited).returncode
                    for room in (False, True):
                        if room:
                            img(*change)
                        status = qemu_img("check", "-q", "-f", "qcow2", self.image, check=False)
                        self.assertIn(status.returncode, (0, 3), status.stderr)
                        img("compare", "-q", "-f", "qcow2", "-F", "raw", self.image, before)
        self.assertGreaterEqual(failed, 6)

    def verify_acknowledged(self, output):
        """What was written, if the last flush and the close were well, is there."""
        if "flush failed" in output or "Failed to flush" in output:
            return
        wrote = {int(n) for n in re.findall(r"wrote \d+/\d+ bytes at offset (\d+)", output)}
        for offset, length, byte in ((65536, 65536, 2), (3 * M, 100000, 3), (5 * M, 65536, 4)):
            if offset in wrote:
                qemu_io(self.image, f"read -P {byte} {offset} {length}", fmt="qcow2", options=("-r",))

    def test_errors_at_every_event(self):
        hit = 0
        for event in EVENTS:
            with self.subTest(event):
                self.make("cluster_size=512")
                options = (
                    "driver=qcow2,file.driver=blkdebug,file.image.driver=file,"
                    f"file.image.filename={self.image},file.inject-error.0.event={event}"
                )
                done = io(options, *WORK, options=("--image-opts",), check=False)
                hit += done.returncode
                self.verify()
                # It is only once that it failed.
                io(self.image, *WORK, fmt="qcow2")
                qemu_io(self.image, "read -P 2 64k 64k", "read -P 5 7M 300k", fmt="qcow2", options=("-r",))
                self.verify()
        self.assertGreaterEqual(hit, 8)


if __name__ == "__main__":
    unittest.main()
