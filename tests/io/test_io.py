# SPDX-License-Identifier: Apache-2.0
"""tidemark io and qemu-io: the same commands print the same, figures of time aside."""

import os
import re
import unittest

from tidemark import TestCase, compat, img, io, qemu, qemu_img, run, tool

SPEED = re.compile(r"ops; .* \(.*/sec and .* ops/sec\)")
MACHINE = re.compile(r"^(\d+,1),.*$", re.MULTILINE)


# Since QEMU 8.1 the commands have -r, too.
REGISTERED = re.compile(r"^(\w+ \[-\w*?)r(\w*\])", re.MULTILINE)


def normalise(text):
    return REGISTERED.sub(r"\1\2", MACHINE.sub(r"\1", SPEED.sub("ops", text)))


class SameAsQemu(TestCase):
    fmt = "raw"

    def both(self, *commands, options=()):
        """Run the commands with both programs, each on an image of its own; what ours printed."""
        results = []
        for tool, name in ((compat("qemu-io"), "a.img"), (qemu("qemu-io"), "b.img")):
            path = self.create(name, "8M", self.fmt)
            words = [word for command in commands for word in ("-c", command)]
            result = run(tool, "-f", self.fmt, *options, *words, path, check=False)
            out = normalise(result.stdout).replace(path, "IMAGE")
            err = result.stderr.replace(path, "IMAGE")
            results.append((result.returncode, out, err))
        self.assertEqual(results[0], results[1])
        return results[0]

    def test_write_and_read(self):
        status, out, _ = self.both(
            "write -P 5 0 64k", "read -P 5 0 64k", "read -P 0 64k 64k", "write 1 511", "read 1 511"
        )
        self.assertEqual(status, 0)
        self.assertIn("read 65536/65536 bytes at offset 65536", out)

    def test_sizes_are_written_as_qemu_io_writes_them(self):
        self.both("write 0 5632", "write 0 1", "write 0 1M", "write 0 1234567", "length")

    def test_failed_verification(self):
        status, out, _ = self.both("write -P 5 0 64k", "read -P 6 1k 512", "read -P 5 0 1k")
        self.assertEqual(status, 1)
        self.assertIn("Pattern verification failed at offset 1024, 512 bytes", out)

    def test_verification_of_a_part(self):
        self.both("write -P 5 512 512", "read -P 5 -s 512 -l 512 0 2k", "read -P 0 -l 512 0 2k")
        self.assertEqual(self.both("read -s 600 -P 0 0 512")[0], 1)
        self.assertEqual(self.both("read -l 5 0 1k")[0], 1)

    def test_dump(self):
        self.both("write -P 0x41 0 8", "write -P 0x7e 8 8", "read -v 0 16", "read -v 5 40")

    def test_quiet_and_machine_readable(self):
        self.both("write -q 0 4k", "read -C 0 4k", "read -qv 0 16", "discard -C 0 64k")

    def test_vectors(self):
        self.both(
            "writev -P 3 0 512 1k 4k", "readv -P 3 0 16 5616", "readv -v 8 8 16", "writev 0 1 2"
        )

    def test_zeroes_and_discard(self):
        self.both("write -P 1 0 1M", "write -z 64k 128k", "read -P 0 64k 128k", "write -z -u 0 64k",
                  "read -P 0 0 64k", "discard 512k 64k", "flush")  # fmt: skip

    def test_asynchronous_requests(self):
        status, out, _ = self.both("aio_write -P 1 0 64k", "aio_flush", "aio_read -P 1 0 64k",
                                   "aio_flush", "aio_write -z 0 4k", "aio_flush",
                                   "read -P 0 0 4k")  # fmt: skip
        self.assertEqual(status, 0)
        self.assertEqual(out.count("wrote 65536/65536"), 1)

    def test_beyond_the_end(self):
        for command in ("read 8M 1k", "write 8M 1k", "read 8388607 2", "readv 8M 512",
                        "discard 9M 1k", "write -z 8M 64k"):  # fmt: skip
            self.assertEqual(self.both(command)[0], 1, command)
        self.both("aio_read 8M 64k", "aio_flush", "aio_write 8M 64k", "aio_flush")

    def test_wrong_arguments(self):
        for command in ("read 0", "read abc 1", "read 0 -1", "read -P 256 0 1", "read 0 1 2",
                        "write -z -P 1 0 1k", "write -n 0 1k", "write -u 0 1k", "read 0 3G",
                        "write -x 0 1", "nonsense", "alloc", "length 1", "sleep x",
                        "truncate abc", "aio_write -z 0 1k 1k", "help nonsense",
                        "write -s /nonexistent 0 1k", "open IMAGE", "write -c 1 512",
                        "write 0 99999999999999999999", "readv 0 3G 512", "readv 0 1G 1G 1G",
                        "aio_read 0 512 3G", "aio_write 0 2147483136 512", "sigraise x"):  # fmt: skip
            self.assertEqual(self.both(command)[0], 1, command)

    def test_allocation(self):
        self.both("write 64k 64k", "write 1M 1M", "alloc 0 8M", "alloc 64k", "alloc 9M", "map")

    def test_truncate_and_length(self):
        self.both("length", "truncate 12M", "length", "read -P 0 8M 4M")

    def test_image_commands(self):
        self.both("close", "length", "close")
        self.both("reopen -r", "write 0 1k", "reopen -w", "write 0 1k")
        self.both("sleep 5", "write 0 1k", "quit", "read 0 1k")
        self.both("write 0 1k", options=("-r",))

    def test_info(self):
        self.both("info")

    def test_from_standard_input(self):
        outputs = []
        text = "write -P 2 0 1k\n\nread -P 2 0 1k\nlength\nquit\nlength\n"
        for tool, name in ((compat("qemu-io"), "a.img"), (qemu("qemu-io"), "b.img")):
            path = self.create(name, "8M", self.fmt)
            result = run(tool, "-f", self.fmt, path, stdin=None, input=text)
            outputs.append(normalise(result.stdout))
        self.assertEqual(outputs[0], outputs[1])


class SameAsQemuQcow2(SameAsQemu):
    fmt = "qcow2"

    def test_info_of_extended_entries(self):
        path = self.create("a.qcow2", "1M", "qcow2", ("-o", "extended_l2=on"))
        tools = (compat("qemu-io"), qemu("qemu-io"))
        infos = [run(tool, "-r", "-f", "qcow2", "-c", "info", path).stdout for tool in tools]
        self.assertIn("vm state offset: 256 MiB\n", infos[0])
        self.assertEqual(infos[0], infos[1])

    def test_compressed(self):
        self.both("write -c -P 1 0 64k", "read -P 1 0 64k", "write -P 2 512 512", "read -P 1 0 512")


class OfOurOwn(TestCase):
    def test_format_is_not_guessed_for_writing(self):
        path = self.create("a.raw", "1M", "raw")
        result = io(path, "write 0 512", check=False)
        self.assertEqual(result.returncode, 1)
        self.assertIn("format", result.stderr)
        self.assertIn(path, result.stderr)
        io(path, "read 0 512", options=("-r",))

    def test_a_missing_image_is_named(self):
        result = io(self.path("gone"), "length", fmt="raw", check=False)
        self.assertEqual(result.returncode, 1)
        self.assertIn(self.path("gone"), result.stderr)

    def test_a_file_whose_size_is_not_known_is_no_empty_disk(self):
        copy = self.path("copy")
        for command in (("info", "/proc/version"), ("convert", "-O", "raw", "/proc/version", copy)):
            result = img(*command, check=False)
            self.assertEqual(result.returncode, 1)
            self.assertIn("Could not get the size of '/proc/version'", result.stderr)
        self.assertFalse(os.path.exists(copy))

    def test_sizes_of_the_qcow2_caches(self):
        disk = self.create("disk.qcow2", "1M")
        both = "l2-cache-size=1M,refcount-cache-size=256k"

        def open_with(sizes, **more):
            options = f"driver=qcow2,file.filename={disk},{sizes}"
            commands = ("write -P 1 0 64k", "read -P 1 0 64k")
            return io(options, *commands, options=("--image-opts",), **more)

        for sizes in ("cache-size=0", "cache-size=2M,l2-cache-size=2M", both):
            open_with(sizes)
        for sizes, complaint in (
            (f"cache-size=1280k,{both}", "may not be set at the same time"),
            ("cache-size=1M,l2-cache-size=2M", "l2-cache-size may not exceed cache-size"),
            ("cache-size=1M,refcount-cache-size=2M", "refcount-cache-size may not exceed"),
        ):
            self.assertIn(complaint, open_with(sizes, check=False).stderr)

    def test_open_takes_options_as_the_command_line_does(self):
        path = self.create("a.raw", "1M", "raw")
        for program in (compat("qemu-io"), qemu("qemu-io")):
            node = f"driver=raw,file.driver=file,file.filename={path}"
            result = run(program, "--image-opts", "-c", f"open {node}", "-c", "length")
            self.assertIn("1 MiB", result.stdout)
            result = run(program, "--image-opts", "-c", f"open -o {node}", check=False)
            self.assertIn("--image-opts and 'open -o' are mutually exclusive", result.stdout + result.stderr)

    def test_many_requests_in_flight(self):
        path = self.create("a.raw", "8M", "raw")
        writes = [f"aio_write -q -P {i} {i * 64}k 64k" for i in range(1, 101)]
        reads = [f"read -q -P {i} {i * 64}k 64k" for i in range(1, 101)]
        io(path, *writes, "aio_flush", *reads, fmt="raw")

    def test_a_temporary_overlay_leaves_the_image_alone(self):
        for fmt in ("raw", "qcow2"):
            path = self.create("a." + fmt, "8M", fmt)
            commands = ("write -P 1 0 64k", "read -P 1 0 64k", "read -P 0 64k 64k")
            io(path, *commands, fmt=fmt, options=("-s",), env={**os.environ, "TMPDIR": self.dir})
            io(path, "read -P 0 0 8M", fmt=fmt)
            self.assertEqual(os.listdir(self.dir), ["a." + fmt])
            os.unlink(path)

    def test_a_format_may_be_named_below_a_protocol_filter(self):
        path = self.create("a.qcow2", "8M")
        opened = f"open -o driver=blkdebug,image.driver=qcow2 blkdebug::{path}"
        out = run(*tool("io"), "-c", opened, "-c", "write -P 3 0 64k", "-c", "length").stdout
        self.assertIn("8 MiB\n", out)
        io(path, "read -P 3 0 64k", fmt="qcow2")

    def test_compressed_where_nothing_is_compressed(self):
        path = self.create("a.raw", "1M", "raw")
        result = io(path, "write -c 0 64k", fmt="raw", check=False)
        self.assertEqual(result.returncode, 1)
        self.assertIn("write failed: Operation not supported", result.stdout + result.stderr)
        io(path, "read -P 0 0 64k", fmt="raw")

    def test_ways_to_do_io(self):
        path = self.create("a.raw", "1M", "raw")
        need = "aio=native was specified, but it requires cache.direct=on"
        for options, message in (
            (("-i", "bogus"), "Invalid aio option: bogus"),
            (("-i", "native"), need),
            (("-k",), need),
        ):
            result = io(path, "length", fmt="raw", options=options, check=False)
            self.assertEqual(result.returncode, 1)
            self.assertIn(message, result.stderr)
        for options in (("-k", "-n"), ("-i", "native", "-t", "directsync"), ("-i", "threads"), ("-i", "io_uring")):
            io(path, "write 0 4k", fmt="raw", options=options)
        node = f"driver=raw,file.driver=file,file.aio=native,file.filename={path}"
        result = run(*tool("io"), "--image-opts", "-c", "length", node, check=False)
        self.assertIn(need, result.stderr)
        run(*tool("io"), "--image-opts", "-c", "length", node + ",file.cache.direct=on")
        result = run(*tool("io"), "-c", f"open -k {path}", "-c", "length", check=False)
        self.assertIn(need, result.stderr)
        result = run(*tool("img"), "bench", "-i", "bogus", "-f", "raw", path, check=False)
        self.assertIn("Invalid aio option: bogus", result.stderr)
        result = run(*tool("img"), "bench", "-n", "-f", "raw", "-c", "1", path, check=False)
        self.assertIn(need, result.stderr)
        run(*tool("img"), "bench", "-n", "-t", "none", "-f", "raw", "-c", "1", path)

    def test_what_a_reopen_cannot_change(self):
        base, top = self.create("base.qcow2", "1M"), self.path("top.qcow2")
        run(*tool("img"), "create", "-q", "-f", "qcow2", "-b", base, "-F", "qcow2", top)
        for name, values in (("node-name", ("foo",) * 3), ("driver", ("raw", "qcow2", "file"))):
            for node, value in zip(("", "file.", "backing."), values):
                command = f"reopen -o {node}{name}={value}"
                result = io(top, command, fmt="qcow2", check=False)
                self.assertEqual(result.returncode, 1, command)
                self.assertIn(f"Cannot change the option '{name}'", result.stderr)
        for node, value in (("file.", base), ("backing.file.", top)):
            result = io(top, f"reopen -o {node}filename={value}", fmt="qcow2", check=False)
            self.assertIn("Cannot change the option 'filename'", result.stderr)
        io(top, f"reopen -o file.filename={top}", "write -P 1 0 4k", fmt="qcow2")
        result = io(top, 'reopen -o {"driver":null}', fmt="qcow2", check=False)
        self.assertIn("Cannot change the option 'driver'", result.stderr)
        for same in ("driver=qcow2", "file.driver=file", "backing.driver=qcow2"):
            io(top, f"reopen -o {same}", "write -P 1 0 4k", fmt="qcow2")
        named = f"open -o node-name=foo,driver=qcow2 {top}"
        run(*tool("io"), "-c", named, "-c", "reopen -o node-name=foo", "-c", "length")
        for node in ("", "file.", "backing."):
            opened = f"open -o driver=qcow2,{node}node-name=foo {top}"
            for again in ("reopen", f"reopen -o {node}node-name=foo", "reopen -r"):
                run(*tool("io"), "-c", opened, "-c", again, "-c", "read -P 1 0 4k")

    def test_an_image_in_a_part_of_a_file_stays_in_it(self):
        """What it has no room for fails, also bitmaps that are stored when it is closed; what lies
        behind is not written over.
        """
        path = self.create("a.qcow2", "8M")
        run(*tool("img"), "bitmap", "-f", "qcow2", "--add", "-g", "512", path, "b")
        with open(path, "r+b") as f:
            f.truncate(2 << 20)
            f.seek(2 << 20)
            f.write(b"other" * 100000)
        part = f"driver=qcow2,file.driver=raw,file.size=2M,file.file.driver=file,file.file.filename={path}"
        for command in ("write 0 4M", "write -z 0 4M", "write -c 0 4M"):
            io(part, command, options=("--image-opts",), check=False)
            with open(path, "rb") as f:
                f.seek(2 << 20)
                self.assertEqual(f.read(), b"other" * 100000, command)
        result = io(part, "write 0 1M", "write 1M 1M", options=("--image-opts",), check=False)
        self.assertEqual(result.returncode, 1)
        self.assertIn("No space left on device", result.stdout + result.stderr)

    def test_bitmaps_without_room_for_their_bits_are_stored_as_more_than_that(self):
        path = self.create("a.qcow2", "8M")
        for number in range(10):
            run(*tool("img"), "bitmap", "-f", "qcow2", "--add", path, f"b{number}")
        # room for a table of the second level and the data
        size = (os.path.getsize(path) + 0x3FFFF) & ~0xFFFF
        os.truncate(path, size)
        part = f"driver=qcow2,file.driver=raw,file.size={size},file.file.driver=file,file.file.filename={path}"
        result = io(part, "write 0 64k", options=("--image-opts",))
        self.assertIn("wrote 65536/65536", result.stdout)
        self.assertIn("no space to store bitmap 'b9' exactly: 8323072 bytes are stored as dirty", result.stderr)
        self.assertNotIn("in-use", run(*tool("img"), "info", path).stdout)
        run(*tool("img"), "check", "-f", "qcow2", path)

    def test_options_are_called_by_their_full_names(self):
        path = self.create("a.qcow2", "1M")
        for name in ("read-only", "cache.direct", "cache.no-flush"):
            result = io(path, f"reopen -o {name}=foo", fmt="qcow2", check=False)
            self.assertIn(f"Parameter '{name}' expects 'on' or 'off'", result.stderr)

    def test_options_of_a_backing_file_that_is_not_there(self):
        path = self.create("a.qcow2", "1M")
        result = run(*tool("io"), "-c", f"open -o driver=qcow2,backing.node-name=foo {path}", check=False)
        self.assertEqual(result.returncode, 1)
        self.assertIn("Parameter 'driver' is missing", result.stderr)

    def test_options_of_open_go_before_those_of_the_name(self):
        path = self.create("a.qcow2", "1M")
        for inner in ("", "'driver':'raw',"):
            name = f"json:{{{inner}'file':{{'driver':'file','filename':'{path}'}}}}"
            out = run(*tool("io"), "-c", f"open -o driver=qcow2 {name}", "-c", "info").stdout
            self.assertIn("format name: qcow2\n", out)

    def test_info_of_what_is_no_file(self):
        node = "json:{'driver': 'null-co', 'size': 65536}"
        self.assertEqual(run(*tool("io"), "-c", "info", node).stdout, "format name: null-co\n" * 2)

    def test_invalid_requests_are_told(self):
        path = self.create("a.raw", "1M", "raw")
        out = io(path, "aio_read -i 0 1k", "aio_write -i 0 1k", fmt="raw").stdout
        self.assertEqual(out, "injecting invalid read request\ninjecting invalid write request\n")

    def test_a_death_leaves_bitmaps_in_use(self):
        """As of a program that writes. What can't be copied is then reported as by qemu-img."""
        for death in ("abort", "sigraise 9"):
            path = self.create("a.qcow2", "1M")
            for name in ("b0", "b1", "b2"):
                img("bitmap", "--add", "-f", "qcow2", path, name)
            img("bitmap", "--disable", "-f", "qcow2", path, "b0")
            self.assertLess(io(path, death, fmt="qcow2", check=False).returncode, 0)
            reported = []
            for tool in (img, qemu_img):
                self.assertEqual(tool("info", path).stdout.count("in-use"), 3)
                copy = ("convert", "--bitmaps", "-f", "qcow2", "-O", "qcow2", path, path + ".copy")
                reported.append(tool(*copy, check=False).stderr)
                reported.append(tool(*copy[:2], "--skip-broken-bitmaps", *copy[2:]).stderr)
            reported = [re.findall(r"inconsistent bitmap '(\w+)'", text) for text in reported]
            self.assertEqual(reported, [["b2"], ["b2", "b1", "b0"]] * 2)

    def test_a_signal_that_does_not_exist(self):
        result = io(self.create("a.raw", "1M", "raw"), "sigraise 1000", "length", fmt="raw", check=False)
        self.assertEqual(result.stdout, "signal argument '1000' is too large to be a valid signal\n1 MiB\n")
        self.assertEqual(result.returncode, 1)

    def test_sharing_that_options_deny(self):
        """By the program's option or the command's, and as by qemu-img."""
        node = "driver=null-co,force-share="
        commands = (
            (*tool("io"), "-r", "-U", "--image-opts", "-c", "length", node),
            (*tool("io"), "-c", "open -r -U -o " + node),
            (*tool("img"), "info", "-U", "--image-opts", node),
            (*tool("img"), "compare", "-U", "--image-opts", node, "driver=null-co"),
        )
        for command in commands:
            denied = run(*(word + "off" if word.endswith(node) else word for word in command), check=False)
            self.assertIn("-U conflicts with image options", denied.stderr, command)
            run(*(word + "on" if word.endswith(node) else word for word in command))

    def test_help_of_every_command(self):
        names = re.findall(r"(?m)^(\w+) .*-- ", run(*tool("io"), "-c", "help").stdout)
        self.assertGreater(len(names), 25)
        for name in names:
            self.assertRegex(run(*tool("io"), "-c", f"help {name}").stdout, rf"^{name} .*-- \w")

    def test_help_lists_commands(self):
        out = run(compat("qemu-io"), "-c", "help").stdout
        for name in ("aio_flush", "discard", "readv", "reopen", "truncate"):
            self.assertRegex(out, rf"(?m)^{name} ")
        self.assertIn("--cmd", run(compat("qemu-io"), "--help").stdout)


if __name__ == "__main__":
    unittest.main()
