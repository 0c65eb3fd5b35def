// SPDX-License-Identifier: Apache-2.0
// A device in the same thread that completes everything at once: what is left is the driver's own
// work.

import CMemory
import Glibc
import Linux
import NVMeSpec
import VFIO

/// The smallest controller that the driver can be brought up with. Its I/O queue is served by
/// `complete()`.
@safe
final class LoopbackDevice: DeviceBacking {
    let name = "loopback"
    let vectorCount = 2
    let eventDescriptors: [EventDescriptor] = []

    private static let entries: UInt16 = 255
    private let registers: UnsafeMutableRawPointer
    private var windows: [DMAWindow] = []
    private var enabled = false
    private var adminAddresses: [Int: UInt64] = [:]
    private var admin = Ring()
    private var data = Ring()

    /// A queue pair as the device sees it.
    private struct Ring {
        var submission: UInt64 = 0
        var completion: UInt64 = 0
        var entries: UInt32 = 64
        var head: UInt32 = 0
        var tail: UInt32 = 0
        var phase: UInt64 = 1
    }

    init() throws(SystemCallError) {
        unsafe registers = try Mapping(anonymous: 16384).leak()
    }

    func readRegister(offset: Int, byteCount: Int) throws(VFIOError) -> UInt64 {
        switch UInt64(offset) {
        case RegisterOffset.cap:
            // MQES, CQR, TO 500 ms, CSS NVM
            UInt64(Self.entries) | 1 << 16 | 1 << 24 | 1 << 37
        case RegisterOffset.vs: 0x0001_0200
        case RegisterOffset.cc: enabled ? 0x0046_0001 : 0
        case RegisterOffset.csts: enabled ? 1 : 0
        default: 0
        }
    }

    func writeRegister(offset: Int, byteCount: Int, value: UInt64) throws(VFIOError) {
        switch UInt64(offset) {
        case RegisterOffset.cc: enabled = value & 1 != 0
        case RegisterOffset.asq: admin.submission = value
        case RegisterOffset.acq: admin.completion = value
        default: break
        }
    }

    func mappedRegisters(offset: Int, byteCount: Int) -> UnsafeMutableRawPointer? {
        offset >= 0x1008 ? unsafe registers + offset : nil
    }

    func writeDoorbell(offset: Int, value: UInt32) throws(VFIOError) {
        guard offset == 0x1000 else { return }
        while admin.head != value {
            guard let entry = unsafe locate(admin.submission + UInt64(admin.head) * 64) else {
                return
            }
            let command = unsafe entry.loadUnaligned(as: SubmissionEntry.self)
            admin.head = (admin.head + 1) % admin.entries
            // An event request stays.
            if command.adminOpcode != .asynchronousEventRequest {
                unsafe Self.post(
                    &admin, locate(admin.completion), command, answer(command), queueID: 0)
            }
        }
    }

    func enableMemorySpace() throws(VFIOError) {}
    func enableBusMaster() throws(VFIOError) {}
    func map(_ window: DMAWindow, fd: borrowing OwnedFD, offset: UInt64) throws(VFIOError) {
        windows.append(window)
    }
    func unmap(iova: UInt64, byteCount: UInt64) throws(VFIOError) {
        windows.removeAll { $0.iova == iova }
    }
    func connectInterrupts(_ eventFDs: [CInt]) throws(VFIOError) {}
    func resetDevice() throws(VFIOError) { enabled = false }
    func handleEvents() throws(VFIOError) -> [DeviceNotice] { [] }
    func wait(interrupt: CInt, milliseconds: Int) throws(VFIOError) {}

    /// Completes every command up to the doorbell. Not inlined, so that its instructions can be
    /// told from the driver's.
    @inline(never)
    func complete() {
        let tail = unsafe nv_load32(registers + 0x1008)
        guard let submission = unsafe locate(data.submission),
            let completion = unsafe locate(data.completion)
        else { return }
        while data.head != tail {
            let id = unsafe UInt64(nv_load16(submission + Int(data.head) * 64 + 2))
            data.head = (data.head + 1) & (data.entries - 1)
            let entry = unsafe completion + Int(data.tail) * 16
            unsafe nv_store64(entry, 0)
            unsafe nv_store_release64(
                entry + 8, UInt64(data.head) | 1 << 16 | id << 32 | data.phase << 48)
            data.tail = (data.tail + 1) & (data.entries - 1)
            if data.tail == 0 { data.phase ^= 1 }
        }
    }

    private func answer(_ command: SubmissionEntry) -> UInt32 {
        switch command.adminOpcode {
        case .identify: identify(command)
        case .createIOSubmissionQueue:
            data.submission = command.prp1
            data.entries = command.queueEntryCount
        case .createIOCompletionQueue: data.completion = command.prp1
        default: break
        }
        return 0
    }

    private func identify(_ command: SubmissionEntry) {
        var page = [UInt8](repeating: 0, count: 4096)
        switch command.identifyCNS {
        case .controller:
            var controller = IdentifyController()
            controller.sqes = 0x66
            controller.cqes = 0x44
            controller.nn = 1
            controller.mn = "loopback"
            page = controller.encode()
        case .namespace:
            var namespace = IdentifyNamespace()
            namespace.nsze = 1 << 20
            namespace.lbaf[0] = LBAFormat(lbads: 9)
            page = namespace.encode()
        case .activeNamespaceList: page = NamespaceList([1], after: command.namespaceID).encode()
        default: break
        }
        guard let target = unsafe locate(command.prp1) else { return }
        unsafe page.withUnsafeBytes { bytes in
            if let source = bytes.baseAddress { unsafe memcpy(target, source, bytes.count) }
        }
    }

    private static func post(
        _ ring: inout Ring, _ base: UnsafeMutableRawPointer?, _ command: SubmissionEntry,
        _ result: UInt32, queueID: UInt64
    ) {
        guard let base = unsafe base else { return }
        let entry = unsafe base + Int(ring.tail) * 16
        unsafe nv_store64(entry, UInt64(result))
        unsafe nv_store64(
            entry + 8,
            UInt64(ring.head) | queueID << 16 | UInt64(command.commandID) << 32 | ring.phase << 48)
        ring.tail = (ring.tail + 1) % ring.entries
        if ring.tail == 0 { ring.phase ^= 1 }
    }

    private func locate(_ address: UInt64) -> UnsafeMutableRawPointer? {
        for window in windows
        where address >= window.iova && address - window.iova < window.byteCount {
            return unsafe UnsafeMutableRawPointer(
                bitPattern: window.base + UInt(address - window.iova))
        }
        return nil
    }
}
