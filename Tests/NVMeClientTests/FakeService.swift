// SPDX-License-Identifier: Apache-2.0
// A supervisor and a worker in one thread, with a disk in memory and faults on request.

import Glibc
import Linux
import Synchronization
import TestSupport
import Wire

@testable import NVMeClient

/// What the fake worker does with a request.
enum Behaviour: Sendable {
    /// Does it and answers.
    case obey
    /// Answers that it failed.
    case fail(WireError)
    /// Does it, and answers after the given number of later requests came.
    case answerLate(after: Int)
    /// Answers something nobody asked for first, then obeys.
    case answerStrangerFirst
    /// Tells that requests wait and that they flow, then obeys.
    case stallFirst
    /// Tells these, then obeys.
    case tell([SessionEvent])
    /// Obeys, and answers once more, with other data: as the successor of a worker does.
    case answerTwice
    /// Says nothing, ever.
    case ignore
    /// Closes the session without a word, as a killed worker does.
    case die
    /// Ends the session with a reason.
    case revoke
    /// Answers a read with one byte less.
    case answerShort
}

/// What the fake service saw.
struct Seen: Sendable {
    var requests: [SessionRequest] = []
    var mostInFlight = 0
    var opened = 0
}

/// A service for one client connection. It ends when the client closes that.
final class FakeService: Sendable {
    static let blockByteCount = 512
    private let temporary: TemporaryDirectory
    var path: String { temporary.path }
    let blockCount: Int
    let info: DiskInfo
    let script: RingScript
    private let openRings = Mutex<[FakeRing]>([])
    private let listener: OwnedFD
    private let behaviour: @Sendable (_ index: Int, _ request: SessionRequest) -> Behaviour
    private let seen = Mutex(Seen())
    private let bytes: Mutex<[UInt8]>
    private let thread: TestThread

    /// Starts the service. `behaviour` is asked for every request of a session, counted from 0
    /// over all sessions.
    init(
        blockCount: Int = 4096, inlineByteCount: Int = WireLimits.payloadByteCount,
        script: RingScript = RingScript(),
        behaviour: @escaping @Sendable (Int, SessionRequest) -> Behaviour = { _, _ in .obey }
    ) throws {
        temporary = try TemporaryDirectory()
        let path = temporary.path
        listener = try UnixSocket.listen("\(path)/s", kind: .sequencedPacket, mode: 0o600)
        self.blockCount = blockCount
        self.behaviour = behaviour
        self.script = script
        bytes = Mutex([UInt8](repeating: 0, count: blockCount * Self.blockByteCount))
        var info = DiskInfo()
        info.name = "vol0"
        info.device = "nvme0"
        info.blockCount = UInt64(blockCount)
        info.maxTransferByteCount = 1 << 20
        info.maxInlineByteCount = UInt32(inlineByteCount)
        info.writeZeroesMaxBlockCount = 1000
        self.info = info
        thread = TestThread()
        thread.start { [self] in serve() }
    }

    /// The socket to connect to.
    var socketPath: String { "\(path)/s" }
    /// What was seen so far.
    var record: Seen { seen.withLock { $0 } }
    /// The bytes of the disk.
    var contents: [UInt8] { bytes.withLock { $0 } }

    /// The rings that were opened, in order.
    var rings: [FakeRing] { openRings.withLock { $0 } }
    func add(_ ring: FakeRing) { openRings.withLock { $0.append(ring) } }

    /// Waits for the end, after the client let go of its backend.
    func join() {
        thread.join()
    }

    private func serve() {
        guard (try? listener.waitReadable(timeoutMilliseconds: 60_000)) == true,
            let socket = try? UnixSocket.accept(listener)
        else { return }
        let channel = Channel<SupervisorProtocol>(socket, role: .server, buffer: MessageBuffer())
        while case .message(let message) = try? channel.receive(deadlineNanoseconds: nil) {
            guard case .request(.openDisk) = message.envelope.content,
                let pair = try? UnixSocket.pair()
            else {
                try? channel.send(
                    error: WireError(.notFound, "not here"), to: message.envelope.requestID)
                continue
            }
            seen.withLock { $0.opened += 1 }
            try? channel.send(
                reply: .diskOpened(sessionID: 1, info), to: message.envelope.requestID,
                fds: [pair.second.raw])
            guard let session = try? pair.first.duplicate() else { return }
            closeBoth(pair)
            FakeSession(service: self, session).serve()
        }
    }

    private func closeBoth(_ pair: consuming SocketPair) {}

    func next(_ request: SessionRequest, inFlight: Int) -> Behaviour {
        let index = seen.withLock { seen in
            seen.requests.append(request)
            seen.mostInFlight = max(seen.mostInFlight, inFlight)
            return seen.requests.count - 1
        }
        return behaviour(index, request)
    }

    func read(_ lba: UInt64, _ blockCount: UInt32) -> [UInt8] {
        let start = Int(lba) * Self.blockByteCount
        return bytes.withLock { Array($0[start..<start + Int(blockCount) * Self.blockByteCount]) }
    }

    func write(_ lba: UInt64, _ data: some Collection<UInt8>) {
        let start = Int(lba) * Self.blockByteCount
        bytes.withLock { $0.replaceSubrange(start..<start + data.count, with: data) }
    }
}

/// One session of the fake worker.
private final class FakeSession {
    private let service: FakeService
    private let channel: Channel<SessionProtocol>
    private let regions = FakeRegions()
    private var rings: [UInt32: FakeRing] = [:]
    private var late: [(due: Int, answer: () -> Void)] = []
    private var count = 0

    init(service: FakeService, _ session: consuming OwnedFD) {
        self.service = service
        channel = Channel(session, role: .server, buffer: MessageBuffer())
    }

    func serve() {
        defer {
            for ring in rings.values {
                ring.stop()
                ring.hangUp()
            }
        }
        while true {
            // What waits is answered when no request comes for a moment: no client waits for ever.
            let patience = late.isEmpty ? nil : Deadline.after(milliseconds: 20)
            do throws(ChannelError) {
                guard
                    case .message(var message) = try channel.receive(deadlineNanoseconds: patience),
                    case .request(let request) = message.envelope.content
                else { return }
                count += 1
                let payload = unsafe Array(message.payload)
                let fd = FDBox(message.fds.take(0))
                guard act(request, message.envelope.requestID, payload, fd) else { return }
                answerDue(count)
            } catch .timedOut {
                answerDue(.max)
            } catch { return }
        }
    }

    private func answerDue(_ now: Int) {
        let due = late.filter { $0.due <= now }
        late.removeAll { $0.due <= now }
        // The newest first: replies come in any order.
        for entry in due.reversed() { entry.answer() }
    }

    /// False when the session is over.
    private func act(
        _ request: SessionRequest, _ id: UInt64, _ payload: [UInt8], _ fd: FDBox
    ) -> Bool {
        switch service.next(request, inFlight: late.count + 1) {
        case .obey: obey(request, id, payload, fd)
        case .fail(let error): try? channel.send(error: error, to: id)
        case .answerLate(let after):
            late.append((count + after, { [self] in obey(request, id, payload, fd) }))
        case .answerStrangerFirst:
            try? channel.send(reply: .done, to: id + 1000)
            obey(request, id, payload, fd)
        case .stallFirst:
            try? channel.send(event: .stalled(reason: "the controller recovers"))
            try? channel.send(event: .resumed(stalledNanoseconds: 5))
            obey(request, id, payload, fd)
        case .tell(let events):
            for event in events { try? channel.send(event: event) }
            obey(request, id, payload, fd)
        case .answerTwice:
            obey(request, id, payload, fd)
            answerAgain(request, id)
        case .ignore: break
        case .die:
            channel.shutdown()
            return false
        case .revoke:
            try? channel.send(event: .ended(WireError(.sessionRevoked, "an operator asked")))
            channel.shutdown()
            return false
        case .answerShort: answer(id, Array(service.read(0, 1).dropLast()))
        }
        return true
    }

    private func answerAgain(_ request: SessionRequest, _ id: UInt64) {
        switch request {
        case .read(_, let blockCount, .inline):
            answer(id, [UInt8](repeating: 0xEE, count: Int(blockCount) * 512))
        case .read: try? channel.send(reply: .read, to: id)
        case .openRing(let ring, _, _):
            guard let made = rings[ring] else { return }
            try? channel.send(
                reply: .ringOpened(ringID: ring, byteCount: UInt64(made.byteCount)), to: id,
                fds: [made.memoryFD.raw, made.kick.fd.raw, made.wake.second.raw])
        case .getDiskInfo:
            var other = service.info
            other.blockCount = 1
            try? channel.send(reply: .diskInfo(other), to: id)
        case .cancel: try? channel.send(reply: .cancelled(false), to: id)
        case .compare: try? channel.send(error: WireError(.compareFailed, "late"), to: id)
        default: try? channel.send(reply: .done, to: id)
        }
    }

    private func openRing(
        _ ring: UInt32, _ submissions: UInt32, _ completions: UInt32, _ id: UInt64
    ) {
        // The ring's thread says the last words on a descriptor of its own.
        guard let last = try? channel.fd.duplicate(),
            let made = try? FakeRing(
                service, regions, id: ring, submissions, completions, script: service.script,
                end: { [box = FDHolder(last)] in box.endSession() })
        else { return }
        rings[ring] = made
        service.add(made)
        let byteCount = UInt64(made.byteCount) + service.script.surplusByteCount
        try? channel.send(
            reply: .ringOpened(ringID: ring, byteCount: byteCount), to: id,
            fds: [made.memoryFD.raw, made.kick.fd.raw, made.wake.second.raw])
    }

    private func answer(_ id: UInt64, _ data: [UInt8]) {
        unsafe data.withUnsafeBytes { bytes in
            try? unsafe channel.send(reply: .read, to: id, payload: bytes)
        }
    }

    private func obey(_ request: SessionRequest, _ id: UInt64, _ payload: [UInt8], _ fd: FDBox) {
        switch request {
        case .read(let lba, let blockCount, .inline):
            return answer(id, service.read(lba, blockCount))
        case .read(let lba, let blockCount, .region(let region, let offset)):
            regions[region]?.put(service.read(lba, blockCount), at: Int(offset))
            try? channel.send(reply: .read, to: id)
            return
        case .write(let lba, _, _, .inline): service.write(lba, payload)
        case .write(let lba, let blockCount, _, .region(let region, let offset)):
            let byteCount = Int(blockCount) * FakeService.blockByteCount
            service.write(lba, regions[region]?.get(at: Int(offset), byteCount) ?? [])
        case .compare(let lba, let blockCount, _):
            guard service.read(lba, blockCount) == payload else {
                try? channel.send(error: WireError(.compareFailed, "they differ"), to: id)
                return
            }
        case .writeZeroes(let range, _, _):
            let byteCount = Int(range.blockCount) * FakeService.blockByteCount
            service.write(range.lba, [UInt8](repeating: 0, count: byteCount))
        case .registerMemory(let region, let byteCount, _, _):
            guard let fd = fd.take(),
                let mapping = try? Mapping(fd, byteCount: Int(byteCount))
            else { return }
            regions[region] = FakeMapping(mapping)
        case .cancel:
            try? channel.send(reply: .cancelled(true), to: id)
            return
        case .getDiskInfo:
            try? channel.send(reply: .diskInfo(service.info), to: id)
            return
        case .openRing(let ring, let submissions, let completions):
            return openRing(ring, submissions, completions, id)
        case .closeRing(let ring): rings.removeValue(forKey: ring)?.stop()
        case .unregisterMemory(let region): regions[region] = nil
        case .flush, .unmap, .verify: break
        }
        try? channel.send(reply: .done, to: id)
    }
}

/// A descriptor of a session that ends it.
private final class FDHolder: Sendable {
    private let fd: OwnedFD
    init(_ fd: consuming OwnedFD) { self.fd = fd }

    func endSession() {
        guard let fd = try? fd.duplicate() else { return }
        let channel = Channel<SessionProtocol>(fd, role: .server, buffer: MessageBuffer())
        try? channel.send(event: .ended(WireError(.sessionRevoked, "an operator asked")))
        channel.shutdown()
    }
}

/// A thread for the fake service.
final class TestThread: @unchecked Sendable {
    private var thread = pthread_t()
    private var isRunning = false

    private final class Body {
        let run: @Sendable () -> Void
        init(_ run: @escaping @Sendable () -> Void) { self.run = run }
    }

    func start(_ run: @escaping @Sendable () -> Void) {
        let body = unsafe Unmanaged.passRetained(Body(run)).toOpaque()
        // SAFETY: the thread takes over the retained body.
        let status = unsafe pthread_create(
            &thread, nil,
            { context in
                if let context = unsafe context {
                    unsafe Unmanaged<Body>.fromOpaque(context).takeRetainedValue().run()
                }
                return nil
            }, body)
        isRunning = status == 0
    }

    func join() {
        if isRunning { _ = pthread_join(thread, nil) }
        isRunning = false
    }
}
