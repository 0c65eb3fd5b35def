// SPDX-License-Identifier: Apache-2.0
// Text for people: tables, sizes, times, identifiers. What came from devices loses control
// characters.

import Linux

enum Text {
    /// Columns of equal width under a heading; the last one is not padded.
    static func table(_ heading: [String], _ rows: [[String]]) -> String {
        let all = ([heading] + rows).map { $0.map(printable) }
        var widths = [Int](repeating: 0, count: heading.count)
        for row in all {
            for (index, cell) in row.enumerated() { widths[index] = max(widths[index], cell.count) }
        }
        return all.map { row in
            row.enumerated().map { index, cell in
                let padding = index == row.count - 1 ? 0 : widths[index] - cell.count + 2
                return cell + String(repeating: " ", count: padding)
            }.joined()
        }.joined(separator: "\n")
    }

    /// `name: value` lines with the values below each other; empty values are left out.
    static func list(_ lines: [(String, String)]) -> String {
        let shown = lines.filter { !$0.1.isEmpty }
        let width = shown.map(\.0.count).max() ?? 0
        return shown.map {
            $0.0 + ":" + String(repeating: " ", count: width - $0.0.count + 1) + printable($0.1)
        }.joined(separator: "\n")
    }

    /// Without control characters, which could play tricks with a terminal.
    static func printable(_ text: String) -> String {
        String(
            String.UnicodeScalarView(
                text.unicodeScalars.map {
                    $0.value < 0x20 || (0x7f...0x9f).contains($0.value) ? "?" : $0
                }))
    }

    /// `1.5 GiB`.
    static func size(_ byteCount: UInt64) -> String {
        let units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"]
        var value = Double(byteCount)
        var unit = 0
        while value >= 1024, unit < units.count - 1 {
            value /= 1024
            unit += 1
        }
        let tenths = (value * 10).rounded()
        let whole = tenths.truncatingRemainder(dividingBy: 10) == 0
        return "\(whole ? String(Int(tenths / 10)) : String(tenths / 10)) \(units[unit])"
    }

    /// `3 s ago` of a moment on the monotonic clock.
    static func ago(_ nanoseconds: UInt64) -> String {
        guard nanoseconds > 0 else { return "" }
        let now = MonotonicClock.nowNanoseconds
        return "\(now > nanoseconds ? (now - nanoseconds) / 1_000_000_000 : 0) s ago"
    }

    /// `12.3 µs`.
    static func duration(_ nanoseconds: UInt64) -> String {
        switch nanoseconds {
        case ..<10_000: "\(nanoseconds) ns"
        case ..<10_000_000: "\(nanoseconds / 1000) µs"
        case ..<10_000_000_000: "\(nanoseconds / 1_000_000) ms"
        default: "\(nanoseconds / 1_000_000_000) s"
        }
    }

    /// Bytes in hexadecimal.
    static func hex(_ bytes: [UInt8]) -> String {
        bytes.map { ($0 < 16 ? "0" : "") + String($0, radix: 16) }.joined()
    }
}
