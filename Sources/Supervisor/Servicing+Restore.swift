// SPDX-License-Identifier: Apache-2.0
// A restore: each saved device is taken over as it was left, or started cold; none waits for
// another.

internal import Linux
internal import SavedState
internal import Systemd
internal import Wire

extension Servicing {
    /// Takes up what is saved; returns whether there was something. `onBegun` is called when every
    /// device has what it saved.
    func runRestore(_ onBegun: @Control () -> Void = {}) async -> Bool {
        let found: SavedFile?
        do throws(SavedFileError) {
            found = try await file.read()
        } catch {
            await refuse(error)
            return false
        }
        guard let found else {
            _ = post(.failed)
            return false
        }
        written = written ?? (found.host.savedAtRealtimeNanoseconds, found.byteCount)
        generation = max(generation, found.host.generation)
        let devices = beginAll(found)
        onBegun()
        let tasks = devices.map { device in
            EventLoop.current.task { await self.follow(device) }
        }
        for task in tasks { await task.value }
        await finish()
        return true
    }

    /// The file says nothing that is understood here. A version that does may have it back.
    private func refuse(_ error: SavedFileError) async {
        problem = "\(file.path) cannot be used: \(error); all devices are started cold"
        log.error("servicing: \(problem)", id: .servicingCold)
        do throws(SystemCallError) {
            try await file.setAside()
            log.notice("servicing: it is kept as \(file.refused)")
        } catch { log.warning("servicing: \(error); continuing") }
        written = nil
        _ = post(.failed)
    }

    /// Gives each device what it saved; those that got it.
    private func beginAll(_ found: SavedFile) -> [Device] {
        let obstacle = host.obstacle(found.host)
        var begun: [Device] = []
        for (name, saved) in found.devices.sorted(by: { $0.key.sortsBefore($1.key) }) {
            guard let section = section(name, saved, found, obstacle) else { continue }
            guard let device = service.devices[name] else {
                settle(name, .gone, "it is not configured any more")
                continue
            }
            if let reason = device.withheld {
                settle(name, .gone, reason)
                continue
            }
            note(name, .restoring)
            if case .success(let value) = saved { note(name, value, byteCount: section.count) }
            device.beginRestore(section)
            begun.append(device)
        }
        return begun
    }

    /// The section of a device, unless it is of no use.
    private func section(
        _ name: String, _ saved: Result<SavedDevice, SavedStateError>, _ found: SavedFile,
        _ obstacle: String?
    ) -> [UInt8]? {
        if let obstacle {
            settle(name, .cold, obstacle)
            return nil
        }
        if case .failure(let error) = saved {
            settle(name, .cold, "\(error)")
            return nil
        }
        return found.sections[name]
    }

    private func follow(_ device: Device) async {
        switch await device.restored() {
        case .success(.restored):
            note(device.name, .restored)
            device.log.notice("is restored as it was saved", id: .servicingRestored)
        case .success(.cold(let reason)): settle(device.name, .cold, reason)
        case .success(.unneeded):
            settle(device.name, .thawed, "its worker lives and never let go of it")
        case .failure where service.devices[device.name] !== device:
            settle(device.name, .gone, "it was taken out of the configuration")
        case .failure(let error): settle(device.name, .failed, error.message)
        }
    }

    private func settle(_ name: String, _ step: ServicingStep, _ reason: String) {
        note(name, step, reason: reason)
        var log = log
        log.device = name
        switch step {
        case .thawed: log.notice("its saved state is void: \(reason)")
        default: log.error("is not restored: \(reason)", id: .servicingCold)
        }
    }

    /// Everything is dealt with: what the file says is over.
    private func finish() async {
        guard !service.isStopping else {
            // The next start finds out what of it still is of use.
            _ = post(.failed)
            return
        }
        do throws(SystemCallError) {
            try await file.remove()
        } catch {
            log.warning("servicing: \(error); what it says is void; continuing")
        }
        written = nil
        let restored = progress.values.count { $0.told.step == .restored }
        log.notice(
            "servicing: \(restored) of \(progress.count) devices restored in "
                + "\(elapsedNanoseconds / 1_000_000) ms", id: .servicingRestored)
        _ = post(.settled)
    }
}

extension SavedFile {
    /// About as many bytes as it has: its sections.
    var byteCount: Int { sections.values.reduce(0) { $0 + $1.count } }
}
