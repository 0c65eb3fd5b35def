// SPDX-License-Identifier: Apache-2.0
// The words of the control socket: faults, statistics and namespaces at run time.

internal import NVMeSpec

/// Executes one command line and answers in one line.
struct ControlCommands {
    static let vocabulary =
        "fault RULE | clear | release | faults | stats | namespace add OPTIONS | namespace remove NSID | "
        + "namespace resize NSID SIZE | serial TEXT | model TEXT | disconnect | help"

    let device: ServedDevice

    /// `ok`, `ok` with a result, or `error` with a reason.
    func execute(_ line: String) -> String {
        let words = line.split(whereSeparator: { $0 == " " || $0 == "\n" }).map(String.init)
        do {
            return try perform(words)
        } catch {
            return "error: \(error)"
        }
    }

    private func perform(_ words: [String]) throws -> String {
        let controller = device.controller
        switch (words.first ?? "", words.count) {
        case ("fault", 2):
            try controller.faults.add(FaultRule(parsing: words[1]))
            return "ok"
        case ("clear", 1):
            controller.faults.clear()
            return "ok"
        case ("release", 1):
            return "ok \(controller.releaseHeld())"
        case ("faults", 1):
            let rules = controller.faults.rules.map { "\($0.text) acted \($0.acted)" }
            return (["ok"] + rules).joined(separator: "\n")
        case ("stats", 1): return statistics()
        case ("namespace", let count) where count > 1:
            return try namespace(words[1], Array(words.dropFirst(2)))
        case ("serial", 2):
            controller.identity.serial = try Self.text(words[1], byteCount: 20)
            return "ok"
        case ("model", 2):
            controller.identity.model = try Self.text(words[1], byteCount: 40)
            return "ok"
        case ("disconnect", 1):
            controller.wantsDisconnect = true
            return "ok"
        case ("help", 1): return "ok \(Self.vocabulary)"
        default: throw OptionError("unknown command; known are \(Self.vocabulary)")
        }
    }

    private func namespace(_ verb: String, _ words: [String]) throws -> String {
        switch (verb, words.count) {
        case ("add", 1):
            let id = try device.controller.addNamespace(NamespaceOptions(parsing: words[0]))
            return "ok \(id)"
        case ("remove", 1):
            try device.controller.removeNamespace(Self.namespaceID(words[0]))
            return "ok"
        case ("resize", 2):
            try device.controller.resizeNamespace(
                Self.namespaceID(words[0]), byteCount: NamespaceOptions.byteCount(words[1]))
            return "ok"
        default:
            throw OptionError("namespace: say add OPTIONS, remove NSID or resize NSID SIZE")
        }
    }

    /// A word that Identify Controller has room for.
    private static func text(_ word: String, byteCount: Int) throws(OptionError) -> String {
        guard word.utf8.count <= byteCount, word.utf8.allSatisfy({ $0 > 0x20 && $0 < 0x7F }) else {
            throw OptionError("'\(word)': 1 to \(byteCount) printable ASCII characters")
        }
        return word
    }

    private static func namespaceID(_ text: String) throws(OptionError) -> UInt32 {
        guard let id = UInt32(text) else { throw OptionError("'\(text)' is no namespace id") }
        return id
    }

    /// All counters and the state of the controller as one JSON object.
    func statistics() -> String {
        let controller = device.controller
        var json = JSONWriter()
        json.member("version", UInt64(1))
        json.member("serial", controller.identity.serial)
        json.member("enabled", controller.cc.en)
        json.member("ready", controller.csts.rdy)
        json.member("fatal", controller.csts.cfs)
        json.member("lastFatal", controller.log.lastFatal)
        json.member("ioQueues", UInt64(controller.activeQueues.count))
        json.member("heldCommands", UInt64(controller.held.count))
        json.member("dmaRegions", UInt64(controller.memory.count))
        json.member("dmaRegionsUnclaimed", UInt64(controller.memory.unclaimedCount))
        json.member("dmaBytes", controller.memory.byteCount)
        json.member("faultRules", UInt64(controller.faults.rules.count))
        json.member("sigbus", sigbusCount)
        controller.counters.write(to: &json)
        return json.finish()
    }
}
