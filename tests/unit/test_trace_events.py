# SPDX-License-Identifier: Apache-2.0
"""tools/trace-events: what it makes of a list, and what it says of a wrong one."""

import os
import subprocess
import tempfile
import unittest

TOP = os.environ["TIDEMARK_SOURCE"]
TOOL = os.path.join(TOP, "tools", "trace-events")
GOOD = """\
# Head of the file, that belongs to no event.

## Disks (`disk.c`)

# A read begins.
disk_read_begin(const char *disk, uint64_t offset)
    "disk=%s offset=%" PRIu64
# A read has ended.
disk_read_end(const char *disk,
              int result)
    "disk=%s "
    "result=%d"
# The disk is gone.
always disk_gone(void)
"""


class TraceEvents(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.dir = folder.name

    def path(self, name):
        return os.path.join(self.dir, name)

    def write(self, name, text):
        with open(self.path(name), "w", encoding="utf-8") as f:
            f.write(text)
        return self.path(name)

    def read(self, name):
        with open(self.path(name), encoding="utf-8") as f:
            return f.read()

    def tool(self, *arguments):
        return subprocess.run([TOOL, *arguments], capture_output=True, text=True, check=False)

    def make(self, text):
        return self.tool(self.write("events.list", text), self.path("e.h"), self.path("e.c"))

    def assert_wrong(self, text, wanted):
        result = self.make(text)
        self.assertEqual(result.returncode, 1)
        self.assertIn(wanted, result.stderr)
        self.assertNotIn("Traceback", result.stderr)

    def test_code_of_an_event(self):
        result = self.make(GOOD)
        self.assertEqual((result.returncode, result.stderr), (0, ""))
        header, source = self.read("e.h"), self.read("e.c")
        self.assertIn("void trace_disk_read_begin_on(const char *disk, uint64_t offset)", header)
        self.assertIn("#define trace_disk_read_begin(...)", header)
        self.assertIn('" " "disk=%s offset=%" PRIu64, disk, offset);', source)
        self.assertIn("TRACE_PROBE2(disk_read_begin, disk, offset);", source)
        self.assertIn('" " "disk=%s " "result=%d", disk, result);', source)
        self.assertIn("TRACE_PROBE0(disk_gone);", source)

    def test_begin_and_end_share_a_word(self):
        self.make(GOOD)
        self.assertIn("bool trace_disk_read_is_on(void)", self.read("e.h"))
        self.assertIn("TRACE_PAIR(disk_read);", self.read("e.c"))
        self.assertNotIn("union trace_point tidemark_disk_read_begin", self.read("e.c"))
        self.assertIn("union trace_point tidemark_disk_gone", self.read("e.c"))

    def test_what_is_always_recorded_says_so(self):
        self.make(GOOD)
        events = self.read("e.c").split("static const struct trace_event ")[1:]
        always = [e.split(" ")[0] for e in events if ".always = true" in e]
        self.assertEqual(always, ["event_disk_gone"])

    def test_events_are_sorted_by_name(self):
        self.make(GOOD)
        table = self.read("e.c").split("trace_events[] = {")[1]
        names = [line.strip(" &,") for line in table.splitlines() if "event_" in line]
        self.assertEqual(names, ["event_disk_gone", "event_disk_read_begin", "event_disk_read_end"])

    def test_the_table_is_put_between_the_marks(self):
        source = self.write("events.list", GOOD)
        marks = "<!-- begin of the table -->\nold\n<!-- end of the table -->"
        document = self.write("doc.md", f"before\n{marks}\nafter\n")
        self.assertEqual(self.tool("--table", source, document).returncode, 0)
        text = self.read("doc.md")
        self.assertTrue(text.startswith("before\n") and text.endswith("after\n"))
        self.assertNotIn("old", text)
        self.assertIn("### Disks (`disk.c`)", text)
        self.assertIn("| `disk_read_begin` | `disk=%s offset=%u` | A read begins. |", text)
        self.assertIn("| `disk_gone` (*) |  | The disk is gone. |", text)
        self.assertIn(self.tool("--table", source).stdout, text)

    def test_a_document_without_marks_is_left_alone(self):
        document = self.write("doc.md", "text\n")
        result = self.tool("--table", self.write("events.list", GOOD), document)
        self.assertEqual((result.returncode, self.read("doc.md")), (1, "text\n"))

    def test_wrong_lists(self):
        self.assert_wrong("disk_gone(void)\n", "no comment says when it occurs")
        self.assert_wrong("# Twice.\na(void)\n# Twice.\na(void)\n", "events.list:4")
        self.assert_wrong("# No format.\na(int x)\n", "arguments without a format")
        self.assert_wrong('# No arguments.\na(void)\n    "x"\n', "arguments without a format")
        self.assert_wrong("# No type.\na(x)\n", "'x' is not a type and a name")
        self.assert_wrong("# Big.\nBig(void)\n", "events.list:2")
        self.assert_wrong("# Format.\na(int x)\n    x=%d\n", "not the format of an event")
        many = ", ".join(f"int x{i}" for i in range(9))
        self.assert_wrong(f"# Many.\na({many})\n", "at most 8 arguments")


if __name__ == "__main__":
    unittest.main()
