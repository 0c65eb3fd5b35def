// SPDX-License-Identifier: Apache-2.0
// VTL permissions through the hypervisor: HvCallModifyVtlProtectionMask (Hypervisor Top-Level
// Functional Specification, 15.13 and 3 "Hypercall interface") by way of /dev/mshv_hvcall.
//
// Written after the public descriptions of both; tried against a recording double of the ioctl
// only, for want of a machine with trust levels.

internal import CLinux
internal import Linux

/// Asks the hypervisor.
@safe
public final class HypercallPermissions: VTLPermissions {
    /// The device of the kernel's VTL driver; opening it needs CAP_SYS_ADMIN.
    public static let devicePath = "/dev/mshv_hvcall"

    /// HvCallModifyVtlProtectionMask.
    static let code: UInt64 = 0x000C
    /// HV_PARTITION_ID_SELF.
    static let thisPartition = UInt64.max
    /// HV_INPUT_VTL: that of the caller. It is the higher level that restricts the lower ones.
    static let callersVTL: UInt8 = 0
    /// HV_MAP_GPA_READABLE | _WRITABLE | _KERNEL_EXECUTABLE | _USER_EXECUTABLE.
    static let allAccess: UInt32 = 0xF
    /// HV_STATUS_TIMEOUT: some elements are done, and the call is to be made again for the others.
    static let statusTimeout: UInt64 = 0x78
    /// Page numbers of one call: its input is a page, with a header of 16 bytes.
    static let maxPagesPerCall = (4096 - 16) / 8
    /// Calls in a row that may get nowhere before the hypervisor is taken for stuck.
    static let maxIdleCalls = 16

    private let device: OwnedFD
    private let instead: nv_ioctl_function?

    /// Opens the device and allows it this one hypercall.
    public convenience init() throws(VTLPermissionError) {
        let fd: OwnedFD
        do throws(SystemCallError) {
            fd = try OwnedFD.open(Self.devicePath, flags: 2)
        } catch {
            throw VTLPermissionError(
                "\(error); this is for a kernel in VTL 2, and needs CAP_SYS_ADMIN")
        }
        try unsafe self.init(fd, instead: nil)
    }

    /// Uses an open device; `instead` is called where the kernel would be.
    init(_ device: consuming OwnedFD, instead: nv_ioctl_function?) throws(VTLPermissionError) {
        self.device = device
        unsafe self.instead = instead
        var bitmap: [UInt64] = [1 << Self.code]
        let answer = unsafe nv_mshv_allow(
            self.device.raw, &bitmap, MemoryLayout<UInt64>.size, instead)
        guard answer >= 0 else {
            throw VTLPermissionError("\(SystemCallError("MSHV_HVCALL_SETUP", errno: -answer))")
        }
    }

    /// Changes pages, some hundred with each hypercall.
    public func setAccess(
        _ access: VTLAccess, firstPage: UInt64, pageCount: Int
    ) throws(VTLPermissionError) {
        var done = 0
        while done < pageCount {
            let count = min(pageCount - done, Self.maxPagesPerCall)
            do throws(VTLPermissionError) {
                try change(access, firstPage &+ UInt64(done), count)
            } catch {
                throw VTLPermissionError(error.reason, changedCount: done + error.changedCount)
            }
            done += count
        }
    }

    private func change(
        _ access: VTLAccess, _ first: UInt64, _ count: Int
    ) throws(VTLPermissionError) {
        let input = Self.input(access, first, count)
        var done = 0
        var idle = 0
        while done < count {
            let control = Self.code | UInt64(count) << 32 | UInt64(done) << 48
            var status: UInt64 = 0
            let answer = unsafe nv_mshv_hypercall(
                device.raw, control, input, input.count, &status, instead)
            guard answer >= 0 else {
                throw VTLPermissionError(
                    "\(SystemCallError("MSHV_HVCALL", errno: -answer))", changedCount: done)
            }
            // Bits 15:0 the status, 43:32 the elements that are done, those before included.
            let result = status & 0xFFFF
            let completed = Int(status >> 32 & 0xFFF)
            guard completed <= count else {
                throw VTLPermissionError(
                    "the hypervisor says that \(completed) of \(count) pages are done",
                    changedCount: done)
            }
            idle = completed > done ? 0 : idle + 1
            done = max(done, completed)
            if result == Self.statusTimeout, idle < Self.maxIdleCalls { continue }
            guard result == 0, done == count else {
                throw VTLPermissionError(
                    "HvCallModifyVtlProtectionMask of page \(first &+ UInt64(done)) answered "
                        + "0x\(String(result, radix: 16))", changedCount: done)
            }
        }
    }

    /// {partition id, map flags, target VTL, 3 bytes reserved, page numbers}
    static func input(_ access: VTLAccess, _ first: UInt64, _ count: Int) -> [UInt8] {
        var bytes: [UInt8] = []
        func append(_ value: some FixedWidthInteger) {
            unsafe withUnsafeBytes(of: value.littleEndian) { unsafe bytes.append(contentsOf: $0) }
        }
        append(thisPartition)
        append(access == .all ? allAccess : 0)
        append(callersVTL)
        bytes += [0, 0, 0]
        for page in 0..<UInt64(count) { append(first &+ page) }
        return bytes
    }
}
