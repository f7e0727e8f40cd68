# SPDX-License-Identifier: Apache-2.0
"""The same backup jobs on our daemon and on QEMU's: bitmaps, events and targets agree."""

import shutil

import tidemark

MIB = 1 << 20
CASES = [
    (sync, mode)
    for sync in ("full", "top", "bitmap")
    for mode in ("on-success", "always", "never")
    if mode != "never" or sync == "bitmap"
]


class BackupJobs(tidemark.TestCase):
    in_memory = True

    def daemon_of(self, name):
        """A daemon with a disk of 4 MiB of data and 1 MiB that is dirty, and its export."""
        work = self.path(name)
        for node in "disk", "t":
            tidemark.img("create", "-q", "-f", "qcow2", f"{work}.{node}", "16M")
        tidemark.io(f"{work}.disk", "write -P 1 0 3M", "write -P 2 8M 1M", fmt="qcow2")
        words = ["--nbd-server", f"addr.type=unix,addr.path={work}.nbd"]
        for node in "disk", "t":
            words += ["--blockdev",
                      f"driver=qcow2,node-name={node},file.driver=file,file.filename={work}.{node}"]  # fmt: skip
        words += ["--export", "type=nbd,id=e,node-name=disk,name=disk,writable=on"]
        program = [tidemark.qemu("qemu-storage-daemon")] if name == "qemu" else None
        server = self.own(tidemark.Daemon(self.dir, *words, name=name, program=program))
        server.uri = tidemark.nbd_uri(f"{work}.nbd", "disk")
        server.qmp.command("block-dirty-bitmap-add", node="disk", name="b")
        tidemark.io(server.uri, "write -P 3 1M 1M", fmt="raw")
        return server

    def events(self, qmp):
        """Those of the job, without the pauses that QEMU shows for drains, and without times."""
        result = []
        for event in qmp.events:
            data = event["data"]
            if data.get("status") in ("paused", "running"):
                continue
            data.pop("speed", None)
            result.append((event["event"], sorted(data.items())))
        qmp.events.clear()
        return result

    def run_job(self, server, sync, mode, cancel):
        qmp = server.qmp
        qmp.command("blockdev-backup", job_id="j", device="disk", target="t", sync=sync,
                    bitmap="b", bitmap_mode=mode, auto_finalize=False)  # fmt: skip
        wanted = lambda: qmp.command("query-jobs")[0]["status"] == "pending"  # noqa: E731
        tidemark.wait_until(wanted, "the job to be pending")
        tidemark.io(server.uri, "write -P 4 1M 64k", "write -P 4 12M 64k", fmt="raw")
        busy = sorted((b.get("name", ""), b["busy"], b["recording"], b["count"])
                      for b in qmp.node("disk")["dirty-bitmaps"] if b["recording"])  # fmt: skip
        qmp.command("job-cancel" if cancel else "job-finalize", id="j")
        tidemark.wait_until(lambda: not qmp.command("query-jobs"), "the end of the job")
        bitmaps = qmp.node("disk")["dirty-bitmaps"]
        for bitmap in bitmaps:
            bitmap.pop("x-tidemark-state", None)
        return busy, self.events(qmp), bitmaps

    def test_agree(self):
        for sync, mode in CASES:
            for cancel in False, True:
                with self.subTest(sync=sync, mode=mode, cancel=cancel):
                    results = []
                    for name in "tidemark", "qemu":
                        server = self.daemon_of(name)
                        results.append(self.run_job(server, sync, mode, cancel))
                        server.quit()
                        shutil.move(self.path(name + ".t"), self.path(name + ".done"))
                    for part in range(3):
                        self.assertEqual(results[0][part], results[1][part])
                    tidemark.qemu_img("compare", self.path("tidemark.done"), self.path("qemu.done"))
