// SPDX-License-Identifier: Apache-2.0
// Trust levels: opened while a buffer lives, closed when it is released, and memory that cannot be
// closed never used again. The hypercalls are looked at where the kernel would get them.

import CLinux
import Linux
import TestSupport
import Testing

@testable import DMA

@Suite("Permissions of lower trust levels")
struct VTLPermissionTests {
    static let address: UInt64 = 1 << 32
    static let firstPage: UInt64 = address >> 12
    let permissions = RecordingVTLPermissions()

    func client(_ manager: DMAManager) throws -> DMAClient {
        try manager.makeClient(DMAClientParameters(name: "nvme0", lowerVTLPolicy: .vtl0))
    }

    func manager() throws -> DMAManager {
        DMAManager(privatePool: try DMAManagerTests.memory([8, 8]), permissions: permissions)
    }

    @Test("a buffer is open as long as it is in use")
    func guarded() throws {
        // Given
        let client = try client(manager())
        // When
        let buffer = try client.allocate(2 * 4096, tag: "t")
        let open = permissions.open
        try client.release(buffer)
        // Then
        #expect(open == [Self.firstPage, Self.firstPage + 1])
        #expect(permissions.open == [])
    }

    @Test("what cannot be opened whole is closed again, and free")
    func rolledBack() throws {
        // Given
        let manager = try manager()
        let client = try client(manager)
        permissions.stuck = [Self.firstPage + 2: .all]
        // When
        let error = #expect(throws: DMAError.self) { try client.allocate(4 * 4096, tag: "t") }
        // Then
        #expect(
            error
                == .permissions(
                    client: "nvme0",
                    VTLPermissionError("page \(Self.firstPage + 2) is stuck", changedCount: 2)))
        #expect(permissions.open == [])
        #expect(manager.privatePool?.slots.freeCount == 16)
        #expect(manager.losses == [])
    }

    @Test("what cannot be closed is lost: reported, and given to nobody")
    func lost() throws {
        // Given
        let manager = try manager()
        let client = try client(manager)
        let buffer = try client.allocate(8 * 4096, tag: "ring")
        permissions.stuck = [Self.firstPage + 3: .none]
        // When
        let error = #expect(throws: DMAError.self) { try client.release(buffer) }
        // Then
        let reason = VTLPermissionError("page \(Self.firstPage + 3) is stuck", changedCount: 3)
        #expect(
            error == .lost(client: "nvme0", tag: "ring", byteCount: 8 * 4096, reason))
        #expect(manager.losses.map(\.pages) == [PageRun(first: 0, count: 8)])
        #expect(manager.privatePool?.slots.leakedCount == 8)
        permissions.stuck = [:]
        #expect(throws: DMAError.self) { try client.release(buffer) }
        let next = try client.allocate(8 * 4096, tag: "t")
        #expect(next.runs.map(\.pages) == [PageRun(first: 8, count: 8)])
        #expect(throws: DMAError.self) { try client.allocate(4096, tag: "t") }
    }

    @Test("a buffer in two pieces that opens only half leaves nothing open")
    func pieces() throws {
        // Given: the second range begins a GiB further.
        let manager = try manager()
        let client = try client(manager)
        permissions.stuck = [(Self.address + 1 << 30) >> 12: .all]
        // When
        let error = #expect(throws: DMAError.self) {
            try client.allocate(16 * 4096, contiguity: .preferred, tag: "t")
        }
        // Then
        #expect(error != nil)
        #expect(permissions.open == [])
        #expect(manager.privatePool?.slots.freeCount == 16)
    }

    @Test("memory that is claimed after a restore is opened again")
    func restored() throws {
        // Given
        let memory = try DMAManagerTests.memory([8])
        let saved: SavedDMAManager
        do {
            let manager = DMAManager(privatePool: memory, permissions: permissions)
            _ = try client(manager).allocate(2 * 4096, tag: "t")
            saved = manager.save()
        }
        let anew = RecordingVTLPermissions()
        let manager = DMAManager(
            privatePool: try DMAManagerTests.restored(memory, saved.privatePool),
            permissions: anew)
        // When
        let client = try client(manager)
        let buffers = try client.attachAll()
        // Then
        #expect(anew.open == [Self.firstPage, Self.firstPage + 1])
        try client.release(buffers[0])
        #expect(anew.open == [])
    }
}

/// What the kernel would have got: the hypervisor's answers are given out one after the other.
@safe
private enum FakeDevice {
    nonisolated(unsafe) static var requests: [UInt] = []
    nonisolated(unsafe) static var controls: [UInt64] = []
    nonisolated(unsafe) static var inputs: [[UInt8]] = []
    nonisolated(unsafe) static var bitmaps: [[UInt8]] = []
    nonisolated(unsafe) static var answers: [UInt64] = []
    nonisolated(unsafe) static var error: CInt = 0

    static func begin(_ answers: [UInt64], error: CInt = 0) {
        unsafe (requests, controls, inputs, bitmaps) = ([], [], [], [])
        unsafe (Self.answers, Self.error) = (answers, error)
    }

    static let ioctl: nv_ioctl_function = { _, request, argument in
        unsafe requests.append(request)
        let words = unsafe argument.assumingMemoryBound(to: UInt64.self)
        if request == 0x4010_B81E {
            // _IOW(0xB8, 0x1E, 16 bytes): {bytes, pointer}
            unsafe bitmaps.append(
                bytes(at: words[1], count: Int(words[0])))
            return 0
        }
        // _IOWR(0xB8, 0x1F, 48 bytes): {control, bytes, pointer, status, 0, 0}
        unsafe controls.append(words[0])
        unsafe inputs.append(bytes(at: words[2], count: Int(words[1])))
        if unsafe error != 0 { return unsafe -error }
        unsafe words[3] = unsafe answers.isEmpty ? 0 : unsafe answers.removeFirst()
        return 0
    }

    private static func bytes(at address: UInt64, count: Int) -> [UInt8] {
        unsafe [UInt8](
            UnsafeRawBufferPointer(
                start: UnsafeRawPointer(bitPattern: UInt(address)), count: count))
    }
}

@Suite("Hypercalls for permissions", .serialized)
struct HypercallPermissionTests {
    func device() throws -> HypercallPermissions {
        try unsafe HypercallPermissions(EventFD().fd.duplicate(), instead: FakeDevice.ioctl)
    }

    /// {status (16), elements done (bits 43:32)}
    static func answer(_ status: UInt64, done: Int) -> UInt64 { status | UInt64(done) << 32 }

    @Test("the device is allowed the one hypercall, and gets its input as the specification has it")
    func input() throws {
        // Given
        FakeDevice.begin([Self.answer(0, done: 2)])
        // When
        try device().setAccess(.all, firstPage: 0x12_3456, pageCount: 2)
        // Then
        let (requests, bitmaps) = unsafe (FakeDevice.requests, FakeDevice.bitmaps)
        let (controls, inputs) = unsafe (FakeDevice.controls, FakeDevice.inputs)
        #expect(requests == [0x4010_B81E, 0xC030_B81F])
        #expect(bitmaps == [[0x00, 0x10, 0, 0, 0, 0, 0, 0]])
        // Code 0x000C, two elements from the first on.
        #expect(controls == [0x0000_0002_0000_000C])
        #expect(
            inputs == [
                [
                    0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF,  // this partition
                    0x0F, 0, 0, 0,  // read, write, both kinds of execution
                    0, 0, 0, 0,  // the caller's level, reserved
                    0x56, 0x34, 0x12, 0, 0, 0, 0, 0,  // the pages
                    0x57, 0x34, 0x12, 0, 0, 0, 0, 0,
                ]
            ])
    }

    @Test("a call that runs out of time goes on where it was; many pages take several calls")
    func goesOn() throws {
        // Given
        FakeDevice.begin([
            Self.answer(0x78, done: 100), Self.answer(0x78, done: 100),
            Self.answer(0, done: 510), Self.answer(0, done: 90),
        ])
        // When
        try device().setAccess(.none, firstPage: 0, pageCount: 600)
        // Then
        let (controls, inputs) = unsafe (FakeDevice.controls, FakeDevice.inputs)
        #expect(
            controls == [
                0x0000_01FE_0000_000C, 0x0064_01FE_0000_000C, 0x0064_01FE_0000_000C,
                0x0000_005A_0000_000C,
            ])
        #expect(inputs.map(\.count) == [4096, 4096, 4096, 736])
        #expect(inputs[0][8] == 0)
    }

    @Test(
        "an answer that is no success, or makes no sense, is an error that tells what is done",
        arguments: [
            (answer(0x06, done: 3), 3), (answer(0, done: 3), 3), (answer(0, done: 11), 0),
        ])
    func refused(answer: UInt64, changed: Int) throws {
        // Given
        FakeDevice.begin([answer])
        let device = try device()
        // When
        let error = #expect(throws: VTLPermissionError.self) {
            try device.setAccess(.all, firstPage: 0, pageCount: 10)
        }
        // Then
        #expect(error?.changedCount == changed)
    }

    @Test("a hypervisor that gets nowhere is not asked for ever")
    func stuck() throws {
        // Given
        FakeDevice.begin([UInt64](repeating: Self.answer(0x78, done: 0), count: 1000))
        let device = try device()
        // When
        let error = #expect(throws: VTLPermissionError.self) {
            try device.setAccess(.all, firstPage: 0, pageCount: 1)
        }
        // Then
        let count = unsafe FakeDevice.controls.count
        #expect(error != nil)
        #expect(count == HypercallPermissions.maxIdleCalls)
    }

    @Test("a kernel that refuses is named")
    func kernelRefuses() throws {
        // Given
        FakeDevice.begin([], error: 1)
        let device = try device()
        // When
        let error = #expect(throws: VTLPermissionError.self) {
            try device.setAccess(.all, firstPage: 0, pageCount: 1)
        }
        // Then
        #expect(error?.reason.hasPrefix("MSHV_HVCALL") == true)
    }
}
