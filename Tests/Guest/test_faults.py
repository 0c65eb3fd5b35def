# SPDX-License-Identifier: Apache-2.0
"""Faults of devices, memory and configuration under the installed units, while data is verified.

Three controllers are served at once; what one suffers, the others must not notice. Every test ends
with nothing more held than before it (`leaks`).
"""
import contextlib, json, re

import leaks
import machine
from harness import check, Failure, seconds_limit

DEVICES = {"fa": "NVMED-A", "fb": "NVMED-B", "fc": "NVMED-C"}
# disk: device, namespace, bytes a block
DISKS = {"fa1": ("fa", 1, 512), "fa2": ("fa", 2, 4096), "fa3": ("fa", 3, 512), "fa4": ("fa", 4, 512),
         "fb1": ("fb", 1, 512), "fb2": ("fb", 2, 512), "fb5": ("fb", 5, 4096), "fc1": ("fc", 1, 4096)}
HEALTHY = {disk: device for disk, (device, _, _) in DISKS.items() if disk in ("fa1", "fa2", "fb1", "fc1")}
LENGTH = "4M"
LOAD_BYTES_PER_SECOND = 4 << 20
DEVICE_FAILED, RETRY = 5, 75


# Setting up

def device_file(guest, name, **settings):
    lines = {"Transport": "pci", "Address": guest.fault_addresses[name]} | settings
    guest.write(f"/etc/nvmed/{name}.device",
                "[Device]\n" + "".join(f"{key}={value}\n" for key, value in lines.items()))


def serve(guest):
    """All three controllers behind nvmed, with known data on every healthy disk; once a boot."""
    if getattr(guest, "faults_boot", None) == guest.boots:
        return
    guest.install()
    guest.fault_addresses = {name: guest.address(serial) for name, serial in DEVICES.items()}
    for name in DEVICES:
        device_file(guest, name)
    for disk, (device, nsid, _) in DISKS.items():
        guest.write(f"/etc/nvmed/{disk}.disk",
                    f"[Disk]\nDevice={device}\nNamespace={nsid}\nAccess=read-write\n")
    guest.expect("; ".join(f"nvmectl device bind {name}" for name in DEVICES), 120)
    reload(guest)
    fill(guest)
    guest.faults_boot = guest.boots


def reload(guest):
    # ExecReload= tells PID 1 how it went; this tells us why.
    guest.expect("systemctl start nvmed.service; nvmectl reload")


def io(verb, disk, length=LENGTH, more=""):
    return f"nvmectl io {verb} {disk} --length {length} --pattern random --seed 5 {more}"


def together(guest, commands, timeout=120):
    """Runs commands at one time; every one has to succeed."""
    for result in [one.result() for one in [guest.start(command, timeout) for command in commands]]:
        check(result.ok, str(result))


def fill(guest):
    together(guest, [io("write", disk) for disk in HEALTHY])


def verify_all(guest, *without):
    """The data on every healthy disk is what was written, whichever device had what fault."""
    together(guest, [io("verify", disk) for disk, device in HEALTHY.items() if device not in without])


# What is told

def shown(guest, device):
    """The device in the registry."""
    return guest.expect(f"nvmectl device show {device} --output json").json["device"]


def pids(guest):
    return {name: shown(guest, name)["pid"] for name in DEVICES}


def wait_state(guest, device, state, seconds=60):
    guest.wait_for(f"nvmectl device show {device} --output json | grep -q '\"state\": *\"{state}\"'", seconds)
    return shown(guest, device)


def journal(guest, device, since):
    """What the journal has about a device after a cursor: (priority, message)."""
    text = guest.expect(f"journalctl -o json --output-fields=MESSAGE,PRIORITY --after-cursor='{since}' "
                        f"NVME_DEVICE={device}").stdout
    return [(int(entry["PRIORITY"]), entry["MESSAGE"]) for entry in map(json.loads, text.splitlines())]


def check_journal(guest, device, since, pattern, priority=4):
    """The journal has a message like this about the device, at least this important."""
    entries = journal(guest, device, since)
    check(any(level <= priority and re.search(pattern, text) for level, text in entries),
          f"no message of priority {priority} like {pattern!r} about {device}: {entries}")


def check_calm(guest, since, *devices):
    """Nothing was worth a warning about these devices; interrupts may be late in an emulated machine."""
    for device in devices:
        loud = [text for level, text in journal(guest, device, since)
                if level <= 4 and "without an interrupt" not in text]
        check(not loud, f"device {device} should not have noticed: {loud}")


def refused(guest, command, pattern, status=None):
    """The command fails with a message like this; returns its JSON error."""
    result = guest.run(command + " --output json", 90)
    check(not result.ok and (status is None or result.status == status),
          f"it ended with {result.status}, expected {status or 'an error'}: {result}")
    check(re.search(pattern, result.stderr), f"the message is not like {pattern!r}: {result}")
    return result.json["error"]


def refused_last(guest, command, pattern):
    """As `refused`, for a shell command that takes the options of its last command."""
    result = guest.run(command("--output json 2>/run/refused"), 90)
    said = guest.expect("cat /run/refused").text
    check(not result.ok and re.search(pattern, said), f"not refused with {pattern!r}: {result} {said}")
    return said


@contextlib.contextmanager
def load(guest, *disks):
    """Reads and compares without end meanwhile; every comparison has to be right.

    The disks are fb1 or fc1, whose drives are slowed down: the machine is to have time for the test.
    """
    for disk in disks:
        guest.throttle(disk[1:], bytes=LOAD_BYTES_PER_SECOND)
    endless = {disk: guest.start(io("verify", disk, more="--repeat 100000"), 300) for disk in disks}
    for disk in disks:
        guest.wait_for(f"nvmectl session list --output json | grep -q '\"{disk}\"'")
    try:
        yield endless
        for disk, running in endless.items():
            check(not running.done, f"the load on {disk} ended: {running.done and running.result()}")
    finally:
        for disk in disks:
            guest.throttle(disk[1:])
        for running in endless.values():
            if not running.done:
                running.stop().result()


@contextlib.contextmanager
def drop_in(guest, unit, text):
    """A drop-in of a unit for some time; the caller restarts what has to see it."""
    directory = f"/run/systemd/system/{unit}.d"
    guest.write(f"{directory}/fault.conf", f"[Service]\n{text}\n")
    guest.expect("systemctl daemon-reload", 90)
    try:
        yield
    finally:
        guest.expect(f"rm -r {directory}; systemctl daemon-reload", 90)


# Tests

@seconds_limit(240)
def test_many_controllers_and_namespaces(guest):
    """Three controllers with 512 and 4096-byte blocks at once; metadata and protection are refused by name"""
    serve(guest)
    with leaks.none(guest):
        verify_all(guest)
        for disk, (device, nsid, block) in DISKS.items():
            found = {one["nsid"]: one for one in shown(guest, device)["namespaces"]}
            if disk in HEALTHY:
                check(found[nsid]["block_bytes"] == block, f"{disk}: {found[nsid]}")
        for disk in ("fa3", "fa4"):
            error = refused(guest, io("read", disk).split(" --pattern")[0], "8 bytes of metadata")
            check(error["code"] == "not-supported", str(error))
            listed = {one["name"]: one for one in guest.expect("nvmectl disk list --output json").json["disks"]}[disk]
            check("8 bytes of metadata" in (listed["problem"] or ""), f"the list says: {listed}")
        before = pids(guest)
        verify_all(guest)
        check(pids(guest) == before, "a worker was replaced")


def test_media_errors(guest):
    """Blocks that cannot be read or written: the client gets the NVMe status, the device stays"""
    serve(guest)
    with leaks.none(guest), load(guest, "fb1"):
        before, cursor = pids(guest), guest.journal_cursor()
        place = f"--length 1b --offset {machine.BAD_READ_BLOCK}b"
        error = refused(guest, f"nvmectl io read fb2 {place}", "Unrecovered Read Error", DEVICE_FAILED)
        check(error["code"] == "media-error", str(error))
        place = f"--length 1b --offset {machine.BAD_WRITE_BLOCK}b --pattern zero"
        error = refused(guest, f"nvmectl io write fb2 {place}", "Write Fault", DEVICE_FAILED)
        check(error["code"] == "media-error", str(error))
        check_journal(guest, "fb", cursor, "Unrecovered Read Error")
        check_journal(guest, "fb", cursor, "Write Fault")
        guest.expect(f"nvmectl io read fb2 --length 1b --offset {machine.BAD_READ_BLOCK + 16}b >/dev/null")
        check(pids(guest) == before and shown(guest, "fb")["state"] == "ready", "the device did not stay")


def test_slow_device(guest):
    """A device at a crawl is slow and right, and is not accused; its neighbours do not wait for it"""
    serve(guest)
    cursor = guest.journal_cursor()
    with leaks.none(guest), load(guest, "fc1"):
        guest.throttle("b1", bytes=512 << 10)
        try:
            slow = guest.start(io("verify", "fb1", "2M"), 60)
            together(guest, [io("verify", disk) for disk in ("fa1", "fa2")])
            check(not slow.done, "the throttled device was not slower than the others")
            check(shown(guest, "fb")["state"] == "ready", "it is not ready")
            check(slow.result().ok, str(slow.result()))
        finally:
            guest.throttle("b1")
        check_calm(guest, cursor, "fa", "fb", "fc")


@seconds_limit(240)
def test_commands_without_answer(guest):
    """Commands that get no answer climb the ladder: Abort, then their queue is made anew; others do not notice"""
    serve(guest)
    device_file(guest, "fb", IOTimeoutSec="1s", AdminTimeoutSec="2s")
    reload(guest)
    verify_all(guest)
    before = pids(guest)
    try:
        cursor = guest.journal_cursor()
        with leaks.none(guest), load(guest, "fc1"):
            # A drive that does nothing for eight seconds after an operation of 128 KiB. It is given
            # one at a time: QEMU stops the machine until those of a deleted queue have ended.
            guest.throttle("b1", bytes=16 << 10)
            try:
                one = "for n in 1 2; do nvmectl io read fb1 --length 128K {} >/dev/null || exit; done".format
                error = refused_last(guest, one, "no answer|SQ Deletion")
                check("outcome-unknown" in error or "may have been done" in error or "SQ Deletion" in error, error)
            finally:
                guest.throttle("b1")
            check_journal(guest, "fb", cursor, "aborting")
            check_journal(guest, "fb", cursor, "deleting the queue", 3)
            check_journal(guest, "fb", cursor, "the queue was made anew", 5)
            check(pids(guest) == before and shown(guest, "fb")["state"] == "ready", "the device did not stay")
            guest.expect(io("verify", "fb1"), 90)
            check_calm(guest, cursor, "fa", "fc")
    finally:
        device_file(guest, "fb")
        reload(guest)
        guest.expect(io("verify", "fb1"), 90)


def test_namespaces_come_and_go(guest):
    """A namespace is attached, used, detached and attached again while its neighbour is verified"""
    serve(guest)
    with second_controller(guest) as helper, leaks.none(guest), load(guest, "fb1"):
        before, cursor = pids(guest), guest.journal_cursor()
        refused(guest, "nvmectl io read fb5 --length 1b", "no namespace 5", 3)
        attach = f"nvme {{}}-ns {helper} --namespace-id=5 --controllers=0"
        for seed in (1, 2):
            guest.expect(attach.format("attach"))
            wait_namespaces(guest, "fb", [1, 2, 5])
            pattern = f"--length 1M --pattern random --seed {seed}"
            guest.expect(f"nvmectl io write fb5 {pattern} && nvmectl io verify fb5 {pattern}")
            reader = guest.start(f"nvmectl io verify fb5 {pattern} --repeat 100000 --output json", 60)
            guest.wait_for("nvmectl session list --output json | grep -q fb5")
            guest.expect(attach.format("detach"))
            wait_namespaces(guest, "fb", [1, 2])
            ended = reader.result()
            # A command that is on its way meets an inactive namespace: Invalid Field (Base 2.0, 3.2.1.2).
            error = ended.json["error"]
            check(error["code"] == "device-removed" or "Invalid Field" in error["message"],
                  f"the client of the detached namespace: {ended}")
        check_journal(guest, "fb", cursor, "namespace (gone|changed)", 5)
        check(pids(guest) == before, "a worker was replaced")


@contextlib.contextmanager
def second_controller(guest):
    """Another controller of b's subsystem, with the kernel's driver: it attaches and detaches."""
    guest.plug(driver="nvme", id="nvme-b-second", serial="NVMED-B", bus="port-d", subsys="subsys-b")
    try:
        guest.wait_for("grep -q NVMED-B /sys/class/nvme/*/serial")
        yield "/dev/" + guest.expect("basename $(dirname $(grep -l NVMED-B /sys/class/nvme/*/serial))").text
    finally:
        guest.unplug("nvme-b-second")
        guest.wait_for("! grep -q NVMED-B /sys/class/nvme/*/serial")


def wait_namespaces(guest, device, wanted):
    text = "".join(f".*\"nsid\":{nsid}\\b" for nsid in wanted)
    guest.wait_for(f"nvmectl device show {device} --output json | tr -d ' \\n' | "
                   f"grep -P '{text}' | grep -vP '(\"nsid\":.*){{{len(wanted) + 1}}}'")


def plug_c(guest):
    guest.plug(driver="nvme", id="nvme-c", serial="NVMED-C", bus="port-c", subsys="subsys-c")


def wait_forgotten(guest, device):
    """Of a device that is gone PID 1 keeps nothing but the worker's state area."""
    guest.wait_for(f"test $(systemctl show -P NFileDescriptorStore nvmed-worker@{device}) -le 1", 60)


@seconds_limit(240)
def test_unplug_and_plug(guest):
    """A controller is unplugged while it works, and let go of in time; plugged in again, it is served by itself"""
    serve(guest)
    with leaks.none(guest), load(guest, "fb1"):
        cursor = guest.journal_cursor()
        reader = guest.start(io("verify", "fc1", more="--repeat 100000 --output json"), 120)
        guest.wait_for("nvmectl session list --output json | grep -q fc1")
        guest.unplug("nvme-c")
        ended = reader.result()
        check(ended.json["error"]["code"] == "device-removed", f"the client saw: {ended}")
        device = wait_state(guest, "fc", "removed")
        check(re.search("wants the device back", device["reason"]), str(device))
        check_journal(guest, "fc", cursor, "wants the device back")
        wait_forgotten(guest, "fc")
        refused(guest, "nvmectl io read fc1 --length 1b", "gone", DEVICE_FAILED)
        plug_c(guest)
        wait_state(guest, "fc", "ready")
        guest.expect(io("verify", "fc1"))
        check_calm(guest, cursor, "fa", "fb")


@seconds_limit(240)
def test_torn_out(guest):
    """A controller is torn out without a word to anybody: its clients are told, it alone is gone, it comes back"""
    serve(guest)
    with leaks.none(guest), load(guest, "fb1"):
        cursor = guest.journal_cursor()
        reader = guest.start(io("verify", "fc1", more="--repeat 100000 --output json"), 120)
        guest.wait_for("nvmectl session list --output json | grep -q fc1")
        tear_out(guest, "nvme-c", "port-c")
        ended = reader.result()
        check(ended.json["error"]["code"] in ("device-removed", "device-failed"), f"the client saw: {ended}")
        device = wait_state(guest, "fc", "removed")
        check(device["reason"], "no reason")
        check_journal(guest, "fc", cursor, "removed", 3)
        wait_forgotten(guest, "fc")
        guest.expect(f"echo 1 >/sys/bus/pci/devices/{guest.fault_addresses['fc']}/remove", 30)
        plug_c(guest)
        wait_state(guest, "fc", "ready")
        guest.expect(io("verify", "fc1"))
        check_calm(guest, cursor, "fa", "fb")


def tear_out(guest, device, port):
    """Takes a device away at once, as a hand would: the system in the machine is not asked or told.

    It is what the firmware's eject method does: two writes to ports of the chip set.
    """
    bus = guest.qmp("qom-get", path=f"/machine/peripheral/{port}/{port}", property="acpi-pcihp-bsel")
    before = len(guest.monitor.events)
    for address, value in ((0xCD0, bus), (0xCC8, 1)):
        guest.qmp("human-monitor-command", **{"command-line": f"o /w {address} {value}"})
    guest.monitor.wait_event("DEVICE_DELETED", since=before, device=device)


@contextlib.contextmanager
def others_undisturbed(guest, device):
    """What happens to the device inside is not noticed by the others, whose workers stay."""
    before, cursor = pids(guest), guest.journal_cursor()
    yield cursor
    after = pids(guest)
    others = [name for name in DEVICES if name != device]
    check([before[name] for name in others] == [after[name] for name in others],
          f"another worker was replaced: {before} {after}")
    check_calm(guest, cursor, *others)


def stop_worker(guest, device):
    """Has the device given back and opened anew by whoever wants it next."""
    guest.expect(f"systemctl stop nvmed-worker@{device}.service", 90)


def broken(guest, disk, pattern, cursor):
    """The disk cannot be opened, and client, registry and journal all say why."""
    device = DISKS[disk][0]
    refused(guest, f"nvmectl io read {disk} --length 1b", pattern)
    state = wait_state(guest, device, "failed")
    check(re.search(pattern, state["reason"]), f"the registry says: {state}")
    check_journal(guest, device, cursor, pattern)


def repaired(guest, disk):
    device = DISKS[disk][0]
    guest.expect(f"nvmectl device retry {device}")
    wait_state(guest, device, "ready", 90)
    guest.expect(io("verify", disk), 90)


@seconds_limit(240)
def test_memory_limits(guest):
    """Too little locked memory, or memory, for a worker: that is said by name, and only this device fails"""
    serve(guest)
    for setting, pattern in (("LimitMEMLOCK=1M", "LimitMEMLOCK="), ("MemoryMax=12M", "ended|died")):
        with leaks.none(guest), load(guest, "fb1"), others_undisturbed(guest, "fc") as cursor:
            with drop_in(guest, "nvmed-worker@fc.service", setting):
                stop_worker(guest, "fc")
                broken(guest, "fc1", pattern, cursor)
            stop_worker(guest, "fc")
            repaired(guest, "fc1")


@seconds_limit(240)
def test_no_permission(guest):
    """A device node that may not be opened, by its mode or the opener's sandbox: said by name, repaired alone"""
    serve(guest)
    group = guest.expect(f"basename $(readlink /sys/bus/pci/devices/{guest.fault_addresses['fc']}/iommu_group)").text
    with leaks.none(guest), load(guest, "fb1"), others_undisturbed(guest, "fc") as cursor:
        guest.expect(f"chmod 000 /dev/vfio/{group}")
        try:
            stop_worker(guest, "fc")
            broken(guest, "fc1", f"/dev/vfio/{group}: Permission denied .*mode", cursor)
        finally:
            guest.expect(f"chmod 600 /dev/vfio/{group}")
        repaired(guest, "fc1")
        with drop_in(guest, "nvmed-opener.service", "DeviceAllow=\nDeviceAllow=/dev/null rw"):
            guest.expect("systemctl stop nvmed-opener.service")
            stop_worker(guest, "fc")
            broken(guest, "fc1", "/dev/vfio/.*Operation not permitted.*DeviceAllow", cursor)
            guest.expect("systemctl stop nvmed-opener.service")
        repaired(guest, "fc1")


@seconds_limit(240)
def test_wrong_configuration(guest):
    """A wrong address, a function that is no NVMe controller, a mistake in a file: named, and repaired by reload"""
    serve(guest)
    with leaks.none(guest), load(guest, "fb1"), others_undisturbed(guest, "fc") as cursor:
        for address, pattern in (("0000:77:00.0", "no PCI device 0000:77:00.0"),
                                 ("0000:00:08.0", "0000:00:08.0 is not bound to vfio-pci.*pcieport")):
            device_file(guest, "fc", Address=address)
            reload(guest)
            broken(guest, "fc1", pattern, cursor)
        device_file(guest, "fc", Transport="nonsense")
        mistake = guest.run("nvmectl reload")
        check(not mistake.ok and re.search(r"fc\.device:2.*Transport", mistake.stderr), f"reload said: {mistake}")
        guest.expect(io("verify", "fa2"))
        device_file(guest, "fc")
        reload(guest)
        guest.expect(io("verify", "fc1"), 90)


def test_all_is_given_back(guest):
    """Unbound from nvmed, every controller is the kernel's again with the data; nothing is pinned or stored"""
    serve(guest)
    verify_all(guest)
    guest.expect("; ".join(f"nvmectl device unbind {name}" for name in DEVICES), 120)
    guest.expect("rm -f /etc/nvmed/f??.disk /etc/nvmed/f[abc][0-9].disk /etc/nvmed/f[abc].device; nvmectl reload", 90)
    guest.faults_boot = None
    disks = guest.disks("NVMED-C")
    check(list(disks) == [1], f"the kernel has {disks}")
    leaks.gone(guest, "worker|^pinned pages$|^huge pages in use$")
