// SPDX-License-Identifier: Apache-2.0
// Workers that run for devices which nobody configures any more: the configuration changed while no
// supervisor was there.

internal import Linux
internal import Systemd
internal import Wire

extension Service {
    /// Ends them, as reading the configuration does with a device that is gone from it: what they
    /// have may be configured under another name now. One that takes long is not waited for.
    func endStrays() async {
        let running: [String]
        do throws(WireError) {
            running = try await units.running()
        } catch {
            return log.warning("which workers run is unknown: \(error); continuing")
        }
        let strays = running.filter { devices[$0] == nil }
        guard !strays.isEmpty else { return }
        let ended = OneShot<Void>()
        EventLoop.current.task {
            let tasks = strays.map { name in
                EventLoop.current.task { await self.endStray(name) }
            }
            for task in tasks { await task.value }
            ended.succeed(())
        }
        let deadline = Deadline.after(SupervisorLimits.successorNanoseconds)
        do throws(WireError) {
            try await ended.wait(until: deadline, "ending workers without a device")
        } catch { log.warning("\(error); continuing") }
    }

    private func endStray(_ name: String) async {
        var log = log
        log.device = name
        log.notice(
            "its worker runs and the device is not configured any more: it is ended",
            id: .configuration)
        do {
            let passed = try await units.connect(name)
            guard let fd = passed.take() else { return }
            let link = try WorkerLink(fd, device: name, onEvent: { _ in }, onEnd: { _ in })
            defer { link.close() }
            try await Self.shutDown(link, log)
        } catch {
            log.warning("did not shut down in order: \(error); ending its worker")
        }
        // Somebody may have configured it meanwhile.
        guard devices[name] == nil else { return }
        do throws(WireError) {
            try await units.stop(name)
        } catch {
            log.error("its worker could not be stopped: \(error); continuing", id: .workerStuck)
        }
    }

    private static func shutDown(_ link: WorkerLink, _ log: Log) async throws(WireError) {
        let reason = "the device is not configured any more"
        for session in try await link.sessions(Deadline.after(SupervisorLimits.inspectNanoseconds))
        {
            log.notice(
                "session \(session.sessionID) of disk \(session.disk) is taken from process "
                    + "\(session.clientPID) of user \(session.clientUID): \(reason)",
                id: .sessionRevoked, namespace: session.nsid)
            _ = try await link.call(
                .closeSession(sessionID: session.sessionID, reason: reason),
                deadlineNanoseconds: Deadline.after(SupervisorLimits.inspectNanoseconds),
                "closing session \(session.sessionID)")
        }
        _ = try await link.call(
            .shutdown(doNotReset: false),
            deadlineNanoseconds: Deadline.after(SupervisorLimits.shutdownNanoseconds),
            "shutting the worker down")
    }
}
