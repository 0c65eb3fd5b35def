# SPDX-License-Identifier: Apache-2.0
"""nvmed against the kernel's own driver: the same bytes, the same identity."""
import json

import machine
from harness import check, seconds_limit

SIZE_MEBIBYTES = 6

# Places and lengths in blocks, chosen around pages, PRP lists and the transfers that a library splits.
PIECES = ((0, 1), (1, 1), (7, 2), (15, 17), (63, 130), (1021, 255), (4000, 513), (9001, 1))


def checksum(guest, disk, mebibytes=SIZE_MEBIBYTES):
    return guest.expect(f"dd if={disk} bs=1M count={mebibytes} iflag=direct status=none | sha256sum",
                        timeout=120).text


def read_through_nvmed(guest, disk, mebibytes=SIZE_MEBIBYTES, way=""):
    return guest.expect(f"set -o pipefail; nvmectl io read {disk} {way} --length {mebibytes}M | sha256sum",
                        timeout=120).text


def cross(guest, nsid, block, settings=""):
    """Both directions on one namespace of controller A, in whole and in pieces at odd places."""
    kernel = guest.disks("NVMED-A")[nsid]
    guest.expect(f"head -c {SIZE_MEBIBYTES}M /dev/urandom >/run/one; head -c {SIZE_MEBIBYTES}M /dev/urandom >/run/two")
    guest.expect(f"dd if=/run/one of={kernel} bs=256k oflag=direct status=none")
    guest.serve("NVMED-A", "a", (1, 2), settings)
    try:
        one, two = (guest.expect(f"sha256sum </run/{name}").text for name in ("one", "two"))
        seen = read_through_nvmed(guest, f"a{nsid}")
        check(seen == one, "nvmed does not read what the kernel's driver wrote")
        seen = read_through_nvmed(guest, f"a{nsid}", way="--ring")
        check(seen == one, "a ring does not read what the kernel's driver wrote")
        guest.expect(f"nvmectl io write a{nsid} </run/two", timeout=120)
        check(read_through_nvmed(guest, f"a{nsid}") == two, "nvmed does not read what it wrote")
        for number, (place, count) in enumerate(PIECES):
            way = "--ring" if number % 2 else ""
            if (place + count) * block <= SIZE_MEBIBYTES << 20:
                guest.expect(f"""head -c {count * block} /dev/urandom >/run/piece
                    dd if=/run/piece of=/run/two bs={block} seek={place} conv=notrunc status=none
                    nvmectl io write a{nsid} {way} --offset {place}b </run/piece""")
        two = guest.expect("sha256sum </run/two").text
        guest.expect(f"nvmectl io flush a{nsid}")
    finally:
        guest.give_back("a")
    seen = checksum(guest, guest.disks("NVMED-A")[nsid])
    check(seen == two, "the kernel's driver does not read what nvmed wrote")


@seconds_limit(450)
def test_bytes_512(guest):
    """512-byte blocks: bytes written through nvmed are read by the kernel's driver, and the other way round"""
    cross(guest, 1, 512)


@seconds_limit(450)
def test_bytes_4096(guest):
    """4096-byte blocks: bytes written through nvmed are read by the kernel's driver, and the other way round"""
    cross(guest, 2, 4096)


def test_identity(guest):
    """Identify data as nvmed tells it agrees with nvme-cli's, for the controller and each namespace"""
    disks = guest.disks("NVMED-A")
    controller = guest.expect(f"nvme id-ctrl -o json {disks[1]}").json
    spaces = {nsid: guest.expect(f"nvme id-ns -o json {disk}").json for nsid, disk in disks.items()}
    guest.serve("NVMED-A", "a", (1, 2))
    try:
        guest.expect("nvmectl disk show a1")
        device = guest.expect("nvmectl device show a --output json").json["device"]
    finally:
        guest.give_back("a")
    for ours, theirs in (("serial", "sn"), ("model", "mn"), ("firmware", "fr")):
        check(device[ours] == controller[theirs].strip(), f"{ours}: {device[ours]!r}, {controller[theirs]!r}")
    by_nsid = {space["nsid"]: space for space in device["namespaces"]}
    for drive in machine.standard()[0].drives:
        if drive.metadata:
            continue
        ours, theirs = by_nsid[drive.nsid], spaces[drive.nsid]
        form = theirs["lbafs"][theirs["flbas"] & 15]
        check(ours["blocks"] == theirs["nsze"], f"blocks: {ours} {theirs}")
        check(ours["block_bytes"] == 1 << form["ds"], f"block: {ours} {form}")
        check(plain(ours["nguid"]) == theirs["nguid"] == drive.nguid, f"nguid: {ours} {theirs['nguid']}")
        check(plain(ours["eui64"]) == theirs["eui64"], f"eui64: {ours} {theirs['eui64']}")
        check(plain(ours["uuid"]) == plain(drive.uuid), f"uuid: {ours} {drive.uuid}")


def plain(text):
    return (text or "").replace("-", "").lower()


def test_metadata(guest):
    """A namespace with metadata or protection information is refused with the reason, or read as the kernel does"""
    plain_text = "metadata in the data must not be mistaken for data"
    kernel = guest.disks("NVMED-A")
    expected = {nsid: guest.expect(f"dd if={kernel[nsid]} bs=512 count=8 iflag=direct status=none | sha256sum").text
                for nsid in (3, 4) if nsid in kernel}
    guest.serve("NVMED-A", "a", (1, 3, 4))
    try:
        for nsid in (3, 4):
            result = guest.run(f"set -o pipefail; nvmectl io read a{nsid} --length 8b | sha256sum")
            if result.ok:
                check(result.text == expected.get(nsid), f"namespace {nsid}: {plain_text}: {result}")
            else:
                said = result.stderr.lower()
                check("metadata" in said or "protection" in said, f"the refusal does not say why: {result}")
    finally:
        guest.give_back("a")
