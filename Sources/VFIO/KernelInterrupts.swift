// SPDX-License-Identifier: Apache-2.0
// Which processors a device's interrupts go to (sysfs msi_irqs, proc smp_affinity_list).

internal import CLinux
internal import Glibc
internal import Linux

/// The interrupts of a PCI function as Linux numbers them.
public enum KernelInterrupts {
    /// Interrupts looked at: a function has no more vectors.
    private static let interruptCountMax = 2048

    /// Sends each interrupt of a function to one of the processors, in turn; none named: nothing is
    /// done. How many there were.
    public static func setAffinity(
        _ address: String, processors: [UInt32]
    ) throws(VFIOError) -> Int {
        guard !processors.isEmpty, let function = PCIAddress(address) else { return 0 }
        let directory = "/sys/bus/pci/devices/\(function)/msi_irqs"
        do throws(SystemCallError) {
            let names = try Files.list(directory, limit: interruptCountMax)
            let interrupts = names.compactMap { UInt32($0) }.sorted()
            for (index, interrupt) in interrupts.enumerated() {
                let path = "/proc/irq/\(interrupt)/smp_affinity_list"
                let text = Array("\(processors[index % processors.count])\n".utf8)
                let fd = try OwnedFD.open(path, flags: O_WRONLY)
                try checked("write \(path)", unsafe nv_write(fd.raw, text, text.count))
            }
            return interrupts.count
        } catch { throw .system(error) }
    }
}
