# SPDX-License-Identifier: Apache-2.0
"""The package in a machine that never saw it: installation, units, upgrade, removal.

The device is nvmed-emulator, so that these tests know nothing of VFIO.
"""
import re

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


def serve_emulator(guest):
    """One emulated device `emu` with a disk `emudisk`, served by the installed units."""
    guest.install()
    guest.write("/etc/nvmed/emu.device", "[Device]\nTransport=vfio-user\nSocket=/run/emu/sock\n")
    guest.write("/etc/nvmed/emudisk.disk", "[Disk]\nDevice=emu\nNamespace=1\nAccess=read-write\n")
    guest.expect("""mkdir -p -m 711 /run/emu
        systemd-run --quiet --collect --unit=emu --property=RuntimeMaxSec=600 \
            /usr/libexec/nvmed/nvmed-emulator --socket /run/emu/sock --namespace memory=64M""")
    guest.wait_for("test -S /run/emu/sock")
    guest.expect("chmod 666 /run/emu/sock; systemctl reload nvmed || systemctl restart nvmed")
    guest.expect("nvmectl disk list", timeout=60)


@own_machine
@seconds_limit(450)
def test_upgrade_and_removal(guest):
    """An upgrade restarts the supervisor and each worker; removal and purge leave nothing"""
    before_files = files(guest)
    serve_emulator(guest)
    write = "nvmectl io write emudisk --length 4M --pattern random --seed 7"
    guest.expect(write, timeout=60)
    services = "nvmed.service nvmed-worker@emu.service"
    before = guest.expect(f"systemctl show -P MainPID {services}").text.split()
    check(len(before) == 2 and "0" not in before, f"main processes: {before}")

    cursor = guest.journal_cursor()
    guest.expect("dpkg -i /root/nvmed.deb", timeout=180)
    guest.wait_for(f"systemctl is-active {services}")
    after = guest.expect(f"systemctl show -P MainPID {services}").text.split()
    check(not set(before) & set(after), f"the same processes after the upgrade: {before} {after}")
    guest.expect("nvmectl io verify emudisk --length 4M --pattern random --seed 7", timeout=60)
    jobs = guest.expect("journalctl --no-pager -o json --output-fields=JOB_TYPE,JOB_RESULT,UNIT "
                        f"--after-cursor='{cursor}' _PID=1 'UNIT=nvmed-worker@emu.service'").stdout
    check('"JOB_TYPE":"stop"' not in jobs, f"the worker was stopped, not restarted: {jobs}")

    guest.expect("dpkg -r nvmed", timeout=180)
    check(guest.expect("pgrep -a '^nvmed' | grep -v nvmed-emulator || :").text == "", "processes are left")
    # Masked is what Debian makes of units of a package that is removed and not purged.
    left = guest.expect("systemctl list-units --all --plain --no-legend 'nvmed*' | grep -v ' masked ' || :").text
    check(left == "", f"units are left: {left}")
    guest.expect("systemctl stop emu; rm -rf /etc/nvmed/emu.device /etc/nvmed/emudisk.disk /run/emu")
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
