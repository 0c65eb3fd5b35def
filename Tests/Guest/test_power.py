# SPDX-License-Identifier: Apache-2.0
"""The power fails while clients of nvmed write, and the drive loses what it was allowed to lose."""
import os, random

import harness, machine, powerlog
from harness import check, makes_machines, seconds_limit, thorough

FUA_WRITES = 8
PIECE = "64K"
BULK_MEBIBYTES = 4
# Writes with FUA are below it: QEMU's controller does not tell its drive about FUA, so that what is
# tested of them is that they had reached the drive when they were answered.
UNFLUSHED_OFFSET = 32 << 20


def pattern(seed, offset, length):
    return f"--pattern random --seed {seed} --offset {offset} --length {length}"


def power_machine(guest, **drive):
    drives = [machine.Drive("p1", 1, 256, **drive)]
    return harness.Guest(guest.kernel, guest.initramfs, guest.results, features=guest.features,
                         controllers=[machine.Controller("p", drives, address="5")])


@makes_machines
@thorough
@seconds_limit(600)
def test_power_failure(guest):
    """After a power failure during writes everything flushed or FUA-written is there, though the drive lost the rest"""
    seed = int(os.environ.get("SEED", random.randrange(1 << 32)))
    victim = power_machine(guest, logged=True)
    try:
        victim.boot().serve("NVMED-P", "p")
        victim.expect(f"nvmectl io write p1 {pattern(1, 0, f'{BULK_MEBIBYTES}M')} && nvmectl io flush p1", timeout=120)
        for index in range(FUA_WRITES):
            place = f"{BULK_MEBIBYTES * 1024 + 64 * index}K"
            victim.expect(f"nvmectl io write p1 --fua {pattern(100 + index, place, PIECE)}")
        load = victim.start(f"while nvmectl io write p1 --pattern random --seed 9 --offset {UNFLUSHED_OFFSET} --length 64M; "
                            "do :; done", timeout=300)
        log = os.path.join(victim.directory, "p1.log")
        full = os.path.getsize(log)
        victim.wait_growth(log, full + (8 << 20))
        check(not load.done, f"the load ended: {load}")
        victim.power_kill()
        chance = random.Random(seed)
        total, durable, lost = powerlog.after_power_failure(
            log, os.path.join(victim.directory, "p1.img"), 256 << 20,
            lambda offset: offset >= UNFLUSHED_OFFSET and chance.random() < 0.5)
        check(lost > 0, f"nothing was lost, so nothing was tested: {total} entries, {durable} durable")
        victim.controllers = power_machine(guest).controllers
        victim.boot().serve("NVMED-P", "p")
        victim.expect(f"nvmectl io verify p1 {pattern(1, 0, f'{BULK_MEBIBYTES}M')}", timeout=120)
        for index in range(FUA_WRITES):
            place = f"{BULK_MEBIBYTES * 1024 + 64 * index}K"
            victim.expect(f"nvmectl io verify p1 {pattern(100 + index, place, PIECE)}")
    except harness.Failure as failure:
        raise harness.Failure(f"SEED={seed}: {failure}\nkept: {victim.keep('test_power_failure.victim')}") from failure
    finally:
        victim.close()
