// SPDX-License-Identifier: Apache-2.0
// Values of configuration keys: sizes, durations, switches, identifiers, addresses.

/// Readers of values. Each gives nil for what it does not understand.
public enum ConfigValue {
    /// A number without sign, decimal or with 0x in hexadecimal.
    public static func number(_ text: String) -> UInt64? {
        if text.hasPrefix("0x") || text.hasPrefix("0X") {
            let digits = text.dropFirst(2)
            return digits.utf8.first.map { $0 != 43 && $0 != 45 } == true
                ? UInt64(digits, radix: 16) : nil
        }
        return decimal(text[...])
    }

    private static func decimal(_ text: Substring) -> UInt64? {
        guard !text.isEmpty, text.utf8.allSatisfy({ $0 >= 48 && $0 <= 57 }) else { return nil }
        return UInt64(text)
    }

    /// Numbers of processors, rising: `0-3,8`; at most 8192, which is the most that Linux has.
    public static func processors(_ text: String) -> [UInt32]? {
        var found: Set<UInt32> = []
        for part in text.split(separator: ",", omittingEmptySubsequences: false) {
            let ends = part.split(separator: "-", omittingEmptySubsequences: false)
            let numbers = ends.map { end in decimal(end.drop { $0 == " " }) }
            guard (1...2).contains(ends.count), let first = numbers.first ?? nil,
                let last = numbers.last ?? nil, first <= last, last < 8192
            else { return nil }
            for number in first...last { found.insert(UInt32(number)) }
        }
        return found.sorted()
    }

    /// Bytes: `4096`, `64K`, `1M`, `2G`, `1T`, with 1024 as the base.
    public static func byteCount(_ text: String) -> UInt64? {
        let units: [Character: UInt64] = ["K": 10, "M": 20, "G": 30, "T": 40]
        guard let last = text.last, let shift = units[last] else { return number(text) }
        guard let count = decimal(text.dropLast()) else { return nil }
        let (bytes, overflow) = count.multipliedReportingOverflow(by: 1 << shift)
        return overflow ? nil : bytes
    }

    /// So many a second: `500`, `20K`, `5M`, `1G`, with 1000 as the base, as systemd reads
    /// bandwidths.
    public static func rate(_ text: String) -> UInt64? {
        let units: [Character: UInt64] = [
            "K": 1000, "M": 1_000_000, "G": 1_000_000_000, "T": 1_000_000_000_000,
        ]
        guard let last = text.last, let unit = units[last] else { return number(text) }
        return decimal(text.dropLast()).flatMap { product($0, unit) }
    }

    /// Bytes of a logical block: a power of two from 512 to 64K.
    public static func blockByteCount(_ text: String) -> UInt32? {
        guard let bytes = byteCount(text), (512...65_536).contains(bytes),
            bytes & (bytes - 1) == 0
        else { return nil }
        return UInt32(exactly: bytes)
    }

    /// Milliseconds: `5s`, `100ms`, `2min`, `1min 30s`; a bare number is seconds.
    public static func milliseconds(_ text: String) -> UInt64? {
        if let seconds = decimal(text[...]) { return product(seconds, 1000) }
        let units: [(String, UInt64)] = [
            ("ms", 1), ("sec", 1000), ("s", 1000), ("min", 60_000), ("m", 60_000), ("h", 3_600_000),
        ]
        var total: UInt64 = 0
        let words = text.words
        guard !words.isEmpty else { return nil }
        for word in words {
            guard let unit = units.first(where: { word.hasSuffix($0.0) }),
                let count = decimal(word.dropLast(unit.0.count)),
                let part = product(count, unit.1)
            else { return nil }
            let (sum, overflow) = total.addingReportingOverflow(part)
            if overflow { return nil }
            total = sum
        }
        return total
    }

    /// How long a thread spins, in nanoseconds: `off`, `always`, or at most a second: `50us`,
    /// `1ms`.
    public static func spinNanoseconds(_ text: String) -> UInt64? {
        switch text {
        case "off", "0": return 0
        case "always": return .max
        default: break
        }
        let units: [(String, UInt64)] = [
            ("us", 1_000), ("ms", 1_000_000), ("ns", 1), ("s", 1_000_000_000),
        ]
        guard let unit = units.first(where: { text.hasSuffix($0.0) }),
            let count = decimal(text.dropLast(unit.0.count)), let time = product(count, unit.1),
            time <= 1_000_000_000
        else { return nil }
        return time
    }

    /// A device node and ranges of physical addresses, each of whole pages of 4 KiB:
    /// `/dev/mshv_vtl_low 0x0-0xbfffffff 0x100000000-0x23fffffff`; at most 64 ranges.
    public static func guestMemory(_ text: String) -> ConfiguredGuestMemory? {
        let words = text.words
        guard let path = words.first, path.hasPrefix("/"), (2...65).contains(words.count)
        else { return nil }
        var ranges: [ClosedRange<UInt64>] = []
        for word in words.dropFirst() {
            let ends = word.split(separator: "-", omittingEmptySubsequences: false)
            guard ends.count == 2, let first = number(String(ends[0])),
                let last = number(String(ends[1])), first & 4095 == 0, last & 4095 == 4095,
                // No machine has more.
                first < last, last < 1 << 46
            else { return nil }
            ranges.append(first...last)
        }
        return ConfiguredGuestMemory(path: path, ranges: ranges)
    }

    private static func product(_ a: UInt64, _ b: UInt64) -> UInt64? {
        let (value, overflow) = a.multipliedReportingOverflow(by: b)
        return overflow ? nil : value
    }

    /// A switch: yes, true, on, 1; no, false, off, 0.
    public static func boolean(_ text: String) -> Bool? {
        switch text.lowercased() {
        case "yes", "true", "on", "1", "y", "t": true
        case "no", "false", "off", "0", "n", "f": false
        default: nil
        }
    }

    /// Bytes in hexadecimal; hyphens, colons, dots and a leading 0x or `eui.` do not matter.
    public static func identifier(_ text: String, byteCount: Int) -> [UInt8]? {
        var digits = text.lowercased()
        for prefix in ["0x", "eui.", "uuid.", "nguid."] where digits.hasPrefix(prefix) {
            digits = String(digits.dropFirst(prefix.count))
        }
        var nibbles: [UInt8] = []
        for character in digits.utf8 {
            switch character {
            case 45, 46, 58: continue
            case 48...57: nibbles.append(character - 48)
            case 97...102: nibbles.append(character - 87)
            default: return nil
            }
            if nibbles.count > 2 * byteCount { return nil }
        }
        guard nibbles.count == 2 * byteCount else { return nil }
        let bytes = stride(from: 0, to: nibbles.count, by: 2).map {
            nibbles[$0] << 4 | nibbles[$0 + 1]
        }
        // All zeroes is how a controller says that it has none.
        return bytes.allSatisfy { $0 == 0 } ? nil : bytes
    }

    /// A PCI address with domain: `0000:01:00.0`; the domain may be left out. Lower case. What it
    /// takes is what `PCIAddress` takes, which this module, that depends on nothing, does not know.
    public static func pciAddress(_ text: String) -> String? {
        let parts = text.lowercased().split(separator: ":", omittingEmptySubsequences: false)
        guard parts.count == 2 || parts.count == 3 else { return nil }
        let full = parts.count == 2 ? ["0000"] + parts : parts
        let last = full[2].split(separator: ".", omittingEmptySubsequences: false)
        guard last.count == 2, isHex(full[0], 4...8), isHex(full[1], 2...2), isHex(last[0], 2...2),
            last[1].utf8.count == 1, let function = UInt8(last[1]), function < 8
        else { return nil }
        return full.joined(separator: ":")
    }

    private static func isHex(_ text: Substring, _ count: ClosedRange<Int>) -> Bool {
        count.contains(text.utf8.count)
            && text.utf8.allSatisfy { (48...57).contains($0) || (97...102).contains($0) }
    }

    /// Whether a name can be the name of a device or disk: letters, digits, `_ . : -`, no leading
    /// dot.
    public static func isName(_ text: String) -> Bool {
        guard !text.isEmpty, text.utf8.count <= ConfigLimits.nameByteCount, !text.hasPrefix(".")
        else { return false }
        return text.utf8.allSatisfy {
            (48...58).contains($0) || (65...90).contains($0) || (97...122).contains($0)
                || $0 == 95 || $0 == 46 || $0 == 45
        }
    }
}
