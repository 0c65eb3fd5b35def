# SPDX-License-Identifier: Apache-2.0
"""Nothing is lost: workers that die or are replaced under load, with the kernel's VFIO and systemd.

The clients are those of the soak (`nvmed-bench soak-client`): each block that they read has to be
exactly what the model of the disk allows, and no request may fail.
"""
import contextlib, json, os, re, subprocess, tempfile

import leaks, nvmetrace, test_faults
from harness import check, seconds_limit, thorough

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
BIN = os.environ.get("NVMED_BIN_DIR", os.path.join(ROOT, ".build/release"))
WORKER = "nvmed-worker@{}.service"
KILLS = 50
# So slow that commands are in flight whenever a worker dies.
OPERATIONS_PER_SECOND = 400
# What one device may have at the most is 256 sessions, 1,024 regions and 960 rings; a ring has three
# descriptors, the others one. About 24 are the device's own.
SESSIONS, REGIONS, RINGS = 250, 1010, 906


def prepare(guest):
    """The clients, in the machine; once a boot."""
    if guest.run("test -x /run/soak/nvmed-bench").ok:
        return
    guest.expect("mkdir -p /run/soak")
    with tempfile.NamedTemporaryFile() as stripped:
        subprocess.run(["objcopy", "--strip-all", os.path.join(BIN, "nvmed-bench"), stripped.name], check=True)
        guest.push(stripped.name, "/run/soak/nvmed-bench", 0o755)
    guest.push(os.path.join(ROOT, ".ci/stack.py"), "/run/soak/stack.py")
    guest.push(os.path.join(ROOT, "Tests/Guest/adoption_load.py"), "/run/soak/adoption_load.py")


def pid(guest, device):
    return int(guest.expect(f"systemctl show -P MainPID {WORKER.format(device)}").text)


def values(guest, device):
    """What must be the same before and after an adoption."""
    found = guest.expect(f"nvmectl inspect device/{device}/worker --output json").json["values"]
    names = ("device/epoch", "memory/regions", "memory/registered_bytes", "memory/pool_bytes")
    return {name: found.get(f"device/{device}/worker/{name}") for name in names}


def judge(result):
    """The load's own verdict."""
    check(result.text, str(result))
    told = json.loads(result.text.splitlines()[-1])
    check(result.ok and not told["wrong"] and not told["bad"], f"{told}")
    check(told["requests"] > 0, "no request was made")
    return told


@contextlib.contextmanager
def served(guest, serial, name, throttled=None, settings=""):
    guest.serve(serial, name, (1,), settings, disk_settings="Shared=yes\n")
    prepare(guest)
    # The models of the clients begin with zeroes: twice 512 blocks of at most 4 KiB.
    guest.expect(f"nvmectl io zero {name}1 --length 4M", 60)
    try:
        if throttled:
            guest.throttle(throttled, operations=OPERATIONS_PER_SECOND)
        yield
    finally:
        if throttled:
            guest.throttle(throttled)
        guest.give_back(name)


@contextlib.contextmanager
def load(guest, *disks):
    """Load without end meanwhile; it has to end well."""
    guest.expect("rm -f /run/soak/stop")
    running = guest.start(f"python3 /run/soak/adoption_load.py run /run/soak/stop {' '.join(disks)} >/run/soak/out", 400)
    guest.wait_for("grep -q running /run/soak/out", 120)
    try:
        yield running
    finally:
        guest.run("touch /run/soak/stop")
        running.result()
    judge(guest.run("cat /run/soak/out"))


@seconds_limit(400)
def test_kills_under_load(guest):
    """Fifty kills of a worker with commands in flight on a slow disk: no request fails, every block is right"""
    with served(guest, "NVMED-B", "ab", throttled="b1"):
        before = values(guest, "ab")
        cursor = guest.journal_cursor()
        told = judge(guest.run(f"python3 /run/soak/adoption_load.py kill ab {KILLS} ab1+", 360))
        pauses = told["pauses"]
        print(f"    {told['requests']} requests, pause median {pauses[len(pauses) // 2]} ms, "
              f"longest {pauses[-1]} ms", flush=True)
        check(len(pauses) == KILLS, f"{len(pauses)} kills")
        after = values(guest, "ab")
        check(before == after, f"{before} became {after}")
        journal = guest.journal(WORKER.format("ab"), cursor)
        check("reset" not in journal.lower(), f"the device was reset:\n{journal[-3000:]}")


@thorough
@seconds_limit(600)
def test_thousands_of_descriptors(guest):
    """A worker with 4 000 descriptors in the manager's store is killed under load: every session goes on"""
    worker = WORKER.format("ab")
    with served(guest, "NVMED-B", "ab", settings="Queues=16\n"):
        guest.expect("rm -f /run/soak/stop")
        crowd = guest.start(
            f"/run/soak/nvmed-bench crowd --socket /run/nvmed/nvmed.sock --disk ab1 --stop /run/soak/stop "
            f"--sessions {SESSIONS} --regions {REGIONS} --rings {RINGS} >/run/soak/out 2>&1", 540)
        try:
            wait_round(guest, crowd, 2, 300)
            opened = guest.expect("head -n 1 /run/soak/out").text
            limits = stored_and_open(guest, worker)
            check(limits["stored"] >= 4000, f"only {limits} are stored")
            check(limits["stored"] < limits["store_max"] and limits["open"] < limits["nofile"], f"{limits}")
            before, cursor = values(guest, "ab"), guest.journal_cursor()
            # Commands are in flight throughout, and more when the disk is slow.
            guest.throttle("b1", operations=OPERATIONS_PER_SECOND)
            with nvmetrace.watched(guest) as told:
                for _ in range(2):
                    process, rounds = pid(guest, "ab"), round_number(guest)
                    guest.expect(f"kill -KILL {process}")
                    guest.wait_for(f"p=$(systemctl show -P MainPID {worker}); test $p != 0 && test $p != {process}", 60)
                    # One round may have been all but over.
                    wait_round(guest, crowd, rounds + 2, 120)
            guest.throttle("b1")
            journal = guest.journal(worker, cursor, "short-monotonic")
            taken = re.findall(r"goes on after.*", journal)
            check(len(taken) == 2, f"not two adoptions:\n{journal[-3000:]}")
            check(told.resets() == [] and told.faults() == [], f"{told.resets()} {told.faults()}\n{journal[-3000:]}")
            check(values(guest, "ab") == before, f"{before} became {values(guest, 'ab')}")
            check(stored_and_open(guest, worker)["stored"] == limits["stored"], f"{limits} became {stored_and_open(guest, worker)}")
        finally:
            guest.throttle("b1")
            guest.run("touch /run/soak/stop")
            ended = crowd.result()
        check(ended.ok, guest.expect("tail -n 3 /run/soak/out").text)
        summary = json.loads(guest.expect("tail -n 1 /run/soak/out").text)
        print(f"    {limits['stored']} of {limits['store_max']} stored, {opened}; {summary}", flush=True)
        for line in taken:
            print("    " + line, flush=True)
    leaks.gone(guest, "@ab")


def stored_and_open(guest, worker):
    """Descriptors that PID 1 keeps for the unit and that its process has, with the limits of both."""
    shown = dict(line.split("=") for line in guest.expect(
        f"systemctl show -p NFileDescriptorStore -p FileDescriptorStoreMax -p MainPID {worker}").text.splitlines())
    process = shown["MainPID"]
    limit = guest.expect(f"sed -n 's/^Max open files *\\([0-9]*\\).*/\\1/p' /proc/{process}/limits").text
    return {"stored": int(shown["NFileDescriptorStore"]), "store_max": int(shown["FileDescriptorStoreMax"]),
            "open": int(guest.expect(f"ls /proc/{process}/fd | wc -l").text), "nofile": int(limit)}


def round_number(guest):
    """The last round that the crowd has finished."""
    return int(guest.run("sed -n 's/^round //p' /run/soak/out | tail -n 1").text or 0)


def wait_round(guest, crowd, number, seconds):
    """Waits until the crowd has finished so many rounds."""
    try:
        guest.wait_for(f"test $(sed -n 's/^round //p' /run/soak/out | tail -n 1) -ge {number} || ! pgrep -x nvmed-bench", seconds)
    finally:
        check(not crowd.done and round_number(guest) >= number,
              f"round {number} was not finished: {guest.run('tail -n 3 /run/soak/out').text}")


@seconds_limit(300)
def test_restart_and_upgrade_under_load(guest):
    """systemctl restart and a package's upgrade replace the worker: no client notices"""
    with served(guest, "NVMED-B", "ab", throttled="b1"):
        with load(guest, "ab1+"):
            before = pid(guest, "ab")
            guest.expect(f"systemctl restart {WORKER.format('ab')}", 60)
            restarted = pid(guest, "ab")
            check(restarted not in (0, before), "the worker is the same")
            if guest.run("test -e /root/nvmed.deb").ok:
                guest.expect("dpkg -i /root/nvmed.deb", 120)
                guest.wait_for(f"p=$(systemctl show -P MainPID {WORKER.format('ab')}); "
                               f"test $p != 0 && test $p != {restarted}", 60)


@seconds_limit(300)
def test_watchdog_under_load(guest):
    """A worker that hangs is killed by the watchdog: its clients are told that they wait, and go on"""
    with served(guest, "NVMED-B", "ab"):
        with load(guest, "ab1+"):
            before = pid(guest, "ab")
            guest.expect(f"kill -STOP {before}")
            guest.wait_for(f"p=$(systemctl show -P MainPID {WORKER.format('ab')}); test $p != 0 && test $p != {before}", 120)
        told = json.loads(guest.expect("tail -n 1 /run/soak/out").text)
        check(told["stalled"] == told["resumed"], f"{told['stalled']} stalled, {told['resumed']} resumed")


@seconds_limit(300)
def test_unplug_during_the_pause(guest):
    """A device that is pulled while nobody serves it: its clients hear the reason, others notice nothing"""
    guest.serve("NVMED-C", "ac", (1,))
    with served(guest, "NVMED-B", "ab", throttled="b1"), load(guest, "ab1"):
        guest.expect("nvmectl io write ac1 --length 64K --pattern zero", 60)
        reader = guest.start("nvmectl io verify ac1 --length 64K --pattern zero --repeat 100000 --output json", 200)
        guest.wait_for("nvmectl session list | grep -q ac1", 60)
        before = pid(guest, "ac")
        guest.expect(f"kill -STOP {before}")
        events = len(guest.monitor.events)
        guest.qmp("device_del", id="nvme-c")
        guest.expect(f"kill -KILL {before}")
        guest.monitor.wait_event("DEVICE_DELETED", 90, since=events, device="nvme-c")
        ended = reader.result()
        # The successor says so, or, when it is slower than the supervisor's patience, nobody is left to.
        check(ended.json["error"]["code"] in ("device-removed", "device-failed", "worker-restarted"), f"{ended}")
        test_faults.plug_c(guest)
        test_faults.wait_state(guest, "ac", "ready")
        guest.expect("nvmectl io verify ac1 --length 64K --pattern zero", 60)
    guest.give_back("ac")
