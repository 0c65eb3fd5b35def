# SPDX-License-Identifier: Apache-2.0
"""The package in a machine that never saw it: installation, units, upgrade, removal.

The device is nvmed-emulator, so that these tests know nothing of VFIO.
"""
import re

import leaks
from harness import check, own_machine, seconds_limit

UNITS = ("nvmed.service nvmed.socket nvmed-opener.service nvmed-opener.socket nvmed-worker@a.service "
         "nvmed-worker@a.socket nvmed.slice nvmed.target nvmed-workers.target")


def test_installation(guest):
    """The package installs on Debian without its recommendations; sockets listen, no unit failed"""
    guest.install()
    check("install ok installed" in guest.expect("dpkg -s nvmed").stdout, "dpkg says it is not installed")
    guest.expect("systemctl is-active nvmed.socket nvmed-opener.socket")
    failed = guest.expect("systemctl --failed --no-legend --plain").text
    check(failed == "", f"failed units: {failed}")
    guest.expect("nvmectl --version && nvmed --version")
    missing = guest.expect("ldd /usr/bin/nvmed /usr/bin/nvmectl /usr/libexec/nvmed/*").stdout
    check("not found" not in missing, missing)


def test_units_verify(guest):
    """systemd-analyze verify has nothing to say about the units"""
    guest.install()
    result = guest.expect(f"systemd-analyze verify --man=no {UNITS}", timeout=120)
    check(result.stdout + result.stderr == "", f"it says: {result}")


def exposure(guest, unit):
    # Offline it reads the unit alone; online it also sees what the machine adds.
    text = guest.run(f"systemd-analyze security --no-pager {unit}", timeout=120).stdout
    found = re.search(r"Overall exposure level for \S+: ([0-9.]+)", text)
    check(found, f"no exposure level for {unit}: {text}")
    return float(found[1]), text


def test_sandbox(guest):
    """systemd-analyze security gives a worker 0.5 or less, and the supervisor 1.5 or less"""
    guest.install()
    for unit, limit in (("nvmed-worker@a.service", 0.5), ("nvmed.service", 1.5)):
        level, text = exposure(guest, unit)
        check(level <= limit, f"{unit} is at {level}, the limit is {limit}:\n{text}")


def serve_emulators(guest, *names, settings=""):
    """Emulated devices, each with a disk of its name and `disk` at its end, served by the installed units."""
    guest.install()
    guest.expect("mkdir -p -m 711 /run/emu")
    for name in names:
        guest.write(f"/etc/nvmed/{name}.device", f"[Device]\nTransport=vfio-user\nSocket=/run/emu/{name}\n{settings}")
        guest.write(f"/etc/nvmed/{name}disk.disk", f"[Disk]\nDevice={name}\nNamespace=1\nAccess=read-write\n")
        guest.expect(f"""systemd-run --quiet --collect --unit=emu-{name} --property=RuntimeMaxSec=600 \
            /usr/libexec/nvmed/nvmed-emulator --socket /run/emu/{name} --namespace memory=64M""")
        guest.wait_for(f"test -S /run/emu/{name}")
        guest.expect(f"chmod 666 /run/emu/{name}")
    guest.expect("systemctl reload nvmed || systemctl restart nvmed")
    guest.expect("nvmectl disk list", timeout=60)


@seconds_limit(300)
def test_pool_in_a_file(guest):
    """A vfio-user device with its pool in a file, of huge pages too, in the sandboxed units: locked, and gone on with after a kill"""
    pages = guest.expect("sysctl -n vm.nr_hugepages").text
    guest.expect("sysctl -w vm.nr_hugepages=64")
    try:
        for kind, path in (("file", "/dev/shm/nvmed/emp"), ("hugetlb", "/dev/hugepages/nvmed/emp")):
            try:
                serve_emulators(guest, "emp", settings=f"Pool={kind}\n")
                survive_in_file(guest, "emp", path)
            finally:
                guest.expect("rm -f /etc/nvmed/emp*; nvmectl reload; "
                             "systemctl stop nvmed-worker@emp.service nvmed-worker@emp.socket emu-emp; rm -rf /run/emu", 90)
            leaks.gone(guest, "@emp")
            guest.expect(f"flock -n {path} true; rm {path}")
    finally:
        guest.expect(f"sysctl -w vm.nr_hugepages={pages}")


def survive_in_file(guest, name, path):
    """The pool is this file, nobody else's, before and after its worker is killed under load."""
    worker = f"nvmed-worker@{name}.service"
    guest.expect(f"nvmectl io write {name}disk --length 4M --pattern random --seed 3", 60)
    cursor, first = guest.journal_cursor(), guest.expect(f"systemctl show -P MainPID {worker}").text
    check(guest.expect(f"stat -c '%U %a %h' {path}").text == "root 600 1", "anybody else may have the file")
    load = guest.start(f"nvmectl io verify {name}disk --length 4M --pattern random --seed 3 --repeat 1000000", 200)
    guest.wait_for(f"nvmectl session list | grep -q {name}disk")
    guest.expect(f"kill -KILL {first}")
    guest.wait_for(f"p=$(systemctl show -P MainPID {worker}); test $p != 0 && test $p != {first} && grep -q ' {path}$' /proc/$p/maps")
    check(not guest.run(f"flock -n {path} true").ok, "the file is not locked")
    guest.wait_for(f"journalctl --no-pager -u {worker} --after-cursor='{cursor}' | grep -q 'goes on after'")
    check(not load.done, f"the load ended: {load.done and load.result()}")
    load.stop().result()
    guest.expect(f"nvmectl io verify {name}disk --length 4M --pattern random --seed 3", 60)


def newer_package(guest):
    """A package of a higher version, whose unit of the workers is another one, too."""
    guest.expect("""set -e; cd /root; dpkg-deb -R nvmed.deb next
        sed -i 's/^Version: .*/&+next/' next/DEBIAN/control
        sed -i 's/^Description=.*/& (next)/' next/usr/lib/systemd/system/nvmed-worker@.service
        dpkg-deb --root-owner-group -Znone --build next next.deb >/dev/null; rm -rf next""", timeout=180)
    return "/root/next.deb"


@own_machine
@seconds_limit(450)
def test_upgrade_and_removal(guest):
    """An upgrade to a newer version restarts each worker and stops none, under load; removal and purge leave nothing"""
    before_files = files(guest)
    devices = ("emu", "emv")
    serve_emulators(guest, *devices)
    pattern = "--length 4M --pattern random --seed 7"
    for name in devices:
        guest.expect(f"nvmectl io write {name}disk {pattern}", timeout=60)
    services = "nvmed.service " + " ".join(f"nvmed-worker@{name}.service" for name in devices)
    before = guest.expect(f"systemctl show -P MainPID {services}").text.split()
    check(len(before) == 3 and "0" not in before, f"main processes: {before}")
    version = "dpkg-query -W -f '${Version}' nvmed"
    old, package = guest.expect(version).text, newer_package(guest)

    cursor = guest.journal_cursor()
    load = [guest.start(f"nvmectl io verify {name}disk {pattern} --repeat 1000000 --reopen", timeout=300)
            for name in devices]
    guest.wait_for("test $(nvmectl session list | grep -c disk) = 2", 60)
    guest.expect(f"dpkg -i {package}", timeout=180)
    guest.wait_for(f"systemctl is-active {services}")
    after = guest.expect(f"systemctl show -P MainPID {services}").text.split()
    check(not set(before) & set(after), f"the same processes after the upgrade: {before} {after}")
    check(guest.expect(version).text == old + "+next", "it is not the newer version")
    for name in devices:
        told = guest.expect(f"systemctl show -P Description nvmed-worker@{name}.service").text
        check(told.endswith("(next)"), f"it runs with the unit of the old version: {told}")
    guest.wait_for("test $(nvmectl session list | grep -c disk) = 2", 60)
    for one in load:
        check(not one.done, f"the load ended: {one.done and one.result()}")
        one.stop().result()
    for name in devices:
        guest.expect(f"nvmectl io verify {name}disk {pattern}", timeout=60)
        jobs = guest.expect("journalctl --no-pager -o json --output-fields=JOB_TYPE,JOB_RESULT,UNIT --after-cursor="
                            f"'{cursor}' _PID=1 'UNIT=nvmed-worker@{name}.service'").stdout
        check('"JOB_TYPE":"stop"' not in jobs, f"the worker was stopped, not restarted: {jobs}")

    guest.expect("dpkg -r nvmed", timeout=180)
    check(guest.expect("pgrep -a '^nvmed' | grep -v nvmed-emulator || :").text == "", "processes are left")
    # Masked is what Debian makes of units of a package that is removed and not purged.
    left = guest.expect("systemctl list-units --all --plain --no-legend 'nvmed*' | grep -v ' masked ' || :").text
    check(left == "", f"units are left: {left}")
    check(guest.run("test -d /var/lib/nvmed").ok, "a removal without purge took what devices are saved in")
    guest.expect("systemctl stop 'emu-*'; rm -rf /etc/nvmed/em[uv]* /run/emu")
    guest.expect("dpkg -P nvmed", timeout=180)
    left = guest.expect("systemctl list-units --all --plain --no-legend 'nvmed*'").text
    check(left == "", f"units are left after purge: {left}")
    left = sorted(files(guest) - before_files)
    check(not left, f"files are left: {left}")


def files(guest):
    """All paths on disk with nvmed in them, or that a package's scripts make."""
    found = guest.expect("find / -xdev \\( -path /proc -o -path /sys -o -path /root -o -path /tmp "
                         "-o -path /run/log \\) -prune -o \\( -path '*nvmed*' -o -path '/etc/systemd/*' "
                         "-o -path '/run/nvmed*' \\) -print; ls -d /run/nvmed* 2>/dev/null; :").stdout
    return {line for line in found.splitlines() if "/deb-systemd-helper" not in line}
