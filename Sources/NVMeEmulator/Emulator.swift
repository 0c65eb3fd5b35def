// SPDX-License-Identifier: Apache-2.0
// The event loop: one thread that serves queues from mapped memory while there is work, and sleeps
// when there is none.

internal import CLinux
internal import CMemory
public import Linux
internal import NVMeSpec

/// Survived accesses to memory that a client had truncated.
var sigbusCount: UInt64 { nv_sigbus_count() }

/// The emulator as a whole: a controller, the sockets it is reached by, and the loop.
@safe
public final class Emulator {
    /// Passes with work between two looks at the sockets: admin traffic waits some tens of
    /// microseconds at most.
    private static let passesPerLook: UInt32 = 16
    /// Idle passes between two looks at the client's socket while spinning.
    private static let spinsPerLook: UInt32 = 8
    /// How often the other descriptors are looked at while the queues are busy.
    private static let otherLookNanoseconds: UInt64 = 2_000_000
    /// The longest sleep while doorbells can change without a message.
    private static let tickNanoseconds: UInt64 = 1_000_000
    /// Control clients at once; more are closed.
    private static let maxControlClients = 8

    private let options: EmulatorOptions
    private let device: ServedDevice
    private let listener: OwnedFD
    private let control: SharedFD?
    private let termination: OwnedFD
    private let report: (String) -> Void
    private var session: VFIOUserSession?
    private var controlClients: [SharedFD] = []
    private var isStopping = false
    private var otherLookAt: UInt64 = 0

    /// Prepares everything; `report` receives lines for the operator's log.
    public init(
        options: EmulatorOptions, listener: consuming OwnedFD, control: consuming OwnedFD?,
        report: @escaping (String) -> Void
    ) throws {
        try options.validate()
        self.options = options
        self.report = report
        try checked("sigaction SIGBUS", nv_install_sigbus_handler())
        try checked("SIGPIPE", nv_ignore_sigpipe())
        termination = OwnedFD(adopting: try checked("signalfd", nv_termination_fd()))
        try listener.setNonblocking(true)
        self.listener = listener
        if let control { self.control = SharedFD(control) } else { self.control = nil }
        device = try ServedDevice(options: options)
    }

    /// All counters as one JSON object.
    public var statistics: String { ControlCommands(device: device).statistics() }

    /// Serves until SIGTERM or SIGINT.
    public func run() throws(SystemCallError) {
        while !isStopping {
            if isServing {
                try serve()
            } else {
                try wait(nanoseconds: nil)
            }
        }
        endSession("stopping")
    }

    /// Whether the queues are served: for a client, or for one that has gone.
    private var isServing: Bool {
        session != nil || options.keepsState && device.controller.cc.en
    }

    // MARK: One client

    /// Serves the queues until there is nothing to do for the spin time, then sleeps once.
    private func serve() throws(SystemCallError) {
        let controller = device.controller
        let spin = options.spinMicroseconds &* 1_000
        var passes: UInt32 = 0
        var idleSince: UInt64 = 0
        while isServing, !isStopping {
            if controller.pass() {
                passes &+= 1
                idleSince = 0
                if passes % Self.passesPerLook == 0 { try look() }
                continue
            }
            if controller.wantsDisconnect { return endSession("fault: disconnect") }
            passes &+= 1
            if passes % Self.spinsPerLook == 0 || idleSince == 0, handleMessages() {
                idleSince = 0
                continue
            }
            let now = MonotonicClock.nowNanoseconds
            if idleSince == 0 { idleSince = now }
            if now &- idleSince < spin, controller.canBePolled {
                nv_pause()
                continue
            }
            guard controller.prepareToSleep() else { continue }
            return try wait(nanoseconds: sleepTime(now))
        }
    }

    /// How long to sleep at most; nil when only a descriptor can end it.
    private func sleepTime(_ now: UInt64) -> UInt64? {
        var due = device.controller.nextDeadline
        if let reply = session?.stream.nextDeadline { due = min(due ?? reply, reply) }
        var time = due.map { $0 > now ? $0 &- now : 0 }
        if options.doorbells == .mapped, session != nil, device.controller.canBePolled {
            time = min(time ?? Self.tickNanoseconds, Self.tickNanoseconds)
        }
        return time
    }

    /// Looks at all descriptors without waiting, the client's socket first.
    private func look() throws(SystemCallError) {
        _ = handleMessages()
        let now = MonotonicClock.nowNanoseconds
        guard now >= otherLookAt else { return }
        otherLookAt = now &+ Self.otherLookNanoseconds
        try wait(nanoseconds: 0)
    }

    /// Handles messages of the client; true when there were some. Ends the session when it is over.
    private func handleMessages() -> Bool {
        guard let session else { return false }
        do throws(StreamEnd) {
            return try session.handleMessages()
        } catch {
            switch error {
            case .closed: endSession("the client has disconnected")
            case .broken(let reason): endSession("dropping the client: \(reason)")
            }
            return true
        }
    }

    private func endSession(_ reason: String) {
        guard let session else {
            device.controller.wantsDisconnect = false
            return
        }
        self.session = nil
        session.end()
        report(reason)
    }

    // MARK: Waiting

    /// Waits for any descriptor (nil: for ever) and handles what is ready.
    private func wait(nanoseconds: UInt64?) throws(SystemCallError) {
        var entries: [nv_poll_entry] = []
        func add(_ fd: CInt, _ events: Int16) {
            entries.append(nv_poll_entry(fd: fd, events: events, revents: 0))
        }
        add(termination.raw, NV_POLLIN)
        // While a client is served the next one waits in the backlog.
        add(session == nil ? listener.raw : -1, NV_POLLIN)
        add(session?.stream.fd.raw ?? -1, clientEvents)
        add(control?.fd.raw ?? -1, NV_POLLIN)
        for client in controlClients { add(client.fd.raw, NV_POLLIN) }
        let timeout = nanoseconds.map { Int64(clamping: $0) } ?? -1
        let ready = unsafe nv_poll_many(&entries, CInt(entries.count), timeout)
        if ready == -Errno.interrupted || ready == 0 { return }
        try checked("ppoll", ready)
        if entries[0].revents != 0 { isStopping = true }
        if entries[1].revents != 0 { accept() }
        if entries[2].revents != 0 { _ = handleMessages() }
        if entries[3].revents != 0 { acceptControl() }
        for index in (4..<entries.count).reversed() where entries[index].revents != 0 {
            answerControl(index - 4)
        }
    }

    private var clientEvents: Int16 {
        guard let stream = session?.stream else { return 0 }
        return (stream.isCongested ? 0 : NV_POLLIN) | (stream.wantsWritable ? NV_POLLOUT : 0)
    }

    private func accept() {
        do throws(SystemCallError) {
            guard let fd = try UnixSocket.accept(listener) else { return }
            device.controller.counters.connections &+= 1
            device.controller.hasServedIO = false
            session = VFIOUserSession(device: device, fd: fd)
        } catch {
            report("a client could not be accepted: \(error)")
        }
    }

    // MARK: Control

    private func acceptControl() {
        guard let control, let fd = try? UnixSocket.accept(control.fd) else { return }
        guard controlClients.count < Self.maxControlClients else { return }
        controlClients.append(SharedFD(fd))
    }

    private func answerControl(_ index: Int) {
        let fd = controlClients[index].fd.raw
        var buffer = [UInt8](repeating: 0, count: 4096)
        let count = unsafe buffer.withUnsafeMutableBytes { bytes -> Int in
            guard let base = bytes.baseAddress else { return 0 }
            var info = nv_message_info()
            // Descriptors have no meaning here: none are taken.
            return unsafe nv_receive_message(fd, base, bytes.count, nil, &info, 0, 1)
        }
        if count == -Int(Errno.again) { return }
        guard count > 0 else {
            controlClients.remove(at: index)
            return
        }
        let line = String(decoding: buffer[0..<count], as: UTF8.self)
        let answer = Array(ControlCommands(device: device).execute(line).utf8)
        _ = unsafe answer.withUnsafeBytes {
            unsafe nv_send_message(fd, $0.baseAddress, $0.count, nil, 0, nil, 0, 1)
        }
    }
}

/// A descriptor that an array or an optional property can hold.
private final class SharedFD {
    let fd: OwnedFD

    init(_ fd: consuming OwnedFD) { self.fd = fd }
}

/// Tells the service manager (`$NOTIFY_SOCKET`) something, as `READY=1`; nothing happens without
/// one.
public func notifyServiceManager(_ message: String) throws(SystemCallError) {
    try checked("notify", unsafe nv_notify_plain(message))
}
