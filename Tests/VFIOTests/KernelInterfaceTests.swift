// SPDX-License-Identifier: Apache-2.0
// What the kernel's VFIO tells: capability chains, regions, address ranges, configuration space.

import Linux
import Testing

@testable import VFIO

/// A capability's head {id, version, next}.
private func head(_ id: UInt16, next: UInt32) -> [UInt8] {
    little(UInt64(id), 2) + little(1, 2) + little(UInt64(next), 4)
}

/// A sparse mmap capability {head, count, reserved, areas}.
private func sparse(
    _ areas: [(UInt64, UInt64)], next: UInt32 = 0, count: UInt32? = nil
) -> [UInt8] {
    head(1, next: next) + little(UInt64(count ?? UInt32(areas.count)), 4) + little(0, 4)
        + areas.flatMap { little($0.0, 8) + little($0.1, 8) }
}

private typealias Area = DeviceRegion.Area

@Suite("Regions of the kernel's VFIO")
struct RegionTests {
    @Test("a region that may be mapped has one area, the whole of it")
    func whole() throws {
        let region = try #require(DeviceRegion(regionInfo(flags: 7, size: 0x4000)))
        #expect(region.areas == [Area(offset: 0, byteCount: 0x4000)])
    }

    @Test("a region that may not be mapped has none")
    func unmappable() throws {
        let region = try #require(DeviceRegion(regionInfo(flags: 3, size: 256, offset: 7 << 40)))
        #expect(region.areas.isEmpty)
        #expect(region.fileOffset == 7 << 40)
    }

    @Test("sparse areas come from behind another capability")
    func sparseAreas() throws {
        // MSI-X mappable (id 3) at 32, sparse at 40.
        let info = regionInfo(
            flags: 0xF, capabilities: 32, size: 0x4000,
            rest: head(3, next: 40) + sparse([(0, 0x2000), (0x3000, 0x1000)]))
        let region = try #require(DeviceRegion(info))
        #expect(
            region.areas
                == [Area(offset: 0, byteCount: 0x2000), Area(offset: 0x3000, byteCount: 0x1000)])
    }

    @Test("a chain that loops, points outside or is cut ends and finds nothing")
    func hostileChains() throws {
        let hostile = [
            regionInfo(flags: 0xF, capabilities: 32, size: 1 << 14, rest: head(3, next: 32)),
            regionInfo(
                flags: 0xF, capabilities: 32, size: 1 << 14,
                rest: head(3, next: 40) + head(2, next: 32)),
            regionInfo(flags: 0xF, capabilities: .max, size: 1 << 14),
            regionInfo(flags: 0xF, capabilities: 30, size: 1 << 14, rest: [1, 0]),
            regionInfo(flags: 0xF, capabilities: 32, size: 1 << 14, rest: head(3, next: .max)),
        ]
        for info in hostile {
            let region = try #require(DeviceRegion(info))
            // Without the capability the kernel's word that all of it may be mapped stands.
            #expect(region.areas == [Area(offset: 0, byteCount: 1 << 14)])
        }
    }

    @Test("a count of areas beyond what came ends with what came")
    func longCount() throws {
        let info = regionInfo(
            flags: 0xF, capabilities: 32, size: 1 << 14,
            rest: sparse([(0, 0x1000)], count: .max))
        let region = try #require(DeviceRegion(info))
        #expect(region.areas == [Area(offset: 0, byteCount: 0x1000)])
    }

    @Test("an answer that is too short is no region", arguments: [0, 4, 16, 31])
    func short(_ count: Int) {
        #expect(DeviceRegion(Array(regionInfo(flags: 7, size: 1 << 14).prefix(count))) == nil)
    }

    @Test("only whole pages before the MSI-X table are mapped")
    func mappable() throws {
        let region = try #require(DeviceRegion(regionInfo(flags: 7, size: 0x4000)))
        #expect(
            region.mappable(below: 1 << 20, avoiding: 0x2040..<0x2840)
                == [Area(offset: 0, byteCount: 0x2000)])
        #expect(
            region.mappable(below: 0x1000, avoiding: nil) == [Area(offset: 0, byteCount: 0x1000)])
        #expect(region.mappable(below: 1 << 20, avoiding: 0x10..<0x20).isEmpty)
    }

    @Test("areas that overflow, overlap or leave the region are left out")
    func hostileAreas() throws {
        let info = regionInfo(
            flags: 0xF, capabilities: 32, size: 0x4000,
            rest: sparse([
                (.max - 10, 100), (0x3000, 0x2000), (0x1000, 0x1000), (0x1000, 0x2000),
                (0x2800, 0x400),
            ]))
        let region = try #require(DeviceRegion(info))
        #expect(
            region.mappable(below: 1 << 20, avoiding: nil)
                == [Area(offset: 0x1000, byteCount: 0x1000)])
    }
}

@Suite("Address ranges of the kernel's IOMMU")
struct AddressRangeTests {
    /// struct vfio_iommu_type1_info: {argsz, flags, page sizes, cap_offset, pad}, then the ranges.
    private func info(_ pairs: [(UInt64, UInt64)], count: UInt32? = nil) -> [UInt8] {
        little(24, 4) + little(3, 4) + little(0x1000, 8) + little(24, 4) + little(0, 4)
            + sparse(pairs, count: count)
    }

    @Test("the ranges of an Intel IOMMU have a hole where interrupts are")
    func intel() {
        let found = AddressRanges.parse(
            info([(0, 0xFEDF_FFFF), (0xFEF0_0000, 0x7F_FFFF_FFFF)]))
        #expect(found == [0...0xFEDF_FFFF, 0xFEF0_0000...0x7F_FFFF_FFFF])
    }

    @Test("ranges that are backwards or overlap are left out, the others rise")
    func hostile() {
        let found = AddressRanges.parse(
            info([(0x9000, 0x9FFF), (0x5000, 0x1000), (0, 0x1FFF), (0x1000, 0x2FFF)]))
        #expect(found == [0...0x1FFF, 0x9000...0x9FFF])
    }

    @Test("a kernel that says nothing of ranges is told apart from one that has none")
    func silent() {
        #expect(AddressRanges.parse(little(24, 4) + little(1, 4) + little(0, 16)) == nil)
        #expect(AddressRanges.parse(info([])) == [])
        #expect(AddressRanges.parse([]) == nil)
    }
}

@Suite("Configuration space")
struct ConfigurationSpaceTests {
    /// 256 bytes with a capabilities list that begins at 0x40.
    private func space(_ capabilities: [(at: Int, bytes: [UInt8])]) -> [UInt8] {
        var bytes = [UInt8](repeating: 0, count: 256)
        bytes[6] = 0x10  // status: there is a list
        bytes[0x34] = 0x40
        for (at, capability) in capabilities {
            bytes.replaceSubrange(at..<(at + capability.count), with: capability)
        }
        return bytes
    }

    @Test("MSI-X is found behind power management, with its table in BAR0")
    func msix() {
        // PM at 0x40 → MSI-X at 0x50: 65 vectors, table at BAR0 + 0x2000.
        let found = PCIConfiguration(
            space([
                (0x40, [0x01, 0x50]),
                (0x50, [0x11, 0x00, 0x40, 0x00, 0x00, 0x20, 0x00, 0x00]),
            ]))
        #expect(found.vectorCount == 65)
        let table: Range<UInt64> = 0x2000..<(0x2000 + 65 * 16)
        #expect(found.vectorTable == table)
    }

    @Test("a table in another BAR takes nothing from BAR0")
    func otherBAR() {
        let found = PCIConfiguration(
            space([(0x40, [0x11, 0x00, 0x07, 0x00, 0x04, 0x00, 0x00, 0x00])]))
        #expect(found.vectorCount == 8)
        #expect(found.vectorTable == nil)
    }

    @Test("a list that loops or leads into the header ends")
    func hostile() {
        #expect(PCIConfiguration(space([(0x40, [0x01, 0x40])])).vectorCount == nil)
        #expect(PCIConfiguration(space([(0x40, [0x01, 0x10])])).vectorCount == nil)
        #expect(
            PCIConfiguration(space([(0xFC, [0x11, 0, 0, 0]), (0x40, [1, 0xFC])])).vectorCount == nil
        )
        #expect(PCIConfiguration([UInt8](repeating: 0xFF, count: 256)).vectorCount == nil)
        #expect(PCIConfiguration([]).vectorCount == nil)
    }

    @Test(
        "what is no address does not become part of a path",
        arguments: [
            "", "0000:01:00.8", "0000:01:00.0/..", "../../etc/xx", "0000:01:00.00",
            "00g0:01:00.0",
        ])
    func badAddress(_ text: String) {
        #expect(PCIAddress(text) == nil)
    }

    @Test("an address is written in lower case")
    func address() {
        #expect(PCIAddress("0000:AF:1f.7")?.description == "0000:af:1f.7")
        // A domain of Intel's VMD.
        #expect(PCIAddress("10000:01:00.0")?.description == "10000:01:00.0")
    }
}
