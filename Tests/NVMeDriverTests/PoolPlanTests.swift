// SPDX-License-Identifier: Apache-2.0
// How large the pool of a controller is: as its queues need, or as configured.

import DMA
import Linux
import NullDevice
import TestSupport
import Testing

@testable import NVMeDriver

@Suite("The size of a controller's pool")
struct PoolPlanTests {
    static func options(
        queues: Int, transfer: Int = 8 << 20, pool: Int? = nil
    ) -> ControllerOptions {
        var options = ControllerOptions(deviceName: "ssd0")
        options.queueCount = queues
        options.maxTransferByteCount = transfer
        options.poolByteCount = pool
        return options.clamped
    }

    @Test(
        "what is laid out is what was computed, whatever the queues",
        arguments: [
            (1, 4, 4096), (2, 256, 8 << 20), (16, 256, 32 << 20), (3, 8, 1 << 20),
            (64, 512, 2 << 20),
        ], [4096, 2 << 20])
    func layout(_ device: (queues: Int, entries: UInt32, transfer: Int), page: Int) throws {
        // Given
        let wanted = 512 << 20
        var options = Self.options(
            queues: device.queues, transfer: device.transfer, pool: wanted)
        let sizing = PoolSizing(
            queueCount: device.queues, entries: Int(device.entries),
            listByteCount: Int(
                PhysicalRegionPages.listByteCount(transfer: UInt64(device.transfer))))
        // When
        let plan = try ControllerMemoryPlan.beginning(
            queueCount: device.queues, entries: device.entries, options: &options,
            pageByteCount: page)
        let size = plan.layout.byteCount(pageByteCount: page)
        // A successor knows no more than what is on record.
        var known = options
        known.poolByteCount = nil
        let again = ControllerMemoryPlan(
            queueCount: device.queues, entries: device.entries, options: known)
        // Then
        #expect(
            size
                == sizing.fitted(to: wanted, pageByteCount: page)?
                .byteCount(pageByteCount: page))
        #expect(size <= wanted)
        #expect(wanted - size < device.queues * 4096 + page)
        #expect(again.layout.entries == plan.layout.entries)
        #expect(known == known.clamped)
    }

    @Test("the least that is named is enough, and a byte less is refused with file, key and least")
    func least() throws {
        // Given: 66 + 2 × (4 + 256 × 5), 5 + 2 × (1 + 64) pages.
        let least = (66 + 2 * 1284 + 5 + 2 * 65) * 4096
        var enough = Self.options(queues: 2, transfer: 8 << 20, pool: least)
        var short = enough
        short.poolByteCount = least - 1
        // When
        let plan = try ControllerMemoryPlan.beginning(
            queueCount: 2, entries: 256, options: &enough, pageByteCount: 4096)
        let error = #expect(throws: DriverError.self) {
            _ = try ControllerMemoryPlan.beginning(
                queueCount: 2, entries: 256, options: &short, pageByteCount: 4096)
        }
        // Then
        #expect(plan.layout.byteCount == least)
        #expect(plan.bouncePagesPerQueue == 64)
        for words in ["Pool=", "ssd0.device", "\(least - 1) bytes", "at least \(least)"] {
            #expect(error?.description.contains(words) == true, "\(words)")
        }
    }

    @Test("a controller with a configured pool has one of that size, and works")
    func controller() throws {
        // Given
        let wanted = 16 << 20
        let options = Self.options(queues: 2, pool: wanted)
        let controller = try NVMeController(
            device: try NullController(name: "null"), options: options,
            state: try StateArea.create(layout: options.stateLayout))
        // When
        try controller.start()
        // Then
        #expect(controller.poolByteCount <= wanted)
        #expect(controller.poolByteCount > wanted - 3 * 4096)
        #expect(controller.queueCount == 2)
    }
}
