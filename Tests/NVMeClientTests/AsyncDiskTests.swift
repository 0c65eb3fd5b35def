// SPDX-License-Identifier: Apache-2.0
// The async face: many tasks, cancellation, the end of the session.

import Linux
import Synchronization
import Testing
import Wire

@testable import NVMeClient

/// Runs `body` with the fake disk opened for tasks, and ends the service when it is closed: nobody
/// holds on to the connection by then.
private func withAsyncDisk(
    _ service: FakeService, entries: UInt32 = 8, _ body: (AsyncDisk) async throws -> Void
) async throws {
    try await use(service, entries, body)
    await withCheckedContinuation { continuation in
        // Not on a thread of the tasks, which are few.
        let thread = TestThread()
        thread.start {
            service.join()
            continuation.resume()
        }
    }
}

private func use(
    _ service: FakeService, _ entries: UInt32, _ body: (AsyncDisk) async throws -> Void
) async throws {
    let disk = try AsyncDisk(
        try NVMeBackend.connect(service.socketPath).openDisk("vol0", access: .readWrite),
        entries: entries)
    defer { disk.close() }
    try await body(disk)
}

@Suite("Rings for async code", .timeLimit(.minutes(5)))
struct AsyncDiskTests {
    @Test("more tasks than the ring has room for: each gets its own data")
    func manyTasks() async throws {
        // Given
        let service = try FakeService(script: RingScript(reversed: true))
        try await withAsyncDisk(service) { disk in
            let source = try IOBuffer(byteCount: 256 * 512)
            let target = try IOBuffer(byteCount: 256 * 512)
            DataPattern(seed: 3).fill(source, offset: 0, count: 256 * 512, diskByteOffset: 0)
            try disk.registerMemory(source, readOnly: true)
            try disk.registerMemory(target)
            // When
            try await withThrowingTaskGroup(of: Void.self) { group in
                for index in 0..<256 {
                    group.addTask {
                        let lba = UInt64((index * 37) % 256)
                        try await disk.write(
                            lba: lba, blockCount: 1, from: source, bufferOffset: Int(lba) * 512)
                        try await disk.read(
                            lba: lba, blockCount: 1, into: target, bufferOffset: Int(lba) * 512)
                    }
                }
                try await group.waitForAll()
            }
            // Then
            let difference = source.firstDifference(
                offset: 0, count: 256 * 512, from: target, otherOffset: 0)
            #expect(difference == nil)
            #expect(service.rings[0].record.mostTaken <= 8)
        }
    }

    @Test("every operation goes through, and an error of the device is thrown")
    func operations() async throws {
        let service = try FakeService()
        try await withAsyncDisk(service) { disk in
            let buffer = try IOBuffer(byteCount: 4096)
            buffer.copyIn([1, 2, 3])
            try disk.registerMemory(buffer)
            // When
            try await disk.write(lba: 1, blockCount: 1, from: buffer, fua: true)
            try await disk.compare(lba: 1, blockCount: 1, with: buffer)
            try await disk.flush()
            try await disk.verify(lba: 1, blockCount: 1)
            try await disk.deallocate(lba: 9, blockCount: 1)
            try await disk.writeZeroes(lba: 1, blockCount: 1, deallocate: true)
            let error = await failure {
                try await disk.compare(lba: 1, blockCount: 1, with: buffer)
            }
            let range = await failure { try await disk.verify(lba: 4096, blockCount: 1) }
            let stranger = try IOBuffer(byteCount: 4096)
            let unknown = await failure {
                try await disk.read(lba: 1, blockCount: 1, into: stranger)
            }
            let long = await failure { try await disk.read(lba: 1, blockCount: 9, into: buffer) }
            // Then
            #expect(error?.wireError?.code == .compareFailed)
            #expect(error?.wireError?.nvmeStatus == 0x285)
            #expect(range?.wireError?.code == .outOfRange)
            #expect(unknown?.wireError?.code == .invalidArgument)
            #expect(long?.wireError?.code == .invalidArgument)
        }
    }

    @Test("memory is given back when the requests that stood in line for it are done, too")
    func givingBack() async throws {
        // Given: a ring of two, held, two reads in it and four in line
        let service = try FakeService(script: RingScript(startsHeld: true))
        try await withAsyncDisk(service, entries: 2) { disk in
            let (first, second) = (try IOBuffer(byteCount: 4096), try IOBuffer(byteCount: 4096))
            service.write(0, [UInt8](repeating: 0xA5, count: 6 * 512))
            let firstID = try disk.registerMemory(first)
            let reads = (0..<6).map { index in
                Task {
                    await failure {
                        try await disk.read(
                            lba: UInt64(index), blockCount: 1, into: first,
                            bufferOffset: index * 512)
                    }
                }
            }
            while disk.core.waitingCounts.inLine < 4 { await Task.yield() }
            // When: its id becomes another buffer's
            let secondID = Mutex<UInt32?>(nil)
            let giver = TestThread()
            giver.start {
                try? disk.unregisterMemory(first)
                let id = try? disk.registerMemory(second)
                secondID.withLock { $0 = id }
            }
            while disk.core.waitingCounts.leaving == 0, secondID.withLock({ $0 == nil }) {
                await Task.yield()
            }
            let late = Task {
                await failure { try await disk.read(lba: 0, blockCount: 1, into: first) }
            }
            let refused = await late.value
            service.rings[0].release()
            var errors: [ClientError] = []
            for read in reads { if let error = await read.value { errors.append(error) } }
            await joined(giver)
            // Then
            #expect(firstID == 0)
            #expect(secondID.withLock { $0 } == 0)
            #expect(errors.isEmpty)
            #expect(refused?.wireError?.code == .invalidArgument)
            #expect(first.copyOut(count: 6 * 512) == [UInt8](repeating: 0xA5, count: 6 * 512))
            #expect(second.firstNonzero(offset: 0, count: 4096) == nil)
        }
    }

    @Test("memory that is in use at the deadline stays registered, and its requests go on")
    func givingBackLate() async throws {
        let service = try FakeService(script: RingScript(startsHeld: true))
        try await withAsyncDisk(service, entries: 2) { disk in
            // Given
            let buffer = try IOBuffer(byteCount: 4096)
            service.write(7, [UInt8](repeating: 0x3C, count: 512))
            try disk.registerMemory(buffer)
            let read = Task {
                await failure { try await disk.read(lba: 7, blockCount: 1, into: buffer) }
            }
            while service.rings[0].publishedCount < 1 { await Task.yield() }
            // When
            let late = await failure {
                try disk.unregisterMemory(
                    buffer, deadlineNanoseconds: Deadline.after(milliseconds: 2))
            }
            service.rings[0].release()
            let error = await read.value
            let again = await failure {
                try await disk.read(
                    lba: 7, blockCount: 1, into: buffer, bufferOffset: 512)
            }
            try disk.unregisterMemory(buffer)
            let gone = await failure { try await disk.read(lba: 7, blockCount: 1, into: buffer) }
            // Then
            #expect(late == .timedOut)
            #expect(error == nil)
            #expect(again == nil)
            #expect(gone?.wireError?.code == .invalidArgument)
            #expect(buffer.copyOut(count: 1024) == [UInt8](repeating: 0x3C, count: 1024))
            #expect(
                service.record.requests.filter { $0 == .unregisterMemory(regionID: 0) }.count == 1)
        }
    }

    @Test("the end of the session ends the wait for memory")
    func givingBackAtTheEnd() async throws {
        let service = try FakeService(script: RingScript(startsHeld: true))
        try await withAsyncDisk(service, entries: 2) { disk in
            // Given
            let buffer = try IOBuffer(byteCount: 4096)
            try disk.registerMemory(buffer)
            let read = Task {
                await failure { try await disk.read(lba: 7, blockCount: 1, into: buffer) }
            }
            while service.rings[0].publishedCount < 1 { await Task.yield() }
            let code = Mutex<ErrorCode?>(nil)
            let giver = TestThread()
            giver.start {
                do throws(ClientError) { try disk.unregisterMemory(buffer) } catch {
                    code.withLock { $0 = error.wireError?.code }
                }
            }
            while disk.core.waitingCounts.leaving == 0 { await Task.yield() }
            // When
            disk.close()
            let error = await read.value
            await joined(giver)
            // Then
            #expect(error?.wireError?.code == .cancelled)
            #expect(code.withLock { $0 } == .cancelled)
        }
    }

    @Test("a read into memory that the device may only read is refused, and the session goes on")
    func readOnlyMemory() async throws {
        let service = try FakeService()
        try await withAsyncDisk(service) { disk in
            let buffer = try IOBuffer(byteCount: 4096)
            try disk.registerMemory(buffer, readOnly: true)
            // When
            let refused = await failure {
                try await disk.read(lba: 1, blockCount: 1, into: buffer)
            }
            try await disk.write(lba: 1, blockCount: 1, from: buffer)
            // Then
            #expect(refused?.wireError?.code == .invalidArgument)
            #expect(service.rings[0].record.entries.count == 1)
        }
    }

    @Test("a task that waits for room can be cancelled; those in the ring run to their end")
    func cancellation() async throws {
        // Given: a ring of two, held, and two requests in it
        var script = RingScript()
        script.startsHeld = true
        let service = try FakeService(script: script)
        try await withAsyncDisk(service, entries: 2) { disk in
            let first = Task { await failure { try await disk.flush() } }
            let second = Task { await failure { try await disk.flush() } }
            while service.rings[0].publishedCount < 2 { await Task.yield() }
            let third = Task { await failure { try await disk.flush() } }
            // When
            third.cancel()
            first.cancel()
            let cancelled = await third.value
            service.rings[0].release()
            let done = await (first.value, second.value)
            let later = await failure { try await disk.flush() }
            // Then
            #expect(cancelled?.wireError?.code == .cancelled)
            #expect(done.0 == nil)
            #expect(done.1 == nil)
            #expect(later == nil)
            #expect(service.rings[0].record.entries.count == 3)
        }
    }

    @Test("the end of the session is thrown with its reason, at once and from then on")
    func sessionEnd() async throws {
        var script = RingScript()
        script.endsAfter = 1
        let service = try FakeService(script: script)
        try await withAsyncDisk(service, entries: 2) { disk in
            let errors = await withTaskGroup(of: ClientError?.self) { group in
                for _ in 0..<16 { group.addTask { await failure { try await disk.flush() } } }
                return await group.reduce(into: [ClientError?]()) { $0.append($1) }
            }
            let later = await failure { try await disk.flush() }
            // Then
            #expect(later?.wireError?.code == .sessionRevoked)
            #expect(errors.contains { $0?.wireError?.code == .sessionRevoked })
            #expect(errors.allSatisfy { $0 == nil || $0?.wireError?.code == .sessionRevoked })
            #expect(disk.ended?.code == .sessionRevoked)
        }
    }

    @Test(
        "tasks wait through the death of their worker, whatever it was doing",
        arguments: RingDeath.allCases)
    func replaced(death: RingDeath) async throws {
        var script = RingScript()
        script.dies = death
        // A wake-up can only be missing where somebody sleeps.
        script.waitsForSleep = death == .unsent
        let service = try FakeService(script: script)
        try await withAsyncDisk(service, entries: 4) { disk in
            // Given
            let successor = TestThread()
            successor.start { service.rings[0].succeed() }
            // When: three times what the ring holds, in a row and side by side
            let errors = await withTaskGroup(of: ClientError?.self) { group in
                for _ in 0..<12 {
                    group.addTask {
                        await failure {
                            try await disk.flush()
                            try await disk.flush()
                        }
                    }
                }
                return await group.reduce(into: [ClientError?]()) { $0.append($1) }
            }
            await joined(successor)
            // Then
            #expect(errors.allSatisfy { $0 == nil })
            #expect(service.rings[0].record.entries.count == 24)
            #expect(disk.ended == nil)
        }
    }

    @Test("events come as a stream, which ends with the session and its reason")
    func events() async throws {
        var script = RingScript()
        script.endsAfter = 1
        let pause: [SessionEvent] = [
            .stalled(reason: "the worker is replaced"), .resumed(stalledNanoseconds: 7),
        ]
        let service = try FakeService(script: script) { _, request in
            if case .registerMemory = request { .tell(pause) } else { .obey }
        }
        try await withAsyncDisk(service, entries: 2) { disk in
            // Given
            let events = disk.events()
            // When
            try disk.registerMemory(try IOBuffer(byteCount: 4096))
            _ = await failure { try await disk.flush() }
            var heard: [SessionEvent] = []
            for await event in events { heard.append(event) }
            var late: [SessionEvent] = []
            for await event in disk.events() { late.append(event) }
            // Then
            #expect(heard.prefix(2) == pause[...])
            #expect(heard.count == 3)
            #expect(heard.last == .ended(WireError(.sessionRevoked, "an operator asked")))
            #expect(late.isEmpty)
        }
    }

    @Test("closing fails what is under way")
    func close() async throws {
        var script = RingScript()
        script.startsHeld = true
        let service = try FakeService(script: script)
        try await withAsyncDisk(service, entries: 2) { disk in
            let tasks = (0..<4).map { _ in Task { await failure { try await disk.flush() } } }
            while service.rings[0].publishedCount < 2 { await Task.yield() }
            // When
            disk.close()
            // Then
            for task in tasks {
                let error = await task.value
                #expect(error?.wireError?.code == .cancelled)
            }
        }
    }
}

/// Waits for a thread, on none of those of the tasks, which are few.
private func joined(_ thread: TestThread) async {
    await withCheckedContinuation { continuation in
        let waiter = TestThread()
        waiter.start {
            thread.join()
            continuation.resume()
        }
    }
}

/// The error of a call.
private func failure(_ body: () async throws -> Void) async -> ClientError? {
    do {
        try await body()
        return nil
    } catch { return error as? ClientError }
}
