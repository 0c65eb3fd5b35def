# SPDX-License-Identifier: Apache-2.0
"""The modes of the kernel's VFIO beside type 1: iommufd, and no IOMMU at all (KERNEL=full).

Each is served, compared with the kernel's own driver, killed and restarted under load, and given
back; what a mode refuses, it refuses by name.
"""
import contextlib, re

import leaks, nvmetrace, test_adoption, test_faults
from harness import boots_with, check, needs, seconds_limit
from test_crosscheck import cross

VERIFY = "--length 4M --pattern random --seed 5"
LOAD_BYTES_PER_SECOND = 4 << 20
WITHOUT_IOMMU = boots_with("intel_iommu=off hugepages=256")
CAPABILITIES = "CapabilityBoundingSet=CAP_SYS_RAWIO CAP_SYS_ADMIN"


def worker_pid(guest, device):
    return int(guest.expect(f"systemctl show -P MainPID nvmed-worker@{device}.service").text)


def stored(guest, device):
    return int(guest.expect(f"systemctl show -P NFileDescriptorStore nvmed-worker@{device}.service").text)


def opened_through(guest, since):
    """The interfaces that the opener opened devices through since then."""
    text = guest.journal("nvmed-opener.service", since)
    return re.findall(r"opened through (\w+)", text)


def open_files(guest, device):
    """What the worker's descriptors are, without the numbers."""
    pid = worker_pid(guest, device)
    return guest.expect(f"cd /proc/{pid}/fd; for n in *; do readlink $n; done").text


def survive(guest, device, disk, drive):
    """The worker is killed, and restarted, while data is verified; the device stays open throughout."""
    guest.expect(f"nvmectl io write {disk} {VERIFY}")
    before, cursor = stored(guest, device), guest.journal_cursor()
    check(before > 0, "nothing is stored")
    with leaks.none(guest), load(guest, disk, drive):
        commands = f"systemctl kill -s KILL nvmed-worker@{device}", f"systemctl restart nvmed-worker@{device}"
        for number, command in enumerate(commands, 1):
            guest.expect(command, 60)
            # Each goes on before the next is killed: a restart during the start would end one that has not.
            guest.wait_for(f"test $(journalctl -u nvmed-worker@{device} --after-cursor='{cursor}' | "
                           f"grep -c 'goes on after') -ge {number}")
            guest.wait_for(f"nvmectl session list | grep -q {disk}", 60)
    guest.expect(f"nvmectl io verify {disk} {VERIFY}")
    check(opened_through(guest, cursor) == [], "a restart opened the device anew")
    taken = guest.journal(f"nvmed-worker@{device}", cursor).count("goes on after")
    check(taken == 2, f"{taken} of two successors went on with the controller")


@contextlib.contextmanager
def load(guest, disk, drive):
    """A client that reads and compares all the time; it has to be right."""
    guest.throttle(drive, bytes=LOAD_BYTES_PER_SECOND)
    running = guest.start(f"nvmectl io verify {disk} {VERIFY} --reopen --repeat 100000", 150)
    try:
        guest.wait_for(f"nvmectl session list | grep -q {disk}", 60)
        yield running
        check(not running.done, f"the client ended: {running.done and running.result()}")
    finally:
        guest.throttle(drive)
        if not running.done:
            running.stop().result()


# iommufd

@needs("iommufd")
@seconds_limit(450)
def test_iommufd_bytes(guest):
    """iommufd: bytes written through nvmed are read by the kernel's driver, and the other way round"""
    guest.install()
    cursor = guest.journal_cursor()
    cross(guest, 1, 512, "IOMMU=iommufd\n")
    check(set(opened_through(guest, cursor)) == {"iommufd"}, f"it was another interface: {opened_through(guest, cursor)}")


@needs("iommufd")
@seconds_limit(300)
def test_iommufd_restart(guest):
    """iommufd: a worker is killed and restarted under load with its descriptors; nothing leaks"""
    guest.serve("NVMED-B", "mb", (1,), "IOMMU=iommufd\n")
    try:
        guest.expect(f"nvmectl io write mb1 {VERIFY}")
        files = open_files(guest, "mb")
        check("iommu" in files and "/vfio/devices/" in files.replace("/dev/vfio/devices", "/vfio/devices"),
              f"the worker has open:\n{files}")
        check("/vfio/vfio" not in files, f"the worker has a container open:\n{files}")
        survive(guest, "mb", "mb1", "b1")
    finally:
        guest.give_back("mb")
    leaks.gone(guest, "@mb|^pinned pages$")


@needs("iommufd")
@seconds_limit(400)
def test_iommufd_kills(guest):
    """iommufd: fifteen kills with commands in flight; each worker is followed by one that goes on, and the controller is told nothing"""
    kills_under_load(guest, "mb", "IOMMU=iommufd\n", 15)


def kills_under_load(guest, device, settings, count):
    """Kills of a worker under verified load on a slow disk: adopted each time, no reset, nothing anew."""
    worker = test_adoption.WORKER.format(device)
    with test_adoption.served(guest, "NVMED-B", device, "b1", settings):
        before, cursor = test_adoption.values(guest, device), guest.journal_cursor()
        with nvmetrace.watched(guest) as told:
            load = guest.run(f"python3 /run/soak/adoption_load.py kill {device} {count} {device}1+", 300)
        judged = test_adoption.judge(load)
        pauses = judged["pauses"]
        print(f"    {judged['requests']} requests, pause median {pauses[len(pauses) // 2]} ms, "
              f"longest {pauses[-1]} ms", flush=True)
        check(len(pauses) == count, f"{len(pauses)} kills")
        journal = guest.journal(worker, cursor)
        check(told.resets() == [] and told.faults() == [], f"{told.resets()} {told.faults()}\n{journal[-3000:]}")
        check(journal.count("goes on after") == count, f"not {count} adoptions:\n{journal[-3000:]}")
        check(opened_through(guest, cursor) == [], "a successor opened the device anew")
        after = test_adoption.values(guest, device)
        check(before == after, f"{before} became {after}")


@needs("iommufd")
@seconds_limit(240)
def test_iommufd_unplug(guest):
    """iommufd: a controller that is unplugged under load is let go of, and served again when it is back"""
    address = guest.address("NVMED-C")
    guest.serve("NVMED-C", "mc", (1,), "IOMMU=iommufd\n")
    try:
        guest.expect(f"nvmectl io write mc1 {VERIFY}")
        with leaks.none(guest):
            reader = guest.start(f"nvmectl io verify mc1 {VERIFY} --repeat 100000 --output json", 120)
            guest.wait_for("nvmectl session list | grep -q mc1")
            guest.unplug("nvme-c")
            ended = reader.result()
            check(ended.json["error"]["code"] == "device-removed", f"the client saw: {ended}")
            test_faults.wait_state(guest, "mc", "removed")
            test_faults.wait_forgotten(guest, "mc")
            test_faults.plug_c(guest)
            test_faults.wait_state(guest, "mc", "ready")
            guest.expect(f"nvmectl io verify mc1 {VERIFY}")
    finally:
        guest.addresses["NVMED-C"] = address
        guest.give_back("mc")


# No IOMMU

def allow(guest, text=CAPABILITIES):
    """What nvmed-opener.service's own comment says: the capabilities of this mode."""
    guest.install()
    directory = "/run/systemd/system/nvmed-opener.service.d"
    guest.write(f"{directory}/noiommu.conf", f"[Service]\n{text}\n")
    guest.expect("systemctl daemon-reload; systemctl stop nvmed-opener.service", 90)


def refused(guest, command, pattern):
    result = guest.run(command, 90)
    check(not result.ok and re.search(pattern, result.stderr), f"not refused with {pattern!r}: {result}")


@needs("noiommu")
@WITHOUT_IOMMU
@seconds_limit(300)
def test_noiommu_refusals(guest):
    """No IOMMU: not taken unless the file says so, and what is missing (capabilities, huge pages) is named"""
    guest.install()
    address = guest.address("NVMED-B")
    device = f"[Device]\nTransport=pci\nAddress={address}\n"
    guest.write("/etc/nvmed/nb.device", device)
    guest.write("/etc/nvmed/nb1.disk", "[Disk]\nDevice=nb\nNamespace=1\nAccess=read-write\n")
    refused(guest, "nvmectl device bind nb", "IOMMU group")
    check(guest.expect("cat /sys/module/vfio/parameters/enable_unsafe_noiommu_mode").text == "N", "it was switched on")
    # By hand, and the file still says IOMMU=auto: never without an IOMMU by accident.
    guest.expect("nvmectl device bind --no-iommu nb", 60)
    guest.reload()
    refused(guest, "nvmectl io read nb1 --length 1b", "no IOMMU group in /dev/vfio")
    guest.write("/etc/nvmed/nb.device", device + "IOMMU=noiommu\n")
    guest.reload()
    guest.run("nvmectl device retry nb")
    refused(guest, "nvmectl io read nb1 --length 1b", "CAP_SYS_RAWIO")
    allow(guest, "CapabilityBoundingSet=CAP_SYS_RAWIO")
    guest.run("nvmectl device retry nb")
    refused(guest, "nvmectl io read nb1 --length 1b", "CAP_SYS_ADMIN")
    allow(guest)
    pages = guest.expect("sysctl -n vm.nr_hugepages").text
    guest.expect("sysctl -w vm.nr_hugepages=2")
    guest.run("nvmectl device retry nb")
    refused(guest, "nvmectl io read nb1 --length 1b", "huge ?pages")
    guest.expect(f"sysctl -w vm.nr_hugepages={pages}")
    guest.run("nvmectl device retry nb")
    guest.expect("nvmectl io read nb1 --length 1b >/dev/null", 90)
    guest.give_back("nb")


@needs("noiommu")
@WITHOUT_IOMMU
@seconds_limit(450)
def test_noiommu_bytes(guest):
    """No IOMMU: bytes written through nvmed are read by the kernel's driver, and the other way round"""
    allow(guest)
    cursor = guest.journal_cursor()
    cross(guest, 1, 512, "IOMMU=noiommu\n")
    check(set(opened_through(guest, cursor)) == {"noiommu"}, f"it was another interface: {opened_through(guest, cursor)}")


@needs("noiommu")
@WITHOUT_IOMMU
@seconds_limit(300)
def test_noiommu_restart(guest):
    """No IOMMU: a worker is killed and restarted under load; its huge pages stay until the device is stopped"""
    allow(guest)
    guest.serve("NVMED-B", "nb", (1,), "IOMMU=noiommu\n")
    free = "grep HugePages_Free /proc/meminfo | tr -dc 0-9"
    try:
        guest.expect(f"nvmectl io write nb1 {VERIFY}")
        shown = guest.expect("nvmectl disk show nb1 --output json").json
        check('"bounced": true' in str(shown).replace("'", '"').replace("True", "true"), f"not told as bounced: {shown}")
        survive(guest, "nb", "nb1", "b1")
        used = int(guest.expect(free).text)
    finally:
        guest.give_back("nb")
    check(int(guest.expect(free).text) > used, "the huge pages were not given back")
    leaks.gone(guest, "@nb")


@needs("noiommu")
@WITHOUT_IOMMU
@seconds_limit(400)
def test_noiommu_kills(guest):
    """No IOMMU: ten kills with commands in flight; each worker is followed by one that goes on, and the controller is told nothing"""
    allow(guest)
    kills_under_load(guest, "nb", "IOMMU=noiommu\n", 10)
