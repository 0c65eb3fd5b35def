// SPDX-License-Identifier: Apache-2.0
// The house rules as functions from a file to its violations.

/// The rules about the text of a file.
enum Rules {
    static let maximumFunctionLineCount = 70
    static let maximumFileLineCount = 700
    static let maximumSwiftColumnCount = 100
    static let maximumCColumnCount = 120

    /// The first line (after a line that has to come first) names the license.
    static func license(_ file: SourceFile) -> [Violation] {
        let first = file.lines.first ?? ""
        let forced = first.hasPrefix("#!") || first.hasPrefix("// swift-tools-version")
        let line = forced ? file.lines.dropFirst().first ?? "" : first
        let allowed = ["// ", "# ", "/* "].map { $0 + "SPDX-License-Identifier: Apache-2.0" }
        guard !allowed.contains(where: line.hasPrefix) else { return [] }
        return [Violation(path: file.path, line: 1, what: "the SPDX line has to come first")]
    }

    /// A sentence on what the file is follows the license.
    static func opening(_ file: SourceFile) -> [Violation] {
        guard let second = file.lines.dropFirst().first, !second.hasPrefix("// ") else { return [] }
        return [
            Violation(path: file.path, line: 2, what: "line 2 has to say what the file is")
        ]
    }

    /// Lines wider than the limit, except what cannot be broken: rows of a table in a comment, and
    /// lines that are one text in quotes.
    static func longLines(_ file: SourceFile, limit: Int) -> [Violation] {
        let whole = #/^ *\/\/\/ \|.*\|$|^ *"[^"]*"[,)]*$/#
        let wide = file.lines.enumerated().filter {
            $0.element.count > limit && !$0.element.contains(whole)
        }
        return wide.map {
            Violation(
                path: file.path, line: $0.offset + 1,
                what: "\($0.element.count) columns, the limit is \(limit)")
        }
    }

    static func longFile(_ file: SourceFile) -> [Violation] {
        guard file.lines.count > maximumFileLineCount else { return [] }
        return [
            Violation(
                path: file.path, line: file.lines.count,
                what: "\(file.lines.count) lines, the limit is \(maximumFileLineCount)")
        ]
    }

    /// Lines whose code (without comments and text) matches.
    static func code(
        _ file: SourceFile, matching pattern: Regex<Substring>, _ what: String
    ) -> [Violation] {
        file.lines.enumerated().filter { code(of: $0.element).contains(pattern) }.map {
            Violation(path: file.path, line: $0.offset + 1, what: what)
        }
    }

    /// Lines that match anywhere, comments included.
    static func text(
        _ file: SourceFile, matching pattern: Regex<Substring>, _ what: String
    ) -> [Violation] {
        file.lines.enumerated().filter { $0.element.contains(pattern) }.map {
            Violation(path: file.path, line: $0.offset + 1, what: what)
        }
    }

    /// A line without its comment and without what stands in quotes.
    static func code(of line: String) -> String {
        var code = ""
        var inText = false
        var escaped = false
        var previous: Character = " "
        for character in line {
            if inText {
                inText = escaped || character != "\""
                escaped = !escaped && character == "\\"
            } else if character == "\"" {
                inText = true
            } else if character == "/" && previous == "/" {
                return String(code.dropLast())
            } else {
                code.append(character)
            }
            previous = character
        }
        let trimmed = code.drop { $0 == " " }
        return trimmed.hasPrefix("*") || trimmed.hasPrefix("/*") ? "" : code
    }

    /// Functions, initialisers and accessors of Swift longer than the limit. The formatter puts the
    /// closing brace of a declaration at its own indentation, which is how its end is found.
    static func longSwiftFunctions(_ file: SourceFile) -> [Violation] {
        file.lines.indices.compactMap { start in
            let code = code(of: file.lines[start])
            guard code.contains(#/\b(func |init[?(<]|deinit\b|subscript[(<])/#),
                !code.contains(#/(self|super|\.)\.?init\(/#),
                let end = end(ofDeclarationAt: start, in: file.lines)
            else { return nil }
            return tooLong(file, start, end)
        }
    }

    private static func end(ofDeclarationAt start: Int, in lines: [String]) -> Int? {
        let indentation = lines[start].prefix { $0 == " " }.count
        let closing = String(repeating: " ", count: indentation) + "}"
        // A body on one line.
        if code(of: lines[start]).hasSuffix("}") { return start }
        for index in lines.indices.dropFirst(start + 1) {
            let line = lines[index]
            if line.hasPrefix(closing) { return index }
            // A requirement without a body: what encloses it ended first.
            if !line.isEmpty, line.prefix(while: { $0 == " " }).count < indentation { return nil }
        }
        return nil
    }

    /// Functions of C longer than the limit: they end with a brace in the first column.
    static func longCFunctions(_ file: SourceFile) -> [Violation] {
        var violations: [Violation] = []
        var start: Int?
        for (index, line) in file.lines.enumerated() {
            if line.hasPrefix("}") {
                if let start, let violation = tooLong(file, start, index) {
                    violations.append(violation)
                }
                start = nil
            } else if start == nil, line.hasSuffix("{"), line.first?.isLetter == true {
                start = index
            }
        }
        return violations
    }

    private static func tooLong(_ file: SourceFile, _ start: Int, _ end: Int) -> Violation? {
        let count = end - start + 1
        guard count > maximumFunctionLineCount else { return nil }
        return Violation(
            path: file.path, line: start + 1,
            what: "\(count) lines in one function, the limit is \(maximumFunctionLineCount)")
    }
}

/// What the rules forbid.
enum Forbidden {
    static var waits: Regex<Substring> {
        #/\bTask\.sleep\b|\bDispatchQueue\b|\busleep\(|\bnanosleep\(|\bsleep\((?!\w+[ :])/#
    }
    static var traps: Regex<Substring> { #/\bfatalError\(|\btry!|\bas!/# }
    static var foundation: Regex<Substring> {
        #/^\s*(?:@\w+ )?(?:\w+ )?import (?:Foundation\w*|Dispatch)\b/#
    }
    static var argumentParser: Regex<Substring> { #/^\s*(?:\w+ )?import ArgumentParser\b/# }
    static var unsafeCode: Regex<Substring> { #/\bunsafe\b/# }
    static var featureMacro: Regex<Substring> { #/_GNU_SOURCE/# }

    // Joined at run time, so that this file does not contain them.
    static let unfinished = ["TO" + "DO", "FIX" + "ME", "XX" + "X"]
    static let machinePaths = ["/wo" + "rk/", "/tmp/" + "nv/"]
}
