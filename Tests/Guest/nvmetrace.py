# SPDX-License-Identifier: Apache-2.0
"""What QEMU's controllers were told, as QEMU itself writes it down: no driver can say otherwise.

    with nvmetrace.watched(guest) as told:
        …
        check(not told.resets(), …)

The lines do not say which controller it was: the others of the machine must be left alone meanwhile.
"""
import contextlib, os, re

# What a controller that goes on is never told, and what only a bring-up does.
RESETS = {
    "pci_nvme_mmio_cfg": "CC was written",
    "pci_nvme_mmio_stopped": "CC.EN fell",
    "pci_nvme_mmio_start_success": "CC.EN rose",
    "pci_nvme_mmio_shutdown_set": "CC.SHN was set",
    "pci_nvme_pci_reset": "the function was reset",
    "pci_nvme_create_sq": "a submission queue was created",
    "pci_nvme_create_cq": "a completion queue was created",
    "pci_nvme_del_sq": "a submission queue was deleted",
    "pci_nvme_del_cq": "a completion queue was deleted",
}
# What must never happen in any test: a command or an answer that did not reach memory.
FAULTS = {"pci_nvme_err_addr_read": "memory could not be read", "pci_nvme_err_addr_write": "memory could not be written",
          "pci_nvme_err_cfs": "the controller gave up"}
ADMIN = {"pci_nvme_admin_cmd": "an admin command"}


class Told:
    """What was written down since it began."""

    def __init__(self, path):
        self.path, self.start = path, os.path.getsize(path)

    def events(self):
        with open(self.path, errors="replace") as file:
            file.seek(self.start)
            return re.findall(r"^(?:[0-9@.:]*)?(pci_nvme_\w+) ?(.*)$", file.read(), re.MULTILINE)

    def of(self, names):
        return [f"{names[name]} ({rest.strip()})" for name, rest in self.events() if name in names]

    def resets(self):
        return self.of(RESETS)

    def faults(self):
        return self.of(FAULTS)

    def admin_commands(self):
        return self.of(ADMIN)


@contextlib.contextmanager
def watched(guest):
    names = [*RESETS, *FAULTS, *ADMIN]
    told = Told(os.path.join(guest.directory, "qemu.log"))
    for name in names:
        guest.qmp("trace-event-set-state", name=name, enable=True)
    try:
        yield told
    finally:
        for name in names:
            guest.qmp("trace-event-set-state", name=name, enable=False)


# Runs in the machine: CC and CSTS of the function at an address, whoever has it.
REGISTERS = """import mmap, os, struct, sys
fd = os.open(f"/sys/bus/pci/devices/{sys.argv[1]}/resource0", os.O_RDONLY)
page = mmap.mmap(fd, 4096, mmap.MAP_SHARED, mmap.PROT_READ)
print(*struct.unpack_from("<I", page, 0x14), *struct.unpack_from("<I", page, 0x1c))"""


def registers(guest, address):
    """CC and CSTS as the function shows them now."""
    guest.write("/run/registers.py", REGISTERS)
    return tuple(int(word) for word in guest.expect(f"python3 /run/registers.py {address}").text.split())


def command(guest, address):
    """The command register of the function: bit 1 memory space, bit 2 bus master."""
    return int(guest.expect(f"setpci -s {address} COMMAND").text, 16)
