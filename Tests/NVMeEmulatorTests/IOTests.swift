// SPDX-License-Identifier: Apache-2.0
// I/O commands: data integrity over every shape of PRPs, ranges, deallocation, protection.

import NVMeSpec
import Testing

@testable import NVMeEmulator

@Suite("I/O commands")
struct IOTests {
    private func write(_ host: Host, _ lba: UInt64, _ blocks: UInt32, offset: Int = 0) -> Status? {
        host.status(
            of: host.pointing(
                .write(namespaceID: 1, lba: lba, blockCount: blocks), offset: offset,
                count: Int(blocks) * 512), on: 1)
    }

    private func read(_ host: Host, _ lba: UInt64, _ blocks: UInt32, offset: Int = 0) -> Status? {
        host.status(
            of: host.pointing(
                .read(namespaceID: 1, lba: lba, blockCount: blocks), offset: offset,
                count: Int(blocks) * 512), on: 1)
    }

    @Test(
        "what was written is read back, whatever the PRPs look like",
        arguments: [
            (1, 0), (8, 0), (8, 512), (16, 0), (16, 2048), (17, 4092), (64, 0), (256, 1024),
            (2048, 0), (2047, 4), (8192, 0), (8192, 8),
        ] as [(Int, Int)])
    func roundTrip(blocks: Int, offset: Int) throws {
        let host = try Host.ready { $0.mdts = 0 }
        var random = Random(seed: UInt64(blocks * 8192 + offset + 1))
        let content = random.bytes(blocks * 512)
        host.fill(Host.data + offset, content)
        #expect(write(host, 0, UInt32(blocks), offset: offset) == .success)
        host.fill(Host.data + offset, Array(repeating: 0xEE, count: blocks * 512))
        #expect(read(host, 0, UInt32(blocks), offset: offset) == .success)

        // Not within the expectation, which would print megabytes.
        let isSame = host.bytes(Host.data + offset, blocks * 512) == content
        #expect(isSame)
    }

    @Test("a list that begins at the last entry of its page goes on in the next")
    func listAtPageEnd() throws {
        let host = try Host.ready()
        host.fill(Host.data, Array(repeating: 0x5A, count: 3 * 4096))
        var entry = SubmissionEntry.write(namespaceID: 1, lba: 0, blockCount: 24)
        entry.prp1 = host.dataAddress
        entry.prp2 = Host.iova + UInt64(Host.lists) + 4088
        host.memory.store64(Host.lists + 4088, Host.iova + UInt64(Host.lists) + 8192)
        host.memory.store64(Host.lists + 8192, host.dataAddress + 4096)
        host.memory.store64(Host.lists + 8200, host.dataAddress + 8192)

        #expect(host.status(of: entry, on: 1) == .success)
        #expect(host.controller.counters.bytesWritten == 3 * 4096)
    }

    @Test("PRPs that break the rules are refused")
    func badPRPs() throws {
        let host = try Host.ready()
        func status(_ blocks: UInt32, _ prp1: UInt64, _ prp2: UInt64) -> Status? {
            var entry = SubmissionEntry.read(namespaceID: 1, lba: 0, blockCount: blocks)
            entry.prp1 = prp1
            entry.prp2 = prp2
            return host.status(of: entry, on: 1)
        }
        let good = host.dataAddress
        let list = Host.iova + UInt64(Host.lists)
        host.memory.store64(Host.lists, good + 4)
        host.memory.store64(Host.lists + 4080, good)
        host.memory.store64(Host.lists + 4088, list + 4096 + 8)

        #expect(status(1, good + 2, 0) == .prpOffsetInvalid)
        #expect(status(16, good, good + 8) == .prpOffsetInvalid)
        #expect(status(24, good, list + 4) == .prpOffsetInvalid)
        #expect(status(24, good, list) == .prpOffsetInvalid)
        #expect(status(40, good, list + 4080) == .prpOffsetInvalid)
        #expect(status(1, 0x7FFF_0000_0000, 0) == .dataTransferError)
        #expect(status(24, good, 0x7FFF_0000_0000) == .dataTransferError)
        #expect(status(1, UInt64.max & ~3, 0) == .dataTransferError)
    }

    @Test("ranges beyond the end, however they wrap, are refused")
    func ranges() throws {
        let host = try Host.ready()
        #expect(read(host, 8191, 1) == .success)
        #expect(read(host, 8191, 2) == .lbaOutOfRange)
        #expect(read(host, 8192, 1) == .lbaOutOfRange)
        #expect(read(host, UInt64.max, 1) == .lbaOutOfRange)
        #expect(read(host, UInt64.max - 1, 8) == .lbaOutOfRange)
        #expect(read(host, 1 << 55, 1) == .lbaOutOfRange)
    }

    @Test(
        "a namespace that does not exist is refused",
        arguments: [0, 2, 65, 0xFFFF_FFFE, 0xFFFF_FFFF] as [UInt32])
    func namespaces(id: UInt32) throws {
        let host = try Host.ready()
        let entry = host.pointing(.read(namespaceID: id, lba: 0, blockCount: 1), count: 512)

        #expect(host.status(of: entry, on: 1) == .invalidNamespaceOrFormat)
    }

    @Test("a transfer larger than MDTS is refused")
    func transferLimit() throws {
        let host = try Host.ready { $0.mdts = 1 }
        #expect(read(host, 0, 16) == .success)
        #expect(read(host, 0, 17) == .invalidField)
    }

    @Test("Compare tells equal from different")
    func compare() throws {
        let host = try Host.ready()
        host.fill(Host.data, Array(repeating: 0x11, count: 8192))
        #expect(write(host, 4, 16) == .success)
        let compare = host.pointing(
            .compare(namespaceID: 1, lba: 4, blockCount: 16), count: 8192)
        #expect(host.status(of: compare, on: 1) == .success)
        host.fill(Host.data + 8191, [0x12])
        #expect(host.status(of: compare, on: 1) == .compareFailure)
    }

    @Test(
        "zeroed and deallocated blocks read as zeroes, their neighbours stay",
        arguments: [true, false])
    func zeroes(deallocate: Bool) throws {
        let host = try Host.ready()
        host.fill(Host.data, Array(repeating: 0xAB, count: 64 * 512))
        #expect(write(host, 0, 64) == .success)
        let entry = SubmissionEntry.writeZeroes(
            namespaceID: 1, lba: 3, blockCount: 50, deallocate: deallocate)
        #expect(host.status(of: entry, on: 1) == .success)
        #expect(read(host, 0, 64) == .success)
        let content = host.bytes(Host.data, 64 * 512)

        #expect(content[0..<(3 * 512)].allSatisfy { $0 == 0xAB })
        #expect(content[(3 * 512)..<(53 * 512)].allSatisfy { $0 == 0 })
        #expect(content[(53 * 512)...].allSatisfy { $0 == 0xAB })
    }

    @Test("Dataset Management gives memory back, range by range")
    func deallocate() throws {
        let host = try Host.ready()
        host.fill(Host.data, Array(repeating: 0xCD, count: 256 * 512))
        #expect(write(host, 0, 256) == .success)
        let before = host.controller.namespaces[0]?.allocatedByteCount ?? 0
        // Context attributes (4), length (4), LBA (8)
        host.fill(Host.data, [0, 0, 0, 0, 128, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0])
        host.fill(Host.data + 16, [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0])
        host.fill(Host.data + 32, [0, 0, 0, 0, 1, 0, 0, 0, 200, 0, 0, 0, 0, 0, 0, 0])
        let entry = host.pointing(
            .datasetManagement(namespaceID: 1, rangeCount: 3, deallocate: true), count: 48)
        #expect(host.status(of: entry, on: 1) == .success)
        let after = host.controller.namespaces[0]?.allocatedByteCount ?? 0

        #expect(before == 256 * 512)
        #expect(after == 128 * 512)
        #expect(read(host, 200, 1) == .success)
        #expect(host.bytes(Host.data, 512).allSatisfy { $0 == 0 })
        #expect(read(host, 201, 1) == .success)
        #expect(host.bytes(Host.data, 512).allSatisfy { $0 == 0xCD })
    }

    @Test("one bad range spoils a Dataset Management before anything has changed")
    func badDatasetRange() throws {
        let host = try Host.ready()
        host.fill(Host.data, Array(repeating: 0xCD, count: 512))
        #expect(write(host, 0, 1) == .success)
        host.fill(Host.data, [0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0])
        host.fill(
            Host.data + 16,
            [0, 0, 0, 0, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF])
        let entry = host.pointing(
            .datasetManagement(namespaceID: 1, rangeCount: 2, deallocate: true), count: 32)
        #expect(host.status(of: entry, on: 1) == .lbaOutOfRange)
        #expect(read(host, 0, 1) == .success)
        #expect(host.bytes(Host.data, 1) == [0xCD])
    }

    @Test("a read-only namespace refuses every change")
    func readOnly() throws {
        let host = try Host.ready {
            $0.namespaces = [try NamespaceOptions(parsing: "memory=1M,readonly")]
        }
        let zero = SubmissionEntry.writeZeroes(
            namespaceID: 1, lba: 0, blockCount: 1, deallocate: false)
        let dataset = host.pointing(
            .datasetManagement(namespaceID: 1, rangeCount: 1, deallocate: true), count: 16)

        #expect(write(host, 0, 1) == .namespaceWriteProtected)
        #expect(host.status(of: zero, on: 1) == .namespaceWriteProtected)
        #expect(host.status(of: dataset, on: 1) == .namespaceWriteProtected)
        #expect(read(host, 0, 1) == .success)
    }

    @Test("Flush and Verify take the ids and ranges they should")
    func flushAndVerify() throws {
        let host = try Host.ready()
        #expect(host.status(of: .flush(namespaceID: 1), on: 1) == .success)
        #expect(host.status(of: .flush(namespaceID: 0xFFFF_FFFF), on: 1) == .success)
        #expect(host.status(of: .flush(namespaceID: 9), on: 1) == .invalidNamespaceOrFormat)
        #expect(
            host.status(of: .verify(namespaceID: 1, lba: 0, blockCount: 65536), on: 1)
                == .lbaOutOfRange)
        #expect(
            host.status(of: .verify(namespaceID: 1, lba: 0, blockCount: 8192), on: 1) == .success)
    }

    @Test("random writes, zeroes and reads agree with a model", arguments: [1, 2, 3] as [UInt64])
    func model(seed: UInt64) throws {
        let host = try Host.ready(shadow: true)
        var random = Random(seed: seed)
        var model = [UInt8](repeating: 0, count: 4 << 20)
        for _ in 0..<300 {
            let lba = random.next(below: 8000)
            let blocks = Int(1 + random.next(below: 190))
            let range = Int(lba) * 512..<(Int(lba) + blocks) * 512
            let offset = Int(random.next(below: 1024)) * 4
            switch random.next(below: 3) {
            case 0:
                let content = random.bytes(blocks * 512)
                host.fill(Host.data + offset, content)
                model.replaceSubrange(range, with: content)
                #expect(write(host, lba, UInt32(blocks), offset: offset) == .success)
            case 1:
                let entry = SubmissionEntry.writeZeroes(
                    namespaceID: 1, lba: lba, blockCount: UInt32(blocks),
                    deallocate: random.next(below: 2) == 0)
                model.replaceSubrange(range, with: repeatElement(0, count: blocks * 512))
                #expect(host.status(of: entry, on: 1) == .success)
            default:
                #expect(read(host, lba, UInt32(blocks), offset: offset) == .success)
                let content = host.bytes(Host.data + offset, blocks * 512)
                let isSame = content.elementsEqual(model[range])
                #expect(isSame, "seed \(seed), lba \(lba)")
            }
        }
    }
}
