# SPDX-License-Identifier: Apache-2.0
"""img info, map and check, compared with qemu-img on the same image."""

import json
import os
import re
import shutil
import unittest

from nbd_server import NbdServer, QemuNbd
from tidemark import TestCase, compat, img, io, qemu, qemu_img, qemu_io, run, tool


def without_children(text):
    """What newer qemu-img prints of the nodes below, and older does not."""
    return re.sub(r"^ *Child node '/.*?(?=^$|\Z)", "", text, flags=re.MULTILINE | re.DOTALL)


def without_disk_size(text):
    return re.sub(r"^( *disk size: ).*$", r"\1N", text, flags=re.MULTILINE)


class Start(TestCase):
    def test_large_libraries_are_not_loaded_for_nothing(self):
        """They would take longer than most commands do."""
        path = self.create("a.qcow2")
        out = img("info", path, env={**os.environ, "LD_TRACE_LOADED_OBJECTS": "1"}).stdout
        self.assertIn("libc.so", out)
        for library in ("libgnutls", "libssh", "libcrypto"):
            self.assertNotIn(library, out)


class Info(TestCase):
    def human(self, tool, *arguments):
        out = run(tool, "info", *arguments).stdout
        return without_disk_size(without_children(out))

    def compare_with_qemu(self, *arguments):
        ours = self.human(compat("qemu-img"), *arguments)
        self.assertEqual(ours, self.human(qemu("qemu-img"), *arguments))
        return ours

    def test_raw(self):
        self.compare_with_qemu(self.create("a.raw", "1536k", "raw"))

    def test_qcow2(self):
        self.assertIn("cluster_size: 65536", self.compare_with_qemu(self.create("a.qcow2")))

    def test_backing_chain(self):
        base = self.create("base.raw", "1M", "raw")
        mid = self.create("mid.qcow2", "1M", options=("-b", base, "-F", "raw"))
        top = self.create("top.qcow2", "1M", options=("-b", "mid.qcow2", "-F", "qcow2"))
        out = self.compare_with_qemu("--backing-chain", top)
        self.assertEqual(out.count("image: "), 3)
        self.assertIn(f"(actual path: {mid})", out)

    def test_json_has_the_members_of_qemu_img_in_its_order(self):
        base = self.create("base.raw", "1M", "raw")
        top = self.create("top.qcow2", "1M", options=("-b", base, "-F", "raw"))
        ours = json.loads(img("info", "--output=json", top).stdout)
        theirs = json.loads(qemu_img("info", "--output=json", top).stdout)
        child = ours.pop("children")[0]
        ours["actual-size"] = theirs["actual-size"] = 0
        self.assertEqual(list(ours), list(theirs))
        self.assertEqual(ours, theirs)
        self.assertEqual(child["name"], "file")
        self.assertEqual(child["info"]["format"], "file")
        self.assertEqual(child["info"]["filename"], top)
        self.assertEqual(list(child["info"])[-2:], ["format-specific", "dirty-flag"])
        self.assertEqual(child["info"]["format-specific"]["type"], "file")
        self.assertLessEqual(set(child["info"]["format-specific"]["data"]), {"extent-size-hint"})

    def test_json_layout_is_that_of_qemu_img(self):
        path = self.create("a.raw", "1M", "raw")
        ours = compat("qemu-img")
        lines = run(ours, "info", "--output=json", path).stdout.splitlines()
        self.assertEqual(lines[0], "{")
        self.assertIn('    "virtual-size": 1048576,', lines)
        self.assertEqual(lines[-1], "}")

    def test_what_cannot_be_dirty_has_no_dirty_flag(self):
        """As in QEMU: a disk of a server, and zeroes without a file."""
        raw = self.create("raw", "1M", "raw")
        server = self.own(NbdServer(self.dir, "-r", "-f", "raw", raw))
        for name in raw, server.uri(), 'json:{"driver":"null-co","read-zeroes":true}':
            out = img("info", "-U", "--output=json", name).stdout
            self.assertEqual(out.count('"dirty-flag": false'), 2 if name == raw else 0, name)

    def test_character_devices(self):
        """Disks of 0 bytes, as in QEMU, also as sources and targets."""
        for device in ("/dev/null", "/dev/zero"):
            info = json.loads(img("info", "--output=json", device).stdout)
            self.assertEqual((info["format"], info["virtual-size"]), ("raw", 0))
            self.assertEqual(info["children"][0]["info"]["format"], "host_device")
        target = self.path("target")
        img("dd", "if=/dev/zero", f"of={target}", "bs=512", "count=2")
        self.assertEqual(os.path.getsize(target), 0)
        img("convert", "-O", "qcow2", "/dev/null", target)
        img("convert", "-t", "writeback", "-O", "raw", target, "/dev/null")
        self.assertIn("write failed", io("/dev/null", "write 0 512", fmt="raw", check=False).stdout)

    def test_bitmaps_are_listed(self):
        path = self.create("a.qcow2")
        qemu_img("bitmap", "--add", "-g", "128k", path, "monday")
        qemu_img("bitmap", "--add", "--disable", path, "tuesday")
        self.compare_with_qemu(path)

    def test_a_loop_in_the_chain_is_found(self):
        a = self.create("a.qcow2", "1M")
        b = self.create("b.qcow2", "1M", options=("-b", a, "-F", "qcow2"))
        qemu_img("rebase", "-u", "-b", b, "-F", "qcow2", a)
        result = img("info", "--backing-chain", b, check=False)
        self.assertEqual(result.returncode, 1)
        self.assertIn("infinite loop", result.stderr)

    def test_a_missing_file_is_named(self):
        result = img("info", self.path("gone"), check=False)
        self.assertEqual(result.returncode, 1)
        self.assertIn(f"Could not open '{self.path('gone')}'", result.stderr)
        self.assertIn("No such file or directory", result.stderr)

    def test_image_opts(self):
        path = self.create("a.qcow2", "2M")
        out = img("info", "--image-opts", f"driver=qcow2,file.filename={path},file.driver=file")
        self.assertIn("virtual size: 2 MiB", out.stdout)

    def test_the_protocol_of_a_filename_among_options_is_found(self):
        path = self.create("a.qcow2", "2M")
        for words in (
            ("--image-opts", f"driver=qcow2,file.filename={path}"),
            ("--image-opts", f"file.filename={path}"),
            (f"json:{{'driver':'qcow2','file':{{'filename':'{path}'}}}}",),
        ):
            self.assertIn("virtual size: 2 MiB", img("info", *words).stdout)

    def test_a_format_beside_a_json_filename_is_the_one_that_counts(self):
        path = self.path("x.qcow2")
        img("create", "-q", "-f", "qcow2", path, "1M")
        file = {"driver": "file", "filename": path}
        for named in ("raw", "qcow2"):
            for format in ("raw", "qcow2"):
                name = "json:" + json.dumps({"driver": named, "file": file})
                words = ("info", "-f", format, "--output=json", name)
                ours, theirs = (json.loads(tool(*words).stdout) for tool in (img, qemu_img))
                self.assertEqual(ours["format"], format)
                self.assertEqual(ours["virtual-size"], theirs["virtual-size"])
        # A driver without a file can't be another format.
        for tool in (img, qemu_img):
            result = tool("info", "-f", "qcow2", "json:" + json.dumps(file), check=False)
            self.assertEqual(result.returncode, 1)

    def test_bad_output_form_is_refused(self):
        result = img("info", "--output=xml", self.create("a.raw", "1M", "raw"), check=False)
        self.assertEqual(result.returncode, 1)
        self.assertIn("expects 'human' or 'json' not 'xml'", result.stderr)


    def test_numbers_as_text_in_older_options(self):
        """A file named 42, and a socket."""
        with open(self.path("42"), "w", encoding="utf-8"):
            pass
        words = ("info", 'json:{"driver": "blkdebug", "config": 42, "image.driver": "null-co"}')
        out = run(compat("qemu-img"), *words, cwd=self.dir).stdout
        self.assertIn("image: blkdebug:42:null-co://\n", out)
        for key, value, found in (("path", "7", "7"), ("host", "-1", "-1:10809")):
            text = f'json:{{"driver": "nbd", "{key}": {value}}}'
            result = run(compat("qemu-img"), "info", text, cwd=self.dir, check=False)
            self.assertNotIn("expects", result.stderr)
            self.assertIn(found, result.stderr.rpartition("}': ")[2])


class FullName(TestCase):
    """The name of an image whose plain filename would open something else."""

    def setUp(self):
        super().setUp()
        self.create("base.qcow2", "1M")
        self.top = self.create("top.qcow2", "1M", options=("-b", "base.qcow2", "-F", "qcow2"))

    def with_file(self, **options):
        return "json:" + json.dumps({"driver": "qcow2", "file": options})

    def test_options_that_no_filename_tells(self):
        rules = [{"event": "read_aio", "new_state": 42}]
        file = {"driver": "file", "filename": self.top}
        name = self.with_file(driver="blkdebug", image=file, **{"set-state": rules})
        found = json.loads(img("info", "--output=json", name).stdout)
        flat = {"set-state.0.event": "read_aio", "set-state.0.new_state": 42}
        self.assertEqual(
            json.loads(found["filename"].removeprefix("json:")),
            {"driver": "qcow2", "file": {"driver": "blkdebug", "image": file, **flat}},
        )
        self.assertEqual(found["full-backing-filename"], self.path("base.qcow2"))
        self.assertEqual(json.loads(img("info", "--output=json", found["filename"]).stdout), found)

    def test_a_part_of_a_raw_file(self):
        file = {"driver": "file", "filename": self.create("disk.raw", "1M", "raw")}
        name = "json:" + json.dumps({"driver": "raw", "offset": 512, "size": 1024, "file": file})
        found = json.loads(img("info", "--output=json", name).stdout)
        self.assertEqual(json.loads(found["filename"].removeprefix("json:")), json.loads(name[5:]))
        self.assertEqual(json.loads(qemu_img("info", "--output=json", name).stdout)["filename"][:5], "json:")

    def test_too_many_nodes_for_a_name(self):
        """Each level doubles them."""
        disk = {"driver": "file", "filename": self.create("disk.raw", "64k", "raw")}
        for _ in range(6):
            disk = {"driver": "quorum", "vote-threshold": 1, "children": [disk, disk]}
        found = json.loads(img("info", "--output=json", "json:" + json.dumps(disk)).stdout)
        self.assertEqual(found["filename"], "")
        below = found["children"][0]["info"]
        self.assertEqual(json.loads(below["filename"].removeprefix("json:")), disk["children"][0])

    def test_several_files_have_no_directory(self):
        files = [{"driver": "file", "filename": self.top}, {"driver": "file", "filename": self.path("copy.qcow2")}]
        shutil.copy(self.top, files[1]["filename"])
        name = self.with_file(**{"driver": "quorum", "vote-threshold": 1, "children": files})
        said = img("info", name).stdout
        self.assertIn("backing file: base.qcow2 (cannot determine actual path)\n", said)
        found = json.loads(img("info", "--output=json", name).stdout)
        self.assertEqual(json.loads(found["filename"].removeprefix("json:")), json.loads(name[5:]))
        self.assertNotIn("full-backing-filename", found)

    def test_no_backing_file_of_the_working_directory_is_taken(self):
        files = [{"driver": "file", "filename": self.top}]
        name = self.with_file(**{"driver": "quorum", "vote-threshold": 1, "children": files})
        result = run(*tool("img"), "map", name, check=False, cwd=os.path.dirname(self.top))
        self.assertEqual(result.returncode, 1)
        self.assertIn("has no directory", result.stderr)


class Map(TestCase):
    def both(self, *arguments):
        """Ours and qemu-img's JSON; the newest member is not known to older ones."""
        ours = json.loads(img("map", "--output=json", *arguments).stdout)
        theirs = json.loads(qemu_img("map", "--output=json", *arguments).stdout)
        for entry in ours + theirs:
            entry.pop("compressed", None)
        self.assertEqual(ours, theirs)
        return ours

    def test_raw(self):
        path = self.create("a.raw", "1M", "raw")
        qemu_io(path, "write 64k 64k", "write 512k 4k", fmt="raw")
        self.both("-f", "raw", path)

    def test_qcow2_chain(self):
        base = self.create("base.qcow2", "5M")
        top = self.create("top.qcow2", "8M", options=("-b", base, "-F", "qcow2"))
        qemu_io(base, "write 0 1M", "write -z 2M 64k", "write 4M 64k", fmt="qcow2")
        qemu_io(top, "write 512k 64k", "write -z 4M 128k", "write 7M 4k", fmt="qcow2")
        depths = {entry["depth"] for entry in self.both(top)}
        self.assertEqual(depths, {0, 1})

    def test_human_form(self):
        path = self.create("a.qcow2", "8M")
        qemu_io(path, "write 0 64k", "write 1M 128k", fmt="qcow2")
        ours = run(compat("qemu-img"), "map", path).stdout
        self.assertEqual(ours, qemu_img("map", path).stdout)

    def test_human_form_refuses_compressed_clusters(self):
        path = self.create("a.qcow2", "8M")
        qemu_io(path, "write -c 0 64k", fmt="qcow2")
        result = img("map", path, check=False)
        self.assertEqual(result.returncode, 1)
        self.assertIn("compressed", result.stderr)

    def test_nothing(self):
        """One entry without a length, at the offset that was asked for."""
        empty, disk = self.create("empty.raw", "0", "raw"), self.create("disk.raw", "1M", "raw")
        for words in ((empty,), ("-s", "1M", disk), ("-s", "2M", disk), ("-s", "512k", "-l", "0", disk)):
            found = json.loads(img("map", "-f", "raw", "--output=json", *words).stdout)
            expected = json.loads(qemu_img("map", "-f", "raw", "--output=json", *words).stdout)
            self.assertEqual(found, [{"compressed": False, **entry} for entry in expected])
            self.assertEqual(len(found), 1)

    def test_a_part(self):
        path = self.create("a.raw", "4M", "raw")
        qemu_io(path, "write 1M 1M", fmt="raw")
        part = self.both("-f", "raw", "-s", "1536k", "-l", "1M", path)
        self.assertEqual((part[0]["start"], part[-1]["start"]), (1536 << 10, 2 << 20))
        self.assertEqual(sum(entry["length"] for entry in part), 1 << 20)


class Measure(TestCase):
    def both(self, *arguments):
        ours = run(compat("qemu-img"), "measure", *arguments, check=False)
        theirs = qemu_img("measure", *arguments, check=False)
        self.assertEqual(
            (ours.returncode, ours.stdout, ours.stderr),
            (theirs.returncode, theirs.stdout, theirs.stderr),
        )

    def test_sizes_of_new_images(self):
        for options in ("cluster_size=64k", "cluster_size=512,preallocation=full", "cluster_size=2M",
                        "refcount_bits=1", "refcount_bits=64", "preallocation=full"):  # fmt: skip
            for size in ("0", "2G", "5G"):
                self.both("-O", "qcow2", "-o", options, "--size", size)
        self.both("-O", "raw", "--size", "3M", "--output=json")
        self.both("-O", "qcow2", "--size", "7E")

    def test_images(self):
        path = self.create("a.qcow2", "1G")
        qemu_io(path, "write 512 512", "write 64k 64k", "write 128M 63k", "write -z 1M 64k")
        qemu_img("bitmap", "--add", path, "one")
        for options in ((), ("-o", "cluster_size=4k"), ("-o", "backing_file=x")):
            self.both("-O", "qcow2", *options, path)
            self.both("-O", "qcow2", "--output=json", *options, path)
        raw = self.create("a.raw", "1G", "raw")
        self.both("-f", "raw", "-O", "qcow2", raw)

    def test_what_is_promised_does(self):
        """For empty disks, and for full ones with so small clusters that refcount tables are
        replaced by longer ones.
        """
        source = self.path("source.raw")
        for size in (0, 512, 2035712, 5 << 20):
            with open(source, "wb") as f:
                f.write(b"\1" * size)
            for clusters in (
                "cluster_size=64k",
                "cluster_size=512,refcount_bits=64",
                "cluster_size=1k,refcount_bits=32",
            ):
                for mode in ("off", "metadata", "falloc"):
                    options = ("-f", "raw", "-O", "qcow2", "-o", f"{clusters},preallocation={mode}")
                    with self.subTest(size=size, options=options):
                        target = self.path("target.qcow2")
                        promised = json.loads(img("measure", "--output=json", *options, source).stdout)
                        img("convert", *options, source, target)
                        end = json.loads(qemu_img("check", "--output=json", target).stdout)["image-end-offset"]
                        self.assertLessEqual(end, promised["required"])
                        self.assertEqual(promised["required"], promised["fully-allocated"])

    def test_bitmaps_in_use_count(self):
        """A writer marks them so, as if they were broken; they are not when it copies them."""
        path = self.create("a.qcow2", "10M")
        for name in ("one", "two"):
            img("bitmap", "-f", "qcow2", "--add", path, name)
        before = img("measure", "-O", "qcow2", path).stdout
        with open(path, "r+b") as f:
            data = f.read()
            for name in (b"one", b"two"):
                # An entry: table offset, table size, flags ..., in 24 bytes, and the name.
                f.seek(data.index(name) - 24 + 12)
                f.write((3).to_bytes(4, "big"))
        self.assertIn("in-use", img("info", path).stdout)
        self.assertEqual(img("measure", "-U", "-O", "qcow2", path).stdout, before)

    def test_what_contradicts_itself(self):
        path = self.create("a.qcow2", "1M")
        for words in ((), ("--size", "2G", path), (path, "a"), ("-f", "qcow2"), ("-o", ",", path),
                      ("-O", "foo", path)):  # fmt: skip
            self.both(*words)


class Check(TestCase):
    def test_sound_image(self):
        path = self.create("a.qcow2", "8M")
        io(path, "write 0 1M", "write 5M 64k", fmt="qcow2")
        ours = run(compat("qemu-img"), "check", path)
        theirs = qemu_img("check", path)
        self.assertEqual(ours.stdout, theirs.stdout)
        self.assertEqual(
            json.loads(img("check", "--output=json", path).stdout),
            json.loads(qemu_img("check", "--output=json", path).stdout),
        )

    def test_raw_has_nothing_to_check(self):
        result = img("check", self.create("a.raw", "1M", "raw"), check=False)
        self.assertEqual(result.returncode, 63)
        self.assertIn("does not support checks", result.stderr)

    def test_a_missing_file_is_status_1(self):
        self.assertEqual(img("check", self.path("gone"), check=False).returncode, 1)

    def test_repair_wants_to_know_what(self):
        result = img("check", "-r", "some", self.create("a.qcow2"), check=False)
        self.assertEqual(result.returncode, 1)
        self.assertIn("some", result.stderr)

    def test_leaks_and_corruptions_have_their_status(self):
        path = self.create("a.qcow2", "8M")
        io(path, "write 0 64k", fmt="qcow2")
        with open(path, "r+b") as f:
            refcounts = self.refcount_block(f)
            # A cluster at 1 MiB that nothing refers to.
            f.truncate(17 << 16)
            f.seek(refcounts + 2 * 16)
            f.write(b"\x00\x01")
        leaky = img("check", path, check=False)
        self.assertEqual(leaky.returncode, 3)
        self.assertIn("1 leaked clusters were found", leaky.stdout)
        with open(path, "r+b") as f:
            # The header's own cluster: refcount 0.
            f.seek(self.refcount_block(f))
            f.write(b"\x00\x00")
        self.assertEqual(img("check", path, check=False).returncode, 2)

    @staticmethod
    def refcount_block(f):
        f.seek(48)
        f.seek(int.from_bytes(f.read(8), "big"))
        return int.from_bytes(f.read(8), "big")


class InUse(TestCase):
    """A raw disk that a server writes to may be read; with metadata, or to copy it, it may not."""

    def test_both_readers_with_both_servers(self):
        raw, other = (self.create(name, "1M", "raw") for name in ("a.raw", "b.raw"))
        qcow2 = self.create("c.qcow2", "1M")
        overlay = self.path("d.qcow2")
        img("create", "-q", "-f", "qcow2", "-b", raw, "-F", "raw", overlay)
        readers = (
            ("map", "-f", "raw", raw), ("map", overlay), ("compare", "-f", "raw", raw, other),
            ("compare", overlay, other), ("measure", "-f", "raw", "-O", "qcow2", raw),
            ("dd", "-f", "raw", "-O", "raw", f"if={raw}", f"of={self.path('e')}"),
            ("bench", "-c", "1", "-f", "raw", raw), ("snapshot", "-l", raw), ("info", raw),
        )  # fmt: skip
        refused = (
            ("convert", "-f", "raw", "-O", "raw", raw, self.path("e")),
            ("convert", "-O", "raw", overlay, self.path("e")),
            ("map", qcow2), ("compare", qcow2, other), ("info", qcow2),
        )  # fmt: skip
        for server in NbdServer, QemuNbd:
            servers = [
                server(self.dir, "-f", fmt, path, name=fmt)
                for fmt, path in (("raw", raw), ("qcow2", qcow2))
            ]
            for program in img, qemu_img:
                for words in readers:
                    program(*words)
                for words in refused:
                    self.assertIn("lock", program(*words, check=False).stderr)
            for process in servers:
                process.stop()


if __name__ == "__main__":
    unittest.main()
