// SPDX-License-Identifier: Apache-2.0
// The supervisor's and the client's side of the worker's protocols, for tests: one call, one
// answer.

import Linux
import Testing
import Wire

/// One connection as a client of a protocol: requests, replies, events.
class Conversation<P: WireProtocol> {
    let channel: Channel<P>
    private(set) var events: [P.Event] = []
    private var unclaimed: [UInt64: Message] = [:]
    fileprivate let notify: NotifySocket?

    init(_ fd: consuming OwnedFD, _ notify: NotifySocket? = nil) {
        channel = Channel(fd, role: .client, buffer: MessageBuffer())
        self.notify = notify
    }

    /// The worker may wait for the service manager, which this is too.
    private static var turnNanoseconds: UInt64 { 5_000_000 }

    /// What came.
    struct Message {
        var envelope: Envelope<P>
        var payload: [UInt8]
        var held: [HeldFD]
    }

    /// The next message; events are collected besides.
    func next() throws -> Message {
        let deadline = patience()
        while true {
            try notify?.pump()
            let received: Received<P>
            do throws(ChannelError) {
                received = try channel.receive(
                    deadlineNanoseconds: MonotonicClock.nowNanoseconds + Self.turnNanoseconds)
            } catch {
                guard error == .timedOut, MonotonicClock.nowNanoseconds < deadline else {
                    throw RigError("no answer: \(error)")
                }
                continue
            }
            switch consume received {
            case .nothing: continue
            case .closed: throw RigError("the worker closed the connection")
            case .rejected(let rejection): throw rejection.error
            case .message(var message):
                if case .event(let event) = message.envelope.content { events.append(event) }
                var held: [HeldFD] = []
                while let fd = message.fds.take(held.count) { held.append(HeldFD(fd)) }
                return Message(
                    envelope: message.envelope, payload: unsafe Array(message.payload), held: held)
            }
        }
    }

    /// The reply to `id`; throws the error when it is one. Those to others are kept: they come in
    /// any order.
    func answer(to id: UInt64) throws -> (reply: P.Reply, payload: [UInt8], held: HeldFD?) {
        let all = try fullAnswer(to: id)
        return (all.reply, all.payload, all.held.first)
    }

    /// The same with all descriptors.
    func fullAnswer(to id: UInt64) throws -> (reply: P.Reply, payload: [UInt8], held: [HeldFD]) {
        while unclaimed[id] == nil {
            let message = try next()
            unclaimed[message.envelope.requestID] = message
        }
        guard let message = unclaimed.removeValue(forKey: id) else {
            throw RigError("no answer to \(id)")
        }
        switch message.envelope.content {
        case .reply(let reply): return (reply, message.payload, message.held)
        case .failure(let error): throw error
        case .request, .event: throw RigError("\(id) was not answered by a reply")
        }
    }

    /// Waits for an event that `select` makes something of.
    func event<Value>(_ select: (P.Event) -> Value?) throws -> Value {
        while true {
            for (index, event) in events.enumerated() {
                if let value = select(event) {
                    events.remove(at: index)
                    return value
                }
            }
            _ = try next()
        }
    }

    func ask(_ request: P.Request) throws -> P.Reply { try answer(to: send(request)).reply }

    @discardableResult
    func send(
        _ request: P.Request, payload: [UInt8] = [], fds: [CInt] = [], deadline: UInt64? = nil
    ) throws -> UInt64 {
        try unsafe payload.withUnsafeBytes {
            try unsafe channel.send(
                request: request, deadlineNanoseconds: deadline, payload: $0, fds: fds)
        }
    }

    /// The error of a request that must not succeed.
    func refusal(
        _ request: P.Request, payload: [UInt8] = [], fds: [CInt] = [], deadline: UInt64? = nil
    ) throws -> WireError {
        do {
            let id = try send(request, payload: payload, fds: fds, deadline: deadline)
            throw RigError("\(request) was answered with \(try answer(to: id).reply)")
        } catch let error as WireError {
            return error
        }
    }

    /// Waits until the worker ends the connection.
    func end() throws {
        do {
            while true { _ = try next() }
        } catch let error as RigError {
            guard error.description == "the worker closed the connection" else { throw error }
        }
    }
}

/// The supervisor's side.
final class Supervisor: Conversation<WorkerProtocol> {
    /// Supervisors after this one must not repeat its numbers.
    private var nextSession = MonotonicClock.nowNanoseconds

    func opening(
        _ access: AccessMode = .readWrite, nsid: UInt32 = 1, shared: Bool = false
    ) -> OpenSession {
        nextSession += 1
        return OpenSession(
            sessionID: nextSession, nsid: nsid, access: access, shared: shared,
            disk: "disk\(nsid)", clientPID: 4711, clientUID: 42)
    }

    /// Opens a session.
    func open(
        _ access: AccessMode = .readWrite, nsid: UInt32 = 1, shared: Bool = false
    ) throws -> Client {
        let opening = opening(access, nsid: nsid, shared: shared)
        let answer = try answer(to: send(.openSession(opening)))
        guard case .sessionOpened(let info) = answer.reply, let held = answer.held else {
            throw RigError("\(answer.reply) without a descriptor")
        }
        return Client(try held.fd.duplicate(), info, opening.sessionID, notify)
    }

    /// The value of one path.
    func inspect(_ path: String) throws -> String? {
        guard case .inspect(let page) = try ask(.inspect(prefix: path, after: nil)) else {
            return nil
        }
        return page.entries.first { $0.path == path }?.value
    }

    /// Asks until the value of a path is what it should become.
    func wait(until path: String, is wanted: String) throws {
        let deadline = patience()
        while try inspect(path) != wanted {
            guard MonotonicClock.nowNanoseconds < deadline else {
                throw RigError("\(path) has not become \(wanted)")
            }
        }
    }

    func device() throws -> WorkerDevice {
        guard case .device(let device) = try ask(.getDevice) else { throw RigError("no device") }
        return device
    }

    /// Why the next session ends, and which one it is.
    func sessionEnd() throws -> (id: UInt64, reason: WireError) {
        try event { event in
            if case .sessionEnded(let id, let reason, _) = event { return (id, reason) }
            return nil
        }
    }

    /// Waits for a state.
    func entered(_ wanted: DeviceState) throws -> String {
        try event { event in
            if case .stateChanged(let state, let reason) = event, state == wanted { return reason }
            return nil
        }
    }
}

/// A client's side of a session.
final class Client: Conversation<SessionProtocol> {
    let info: DiskInfo
    let id: UInt64

    init(_ fd: consuming OwnedFD, _ info: DiskInfo, _ id: UInt64, _ notify: NotifySocket? = nil) {
        self.info = info
        self.id = id
        super.init(fd, notify)
    }

    func write(_ lba: UInt64, _ data: [UInt8], fua: Bool = false) throws {
        let blocks = UInt32(data.count / Int(info.blockByteCount))
        let id = try send(
            .write(lba: lba, blockCount: blocks, fua: fua, location: .inline), payload: data)
        _ = try answer(to: id)
    }

    func read(_ lba: UInt64, _ blocks: UInt32) throws -> [UInt8] {
        try answer(to: send(.read(lba: lba, blockCount: blocks, location: .inline))).payload
    }

    func register(_ id: UInt64, _ memory: SharedMemory, readOnly: Bool = false) throws {
        let request = SessionRequest.registerMemory(
            regionID: id, byteCount: UInt64(memory.memory.byteCount), readOnly: readOnly)
        _ = try answer(to: send(request, fds: [memory.fd.raw]))
    }

    /// The reason with which the session ends.
    func reason() throws -> WireError {
        try event { event in
            if case .ended(let reason) = event { return reason }
            return nil
        }
    }
}
