// SPDX-License-Identifier: Apache-2.0
// The supervisor's end of the control connection to `ServiceManager`.

public import Linux
public import Systemd

/// Asks `nvmed --standalone`'s manager over the descriptor named `manager`.
@Control
public final class ServiceManagerClient: UnitManager {
    /// The name of the descriptor among those a plain service is started with.
    public nonisolated static let descriptorName = "manager"
    /// How long an answer may take: the manager never waits for anything.
    static let answerTimeoutNanoseconds: UInt64 = 10_000_000_000
    /// How long a stop may take: the longest stop timeout of a template, and some.
    static let stopTimeoutNanoseconds: UInt64 = 60_000_000_000

    /// Called for each event of any unit.
    public var onEvent: (@Control (UnitEvent) -> Void)?
    /// Called once when the manager is gone.
    public var onDisconnect: (@Control () -> Void)?

    private let connection: ControlConnection
    private var answers: [OneShot<String>] = []
    private var stops: [UnitName: [OneShot<Void>]] = [:]

    /// Takes over the connection.
    public init(_ fd: consuming OwnedFD) throws(SystemCallError) {
        connection = try ControlConnection(fd, byteCountMax: Request.replyByteCountMax)
        connection.onMessage = { [weak self] bytes in self?.take(bytes) }
        connection.onEnd = { [weak self] in self?.disconnected() }
    }

    private func take(_ bytes: [UInt8]) {
        let message = String(decoding: bytes, as: UTF8.self)
        guard let event = UnitEvent(message: message) else {
            guard !answers.isEmpty else { return }
            return answers.removeFirst().succeed(message)
        }
        if case .stopped(let unit) = event {
            for waiter in stops.removeValue(forKey: unit) ?? [] { waiter.succeed(()) }
        }
        onEvent?(event)
    }

    private func disconnected() {
        let waiters = stops.values.joined()
        for answer in answers { answer.fail(UnitManagerError.disconnected) }
        for waiter in waiters { waiter.fail(UnitManagerError.disconnected) }
        answers = []
        stops = [:]
        onDisconnect?()
    }

    /// The text after `ok`.
    private func ask(_ request: String) async throws(UnitManagerError) -> String {
        guard connection.isOpen else { throw .disconnected }
        let answer = OneShot<String>()
        answers.append(answer)
        connection.send(request)
        let text = try await wait(answer, Self.answerTimeoutNanoseconds, request)
        if text == "ok" { return "" }
        if text.hasPrefix("ok ") { return String(text.dropFirst(3)) }
        guard text.hasPrefix("error ")
        else { throw .badReply(request: request, reply: text) }
        throw .refused(request: request, reason: String(text.dropFirst(6)))
    }

    /// A late answer still takes its place in the order, and is ignored.
    private func wait<Value: Sendable>(
        _ value: OneShot<Value>, _ nanoseconds: UInt64, _ request: String
    ) async throws(UnitManagerError) -> Value {
        do {
            let timer = try EventLoop.current.after(nanoseconds: nanoseconds) {
                value.fail(UnitManagerError.timedOut(request: request))
            }
            defer { timer.cancel() }
            return try await value.value()
        } catch let error as UnitManagerError {
            throw error
        } catch {
            // Cancelled, or no timer to be had.
            throw .timedOut(request: request)
        }
    }

    /// See ``UnitManager/listen(_:)``.
    public func listen(_ unit: UnitName) async throws(UnitManagerError) -> String {
        try await ask("listen \(unit)")
    }

    /// See ``UnitManager/stop(_:)``.
    public func stop(_ unit: UnitName) async throws(UnitManagerError) {
        let stopped = OneShot<Void>()
        stops[unit, default: []].append(stopped)
        do throws(UnitManagerError) {
            if try await ask("stop \(unit)") != "stopping" { stopped.succeed(()) }
        } catch {
            stops[unit]?.removeAll { $0 === stopped }
            throw error
        }
        try await wait(stopped, Self.stopTimeoutNanoseconds, "stop \(unit)")
    }

    /// See ``UnitManager/restart(_:)``.
    public func restart(_ unit: UnitName) async throws(UnitManagerError) {
        _ = try await ask("restart \(unit)")
    }

    /// See ``UnitManager/kill(_:signal:)``.
    public func kill(_ unit: UnitName, signal: Int32) async throws(UnitManagerError) {
        _ = try await ask("kill \(unit) \(signal)")
    }

    /// See ``UnitManager/status(_:)``.
    public func status(_ unit: UnitName) async throws(UnitManagerError) -> UnitStatus {
        let answer = try await ask("status \(unit)")
        guard let status = UnitStatus(message: answer)
        else { throw .badReply(request: "status \(unit)", reply: answer) }
        return status
    }

    /// See ``UnitManager/forget(_:)``.
    public func forget(_ unit: UnitName) async throws(UnitManagerError) {
        _ = try await ask("forget \(unit)")
    }

    /// See ``UnitManager/list()``.
    public func list() async throws(UnitManagerError) -> [UnitName] {
        try await ask("list").split(separator: " ").compactMap { UnitName(String($0)) }
    }
}
