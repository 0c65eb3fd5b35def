// SPDX-License-Identifier: Apache-2.0
// Bytes from a peer that is wrong or wicked: each is refused with a word, none stops the process.

import Testing
import Wire

@Suite("Hostile messages")
struct HostileMessageTests {
    private let read = Envelope<SessionProtocol>(
        requestID: 9, content: .request(.read(lba: 1, blockCount: 1, location: .inline)))

    @Test("a message cut anywhere is refused or says less", arguments: Messages.session.indices)
    func truncation(index: Int) throws {
        let envelope = Envelope(requestID: 3, content: Messages.session[index])
        let whole = try encoded(envelope)
        let arena = MessageArena()
        for count in 0..<whole.count {
            let fdCount = SessionProtocol.fdCount(of: envelope.content)
            let back = try? decoded(
                Array(whole.prefix(count)), as: SessionProtocol.self, fdCount: fdCount,
                arena: arena)
            #expect(back?.envelope != envelope, "\(count) of \(whole.count) bytes")
        }
    }

    @Test("random bytes and flipped bits are answered, whatever they are")
    func random() throws {
        let seed = UInt64.random(in: 0...(.max))
        var numbers = SeededNumbers(seed: seed)
        let arena = MessageArena()
        let whole = try Messages.worker.map { try encoded(Envelope(requestID: 3, content: $0)) }
        var refused = 0
        for round in 0..<20_000 {
            var message = whole[round % whole.count]
            for _ in 0..<Int.random(in: 1...4, using: &numbers) {
                let at = Int.random(in: message.indices, using: &numbers)
                message[at] = UInt8.random(in: 0...255, using: &numbers)
            }
            let noise = (0..<Int.random(in: 0...64, using: &numbers)).map { _ in
                UInt8.random(in: 0...255, using: &numbers)
            }
            for bytes in [message, noise] {
                let mutated = try? decoded(bytes, as: WorkerProtocol.self, arena: arena)
                let other = try? decoded(bytes, as: SessionProtocol.self, arena: arena)
                refused += (mutated == nil ? 1 : 0) + (other == nil ? 1 : 0)
            }
        }
        #expect(refused > 20_000, "seed \(seed)")
    }

    @Test("a message of nothing but empty parts does not get more memory than the budget")
    func budget() {
        // 84 bytes of C for 3 bytes of message: 8,000 empty ranges in one unmap.
        let ranges: [UInt8] = (0..<16000).map { $0 % 2 == 0 ? 0x0a : 0x00 }
        let message = bytes("08 01 10 05 c2 01 80 7d") + ranges
        let rejection = rejection(message, as: SessionProtocol.self)
        #expect(rejection?.error.code == .malformedMessage)
    }

    @Test("too many ranges are refused by name")
    func tooManyRanges() throws {
        let ranges = (0..<257).map { BlockRange(lba: $0, blockCount: 1) }
        let message = try encoded(
            Envelope<SessionProtocol>(requestID: 4, content: .request(.unmap(ranges))))
        let rejection = rejection(message, as: SessionProtocol.self)
        #expect(rejection?.error.code == .invalidArgument)
        #expect(rejection?.error.field == "unmap.ranges")
        #expect(rejection?.requestID == 4)
    }

    @Test("a save without a whole token is refused by name", arguments: ["", "0a 03 01 02 03"])
    func shortToken(token: String) {
        let body = bytes(token)
        let head = bytes("08 01 10 07 ea 01") + [UInt8(body.count)]
        let rejection = rejection(head + body, as: WorkerProtocol.self)
        #expect(rejection?.error.code == .invalidArgument)
        #expect(rejection?.error.field == "save.token")
    }

    @Test("a pool in a file without a path is refused by name")
    func poolWithoutPath() {
        // load_driver{config{name "n", transport null, pool_backing hugetlb}}
        let message = bytes("08 01 10 07 a2 01 0a 0a 08 0a 01 6e 10 03 98 01 02")
        let rejection = rejection(message, as: WorkerProtocol.self)
        #expect(rejection?.error.field == "config.pool_path")
    }

    @Test("what is saved is not to be reset")
    func savedReset() {
        // shutdown{saved}
        let rejection = rejection(
            bytes("08 01 10 07 da 01 02 10 01"), as: WorkerProtocol.self)
        #expect(rejection?.error.field == "shutdown.saved")
    }

    @Test("a head larger than the limit is refused")
    func largeHead() {
        let filler = bytes("7a 80 80 01") + [UInt8](repeating: 7, count: 16384)
        let rejection = rejection(bytes("08 01 10 05") + filler, as: SessionProtocol.self)
        #expect(rejection?.error.code == .malformedMessage)
        #expect(rejection?.endsConnection == true)
    }

    @Test("a payload larger than the limit is refused")
    func largePayload() throws {
        let prefix = bytes("08 01 10 05 b2 01 04 08 00 10 01 c2 3e 81 80 08")
        let message = prefix + [UInt8](repeating: 0, count: 131_073)
        #expect(rejection(message, as: SessionProtocol.self)?.error.code == .malformedMessage)
    }

    @Test("a payload that is not last is refused by name")
    func earlyPayload() throws {
        let message = bytes("08 01 10 05 c2 3e 01 00 b2 01 04 08 00 10 01")
        let rejection = rejection(message, as: SessionProtocol.self)
        #expect(rejection?.error.field == "payload")
    }

    @Test("another version is refused, and the answer knows the request")
    func version() {
        let rejection = rejection(bytes("08 02 10 05 ba 01 00"), as: SessionProtocol.self)
        #expect(rejection?.error.code == .unsupportedVersion)
        #expect(rejection?.requestID == 5)
        #expect(rejection?.endsConnection == false)
    }

    @Test("no version is refused")
    func noVersion() {
        let rejection = rejection(bytes("10 05 ba 01 00"), as: SessionProtocol.self)
        #expect(rejection?.error.code == .unsupportedVersion)
    }

    @Test("a body unknown here is refused by its number")
    func unknownBody() {
        let rejection = rejection(bytes("08 01 10 05 82 05 00"), as: SessionProtocol.self)
        #expect(rejection?.error.code == .unknownMessage)
        #expect(rejection?.error.message.contains("80") == true)
        #expect(rejection?.endsConnection == false)
    }

    @Test("no body is refused")
    func noBody() {
        let rejection = rejection(bytes("08 01 10 05"), as: SessionProtocol.self)
        #expect(rejection?.error.code == .unknownMessage)
    }

    @Test("a write without its block address is refused, not taken as block 0")
    func missingField() {
        let rejection = rejection(bytes("08 01 10 05 b2 01 02 10 01"), as: SessionProtocol.self)
        #expect(rejection?.error.code == .invalidArgument)
        #expect(rejection?.error.field == "write.lba")
    }

    @Test("a namespace that is refused for an empty reason is refused, and stays so")
    func emptyReason() throws {
        // namespace_info { nsid 3, blocks of 512, 1000 of them, refusal "" }
        let message = bytes("08 01 10 07 f2 03 0a 08 03 10 80 04 18 e8 07 42 00")
        let arena = MessageArena()
        let first = try decoded(message, as: WorkerProtocol.self, fdCount: 0, arena: arena).envelope
        let second = try decoded(
            try encoded(first), as: WorkerProtocol.self, fdCount: 0, arena: arena
        ).envelope
        guard case .reply(.namespace(let namespace)) = first.content else {
            Issue.record("\(first)")
            return
        }
        #expect(namespace.refusal?.isEmpty == false)
        #expect(second == first)
    }

    @Test("descriptors that nobody announced, or that do not come, are refused")
    func descriptors() throws {
        let register = Envelope<SessionProtocol>(
            requestID: 6,
            content: .request(.registerMemory(regionID: 1, byteCount: 4096, readOnly: false)))
        let surplus = rejection(try encoded(read), as: SessionProtocol.self, fdCount: 1)
        let missing = rejection(try encoded(register), as: SessionProtocol.self, fdCount: 0)
        let unsaid = rejection(
            try encoded(register, fdCount: 0), as: SessionProtocol.self, fdCount: 1)
        #expect(surplus?.error.code == .fdMismatch)
        #expect(missing?.error.code == .fdMismatch)
        #expect(unsaid?.error.code == .fdMismatch)
        #expect(surplus?.requestID == 9)
    }

    @Test(
        "a name that is empty, too long, not UTF-8 or has a NUL is refused",
        arguments: [
            [], [UInt8](repeating: 0x61, count: 256), [0xff, 0xfe], [0x61, 0x00, 0x62],
        ])
    func names(name: [UInt8]) {
        // supervisor.open_disk { name }, its lengths as one- or two-byte varints
        let length = UInt8(truncatingIfNeeded: name.count & 0x7f)
        let long = name.count > 127
        let inner = [0x0a] + (long ? [length | 0x80, 2] : [length]) + name
        let innerLength = UInt8(truncatingIfNeeded: inner.count & 0x7f)
        let message =
            bytes("08 01 10 05 b2 01") + (long ? [innerLength | 0x80, 2] : [innerLength]) + inner
        let rejection = rejection(message, as: SupervisorProtocol.self)
        #expect(rejection?.error.code == .invalidArgument)
        #expect(rejection?.error.field == "open_disk.name")
        #expect(rejection?.requestID == 5)
    }

    @Test("an access mode that does not exist is refused")
    func accessMode() {
        let message = bytes("08 01 10 05 b2 01 06 0a 02 76 30 10 09")
        let rejection = rejection(message, as: SupervisorProtocol.self)
        #expect(rejection?.error.field == "open_disk.access")
    }
}
