// SPDX-License-Identifier: Apache-2.0
// The address of a PCI function: domain, bus, device, function.

/// A PCI address as sysfs writes it, `0000:01:00.0`. It is safe as a part of a path.
public struct PCIAddress: Sendable, Hashable, Comparable, CustomStringConvertible {
    /// The address with its domain, in lower case.
    public let description: String

    /// Reads an address; a domain that is left out is 0. nil for anything else.
    public init?(_ text: String) {
        guard text.utf8.count <= 16 else { return nil }
        let parts = text.lowercased().split(separator: ":", omittingEmptySubsequences: false)
        guard parts.count == 2 || parts.count == 3 else { return nil }
        let domain = parts.count == 3 ? parts[0] : "0000"
        let last = parts[parts.count - 1].split(separator: ".", omittingEmptySubsequences: false)
        guard last.count == 2, Self.isHex(domain, 4...8), Self.isHex(parts[parts.count - 2], 2...2),
            Self.isHex(last[0], 2...2), last[1].utf8.count == 1,
            let function = UInt8(last[1]), function < 8
        else { return nil }
        description = "\(domain):\(parts[parts.count - 2]):\(last[0]).\(last[1])"
    }

    private static func isHex(_ text: Substring, _ count: ClosedRange<Int>) -> Bool {
        count.contains(text.utf8.count)
            && text.utf8.allSatisfy { (48...57).contains($0) || (97...102).contains($0) }
    }

    /// In the order of their text.
    public static func < (first: PCIAddress, second: PCIAddress) -> Bool {
        first.description < second.description
    }
}
