# SPDX-License-Identifier: Apache-2.0
"""The daemon's command line: what each option makes, what is refused, how it starts and ends."""

import json
import os
import resource
import signal
import socket
import subprocess
import time

import tidemark
from qmp import Qmp


class DaemonTest(tidemark.TestCase):
    def run_daemon(self, *options, **more):
        program, *words = tidemark.tool("daemon")
        return tidemark.run(os.path.abspath(program), *words, *options, check=False, **more)

    def refused(self, wanted, *options):
        """It ends at once, says why in one line, and leaves nothing."""
        result = self.run_daemon(*options)
        self.assertEqual(result.returncode, 1)
        self.assertIn(wanted, result.stderr)
        self.assertTrue(result.stderr.startswith("tidemark daemon: "), result.stderr)

    def monitor(self, name="qmp"):
        return (
            "--chardev",
            f"socket,id={name},path={self.path(name)},server=on,wait=off",
            "--monitor",
            f"chardev={name}",
        )

    def nbd_options(self, node="disk", **more):
        extra = "".join(f",{k}={v}" for k, v in more.items())
        return (
            "--nbd-server",
            f"addr.type=unix,addr.path={self.path('nbd')}",
            "--export",
            f"type=nbd,id=export,node-name={node},name=disk{extra}",
        )

    def disk_options(self, image):
        return (
            "--blockdev",
            f"driver=file,node-name=file,filename={image}",
            "--blockdev",
            json.dumps({"driver": "qcow2", "node-name": "disk", "file": "file"}),
        )

    def uri(self):
        return tidemark.nbd_uri(self.path("nbd"), "disk")

    def is_alive(self, pid):
        try:
            with open(f"/proc/{pid}/stat", encoding="ascii") as stat:
                return stat.read().split(")")[1].split()[0] != "Z"
        except FileNotFoundError:
            return False

    # What options make.

    def test_serves_an_image(self):
        image = self.create("disk.qcow2")
        server = self.daemon(*self.disk_options(image), *self.nbd_options(writable="on"))
        tidemark.qemu_io(self.uri(), "write -P 9 1M 64k", fmt="raw")
        server.stop()
        tidemark.qemu_io(image, "read -P 9 1M 64k", fmt="qcow2")
        self.assertEqual(tidemark.qemu_img("check", image).returncode, 0)

    def test_exports_are_read_only_unless_asked(self):
        self.daemon("--blockdev", "null-co,node-name=disk,size=1M", *self.nbd_options())
        result = tidemark.qemu_io(self.uri(), "write 0 4k", fmt="raw", check=False)
        self.assertNotEqual(result.returncode, 0)

    def test_bitmaps_of_an_export(self):
        image = self.create("disk.qcow2")
        tidemark.qemu_img("bitmap", "--add", "--disable", image, "b0")
        server = self.daemon(
            *self.disk_options(image), *self.nbd_options(**{"bitmaps.0": "b0"})
        )
        self.assertTrue(server.qmp.bitmaps("disk")["b0"]["busy"])

    def test_tcp_and_iothread(self):
        server = self.daemon(
            "--object",
            "iothread,id=t0",
            "--blockdev",
            "null-co,node-name=disk,size=1M",
            "--nbd-server",
            "addr.type=inet,addr.host=127.0.0.1,addr.port=0,max-connections=5",
            "--export",
            "nbd,id=e,node-name=disk,iothread=t0",
        )
        port = server.qmp.command("query-nbd-server")["address"]["port"]
        tidemark.qemu_io(f"nbd://127.0.0.1:{port}/disk", "read -P 0 0 64k", fmt="raw", options=["-r"])

    def test_a_monitor_on_standard_input_and_output(self):
        result = self.run_daemon(
            "--chardev",
            "stdio,id=s",
            "--monitor",
            "s,pretty=on",
            stdin=None,
            input='{"execute": "qmp_capabilities"}{"execute": "query-block-exports"}{"execute": "quit"}',
        )
        self.assertEqual(result.returncode, 0)
        self.assertIn('{\n    "QMP": {\n        "version": {', result.stdout)
        self.assertTrue(result.stdout.endswith('{\n    "return": {\n    }\n}\n'), result.stdout)

    def test_several_monitors(self):
        server = self.daemon(*self.monitor("other"))
        with Qmp(self.path("other")) as other:
            self.assertEqual(other.command("query-version"), server.qmp.command("query-version"))

    def test_a_pretty_monitor_has_the_same_answers(self):
        """Long answers are put together in another way there."""
        server = self.daemon(
            "--chardev", f"socket,id=p,path={self.path('pretty')},server=on,wait=off",
            "--monitor", "chardev=p,pretty=on",
            "--blockdev", f"driver=qcow2,node-name=disk,file.driver=file,file.filename={self.create('d')}",
            "--nbd-server", f"addr.type=unix,addr.path={self.path('nbd')}",
            "--export", "nbd,id=e,node-name=disk", "--export", "nbd,id=f,node-name=disk,name=f",
        )  # fmt: skip
        with socket.socket(socket.AF_UNIX) as pretty:
            pretty.connect(self.path("pretty"))
            pretty.settimeout(tidemark.TIMEOUT)
            text = ""

            def receive():
                nonlocal text
                while True:
                    try:
                        value, end = json.JSONDecoder().raw_decode(text)
                        text = text[end:].lstrip()
                        return value
                    except ValueError:
                        text += pretty.recv(65536).decode()

            receive()
            for command, arguments in (
                ("qmp_capabilities", {}),
                ("query-named-block-nodes", {}),
                ("query-block-exports", {}),
                ("query-blockstats", {"query-nodes": True}),
                ("query-blockstats", {}),
            ):
                request = {"execute": command, "arguments": arguments}
                pretty.sendall(json.dumps(request).encode())
                answer = receive()["return"]
                if answer:
                    self.assertEqual(len(answer), 2)
                    self.assertEqual(answer, server.qmp.command(command, **arguments))

    def test_wait_waits_for_the_first_client(self):
        server = self.own(
            tidemark.Process(
                [
                    *tidemark.tool("daemon"),
                    "--chardev",
                    f"socket,id=c,path={self.path('c')},server=on",
                    "--monitor",
                    "c",
                    *self.monitor("late"),
                ],
                self.path("log"),
            )
        )
        server.wait_for(lambda: os.path.exists(self.path("c")), "the socket")
        time.sleep(0.2)
        self.assertFalse(os.path.exists(self.path("late")))
        with Qmp(self.path("c")) as qmp:
            server.wait_for(lambda: os.path.exists(self.path("late")), "the rest")
            qmp.command("quit")
        self.assertEqual(server.wait(), 0)

    def test_the_descriptor_limit_is_raised(self):
        server = self.daemon(
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (100, 3000))
        )
        self.assertEqual(resource.prlimit(server.pid, resource.RLIMIT_NOFILE), (3000, 3000))

    # How it starts and ends.

    def test_signals_end_it_cleanly(self):
        for sig in signal.SIGTERM, signal.SIGINT, signal.SIGHUP:
            with self.subTest(sig.name):
                image = self.create(sig.name + ".qcow2")
                name = sig.name.lower()
                server = self.daemon(*self.disk_options(image), name=name)
                server.qmp.command(
                    "block-dirty-bitmap-add", node="disk", name="b", persistent=True
                )
                server.stop(sig=sig)
                info = tidemark.qemu_img("info", "--output=json", image).stdout
                (bitmap,) = json.loads(info)["format-specific"]["data"]["bitmaps"]
                self.assertEqual((bitmap["name"], bitmap["flags"]), ("b", ["auto"]))
                self.assertFalse(os.path.exists(self.path(name + ".qmp")))

    def test_ends_with_clients_connected(self):
        server = self.daemon(
            "--blockdev", "null-co,node-name=disk,size=1M", *self.nbd_options(writable="on")
        )
        writer = subprocess.Popen(
            [tidemark.qemu("qemu-io"), "-f", "raw", self.uri()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        writer.stdin.write(b"write 0 4k\n")
        writer.stdin.flush()
        self.assertIn(b"wrote 4096", writer.stdout.readline() + writer.stdout.readline())
        begin = time.monotonic()
        server.stop()
        self.assertLess(time.monotonic() - begin, 5)
        writer.communicate(b"quit\n", timeout=20)

    def test_daemonize(self):
        pidfile = self.path("pid")
        result = self.run_daemon(
            "--daemonize",
            "--pidfile",
            pidfile,
            "--blockdev",
            "null-co,node-name=disk,size=1M",
            *self.nbd_options(),
            *self.monitor(),
        )
        self.assertEqual((result.returncode, result.stderr), (0, ""))
        with open(pidfile, encoding="ascii") as file:
            pid = int(file.read())
        self.addCleanup(lambda: self.is_alive(pid) and os.kill(pid, signal.SIGKILL))
        # Everything is up when the parent has ended.
        with Qmp(self.path("qmp")) as qmp:
            self.assertEqual(len(qmp.command("query-block-exports")), 1)
        self.assertEqual(os.getsid(pid), pid)
        self.refused("is locked by a running daemon", "--pidfile", pidfile)
        os.kill(pid, signal.SIGTERM)
        tidemark.wait_until(lambda: not self.is_alive(pid), "the daemon to end")
        self.assertFalse(os.path.exists(pidfile))

    def test_relative_names_hold_in_the_background(self):
        os.mkdir(self.path("psk"))
        with open(self.path("psk/keys.psk"), "w", encoding="ascii") as file:
            file.write("alice:00112233445566778899aabbccddeeff\n")
        with open(self.path("rules"), "w", encoding="ascii") as file:
            file.write('{"policy": "allow"}')
        result = self.run_daemon(
            "--daemonize", "--pidfile", "pid", "--blockdev", "null-co,node-name=disk,size=1M",
            "--object", "tls-creds-psk,id=tls0,endpoint=server,dir=psk",
            "--object", "authz-list-file,id=authz0,filename=rules",
            "--nbd-server", "addr.type=unix,addr.path=nbd,tls-creds=tls0,tls-authz=authz0",
            "--export", "nbd,id=export,node-name=disk,name=disk",
            "--chardev", "socket,id=qmp,path=qmp,server=on,wait=off", "--monitor", "qmp",
            cwd=self.dir,
        )  # fmt: skip
        self.assertEqual((result.returncode, result.stderr), (0, ""))
        with open(self.path("pid"), encoding="ascii") as file:
            pid = int(file.read())
        self.addCleanup(lambda: self.is_alive(pid) and os.kill(pid, signal.SIGKILL))
        tidemark.img(
            "info", "--object",
            f"tls-creds-psk,id=tls0,endpoint=client,dir={self.path('psk')},username=alice",
            "--image-opts", f"driver=nbd,path={self.path('nbd')},export=disk,tls-creds=tls0",
        )  # fmt: skip
        os.kill(pid, signal.SIGTERM)
        tidemark.wait_until(lambda: not self.is_alive(pid), "the daemon to end")
        for name in ("pid", "nbd", "qmp"):
            self.assertFalse(os.path.exists(self.path(name)), name)

    def test_daemonize_tells_what_failed(self):
        self.refused(
            "--blockdev driver=file,node-name=n,filename=/nonexistent: Could not open '/nonexistent'",
            "--daemonize",
            "--blockdev",
            "driver=file,node-name=n,filename=/nonexistent",
        )

    def test_daemonize_leaves_no_standard_files_for_a_chardev(self):
        self.refused(
            "--chardev stdio,id=c: cannot use stdio with -daemonize",
            "--daemonize", "--chardev", "stdio,id=c", "--monitor", "c",
        )  # fmt: skip

    def test_a_socket_left_by_a_crash_is_replaced(self):
        server = self.daemon()
        server.kill()
        self.assertTrue(os.path.exists(server.qmp_path))
        server = self.own(
            tidemark.Process(
                [
                    *tidemark.tool("daemon"),
                    "--chardev",
                    f"socket,id=c,path={server.qmp_path},server=on,wait=off",
                    "--monitor",
                    "c",
                ],
                self.path("log"),
            )
        )
        server.wait_for(lambda: tidemark.can_connect(self.path("daemon.qmp")), "the monitor")

    def test_a_socket_in_use_is_not_taken(self):
        server = self.daemon()
        self.refused(
            "Failed to bind socket",
            "--chardev",
            f"socket,id=c,path={server.qmp_path},server=on,wait=off",
        )
        self.assertIn("qemu", server.qmp.command("query-version"))

    # What is refused.

    def test_options_are_carried_out_in_order(self):
        self.refused(
            "--export type=nbd,id=e,node-name=n: NBD server not running",
            "--blockdev",
            "null-co,node-name=n",
            "--export",
            "type=nbd,id=e,node-name=n",
            "--nbd-server",
            f"addr.type=unix,addr.path={self.path('nbd')}",
        )
        self.assertFalse(os.path.exists(self.path("nbd")))

    def test_refusals(self):
        for wanted, *options in (
            ("unrecognized option '--bogus'", "--bogus"),
            ("extra: Unexpected argument", "extra"),
            ("'foo' is not a valid char driver name", "--chardev", "foo,id=c"),
            ("Failed to connect to 'x'", "--chardev", "socket,id=c,path=x"),
            ("id", "--chardev", "stdio"),
            ("'bogus'", "--chardev", "stdio,id=c,bogus=1"),
            ('chardev "zz" not found', "--monitor", "chardev=zz"),
            ("Parameter 'chardev' is missing", "--monitor", "mode=control"),
            ("'mode'", "--monitor", "chardev=c,mode=readline"),
            ("Parameter 'driver' does not accept value 'x'", "--blockdev", "x,node-name=a"),
            ("Parameter 'driver' is missing", "--blockdev", "node-name=a"),
            ("'node-name' must be specified", "--blockdev", "null-co"),
            ("'bogus'", "--blockdev", "null-co,node-name=a,bogus=1"),
            ("JSON", "--blockdev", '{"driver": '),
            ("node-name='b'", "--export", "nbd,id=a,node-name=b"),
            ("Parameter 'x' is unexpected", "--export", "nbd,id=a,node-name=b,x=1"),
            ("Parameter 'writable'", "--export", "nbd,id=a,node-name=b,writable=maybe"),
            ("vhost-user-blk", "--export", "vhost-user-blk,id=a,node-name=b"),
            ("Parameter 'addr.path' is missing", "--nbd-server", "addr.type=unix"),
            ("Parameter 'addr.cid' is missing", "--nbd-server", "addr.type=vsock"),
            ("127.0.0.1:70000", "--nbd-server", "addr.type=inet,addr.host=127.0.0.1,addr.port=70000"),
            ("127.0.0.1:70000", "--chardev", "socket,id=c,server=on,wait=off,host=127.0.0.1,port=70000"),
            ("No TLS credentials with id 't'", "--nbd-server",
             "addr.type=unix,addr.path=p,tls-creds=t"),
            ("'rng-random'", "--object", "rng-random,id=t"),
            ("Missing 'dir' property value", "--object", "tls-creds-x509,id=t"),
            ("Parameter 'id' is missing", "--object", "iothread"),
            ("cannot create PID file", "--pidfile", "/nonexistent/pid"),
        ):
            with self.subTest(options):
                self.refused(wanted, *options)

    def test_help_and_version(self):
        result = self.run_daemon("--help")
        self.assertEqual(result.returncode, 0)
        for word in "--blockdev", "--export", "--daemonize", "nbd+unix:///", "qmp_capabilities":
            self.assertIn(word, result.stdout)
        self.assertIn("tidemark", self.run_daemon("--version").stdout)
        result = tidemark.run(tidemark.compat("qemu-storage-daemon"), "--version")
        self.assertRegex(result.stdout, r"^qemu-storage-daemon version \d+\.\d+\.\d+ ")

    def test_types_of_options(self):
        """Words stand for numbers and for yes and no on the command line, though not in a command.
        """
        raw = self.create("raw", "1M", fmt="raw")
        server = self.daemon(
            "--blockdev",
            f"raw,node-name=r,offset=64k,file.driver=file,file.filename={raw},file.read-only=on",
        )
        self.assertEqual(server.qmp.node("r")["image"]["virtual-size"], (1 << 20) - (64 << 10))
        self.refused("Parameter 'file.bogus' is unexpected", "--blockdev", "raw,node-name=r,"
                     f"file.driver=file,file.filename={raw},file.bogus=1")  # fmt: skip
        self.refused("Expected '=' after parameter 'read-only'", "--blockdev",
                     f"file,node-name=r,filename={raw},read-only")  # fmt: skip

    def test_help_of_options(self):
        for options, wanted in (
            (("--object", "help"), "List of user creatable objects:\n  authz-list\n"),
            (("--object", "none,help"), "List of user creatable objects:\n"),
            (("--object", "iothread,help"), "iothread options:\n  aio-max-batch=<int>\n"),
            (("--object", "tls-creds-psk,help"), "\n  username=<string>\n"),
            (("--object", "secret,help", "--blockdev", "nonsense"), "\n  file=<string>\n"),
            (("--blockdev", "help"), "\n  qcow2 "),
            (("--blockdev", "help"), "\n  cache.direct=<on|off> "),
            (("--blockdev", "raw,help"), "raw options:\n  file=<{...}|str> "),
            (("--blockdev", "driver=raw,node-name=r,help"), "\n  offset=<size> "),
            (("--blockdev", "nbd,help"), "\n  server.path=<str> "),
            (("--blockdev", "nbd,help"), "(with type=unix, required)\n"),
            (("--export", "help"), "Types of --export:\n  nbd "),
            (("--export", "nbd,help"), "\n  bitmaps.N=<str|{...}> "),
            (("--nbd-server", "help"), "\n  max-connections=<int>"),
            (("--chardev", "help"), "\n  socket\n  stdio\n"),
            (("--chardev", "socket,help"), "\n  wait=<bool (on/off)>\n"),
            (("-T", "help"), "block_read_begin\n"),
        ):
            with self.subTest(options):
                result = self.run_daemon(*options)
                self.assertEqual((result.returncode, result.stderr), (0, ""))
                self.assertIn(wanted, result.stdout)
        self.refused("Help is not available for this option", "--monitor", "help")
