// SPDX-License-Identifier: Apache-2.0
// The worker processes under a service manager.

internal import Linux
internal import ServiceManager
internal import Systemd
internal import Wire

/// Workers as units of the service manager: `nvmed-worker@<device>`.
@Control
final class ManagedUnits: WorkerUnits {
    /// The template's name.
    nonisolated static let template = "nvmed-worker"
    private let manager: any UnitManager
    private var paths: [String: String] = [:]

    /// Asks a manager.
    init(_ manager: any UnitManager) { self.manager = manager }

    func connect(_ device: String) async throws(WireError) -> PassedFD {
        let path: String
        if let known = paths[device] {
            path = known
        } else {
            let unit = try unit(device)
            do throws(UnitManagerError) {
                path = try await manager.listen(unit)
            } catch { throw Self.failed(error, device) }
            paths[device] = path
        }
        do {
            return PassedFD(try UnixSocket.connect(path, kind: .sequencedPacket, nonblocking: true))
        } catch {
            paths[device] = nil
            throw WireError(
                .internalError, "the worker cannot be reached: \(error)", device: device)
        }
    }

    func isRunning(_ device: String) async throws(WireError) -> Bool {
        let unit = try unit(device)
        do throws(UnitManagerError) {
            guard try await manager.list().contains(unit) else { return false }
            // One that keeps failing has kept what is stored for it, and is started again.
            return try await manager.status(unit).state != .inactive
        } catch { throw Self.failed(error, device) }
    }

    func running() async throws(WireError) -> [String] {
        do throws(UnitManagerError) {
            var running: [String] = []
            for unit in try await manager.list() where unit.template == Self.template {
                guard let device = unit.instance else { continue }
                if try await manager.status(unit).state != .inactive { running.append(device) }
            }
            return running
        } catch { throw WireError(.internalError, "\(error)") }
    }

    func kill(_ device: String) async throws(WireError) {
        let unit = try unit(device)
        do throws(UnitManagerError) {
            guard try await manager.list().contains(unit) else { return }
            try await manager.kill(unit, signal: Process.kill)
        } catch { throw Self.failed(error, device) }
    }

    func stop(_ device: String) async throws(WireError) {
        let unit = try unit(device)
        paths[device] = nil
        do throws(UnitManagerError) {
            guard try await manager.list().contains(unit) else { return }
            try await manager.stop(unit)
            try await manager.forget(unit)
        } catch { throw Self.failed(error, device) }
    }

    private func unit(_ device: String) throws(WireError) -> UnitName {
        guard let unit = UnitName(template: Self.template, instance: device) else {
            throw WireError(
                .invalidArgument, "\(device) cannot be the name of a unit: rename the device",
                device: device)
        }
        return unit
    }

    private static func failed(_ error: UnitManagerError, _ device: String) -> WireError {
        WireError(.internalError, "\(error)", device: device)
    }
}

/// Workers that somebody else starts, with their sockets in one directory: `worker-<device>.sock`.
@Control
final class SocketUnits: WorkerUnits {
    private let directory: String

    /// Finds the sockets in a directory.
    init(directory: String) { self.directory = directory }

    func connect(_ device: String) async throws(WireError) -> PassedFD {
        do {
            return PassedFD(
                try UnixSocket.connect(
                    "\(directory)/worker-\(device).sock", kind: .sequencedPacket,
                    nonblocking: true))
        } catch {
            throw WireError(
                .internalError, "the worker cannot be reached: \(error)", device: device)
        }
    }

    /// Unknown; a device is adopted when it is first wanted.
    func isRunning(_ device: String) async throws(WireError) -> Bool { false }

    /// Unknown.
    func running() async throws(WireError) -> [String] { [] }

    /// The worker has ended by itself after `WorkerShutdown`.
    func stop(_ device: String) async throws(WireError) {}
}
