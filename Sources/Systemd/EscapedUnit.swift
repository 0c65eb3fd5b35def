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
