#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Seeds for the targets fuzz_qcow2_*: small images by qemu-img with everything that the format has.

Each image is there once for each of some last bytes, by which targets choose what they do.
"""

import os
import struct
import subprocess
import sys

WRITES = ("write -P 1 0 9k", "write -P 2 20k 512", "write -z 30k 4k")
BITMAPS = (
    ("bitmap", "--add", "-g", "512", "a"),
    ("bitmap", "--add", "-g", "64k", "b"),
    "write -P 1 0 9k",
    ("bitmap", "--disable", "b"),
)
SNAPSHOTS = (
    "write -P 1 0 2k",
    ("snapshot", "-c", "one"),
    "write -P 2 1k 2k",
    ("snapshot", "-c", "two"),
    "write -P 3 2k 2k",
)
COMPRESSED = ("write -c -P 1 0 4k", "write -c -P 2 4k 4k", "write 64k 1k")

# Name, options of creation, size, commands: qemu-io's, or others as (program, argument, ...).
IMAGES = {
    "empty": ("cluster_size=512", "64k", ()),
    "data": ("cluster_size=512", "64k", WRITES),
    "discard": ("cluster_size=512", "64k", ("write -P 1 0 9k", "discard 2k 3k", "write -zu 6k 1k")),
    "4k": ("cluster_size=4k", "1M", ("write -P 1 0 12k", "write -P 2 900k 4k")),
    "lazy": ("cluster_size=4k,lazy_refcounts=on", "1M", ("write -P 1 0 12k",)),
    "zlib": ("cluster_size=4k", "1M", COMPRESSED),
    "zstd": ("cluster_size=4k,compression_type=zstd", "1M", COMPRESSED),
    "bitmaps": ("cluster_size=512", "1M", BITMAPS),
    "bitmaps-4k": ("cluster_size=4k", "1M", BITMAPS),
    "bitmaps-and-snapshots": ("cluster_size=512", "64k", BITMAPS + SNAPSHOTS),
    "snapshots": ("cluster_size=512", "64k", SNAPSHOTS),
    "snapshots-compressed": ("cluster_size=4k", "1M", COMPRESSED + SNAPSHOTS),
    "subclusters": (
        "cluster_size=16k,extended_l2=on",
        "128k",
        ("write -P 1 0 1k", "write -P 2 16k 20k", "write -z 17k 1k", "write -c -P 3 64k 16k"),
    ),
    "subclusters-snapshots": ("cluster_size=16k,extended_l2=on", "128k", SNAPSHOTS),
    "preallocated": ("cluster_size=512,preallocation=metadata", "16k", ()),
    "backing": ("cluster_size=512,backing_file=base,backing_fmt=raw", "64k", WRITES),
    "data-file": ("cluster_size=512,data_file=raw", "64k", WRITES),
    "data-file-raw": ("cluster_size=4k,data_file=raw,data_file_raw=on", "64k", WRITES),
    "v2": ("cluster_size=512,compat=0.10", "64k", ("write -P 1 0 2k",)),
    "v2-snapshots": ("cluster_size=512,compat=0.10", "64k", SNAPSHOTS),
    **{
        f"refcounts-{bits}": (f"cluster_size=512,refcount_bits={bits}", "64k", ("write -P 1 0 2k",))
        for bits in (1, 2, 4, 8, 32, 64)
    },
}

# In bits: nothing, one thing, several, all.
LAST_BYTES = (0, 1, 0x1B, 0x7F, 0xFF)


def make(directory, name, options, size, commands):
    def run(*words):
        subprocess.run(words, check=True, stdout=subprocess.DEVNULL, cwd=directory)

    run("qemu-img", "create", "-q", "-u", "-f", "qcow2", "-o", options, name, size)
    for command in commands:
        if isinstance(command, str):
            run("qemu-io", "-f", "qcow2", "-c", command, name)
        elif command[0] == "bitmap":
            run("qemu-img", *command[:-1], name, command[-1])
        else:
            run("qemu-img", *command, name)


CLUSTER = 4096
EXT_BITMAPS, EXT_JOINT = 0x23852875, 0x54444A43
AUTOCLEAR_JOINT = 1 << 61
# State, and number of the image: docs/qcow2.md, "Joint changes".
JOINT = {"prepared-first": (1, 0), "prepared": (1, 1), "done": (2, 0), "undone": (3, 0)}


def extensions(data):
    """By type where the data of a header extension begin, and where the end is (type 0)."""
    found, at = {}, struct.unpack_from(">I", data, 100)[0]
    while 0 not in found:
        kind, size = struct.unpack_from(">II", data, at)
        found[kind] = at if kind == 0 else at + 8
        at += 8 + (size + 7) // 8 * 8
    return found


def add_cluster(data, content):
    """A new cluster with a refcount of one. Its offset."""
    offset = (len(data) + CLUSTER - 1) // CLUSTER * CLUSTER
    data += bytes(offset - len(data)) + content + bytes(CLUSTER - len(content))
    (table,) = struct.unpack_from(">Q", data, 48)
    (block,) = struct.unpack_from(">Q", data, table)
    struct.pack_into(">H", data, block + 2 * (offset // CLUSTER), 1)
    return offset


def change_jointly(data, state, own):
    """Another directory, in which the first bitmap has other flags, and a record of it."""
    data = bytearray(data)
    at = extensions(data)
    count, _, size, offset = struct.unpack_from(">IIQQ", data, at[EXT_BITMAPS])
    directory = bytearray(data[offset : offset + size])
    directory[15] ^= 2
    other = add_cluster(data, directory)
    names = b"".join(struct.pack(">I", len(name)) + name for name in (b"/none/a", b"/none/b"))
    record = struct.pack(">QQIIIII", other, size, count, 1, 2, own, 1) + names
    place = add_cluster(data, record)
    struct.pack_into(
        ">IIII16sQQII", data, at[0],
        EXT_JOINT, 40, 1, state, bytes(range(16)), place, len(record), 0, 0,
    )  # fmt: skip
    (autoclear,) = struct.unpack_from(">Q", data, 88)
    struct.pack_into(">Q", data, 88, autoclear | AUTOCLEAR_JOINT)
    return bytes(data)


def main(directory):
    with open(os.path.join(directory, "base"), "wb") as f:
        f.truncate(65536)
    for name, image in IMAGES.items():
        path = os.path.join(directory, name)
        make(directory, name, *image)
        with open(path, "rb") as f:
            data = f.read()
        os.unlink(path)
        seeds = {path: data}
        if name == "bitmaps-4k":
            for kind, how in JOINT.items():
                seeds[f"{path}-{kind}"] = change_jointly(data, *how)
        for seed, content in seeds.items():
            for last in LAST_BYTES:
                with open(f"{seed}-{last:02x}", "wb") as f:
                    f.write(content + bytes([last]))
    for name in ("base", "raw"):
        os.unlink(os.path.join(directory, name))


main(sys.argv[1])
