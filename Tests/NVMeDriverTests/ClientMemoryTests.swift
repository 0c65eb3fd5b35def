// SPDX-License-Identifier: Apache-2.0
// Memory of clients: what the device is shown of it, what is copied, and what happens when it goes
// away.

import CLinux
import CMemory
import Linux
import NVMeSpec
import NullDevice
import TestSupport
import Testing
import VFIO

@testable import NVMeDriver

/// A null device that writes down what memory it is shown, with or without an IOMMU.
private final class RecordingDevice: ForwardingDevice {
    let target: any DeviceBacking
    let usesPhysicalAddresses: Bool
    private(set) var windows: [DMAWindow] = []
    private(set) var offsets: [UInt64] = []
    private(set) var unmapped: [UInt64] = []

    init(usesPhysicalAddresses: Bool = false) throws {
        target = try NullController(name: "recording")
        self.usesPhysicalAddresses = usesPhysicalAddresses
    }

    func map(_ window: DMAWindow, fd: borrowing OwnedFD, offset: UInt64) throws(VFIOError) {
        windows.append(window)
        offsets.append(offset)
        try target.map(window, fd: fd, offset: offset)
    }
    func unmap(iova: UInt64, byteCount: UInt64) throws(VFIOError) {
        unmapped.append(iova)
        try target.unmap(iova: iova, byteCount: byteCount)
    }
}

/// A controller on a recording device; started where that is possible without huge pages.
@safe
private final class MemoryRig {
    let device: RecordingDevice
    let controller: NVMeController

    init(usesPhysicalAddresses: Bool = false) throws {
        device = try RecordingDevice(usesPhysicalAddresses: usesPhysicalAddresses)
        var options = ControllerOptions(deviceName: "test")
        options.queueDepth = 16
        options.bouncePoolByteCount = 1 << 20
        controller = try NVMeController(
            device: device, options: options,
            state: try StateArea.create(layout: options.stateLayout))
        if !usesPhysicalAddresses { try controller.start() }
    }

    func register(_ fd: borrowing OwnedFD, _ stretch: ClientMemoryStretch) throws -> UInt32 {
        try controller.registerMemory(fd, stretch, session: 1)
    }

    func address(_ region: UInt32, _ offset: UInt64, _ count: UInt64 = 4096) -> UInt64 {
        controller.regions.view.deviceAddress(
            region: region, offset: offset, byteCount: count, session: 1)
    }

    func isReachable(_ region: UInt32, _ offset: UInt64, session: UInt32 = 1) -> Bool {
        unsafe controller.localBytes(
            region: region, offset: offset, byteCount: 4096, session: session) != nil
    }

    /// An unaligned request, which this process copies.
    func run(_ operation: UInt8, _ region: UInt32, offset: UInt64) throws -> Status {
        var request = IORequest(operation: operation, namespaceID: 1, session: 1, token: 1)
        let namespace = try requireValue(controller.namespaces[1])
        request.blockShift = namespace.blockShift
        request.blockCount = 8192 >> UInt32(namespace.blockShift)
        request.maxBlocksPerCommand = namespace.maxTransferBlocks
        request.region = region
        request.offset = offset
        return try controller.execute(request, on: 0)
    }

    var memoryFaults: UInt64 { unsafe controller.engine(0).pointee.memoryFaults }
    func hasFaulted(_ region: UInt32) -> Bool { controller.hasFaulted(region: region) }
}

@Suite("Memory of clients")
struct ClientMemoryTests {
    @Test("behind an IOMMU the device is shown a stretch once, and it is taken back")
    func translated() throws {
        // Given
        let rig = try MemoryRig()
        let fd = try MemFD.create(name: "client", byteCount: 1 << 20)
        let before = rig.device.windows.count
        var stretch = ClientMemoryStretch(byteCount: 65536)
        stretch.offset = 131_072
        stretch.isReadOnly = true
        // When
        let region = try rig.register(fd, stretch)
        // Then
        let window = try requireValue(rig.device.windows.last)
        #expect(rig.device.windows.count == before + 1)
        #expect(rig.device.offsets.last == 131_072)
        #expect(window.byteCount == 65536)
        #expect(rig.address(region, 4096) == window.iova + 4096)
        #expect(rig.address(region, 65536 - 4095) == 0)
        #expect(!rig.controller.bouncesClientMemory)
        // When
        try rig.controller.unregisterMemory(region)
        // Then
        #expect(rig.device.unmapped.last == window.iova)
        #expect(!rig.isReachable(region, 0))
    }

    @Test("without an IOMMU a memory file is never shown to the device, and has no address")
    func bounced() throws {
        // Given
        let rig = try MemoryRig(usesPhysicalAddresses: true)
        let fd = try MemFD.create(name: "client", byteCount: 65536)
        // When
        let region = try rig.register(fd, ClientMemoryStretch(byteCount: 65536))
        // Then
        #expect(rig.controller.bouncesClientMemory)
        #expect(rig.device.windows.isEmpty)
        for offset in [0, 1, 4096, 61440, 65535, 65536, .max] as [UInt64] {
            #expect(rig.address(region, offset, 1) == 0)
        }
        #expect(rig.isReachable(region, 61440))
        #expect(!rig.isReachable(region, 61441))
        #expect(!rig.isReachable(region, 0, session: 2))
        // When
        try rig.controller.unregisterMemory(region)
        // Then
        #expect(!rig.isReachable(region, 0))
        #expect(rig.device.unmapped.isEmpty)
    }

    @Test("guest memory has its offsets for addresses, also where two sessions share it")
    func guestMemory() throws {
        // Given: a node that can be mapped stands in for the hypervisor's
        let rig = try MemoryRig(usesPhysicalAddresses: true)
        let node = try OwnedFD.open("/dev/zero", flags: 2)
        var stretch = ClientMemoryStretch(byteCount: 1 << 20)
        stretch.offset = 0x10_0000
        stretch.isPhysical = true
        // When
        let region = try rig.register(node, stretch)
        let other = try rig.controller.registerMemory(node, stretch, session: 2)
        // Then
        #expect(rig.device.windows.isEmpty)
        #expect(rig.address(region, 0) == 0x10_0000)
        #expect(rig.address(region, 8192) == 0x10_2000)
        #expect(rig.address(region, (1 << 20) - 4095) == 0)
        #expect(rig.address(other, 0) == 0)
        #expect(rig.isReachable(other, 0, session: 2))
    }

    @Test(
        "physical addresses are refused behind an IOMMU, as are lengths and places that cannot be")
    func refused() throws {
        // Given
        let rig = try MemoryRig()
        let fd = try MemFD.create(name: "client", byteCount: 1 << 20)
        func stretch(
            _ count: UInt64, offset: UInt64 = 0, page: UInt64 = 4096, physical: Bool = false
        ) -> ClientMemoryStretch {
            var stretch = ClientMemoryStretch(byteCount: count)
            stretch.offset = offset
            stretch.pageByteCount = page
            stretch.isPhysical = physical
            return stretch
        }
        let bad = [
            stretch(4096, physical: true), stretch(0), stretch(4095), stretch(.max),
            stretch(4096, offset: 1), stretch(4096, offset: .max - 4095), stretch(4096, page: 0),
            stretch(4096, page: 8191), stretch(4096, page: 2 << 20), stretch(1 << 47),
        ]
        // Then
        for stretch in bad {
            #expect(throws: DriverError.self, "\(stretch)") {
                _ = try rig.controller.registerMemory(fd, stretch, session: 1)
            }
        }
    }

    @Test(
        "huge pages are mapped and addressed by their size",
        .enabled(if: HugePages.free >= 2, "needs two free huge pages"))
    func hugePages() throws {
        // Given
        let rig = try MemoryRig()
        let fd = try MemFD.create(
            name: "client", byteCount: 2 * HugePages.byteCount, hugePages: true)
        var stretch = ClientMemoryStretch(byteCount: UInt64(2 * HugePages.byteCount))
        stretch.pageByteCount = UInt64(HugePages.byteCount)
        // When
        let region = try rig.register(fd, stretch)
        // Then
        #expect(rig.address(region, 0) % UInt64(HugePages.byteCount) == 0)
        #expect(try rig.run(IOOperation.write, region, offset: 1).isSuccess)
        #expect(!rig.hasFaulted(region))
    }

    @Test(
        "memory that goes away under a copy is survived, in both directions, and told of its region",
        arguments: [IOOperation.write, IOOperation.read, IOOperation.compare])
    func goneUnderCopy(operation: UInt8) throws {
        // Given: a file that can shrink, which only a test may register
        #expect(nv_install_sigbus_handler() == 0)
        let rig = try MemoryRig()
        let fd = try MemFD.create(name: "client", byteCount: 65536, seals: [])
        let good = try MemFD.create(name: "other", byteCount: 65536)
        let region = try rig.register(fd, ClientMemoryStretch(byteCount: 65536))
        let other = try rig.register(good, ClientMemoryStretch(byteCount: 65536))
        #expect(try rig.run(operation, region, offset: 1).isSuccess)
        #expect(try rig.run(operation, other, offset: 1).isSuccess)
        let before = rig.memoryFaults
        // When
        #expect(nv_ftruncate(fd.raw, 0) == 0)
        let status = try rig.run(operation, region, offset: 4097)
        // Then
        #expect(status.isSuccess)
        #expect(rig.memoryFaults > before)
        #expect(rig.hasFaulted(region))
        #expect(!rig.hasFaulted(other))
        #expect(try rig.run(operation, other, offset: 1).isSuccess)
        // When: its place in the table is used again
        try rig.controller.unregisterMemory(region)
        let next = try rig.register(good, ClientMemoryStretch(byteCount: 65536))
        // Then
        #expect(next == region)
        #expect(!rig.hasFaulted(next))
    }

    @Test("every thread that copies survives")
    func threads() throws {
        // Given: 16 pages that are gone
        #expect(nv_install_sigbus_handler() == 0)
        let fd = try MemFD.create(name: "gone", byteCount: 65536, seals: [])
        let mapping = try Mapping(fd, byteCount: 65536)
        let number = unsafe nv_guard_add(mapping.base, 65536, 4096)
        #expect(nv_ftruncate(fd.raw, 0) == 0)
        // When: half of the threads read and half write, all of them all pages
        let base = UInt(bitPattern: unsafe mapping.base)
        let threads = TestThreads(count: 4) { index in
            for page in 0..<16 as Range<UInt> {
                guard
                    let address = unsafe UnsafeMutableRawPointer(bitPattern: base + page * 4096)
                else { return }
                if index % 2 == 0 {
                    _ = unsafe nv_load64(address)
                } else {
                    unsafe nv_store64(address, 1)
                }
            }
        }
        threads.join()
        // Then
        #expect(nv_guard_faults(number) >= 16)
        nv_guard_remove(number)
    }
}
