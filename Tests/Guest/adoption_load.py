# SPDX-License-Identifier: Apache-2.0
"""Runs in the machine: verified load on disks of the installed service, and kills of its worker.

    adoption_load.py kill DEVICE COUNT DISK…    kills the worker of DEVICE so often
    adoption_load.py run SECONDS-FILE DISK…     runs until that file exists

One ring and, on a disk whose name ends in +, one client by messages too. The result is a line of
JSON: what was wrong (nothing should be), and the pauses in milliseconds.
"""
import json, os, sys, time

sys.path.insert(0, "/run/soak")
os.environ["NVMED_BIN_DIR"] = "/run/soak"
from stack import Client, Failure, until

BLOCKS = 512
# An emulated processor that waits for another one.
SECONDS = 120


class Service:
    """What a Client wants to know of the service."""
    directory, public = "/run/soak", "/run/nvmed/nvmed.sock"
    environment = dict(os.environ, SWIFT_BACKTRACE="enable=no")


def clients(disks):
    started = []
    for index, disk in enumerate(disks):
        name = disk.rstrip("+")
        # QEMU's controller has no Verify, and does not say what a deallocated block reads as.
        shape = dict(depth=8, bytes=32 << 10, seed=7 + index, limit=SECONDS, operations="read,write,flush,zeroes")
        started.append(Client(Service, name + "-ring", name, BLOCKS, way="ring", first=0, exercise=200, **shape))
        if disk.endswith("+"):
            started.append(Client(Service, name + "-inline", name, BLOCKS, way="inline", first=BLOCKS, **shape))
    for client in started:
        client.wait(1, SECONDS)
    return started


def main_pid(device):
    unit = f"nvmed-worker@{device}.service"
    return int(os.popen(f"systemctl show -P MainPID {unit}").read() or 0)


def kill(device, count, started):
    pauses, last = [], 0
    for index in range(1, count + 1):
        pid = until("a worker", lambda: (p := main_pid(device)) not in (0, last) and p, SECONDS)
        now = time.monotonic_ns()
        for client in started:
            client.model["kill_time"] = now
            client.model["kill_index"] = index
        os.kill(pid, 9)
        last = pid
        for client in started:
            until(f"a new request of {client.name} after kill {index}",
                  lambda: client.check_alive() and client.model["seen_kill"] == index, SECONDS)
        pauses.append(min(client.model["pause"] for client in started) / 1e6)
    return pauses


def main(what, argument, *rest):
    pauses = []
    started = clients(rest[1:] if what == "kill" else rest)
    try:
        if what == "kill":
            pauses = kill(argument, int(rest[0]), started)
        else:
            print("running", flush=True)
            until(argument, lambda: all(c.check_alive() for c in started) and os.path.exists(argument), 600)
        for client in started:
            client.model["command"] = 2
        for client in started:
            client.wait(3, SECONDS)
        wrong = ""
    except Failure as failure:
        wrong = str(failure)
    for client in started:
        if client.process.poll() is None and client.model["state"] != 3:
            client.kill()
    print(json.dumps({
        "wrong": wrong, "bad": {c.name: [c.bad, c.model.message] for c in started if c.bad},
        "requests": sum(c.model["requests"] for c in started),
        "stalled": sum(c.model["stalled"] for c in started),
        "resumed": sum(c.model["resumed"] for c in started),
        "pauses": sorted(round(pause, 1) for pause in pauses)}))
    sys.exit(1 if wrong else 0)


main(*sys.argv[1:])
