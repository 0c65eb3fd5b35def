// SPDX-License-Identifier: Apache-2.0
// The messages between the worker of a device and the opener (Proto/opener.proto).

/// The kernel interface that a device was opened through.
public enum OpenedInterface: UInt32, Sendable, Hashable {
    /// Group and container with an IOMMU: container, group, device.
    case type1 = 1
    /// The device's node: iommufd, device.
    case iommufd = 2
    /// Group and container without an IOMMU: container, group, device.
    case noiommu = 3

    /// How many descriptors there are.
    public var descriptorCount: Int { self == .iommufd ? 2 : 3 }
}

/// A device that was opened.
public struct DeviceOpened: Sendable, Hashable {
    /// The interface.
    public var interface: OpenedInterface
    /// The id of the address space in the iommufd; 0 with the other interfaces.
    public var addressSpace: UInt32
    /// The PCI address.
    public var address: String
    /// Describes a device.
    public init(interface: OpenedInterface, addressSpace: UInt32 = 0, address: String) {
        self.interface = interface
        self.addressSpace = addressSpace
        self.address = address
    }
}

/// What a worker asks of the opener.
public enum OpenerRequest: Sendable, Hashable {
    /// Reply: `.deviceOpened`, with its descriptors.
    case openDevice(name: String, reset: Bool)
    /// Reply: `.done`.
    case setInterruptAffinity(name: String)
    /// One descriptor travels along: the memory file. Reply: `.translated`.
    case translateMemory(name: String, byteCount: UInt64, offset: UInt64 = 0)
    /// Reply: `.guestMemory`.
    case findGuestMemory(name: String)
    /// Reply: `.poolOpened`, with its descriptors. `isKept`: it has to be there already.
    case openPool(name: String, byteCount: UInt64, isKept: Bool)

    /// The device it is about.
    public var device: String {
        switch self {
        case .openDevice(let name, _), .setInterruptAffinity(let name),
            .translateMemory(let name, _, _), .findGuestMemory(let name),
            .openPool(let name, _, _):
            name
        }
    }
}

/// What the opener answers.
public enum OpenerReply: Sendable, Hashable {
    /// It was done.
    case done
    /// The device is open; its descriptors travel along.
    case deviceOpened(DeviceOpened)
    /// The physical address of each page.
    case translated(pageByteCount: UInt64, addresses: [UInt64])
    /// The guest memory of the device.
    case guestMemory(GuestMemoryFound)
    /// The pool is open; the file and the holder of its lock travel along.
    case poolOpened(isClean: Bool)
}

/// The opener tells nothing unasked.
public enum OpenerEvent: Sendable, Hashable {}

/// The protocol of the opener: worker ↔ nvmed-opener.
public enum OpenerProtocol: WireProtocol {
    /// What a worker sends.
    public typealias Request = OpenerRequest
    /// What the opener answers.
    public typealias Reply = OpenerReply
    /// Nothing.
    public typealias Event = OpenerEvent
}
