// SPDX-License-Identifier: Apache-2.0
// Lists of namespaces and of their names.

import NVMeSpec
import Testing

@Suite("Namespace lists")
struct NamespaceListTests {
    private func padded(_ dump: String) -> [UInt8] {
        let head = bytes(dump)
        return head + [UInt8](repeating: 0, count: 4096 - head.count)
    }

    @Test("a list holds the ids above the one asked for, rising, and says if it is the last")
    func list() throws {
        let list = NamespaceList([5, 1, 9, 2], after: 1)

        #expect(list.namespaceIDs == [2, 5, 9])
        #expect(list.isLast)
        #expect(
            list.encode().prefix(16)
                == bytes("02 00 00 00 05 00 00 00 09 00 00 00 00 00 00 00")[...])
        #expect(try NamespaceList(parsing: list.encode(), after: 1) == list)
    }

    @Test("a full list is not the last one")
    func full() throws {
        let list = NamespaceList(1...5000, after: 1000)

        #expect(list.namespaceIDs.count == 1024)
        #expect(list.namespaceIDs.last == 2024)
        #expect(!list.isLast)
        #expect(try NamespaceList(parsing: list.encode(), after: 1000) == list)
    }

    @Test("ids that do not rise, or are not above the one asked for, are refused")
    func disorder() {
        let falling = padded("02 00 00 00  01 00 00 00")
        let repeated = padded("02 00 00 00  02 00 00 00")
        let broadcast = padded("FF FF FF FF")
        let early = padded("03 00 00 00")

        #expect(throws: PageError.self) { try NamespaceList(parsing: falling) }
        #expect(throws: PageError.self) { try NamespaceList(parsing: repeated) }
        #expect(throws: PageError.self) { try NamespaceList(parsing: broadcast) }
        #expect(throws: PageError.self) { try NamespaceList(parsing: early, after: 3) }
        #expect(throws: PageError.self) { try NamespaceList(parsing: [1, 0, 0, 0, 2]) }
    }

    @Test("changed namespaces are listed, or said to be too many")
    func changed() throws {
        let few = ChangedNamespaceList.namespaces([1, 7])
        let many = ChangedNamespaceList.namespaces(Array(1...1025))

        #expect(try ChangedNamespaceList(parsing: few.encode()) == few)
        #expect(try ChangedNamespaceList(parsing: many.encode()) == .tooMany)
        #expect(many.encode().prefix(8) == [0xFF, 0xFF, 0xFF, 0xFF, 0, 0, 0, 0])
    }

    @Test("descriptors give EUI64, NGUID, UUID and command set, unknown ones are skipped")
    func descriptors() throws {
        let page = padded(
            """
            01 08 00 00  01 23 45 67 89 AB CD EF                            # EUI64
            77 03 00 00  AA BB CC                                           # unknown type
            03 10 00 00  0F 1E 2D 3C 4B 5A 69 78 87 96 A5 B4 C3 D2 E1 F0    # UUID
            04 01 00 00  02                                                 # CSI
            """)

        let names = try NamespaceDescriptors(parsing: page)

        #expect(names.eui64 == [0x01, 0x23, 0x45, 0x67, 0x89, 0xAB, 0xCD, 0xEF])
        #expect(names.nguid == nil)
        #expect(names.uuid?.first == 0x0F)
        #expect(names.csi == 2)
        #expect(try NamespaceDescriptors(parsing: names.encode()) == names)
    }

    @Test("a descriptor that runs over the page, or has a wrong length, is refused")
    func badDescriptors() {
        let wrongLength = padded("02 08 00 00  01 02 03 04 05 06 07 08")
        let overrun = (0..<16).flatMap { _ in
            [UInt8(0x70), 0xFF] + [UInt8](repeating: 0, count: 257)
        }
        let cut = bytes("02 10 00 00  01 02 03")

        #expect(throws: PageError.self) { try NamespaceDescriptors(parsing: wrongLength) }
        #expect(throws: PageError.self) {
            try NamespaceDescriptors(parsing: Array(overrun.prefix(4096)))
        }
        #expect(throws: PageError.self) { try NamespaceDescriptors(parsing: cut) }
        #expect(throws: PageError.self) { try NamespaceDescriptors(parsing: []) }
    }
}
