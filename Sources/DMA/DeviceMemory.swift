// SPDX-License-Identifier: Apache-2.0
// DAX devices: memory that the kernel does not use, behind a node that is mapped
// (Documentation/ABI/testing/sysfs-bus-dax).

public import Linux

/// What sysfs says of a device that is memory.
public struct DeviceMemoryFacts: Sendable, Equatable {
    /// Its length in bytes.
    public var byteCount: Int
    /// Mappings begin and end at multiples of this many bytes.
    public var alignment: Int

    /// Describes a device.
    public init(byteCount: Int, alignment: Int) {
        self.byteCount = byteCount
        self.alignment = alignment
    }
}

/// How the facts of a device's node are found; a test has its own.
public struct DeviceMemoryLookup: Sendable {
    /// The facts; nil: the node is no device that is memory.
    public var find: @Sendable (FileFacts) -> DeviceMemoryFacts?

    /// Finds them with a function.
    public init(find: @escaping @Sendable (FileFacts) -> DeviceMemoryFacts?) { self.find = find }

    /// Asks the kernel's sysfs.
    public static let kernel = sysfs("/sys")

    /// Asks a sysfs.
    static func sysfs(_ root: String) -> DeviceMemoryLookup {
        DeviceMemoryLookup { facts in
            guard facts.kind == .characterDevice else { return nil }
            return inSysfs("\(root)/dev/char/\(name(of: facts.deviceNumber))")
        }
    }

    /// `major:minor`, as the C library packs the two (makedev(3)).
    static func name(of number: UInt64) -> String {
        let major = number >> 8 & 0xFFF | number >> 32 & 0xFFFF_F000
        let minor = number & 0xFF | number >> 12 & 0xFFFF_FF00
        return "\(major):\(minor)"
    }

    static func inSysfs(_ directory: String) -> DeviceMemoryFacts? {
        guard Files.target(ofLink: "\(directory)/subsystem")?.hasSuffix("/dax") == true,
            let byteCount = number("\(directory)/size"), byteCount > 0
        else { return nil }
        // Old kernels do not say: 2 MiB is what nearly every device has.
        let alignment = number("\(directory)/align") ?? 2 << 20
        guard alignment >= 4096, alignment <= 1 << 30, alignment & (alignment - 1) == 0 else {
            return nil
        }
        return DeviceMemoryFacts(byteCount: byteCount, alignment: alignment)
    }

    /// A number of sysfs, decimal or with 0x.
    private static func number(_ path: String) -> Int? {
        guard let bytes = try? Files.read(path, limit: 32) else { return nil }
        let text = String(decoding: bytes.prefix { $0 > 0x20 }, as: UTF8.self)
        return text.hasPrefix("0x") ? Int(text.dropFirst(2), radix: 16) : Int(text)
    }
}
