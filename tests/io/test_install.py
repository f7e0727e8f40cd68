# SPDX-License-Identifier: Apache-2.0
"""What `make install` puts where, and that completion knows what --help knows."""

import json
import os
import re
import unittest

from tidemark import BUILD, TIDEMARK, TestCase, run

SOURCE = os.environ.get("TIDEMARK_SOURCE", ".")
COMPLETION = os.path.join(SOURCE, "dist", "completion.bash")


class Install(TestCase):
    def test_program_pages_completion_and_units(self):
        shown = run("meson", "introspect", BUILD, "--buildoptions").stdout
        prefix = next(o["value"] for o in json.loads(shown) if o["name"] == "prefix").lstrip("/")
        target = os.path.abspath("target")
        run("meson", "install", "-C", BUILD, "--no-rebuild", "--destdir", target)
        found = set()
        for folder, _, names in os.walk(target):
            found |= {os.path.relpath(os.path.join(folder, n), target) for n in names}
        self.assertIn(f"{prefix}/bin/tidemark", found)
        pages = sorted(os.path.basename(path) for path in found if "/man1/" in path)
        self.assertEqual(pages, sorted(os.listdir(os.path.join(SOURCE, "man"))))
        self.assertIn(f"{prefix}/share/bash-completion/completions/tidemark", found)
        units = [path for path in found if "/systemd/system/" in path]
        self.assertEqual(len(units), 11, units)
        for path in units:
            with open(os.path.join(target, path), encoding="utf-8") as unit:
                for program in re.findall(r"^Exec\w+=-?(\S+) ([\w-]+)", unit.read(), re.M):
                    self.assertEqual(program[0], f"/{prefix}/bin/tidemark")
                    self.assertIn(program[1], ("daemon", "nbd", "backup", "verify", "metrics",
                                               "audit", "test-restore"))  # fmt: skip
        self.assert_units_are_right(target, f"{target}/{prefix}", f"/{prefix}")

    def assert_units_are_right(self, target, installed, prefix):
        """As systemd reads them, with the program where it is for this test."""
        units = os.path.join(installed, "lib", "systemd", "system")
        for name in os.listdir(units):
            path = os.path.join(units, name)
            with open(path, encoding="utf-8") as f:
                text = f.read().replace(f"{prefix}/bin/", f"{target}{prefix}/bin/")
            with open(path, "w", encoding="utf-8") as f:
                f.write(text)
        names = [
            os.path.join(units, name.replace("@.", "@disk.")) for name in sorted(os.listdir(units))
        ]
        result = run("systemd-analyze", "verify", "--man=no", *names, check=False)
        self.assertEqual((result.returncode, result.stderr), (0, ""))


class Completion(TestCase):
    def complete(self, *words):
        """What is offered for the last of the words of a command line."""
        os.makedirs("bin", exist_ok=True)
        for name in ("tidemark", "qemu-img"):
            if not os.path.islink(os.path.join("bin", name)):
                os.symlink(os.path.abspath(TIDEMARK), os.path.join("bin", name))
        script = (
            f"PATH=$PWD/bin:$PATH; source {COMPLETION}; COMP_WORDS=(\"$@\"); "
            "COMP_CWORD=$(($# - 1)); _tidemark; printf '%s\\n' \"${COMPREPLY[@]}\""
        )
        return run("bash", "-c", script, "bash", *words).stdout.split()

    def test_faces(self):
        self.assertEqual(self.complete("tidemark", "re"), ["restore", "repair"])
        self.assertIn("daemon", self.complete("tidemark", ""))

    def test_faces_for_zsh(self):
        """With stand-ins for the functions of its completion system."""
        script = (
            "_describe() { print -l -- ${(P)2} }; compadd() { shift; print -l -- $@ }; "
            "_files() { print FILES }; words=($@); CURRENT=$#; . $SCRIPT"
        )

        def complete(*words):
            env = {**os.environ, "SCRIPT": os.path.join(SOURCE, "dist", "_tidemark")}
            words = [TIDEMARK if w == "tidemark" else w for w in words]
            return run("zsh", "-f", "-c", script, "zsh", *words, env=env).stdout.splitlines()

        self.assertIn("restore:write a disk as it was at the time of a backup",
                      complete("tidemark", ""))  # fmt: skip
        self.assertIn("--shrink", complete("tidemark", "img", "resize", "-"))
        self.assertIn("--writable", complete("tidemark", "serve", "--w"))
        self.assertEqual(complete("tidemark", "img", "info", "dis"), ["FILES"])
        self.assertTrue(any(c.startswith("rebase:") for c in complete("tidemark", "img", "")))

    def test_faces_for_fish(self):
        def complete(line):
            self.complete("tidemark", "")
            script = f'set PATH $PWD/bin $PATH; source {SOURCE}/dist/tidemark.fish; complete -C "{line}"'
            return run("fish", "--no-config", "-c", script).stdout.splitlines()

        self.assertIn("restore\twrite a disk as it was at the time of a backup",
                      complete("tidemark res"))  # fmt: skip
        self.assertEqual(complete("tidemark img resize --shr"), ["--shrink"])
        self.assertEqual([c.split("\t")[0] for c in complete("tidemark img reb")],
                         ["rebase", "rebuild-chain"])  # fmt: skip
        with open("disk.raw", "w", encoding="ascii"):
            pass
        self.assertEqual(complete("tidemark img info dis"), ["disk.raw"])

    def test_sub_commands(self):
        self.assertEqual(
            self.complete("tidemark", "img", "re"), ["rebase", "rebuild-chain", "resize"]
        )
        self.assertEqual(self.complete("qemu-img", "me"), ["measure"])

    def test_options(self):
        self.assertIn("--fleece-dir", self.complete("tidemark", "backup", "--f"))
        self.assertEqual(self.complete("tidemark", "img", "resize", "--shr"), ["--shrink"])
        self.assertIn("--prealloc", " ".join(self.complete("qemu-img", "resize", "--p")))
        self.assertIn("-f", self.complete("tidemark", "img", "create", "-"))

    def test_files_are_left_to_the_shell(self):
        self.assertEqual(self.complete("tidemark", "img", "info", "dis"), [])


if __name__ == "__main__":
    unittest.main()
