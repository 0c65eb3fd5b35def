// SPDX-License-Identifier: Apache-2.0
// Names of units: `nvmed`, `nvmed-worker@0000:01:00.0`.

/// The name of a unit: a template, and for a template unit the instance.
public struct UnitName: Sendable, Hashable, CustomStringConvertible {
    /// The most bytes of an instance.
    public static let instanceByteCountMax = 64

    /// The template's name.
    public let template: String
    /// What `%i` stands for; nil for a plain service.
    public let instance: String?

    /// `template` or `template@instance`.
    public var description: String { instance.map { "\(template)@\($0)" } ?? template }

    /// Parses a name; nil when a part is empty, too long or has a byte that is not a letter, a
    /// digit or one of `.:_-`.
    public init?(_ text: String) {
        let parts = text.split(separator: "@", maxSplits: 1, omittingEmptySubsequences: false)
        guard let first = parts.first else { return nil }
        self.init(template: String(first), instance: parts.count > 1 ? String(parts[1]) : nil)
    }

    /// Builds a name from its parts; nil as above.
    public init?(template: String, instance: String?) {
        guard Self.isValid(template), instance.map(Self.isValid) ?? true else { return nil }
        self.template = template
        self.instance = instance
    }

    private static func isValid(_ part: String) -> Bool {
        (1...instanceByteCountMax).contains(part.utf8.count)
            && part.utf8.allSatisfy { byte in
                switch byte {
                case UInt8(ascii: "a")...UInt8(ascii: "z"), UInt8(ascii: "A")...UInt8(ascii: "Z"),
                    UInt8(ascii: "0")...UInt8(ascii: "9"), UInt8(ascii: "."), UInt8(ascii: ":"),
                    UInt8(ascii: "_"), UInt8(ascii: "-"):
                    true
                default: false
                }
            }
    }
}
