// SPDX-License-Identifier: Apache-2.0
// The words of the manager's control protocol; see `ServiceManager`.

/// A request to the manager.
enum Request: Equatable {
    case listen(UnitName)
    case stop(UnitName)
    case restart(UnitName)
    case kill(UnitName, signal: Int32)
    case status(UnitName)
    case forget(UnitName)
    case list

    /// The most bytes of a request.
    static let byteCountMax = 512
    /// The most bytes of an answer: the list of `ServiceManager.unitsMax` names fits.
    static let replyByteCountMax = 64 * 1024

    /// Reads a request; the error is the text of the answer.
    static func parse(_ bytes: some Collection<UInt8>) -> Result<Request, RequestError> {
        guard bytes.count <= byteCountMax,
            let text = String(validating: Array(bytes), as: UTF8.self)
        else { return .failure(RequestError("a request is at most 512 bytes of UTF-8")) }
        let words = text.split(separator: " ", omittingEmptySubsequences: false).map(String.init)
        if words == ["list"] { return .success(.list) }
        guard words.count >= 2, let verb = words.first
        else { return .failure(RequestError("a request is a word and a unit")) }
        guard let unit = UnitName(words[1])
        else { return .failure(RequestError("\(words[1].prefix(80)) is not a unit's name")) }
        switch (verb, words.count) {
        case ("listen", 2): return .success(.listen(unit))
        case ("stop", 2): return .success(.stop(unit))
        case ("restart", 2): return .success(.restart(unit))
        case ("status", 2): return .success(.status(unit))
        case ("forget", 2): return .success(.forget(unit))
        case ("kill", 3):
            guard let signal = Int32(words[2]), (1...64).contains(signal)
            else { return .failure(RequestError("a signal is a number from 1 to 64")) }
            return .success(.kill(unit, signal: signal))
        default: return .failure(RequestError("\(verb.prefix(40)) is not known in this form"))
        }
    }
}

/// Why a request was not carried out.
struct RequestError: Error, Equatable {
    let reason: String
    init(_ reason: String) { self.reason = reason }
}

extension UnitEvent {
    /// The event as a message.
    var message: String {
        switch self {
        case .started(let unit, let pid): "event \(unit) started pid=\(pid)"
        case .ready(let unit, let pid): "event \(unit) ready pid=\(pid)"
        case .exited(let unit, let pid, let code): "event \(unit) exited pid=\(pid) code=\(code)"
        case .killed(let unit, let pid, let signal):
            "event \(unit) exited pid=\(pid) signal=\(signal)"
        case .stopped(let unit): "event \(unit) stopped"
        }
    }

    /// Reads a message; nil when it is not an event.
    init?(message: String) {
        let words = message.split(separator: " ").map(String.init)
        guard words.count >= 3, words[0] == "event", let unit = UnitName(words[1])
        else { return nil }
        let values = Values(words.dropFirst(3))
        switch words[2] {
        case "stopped": self = .stopped(unit)
        case "started": self = .started(unit, pid: values.number("pid"))
        case "ready": self = .ready(unit, pid: values.number("pid"))
        case "exited":
            let pid = values.number("pid")
            self =
                values.has("signal")
                ? .killed(unit, pid: pid, signal: values.number("signal"))
                : .exited(unit, pid: pid, code: values.number("code"))
        default: return nil
        }
    }
}

extension UnitStatus {
    /// The status as the rest of an `ok` message.
    var message: String {
        "\(state.rawValue) pid=\(pid) ready=\(isReady ? 1 : 0) restarts=\(restarts) "
            + "stored=\(stored) status=\(status)"
    }

    /// Reads the rest of an `ok` message; nil when it is not a status.
    init?(message: String) {
        guard let end = message.firstRange(of: " status=") else { return nil }
        let words = message[..<end.lowerBound].split(separator: " ").map(String.init)
        guard let first = words.first, let state = UnitState(rawValue: first) else { return nil }
        let values = Values(words.dropFirst())
        self.init(
            state: state, pid: values.number("pid"), isReady: values.number("ready") == 1,
            restarts: Int(values.number("restarts")), stored: Int(values.number("stored")),
            status: String(message[end.upperBound...]))
    }
}

/// `name=value` words.
private struct Values {
    private var values: [String: String] = [:]

    init(_ words: some Sequence<String>) {
        for word in words {
            let parts = word.split(separator: "=", maxSplits: 1)
            if parts.count == 2 { values[String(parts[0])] = String(parts[1]) }
        }
    }

    func has(_ name: String) -> Bool { values[name] != nil }
    func number(_ name: String) -> Int32 { values[name].flatMap { Int32($0) } ?? 0 }
}
