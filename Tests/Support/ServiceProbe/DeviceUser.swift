// SPDX-License-Identifier: Apache-2.0
// A process that uses a vfio-user device until it is killed: register reads and doorbells by
// message, from two threads.

import Linux
import VFIO

extension SwiftProbe {
    /// `vfio-user GENERATION [PATH]`: connects to PATH, or goes on with what came as `vfio-user`
    /// and `vfio-user-log`, after the descriptor of the test. Sends both to the test, and a byte
    /// with each hundredth register read.
    static func useDevice(_ arguments: [String]) throws -> Int32 {
        let test = OwnedFD(adopting: 3)
        let generation = UInt64(arguments[2]) ?? 0
        let device: VFIOUserDevice
        if arguments.count > 3 {
            device = try VFIOUserDevice(path: arguments[3], name: "d", generation: generation)
            try device.enableMemorySpace()
            try device.enableBusMaster()
        } else {
            device = try VFIOUserDevice(
                adopting: OwnedFD(adopting: 4), log: OwnedFD(adopting: 5), name: "d",
                generation: generation)
            try device.checkAdoptable()
        }
        let capabilities = try device.readRegister(offset: 0, byteCount: 8)
        try say(test, little(capabilities), device.kept.map(\.raw))
        let doorbells = Doorbells(device)
        try BackgroundThread.start { doorbells.writeForEver() }
        while true {
            for _ in 0..<100 {
                let again = try device.readRegister(offset: 0, byteCount: 8)
                guard again == capabilities else { return 2 }
            }
            try say(test, [1], [])
        }
    }

    private static func little(_ value: UInt64) -> [UInt8] {
        (0..<8).map { UInt8(truncatingIfNeeded: value >> (8 * $0)) }
    }

    private static func say(_ fd: borrowing OwnedFD, _ bytes: [UInt8], _ fds: [CInt]) throws {
        _ = try unsafe bytes.withUnsafeBytes { try unsafe UnixSocket.send(fd, $0, fds: fds) }
    }
}

/// The doorbells of a device, which any thread may write.
private final class Doorbells: @unchecked Sendable {
    private let device: VFIOUserDevice

    init(_ device: VFIOUserDevice) { self.device = device }

    func writeForEver() {
        while (try? device.writeDoorbell(offset: 0x1000, value: 0)) != nil {}
    }
}
