// SPDX-License-Identifier: Apache-2.0
// A queue that lost a command is made anew, a function that does not obey is reset.

import DMA
import Linux
import NVMeSpec
import TestSupport
import Testing
import VFIO

@testable import NVMeDriver

@Suite("The ladder of the driver", .serialized, .timeLimit(.minutes(5)))
struct LadderTests {
    private static let spans = [4096, 64 << 10, 3 << 20]

    private func rig(_ arguments: [String] = [], queues: Int = 2) throws -> ControllerRig {
        try ControllerRig(
            ["--namespace", "memory=16M"] + arguments, queues: queues, adminTimeoutMilliseconds: 300
        )
    }

    /// Loses a read of `byteCount` bytes on queue 0.
    private func lose(_ rig: ControllerRig, _ byteCount: Int, namespace: NamespaceInfo) throws {
        _ = try rig.emulator.command("fault command:drop,queue=1,opcode=2,times=1")
        #expect(throws: DriverError.self) {
            try rig.run(IOOperation.read, namespace, lba: 0, byteCount: byteCount, offset: 8 << 20)
        }
    }

    /// More transfers than the queue has entries, so that its phase changes.
    private func use(_ rig: ControllerRig, _ namespace: NamespaceInfo, queue: Int) throws {
        for round in 0..<600 {
            rig.fill(at: 0, byteCount: 4096, seed: UInt64(round))
            try rig.run(
                IOOperation.write, namespace, lba: UInt64(round), byteCount: 4096, offset: 0,
                queue: queue)
            try rig.run(
                IOOperation.read, namespace, lba: UInt64(round), byteCount: 4096, offset: 1 << 20,
                queue: queue)
            try #require(rig.equal(0, 1 << 20, byteCount: 4096))
        }
    }

    @Test(
        "a queue that lost a command is made anew: each request ends once, and it is like new",
        arguments: ["shadow", "mapped", "message"], spans)
    func replaced(_ doorbells: String, _ byteCount: Int) throws {
        // Given
        let rig = try rig(["--doorbells", doorbells])
        let namespace = try requireValue(rig.controller.namespaces[1])
        let pages = unsafe rig.controller.engine(0).pointee.freePageCount
        try use(rig, namespace, queue: 0)
        try lose(rig, byteCount, namespace: namespace)
        // When
        var ended: [IOCompletion] = []
        try rig.controller.deleteSubmissionQueue(0)
        var answered = [IOCompletion](repeating: IOCompletion(), count: 64)
        let count = unsafe answered.withUnsafeMutableBufferPointer {
            unsafe rig.controller.engine(0).pointee.reap(
                into: $0.baseAddress.unsafelyUnwrapped, capacity: 64)
        }
        unsafe rig.controller.engine(0).pointee.endUnanswered(
            status: Status.abortedQueueDeletion.rawValue
        ) { ended.append($0) }
        let isClosed = try isClosed(rig, namespace)
        try rig.controller.replaceQueue(0)
        // Then
        #expect(count == 0)
        #expect(ended.map(\.token) == [1])
        #expect(ended.first?.status == Status.abortedQueueDeletion.rawValue)
        #expect(isClosed)
        #expect(unsafe rig.controller.engine(0).pointee.isIdle)
        #expect(unsafe rig.controller.engine(0).pointee.freePageCount == pages)
        try use(rig, namespace, queue: 0)
        try use(rig, namespace, queue: 1)
        try rig.controller.stop()
    }

    private func isClosed(_ rig: ControllerRig, _ namespace: NamespaceInfo) throws -> Bool {
        var request = IORequest(
            operation: IOOperation.flush, namespaceID: namespace.namespaceID, session: 1, token: 2)
        request.blockShift = namespace.blockShift
        return unsafe rig.controller.engine(0).pointee.submit(request) == .full
    }

    @Test(
        "a controller that refuses the deletion is told as that, and the queue takes nothing more")
    func refused() throws {
        let rig = try rig()
        let namespace = try requireValue(rig.controller.namespaces[1])
        try lose(rig, 4096, namespace: namespace)
        _ = try rig.emulator.command("fault command:status=0/6,queue=admin,opcode=0")
        let error = #expect(throws: DriverError.self) {
            try rig.controller.deleteSubmissionQueue(0)
        }
        #expect(error?.description.contains("Delete I/O Submission Queue 1") == true)
        #expect(try isClosed(rig, namespace))
        try use(rig, namespace, queue: 1)
    }

    @Test("a controller that answers no deletion is waited for within the bound")
    func silent() throws {
        let rig = try rig()
        let namespace = try requireValue(rig.controller.namespaces[1])
        try lose(rig, 4096, namespace: namespace)
        _ = try rig.emulator.command("fault command:drop,queue=admin,opcode=0")
        #expect(throws: DriverError.self) { try rig.controller.deleteSubmissionQueue(0) }
    }

    @Test("a queue that cannot be made again holds no request any more")
    func notMadeAgain() throws {
        let rig = try rig()
        let namespace = try requireValue(rig.controller.namespaces[1])
        try lose(rig, 4096, namespace: namespace)
        _ = try rig.emulator.command("fault command:status=0/6,queue=admin,opcode=5")
        try rig.controller.deleteSubmissionQueue(0)
        var ended = 0
        unsafe rig.controller.engine(0).pointee.endUnanswered(status: 8) { _ in ended += 1 }
        #expect(throws: DriverError.self) { try rig.controller.replaceQueue(0) }
        unsafe rig.controller.engine(0).pointee.abandon(status: 8) { _ in ended += 1 }
        #expect(ended == 1)
        #expect(try isClosed(rig, namespace))
    }

    @Test("a controller that does not obey CC.EN is reset as a function, and comes up")
    func functionReset() throws {
        // Given: one that was left running and does not stop.
        let rig = try rig([
            "--fault", "register:to=2", "--fault", "register:stuck-ready",
        ])
        let stopped = rig.controller.disable()
        let state = try StateArea.create(layout: rig.controller.options.stateLayout)
        let second = try NVMeController(
            device: rig.controller.device, options: rig.controller.options, state: state)
        // The first one's memory is still mapped.
        _ = second.space.allocate(byteCount: 1 << 30)
        // When
        try second.start()
        // Then
        #expect(!stopped)
        #expect(second.functionResets == 1)
        #expect(try rig.emulator.command("stats").contains("\"deviceResets\":1"))
        #expect(second.namespaces[1] != nil)
    }
}
