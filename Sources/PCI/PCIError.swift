// SPDX-License-Identifier: Apache-2.0
// What can go wrong between a PCI function and its drivers.

public import Linux

/// An error of binding. Each names the function and what to do.
public enum PCIError: Error, Sendable, Equatable, CustomStringConvertible {
    /// The kernel knows no such function.
    case absent(PCIAddress)
    /// Somebody uses it: who, and how.
    case inUse(PCIAddress, users: [String])
    /// It must not be bound as things are: why, and what helps.
    case refused(PCIAddress, reasons: [String], hint: String)
    /// The kernel refused a step; `restored`: the function is with its former driver again.
    case failed(PCIAddress, step: String, cause: String, restored: Bool)
    /// The kernel still waits for somebody to let go: by whom it is held, as far as is known.
    case waiting(PCIAddress, step: String, holders: [String])
    /// Something could not be looked at, so that nothing can be said about it.
    case unreadable(String)

    /// For people.
    public var description: String {
        switch self {
        case .absent(let address): "\(address): there is no such PCI device"
        case .inUse(let address, let reasons), .refused(let address, let reasons, _):
            "\(address): \(reasons.joined(separator: "; "))"
        case .failed(let address, let step, let cause, let restored):
            "\(address): \(step): \(cause)"
                + (restored ? "; it is as it was before" : "")
        case .waiting(let address, let step, let holders):
            "\(address): \(step) waits in the kernel until it is closed by "
                + (holders.isEmpty ? "whoever has it open" : holders.joined(separator: ", "))
        case .unreadable(let what): what
        }
    }

    /// What to do next; nil when the description says it.
    public var hint: String? {
        switch self {
        case .absent: "See: nvmectl device list --pci"
        case .inUse: "Nothing was changed. Unmount or stop what is named, and try again."
        case .refused(_, _, let hint): hint.isEmpty ? nil : hint
        case .failed(_, _, _, let restored):
            restored ? "See the kernel's log: journalctl -k" : "See: nvmectl device list --pci"
        case .waiting:
            "It is given back as soon as that is closed. Stop the unit or end the process."
        case .unreadable: nil
        }
    }
}
