# SPDX-License-Identifier: Apache-2.0
"""The standard machine: which controllers, namespaces and drives QEMU is started with.

  00:05.0  NVMED-A  namespaces 1 (512-byte blocks), 2 (4096), 3 (512 + 8 metadata), 4 (512 + 8, PI type 1)
  00:06.0  NVMED-B  namespace 1 (512): its drive can be throttled (`Guest.throttle`)
                    namespace 2 (512): reads of block 0x1000 and writes of block 0x2000 fail in the drive
                    namespace 5 (4096): in the subsystem, but attached to no controller
  01:00.0  NVMED-C  behind a root port, for removal while it works; can be throttled; 4096-byte blocks
  02:00.0  nothing: a root port to plug a controller into (`hot_d` is its name)

The bus numbers are those that the firmware gives; read them from /sys where it matters. Every drive
is a sparse raw file in the machine's directory and outlives a power kill.
"""
import json, os

MEBIBYTE = 1 << 20
BAD_READ_BLOCK, BAD_WRITE_BLOCK = 0x1000, 0x2000
MEMORY_MEBIBYTES = 3072


class Drive:
    """One sparse file, the block nodes above it, and the namespace that shows it."""

    def __init__(self, name, nsid, mebibytes, block=512, metadata=0, pi=0, throttled=False, errors=False, logged=False,
                 detached=False, shared=False):
        self.name, self.nsid, self.size = name, nsid, mebibytes * MEBIBYTE
        self.block, self.metadata, self.pi = block, metadata, pi
        self.throttled, self.errors, self.logged, self.detached = throttled, errors, logged, detached
        self.shared = shared or detached

    # Identities that stay when the machine is booted again.

    @property
    def nguid(self):
        return "6e766d65640000000000" + self.name.encode().hex().rjust(12, "0")

    @property
    def eui64(self):
        return 0x6e766d6500000000 + int.from_bytes(self.name.encode(), "big")

    @property
    def uuid(self):
        return "6e766d65-6400-4000-8000-" + self.name.encode().hex().rjust(12, "0")

    def arguments(self, directory):
        path = os.path.join(directory, self.name + ".img")
        with open(path, "ab") as file:
            file.truncate(self.size)
        node = {"driver": "raw", "file": {"driver": "file", "filename": path, "cache": {"no-flush": True}}}
        if self.errors:
            rules = [{"event": "none", "iotype": kind, "errno": 5, "sector": sector, "once": False,
                      "immediately": False}
                     for kind, sector in (("read", BAD_READ_BLOCK), ("write", BAD_WRITE_BLOCK))]
            node = {"driver": "blkdebug", "image": node, "inject-error": rules}
        if self.logged:
            # The log is what the drive was given, flushes and all; `powerlog` reads it.
            log = os.path.join(directory, self.name + ".log")
            open(log, "wb").close()
            node = {"driver": "blklogwrites", "file": node | {"node-name": self.name + "-data"},
                    "log-super-update-interval": 1, "log-sector-size": 512,
                    "log": {"driver": "raw", "file": {"driver": "file", "filename": log}}}
            node["file"]["file"].pop("cache")
        arguments = []
        if self.throttled:
            arguments += ["-object", json.dumps({"qom-type": "throttle-group", "id": "throttle-" + self.name})]
            node = {"driver": "throttle", "throttle-group": "throttle-" + self.name, "file": node}
        node["node-name"] = self.name
        return arguments + ["-blockdev", json.dumps(node)]

    def device(self, bus):
        device = {"driver": "nvme-ns", "id": "ns-" + self.name, "bus": bus, "drive": self.name,
                  "nsid": self.nsid, "logical_block_size": self.block, "physical_block_size": self.block,
                  "uuid": self.uuid, "nguid": self.nguid, "eui64": self.eui64}
        if self.metadata:
            device |= {"ms": self.metadata, "pi": self.pi}
        # One that can be attached to two controllers is not written to again after a reset; one that cannot does not
        # come back with a controller that is plugged in again.
        device["shared"] = self.shared
        if self.detached:
            device["detached"] = True
        return device


class Controller:
    """A controller with a subsystem of its own, so that namespaces can come and go."""

    def __init__(self, name, drives, address=None, bus=None, **options):
        self.name, self.drives, self.options = name, drives, options
        if address is not None:
            self.options["addr"] = address
        if bus is not None:
            self.options["bus"] = bus

    @property
    def serial(self):
        return "NVMED-" + self.name.upper()

    def arguments(self, directory):
        arguments = [part for drive in self.drives for part in drive.arguments(directory)]
        return arguments + [part for device in self.devices() for part in ("-device", json.dumps(device))]

    def devices(self):
        yield {"driver": "nvme-subsys", "id": "subsys-" + self.name,
               "nqn": "nqn.2026-01.test.nvmed:" + self.name}
        yield {"driver": "nvme", "id": "nvme-" + self.name, "serial": self.serial,
               "subsys": "subsys-" + self.name} | self.options
        for drive in self.drives:
            yield drive.device("nvme-" + self.name)


def standard():
    return [
        Controller("a", [
            Drive("a1", 1, 1024), Drive("a2", 2, 1024, block=4096),
            Drive("a3", 3, 64, metadata=8), Drive("a4", 4, 64, metadata=8, pi=1)], address="5"),
        Controller("b", [Drive("b1", 1, 1024, throttled=True), Drive("b2", 2, 64, errors=True),
                         Drive("b5", 5, 64, block=4096, detached=True)], address="6"),
        Controller("c", [Drive("c1", 1, 512, block=4096, throttled=True, shared=True)], bus="port-c"),
    ]


def command(directory, kernel, initramfs, controllers, append="", memory=MEMORY_MEBIBYTES):
    """QEMU's command line; the sockets and the console are files of `directory`."""
    def place(name):
        return os.path.join(directory, name)
    # no_timer_check: on a loaded host the kernel's test of its timer fails, and it panics. A processor
    # that the host does not run for seconds is no stall of RCU's either; to tell of it, with the
    # stacks of all processors on a serial line, would take more seconds.
    line = [
        "qemu-system-x86_64", "-name", "nvmed-guest", "-nodefaults", "-no-user-config",
        "-accel", "tcg,thread=multi", "-machine", "q35,kernel-irqchip=split", "-cpu", "max", "-smp", "2",
        "-m", str(memory), "-display", "none", "-no-reboot",
        "-serial", "file:" + place("console.log"),
        "-qmp", f"unix:{place('qmp')},server=on,wait=off",
        "-kernel", kernel, "-initrd", initramfs,
        "-append", "console=ttyS0 panic=-1 no_timer_check rcupdate.rcu_cpu_stall_suppress=1 rdinit=/init intel_iommu=on iommu=nopt mitigations=off "
                   "quiet loglevel=5 systemd.show_status=0 " + append,
        "-device", "intel-iommu,intremap=on,caching-mode=on",
        "-device", "pcie-root-port,id=port-c,chassis=1,slot=1,addr=8",
        "-device", "pcie-root-port,id=port-d,chassis=2,slot=2,addr=9",
        "-device", "virtio-serial-pci,addr=4",
    ]
    for name in ("agent", "shell"):
        line += ["-chardev", f"socket,id={name},path={place(name)},server=on,wait=off",
                 "-device", f"virtserialport,chardev={name},name=nvmed.{name}"]
    for controller in controllers:
        line += controller.arguments(directory)
    return line
