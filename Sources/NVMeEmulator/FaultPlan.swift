// SPDX-License-Identifier: Apache-2.0
// Misbehaviour on demand: rules of point × match × action.
//
// The fault model in prose. A controller may lie in any register, in any byte of any page it
// returns and in any field of a completion; it may answer late, twice, or never; it may interrupt
// too often or not at all; it may fail (CSTS.CFS), vanish (all-ones reads) or drop its connection
// at any command. Each rule says where (the point), for which commands (the match) and what happens
// (the action). Rules are tried in order; the first that matches acts.

internal import NVMeSpec

/// A field of a register whose value a rule replaces.
public enum RegisterField: String, Sendable, CaseIterable {
    /// CAP.MQES, zero-based as in the register.
    case mqes
    /// CAP.CQR.
    case cqr
    /// CAP.TO.
    case to
    /// CAP.DSTRD.
    case dstrd
    /// CAP.CSS.
    case css
    /// CAP.MPSMIN.
    case mpsmin
    /// CAP.MPSMAX.
    case mpsmax
    /// CAP.CRMS.
    case crms
    /// The whole of VS.
    case vs
    /// The whole of CRTO.
    case crto
    /// The whole of CSTS.
    case csts
}

/// Which commands a rule is about. A nil matches everything.
public struct FaultMatch: Sendable, Equatable {
    /// The submission queue: 0 is the admin queue.
    public var queue: UInt16?
    /// Any I/O queue.
    public var isIOQueue = false
    /// The opcode.
    public var opcode: UInt8?
    /// The namespace id.
    public var namespaceID: UInt32?
    /// The CNS of Identify.
    public var cns: UInt8?
    /// The feature id of Get and Set Features.
    public var feature: UInt8?
    /// How many matches pass unharmed before the rule acts.
    public var skip: UInt64 = 0
    /// How often the rule acts; 0 means for ever.
    public var times: UInt64 = 0

    /// Matches everything.
    public init() {}
}

/// Bytes of a returned page that a rule replaces.
public struct FaultPatch: Sendable, Equatable {
    /// The offset of the first byte.
    public var offset: Int
    /// 1, 2, 4 or 8 bytes, little-endian.
    public var width: Int
    /// The value.
    public var value: UInt64
}

/// What a rule does.
public enum FaultAction: Sendable, Equatable {
    /// Registers: CSTS.RDY never follows CC.EN.
    case neverReady
    /// Registers: CSTS.RDY stays 1 when CC.EN goes to 0, until the function is reset.
    case stuckReady
    /// Registers: CSTS.RDY follows CC.EN this much later.
    case readyDelay(milliseconds: UInt64)
    /// Registers: enabling sets CSTS.CFS.
    case fatalAtEnable
    /// Registers, commands: from now on every register reads as ones and nothing is done.
    case gone
    /// Registers: a field has this value.
    case field(RegisterField, UInt64)
    /// Commands: not executed, completed with this status.
    case status(UInt16)
    /// Commands: executed, completed this much later.
    case delay(milliseconds: UInt64)
    /// Commands: executed and completed this much later.
    case postpone(milliseconds: UInt64)
    /// Commands: not executed, never completed, but Abort finds it.
    case hang
    /// Commands: executed, never completed.
    case drop
    /// Commands: CSTS.CFS is set, and nothing is done any more.
    case fatal
    /// Commands: the connection is closed.
    case disconnect
    /// Completions: the phase tag is wrong.
    case wrongPhase
    /// Completions: this command id; nil stands for one that no command has.
    case commandID(UInt16?)
    /// Completions: posted twice.
    case duplicate
    /// Completions: this queue id.
    case submissionQueueID(UInt16)
    /// Completions: this submission queue head.
    case submissionQueueHead(UInt16)
    /// Completions: this dword 0 (the number of queues granted, for example).
    case dword0(UInt32)
    /// Identify: only so many bytes are transferred.
    case truncated(byteCount: Int)
    /// Identify: all zeroes.
    case zeroed
    /// Identify: bytes without meaning.
    case garbage
    /// Identify: bytes replaced.
    case patch([FaultPatch])
    /// Interrupts: not raised.
    case lost
    /// Interrupts: raised once more.
    case spurious
    /// Events: every Asynchronous Event Request completes at once.
    case storm
}

/// Where a rule acts.
public enum FaultPoint: String, Sendable, CaseIterable {
    /// Reading a register, enabling.
    case register
    /// A command that was fetched.
    case command
    /// A completion about to be posted.
    case completion
    /// A page that Identify returns.
    case identify
    /// An interrupt about to be raised.
    case interrupt
    /// An asynchronous event request.
    case event
}

/// One rule and what became of it.
public struct FaultRule: Sendable, Equatable {
    /// The words it was made from.
    public var text: String
    /// Where it acts.
    public var point: FaultPoint
    /// Which commands it is about.
    public var match: FaultMatch
    /// What it does.
    public var action: FaultAction
    /// How often it matched.
    public var matched: UInt64 = 0
    /// How often it acted.
    public var acted: UInt64 = 0
}

/// All rules of a controller.
public struct FaultPlan: Sendable {
    /// More rules than a test needs; a bound on what a control client can make the hot path look
    /// at.
    public static let maxRules = 64

    /// The rules, in the order they are tried.
    public private(set) var rules: [FaultRule] = []
    /// The points that have rules, as bits: what the hot path asks.
    private var points: UInt8 = 0

    /// A controller that behaves.
    public init() {}

    /// Adds a rule.
    public mutating func add(_ rule: FaultRule) throws(OptionError) {
        guard rules.count < Self.maxRules else {
            throw OptionError("fault: at most \(Self.maxRules) rules; clear some")
        }
        rules.append(rule)
        points |= Self.bit(rule.point)
    }

    /// Removes all rules.
    public mutating func clear() {
        rules.removeAll()
        points = 0
    }

    private static func bit(_ point: FaultPoint) -> UInt8 {
        switch point {
        case .register: 1
        case .command: 2
        case .completion: 4
        case .identify: 8
        case .interrupt: 16
        case .event: 32
        }
    }

    /// Whether a point has rules at all.
    @inline(__always)
    func concerns(_ point: FaultPoint) -> Bool { points & Self.bit(point) != 0 }

    /// The action for a command at a point, counting the rule as used.
    mutating func action(
        at point: FaultPoint, queue: UInt16 = 0, entry: SubmissionEntry = SubmissionEntry()
    ) -> FaultAction? {
        guard concerns(point) else { return nil }
        for index in rules.indices where rules[index].point == point {
            guard rules[index].match.includes(queue: queue, entry: entry) else { continue }
            rules[index].matched &+= 1
            let match = rules[index].match
            guard rules[index].matched > match.skip,
                match.times == 0 || rules[index].acted < match.times
            else { continue }
            rules[index].acted &+= 1
            return rules[index].action
        }
        return nil
    }

    /// The action of the first register rule that `select` accepts; registers know no commands.
    mutating func registerAction(_ select: (FaultAction) -> Bool) -> FaultAction? {
        guard concerns(.register) else { return nil }
        for index in rules.indices
        where rules[index].point == .register && select(rules[index].action) {
            let match = rules[index].match
            rules[index].matched &+= 1
            guard rules[index].matched > match.skip,
                match.times == 0 || rules[index].acted < match.times
            else { continue }
            rules[index].acted &+= 1
            return rules[index].action
        }
        return nil
    }
}

extension FaultMatch {
    func includes(queue: UInt16, entry: SubmissionEntry) -> Bool {
        if let wanted = self.queue, wanted != queue { return false }
        if isIOQueue, queue == 0 { return false }
        if let opcode, opcode != entry.opcode { return false }
        if let namespaceID, namespaceID != entry.namespaceID { return false }
        if let cns, cns != entry.identifyCNS.rawValue { return false }
        if let feature, feature != entry.featureID.rawValue { return false }
        return true
    }
}
