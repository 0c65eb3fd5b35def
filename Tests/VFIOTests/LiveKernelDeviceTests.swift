// SPDX-License-Identifier: Apache-2.0
// A device of the kernel's VFIO that works on while its worker is replaced: what must not be done
// to it, and how it is told that it is another one than the predecessor left.

import Glibc
import Linux
import Testing

@testable import VFIO

@Suite("A live device of the kernel's VFIO")
struct LiveKernelDeviceTests {
    private let kernel: RecordingKernel

    /// A machine whose function has memory space and bus master on.
    init() throws {
        kernel = try RecordingKernel()
        kernel.configure(4, [0x06, 0x04])
    }

    private func device(
        _ interface: VFIOInterface = .type1, origin: DeviceOrigin = .live
    ) throws -> KernelVFIODevice {
        let isIOMMUFD = interface == .iommufd
        let memory = try kernel.descriptor(isIOMMUFD ? "iommufd" : "container")
        let device = try kernel.descriptor("device")
        let group = isIOMMUFD ? nil : try kernel.descriptor("group")
        return try KernelVFIODevice(
            VFIODescriptors(
                interface: interface, memory: memory, group: group, device: device,
                addressSpace: isIOMMUFD ? 5 : 0),
            events: DeviceEvents(), name: "d", origin: origin, kernel: kernel)
    }

    /// What changes a device, or its mappings or interrupts.
    private var changes: [KernelCall] {
        kernel.takeCalls().filter {
            switch $0 {
            case .write, .request, .sysfs: true
            default: false
            }
        }
    }

    private func window(_ memory: borrowing Mapping) -> DMAWindow {
        unsafe DMAWindow(
            iova: 0x10000, byteCount: 4096, base: memory.base, access: .deviceReadsAndWrites)
    }

    @Test(
        "adopting it writes no register, maps nothing and arms no interrupt",
        arguments: [VFIOInterface.type1, .iommufd, .noiommu])
    func untouched(_ interface: VFIOInterface) throws {
        let device = try device(interface)
        let memory = try Mapping(anonymous: 4096)
        try device.adoptWindow(window(memory))
        try device.checkAdoptable()
        #expect(changes == [])
        #expect(device.vectorCount == 65)
        #expect(unsafe device.mappedRegisters(offset: 0x1000, byteCount: 8) != nil)
    }

    @Test(
        "a function that may not touch memory, or whose registers are off, was reset",
        arguments: [UInt8(0x00), 0x02, 0x04])
    func wasReset(_ command: UInt8) throws {
        kernel.configure(4, [command, 0x04])
        let device = try device()
        let error = #expect(throws: VFIOError.self) { try device.checkAdoptable() }
        #expect("\(try #require(error))".contains("command register is 0x4"))
        #expect(changes == [])
    }

    @Test("a function whose configuration space reads as all ones is gone")
    func isGone() throws {
        let device = try device()
        kernel.configure(4, [0xFF, 0xFF])
        let error = #expect(throws: VFIOError.self) { try device.checkAdoptable() }
        #expect("\(try #require(error))".contains("gone"))
        #expect(device.isGone)
    }

    @Test(
        "what was opened anew, or is to be brought up, is not adopted",
        arguments: [DeviceOrigin.fresh, .inherited])
    func notLive(_ origin: DeviceOrigin) throws {
        let device = try device(origin: origin)
        let memory = try Mapping(anonymous: 4096)
        let window = window(memory)
        #expect(throws: VFIOError.self) { try device.checkAdoptable() }
        #expect(throws: VFIOError.self) { try device.adoptWindow(window) }
    }

    @Test("after an adoption in vain it is brought up as any inherited device is")
    func inVain() throws {
        let device = try device()
        _ = changes
        try device.beginAgain()
        let command = Int64(RecordingKernel.configurationOffset) + 4
        #expect(
            changes == [
                .request("device", .setInterrupts(index: 3, eventFDs: [device.kept[3].raw])),
                .request("device", .setInterrupts(index: 4, eventFDs: [device.kept[4].raw])),
                .write(at: command, [0x02, 0x04]),
            ])
        try device.forgetMappings()
        #expect(changes == [.request("container", .unmapAll)])
        #expect(throws: VFIOError.self) { try device.checkAdoptable() }
    }

    @Test("memory that was half given is taken away whether the device has it or not")
    func halfMapped() throws {
        let (group, node) = (try device(), try device(.iommufd))
        kernel.change { $0.answers[.unmap] = 4096 }
        try group.unmapIfMapped(iova: 0x10000, byteCount: 4096)
        kernel.change { $0.answers = [.unmap: 0, .unmapSpace: -Int64(ENOENT)] }
        try group.unmapIfMapped(iova: 0x10000, byteCount: 4096)
        try node.unmapIfMapped(iova: 0x10000, byteCount: 4096)
        // Anything else is an error, as is nothing where something must have been.
        #expect(throws: VFIOError.self) { try group.unmap(iova: 0x10000, byteCount: 4096) }
        kernel.change { $0.answers = [.unmap: 8192, .unmapSpace: -Int64(EIO)] }
        #expect(throws: VFIOError.self) { try group.unmapIfMapped(iova: 0x10000, byteCount: 4096) }
        #expect(throws: VFIOError.self) { try node.unmapIfMapped(iova: 0x10000, byteCount: 4096) }
    }

    // MARK: Before it is closed

    @Test(
        "behind an IOMMU it loses its memory when it is closed",
        arguments: [VFIOInterface.type1, .iommufd])
    func lostMemory(_ interface: VFIOInterface) throws {
        #expect(try device(interface).reasonLostByClosing?.contains("IOMMU=noiommu") == true)
    }

    @Test("what the kernel does at the last close is told before it happens")
    func closing() throws {
        let device = try device(.noiommu)
        kernel.change { $0.answers[.hotResetInformation] = -Int64(ENODEV) }
        #expect(device.reasonLostByClosing == nil)
        // The bus can be reset.
        kernel.change { $0.answers[.hotResetInformation] = 0 }
        #expect(device.reasonLostByClosing?.contains("bus") == true)
        // The function can: flag 0 of the device.
        kernel.change {
            $0.answers[.hotResetInformation] = -Int64(ENODEV)
            $0.information["\(VFIOInformation.device)"] = fourWords(3, 9, 5)
        }
        #expect(device.reasonLostByClosing?.contains("reset_method") == true)
    }

    @Test("its kind is the first word of its configuration space")
    func identity() throws {
        kernel.configure(0, [0x14, 0x14, 0x11, 0xB1])
        let device = try device()
        #expect(device.pciID == PCIDeviceID(vendor: 0x1414, device: 0xB111))
        #expect(device.pciID?.description == "1414:b111")
        kernel.configure(0, [0xFF, 0xFF, 0xFF, 0xFF])
        #expect(device.pciID == nil)
    }
}
