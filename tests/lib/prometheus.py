# SPDX-License-Identifier: Apache-2.0
"""A strict reader of Prometheus' text format 0.0.4, and of its conventions for names."""

import http.client
import re
import socket
import time

NAME = r"[a-zA-Z_:][a-zA-Z0-9_:]*"
LABEL = r'[a-zA-Z_][a-zA-Z0-9_]*="(?:[^"\\\n]|\\["\\n])*"'
SAMPLE = re.compile(rf"({NAME})(\{{(?:{LABEL})(?:,{LABEL})*\}})? (\S+)")
HELP = re.compile(rf"# HELP ({NAME}) (\S.*)")
TYPE = re.compile(rf"# TYPE ({NAME}) (counter|gauge|histogram)")
# Of units that are not base units.
BAD_UNITS = re.compile(r"_(ns|us|ms|milliseconds|microseconds|nanoseconds|kilobytes|kb|mb)(_|$)")


class FormatError(Exception):
    pass


def read_labels(text):
    labels = {}
    for name, value in re.findall(r'(\w+)="((?:[^"\\]|\\.)*)"', text or ""):
        if name in labels:
            raise FormatError(f"label {name} twice in {text}")
        labels[name] = re.sub(r"\\(.)", lambda m: {"n": "\n"}.get(m[1], m[1]), value)
    return labels


class Metrics:
    """Metrics by name: type, help, and samples as (name, labels, value)."""

    def __init__(self, text):
        self.types, self.helps, self.samples = {}, {}, {}
        if not text.endswith("\n"):
            raise FormatError("the last line does not end")
        current = None
        for line in text[:-1].split("\n"):
            current = self.take(line, current)
        for name, kind in self.types.items():
            self.check(name, kind)

    def take(self, line, current):
        """The metric that the line belongs to: its lines are together, HELP and TYPE first."""
        found = HELP.fullmatch(line)
        if found:
            if found[1] in self.helps:
                raise FormatError(f"{found[1]} is described twice")
            self.helps[found[1]] = found[2]
            return found[1]
        found = TYPE.fullmatch(line)
        if found:
            if found[1] != current or found[1] in self.types:
                raise FormatError(f"TYPE is not behind HELP: {line}")
            self.types[found[1]] = found[2]
            self.samples[found[1]] = []
            return current
        found = SAMPLE.fullmatch(line)
        if not found or current not in self.types:
            raise FormatError(f"not a sample: {line}")
        suffix = found[1].removeprefix(current)
        suffixes = ("_bucket", "_sum", "_count") if self.types[current] == "histogram" else ("",)
        if not found[1].startswith(current) or suffix not in suffixes:
            raise FormatError(f"{found[1]} among the samples of {current}")
        self.samples[current].append((found[1], read_labels(found[2]), float(found[3])))
        return current

    def check(self, name, kind):
        if (kind == "counter") != name.endswith("_total"):
            raise FormatError(f"{name}: _total is for counters, and for all of them")
        if BAD_UNITS.search(name):
            raise FormatError(f"{name}: not in base units")
        if not self.samples[name]:
            raise FormatError(f"{name} has no samples")
        keys = [(n, tuple(sorted(labels.items()))) for n, labels, _ in self.samples[name]]
        if len(set(keys)) != len(keys):
            raise FormatError(f"{name}: a sample is given twice")
        if kind == "histogram":
            self.check_histogram(name)

    def check_histogram(self, name):
        series = {}
        for sample, labels, value in self.samples[name]:
            rest = tuple(sorted((k, v) for k, v in labels.items() if k != "le"))
            one = series.setdefault(rest, {"le": [], "counts": []})
            if sample.endswith("_bucket"):
                one["le"].append(float(labels["le"]))
                one["counts"].append(value)
            else:
                one[sample.removeprefix(name)] = value
        for one in series.values():
            if one["le"] != sorted(set(one["le"])) or one["le"][-1] != float("inf"):
                raise FormatError(f"{name}: buckets are not in order, or lack +Inf")
            if one["counts"] != sorted(one["counts"]) or one["counts"][-1] != one["_count"]:
                raise FormatError(f"{name}: counts are not cumulative, or lack some")
            if one["_sum"] < 0 or (one["_sum"] > 0) > (one["_count"] > 0):
                raise FormatError(f"{name}: a sum of nothing")

    def value(self, name, **labels):
        """The one sample with these labels."""
        base = re.sub(r"_(bucket|sum|count)$", "", name) if name not in self.samples else name
        found = [
            value
            for sample, have, value in self.samples[base]
            if sample == name and labels.items() <= have.items()
        ]
        if len(found) != 1:
            raise AssertionError(f"{len(found)} samples of {name} {labels}")
        return found[0]


class UnixConnection(http.client.HTTPConnection):
    def __init__(self, path, timeout=20):
        super().__init__("localhost", timeout=timeout)
        self.path = path

    def connect(self):
        # A socket with a timeout does not wait for room in the backlog.
        until = time.monotonic() + self.timeout
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        while True:
            try:
                self.sock.connect(self.path)
                return
            except BlockingIOError:
                if time.monotonic() > until:
                    raise
                time.sleep(0.05)


def request(address, method="GET", url="/metrics", **more):
    """Status, headers and text. `address`: a path, or a port of 127.0.0.1."""
    connection = (
        UnixConnection(address)
        if isinstance(address, str)
        else http.client.HTTPConnection("127.0.0.1", address, timeout=20)
    )
    connection.request(method, url, **more)
    response = connection.getresponse()
    text = response.read().decode()
    connection.close()
    return response.status, response.headers, text


def scrape(address):
    status, headers, text = request(address)
    if status != 200 or headers["Content-Type"] != "text/plain; version=0.0.4; charset=utf-8":
        raise AssertionError(f"{status} {headers['Content-Type']} {text}")
    return Metrics(text)
