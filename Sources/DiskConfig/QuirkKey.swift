// SPDX-License-Identifier: Apache-2.0
// The key of what a controller needs or cannot do: Quirks=.

/// A word of `Quirks=`.
public enum ConfiguredQuirk: String, Sendable, Hashable, CaseIterable {
    /// Whoever takes the running controller over sends it no admin command.
    case noAdminAfterServicing = "no-admin-after-servicing"
    /// Interrupt vectors are connected in ascending order.
    case vectorsAscending = "vectors-ascending"
    /// Both queues of a pair have the same size.
    case equalQueueSizes = "equal-queue-sizes"
    /// Whoever takes over resets the controller.
    case doNotAdopt = "do-not-adopt"
}

extension ConfigValue {
    /// Quirks: words apart by blanks or commas, or `none` alone, which is the empty list.
    public static func quirks(_ text: String) -> Set<ConfiguredQuirk>? {
        let words = text.split { $0 == " " || $0 == "," || $0 == "\t" }
        guard words != ["none"] else { return [] }
        var quirks: Set<ConfiguredQuirk> = []
        for word in words {
            guard let quirk = ConfiguredQuirk(rawValue: String(word)) else { return nil }
            quirks.insert(quirk)
        }
        return quirks.isEmpty ? nil : quirks
    }
}

extension KeyReader {
    /// `Quirks=` of a device.
    mutating func quirks(_ transport: DeviceTransport?) -> Set<ConfiguredQuirk>? {
        if transport == .null, has("Quirks") {
            fail("Quirks", "a null device has no controller; remove it")
        }
        let words = ConfiguredQuirk.allCases.map(\.rawValue).joined(separator: ", ")
        return value("Quirks", "none, or one or more of \(words)", ConfigValue.quirks)
    }
}
