// SPDX-License-Identifier: Apache-2.0
// A client of another user and of another language: Python, with the message written by hand.

import Glibc
import Linux
import TestSupport

/// Opens disks as somebody else.
enum Stranger {
    private static let script = """
        import os, socket, sys
        uid, path, name = int(sys.argv[1]), sys.argv[2], sys.argv[3].encode()
        os.setgroups([]); os.setgid(uid); os.setuid(uid)
        s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        s.connect(path)
        body = b"\\x0a" + bytes([len(name)]) + name
        s.send(b"\\x08\\x01\\x10\\x01\\xb2\\x01" + bytes([len(body)]) + body)
        data, fds, flags, peer = socket.recv_fds(s, 65536, 4)

        def varint(data, at):
            value, shift = 0, 0
            while True:
                value |= (data[at] & 127) << shift
                shift += 7
                at += 1
                if data[at - 1] < 128:
                    return value, at

        def fields(data):
            at, found = 0, {}
            while at < len(data):
                tag, at = varint(data, at)
                value, at = varint(data, at)
                if tag & 7 == 2:
                    value, at = data[at:at + value], at + value
                found[tag >> 3] = value
            return found

        reply = fields(data)
        print(fields(reply[5])[1] if 5 in reply else "opened" if len(fds) == 1 else "no fd")
        """

    /// `opened`, or the number of the error's code.
    static func open(
        _ disk: String, as uid: UInt32, in service: RunningService
    ) throws -> String {
        unsafe chmod(service.directory.path, 0o755)
        let (text, code) = try Output.of(
            "/usr/bin/python3", ["-c", script, "\(uid)", service.socket, disk])
        guard code == 0 else { throw SetUpError("python3 ended with \(code): \(text)") }
        return String(text.prefix { $0 != "\n" })
    }
}

/// What a program prints.
enum Output {
    /// Runs a program to its end; its output and its exit code.
    static func of(_ path: String, _ arguments: [String]) throws -> (text: String, code: Int32) {
        var ends: [CInt] = [-1, -1]
        try checked("pipe", unsafe pipe(&ends))
        let output = OwnedFD(adopting: ends[0])
        var writing: OwnedFD? = OwnedFD(adopting: ends[1])
        var program = Spawn(path, arguments, environment: Programs.environment())
        program.output = ends[1]
        program.diesWithParent = false
        let process = try program.start()
        _ = writing.take()
        var text: [UInt8] = []
        var chunk = [UInt8](repeating: 0, count: 4096)
        while true {
            let count = unsafe read(output.raw, &chunk, chunk.count)
            guard count > 0 else { break }
            text += chunk[0..<count]
        }
        var status: CInt = 0
        _ = unsafe waitpid(process.pid, &status, 0)
        return (String(decoding: text, as: UTF8.self), (status >> 8) & 0xff)
    }
}
