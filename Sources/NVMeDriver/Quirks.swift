// SPDX-License-Identifier: Apache-2.0
// What certain controllers cannot do, by PCI id, as data: the table is the whole knowledge, and the
// places that act on it ask for a quirk and never for an id.

public import VFIO

/// Something that a kind of controller needs, or cannot do.
public enum Quirk: String, Sendable, CaseIterable {
    /// The admin queue must not be used by anybody who takes the running controller over: all
    /// queues are made at bring-up, events are never asked for, and whoever adopts or restores the
    /// controller sends no admin command. What needs one then ends in a reset, after which
    /// everything is as at a bring-up.
    case noAdminAfterServicing = "no-admin-after-servicing"
    /// Interrupt vectors must be connected in ascending order. This driver connects all of them
    /// from vector 0 on by one call, whatever the device; the quirk keeps that on record.
    case vectorsAscending = "vectors-ascending"
    /// Both queues of a pair must have the same size. This driver never makes others; the quirk
    /// keeps that on record.
    case equalQueueSizes = "equal-queue-sizes"
    /// A running controller cannot be gone on with: whoever takes over resets it.
    case doNotAdopt = "do-not-adopt"
}

/// The quirks of some controllers.
public struct QuirkEntry: Sendable, Equatable {
    /// PCI vendor and device.
    public var id: PCIDeviceID
    /// What they need.
    public var quirks: Set<Quirk>
    /// What they are, and how that is known.
    public var note: String

    /// An entry of the table.
    public init(_ id: PCIDeviceID, _ quirks: Set<Quirk>, note: String) {
        self.id = id
        self.quirks = quirks
        self.note = note
    }
}

/// All quirks that are known.
public enum QuirkTable {
    /// Controllers by id. Each id once.
    public static let entries: [QuirkEntry] = [
        QuirkEntry(
            PCIDeviceID(vendor: 0x1414, device: 0xB111),
            [.noAdminAfterServicing, .vectorsAscending, .equalQueueSizes],
            note: "Microsoft's controller with fused keep-alive: after servicing its admin queue "
                + "takes nothing; interrupts that are connected out of order go astray")
    ]

    /// The quirks of a controller; none when it cannot say what it is.
    public static func quirks(of id: PCIDeviceID?) -> Set<Quirk> {
        guard let id else { return [] }
        return entries.first { $0.id == id }?.quirks ?? []
    }
}

extension NVMeController {
    /// Why a predecessor's controller of this kind is never gone on with; nil: it may be.
    func adoptionRefusal() -> String? {
        guard quirks.contains(.doNotAdopt) else { return nil }
        let id = pciID.map { " (PCI id \($0))" } ?? ""
        return "controllers of its kind\(id) are reset instead: quirk \(Quirk.doNotAdopt.rawValue)"
    }

    /// Why no admin command may be sent; nil: they may.
    func adminRefusal(_ operation: String) -> DriverError? {
        guard adminIsClosed else { return nil }
        return .exhausted(
            "\(operation): this controller takes no admin command since it was taken over (quirk "
                + "\(Quirk.noAdminAfterServicing.rawValue)); a reset of it helps")
    }
}
