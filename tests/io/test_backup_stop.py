# SPDX-License-Identifier: Apache-2.0
"""Commands end soon after a signal, also while they read a file that never seems to end."""

import contextlib
import datetime
import glob
import json
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
import unittest

from backup_case import heed_signals
from made_repository import CLUSTER, MadeRepository, change_manifest
from tidemark import Process, TestCase, can_connect, nbd_uri, run, tool, wait_until

START = datetime.datetime(2026, 1, 1, tzinfo=datetime.timezone.utc)
HOUR = datetime.timedelta(hours=1)


def has_open(pid, path):
    for link in glob.glob(f"/proc/{pid}/fd/*"):
        try:
            if os.readlink(link) == path:
                return True
        except FileNotFoundError:
            pass
    return False


def open_for_reader(fifo):
    """A descriptor to write by, when somebody reads; None until then."""
    with contextlib.suppress(OSError):
        return os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)
    return None


class StopCase(TestCase):
    def setUp(self):
        super().setUp()
        self.made = MadeRepository(self.path("backups"))
        for i in range(2):
            self.made.add(START + i * HOUR, {i: b"x" * CLUSTER})
        self.sums = os.path.join(self.made.path, self.made.order[0], "checksums")

    def make_endless(self):
        os.truncate(self.sums, 1 << 40)
        path = os.path.join(os.path.dirname(self.sums), "manifest.json")
        with open(path, encoding="utf-8") as f:
            sums = json.load(f)["checksums"]
        change_manifest(path, checksums={**sums, "size": 1 << 40})

    def begin(self, name, *words, **more):
        process = subprocess.Popen(
            [*tool(name), *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            # Who runs the tests in the background may ignore it.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL), **more,
        )  # fmt: skip
        self.addCleanup(process.kill)
        wait_until(lambda: has_open(process.pid, self.sums), "its reading")
        return process

    def stops(self, name, *words, number=signal.SIGTERM, status=1, said=True):
        process = self.begin(name, *words)
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
        self.assertEqual(process.returncode, status, err)
        if said:
            self.assertEqual(json.loads(out)["error"]["kind"], "stopped", err)

    def stops_with(self, what, *words):
        process = subprocess.Popen(
            [*tool(words[0]), *words[1:]], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        self.addCleanup(process.kill)
        with self.assertRaises(subprocess.TimeoutExpired):
            process.wait(1)
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=60)
        self.assertEqual(process.returncode, 1, err)
        self.assertIn(what, err)


class Stop(StopCase):
    def test_hashing_of_checksums(self):
        self.make_endless()
        path, image = self.made.path, self.path("image.raw")
        with open(image, "wb") as f:
            f.truncate(self.made.size)
        for number in signal.SIGTERM, signal.SIGINT:
            for name, *words in (
                ("restore", path, self.path("out.raw")),
                ("verify", path),
                ("repair", path),
                ("prune", path, "--keep-last", "1"),
                ("copy", path, self.path("copy"), "--last", "1"),
                ("test-restore", path),
                ("files", path),
                ("backup", "--image", image, "--format", "raw", "--same-disk", "--to", path),
            ):
                with self.subTest(name=name, number=number):
                    self.stops(
                        name, "--output=json", *words, number=number,
                        status=4 if name == "verify" else 1, said=name != "verify",
                    )  # fmt: skip


    def test_a_server_that_has_not_begun(self):
        self.make_endless()
        process = self.begin("serve", self.made.path, "-k", self.path("socket"))
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=60)
        self.assertEqual(process.returncode, 1, err)
        self.assertIn(b"Stopped while reading", err)


class NoAnswer(StopCase):
    """Servers that do not answer what is asked of them."""

    def serve_nothing(self, size, *words):
        socket = self.path("nbd.sock")
        self.own(Process([*tool("nbd"), "-k", socket, "--persistent", "--image-opts", *words,
                          f"driver=null-co,size={size},latency-ns={3600 * 10**9}"],
                         self.path("nbd.log")))  # fmt: skip
        wait_until(lambda: can_connect(socket), "the server")
        return socket

    def test_a_disk_that_is_read(self):
        socket, to = self.serve_nothing(1 << 20, "-r"), self.path("new")
        self.stops_with(
            b"The backup was stopped", "backup", "--image", nbd_uri(socket), "--to", to
        )
        self.assertFalse(os.path.exists(to))

    def test_a_target(self):
        socket = self.serve_nothing(self.made.size)
        self.stops_with(
            b"The restore was stopped", "restore", self.made.path, "--force", nbd_uri(socket)
        )


class Silent(StopCase):
    """Servers that say nothing at all."""

    def listen(self):
        path = self.path("silent.sock")
        server = socket.socket(socket.AF_UNIX)
        self.addCleanup(server.close)
        server.bind(path)
        server.listen()
        return path

    def stops_in_time(self, what, *words):
        begin = time.monotonic()
        self.stops_with(what, *words)
        # All limits without a stop are 30 s and more, but for the greeting of a daemon.
        self.assertLess(time.monotonic() - begin, 25)

    def test_an_image_that_is_opened(self):
        self.stops_in_time(
            b"The backup was stopped",
            "backup", "--image", nbd_uri(self.listen()), "--to", self.path("new"),
        )  # fmt: skip

    def test_a_target_that_is_opened(self):
        self.stops_in_time(
            b"The restore was stopped",
            "restore", self.made.path, "--force", nbd_uri(self.listen()),
        )  # fmt: skip

    def test_a_server_that_is_not_reached(self):
        """One whose machine drops packets, as this one does for a listener with a full queue."""
        with contextlib.ExitStack() as stack:
            server = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
            host, port = server.getsockname()
            for _ in range(4):
                client = stack.enter_context(socket.socket())
                client.setblocking(False)
                client.connect_ex((host, port))
            uri = f"nbd://{host}:{port}/x"
            for what, *words in (
                (b"The backup was stopped", "backup", "--image", uri, "--to", self.path("new")),
                (b"The restore was stopped", "restore", self.made.path, "--force", uri),
                (b"The backup was stopped", "backup", "--qmp", f"tcp:{host}:{port}", "--node", "d",
                 "--to", self.path("new")),
            ):  # fmt: skip
                with self.subTest(words=words):
                    begin = time.monotonic()
                    self.stops_with(what, *words)
                    self.assertLess(time.monotonic() - begin, 20)  # a dial takes 30 s

    def test_a_name_that_is_looked_up(self):
        """The file that names the servers does not come, as an answer of one."""
        how = "-m" if os.geteuid() == 0 else "-rm"
        uri = "nbd://host.invalid/x"
        daemon = ("backup", "--qmp", "tcp:host.invalid:1")
        for number, (what, *words) in enumerate((
            (b"The backup was stopped", "backup", "--image", uri, "--to", self.path("new")),
            (b"The restore was stopped", "restore", self.made.path, "--force", uri),
            (b"Stopped", *daemon, "--leftovers"),
            (b"Stopped", *daemon, "--forget", "0123abcd"),
            (b"Stopped", *daemon, "--abort", "--node", "d", "--to", self.made.path),
        )):  # fmt: skip
            fifo = self.path(f"resolv-{number}")
            os.mkfifo(fifo)
            process = subprocess.Popen(
                ["unshare", how, "sh", "-c", 'mount --bind "$0" /etc/resolv.conf && exec "$@"', fifo,
                 *tool(words[0]), *words[1:]], stderr=subprocess.PIPE, preexec_fn=heed_signals,
            )  # fmt: skip
            self.addCleanup(process.kill)
            silent = wait_until(lambda f=fifo: open_for_reader(f), "the lookup")
            self.addCleanup(os.close, silent)
            begin = time.monotonic()
            process.terminate()
            self.assertIn(what, process.communicate(timeout=60)[1])
            self.assertEqual(process.returncode, 1)
            self.assertLess(time.monotonic() - begin, 30)

    def test_a_daemon_that_hangs(self):
        image, qmp = self.path("disk.qcow2"), self.path("qmp.sock")
        run(*tool("img"), "create", "-q", "-f", "qcow2", image, "1M")
        daemon = Process([*tool("daemon"), "--blockdev",
                          f"qcow2,node-name=d,file.driver=file,file.filename={image}",
                          "--chardev", f"socket,id=q,path={qmp},server=on,wait=off",
                          "--monitor", "q"], self.path("daemon.log"))  # fmt: skip
        self.own(daemon)
        wait_until(lambda: can_connect(qmp), "the daemon")
        os.kill(daemon.pid, signal.SIGSTOP)
        self.addCleanup(os.kill, daemon.pid, signal.SIGCONT)
        self.stops_in_time(
            b"did not answer before the stop",
            "backup", "--qmp", qmp, "--node", "d", "--to", self.path("new"),
        )  # fmt: skip

    def test_a_daemon_that_sends_events_and_no_answer(self):
        path = self.path("talk.sock")

        def talk():
            with contextlib.suppress(OSError), server.accept()[0] as client:
                version = {"qemu": {"major": 10, "minor": 0, "micro": 0}, "package": ""}
                for words in {"QMP": {"version": version, "capabilities": []}}, {"return": {}, "id": 0}:
                    client.sendall(json.dumps(words).encode() + b"\n")
                while True:
                    client.sendall(b'{"event": "SHUTDOWN", "data": {}}\n')
                    time.sleep(1)

        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path)
            server.listen()
            thread = threading.Thread(target=talk)
            thread.start()
            self.stops_in_time(
                b"did not answer before the stop",
                "backup", "--qmp", path, "--node", "d", "--to", self.path("new"),
            )  # fmt: skip
            thread.join()


class Leftovers(StopCase):
    """Temporary directories of killed runs."""

    def setUp(self):
        super().setUp()
        self.temporary = self.path("temporary")
        os.mkdir(self.temporary)
        self.environment = {**os.environ, "TMPDIR": self.temporary}

    def run_test(self):
        return run(*tool("test-restore"), self.made.path, check=False, env=self.environment)

    def names(self):
        return sorted(os.listdir(self.temporary))

    def test_the_next_run_removes_them(self):
        last = os.path.join(self.made.path, self.made.order[-1])
        self.sums = os.path.join(last, "checksums")
        self.make_endless()
        killed = self.begin("test-restore", self.made.path, env=self.environment)
        lives = self.begin("test-restore", self.made.path, env=self.environment)
        killed.kill()
        killed.communicate()
        self.assertEqual(len(self.names()), 2)
        shutil.rmtree(last)
        result = self.run_test()
        self.assertEqual(len(self.names()), 1)
        self.assertIn("which a killed run has left", result.stderr)
        lives.terminate()
        lives.communicate(timeout=60)
        self.assertEqual(self.names(), [])
        self.assertNotIn("which a killed run has left", self.run_test().stderr)

    def test_what_is_something_else_stays(self):
        os.symlink(self.dir, os.path.join(self.temporary, "tidemark-test.linked"))
        for name in "tidemark-testing", "tidemark-copy.abcdef", "other":
            os.mkdir(os.path.join(self.temporary, name))
        with open(os.path.join(self.temporary, "tidemark-test.file"), "wb"):
            pass
        before = self.names()
        self.run_test()
        self.assertEqual(self.names(), before)

    @unittest.skipUnless(os.geteuid() == 0, "needs root")
    def test_those_of_another_user_stay(self):
        folder = os.path.join(self.temporary, "tidemark-test.abcdef")
        os.mkdir(folder)
        os.chown(folder, 65534, 65534)
        self.run_test()
        self.assertEqual(self.names(), ["tidemark-test.abcdef"])
