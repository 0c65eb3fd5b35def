// SPDX-License-Identifier: Apache-2.0
// A kernel for tests: a machine with one function behind an IOMMU, whose every answer can be
// changed, and which writes down what it was asked.

import CLinux
import Glibc
import Linux
import Synchronization

@testable import VFIO

/// Little-endian bytes.
func little(_ value: UInt64, _ count: Int) -> [UInt8] {
    (0..<count).map { UInt8(truncatingIfNeeded: value >> (8 * $0)) }
}

/// struct vfio_region_info: {argsz, flags, index, cap_offset, size, offset}, then capabilities.
func regionInfo(
    flags: UInt32, capabilities: UInt32 = 0, size: UInt64, offset: UInt64 = 0,
    rest: [UInt8] = []
) -> [UInt8] {
    little(UInt64(32 + rest.count), 4) + little(UInt64(flags), 4) + little(0, 4)
        + little(UInt64(capabilities), 4) + little(size, 8) + little(offset, 8) + rest
}

/// struct vfio_device_info {argsz, flags, regions, irqs} and struct vfio_irq_info {argsz, flags,
/// index, count}.
func fourWords(_ second: UInt32, _ third: UInt32, _ fourth: UInt32) -> [UInt8] {
    little(16, 4) + little(UInt64(second), 4) + little(UInt64(third), 4) + little(UInt64(fourth), 4)
}

/// One thing that the kernel was asked for; files by their names in /dev/vfio.
enum KernelCall: Equatable, CustomStringConvertible {
    case open(String)
    case request(String, VFIORequest)
    case ask(VFIOInformation)
    case read(at: Int64, Int)
    case write(at: Int64, [UInt8])
    case map(at: Int64, Int)
    case sysfs(String)

    var description: String {
        switch self {
        case .open(let path): "open \(path)"
        case .request(let file, let request): "\(file): \(request)"
        case .ask(let what): "ask \(what)"
        case .read(let at, let count): "read \(count) at \(at)"
        case .write(let at, let bytes): "write \(bytes) at \(at)"
        case .map(let at, let count): "map \(count) at \(at)"
        case .sysfs(let text): "sysfs \(text.debugDescription)"
        }
    }
}

/// The kernel. The device's file has BAR0 from 0 on and the configuration space at 1 MiB.
final class RecordingKernel: KernelCalls {
    static let address = "0000:01:00.0"
    static let configurationOffset: UInt64 = 1 << 20

    struct State: Sendable {
        var calls: [KernelCall] = []
        /// What exists beside the function: nodes.
        var paths: Set<String> = ["/dev/vfio/vfio", "/dev/vfio/7", "/dev/iommu"]
        var links = ["driver": "../../vfio-pci", "iommu_group": "../../iommu_groups/7"]
        var directories = ["vfio-dev": "vfio3"]
        /// Errors of opening paths and of sysfs files, by path.
        var errors: [String: CInt] = [:]
        /// Answers to requests instead of 0; a request that is not here succeeds.
        var answers: [VFIORequestKind: Int64] = [.hasExtension: 1, .groupFlags: 1]
        var information: [String: [UInt8]] = [:]
        /// An error for every question.
        var questionError: CInt = 0
        var ranges: [UInt64] = [0, 0xFEDF_FFFF, 0xFEF0_0000, 0x7F_FFFF_FFFF]
        /// An error for reads and writes of the device's file.
        var accessError: CInt = 0
        /// How many bytes a read or write does at most.
        var accessMax = Int.max
        var mapError: CInt = 0
        var names: [CInt: String] = [:]
    }

    let state = Mutex(State())
    /// Unique, so that descriptors that are left open can be found.
    let tag: String
    let deviceFile: OwnedFD

    init() throws {
        tag = "kernel-\(MonotonicClock.nowNanoseconds)"
        deviceFile = try MemFD.create(name: tag, byteCount: (1 << 20) + 4096, seals: [])
        state.withLock {
            $0.information = [
                "\(VFIOInformation.device)": fourWords(2, 9, 5),
                "\(VFIOInformation.region(0))": regionInfo(flags: 7, size: 0x4000),
                "\(VFIOInformation.region(7))": regionInfo(
                    flags: 3, size: 256, offset: Self.configurationOffset),
                "\(VFIOInformation.interrupt(2))": fourWords(9, 2, 65),
            ]
        }
        // PCI: command with memory space on; a capabilities list with MSI-X, its table in BAR0.
        configure(4, [0x02, 0x00, 0x10, 0x00])
        configure(0x34, [0x40])
        configure(0x40, [0x11, 0x00, 0x40, 0x00, 0x00, 0x20, 0x00, 0x00])
    }

    /// The calls since the last time.
    func takeCalls() -> [KernelCall] {
        state.withLock {
            let calls = $0.calls
            $0.calls = []
            return calls
        }
    }

    func change(_ body: (inout State) -> Void) { state.withLock { body(&$0) } }

    /// Puts bytes into the configuration space, or into BAR0 with `poke`.
    func configure(_ offset: Int, _ bytes: [UInt8]) {
        _ = unsafe nv_pwrite(
            deviceFile.raw, bytes, bytes.count, Int64(Self.configurationOffset) + Int64(offset))
    }

    func poke(_ offset: Int64, _ bytes: [UInt8]) {
        _ = unsafe nv_pwrite(deviceFile.raw, bytes, bytes.count, offset)
    }

    func peek(_ offset: Int64, _ count: Int) -> [UInt8] {
        var bytes = [UInt8](repeating: 0, count: count)
        _ = unsafe nv_pread(deviceFile.raw, &bytes, count, offset)
        return bytes
    }

    /// Descriptors of this kernel that are open in the process, beside the double's own.
    var leftOpen: Int {
        let names = (try? Files.list("/proc/self/fd", limit: 65536)) ?? []
        let own = names.count {
            Files.target(ofLink: "/proc/self/fd/\($0)")?.contains(tag) == true
        }
        return own - 1
    }

    /// A new descriptor of the device's file under a name.
    func descriptor(_ name: String) throws(SystemCallError) -> OwnedFD {
        let fd = try deviceFile.duplicate()
        let raw = fd.raw
        state.withLock { $0.names[raw] = name }
        return fd
    }

    // MARK: KernelCalls

    private func note(_ call: KernelCall) { state.withLock { $0.calls.append(call) } }

    func request(_ fd: CInt, _ request: VFIORequest) -> Int64 {
        let answer: Int64 = state.withLock {
            $0.calls.append(.request($0.names[fd] ?? "?", request))
            return $0.answers[VFIORequestKind(request)] ?? request.usualAnswer
        }
        guard answer == 0, case .deviceFD = request else { return answer }
        guard let device = try? descriptor("device") else { return -Int64(EMFILE) }
        return Int64(device.release())
    }

    func ask(_ fd: CInt, _ what: VFIOInformation, _ bytes: inout [UInt8]) -> CInt {
        let (answer, error) = state.withLock {
            $0.calls.append(.ask(what))
            return ($0.information["\(what)"] ?? [], $0.questionError)
        }
        for (index, byte) in answer.prefix(bytes.count).enumerated() { bytes[index] = byte }
        return -error
    }

    func addressRanges(_ fd: CInt, space: UInt32, _ pairs: inout [UInt64]) -> CInt {
        let ranges = state.withLock { $0.ranges }
        for (index, value) in ranges.prefix(pairs.count).enumerated() { pairs[index] = value }
        return CInt(ranges.count / 2)
    }

    func read(_ fd: CInt, _ bytes: inout [UInt8], at position: Int64) -> Int {
        note(.read(at: position, bytes.count))
        let (error, most) = state.withLock { ($0.accessError, $0.accessMax) }
        guard error == 0 else { return -Int(error) }
        return unsafe Int(nv_pread(fd, &bytes, min(bytes.count, most), position))
    }

    func write(_ fd: CInt, _ bytes: [UInt8], at position: Int64) -> Int {
        note(.write(at: position, bytes))
        let (error, most) = state.withLock { ($0.accessError, $0.accessMax) }
        guard error == 0 else { return -Int(error) }
        return unsafe Int(nv_pwrite(fd, bytes, min(bytes.count, most), position))
    }

    func map(
        _ fd: borrowing OwnedFD, at position: Int64, byteCount: Int
    ) throws(SystemCallError) -> Mapping {
        note(.map(at: position, byteCount))
        let error = state.withLock { $0.mapError }
        guard error == 0 else { throw SystemCallError("mmap", errno: error) }
        return try Mapping(fd, offset: position, byteCount: byteCount)
    }

    func open(_ path: String) throws(SystemCallError) -> OwnedFD {
        note(.open(path))
        let error = state.withLock { $0.errors[path] ?? 0 }
        guard error == 0 else { throw SystemCallError("open \(path)", errno: error) }
        let names = ["/dev/vfio/vfio": "container", "/dev/iommu": "iommufd"]
        let isDevice = path.hasPrefix("/dev/vfio/devices/")
        return try descriptor(names[path] ?? (isDevice ? "device" : "group"))
    }

    func write(_ path: String, _ text: String) throws(SystemCallError) {
        note(.sysfs(text))
        let name = path.split(separator: "/").last.map(String.init) ?? ""
        let error = state.withLock { $0.errors[name] ?? 0 }
        guard error == 0 else { throw SystemCallError("write \(path)", errno: error) }
    }

    private let directory = "/sys/bus/pci/devices/\(RecordingKernel.address)"

    func exists(_ path: String) -> Bool {
        path == directory || state.withLock { $0.paths.contains(path) }
    }

    func firstName(in directory: String) -> String? {
        state.withLock { $0.directories[String(directory.dropFirst(self.directory.count + 1))] }
    }

    func target(ofLink path: String) -> String? {
        state.withLock { $0.links[String(path.dropFirst(self.directory.count + 1))] }
    }
}

/// What a request is, without its values.
enum VFIORequestKind: Hashable, Sendable {
    case version, hasExtension, setIOMMU, map, unmap, unmapAll, groupFlags, setContainer, deviceFD
    case bindIOMMUFD, attach, setInterrupts, reset, hotResetInformation, allocateSpace, mapSpace,
        unmapSpace

    init(_ request: VFIORequest) {
        self =
            switch request {
            case .version: .version
            case .hasExtension: .hasExtension
            case .setIOMMU: .setIOMMU
            case .map: .map
            case .unmap: .unmap
            case .unmapAll: .unmapAll
            case .groupFlags: .groupFlags
            case .setContainer: .setContainer
            case .deviceFD: .deviceFD
            case .bindIOMMUFD: .bindIOMMUFD
            case .attach: .attach
            case .setInterrupts: .setInterrupts
            case .reset: .reset
            case .hotResetInformation: .hotResetInformation
            case .allocateSpace: .allocateSpace
            case .mapSpace: .mapSpace
            case .unmapSpace: .unmapSpace
            }
    }
}

extension VFIORequest {
    /// The answer of a kernel that does what it is asked.
    var usualAnswer: Int64 {
        switch self {
        case .unmap(_, let byteCount), .unmapSpace(_, _, let byteCount): Int64(clamping: byteCount)
        case .allocateSpace: 5
        default: 0
        }
    }
}
