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
        self.assertEqual(len(units), 3, units)
        for path in units:
            with open(os.path.join(target, path), encoding="utf-8") as unit:
                for program in re.findall(r"^ExecStart=(\S+) (\w+)", unit.read(), re.M):
                    self.assertEqual(program[0], f"/{prefix}/bin/tidemark")
                    self.assertIn(program[1], ("daemon", "nbd"))


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

    def test_sub_commands(self):
        self.assertEqual(self.complete("tidemark", "img", "re"), ["rebase", "resize"])
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
