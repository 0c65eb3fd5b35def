// SPDX-License-Identifier: Apache-2.0
// The public socket: who may connect, how many, and what the messages mean for the service.

internal import Linux
internal import Systemd
internal import Wire

/// Accepts clients and serves each of them.
@Control
final class Harness {
    private let listener: OwnedFD
    private let service: Service
    private let log: Log
    private var source: DescriptorSource?
    private var pause: Timer?
    /// A descriptor to give up when there are no others: it lets a connection be taken and closed.
    private var reserve: OwnedFD?
    private var clients: [UInt64: Client] = [:]
    private var seats = Seats()
    private var lastClient: UInt64 = 0
    /// Called once everything has been stopped by request of a client.
    private let onShutdown: @Control () -> Void

    /// Serves a listening socket.
    init(
        _ listener: consuming OwnedFD, service: Service, log: Log,
        onShutdown: @escaping @Control () -> Void
    ) throws(SystemCallError) {
        self.listener = listener
        self.service = service
        self.log = log
        self.onShutdown = onShutdown
        reserve = try Self.openReserve()
        source = try EventLoop.current.watch(self.listener, .readable) { [weak self] _ in
            self?.accept()
        }
    }

    /// How many clients are connected.
    var clientCount: Int { clients.count }

    private static func openReserve() throws(SystemCallError) -> OwnedFD {
        try OwnedFD.open("/dev/null", flags: 0)
    }

    private func accept() {
        for _ in 0..<SupervisorLimits.acceptsPerTurn {
            do {
                guard let fd = try UnixSocket.accept(listener) else { return }
                admit(fd)
            } catch {
                switch error.errno {
                case Errno.tooManyFiles, Errno.systemTooManyFiles: return refuseForWantOfFDs()
                // The client has gone again; the next one may be there.
                default: continue
                }
            }
        }
    }

    private func admit(_ fd: consuming OwnedFD) {
        let peer: PeerCredentials
        do {
            peer = try UnixSocket.peer(of: fd)
        } catch {
            return log.warning("a client was refused: \(error)", id: .clientRefused)
        }
        do throws(WireError) {
            try seats.take(peer.uid, isOperator: service.isOperator(peer))
        } catch { return refuse(fd, peer, error) }
        lastClient &+= 1
        let number = lastClient
        do {
            clients[number] = try Client(
                fd, peer, service: service, log: log,
                onEnd: { [weak self] in
                    self?.clients[number] = nil
                    self?.seats.leave(peer.uid)
                },
                onShutdown: onShutdown)
        } catch {
            seats.leave(peer.uid)
            log.warning("a client was refused: \(error)", id: .clientRefused)
        }
    }

    private func refuse(_ fd: consuming OwnedFD, _ peer: PeerCredentials, _ error: WireError) {
        let channel = Channel<SupervisorProtocol>(
            fd, role: .server, buffer: SharedBuffer.instance)
        // It is only a courtesy: the connection is closed either way.
        try? channel.send(error: error, to: 0)
        log.warning(
            "process \(peer.pid) of user \(peer.uid) was refused: \(error.message)",
            id: .exhausted)
    }

    /// No descriptors are left: one waiting connection is taken with the reserve and closed, then
    /// accepting pauses, so that a full table does not make the loop spin.
    private func refuseForWantOfFDs() {
        reserve = nil
        if let fd = try? UnixSocket.accept(listener) { _ = consume fd }
        reserve = try? Self.openReserve()
        log.error(
            "a client was refused: no descriptors left; raise LimitNOFILE=",
            id: .exhausted)
        source?.setEnabled(false)
        pause = try? EventLoop.current.after(
            nanoseconds: SupervisorLimits.acceptPauseNanoseconds
        ) { [weak self] in self?.source?.setEnabled(true) }
        // Without a timer spinning is better than never accepting again.
        if pause == nil { source?.setEnabled(true) }
    }

    /// Takes no more connections; those there are stay.
    func stopAccepting() {
        source?.cancel()
        source = nil
    }

    /// Ends all connections.
    func closeAll() {
        for client in Array(clients.values) { client.end() }
    }
}
