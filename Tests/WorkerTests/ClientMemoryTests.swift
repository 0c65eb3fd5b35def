// SPDX-License-Identifier: Apache-2.0
// What a client may register: the rules without a kernel, and memory that goes away under a real
// worker.

import CLinux
import Linux
import NVMeDriver
import TestSupport
import Testing
import Wire

@testable import Worker

private func stretch(_ byteCount: UInt64, offset: UInt64 = 0) -> ClientMemoryStretch {
    var stretch = ClientMemoryStretch(byteCount: byteCount)
    stretch.offset = offset
    return stretch
}

@Suite("What may be registered")
struct ClientMemoryRulesTests {
    private static let guest = GuestMemory(
        node: 0x0A01, ranges: [0x0...0xBFFF_FFFF, 0x1_0000_0000...0x1_FFFF_FFFF])
    private static let direct = ClientMemoryRules(
        guestMemory: guest, usesPhysicalAddresses: false)
    private static let physical = ClientMemoryRules(
        guestMemory: guest, usesPhysicalAddresses: true)
    private static let sealed: Seals = [.shrink, .grow]

    private static func file(
        _ seals: Seals = sealed, page: UInt64 = 4096, byteCount: UInt64 = 1 << 30
    ) -> OfferedMemory {
        OfferedMemory(kind: .memoryFile(seals, pageByteCount: page), byteCount: byteCount)
    }

    /// The field of the refusal; nil: it was accepted.
    private static func field(
        _ rules: ClientMemoryRules, _ offered: OfferedMemory, _ asked: ClientMemoryStretch
    ) -> String? {
        do throws(WireError) {
            _ = try rules.accept(offered, asked)
            return nil
        } catch { return error.field ?? "" }
    }

    @Test("a sealed memory file keeps what was asked, with its page size", arguments: [12, 21, 30])
    func memoryFile(shift: UInt64) throws {
        var asked = stretch(1 << 30)
        asked.isReadOnly = true
        let accepted = try Self.direct.accept(Self.file(page: 1 << shift), asked)
        asked.pageByteCount = 1 << shift
        #expect(accepted == asked)
        #expect(!accepted.isPhysical)
        #expect(Self.field(Self.physical, Self.file(page: 1 << shift), asked) == nil)
    }

    @Test("a file that could change under the device is refused, with the field")
    func badFiles() {
        let fd = "register_memory.fd"
        let length = "register_memory.byte_count"
        let offset = "register_memory.file_offset"
        var readOnly = Self.file()
        readOnly.isReadWrite = false
        let other = OfferedMemory(kind: .other)
        let page = stretch(4096)
        #expect(Self.field(Self.direct, Self.file([]), page) == fd)
        #expect(Self.field(Self.direct, Self.file(.shrink), page) == fd)
        #expect(Self.field(Self.direct, Self.file(.grow), page) == fd)
        #expect(Self.field(Self.direct, Self.file([.shrink, .grow, .write]), page) == fd)
        #expect(Self.field(Self.direct, Self.file([.shrink, .grow, .futureWrite]), page) == fd)
        #expect(Self.field(Self.direct, readOnly, page) == fd)
        #expect(Self.field(Self.direct, other, page) == fd)
        #expect(Self.field(Self.direct, Self.file(), stretch(0)) == length)
        #expect(Self.field(Self.direct, Self.file(), stretch(4095)) == length)
        #expect(Self.field(Self.direct, Self.file(), stretch((1 << 30) + 4096)) == length)
        #expect(Self.field(Self.direct, Self.file(page: 2 << 20), stretch(4096)) == length)
        #expect(Self.field(Self.direct, Self.file(byteCount: 4096), stretch(8192)) == length)
        #expect(Self.field(Self.direct, Self.file(), stretch(4096, offset: 1)) == offset)
        #expect(Self.field(Self.direct, Self.file(), stretch(4096, offset: 1 << 30)) == length)
        #expect(Self.field(Self.direct, Self.file(), stretch(4096, offset: .max - 4095)) == length)
    }

    @Test("guest memory is the configured node, within one range, without an IOMMU")
    func guestMemory() throws {
        let node = OfferedMemory(kind: .node(0x0A01))
        let high = try Self.physical.accept(node, stretch(1 << 32, offset: 1 << 32))
        #expect(high.isPhysical)
        #expect(high.offset == 1 << 32)
        #expect(Self.field(Self.physical, node, stretch(0xC000_0000)) == nil)
        let fd = "register_memory.fd"
        let offset = "register_memory.file_offset"
        let page = stretch(4096)
        var readOnly = node
        readOnly.isReadWrite = false
        let none = ClientMemoryRules(guestMemory: nil, usesPhysicalAddresses: true)
        #expect(Self.field(Self.direct, node, page) == fd)
        #expect(Self.field(none, node, page) == fd)
        #expect(Self.field(Self.physical, OfferedMemory(kind: .node(0x0105)), page) == fd)
        #expect(Self.field(Self.physical, readOnly, page) == fd)
        #expect(Self.field(Self.physical, node, stretch(0xC000_1000)) == offset)
        #expect(Self.field(Self.physical, node, stretch(4096, offset: 0xC000_0000)) == offset)
        #expect(Self.field(Self.physical, node, stretch(8192, offset: 0xFFFF_F000)) == offset)
        #expect(Self.field(Self.physical, node, stretch(8192, offset: 0x1_FFFF_F000)) == offset)
        #expect(Self.field(Self.physical, node, stretch(8192, offset: .max - 4095)) == offset)
        #expect(
            Self.field(Self.physical, node, stretch(0)) == "register_memory.byte_count")
    }

    @Test("descriptors are what they are")
    func offered() throws {
        let file = try MemFD.create(name: "t", byteCount: 8192)
        let zero = try OwnedFD.open("/dev/zero", flags: 2)
        let program = try OwnedFD.open("/proc/self/exe", flags: 0)
        let event = try EventFD()
        #expect(
            OfferedMemory(file)
                == OfferedMemory(
                    kind: .memoryFile([.shrink, .grow], pageByteCount: 4096), byteCount: 8192))
        // Major 1, minor 5.
        #expect(OfferedMemory(zero) == OfferedMemory(kind: .node(0x0105)))
        #expect(OfferedMemory(program).kind == .other)
        #expect(OfferedMemory(event.fd).kind == .other)
    }

    @Test("configured guest memory is a node that is there")
    func configuration() throws {
        let ranges: [ClosedRange<UInt64>] = [0...0xFFF, 1 << 32...(2 << 32) - 1]
        let read = try GuestMemory(GuestMemoryPlace(path: "/dev/zero", ranges: ranges))
        // Major 1, minor 5.
        #expect(read == GuestMemory(node: 0x0105, ranges: ranges))
        for path in ["/proc/self/exe", "/nowhere", "/dev"] {
            let error = #expect(throws: WireError.self) {
                _ = try GuestMemory(GuestMemoryPlace(path: path, ranges: ranges))
            }
            #expect(error?.message.contains(path) == true)
        }
    }
}

extension WorkerProcessTests {
    @Suite("Memory that goes away under a worker")
    struct GoneMemory {
        @Test(
            "ends the session of its owner with the region in the reason, and nobody else's",
            .enabled(if: HugePages.free >= 2, "needs two free huge pages"))
        func punched() throws {
            let rig = try Rig()
            let supervisor = try rig.startLoaded()
            let client = try supervisor.open(.readOnly)
            let other = try supervisor.open(.readOnly)
            let size = HugePages.byteCount
            let fd = try MemFD.create(name: "huge", byteCount: 2 * size, hugePages: true)
            _ = try client.answer(
                to: client.send(
                    .registerMemory(regionID: 5, byteCount: UInt64(2 * size), readOnly: false),
                    fds: [fd.raw]))
            let at = { (offset: UInt64) in
                SessionRequest.read(
                    lba: 0, blockCount: 8, location: .region(id: 5, byteOffset: offset))
            }
            // Present: a page that never was would keep what was promised for it.
            #expect(try client.ask(at(UInt64(size) + 1)) == .read)

            // The second page goes, and somebody else takes all that are free.
            #expect(nv_punch_hole(fd.raw, Int64(size), Int64(size)) == 0)
            let taken = try takeAllHugePages()
            try client.send(at(UInt64(size) + 1))
            let reason = try client.reason()

            #expect(reason.message.contains("region 5"), "\(reason)")
            #expect(reason.field == "register_memory.region_id")
            #expect(try other.read(0, 8).count == 4096)
            #expect(try supervisor.device().state == .ready)
            withExtendedLifetime(taken) {}
        }

        /// Mappings of all huge pages that are free, present.
        private func takeAllHugePages() throws -> [SharedMemory] {
            var taken: [SharedMemory] = []
            // Bounded: each turn leaves one page less.
            while HugePages.free > 0, taken.count < 4096 {
                taken.append(try SharedMemory(byteCount: HugePages.byteCount, hugePages: true))
                taken.last?.fill([1], at: 0)
            }
            return taken
        }

        @Test(
            "memory of huge pages carries data at any alignment", .enabled(if: HugePages.free >= 2))
        func hugePages() throws {
            let rig = try Rig()
            let client = try rig.startLoaded().open()
            let memory = try SharedMemory(byteCount: 2 * HugePages.byteCount, hugePages: true)
            let data = pattern(1 << 20, seed: 11)
            memory.fill(data, at: 7)
            try client.register(1, memory)

            #expect(
                try client.ask(
                    .write(
                        lba: 0, blockCount: 2048, fua: false,
                        location: .region(id: 1, byteOffset: 7))) == .done)
            #expect(
                try client.ask(
                    .read(
                        lba: 0, blockCount: 2048,
                        location: .region(id: 1, byteOffset: UInt64(HugePages.byteCount))))
                    == .read)

            #expect(memory.contents(HugePages.byteCount, 1 << 20) == data)
        }

        @Test("a stretch from the middle of a file is just that stretch")
        func stretch() throws {
            let rig = try Rig()
            let client = try rig.startLoaded().open()
            let memory = try SharedMemory(byteCount: 1 << 20)
            let data = pattern(8192, seed: 12)
            memory.fill(data, at: 524_288)
            _ = try client.answer(
                to: client.send(
                    .registerMemory(
                        regionID: 1, byteCount: 8192, readOnly: false, fileOffset: 524_288),
                    fds: [memory.fd.raw]))

            #expect(
                try client.ask(
                    .write(
                        lba: 0, blockCount: 16, fua: false,
                        location: .region(id: 1, byteOffset: 0))) == .done)
            let beyond = try client.refusal(
                .write(
                    lba: 0, blockCount: 16, fua: false, location: .region(id: 1, byteOffset: 512)))

            #expect(try client.read(0, 16) == data)
            #expect(beyond.code == .invalidArgument)
        }
    }
}
