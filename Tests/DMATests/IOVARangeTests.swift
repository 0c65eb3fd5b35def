// SPDX-License-Identifier: Apache-2.0
// I/O virtual addresses inside the ranges that an IOMMU reports.

import Linux
import Testing
import VFIO

@testable import DMA

@Suite("I/O virtual addresses in ranges")
struct IOVARangeTests {
    private let intel: [ClosedRange<UInt64>] = [
        0...0xFEDF_FFFF, 0xFEF0_0000...0x7F_FFFF_FFFF,
    ]

    @Test("with much room above 4 GiB nothing below is used")
    func above() {
        var space = IOVASpace(ranges: intel)
        #expect(space.allocate(byteCount: 4096) == 1 << 32)
        #expect(space.usedByteCount == 4096)
    }

    @Test("a device that reaches 4 GiB only gets addresses below, never 0, and no hole")
    func below() throws {
        var space = IOVASpace(ranges: [0...0xFFFF, 0x20_0000...0x2F_FFFF, 0x40_0000...0x4F_FFFF])
        #expect(space.allocate(byteCount: 0x80_000) == 0x20_0000)
        #expect(space.allocate(byteCount: 0x90_000) == 0x40_0000)
        #expect(space.allocate(byteCount: 0x80_000) == 0x28_0000)
        #expect(space.allocate(byteCount: 0x80_000) == nil)
        #expect(space.usedByteCount == 0x190_000)
        let released = space.release(0x28_0000)
        #expect(released)
        #expect(space.allocate(byteCount: 0x80_000) == 0x28_0000)
        // The hole is nobody's to release.
        let hole = space.release(0x30_0000)
        #expect(!hole)
    }

    @Test(
        "ranges without room give no address",
        arguments: [
            [], [0...0xFFFF], [0x10_0001...0x10_0FFF], [(UInt64.max - 10)...UInt64.max],
        ] as [[ClosedRange<UInt64>]])
    func none(_ ranges: [ClosedRange<UInt64>]) {
        var space = IOVASpace(ranges: ranges)
        #expect(space.allocate(byteCount: 4096) == nil)
    }

    @Test("a run of huge pages is found whatever order the file has them in")
    func physicalRun() {
        let page: UInt64 = 2 << 20
        let addresses = [9, 4, 100, 5, 6, 11].map { $0 * page }
        #expect(PhysicalRun.find(3, in: addresses) == [1, 3, 4])
        #expect(PhysicalRun.find(1, in: addresses) == [1])
        #expect(PhysicalRun.find(4, in: addresses) == nil)
        #expect(PhysicalRun.find(2, in: [.max - page + 1, 0]) == nil)
        #expect(PhysicalRun.find(1, in: []) == nil)
    }

    @Test("pages of a run that are side by side in the file are looked up together")
    func stretches() {
        #expect(PhysicalRun.stretches(of: [5, 4, 3, 9, 0, 10]) == [0..<1, 3..<6, 9..<11])
        #expect(PhysicalRun.stretches(of: []).isEmpty)
        #expect(PhysicalRun.stretches(of: [.max - 1]) == [(.max - 1)..<(.max)])
    }

    @Test(
        "an order of pages that no run has, and a file that is not one of huge pages, are refused",
        arguments: [[], [0, 0], [0, 4096], [1024], [0], [0, 1]] as [[UInt32]])
    func strangeOrder(_ order: [UInt32]) throws {
        var layout = PoolLayout()
        _ = layout.reserveDeviceReads(4096)
        #expect(throws: VFIOError.self) {
            _ = try DMAPool(
                adopting: try PoolFile(
                    received: try MemFD.create(name: "m", byteCount: 4 << 20), place: .memory),
                layout: layout, pageOrder: order, address: 0, checking: nil)
        }
    }
}
