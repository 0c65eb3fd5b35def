// SPDX-License-Identifier: Apache-2.0
// The Firmware Slot Information log page, 03h. NVM Express Base Specification 2.0,
// section 5.16.1.4.

/// Firmware Slot Information.
public struct FirmwareSlots: Page {
    /// AFI: 2:0 the slot that runs, 6:4 the slot of the next reset (0 if unchanged).
    public var afi: UInt8 = 0
    /// FRS1 to FRS7, the revision in each slot; empty if there is none.
    public var revisions = [String](repeating: "", count: 7)

    /// A page with every field zero.
    public init() {}

    /// Parses bytes that were copied from the device.
    public init(parsing bytes: [UInt8]) throws(PageError) { self = try Self.parsed(from: bytes) }

    /// The page as a controller returns it.
    public func encode() -> [UInt8] { encoded() }

    /// The slot that runs, 1 to 7; 0 if the device names none.
    public var activeSlot: UInt8 { afi & 7 }

    /// The name of the page in the specification.
    public static let pageName = "Firmware Slot Information"

    /// Bytes of the whole page.
    public static let pageByteCount = 512
}

extension FirmwareSlots: LaidOutPage {
    mutating func visit(_ codec: inout PageCodec) {
        codec.field(&afi, at: 0, "AFI")
        for index in 0..<7 {
            var revision = index < revisions.count ? revisions[index] : ""
            let padding: UInt8 = revision.isEmpty ? 0 : 0x20
            codec.text(
                &revision, at: 8 &+ index &* 8, byteCount: 8, padding: padding,
                "FRS\(index &+ 1)")
            if index < revisions.count { revisions[index] = revision }
        }
    }
}
