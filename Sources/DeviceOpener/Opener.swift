// SPDX-License-Identifier: Apache-2.0
// The opener's socket and its connections: bounded in number, in messages, and in time.

internal import DiskConfig
internal import Linux
internal import Systemd
internal import VFIO
internal import Wire

/// Bounds of the opener, each with its reason.
enum OpenerLimits {
    /// Connections at one time: every worker has one for a moment only.
    static let connections = 64
    /// Connections of one user at one time: workers share a user, and strangers must not take all.
    static let connectionsPerUser = 32
    /// Connections accepted in one turn of the loop.
    static let acceptsPerTurn = 16
    /// Messages of one connection in one turn.
    static let messagesPerTurn = 4
    /// A connection that says nothing this long is closed: workers speak at once.
    static let silenceNanoseconds: UInt64 = 10_000_000_000
    /// Without a connection this long, the process ends; its socket starts it again.
    static let idleNanoseconds: UInt64 = 60_000_000_000
}

/// What the opener does to the machine; a test has its own.
struct OpenerActions: Sendable {
    /// Opens a device.
    var open: @Sendable (OpenableDevice, _ reset: Bool) throws(VFIOError) -> VFIODescriptors
    /// Spreads the interrupts of a device; how many there were.
    var setAffinity: @Sendable (OpenableDevice) throws(VFIOError) -> Int
    /// Finds the physical addresses of a memory file.
    var translate: @Sendable (borrowing OwnedFD, UInt64) throws(VFIOError) -> [UInt64]

    /// What really happens.
    static var real: OpenerActions {
        OpenerActions(
            open: { device, reset throws(VFIOError) in
                try KernelVFIO.open(
                    device.address, mode: device.mode,
                    reset: reset || device.alwaysResets ? .flr : .none,
                    afterwards: device.alwaysResets ? .flr : .none)
            },
            setAffinity: { device throws(VFIOError) in
                try KernelInterrupts.setAffinity(
                    device.address, processors: device.interruptAffinity)
            },
            translate: { fd, byteCount throws(VFIOError) in
                try PhysicalMemory.addresses(of: fd, byteCount: byteCount)
            })
    }
}

/// The listening socket and everybody who is connected.
@Control
final class Opener {
    private let listener: OwnedFD
    private let configuration: @Sendable () -> Configuration
    private let actions: OpenerActions
    private let log: Log
    private let buffer = MessageBuffer()
    private var source: DescriptorSource?
    private var connections: [UInt64: OpenerConnection] = [:]
    private var lastConnection: UInt64 = 0
    private var idle: Timer?
    /// Called when nobody has asked for long.
    private let onIdle: @Control () -> Void

    /// Serves a listening socket.
    init(
        _ listener: consuming OwnedFD, configuration: @escaping @Sendable () -> Configuration,
        actions: OpenerActions, log: Log, onIdle: @escaping @Control () -> Void
    ) throws(SystemCallError) {
        self.listener = listener
        self.configuration = configuration
        self.actions = actions
        self.log = log
        self.onIdle = onIdle
        try self.listener.setNonblocking(true)
        source = try EventLoop.current.watch(self.listener, .readable) { [weak self] _ in
            self?.accept()
        }
        rest()
    }

    private func rest() {
        idle?.cancel()
        idle = nil
        guard connections.isEmpty else { return }
        idle = try? EventLoop.current.after(nanoseconds: OpenerLimits.idleNanoseconds) {
            [weak self] in self?.onIdle()
        }
    }

    private func accept() {
        for _ in 0..<OpenerLimits.acceptsPerTurn {
            do throws(SystemCallError) {
                guard let fd = try UnixSocket.accept(listener) else { return }
                try admit(fd)
            } catch {
                log.warning("a connection was not taken: \(error); ignoring")
                return
            }
        }
    }

    private func admit(_ fd: consuming OwnedFD) throws(SystemCallError) {
        let peer = try UnixSocket.peer(of: fd)
        let asker = Asker(uid: peer.uid, pid: peer.pid, unit: UnixSocket.peerUnit(of: fd))
        let ofUser = connections.values.count { $0.asker.uid == asker.uid }
        guard connections.count < OpenerLimits.connections,
            asker.uid == 0 || ofUser < OpenerLimits.connectionsPerUser
        else {
            let channel = Channel<OpenerProtocol>(fd, role: .server, buffer: buffer)
            // It is only a courtesy: the connection is closed either way.
            try? channel.send(
                error: WireError(.resourceExhausted, "too many connections; try again"), to: 0)
            log.warning("process \(asker.pid) was refused: too many connections")
            return channel.shutdown()
        }
        lastConnection &+= 1
        let number = lastConnection
        connections[number] = try OpenerConnection(
            fd, asker: asker, buffer: buffer, log: log,
            answer: { [weak self] request, fds throws(WireError) in
                guard let self else {
                    throw WireError(.shuttingDown, "the opener is leaving; try again")
                }
                return try answer(request, asker, &fds)
            },
            onEnd: { [weak self] in
                self?.connections[number] = nil
                self?.rest()
            })
        rest()
    }

    // MARK: Requests

    private func answer(
        _ request: OpenerRequest, _ asker: Asker, _ fds: inout ReceivedFDs
    ) throws(WireError) -> OpenerAnswer {
        do throws(WireError) {
            try OpenerPolicy.authorise(asker, request.device)
            let device = try OpenerPolicy.find(request.device, in: configuration())
            return try act(request, device, &fds)
        } catch {
            log.error("device \(request.device), process \(asker.pid): \(error.message)")
            throw error
        }
    }

    private func act(
        _ request: OpenerRequest, _ device: OpenableDevice, _ fds: inout ReceivedFDs
    ) throws(WireError) -> OpenerAnswer {
        do throws(VFIOError) {
            switch request {
            case .openDevice(_, let reset):
                let opened = try actions.open(device, reset)
                log.notice(
                    "device \(device.name): \(device.address) opened through "
                        + "\(opened.interface.rawValue)" + (reset ? " after a reset" : ""))
                return OpenerAnswer(
                    reply: .deviceOpened(
                        DeviceOpened(
                            interface: opened.interface.onWire,
                            addressSpace: opened.addressSpace, address: device.address)),
                    descriptors: opened)
            case .setInterruptAffinity:
                let count = try actions.setAffinity(device)
                log.info("device \(device.name): \(count) interrupts have their processors")
                return OpenerAnswer(reply: .done)
            case .translateMemory(_, let byteCount):
                guard device.mode == .noiommu, let fd = fds.take(0) else {
                    throw .unsupported("physical addresses are for IOMMU=noiommu only")
                }
                let addresses = try actions.translate(fd, byteCount)
                return OpenerAnswer(
                    reply: .translated(
                        pageByteCount: PhysicalMemory.pageByteCount, addresses: addresses))
            }
        } catch {
            if case .notBound = error {
                var log = log
                log.device = device.name
                log.error("\(error)", id: .notBound)
            }
            throw WireError(.deviceFailed, error.description, device: device.name)
        }
    }
}

/// What goes back, with the descriptors that travel along.
struct OpenerAnswer: ~Copyable {
    var reply: OpenerReply
    var descriptors: VFIODescriptors?

    init(reply: OpenerReply) {
        self.reply = reply
        descriptors = nil
    }

    init(reply: OpenerReply, descriptors: consuming VFIODescriptors) {
        self.reply = reply
        self.descriptors = consume descriptors
    }
}
