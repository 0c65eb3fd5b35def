# SPDX-License-Identifier: Apache-2.0
"""Resets of the function: when they are asked for, and after an error that the function reports."""
import contextlib

import test_faults
from harness import check, needs, seconds_limit

VERIFY = "--length 2M --pattern random --seed 6"
TRACE = "/sys/kernel/tracing"


@contextlib.contextmanager
def counted(guest):
    """A function that tells how many function level resets the kernel has done inside."""
    guest.expect(f"""mountpoint -q {TRACE} || mount -t tracefs tracefs {TRACE}; cd {TRACE}
        echo 'p:flr pcie_flr' >kprobe_events && echo 1 >events/kprobes/flr/enable && echo >trace""")
    try:
        yield lambda: int(guest.run(f"grep -c ' flr: ' {TRACE}/trace").text)
    finally:
        guest.expect(f"cd {TRACE}; echo 0 >events/kprobes/flr/enable; echo >kprobe_events")


def ways(guest, address):
    return guest.expect(f"cat /sys/bus/pci/devices/{address}/reset_method").text


@needs("trace")
@seconds_limit(240)
def test_always_flr(guest):
    """The function is reset at open and last close with nvme_always_flr=yes, never without; unbound, all is as before"""
    address = guest.address("NVMED-C")
    before = ways(guest, address)
    check("flr" in before, f"the function cannot be reset: {before!r}")
    with counted(guest) as resets:
        for settings, wanted in (("", ""), ("nvme_always_flr=yes\n", "flr")):
            start = resets()
            guest.serve("NVMED-C", "rc", (1,), settings)
            try:
                guest.expect("nvmectl io read rc1 --length 1M >/dev/null")
                check(ways(guest, address) == wanted, f"reset_method is {ways(guest, address)!r} with {settings!r}")
                opened = resets()
            finally:
                guest.give_back("rc")
            check((opened > start) == bool(wanted), f"{opened - start} resets at open with {settings!r}")
            check((resets() > opened) == bool(wanted), f"{resets() - opened} resets at close with {settings!r}")
            check(ways(guest, address) == before, f"reset_method is {ways(guest, address)!r} now, was {before!r}")


@seconds_limit(240)
def test_reported_error(guest):
    """An error on the function's bus (AER) costs its clients a reset and no error: they go on by themselves"""
    guest.serve("NVMED-C", "rc", (1,))
    try:
        guest.expect(f"nvmectl io write rc1 {VERIFY}")
        reader = guest.start(f"nvmectl io verify rc1 {VERIFY} --repeat 100000 --output json", 120)
        guest.wait_for("nvmectl session list | grep -q rc1")
        # Completion Timeout, which is not fatal to the link; the port tells all behind it.
        said = guest.qmp("human-monitor-command", **{"command-line": "pcie_aer_inject_error port-c COMP_TIME"})
        guest.wait_for("journalctl NVME_DEVICE=rc | grep -q '(AER)'", 60)
        guest.wait_for("journalctl NVME_DEVICE=rc | grep -q 'its function has to be reset, after an error; the sessions go on'", 60)
        test_faults.wait_state(guest, "rc", "ready")
        # At the first try: nobody else holds the device while it is opened anew.
        journal = guest.expect("journalctl NVME_DEVICE=rc -b").stdout
        check("could not be reset" not in journal, journal[-1500:])
        guest.expect("journalctl -u nvmed-opener -b | grep -q 'rc: .* after a reset'")
        check(not reader.done, f"{said} client: {reader.done and reader.result()}")
        reader.stop().result()
        guest.expect(f"nvmectl io verify rc1 {VERIFY}", 60)
    finally:
        guest.give_back("rc")
