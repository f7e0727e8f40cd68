# SPDX-License-Identifier: Apache-2.0
"""What each verb does in each state of a job, and the order of events of jobs that end."""

import tidemark
from qmp import QmpError

MIB = 1 << 20
SIZE = 4 * MIB
SLOW = 64 << 10  # bytes per second: a job of this speed is not at its end soon

NOT_PAUSED = "Can't resume a job that was not paused"
NO_CHANGE = "Job type does not support change"


class JobCase(tidemark.TestCase):
    """Disks "a" and "b", all dirty in bitmaps "x", and nodes "ta" and "tb" of the same size."""

    in_memory = True
    program = None

    def setUp(self):
        super().setUp()
        self.images = {}
        options = []
        for name in ("a", "b", "ta", "tb"):
            path = self.images[name] = self.create(name + ".qcow2", SIZE)
            if len(name) == 1:
                tidemark.img("bitmap", "-f", "qcow2", "--add", path, "x")
                tidemark.io(path, f"write -P 7 0 {SIZE}", fmt="qcow2")
            options += [
                "--blockdev",
                f"driver=qcow2,node-name={name},file.driver=file,file.filename={path}",
            ]
        self.server = self.daemon(*options, program=self.program)
        self.qmp = self.server.qmp
        self.count = 0

    # Jobs

    def backup_of(self, disk, job, **more):
        return {
            "job-id": job,
            "device": disk,
            "target": "t" + disk,
            "sync": "full",
            **{k.replace("_", "-"): v for k, v in more.items()},
        }

    def backup(self, job="j", disk="a", **more):
        self.qmp.command("blockdev-backup", **self.backup_of(disk, job, **more))

    def mirror(self, job="j", disk="a", **more):
        self.qmp.command(
            "blockdev-mirror", job_id=job, device=disk, target="t" + disk, sync="full", **more
        )

    def group(self, mode="grouped", **more):
        """Jobs "j", which is fast, and "k", which is slow."""
        self.qmp.command(
            "transaction",
            properties={"completion-mode": mode},
            actions=[
                {"type": "blockdev-backup", "data": self.backup_of("a", "j", **more)},
                {"type": "blockdev-backup", "data": self.backup_of("b", "k", speed=SLOW, **more)},
            ],
        )

    def job(self, job="j"):
        return {j["id"]: j for j in self.qmp.command("query-jobs")}.get(job)

    def status(self, job="j"):
        return (self.job(job) or {"status": "null"})["status"]

    def wait(self, status, job="j"):
        tidemark.wait_until(
            lambda: self.status(job) == status, f"job {job} to be {status}, not {self.job(job)}"
        )

    def pause(self, status):
        self.qmp.command("job-pause", id="j")
        self.wait(status)

    # How to bring a job into a state

    def enter_running(self):
        self.backup(speed=SLOW)
        self.wait("running")

    def enter_paused(self):
        self.enter_running()
        self.pause("paused")

    def enter_ready(self):
        self.mirror()
        self.wait("ready")

    def enter_standby(self):
        self.enter_ready()
        self.pause("standby")

    def enter_waiting(self):
        self.group()
        self.wait("waiting")

    def enter_pending(self):
        self.backup(auto_finalize=False)
        self.wait("pending")

    def enter_concluded(self):
        self.backup(auto_dismiss=False)
        self.wait("concluded")

    def end_all(self):
        for job in self.qmp.command("query-jobs"):
            verb = "job-dismiss" if job["status"] == "concluded" else "job-cancel"
            self.qmp.execute(verb, {"id": job["id"]})  # others of a group may be gone already
        tidemark.wait_until(lambda: not self.qmp.command("query-jobs"), "the end of all jobs")
        self.qmp.events.clear()

    # Events

    def events(self, ids=("j",), job_events=True):
        """Those of the jobs so far, in order: states by name, others by their name in capitals."""
        self.qmp.command("query-jobs")
        seen = []
        for event in self.qmp.events:
            data = event["data"]
            job = data.get("id", data.get("device"))
            if job not in ids:
                continue
            name = data["status"] if event["event"] == "JOB_STATUS_CHANGE" else event["event"]
            name = name.replace("BLOCK_JOB_", "")
            if name == "COMPLETED" and "error" in data:
                name = "FAILED"
            seen.append(name if len(ids) == 1 else f"{job} {name}")
        return seen


class VerbTest(JobCase):
    """The matrix of verbs and states. A cell is the error text; "-": the state does not accept the
    verb; None: it does, and other tests say what becomes of the job."""

    PAUSED = "The block job for device 'j' is currently paused"
    ALREADY = "Job is already paused"
    STATES = ("running", "paused", "ready", "standby", "waiting", "pending", "concluded")
    MATRIX = {
        "job-pause": (None, ALREADY, None, ALREADY, "-", "-", "-"),
        "job-resume": (NOT_PAUSED, None, NOT_PAUSED, None) + (NOT_PAUSED,) * 3,
        "block-job-set-speed": (None, None, None, None, "-", "-", "-"),
        "job-complete": ("-", "-", None, None, "-", "-", "-"),
        "job-finalize": ("-", "-", "-", "-", "-", None, "-"),
        "job-dismiss": ("-", "-", "-", "-", "-", "-", None),
        "job-cancel": (None, None, None, None, None, None, "-"),
        "block-job-cancel": (None, PAUSED, None, PAUSED, None, None, "-"),
        "block-job-cancel force": (None, None, None, None, None, None, "-"),
        "block-job-change": (NO_CHANGE, NO_CHANGE, None, None, None, None, None),
    }
    # The older names that do the same.
    for verb in ("pause", "resume", "complete", "finalize", "dismiss"):
        MATRIX["block-job-" + verb] = MATRIX["job-" + verb]
    del verb

    def run_verb(self, command):
        name, *force = command.split()
        key = "id"
        if name.startswith("block-job-") and name not in (
            "block-job-finalize",
            "block-job-dismiss",
            "block-job-change",
        ):
            key = "device"
        arguments = {key: "j"}
        if force:
            arguments["force"] = True
        if name == "block-job-set-speed":
            arguments["speed"] = 0
        if name == "block-job-change":
            arguments |= {"type": "mirror", "copy-mode": "write-blocking"}
        return self.qmp.execute(name, arguments)

    def check_state(self, state):
        enter = getattr(self, "enter_" + state)
        column = self.STATES.index(state)
        fresh = False
        for command, cells in self.MATRIX.items():
            wanted = cells[column]
            if command == "block-job-change" and wanted is None and state not in ("ready", "standby"):
                continue
            if not fresh:
                self.end_all()
                enter()
                fresh = True
            with self.subTest(f"{command} {state}"):
                verb = command.split()[0].replace("block-", "").replace("job-", "")
                if wanted == "-":
                    wanted = f"Job 'j' in state '{state}' cannot accept command verb '{verb}'"
                answer = self.run_verb(command)
                fresh = wanted is not None
                self.assertEqual(answer.get("error", {}).get("desc"), wanted)
                if fresh:
                    self.assertEqual(answer["error"]["class"], "GenericError")
                    self.assertEqual(self.status(), state)
        self.end_all()

    def test_running(self):
        self.check_state("running")

    def test_paused(self):
        self.check_state("paused")

    def test_ready(self):
        self.check_state("ready")

    def test_standby(self):
        self.check_state("standby")

    def test_waiting(self):
        self.check_state("waiting")

    def test_pending(self):
        self.check_state("pending")

    def test_concluded(self):
        self.check_state("concluded")

    def test_the_newest_job_is_listed_first(self):
        self.mirror("first", "a", speed=SLOW)
        self.mirror("second", "b", speed=SLOW)
        for command, key in ("query-jobs", "id"), ("query-block-jobs", "device"):
            self.assertEqual([j[key] for j in self.qmp.command(command)], ["second", "first"])

    def test_no_such_job(self):
        for command in self.MATRIX:
            error = self.run_verb(command)["error"]
            if command.startswith("job-"):
                self.assertEqual(error, {"class": "GenericError", "desc": "Job not found"})
            else:
                self.assertEqual(
                    error, {"class": "DeviceNotActive", "desc": "Block job 'j' not found"}
                )


class EffectTest(JobCase):
    """What a verb that is accepted does."""

    def test_pause_and_resume(self):
        self.enter_paused()
        (info,) = self.qmp.command("query-block-jobs")
        self.assertTrue(info["paused"])
        before = self.job()["current-progress"]
        self.qmp.command("job-resume", id="j")
        self.wait("running")
        self.qmp.command("block-job-set-speed", device="j", speed=0)
        self.wait("null")
        self.assertLess(before, SIZE)

    def test_a_limit_that_is_lifted_ends_its_sleep(self):
        self.backup(speed=1)
        self.qmp.command("block-job-set-speed", device="j", speed=0)
        self.wait("null")

    def test_a_limit_does_not_hold_up_a_cancel(self):
        self.backup(speed=1, auto_dismiss=False)
        self.qmp.command("job-cancel", id="j")
        self.wait("concluded")
        self.assertEqual(self.job()["error"], "Operation canceled")

    def test_complete_in_standby_takes_effect_on_resume(self):
        self.enter_standby()
        self.qmp.command("job-complete", id="j")
        self.assertEqual(self.status(), "standby")
        self.qmp.command("job-resume", id="j")
        self.wait("null")

    def test_a_paused_job_is_cancelled_by_force(self):
        for enter in (self.enter_paused, self.enter_standby):
            enter()
            self.qmp.command("block-job-cancel", device="j", force=True)
            self.wait("null")

    def test_a_cancel_in_waiting_ends_the_group(self):
        self.enter_waiting()
        self.qmp.command("job-cancel", id="j")
        self.wait("null")
        self.wait("null", "k")

    def test_job_ids(self):
        for bad in ("1", "", "a b", "#x"):
            with self.assertRaises(QmpError) as caught:
                self.backup(bad)
            self.assertEqual(caught.exception.desc, f"Invalid job ID '{bad}'")
        self.enter_running()
        with self.assertRaises(QmpError) as caught:
            self.backup("j", "b")
        self.assertEqual(caught.exception.desc, "Job ID 'j' already in use")
        self.end_all()

    def test_negative_speed(self):
        wanted = "Parameter 'speed' expects a non-negative value"
        with self.assertRaises(QmpError) as caught:
            self.backup(speed=-1)
        self.assertEqual(caught.exception.desc, wanted)
        # As in QEMU the job has been seen, also by who starts a mirror or a stream.
        self.assertEqual(self.events(), ["created", "null"])
        mirror = {"target": "b", "sync": "full"}
        for command, more in (("blockdev-mirror", mirror), ("block-stream", {})):
            self.qmp.events.clear()
            with self.assertRaisesRegex(QmpError, wanted):
                self.qmp.command(command, job_id="j", device="a", speed=-1, **more)
            self.assertEqual(self.events(), ["created", "null"])
        self.assertEqual(self.qmp.command("query-jobs"), [])
        self.enter_running()
        with self.assertRaises(QmpError) as caught:
            self.qmp.command("block-job-set-speed", device="j", speed=-1)
        self.assertEqual(caught.exception.desc, wanted)
        self.end_all()


# A backup begins while its disk is drained.
BACKUP_STARTED = ["created", "running", "paused", "running"]
MIRROR_STARTED = ["created", "running"]


class EventTest(JobCase):
    END = ["concluded", "null"]

    def expect(self, *names, started=None):
        self.wait("null")
        mirror = "READY" in names
        started = started or (MIRROR_STARTED if mirror else BACKUP_STARTED)
        self.assertEqual(self.events(), [*started, *names, *self.END])

    def test_success(self):
        self.backup()
        self.expect("waiting", "pending", "COMPLETED")

    def test_finalize_and_dismiss_by_hand(self):
        self.backup(auto_finalize=False, auto_dismiss=False)
        self.wait("pending")
        self.assertEqual(self.events(), BACKUP_STARTED + ["waiting", "pending", "PENDING"])
        self.qmp.command("job-finalize", id="j")
        self.wait("concluded")
        self.assertEqual(self.events()[7:], ["COMPLETED", "concluded"])
        self.qmp.command("job-dismiss", id="j")
        self.assertEqual(self.events()[9:], ["null"])

    def test_cancel(self):
        self.enter_running()
        self.qmp.command("job-cancel", id="j")
        self.expect("aborting", "CANCELLED")

    def test_cancel_while_paused(self):
        self.enter_paused()
        self.qmp.command("job-cancel", id="j")
        self.expect("paused", "running", "aborting", "CANCELLED")

    def test_mirror(self):
        self.enter_ready()
        self.qmp.command("job-complete", id="j")
        self.expect("ready", "READY", "waiting", "pending", "COMPLETED")

    def test_mirror_cancelled_softly(self):
        self.enter_ready()
        self.qmp.command("block-job-cancel", device="j")
        self.expect("ready", "READY", "waiting", "pending", "COMPLETED")

    def test_mirror_cancelled_by_force(self):
        for command, arguments in (
            ("job-cancel", {"id": "j"}),
            ("block-job-cancel", {"device": "j", "force": True}),
        ):
            with self.subTest(command):
                self.enter_ready()
                self.qmp.command(command, **arguments)
                self.expect("ready", "READY", "aborting", "CANCELLED")
                self.qmp.events.clear()

    def test_mirror_standby(self):
        self.enter_standby()
        self.qmp.command("job-cancel", id="j")
        self.expect("ready", "READY", "standby", "ready", "aborting", "CANCELLED")

    def test_error(self):
        self.qmp.command(
            "blockdev-add",
            driver="blkdebug",
            node_name="bad",
            image="ta",
            inject_error=[{"event": "none", "iotype": "write", "errno": 5}],
        )
        self.qmp.command(
            "blockdev-backup", job_id="j", device="a", target="bad", sync="full", auto_dismiss=False
        )
        self.wait("concluded")
        self.assertEqual(self.job()["error"], "Input/output error")
        self.qmp.command("job-dismiss", id="j")
        seen = self.events()
        first = seen.index("aborting")
        self.assertEqual(set(seen[4:first]), {"ERROR"})
        self.expect(*seen[4:first], "aborting", "FAILED")

    def test_the_error_is_known_when_the_job_is_concluded(self):
        self.backup(speed=SLOW, auto_dismiss=False)
        self.qmp.command("job-cancel", id="j")
        while self.qmp.wait_event("JOB_STATUS_CHANGE")["data"]["status"] != "concluded":
            pass
        self.assertEqual(self.job()["error"], "Operation canceled")

    def test_progress_in_events(self):
        self.enter_running()
        self.qmp.command("job-cancel", id="j")
        data = self.qmp.wait_event("BLOCK_JOB_CANCELLED")["data"]
        self.assertEqual((data["type"], data["device"], data["speed"]), ("backup", "j", SLOW))
        self.assertEqual(data["len"], SIZE)
        self.assertLess(data["offset"], SIZE)


class GroupTest(JobCase):
    """Jobs "j", which is fast, and "k", which is slow."""

    def both(self):
        return self.events(("j", "k"))

    def speed_up(self):
        self.qmp.command("block-job-set-speed", device="k", speed=0)

    def test_backups_of_a_transaction_begin_together(self):
        """Their disks are drained until all have begun."""
        self.group("individual")
        self.wait("null")
        self.speed_up()
        self.wait("null", "k")
        events = self.both()
        self.assertEqual(
            events[: 2 * len(BACKUP_STARTED)],
            ["j created", "k created", "j running", "j paused", "k running", "k paused",
             "j running", "k running"],
        )

    def test_all_end_together(self):
        self.enter_waiting()
        self.assertEqual(self.status("k"), "running")
        self.assertEqual(self.events(), BACKUP_STARTED + ["waiting"])
        self.speed_up()
        self.wait("null")
        self.wait("null", "k")
        self.assertEqual(
            [e for e in self.both() if e.split()[1] not in BACKUP_STARTED],
            ["j waiting", "k waiting", "j pending", "k pending"]
            + [f"{job} {e}" for job in "jk" for e in ("COMPLETED", "concluded", "null")],
        )

    def test_one_finalize_for_all(self):
        self.group(auto_finalize=False)
        self.wait("waiting")
        self.speed_up()
        self.wait("pending")
        self.wait("pending", "k")
        pending = [e for e in self.both() if e.endswith("PENDING")]
        self.assertEqual(pending, ["j PENDING", "k PENDING"])
        self.qmp.command("job-finalize", id="k")
        self.wait("null")
        self.wait("null", "k")
        self.assertEqual(
            [e for e in self.both() if e.endswith("COMPLETED")], ["j COMPLETED", "k COMPLETED"]
        )

    def test_a_cancel_is_that_of_all(self):
        for job in "jk":
            with self.subTest(job):
                self.enter_waiting()
                self.qmp.command("job-cancel", id=job)
                self.wait("null")
                self.wait("null", "k")
                events = [e.split() for e in self.both()]
                for who in "jk":
                    self.assertEqual(
                        [e for w, e in events if w == who and e not in BACKUP_STARTED + ["waiting"]],
                        ["aborting", "CANCELLED", "concluded", "null"],
                    )
                self.qmp.events.clear()

    def test_individual(self):
        self.group("individual")
        self.wait("null")
        self.assertEqual(self.status("k"), "running")
        self.qmp.command("job-cancel", id="k")
        self.wait("null", "k")
        self.assertIn("COMPLETED", self.events())
        self.assertIn("CANCELLED", self.events(("k",)))

    def test_bitmaps_are_given_back(self):
        self.qmp.command(
            "transaction",
            properties={"completion-mode": "grouped"},
            actions=[
                {
                    "type": "blockdev-backup",
                    "data": self.backup_of(
                        disk, job, bitmap="x", bitmap_mode="on-success", speed=speed
                    ),
                }
                for disk, job, speed in (("a", "j", 0), ("b", "k", SLOW))
            ],
        )
        self.wait("waiting")
        self.assertTrue(self.qmp.bitmaps("a")["x"]["busy"])
        self.qmp.command("job-cancel", id="k")
        self.wait("null")
        bitmap = self.qmp.bitmaps("a")["x"]
        self.assertFalse(bitmap["busy"])
        self.assertEqual(bitmap["count"], SIZE)

    def test_abort_of_the_transaction(self):
        with self.assertRaises(QmpError):
            self.qmp.command(
                "transaction",
                actions=[
                    {"type": "blockdev-backup", "data": self.backup_of("a", "j")},
                    {"type": "abort", "data": {}},
                ],
            )
        self.assertEqual(self.qmp.command("query-jobs"), [])
        self.assertEqual(self.events(), ["created", "aborting", "concluded", "null"])
        self.backup()
        self.wait("null")

    def test_a_job_that_permissions_refuse(self):
        """It is the one that fails, so it is not undone, as one that another action pulls down."""
        self.qmp.command("blockdev-add", driver="null-co", node_name="file", size=SIZE)
        self.qmp.command("blockdev-add", driver="raw", node_name="above", file="file")
        ok = {"type": "blockdev-backup", "data": self.backup_of("a", "j")}
        refused = {"job-id": "k", "device": "above", "target": "file", "sync": "full"}
        refused = {"type": "blockdev-backup", "data": refused}
        undone = ["created", "aborting", "concluded", "null"]
        for actions, first in (([refused], []), ([ok, refused], undone)):
            self.qmp.events.clear()
            with self.assertRaisesRegex(QmpError, "Permission conflict on node 'file'"):
                self.qmp.command("transaction", actions=actions)
            self.assertEqual(self.events(["k"]), ["created", "null"])
            self.assertEqual(self.events(["j"]), first)
        self.assertEqual(self.qmp.command("query-jobs"), [])

    def test_a_bad_argument_that_is_found_late(self):
        with self.assertRaises(QmpError):
            self.backup(filter_node_name="ta")
        self.assertIn(self.events(), ([], ["created", "null"]))
        self.assertEqual(self.qmp.command("query-jobs"), [])


class ChainTest(JobCase):
    """Jobs that shorten the chain "base" <- "mid" <- "top"."""

    def setUp(self):
        super().setUp()
        below = None
        for name in ("base", "mid", "top"):
            options = ("-b", self.images[below], "-F", "qcow2") if below else ()
            path = self.images[name] = self.create(name + ".qcow2", SIZE, options=options)
            tidemark.io(path, f"write -P 9 {MIB} {MIB}", fmt="qcow2")
            below = name
        below = None
        for name in ("base", "mid", "top"):
            more = {"backing": below} if below else {}
            self.qmp.command(
                "blockdev-add",
                driver="qcow2",
                node_name=name,
                file={"driver": "file", "filename": self.images[name]},
                **more,
            )
            below = name

    def expect(self, *names):
        self.wait("null")
        self.assertEqual(
            self.events(), ["created", "running", *names, "COMPLETED", "concluded", "null"]
        )

    def test_stream(self):
        self.qmp.command("block-stream", job_id="j", device="top", base_node="base")
        self.expect("waiting", "pending")

    def test_commit_of_an_image_between(self):
        self.qmp.command(
            "block-commit", job_id="j", device="top", top_node="mid", base_node="base"
        )
        self.expect("waiting", "pending")

    def test_commit_of_the_active_image(self):
        self.qmp.command("block-commit", job_id="j", device="top", base_node="base")
        self.wait("ready")
        self.qmp.command("job-complete", id="j")
        self.expect("ready", "READY", "waiting", "pending")

    def test_graph_changes_at_the_end(self):
        self.qmp.command(
            "block-stream", job_id="j", device="top", base_node="base", auto_finalize=False
        )
        self.wait("pending")
        self.assertEqual(self.qmp.node("top")["backing_file_depth"], 2)
        self.qmp.command("job-finalize", id="j")
        self.wait("null")
        self.assertEqual(self.qmp.node("top")["backing_file_depth"], 1)


class UseTest(JobCase):
    """Nodes that a job uses."""

    def refused(self, command, **arguments):
        with self.assertRaises(QmpError) as caught:
            self.qmp.command(command, **arguments)
        return caught.exception.desc

    def test_of_a_backup(self):
        self.enter_running()
        self.assertEqual(self.refused("blockdev-del", node_name="a"), "Block device a is in use")
        self.assertEqual(
            self.refused("blockdev-del", node_name="ta"),
            "Node 'ta' is busy: block device is in use by block job: backup",
        )
        self.refused("blockdev-backup", job_id="k", device="b", target="ta", sync="full")
        self.refused("blockdev-mirror", job_id="k", device="b", target="ta", sync="full")
        self.assertEqual([j["id"] for j in self.qmp.command("query-jobs")], ["j"])
        self.end_all()
        for node in ("a", "ta"):
            self.qmp.command("blockdev-del", node_name=node)

    def test_of_a_mirror(self):
        self.enter_ready()
        self.refused("blockdev-backup", job_id="k", device="b", target="ta", sync="full")
        for node in ("a", "ta"):
            self.refused("blockdev-del", node_name=node)
        self.end_all()
        for node in ("a", "ta"):
            self.qmp.command("blockdev-del", node_name=node)

    def test_of_a_job_that_is_concluded(self):
        self.enter_concluded()
        for node in ("a", "ta"):
            self.qmp.command("blockdev-del", node_name=node)
        self.qmp.command("job-dismiss", id="j")
