// SPDX-License-Identifier: Apache-2.0
// Disks against a fake worker: data, splitting, pipelining, faults.

import CLinux
import Linux
import NVMeClient
import Testing
import Wire

/// Runs `body` with an open disk and ends the service afterwards.
private func withDisk(
    _ service: FakeService, _ body: (Disk) throws -> Void
) throws {
    defer { service.join() }
    let backend = try NVMeBackend.connect(service.socketPath)
    let disk = try backend.openDisk("vol0", access: .readWrite)
    defer { disk.close() }
    try body(disk)
}

/// A buffer with a pattern in it.
private func patterned(_ byteCount: Int, seed: UInt64) throws -> IOBuffer {
    let buffer = try IOBuffer(byteCount: byteCount)
    DataPattern(seed: seed).fill(buffer, offset: 0, count: byteCount, diskByteOffset: 0)
    return buffer
}

@Suite("Disks of the client library")
struct DiskTests {
    @Test(
        "what was written is read back, inline and through registered memory",
        arguments: [false, true])
    func roundTrip(registered: Bool) throws {
        let service = try FakeService()
        try withDisk(service) { disk in
            let byteCount = 1_500 * 512
            let source = try patterned(byteCount, seed: 1)
            let target = try IOBuffer(byteCount: byteCount)
            if registered {
                try disk.registerMemory(source, readOnly: true)
                try disk.registerMemory(target)
            }
            try disk.write(from: source, byteOffset: 512, byteCount: byteCount)
            try disk.read(into: target, byteOffset: 512, byteCount: byteCount)
            #expect(
                source.firstDifference(offset: 0, count: byteCount, from: target, otherOffset: 0)
                    == nil)
            #expect(
                Array(service.contents[512..<512 + byteCount]) == source.copyOut(count: byteCount))
        }
    }

    @Test("a long inline write is split into pieces of the limit, many in flight")
    func splitting() throws {
        let service = try FakeService(inlineByteCount: 4096) { _, request in
            if case .write = request { .answerLate(after: 3) } else { .obey }
        }
        try withDisk(service) { disk in
            let buffer = try patterned(64 * 1024, seed: 2)
            try disk.write(from: buffer, byteOffset: 0, byteCount: 64 * 1024)
            #expect(Array(service.contents[0..<65536]) == buffer.copyOut(count: 65536))
        }
        let expected = (0..<16).map {
            SessionRequest.write(lba: $0 * 8, blockCount: 8, fua: false, location: .inline)
        }
        #expect(service.record.requests == expected)
        #expect(service.record.mostInFlight > 1)
    }

    @Test("write zeroes is split at the device's limit")
    func zeroes() throws {
        let service = try FakeService()
        try withDisk(service) { disk in
            try disk.writeZeroes(byteOffset: 0, byteCount: 2500 * 512, deallocate: true)
        }
        #expect(
            service.record.requests == [
                .writeZeroes(BlockRange(lba: 0, blockCount: 1000), deallocate: true, fua: false),
                .writeZeroes(BlockRange(lba: 1000, blockCount: 1000), deallocate: true, fua: false),
                .writeZeroes(BlockRange(lba: 2000, blockCount: 500), deallocate: true, fua: false),
            ])
    }

    @Test("flush, unmap, verify and compare go through")
    func others() throws {
        let service = try FakeService()
        try withDisk(service) { disk in
            let buffer = try patterned(4096, seed: 3)
            try disk.write(from: buffer, byteOffset: 0, byteCount: 4096, fua: true)
            try disk.flush()
            try disk.compare(with: buffer, byteOffset: 0, byteCount: 4096)
            try disk.unmap(byteOffset: 8192, byteCount: 512)
            try disk.verify(byteOffset: 0, byteCount: 4096)
            #expect(throws: ClientError.failed(WireError(.compareFailed, "they differ"))) {
                try disk.compare(with: buffer, byteOffset: 4096, byteCount: 4096)
            }
        }
        #expect(service.record.requests.count == 6)
    }

    @Test("many requests are in flight, and completions come in any order with their ids")
    func batch() throws {
        let service = try FakeService { index, _ in .answerLate(after: 20 - index % 7) }
        try withDisk(service) { disk in
            let buffer = try IOBuffer(byteCount: Disk.windowCount * 512)
            var ids: Set<UInt64> = []
            for index in 0..<Disk.windowCount {
                ids.insert(
                    try disk.submit(
                        .read(
                            lba: UInt64(index), blockCount: 1, into: buffer,
                            bufferOffset: index * 512)))
            }
            #expect(throws: ClientError.self) { try disk.submit(.flush) }
            var order: [UInt64] = []
            while let completion = try disk.nextCompletion() {
                #expect(completion.error == nil)
                order.append(completion.id)
            }
            #expect(Set(order) == ids)
            #expect(order != order.sorted())
            #expect(disk.inFlightCount == 0)
        }
    }

    @Test("a reply to an id that is not pending is ignored and counted")
    func stranger() throws {
        let service = try FakeService { _, _ in .answerStrangerFirst }
        try withDisk(service) { disk in
            try disk.flush()
            try disk.flush()
            #expect(disk.ignoredReplies == 2)
        }
    }

    @Test("replies that come twice are ignored, whatever they are to, and change nothing")
    func repeated() throws {
        let service = try FakeService { _, _ in .answerTwice }
        try withDisk(service) { disk in
            let source = try patterned(8192, seed: 1)
            let target = try IOBuffer(byteCount: 8192)
            let memory = try patterned(4096, seed: 2)
            // When
            try disk.registerMemory(memory)
            try disk.write(from: source, byteOffset: 0, byteCount: 8192)
            try disk.read(into: target, byteOffset: 0, byteCount: 8192)
            try disk.compare(with: source, byteOffset: 0, byteCount: 8192)
            try disk.refreshInfo()
            let isCancelled = try disk.cancel(99)
            let ring = try disk.openRing(entries: 2)
            try disk.closeRing(ring)
            try disk.unregisterMemory(memory)
            try disk.flush()
            try disk.flush()
            // Then
            #expect(isCancelled)
            #expect(disk.info.blockCount == 4096)
            #expect(
                source.firstDifference(offset: 0, count: 8192, from: target, otherOffset: 0) == nil)
            #expect(disk.ignoredReplies >= 9)
            #expect(disk.inFlightCount == 0)
            #expect(disk.ended == nil)
        }
    }

    @Test("a worker that does not read for a while ends no session, however much is in flight")
    func unread() throws {
        let gate = try EventFD()
        let fd = gate.fd.raw
        let service = try FakeService { index, _ in
            guard index == 0 else { return .obey }
            var entry = nv_poll_entry(fd: fd, events: NV_POLLIN, revents: 0)
            _ = unsafe nv_poll_many(&entry, 1, 60_000_000_000)
            return .obey
        }
        try withDisk(service) { disk in
            // Given: more than a connection lets wait otherwise
            let buffer = try patterned(128 << 10, seed: 6)
            var ids = [try disk.submit(.flush)]
            // When
            for _ in 1..<Disk.windowCount {
                ids.append(
                    try disk.submit(
                        .write(
                            lba: 0, blockCount: 256, from: buffer, bufferOffset: 0, fua: false)))
            }
            try gate.signal()
            var done: [UInt64] = []
            while let completion = try disk.nextCompletion(
                deadlineNanoseconds: Deadline.after(milliseconds: 60_000))
            {
                #expect(completion.error == nil)
                done.append(completion.id)
            }
            // Then
            #expect(done.sorted() == ids)
            #expect(disk.ended == nil)
        }
    }

    @Test("the id of a registration that was given up is not used again")
    func doubtfulRegion() throws {
        let service = try FakeService { index, _ in index == 0 ? .ignore : .obey }
        try withDisk(service) { disk in
            let buffer = try IOBuffer(byteCount: 4096)
            #expect(throws: ClientError.timedOut) {
                try disk.registerMemory(
                    buffer, deadlineNanoseconds: Deadline.after(milliseconds: 1))
            }
            #expect(try disk.registerMemory(buffer) == 1)
        }
    }

    @Test("a pause is told by property and callback; one that is told twice is one")
    func pause() throws {
        let service = try FakeService { index, _ in
            switch index {
            case 0: .tell([.stalled(reason: "first"), .stalled(reason: "second")])
            case 1: .tell([.resumed(stalledNanoseconds: 9)])
            default: .revoke
            }
        }
        try withDisk(service) { disk in
            // Given
            var heard: [SessionEvent] = []
            disk.onEvent = { heard.append($0) }
            // When
            try disk.flush()
            let during = disk.stall
            try disk.flush()
            let after = disk.stall
            _ = #expect(throws: ClientError.self) { try disk.flush() }
            // Then
            #expect(during?.reason == "second")
            #expect(after == nil)
            #expect(disk.stallCount == 1)
            #expect(disk.lastStallNanoseconds == 9)
            #expect(
                heard == [
                    .stalled(reason: "first"), .stalled(reason: "second"),
                    .resumed(stalledNanoseconds: 9),
                    .ended(WireError(.sessionRevoked, "an operator asked")),
                ])
        }
    }

    @Test("a stall is told as events, and the request completes")
    func stall() throws {
        let service = try FakeService { _, _ in .stallFirst }
        try withDisk(service) { disk in
            try disk.flush()
            #expect(!disk.isStalled)
            #expect(
                disk.takeEvents() == [
                    .stalled(reason: "the controller recovers"), .resumed(stalledNanoseconds: 5),
                ])
        }
    }

    @Test("the first error of a split write is thrown, and the disk goes on")
    func errors() throws {
        let failure = WireError(.nvmeStatus, "refused", nvmeStatus: 0x4281)
        let service = try FakeService(inlineByteCount: 512) { index, _ in
            index == 3 ? .fail(failure) : .obey
        }
        try withDisk(service) { disk in
            let buffer = try patterned(512 * 200, seed: 4)
            #expect(throws: ClientError.failed(failure)) {
                try disk.write(from: buffer, byteOffset: 0, byteCount: 512 * 200)
            }
            #expect(disk.inFlightCount == 0)
            try disk.flush()
        }
        #expect(service.record.requests.count < 200)
    }

    @Test("a worker that dies ends requests in flight with a retriable error, and the disk reopens")
    func reopen() throws {
        let service = try FakeService { index, _ in index == 1 ? .die : .obey }
        try withDisk(service) { disk in
            let buffer = try patterned(4096, seed: 5)
            try disk.registerMemory(buffer)
            let error = try #require(throws: ClientError.self) { try disk.flush() }
            #expect(error.isWorkerRestarted)
            #expect(error.isRetriable)
            #expect(throws: error) { try disk.flush() }
            try disk.reopen()
            try disk.write(from: buffer, byteOffset: 0, byteCount: 4096)
            #expect(Array(service.contents[0..<4096]) == buffer.copyOut(count: 4096))
        }
        #expect(service.record.opened == 2)
        #expect(
            service.record.requests.last
                == .write(
                    lba: 0, blockCount: 8, fua: false, location: .region(id: 0, byteOffset: 0)))
    }

    @Test("completions that were not taken belong to no request of the next session")
    func reopenUndrained() throws {
        let service = try FakeService { index, _ in
            switch index {
            case 0: .ignore
            case 2: .die
            default: .obey
            }
        }
        try withDisk(service) { disk in
            // Given: two requests that ended with their session
            service.write(3, [UInt8](repeating: 0x5A, count: 512))
            let (memory, target) = (try IOBuffer(byteCount: 4096), try IOBuffer(byteCount: 512))
            var old = [try disk.submit(.flush)]
            try disk.registerMemory(memory)
            old.append(try disk.submit(.flush))
            // When
            try disk.reopen(deadlineNanoseconds: Deadline.after(milliseconds: 20_000))
            try disk.read(into: target, byteOffset: 3 * 512, byteCount: 512)
            let next = try disk.submit(.flush)
            var done: [DiskCompletion] = []
            while let completion = try disk.nextCompletion() { done.append(completion) }
            // Then
            #expect(target.copyOut(count: 512) == [UInt8](repeating: 0x5A, count: 512))
            #expect(done.map(\.id) == old + [next])
            #expect(
                done.map { $0.error?.code } == [.workerRestarted, .workerRestarted, nil])
            #expect(next > old[1])
        }
        #expect(service.record.opened == 2)
    }

    @Test("a session on which memory finds no room yet is let go before the next try")
    func reopenRetries() throws {
        let full = WireError(.resourceExhausted, "the old session is not over yet")
        let service = try FakeService { index, _ in
            switch index {
            case 1: .die
            case 2: .fail(full)
            default: .obey
            }
        }
        try withDisk(service) { disk in
            // Given
            let buffer = try patterned(4096, seed: 5)
            try disk.registerMemory(buffer)
            _ = #expect(throws: ClientError.self) { try disk.flush() }
            // When
            try disk.reopen(deadlineNanoseconds: Deadline.after(milliseconds: 20_000))
            try disk.write(from: buffer, byteOffset: 0, byteCount: 4096)
            // Then
            #expect(disk.ended == nil)
            #expect(Array(service.contents[0..<4096]) == buffer.copyOut(count: 4096))
        }
        #expect(service.record.opened == 3)
    }

    @Test("a disk that could not be reopened has no session, and can be reopened later")
    func reopenFails() throws {
        let refusal = WireError(.invalidArgument, "not this memory")
        let service = try FakeService { index, _ in
            switch index {
            case 1: .die
            case 2: .fail(refusal)
            default: .obey
            }
        }
        try withDisk(service) { disk in
            // Given
            let buffer = try patterned(4096, seed: 5)
            try disk.registerMemory(buffer)
            _ = #expect(throws: ClientError.self) { try disk.flush() }
            // When
            let error = #expect(throws: ClientError.self) { try disk.reopen() }
            let after = #expect(throws: ClientError.self) { try disk.flush() }
            try disk.reopen()
            try disk.flush()
            // Then
            #expect(error == .failed(refusal))
            #expect(after?.isWorkerRestarted == true)
            #expect(after?.description.contains("not this memory") == true)
        }
        #expect(
            service.record.requests.suffix(3).map { $0 == .flush } == [false, false, true])
    }

    @Test("memory whose return was not answered in time is named by no request any more")
    func lateReturn() throws {
        // Given: the first UnregisterMemory is never answered, the next one finds nothing
        let service = try FakeService { index, request in
            guard case .unregisterMemory = request else { return .obey }
            return index == 1 ? .ignore : .fail(WireError(.notFound, "there is no region"))
        }
        try withDisk(service) { disk in
            let (buffer, other) = (try patterned(4096, seed: 5), try IOBuffer(byteCount: 4096))
            let id = try disk.registerMemory(buffer)
            // When
            #expect(throws: ClientError.timedOut) {
                try disk.unregisterMemory(
                    buffer, deadlineNanoseconds: Deadline.after(milliseconds: 1))
            }
            let known = disk.regionID(of: buffer)
            try disk.write(from: buffer, byteOffset: 0, byteCount: 4096)
            try disk.unregisterMemory(buffer)
            try disk.unregisterMemory(buffer)
            let otherID = try disk.registerMemory(other)
            let again = try disk.registerMemory(buffer)
            // Then
            #expect(id == 0)
            #expect(known == nil)
            #expect(otherID == 1)
            #expect(again == 2)
        }
        let written = SessionRequest.write(lba: 0, blockCount: 8, fua: false, location: .inline)
        #expect(service.record.requests.contains(written))
        #expect(
            service.record.requests.filter { $0 == .unregisterMemory(regionID: 0) }.count == 2)
    }

    @Test("memory whose return was not answered in time is not registered with the next session")
    func lateReturnReopened() throws {
        let service = try FakeService { index, _ in
            switch index {
            case 1: .ignore
            case 2: .die
            default: .obey
            }
        }
        try withDisk(service) { disk in
            // Given
            let buffer = try IOBuffer(byteCount: 4096)
            try disk.registerMemory(buffer)
            #expect(throws: ClientError.timedOut) {
                try disk.unregisterMemory(
                    buffer, deadlineNanoseconds: Deadline.after(milliseconds: 1))
            }
            _ = #expect(throws: ClientError.self) { try disk.flush() }
            // When
            try disk.reopen()
            let seen = service.record.requests.count
            let id = try disk.registerMemory(buffer)
            // Then
            #expect(seen == 3)
            #expect(id == 0)
        }
        #expect(service.record.requests.count == 4)
    }

    @Test("a revoked session says why")
    func revoked() throws {
        let service = try FakeService { _, _ in .revoke }
        try withDisk(service) { disk in
            let error = try #require(throws: ClientError.self) { try disk.flush() }
            #expect(error.wireError?.code == .sessionRevoked)
            #expect(!error.isRetriable)
        }
    }

    @Test("a request that is never answered ends at its deadline, and the disk goes on")
    func deadline() throws {
        let service = try FakeService { index, _ in index == 0 ? .ignore : .obey }
        try withDisk(service) { disk in
            let buffer = try IOBuffer(byteCount: 512)
            #expect(throws: ClientError.timedOut) {
                try disk.read(
                    into: buffer, byteOffset: 0, byteCount: 512,
                    deadlineNanoseconds: Deadline.after(milliseconds: 1))
            }
            try disk.flush()
        }
    }

    @Test("a reply with too little data is an error, not data")
    func shortReply() throws {
        let service = try FakeService { _, _ in .answerShort }
        try withDisk(service) { disk in
            let buffer = try IOBuffer(byteCount: 512)
            let error = try #require(throws: ClientError.self) {
                try disk.read(into: buffer, byteOffset: 0, byteCount: 512)
            }
            #expect(error.wireError?.code == .internalError)
        }
    }

    @Test("a request can be cancelled, and completes all the same")
    func cancel() throws {
        let service = try FakeService { index, _ in index == 0 ? .answerLate(after: 1) : .obey }
        try withDisk(service) { disk in
            let id = try disk.submit(.flush)
            #expect(try disk.cancel(id))
            let completion = try #require(try disk.nextCompletion())
            #expect(completion.id == id)
            #expect(completion.error == nil)
        }
    }

    @Test(
        "a range that cannot be is refused without a message",
        arguments: [
            (0, 0, ErrorCode.invalidArgument), (1, 512, .invalidArgument),
            (0, 513, .invalidArgument), (4096 * 512, 512, .outOfRange),
            (4095 * 512, 1024, .outOfRange),
        ])
    func ranges(offset: Int, count: Int, code: ErrorCode) throws {
        let service = try FakeService()
        try withDisk(service) { disk in
            let buffer = try IOBuffer(byteCount: 4096)
            let error = try #require(throws: ClientError.self) {
                try disk.read(into: buffer, byteOffset: UInt64(offset), byteCount: count)
            }
            #expect(error.wireError?.code == code)
        }
        #expect(service.record.requests.isEmpty)
    }

    @Test("an unknown disk and a missing supervisor are told apart")
    func supervisorErrors() throws {
        let service = try FakeService()
        try withDisk(service) { disk in _ = disk.info }
        let error = try #require(throws: ClientError.self) {
            try NVMeBackend.connect("/tmp/no-such-socket-of-nvmed")
        }
        #expect(error.description.contains("Is nvmed running"))
    }
}
