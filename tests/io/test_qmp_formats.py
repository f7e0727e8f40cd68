# SPDX-License-Identifier: Apache-2.0
"""Images of other programs in a daemon: made by blockdev-create, handed over and back, written
after they were opened for reading only.
"""

import os
import unittest

import tidemark
from qmp import QmpError

MIB = 1 << 20
FORMATS = ("vmdk", "vpc", "vdi", "vhdx", "qed", "parallels", "qcow")


class Formats(tidemark.TestCase):
    def setUp(self):
        super().setUp()
        self.server = self.daemon()
        self.nbd = self.path("nbd")
        self.server.qmp.command("nbd-server-start", addr={"type": "unix", "data": {"path": self.nbd}})

    def create(self, fmt, **options):
        """An image of 4 MiB by blockdev-create; its path."""
        qmp, path = self.server.qmp, self.path("disk." + fmt)
        if fmt == "vpc":
            options.setdefault("force-size", True)
        with open(path, "wb"):
            pass
        qmp.command("blockdev-add", driver="file", node_name="new", filename=path)
        qmp.command(
            "blockdev-create", job_id="j", options={"driver": fmt, "file": "new", "size": 4 * MIB, **options}
        )
        tidemark.wait_until(lambda: qmp.command("query-jobs")[0]["status"] == "concluded", "the image")
        [job] = qmp.command("query-jobs")
        qmp.command("job-dismiss", id="j")
        qmp.command("blockdev-del", node_name="new")
        self.assertNotIn("error", job)
        return path

    def open(self, fmt, path, **more):
        self.server.qmp.command(
            "blockdev-add", driver=fmt, node_name="disk", file={"driver": "file", "filename": path}, **more
        )

    def io(self, *commands):
        qmp = self.server.qmp
        qmp.command("block-export-add", type="nbd", id="e", node_name="disk", writable=True)
        tidemark.io(tidemark.nbd_uri(self.nbd, "disk"), *commands, fmt="raw")
        qmp.command("block-export-del", id="e", mode="hard")
        qmp.wait_event("BLOCK_EXPORT_DELETED")

    def test_created_in_nodes(self):
        for fmt, options in (
            ("vmdk", {"subformat": "streamOptimized", "adapter-type": "lsilogic"}),
            ("vpc", {"subformat": "fixed", "force-size": True}),
            ("vdi", {"preallocation": "metadata"}),
            ("qed", {"cluster-size": 4096, "table-size": 2}),
            ("parallels", {"cluster-size": 65536}),
            ("qcow", {}),
            ("vhdx", {"block-size": MIB, "log-size": 2 * MIB, "subformat": "fixed"}),
        ):
            path = self.create(fmt, **options)
            found = tidemark.qemu_img("info", "-f", fmt, path).stdout
            self.assertIn("(4194304 bytes)", found)
            if fmt == "vmdk":
                self.assertIn("streamOptimized", found)
        with self.assertRaisesRegex(AssertionError, "extents in other files"):
            self.create("vmdk", subformat="monolithicFlat")

    def test_a_size_that_no_geometry_has(self):
        """A disk that is larger than what was asked for would be no target of a copy."""
        with self.assertRaisesRegex(AssertionError, "cannot be represented in CHS geometry"):
            self.create("vpc", **{"force-size": False})

    def test_a_filter_does_not_hide_another_parent(self):
        qmp, base, top = self.server.qmp, self.path("base.vmdk"), self.path("top.vmdk")
        tidemark.img("create", "-q", "-f", "vmdk", base, "1M")
        tidemark.img("create", "-q", "-f", "vmdk", "-b", base, "-F", "vmdk", top)
        limits = {"driver": "throttle", "throttle-group": "g"}
        disk = {"driver": "vmdk", "node-name": "disk", "file": {"driver": "file", "filename": top}}
        qmp.command("object-add", qom_type="throttle-group", id="g")
        for changed in False, True:
            if changed:
                tidemark.io(base, "write 0 64k", fmt="vmdk")
            parent = {"driver": "vmdk", "file": {"driver": "file", "filename": base}}
            answer = qmp.execute("blockdev-add", {**disk, "backing": {**limits, "file": parent}})
            if changed:
                self.assertIn("was changed after the image was made", answer["error"]["desc"])
            else:
                self.assertEqual(answer, {"return": {}})
                qmp.command("blockdev-del", node_name="disk")

    def test_handed_over_and_back(self):
        for fmt in FORMATS:
            path = self.create(fmt)
            self.open(fmt, path)
            self.io("write -P 1 0 64k", "read -P 0 2M 64k")
            self.server.qmp.command("blockdev-set-active", node_name="disk", active=False)
            tidemark.io(path, "write -P 2 2M 64k", fmt=fmt)
            self.server.qmp.command("blockdev-set-active", node_name="disk", active=True)
            self.io("read -P 1 0 64k", "read -P 2 2M 64k", "write -P 3 3M 64k")
            self.server.qmp.command("blockdev-del", node_name="disk")
            tidemark.io(path, "read -P 1 0 64k", "read -P 2 2M 64k", "read -P 3 3M 64k", fmt=fmt)
            tidemark.qemu_io(path, "read -P 1 0 64k", "read -P 2 2M 64k", "read -P 3 3M 64k", fmt=fmt)

    def test_opened_while_another_process_has_it(self):
        for fmt in FORMATS:
            path = self.create(fmt)
            tidemark.io(path, "write -P 4 1M 64k", "flush", "sigraise 9", fmt=fmt, check=False)
            self.open(fmt, path, active=False)
            tidemark.io(path, "write -P 5 2M 64k", fmt=fmt)
            self.server.qmp.command("blockdev-set-active", node_name="disk", active=True)
            self.io("read -P 4 1M 64k", "read -P 5 2M 64k", "write -P 6 3M 64k")
            self.server.qmp.command("blockdev-del", node_name="disk")
            tidemark.qemu_io(path, "read -P 4 1M 64k", "read -P 5 2M 64k", "read -P 6 3M 64k", fmt=fmt)

    def test_reopened_for_writing(self):
        for fmt in FORMATS:
            path = self.create(fmt)
            killed = ("write -P 4 1M 64k", "flush", "sigraise 9")
            tidemark.io(path, *killed, fmt=fmt, check=False)
            self.open(fmt, path, **{"read-only": True})
            self.server.qmp.command(
                "blockdev-reopen",
                options=[
                    {
                        "driver": fmt,
                        "node-name": "disk",
                        "read-only": False,
                        "file": {"driver": "file", "filename": path},
                    }
                ],
            )
            self.io("read -P 4 1M 64k", "write -P 5 3M 64k", "flush")
            self.server.qmp.command("blockdev-del", node_name="disk")
            tidemark.qemu_io(path, "read -P 4 1M 64k", "read -P 5 3M 64k", fmt=fmt)

    def test_an_overlay_is_put_on_a_disk_in_use(self):
        """In the place of the backing file that the image names, if it can name one."""
        qmp, base = self.server.qmp, self.path("base.raw")
        for fmt in "qcow", "parallels":
            tidemark.img("create", "-q", "-f", "raw", base, "4M")
            tidemark.io(base, "write -P 7 0 4M", fmt="raw")
            top = self.create(fmt)
            qmp.command("blockdev-add", driver="raw", node_name="disk", file={"driver": "file", "filename": base})
            file = {"driver": "file", "filename": top}
            qmp.command("blockdev-add", driver=fmt, node_name="top", file=file, backing=None)
            qmp.command("blockdev-snapshot", node="disk", overlay="top")
            qmp.command("block-export-add", type="nbd", id="e", node_name="top", writable=True)
            uri = tidemark.nbd_uri(self.nbd, "top")
            tidemark.io(uri, "write -P 1 1M 1k", "write -z 2M 1M", "discard 1M 64k", fmt="raw")
            tidemark.io(uri, "read -P 7 0 1M", "read -P 1 1M 1k", "read -P 7 1049600 1k", "read -P 0 2M 1M", fmt="raw")
            qmp.command("block-export-del", id="e", mode="hard")
            qmp.wait_event("BLOCK_EXPORT_DELETED")
            qmp.command("blockdev-del", node_name="top")
            qmp.command("blockdev-del", node_name="disk")
            with open(base, "rb") as f:
                self.assertEqual(f.read(), b"\7" * (4 * MIB))

    def test_extents_are_refused(self):
        path = self.path("disk.vmdk")
        tidemark.img("create", "-q", "-f", "vmdk", "-o", "subformat=monolithicFlat", path, "1M")
        with self.assertRaises(QmpError) as caught:
            self.open("vmdk", path)
        self.assertIn("which it may not open", caught.exception.desc)
        self.open("vmdk", path, **{"x-other-files": "directory"})
        self.io("write -P 6 0 1M")
        self.server.qmp.command("blockdev-del", node_name="disk")
        with open(self.path("disk-flat.vmdk"), "rb") as f:
            self.assertEqual(f.read(), b"\6" * MIB)
        self.assertGreater(os.path.getsize(path), 0)


if __name__ == "__main__":
    unittest.main()
