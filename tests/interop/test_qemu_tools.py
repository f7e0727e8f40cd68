# SPDX-License-Identifier: Apache-2.0
"""Command lines and short dialogues: our programs, under QEMU's names, do what QEMU's do."""

import json
import os
import subprocess

from tidemark import TIMEOUT, Daemon, Process, TestCase, compat, img, qemu, run, tool, wait_until


class BothTest(TestCase):
    """Each case is done by both, each in a folder of its own."""

    def setUp(self):
        super().setUp()
        self.program = None

    def img(self, *words, **more):
        return run(self.program("qemu-img"), *words, **more)

    def agree(self, case):
        """What `case` returns is the same with QEMU's programs and with ours."""
        results = []
        for self.program in qemu, compat:
            run("rm", "-rf", self.path("work"))
            run("mkdir", self.path("work"))
            results.append(case())
        self.assertEqual(results[1], results[0])
        return results[0]

    def outcome(self, *words):
        result = self.img(*words, check=False, cwd=self.path("work"))
        return words, result.returncode, result.stdout, result.stderr

    def agree_on(self, *commands):
        """Returns for each command: the words, the exit status, and what it prints."""
        return self.agree(lambda: [self.outcome(*words) for words in commands])


class OrderOfBitmapsTest(BothTest):
    def names_in_image(self, image):
        info = json.loads(self.img("info", "--output=json", image).stdout)
        return [b["name"] for b in info["format-specific"]["data"]["bitmaps"]]

    def session(self, image, added, removed=()):
        """Names that queries list after bitmaps were removed, and then added."""
        server = Daemon(
            self.path("work"),
            "--blockdev",
            f"driver=qcow2,node-name=disk,file.driver=file,file.filename={image}",
            program=[self.program("qemu-storage-daemon")],
        )
        for name in removed:
            server.qmp.command("block-dirty-bitmap-remove", node="disk", name=name)
        for name, persistent in added:
            server.qmp.command(
                "block-dirty-bitmap-add", node="disk", name=name, persistent=persistent
            )
        names = [b["name"] for b in server.qmp.node("disk").get("dirty-bitmaps", [])]
        server.quit()
        return names

    def case(self):
        image, copy = self.path("work/disk.qcow2"), self.path("work/copy.qcow2")
        self.img("create", "-q", "-f", "qcow2", image, "1M")
        seen = []
        for name in "a", "b":
            self.img("bitmap", "--add", image, name)
        seen.append(self.session(image, [("p0", True), ("t", False), ("p1", True)]))
        seen.append(self.names_in_image(image))
        seen.append(self.session(image, [("p1", True), ("p2", True)], removed=["p1"]))
        seen.append(self.names_in_image(image))
        self.img("convert", "--bitmaps", "-O", "qcow2", image, copy)
        seen.append(self.names_in_image(copy))
        return seen

    def test_queries_list_the_newest_first_and_images_those_of_each_session(self):
        seen = self.agree(self.case)
        self.assertEqual(seen[0], ["p1", "t", "p0", "b", "a"])
        self.assertEqual(seen[1], ["a", "b", "p1", "p0"])


class ImageInUseTest(BothTest):
    """The backing file is open for writing in another program."""

    def in_use(self, image):
        process = Process(
            [*tool("io"), "-f", "qcow2", "-c", "write 0 64k", "-c", "sleep 100000", image],
            self.path("io.log"),
        )
        self.addCleanup(process.kill)
        wait_until(lambda: "wrote" in process.log(), "the other program")

    def setUp(self):
        super().setUp()
        self.base = self.create("base.qcow2", "1M")
        self.over = self.create("over.qcow2", "1M", options=("-b", self.base, "-F", "qcow2"))
        self.in_use(self.base)

    def test_an_overlay_is_made(self):
        over = ("create", "-f", "qcow2", "-b", self.base, "-F", "qcow2", "over.qcow2")
        for outcome in self.agree_on(over, (*over, "2M"), ("map", "-U", "over.qcow2")):
            self.assertEqual(outcome[1], 0, outcome)

    def test_bitmaps_of_the_overlay_change(self):
        def case():
            outcome = self.outcome("bitmap", "--add", self.over, "b")
            self.img("bitmap", "--remove", self.over, "b", check=False)
            return outcome

        self.assertEqual(self.agree(case)[1], 0)


class OptionsTest(BothTest):
    def test_a_filename_among_options_is_a_path(self):
        """Nothing in it is a scheme."""
        img("create", "-q", "-f", "raw", self.path("disk.raw"), "1M")
        for outcome in self.agree_on(
            ("info", "--image-opts", f"file.filename=file:{self.path('disk.raw')}"),
            ("info", "--image-opts", "driver=qcow2,file.filename=nbd:unix:/none"),
            ("info", 'json:{"driver": "raw", "file": {"filename": "nbd+unix:///?socket=none"}}'),
        ):
            self.assertIn("No such file or directory", outcome[3])

    def test_what_options_lack_or_may_not_have(self):
        disk = self.path("disk.raw")
        img("create", "-q", "-f", "raw", disk, "1M")
        for outcome in self.agree_on(
            ("info", "--image-opts", "foo=bar"),
            ("info", "--image-opts", f"filename={disk}"),
            ("info", f'json:{{"filename": "{disk}"}}'),
            ("map", "--image-opts", f"driver=raw,file.filename={disk},backing=x"),
            ("map", "--image-opts", f"driver=raw,file.filename={disk},backing.file.filename=x"),
            ("map", "--image-opts", f"driver=file,filename={disk},backing.driver=raw"),
        ):
            self.assertEqual(outcome[1], 1, outcome)
        for outcome in self.agree_on(
            ("map", f'json:{{"driver": "raw", "file": {{"driver": "file", "filename": "{disk}"}}, '
                    '"backing": null}'),
        ):  # fmt: skip
            self.assertEqual(outcome[1], 0, outcome)


class WordsTest(BothTest):
    """Which of several mistakes is named, and how."""

    def setUp(self):
        super().setUp()
        self.disk = self.create("disk.qcow2", "1M")

    def test_sizes_are_looked_at_before_the_image(self):
        for size in "1x", "", "+", "-", "1e3":
            for outcome in self.agree_on(("resize", "-f", "raw", "none.raw", size)):
                self.assertIn("Parameter 'size' expects a non-negative number", outcome[3])

    def test_a_bitmap_command_without_an_action(self):
        for outcome in self.agree_on(("bitmap",), ("bitmap", self.disk), ("bitmap", self.disk, "b")):
            self.assertIn("Need at least one of --add", outcome[3])

    def test_a_base_that_is_not_in_the_chain(self):
        self.agree_on(
            ("commit", "-f", "qcow2", "-b", "none", self.disk), ("commit", "-f", "qcow2", self.disk)
        )

    def test_an_unknown_form_of_output_leads_to_the_help(self):
        for command in "info", "map", "check", "measure":
            result = run(compat("qemu-img"), command, "--output=foo", self.disk, check=False)
            self.assertEqual(
                result.stderr,
                "qemu-img: --output expects 'human' or 'json' not 'foo'\n"
                f"Try 'qemu-img {command} --help' for more info\n",
            )

    def test_no_open_file_comes_before_wrong_arguments(self):
        words = ("-f", "qcow2", "-c", "close", "-c", "write 0", "-c", "length 1")
        theirs, ours = (run(f("qemu-io"), *words, self.disk, check=False) for f in (qemu, compat))
        self.assertEqual(
            (ours.returncode, ours.stdout, ours.stderr),
            (theirs.returncode, theirs.stdout, theirs.stderr),
        )

    def test_copy_on_read_is_not_the_format(self):
        words = ("-C", "-f", "qcow2", "-c", "info", self.disk)
        theirs, ours = (run(f("qemu-io"), *words) for f in (qemu, compat))
        self.assertEqual(ours.stdout.splitlines()[:3], theirs.stdout.splitlines()[:3])


class DaemonOptionsTest(BothTest):
    def started_with(self, *words):
        """Exit status and messages of a daemon that ends as soon as it runs."""
        asks = "".join(json.dumps({"execute": c}) + "\n" for c in ("qmp_capabilities", "quit"))
        result = subprocess.run(
            [self.program("qemu-storage-daemon"), *words, "--chardev", "stdio,id=m",
             "--monitor", "m"],
            input=asks, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
            timeout=TIMEOUT, check=False)  # fmt: skip
        return result.returncode, os.path.basename(result.stderr)

    def test_integers_have_no_suffix(self):
        disk = self.create("disk.qcow2", "1M")
        image = f"driver=qcow2,node-name=n,file.driver=file,file.filename={disk}"
        for options, is_taken in (
            ("driver=null-co,node-name=n,size=1M", False),
            ("driver=null-co,node-name=n,size=0x100000", True),
            ("driver=null-co,node-name=n,latency-ns=1k", False),
            (f"{image},l2-cache-size=1M", False),
            (f"{image},l2-cache-size=1048576", True),
        ):
            status, message = self.agree(lambda o=options: self.started_with("--blockdev", o))
            self.assertEqual(status == 0, is_taken, message)
        # Under our own name sizes are sizes.
        server = self.daemon("--blockdev", "driver=null-co,node-name=n,size=1M")
        self.assertEqual(server.qmp.node("n")["image"]["virtual-size"], 1 << 20)

    def test_a_buffer_of_a_monitor_has_a_size(self):
        for program in qemu, compat:
            self.program = program
            status, message = self.started_with("--chardev", "ringbuf,id=r,size=64k")
            self.assertEqual((status, message), (0, ""))
