# SPDX-License-Identifier: Apache-2.0
"""`tidemark nbd`: its command line and its life as a process."""

import os
import re
import signal
import socket
import subprocess
import time
import unittest
from unittest import mock

import nbd_raw
from nbd_raw import RawClient
from nbd_server import NbdServer, QemuNbd
from tidemark import (
    Process, TestCase, can_connect, compat, img, io, nbd_uri, qemu, run, tool, wait_until,
)  # fmt: skip

SIZE = 4 << 20


class FaceTest(TestCase):
    def setUp(self):
        super().setUp()
        self.disk = self.path("disk.raw")
        with open(self.disk, "wb") as disk:
            disk.truncate(SIZE)
        self.socket = self.path("s")

    def start(self, *arguments):
        server = self.own(
            Process([*tool("nbd"), "-k", self.socket, *arguments], self.path("log"))
        )
        server.wait_for(lambda: can_connect(self.socket), "the server")
        return server

    def refused(self, *arguments):
        result = run(*tool("nbd"), *arguments, check=False)
        self.assertEqual(result.returncode, 1, result.stdout)
        self.assertEqual(result.stdout, "")
        return result.stderr

    # --- life

    def test_ends_with_its_last_client(self):
        server = self.start("-e", "2", "-f", "raw", self.disk)
        with RawClient(self.socket) as first, RawClient(self.socket) as second:
            first.go()
            second.go()
            first.request(nbd_raw.DISC)
            self.assertTrue(first.is_closed())
            second.request(nbd_raw.FLUSH)
            self.assertEqual(second.error(), 0)
            self.assertTrue(server.is_running())
        self.assertEqual(server.wait(20), 0)
        self.assertFalse(os.path.exists(self.socket))

    def test_who_comes_early_finds_the_export(self):
        image = self.create("b.qcow2", "1T")
        for n in range(8):
            img("bitmap", "--add", "-f", "qcow2", "-g", "64k", image, f"b{n}")
        io(image, *[f"write {n * 100}G 4k" for n in range(10)], fmt="qcow2")
        bitmaps = [w for n in range(8) for w in ("-B", f"b{n}")]
        for _ in range(5):
            command = [*tool("nbd"), "-k", self.socket, "-f", "qcow2", *bitmaps, image]
            server = self.own(Process(command, self.path("log")))
            with self.connect_early() as client:
                client.go()
            self.assertEqual(server.wait(20), 0)

    def connect_early(self):
        """A connection as soon as the socket listens."""
        while True:
            try:
                return RawClient(self.socket)
            except (FileNotFoundError, ConnectionRefusedError):
                time.sleep(0.0005)

    def test_client_that_chose_no_export_does_not_end_it(self):
        server = self.start("-f", "raw", self.disk)
        with RawClient(self.socket) as client:
            client.ask(nbd_raw.ABORT)
            self.assertTrue(client.is_closed())
        with RawClient(self.socket) as client:
            client.go()
        self.assertEqual(server.wait(20), 0)

    def test_persistent_server_ends_by_signal(self):
        for sig in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            server = self.start("-t", "-f", "raw", self.disk)
            with RawClient(self.socket) as client:
                client.go()
                server.stop(sig)
                self.assertTrue(client.is_closed())

    def test_a_signal_that_asks_for_progress_does_not_end_it(self):
        server = self.start("-f", "raw", self.disk)
        with RawClient(self.socket) as client:
            client.go()
            for _ in range(2):
                os.kill(server.process.pid, signal.SIGUSR1)
                client.request(nbd_raw.FLUSH)
                self.assertEqual(client.error(), 0)
            self.assertTrue(server.is_running())
        self.assertEqual(server.wait(20), 0)

    def test_fork_returns_when_clients_can_connect(self):
        pid_file = self.path("pid")
        run(*tool("nbd"), "--fork", "-t", "--pid-file", pid_file, "-k", self.socket, "-f", "raw",
            self.disk)  # fmt: skip
        with open(pid_file, encoding="ascii") as file:
            pid = int(file.read())
        try:
            with RawClient(self.socket) as client:
                client.go()
        finally:
            os.kill(pid, signal.SIGTERM)
        wait_until(lambda: not os.path.exists(self.socket), "the end of the server")

    def test_standard_descriptors_may_be_closed(self):
        """They are not what the server opens next: /dev/null is put over them with --fork."""
        pid_file = self.path("pid")
        closed = ("sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh")
        run(*closed, *tool("nbd"), "--fork", "-t", "--pid-file", pid_file, "-k", self.socket,
            "-f", "raw", self.disk)  # fmt: skip
        with open(pid_file, encoding="ascii") as file:
            pid = int(file.read())
        try:
            for descriptor in range(3):
                self.assertEqual(os.readlink(f"/proc/{pid}/fd/{descriptor}"), "/dev/null")
            io(nbd_uri(self.socket), "write -P 7 0 64k", "read -P 7 0 64k", fmt="raw")
        finally:
            os.kill(pid, signal.SIGTERM)
        wait_until(lambda: not os.path.exists(self.socket), "the end of the server")

    def test_the_file_with_the_process_id_is_left(self):
        """Who asked for it removes it, and must not get an error because it is gone."""
        pid_file = self.path("pid")
        words = ("-t", "--pid-file", pid_file, "-k", self.socket, "-f", "raw", self.disk)
        with subprocess.Popen([*tool("nbd"), *words]) as server:
            wait_until(lambda: os.path.exists(pid_file), "the file")
            server.terminate()
            self.assertEqual(server.wait(10), 0)
        self.assertTrue(os.path.exists(pid_file))

    def test_fork_reports_failure(self):
        error = self.refused("--fork", "-k", self.socket, "-f", "raw", "/nowhere/disk")
        self.assertTrue(
            error.endswith(": Could not open '/nowhere/disk': No such file or directory\n"), error)
        self.assertFalse(os.path.exists(self.socket))

    def test_stale_socket_is_replaced_and_a_served_one_is_not(self):
        with socket.socket(socket.AF_UNIX) as stale:
            stale.bind(self.socket)
        self.start("-t", "-r", "-f", "raw", self.disk)
        error = self.refused("-k", self.socket, "-r", "-f", "raw", self.disk)
        self.assertIn("Address already in use", error)
        with RawClient(self.socket) as client:
            client.go()

    def test_a_file_in_the_place_of_a_socket_is_kept(self):
        serve = ("-f", "raw", self.disk)
        monitor = f"socket,id=qmp,path={self.disk},server=on,wait=off"
        for command in (
            (*tool("nbd"), "-k", self.disk, *serve),
            (*tool("nbd"), "-k", self.socket, "--metrics", self.disk, *serve),
            (*tool("daemon"), "--chardev", monitor, "--monitor", "qmp"),
        ):
            with self.subTest(command[-3]):
                result = run(*command, check=False, timeout=10)
                self.assertEqual(result.returncode, 1)
                self.assertIn("Address already in use", result.stderr)
                self.assertEqual(os.path.getsize(self.disk), SIZE)

    def test_tcp(self):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        server = self.own(
            Process([*tool("nbd"), "-t", "-b", "127.0.0.1", "-p", port, "-f", "raw", self.disk],
                    self.path("log"))  # fmt: skip
        )
        command = [*tool("nbd"), "-L", "-b", "127.0.0.1", "-p", port]
        server.wait_for(lambda: run(*command, check=False).returncode == 0, "the server")
        self.assertIn("exports available: 1\n", run(*command).stdout)
        io(f"nbd://127.0.0.1:{port}", "write -P 3 0 64k", "read -P 3 0 64k", fmt="raw")
        server.stop()

    # --- options

    def test_list_agrees_with_qemu_nbd(self):
        ours = self.own(NbdServer(self.dir, "-r", "-x", "a", "-D", "text", "-f", "raw", self.disk))
        text = run(*tool("nbd"), "-L", "-r", "-k", ours.socket).stdout
        theirs = run(qemu("qemu-nbd"), "-L", "-r", "-k", ours.socket).stdout
        # What is newer than their client.
        text = text.replace("  transaction size: 64-bit\n", "")
        text = text.replace("0x158f", "0x58f").replace(" block-status-payload", "")
        self.assertEqual(text, theirs)
        other = self.own(QemuNbd(self.dir, "-r", "-x", "b", "-f", "raw", self.disk))
        text = run(*tool("nbd"), "-L", "-k", other.socket).stdout
        self.assertIn(" export: 'b'\n", text)
        self.assertIn(f"  size:  {SIZE}\n", text)

    def test_list_names_the_transaction_size_of_a_server_without_block_sizes(self):
        command = " ".join((*tool("nbd"), "-L", "-k", "$unixsocket"))
        text = run("nbdkit", "-U", "-", "memory", "1M", "--run", command).stdout
        self.assertNotIn("min block", text)
        self.assertIn("\n  transaction size: 32-bit\n  available meta contexts", text)

    def test_offset_shows_the_rest_of_the_image(self):
        with open(self.disk, "r+b") as disk:
            disk.seek(65536)
            disk.write(b"here")
        self.start("-t", "-o", "64k", "-f", "raw", self.disk)
        with RawClient(self.socket) as client:
            infos = [data for _, data in client.go(structured=False)]
            self.assertIn((0).to_bytes(2, "big") + (SIZE - 65536).to_bytes(8, "big"),
                          [data[:10] for data in infos])  # fmt: skip
            client.request(nbd_raw.READ, 0, 4)
            self.assertEqual(client.simple_reply(), (1, 0))
            self.assertEqual(client.receive(4), b"here")

    def test_qcow2_is_served_as_its_disk(self):
        image = self.create("disk.qcow2", "8M")
        server = self.start("-t", "-f", "qcow2", image)
        io(f"nbd+unix:///?socket={self.socket}", "write -P 9 1M 64k", fmt="raw")
        server.stop()
        io(image, "read -P 9 1M 64k", "read -P 0 0 1M", fmt="qcow2")

    def test_serves_an_internal_snapshot_read_only(self):
        image = self.create("disk.qcow2", "1M")
        io(image, "write -P 7 0 64k", fmt="qcow2")
        img("snapshot", "-f", "qcow2", "-c", "then", image)
        io(image, "write -P 8 0 64k", fmt="qcow2")
        self.start("-t", "-f", "qcow2", "-l", "then", image)
        where = f"nbd+unix:///?socket={self.socket}"
        io(where, "read -P 7 0 64k", fmt="raw", options=("-r",))
        refused = io(where, "write -P 9 0 64k", fmt="raw", check=False)
        self.assertNotEqual(refused.returncode, 0)

    def test_writes_to_a_temporary_file_are_lost(self):
        image = self.create("disk.qcow2", "1M")
        io(image, "write -P 7 0 64k", fmt="qcow2")
        with open(image, "rb") as file:
            before = file.read()
        with mock.patch.dict(os.environ, TMPDIR=self.dir):
            server = self.start("-t", "-s", "-f", "qcow2", image)
        where = f"nbd+unix:///?socket={self.socket}"
        io(where, "read -P 7 0 64k", "write -P 9 0 32k", fmt="raw")
        io(where, "read -P 9 0 32k", "read -P 7 32k 32k", fmt="raw")
        server.stop()
        with open(image, "rb") as file:
            self.assertEqual(file.read(), before)
        self.assertEqual([n for n in os.listdir(self.dir) if n.startswith("tidemark-")], [])

    def test_rates_are_shown_each_second(self):
        server = self.start("-t", "--stats", "-f", "raw", self.disk)
        where = f"nbd+unix:///?socket={self.socket}"
        io(where, "write -P 1 0 64k", "read -P 1 0 64k", "read 1M 64k", fmt="raw")
        wanted = r"read [1-9]\d*/s .* write [1-9]\d*/s .* latency p50 [\d.e-]+ ms p99 .* errors 0"
        server.wait_for(lambda: re.search(wanted, server.log()), "a line")
        server.stop()
        self.assertIn("incompatible with forking", self.refused("--stats", "--fork", self.disk))

    def test_snapshot_that_is_not_there(self):
        image = self.create("disk.qcow2", "1M")
        self.assertIn("Failed to load snapshot", self.refused("-f", "qcow2", "-l", "x", image))

    def test_wrong_command_lines_are_refused(self):
        self.assertIn("Invalid number of arguments", self.refused())
        self.assertIn("Invalid number of arguments", self.refused("a", "b"))
        self.assertIn("incompatible with a file name", self.refused("-L", self.disk))
        self.assertIn("incompatible with forking", self.refused("-L", "--fork"))
        self.assertIn("per-device settings", self.refused("-L", "-n"))
        self.assertIn("cache mode", self.refused("--cache", "best", self.disk))
        self.assertIn("discard mode", self.refused("--discard", "maybe", self.disk))
        self.assertIn("too long", self.refused("-x", "n" * 4097, self.disk))
        self.assertIn("port", self.refused("-p", "70000", self.disk))

    def test_help_and_version(self):
        text = run(*tool("nbd"), "--help").stdout
        for option in ("--format", "--read-only", "--persistent", "--shared", "--list"):
            self.assertIn(option, text)
        self.assertIn("tidemark", run(*tool("nbd"), "--version").stdout)


class Compatible(TestCase):
    """What programs that start qemu-nbd rely on."""

    def setUp(self):
        super().setUp()
        self.disk = self.path("disk.raw")
        with open(self.disk, "wb") as disk:
            disk.write(b"d" * SIZE)
        self.socket = self.path("s")

    def start(self, *words, **more):
        server = self.own(Process([*words, "-k", self.socket, "-t", "-f", "raw", self.disk], self.path("log"), **more))
        server.wait_for(lambda: can_connect(self.socket), "the server")
        return server

    def trim(self):
        with RawClient(self.socket) as client:
            client.go()
            client.request(nbd_raw.TRIM, 0, SIZE)
            self.assertEqual(client.error(), 0)
        return os.stat(self.disk).st_blocks * 512

    def test_version_lines_are_of_qemus_form(self):
        for name, begin in (
            ("qemu-img", "qemu-img version "),
            ("qemu-io", "qemu-io version "),
            ("qemu-nbd", "qemu-nbd "),
            ("qemu-storage-daemon", "qemu-storage-daemon version "),
        ):
            with self.subTest(name=name):
                theirs = run(qemu(name), "--version").stdout
                ours = run(compat(name), "--version").stdout
                form = re.escape(begin) + r"\d+\.\d+\.\d+ \(.*\)\n"
                self.assertRegex(ours, "^" + form)
                program, rest = theirs.split(" ", 1)
                self.assertRegex(os.path.basename(program) + " " + rest, "^" + form)

    def test_discards_are_ignored_unless_asked_for(self):
        for program in (tool("nbd"), [compat("qemu-nbd")]):
            with self.subTest(program=program):
                server = self.start(*program)
                self.assertGreaterEqual(self.trim(), SIZE)
                server.stop()
        self.start(*tool("nbd"), "--discard=unmap")
        self.assertLess(self.trim(), SIZE)

    def test_read_only_with_discard_and_detect_zeroes(self):
        self.start(*tool("nbd"), "--read-only", "--discard=unmap", "--detect-zeroes=unmap")
        self.assertIn("4 MiB", img("info", "-f", "raw", nbd_uri(self.socket)).stdout)

    def test_signals_that_the_caller_blocked_stay_blocked(self):
        def block():
            signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT, signal.SIGHUP])

        server = self.start(*tool("nbd"), preexec_fn=block)
        server.process.send_signal(signal.SIGINT)
        server.process.send_signal(signal.SIGHUP)
        time.sleep(0.3)
        self.assertTrue(server.is_running())
        server.stop(signal.SIGTERM)

    def test_a_daemon_leaves_blocked_signals_alone(self):
        def block():
            signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])

        daemon = self.daemon(preexec_fn=block)
        daemon.process.send_signal(signal.SIGINT)
        time.sleep(0.3)
        self.assertTrue(daemon.is_running())

    def test_handshake_limit(self):
        self.start(*tool("nbd"), "--handshake-limit=1")
        with RawClient(self.socket) as client:
            begun = time.monotonic()
            self.assertTrue(client.is_closed())
            self.assertLess(time.monotonic() - begun, 8)

    def refused(self, sentence, *words, program=None, **more):
        result = run(*(program or tool("nbd")), *words, self.disk, check=False, timeout=20, **more)
        self.assertEqual((result.returncode, result.stdout), (1, ""))
        self.assertIn(sentence, result.stderr)

    def test_values_are_checked(self):
        self.refused("Invalid aio mode 'xx'", "-f", "raw", "--aio=xx")
        self.refused("requires cache.direct=on", "-f", "raw", "--aio=native", "-k", self.socket)
        for limit in ("x", "-1", "4294967296"):
            self.refused(f"Invalid handshake limit '{limit}'", f"--handshake-limit={limit}")
        self.refused("port", "-p", "99999")
        self.refused("socket path must be absolute", "-k", "relative", program=[compat("qemu-nbd")])
        self.refused("not permitted without --socket", "--selinux-label=a")

    def test_what_is_wrong_is_said_as_qemu_nbd_says_it(self):
        """Exit status and the last line but one or the last: scripts look for them."""
        image = self.path("disk.raw")
        with open(image, "wb") as file:
            file.truncate(1 << 20)
        for words in (
            ("--cache=none", "--cache=none", image), ("-n", "--cache=none", image),
            ("-n", "-n", image),
            ("--aio=threads", "--aio=threads", image), ("--aio=foo", image),
            ("--discard=unmap", "--discard=unmap", image), ("--discard=foo", image),
            ("--detect-zeroes=foo", image), ("-f", "raw", "--detect-zeroes=unmap", image),
            ("--cache=foo", image), ("-e", "abc", image), ("-e", "-1", image), ("-o", "abc", image),
            ("-f", "raw", self.path("none")), ("-f", "qcow2", image), ("-f", "nonsense", image),
            ("--image-opts", "driver=foo"), ("--image-opts", f"driver=raw,bogus=1,file={image}"),
            ("-l", "snapshot.foo=1", image), ("json:foo",), ("json:driver=null-co",),
            (), (image, image), ("-Z",), ("--bogus=1",), ("--object",), ("-d",),
            ("-f", "raw", "--pid-file=/nonexistent/x", "-k", self.path("s"), image),
        ):  # fmt: skip
            results = [run(program, *words, check=False, env={**os.environ, "LC_ALL": "C"})
                       for program in (qemu("qemu-nbd"), compat("qemu-nbd"))]  # fmt: skip
            said = [r.stderr.replace(compat("qemu-nbd"), "qemu-nbd").replace(qemu("qemu-nbd"), "qemu-nbd")
                    for r in results]  # fmt: skip
            with self.subTest(words=words):
                self.assertEqual([r.returncode for r in results], [1, 1])
                self.assertEqual(said[1], said[0])

    def test_by_the_name_of_qemu_nbd_a_socket_counts_more_than_an_address(self):
        self.start(compat("qemu-nbd"), "-b", "127.0.0.1", "-p", "1")
        self.refused("A unix socket has no port", "-k", self.path("other"), "-p", "1")

    def test_a_selinux_label_is_taken_with_a_word(self):
        server = self.start(*tool("nbd"), "--selinux-label=system_u:object_r:svirt_t:s0")
        self.assertIn("--selinux-label has no effect", server.log())

    def test_a_passed_socket_excludes_other_places_to_listen(self):
        script = 'exec 3</dev/null; export LISTEN_PID=$$ LISTEN_FDS=1; exec "$@"'
        program = ["bash", "-c", script, "sh", *tool("nbd")]
        self.refused("Unix socket can't be set", "-k", self.socket, program=program)
        self.refused("TCP port number can't be set", "-p", "5000", program=program)
        self.refused("The interface can't be set", "-b", "::1", program=program)
        self.refused("List mode is incompatible", "-L", program=program)
        program[2] = script.replace("FDS=1", "FDS=2")
        self.refused("One socket can be served", program=program)

    def passing(self, number):
        """A program that runs another with the descriptor, as a service manager does."""
        script = f'exec 3<&{number}; export LISTEN_PID=$$ LISTEN_FDS=1; exec "$@"'
        return ["bash", "-c", script, "sh"]

    def test_a_passed_socket_is_served_in_the_background_too(self):
        pid_file = self.path("pid")
        with socket.create_server(("127.0.0.1", 0)) as passed:
            how = {"pass_fds": (passed.fileno(),)}
            words = ("-t", "--pid-file", pid_file, "-f", "raw", self.disk)
            run(*self.passing(passed.fileno()), *tool("nbd"), "--fork", *words, **how)
            with open(pid_file, encoding="ascii") as file:
                pid = int(file.read())
            try:
                with RawClient(passed.getsockname()[1]) as client:
                    client.go()
            finally:
                os.kill(pid, signal.SIGTERM)

    def test_what_is_passed_has_to_be_a_listening_socket(self):
        with socket.socket() as idle, open(self.disk, "rb") as file:
            for passed in idle.fileno(), file.fileno():
                program = [*self.passing(passed), *tool("nbd")]
                result = run(*program, "-f", "raw", self.disk, pass_fds=(passed,), check=False)
                self.assertEqual(result.returncode, 1)
                self.assertIn("descriptor 3 is no listening socket", result.stderr)

    def test_the_file_with_the_process_id_of_a_running_server_is_not_overwritten(self):
        pid_file = self.path("pid")
        command = [*tool("nbd"), "-t", "-r", "--pid-file", pid_file, "-k", self.socket]
        server = self.own(Process([*command, "-f", "raw", self.disk], self.path("log")))
        wait_until(lambda: os.path.exists(pid_file) and os.path.getsize(pid_file), "the file")
        words = ("--pid-file", pid_file, "-k", self.path("s2"), "-r", "-f", "raw")
        self.refused("Cannot lock pid file", *words)
        with open(pid_file, encoding="ascii") as file:
            self.assertEqual(int(file.read()), server.process.pid)
        server.stop()
        second = self.own(Process([*tool("nbd"), "-t", *words, self.disk], self.path("log2")))
        second.wait_for(lambda: can_connect(self.path("s2")), "the server")

        def is_written():
            with open(pid_file, encoding="ascii") as file:
                return file.read() == f"{second.process.pid}\n"

        wait_until(is_written, "the file")

    def test_what_was_not_flushed_is_flushed_at_the_end_and_its_error_told(self):
        config = self.path("flush.conf")
        with open(config, "w", encoding="utf-8") as file:
            file.write('[inject-error]\nevent = "flush_to_disk"\niotype = "flush"\nerrno = "5"\n')
        options = (f"driver=raw,file.driver=blkdebug,file.config={config},file.image.driver=file,"
                   f"file.image.filename={self.disk}")  # fmt: skip
        command = [*tool("nbd"), "-k", self.socket, "-t", "--image-opts", options]
        server = self.own(Process(command, self.path("log")))
        server.wait_for(lambda: can_connect(self.socket), "the server")
        with RawClient(self.socket) as client:
            client.go()
            client.request(nbd_raw.WRITE, 0, 512, payload=bytes(512))
            self.assertEqual(client.error(), 0)
        server.stop(expect=1)
        self.assertIn("Input/output error", server.log())


if __name__ == "__main__":
    unittest.main()
