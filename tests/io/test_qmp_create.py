# SPDX-License-Identifier: Apache-2.0
"""blockdev-create and x-blockdev-amend: what they make, their events, and how they fail."""

import fcntl
import json
import os
import re
import struct

import tidemark
from qmp import QmpError

MIB = 1 << 20
COMMANDS = os.path.join(os.environ.get("TIDEMARK_SOURCE", "."), "src", "qmp", "create_commands.c")


class CreateTest(tidemark.TestCase):
    in_memory = True

    def setUp(self):
        super().setUp()
        self.server = self.daemon()
        self.qmp = self.server.qmp

    def job(self, job_id="j"):
        return {j["id"]: j for j in self.qmp.command("query-jobs")}.get(job_id)

    def finish(self, kind="create"):
        """Wait for the end, and dismiss the job: its error, or None. Its states must be right."""
        tidemark.wait_until(lambda: self.job()["status"] == "concluded", "the job to end")
        job = self.job()
        self.assertEqual(job["type"], kind)
        self.assertEqual((job["current-progress"], job["total-progress"]), (1, 1))
        self.qmp.command("job-dismiss", id="j")
        states = [
            e["data"]["status"] for e in self.qmp.events if e["event"] == "JOB_STATUS_CHANGE"
        ]
        self.assertEqual({e["event"] for e in self.qmp.events}, {"JOB_STATUS_CHANGE"})
        self.qmp.events.clear()
        error = job.get("error")
        middle = ["aborting"] if error else ["waiting", "pending"]
        self.assertEqual(states, ["created", "running", *middle, "concluded", "null"])
        return error

    def run_job(self, **options):
        self.qmp.command("blockdev-create", job_id="j", options=options)
        return self.finish()

    def add_file(self, node, name, contents=b""):
        path = self.path(name)
        with open(path, "wb") as f:
            f.write(contents)
        self.qmp.command("blockdev-add", driver="file", node_name=node, filename=path)
        return path

    def info(self, path):
        return json.loads(
            tidemark.img("info", "-U", "-f", "qcow2", "--output=json", path).stdout
        )

    def qcow2(self, **options):
        arguments = {"driver": "qcow2", "file": "f", "size": MIB, **options}
        return self.run_job(**{k.replace("_", "-"): v for k, v in arguments.items()})


class FileTest(CreateTest):
    def test_a_file_of_exactly_that_size(self):
        path = self.path("a")
        self.assertIsNone(self.run_job(driver="file", filename=path, size=1000))
        self.assertEqual(os.path.getsize(path), 1000)

    def test_space_is_allocated(self):
        path = self.path("a")
        options = {"preallocation": "full", "nocow": True, "extent-size-hint": 0}
        self.assertIsNone(self.run_job(driver="file", filename=path, size=MIB, **options))
        self.assertGreaterEqual(os.stat(path).st_blocks * 512, MIB)

    def test_old_contents_are_gone(self):
        path = self.path("a")
        with open(path, "wb") as f:
            f.write(b"x" * MIB)
        self.assertIsNone(self.run_job(driver="file", filename=path, size=MIB))
        with open(path, "rb") as f:
            self.assertEqual(f.read(), bytes(MIB))

    def test_no_directory(self):
        path = self.path("no/a")
        self.assertEqual(
            self.run_job(driver="file", filename=path, size=0),
            f"Could not create '{path}': No such file or directory",
        )

    def test_a_file_in_use_stays(self):
        path = self.create("a.qcow2", MIB)
        self.qmp.command(
            "blockdev-add",
            driver="qcow2",
            node_name="q",
            file={"driver": "file", "filename": path},
        )
        self.assertIn("lock", self.run_job(driver="file", filename=path, size=0))
        self.assertEqual(self.info(path)["virtual-size"], MIB)


class ExportedDiskTest(CreateTest):
    """Creating an image over a raw disk in use would empty the file."""

    def export(self, writable):
        path = self.add_file("f", "a.raw", b"x" * MIB)
        self.qmp.command("blockdev-add", driver="raw", node_name="d", file="f")
        self.qmp.command("nbd-server-start",
                         addr={"type": "unix", "data": {"path": self.path("nbd")}})  # fmt: skip
        self.qmp.command("block-export-add", type="nbd", id="e", node_name="d", writable=writable)
        self.add_file("s", "s.raw", b"y" * MIB)
        return path

    def check_stays(self, writable):
        path, source = self.export(writable), self.path("s.raw")
        for program in ([tidemark.TIDEMARK, "img"], [tidemark.qemu("qemu-img")]):
            for command in (
                ["create", "-f", "raw", path, "1M"],
                ["create", "-f", "raw", "-o", "preallocation=falloc", path, "64k"],
                ["create", "-f", "qcow2", path, "64M"],
                ["create", "-f", "vmdk", path, "64M"],
                ["convert", "-f", "raw", "-O", "raw", source, path],
                ["dd", "-f", "raw", "-O", "raw", f"if={source}", f"of={path}"],
                ["resize", "-f", "raw", path, "2M"],
            ):
                result = tidemark.run(*program, *command, check=False)
                self.assertEqual(result.returncode, 1, command)
                self.assertIn("lock", result.stderr, command)
        self.assertIn("lock", self.run_job(driver="file", filename=path, size=MIB))
        for command in ("drive-backup", "drive-mirror"):
            for fmt in ("raw", "qcow2"):
                answer = self.qmp.execute(command, {"job-id": "c", "device": "s", "sync": "full",
                                                    "format": fmt, "target": path})  # fmt: skip
                self.assertIn("lock", answer["error"]["desc"], (command, fmt))
        answer = self.qmp.execute("blockdev-snapshot-sync",
                                  {"node-name": "s", "snapshot-file": path, "format": "qcow2",
                                   "snapshot-node-name": "o"})  # fmt: skip
        self.assertIn("lock", answer["error"]["desc"])
        tidemark.io(tidemark.nbd_uri(self.path("nbd"), "d"), "read -P 120 0 1M", fmt="raw",
                    options=("-r",))  # fmt: skip
        with open(path, "rb") as f:
            self.assertEqual(f.read(), b"x" * MIB)

    def test_a_disk_that_is_written_stays(self):
        self.check_stays(True)

    def test_a_disk_that_is_read_stays(self):
        self.check_stays(False)

    def test_its_owner_may_resize_it(self):
        path = self.export(True)
        self.qmp.command("block_resize", node_name="d", size=2 * MIB)
        self.assertEqual(os.path.getsize(path), 2 * MIB)

    def test_another_node_of_the_file_keeps_its_size(self):
        path = self.export(True)
        self.qmp.command("blockdev-add", driver="file", node_name="g", filename=path)
        self.qmp.command("block-export-add", type="nbd", id="g", node_name="g", writable=True)
        answer = self.qmp.execute("block_resize", {"node-name": "d", "size": 4096})
        self.assertIn("lock", answer["error"]["desc"])
        self.assertEqual(os.path.getsize(path), MIB)

    def test_a_disk_of_one_who_shares_all_stays(self):
        path = self.path("a.raw")
        with open(path, "w+b") as f:
            f.write(b"x" * MIB)
            f.flush()
            # The lock of a writer (image_lock.h).
            fcntl.fcntl(f, fcntl.F_OFD_SETLK,
                        struct.pack("hhqqi4x", fcntl.F_RDLCK, os.SEEK_SET, 101, 1, 0))  # fmt: skip
            result = tidemark.img("create", "-f", "raw", path, "1M", check=False)
            self.assertEqual(result.returncode, 1)
            self.assertIn('Failed to get shared "write" lock', result.stderr)
            f.seek(0)
            self.assertEqual(f.read(), b"x" * MIB)


class Qcow2Test(CreateTest):
    def setUp(self):
        super().setUp()
        self.file = self.add_file("f", "a.qcow2", b"old" * MIB)

    def check(self):
        tidemark.run(tidemark.qemu("qemu-img"), "check", "-U", "-q", "-f", "qcow2", self.file)

    def test_an_image_in_a_node(self):
        self.assertIsNone(self.qcow2())
        self.check()
        self.assertEqual(self.info(self.file)["virtual-size"], MIB)
        self.qmp.command("blockdev-add", driver="qcow2", node_name="q", file="f")
        self.assertEqual(self.qmp.node("q")["image"]["virtual-size"], MIB)

    def test_a_larger_file_keeps_its_size(self):
        """It may be a file that can't grow again, as an export by FUSE."""
        path = self.add_file("g", "g.qcow2", b"old" * MIB)
        self.assertIsNone(self.qcow2(file="g"))
        self.assertEqual(os.path.getsize(path), 3 * MIB)
        self.qmp.command("blockdev-del", node_name="g")
        tidemark.run(tidemark.qemu("qemu-img"), "check", "-q", "-f", "qcow2", path)
        tidemark.io(path, "write -P 7 4096 4096", "read -P 7 4096 4096", "read -P 0 0 4096",
                    "read -P 0 8192 1040384", fmt="qcow2")  # fmt: skip
        self.assertEqual(os.path.getsize(path), 3 * MIB)

    def test_options(self):
        error = self.qcow2(
            version="v3",
            cluster_size=16384,
            refcount_bits=8,
            extended_l2=True,
            lazy_refcounts=True,
            compression_type="zstd",
            backing_file="/no/where",
            backing_fmt="raw",
        )
        self.assertIsNone(error)
        tidemark.img("rebase", "-q", "-u", "-f", "qcow2", "-b", "", self.other_copy())
        info = self.info(self.path("copy"))
        data = info["format-specific"]["data"]
        self.assertEqual(info["cluster-size"], 16384)
        self.assertEqual(data["refcount-bits"], 8)
        self.assertEqual(data["compression-type"], "zstd")
        self.assertTrue(data["extended-l2"])
        self.assertTrue(data["lazy-refcounts"])

    def other_copy(self):
        """A copy of the image, which nobody uses."""
        with open(self.file, "rb") as f, open(self.path("copy"), "wb") as g:
            contents = f.read()
            self.assertIn(b"/no/where", contents)
            g.write(contents)
        return self.path("copy")

    def test_version_2(self):
        self.assertIsNone(self.qcow2(version="v2"))
        self.check()
        self.assertEqual(self.info(self.file)["format-specific"]["data"]["compat"], "0.10")

    def test_clusters_are_allocated(self):
        for mode in ("metadata", "falloc", "full"):
            with self.subTest(mode):
                self.assertIsNone(self.qcow2(preallocation=mode))
                self.check()
                mapped = json.loads(
                    tidemark.img("map", "-U", "-f", "qcow2", "--output=json", self.file).stdout
                )
                self.assertTrue(all("offset" in extent for extent in mapped), mapped)

    def test_preallocation_opens_no_backing_file(self):
        options = {"backing_file": "/no/where", "backing_fmt": "raw", "extended_l2": True}
        self.assertIsNone(self.qcow2(preallocation="metadata", **options))

    def test_a_data_file(self):
        path = self.add_file("d", "data", b"kept" * 1024)
        self.assertIsNone(self.qcow2(data_file="d", data_file_raw=True))
        self.assertEqual(os.path.getsize(path), MIB)
        data = self.info(self.file)["format-specific"]["data"]
        self.assertEqual((data["data-file"], data["data-file-raw"]), (path, True))
        self.qmp.command("blockdev-add", driver="qcow2", node_name="q", file="f", data_file="d")
        uri = self.export()
        tidemark.img("compare", "-U", "-q", "-f", "raw", "-F", "raw", uri, path)

    def export(self):
        sock = self.path("nbd")
        address = {"type": "unix", "data": {"path": sock}}
        self.qmp.command("nbd-server-start", addr=address)
        self.qmp.command("block-export-add", type="nbd", id="e", node_name="q", name="q")
        return tidemark.nbd_uri(sock, "q")

    def test_a_data_file_that_is_a_disk_keeps_its_contents(self):
        """An image for an existing raw disk: neither it, nor growth, changes or hides its data."""
        disk = bytes(range(1, 256)) * (2 * MIB // 255 + 1)
        path = self.add_file("d", "disk.raw", disk[: 2 * MIB])
        image = self.file
        self.assertIsNone(self.qcow2(data_file="d", data_file_raw=True))
        for node in ("f", "d"):
            self.qmp.command("blockdev-del", node_name=node)
        with open(path, "rb") as file:
            self.assertEqual(file.read(), disk[: 2 * MIB])
        out = self.path("out.raw")
        for size in (MIB, MIB + 512, 2 * MIB):
            tidemark.img("resize", "-q", "-f", "qcow2", image, str(size))
            tidemark.img("convert", "-f", "qcow2", "-O", "raw", image, out)
            with open(out, "rb") as file:
                self.assertEqual(file.read(), disk[:size])
        tidemark.img("check", "-q", image)

    def test_a_node_that_is_opened_for_it(self):
        with open(self.path("b"), "wb"):
            pass
        self.assertIsNone(self.qcow2(file={"driver": "file", "filename": self.path("b")}))
        self.assertEqual(self.info(self.path("b"))["virtual-size"], MIB)
        self.assertEqual(len(self.qmp.command("query-named-block-nodes")), 1)

    def test_errors_are_those_of_the_job(self):
        version = "compatibility level 1.1 and above (use version=v3 or greater)"
        big = (
            "Could not resize image: offset(9223372036854775296) exceeds "
            "maximum(9223372035781033984)"
        )
        cases = [
            ({"file": "no"}, "Cannot find device='no' nor node-name='no'"),
            ({"size": 1234}, "Image size must be a multiple of 512 bytes"),
            ({"size": 1 << 63}, "Could not resize image: Image size cannot be negative"),
            ({"size": (1 << 63) - 512}, big),
            ({"cluster_size": 1234}, "Cluster size must be a power of two between 512 and 2048k"),
            (
                {"refcount_bits": 7},
                "Refcount width must be a power of two and may not exceed 64 bits",
            ),
            ({"version": "v2", "lazy_refcounts": True}, f"Lazy refcounts only supported with {version}"),
            ({"backing_fmt": "raw"}, "Backing format cannot be used without backing file"),
            ({"data_file_raw": True}, "data-file-raw requires data-file"),
            ({"data_file": "f"}, "The data file can't be the image itself"),
        ]
        for options, error in cases:
            with self.subTest(error):
                self.assertEqual(self.qcow2(**options), error)
        with open(self.file, "rb") as f:
            self.assertEqual(f.read(), b"old" * MIB)

    def test_an_image_in_use_stays(self):
        self.assertIsNone(self.qcow2())
        self.qmp.command("blockdev-add", driver="qcow2", node_name="q", file="f")
        for options in ({}, {"preallocation": "metadata"}):
            error = self.qcow2(size=2 * MIB, **options)
            self.assertIn("Permission conflict on node 'f': permissions 'write, resize'", error)
            self.assertIn("unshared by node 'q' (uses node 'f' as 'file' child)", error)
        self.assertEqual(self.info(self.file)["virtual-size"], MIB)

    def test_nothing_is_left_in_the_graph(self):
        self.qcow2(preallocation="metadata")
        self.qcow2(data_file="f")
        self.qmp.command("blockdev-del", node_name="f")
        self.assertEqual(self.qmp.command("query-named-block-nodes"), [])

    def test_a_deleted_node_while_a_job_is_remembered(self):
        self.qmp.command(
            "blockdev-create", job_id="k", options={"driver": "qcow2", "file": "f", "size": MIB}
        )
        tidemark.wait_until(lambda: self.job("k")["status"] == "concluded", "the job to end")
        self.qmp.command("blockdev-del", node_name="f")
        self.qmp.command("job-dismiss", id="k")


class CommandTest(CreateTest):
    def refused(self, desc, job_id="j", **options):
        with self.assertRaises(QmpError) as caught:
            self.qmp.command("blockdev-create", job_id=job_id, options=options)
        self.assertEqual(caught.exception.desc, desc)

    def test_refused_at_once(self):
        self.refused("Driver does not support blockdev-create", driver="raw")
        self.refused("Driver does not support blockdev-create", driver="null-co")
        # They make files where the name is known by other means.
        self.refused("Driver does not support blockdev-create", driver="host_device")
        self.refused("Driver does not support blockdev-create", driver="ssh")
        self.refused("Parameter 'driver' does not accept value 'no'", driver="no")
        self.refused("Parameter 'options.size' is missing", driver="qcow2", file="f")
        self.refused("Parameter 'options.file' is unexpected", driver="raw", file="f")
        self.refused("Invalid job ID '1'", job_id="1", driver="file", filename="x", size=0)
        self.assertEqual(self.qmp.command("query-jobs"), [])

    def test_no_option_is_lost_on_the_way(self):
        """A member without a row in `option_names` would be accepted, and do nothing."""
        schema = {s["name"]: s for s in self.qmp.command("query-qmp-schema")}
        arguments = schema[schema["blockdev-create"]["arg-type"]]["members"]
        (options,) = (m["type"] for m in arguments if m["name"] == "options")
        with open(COMMANDS, encoding="utf-8") as source:
            known = re.findall(r'^    \{"([\w-]+)", (?:"\w|NULL)', source.read(), re.M)
        known += ["encrypt", "header"]  # taken by functions of their own
        members = {
            (member["name"], variant["case"])
            for variant in schema[options]["variants"]
            for member in schema[variant["type"]]["members"]
        }
        lost = sorted(f"{name} of {driver}" for name, driver in members if name not in known)
        self.assertEqual(lost, [], "no row in option_names of src/qmp/create_commands.c")

    def test_no_block_job(self):
        options = {"driver": "file", "filename": self.path("a"), "size": 0}
        self.qmp.command("blockdev-create", job_id="j", options=options)
        self.refused("Job ID 'j' already in use", **options)
        self.assertEqual(self.qmp.command("query-block-jobs"), [])
        answer = self.qmp.execute("block-job-pause", {"device": "j"})
        self.assertEqual(answer["error"]["class"], "DeviceNotActive")
        self.assertIsNone(self.finish())

    def amend(self, node="q", driver="qcow2"):
        self.qmp.command("x-blockdev-amend", job_id="j", node_name=node, options={"driver": driver})

    def test_amend(self):
        self.add_file("f", "a.qcow2")
        self.assertIsNone(self.qcow2())
        self.qmp.command("blockdev-add", driver="qcow2", node_name="q", file="f")
        self.amend()
        self.assertIsNone(self.finish("amend"))
        for node, driver, desc in (
            ("q", "raw", "x-blockdev-amend doesn't support changing the block driver"),
            ("f", "file", "Driver does not support x-blockdev-amend"),
            ("no", "file", "Cannot find device='' nor node-name='no'"),
        ):
            with self.assertRaises(QmpError) as caught:
                self.amend(node, driver)
            self.assertEqual(caught.exception.desc, desc)
