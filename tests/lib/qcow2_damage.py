# SPDX-License-Identifier: Apache-2.0
"""Damage qcow2 images at random places of their metadata, in ways that can be repeated and
described.
"""

import random

from qcow2_edit import COMPRESSED, COPIED, OFFSET_MASK, Image

EXT_BITMAPS = 0x23852875


class Place:
    """A field of the metadata."""

    def __init__(self, name, offset, size):
        self.name, self.offset, self.size = name, offset, size


def table_places(image, name, offset, entries, step=8):
    return [Place(f"{name}[{i}]", offset + i * step, 8) for i in range(entries)]


def snapshot_places(image):
    """Of the snapshot table: where and how long L1 tables are, sizes; also the entries of those
    tables.
    """
    found, tables, at = [], [], image.u64(64)
    for n in range(image.u32(60)):
        name = f"snapshot {n}"
        found += [
            Place(f"{name} L1 offset", at, 8),
            Place(f"{name} L1 size", at + 8, 4),
            Place(f"{name} id size", at + 12, 2),
            Place(f"{name} name size", at + 14, 2),
            Place(f"{name} extra size", at + 36, 4),
        ]
        tables += table_places(image, f"{name} L1", image.u64(at), image.u32(at + 8))
        sizes = image.u32(at + 36) + int.from_bytes(image.read(at + 12, 2), "big")
        sizes += int.from_bytes(image.read(at + 14, 2), "big")
        at += (40 + sizes + 7) // 8 * 8
    return found, tables


def bitmap_places(image):
    """Of the bitmap directory, and the entries of the bitmap tables."""
    extension = image.extension(EXT_BITMAPS)
    if extension is None:
        return [], []
    found = [
        Place("bitmap count", extension, 4),
        Place("bitmap directory size", extension + 8, 8),
        Place("bitmap directory offset", extension + 16, 8),
    ]
    tables, at = [], image.u64(extension + 16)
    for n in range(image.u32(extension)):
        found += [
            Place(f"bitmap {n} table offset", at, 8),
            Place(f"bitmap {n} table size", at + 8, 4),
            Place(f"bitmap {n} flags", at + 12, 4),
            Place(f"bitmap {n} type and granularity", at + 16, 2),
            Place(f"bitmap {n} name size", at + 18, 2),
            Place(f"bitmap {n} extra size", at + 20, 4),
        ]
        tables += table_places(image, f"bitmap {n} table", image.u64(at), image.u32(at + 8))
        sizes = int.from_bytes(image.read(at + 18, 2), "big") + image.u32(at + 20)
        at += (24 + sizes + 7) // 8 * 8
    return found, tables


def refcount_places(image):
    """The refcount of each cluster of the file, as bytes of the refcount blocks."""
    found = []
    for cluster in range((image.file_size() + image.cluster_size - 1) // image.cluster_size):
        block = image.refblock(cluster * image.refcount_bits // 8 // image.cluster_size)
        byte = cluster * image.refcount_bits // 8 % image.cluster_size
        found.append(Place(f"refcount of {cluster}", block + byte, max(1, image.refcount_bits // 8)))
    return found


def l2_places(image):
    found = []
    step = 16 if image.version >= 3 and image.u64(72) & 16 else 8
    for i in range(image.l1_size):
        table = image.l2_table(i)
        if table:
            places = table_places(image, f"L2 {i}", table, image.cluster_size // step, step)
            found += [p for p in places if image.u64(p.offset)]
    return found


def kinds(image):
    """{kind of structure: its places}; kinds without places are left out."""
    snapshots, snapshot_l1 = snapshot_places(image)
    bitmaps, bitmap_tables = bitmap_places(image)
    entries = min(image.u32(56) * image.cluster_size // 8, 8)
    found = {
        "header": [Place("L1 size", 36, 4), Place("snapshot table offset", 64, 8)],
        "L1": table_places(image, "L1", image.l1, image.l1_size),
        "L2": l2_places(image),
        "refcount table": table_places(image, "refcount table", image.reftable, entries),
        "refcounts": refcount_places(image),
        "snapshot table": snapshots,
        "L1 of snapshots": snapshot_l1,
        "bitmap directory": bitmaps,
        "bitmap tables": bitmap_tables,
    }
    return {kind: places for kind, places in found.items() if places}


def changed_offset(rng, image, value):
    """A table entry or an offset, changed."""
    cluster = image.cluster_size
    clusters = (image.file_size() + cluster - 1) // cluster
    flags, offset = value & ~OFFSET_MASK, value & OFFSET_MASK
    return rng.choice(
        [
            lambda: 0,
            lambda: flags | rng.randrange(clusters) * cluster,
            lambda: flags | rng.randrange(clusters) * cluster,
            lambda: COPIED | rng.randrange(clusters) * cluster,
            lambda: flags | (clusters + rng.randrange(4)) * cluster,
            lambda: flags | 1 << rng.randrange(32, 56),
            lambda: flags | offset + 512 * rng.randrange(1, 8),
            lambda: value ^ COPIED,
            lambda: value ^ COMPRESSED,
            lambda: value ^ 1 << rng.randrange(64),
            lambda: value ^ 1 << rng.randrange(56, 62),
            lambda: value ^ 1,
        ]
    )()


def changed_number(rng, value, bits):
    return rng.choice(
        [
            lambda: 0,
            lambda: value + 1,
            lambda: value - 1,
            lambda: value ^ 1 << rng.randrange(bits),
            lambda: rng.randrange(1 << bits),
        ]
    )() % (1 << bits)


def damage_one(rng, image, only):
    places = kinds(image)
    kind = rng.choice(sorted(k for k in places if only is None or k in only))
    place = rng.choice(places[kind])
    old = int.from_bytes(image.read(place.offset, place.size), "big")
    if place.size == 8 and "size" not in place.name and kind != "refcounts":
        new = changed_offset(rng, image, old) % (1 << 64)
    else:
        new = changed_number(rng, old, 8 * place.size)
    image.write(place.offset, new.to_bytes(place.size, "big"))
    return f"{place.name}: {old:#x} -> {new:#x}"


def damage(path, seed, times=1, only=None):
    """Change `times` fields of the kinds `only` (None: any). What was done, to be shown."""
    rng = random.Random(seed)
    # Places are those of the image as it was.
    image = Image(path)
    return "; ".join(damage_one(rng, image, only) for _ in range(times))
