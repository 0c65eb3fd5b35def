# SPDX-License-Identifier: Apache-2.0
"""Who has a controller: `nvmectl device bind` and `unbind`, udev, and what the journal says of it."""
import json

from harness import check, own_machine, seconds_limit


def refused(guest, address, *words):
    """bind refuses, names what is in the way, and changes nothing."""
    answer = guest.run(f"nvmectl --output json device bind {address}", timeout=60)
    check(answer.status == 75, f"it should be refused: {answer}")
    message = json.loads(answer.stdout)["error"]["message"]
    check(all(word in message for word in words), f"{words} are not in: {message}")
    driver = guest.expect(f"basename $(readlink /sys/bus/pci/devices/{address}/driver)").text
    override = guest.expect(f"cat /sys/bus/pci/devices/{address}/driver_override").text
    check((driver, override) == ("nvme", "(null)"), f"it changed: {driver}, driver_override {override}")


def test_bind_refuses_a_mount(guest):
    """A device with a mounted partition is not bound; the mount is named, in other namespaces too"""
    guest.install()
    address, disk = guest.address("NVMED-B"), guest.disks("NVMED-B")[1]
    name = disk.removeprefix("/dev/")
    guest.expect(f"""addpart {disk} 1 2048 65536; udevadm settle
        mkfs.ext4 -q -F {disk}p1; mkdir -p '/run/a b'; mount {disk}p1 '/run/a b'""")
    refused(guest, address, f"{name}p1 is mounted on /run/a b")
    other = guest.start("unshare --mount --propagation private sh -c 'echo >/run/there; exec sleep 120'", timeout=150)
    guest.wait_for("test -e /run/there")
    guest.expect("umount '/run/a b'")
    refused(guest, address, f"{name}p1 is mounted on /run/a b", "mount namespace of process", "(sleep)")
    other.stop().result()
    # Nobody uses it any more: partitions alone are no reason.
    guest.expect(f"nvmectl device bind {address} && nvmectl device unbind {address}", timeout=120)
    guest.wait_for(f"ls /sys/bus/pci/devices/{address}/nvme/nvme*/nvme*n1")
    disk = guest.disks("NVMED-B")[1]
    guest.expect(f"udevadm settle; dd if=/dev/zero of={disk} bs=1M count=4 oflag=direct; rm -f /run/there")


def test_bind_refuses_swap_and_processes(guest):
    """A device that is swap, or that a process has open, is not bound; each is named"""
    guest.install()
    address, disk = guest.address("NVMED-B"), guest.disks("NVMED-B")[1]
    name = disk.removeprefix("/dev/")
    guest.expect(f"mkswap {disk} >/dev/null && swapon {disk}")
    refused(guest, address, f"{name} is used as swap")
    guest.expect(f"swapoff {disk}; wipefs -qa {disk}; udevadm settle")
    for node in (disk, disk.rsplit("n", 1)[0]):
        reader = guest.start(f"exec 5<{node}; echo >/run/there; exec sleep 120", timeout=150)
        guest.wait_for("test -e /run/there")
        refused(guest, address, f"{node.removeprefix('/dev/')} is open in process", "(sleep)")
        reader.stop().result()
        guest.expect("rm -f /run/there")


def test_bind_refuses_loop_devices(guest):
    """A device that a loop device is built on is not bound; the loop device is named"""
    guest.install()
    address, disk = guest.address("NVMED-B"), guest.disks("NVMED-B")[1]
    loop = guest.expect(f"modprobe loop; losetup --find --show {disk}").text
    refused(guest, address, f"is held by {loop.removeprefix('/dev/')}")
    guest.expect(f"losetup -d {loop}; udevadm settle")


def test_bind_refuses_device_mapper(guest):
    """A device under device-mapper is not bound; the mapping is named, and what is mounted from it"""
    guest.install()
    address, disk = guest.address("NVMED-B"), guest.disks("NVMED-B")[1]
    name = disk.removeprefix("/dev/")
    # The second one is built on the first, as LVM on a partition's encryption is.
    guest.expect(f"""modprobe dm_mod; dmsetup create vault --table '0 65536 linear {disk} 0'
        dmsetup create room --table '0 32768 linear /dev/mapper/vault 0'; udevadm settle""")
    vault, room = (guest.expect(f"basename $(readlink -f /dev/mapper/{one})").text for one in ("vault", "room"))
    refused(guest, address, f"{name} is held by {vault} (vault)",
            f"{name} → {vault} (vault) is held by {room} (room)")
    guest.expect("mkfs.ext4 -q -F /dev/mapper/room; mkdir -p /run/room; mount /dev/mapper/room /run/room")
    refused(guest, address, f"{name} → {vault} (vault) → {room} (room) is mounted on /run/room")
    guest.expect(f"umount /run/room; dmsetup remove room; dmsetup remove vault; udevadm settle; wipefs -qa {disk}")
    guest.expect(f"nvmectl device bind --dry-run {address}")


def test_bind_and_unbind(guest):
    """A free device is bound and given back; the journal has who, what, and the catalogue's words"""
    guest.install()
    address = guest.address("NVMED-B")
    cursor = guest.journal_cursor()
    bound = guest.expect(f"nvmectl --output json device bind {address}").json["device"]
    check(bound["driver"] == "vfio-pci" and bound["former_driver"] == "nvme", f"{bound}")
    check(guest.disks("NVMED-B") == {}, "the kernel still has its disks")
    listed = guest.expect("nvmectl --output json device list --pci").json["controllers"]
    check([one["driver"] for one in listed if one["address"] == address] == ["vfio-pci"], f"{listed}")
    again = guest.expect(f"nvmectl --output json device bind {address}").json["device"]
    check(not again["changed"], f"{again}")
    back = guest.expect(f"nvmectl --output json device unbind {address}", timeout=90).json["device"]
    check(back["driver"] == "nvme", f"{back}")
    guest.wait_for(f"ls /sys/bus/pci/devices/{address}/nvme/nvme*/nvme*n1")
    entries = [json.loads(line) for line in guest.journal(since=cursor, output="json").splitlines()]
    entries = [one for one in entries if one.get("NVME_ADDRESS") == address]
    check([one["PRIORITY"] for one in entries] == ["5", "5"], f"{entries}")
    told = guest.expect(f"journalctl -x --no-pager NVME_ADDRESS={address} MESSAGE_ID={entries[0]['MESSAGE_ID']}").stdout
    check("An operator or udev changed it" in told, f"the catalogue is not used: {told}")


@seconds_limit(400)
def test_unbind_in_every_state_of_the_worker(guest):
    """unbind ends in bounded time, the worker being alive, stopped by SIGSTOP, or dead"""
    worker = "nvmed-worker@bind.service"
    for state in ("alive", "SIGSTOP", "SIGKILL"):
        guest.serve("NVMED-B", "bind")
        guest.expect("nvmectl io read bind1 --length 4K >/dev/null", timeout=90)
        if state != "alive":
            guest.expect(f"systemctl kill --kill-whom=main --signal={state} {worker}")
        answer = guest.expect("nvmectl --output json device unbind bind", timeout=90).json["device"]
        check(answer["driver"] == "nvme", f"{state}: {answer}")
        shown = guest.expect("nvmectl --output json device show bind").json["device"]
        check(shown["state"] == "absent" and "given back" in shown["reason"], f"{state}: {shown}")
        hung = guest.run(r"ps -eo stat,pid,args | grep '^D.*\(nvmectl\|nvmed\)'").stdout
        check(hung == "", f"{state}: hangs in the kernel: {hung}")
    guest.give_back("bind")


def test_left_to_the_kernel(guest):
    """nvme_vfio=off leaves a device to the kernel, and the registry says why"""
    guest.install()
    address = guest.address("NVMED-B")
    guest.write("/etc/nvmed/kern.device", f"[Device]\nTransport=pci\nAddress={address}\nnvme_vfio=off\n")
    guest.reload()
    answer = guest.run("nvmectl device bind kern")
    check(answer.status == 2 and "nvme_vfio=off" in answer.stderr, f"{answer}")
    shown = guest.expect("nvmectl --output json device show kern").json["device"]
    check(shown["state"] == "absent" and "nvme_vfio=off" in shown["reason"], f"{shown}")
    guest.expect("rm /etc/nvmed/kern.device; nvmectl reload")


@seconds_limit(300)
def test_udev_binds_what_is_configured(guest):
    """A configured controller that is plugged in goes to vfio-pci by itself; without a file it does not"""
    guest.install()
    address = guest.address("NVMED-C")
    for configured in (True, False):
        if configured:
            guest.write("/etc/nvmed/hot.device", f"[Device]\nTransport=pci\nAddress={address}\n")
        else:
            guest.expect("rm /etc/nvmed/hot.device")
        guest.unplug("nvme-c")
        guest.wait_for(f"test ! -e /sys/bus/pci/devices/{address}")
        guest.plug(driver="nvme", id="nvme-c", serial="NVMED-C", bus="port-c", subsys="subsys-c")
        wanted = "vfio-pci" if configured else "nvme"
        guest.wait_for(f"test \"$(basename $(readlink /sys/bus/pci/devices/{address}/driver))\" = {wanted}", timeout=60)
        guest.expect("udevadm settle")
        driver = guest.expect(f"basename $(readlink /sys/bus/pci/devices/{address}/driver)").text
        check(driver == wanted, f"configured: {configured}, driver {driver}")


@own_machine
@seconds_limit(300)
def test_configured_binding_at_boot(guest):
    """After a boot a configured controller is nvmed's, and is served; one without a file is the kernel's"""
    guest.install()
    address, disk, free = guest.address("NVMED-C"), guest.disks("NVMED-C")[1], guest.address("NVMED-B")
    guest.expect(f"dd if=/dev/urandom of={disk} bs=1M count=2 oflag=direct")
    digest = guest.expect(f"head -c 2M {disk} | sha256sum").text
    guest.write("/etc/nvmed/boot.device", f"[Device]\nTransport=pci\nAddress={address}\nnvme_vfio=on\n")
    guest.write("/etc/nvmed/boot1.disk", "[Disk]\nDevice=boot\nNamespace=1\n")
    guest.reboot()
    for one, wanted in ((address, "vfio-pci"), (free, "nvme")):
        # udev binds while the machine goes on booting.
        guest.wait_for(f"test \"$(basename $(readlink /sys/bus/pci/devices/{one}/driver))\" = {wanted}", timeout=60)
    check(guest.disks("NVMED-C") == {}, "the kernel has its disks")
    read = guest.expect("nvmectl io read boot1 --length 2M | sha256sum", timeout=90).text
    check(read == digest, "the data is another one")
    shown = guest.expect("nvmectl device show boot --output json").json["device"]
    check(shown["state"] == "ready" and shown["serial"] == "NVMED-C", f"{shown}")
    failed = guest.expect("systemctl --failed --no-legend --plain").text
    check(failed == "", f"failed units: {failed}")
