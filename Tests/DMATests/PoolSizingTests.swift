// SPDX-License-Identifier: Apache-2.0
// How large a pool is, which devices are memory, and where pages lie.

import Glibc
import Linux
import TestSupport
import Testing

@testable import DMA

@Suite("Sizes and places of pools")
struct PoolSizingTests {
    static let device = PoolSizing(
        queueCount: 4, entries: 256, listByteCount: 4096, bouncePagesPerQueue: 64)

    @Test("a pool has room for its devices, in whole pages of its memory")
    func devices() {
        // 4 (submissions) + 1 (completions) + 256 (lists) + 64 (bounce) pages of each queue
        #expect(Self.device.pagesPerQueue == 325)
        #expect(Self.device.pageCount == 71 + 4 * 325)
        #expect(
            PoolSizing.byteCount(devices: [Self.device, Self.device], pageByteCount: 4096)
                == 2 * 1371 * 4096)
        #expect(
            PoolSizing.byteCount(devices: [Self.device], pageByteCount: 2 << 20) == 6 << 20)
    }

    @Test(
        "a configured size is taken, rounded up; sizes that make no sense are refused",
        arguments: [
            (1, 4096, 4096), (3 << 20, 2 << 20, 4 << 20), (0, 4096, nil), (-1, 4096, nil),
            (.max, 4096, nil), (1, 5000, nil), (1, 12_288, nil), (1 << 40, 1 << 30, 1 << 40),
        ] as [(Int, Int, Int?)])
    func configured(wanted: Int, page: Int, expected: Int?) {
        #expect(
            PoolSizing.byteCount(configured: wanted, devices: [], pageByteCount: page) == expected)
    }

    @Test("absurd devices neither overflow nor get a pool")
    func absurd() {
        // Given
        let absurd = PoolSizing(
            queueCount: .max, entries: .max, listByteCount: .max, bouncePagesPerQueue: .max)
        // Then
        #expect(PoolSizing.byteCount(devices: [absurd], pageByteCount: 4096) == nil)
        #expect(PoolSizing.byteCount(devices: [], pageByteCount: 4096) == nil)
    }

    @Test("a DAX device is known by its subsystem, and says its size and alignment")
    func deviceMemory() throws {
        // Given
        let directory = try TemporaryDirectory()
        func write(_ name: String, _ text: String) throws {
            let fd = try OwnedFD.open("\(directory.path)/\(name)", flags: 0o101)
            _ = unsafe text.withCString { unsafe Glibc.write(fd.raw, $0, text.utf8.count) }
        }
        try write("size", "8388608\n")
        let before = DeviceMemoryLookup.inSysfs(directory.path)
        #expect(unsafe symlink("../../../../bus/dax", "\(directory.path)/subsystem") == 0)
        // When
        let old = DeviceMemoryLookup.inSysfs(directory.path)
        try write("align", "0x1000\n")
        // Then
        #expect(before == nil)
        #expect(old == DeviceMemoryFacts(byteCount: 8 << 20, alignment: 2 << 20))
        #expect(
            DeviceMemoryLookup.inSysfs(directory.path)
                == DeviceMemoryFacts(byteCount: 8 << 20, alignment: 4096))
        #expect(DeviceMemoryLookup.name(of: 0xFC_03) == "252:3")
    }

    @Test("a pool in a device's memory is found again, and is not larger than the device")
    func inDeviceMemory() throws {
        // Given: a double, a file in the place of the node.
        let directory = try MemoryDirectory()
        _ = try PoolFile.create(directory.place("dax0.0"), byteCount: 4 << 20)
        let place = PoolPlace(.deviceMemory, path: directory.file("dax0.0"))
        let devices = DeviceMemoryLookup { facts in
            DeviceMemoryFacts(byteCount: facts.byteCount, alignment: 2 << 20)
        }
        // When
        let made = try PoolFileTests.look(
            PoolFile.create(place, byteCount: 5000, devices: devices))
        let found = try PoolFileTests.look(
            PoolFile.reopen(place, byteCount: 5000, devices: devices))
        let error = PoolFileTests.error { () throws(PoolFileError) in
            try PoolFile.create(place, byteCount: 5 << 20, devices: devices)
        }
        let kernel = PoolFileTests.error { () throws(PoolFileError) in
            try PoolFile.create(place, byteCount: 5000)
        }
        // Then
        #expect(made.byteCount == 4 << 20)
        #expect(!made.isClean)
        #expect(found.identity == made.identity)
        #expect(
            error == .noMemory(place: place, byteCount: 5 << 20, pageByteCount: 2 << 20))
        #expect(kernel == .wrongKind(path: place.path, wanted: "a DAX device"))
    }

    @Test("a node that is not there is no error: the pool says why it lies elsewhere")
    func placement() throws {
        // Given
        let ranges = [PoolRange(pages: PageRun(first: 0, count: 4), address: 0)]
        // When
        let none = try PoolMemory(Mapping(anonymous: 16384), ranges: ranges)
        let absent = try PoolMemory(Mapping(anonymous: 16384), ranges: ranges, node: 900)
        // Then
        #expect(none.placement == .anywhere)
        #expect(absent.placement.description.hasPrefix("not on node 900: "))
    }
}
