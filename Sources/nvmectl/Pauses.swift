// SPDX-License-Identifier: Apache-2.0
// Pauses of a session: told to a person when they happen, counted for scripts.

import Linux
import NVMeClient
import Wire

/// What a command's disk said about waiting. Nothing has to be done about it.
final class Pauses {
    private let name: String
    private let isShown: Bool
    /// Pauses that were told of.
    private(set) var count: UInt64 = 0
    /// How long those took together that are over.
    private(set) var nanoseconds: UInt64 = 0

    /// Listens to a disk from now on.
    init(_ disk: Disk, _ global: GlobalOptions) {
        name = disk.name
        isShown = global.output == .text
        disk.onEvent = { [weak self] event in self?.hear(event) }
    }

    private func hear(_ event: SessionEvent) {
        switch event {
        case .stalled(let reason):
            count += 1
            show("disk \(name): requests wait: \(reason)")
        case .resumed(let stalled):
            nanoseconds &+= stalled
            show("disk \(name): requests flow again after \(Text.duration(stalled))")
        // The command itself says why it ended.
        case .ended: break
        case .diskChanged(let change, _): show("disk \(name) changed: \(change)")
        }
    }

    private func show(_ text: String) {
        guard isShown else { return }
        // A progress bar may stand there.
        let erase = StandardStream.error.isTerminal ? "\r\u{1b}[K" : ""
        Program.complain("\(erase)nvmectl: \(Text.printable(text))")
    }

    /// For scripts.
    var json: [(String, JSON)] {
        [("stalls", .number(count)), ("stalled_ns", .number(nanoseconds))]
    }

    /// For people; empty when there was nothing.
    var text: String {
        count == 0 ? "" : ", waited \(count) times (\(Text.duration(nanoseconds)))"
    }
}

extension Text {
    /// How long requests waited the last time.
    static func pause(_ continuity: Continuity?) -> String {
        continuity?.lastPauseNanoseconds.map(duration) ?? "-"
    }

    /// The worker that serves something, and how often it was taken over.
    static func generation(_ continuity: Continuity?) -> String {
        continuity.map { "\($0.generation)" } ?? "-"
    }

    /// How often something was taken over.
    static func adoptions(_ continuity: Continuity?) -> String {
        continuity.map { "\($0.adoptions)" } ?? "-"
    }
}

extension JSON {
    /// How something got over the deaths of workers: four keys.
    static func continuity(_ continuity: Continuity?) -> [(String, JSON)] {
        [
            ("generation", continuity.map { .number($0.generation) } ?? .null),
            ("adoptions", continuity.map { .number($0.adoptions) } ?? .null),
            ("resets", continuity.map { .number($0.resets) } ?? .null),
            ("last_pause_ns", continuity?.lastPauseNanoseconds.map { .number($0) } ?? .null),
        ]
    }
}
