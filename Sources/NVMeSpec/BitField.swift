// SPDX-License-Identifier: Apache-2.0
// Reading and replacing bit fields of unsigned integers, as register and dword layouts need it.

extension FixedWidthInteger where Self: UnsignedInteger {
    /// The `width` bits that start at bit `low`.
    @inlinable
    func bits(_ low: Int, _ width: Int) -> Self {
        (self >> Self(truncatingIfNeeded: low)) & ((1 << Self(truncatingIfNeeded: width)) &- 1)
    }

    /// Replaces the `width` bits that start at bit `low`; bits of `value` that do not fit are cut.
    @inlinable
    mutating func setBits(_ low: Int, _ width: Int, to value: some BinaryInteger) {
        let mask: Self = (1 << Self(truncatingIfNeeded: width)) &- 1
        let shift = Self(truncatingIfNeeded: low)
        self = (self & ~(mask << shift)) | ((Self(truncatingIfNeeded: value) & mask) << shift)
    }

    /// True if bit `index` is one.
    @inlinable
    func bit(_ index: Int) -> Bool {
        (self >> Self(truncatingIfNeeded: index)) & 1 == 1
    }

    /// Sets or clears bit `index`.
    @inlinable
    mutating func setBit(_ index: Int, to value: Bool) {
        let mask: Self = 1 << Self(truncatingIfNeeded: index)
        self = value ? self | mask : self & ~mask
    }
}
