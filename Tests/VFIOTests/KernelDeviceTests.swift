// SPDX-License-Identifier: Apache-2.0
// A device of the kernel's VFIO against a kernel that can lie, fail, and take the device away.

import CLinux
import Glibc
import Linux
import Testing

@testable import VFIO

/// What is wrong with an answer of the kernel.
struct HostileAnswer: Sendable, CustomTestStringConvertible {
    let about: VFIOInformation
    let bytes: [UInt8]
    let what: String
    var testDescription: String { what }
}

@Suite("A device of the kernel's VFIO")
struct KernelDeviceTests {
    private let kernel: RecordingKernel

    init() throws { kernel = try RecordingKernel() }

    private func device(
        _ interface: VFIOInterface = .type1, origin: DeviceOrigin = .fresh
    ) throws -> KernelVFIODevice {
        let memory = try kernel.descriptor(interface == .iommufd ? "iommufd" : "container")
        let device = try kernel.descriptor("device")
        let group = interface == .iommufd ? nil : try kernel.descriptor("group")
        return try KernelVFIODevice(
            VFIODescriptors(
                interface: interface, memory: memory, group: group, device: device,
                addressSpace: interface == .iommufd ? 5 : 0),
            events: DeviceEvents(), name: "d", origin: origin, kernel: kernel)
    }

    private var requests: [VFIORequest] {
        kernel.takeCalls().compactMap { if case .request(_, let one) = $0 { one } else { nil } }
    }

    private static let command = Int64(RecordingKernel.configurationOffset) + 4

    // MARK: Taking over

    @Test("a new device is asked what it is, its registers are mapped, its events are connected")
    func fresh() throws {
        let device = try device()
        let calls = kernel.takeCalls()
        #expect(
            calls.prefix(8) == [
                .ask(.device), .ask(.region(0)), .ask(.region(7)),
                .read(at: Int64(RecordingKernel.configurationOffset), 256), .ask(.interrupt(2)),
                // The MSI-X table is at 0x2000.
                .map(at: 0, 0x2000), .ask(.translation),
                .request("device", .setInterrupts(index: 3, eventFDs: [device.kept[3].raw])),
            ])
        #expect(
            calls.dropFirst(8) == [
                .request("device", .setInterrupts(index: 4, eventFDs: [device.kept[4].raw]))
            ])
        #expect(device.vectorCount == 65)
    }

    @Test("an inherited device is kept from touching memory before anything else is done to it")
    func inherited() throws {
        kernel.configure(4, [0x06, 0x04])
        _ = try device(origin: .inherited)
        let writes = kernel.takeCalls().filter {
            switch $0 {
            case .write, .map, .request: true
            default: false
            }
        }
        #expect(writes.first == .write(at: Self.command, [0x02, 0x04]))
    }

    @Test("the descriptors that a successor needs have their names, in each mode")
    func kept() throws {
        let group = ["vfio-device", "vfio-container", "vfio-group", "vfio-err", "vfio-req"]
        #expect(try device(.type1).kept.map(\.name) == group)
        #expect(try device(.noiommu).kept.map(\.name) == group)
        #expect(
            try device(.iommufd).kept.map(\.name)
                == ["vfio-device", "iommufd-5", "vfio-err", "vfio-req"])
    }

    // MARK: Answers that cannot be right

    private static func sparse(_ pairs: [(UInt64, UInt64)], next: UInt32 = 0) -> [UInt8] {
        little(1, 2) + little(1, 2) + little(UInt64(next), 4) + little(UInt64(pairs.count), 4)
            + little(0, 4) + pairs.flatMap { little($0.0, 8) + little($0.1, 8) }
    }

    @Test(
        "an answer that cannot be right is an error, and nothing stays open",
        arguments: [
            .init(about: .device, bytes: [], what: "an empty answer"),
            .init(about: .device, bytes: fourWords(1, 9, 5), what: "no PCI device"),
            .init(about: .device, bytes: fourWords(2, 7, 5), what: "no configuration space"),
            .init(about: .device, bytes: fourWords(2, 9, 2), what: "no MSI-X index"),
            .init(about: .region(0), bytes: regionInfo(flags: 7, size: 0), what: "no BAR0"),
            .init(
                about: .region(0), bytes: regionInfo(flags: 7, size: 0x1007), what: "a tiny BAR0"),
            .init(
                about: .region(7), bytes: regionInfo(flags: 3, size: 0),
                what: "an empty configuration space"),
            .init(
                about: .region(7), bytes: regionInfo(flags: 3, size: 255, offset: 1 << 20),
                what: "a cut configuration space"),
            .init(
                about: .region(7), bytes: regionInfo(flags: 3, size: .max, offset: .max),
                what: "a configuration space beyond the end of all files"),
            .init(
                about: .region(7), bytes: regionInfo(flags: 3, size: 256, offset: 1 << 63),
                what: "a configuration space at a negative place"),
            .init(
                about: .region(0), bytes: little(1 << 30, 4) + little(0, 28),
                what: "an answer that is said to be a gigabyte long"),
        ] as [HostileAnswer])
    func refused(_ answer: HostileAnswer) {
        kernel.change { $0.information["\(answer.about)"] = answer.bytes }
        #expect(throws: VFIOError.self) { try device() }
        #expect(kernel.leftOpen == 0)
    }

    @Test(
        "areas of BAR0 that cannot be right are not mapped; its registers go through the file",
        arguments: [
            .init(
                about: .region(0), bytes: regionInfo(flags: 3, size: 0x4000), what: "may not be"),
            .init(
                about: .region(0),
                bytes: regionInfo(
                    flags: 0xF, capabilities: 32, size: 0x4000,
                    rest: sparse([(.max - 4096, 8192)])),
                what: "an area that overflows"),
            .init(
                about: .region(0),
                bytes: regionInfo(
                    flags: 0xF, capabilities: 32, size: 0x4000,
                    rest: sparse([(0x4000, 0x1000), (0, 0), (0, 0x4001)])),
                what: "areas outside of the BAR, and one of no bytes"),
            .init(
                about: .region(0),
                bytes: regionInfo(
                    flags: 0xF, capabilities: 32, size: 0x4000, rest: sparse([], next: 32)),
                what: "no areas, in a chain that loops"),
        ] as [HostileAnswer])
    func unmapped(_ answer: HostileAnswer) throws {
        kernel.change { $0.information["\(answer.about)"] = answer.bytes }
        kernel.poke(0x1C, [0x78, 0x56, 0x34, 0x12])
        let device = try device()
        #expect(!kernel.takeCalls().contains { if case .map = $0 { true } else { false } })
        #expect(try device.readRegister(offset: 0x1C, byteCount: 4) == 0x1234_5678)
        #expect(unsafe device.mappedRegisters(offset: 0x1000, byteCount: 4) == nil)
        #expect(kernel.takeCalls() == [.read(at: 0x1C, 4)])
    }

    @Test("the table of MSI-X stays out of what is mapped, with a capability that allows it, too")
    func vectorTable() throws {
        // MSI-X mappable (id 3) alone: the kernel would allow all of it.
        kernel.change {
            $0.information["\(VFIOInformation.region(0))"] = regionInfo(
                flags: 0xF, capabilities: 32, size: 0x4000,
                rest: little(3, 2) + little(1, 2) + little(0, 4))
        }
        let device = try device()
        #expect(unsafe device.mappedRegisters(offset: 0x1000, byteCount: 4) != nil)
        #expect(unsafe device.mappedRegisters(offset: 0x2000, byteCount: 4) == nil)
    }

    @Test("absurd numbers of vectors are bounded, and vectors without eventfds are none")
    func vectors() throws {
        let key = "\(VFIOInformation.interrupt(2))"
        kernel.change { $0.information[key] = fourWords(9, 2, .max) }
        #expect(try device().vectorCount == 2048)
        kernel.change { $0.information[key] = fourWords(8, 2, 65) }
        #expect(try device().vectorCount == 0)
        kernel.change { $0.information[key] = [] }
        #expect(try device().vectorCount == 0)
    }

    @Test("an answer that grows is asked for again, as long as it needs to be, and not for ever")
    func growing() throws {
        let areas = Self.sparse([(0, 0x1000), (0x3000, 0x1000)])
        kernel.change {
            $0.information["\(VFIOInformation.region(0))"] = regionInfo(
                flags: 0xF, capabilities: 32, size: 0x4000, rest: areas)
        }
        let device = try device()
        #expect(kernel.takeCalls().count { $0 == .ask(.region(0)) } == 2)
        // The second area is behind the table of MSI-X, and no part of it.
        #expect(unsafe device.mappedRegisters(offset: 0x3000, byteCount: 4) != nil)
        #expect(unsafe device.mappedRegisters(offset: 0xFFD, byteCount: 4) == nil)
    }

    @Test("ranges that the IOMMU translates come in each mode from where it has them")
    func ranges() throws {
        #expect(try device(.type1).addressRanges == [0...((1 << 39) - 1)])
        #expect(
            try device(.iommufd).addressRanges == [
                0...0xFEDF_FFFF, 0xFEF0_0000...0x7F_FFFF_FFFF,
            ])
        kernel.change { $0.ranges = [5, 5, 9, 1] }
        #expect(try device(.iommufd).addressRanges == [])
    }

    // MARK: Registers

    @Test("registers of eight bytes are two of four, the lower first")
    func halves() throws {
        kernel.change { $0.mapError = ENODEV }
        kernel.poke(0, little(0x1122_3344_5566_7788, 8))
        let device = try device()
        _ = kernel.takeCalls()
        #expect(try device.readRegister(offset: 0, byteCount: 8) == 0x1122_3344_5566_7788)
        try device.writeRegister(offset: 0x28, byteCount: 8, value: 0x8877_6655_4433_2211)
        #expect(
            kernel.takeCalls() == [
                .read(at: 0, 4), .read(at: 4, 4), .write(at: 0x28, [0x11, 0x22, 0x33, 0x44]),
                .write(at: 0x2C, [0x55, 0x66, 0x77, 0x88]),
            ])
    }

    @Test("registers that are mapped cost no call")
    func mapped() throws {
        let device = try device()
        _ = kernel.takeCalls()
        try device.writeDoorbell(offset: 0x1000, value: 0x0102_0304)
        kernel.poke(0x1C, [1, 0, 0, 0])
        #expect(try device.readRegister(offset: 0x1C, byteCount: 4) == 1)
        #expect(kernel.peek(0x1000, 4) == [4, 3, 2, 1])
        #expect(kernel.takeCalls().isEmpty)
    }

    @Test(
        "offsets outside of BAR0 are refused",
        arguments: [-4, 0x3FFD, 0x4000, Int.max - 3, Int.min])
    func outside(_ offset: Int) throws {
        let device = try device()
        #expect(throws: VFIOError.self) { try device.readRegister(offset: offset, byteCount: 4) }
    }

    @Test("a device that the kernel says is gone stays gone, and is asked no more")
    func gone() throws {
        kernel.change { $0.mapError = ENODEV }
        let device = try device()
        kernel.change { $0.accessError = ENODEV }
        let error = try #require(
            #expect(throws: VFIOError.self) { try device.readRegister(offset: 0, byteCount: 4) })
        kernel.change { $0.accessError = 0 }
        _ = kernel.takeCalls()
        guard case .gone = error else {
            Issue.record("\(error)")
            return
        }
        #expect(throws: error) { try device.readRegister(offset: 0, byteCount: 4) }
        #expect(throws: error) { try device.writeDoorbell(offset: 0x1000, value: 1) }
        #expect(throws: error) { try device.resetDevice() }
        #expect(throws: error) { try device.handleEvents() }
        #expect(throws: error) { try device.beginAgain() }
        #expect(!device.isPresent && device.isGone)
        #expect(kernel.takeCalls().isEmpty)
    }

    @Test("an error that says nothing of removal, or half an answer, does not make it gone")
    func otherErrors() throws {
        kernel.change { $0.mapError = EINVAL }
        let device = try device()
        kernel.change { $0.accessError = EIO }
        #expect(throws: VFIOError.system(SystemCallError("read of the device", errno: EIO))) {
            try device.readRegister(offset: 0, byteCount: 4)
        }
        kernel.change {
            $0.accessError = 0
            $0.accessMax = 2
        }
        #expect(throws: VFIOError.self) { try device.readRegister(offset: 0, byteCount: 4) }
        #expect(!device.isGone)
    }

    @Test("a configuration space of all ones is a device that is not there")
    func allOnes() throws {
        let device = try device()
        kernel.configure(0, [UInt8](repeating: 0xFF, count: 64))
        #expect(throws: VFIOError.gone("the configuration space reads as all ones")) {
            try device.enableBusMaster()
        }
        #expect(!device.isPresent)
    }

    @Test("registers that vanish under a mapping (SIGBUS) are a device that is gone")
    func vanished() throws {
        #expect(nv_install_sigbus_handler() == 0)
        let device = try device()
        #expect(ftruncate(kernel.deviceFile.raw, 0) == 0)
        #expect(throws: VFIOError.gone("BAR0 is not there any more (SIGBUS)")) {
            try device.readRegister(offset: 0x1C, byteCount: 4)
        }
        #expect(device.isGone)
    }

    @Test("memory space and bus mastering are bits of the command register; the others stay")
    func commandRegister() throws {
        kernel.configure(4, [0x40, 0x01])
        let device = try device()
        try device.enableMemorySpace()
        #expect(kernel.peek(Self.command, 2) == [0x42, 0x05])
        try device.enableBusMaster()
        #expect(kernel.peek(Self.command, 2) == [0x46, 0x05])
        try device.beginAgain()
        #expect(kernel.peek(Self.command, 2) == [0x42, 0x05])
    }

    // MARK: Memory

    private func window(_ access: DMAAccess) throws -> (MemoryOfTest, DMAWindow) {
        let memory = try MemoryOfTest()
        return (
            memory,
            unsafe DMAWindow(
                iova: 0x10_0000, byteCount: 8192, base: memory.mapping.base, access: access)
        )
    }

    @Test("memory is mapped where it is asked for, and only readable where the device only reads")
    func mapping() throws {
        let (memory, window) = try window(.deviceReads)
        let base = UInt(bitPattern: unsafe memory.mapping.base)
        let device = try device(.type1)
        let other = try self.device(.iommufd)
        _ = kernel.takeCalls()
        try device.map(window, fd: memory.fd, offset: 0)
        try other.map(window, fd: memory.fd, offset: 0)
        try device.unmap(iova: 0x10_0000, byteCount: 8192)
        try other.unmap(iova: 0x10_0000, byteCount: 8192)
        #expect(
            kernel.takeCalls() == [
                .request(
                    "container",
                    .map(base: base, iova: 0x10_0000, byteCount: 8192, deviceWrites: false)),
                .request(
                    "iommufd",
                    .mapSpace(5, base: base, iova: 0x10_0000, byteCount: 8192, deviceWrites: false)
                ),
                .request("container", .unmap(iova: 0x10_0000, byteCount: 8192)),
                .request("iommufd", .unmapSpace(5, iova: 0x10_0000, byteCount: 8192)),
            ])
    }

    @Test("without an IOMMU nothing is mapped for the device, and nothing is taken away")
    func noTranslation() throws {
        let (memory, window) = try window(.deviceReadsAndWrites)
        let device = try device(.noiommu, origin: .inherited)
        _ = kernel.takeCalls()
        #expect(device.usesPhysicalAddresses)
        #expect(throws: VFIOError.self) { try device.map(window, fd: memory.fd, offset: 0) }
        try device.unmap(iova: 0, byteCount: 4096)
        try device.forgetMappings()
        #expect(kernel.takeCalls().isEmpty)
    }

    @Test("an unmapping that the kernel did half is an error: the device may still reach the rest")
    func half() throws {
        let device = try device()
        kernel.change { $0.answers[.unmap] = 4096 }
        #expect(throws: VFIOError.self) { try device.unmap(iova: 0, byteCount: 8192) }
        kernel.change { $0.answers[.unmap] = -Int64(EINVAL) }
        #expect(
            throws: VFIOError.system(SystemCallError("unmapping 8192 bytes", errno: EINVAL))
        ) { try device.unmap(iova: 0, byteCount: 8192) }
    }

    @Test("what a predecessor mapped is taken away as a whole; of a new device there is nothing")
    func forgetting() throws {
        let fresh = try device()
        _ = requests
        try fresh.forgetMappings()
        #expect(requests.isEmpty)

        let inherited = try device(origin: .inherited)
        let other = try device(.iommufd, origin: .inherited)
        kernel.change { $0.answers[.unmapSpace] = -Int64(ENOENT) }
        _ = requests
        try inherited.forgetMappings()
        try other.forgetMappings()
        #expect(requests == [.unmapAll, .unmapSpace(5, iova: 0, byteCount: .max)])

        kernel.change { $0.answers = [.unmapAll: -Int64(EIO), .unmapSpace: -Int64(EIO)] }
        #expect(throws: VFIOError.self) { try inherited.forgetMappings() }
        #expect(throws: VFIOError.self) { try other.forgetMappings() }
    }

    // MARK: Interrupts, reset, events

    @Test("vectors of a predecessor are disconnected before new ones are connected")
    func interrupts() throws {
        let device = try device(origin: .inherited)
        let events = (0..<3).map { _ in nv_eventfd() }
        defer { for raw in events { close(raw) } }
        _ = requests
        try device.connectInterrupts(events)
        #expect(
            requests == [
                .setInterrupts(index: 2, eventFDs: []), .setInterrupts(index: 2, eventFDs: events),
            ])
        #expect(throws: VFIOError.self) {
            try device.connectInterrupts([CInt](repeating: 0, count: 66))
        }
        #expect(requests.isEmpty)
        kernel.change { $0.answers[.setInterrupts] = -Int64(ENOSPC) }
        #expect(throws: VFIOError.self) { try device.connectInterrupts(events) }
    }

    @Test("a reset is the kernel's; when it has none for the function, that is the error")
    func reset() throws {
        let device = try device()
        _ = requests
        try device.resetDevice()
        #expect(requests == [.reset])
        kernel.change { $0.answers[.reset] = -Int64(EINVAL) }
        #expect(throws: VFIOError.system(SystemCallError("VFIO_DEVICE_RESET", errno: EINVAL))) {
            try device.resetDevice()
        }
    }

    @Test("an error that the function reports (AER) is told once; it is not gone by that")
    func reportedError() throws {
        let device = try device()
        #expect(try device.handleEvents() == [])
        try signal(device, "vfio-err")
        #expect(throws: VFIOError.deviceError("the PCI function reported an error (AER)")) {
            try device.handleEvents()
        }
        #expect(try device.handleEvents() == [])
        #expect(!device.isGone)
    }

    @Test("a request to give the device back stays for whoever looks next")
    func removal() throws {
        let device = try device()
        try signal(device, "vfio-req")
        #expect(try device.handleEvents() == [.removalRequested])
        #expect(try device.handleEvents() == [.removalRequested])
        #expect(device.eventDescriptors.map(\.isNeverRead) == [false, true])
    }

    private func signal(_ device: KernelVFIODevice, _ name: String) throws {
        let raw = try #require(device.kept.first { $0.name == name }?.raw)
        try EventFD(adopting: OwnedFD(adopting: nv_dup_cloexec(raw))).signal()
    }
}

/// Two pages.
private final class MemoryOfTest {
    let fd: OwnedFD
    let mapping: Mapping

    init() throws {
        fd = try MemFD.create(name: "memory", byteCount: 8192)
        mapping = try Mapping(fd, byteCount: 8192)
    }
}
