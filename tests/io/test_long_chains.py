# SPDX-License-Identifier: Apache-2.0
"""Backing chains of many images, and those that are circles."""

import json
import os
import resource

from tidemark import TestCase, img, io

MiB = 1 << 20
SIZE = "1M"


def more_files():
    """Each image is an open file."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


class LongChains(TestCase):
    def chain(self, count):
        """Images d0000 ... over each other; the lowest has 64 KiB of data. The path of the top."""
        self.create("d0000", SIZE)
        io(self.path("d0000"), "write -P 1 0 64k", fmt="qcow2")
        img("create", "-q", "-u", "-f", "qcow2", "-o", "cluster_size=512", "-b", "d0000", "-F",
            "qcow2", self.path("d0001"), SIZE)  # fmt: skip
        with open(self.path("d0001"), "rb") as f:
            template = f.read()
        for i in range(2, count):
            with open(self.path(f"d{i:04}"), "wb") as f:
                f.write(template.replace(b"d0000", b"d%04d" % (i - 1)))
        return self.path(f"d{count - 1:04}")

    def check_reads(self, top):
        out = io(top, "read -P 1 0 64k", "read -P 0 64k 64k", fmt="qcow2", options=["-r"],
                 preexec_fn=more_files).stdout  # fmt: skip
        self.assertNotIn("Pattern", out)

    def test_two_hundred_images_are_read(self):
        self.check_reads(self.chain(200))

    def test_two_hundred_images_are_written(self):
        top = self.chain(200)
        out = io(top, "write -P 2 1k 512", "read -P 2 1k 512", "read -P 1 0 1k", fmt="qcow2").stdout
        self.assertNotIn("Pattern", out)

    def test_a_thousand_images_are_read(self):
        """More than one stack has room for."""
        self.check_reads(self.chain(1000))

    def test_two_hundred_images_are_converted(self):
        top = self.chain(200)
        img("convert", "-f", "qcow2", "-O", "raw", top, self.path("r"))
        out = img("compare", "-f", "qcow2", "-F", "raw", top, self.path("r")).stdout
        self.assertEqual(out, "Images are identical.\n")

    def test_a_daemon_tells_how_deep_a_chain_is(self):
        node = f"driver=qcow2,node-name=top,file.driver=file,file.filename={self.chain(300)}"
        daemon = self.daemon("--blockdev", node)
        nodes = daemon.qmp.command("query-named-block-nodes", flat=True)
        daemon.quit()
        depth = {n["node-name"]: n["backing_file_depth"] for n in nodes}
        self.assertEqual(depth["top"], 299)


class Circles(TestCase):
    def image(self, name, backing, fmt="qcow2"):
        img("create", "-q", "-u", "-f", "qcow2", "-b", backing, "-F", fmt, self.path(name), SIZE)
        return self.path(name)

    def open_error(self, path, *options):
        return io(path, "read 0 512", fmt="qcow2", options=options, check=False).stderr

    def test_two_images_above_each_other(self):
        a = self.image("a", "b")
        b = self.image("b", "a")
        for options in ([], ["-r"]):
            err = self.open_error(a, *options)
            self.assertIn(f"The backing chain is a circle: '{b}' names '{a}'", err)

    def test_an_image_above_itself_by_another_name(self):
        a = self.image("a", "./link")
        os.symlink("a", self.path("link"))
        self.assertIn("The backing chain is a circle", self.open_error(a))

    def test_a_circle_by_json(self):
        below = {"driver": "qcow2", "file": {"driver": "file", "filename": self.path("a")}}
        a = self.image("a", "json:" + json.dumps(below))
        self.assertIn("The backing chain is a circle", self.open_error(a, "-r"))

    def test_an_image_over_its_own_bytes_is_none(self):
        a = self.image("a", "a", "raw")
        out = io(a, "read -P 0x51 0 1", fmt="qcow2", options=["-r"]).stdout
        self.assertNotIn("Pattern", out)

    def test_one_image_twice_in_a_file_is_none(self):
        both, second = self.path("both"), self.create("second", SIZE)
        io(second, "write -P 7 0 64k", fmt="qcow2")
        below = {"driver": "file", "filename": both}
        below = {"driver": "raw", "offset": MiB, "file": below}
        first = self.image("first", "json:" + json.dumps({"driver": "qcow2", "file": below}))
        with open(both, "wb") as f:
            for name, offset in (first, 0), (second, MiB):
                with open(name, "rb") as part:
                    f.seek(offset)
                    f.write(part.read())
        out = io(both, "read -P 7 0 64k", fmt="qcow2", options=["-r"]).stdout
        self.assertNotIn("Pattern", out)
