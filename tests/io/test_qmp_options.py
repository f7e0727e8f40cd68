# SPDX-License-Identifier: Apache-2.0
"""Options are what their descriptions say: types, ranges, and that the driver knows them."""

import json
import os
import unittest

import tidemark
from qmp import QmpError

# For each driver that can be opened here: what it needs.
NEEDED = {
    "blkdebug": {"image": "mem"},
    "blklogwrites": {"file": "mem", "log": "log"},
    "blkverify": {"raw": "mem", "test": "log"},
    "compress": {"file": "disk"},
    "copy-before-write": {"file": "mem", "target": "log"},
    "copy-on-read": {"file": "disk"},
    "file": {"filename": "raw"},
    "null-aio": {},
    "null-co": {},
    "preallocate": {"file": "file"},
    "qcow2": {"file": "image"},
    "quorum": {"children": ["mem", "log"], "vote-threshold": 1},
    "raw": {"file": "mem"},
    "throttle": {"file": "mem", "throttle-group": "group"},
}
# Options with values that take effect only together with others, or that need a server.
SPECIAL = {"bitmap", "config", "encrypt", "data-file", "backing", "bottom", "file", "header"}


class Options(tidemark.TestCase):
    def setUp(self):
        super().setUp()
        texts = os.path.join(tidemark.BUILD, "tests", "tools", "qmp_texts")
        self.types = {t["name"]: t for t in json.loads(tidemark.run(texts).stdout)}
        self.create("raw", "1M", fmt="raw")
        self.create("image", "1M")
        self.create("disk", "1M")
        self.qmp = self.daemon(
            "--object", "throttle-group,id=group",
            "--blockdev", "null-co,node-name=mem,size=1M",
            "--blockdev", "null-co,node-name=log,size=1M",
            "--blockdev", f"file,node-name=image,filename={self.path('image')}",
            "--blockdev", f"file,node-name=file,filename={self.path('raw')},locking=off",
            "--blockdev",
            f"qcow2,node-name=disk,file.driver=file,file.filename={self.path('disk')}",
            cwd=self.dir,
        ).qmp  # fmt: skip

    def variants(self, union):
        return {v["case"]: self.types[v["type"]]["members"] for v in self.types[union]["variants"]}

    def add(self, driver, **more):
        """Open a node and close it again; the sentence of the error, or None."""
        options = {**NEEDED[driver], **more}
        try:
            self.qmp.command("blockdev-add", **{"driver": driver, "node-name": "n", **options})
        except QmpError as error:
            return error.desc
        self.qmp.command("blockdev-del", node_name="n")
        return None

    def drivers(self):
        """(driver, member) of all that can be opened."""
        count = 0
        for driver, members in self.variants("BlockdevOptions").items():
            if driver in NEEDED:
                self.assertIsNone(self.add(driver), driver)
                for member in members:
                    count += 1
                    yield driver, member
        self.assertGreater(count, 50)

    def test_wrong_types(self):
        for driver, member in self.drivers():
            wrong = 5 if self.types[member["type"]].get("json-type") != "int" else "5"
            sentence = self.add(driver, **{member["name"]: wrong})
            wanted = f"(type for|Parameter) '{member['name']}'.* expect"
            self.assertRegex(sentence or "accepted", wanted, driver)

    def test_numbers_out_of_range(self):
        for driver, member in self.drivers():
            if "max" not in member:
                continue
            for number in {member["min"] - 1, member["max"] + 1}:
                sentence = self.add(driver, **{member["name"]: number})
                self.assertIsNotNone(sentence, f"{driver} {member['name']}={number}")

    def test_every_value_is_known_to_the_driver(self):
        for driver, member in self.drivers():
            kind = self.types[member["type"]]
            values = {"boolean": [False, True]}.get(kind.get("json-type"), kind.get("values", []))
            if member["name"] in SPECIAL:
                continue
            for value in values:
                sentence = self.add(driver, **{member["name"]: value}) or ""
                self.assertNotIn("is unexpected", sentence, driver)
                self.assertNotIn("does not accept value", sentence, driver)

    def test_options_of_objects_out_of_range(self):
        for kind, members in self.variants("ObjectOptions").items():
            for member in members:
                if "max" in member:
                    with self.subTest(f"{kind} {member['name']}"), self.assertRaises(QmpError):
                        self.qmp.command(
                            "object-add",
                            **{"qom-type": kind, "id": "o", member["name"]: member["max"] + 1},
                        )


if __name__ == "__main__":
    unittest.main()
