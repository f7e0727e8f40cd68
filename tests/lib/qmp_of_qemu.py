# SPDX-License-Identifier: Apache-2.0
"""What query-qmp-schema has, compared with QEMU 10.0's storage daemon.

qmp_of_qemu.json has the names of QEMU (tools/qapi-facts). A difference is a line:

    - NAME        QEMU has it, and this program does not
    + NAME        the other way round
    ~ NAME        the types differ, or whether it is optional

NAME is a command, an event, TYPE.MEMBER, TYPE=VALUE or TYPE:CASE of a union, by QEMU's names; it
ends with !FEATURE if it is a feature of that. Types without a name are COMMAND-arg.
"""

import json
import os

FACTS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "qmp_of_qemu.json")
NUMBERS = {"int", "size", *(f"{u}int{n}" for u in ("", "u") for n in (8, 16, 32, 64))}


class Qemu:
    """QEMU's side: types by name."""

    def __init__(self):
        with open(FACTS, encoding="utf-8") as file:
            self.facts = json.load(file)

    @staticmethod
    def split(text):
        """A name and its features."""
        name, *features = text.split(" !")
        return name, set(features)

    def members(self, name):
        """NAME -> (type, optional, features)"""
        found = {}
        for member, text in self.facts["types"].get(name, {}).get("members", {}).items():
            kind, features = self.split(text)
            found[member.rstrip("?")] = (kind, member.endswith("?"), features)
        return found

    def shape(self, name):
        """What kind of type it is."""
        if name.startswith("["):
            return "array"
        if name in NUMBERS:
            return "int"
        entry = self.facts["types"].get(name)
        if entry is None:
            return "object" if name in ("", "q_empty") else name
        return "enum" if "values" in entry else "alternate" if "choice" in entry else "object"

    def get(self, name, key):
        return self.facts["types"].get(name, {}).get(key, [])

    def features(self, kind, name):
        return set(self.facts[kind][name].get("features", "").replace("!", "").split())


class Own:
    """The side of this program, in the same form."""

    def __init__(self, schema):
        self.types = {t["name"]: t for t in schema}

    def members(self, name):
        return {
            m["name"]: (m["type"], "default" in m, set(m.get("features", [])))
            for m in self.types[name].get("members", [])
        }

    def shape(self, name):
        entry = self.types[name]
        if entry["meta-type"] == "builtin":
            return {"string": "str", "boolean": "bool", "value": "any"}.get(
                entry["json-type"], entry["json-type"]
            )
        return entry["meta-type"]


class Comparison:
    def __init__(self, own, qemu):
        self.own, self.qemu = own, qemu
        self.seen = set()
        self.found = set()
        # By the name of the type, command or event of this program: what it has more, and less.
        self.more, self.less = {}, {}

    def names(self, owner, ours, theirs, form):
        """Two sets of names; `form` makes a NAME of one."""
        self.found |= {"- " + form % name for name in theirs - ours}
        self.found |= {"+ " + form % name for name in ours - theirs}
        self.more.setdefault(owner, set()).update(ours - theirs)
        self.less.setdefault(owner, set()).update(theirs - ours)
        return sorted(ours & theirs)

    def features(self, ours, theirs, form):
        self.names(None, ours, theirs, form + "!%s")

    def member(self, name, ours, theirs):
        if self.types(ours[0], theirs[0]) or ours[1] != theirs[1]:
            self.found.add("~ " + name)
        self.features(ours[2], theirs[2], name)

    def objects(self, ours, theirs):
        own, qemu = self.own.members(ours), self.qemu.members(theirs)
        for name in self.names(ours, set(own), set(qemu), theirs + ".%s"):
            self.member(f"{theirs}.{name}", own[name], qemu[name])
        variants = self.qemu.get(theirs, "variants") or {}
        cases = {v["case"]: v["type"] for v in self.own.types[ours].get("variants", [])}
        full = {case for case, kind in cases.items() if self.own.members(kind)}
        for case in self.names(ours, full, set(variants), theirs + ":%s"):
            self.types(cases[case], variants[case])

    def types(self, ours, theirs):
        """Whether they differ in their shape; differences inside are found by themselves."""
        shape = self.own.shape(ours)
        if shape != self.qemu.shape(theirs):
            return True
        if (ours, theirs) in self.seen:
            return False
        self.seen.add((ours, theirs))
        if shape == "array":
            return self.types(self.own.types[ours]["element-type"], theirs[1:-1])
        if shape == "enum":
            values = {Qemu.split(v)[0] for v in self.qemu.get(theirs, "values")}
            self.names(ours, set(self.own.types[ours]["values"]), values, theirs + "=%s")
        if shape == "alternate":
            own = {self.own.shape(m["type"]): m["type"] for m in self.own.types[ours]["members"]}
            qemu = {self.qemu.shape(name): name for name in self.qemu.get(theirs, "choice")}
            for kind in self.names(ours, set(own), set(qemu), theirs + "|%s"):
                self.types(own[kind], qemu[kind])
        if shape == "object":
            self.objects(ours, theirs)
            features = set(self.own.types[ours].get("features", []))
            wanted = set("".join(self.qemu.get(theirs, "features")).replace("!", "").split())
            self.features(features, wanted, theirs)
        return False

    def all(self):
        for kind, meta in (("commands", "command"), ("events", "event")):
            own = {n: t for n, t in self.own.types.items() if t["meta-type"] == meta}
            qemu = self.qemu.facts[kind]
            for name in self.names(kind, set(own), set(qemu), "%s"):
                self.features(
                    set(own[name].get("features", [])), self.qemu.features(kind, name), name
                )
                if own[name].get("allow-oob", False) != qemu[name].get("allow-oob", False):
                    self.found.add(f"~ {name}")
                for key in {"arg-type", "ret-type"} & set(own[name]):
                    if self.types(own[name][key], qemu[name][key]):
                        self.found.add(f"~ {name}")
        return self.found
