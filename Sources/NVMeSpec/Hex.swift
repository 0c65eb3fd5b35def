// SPDX-License-Identifier: Apache-2.0
// Numbers the way the specification writes them: hexadecimal digits and an "h".

/// For example `80h`; at least `digits` digits.
func hex(_ value: some BinaryInteger & UnsignedInteger, digits: Int = 2) -> String {
    let text = String(value, radix: 16, uppercase: true)
    let padding = String(repeating: "0", count: max(0, digits &- text.utf8.count))
    return padding + text + "h"
}
