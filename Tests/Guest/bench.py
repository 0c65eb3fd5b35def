# SPDX-License-Identifier: Apache-2.0
"""Random 4 KiB reads of one controller: nvmed's own client against fio on the kernel's driver.

Both run in the same machine right after each other, so the ratio means something; the figures
themselves are those of an emulated processor. `make bench` prints them as `guest.*`.
"""
import json, os, signal, sys

import harness, image, machine, runner

SECONDS = int(os.environ.get("BENCH_SECONDS", "5"))
DEPTHS = (1, 32)
SERIAL, MEBIBYTES = "NVMED-N", 256


def controller():
    """A controller of its own, without throttle or fault injection above its drive."""
    return [machine.Controller("n", [machine.Drive("n1", 1, MEBIBYTES)], address="5")]


def kernel_driver(guest):
    """Depth → (IOPS, median ns) of fio with io_uring."""
    disk = guest.disks(SERIAL)[1]
    # The file behind the drive is sparse: reading holes would measure something else.
    guest.expect(f"dd if=/dev/urandom of={disk} bs=1M count={MEBIBYTES} oflag=direct "
                 "status=none", 120)
    figures = {}
    for depth in DEPTHS:
        command = (f"fio --name=kernel --filename={disk} --ioengine=io_uring --direct=1 --rw=randread "
                   f"--bs=4k --iodepth={depth} --runtime={SECONDS} --time_based --output-format=json")
        read = json.loads(guest.expect(command, SECONDS + 60).stdout)["jobs"][0]["read"]
        figures[depth] = read["iops"], read["clat_ns"]["percentile"]["50.000000"]
    return figures


def nvmed(guest, address):
    guest.install()
    guest.write("/etc/nvmed/n.device", f"[Device]\nTransport=pci\nAddress={address}\n")
    guest.write("/etc/nvmed/n.disk", "[Disk]\nDevice=n\nNamespace=1\nAccess=read-write\n")
    guest.expect(f"nvmectl device bind {address}", 60)
    guest.expect("systemctl reload-or-restart nvmed")
    for way, flag in (("", "--direct"), ("ring.", "--ring")):
        for depth in DEPTHS:
            command = f"nvmectl bench n --queue-depth {depth} --seconds {SECONDS} {flag}"
            answer = guest.expect(command + " --output json", SECONDS + 60).json
            figures = answer.get("bench", answer)
            yield way, depth, command, figures["iops"], figures["p50_ns"]


def measure(run):
    run.prepare()
    run.guest = guest = harness.Guest(**run.machine, controllers=controller())
    guest.boot()
    address = guest.address(SERIAL)
    baseline = kernel_driver(guest)
    for way, depth, command, iops, median in nvmed(guest, address):
        name, value, base, unit = (
            (f"guest.{way}qd1.p50", median, baseline[1][1], "ns") if depth == 1
            else (f"guest.{way}qd{depth}.iops", iops, baseline[depth][0], "1/s"))
        print(json.dumps({
            "name": name, "value": round(value, 3), "unit": unit, "baseline": round(base, 3),
            "ratio": round(value / base, 4), "command": command + " against fio --ioengine=io_uring",
        }), flush=True)


def main():
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGALRM):
        signal.signal(number, runner.on_signal)
    # Only the figures belong on standard output.
    image.say = lambda text: print(text, file=sys.stderr, flush=True)
    run = runner.Runner()
    status = 1
    try:
        measure(run)
        status = 0
    except (harness.Failure, runner.Interrupted) as failure:
        print(f"guest: {failure}", file=sys.stderr)
        if run.guest is not None:
            print("guest: kept: " + run.keep_failure("bench"), file=sys.stderr)
    finally:
        run.close()
    sys.stdout.flush()
    os._exit(status)


main()
