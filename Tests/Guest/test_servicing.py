# SPDX-License-Identifier: Apache-2.0
"""All of nvmed is stopped and started, and the controllers go on: what servicing promises with the kernel's VFIO.

Without an IOMMU, and with the pool in a file of huge pages, the controller is found as it was left, and QEMU says
that nobody told it anything meanwhile. Behind an IOMMU the device is started cold, and the reason is told before.
"""
import json, re

import nvmetrace, test_faults, test_modes
from harness import boots_with, check, needs, seconds_limit

VERIFY = "--length 8M --pattern random --seed 9"
BUS_MASTER, MEMORY_SPACE = 4, 2
POOL = "/dev/hugepages/nvmed/{}.pool"
WITHOUT_IOMMU = test_modes.WITHOUT_IOMMU
# Every process of nvmed, and every descriptor that the service manager keeps for one.
STOP = "systemctl stop nvmed.service nvmed.socket 'nvmed-worker@*' nvmed-opener.service nvmed-opener.socket"
START = "systemctl start nvmed-opener.socket nvmed.socket nvmed.service"


def status(guest):
    return guest.expect("nvmectl service status --output json", 60).json


def device_status(guest, name):
    """What the last save or restore came to for one device."""
    told = status(guest)
    found = [device for device in told["devices"] if device["name"] == name]
    check(len(found) == 1, f"{name} is not told of once: {told}")
    return found[0]


def nobody_has(guest, address):
    """No process is left, and no descriptor of the function."""
    left = guest.run("pgrep -a '^nvmed'").text
    check(not left, f"still running:\n{left}")
    kept = guest.expect("systemctl show -P NFileDescriptorStore 'nvmed-worker@*'").text
    check(not kept.replace("0", "").strip(), f"the service manager keeps descriptors: {kept}")
    driver = guest.expect(f"basename $(readlink /sys/bus/pci/devices/{address}/driver)").text
    check(driver == "vfio-pci", f"the function is {driver}'s")


def full_stop(guest, address):
    guest.expect(STOP, 120)
    nobody_has(guest, address)


def restored(guest, name):
    guest.expect(START, 120)
    test_faults.wait_state(guest, name, "ready")
    return device_status(guest, name)


def settings(name, *lines):
    return "\n".join(["NVMeKeepAlive=yes", "Pool=hugetlb", "PoolPath=" + POOL.format(name), *lines]) + "\n"


@needs("noiommu")
@WITHOUT_IOMMU
@seconds_limit(400)
def test_noiommu_full_stop(guest):
    """No IOMMU: three full stops and starts of all of nvmed; the controller stays enabled, and every byte is there"""
    address = guest.address("NVMED-B")
    test_modes.allow(guest)
    guest.serve("NVMED-B", "sb", (1,), settings("sb", "IOMMU=noiommu"))
    try:
        for life in range(3):
            pattern = f"--length 8M --pattern random --seed {life}"
            guest.expect(f"nvmectl io write sb1 {pattern}", 90)
            configuration, running = nvmetrace.registers(guest, address)
            check(configuration & 1 == 1 and running & 3 == 1, f"CC {configuration:#x}, CSTS {running:#x}")
            with nvmetrace.watched(guest) as told:
                guest.expect("nvmectl service save", 90)
                check(device_status(guest, "sb")["step"] == "saved", f"{status(guest)}")
                full_stop(guest, address)
                # The kernel has closed it: it may touch no memory, and goes on.
                command = nvmetrace.command(guest, address)
                check(not command & BUS_MASTER, f"the command register is {command:#x} with nobody there")
                closed = nvmetrace.registers(guest, address)
                check(closed == (configuration, running), f"CC and CSTS were {configuration:#x} {running:#x}, are {closed}")
                found = restored(guest, "sb")
                check(found["step"] == "restored", f"life {life}: {found}")
                check(nvmetrace.command(guest, address) & (BUS_MASTER | MEMORY_SPACE) == 6, "it may not touch memory")
                guest.expect(f"nvmectl io verify sb1 {pattern}", 90)
            check(told.resets() == [] and told.faults() == [], f"life {life}: {told.resets()} {told.faults()}")
            check(nvmetrace.registers(guest, address) == (configuration, running), "CC or CSTS changed")
    finally:
        guest.give_back("sb")


@needs("noiommu")
@WITHOUT_IOMMU
@seconds_limit(300)
def test_noiommu_moved_pool(guest):
    """No IOMMU: a pool that is not where it was, and one of another life, are never given to the device: it starts cold"""
    address = guest.address("NVMED-B")
    test_modes.allow(guest)
    guest.serve("NVMED-B", "sb", (1,), settings("sb", "IOMMU=noiommu"))
    try:
        guest.expect(f"nvmectl io write sb1 {VERIFY}", 90)
        pool = POOL.format("sb")
        for what in (
                # The same bytes in other pages: a copy that others than the first ones are taken for.
                f"python3 -c \"import mmap, os; a = os.open('{pool}', os.O_RDWR); n = os.fstat(a).st_size; "
                f"b = os.open('{pool}.new', os.O_RDWR | os.O_CREAT, 0o600); os.ftruncate(b, n); "
                f"mmap.mmap(b, n)[:] = mmap.mmap(a, n)[:]\" && mv {pool}.new {pool}",
                f"rm {pool}"):
            guest.expect("nvmectl service save", 90)
            full_stop(guest, address)
            guest.expect(what)
            found = restored(guest, "sb")
            check(found["step"] == "cold" and found["reason"], f"{what}: {found}")
            guest.expect(f"nvmectl io verify sb1 {VERIFY}", 90)
    finally:
        guest.give_back("sb")


@needs("noiommu")
@WITHOUT_IOMMU
@seconds_limit(300)
def test_noiommu_other_driver(guest):
    """No IOMMU: a controller that the kernel's driver had between stop and start is not taken for the one that was saved"""
    address = guest.address("NVMED-B")
    test_modes.allow(guest)
    guest.serve("NVMED-B", "sb", (1,), settings("sb", "IOMMU=noiommu"))
    try:
        guest.expect(f"nvmectl io write sb1 {VERIFY}", 90)
        guest.expect("nvmectl service save", 90)
        full_stop(guest, address)
        guest.bind(address, "nvme")
        guest.wait_for(f"ls /sys/bus/pci/devices/{address}/nvme/nvme*/nvme*n*")
        guest.bind(address, "vfio-pci")
        found = restored(guest, "sb")
        check(found["step"] == "cold" and re.search("CC|CSTS|AQA|ASQ|ACQ", found["reason"]), f"{found}")
        guest.expect(f"nvmectl io verify sb1 {VERIFY}", 90)
    finally:
        guest.give_back("sb")


@seconds_limit(240)
def test_type1_full_stop(guest):
    """Behind an IOMMU (type 1) the device is left out of the save with the reason, and a stop and start is a cold one"""
    address = guest.address("NVMED-B")
    guest.serve("NVMED-B", "st", (1,), "NVMeKeepAlive=yes\nPool=file\n")
    try:
        guest.expect(f"nvmectl io write st1 {VERIFY}", 90)
        guest.run("nvmectl service save", 90)
        found = device_status(guest, "st")
        check(found["step"] in ("cold", "not-kept") and "IOMMU" in found["reason"], f"{found}")
        # It was left out, and goes on until it is stopped.
        guest.expect(f"nvmectl io verify st1 {VERIFY}", 90)
        with nvmetrace.watched(guest) as told:
            full_stop(guest, address)
            guest.expect(START, 120)
            guest.expect(f"nvmectl io verify st1 {VERIFY}", 90)
        events = " ".join(told.resets())
        check("CC.SHN was set" in events and "CC.EN rose" in events, f"it was not shut down and brought up: {events}")
    finally:
        guest.give_back("st")
