# SPDX-License-Identifier: Apache-2.0
"""Options are what their descriptions say: types, ranges, and that the driver knows them."""

import json
import os
import time
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

    def test_a_number_out_of_range_is_named_without_its_path(self):
        to = {"type": "inet", "data": {"host": "a", "port": "1", "to": 70000}}
        bitmaps = {"type": "nbd", "id": "a", "node-name": "b", "bitmaps": [5]}
        for wanted, command, arguments in (
            ("Parameter 'to' expects uint16_t", "nbd-server-start", {"addr": to}),
            ("Invalid parameter type for 'null', expected: BlockDirtyBitmapOrStr",
             "block-export-add", bitmaps),
        ):  # fmt: skip
            answer = self.qmp.execute(command, arguments)
            self.assertEqual(answer["error"]["desc"], wanted)

    def test_a_driver_alone_is_the_backing_node_of_an_image_that_records_none(self):
        image = self.create("image.qcow2")
        self.qmp.command("blockdev-add", driver="qcow2", node_name="n",
                         file={"driver": "file", "filename": image},
                         backing={"driver": "null-co"})  # fmt: skip
        node = next(n for n in self.qmp.command("query-named-block-nodes")
                    if n["node-name"] == "n")  # fmt: skip
        self.assertEqual((node["drv"], node["backing_file_depth"]), ("qcow2", 1))

    def test_a_rule_of_blkdebug_delays_requests(self):
        for code in (0, 5):
            rule = {"event": "none", "iotype": "read", "errno": code, "delay-ns": 300 * 10**6}
            self.qmp.command("blockdev-add", driver="blkdebug", node_name="slow",
                             image={"driver": "null-co", "size": 65536, "read-zeroes": True},
                             inject_error=[rule])  # fmt: skip
            self.qmp.command("blockdev-add", driver="null-co", node_name="to", size=65536)
            began = time.monotonic()
            self.qmp.command("blockdev-backup", device="slow", target="to", sync="full",
                             job_id="j")  # fmt: skip
            event = self.qmp.wait_event("BLOCK_JOB_COMPLETED")
            self.assertGreaterEqual(time.monotonic() - began, 0.3)
            self.assertEqual("error" in event["data"], code != 0)
            for node in "slow", "to":
                self.qmp.command("blockdev-del", node_name=node)


if __name__ == "__main__":
    unittest.main()
