// SPDX-License-Identifier: Apache-2.0
// Why saved state, or a part of it, cannot be used.

/// What is wrong with saved state. Each names the section: "file", "host", or a device's name.
public enum SavedStateError: Error, Sendable, Hashable, CustomStringConvertible {
    /// The bytes are not those that were written.
    case damaged(section: String, what: String)
    /// A later version wrote it, and this one must not guess.
    case newer(section: String, version: UInt32, writer: String)
    /// A field has a value that cannot be.
    case invalid(section: String, field: String, rule: String)
    /// There is more of something than goes.
    case tooLarge(section: String, what: String, count: Int, limit: Int)

    /// The section that is concerned.
    public var section: String {
        switch self {
        case .damaged(let section, _), .newer(let section, _, _), .invalid(let section, _, _),
            .tooLarge(let section, _, _, _):
            section
        }
    }

    /// The error in words, with what to do.
    public var description: String {
        switch self {
        case .damaged(let section, let what): "the saved state of \(section) is damaged: \(what)"
        case .newer(let section, let version, let writer):
            "the saved state of \(section) has version \(version), which is not known here: "
                + "nvmed \(writer.isEmpty ? "(of an unknown version)" : writer) wrote it and can "
                + "read it"
        case .invalid(let section, let field, let rule):
            "the saved state of \(section) is not valid: \(field) \(rule)"
        case .tooLarge(let section, let what, let count, let limit):
            "the saved state of \(section) has \(count) \(what); at most \(limit) go"
        }
    }

    /// The same of another section.
    func of(_ section: String) -> SavedStateError {
        switch self {
        case .damaged(_, let what): .damaged(section: section, what: what)
        case .newer(_, let version, let writer):
            .newer(section: section, version: version, writer: writer)
        case .invalid(_, let field, let rule):
            .invalid(section: section, field: field, rule: rule)
        case .tooLarge(_, let what, let count, let limit):
            .tooLarge(section: section, what: what, count: count, limit: limit)
        }
    }
}

/// A field that is not right, before it is known whose section it is in.
struct FieldProblem: Error {
    var field: String
    var rule: String

    init(_ field: String, _ rule: String) {
        self.field = field
        self.rule = rule
    }

    func of(_ section: String) -> SavedStateError {
        .invalid(section: section, field: field, rule: rule)
    }
}
