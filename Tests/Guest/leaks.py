# SPDX-License-Identifier: Apache-2.0
"""What nvmed and the kernel hold on its behalf, before a test and after it.

    with leaks.none(guest):
        …

What the units hold is compared by unit, so that a worker that was replaced compares with its
predecessor; what the kernel pins is a sum of the machine. What goes away a moment later (a
connection that is being closed) is waited for, bounded.
"""
import contextlib, json

from harness import check

SETTLE_SECONDS = 20

# Runs in the machine. With a snapshot on its standard input it waits until nothing is above it.
PROBE = r"""
import glob, json, os, re, subprocess, sys, time

def text(path):
    try:
        with open(path) as file:
            return file.read()
    except OSError:
        return ""

def units():
    listing = subprocess.run(
        ["systemctl", "show", "nvmed.service", "nvmed-opener.service", "nvmed-worker@*.service",
         "--property=Id,MainPID,NFileDescriptorStore,ControlGroup"], capture_output=True, text=True)
    for block in listing.stdout.strip().split("\n\n"):
        yield dict(line.split("=", 1) for line in block.splitlines() if "=" in line)

def kind(target):
    # A node has another path in another mount namespace, and numbers differ from run to run.
    if "vfio/" in target:
        return "vfio node"
    return re.sub(r"[0-9]+", "N", target)

def process(pid, into, unit):
    for fd in glob.glob(f"/proc/{pid}/fd/*"):
        try:
            name = kind(os.readlink(fd))
        except OSError:
            continue
        into[f"{unit} fd {name}"] = into.get(f"{unit} fd {name}", 0) + 1
    for line in text(f"/proc/{pid}/status").splitlines():
        name, _, value = line.partition(":")
        if name in ("VmLck", "VmPin"):
            into[f"{unit} {name} KiB"] = into.get(f"{unit} {name} KiB", 0) + int(value.split()[0])
    for line in text(f"/proc/{pid}/maps").splitlines():
        path = line.split(None, 5)[5:]
        if path and ("memfd:" in path[0] or "vfio" in path[0]):
            name = f"{unit} mapping {kind(path[0])}"
            into[name] = into.get(name, 0) + 1

def snapshot():
    held = {}
    for unit in units():
        name = unit.get("Id", "")
        held[f"{name} stored descriptors"] = int(unit.get("NFileDescriptorStore") or 0)
        group = unit.get("ControlGroup")
        pids = text(f"/sys/fs/cgroup{group}/cgroup.procs").split() if group else []
        held[f"{name} processes"] = len(pids)
        if name != "nvmed-opener.service":    # It leaves when nobody asks, with all it has.
            for pid in pids:
                process(pid, held, name)
    # Each processor counts by itself and adds what it has up to once a second: without this, pages
    # that were let go of a moment ago are still told of, and others not yet.
    text("/proc/sys/vm/stat_refresh")
    counters = dict(line.split() for line in text("/proc/vmstat").splitlines())
    held["pinned pages"] = int(counters["nr_foll_pin_acquired"]) - int(counters["nr_foll_pin_released"])
    memory = {line.split(":")[0]: int(line.split()[1]) for line in text("/proc/meminfo").splitlines()}
    held["locked KiB"] = memory["Mlocked"]
    held["huge pages in use"] = memory["HugePages_Total"] - memory["HugePages_Free"]
    return held

def above(before, now, only):
    optional = lambda name: name.startswith("nvmed-opener.service processes")
    return {name: [before.get(name, 0), count] for name, count in sorted(now.items())
            if count > before.get(name, 0) and re.search(only, name) and not optional(name)}

data = sys.stdin.read()
if not data:
    print(json.dumps(snapshot()))
else:
    wanted = json.loads(data)
    end = time.monotonic() + wanted["seconds"]
    while (more := above(wanted["before"], snapshot(), wanted["only"])) and time.monotonic() < end:
        time.sleep(0.2)
    print(json.dumps(more))
"""


def probe(guest, data=""):
    guest.write("/root/leaks.py", PROBE)
    return json.loads(guest.expect("python3 -I -S /root/leaks.py", 90, stdin=data).stdout)


def snapshot(guest):
    """What is held now: {name: count}."""
    return probe(guest)


def compare(guest, before, seconds=SETTLE_SECONDS, only=""):
    """Fails when more is held than in the snapshot, of what has a name like `only`."""
    more = probe(guest, json.dumps({"before": before, "seconds": seconds, "only": only}))
    check(not more, "more is held than before: " + "; ".join(
        f"{name}: {was}, now {now}" for name, (was, now) in more.items()))


def gone(guest, only):
    """Fails when anything of a name like this is held."""
    compare(guest, {}, only=only)


@contextlib.contextmanager
def none(guest):
    """What is done inside leaves nothing behind."""
    before = snapshot(guest)
    yield before
    compare(guest, before)
