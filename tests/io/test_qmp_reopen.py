# SPDX-License-Identifier: Apache-2.0
"""blockdev-reopen: other options and children for nodes in use, all or nothing."""

import json
import os
import subprocess

import tidemark
from guest import Guest
from nbd_raw import EIO, FLUSH, WRITE, RawClient
from qmp import QmpError

MIB = 1 << 20


class ReopenTest(tidemark.TestCase):
    """`top` (exported) over `base`, whose file is a node of its own; `raw` on `one`."""

    def setUp(self):
        super().setUp()
        self.nbd = self.path("nbd.sock")
        self.create("base.qcow2")
        self.create("top.qcow2", options=("-F", "qcow2", "-b", self.path("base.qcow2")))
        tidemark.qemu_img("bitmap", "--add", self.path("base.qcow2"), "old")
        for name in "one", "two":
            self.create(f"{name}.raw", "4M", "raw")
            tidemark.io(self.path(f"{name}.raw"), f"write -P {ord(name[0])} 0 4M", fmt="raw")
        self.server = self.daemon(
            "--blockdev",
            f"driver=file,node-name=base-file,filename={self.path('base.qcow2')}",
            "--blockdev",
            "driver=qcow2,node-name=base,file=base-file,read-only=on",
            "--blockdev",
            f"driver=qcow2,node-name=top,file.driver=file,"
            f"file.filename={self.path('top.qcow2')},backing=base",
            *(
                argument
                for name in ("one", "two")
                for argument in (
                    "--blockdev",
                    f"driver=file,node-name={name},filename={self.path(name + '.raw')}",
                )
            ),
            "--blockdev",
            "driver=raw,node-name=raw,file=one",
            "--nbd-server",
            f"addr.type=unix,addr.path={self.nbd}",
            "--export",
            "type=nbd,id=top,node-name=top,name=top,writable=on",
        )
        self.qmp = self.server.qmp

    TOP = {
        "driver": "qcow2",
        "node-name": "top",
        "backing": "base",
    }
    BASE = {"driver": "qcow2", "node-name": "base", "file": "base-file"}
    RAW = {"driver": "raw", "node-name": "raw", "file": "one"}

    def top(self, **more):
        file = {"driver": "file", "filename": self.path("top.qcow2")}
        return {**self.TOP, "file": file, **more}

    def reopen(self, *options):
        self.qmp.command("blockdev-reopen", options=list(options))

    def state(self):
        nodes = self.qmp.command("query-named-block-nodes", flat=True)
        for node in nodes:
            node["image"].pop("actual-size", None)
            node["image"].pop("format-specific", None)
            if node["drv"] == "file":
                node["image"].pop("virtual-size")
        return sorted(nodes, key=lambda n: n["node-name"])

    def refused(self, wanted, *options):
        before = self.state()
        with self.assertRaises(QmpError) as caught:
            self.reopen(*options)
        self.assertEqual(caught.exception.desc, wanted)
        self.assertEqual(self.state(), before)

    def guests(self):
        return [Guest(self.nbd, "top", i * 4 * MIB, 4 * MIB, i) for i in range(4)]

    def let_write(self, guests):
        for guest in guests:
            written = guest.written
            tidemark.wait_until(lambda: guest.written > written + 10, "writes")

    def finish(self, guests):
        for guest in guests:
            guest.stop()
        self.server.quit()
        for name in "top.qcow2", "base.qcow2":
            tidemark.qemu_img("check", self.path(name))
        raw = self.path("out.raw")
        tidemark.qemu_img("convert", "-O", "raw", self.path("top.qcow2"), raw)
        for guest in guests:
            guest.check(raw)

    def stored(self, name):
        info = tidemark.qemu_img("info", "-U", "--output=json", self.path(name)).stdout
        data = json.loads(info)["format-specific"]["data"]
        return {b["name"]: b["flags"] for b in data.get("bitmaps", [])}

    def is_direct(self, name):
        """How the daemon has opened the file."""
        found = set()
        for fd in os.listdir(f"/proc/{self.server.pid}/fd"):
            try:
                if os.readlink(f"/proc/{self.server.pid}/fd/{fd}") == self.path(name):
                    with open(f"/proc/{self.server.pid}/fdinfo/{fd}") as file:
                        flags = dict(line.split(":", 1) for line in file)["flags"]
                    found.add(bool(int(flags, 8) & os.O_DIRECT))
            except FileNotFoundError:
                pass
        self.assertEqual(len(found), 1)
        return found.pop()

    def test_the_page_cache_comes_and_goes_under_writing_guests(self):
        guests = self.guests()
        for direct in (True, False) * 5:
            self.reopen(self.top(cache={"direct": direct}))
            self.assertEqual(self.is_direct("top.qcow2"), direct)
            self.assertEqual(self.qmp.node("top")["cache"]["direct"], direct)
            self.let_write(guests)
        self.finish(guests)

    def test_a_file_that_says_how_it_is_cached_does_not_follow(self):
        file = {**self.top()["file"], "cache": {"no-flush": False}}
        self.reopen(self.top(cache={"direct": True, "no-flush": True}, file=file))
        self.assertTrue(self.is_direct("top.qcow2"))
        file["cache"] = {"direct": False}
        self.reopen(self.top(cache={"direct": True}, file=file))
        self.assertFalse(self.is_direct("top.qcow2"))

    def test_the_page_cache_is_back_after_a_failure(self):
        with self.assertRaises(QmpError):
            self.reopen(
                self.top(cache={"direct": True}), {**self.RAW, "offset": 512, "size": 1 << 40}
            )
        self.assertFalse(self.is_direct("top.qcow2"))
        tidemark.io(tidemark.nbd_uri(self.nbd, "top"), "write -P 3 0 64k", fmt="raw")

    def test_a_file_that_does_not_end_with_a_block(self):
        """O_DIRECT writes whole blocks; the file has its size again afterwards."""
        path = self.path("odd.raw")
        with open(path, "wb") as file:
            file.write(bytes(1536))
        raw = {"driver": "raw", "node-name": "odd", "file": {"driver": "file", "filename": path}}
        self.qmp.command("blockdev-add", **raw)
        self.qmp.command(
            "block-export-add", type="nbd", id="odd", node_name="odd", writable=True
        )
        uri = tidemark.nbd_uri(self.nbd, "odd")
        for direct, pattern in (True, 5), (False, 6), (True, 7), (False, 8):
            self.reopen({**raw, "cache": {"direct": direct}})
            tidemark.io(uri, f"write -P {pattern} 1024 512", f"read -P {pattern} 1k 512", fmt="raw")
            if not direct:
                self.assertEqual(os.path.getsize(path), 1536)
        self.server.quit()
        with open(path, "rb") as file:
            self.assertEqual(file.read(), bytes(1024) + b"\10" * 512)

    def test_another_node_below_an_image_under_writing_guests(self):
        self.qmp.command("blockdev-add", driver="raw", node_name="over", file="base-file")
        self.reopen({**self.BASE, "file": "over", "read-only": True})
        guests = self.guests()
        below = self.top()["file"]
        name = [n["node-name"] for n in self.qmp.command("query-named-block-nodes", flat=True)
                if n["drv"] == "file" and n["file"] == below["filename"]][0]
        self.qmp.command("blockdev-add", driver="raw", node_name="between", file=name)
        for file in ("between", name) * 3:
            self.reopen(self.top(file=file))
            self.let_write(guests)
        self.refused(
            "Node 'two' does not have the contents of the file of 'top'", self.top(file="two")
        )
        self.reopen(self.top(file="between"))
        self.refused(
            "Making 'between' a file child of 'between' would create a cycle",
            {"driver": "raw", "node-name": "between", "file": "between"},
        )
        with self.assertRaises(QmpError):
            self.reopen(self.top(file=name), {**self.RAW, "size": 1 << 40})
        self.let_write(guests)
        self.finish(guests)

    def test_options_of_a_format_change_under_writing_guests(self):
        guests = self.guests()
        for more in (
            {"lazy-refcounts": True},
            {"l2-cache-size": 65536},
            {"l2-cache-entry-size": 512},
            {"l2-cache-entry-size": 65536, "l2-cache-size": 131072},
            {"overlap-check": "all"},
            {"discard": "unmap", "detect-zeroes": "unmap"},
            {"cache": {"no-flush": True}},
            {"cache-clean-interval": 1, "pass-discard-request": True},
            {"refcount-cache-size": 262144},
            {},
        ) * 2:
            self.reopen(self.top(**more))
            node = self.qmp.node("top")
            self.assertEqual(node["detect_zeroes"], more.get("detect-zeroes", "off"))
            self.assertEqual(node["cache"]["no-flush"], "cache" in more)
            self.let_write(guests)
        self.finish(guests)

    def test_bitmaps_of_a_backing_image_change(self):
        """As management does: the image below becomes writable for that, and read-only again."""
        guests = self.guests()
        with self.assertRaises(QmpError):
            self.qmp.command("block-dirty-bitmap-remove", node="base", name="old")
        self.reopen(self.BASE)
        self.assertFalse(self.qmp.node("base")["ro"])
        self.qmp.command("block-dirty-bitmap-add", node="base", name="new", persistent=True)
        self.qmp.command("block-dirty-bitmap-remove", node="base", name="old")
        self.let_write(guests)
        self.reopen({**self.BASE, "read-only": True})
        self.assertTrue(self.qmp.node("base")["ro"])
        self.assertEqual(self.stored("base.qcow2"), {"new": ["auto"]})
        with self.assertRaises(QmpError) as caught:
            self.qmp.command("block-dirty-bitmap-clear", node="base", name="new")
        self.assertIn("readonly", caught.exception.desc)
        self.let_write(guests)
        self.finish(guests)

    def test_an_image_becomes_read_only_and_writable(self):
        """Its bitmaps are stored, and record again afterwards; the file follows."""
        self.qmp.command("block-dirty-bitmap-add", node="top", name="kept", persistent=True)
        for round in range(3):
            uri = tidemark.nbd_uri(self.nbd, "top")
            tidemark.io(uri, f"write -P {round + 1} {round}M 64k", fmt="raw")
            self.qmp.command("block-export-del", id="top")
            self.qmp.wait_event("BLOCK_EXPORT_DELETED")
            self.reopen(self.top(**{"read-only": True}))
            self.assertEqual({n["ro"] for n in self.state() if "top" in n["file"]}, {True})
            self.assertEqual(self.stored("top.qcow2"), {"kept": ["auto"]})
            self.assertEqual(self.qmp.bitmaps("top")["kept"]["count"], (round + 1) * 65536)
            tidemark.qemu_img("check", self.path("top.qcow2"))
            self.reopen(self.top())
            self.assertEqual({n["ro"] for n in self.state() if "top" in n["file"]}, {False})
            self.qmp.command(
                "block-export-add",
                type="nbd",
                id="top",
                node_name="top",
                name="top",
                writable=True,
            )
            self.assertEqual(
                self.stored("top.qcow2"), {"kept": ["auto"]}, "nothing was written yet"
            )
        tidemark.io(tidemark.nbd_uri(self.nbd, "top"), "write -P 9 8M 64k", fmt="raw")
        self.assertEqual(self.stored("top.qcow2"), {"kept": ["in-use", "auto"]})
        self.server.quit()
        tidemark.qemu_io(
            self.path("top.qcow2"),
            *(f"read -P {i + 1} {i}M 64k" for i in range(3)),
            "read -P 9 8M 64k",
            fmt="qcow2",
        )

    def test_a_read_only_file_is_opened_for_writing(self):
        """Whatever its name leads to by now; and not while another program uses it."""
        path = self.create("late.qcow2")
        late = {
            "driver": "qcow2",
            "node-name": "late",
            "file": {"driver": "file", "filename": path},
        }
        self.qmp.command("blockdev-add", **{**late, "read-only": True})
        reader = self.daemon(
            "--blockdev",
            f"driver=file,node-name=f,filename={path},read-only=on",
            "--blockdev",
            "driver=qcow2,node-name=q,file=f,read-only=on",
            "--nbd-server",
            f"addr.type=unix,addr.path={self.path('other.sock')}",
            "--export",
            "type=nbd,id=q,node-name=q",
            name="reader",
        )
        self.refused('Failed to get "write" lock', late)
        reader.quit()
        os.rename(path, path + ".moved")
        self.reopen(late)
        self.qmp.command(
            "block-export-add", type="nbd", id="l", node_name="late", name="late", writable=True
        )
        tidemark.io(tidemark.nbd_uri(self.nbd, "late"), "write -P 5 0 64k", fmt="raw")
        self.server.quit()
        tidemark.qemu_io(path + ".moved", "read -P 5 0 64k", fmt="qcow2")

    def test_all_or_nothing(self):
        read_only = {**self.BASE, "read-only": False}
        nothing = {"driver": "qcow2", "node-name": "x", "file": "f"}
        self.refused("Failed to find node with node-name='x'", read_only, nothing)
        self.refused(
            "Cannot change the option 'locking'",
            read_only,
            {
                "driver": "file",
                "node-name": "two",
                "filename": self.path("two.raw"),
                "locking": "off",
            },
        )
        self.refused(
            "Read-only block node 'top' cannot support read-write users",
            read_only,
            self.top(**{"read-only": True}),
        )
        # Undone after it was opened for writing: the file can't be.
        self.refused(
            "Block node is read-only",
            {**self.BASE, "read-only": False},
            {
                "driver": "file",
                "node-name": "base-file",
                "filename": self.path("base.qcow2"),
                "read-only": True,
            },
        )
        self.assertEqual(self.stored("base.qcow2"), {"old": ["auto"]})

    # Children.

    def test_the_backing_node_changes(self):
        uri = tidemark.nbd_uri(self.nbd, "top")
        guests = self.guests()
        self.create("other.qcow2")
        tidemark.qemu_io(self.path("other.qcow2"), "write -P 8 32M 1M", fmt="qcow2")
        self.qmp.command(
            "blockdev-add",
            driver="qcow2",
            node_name="other",
            read_only=True,
            file={"driver": "file", "filename": self.path("other.qcow2")},
        )
        for backing, pattern in ("other", 8), (None, 0), ("base", 0), ("other", 8), ("base", 0):
            self.reopen(self.top(backing=backing))
            self.assertEqual(
                self.qmp.node("top").get("backing_file"),
                self.path(f"{backing}.qcow2") if backing else None,
            )
            self.let_write(guests)
            tidemark.io(uri, f"read -P {pattern} 32M 1M", fmt="raw")
        self.refused(
            "Cannot change the option 'encrypt.format'",
            self.top(backing=None, encrypt={"format": "aes"}),
        )
        self.refused("backing is missing for 'top'", {k: v for k, v in self.top().items() if k != "backing"})
        self.refused(
            "Making 'top' a backing child of 'base' would create a cycle",
            {**self.BASE, "backing": "top", "read-only": True},
        )
        self.refused(
            "Cannot find device='' nor node-name='x'",
            self.top(backing="x"),
        )
        self.finish(guests)

    def test_the_file_and_the_range_of_raw_change(self):
        self.qmp.command(
            "block-export-add", type="nbd", id="r", node_name="raw", name="raw", writable=True
        )
        uri = tidemark.nbd_uri(self.nbd, "raw")
        for file, more, size in (
            ("two", {}, 4 * MIB),
            ("one", {"offset": 65536}, 4 * MIB - 65536),
            ("two", {"size": MIB, "offset": 512}, MIB),
            ("one", {}, 4 * MIB),
        ):
            self.reopen({**self.RAW, "file": file, **more})
            image = self.qmp.node("raw")["image"]
            self.assertEqual(image["virtual-size"], size)
            self.assertIn(self.path(f"{file}.raw"), image["filename"])
            tidemark.io(uri, f"read -P {ord(file[0])} 0 {size}", fmt="raw")
            info = subprocess.run(["nbdinfo", "--size", uri], capture_output=True, text=True)
            self.assertEqual(int(info.stdout), size)
        self.refused(
            "Making 'raw' a file child of 'raw' would create a cycle", {**self.RAW, "file": "raw"}
        )
        self.refused("Parameter 'options[0].file' is missing", {"driver": "raw", "node-name": "raw"})
        self.refused(
            "The sum of offset (0) and size (8388608) has to be smaller or equal to the size of "
            f"the containing file (4194304) '{self.path('one.raw')}'",
            {**self.RAW, "size": 8 * MIB},
        )

    # What can't change.

    def test_options_that_are_refused(self):
        self.refused("node-name not specified", {"driver": "raw", "file": "one"})
        self.refused("Cannot change the option 'driver'", {**self.BASE, "driver": "raw"})
        self.refused(
            "Cannot change the option 'filename'",
            self.top(file={"driver": "file", "filename": self.path("base.qcow2")}),
        )
        self.refused(
            "Cannot change the option 'node-name'",
            self.top(
                file={"driver": "file", "node-name": "x", "filename": self.path("top.qcow2")}
            ),
        )
        self.refused(
            "Cannot change the option 'backing.driver'",
            self.top(backing={"driver": "qcow2", "file": "base-file"}),
        )
        self.refused(
            "Node 'one' does not have the contents of the file of 'base'",
            {**self.BASE, "file": "one", "read-only": True},
        )
        self.refused("Parameter 'options[0].bogus' is unexpected", self.top(bogus=1))
        self.qmp.command("blockdev-add", driver="null-co", node_name="null", size=65536)
        null = {"driver": "null-co", "node-name": "null"}
        self.refused("Option 'size' cannot be reset to its default value", null)
        self.refused("Cannot change the option 'size'", {**null, "size": 512})
        self.refused(
            "Parameter 'options[0].filename' is missing", {"driver": "file", "node-name": "one"}
        )
        self.reopen({**null, "size": 65536, "read-only": True})
        self.assertTrue(self.qmp.node("null")["ro"])


    def refusal(self, *options):
        with self.assertRaises(QmpError) as caught:
            self.reopen(*options)
        return caught.exception.desc

    def test_refusals_say_what_is_wrong_first(self):
        """In QEMU's words."""
        self.create("other.qcow2")
        other = {
            "driver": "qcow2",
            "node-name": "other",
            "file": {
                "driver": "file",
                "node-name": "other-file",
                "filename": self.path("other.qcow2"),
            },
        }
        self.qmp.command("blockdev-add", **other)
        self.assertEqual(
            self.refusal({**other, "force-share": True}), "Cannot change the option 'force-share'"
        )
        # `base` is read-only: what cannot be shared is the file of an image that is written.
        self.qmp.command(
            "block-export-add", type="nbd", id="o", node_name="other", name="o", writable=True
        )
        self.reopen({**self.BASE, "read-only": False})
        self.assertIn(
            "Permission conflict on node 'other-file': permissions 'write, resize' are both required",
            self.refusal({**self.BASE, "file": "other-file"}),
        )
        self.qmp.command("blockdev-add", driver="blkdebug", node_name="debug", image="two")
        self.assertEqual(
            self.refusal({"driver": "blkdebug", "node-name": "debug", "image": "none"}),
            "Cannot change the option 'image'",
        )

    def add_image(self, name, fmt="qcow2", **options):
        """A node of a new image, with its file."""
        self.create(f"{name}.{fmt}", fmt=fmt)
        file = {"driver": "file", "node-name": name + "-file"}
        image = {
            "driver": fmt,
            "node-name": name,
            "file": {**file, "filename": self.path(f"{name}.{fmt}")},
            **options,
        }
        self.qmp.command("blockdev-add", **image)
        return image

    def test_another_image_with_an_equal_header(self):
        """What the node has in memory of its own image would go to the other one."""
        image = self.add_image("mine")
        other = {"driver": "file", "node-name": "other", "filename": self.create("other.qcow2")}
        tidemark.io(other["filename"], "write -P 1 0 1M", fmt="qcow2")
        self.qmp.command("blockdev-add", **other)
        self.qmp.command("blockdev-add", driver="raw", node_name="user", file="mine")
        self.assertEqual(
            self.refusal({**image, "file": "other"}),
            "Node 'other' does not have the contents of the file of 'mine'",
        )

    def test_an_image_at_another_place_of_the_same_file(self):
        """Two copies of an image begin alike."""
        both = self.create("both.raw", "16M", "raw")
        with open(self.create("mine.qcow2", "4M"), "rb") as f:
            image = f.read()
        with open(both, "r+b") as f:
            for offset in 0, 8 * MIB:
                f.seek(offset)
                f.write(image)
        self.qmp.command("blockdev-add", driver="file", node_name="both", filename=both)
        for name, offset in ("first", 0), ("second", 8 * MIB):
            self.qmp.command(
                "blockdev-add", driver="raw", node_name=name, file="both", offset=offset, size=8 * MIB
            )
        mine = {"driver": "qcow2", "node-name": "mine", "file": "first"}
        self.qmp.command("blockdev-add", **mine)
        self.qmp.command("blockdev-add", driver="raw", node_name="user", file="mine")
        self.assertEqual(
            self.refusal({**mine, "file": "second"}),
            "Node 'second' does not have the contents of the file of 'mine'",
        )

    def test_a_filter_between_an_image_and_its_file(self):
        """With users that stay. Another image is refused: what is in memory is of this one."""
        for fmt in "qcow2", "qed", "vdi", "vhdx", "vmdk", "vpc":
            image = self.add_image(fmt, fmt)
            self.add_image(fmt + "-other", fmt)
            file = image["node-name"] + "-file"
            image = {**image, "file": file}
            self.qmp.command("blockdev-add", driver="raw", node_name=fmt + "-raw", file=file)
            self.qmp.command(
                "block-export-add", type="nbd", id=fmt, node_name=fmt, name=fmt, writable=True
            )
            for at, through in enumerate((file, fmt + "-raw", file)):
                self.reopen({**image, "file": through})
                tidemark.io(
                    tidemark.nbd_uri(self.nbd, fmt), f"write -P {at + 1} {at}M 1M", fmt="raw"
                )
            self.assertEqual(
                self.refusal({**image, "file": "two"}),
                f"Node 'two' does not have the contents of the file of '{fmt}'",
            )
        self.server.quit()
        for fmt in "qcow2", "qed", "vdi", "vhdx", "vmdk", "vpc":
            for at in range(3):
                tidemark.qemu_io(self.path(f"{fmt}.{fmt}"), f"read -P {at + 1} {at}M 1M", fmt=fmt)

    def test_a_format_without_backing_files_gets_none(self):
        vdi = self.add_image("v", "vdi")
        self.assertEqual(
            self.refusal({**vdi, "backing": "two"}),
            "Driver 'vdi' of node 'v' does not support backing files",
        )
        self.reopen({**vdi, "backing": None})
        self.assertNotIn("backing-image", self.qmp.node("v")["image"])

    def test_the_filter_of_a_job_stays(self):
        """One that was not given a name is no node of the user's, who sees the chain without it."""
        below = self.add_image("below")
        middle = self.add_image("middle", backing=below["node-name"])
        upper = self.add_image("upper", backing="middle")
        self.qmp.command(
            "block-commit", job_id="c", device="upper", top_node="middle", auto_finalize=False
        )
        self.qmp.wait_event("BLOCK_JOB_PENDING")
        self.reopen({**upper, "backing": "middle"})
        for backing in None, "two":
            self.assertEqual(
                self.refusal({**upper, "backing": backing}),
                "Cannot replace implicit backing child of upper",
            )
        self.assertEqual(
            self.refusal({**upper, "backing": middle}), "Cannot change the option 'backing.driver'"
        )
        self.qmp.command("job-finalize", id="c")
        self.assertNotIn("error", self.qmp.wait_event("BLOCK_JOB_COMPLETED")["data"])

    def add_chain(self):
        """`upper` over `middle` over `below`, opened together."""
        below = self.path("below.qcow2")
        middle = self.path("middle.qcow2")
        self.create("below.qcow2", "4M")
        self.create("middle.qcow2", "4M", options=("-F", "qcow2", "-b", below))
        self.create("upper.qcow2", "4M", options=("-F", "qcow2", "-b", middle))
        for path in middle, self.path("upper.qcow2"):
            tidemark.io(path, "write 0 1M", fmt="qcow2")
        chain = None
        for name in "below", "middle", "upper":
            file = {"driver": "file", "filename": self.path(f"{name}.qcow2")}
            chain = {"driver": "qcow2", "node-name": name, "file": file} | (
                {"backing": chain} if chain else {}
            )
        self.qmp.command("blockdev-add", **chain)
        return chain

    def test_a_node_that_a_job_has_made_writable_stays_so(self):
        """It does not follow its parent in that, while a job or a user has asked for it."""
        upper = self.add_chain()
        middle = upper["backing"]
        by_name = {**upper, "backing": "middle"}
        for top in "upper", "middle":
            self.qmp.command("block-commit", job_id="c", device="upper", top_node=top, speed=1)
            self.reopen({**by_name, "l2-cache-size": 65536})
            if top == "upper":  # else a filter is in between
                self.reopen({**upper, "backing": {**middle, "backing": "below"}})
            self.reopen({**middle, "backing": "below"})
            self.assertFalse(self.qmp.node("below")["ro"])
            # These say that it is a backing image again, and nothing else.
            self.assertEqual(
                self.refusal(middle), "Read-only block node 'below' cannot support read-write users"
            )
            self.qmp.command("job-cancel", id="c")
            self.qmp.wait_event("BLOCK_JOB_CANCELLED")
            self.assertTrue(self.qmp.node("below")["ro"])
            self.reopen(by_name)
            self.assertTrue(self.qmp.node("below")["ro"])

    def test_the_filter_of_a_job_is_called_like_its_disk(self):
        upper = self.add_chain()
        self.reopen({**upper, "backing": None})
        for job, name in ("blockdev-mirror", "filter_node_name"), ("blockdev-backup", None):
            more = {name: "filter"} if name else {}
            self.qmp.command(
                job, job_id="j", device="upper", target="two", sync="full", speed=1, **more
            )
            nodes = self.qmp.command("query-named-block-nodes", flat=True)
            found = {n["file"] for n in nodes if n["drv"] in ("mirror_top", "copy-before-write")}
            self.assertEqual(found, {self.qmp.node("upper")["file"]})
            self.qmp.command("block-job-cancel", device="j", force=True)
            self.qmp.wait_event("BLOCK_JOB_CANCELLED")

    def test_who_copies_below_a_node_keeps_it_writable(self):
        below = self.add_image("below")
        upper = self.add_image("upper", backing=below["node-name"])
        self.qmp.command("block-stream", job_id="s", device="upper", auto_finalize=False)
        self.qmp.wait_event("BLOCK_JOB_PENDING")
        self.assertEqual(
            self.refusal({**upper, "read-only": True, "backing": "below"}),
            "Read-only block node 'upper' cannot support read-write users",
        )
        self.qmp.command("job-finalize", id="s")
        self.assertNotIn("error", self.qmp.wait_event("BLOCK_JOB_COMPLETED")["data"])

    def test_which_of_several_options_is_named(self):
        """That which QEMU names."""
        self.add_image("leaf")
        leaf = {"driver": "qcow2", "node-name": "leaf"}
        other = {"driver": "file", "node-name": "x", "filename": "/x"}
        self.create("deep.qcow2")
        deep = self.add_image("deep", backing="leaf")
        for backing, named in (
            ({**leaf, "file": other}, "backing.driver"),
            ({**leaf, "file": other, "backing": None}, "backing.driver"),
            ({**leaf, "file": other, "backing": {**leaf, "file": other}},
             "backing.backing.file.node-name"),
        ):
            self.assertEqual(
                self.refusal({**deep, "backing": backing}), f"Cannot change the option '{named}'"
            )
        self.assertEqual(
            self.refusal({**deep, "driver": "qed", "file": {**other, "node-name": "deep-file"}}),
            "Cannot change the option 'driver'",
        )

    def test_the_check_of_dropped_pages_is_changed(self):
        two = {"driver": "file", "node-name": "two", "filename": self.path("two.raw")}
        self.reopen({**two, "x-check-cache-dropped": True})
        self.reopen({**two, "x-check-cache-dropped": False})
        self.reopen(two)
        self.assertEqual(
            self.refusal({**two, "locking": "off"}), "Cannot change the option 'locking'"
        )

    def test_the_overlay_that_came_last_is_named(self):
        self.create("late.qcow2")
        late = {
            "driver": "qcow2",
            "node-name": "late",
            "backing": "base",
            "file": {"driver": "file", "filename": self.path("late.qcow2")},
        }
        self.qmp.command("blockdev-add", **late)
        answer = self.qmp.execute("blockdev-del", {"node-name": "base"})
        self.assertEqual(
            answer["error"]["desc"], "Node 'base' is busy: node is used as backing hd of 'late'"
        )


class FailureTest(tidemark.TestCase):
    """Writes and flushes that fail half way."""

    def start(self, image, *inject, read_only=False):
        self.nbd = self.path("nbd.sock")
        server = self.daemon("--nbd-server", f"addr.type=unix,addr.path={self.nbd}")
        self.qmp = server.qmp
        self.qmp.command("blockdev-add", driver="file", node_name="plain", filename=image)
        self.qmp.command(
            "blockdev-add",
            driver="blkdebug",
            node_name="faults",
            image="plain",
            inject_error=list(inject),
        )
        self.disk = {"driver": "qcow2", "node-name": "disk", "file": "faults"}
        self.qmp.command("blockdev-add", **self.disk, read_only=read_only)
        return server

    def export(self, node="disk"):
        self.qmp.command(
            "block-export-add", type="nbd", id="e", node_name=node, name="disk", writable=True
        )
        return tidemark.nbd_uri(self.nbd, "disk")

    def test_an_image_that_cannot_be_made_ready_stays_read_only(self):
        """A feature bit that is not known has to be cleared first."""
        image = self.create("disk.qcow2")
        with open(image, "r+b") as f:
            f.seek(88)
            f.write((1 << 40).to_bytes(8, "big"))
        server = self.start(image, {"event": "none", "iotype": "write", "once": True}, read_only=True)
        for fails in True, False:
            if fails:
                with self.assertRaises(QmpError):
                    self.qmp.command("blockdev-reopen", options=[self.disk])
            else:
                self.qmp.command("blockdev-reopen", options=[self.disk])
            self.assertEqual(self.qmp.node("disk")["ro"], fails)
        tidemark.io(self.export(), "write -P 3 0 64k", fmt="raw")
        server.quit()
        tidemark.qemu_img("check", image)
        tidemark.qemu_io(image, "read -P 3 0 64k", fmt="qcow2")

    def test_an_image_that_cannot_be_completed_stays_writable(self):
        """Its bitmap would be lost."""
        image = self.create("disk.qcow2")
        server = self.start(
            image, {"event": "none", "iotype": "write", "once": True, "sector": 2048}
        )
        self.qmp.command("block-dirty-bitmap-add", node="disk", name="b", persistent=True)
        for pattern in range(1, 24):
            tidemark.io(self.export(), f"write -P {pattern} {pattern - 1}M 64k", fmt="raw", check=False)
            self.qmp.command("block-export-del", id="e")
            self.qmp.wait_event("BLOCK_EXPORT_DELETED")
            for read_only in True, False:
                answer = self.qmp.execute(
                    "blockdev-reopen", {"options": [{**self.disk, "read-only": read_only}]}
                )
                self.assertEqual(
                    self.qmp.node("disk")["ro"], read_only and "return" in answer, answer
                )
        self.assertEqual(self.qmp.bitmaps("disk")["b"]["count"], 23 * 65536)
        server.quit()
        tidemark.qemu_img("check", image)

    def test_tables_that_cannot_be_written_stay_in_memory(self):
        """They are in slices of the old size, which are dropped for those of another."""
        image = self.create("disk.qcow2")
        self.start(image, {"event": "none", "iotype": "flush", "errno": 5})
        tidemark.io(self.export(), "write -P 7 0 64k", fmt="raw", check=False)
        for size in 512, 4096, 65536:
            options = {**self.disk, "l2-cache-entry-size": size}
            answer = self.qmp.execute("blockdev-reopen", {"options": [options]})
            if size == 4096:
                self.assertEqual(answer, {"return": {}})
            else:
                self.assertEqual(
                    answer["error"]["desc"],
                    f"Could not write metadata to '{image}': Input/output error",
                )
            tidemark.io(f"nbd+unix:///disk?socket={self.nbd}", "read -P 7 0 64k", fmt="raw")

    def test_a_flush_of_the_overlay_reports_that_the_image_below_was_not_flushed(self):
        """What was acknowledged before the snapshot is not on storage."""
        image = self.create("disk.qcow2")
        server = self.start(image, {"event": "none", "iotype": "flush"})
        self.export()
        overlay = self.create("over.qcow2")
        self.qmp.command(
            "blockdev-add",
            driver="qcow2",
            node_name="over",
            file={"driver": "file", "filename": overlay},
        )
        guest = RawClient(self.nbd)
        guest.go(b"disk", structured=False)
        guest.request(WRITE, 0, 4096, payload=bytes(4096))
        self.assertEqual(guest.simple_reply(), (1, 0))
        self.qmp.command("blockdev-snapshot", node="disk", overlay="over")
        self.assertFalse(self.qmp.node("disk")["ro"])
        guest.request(FLUSH)
        self.assertEqual(guest.simple_reply(), (1, EIO))
        guest.sock.close()
        server.stop(expect=None)
