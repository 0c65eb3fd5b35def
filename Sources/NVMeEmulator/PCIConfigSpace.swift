// SPDX-License-Identifier: Apache-2.0
// The PCI configuration space of the function: header, power management, PCI Express and MSI-X
// capabilities. PCI Local Bus 3.0, chapter 6; PCI Express Base 5.0, section 7.5.

/// 4 KiB of configuration space with a mask of what can be written.
struct PCIConfigSpace {
    /// The vendor id that software devices without an assigned one traditionally use.
    static let vendorID: UInt16 = 0x1234
    /// "NV".
    static let deviceID: UInt16 = 0x4E56
    /// With the extended space of PCI Express.
    static let byteCount = 4096

    private static let powerManagement = 0x40
    private static let express = 0x50
    private static let msix = 0x90

    private var page: Page
    private let initial: Page
    private let writable: Page

    /// Describes a function with BAR0 (registers) and BAR4 (MSI-X table and pending bits).
    init(vectorCount: Int, registerByteCount: UInt64, tableByteCount: UInt64, pendingOffset: UInt64)
    {
        var page = Page()
        var writable = Page()
        page.set(0x00, 2, UInt64(Self.vendorID))
        page.set(0x02, 2, UInt64(Self.deviceID))
        page.set(0x06, 2, 0x0010)  // status: capability list
        page.set(0x08, 4, 0x0108_0201)  // class: NVM Express, revision 1
        page.set(0x10, 4, 0x4)  // BAR0: 64 bits, memory
        page.set(0x20, 4, 0x4)  // BAR4: 64 bits, memory
        page.set(0x2C, 4, UInt64(Self.vendorID) | UInt64(Self.deviceID) << 16)
        page.set(0x34, 1, UInt64(Self.powerManagement))
        page.set(0x3D, 1, 1)  // INTA
        writable.set(0x04, 2, 0x0507)  // I/O, memory, bus master, parity, SERR, INTx disable
        writable.set(0x0C, 2, 0xFFFF)
        writable.set(0x10, 8, ~(registerByteCount - 1))
        writable.set(0x20, 8, ~(tableByteCount - 1))
        writable.set(0x3C, 1, 0xFF)

        page.set(Self.powerManagement, 4, 0x0003_0001 | UInt64(Self.express) << 8)
        page.set(Self.powerManagement + 4, 2, 0x0008)  // no soft reset
        writable.set(Self.powerManagement + 4, 2, 0x0003)

        page.set(Self.express, 4, 0x0002_0010 | UInt64(Self.msix) << 8)  // endpoint, version 2
        page.set(Self.express + 4, 4, 0x1000_8001)  // DEVCAP: FLR, role-based errors, 256 bytes
        page.set(Self.express + 12, 4, 0x0000_0043)  // LNKCAP: x4, 8 GT/s
        page.set(Self.express + 18, 2, 0x0043)
        writable.set(Self.express + 8, 2, 0x7FFF)

        page.set(Self.msix, 2, 0x11)
        page.set(Self.msix + 2, 2, UInt64(vectorCount - 1))
        page.set(Self.msix + 4, 4, 4)  // the table: BAR4, offset 0
        page.set(Self.msix + 8, 4, pendingOffset | 4)
        writable.set(Self.msix + 2, 2, 0xC000)
        self.page = page
        initial = page
        self.writable = writable
    }

    /// PCI bus mastering is on.
    var isBusMaster: Bool { page.bytes[4] & 4 != 0 }

    func read(_ offset: Int, _ count: Int) -> ArraySlice<UInt8> {
        page.bytes[offset..<(offset + count)]
    }

    /// Writes what can be written; true when a function level reset was asked for.
    mutating func write(_ offset: Int, _ content: ArraySlice<UInt8>) -> Bool {
        var wantsReset = false
        for (index, byte) in content.enumerated() where offset + index < page.bytes.count {
            let at = offset + index
            if at == Self.express + 9, byte & 0x80 != 0 { wantsReset = true }
            let mask = writable.bytes[at]
            page.bytes[at] = page.bytes[at] & ~mask | byte & mask
        }
        return wantsReset
    }

    mutating func reset() { page = initial }
}
