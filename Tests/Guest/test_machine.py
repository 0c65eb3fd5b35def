# SPDX-License-Identifier: Apache-2.0
"""The machine itself: what other tests rely on, shown without nvmed."""
import machine
from harness import check, own_machine


def test_the_kernel_sees_every_controller(guest):
    """The kernel's own driver sees every controller and namespace, with its block size"""
    expected = {"NVMED-A": {1: 512, 2: 4096, 3: 512, 4: 512}, "NVMED-B": {1: 512, 2: 512}, "NVMED-C": {1: 4096}}
    for serial, namespaces in expected.items():
        disks = guest.disks(serial)
        sizes = {nsid: int(guest.expect(f"blockdev --getss {disk}").text) for nsid, disk in disks.items()}
        check(sizes == namespaces, f"{serial}: {sizes}, expected {namespaces}")


def test_a_drive_fails_where_it_is_told_to(guest):
    """A block that cannot be read and one that cannot be written are errors to the kernel's driver"""
    disk = guest.disks("NVMED-B")[2]
    read = f"dd if={disk} of=/dev/null bs=512 count=1 iflag=direct skip="
    write = f"dd if=/dev/zero of={disk} bs=512 count=1 oflag=direct seek="
    guest.expect(read + str(machine.BAD_READ_BLOCK), status=1)
    guest.expect(read + str(machine.BAD_READ_BLOCK + 16))
    guest.expect(write + str(machine.BAD_WRITE_BLOCK), status=1)
    guest.expect(write + str(machine.BAD_WRITE_BLOCK + 16))


def test_vfio_by_hand(guest):
    """A controller goes to vfio-pci by hand, has an IOMMU group, and comes back to the kernel's driver"""
    address = guest.address("NVMED-C")
    guest.bind(address, "vfio-pci")
    group = guest.expect(f"basename $(readlink /sys/bus/pci/devices/{address}/iommu_group)").text
    guest.wait_for(f"test -c /dev/vfio/{group}")
    check(guest.disks("NVMED-C") == {}, "the block device is still there")
    guest.bind(address, "nvme")
    guest.wait_for("grep -q NVMED-C /sys/class/nvme/*/serial && ls /dev/nvme*n1")


def test_a_controller_is_unplugged_and_plugged(guest):
    """A controller behind a root port is removed by the hypervisor, and another is plugged in"""
    guest.unplug("nvme-c")
    guest.wait_for("! grep -q NVMED-C /sys/class/nvme/*/serial")
    guest.plug(driver="nvme", id="nvme-c", serial="NVMED-C", bus="port-c", subsys="subsys-c")
    guest.wait_for("grep -q NVMED-C /sys/class/nvme/*/serial")


@own_machine
def test_power_kill(guest):
    """A machine is killed while it writes; booted again, it has every block that had been written"""
    disk = guest.disks("NVMED-A")[1]
    guest.expect(f"dd if=/dev/urandom of=/run/data bs=1M count=8 && dd if=/run/data of={disk} bs=1M oflag=direct")
    digest = guest.expect("sha256sum </run/data").text
    load = guest.start(f"dd if=/dev/zero of={disk} bs=4k seek=8192 count=200000 oflag=direct", timeout=120)
    guest.wait_for("grep -qE ' [1-9][0-9]{3,} ' /sys/block/nvme0n*/stat")
    check(not load.done, f"the load ended before the machine was killed: {load}")
    guest.power_kill()
    guest.boot()
    disk = guest.disks("NVMED-A")[1]
    check(guest.expect(f"head -c 8M {disk} | sha256sum").text == digest, "the data changed")
