// SPDX-License-Identifier: Apache-2.0
// Files that may block: what works, what fails, and what hangs without the caller hanging.

import Glibc
import Linux
import TestSupport
import Testing

@Suite("Files that may block for ever")
struct SlowFileTests {
    private let directory: TemporaryDirectory

    init() throws { directory = try TemporaryDirectory() }

    private func make(_ name: String, _ text: String) throws -> String {
        let path = "\(directory.path)/\(name)"
        let fd = try OwnedFD.open(path, flags: O_WRONLY | O_CREAT)
        let bytes = Array(text.utf8)
        _ = unsafe write(fd.raw, bytes, bytes.count)
        return path
    }

    private func failure(_ work: () throws(SlowFiles.Failure) -> Void) -> SlowFiles.Failure? {
        do throws(SlowFiles.Failure) {
            try work()
            return nil
        } catch {
            return error
        }
    }

    @Test("all are written, in turn")
    func writes() throws {
        let a = try make("a", "")
        let b = try make("b", "")
        try SlowFiles.write([.init(a, "one"), .init(b, "two\n")], timeoutMilliseconds: 20_000)
        #expect(try SlowFiles.read(a, timeoutMilliseconds: 20_000) == Array("one".utf8))
        #expect(try SlowFiles.read(b, timeoutMilliseconds: 20_000) == Array("two\n".utf8))
    }

    @Test("the first that fails is named, and the rest is not written")
    func fails() throws {
        let a = try make("a", "old")
        let missing = "\(directory.path)/missing"
        let failure = failure { () throws(SlowFiles.Failure) in
            try SlowFiles.write(
                [.init(missing, "x"), .init(a, "new")], timeoutMilliseconds: 20_000)
        }
        #expect(failure == .system(SystemCallError("write \(missing)", errno: ENOENT)))
        #expect(try SlowFiles.read(a, timeoutMilliseconds: 20_000) == Array("old".utf8))
    }

    @Test("one that blocks is given up in time and goes on in a process that is named")
    func stuck() throws {
        let fifo = "\(directory.path)/fifo"
        #expect(unsafe mkfifo(fifo, 0o600) == 0)
        let failure = failure { () throws(SlowFiles.Failure) in
            try SlowFiles.write([.init(fifo, "later")], timeoutMilliseconds: 50)
        }
        guard case .stuck(fifo, let pid, 50) = failure else {
            Issue.record("it is not stuck: \(String(describing: failure))")
            return
        }
        #expect(kill(pid, 0) == 0)
        // Once somebody reads, it is done after all.
        let reader = try OwnedFD.open(fifo, flags: O_RDONLY)
        var bytes = [UInt8](repeating: 0, count: 16)
        #expect(unsafe read(reader.raw, &bytes, 16) == 5)
    }

    @Test("a text with NUL in it is refused")
    func nul() {
        let failure = failure { () throws(SlowFiles.Failure) in
            try SlowFiles.write([.init("/dev/null", "a\u{0}b")], timeoutMilliseconds: 1000)
        }
        #expect(failure == .system(SystemCallError("write /dev/null", errno: EINVAL)))
    }

    @Test("reading stops at 4096 bytes")
    func long() throws {
        let path = try make("long", String(repeating: "x", count: 10_000))
        #expect(try SlowFiles.read(path, timeoutMilliseconds: 20_000).count == 4096)
    }
}
