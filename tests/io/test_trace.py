# SPDX-License-Identifier: Apache-2.0
"""--trace in each face, the log levels, and what a server that crashes logs."""

import os
import re
import signal
import subprocess
import unittest

import tidemark
from qcow2_edit import Image
from qmp import QmpError
from tidemark import TIDEMARK, TestCase, io, run, tool

TOP = os.environ["TIDEMARK_SOURCE"]
LIST = os.path.join(TOP, "src", "trace", "events.list")
LINE = re.compile(r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z (\S+) (\w+)(?: (.*))?$")


def events(text):
    """(thread, name, arguments) of each line of a trace."""
    return [m.groups() for m in map(LINE.match, text.splitlines()) if m]


def names(text):
    return [name for _, name, _ in events(text)]


class TraceTest(TestCase):
    def setUp(self):
        super().setUp()
        self.disk = self.create("disk.raw", "1M", fmt="raw")

    def traced(self, *options, **more):
        """Standard error of `io` that reads a sector."""
        return io(self.disk, "read 0 512", fmt="raw", options=options, **more).stderr


class Options(TraceTest):
    def test_a_pattern_enables_what_it_matches(self):
        seen = events(self.traced("--trace", "block_read_*"))
        self.assertEqual(seen[0][:2], ("main", "block_read_begin"))
        self.assertEqual(seen[-1][1], "block_read_end")
        self.assertIn("offset=0 length=512 result=0", seen[-1][2])
        self.assertEqual({name for _, name, _ in seen}, {"block_read_begin", "block_read_end"})

    def test_nothing_is_traced_by_default(self):
        self.assertEqual(self.traced(), "")

    def test_later_patterns_win(self):
        text = self.traced("-T", "enable=block_*", "-T", "-block_*_begin")
        self.assertIn("block_read_end", names(text))
        self.assertNotIn("block_read_begin", names(text))

    def test_patterns_from_a_file(self):
        patterns = self.path("patterns")
        with open(patterns, "w") as f:
            f.write("# a comment\n\nblock_*\n-block_*_begin\n")
        text = self.traced("--trace", f"events={patterns}")
        self.assertIn("block_read_end", names(text))
        self.assertNotIn("block_read_begin", names(text))

    def test_lines_are_appended_to_a_file(self):
        log = self.path("trace.log")
        with open(log, "w") as f:
            f.write("before\n")
        self.assertEqual(self.traced("--trace", f"block_read_end,file={log}"), "")
        with open(log) as f:
            text = f.read()
        self.assertTrue(text.startswith("before\n"))
        self.assertIn("block_read_end", names(text))

    def test_a_name_that_no_event_has_is_a_warning(self):
        text = self.traced("-T", "no_such_event", "-T", "no_such_*")
        self.assertEqual(
            text, "tidemark io: warning: trace event 'no_such_event' does not exist\n"
        )

    def test_what_cannot_be_done_is_an_error(self):
        for option, wanted in (
            ("bogus=1", "--trace does not support the option 'bogus'"),
            ("events=/nonexistent/x", "Could not open '/nonexistent/x': No such file or directory"),
            ("file=/nonexistent/x", "Could not open trace file '/nonexistent/x'"),
        ):
            with self.subTest(option):
                result = run(*tool("io"), "-T", option, self.disk, check=False)
                self.assertEqual(result.returncode, 1)
                self.assertIn(wanted, result.stderr)

    def test_help_lists_all_events(self):
        result = run(*tool("io"), "--trace", "help")
        with open(LIST) as f:
            declared = re.findall(r"^(?:always )?(\w+)\(", f.read(), re.M)
        self.assertEqual(result.stdout.split(), sorted(declared))
        self.assertEqual(run(*tool("img"), "-T?").stdout, result.stdout)


class Faces(TraceTest):
    def test_img(self):
        run(*tool("img"), "-T", "block_read_*", "info", self.disk)
        for option in (("--trace", "block_read_end"), ("--trace=block_read_end",), ("-Tblock_read_end",)):
            result = run(*tool("img"), *option, "convert", "-O", "qcow2", self.disk, self.path("x"))
            self.assertIn("block_read_end", names(result.stderr))

    def test_img_takes_both_options_before_the_command(self):
        result = run(*tool("img"), "--log-level=error", "--trace", "nothing", "info", self.disk)
        self.assertEqual(result.stderr, "")

    def test_nbd_and_daemon(self):
        log = self.path("trace.log")
        for command in ("nbd", "daemon"):
            with self.subTest(command):
                sock = self.path(command + ".sock")
                if command == "nbd":
                    words = [*tool("nbd"), "-f", "raw", "-k", sock, self.disk]
                    words += ["--trace", f"block_read_*,file={log}"]
                    server = self.own(tidemark.Process(words, self.path("log")))
                else:
                    server = self.daemon(
                        "--blockdev", f"driver=file,node-name=disk,filename={self.disk}",
                        "--nbd-server", f"addr.type=unix,addr.path={sock}",
                        "--export", "type=nbd,id=e,node-name=disk,name=",
                        "--trace", f"block_read_*,file={log}",
                    )  # fmt: skip
                server.wait_for(lambda: os.path.exists(sock), sock)
                io(tidemark.nbd_uri(sock), "read 4096 1024", fmt="raw", options=["-r"])
                server.stop()
                with open(log) as f:
                    lines = events(f.read())
                os.unlink(log)
                mine = [args for _, name, args in lines if name == "block_read_end"]
                self.assertTrue(any("offset=4096 length=1024 result=0" in args for args in mine))

    def test_faces_of_backups(self):
        for command in ("backup", "backups", "restore", "verify", "prune", "copy", "repair"):
            with self.subTest(command):
                result = run(*tool(command), "--help")
                self.assertIn("--trace=PATTERN", result.stdout)
                self.assertIn("--log-level=LEVEL", result.stdout)


class Qmp(TraceTest):
    def setUp(self):
        super().setUp()
        self.log = self.path("trace.log")
        self.server = self.daemon(
            "--blockdev", f"driver=file,node-name=disk,filename={self.disk}",
            "--trace", f"file={self.log}",
        )  # fmt: skip
        self.qmp = self.server.qmp

    def states(self, name):
        found = self.qmp.command("trace-event-get-state", name=name)
        return {event["name"]: event["state"] for event in found}

    def set_state(self, name, enable, **more):
        return self.qmp.command("trace-event-set-state", name=name, enable=enable, **more)

    def test_states_can_be_asked_for_and_set(self):
        self.assertEqual(self.states("qmp_command_*"),
                         {"qmp_command_begin": "disabled", "qmp_command_end": "disabled"})  # fmt: skip
        self.assertEqual(self.set_state("qmp_command_end", True, ignore_unavailable=True), {})
        self.assertEqual(self.states("qmp_command_end"), {"qmp_command_end": "enabled"})
        self.qmp.command("query-version")
        self.set_state("*", False)
        self.assertEqual(set(self.states("*").values()), {"disabled"})
        with open(self.log) as f:
            ended = [args for _, name, args in events(f.read()) if name == "qmp_command_end"]
        self.assertEqual(ended[0], "command=trace-event-set-state result=0")
        self.assertIn("command=query-version result=0", ended)
        self.assertNotIn("command=trace-event-get-state result=0", ended[3:])

    def test_unknown_events(self):
        self.assertEqual(self.states("no_such_*"), {})
        self.assertEqual(self.set_state("no_such_*", True), {})
        for command, more in (
            ("trace-event-get-state", {}),
            ("trace-event-set-state", {"enable": True}),
            ("trace-event-set-state", {"enable": True, "ignore_unavailable": True}),
        ):
            with self.assertRaises(QmpError) as caught:
                self.qmp.command(command, name="no_such_event", **more)
            self.assertEqual(caught.exception.desc, 'unknown event "no_such_event"')


class LogLevels(TraceTest):
    def test_levels_that_there_are_not(self):
        for face in ("io", "daemon", "nbd", "img"):
            result = run(*tool(face), "--log-level", "loud", check=False)
            self.assertEqual(result.returncode, 1)
            self.assertIn("Invalid log level 'loud': must be error, warning, notice, info or debug", result.stderr)

    def test_warnings_can_be_left_out(self):
        self.assertEqual(self.traced("--log-level", "error", "-T", "no_such_event"), "")

    def served_with_errors(self):
        """URI of a server whose image can't be read."""
        faults, sock = self.path("faults"), self.path("sock")
        with open(faults, "w") as f:
            f.write('[inject-error]\nevent = "none"\niotype = "read"\nerrno = "5"\n')
        image = f"driver=blkdebug,config={faults},image.driver=file,image.filename={self.disk}"
        options = f"driver=raw,file.{image.replace(',', ',file.')}"
        words = [*tool("nbd"), "-t", "-r", "--image-opts", "-k", sock, options]
        server = self.own(tidemark.Process(words, self.path("log")))
        server.wait_for(lambda: os.path.exists(sock), sock)
        return tidemark.nbd_uri(sock)

    def test_debug_messages_are_printed_when_asked_for(self):
        uri = self.served_with_errors()
        line = re.compile(r"^tidemark io: debug: NBD server .* NBD_CMD_READ .*Input/output error$", re.M)
        for level, wanted in ((None, False), ("info", False), ("debug", True)):
            options = ["-r"] + ([f"--log-level={level}"] if level else [])
            result = io(uri, "read 0 512", fmt="raw", options=options, check=False)
            self.assertEqual(bool(line.search(result.stderr)), wanted, result.stderr)

    def test_notices_are_printed_by_v(self):
        sock = self.path("sock2")
        disk = Image(self.create("unclean.qcow2"))
        for options, wanted in (((), False), (("-v",), True), (("--log-level=notice",), True),
                                (("-v", "--log-level=error"), True)):  # fmt: skip
            disk.put64(72, 1)  # the dirty bit
            words = [*tool("nbd"), *options, "-f", "qcow2", "-k", sock, disk.path]
            server = self.own(tidemark.Process(words, self.path("log")))
            server.wait_for(lambda: os.path.exists(sock), sock)
            server.stop()
            self.assertEqual("was not closed cleanly: repairing it" in server.log(), wanted, options)
            self.assertNotIn("listens on", server.log())

    def test_findings_of_check_are_no_messages_of_the_program(self):
        disk = self.create("leaky.qcow2")
        with open(disk, "r+b") as f:
            f.seek(65536 * 2 + 100 * 2)
            f.write(b"\0\1")
            f.seek(65536 * 101 - 1)
            f.write(b"\0")
        words = [*tool("img"), "check", "-f", "qcow2", disk]
        leak = "Leaked cluster 100 refcount=1 reference=0"
        self.assertIn(leak, run(*words, check=False).stderr.splitlines())
        quiet = run(*words[:2], "--log-level", "error", *words[2:], check=False)
        self.assertEqual((quiet.returncode, quiet.stderr), (3, ""))
        self.assertIn(f"<4>{leak}", self.journaled(*words).splitlines())

    def journaled(self, *words):
        """Standard error of a program for which it goes to the journal."""
        log = self.path("journal")
        with open(log, "wb") as f:
            st = os.fstat(f.fileno())
            env = dict(os.environ, JOURNAL_STREAM=f"{st.st_dev}:{st.st_ino}")
            subprocess.run(words, stderr=f, stdout=subprocess.DEVNULL, env=env, check=False)
        with open(log) as f:
            return f.read()

    def test_the_journal_gets_priorities(self):
        text = self.journaled(
            *tool("io"), "-T", "no_such_event", "-T", "block_read_end", "-f", "raw",
            "-c", "read 0 512", self.disk,
        )  # fmt: skip
        lines = text.splitlines()
        self.assertEqual(lines[0], "<4>tidemark io: warning: trace event 'no_such_event' does not exist")
        self.assertRegex(lines[1], r"^<7>\d{4}-")
        text = self.journaled(*tool("img"), "info", self.path("absent"))
        self.assertTrue(text.startswith("<3>tidemark img: Could not open"), text)

    def test_other_files_get_none(self):
        env = dict(os.environ, JOURNAL_STREAM="1:2")
        self.assertTrue(self.traced("-T", "no_such_event", env=env).startswith("tidemark io: "))


class Crash(TraceTest):
    def test_a_server_that_aborts_logs_its_latest_events(self):
        trace = self.path("trace.log")
        sock = self.path("sock")
        words = [*tool("nbd"), "-t", "-f", "raw", "-k", sock, self.disk]
        words += ["--trace", f"block_flush_*,file={trace}"]
        server = self.own(tidemark.Process(words, self.path("log")))
        server.wait_for(lambda: os.path.exists(sock), sock)
        io(tidemark.nbd_uri(sock), "write 0 512", "flush", fmt="raw")
        server.stop(sig=signal.SIGABRT, expect=-signal.SIGABRT)
        log = server.log()
        self.assertIn("SIGABRT ends the process. Latest events, oldest first:\n", log)
        seen = names(log)
        self.assertIn("block_flush_end", seen)
        self.assertIn("nbd_server_client_begin", seen, "an event that is always recorded")
        self.assertNotIn("block_write_end", seen)
        with open(trace) as f:
            self.assertIn("SIGABRT ends the process", f.read())

    def test_a_daemon_logs_what_it_did(self):
        server = self.daemon("--blockdev", f"driver=file,node-name=disk,filename={self.disk}")
        server.qmp.command("query-version")
        server.stop(sig=signal.SIGABRT, expect=-signal.SIGABRT)
        lines = [f"{name} {args}" for _, name, args in events(server.log())]
        self.assertIn("block_open_end node=disk driver=file result=0", lines)
        self.assertIn("qmp_command_end command=query-version result=0", lines)
        times = [line[:27] for line in server.log().splitlines() if LINE.match(line)]
        self.assertEqual(times, sorted(times))


class Life(TraceTest):
    """Whole stories, as a trace tells them."""

    def trace_of(self, *commands, pattern="*", image=None, fmt="qcow2"):
        options = []
        for part in pattern.split():
            options += ["-T", part]
        return events(io(image, *commands, fmt=fmt, options=options).stderr)

    def test_a_commit_and_the_bitmaps(self):
        disk = self.create("disk.qcow2")
        tidemark.img("bitmap", "-f", "qcow2", "--add", disk, "b0")
        seen = self.trace_of("write 0 64k", "flush", image=disk)
        story = [f"{name} {args}" for _, name, args in seen if name.startswith("qcow2_")]
        self.assertRegex(story[0], r"^qcow2_bitmap_load node=\S+ bitmap=b0 inconsistent=0 result=0$")
        self.assertTrue(any(s.startswith("qcow2_commit_begin") and "lazy=0" in s for s in story))
        self.assertTrue(any(s.startswith("qcow2_bitmap_store ") and s.endswith("bitmap=b0") for s in story))
        begins = [n[:-6] for _, n, _ in seen if n.endswith("_begin")]
        ends = [n[:-4] for _, n, _ in seen if n.endswith("_end")]
        self.assertEqual(sorted(begins), sorted(ends))

    def test_control_operations(self):
        disk = self.create("disk.qcow2")
        result = run(*tool("img"), "-T", "block_control_*", "-T", "block_truncate_*",
                     "resize", "-f", "qcow2", disk, "128M")  # fmt: skip
        self.assertRegex(result.stderr, r"block_truncate_end node=\S+ size=134217728 result=0")
        result = run(*tool("img"), "-T", "block_control_*", "snapshot", "-f", "qcow2", "-c", "s", disk)
        self.assertRegex(result.stderr, r"block_control_begin node=\S+ operation=co_snapshot_create")
        self.assertRegex(result.stderr, r"block_control_end node=\S+ result=0")

    def test_requests_and_options_of_nbd_on_both_sides(self):
        sock, log = self.path("sock"), self.path("trace.log")
        words = [*tool("nbd"), "-f", "raw", "-k", sock, self.disk, "-T", f"nbd_server_*,file={log}"]
        server = self.own(tidemark.Process(words, self.path("log")))
        server.wait_for(lambda: os.path.exists(sock), sock)
        client = self.trace_of("write 512 512", pattern="nbd_*", image=tidemark.nbd_uri(sock), fmt="raw")
        server.wait()
        with open(log) as f:
            lines = [f"{name} {args}" for _, name, args in events(f.read())]
        self.assertEqual(lines[0].split()[0], "nbd_server_client_begin")
        self.assertEqual(lines[-1].split()[0], "nbd_server_client_end")
        text = "\n".join(lines)
        self.assertRegex(text, r"nbd_server_option client=\d+ option=NBD_OPT_GO length=\d+")
        begin = re.search(
            r"nbd_server_request_begin client=(\d+) command=NBD_CMD_WRITE cookie=(\S+) "
            r"offset=512 length=512 flags=", text
        )  # fmt: skip
        end = f"nbd_server_request_end client={begin[1]} command=NBD_CMD_WRITE cookie={begin[2]} result=0"
        self.assertIn(end, lines)
        mine = [f"{name} {args}" for _, name, args in client]
        self.assertIn(f"nbd_client_request_end export= command=NBD_CMD_WRITE cookie={begin[2]} result=0", mine)
        self.assertIn("nbd_client_connect export= result=0", mine)


class Table(unittest.TestCase):
    def test_the_documentation_has_all_events(self):
        wanted = run(os.path.join(TOP, "tools", "trace-events"), "--table", LIST).stdout
        with open(os.path.join(TOP, "docs", "tracing.md")) as f:
            if wanted not in f.read():
                self.fail(
                    "docs/tracing.md is not up to date: run "
                    "tools/trace-events --table src/trace/events.list docs/tracing.md"
                )

    def test_each_event_is_used(self):
        used = run("grep", "-rhoE", r"\btrace_[a-z0-9_]+\(", os.path.join(TOP, "src")).stdout
        used = set(used.split())
        with open(LIST) as f:
            for name in re.findall(r"^(?:always )?(\w+)\(", f.read(), re.M):
                if f"trace_{name}(" not in used:
                    self.fail(f"the event {name} of src/trace/events.list occurs nowhere in src")

    def test_each_event_is_a_usdt_probe(self):
        notes = run("readelf", "-n", TIDEMARK).stdout
        probes = set(re.findall(r"Provider: tidemark\s+Name: (\w+)", notes))
        self.assertEqual(probes, set(run(*tool("io"), "--trace", "help").stdout.split()))
        for semaphore in re.findall(r"Provider: tidemark.*?Semaphore: (\w+)", notes, re.S):
            self.assertNotEqual(int(semaphore, 16), 0)


if __name__ == "__main__":
    unittest.main()
