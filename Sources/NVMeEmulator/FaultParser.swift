// SPDX-License-Identifier: Apache-2.0
// The words of a fault rule: POINT:ACTION[=VALUE][,MATCH=VALUE]...

internal import NVMeSpec

extension FaultRule {
    /// The vocabulary, for `--help` and error messages.
    public static let vocabulary = """
        POINT:ACTION[=VALUE][,MATCH=VALUE]...
          register    never-ready | stuck-ready | ready-delay=MS | fatal-at-enable | gone |
                      mqes= | cqr= | to= | dstrd= | css= | mpsmin= | mpsmax= | crms= |
                      vs= | crto= | csts=
          command     status=SCT/SC[/dnr] | delay=MS | postpone=MS | hang | drop | fatal | gone |
                      disconnect
          completion  wrong-phase | cid=N|invented | duplicate | sqid=N | sqhd=N | dw0=N
          identify    truncated=BYTES | zeroed | garbage | bytes=OFFSET/WIDTH/VALUE |
                      mdts= | nn= | sqes= | cqes= | vwc= | oncs= | oacs= | aerl= | ver= |
                      nsze= | ncap= | nuse= | nlbaf= | flbas= | lbads= | ms= | dlfeat=
          interrupt   lost | spurious
          event       storm
        MATCH: queue=admin|io|N  opcode=N  nsid=N  cns=N  feature=N  skip=N  times=N
        Numbers are decimal, 0x… or hexadecimal with an h (0Ch).
        """

    /// Parses one rule.
    public init(parsing text: String) throws(OptionError) {
        let halves = text.split(separator: ":", maxSplits: 1).map(String.init)
        guard halves.count == 2, let point = FaultPoint(rawValue: halves[0]) else {
            throw OptionError("fault '\(text)': begin with a point, as in\n\(Self.vocabulary)")
        }
        var parser = FaultParser(rule: text, point: point)
        for part in halves[1].split(separator: ",", omittingEmptySubsequences: false) {
            let pair = part.split(separator: "=", maxSplits: 1).map(String.init)
            try parser.take(pair.first ?? "", pair.count > 1 ? pair[1] : nil)
        }
        guard let action = parser.action else {
            throw OptionError("fault '\(text)': no action, as in\n\(Self.vocabulary)")
        }
        self.init(text: text, point: point, match: parser.match, action: action)
    }
}

/// Collects the words of one rule.
private struct FaultParser {
    let rule: String
    let point: FaultPoint
    var match = FaultMatch()
    var action: FaultAction?

    private func error(_ reason: String) -> OptionError {
        OptionError("fault '\(rule)': \(reason)")
    }

    mutating func take(_ key: String, _ value: String?) throws(OptionError) {
        if try takeMatch(key, value) { return }
        guard let parsed = try parseAction(key, value) else {
            throw error(
                "'\(key)' is no action at \(point.rawValue), as in\n\(FaultRule.vocabulary)")
        }
        guard action == nil else { throw error("'\(key)' is a second action; give two rules") }
        action = parsed
    }

    private mutating func takeMatch(_ key: String, _ value: String?) throws(OptionError) -> Bool {
        switch key {
        case "queue" where value == "admin": match.queue = 0
        case "queue" where value == "io": match.isIOQueue = true
        case "queue": match.queue = try number(key, value)
        case "opcode": match.opcode = try number(key, value)
        case "nsid": match.namespaceID = try number(key, value)
        case "cns": match.cns = try number(key, value)
        case "feature": match.feature = try number(key, value)
        case "skip": match.skip = try number(key, value)
        case "times": match.times = try number(key, value)
        default: return false
        }
        return true
    }

    private func number<T: FixedWidthInteger>(
        _ key: String, _ text: String?
    ) throws(OptionError) -> T {
        guard let text, let value = Self.parseNumber(text), let number = T(exactly: value) else {
            throw error("\(key)=\(text ?? "") is no number from 0 to \(T.max)")
        }
        return number
    }

    static func parseNumber(_ text: some StringProtocol) -> UInt64? {
        if text.hasPrefix("0x") { return UInt64(text.dropFirst(2), radix: 16) }
        if text.hasSuffix("h") { return UInt64(text.dropLast(), radix: 16) }
        return UInt64(text)
    }

    private mutating func parseAction(_ key: String, _ value: String?) throws(OptionError)
        -> FaultAction?
    {
        switch point {
        case .register: try register(key, value)
        case .command: try command(key, value)
        case .completion: try completion(key, value)
        case .identify: try identify(key, value)
        case .interrupt: key == "lost" ? .lost : key == "spurious" ? .spurious : nil
        case .event: key == "storm" ? .storm : nil
        }
    }

    private func register(_ key: String, _ value: String?) throws(OptionError) -> FaultAction? {
        switch key {
        case "never-ready": return .neverReady
        case "stuck-ready": return .stuckReady
        case "ready-delay": return .readyDelay(milliseconds: try milliseconds(key, value))
        case "fatal-at-enable": return .fatalAtEnable
        case "gone": return .gone
        default:
            guard let field = RegisterField(rawValue: key) else { return nil }
            return .field(field, try number(key, value))
        }
    }

    /// A day is longer than any test waits, and far from overflowing nanoseconds.
    private func milliseconds(_ key: String, _ text: String?) throws(OptionError) -> UInt64 {
        let value: UInt64 = try number(key, text)
        guard value <= 86_400_000 else { throw error("\(key)=\(value): at most a day") }
        return value
    }

    private func command(_ key: String, _ value: String?) throws(OptionError) -> FaultAction? {
        switch key {
        case "status": .status(try status(value ?? ""))
        case "delay": .delay(milliseconds: try milliseconds(key, value))
        case "postpone": .postpone(milliseconds: try milliseconds(key, value))
        case "hang": .hang
        case "drop": .drop
        case "fatal": .fatal
        case "gone": .gone
        case "disconnect": .disconnect
        default: nil
        }
    }

    private func status(_ text: String) throws(OptionError) -> UInt16 {
        let parts = text.split(separator: "/")
        guard parts.count == 2 || (parts.count == 3 && parts[2] == "dnr"),
            let type = Self.parseNumber(parts[0]), type <= 7,
            let code = Self.parseNumber(parts[1]), code <= 255
        else { throw error("status=\(text): give SCT/SC, as in 2/0x81 or 2/81h/dnr") }
        return Status(
            StatusCodeType(rawValue: UInt8(type)), UInt8(code), doNotRetry: parts.count == 3
        ).rawValue
    }

    private func completion(_ key: String, _ value: String?) throws(OptionError) -> FaultAction? {
        switch key {
        case "wrong-phase": .wrongPhase
        case "cid": .commandID(value == "invented" ? nil : try number(key, value))
        case "duplicate": .duplicate
        case "sqid": .submissionQueueID(try number(key, value))
        case "sqhd": .submissionQueueHead(try number(key, value))
        case "dw0": .dword0(try number(key, value))
        default: nil
        }
    }

    /// Fields of the pages by name: which page, where, how wide.
    private static let fields: [String: (cns: UInt8, places: [(Int, Int)])] = [
        "mdts": (1, [(77, 1)]), "ver": (1, [(80, 4)]), "oacs": (1, [(256, 2)]),
        "aerl": (1, [(259, 1)]), "sqes": (1, [(512, 1)]), "cqes": (1, [(513, 1)]),
        "nn": (1, [(516, 4)]), "oncs": (1, [(520, 2)]), "vwc": (1, [(525, 1)]),
        "nsze": (0, [(0, 8)]), "ncap": (0, [(8, 8)]), "nuse": (0, [(16, 8)]),
        "nlbaf": (0, [(25, 1)]), "flbas": (0, [(26, 1)]), "dlfeat": (0, [(33, 1)]),
        "ms": (0, [(128, 2), (132, 2)]), "lbads": (0, [(130, 1), (134, 1)]),
    ]

    private mutating func identify(
        _ key: String, _ value: String?
    ) throws(OptionError) -> FaultAction? {
        switch key {
        case "truncated":
            let count: UInt16 = try number(key, value)
            return .truncated(byteCount: Int(count))
        case "zeroed": return .zeroed
        case "garbage": return .garbage
        case "bytes": return .patch([try patch(value ?? "")])
        default:
            guard let field = Self.fields[key] else { return nil }
            let number: UInt64 = try number(key, value)
            if match.cns == nil { match.cns = field.cns }
            return .patch(
                field.places.map { FaultPatch(offset: $0.0, width: $0.1, value: number) })
        }
    }

    private func patch(_ text: String) throws(OptionError) -> FaultPatch {
        let numbers = text.split(separator: "/").map { Self.parseNumber($0) }
        guard numbers.count == 3, let offset = numbers[0], let width = numbers[1],
            let value = numbers[2], [1, 2, 4, 8].contains(width), offset <= 4096 - width
        else { throw error("bytes=\(text): give OFFSET/WIDTH/VALUE within 4096 bytes") }
        return FaultPatch(offset: Int(offset), width: Int(width), value: value)
    }
}
