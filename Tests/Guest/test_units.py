# SPDX-License-Identifier: Apache-2.0
"""The units under the real PID 1: started on demand, restarted, killed, stopped, shut down.

The devices are nvmed-emulator behind vfio-user, so that what fails here is the units, not VFIO.
"""
import contextlib, os

from harness import check, own_machine, seconds_limit

WORKER = "nvmed-worker@{}.service"
# The bound on a round trip to PID 1 holds for real processors, where an idle one takes about half a
# millisecond; here both are as much slower as the emulation and the host's load make them. A PID 1
# that waits for a reset or a stuck process is beyond it by seconds.
ROUND_TRIP_MILLISECONDS, NATIVE_IDLE_MILLISECONDS = 100, 0.5
VERIFY = "nvmectl io verify {} --length 4M --pattern random --seed 7 --reopen"


def serve(guest, *devices):
    """Emulated devices, each with a disk of its name and `disk` at its end; nothing runs yet."""
    guest.install()
    for device in devices:
        if guest.run(f"systemctl is-active emulator-{device}").ok:
            continue
        guest.write(f"/etc/nvmed/{device}.device",
                    f"[Device]\nTransport=vfio-user\nSocket=/run/emulators/{device}\n")
        guest.write(f"/etc/nvmed/{device}disk.disk", f"[Disk]\nDevice={device}\nNamespace=1\n")
        # It outlives its worker, also when the machine is shut down.
        guest.expect(f"""mkdir -p -m 711 /run/emulators
            systemd-run --quiet --collect --unit=emulator-{device} --property=Slice=system.slice \
                --property=Before={WORKER.format(device)} --property=RestartPreventExitStatus=0 \
                /usr/libexec/nvmed/nvmed-emulator --socket /run/emulators/{device} --namespace memory=16M""")
        guest.wait_for(f"test -S /run/emulators/{device}")
        guest.expect(f"chmod 666 /run/emulators/{device}")
    guest.expect("systemctl start nvmed.socket; systemctl reload-or-restart nvmed")


def fill(guest, disk):
    guest.expect(f"nvmectl io write {disk} --length 4M --pattern random --seed 7 --reopen", timeout=120)


def pid(guest, unit):
    return int(guest.expect(f"systemctl show -P MainPID '{unit}'").text)


@contextlib.contextmanager
def load(guest, disk):
    """A client that reads and compares all the time; it has to end well."""
    running = guest.start(VERIFY.format(disk) + " --repeat 100000", timeout=150)
    guest.wait_for(f"nvmectl session list | grep -q {disk}", timeout=60)
    yield running
    check(not running.done, f"the client ended early: {running.result() if running.done else ''}")
    running.stop()
    running.result()
    guest.expect(VERIFY.format(disk), timeout=60)


class Latency:
    """Round trips to PID 1 while a block runs: count, median and maximum in milliseconds."""

    def __init__(self, guest):
        self.guest = guest
        guest.push(os.path.join(os.path.dirname(__file__), "bus_latency.py"), "/run/bus_latency.py")

    def __enter__(self):
        self.guest.expect("rm -f /run/latency.stop")
        self.running = self.guest.start("python3 /run/bus_latency.py /run/latency.stop 120", timeout=130)
        return self

    def __exit__(self, kind, *_):
        self.guest.run("touch /run/latency.stop")
        text = self.running.result()
        if kind is None:
            check(text.ok, f"bus_latency.py: {text}")
            count, median, maximum = text.text.split()
            self.count, self.median, self.maximum = int(count), float(median), float(maximum)

    def __str__(self):
        return f"{self.count} round trips, median {self.median} ms, maximum {self.maximum} ms"


def idle_latency(guest):
    with Latency(guest) as latency:
        guest.run("read -rt 3 <> <(:)")
    return latency


def test_on_demand(guest):
    """Nothing runs until somebody asks: listing starts the supervisor, the first read the worker"""
    serve(guest, "ua")
    worker = WORKER.format("ua")
    guest.expect(f"systemctl stop nvmed.service 'nvmed-worker@*.socket' 'nvmed-worker@*.service'", timeout=120)
    check(guest.run("systemctl is-active nvmed.service").text == "inactive", "the supervisor runs")
    guest.expect("nvmectl disk list")
    guest.expect("systemctl is-active nvmed.service")
    check(guest.run(f"systemctl is-active {worker}").text == "inactive", "the worker runs already")
    guest.expect("nvmectl io read uadisk --length 4K >/dev/null")
    guest.expect(f"systemctl is-active {worker} nvmed-worker@ua.socket nvmed-workers.target nvmed.target")
    user = guest.expect(f"stat -c %U /proc/{pid(guest, worker)}").text
    check(user != "root", "the worker runs as root")
    state = guest.expect(f"grep -E 'Cap(Eff|Prm|Bnd)|NoNewPrivs|Seccomp:' /proc/{pid(guest, worker)}/status").text
    check("CapBnd:\t0000000000000000" in state and "NoNewPrivs:\t1" in state, state)
    state = guest.expect(f"grep -E 'CapBnd' /proc/{pid(guest, 'nvmed.service')}/status").text
    check("0000000000000000" in state, f"the supervisor's bounding set: {state}")


def test_restart_under_load(guest):
    """systemctl restart of a worker under load keeps the data and the descriptors; the client goes on"""
    serve(guest, "ua")
    fill(guest, "uadisk")
    worker, cursor = WORKER.format("ua"), guest.journal_cursor()
    before = pid(guest, worker)
    with load(guest, "uadisk"):
        guest.expect(f"systemctl restart {worker}", timeout=60)
        guest.wait_for("nvmectl session list | grep -q uadisk", timeout=60)
    check(pid(guest, worker) not in (0, before), "the worker is not another one")
    journal = guest.journal(worker, cursor)
    check("leaving for a successor" in journal, f"SIGTERM of a restart was taken for an end:\n{journal}")
    stored = guest.expect(f"systemctl show -P NFileDescriptorStore {worker}").text
    check(int(stored) > 0, "nothing is stored")
    failed = guest.expect("systemctl list-units --failed --no-legend --plain 'nvmed*'").text
    check(failed == "", f"failed: {failed}")


def test_stop_is_an_end(guest):
    """systemctl stop of a worker shuts the controller down in order, and the next one begins afresh"""
    serve(guest, "ua")
    fill(guest, "uadisk")
    worker, cursor = WORKER.format("ua"), guest.journal_cursor()
    guest.expect(f"systemctl stop {worker}", timeout=120)
    journal = guest.journal(worker, cursor)
    check("the controller is shut down" in journal, f"a stop was taken for a restart:\n{journal}")
    check("status=" not in journal and "Failed" not in journal, f"it did not end well:\n{journal}")
    guest.expect(VERIFY.format("uadisk"), timeout=60)


def test_killed_under_load(guest):
    """A worker that is killed with SIGKILL under load is started again at once; the client goes on"""
    serve(guest, "ua")
    fill(guest, "uadisk")
    worker = WORKER.format("ua")
    before = pid(guest, worker)
    with load(guest, "uadisk"):
        guest.expect(f"systemctl kill -s KILL {worker}")
        guest.wait_for(f"p=$(systemctl show -P MainPID {worker}); test $p != 0 && test $p != {before}")
        guest.wait_for("nvmectl session list | grep -q uadisk", timeout=60)
    guest.expect(f"systemctl is-active {worker}")


def test_signal_without_a_job(guest):
    """SIGTERM that nobody at systemd asked for leaves the controller and starts a successor"""
    serve(guest, "ua")
    fill(guest, "uadisk")
    worker = WORKER.format("ua")
    before = pid(guest, worker)
    guest.expect(f"kill -TERM {before}")
    guest.wait_for(f"p=$(systemctl show -P MainPID {worker}); test $p != 0 && test $p != {before}")
    guest.expect(VERIFY.format("uadisk"), timeout=60)


@seconds_limit(240)
def test_stopped_by_a_signal(guest):
    """A worker that SIGSTOP holds is ended by the watchdog and started again; PID 1 answers meanwhile"""
    serve(guest, "ua")
    fill(guest, "uadisk")
    worker, cursor = WORKER.format("ua"), guest.journal_cursor()
    idle = idle_latency(guest)
    before = pid(guest, worker)
    with load(guest, "uadisk"), Latency(guest) as latency:
        guest.expect(f"kill -STOP {before}")
        guest.wait_for(f"p=$(systemctl show -P MainPID {worker}); test $p != 0 && test $p != {before}", timeout=90)
        guest.wait_for("nvmectl session list | grep -q uadisk", timeout=60)
    check("atchdog" in guest.journal(worker, cursor), "the journal does not name the watchdog")
    judge("while the watchdog acted", idle, latency)


def judge(when, idle, latency):
    print(f"    {when}: {latency}; idle: {idle}", flush=True)
    limit = ROUND_TRIP_MILLISECONDS * max(1, idle.median / NATIVE_IDLE_MILLISECONDS)
    check(latency.maximum < limit, f"{when}: {latency}; the limit is {limit:.0f} ms; idle: {idle}")


def test_supervisor_restart_and_kill(guest):
    """The supervisor is restarted and killed while a client works: no request fails, the worker stays"""
    serve(guest, "ua")
    fill(guest, "uadisk")
    worker = WORKER.format("ua")
    before = pid(guest, worker)
    # Without --reopen: the session may not even be interrupted.
    client = guest.start("nvmectl io verify uadisk --length 4M --pattern random --seed 7 --repeat 100000",
                         timeout=150)
    guest.wait_for("nvmectl session list | grep -q uadisk", timeout=60)
    session = guest.expect("nvmectl session list --output json").text
    guest.expect("systemctl restart nvmed.service", timeout=60)
    guest.wait_for("nvmectl session list | grep -q uadisk", timeout=60)
    supervisor = pid(guest, "nvmed.service")
    guest.expect("systemctl kill -s KILL nvmed.service")
    guest.wait_for(f"p=$(systemctl show -P MainPID nvmed.service); test $p != 0 && test $p != {supervisor}")
    guest.wait_for("nvmectl session list | grep -q uadisk", timeout=60)
    check(not client.done, f"the client ended: {client.result() if client.done else ''}")
    check(pid(guest, worker) == before, "the worker is another one")
    guest.wait_for("nvmectl device list | grep ua | grep -q ready", timeout=60)
    check(session, "no session was listed")
    client.stop()
    client.result()


@seconds_limit(300)
def test_crash_loop(guest):
    """A worker that cannot live makes its device fail, with the reason, and nothing else"""
    serve(guest, "ua", "ub")
    fill(guest, "uadisk")
    worker = WORKER.format("ub")
    guest.expect(f"systemctl stop {worker} nvmed-worker@ub.socket", timeout=120)
    idle = idle_latency(guest)
    guest.write(f"/run/systemd/system/{worker}.d/broken.conf", "[Service]\nExecStart=\nExecStart=/bin/false\n")
    guest.expect("systemctl daemon-reload")
    try:
        with load(guest, "uadisk"), Latency(guest) as latency:
            result = guest.run("nvmectl io read ubdisk --length 4K --timeout 60 >/dev/null", timeout=90)
            check(not result.ok, "a disk without a worker was read")
            guest.wait_for("nvmectl device show ub | grep -q 'journalctl -u'", timeout=60)
        listing = guest.expect("nvmectl device list").text
        print("    " + next(line for line in listing.splitlines() if line.startswith("ub")), flush=True)
        judge("in the crash loop", idle, latency)
    finally:
        guest.expect(f"rm -r /run/systemd/system/{worker}.d; systemctl daemon-reload")
    guest.expect("nvmectl device retry ub")
    guest.wait_for("nvmectl io read ubdisk --length 4K >/dev/null", timeout=60)


def test_bus_restart(guest):
    """The supervisor finds the bus again after it was restarted, and starts a worker over it"""
    serve(guest, "ua", "ub")
    guest.expect("nvmectl io read uadisk --length 4K >/dev/null")
    before = pid(guest, "nvmed.service")
    guest.expect("systemctl kill -s KILL dbus.service; systemctl start dbus.socket dbus.service", timeout=60)
    guest.expect("nvmectl io read uadisk --length 4K >/dev/null")
    guest.expect(f"systemctl stop {WORKER.format('ub')} nvmed-worker@ub.socket", timeout=120)
    guest.wait_for("nvmectl io read ubdisk --length 4K >/dev/null", timeout=60)
    check(pid(guest, "nvmed.service") == before, "the supervisor was restarted too")


@own_machine
@seconds_limit(300)
def test_shutdown_order(guest):
    """At shutdown the mount goes first, then the relay, then the worker, then the supervisor"""
    serve(guest, "ua")
    guest.write("/run/systemd/system/relay.service", """[Unit]
Wants=nvmed.target
After=nvmed.target
[Service]
ExecStart=/usr/bin/nvmectl io verify uadisk --length 4M --pattern random --seed 7 --repeat 1000000 --reopen
ExecStopPost=-+/bin/sh -c 'echo ORDER relay >/dev/ttyS0'
""")
    # A mount on what the relay serves stands behind a unit that ends as one does.
    guest.write("/run/systemd/system/data.service", """[Unit]
Requires=relay.service
After=relay.service
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/true
ExecStop=-+/bin/sh -c 'echo ORDER mount >/dev/ttyS0'
""")
    for unit, name in ((WORKER.format("ua"), "worker"), ("nvmed.service", "supervisor"), ("dbus.service", "bus")):
        guest.write(f"/run/systemd/system/{unit}.d/order.conf",
                    f"[Service]\nDeviceAllow=/dev/ttyS0 rw\nExecStopPost=-+/bin/sh -c 'echo ORDER {name} $SERVICE_RESULT $EXIT_STATUS "
                    ">/dev/ttyS0'\n")
    guest.expect("systemctl daemon-reload; systemctl restart nvmed.service")
    fill(guest, "uadisk")
    guest.expect("systemctl start data.service")
    guest.wait_for("nvmectl session list | grep -q uadisk", timeout=60)
    guest.power_off(seconds=120)
    order = [line.split("ORDER ")[1].split() for line in guest.console().splitlines() if "ORDER " in line][-5:]  # The supervisor was restarted above.
    print("    " + ", ".join(" ".join(words) for words in order), flush=True)
    check([words[0] for words in order] == ["mount", "relay", "worker", "supervisor", "bus"], f"{order}")
    # 0 says that the worker was told that this is the end: it has shut its controller down.
    check(order[2][1:] == ["success", "0"], f"the worker ended with {order[2]}")
