# SPDX-License-Identifier: Apache-2.0
"""Paths on a file system that answers nothing: a command waits that names one, and nobody else."""

import json
import os
import signal
import time

from hung_file import PATIENCE
from test_backup_mount import MountCase
from tidemark import img, run, tool, wait_until


class HungPath(MountCase):
    """`tidemark mount` makes the file system, and hangs when it is stopped."""

    def setUp(self):
        super().setUp()
        image = self.create("disk.raw", "1M", "raw")
        self.repository = self.path("backups")
        run(*tool("backup"), "--image", image, "-f", "raw", "--to", self.repository)
        self.mount()
        self.mounted.process.send_signal(signal.SIGSTOP)
        self.hung = os.path.join(self.mountpoint, "hung")

    def commands(self):
        """Each with a path there."""
        file = {"driver": "file", "filename": self.hung}
        unix = {"type": "unix", "data": {"path": self.hung}}
        yield "blockdev-add", {"node-name": "file", **file}
        yield "blockdev-add", {"driver": "tidemark-backup", "node-name": "b",
                               "repository": self.hung}  # fmt: skip
        yield "blockdev-add", {"driver": "nbd", "node-name": "nbd",
                               "server": {"type": "unix", "path": self.hung}}  # fmt: skip
        yield "object-add", {"qom-type": "secret", "id": "secret", "file": self.hung}
        for kind in ("x509", "psk"):
            yield "object-add", {"qom-type": f"tls-creds-{kind}", "id": kind, "dir": self.hung,
                                 "endpoint": "server"}  # fmt: skip
        yield "object-add", {"qom-type": "authz-list-file", "id": "list", "filename": self.hung}
        for kind, data in (
            ("file", {"out": self.hung}),
            ("null", {"logfile": self.hung}),
            ("pipe", {"device": self.hung}),
            ("pty", {"path": self.hung}),
            ("socket", {"addr": unix, "server": True, "wait": False}),
            ("socket", {"addr": unix, "server": False}),
        ):
            name = f"{kind}{data.get('server', '')}"
            yield "chardev-add", {"id": name, "backend": {"type": kind, "data": data}}
        yield "blockdev-add", {"node-name": "debug", "driver": "blkdebug", "config": self.hung,
                               "image": {"driver": "null-co"}}  # fmt: skip
        yield "nbd-server-start", {"addr": unix}
        yield "block-export-add", {"type": "fuse", "id": "fuse", "node-name": "good",
                                   "mountpoint": self.hung}  # fmt: skip

    def test_nobody_else_waits(self):
        good = self.create("good.qcow2", "8M")
        daemon = self.daemon(
            "--blockdev", f"driver=qcow2,node-name=good,file.driver=file,file.filename={good}",
            name="own",
        )
        waiting = []
        for name, arguments in self.commands():
            monitor = daemon.connect()
            self.addCleanup(monitor.close)
            monitor.send_raw(json.dumps({"execute": name, "arguments": arguments}) + "\n")
            waiting.append(monitor)
            with self.subTest(name, arguments=arguments):
                other = daemon.connect(timeout=PATIENCE)
                self.addCleanup(other.close)
                other.command("query-named-block-nodes")
                other.command("blockdev-add", driver="null-co", node_name=f"null{len(waiting)}")
                other.command("blockdev-del", node_name=f"null{len(waiting)}")
        # Each of them does wait: nothing is answered before its path is.
        for monitor in waiting:
            monitor.sock.settimeout(0.01)
            self.assertRaises(TimeoutError, monitor.receive_answer)
        daemon.stop(timeout=PATIENCE)
        img("check", "-q", "-f", "qcow2", good)

    def test_one_monitor_gives_all_of_them_up(self):
        daemon = self.daemon(name="own")
        with daemon.connect(negotiate=False, timeout=PATIENCE) as monitor:
            monitor.execute("qmp_capabilities", {"enable": ["oob"]})
            for number, (name, arguments) in enumerate(self.commands()):
                if name == "block-export-add":
                    continue  # there is no node `good`
                with self.subTest(name, arguments=arguments):
                    request = {"execute": name, "arguments": arguments, "id": number}
                    monitor.send_raw(json.dumps(request))
                    time.sleep(0.05)  # one that has not begun does not begin
                    give_up = {"exec-oob": "x-tidemark-give-up", "arguments": {"id": number}}
                    monitor.send_raw(json.dumps(give_up))
                    answers = [monitor.receive_answer() for _ in range(2)]
                    given_up = next(a["error"]["desc"] for a in answers if "error" in a)
                    self.assertIn(f"The command '{name}' was given up", given_up)
                    self.assertIn({"return": {}}, answers)
                    monitor.command("blockdev-add", driver="null-co", node_name=f"null{number}")
        daemon.stop(timeout=PATIENCE)

    def test_links_are_followed_for_a_second(self):
        """Names that a command compares: it goes on without an answer."""
        base, top = self.create("base.qcow2", "1M"), self.path("top.qcow2")
        img("create", "-q", "-f", "qcow2", "-u", "-b", self.hung, "-F", "qcow2", top, "1M")
        daemon = self.daemon(name="own")
        for name, path, backing in ("base", base, None), ("top", top, "base"):
            daemon.qmp.command("blockdev-add", driver="qcow2", node_name=name, backing=backing,
                               file={"driver": "file", "filename": path})  # fmt: skip
        refused = {"error": {"class": "GenericError"}}
        created = {"return": {}}
        for name, arguments, answer in (
            ("block-commit", {"job-id": "j", "device": "top", "top": self.hung}, refused),
            ("block-stream", {"job-id": "j", "device": "top", "base": self.hung}, refused),
            ("blockdev-snapshot-sync", {"node-name": "top", "snapshot-node-name": "snapshot",
                                        "snapshot-file": self.path("snapshot.qcow2")}, created),
            ("drive-backup", {"job-id": "j", "device": "top", "sync": "none",
                              "target": self.path("copy.qcow2")}, created),
        ):  # fmt: skip
            with self.subTest(name), daemon.connect(timeout=PATIENCE) as other:
                daemon.qmp.send_raw(json.dumps({"execute": name, "arguments": arguments}) + "\n")
                other.command("query-named-block-nodes")
                daemon.qmp.sock.settimeout(PATIENCE)
                said = daemon.qmp.receive_answer()
                said.get("error", {}).pop("desc", None)
                self.assertEqual(said, answer)
        info = json.loads(img("info", "--output=json", self.path("snapshot.qcow2")).stdout)
        self.assertIn(top, info["backing-filename"])
        # A leak check would wait for the threads that hang.
        self.mounted.process.send_signal(signal.SIGCONT)
        daemon.stop(timeout=PATIENCE)

    def test_a_relative_name_is_recorded_so_that_it_leads_there(self):
        """An overlay elsewhere needs another name of the base than the daemon, which was started in
        its directory, and can't see where the name leads now."""
        self.create("base.raw", "1M", "raw")
        os.mkdir(self.path("sub"))
        link, top = self.path("link.raw"), self.create("sub/top.qcow2", "1M")
        mid = self.create("sub/mid.qcow2", "1M")
        os.symlink("base.raw", link)
        daemon = self.daemon(name="own", cwd=self.dir)
        for name, driver, path, more in (
            ("base", "raw", "link.raw", {}),
            ("mid", "qcow2", mid, {"backing": "base"}),
            ("top", "qcow2", top, {"backing": "mid"}),
        ):
            daemon.qmp.command("blockdev-add", driver=driver, node_name=name, **more,
                               file={"driver": "file", "filename": path})  # fmt: skip
        os.unlink(link)
        os.symlink(self.hung, link)
        daemon.qmp.command("block-stream", job_id="j", device="top", base_node="base")
        daemon.qmp.wait_event("BLOCK_JOB_COMPLETED")
        copy = self.path("sub/copy.qcow2")
        daemon.qmp.command("drive-mirror", job_id="j", device="top", sync="top", target=copy,
                           format="qcow2")  # fmt: skip
        self.mounted.process.send_signal(signal.SIGCONT)
        daemon.stop(timeout=PATIENCE)
        for path in (copy, top):
            info = json.loads(img("info", "--output=json", path).stdout)
            self.assertEqual(info["full-backing-filename"], link)

    def test_who_waited_is_answered_when_the_path_is(self):
        daemon = self.daemon("--blockdev", "driver=null-co,node-name=good", name="own")
        waiting = []
        for name, arguments in self.commands():
            monitor = daemon.connect()
            self.addCleanup(monitor.close)
            monitor.send_raw(json.dumps({"execute": name, "arguments": arguments}) + "\n")
            waiting.append((monitor, arguments))
        daemon.qmp.command("query-block")
        self.mounted.process.send_signal(signal.SIGCONT)
        for monitor, arguments in waiting:
            with self.subTest(arguments=arguments):
                self.assertIn("error", monitor.receive_answer())
        wait_until(lambda: daemon.qmp.command("query-chardev"), "the monitor")
        daemon.stop()
