// SPDX-License-Identifier: Apache-2.0
// The system bus (sd-bus, libsystemd 252) on the event loop: calls with deadlines, signals, and the
// way back after the bus went away.

internal import CSystemd
internal import Glibc
public import Linux

/// Why something asked over the bus did not happen.
public enum BusError: Error, Sendable, Equatable, CustomStringConvertible {
    /// There is no bus, or it went away before the answer came.
    case disconnected(call: String, reason: String)
    /// Whoever was asked said no: the D-Bus error's name and message.
    case refused(call: String, name: String, message: String)
    /// No answer came in time.
    case timedOut(call: String)
    /// The answer is not what was asked for.
    case badReply(call: String)
    /// The call cannot even be written down.
    case badCall(call: String, SystemCallError)
    /// As many calls wait for an answer as may.
    case tooManyCalls(call: String)

    /// Names the call and says what came of it.
    public var description: String {
        switch self {
        case .disconnected(let call, let reason):
            "bus: \(call): no connection (\(reason)); is dbus running?"
        case .refused(let call, let name, let message): "bus: \(call): \(message) (\(name))"
        case .timedOut(let call): "bus: \(call): no answer in time"
        case .badReply(let call): "bus: \(call): the answer makes no sense"
        case .badCall(let call, let error): "bus: \(call): cannot be asked: \(error)"
        case .tooManyCalls(let call): "bus: \(call): too many calls wait for an answer"
        }
    }
}

/// What is called: an object of a bus name, and a method of an interface of it.
public struct BusMethod: Sendable, Equatable {
    /// The bus name.
    public var destination: String
    /// The object.
    public var path: String
    /// The interface.
    public var interface: String
    /// The method.
    public var member: String

    /// Names a method.
    public init(destination: String, path: String, interface: String, member: String) {
        self.destination = destination
        self.path = path
        self.interface = interface
        self.member = member
    }
}

/// Which signals are wanted. What a signal says is a hint: any local user can send one that looks
/// alike to this process alone. Ask for what counts.
public struct BusSignal: Sendable, Equatable {
    /// The sender's bus name.
    public var sender: String
    /// The object.
    public var path: String
    /// The interface.
    public var interface: String
    /// The signal.
    public var member: String

    /// Names a signal.
    public init(sender: String, path: String, interface: String, member: String) {
        self.sender = sender
        self.path = path
        self.interface = interface
        self.member = member
    }
}

/// A subscription; letting go of it ends it.
@Control
@safe
public final class BusWatch {
    fileprivate let signal: BusSignal
    fileprivate let handler: @Control ([BusValue]) -> Void
    // Only touched on the loop's thread.
    nonisolated(unsafe) fileprivate var slot: OpaquePointer?

    fileprivate init(_ signal: BusSignal, _ handler: @escaping @Control ([BusValue]) -> Void) {
        self.signal = signal
        self.handler = handler
    }

    isolated deinit { cancel() }

    /// The handler is not called any more.
    public func cancel() {
        if let slot = unsafe slot { _ = unsafe sd_bus_slot_unref(slot) }
        unsafe slot = nil
    }
}

/// A connection to a message bus that comes back by itself.
///
/// It is made at the first call or watch, never blocks, and is made again for the next call after
/// it was lost; while something is watched, also without a call, with a back-off.
@Control
@safe
public final class Bus {
    /// Calls that wait for an answer: more means that nobody answers.
    public static let pendingCallsMax = 1024
    /// The first pause before a lost connection is tried again, and the longest.
    static let backOffFirstNanoseconds: UInt64 = 100_000_000
    static let backOffLastNanoseconds: UInt64 = 5_000_000_000
    /// Where the system bus is, unless DBUS_SYSTEM_BUS_ADDRESS says otherwise.
    nonisolated static let systemAddress = "unix:path=/run/dbus/system_bus_socket"

    private let address: String
    private var bus: OpaquePointer?
    private var disconnectedSlot: OpaquePointer?
    private var watches: [WeakWatch] = []
    private var pending = 0
    private var backOff = Bus.backOffFirstNanoseconds
    private var retry: Timer?
    /// Called after each new connection was begun, before anything else is sent on it.
    public var onConnect: (@Control () -> Void)?
    /// Called when a connection was lost.
    public var onDisconnect: (@Control () -> Void)?

    private struct WeakWatch {
        weak var watch: BusWatch?
    }

    /// Uses the system bus, or the bus at an address. Connects later.
    public init(address: String? = nil) {
        self.address =
            address ?? Environment.value("DBUS_SYSTEM_BUS_ADDRESS") ?? Self.systemAddress
    }

    isolated deinit { drop() }

    /// Whether there is a connection, possibly one that is still being made.
    public var isConnected: Bool { unsafe bus != nil }

    // MARK: Connection

    private func connection(_ call: String) throws(BusError) -> OpaquePointer {
        if let bus = unsafe bus { return unsafe bus }
        do throws(SystemCallError) {
            return unsafe try connect()
        } catch {
            throw .disconnected(call: call, reason: "\(error)")
        }
    }

    private func connect() throws(SystemCallError) -> OpaquePointer {
        var made: OpaquePointer?
        try checked("sd_bus_new", unsafe sd_bus_new(&made))
        guard let made = unsafe made else { throw SystemCallError("sd_bus_new", errno: ENOMEM) }
        do throws(SystemCallError) {
            unsafe try begin(made)
        } catch {
            _ = unsafe sd_bus_close_unref(made)
            throw error
        }
        unsafe bus = unsafe made
        backOff = Self.backOffFirstNanoseconds
        onConnect?()
        for entry in watches {
            if let watch = entry.watch { unsafe install(watch, made) }
        }
        return unsafe made
    }

    private func begin(_ made: OpaquePointer) throws(SystemCallError) {
        try checked("sd_bus_set_address \(address)", unsafe sd_bus_set_address(made, address))
        try checked("sd_bus_set_bus_client", unsafe sd_bus_set_bus_client(made, 1))
        try checked("connect \(address)", unsafe sd_bus_start(made))
        let own = unsafe Unmanaged.passUnretained(self).toOpaque()
        // Local: the library itself sends it, and nothing else can.
        let local = "org.freedesktop.DBus.Local"
        try checked(
            "sd_bus_match_signal",
            unsafe sd_bus_match_signal_async(
                made, &disconnectedSlot, local, "/org/freedesktop/DBus/Local", local,
                "Disconnected",
                { _, own, _ in
                    guard let own = unsafe own else { return 0 }
                    Control.assumeIsolated {
                        unsafe Unmanaged<Bus>.fromOpaque(own).takeUnretainedValue().lost()
                    }
                    return 0
                }, nil, own))
        try checked(
            "sd_bus_attach_event",
            unsafe sd_bus_attach_event(
                made, EventLoop.current.event, Int32(SD_EVENT_PRIORITY_NORMAL)))
    }

    private func lost() {
        // The library is still inside the connection that ended.
        do throws(SystemCallError) {
            try EventLoop.current.defer { [weak self] in self?.end() }.keep()
        } catch {
            end()
        }
    }

    private func end() {
        guard isConnected else { return }
        drop()
        onDisconnect?()
        reconnectLater()
    }

    /// Ends the connection; calls that wait for an answer fail.
    private func drop() {
        for entry in watches { entry.watch?.cancel() }
        if let slot = unsafe disconnectedSlot { _ = unsafe sd_bus_slot_unref(slot) }
        unsafe disconnectedSlot = nil
        guard let old = unsafe bus else { return }
        unsafe bus = nil
        _ = unsafe sd_bus_detach_event(old)
        _ = unsafe sd_bus_close_unref(old)
    }

    private func reconnectLater() {
        watches.removeAll { $0.watch == nil }
        guard !watches.isEmpty, unsafe bus == nil else { return }
        let pause = backOff
        backOff = min(backOff * 2, Self.backOffLastNanoseconds)
        retry = try? EventLoop.current.after(nanoseconds: pause) { [weak self] in
            guard let self, unsafe bus == nil else { return }
            do throws(SystemCallError) {
                _ = unsafe try connect()
            } catch {
                reconnectLater()
            }
        }
    }

    // MARK: Calls

    /// Calls a method and waits for its answer until a point of CLOCK_MONOTONIC.
    public func call(
        _ method: BusMethod, _ arguments: [BusValue] = [], deadlineNanoseconds: UInt64
    ) async throws(BusError) -> [BusValue] {
        let name = "\(method.member) of \(method.path)"
        guard pending < Self.pendingCallsMax else { throw .tooManyCalls(call: name) }
        let bus = unsafe try connection(name)
        let answer = OneShot<[BusValue]>()
        unsafe try send(bus, method, arguments, PendingCall(name, answer))
        pending += 1
        defer { pending -= 1 }
        do {
            let timer = try EventLoop.current.at(deadlineNanoseconds) {
                answer.fail(BusError.timedOut(call: name))
            }
            defer { timer.cancel() }
            return try await answer.value()
        } catch let error as BusError {
            throw error
        } catch {
            throw .disconnected(call: name, reason: "\(error)")
        }
    }

    private func send(
        _ bus: OpaquePointer, _ method: BusMethod, _ arguments: [BusValue], _ call: PendingCall
    ) throws(BusError) {
        var message: OpaquePointer?
        do throws(SystemCallError) {
            try checked(
                "sd_bus_message_new_method_call",
                unsafe sd_bus_message_new_method_call(
                    bus, &message, method.destination, method.path, method.interface,
                    method.member))
            guard let message = unsafe message else { return }
            defer { _ = unsafe sd_bus_message_unref(message) }
            // Whoever is asked may not start something for it.
            _ = unsafe sd_bus_message_set_auto_start(message, 0)
            let writer = unsafe BusWriter(message)
            for argument in arguments { try writer.append(argument) }
            unsafe try post(bus, message, call)
        } catch {
            throw .badCall(call: call.name, error)
        }
    }

    private func post(
        _ bus: OpaquePointer, _ message: OpaquePointer, _ call: PendingCall
    ) throws(SystemCallError) {
        var slot: OpaquePointer?
        let kept = unsafe Unmanaged.passRetained(call)
        let result = unsafe sd_bus_call_async(
            bus, &slot, message,
            { reply, call, _ in
                guard let reply = unsafe reply, let call = unsafe call else { return 0 }
                Control.assumeIsolated {
                    unsafe Unmanaged<PendingCall>.fromOpaque(call).takeUnretainedValue()
                        .answered(reply)
                }
                return 0
            }, kept.toOpaque(), Self.callMicrosecondsMax)
        guard result >= 0, let slot = unsafe slot else {
            unsafe kept.release()
            throw SystemCallError("sd_bus_call_async", errno: -result)
        }
        // The slot owns the call, and the connection owns the slot.
        _ = unsafe sd_bus_slot_set_destroy_callback(slot) { call in
            guard let call = unsafe call else { return }
            Control.assumeIsolated {
                unsafe Unmanaged<PendingCall>.fromOpaque(call).takeRetainedValue().abandoned()
            }
        }
        _ = unsafe sd_bus_slot_set_floating(slot, 1)
        _ = unsafe sd_bus_slot_unref(slot)
    }

    /// How long the library keeps a call whose caller has given up: an answer may still come.
    private static let callMicrosecondsMax: UInt64 = 90_000_000

    // MARK: Signals

    /// Calls `handler` for each signal of a kind, for as long as the result is kept, through every
    /// loss of the connection; signals sent meanwhile are lost.
    public func watch(
        _ signal: BusSignal, _ handler: @escaping @Control ([BusValue]) -> Void
    ) -> BusWatch {
        let watch = BusWatch(signal, handler)
        watches.removeAll { $0.watch == nil }
        watches.append(WeakWatch(watch: watch))
        do throws(BusError) {
            unsafe install(watch, try connection("watching"))
        } catch {
            reconnectLater()
        }
        return watch
    }

    private func install(_ watch: BusWatch, _ bus: OpaquePointer) {
        guard unsafe watch.slot == nil else { return }
        let signal = watch.signal
        // A failure shows as a lost connection: the library then cannot even allocate.
        _ = unsafe sd_bus_match_signal_async(
            bus, &watch.slot, signal.sender, signal.path, signal.interface, signal.member,
            { message, watch, _ in
                guard let message = unsafe message, let watch = unsafe watch else { return 0 }
                Control.assumeIsolated {
                    let watch = unsafe Unmanaged<BusWatch>.fromOpaque(watch).takeUnretainedValue()
                    var reader = unsafe BusReader(message)
                    if let values = reader.values() { watch.handler(values) }
                }
                return 0
            }, { _, _, _ in 0 }, unsafe Unmanaged.passUnretained(watch).toOpaque())
    }
}

/// A call that waits for its answer.
@Control
private final class PendingCall {
    let name: String
    private let answer: OneShot<[BusValue]>

    init(_ name: String, _ answer: OneShot<[BusValue]>) {
        self.name = name
        self.answer = answer
    }

    func answered(_ reply: OpaquePointer) {
        if let error = unsafe sd_bus_message_get_error(reply) {
            let kind = unsafe Self.text(error.pointee.name)
            let message = unsafe Self.text(error.pointee.message)
            return answer.fail(Self.failure(name, kind, message))
        }
        var reader = unsafe BusReader(reply)
        guard let values = reader.values() else {
            return answer.fail(BusError.badReply(call: name))
        }
        answer.succeed(values)
    }

    private static func text(_ text: UnsafePointer<CChar>?) -> String {
        guard let text = unsafe text else { return "" }
        return unsafe String(cString: text)
    }

    func abandoned() {
        answer.fail(BusError.disconnected(call: name, reason: "the bus went away"))
    }

    private static func failure(_ call: String, _ name: String, _ message: String) -> BusError {
        switch name {
        // Time is kept by `call`: this is the end of the connection, or of whoever was asked.
        case "org.freedesktop.DBus.Error.NoReply", "org.freedesktop.DBus.Error.Disconnected":
            .disconnected(call: call, reason: String(message.prefix(1024)))
        default:
            .refused(
                call: call, name: String(name.prefix(255)), message: String(message.prefix(1024)))
        }
    }
}
