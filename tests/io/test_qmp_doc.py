# SPDX-License-Identifier: Apache-2.0
"""docs/qmp.md is up to date with the types of QMP."""

import os
import re
import unittest

from tidemark import BUILD, TestCase, run

TOP = os.environ.get("TIDEMARK_SOURCE", ".")
PAGE = os.path.join(TOP, "docs", "qmp.md")


class QmpReference(TestCase):
    def setUp(self):
        super().setUp()
        self.copy = self.path("qmp.md")
        with open(PAGE, encoding="utf-8") as page, open(self.copy, "w", encoding="utf-8") as copy:
            self.page = page.read()
            copy.write(self.page)
        run(os.path.join(TOP, "tools", "qmp-reference"), BUILD, self.copy)

    def test_tables(self):
        with open(self.copy, encoding="utf-8") as copy:
            wanted = copy.read().splitlines()
        for ours, line in zip(self.page.splitlines(), wanted):
            self.assertEqual(ours, line, "docs/qmp.md is not up to date: run `make reference`")
        self.assertEqual(len(self.page.splitlines()), len(wanted))

    def test_links_have_targets(self):
        headings = re.findall(r"^#+ (.*)$", self.page, re.M)
        anchors = {re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in headings}
        for link in re.findall(r"\]\(#([\w-]+)\)", self.page):
            self.assertIn(link, anchors)


if __name__ == "__main__":
    unittest.main()
