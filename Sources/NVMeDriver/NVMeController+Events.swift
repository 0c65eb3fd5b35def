// SPDX-License-Identifier: Apache-2.0
// What the controller says unasked: asynchronous events, and the ends of aborts.

public import NVMeSpec

/// Something that the controller said.
public enum AdminEvent: Sendable {
    /// Namespaces were added, removed or changed; `refreshNamespaces` finds out.
    case namespacesChanged
    /// SMART / health: temperature, spare, reliability. `health` of the controller is fresh.
    case health(AsynchronousEvent)
    /// The page that `requestHealth` asked for is in `health` of the controller.
    case healthRead
    /// An error event, or one that this driver does not know.
    case other(AsynchronousEvent)
    /// An Abort ended. `aborted` is false when the controller did not abort the command, which may
    /// still complete.
    case abortFinished(queue: Int, commandID: UInt16, aborted: Bool)
    /// An event could not be handled: the device is at fault.
    case failed(DriverError)
    /// The controller refused an event request: no more events will come.
    case eventsEnded(Status)
}

extension NVMeController {
    /// Takes what the admin queue has, and gives event requests back to the device. Does not wait.
    ///
    /// An event counts as acted upon when this is called again: a successor is told of it
    /// otherwise.
    public func pollAdmin() throws(DriverError) -> [AdminEvent] {
        admin?.endTurn()
        try collectAdmin()
        var events: [AdminEvent] = []
        if !isQuiet { admin?.reportEvents() }
        for answer in admin?.takeAnswers() ?? [] {
            if answer.token == AdminToken.event {
                eventRequests -= 1
                // It is pending, and nothing may be sent.
                guard !isQuiet else { continue }
                // What fails the device here fails it at its next command again: the other answers
                // count meanwhile.
                do throws(DriverError) {
                    events.append(try takeEvent(answer))
                } catch { events.append(.failed(error)) }
            } else if answer.token == AdminToken.health {
                if takeHealth(answer) { events.append(.healthRead) }
            } else if answer.token & AdminToken.abort == AdminToken.abort {
                events.append(abortEnded(answer))
            }
        }
        return events
    }

    private func abortEnded(_ answer: AdminAnswer) -> AdminEvent {
        let queue = Int(answer.token >> 16 & 0xFFFF)
        let commandID = UInt16(truncatingIfNeeded: answer.token)
        CrashPoint.hit(.abortAnswered)
        if queue < queueCount {
            exclusively(queue) { unsafe engine(queue).pointee.queue.letGo(commandID) }
        }
        return .abortFinished(
            queue: queue, commandID: commandID,
            // Bit 0 of dword 0 set: not aborted (Base Specification 2.0, 5.1).
            aborted: answer.status.isSuccess && answer.result & 1 == 0)
    }

    private func collectAdmin() throws(DriverError) {
        try admin?.collect(device)
    }

    private func takeEvent(_ answer: AdminAnswer) throws(DriverError) -> AdminEvent {
        guard answer.status.isSuccess else { return .eventsEnded(answer.status) }
        return try handle(AsynchronousEvent(rawValue: answer.result))
    }

    func handle(_ event: AsynchronousEvent) throws(DriverError) -> AdminEvent {
        // Reading the log page that the event names is what lets the controller report the next of
        // its kind (5.2).
        try readLog(event.logPage)
        try postEventRequests()
        if event == .namespaceAttributeChanged { return .namespacesChanged }
        return event.type == .smart ? .health(event) : .other(event)
    }

    private func readLog(_ log: LogPageID) throws(DriverError) {
        let byteCount = log == .smartHealth ? 512 : log == .errorInformation ? 64 : 4096
        do throws(DriverError) {
            let page = try executeForPage(
                .getLogPage(log, dwordCount: UInt32(byteCount / 4)), "Get Log Page",
                byteCount: byteCount)
            if log == .smartHealth, let fresh = try? SmartHealth(parsing: page) { health = fresh }
        } catch .command {
            // A log that the controller names and does not have is its own affair.
        }
    }

    /// Asks the controller to abort a command of an I/O queue; `pollAdmin` tells how it ended.
    public func abort(queue index: Int, commandID: UInt16) throws(DriverError) {
        if let refusal = adminRefusal("Abort") { throw refusal }
        let token = AdminToken.abort | UInt64(index) << 16 | UInt64(commandID)
        // Before the device can know of the Abort, so that the id is never free while it does.
        unsafe engine(index).pointee.queue.hold(commandID)
        CrashPoint.hit(.abortHeld)
        do throws(DriverError) {
            try admin?.post(
                .abort(queueID: UInt16(index + 1), commandID: commandID), token: token,
                device: device)
        } catch {
            unsafe engine(index).pointee.queue.letGo(commandID)
            throw error
        }
        CrashPoint.hit(.abortSubmitted)
    }
}
