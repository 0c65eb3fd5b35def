// SPDX-License-Identifier: Apache-2.0
// Taking a controller down: NVM Express Base Specification 2.0, 3.6.1 "Memory-based Controller
// Shutdown (PCIe)".

internal import CMemory
internal import DMA
internal import Linux
public import NVMeSpec
public import VFIO

/// The bound on the reset in `disable`: a device that needs more is left to the closing of its
/// carrier.
private let disableMilliseconds: UInt64 = 2_000

extension NVMeController {
    /// The bound on shutdown processing when the controller does not say (RTD3E = 0), and the most
    /// it may ask for.
    private static let shutdownMilliseconds: UInt32 = 5_000
    private static let maxShutdownMilliseconds: UInt32 = 60_000

    /// Takes the controller down in order: flush, delete the queues, CC.SHN, wait for CSTS.SHST.
    ///
    /// Nothing may be in flight. Every step is tried even when one before it failed; the first
    /// error is thrown at the end. A device that is gone ends it at once.
    public func stop() throws(DriverError) {
        var first: DriverError?
        func attempt(_ step: () throws(DriverError) -> Void) {
            if first?.isGone == true { return }
            do throws(DriverError) {
                try step()
            } catch { first = first ?? error }
        }
        attempt { () throws(DriverError) in try self.flushAll() }
        // Without an admin queue the queues end with the controller.
        for index in 0..<(adminIsClosed ? 0 : queueCount) {
            attempt { () throws(DriverError) in
                _ = try self.execute(
                    .deleteIOSubmissionQueue(queueID: UInt16(index + 1)), "Delete I/O SQ")
            }
            attempt { () throws(DriverError) in
                _ = try self.execute(
                    .deleteIOCompletionQueue(queueID: UInt16(index + 1)), "Delete I/O CQ")
            }
        }
        attempt { () throws(DriverError) in try self.notifyShutdown() }
        disable()
        if let first { throw first }
    }

    /// Flush every namespace of a controller with a volatile write cache, through I/O queue 1.
    private func flushAll() throws(DriverError) {
        guard identify.hasVolatileWriteCache, queueCount > 0 else { return }
        var first: DriverError?
        for info in namespaces.values where info.refusal == nil {
            do throws(DriverError) {
                try flush(info.namespaceID)
            } catch { first = first ?? error }
        }
        if let first { throw first }
    }

    private func flush(_ namespaceID: UInt32) throws(DriverError) {
        let request = IORequest(
            operation: IOOperation.flush, namespaceID: namespaceID, session: 0, token: 0)
        let status = try execute(request, on: 0)
        guard status.isSuccess else {
            throw .command(operation: "Flush of namespace \(namespaceID)", status: status)
        }
    }

    /// Submits one request on an idle engine and waits for its end, bounded by the admin timeout.
    public func execute(_ request: IORequest, on index: Int) throws(DriverError) -> Status {
        let engine = unsafe engine(index)
        guard unsafe engine.pointee.submit(request) == .accepted else {
            throw .exhausted("queue \(index + 1) takes no request")
        }
        unsafe engine.pointee.ring()
        try writePendingDoorbells(index)
        let deadline =
            MonotonicClock.nowNanoseconds + UInt64(options.adminTimeoutMilliseconds) * 1_000_000
        var completion = IOCompletion()
        var look = Look()
        while true {
            let count = unsafe engine.pointee.reap(into: &completion, capacity: 1)
            unsafe engine.pointee.retire()
            try writePendingDoorbells(index)
            if count == 1 { return Status(rawValue: completion.status) }
            if unsafe engine.pointee.fault != .none {
                throw .queueFault(
                    queue: UInt16(index + 1), fault: unsafe engine.pointee.fault,
                    entry: unsafe engine.pointee.faultyEntry)
            }
            try look.ifDue(device, "I/O command \(request.operation)")
            guard MonotonicClock.nowNanoseconds < deadline else {
                throw .commandTimedOut(
                    operation: "I/O command \(request.operation)",
                    milliseconds: options.adminTimeoutMilliseconds)
            }
            do throws(VFIOError) {
                try device.wait(interrupt: interrupt(index), milliseconds: 10)
            } catch { throw .device(error) }
        }
    }

    private func notifyShutdown() throws(DriverError) {
        var configuration = ControllerConfiguration(rawValue: try read32(RegisterOffset.cc, "CC"))
        configuration.shn = .normal
        try write(RegisterOffset.cc, 4, UInt64(configuration.rawValue))
        // RTD3E is in microseconds.
        let asked = identify.rtd3e / 1000
        let bound = min(max(asked, Self.shutdownMilliseconds), Self.maxShutdownMilliseconds)
        let deadline = MonotonicClock.nowNanoseconds + UInt64(bound) * 1_000_000
        while true {
            let status = ControllerStatus(rawValue: try read32(RegisterOffset.csts, "CSTS"))
            if status.shst == .complete { return }
            guard MonotonicClock.nowNanoseconds < deadline else {
                throw .notReady(
                    waitingFor: false, milliseconds: bound, status: status.rawValue)
            }
            do throws(VFIOError) {
                try device.wait(interrupt: -1, milliseconds: 1)
            } catch { throw .device(error) }
        }
    }

    /// CC.EN to 0 so that the device stops touching memory. Best effort and bounded; returns
    /// whether the device confirmed.
    @discardableResult
    public func disable() -> Bool { device.disableController() }
}

extension DeviceBacking {
    /// CC.EN of its controller to 0 so that it stops touching memory, whoever brought it up. Best
    /// effort and bounded; returns whether the device confirmed.
    public func disableController() -> Bool {
        guard let raw = register(RegisterOffset.cc) else { return false }
        var configuration = ControllerConfiguration(rawValue: raw)
        configuration.en = false
        configuration.shn = .none
        let value = UInt64(configuration.rawValue)
        guard
            (try? writeRegister(offset: Int(RegisterOffset.cc), byteCount: 4, value: value)) != nil
        else { return false }
        let deadline = MonotonicClock.nowNanoseconds + disableMilliseconds * 1_000_000
        while MonotonicClock.nowNanoseconds < deadline {
            guard let raw = register(RegisterOffset.csts) else { return false }
            if !ControllerStatus(rawValue: raw).rdy { return true }
            guard (try? wait(interrupt: -1, milliseconds: 1)) != nil else { return false }
        }
        return false
    }

    /// A register; nil when nothing answers.
    private func register(_ offset: UInt64) -> UInt32? {
        guard let value = try? readRegister(offset: Int(offset), byteCount: 4),
            value != UInt64(UInt32.max)
        else { return nil }
        return UInt32(truncatingIfNeeded: value)
    }
}

extension NVMeController {
    /// Resets the function of a controller that does not confirm its own reset, where the carrier
    /// can. Afterwards nothing of it touches memory. Returns whether it was done.
    public func resetFunction() -> Bool {
        do throws(VFIOError) {
            try device.resetDevice()
            try device.enableMemorySpace()
            functionResets += 1
            return true
        } catch { return false }
    }
}

/// What the processor must be able to do.
public enum Processor {
    /// Whether there is an instruction for CRC-32C, which the log needs (x86-64-v2, ARMv8.1).
    public static var hasCRC32C: Bool { nv_has_crc32c() != 0 }
}
