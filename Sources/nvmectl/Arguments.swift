// SPDX-License-Identifier: Apache-2.0
// The arguments before the parser sees them.

/// Options of the whole program may also stand before the command: `nvmectl --socket S disk list`.
/// They are moved behind it, where the parser looks for them.
func normalized(_ arguments: [String]) -> [String] {
    var front: [String] = []
    var rest = arguments[...]
    while let first = rest.first {
        if ["--socket", "--output", "--timeout"].contains(first), rest.count > 1 {
            front += rest.prefix(2)
            rest = rest.dropFirst(2)
        } else if first.hasPrefix("--socket=") || first.hasPrefix("--output=")
            || first.hasPrefix("--timeout=")
        {
            front.append(first)
            rest = rest.dropFirst()
        } else {
            break
        }
    }
    guard let end = rest.firstIndex(of: "--") else { return rest + front }
    return rest[..<end] + front + rest[end...]
}

/// Whether results are wanted as JSON, told from arguments that the parser refuses: then nobody
/// else knows.
func asksForJSON(_ arguments: [String]) -> Bool {
    let options = arguments.prefix { $0 != "--" }
    return options.contains("--output=json")
        || zip(options, options.dropFirst()).contains { $0 == ("--output", "json") }
}
