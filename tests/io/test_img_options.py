# SPDX-License-Identifier: Apache-2.0
"""The grammar of `img`: long and short names of options, and combinations that are refused."""

import json
import os
import re
import subprocess
import unittest

from tidemark import TIDEMARK, TestCase, compat, img, io, qemu_img, run

LONG = {
    "amend": "quiet progress format image-opts cache force options object",
    "bench": "quiet format image-opts cache count buffer-size depth offset step-size aio native write pattern "
    "flush-interval no-drain force-share",
    "bitmap": "format image-opts add granularity remove remove-all clear enable disable merge "
    "source-file source-format object",
    "check": "quiet format image-opts cache force-share output repair object",
    "commit": "quiet progress format image-opts cache drop base rate-limit object",
    "compare": "quiet progress a-format b-format image-opts strict cache force-share object",
    "convert": "quiet progress format image-opts snapshot source-cache target-format target-image-opts "
    "target-format-options compress target-cache backing backing-format no-create target-is-zero sparse-size bitmaps "
    "skip-broken-bitmaps force-share rate-limit parallel copy-range-offloading salvage oob-writes object",
    "create": "quiet format options backing backing-format backing-unsafe object",
    "dd": "format image-opts output-format force-share",
    "info": "format image-opts backing-chain limits cache force-share object output",
    "map": "format image-opts start-offset max-length output force-share object",
    "measure": "target-format size format image-opts snapshot output force-share target-format-options object",
    "rebase": "quiet progress format image-opts cache backing backing-format backing-cache backing-unsafe compress "
    "force-share object",
    "resize": "quiet format image-opts shrink preallocation object",
    "snapshot": "quiet format image-opts force-share object list create apply delete",
}


class Grammar(TestCase):
    def refused(self, message, *arguments):
        result = img(*arguments, check=False)
        self.assertEqual(result.returncode, 1)
        self.assertIn(message, result.stderr)

    def test_object_help_is_printed_by_every_command(self):
        operands = {"compare": 2, "convert": 2, "create": 2, "resize": 2, "bitmap": 2}
        more = {"amend": ("-o", "size=1M"), "bitmap": ("--add",), "rebase": ("-b", "y"), "snapshot": ("-l",)}
        for command, options in LONG.items():
            if "object" not in options.split():
                continue
            files = ("if=x", "of=y") if command == "dd" else ("x", "1M")[: operands.get(command, 1)]
            for value, text in (("help", "List of user creatable objects:\n"), ("secret,help", "secret options:\n")):
                with self.subTest(command=command, value=value):
                    result = img(command, "--object", value, *more.get(command, ()), *files)
                    self.assertTrue(result.stdout.startswith(text), result.stdout)

    def test_object_help_needs_nothing_else(self):
        lists = "List of user creatable objects:\n"
        for name in ("qemu-img info", "qemu-img convert", "qemu-img create", "qemu-io", "qemu-nbd"):
            program, *command = name.split()
            for value, text in (("help", lists), ("?", lists), ("secret,?", "secret options:\n")):
                with self.subTest(name=name, value=value):
                    result = run(compat(program), *command, "--object", value, check=False)
                    self.assertEqual(result.returncode, 0, result.stderr)
                    self.assertTrue(result.stdout.startswith(text), result.stdout)
            # An object before it is made first.
            result = run(
                compat(program), *command, "--object", "secret,id=s", "--object", "help", check=False
            )
            self.assertEqual((result.returncode, result.stdout), (1, ""))

    def test_the_first_help_names_what_programs_look_for(self):
        """Programs take an option that it does not name for one that is not there."""
        text = img("--help").stdout
        for option in ("--object", "--image-opts", "-U"):
            self.assertRegex(text, rf"(?m)^ +{option} ")
        self.assertRegex(text, r"(?m)^Supported formats:.* qcow2 ")
        # What only jobs open is no format for users.
        for format in ("commit_top", "mirror_top", "tidemark-sealed"):
            self.assertNotIn(format, text)
            result = img("info", "-f", format, "null-co://", check=False)
            self.assertEqual(result.returncode, 1)
            self.assertIn(format, result.stderr)

    def test_the_help_of_qemus_name_has_the_syntax_of_each_command_in_one_line(self):
        """Programs search it for "info ... [-U]", and for options of one command."""
        whole = run(compat("qemu-img"), "--help").stdout
        for command, option in (
            ("info", "[-U]"),
            ("compare", "[-U]"),
            ("convert", "[--target-image-opts]"),
            ("bitmap", "[-g SIZE]"),
        ):
            own = run(compat("qemu-img"), command, "--help").stdout
            for text in (whole, own):
                self.assertRegex(text, rf"(?m)\s{command} \[.*{re.escape(option)}")
        self.assertNotIn("[-U]", img("--help").stdout)

    def test_a_list_that_is_none_is_no_request_for_help(self):
        disk, new = self.create("disk.qcow2", "1M"), self.path("new.qcow2")
        for lists in (("backing_file=x,", "help"), (",,", "help"), (",,x=1", "help"), ("help", ",help")):
            words = [word for text in lists for word in ("-o", text)]
            wrong = f"Invalid option list: {lists[0] if lists[0] != 'help' else lists[1]}"
            with self.subTest(lists=lists):
                self.refused(wrong, "create", "-f", "qcow2", *words, new, "1M")
                self.refused(wrong, "convert", "-O", "qcow2", *words, disk, new)
                self.refused(wrong, "amend", "-f", "qcow2", *words, disk)

    def test_long_names(self):
        for command, names in LONG.items():
            text = img(command, "--help").stdout
            for name in names.split():
                with self.subTest(command=command, option=name):
                    self.assertRegex(text, rf"(?m)^ .*--{name}[ =]")

    def test_long_names_mean_the_short_ones(self):
        disk = self.create("disk.qcow2", "4M")
        io(disk, "write -P 1 0 64k", fmt="qcow2")
        copy = self.path("copy.qcow2")
        img("convert", "--source-format", "qcow2", "--target-format", "qcow2", "--target-options", "cluster_size=4k",
            "--compress", "--parallel", "2", disk, copy)
        info = json.loads(qemu_img("info", "--output=json", copy).stdout)
        self.assertEqual(info["cluster-size"], 4096)
        top = self.path("top.qcow2")
        img("create", "--quiet", "--format", "qcow2", "--backing", copy, "--backing-format", "qcow2", top)
        img("compare", "--strict", "--a-format", "qcow2", "--b-format", "qcow2", disk, disk)
        img("snapshot", "--format", "qcow2", "--create", "s", top)
        self.assertIn("s", img("snapshot", "--list", top).stdout)

    def test_names_of_other_versions_are_taken(self):
        """Of QEMU up to 10.0, and since: -F and -B changed places, long names changed."""
        disk = self.create("disk.qcow2", "1M")
        top, copy = self.path("top.qcow2"), self.path("copy.qcow2")
        for letter in ("-B", "-F"):
            img("create", "-q", "-f", "qcow2", "-b", disk, letter, "qcow2", top)
            self.assertIn("backing file format: qcow2", img("info", top).stdout)
            img("rebase", "-f", "qcow2", "-u", "-b", disk, letter, "raw", top)
            self.assertIn("backing file format: raw", img("info", top).stdout)
            img("rebase", "-f", "qcow2", "-u", "-b", disk, letter, "qcow2", top)
        for letter in ("-b", "-B"):
            img("convert", "-O", "qcow2", letter, disk, "-F", "qcow2", disk, copy)
            self.assertIn(f"backing file: {disk}", img("info", copy).stdout)
        img("snapshot", "-f", "qcow2", "-c", "s", disk)
        for fmt, options, snapshot, rate in (
            ("--format", "--target-format-options", "--snapshot", "--rate-limit"),
            ("--source-format", "--target-options", "--source-snapshot", "--rate"),
        ):
            how = (options, "cluster_size=4k", snapshot, "s", rate, "1G")
            img("convert", fmt, "qcow2", "-O", "qcow2", *how, disk, copy)
            self.assertIn("cluster_size: 4096", img("info", copy).stdout)
        for options in ("--options", "--target-format-options"):
            measured = img("measure", "-O", "qcow2", options, "cluster_size=2M", "--size", "1G").stdout
            self.assertIn(f"required size: {10 << 20}", measured)
        img("commit", "-f", "qcow2", "--rate-limit", "1G", top)

    def test_limits(self):
        """Of the format and of what is below, which depend on the cache mode."""
        disk = self.create("disk.qcow2", "1M", options=("-o", "cluster_size=4k"))

        def limits(*options):
            info = json.loads(img("info", "--limits", "--output=json", *options, disk).stdout)
            return info["limits"], info["children"][0]["info"]["limits"]

        top, file = limits()
        names = ("request-alignment", "write-zeroes-alignment", "discard-alignment")
        self.assertEqual([top[name] for name in names], [1, 4096, 4096])
        self.assertEqual(file["request-alignment"], 1)
        self.assertNotIn("max-transfer", file)
        _, direct = limits("-t", "none")
        self.assertGreaterEqual(direct["request-alignment"], 512)
        self.assertGreater(direct["max-transfer"], 0)
        self.assertRegex(img("info", "--limits", disk).stdout, r"\nBlock limits:\n    request alignment: 1\n")
        self.assertNotIn("limits", img("info", disk).stdout)
        self.refused("Invalid cache option: some", "info", "-t", "some", disk)

    def test_options_of_a_node_say_the_format_themselves(self):
        disk = self.create("disk.qcow2", "1M")
        node = f"driver=qcow2,file.filename={disk}"
        for command in (("info",), ("check",), ("map",), ("resize",), ("bitmap", "--add")):
            more = ("2M",) if command[0] == "resize" else ("b",) if command[0] == "bitmap" else ()
            self.refused(
                "--image-opts and --format are mutually exclusive",
                *command, "--image-opts", "-f", "qcow2", node, *more,
            )
        self.refused(
            "mutually exclusive",
            "convert", "-n", "--target-image-opts", "-O", "qcow2", disk, node,
        )

    def test_convert_runs_of_zeroes_up_to_16_mib(self):
        disk = self.create("disk.raw", "1M", "raw")
        img("convert", "-S", "16M", disk, self.path("a"))
        self.refused("multiples of 512 up to 16777216", "convert", "-S", "1000", disk, self.path("a"))
        self.refused("Invalid buffer size", "convert", "-S", "17M", disk, self.path("a"))

    def test_convert_backing_format(self):
        disk = self.create("disk.qcow2", "1M")
        target = self.path("t.qcow2")
        self.refused(
            "Backing format cannot be used without backing file",
            "convert", "-O", "qcow2", "-F", "qcow2", disk, target,
        )
        self.refused(
            "Use of backing file requires explicit backing format",
            "convert", "-O", "qcow2", "-o", f"backing_file={disk}", disk, target,
        )

    def test_convert_looks_for_room_for_bitmaps_before_it_copies(self):
        disk = self.create("disk.qcow2", "1M")
        img("bitmap", "-f", "qcow2", "--add", disk, "b")
        io(disk, "write -P 1 0 64k", fmt="qcow2")
        taken = self.create("taken.qcow2", "1M")
        img("bitmap", "-f", "qcow2", "--add", taken, "b")
        large = self.create("large.qcow2", "2M")
        old = self.create("old.qcow2", "1M", options=("-o", "compat=0.10"))
        for target, why in (
            (taken, "Failed to create bitmap b: Bitmap already exists: b"),
            (large, "another size"),
            (old, "qcow2 v2"),
        ):
            self.refused(why, "convert", "-n", "--bitmaps", "-O", "qcow2", disk, target)
            io(target, "read -P 0 0 1M", fmt="qcow2")

    def test_measure_looks_at_its_options(self):
        disk = self.create("disk.qcow2", "1M")
        img("bitmap", "-f", "qcow2", "--add", disk, "b")
        self.refused("Invalid parameter 'bogus'", "measure", "-O", "qcow2", "-o", "bogus=1", disk)
        self.assertIn("bitmaps size", img("measure", "-O", "qcow2", disk).stdout)
        self.assertNotIn("bitmaps", img("measure", "-O", "qcow2", "-o", "compat=0.10", disk).stdout)

    def test_rebase_shares_the_new_backing_file_only(self):
        base, top = self.create("base.qcow2", "1M"), self.create("top.qcow2", "1M")
        img("rebase", "-U", "-f", "qcow2", "-b", base, "-F", "qcow2", top)
        self.assertIn("backing file: ", img("info", top).stdout)

    def test_refcount_widths_that_there_are_not(self):
        for bits in ("128", "7", "-1"):
            self.refused("Refcount width must be a power of two and may not exceed 64 bits", "create", "-f", "qcow2",
                         "-o", f"refcount_bits={bits}", self.path("new.qcow2"), "1M")

    def test_names_with_colons(self):
        folder = os.path.dirname(self.path("x"))
        img("create", "-f", "qcow2", "file:an:image.qcow2", "1M", cwd=folder)
        self.assertTrue(os.path.exists(self.path("an:image.qcow2")))
        self.assertIn("image: ./an:image.qcow2", img("info", "file:an:image.qcow2", cwd=folder).stdout)


class Refused(TestCase):
    """What is refused, in the words of QEMU's tools, and what is taken that looks odd."""

    def refused(self, message, *arguments):
        result = img(*arguments, check=False)
        self.assertEqual(result.returncode, 1)
        self.assertIn(message, result.stderr)
        return result

    def test_words_of_getopt(self):
        for arguments, message in (
            (("info", "-x", "a"), "invalid option -- 'x'\n"),
            (("info", "-qx", "a"), "invalid option -- 'q'\n"),
            (("info", "--foo", "a"), "unrecognized option '--foo'\n"),
            (("info", "--foo=1", "a"), "unrecognized option '--foo=1'\n"),
            (("info", "--force-share=1", "a"), "option '--force-share' doesn't allow an argument\n"),
            (("info", "-f"), "option requires an argument -- 'f'\n"),
            (("info", "--object"), "option '--object' requires an argument\n"),
        ):
            with self.subTest(arguments=arguments):
                result = self.refused(message, *arguments)
                self.assertRegex(result.stderr, r"(?m)^\S.* info: .*\nTry '.* info --help' for more info$")

    def test_values_are_named(self):
        disk = self.create("disk.qcow2", "1M")
        target = self.path("target")
        for message, *arguments in (
            ("Invalid image size specified: '10x'.", "create", "-f", "qcow2", target, "10x"),
            ("Invalid rate limit specified: 'x'.", "convert", "-r", "x", disk, target),
            ("Invalid number of coroutines specified: 'x'.", "convert", "-m", "x", disk, target),
            ("Invalid number of coroutines specified. Must be between 1 and 16.",
             "convert", "-m", "17", disk, target),
            ("--output expects 'human' or 'json' not 'xml'", "info", "--output=xml", disk),
            ("--repair (-r) expects 'leaks' or 'all' not 'x'", "check", "-r", "x", disk),
            ("Parameter 'preallocation' does not accept value 'x'",
             "create", "-f", "qcow2", "-o", "preallocation=x", target, "1M"),
            ("Parameter 'version' does not accept value '0.42'",
             "create", "-f", "qcow2", "-o", "compat=0.42", target, "1M"),
            ("Parameter 'compression-type' does not accept value 'lz4'",
             "create", "-f", "qcow2", "-o", "compression_type=lz4", target, "1M"),
        ):
            with self.subTest(message=message):
                self.refused(message, *arguments)

    def test_words_that_programs_look_for(self):
        """They tell a limit of the file system, or of the format, from other failures."""
        disk, missing = self.create("disk.raw", "1M", fmt="raw"), self.path("missing/x")
        key = self.path("key")
        with open(key, "wb") as out:
            out.write(b"\xff\x00key")
        no_text = "Data from secret k is not valid UTF-8"
        create = ("create", "--object", f"secret,id=k,file={key}")
        for message, *arguments in (
            ("The image size is too large for file format 'raw'",
             "create", "-f", "raw", self.path("big"), "7E"),
            ("qemu-img: Could not resize file: File too large", "resize", "-f", "raw", disk, "7E"),
            ("Unsupported preallocation mode: metadata",
             "resize", "-f", "raw", "--preallocation=metadata", disk, "2M"),
            ("new: Unsupported preallocation mode: metadata",
             "create", "-f", "raw", "-o", "preallocation=metadata", self.path("new"), "1M"),
            ("vmdk: Unsupported preallocation mode: metadata",
             "create", "-f", "vmdk", "-o", "preallocation=metadata", self.path("vmdk"), "1M"),
            ("Unsupported preallocation mode 'falloc'",
             "create", "-f", "raw", "-o", "preallocation=falloc", "/dev/null", "0"),
            (f"{missing}: error while creating output image: Could not create",
             "dd", f"if={disk}", f"of={missing}"),
            ("x:y: Unknown protocol 'x'\n", "create", "-f", "qcow2", "x:y", "1M"),
            ("x:y: Unknown protocol 'x'\n", "create", "-f", "raw", "x:y", "1M"),
            ("x:y: Unknown protocol 'x'\n", "create", "-f", "vmdk", "x:y", "1M"),
            ("Could not open 'json:{': Could not parse the JSON options: ", "info", "json:{"),
            ("Cannot grow device files", "create", "-f", "raw", "/dev/null", "1M"),
            (no_text, *create, "-f", "luks", "-o", "key-secret=k", self.path("luks"), "1M"),
            (no_text, *create, "-f", "qcow2", "-o", "encrypt.format=luks,encrypt.key-secret=k",
             self.path("qcow2"), "1M"),
        ):
            with self.subTest(message=message):
                result = run(compat("qemu-img"), *arguments, check=False)
                self.assertEqual(result.returncode, 1)
                self.assertIn(message, result.stderr)
                self.assertNotIn("Formatting 'x:y'", result.stdout)
        self.assertFalse(os.path.exists("x:y"), "a file of an unknown protocol was made")
        self.refused("Can't store persistent bitmaps to #block", "bitmap", "--add", "-f", "raw", disk, "b")

    def test_a_reader_that_is_gone_is_no_error_under_qemus_names(self):
        """As with `qemu-img info | grep -q`, where a script checks the status of both."""
        disk = self.create("disk.raw", "1M", fmt="raw")
        for command, expected in (((compat("qemu-img"), "info"), 0), ((TIDEMARK, "img", "info"), 1)):
            reader, writer = os.pipe()
            os.close(reader)
            with self.subTest(command=command):
                status = subprocess.run([*command, disk], stdout=writer, stderr=subprocess.DEVNULL, check=False)
                self.assertEqual(status.returncode, expected)
            os.close(writer)
        closed = run("sh", "-c", '"$0" info "$1" >&-', compat("qemu-img"), disk)
        self.assertEqual(closed.stderr, "")
        full = run("sh", "-c", '"$0" info "$1" >/dev/full', compat("qemu-img"), disk, check=False)
        self.assertEqual((full.returncode, full.stderr), (1, "qemu-img: Could not write to standard output\n"))

    def test_words_of_qemus_tools(self):
        program, raw = [compat("qemu-img")], self.create("a.raw", "1M", fmt="raw")
        top, base = self.path("top.qcow2"), self.path("base.qcow2")
        backing = f"backing_fmt=qcow2,backing_file={base}"
        for words, says in (
            (["amend", "-o", "help"], "qemu-img: Expecting one image file name\n"),
            (
                ["convert", "-f", "raw", "-O", "qcow2", "-o", backing, raw, top],
                f"qemu-img: Could not open '{top}': Could not open backing file: "
                f"Could not open '{base}': No such file or directory\n",
            ),
            (
                ["info", "-f", "vpc", os.devnull],
                "qemu-img: Could not open '/dev/null': File too small for a VHD header\n",
            ),
        ):
            result = run(*program, *words, check=False)
            self.assertEqual((result.returncode, result.stderr), (1, says))
        listed = run(*program, "create", "-f", "raw", "-o", "help").stdout.split("\n\n")[0]
        self.assertEqual(
            listed, "Supported raw options:\n  size=<size>            - Virtual disk size"
        )
        self.assertIn("preallocation", run(*program, "create", "-f", "raw", "-o", "help", raw).stdout)

    def test_a_backing_file_and_its_format_come_together(self):
        target = self.path("target")
        self.refused("Backing format cannot be used without backing file",
                     "create", "-f", "qcow2", "-F", "qcow2", target, "1M")
        self.refused("Backing file specified without backing format",
                     "create", "-f", "qcow2", "-u", "-b", "later", target, "1M")
        self.assertFalse(os.path.exists(target))

    def test_a_data_file_is_another_file(self):
        target = self.path("target")
        self.refused("data file can't be the image itself",
                     "create", "-f", "qcow2", "-o", f"data_file={target}", target, "1M")
        self.assertFalse(os.path.exists(target))

    def test_what_convert_can_not_do_together(self):
        disk = self.create("disk.qcow2", "1M")
        target = self.path("target")
        self.refused("Compression and preallocation not supported at the same time",
                     "convert", "-c", "-O", "qcow2", "-o", "preallocation=full", disk, target)
        self.refused("Cannot use copy offloading in salvaging mode", "convert", "-C", "--salvage", disk, target)
        self.refused("Having a backing file for the target makes no sense when concatenating multiple input images",
                     "convert", "-B", disk, "-O", "qcow2", disk, disk, target)
        self.assertFalse(os.path.exists(target))

    def test_zero_is_no_limit(self):
        disk = self.create("disk.qcow2", "1M")
        top = self.path("top.qcow2")
        img("create", "-q", "-f", "qcow2", "-b", disk, "-F", "qcow2", top)
        io(top, "write -P 1 0 64k", fmt="qcow2")
        img("convert", "-r", "0", "-O", "qcow2", top, self.path("copy"))
        img("compare", top, self.path("copy"))
        img("commit", "-f", "qcow2", "-r", "0", top)
        img("bitmap", "--add", "-f", "qcow2", "-g", "0", disk, "b")
        info = json.loads(img("info", "--output=json", disk).stdout)
        self.assertEqual(info["format-specific"]["data"]["bitmaps"][0]["granularity"], 65536)

    def test_options_of_the_file_below(self):
        for fmt in ("raw", "qcow2"):
            disk = self.path(fmt)
            img("create", "-f", fmt, "-o", "nocow=on,extent_size_hint=1M", disk, "1M")
            self.assertEqual(json.loads(img("info", "--output=json", disk).stdout)["format"], fmt)
            self.refused("is too large", "create", "-f", fmt, "-o", "extent_size_hint=8G", disk, "1M")

    def test_formats_without_preallocation_take_the_modes_of_files(self):
        for fmt in ("vdi", "vhdx", "vmdk", "vpc"):
            for mode in ("off", "falloc", "full"):
                with self.subTest(format=fmt, mode=mode):
                    disk = self.path(f"{fmt}-{mode}")
                    img("create", "-f", fmt, "-o", f"preallocation={mode}", disk, "4M")
                    self.assertLess(os.stat(disk).st_blocks * 512, 4 << 20)
                    self.refused("does not accept value 'x'", "create", "-f", fmt, "-o", "preallocation=x",
                                 disk, "4M")

    def test_an_empty_backing_name_is_none(self):
        top = self.path("top.qcow2")
        img("create", "-q", "-u", "-f", "qcow2", "-b", "missing", "-F", "raw", top, "1M")
        node = f"driver=qcow2,file.filename={top},backing="
        result = img("map", "--output=json", "--image-opts", node)
        self.assertEqual(json.loads(result.stdout)[0]["length"], 1 << 20)
        self.assertIn('Use of "backing": "" is deprecated', result.stderr)

    def test_dd_tells_of_a_skip_beyond_the_end(self):
        disk = self.create("disk.raw", "1M", "raw")
        result = img("dd", "-f", "raw", "bs=1M", "skip=2", f"if={disk}", f"of={self.path('out')}")
        self.assertIn("cannot skip to specified offset", result.stderr)
        self.assertEqual(os.path.getsize(self.path("out")), 0)

    def test_strict_compare_tells_zero_clusters_from_nothing(self):
        one, two = self.create("one.qcow2", "4M"), self.create("two.qcow2", "4M")
        for disk in (one, two):
            io(disk, "write -P 1 3M 1M", fmt="qcow2")
        img("compare", "-s", one, two)
        io(two, "write -z 1M 1M", fmt="qcow2")
        img("compare", one, two)
        result = img("compare", "-s", one, two, check=False)
        self.assertEqual((result.returncode, result.stdout),
                         (1, "Strict mode: Offset 1048576 block status mismatch!\n"))


class Circles(TestCase):
    def test_images_that_refer_to_each_other(self):
        one, two = self.create("one.qcow2", "1M"), self.create("two.qcow2", "1M")
        img("rebase", "-u", "-f", "qcow2", "-b", two, "-F", "qcow2", one)
        img("rebase", "-u", "-f", "qcow2", "-b", one, "-F", "qcow2", two)
        out = self.path("out.raw")
        for command in (
            ("map", one),
            ("convert", one, out),
            ("compare", one, two),
            ("measure", one),
            ("snapshot", "-l", one),
            ("commit", "-f", "qcow2", one),
        ):
            result = img(*command, check=False)
            self.assertIn(result.returncode, (1, 2), command)
            self.assertRegex(result.stderr, "circle|infinite loop|lock")
        self.assertIn("infinite loop", img("info", "--backing-chain", one, check=False).stderr)
        # These look at the one image alone.
        img("check", one)
        img("bitmap", "-f", "qcow2", "--add", one, "b")
        # The way out.
        img("rebase", "-u", "-f", "qcow2", "-b", "", two)
        img("map", one)

    def test_a_long_chain_is_none(self):
        below = self.create("0.qcow2", "1M")
        for number in range(1, 100):
            image = self.path(f"{number}.qcow2")
            img("create", "-q", "-u", "-f", "qcow2", "-b", below, "-F", "qcow2", image, "1M")
            below = image
        img("map", below)


class Preallocation(TestCase):
    def unwritten(self, image):
        """Bytes of its file that are a hole for who looks for data."""
        holes, at, size = 0, 0, os.stat(image).st_size
        with open(image, "rb") as file:
            while at < size:
                hole = os.lseek(file.fileno(), at, os.SEEK_HOLE)
                try:
                    at = os.lseek(file.fileno(), hole, os.SEEK_DATA)
                except OSError:
                    at = size
                holes += at - hole
        return holes

    def test_full_is_written(self):
        made = self.create("made.qcow2", "4M", options=("-o", "preallocation=full"))
        grown = self.create("grown.qcow2", "1M")
        img("resize", "-f", "qcow2", "--preallocation=full", grown, "5M")
        for image in (made, grown):
            self.assertLess(self.unwritten(image), 1 << 20)
            qemu_img("check", image)

    def test_over_a_backing_file(self):
        """Half of the first new cluster is data of the backing file that must not show."""
        base = self.create("base.raw", "128k", "raw")
        io(base, "write -P 1 0 128k", fmt="raw")
        for mode in ("metadata", "falloc", "full"):
            top = self.path(f"{mode}.qcow2")
            img("create", "-q", "-f", "qcow2", "-b", base, "-F", "raw", top, "31k")
            img("resize", "-f", "qcow2", f"--preallocation={mode}", top, "128k")
            io(top, "read -P 1 0 31k", "read -P 0 31k 97k", fmt="qcow2")
            self.assertEqual(os.stat(top).st_size, 7 * 65536)
            extents = json.loads(qemu_img("map", "--output=json", top).stdout)
            self.assertTrue(all(e["depth"] == 0 and "offset" in e for e in extents), extents)
            qemu_img("check", top)


if __name__ == "__main__":
    unittest.main()
