// SPDX-License-Identifier: Apache-2.0
// Which page Identify returns. NVM Express Base Specification 2.0, section 5.17.1.

/// CNS, controller or namespace structure: which page Identify returns.
@frozen
public struct IdentifyCNS: RawRepresentable, Hashable, Sendable {
    /// CDW10 bits 7:0 of Identify.
    public var rawValue: UInt8

    /// Any value, known or not.
    @inlinable
    public init(rawValue: UInt8) { self.rawValue = rawValue }

    /// Identify Namespace of the NVM command set.
    @inlinable
    public static var namespace: Self { Self(rawValue: 0x00) }
    /// Identify Controller.
    @inlinable
    public static var controller: Self { Self(rawValue: 0x01) }
    /// The active namespaces above NSID, up to 1024.
    @inlinable
    public static var activeNamespaceList: Self { Self(rawValue: 0x02) }
    /// The namespace identification descriptors of NSID.
    @inlinable
    public static var namespaceDescriptors: Self { Self(rawValue: 0x03) }
    /// The NVM set list.
    @inlinable
    public static var nvmSetList: Self { Self(rawValue: 0x04) }
    /// What an I/O command set adds to Identify Namespace.
    @inlinable
    public static var commandSetNamespace: Self { Self(rawValue: 0x05) }
    /// What an I/O command set adds to Identify Controller.
    @inlinable
    public static var commandSetController: Self { Self(rawValue: 0x06) }
    /// The active namespaces of one I/O command set.
    @inlinable
    public static var commandSetActiveNamespaceList: Self { Self(rawValue: 0x07) }
    /// What every I/O command set has in Identify Namespace.
    @inlinable
    public static var independentNamespace: Self { Self(rawValue: 0x08) }
    /// The allocated namespaces above NSID.
    @inlinable
    public static var allocatedNamespaceList: Self { Self(rawValue: 0x10) }
    /// Identify Namespace of an allocated namespace.
    @inlinable
    public static var allocatedNamespace: Self { Self(rawValue: 0x11) }
    /// The controllers a namespace is attached to.
    @inlinable
    public static var namespaceControllerList: Self { Self(rawValue: 0x12) }
    /// The controllers of the subsystem.
    @inlinable
    public static var controllerList: Self { Self(rawValue: 0x13) }
    /// The primary controller capabilities.
    @inlinable
    public static var primaryControllerCapabilities: Self { Self(rawValue: 0x14) }
    /// The secondary controllers.
    @inlinable
    public static var secondaryControllerList: Self { Self(rawValue: 0x15) }
    /// The UUID list.
    @inlinable
    public static var uuidList: Self { Self(rawValue: 0x17) }
    /// The combinations of I/O command sets.
    @inlinable
    public static var ioCommandSets: Self { Self(rawValue: 0x1C) }
}
