// SPDX-License-Identifier: Apache-2.0
// Names of units made of other names (systemd-escape(1), systemd 252).

/// Names of template instances.
public enum EscapedUnit {
    /// The most bytes of a unit's name (UNIT_NAME_MAX less the NUL).
    public static let byteCountMax = 255

    /// `template@instance.suffix` for any instance; nil when it is empty or too long.
    ///
    /// The instance is what `%i` stands for, so that a program started with `%i` has to see the
    /// same text. Letters, digits and `:-_.` stay as they are, also `-`, which systemd-escape makes
    /// `\x2d` because it writes paths with it: `nvmed-worker@disk-1.service` is what a person
    /// types. Any other byte becomes `\xNN`.
    public static func name(
        template: String, instance: String, suffix: String
    ) -> String? {
        guard !instance.isEmpty else { return nil }
        var escaped = ""
        for byte in instance.utf8 {
            if isPlain(byte) {
                escaped.unicodeScalars.append(UnicodeScalar(byte))
            } else {
                escaped += (byte < 16 ? "\\x0" : "\\x") + String(byte, radix: 16)
            }
        }
        let name = "\(template)@\(escaped).\(suffix)"
        return name.utf8.count <= byteCountMax ? name : nil
    }

    /// The instance that ``name(template:instance:suffix:)`` made this unit's name of; nil when it
    /// is no such name.
    public static func instance(of unit: String, template: String, suffix: String) -> String? {
        let (head, tail) = ("\(template)@", ".\(suffix)")
        guard unit.hasPrefix(head), unit.hasSuffix(tail) else { return nil }
        let escaped = Array(unit.utf8.dropFirst(head.utf8.count).dropLast(tail.utf8.count))
        var bytes: [UInt8] = []
        var index = 0
        while index < escaped.count {
            let rest = escaped[index...]
            if rest.starts(with: "\\x".utf8), rest.count >= 4,
                let byte = UInt8(
                    String(decoding: rest.dropFirst(2).prefix(2), as: UTF8.self), radix: 16)
            {
                bytes.append(byte)
                index += 4
            } else {
                bytes.append(escaped[index])
                index += 1
            }
        }
        guard let instance = String(validating: bytes, as: UTF8.self),
            name(template: template, instance: instance, suffix: suffix) == unit
        else { return nil }
        return instance
    }

    private static func isPlain(_ byte: UInt8) -> Bool {
        switch byte {
        case UInt8(ascii: "a")...UInt8(ascii: "z"), UInt8(ascii: "A")...UInt8(ascii: "Z"),
            UInt8(ascii: "0")...UInt8(ascii: "9"), UInt8(ascii: ":"), UInt8(ascii: "-"),
            UInt8(ascii: "_"), UInt8(ascii: "."):
            true
        default: false
        }
    }
}
