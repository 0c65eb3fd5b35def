// SPDX-License-Identifier: Apache-2.0
// How large a pool is, which devices are memory, and where pages lie.

import Glibc
import Linux
import TestSupport
import Testing

@testable import DMA

@Suite("Sizes and places of pools")
struct PoolSizingTests {
    static let device = PoolSizing(queueCount: 4, entries: 256, listByteCount: 4096)

    @Test("a pool has room for its queues, in whole pages of its memory")
    func devices() {
        // Read: 66, and of each queue 4 (submissions) + 256 (lists); written: 5, and 1 + 64.
        #expect(Self.device.deviceReadsPages == 66 + 4 * 260)
        #expect(Self.device.deviceWritesPages == 5 + 4 * 65)
        #expect(Self.device.byteCount(pageByteCount: 4096) == (1106 + 265) * 4096)
        #expect(Self.device.byteCount(pageByteCount: 2 << 20) == (6 << 20) + (2 << 20))
        #expect(Self.device.leastByteCount(pageByteCount: 4096) == 1371 * 4096)
    }

    @Test(
        "what a configured size leaves is for bounce pages; one that is too small is refused",
        arguments: [
            (1371 * 4096, 4096, 64), (1371 * 4096 - 1, 4096, nil), (1371 * 4096 + 4095, 4096, 64),
            // A page more for each of 4 queues, and not one for 3 of them.
            (1374 * 4096, 4096, 64), (1375 * 4096, 4096, 65), (8 << 20, 2 << 20, 125),
            (7 << 20, 2 << 20, nil), ((8 << 20) + 1, 2 << 20, 125), (10 << 20, 2 << 20, 253),
            // No more than 1 GiB together.
            (1 << 40, 4096, 65_536), ((1 << 40) + 1, 4096, nil), (0, 4096, nil), (-1, 4096, nil),
            (.max, 4096, nil),
        ] as [(Int, Int, Int?)])
    func configured(wanted: Int, page: Int, expected: Int?) {
        #expect(
            Self.device.fitted(to: wanted, pageByteCount: page)?.bouncePagesPerQueue == expected)
    }

    @Test("what was fitted to a size never needs more, and less than a page a queue is left over")
    func fits() {
        // Given
        let seed = seed()
        var random = SplitMix64(state: seed)
        func below(_ limit: Int) -> Int { Int(random.next() % UInt64(limit)) }
        for _ in 0..<2000 {
            let sizing = PoolSizing(
                queueCount: 1 + below(64), entries: 4 << below(9),
                listByteCount: 4096 * (1 + below(8)))
            let page = [4096, 2 << 20][below(2)]
            let least = sizing.leastByteCount(pageByteCount: page)
            let wanted = least + below(64 << 20)
            // When
            let size = sizing.fitted(to: wanted, pageByteCount: page)?
                .byteCount(pageByteCount: page)
            // Then
            #expect(size.map { $0 <= wanted } == true, "seed \(seed)")
            #expect(size.map { wanted - $0 < sizing.queueCount * 4096 + page } == true)
            #expect(sizing.fitted(to: least - 1, pageByteCount: page) == nil)
        }
    }

    @Test("absurd devices neither overflow nor get a pool")
    func absurd() {
        // Given
        let absurd = PoolSizing(
            queueCount: .max, entries: .max, listByteCount: .max, bouncePagesPerQueue: .max)
        // Then
        #expect(absurd.fitted(to: 1 << 40, pageByteCount: 4096) == nil)
    }

    @Test("a DAX device is known by its subsystem, and says its size and alignment")
    func deviceMemory() throws {
        // Given
        let directory = try TemporaryDirectory()
        try TestFiles.write("8388608\n", to: "\(directory.path)/size")
        let before = DeviceMemoryLookup.inSysfs(directory.path)
        #expect(unsafe symlink("../../../../bus/dax", "\(directory.path)/subsystem") == 0)
        // When
        let old = DeviceMemoryLookup.inSysfs(directory.path)
        try TestFiles.write("0x1000\n", to: "\(directory.path)/align")
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
