# SPDX-License-Identifier: Apache-2.0
"""Prune, verify and copy for all disks of a root of sets."""

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess

from test_backup_set import CLUSTER, SetCase
from tidemark import run, tool, wait_until

STOPPED = re.compile(r"^(\d+) +--- stopped by SIGSTOP", re.M)


def read_text(path):
    """What a program has written so far."""
    if not os.path.exists(path):
        return ""
    with open(path, encoding="utf-8", errors="replace") as f:
        return f.read()


class Roots(SetCase):
    def setUp(self):
        super().setUp()
        self.keys = []
        self.taken = []

    def take(self, count, *words):
        for _ in range(count):
            n = len(self.taken)
            self.write_to("a", n * CLUSTER, CLUSTER)
            self.write_to("b", n * CLUSTER, 4096)
            one = self.backup(*self.keys, *words)
            self.taken.append((one, {d: bytes(m) for d, m in self.models.items()}))

    def backup(self, *words):
        return json.loads(run(*self.backup_words("--output=json", *words)).stdout)

    def ask(self, face, *words, status=0):
        result = run(*tool(face), "--output=json", *self.keys, *words, check=False)
        self.assertEqual(result.returncode, status, result.stdout + result.stderr)
        return json.loads(result.stdout)

    def at(self, disk):
        return os.path.join(self.repository, disk)

    def ids(self, root=None):
        return [s["id"] for s in self.ask("sets", root or self.repository)]

    def backups_of(self, disk, root=None):
        return [b["id"] for b in self.ask("backups", os.path.join(root or self.repository, disk))]

    def set_id(self, n):
        return self.taken[n][0]["set"]["id"]

    def assert_restores(self, root, n):
        target = self.path("restored")
        run(*tool("sets"), *self.keys, root, "--restore", target, "--at", self.set_id(n))
        for d in self.disks:
            with open(os.path.join(target, d + ".raw"), "rb") as f:
                self.assertTrue(f.read() == self.taken[n][1][d], d)
        shutil.rmtree(target)


class Prune(Roots):
    def test_the_same_sets_stay_on_all_disks(self):
        self.start()
        self.take(4)
        # A backup of one disk only: the rules count it by itself, per disk.
        alone = json.loads(run(*tool("backup"), "--qmp", self.monitor, "--node", "a",
                               "--to", self.at("a"), "--output=json").stdout)["id"]  # fmt: skip
        self.take(1)
        wanted = [self.set_id(n) for n in (3, 4)]
        dry = self.ask("prune", "--dry-run", "--keep-last=2", self.repository)
        self.assertEqual(len(self.ids()), 5)
        done = self.ask("prune", "--keep-last=2", self.repository)
        self.assertEqual([s["fate"] for s in done["sets"]], ["removed"] * 3 + ["kept"] * 2)
        self.assertEqual([s["fate"] for s in dry["sets"]], [s["fate"] for s in done["sets"]])
        self.assertEqual(self.ids(), wanted)
        self.assertEqual(len(self.backups_of("b")), 2)
        self.assertEqual(len(self.backups_of("a")), 3)
        self.assertIn(alone, self.backups_of("a"))
        for n in (3, 4):
            self.assert_restores(self.repository, n)
        self.take(1)
        self.assertEqual([m["kind"] for m in self.taken[-1][0]["backups"]], ["incremental"] * 2)

    def test_a_set_is_gone_before_its_files_are(self):
        self.start()
        self.take(2)
        root = os.path.realpath(self.repository)
        run("strace", "-f", "-o", "/dev/null", "-P", os.path.join(root, "sets"),
            "-e", "trace=fsync", "-e", "inject=fsync:error=EIO",
            *tool("prune"), "--keep-last=1", root, check=False)  # fmt: skip
        left = os.path.join(root, "sets", ".tidemark-tmp-" + self.set_id(0))
        self.assertEqual(os.listdir(left), ["set.json"])
        self.assertEqual([len(self.backups_of(d)) for d in self.disks], [2, 2])
        self.ask("prune", "--keep-last=1", root)
        self.assertEqual([len(self.backups_of(d)) for d in self.disks], [1, 1])

    def test_a_link_to_a_directory_elsewhere_is_not_followed(self):
        self.start()
        self.take(3)
        elsewhere = self.path("elsewhere")
        os.rename(self.at("b"), elsewhere)
        os.symlink(elsewhere, self.at("b"))
        error = self.ask("prune", "--keep-last=1", self.repository, status=1)["error"]
        self.assertIn("is a link", error["message"])
        self.assertEqual(len(self.ids()), 3)
        for d in (elsewhere, self.at("a")):
            self.assertEqual(len(self.ask("backups", d)), 3)

    def test_a_set_by_its_name_and_of_a_machine(self):
        self.start()
        self.take(3)
        self.ask("prune", "--remove", self.set_id(2), self.repository, status=1)
        self.ask("prune", "--vm=another", "--keep-last=1", self.repository, status=1)
        self.ask("prune", "--vm=guest1", "--remove", self.set_id(1), self.repository)
        self.assertEqual(self.ids(), [self.set_id(0), self.set_id(2)])
        for n in (0, 2):
            self.assert_restores(self.repository, n)

    def test_after_a_kill_between_the_disks(self):
        self.start()
        self.take(3)
        # As a run leaves it: the set is gone, and its backup of one disk.
        run(*tool("prune"), "--remove", self.taken[0][0]["backups"][0]["id"], self.at("a"))
        shutil.rmtree(os.path.join(self.repository, "sets", self.set_id(0)))
        self.ask("prune", "--keep-last=9", self.repository)
        self.assertEqual([len(self.backups_of(d)) for d in self.disks], [2, 2])
        self.assert_restores(self.repository, 2)

    def test_sets_of_a_copy_that_was_killed_are_still_to_come(self):
        self.start()
        self.take(2)
        copy = self.path("copy")
        self.ask("copy", self.repository, copy)
        self.take(2)
        # The copy ends after its disks, before the sets.
        for disk in self.disks:
            run(*tool("copy"), self.at(disk), os.path.join(copy, disk))
        self.ask("prune", "--keep-last=1", copy)
        self.assertEqual([len(self.backups_of(d, copy)) for d in self.disks], [3, 3])
        self.ask("copy", "--last=2", self.repository, copy)
        for n in (2, 3):
            self.assert_restores(copy, n)
        self.ask("prune", "--keep-last=1", copy)
        self.assertEqual([len(self.backups_of(d, copy)) for d in self.disks], [1, 1])
        self.assert_restores(copy, 3)

    def test_a_set_that_verify_has_found_damaged_is_not_counted(self):
        self.start()
        self.take(1)
        self.take(1, "--full")
        path = os.path.join(self.at("a"), self.taken[1][0]["backups"][0]["id"], "disk.qcow2")
        with open(path, "r+b") as f:
            f.seek(os.path.getsize(path) // 2)
            f.write(b"damage")
        self.ask("verify", self.repository, status=2)
        self.ask("prune", "--keep-last=1", self.repository, status=2)
        self.assertEqual(self.ids(), [self.set_id(0), self.set_id(1)])
        self.assert_restores(self.repository, 0)

    def test_what_verify_has_found_is_listed_and_not_restored(self):
        self.start()
        self.take(2)
        victim = self.taken[1][0]["backups"][0]["id"]
        image = os.path.join(self.at("a"), victim, "disk.qcow2")
        with open(image, "r+b") as f:
            f.seek(os.path.getsize(image) // 2)
            f.write(b"damage")
        self.assertEqual([s["problems"] for s in self.ask("sets", self.repository)], [[], []])
        run(*tool("verify"), self.repository, check=False)
        first, second = self.ask("sets", self.repository)
        self.assertEqual(first["problems"], [])
        self.assertEqual([p["directory"] for p in second["problems"]], ["a"])
        self.assertIn("verify' found damage", second["problems"][0]["problem"])
        self.assertIn("NOT WHOLE: a: ", run(*tool("sets"), self.repository).stdout)
        target = self.path("restored")
        result = run(*tool("sets"), self.repository, "--restore", target, check=False)
        self.assertEqual(result.returncode, 1)
        self.assertIn("verify' found damage", result.stderr)
        self.assertFalse(os.path.exists(target))
        self.assert_restores(self.repository, 0)
        # By itself the disk is tried, with a word at the beginning.
        result = run(*tool("restore"), self.at("a"), self.path("a.raw"), check=False)
        self.assertEqual(result.returncode, 1)
        self.assertIn(f"Backup {victim}: 'tidemark verify' found damage", result.stderr)

    def test_a_set_that_is_not_whole_stays(self):
        self.start()
        self.take(3)
        run(*tool("prune"), "--remove", self.taken[0][0]["backups"][0]["id"], self.at("a"))
        done = self.ask("prune", "--keep-last=1", self.repository, status=2)
        self.assertEqual([s["fate"] for s in done["sets"]], ["damaged", "removed", "kept"])
        self.assertIn("is gone", done["sets"][0]["problem"])
        self.assertEqual([len(self.backups_of(d)) for d in self.disks], [1, 2])
        self.assert_restores(self.repository, 2)


class Verify(Roots):
    def test_all_disks_and_what_is_missing(self):
        self.start()
        self.take(2)
        said = self.ask("verify", self.repository)
        self.assertEqual([(s["directory"], s["sound"]) for s in said],
                         [("a", True)] * 2 + [("b", True)] * 2)  # fmt: skip
        one = self.ask("verify", "--at", self.set_id(0), self.repository)
        self.assertEqual([s["directory"] for s in one], ["a", "b"])
        timed = self.ask("verify", "--for=1h", self.repository)
        self.assertEqual(len(timed), 4)
        self.ask("verify", "--vm=another", self.repository, status=1)
        lost = os.path.join(self.at("b"), self.taken[1][0]["backups"][1]["id"])
        shutil.rmtree(lost)
        said = self.ask("verify", self.repository, status=2)
        self.assertEqual([s["id"] for s in said if not s["sound"]], [self.set_id(1)])
        self.assertEqual([s["directory"] for s in said if not s["sound"]], ["sets"])


    def test_a_disk_that_cannot_be_checked_keeps_no_other_from_it(self):
        self.start()
        self.take(1)
        os.rename(self.at("a"), self.path("elsewhere"))
        said = self.ask("verify", self.repository, status=2)
        self.assertEqual([(s["directory"], s["sound"], s["checked"]) for s in said],
                         [("a", False, False), ("b", True, True), ("sets", False, True)])  # fmt: skip
        self.assertIn("No such file", said[0]["problem"])
        text = run(*tool("verify"), self.repository, check=False).stdout
        self.assertIn("NOT CHECKED: ", text)

    def test_sets_that_a_prune_removes_meanwhile(self):
        self.start()
        self.take(3)
        root, log = os.path.realpath(self.repository), self.path("strace.log")
        # It stops when the sets are read, and the backups of the first disk are not.
        with subprocess.Popen(
            ["strace", "-f", "-o", log, "-P", os.path.join(root, "a"), "-e", "trace=getdents64",
             "-e", "inject=getdents64:signal=SIGSTOP:when=1",
             *tool("verify"), "--output=json", root],
            stdout=subprocess.PIPE, text=True,
        ) as verify:  # fmt: skip
            stopped = wait_until(lambda: STOPPED.search(read_text(log)), "the stop of the program")
            self.ask("prune", "--keep-last=1", root)
            os.kill(int(stopped.group(1)), signal.SIGCONT)
            output = verify.communicate(timeout=60)[0]
        self.assertEqual(verify.returncode, 0, output)
        self.assertEqual({b["directory"] for b in json.loads(output)}, {"a", "b"})


class Copy(Roots):
    def test_all_the_newest_and_one(self):
        self.start()
        definition = self.path("guest1.xml")
        with open(definition, "w", encoding="utf-8") as f:
            f.write("<domain/>\n")
        self.take(3, "--definition", definition)
        whole, newest, one = self.path("whole"), self.path("newest"), self.path("one")
        self.assertEqual(self.ask("copy", self.repository, whole)["sets"], 3)
        self.assertEqual(self.ids(whole), self.ids())
        for n in range(3):
            self.assert_restores(whole, n)
        path = os.path.join(whole, "sets", self.set_id(0), "definition")
        with open(path, encoding="utf-8") as f:
            self.assertEqual(f.read(), "<domain/>\n")
        self.assertEqual(self.ask("copy", "--last=1", self.repository, newest)["sets"], 1)
        self.assertEqual(self.ids(newest), [self.set_id(2)])
        self.assert_restores(newest, 2)
        self.ask("copy", "--at", self.set_id(1), self.repository, one)
        self.assertEqual(self.ids(one), [self.set_id(1)])
        self.assert_restores(one, 1)
        self.take(1)
        again = self.ask("copy", self.repository, whole)
        self.assertEqual((again["sets"], again["copied"], again["present"]), (1, 2, 6))
        self.assert_restores(whole, 3)

    def damage(self, *names):
        path = os.path.join(self.repository, *names)
        with open(path, "r+b") as f:
            f.seek(os.path.getsize(path) // 2)
            f.write(b"damage")

    def test_damage_of_one_disk_keeps_nothing_else_from_being_copied(self):
        self.start()
        self.take(2)
        self.damage("a", self.taken[1][0]["backups"][0]["id"], "disk.qcow2")
        copy = self.path("copy")
        answer = self.ask("copy", self.repository, copy, status=1)
        self.assertEqual(answer["error"]["kind"], "damaged")
        self.assertEqual(self.backups_of("b", copy), self.backups_of("b"))
        self.assertEqual(self.ids(copy), [self.set_id(0)])
        self.assert_restores(copy, 0)

    def test_a_set_that_is_damaged_in_the_copy_is_copied_again(self):
        self.start()
        definition = self.path("guest1.xml")
        with open(definition, "w", encoding="utf-8") as f:
            f.write("<domain/>\n")
        self.take(2, "--definition", definition)
        copy = self.path("copy")
        self.ask("copy", self.repository, copy)
        place = os.path.join(copy, "sets", self.set_id(0))
        for name, text in (("set.json", "damage"), ("definition", "damage"), ("set.json", None)):
            path = os.path.join(place, name)
            os.unlink(path)
            if text:
                with open(path, "w", encoding="utf-8") as f:
                    f.write(text)
            # What killed copies of sets that are gone have left.
            left = os.path.join(copy, "sets", ".tidemark-tmp-20200101T000000Z")
            os.mkdir(left)
            answer = self.ask("copy", self.repository, copy)
            self.assertEqual((answer["sets"], answer["copied"]), (1, 0), name)
            self.ask("verify", copy)
            self.assert_restores(copy, 0)
            said = run(*tool("sets"), copy, "--definition", "--at", self.set_id(0)).stdout
            self.assertEqual(said, "<domain/>\n")
            self.assertEqual(sorted(os.listdir(os.path.join(copy, "sets"))), self.ids())
        # One that only grows keeps it, which is said.
        for d in self.disks:
            run(*tool("repair"), "--append-only=on", os.path.join(copy, d))
        os.unlink(os.path.join(place, "set.json"))
        answer = self.ask("copy", self.repository, copy, status=1)
        self.assertIn(self.set_id(0), answer["error"]["message"])
        self.assertIn("only grows", answer["error"]["message"])

    def test_a_set_is_replaced_when_the_new_one_is_written(self):
        """What fails on the way, as a full disk does, leaves the one that is there."""
        self.start()
        definition = self.path("guest1.xml")
        with open(definition, "w", encoding="utf-8") as f:
            f.write("<domain/>\n")
        self.take(1, "--definition", definition)
        copy = os.path.join(os.path.realpath(self.path("")), "copy")
        self.ask("copy", self.repository, copy)
        place = os.path.join(copy, "sets", self.set_id(0))
        for fault in ("fsync:error=EIO", "renameat2:error=EINVAL"):
            os.unlink(os.path.join(place, "definition"))
            run("strace", "-f", "-o", "/dev/null", "-P", os.path.join(copy, "sets"),
                "-e", f"trace={fault.split(':')[0]}", "-e", "inject=" + fault,
                *tool("copy"), self.repository, copy, check=False)  # fmt: skip
            self.assertTrue(os.path.exists(os.path.join(place, "set.json")), fault)
        self.assert_restores(copy, 0)
        self.assertEqual(self.ask("copy", self.repository, copy)["sets"], 0)
        self.assertEqual(os.listdir(os.path.join(copy, "sets")), self.ids())

    def test_a_set_that_may_not_be_read_is_not_replaced(self):
        self.start()
        self.take(2)
        copy = self.path("copy")
        self.ask("copy", self.repository, copy)
        place = os.path.join(copy, "sets", self.set_id(0))
        as_other = []
        if os.geteuid() == 0:
            as_other = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"]
            os.chmod(self.path(""), 0o755)
            for top in (self.repository, copy):
                for path, _, names in os.walk(top):
                    for name in [path] + [os.path.join(path, n) for n in names]:
                        os.chown(name, 65534, 65534)
            os.chown(place, 0, 0)
            os.chown(os.path.join(place, "set.json"), 0, 0)
        os.chmod(os.path.join(place, "set.json"), 0o600 if as_other else 0)
        for face, *words in (("copy", self.repository, copy), ("sets", copy), ("verify", copy)):
            program = [os.path.abspath(w) if "/" in w else w for w in tool(face)]
            result = run(*as_other, *program, *words, check=False)
            said = result.stdout + result.stderr
            self.assertEqual(result.returncode, face != "sets", said)
            self.assertIn("not be read", said.lower())
            self.assertNotIn("damaged", said.lower())
            self.assertEqual(sorted(os.listdir(os.path.join(copy, "sets"))), self.ids())
        os.chmod(os.path.join(place, "set.json"), 0o600)
        self.assert_restores(copy, 0)

    def test_a_prune_removes_what_killed_runs_have_left(self):
        self.start()
        self.take(2)
        left = os.path.join(self.repository, "sets", ".tidemark-tmp-20200101T000000Z")
        os.mkdir(left)
        self.ask("prune", "--dry-run", "--keep-last=1", self.repository)
        self.assertTrue(os.path.exists(left))
        self.ask("prune", "--keep-last=5", self.repository)
        self.assertFalse(os.path.exists(left))

    def test_sets_that_are_left_out_are_said(self):
        self.start()
        self.take(3)
        self.damage("sets", self.set_id(0), "set.json")
        self.damage("a", self.taken[1][0]["backups"][0]["id"], "manifest.json")
        words = [*tool("copy"), self.repository, self.path("copy")]
        said = run(*words, check=False)
        self.assertEqual(said.returncode, 2, said.stderr)
        self.assertIn("2 damaged, and left out", said.stdout)
        self.assertIn("3 sets are not whole, and left out", said.stdout)
        answer = self.ask("copy", self.repository, self.path("copy"), status=2)
        self.assertEqual((answer["sets"], answer["sets-left-out"]), (0, 3))


class Keys(Roots):
    def make_key(self, name):
        with open(self.path(name), "wb") as f:
            f.write(self.random.randbytes(40))
        return ["--key-file", self.path(name)]

    def read_set(self, n, name="set.json"):
        with open(os.path.join(self.repository, "sets", self.set_id(n), name), "rb") as f:
            return f.read()

    def test_a_set_that_was_changed_without_the_key(self):
        self.keys = self.make_key("key")
        self.start()
        self.take(2)
        made = self.read_set(0)
        o = json.loads(made)
        o["disks"][0]["backup"] = self.taken[1][0]["backups"][0]["id"]
        path = os.path.join(self.repository, "sets", self.set_id(0), "set.json")
        for drop in ([], ["mac"], ["mac", "key"]):
            changed = {k: v for k, v in o.items() if k not in [*drop, "sha256"]}
            text = json.dumps(changed, separators=(",", ":")).encode()
            changed["sha256"] = hashlib.sha256(text).hexdigest()
            with open(path, "w", encoding="utf-8") as f:
                json.dump(changed, f)
            result = run(*tool("sets"), *self.keys, self.repository, "--restore",
                         self.path("none"), "--at", self.set_id(0), check=False)  # fmt: skip
            self.assertEqual(result.returncode, 1)
            self.assertIn("damaged", result.stderr)
        with open(path, "wb") as f:
            f.write(made)
        self.assert_restores(self.repository, 0)

    def forge(self, n, **changes):
        """Without a code, and with other contents."""
        path = os.path.join(self.repository, "sets", self.set_id(n), "set.json")
        with open(path, encoding="utf-8") as f:
            o = json.load(f)
        o = {k: v for k, v in {**o, **changes}.items() if k not in ("mac", "key", "sha256")}
        text = json.dumps(o, separators=(",", ":")).encode()
        o["sha256"] = hashlib.sha256(text).hexdigest()
        with open(path, "w", encoding="utf-8") as f:
            json.dump(o, f)

    def test_a_definition_that_was_changed(self):
        definition = self.path("guest1.xml")
        with open(definition, "w", encoding="utf-8") as f:
            f.write("<domain/>\n")
        for words in [], self.make_key("key"):
            self.keys = words
            self.repository, self.taken = self.path(f"root{len(words)}"), []
            if not words:
                self.start()
            self.take(1, "--definition", definition)
            place = os.path.join(self.repository, "sets", self.set_id(0), "definition")
            with open(place, "r+", encoding="utf-8") as f:
                f.write("<Domain/>")
            copy = self.path(f"copy{len(words)}")
            for face, *more in ["sets", "--definition"], ["copy", copy]:
                result = run(*tool(face), *words, self.repository, *more, check=False)
                self.assertEqual(result.returncode, 1, result.stdout)
                self.assertIn("was changed: its SHA-256 is not that of the set", result.stderr)
            said = self.ask("verify", self.repository, status=2)
            self.assertEqual([s["directory"] for s in said if not s["sound"]], ["sets"])
            os.unlink(place)
            said = self.ask("verify", self.repository, status=2)
            self.assertIn("is lost", [s for s in said if not s["sound"]][0]["problem"])

    def test_a_lost_definition_keeps_no_other_set_from_being_copied(self):
        self.start()
        definition = self.path("guest1.xml")
        with open(definition, "w", encoding="utf-8") as f:
            f.write("<domain/>\n")
        self.take(2, "--definition", definition)
        os.unlink(os.path.join(self.repository, "sets", self.set_id(0), "definition"))
        copy = self.path("copy")
        answer = self.ask("copy", self.repository, copy, status=1)
        self.assertIn("is lost", answer["error"]["message"])
        self.assertEqual(self.ids(copy), [self.set_id(1)])
        self.assert_restores(copy, 1)

    def test_a_key_that_is_given_later_authenticates_the_definition(self):
        definition = self.path("guest1.xml")
        with open(definition, "w", encoding="utf-8") as f:
            f.write("<domain/>\n")
        self.start()
        self.take(2, "--definition", definition)
        for n in range(2):
            self.forge(n, **{"definition-sha256": None})  # as programs before made it
        places = [os.path.join(self.repository, "sets", self.set_id(n), "definition") for n in range(2)]
        os.unlink(places[1])
        self.keys = self.make_key("key")
        for disk in self.disks:
            self.ask("repair", "--sign", self.at(disk))
        items = self.ask("repair", "--sign", self.repository, status=2)["items"]
        self.assertEqual([i["repaired"] for i in items], [True, False])
        self.assertIn("is lost", items[1]["problem"])
        with open(places[0], "w", encoding="utf-8") as f:
            f.write("<Domain/>\n")
        words = [*tool("sets"), *self.keys, self.repository, "--definition", "--at", self.set_id(0)]
        self.assertIn("was changed", run(*words, check=False).stderr)

    def test_sets_that_are_older_than_the_key_get_it(self):
        self.start()
        self.take(3)
        self.keys = self.make_key("key")
        for disk in self.disks:
            self.ask("repair", "--sign", self.at(disk))
        self.assertEqual([s.get("damaged", False) for s in self.ask("sets", self.repository)], [True] * 3)
        self.ask("repair", self.repository, status=1)
        # One that claims to be of other backups is not believed.
        other = self.taken[0][0]["backups"]
        self.forge(1, disks=[{"directory": m["node"], "node": m["node"], "backup": m["id"]}
                             for m in other])  # fmt: skip
        self.ask("prune", "--keep-last=2", self.at("a"))
        items = self.ask("repair", "--sign", self.repository, status=2)["items"]
        self.assertEqual(
            [(i["id"], i["file"], i["repaired"]) for i in items],
            [(self.set_id(n), "set.json", n != 1) for n in range(3)],
        )
        self.assertIn("not of this set", items[1]["problem"])
        self.assert_restores(self.repository, 2)
        self.assertEqual(
            [s.get("damaged", False) for s in self.ask("sets", self.repository)], [False, True, False]
        )
        before = self.read_set(2)
        self.ask("repair", "--sign", self.repository, status=2)
        self.assertEqual(self.read_set(2), before)

    def test_a_wrong_code_is_not_made_right(self):
        self.keys = self.make_key("key")
        self.start()
        self.take(2)
        self.ask("repair", "--sign", self.repository, status=1)
        path = os.path.join(self.repository, "sets", self.set_id(0), "set.json")
        o = json.loads(self.read_set(0))
        o["machine"] = "another"
        del o["sha256"]
        text = json.dumps(o, separators=(",", ":")).encode()
        o["sha256"] = hashlib.sha256(text).hexdigest()
        with open(path, "w", encoding="utf-8") as f:
            json.dump(o, f)
        (item,) = self.ask("repair", "--sign", self.repository, status=2)["items"]
        self.assertIn("without the key", item["problem"])

    def test_encrypted_sets(self):
        self.keys = self.make_key("key")
        self.start()
        definition = self.path("guest1.xml")
        with open(definition, "w", encoding="utf-8") as f:
            f.write("<domain/>\n")
        self.take(2, "--encrypt", "--definition", definition)
        for name in ("set.json", "definition"):
            self.assertEqual(self.read_set(0, name)[:8], b"TIDESEAL")
        for n in range(2):
            self.assert_restores(self.repository, n)
        copy = self.path("copy")
        self.ask("copy", self.repository, copy)
        self.assert_restores(copy, 1)
        self.ask("prune", "--keep-last=1", self.repository)
        self.ask("verify", self.repository)
        self.assert_restores(self.repository, 1)
        right, self.keys = self.keys, []
        self.assertEqual(self.ask("sets", self.repository, status=1)["error"]["kind"], "key")
        self.keys = self.make_key("wrong")
        self.assertEqual(self.ask("sets", self.repository, status=1)["error"]["kind"], "key")
        self.keys = right
        self.assertEqual(len(self.ids()), 1)
        said = run(*tool("sets"), *self.keys, self.repository, "--definition").stdout
        self.assertEqual(said, "<domain/>\n")

    def assert_encrypted(self, root):
        for d in self.disks:
            with open(os.path.join(root, d, "repository.json"), encoding="utf-8") as f:
                self.assertIn("encryption", json.load(f), d)

    def test_a_disk_that_joins_an_encrypted_set_is_encrypted(self):
        """Also if it is the first one, by which a set was judged, and the command says nothing."""
        self.keys = self.make_key("key")
        self.start()
        definition = self.path("guest1.xml")
        with open(definition, "w", encoding="utf-8") as f:
            f.write("<domain/>\n")
        self.take(1, "--encrypt", "--node", "b")
        self.take(1, "--definition", definition)
        self.assert_encrypted(self.repository)
        for name in ("set.json", "definition"):
            self.assertEqual(self.read_set(1, name)[:8], b"TIDESEAL")
        self.assert_restores(self.repository, 1)

    def test_a_disk_that_joins_an_encrypted_copy_is_encrypted(self):
        self.keys = self.make_key("key")
        self.start()
        copy = self.path("copy")
        self.take(1, "--node", "b")
        self.ask("copy", "--encrypt", "--append-only", self.repository, copy)
        self.take(1)
        self.ask("copy", self.repository, copy)
        self.assert_encrypted(copy)
        for d in self.disks:
            with open(os.path.join(copy, d, "repository.json"), encoding="utf-8") as f:
                self.assertTrue(json.load(f)["append-only"], d)
        for name in os.listdir(os.path.join(copy, "sets")):
            with open(os.path.join(copy, "sets", name, "set.json"), "rb") as f:
                self.assertEqual(f.read(8), b"TIDESEAL")
        self.assert_restores(copy, 1)
