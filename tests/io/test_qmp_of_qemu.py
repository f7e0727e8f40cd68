# SPDX-License-Identifier: Apache-2.0
"""query-qmp-schema is that of QEMU 10.0's storage daemon, but for what docs/conformance.md lists.

The table there has patterns of lines of tests/lib/qmp_of_qemu.py, and says why. Managers look for
single names: those that libvirt looks for are here.
"""

import fnmatch
import os
import re
import unittest

from qmp_of_qemu import Comparison, Own, Qemu
from tidemark import TestCase

PAGE = os.path.join(os.environ.get("TIDEMARK_SOURCE", "."), "docs", "conformance.md")
TITLE = "## QMP"
NO_ROW = 'docs/conformance.md, section "QMP": these differ from QEMU, and no row says why'
GONE = 'docs/conformance.md, section "QMP": rows of what does not differ, or no longer'


class SchemaCase(TestCase):
    def setUp(self):
        super().setUp()
        self.schema = self.daemon().qmp.command("query-qmp-schema")


class QmpOfQemu(SchemaCase):
    def setUp(self):
        super().setUp()
        self.found = Comparison(Own(self.schema), Qemu()).all()
        with open(PAGE, encoding="utf-8") as page:
            section = page.read().split(f"\n{TITLE}\n")[1].split("\n## ")[0]
        self.listed = []
        for names in re.findall(r"^\| (`.*?`) \| \S.*\|$", section, re.M):
            self.listed += re.findall(r"`(.*?)`", names)

    def test_differences_are_listed(self):
        missing = [
            line
            for line in self.found
            if not any(fnmatch.fnmatchcase(line, pattern) for pattern in self.listed)
        ]
        self.assertEqual("\n".join(sorted(missing)), "", NO_ROW)

    def test_listed_differences_exist(self):
        gone = [p for p in self.listed if not fnmatch.filter(self.found, p)]
        self.assertEqual("\n".join(gone), "", GONE)


class Capabilities(SchemaCase):
    """Paths in the form of libvirt (src/qemu/qemu_qapi.c): a command or event, then `arg-type` or
    `ret-type`, then members; `*m`: an optional one, `+c`: the members of a case of a union, `^v`: a
    value of an enumeration, `$f`: a feature.
    """

    FOUND = (
        "block-commit/arg-type/*top",
        "block-commit/arg-type/backing-mask-protocol",
        "block-export-add/arg-type/+nbd/bitmaps",
        "blockdev-add/arg-type/+copy-before-write/on-cbw-error",
        "blockdev-add/arg-type/+file/$dynamic-auto-read-only",
        "blockdev-add/arg-type/+file/aio/^io_uring",
        "blockdev-add/arg-type/+file/drop-cache",
        "blockdev-add/arg-type/+nbd/reconnect-delay",
        "blockdev-add/arg-type/+nbd/server/+unix/path",
        "blockdev-add/arg-type/+nbd/tls-hostname",
        "blockdev-add/arg-type/+qcow2/discard-no-unref",
        "blockdev-add/arg-type/+throttle/throttle-group",
        "blockdev-add/arg-type/detect-zeroes",
        "blockdev-add/arg-type/discard",
        "blockdev-backup",
        "blockdev-create/arg-type/options/+qcow2/extended-l2",
        "blockdev-reopen/arg-type/options",
        "blockdev-snapshot/$allow-write-only-overlay",
        "nbd-server-add/arg-type/bitmap",
        "nbd-server-start/arg-type/tls-creds",
        "object-add/arg-type/+iothread/poll-max-ns",
        "object-add/arg-type/+iothread/thread-pool-max",
        "object-add/arg-type/+secret/format/^base64",
        "query-named-block-nodes/arg-type/flat",
        "transaction/arg-type/actions/+block-dirty-bitmap-merge",
        "x-blockdev-amend/$unstable",
    )
    # What a manager must not try.
    NOT_FOUND = (
        "blockdev-add/arg-type/+file/aio/^posix",
        "blockdev-add/arg-type/+nvme",
        "blockdev-add/arg-type/+rbd/encrypt",
        "blockdev-add/arg-type/+virtio-blk-vhost-vdpa/$fdset",
        "blockdev-add/arg-type/options",
        "blockdev-add/arg-type/*driver",
        "migrate",
    )

    def entry(self, name):
        return next((e for e in self.schema if e["name"] == name), None)

    def step(self, entry, part):
        """The entry that a part of a path leads to; True at a value or feature; None: nowhere."""
        while entry["meta-type"] == "array":
            entry = self.entry(entry["element-type"])
        if part.startswith("$"):
            return part[1:] in entry.get("features", []) or None
        if part.startswith("^"):
            return part[1:] in entry.get("values", []) or None
        if part.startswith("+"):
            cases = {v["case"]: v["type"] for v in entry.get("variants", [])}
            return self.entry(cases[part[1:]]) if part[1:] in cases else None
        if part in ("arg-type", "ret-type"):
            return self.entry(entry[part])
        for member in entry.get("members", []):
            if member.get("name") == part.lstrip("*") and (part[0] != "*" or "default" in member):
                return self.entry(member["type"])
        return None

    def finds(self, path):
        first, *parts = path.split("/")
        at = self.entry(first)
        for part in parts:
            at = at and self.step(at, part)
        return at is not None

    def test_what_libvirt_looks_for(self):
        for path in self.FOUND:
            with self.subTest(path):
                self.assertTrue(self.finds(path))

    def test_what_is_not_there(self):
        for path in self.NOT_FOUND:
            with self.subTest(path):
                self.assertFalse(self.finds(path))


if __name__ == "__main__":
    unittest.main()
