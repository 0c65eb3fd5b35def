// SPDX-License-Identifier: Apache-2.0
// The driver on the null device: every command succeeds, at once.

import Linux
import NVMeSpec
import NullDevice
import TestSupport
import Testing

@testable import NVMeDriver

/// A controller on a null device.
@safe
private final class NullRig {
    let controller: NVMeController
    let region: UInt32

    init(byteCount: UInt64, blockByteCount: UInt32, queues: Int = 1) throws {
        var options = ControllerOptions(deviceName: "test")
        options.queueCount = queues
        options.queueDepth = 16
        options.bouncePoolByteCount = 1 << 20
        controller = try NVMeController(
            device: try NullController(
                name: "null0", byteCount: byteCount, blockByteCount: blockByteCount),
            options: options, state: try StateArea.create(layout: options.stateLayout))
        try controller.start()
        let memory = try MemFD.create(name: "client", byteCount: 4 << 20)
        region = try controller.registerMemory(
            memory, byteCount: 4 << 20, session: 1, readOnly: false)
    }

    func request(_ operation: UInt8, token: UInt64 = 1, blocks: UInt32 = 8) throws -> IORequest {
        let namespace = try requireValue(controller.namespaces[1])
        var request = IORequest(
            operation: operation, namespaceID: 1, session: 1, token: token)
        request.blockShift = namespace.blockShift
        request.blockCount = operation == IOOperation.flush ? 0 : blocks
        request.maxBlocksPerCommand = namespace.maxTransferBlocks
        request.region = region
        return request
    }
}

@Suite("The null device")
struct NullDeviceTests {
    @Test("has one namespace of the size asked for", arguments: [512, 4096, 65536] as [UInt32])
    func size(blockByteCount: UInt32) throws {
        // Given, when
        let rig = try NullRig(byteCount: 1 << 30, blockByteCount: blockByteCount)
        let namespace = try requireValue(rig.controller.namespaces[1])
        // Then
        #expect(rig.controller.namespaces.count == 1)
        #expect(namespace.blockByteCount == blockByteCount)
        #expect(namespace.blockCount == (1 << 30) / UInt64(blockByteCount))
        #expect(namespace.refusal == nil)
        #expect(rig.controller.identify.sn == "null0")
    }

    @Test(
        "does every command of the NVM command set that clients have",
        arguments: [
            IOOperation.flush, IOOperation.write, IOOperation.read, IOOperation.compare,
            IOOperation.writeZeroes, IOOperation.deallocate, IOOperation.verify,
        ])
    func commands(operation: UInt8) throws {
        // Given
        let rig = try NullRig(byteCount: 1 << 30, blockByteCount: 512, queues: 3)
        #expect(rig.controller.queueCount == 3)
        for queue in 0..<3 {
            // When
            let status = try rig.controller.execute(try rig.request(operation), on: queue)
            // Then
            #expect(status.isSuccess)
        }
    }

    @Test("completes a batch within the doorbell, over many turns of the queues")
    func batches() throws {
        // Given
        let rig = try NullRig(byteCount: 1 << 30, blockByteCount: 512)
        let engine = unsafe rig.controller.engine(0)
        var completions = [IOCompletion](repeating: IOCompletion(), count: 16)
        var next: UInt64 = 0
        for round in 0..<1000 {
            // When
            let capacity = unsafe engine.pointee.capacity
            let count = 1 + round % capacity
            for token in next..<next + UInt64(count) {
                let request = try rig.request(IOOperation.read, token: token)
                #expect(unsafe engine.pointee.submit(request) == .accepted)
            }
            #expect(unsafe !engine.pointee.hasAnswer)
            unsafe engine.pointee.ring()
            try rig.controller.writePendingDoorbells(0)
            let reaped = unsafe completions.withUnsafeMutableBufferPointer {
                unsafe engine.pointee.reap(into: $0.baseAddress!, capacity: 16)
            }
            unsafe engine.pointee.retire()
            try rig.controller.writePendingDoorbells(0)
            // Then
            #expect(reaped == count)
            #expect(completions[0..<reaped].map(\.token) == Array(next..<next + UInt64(count)))
            #expect(completions[0..<reaped].allSatisfy { $0.status == 0 })
            next += UInt64(count)
        }
        #expect(unsafe engine.pointee.fault == .none)
    }

    @Test("goes down in order and comes up again")
    func again() throws {
        // Given
        let rig = try NullRig(byteCount: 1 << 30, blockByteCount: 512)
        // When
        try rig.controller.stop()
        // Then
        #expect(throws: DriverError.self) { try rig.controller.checkStatus() }
    }

    @Test("answers what the worker asks of a controller's health, and keeps event requests")
    func events() throws {
        // Given
        let rig = try NullRig(byteCount: 1 << 30, blockByteCount: 512)
        // When
        try rig.controller.requestHealth()
        let events = try rig.controller.pollAdmin()
        // Then
        #expect(events.count == 1)
        #expect(rig.controller.health?.availableSpare == 100)
        #expect(rig.controller.eventRequests == 4)
    }
}
