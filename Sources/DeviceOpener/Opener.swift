// SPDX-License-Identifier: Apache-2.0
// The opener's socket and its connections: bounded in number, in messages, and in time.
//
// What is asked for may sleep in the kernel (a reset of a function, seconds), so that it is done in
// threads of its own (`OpenerWork`): one device never waits for another.

internal import DMA
internal import DiskConfig
internal import Linux
internal import Systemd
internal import VFIO
internal import Wire

/// Bounds of the opener, each with its reason.
enum OpenerLimits {
    /// Connections at one time: every worker has one while its device is opened, and at boot all
    /// begin together.
    static let connections = 256
    /// Connections of one user at one time: workers share a user, and strangers must not take all.
    static let connectionsPerUser = 224
    /// Requests that are worked on at one time, each in a thread: enough for others to go on while
    /// some devices are being reset.
    static let threads = 16
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
    var translate:
        @Sendable (borrowing OwnedFD, _ offset: UInt64, _ byteCount: UInt64) throws(VFIOError)
            -> [UInt64]

    /// Opens a pool: as it is kept, or of at least so many bytes, best on a NUMA node.
    var openPool:
        @Sendable (PoolPlace, Int, _ isKept: Bool, _ node: Int?) throws(PoolFileError) -> PoolFile

    /// What really happens.
    static var real: OpenerActions {
        OpenerActions(
            open: { device, reset throws(VFIOError) in
                try KernelVFIO.open(
                    device.address, mode: device.mode,
                    reset: reset || device.alwaysResets ? .flr : .none,
                    afterwards: device.alwaysResets ? .flr : .none, staysAwake: device.keepsAlive)
            },
            setAffinity: { device throws(VFIOError) in
                try KernelInterrupts.setAffinity(
                    device.address, processors: device.interruptAffinity)
            },
            translate: { fd, offset, byteCount throws(VFIOError) in
                try PhysicalMemory.addresses(of: fd, offset: offset, byteCount: byteCount)
            },
            openPool: { place, byteCount, isKept, node throws(PoolFileError) in
                if isKept { return try PoolFile.reopen(place, byteCount: byteCount) }
                return try PoolFile.create(place, byteCount: byteCount, node: node)
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
    private let work = OpenerWork(threads: OpenerLimits.threads)
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
            answer: { [weak self] request, file async throws(WireError) in
                guard let self else {
                    throw WireError(.shuttingDown, "the opener is leaving; try again")
                }
                return try await answer(request, asker, file)
            },
            onEnd: { [weak self] in
                self?.connections[number] = nil
                self?.rest()
            })
        rest()
    }

    // MARK: Requests

    private func answer(
        _ request: OpenerRequest, _ asker: Asker, _ file: PassedFile?
    ) async throws(WireError) -> OpenerAnswer {
        do throws(WireError) {
            try OpenerPolicy.authorise(asker, request.device)
            if case .openPool(let name, let byteCount, let isKept) = request {
                return try await openPool(name, byteCount, isKept)
            }
            let device = try OpenerPolicy.find(request.device, in: configuration())
            return try await act(request, device, file)
        } catch {
            log.error("device \(request.device), process \(asker.pid): \(error.message)")
            throw error
        }
    }

    private func act(
        _ request: OpenerRequest, _ device: OpenableDevice, _ file: PassedFile?
    ) async throws(WireError) -> OpenerAnswer {
        let actions = actions
        let result = try await work.run(device.address) {
            Self.perform(request, device, file, actions)
        }
        switch result {
        case .success(let answer):
            note(request, device, answer)
            return answer
        case .failure(let error):
            if case .notBound = error {
                var log = log
                log.device = device.name
                log.error("\(error)", id: .notBound)
            }
            throw WireError(.deviceFailed, error.description, device: device.name)
        }
    }

    private func openPool(
        _ name: String, _ byteCount: UInt64, _ isKept: Bool
    ) async throws(WireError) -> OpenerAnswer {
        let known = configuration()
        let place = try OpenerPolicy.pool(of: name, in: known)
        let node = OpenerPolicy.node(of: name, in: known, MachineNodes())
        let actions = actions
        // Memory that has to be cleared first takes its time.
        let result = try await work.run(place.path) { () -> Result<OpenerAnswer, PoolFileError> in
            do throws(PoolFileError) {
                let file = try actions.openPool(place, Int(clamping: byteCount), isKept, node)
                let isClean = file.isClean
                let opened = OpenedPool(file)
                return .success(
                    OpenerAnswer(reply: .poolOpened(isClean: isClean), pool: opened))
            } catch { return .failure(error) }
        }
        switch result {
        case .success(let answer):
            log.notice("device \(name): its pool in \(place) is open")
            return answer
        case .failure(let error):
            var code = ErrorCode.deviceFailed
            if case .missing = error { code = .notFound }
            if case .inUse = error { code = .busy }
            throw WireError(code, error.description, device: name)
        }
    }

    /// What a thread does.
    private nonisolated static func perform(
        _ request: OpenerRequest, _ device: OpenableDevice, _ file: PassedFile?,
        _ actions: OpenerActions
    ) -> Result<OpenerAnswer, VFIOError> {
        do throws(VFIOError) {
            switch request {
            case .openDevice(_, let reset):
                let opened = OpenedDevice(try actions.open(device, reset))
                return .success(
                    OpenerAnswer(
                        reply: .deviceOpened(
                            DeviceOpened(
                                interface: opened.interface.onWire,
                                addressSpace: opened.addressSpace, address: device.address)),
                        device: opened))
            case .setInterruptAffinity:
                _ = try actions.setAffinity(device)
                return .success(OpenerAnswer(reply: .done))
            case .translateMemory(_, let byteCount, let offset):
                guard device.mode == .noiommu, let file else {
                    throw .unsupported("physical addresses are for IOMMU=noiommu only")
                }
                return .success(
                    OpenerAnswer(
                        reply: .translated(
                            pageByteCount: PhysicalMemory.pageByteCount,
                            addresses: try actions.translate(file.fd, offset, byteCount))))
            case .findGuestMemory:
                return .success(
                    OpenerAnswer(
                        reply: .guestMemory(
                            try OpenerPolicy.guestMemory(
                                of: device, number: Files.characterDevice))))
            case .openPool: throw .unsupported("a pool is no device")
            }
        } catch { return .failure(error) }
    }

    private func note(
        _ request: OpenerRequest, _ device: OpenableDevice, _ answer: OpenerAnswer
    ) {
        switch request {
        case .openDevice(_, let reset):
            log.notice(
                "device \(device.name): \(device.address) opened through "
                    + "\(answer.device?.interface.rawValue ?? "")"
                    + (reset ? " after a reset" : ""))
        case .setInterruptAffinity:
            log.info("device \(device.name): its interrupts have their processors")
        case .translateMemory, .findGuestMemory, .openPool: break
        }
    }
}

/// What goes back, with the device whose descriptors travel along.
struct OpenerAnswer: Sendable {
    var reply: OpenerReply
    var device: OpenedDevice?
    var pool: OpenedPool?

    /// The descriptors that travel along.
    var raw: [CInt] { device?.raw ?? pool?.raw ?? [] }
}

/// A pool that was opened, on its way to whoever asked.
final class OpenedPool: Sendable {
    /// The file and the holder of its lock.
    let raw: [CInt]
    private let file: PoolFile

    init(_ file: consuming PoolFile) {
        raw = file.descriptors
        self.file = file
    }
}

/// A descriptor that came with a request, on its way to a thread.
final class PassedFile: Sendable {
    let fd: OwnedFD
    init(_ fd: consuming OwnedFD) { self.fd = fd }
}

/// A device that was opened, on its way to whoever asked. Should nobody take it, the last close is
/// the opener's, may sleep in a reset, and is done in a thread.
///
/// It is made by one thread and then belongs to the loop's: nothing in it changes until it goes.
final class OpenedDevice: @unchecked Sendable {
    let interface: VFIOInterface
    let addressSpace: UInt32
    /// In the order of the protocol.
    let raw: [CInt]
    private var descriptors: VFIODescriptors?

    init(_ descriptors: consuming VFIODescriptors) {
        interface = descriptors.interface
        addressSpace = descriptors.addressSpace
        raw = descriptors.raw
        self.descriptors = consume descriptors
    }

    deinit {
        let last = raw.last.flatMap { raw in try? OwnedFD.duplicate(ofRaw: raw) }
        descriptors = nil
        last?.closeInBackground()
    }
}
