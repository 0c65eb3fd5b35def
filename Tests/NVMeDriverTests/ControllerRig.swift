// SPDX-License-Identifier: Apache-2.0
// A driver on an emulator process, with a client's memory.

import CMemory
import Glibc
import Linux
import NVMeSpec
import TestSupport
import VFIO

@testable import NVMeDriver

/// A controller that was brought up on an emulator process.
@safe
final class ControllerRig {
    static let regionByteCount = 32 << 20
    let emulator: EmulatorProcess
    let controller: NVMeController
    private let region: UInt32
    private let memory: Mapping

    init(
        _ arguments: [String], queues: Int = 1, adminTimeoutMilliseconds: Int = 10_000
    ) throws {
        emulator = try EmulatorProcess(arguments)
        var options = ControllerOptions(deviceName: "test")
        options.queueCount = queues
        options.bouncePoolByteCount = 1 << 20
        options.adminTimeoutMilliseconds = adminTimeoutMilliseconds
        controller = try NVMeController(
            device: try VFIOUserDevice(path: emulator.socket, name: "test"), options: options,
            state: try StateArea.create(layout: options.stateLayout))
        try controller.start()
        let fd = try MemFD.create(name: "client", byteCount: Self.regionByteCount)
        memory = try Mapping(fd, byteCount: Self.regionByteCount)
        region = try controller.registerMemory(
            fd, byteCount: Self.regionByteCount, session: 1, readOnly: false)
    }

    func fill(at offset: Int, byteCount: Int, seed: UInt64) {
        var random = SplitMix64(state: seed)
        for position in stride(from: offset, to: offset + byteCount, by: 8) {
            unsafe memory.base.storeBytes(
                of: random.next(), toByteOffset: position, as: UInt64.self)
        }
    }

    func equal(_ first: Int, _ second: Int, byteCount: Int) -> Bool {
        unsafe memcmp(memory.base + first, memory.base + second, byteCount) == 0
    }

    func isZero(_ offset: Int, byteCount: Int) -> Bool {
        (0..<byteCount).allSatisfy { unsafe nv_load8(memory.base + offset + $0) == 0 }
    }

    func status(
        _ operation: UInt8, _ namespace: NamespaceInfo, lba: UInt64, byteCount: Int, offset: Int,
        queue: Int = 0
    ) throws -> Status {
        var request = IORequest(
            operation: operation, namespaceID: namespace.namespaceID, session: 1, token: 1)
        request.lba = lba
        request.blockShift = namespace.blockShift
        request.blockCount = UInt32(byteCount >> Int(namespace.blockShift))
        request.maxBlocksPerCommand = namespace.maxTransferBlocks
        request.region = region
        request.offset = UInt64(offset)
        return try controller.execute(request, on: queue)
    }

    func run(
        _ operation: UInt8, _ namespace: NamespaceInfo, lba: UInt64, byteCount: Int, offset: Int,
        queue: Int = 0
    ) throws {
        let status = try status(
            operation, namespace, lba: lba, byteCount: byteCount, offset: offset, queue: queue)
        guard status.isSuccess else { throw DriverError.command(operation: "I/O", status: status) }
    }
}
