# SPDX-License-Identifier: Apache-2.0
"""A repository of backups that is made by hand, in moments: no daemon, no disk, any times."""

import collections
import datetime
import hashlib
import json
import os
import struct

CLUSTER = 65536
# What stays in a repository besides backups and its description.
KEPT = (".tidemark-lock", ".tidemark-verified", ".tidemark-work", ".tidemark-upload")


def compact(value):
    return json.dumps(value, separators=(",", ":")).encode()


def digest(data):
    return hashlib.sha256(data).hexdigest()


def qcow2(size, clusters, backing):
    """An image of at most 512 MiB, with these clusters: bytes, or None for zeroes."""
    data = sorted(n for n in clusters if clusters[n] is not None)
    l2 = bytearray(CLUSTER)
    for n, content in clusters.items():
        entry = 1 if content is None else (5 + data.index(n)) * CLUSTER | 1 << 63
        struct.pack_into(">Q", l2, n * 8, entry)
    backing_format = b"qcow2"
    extension = struct.pack(">II", 0xE2792ACA, len(backing_format)) + backing_format.ljust(8, b"\0")
    extensions = (extension if backing else b"") + bytes(8)
    name = backing.encode()
    header = struct.pack(
        ">4sIQIIQIIQQIIQQQQII", b"QFI\xfb", 3, 104 + len(extensions) if backing else 0, len(name),
        16, size, 0, 1, 3 * CLUSTER, CLUSTER, 1, 0, 0, 0, 0, 0, 4, 104,
    )  # fmt: skip
    first = (header + extensions + name).ljust(CLUSTER, b"\0")
    table = struct.pack(">Q", 2 * CLUSTER).ljust(CLUSTER, b"\0")
    block = (struct.pack(">H", 1) * (5 + len(data))).ljust(CLUSTER, b"\0")
    l1 = struct.pack(">Q", 4 * CLUSTER | 1 << 63).ljust(CLUSTER, b"\0")
    return b"".join([first, table, block, l1, bytes(l2)] + [clusters[n] for n in data])


def checksums(size, clusters):
    runs, digests = [], []
    for n in sorted(clusters):
        kind = 2 if clusters[n] is None else 1
        digests.append(bytes(16) if kind == 2 else hashlib.sha256(clusters[n]).digest()[:16])
        if runs and runs[-1][0] + runs[-1][1] == n and runs[-1][2] == kind:
            runs[-1][1] += 1
        else:
            runs.append([n, 1, kind])
    head = b"TIDESUMS" + struct.pack("<IIQQQ", 1, 16, size, len(digests), len(runs))
    return b"".join([head.ljust(64, b"\0"), *digests, *(struct.pack("<QII", *r) for r in runs)])


def change_manifest(path, **changes):
    """As somebody does who knows how its checksum is made."""
    with open(path, encoding="utf-8") as f:
        m = json.load(f, object_pairs_hook=collections.OrderedDict)
    del m["sha256"]
    m.update(changes)
    m["sha256"] = hashlib.sha256(compact(m)).hexdigest()
    with open(path, "w", encoding="utf-8") as f:
        json.dump(m, f)


class MadeRepository:
    """Backups of one disk; `models` has what each of them has to restore, by id."""

    def __init__(self, path, size=16 * CLUSTER, ident="0123abcd"):
        self.path, self.size, self.ident = path, size, ident
        self.model = bytearray(size)
        self.models, self.order = {}, []
        self.ever, self.sequence = [], 0  # also of those that were removed since
        os.makedirs(path, mode=0o700)
        description = {"format": "tidemark-repository", "version": 1, "id": ident}
        with open(os.path.join(path, "repository.json"), "w", encoding="utf-8") as f:
            json.dump(description, f)

    def add(self, when, changes, full=False, keep_model=True):
        """A backup: `changes` are clusters with their contents, None for zeroes."""
        for n, content in changes.items():
            self.model[n * CLUSTER : (n + 1) * CLUSTER] = content or bytes(CLUSTER)
        full = full or not self.order
        if full:
            changes = {
                n: bytes(self.model[n * CLUSTER : (n + 1) * CLUSTER])
                for n in range((self.size + CLUSTER - 1) // CLUSTER)
            }
            changes = {n: c if any(c) else None for n, c in changes.items()}
        ident = when.strftime("%Y%m%dT%H%M%SZ")
        while ident in self.ever:
            ident += "-2"
        self.sequence += 1
        self.write(ident, when, "" if full else self.order[-1], changes)
        self.order.append(ident)
        self.ever.append(ident)
        if keep_model:
            self.models[ident] = bytes(self.model)
        return ident

    def write(self, ident, when, parent, changes):
        folder = os.path.join(self.path, ident)
        backing = f"../{parent}/disk.qcow2" if parent else ""
        # A full backup has no need to store zeroes.
        stored = {n: c for n, c in changes.items() if parent or c is not None}
        image = qcow2(self.size, stored, backing)
        sums = checksums(self.size, changes)
        utc = when.astimezone(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.000000Z")
        moment = {"utc": utc, "monotonic-ns": 1}
        manifest = {
            "format": "tidemark-backup", "version": 1, "id": ident,
            "sequence": self.sequence, "kind": "incremental" if parent else "full",
            "parent": parent or None, "reason": None if parent else "made by hand",
            "repository": self.ident, "node": "disk",
            "bitmap": f"tidemark-{self.ident}-{ident}",
            "checkpoint": {"begin": moment, "end": moment}, "virtual-size": self.size,
            "cluster-size": CLUSTER, "changed-bytes": len(changes) * CLUSTER,
            "moved-bytes": 0, "stored-bytes": len(image) + len(sums), "duration-ms": 1,
            "image": {"size": len(image), "sha256": digest(image)},
            "checksums": {"size": len(sums), "sha256": digest(sums)},
        }  # fmt: skip
        manifest["sha256"] = digest(compact(manifest))
        os.mkdir(folder, 0o700)
        for name, data in (("disk.qcow2", image), ("checksums", sums),
                           ("manifest.json", compact(manifest))):  # fmt: skip
            with open(os.path.join(folder, name), "wb") as f:
                f.write(data)
