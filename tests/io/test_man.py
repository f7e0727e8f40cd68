# SPDX-License-Identifier: Apache-2.0
"""The manual pages name what --help names, and render."""

import os
import re
import unittest

from tidemark import TIDEMARK, TestCase, img, run, tool

MAN = os.path.join(os.environ.get("TIDEMARK_SOURCE", "."), "man")


def options(help_text):
    """As a page shows them: `-x` without the long name, else `--name`."""
    return set(re.findall(r"^ +(?:-\w, )?(--[\w-]+|-\w)\b", help_text, re.M))


class ManualPages(TestCase):
    def page(self, name):
        with open(os.path.join(MAN, name), encoding="utf-8") as page:
            return page.read().replace("\\-", "-")

    def assert_names(self, where, section, help_text):
        shown = {word.replace(" ", "") for word in re.findall(r"Fl (-?[\w-]+)", section)}
        for option in options(help_text) - {"--help"}:
            if option[1:] not in shown:
                self.fail(f"{where}: no .It for the option {option} of --help")

    def test_img_has_every_command_and_option(self):
        sections = re.split(r"^\.S[sh] (.*)$", self.page("tidemark-img.1"), flags=re.M)
        text = dict(zip(sections[1::2], sections[2::2]))
        commands = re.findall(r"^  ([a-z]+) +\[", img("--help").stdout, re.M)
        self.assertGreater(len(commands), 10)
        for command in commands:
            with self.subTest(command):
                if command not in text:
                    self.fail(f"man/tidemark-img.1: no .Ss for the sub-command {command}")
                where = f"man/tidemark-img.1, section {command}"
                self.assert_names(where, text[command], img(command, "--help").stdout)

    def test_io_has_every_option_and_command(self):
        page = self.page("tidemark-io.1")
        self.assert_names("man/tidemark-io.1", page, run(*tool("io"), "--help").stdout)
        for command in re.findall(r"^(\w+) ?.* -- ", run(*tool("io"), "-c", "help").stdout, re.M):
            if f".It Cm {command}" not in page:
                self.fail(f"man/tidemark-io.1: no .It Cm for the command {command}")

    def test_every_other_face_has_a_page_with_its_options(self):
        listed = run(TIDEMARK, "--help").stdout.split("commands:\n")[1].split("\n\n")[0]
        faces = re.findall(r"^  ([a-z-]+) ", listed, re.M)
        self.assertGreater(len(faces), 8)
        for face in faces:
            with self.subTest(face):
                page = self.page(f"tidemark-{face}.1")
                self.assertIn(f".It Cm {face}\n", self.page("tidemark.1"))
                if face not in ("img", "io"):
                    where = f"man/tidemark-{face}.1"
                    self.assert_names(where, page, run(*tool(face), "--help").stdout)
                    self.assert_no_others(page, run(*tool(face), "--help").stdout)

    def assert_no_others(self, page, help_text):
        """An option that a page lists is one that --help lists."""
        known = options(help_text) | set(re.findall(r"--?[\w-]+", help_text))
        for names in re.findall(r"^\.It (Fl .*)$", page, re.M):
            for name in re.findall(r"Fl (-?[\w-]+)", names):
                self.assertIn("-" + name, known)

    def test_pages_render(self):
        for name in sorted(os.listdir(MAN)):
            with self.subTest(name):
                result = run("man", "--warnings", "-l", os.path.join(MAN, name))
                self.assertEqual(result.stderr, "")
                self.assertIn("SEE ALSO", result.stdout)


if __name__ == "__main__":
    unittest.main()
