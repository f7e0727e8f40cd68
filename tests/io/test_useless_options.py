# SPDX-License-Identifier: Apache-2.0
"""No option of a tool is accepted without effect: it is refused by its name, unless QEMU's tool of
that name accepts it. Of options that contradict each other none wins silently.
"""

import os
import unittest

from tidemark import TestCase, compat, io, qemu_img, run, tool


class Refused(TestCase):
    """What tidemark refuses. `self.overlay` is on `self.base`; `self.disk` is raw."""

    def setUp(self):
        super().setUp()
        self.disk = self.create("disk.raw", "1M", fmt="raw")
        self.base = self.create("base.qcow2", "1M")
        self.overlay = self.create("overlay.qcow2", "1M", options=("-b", self.base, "-F", "qcow2"))
        self.target = self.path("target.raw")

    def refused(self, message, *words):
        result = run(*words, check=False)
        self.assertEqual(result.returncode, 1, result.stdout + result.stderr)
        self.assertIn(message, result.stderr)

    def test_options_of_img(self):
        onto = ("-u", "-b", self.base, "-F", "qcow2", self.overlay)
        for message, words in (
            ("--pattern has no effect without --write", ("bench", "-c1", "-d1", "--pattern=1", self.disk)),
            ("--no-drain has no effect without --flush", ("bench", "-c1", "-d1", "--no-drain", self.disk)),
            ("--parallel (-m) has no effect with --salvage", ("convert", "--salvage", "-m2", self.disk, self.target)),
            ("--oob-writes (-W) has no effect with", ("convert", "--salvage", "-W", self.disk, self.target)),
            ("--force-share (-U) has no effect without a file", ("measure", "-U", "--size=1M")),
            ("-o size has no effect", ("measure", "-O", "qcow2", "-o", "size=2M", self.disk)),
            ("--compress (-c) has no effect with", ("rebase", "-c", *onto)),
            ("--backing-cache (-T) has no effect with", ("rebase", "-T", "none", *onto)),
            ("--force-share (-U) has no effect with", ("rebase", "-U", *onto)),
        ):
            with self.subTest(words=words):
                self.refused(message, *tool("img"), *words)
                run(compat("qemu-img"), *words)
                if os.path.exists(self.target):
                    os.remove(self.target)

    def test_options_of_img_that_only_tidemark_has(self):
        onto = ("-b", self.base, "-F", "qcow2", self.overlay)
        for message, words in (
            ("--bitmaps has no effect with", ("rebase", "--bitmaps", "-u", *onto)),
            ("--bitmaps and --no-bitmaps exclude", ("rebase", "--bitmaps", "--no-bitmaps", *onto)),
            ("--bitmaps and --no-bitmaps exclude", ("commit", "--bitmaps", "--no-bitmaps", self.overlay)),
            ("the address of an NBD server only", ("map", "--layers", "-U", "nbd://localhost")),
        ):
            with self.subTest(words=words):
                self.refused(message, *tool("img"), *words)

    def test_bitmaps_of_a_source_that_has_none(self):
        words = ("convert", "--bitmaps", "-O", "qcow2", self.disk, self.target)
        for program in (tool("img"), [compat("qemu-img")]):
            self.refused("Source lacks bitmap support", *program, *words)
            self.assertFalse(os.path.exists(self.target))

    def test_an_image_that_could_not_be_made_is_not_measured(self):
        for options in ("compat=0.10,refcount_bits=64", "compat=v2,refcount_bits=1"):
            words = ("measure", "-O", "qcow2", "-o", options, "--size", "1G")
            self.refused("Different refcount widths than 16 bits require", *tool("img"), *words)
            self.assertEqual(qemu_img(*words, check=False).returncode, 1)

    def test_options_that_a_list_of_exports_does_not_use(self):
        nowhere = self.path("nowhere.sock")
        for option in (
            ("--persistent",), ("--shared", "2"), ("--detect-zeroes", "on"), ("--image-opts",),
            ("--handshake-limit", "3"), ("--pid-file", self.path("pid")), ("--selinux-label", "x"),
        ):
            with self.subTest(option=option):
                words = ("-L", "-k", nowhere, *option)
                self.refused(f"List mode is incompatible with {option[0]}", *tool("nbd"), *words)
                self.refused("Failed to connect", compat("qemu-nbd"), *words)

    def test_options_of_nbd_that_exclude_each_other(self):
        for options, message in (
            (("-s", "-r"), "--snapshot has no effect with --read-only"),
            (("-s", "-l", "x"), "--snapshot has no effect with --load-snapshot"),
            (("-d", "-k", "x"), "--disconnect excludes"),
            (("-d", "-L"), "--disconnect excludes"),
            (("-d", "-c", "/dev/nbd0"), "--disconnect excludes"),
        ):
            with self.subTest(options=options):
                self.refused(message, *tool("nbd"), *options, self.disk)

    def test_options_of_an_audit(self):
        words = (*tool("audit"), "--to", self.path("backups"))
        for more in (
            ("--node", "n"), ("--qmp", "q"), ("--fleece-dir", "d"), ("--nbd", "nbd://h"), ("--tls-creds", "t"),
        ):
            with self.subTest(more=more):
                self.refused("--image excludes", *words, "--image", self.base, *more)
        self.refused("--format needs --image", *words, "--qmp", "q", "--node", "n", "-f", "qcow2")

    def test_a_partition_without_a_path(self):
        self.refused("--partition needs a path", *tool("files"), "--partition=1", self.path("backups"))


class Cache(TestCase):
    """Cache modes, and I/O that needs one of them."""

    def traced(self, *words, **environment):
        """What strace shows of a command; a search for leaks can't be traced."""
        trace = self.path("trace")
        sanitizer = os.environ.get("ASAN_OPTIONS", "") + ":detect_leaks=0"
        more = dict(os.environ, ASAN_OPTIONS=sanitizer, **environment)
        run("strace", "-f", "-qq", "-o", trace, *words, env=more)
        with open(trace, encoding="utf-8", errors="replace") as lines:
            return lines.readlines()

    def opened_directly(self, *words):
        return any("disk.raw" in line and "O_DIRECT" in line for line in self.traced(*words))

    def test_native_io_needs_a_direct_cache_mode_in_a_list_of_options_too(self):
        disk = self.create("disk.raw", "1M", fmt="raw")
        options = f"driver=raw,file.driver=file,file.filename={disk}"
        for program in (tool("io"), [compat("qemu-io")]):
            words = (*program, "--image-opts", "-c", "read 0 4k")
            for native in (("-k",), ("-i", "native")):
                result = run(*words, *native, options, check=False)
                self.assertEqual(result.returncode, 1)
                self.assertIn("aio=native was specified, but it requires cache.direct=on", result.stderr)
                run(*words, *native, options + ",cache.direct=on")
                run(*words, *native, "-n", options)
                run(*words, *native, options + ",file.aio=threads")

    def test_of_two_cache_modes_the_last_one_counts(self):
        disk = self.create("disk.raw", "1M", fmt="raw")
        for words, direct in (
            (("-n",), True),
            (("-n", "-t", "writeback"), False),
            (("-t", "writeback", "-n"), True),
            (("-t", "none", "-t", "writeback"), False),
        ):
            with self.subTest(words=words):
                read = (*words, "-f", "raw", "-c", "read 0 4k", disk)
                self.assertEqual(self.opened_directly(*tool("io"), *read), direct)
                if len(words) < 4:
                    line = f"open {' '.join(words)} -o driver=raw {disk}"
                    self.assertEqual(self.opened_directly(*tool("io"), "-c", line), direct)

    def test_a_wrong_cache_mode_is_refused_next_to_another_one(self):
        disk = self.create("disk.raw", "1M", fmt="raw")
        for words in (("-t", "nothing", "-n"), ("-n", "-t", "nothing"), ("-t", "nothing", "-t", "none")):
            result = io(disk, "read 0 4k", fmt="raw", options=words, check=False)
            self.assertEqual(result.returncode, 1)
            self.assertIn("Invalid cache option: nothing", result.stderr)
        result = run(*tool("io"), "-c", f"open -n -t nothing -o driver=raw {disk}", check=False)
        self.assertIn("Invalid cache option: nothing", result.stderr)

    def test_what_a_cache_mode_says_counts_where_the_options_are_silent(self):
        """cache.direct of the options leaves the rest of --cache=unsafe, which is not to flush."""
        disk = self.create("disk.raw", "1M", fmt="raw")
        for options, flushes in (("", False), (",cache.direct=off", False), (",cache.no-flush=off", True)):
            image = f"driver=raw,file.driver=file,file.filename={disk}{options}"
            words = ("--image-opts", "-t", "unsafe", "-c", "write 0 4k", "-c", "flush", image)
            calls = self.traced(*tool("io"), *words, TIDEMARK_LOOP="epoll")  # a ring would hide them
            self.assertEqual(any("sync(" in line for line in calls), flushes, options)


class Arguments(TestCase):
    """What the daemon refuses."""

    def setUp(self):
        super().setUp()
        self.server = self.daemon()

    def refused(self, message, command, **arguments):
        answer = self.server.qmp.execute(command, arguments)
        self.assertIn(message, answer.get("error", {}).get("desc", "it was accepted"))

    def chardev(self, kind, **data):
        return {"id": "c", "backend": {"type": kind, "data": data}}

    def test_members_of_an_address(self):
        unix = {"path": self.path("sock"), "tight": False}
        inet = {"host": "127.0.0.1", "port": "1", "to": 5}
        tight, to = "'tight' is for abstract", "'to' option is incompatible with socket in client"
        wrapped = {"type": "unix", "data": unix}
        self.refused(tight, "nbd-server-start", addr=wrapped)
        self.refused(tight, "chardev-add", **self.chardev("socket", addr=wrapped))
        node = {"driver": "nbd", "node-name": "n"}
        self.refused(tight, "blockdev-add", **node, server={"type": "unix", **unix})
        self.refused("'server.to' is for servers", "blockdev-add", **node, server={"type": "inet", **inet})
        for more in ({}, {"reconnect-ms": 1000}):
            client = self.chardev("socket", addr={"type": "inet", "data": inet}, server=False, **more)
            self.refused(to, "chardev-add", **client)

    def test_a_log_that_is_not_there(self):
        self.refused("'logappend' option requires 'logfile'", "chardev-add", **self.chardev("null", logappend=True))
        self.server.qmp.command("chardev-add", **self.chardev("null", logappend=False))

    def test_one_user_of_a_chardev(self):
        words = [*tool("daemon"), "--chardev", "null,id=c,mux={}", "--chardev", "null,id=c"]
        for mux, message in (("off", "'c' already exists"), ("on", "'mux' is not supported"), ("x", "'mux' expects")):
            result = run(*[word.format(mux) for word in words], check=False)
            self.assertEqual(result.returncode, 1)
            self.assertIn(message, result.stderr)

    def test_the_name_in_a_certificate_without_tls(self):
        server = {"type": "unix", "path": self.path("sock")}
        self.refused("tls-hostname is of no use without tls-creds", "blockdev-add", driver="nbd", server=server,
                     **{"node-name": "n", "tls-hostname": "h"})

    def test_a_limit_that_is_given_twice(self):
        group = {"qom-type": "throttle-group", "id": "g"}
        self.refused("'x-iops-total' and 'iops-total' of 'limits' exclude each other", "object-add", **group,
                     limits={"iops-total": 5}, **{"x-iops-total": 7})
        self.server.qmp.execute("object-add", {**group, "limits": {"iops-total": 5}, "x-iops-size": 4096})
        limits = self.server.qmp.command("qom-get", path="/objects/g", property="limits")
        self.assertEqual((limits["iops-total"], limits["iops-size"]), (5, 4096))


if __name__ == "__main__":
    unittest.main()
