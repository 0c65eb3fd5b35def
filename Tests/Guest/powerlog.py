# SPDX-License-Identifier: Apache-2.0
"""What a drive holds after a power failure, from QEMU's log of its writes (driver blklogwrites).

The log has the format of Linux's dm-log-writes: Documentation/admin-guide/device-mapper/log-writes.rst.
A real drive may lose every write that was neither flushed nor written with FUA, in any combination.
"""
import os, struct

FLUSH, FUA, DISCARD = 1, 2, 4
MAGIC = 0x6A736677736872
SUPER, ENTRY = struct.Struct("<QQQI"), struct.Struct("<QQQQ")


def entries(path):
    """(offset, bytes, flags) of each write, in order; a flush without data has none."""
    with open(path, "rb") as file:
        magic, version, count, sector = SUPER.unpack(file.read(SUPER.size))
        if magic != MAGIC or version != 1:
            raise ValueError(f"{path} is no log of writes: {magic:#x} {version}")
        place = sector
        for _ in range(count):
            file.seek(place)
            first, sectors, flags, _ = ENTRY.unpack(file.read(ENTRY.size))
            place += sector
            data = b""
            if not flags & DISCARD:
                file.seek(place)
                data = file.read(sectors * sector)
                place += sectors * sector
            yield first * sector, sectors * sector, data, flags


def after_power_failure(log, image, size, lost):
    """Writes the image of a drive that lost each unflushed write for which `lost(offset)` holds.

    QEMU's controller does not hand FUA on to its drive (10.0), so the caller has to know those writes.

    Returns how many writes there were, were durable, and were lost.
    """
    log_entries = list(entries(log))
    last_flush = max((index for index, entry in enumerate(log_entries) if entry[3] & FLUSH), default=-1)
    kept, dropped, durable = 0, 0, 0
    with open(image, "wb") as file:
        file.truncate(size)
        for index, (offset, length, data, flags) in enumerate(log_entries):
            if not length:
                continue
            sure = index < last_flush or flags & FUA
            durable += bool(sure)
            if not sure and lost(offset):
                dropped += 1
                continue
            kept += 1
            file.seek(offset)
            file.write(data if data else b"\0" * length)
    return len(log_entries), durable, dropped
