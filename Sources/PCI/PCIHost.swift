// SPDX-License-Identifier: Apache-2.0
// The machine as the kernel shows it in /sys, /proc and /dev, or a tree that a test made.

public import Linux

/// Where the kernel's files are and how modules are loaded.
public struct PCIHost: Sendable {
    /// The root of sysfs.
    public var sysfs: String
    /// The root of proc.
    public var proc: String
    /// The directory of device nodes.
    public var dev: String
    /// The most milliseconds that the kernel may take for one write to sysfs. Probing a controller
    /// takes as long as CAP.TO allows, and half a minute is the longest anybody has seen.
    public var timeoutMilliseconds: Int32 = 60_000
    /// Writes to files of sysfs, in turn, within the given milliseconds.
    public var write:
        @Sendable (_ writes: [SlowFiles.Write], _ timeoutMilliseconds: Int32)
            throws(SlowFiles.Failure) -> Void
    /// Loads a kernel module.
    public var loadModule: @Sendable (_ name: String) throws(SystemCallError) -> Void

    /// The most entries of one directory that are looked at; none of a sane machine has more.
    static let entryCountMax = 65_536
    /// The most bytes of a file of proc or sysfs.
    static let fileByteCountMax = 4 << 20

    /// This machine, or the tree below `root`, where modules are not loaded.
    public init(root: String = "") {
        sysfs = "\(root)/sys"
        proc = "\(root)/proc"
        dev = "\(root)/dev"
        write = { writes, milliseconds throws(SlowFiles.Failure) in
            try SlowFiles.write(writes, timeoutMilliseconds: milliseconds)
        }
        let isReal = root.isEmpty
        loadModule = { name throws(SystemCallError) in
            if isReal { try KernelModules.load(name) }
        }
    }

    /// The first line of a small file without blanks around it; nil when it cannot be read.
    func line(_ path: String) -> String? {
        guard let bytes = try? Files.read(path, limit: 4096) else { return nil }
        return Self.firstLine(bytes)
    }

    static func firstLine(_ bytes: [UInt8]) -> String {
        let line = bytes.prefix { $0 != 10 }
        let isBlank = { (byte: UInt8) in byte == 32 || byte == 9 || byte == 13 }
        let trimmed = line.drop(while: isBlank).reversed().drop(while: isBlank).reversed()
        // Serial numbers and models are the device's own: nothing of them steers a terminal.
        return String(
            decoding: trimmed.map { $0 < 0x20 || $0 == 0x7f ? 0x3f : $0 }, as: UTF8.self)
    }

    /// The names in a directory; none when it is not there.
    func names(_ directory: String) throws(PCIError) -> [String] {
        do {
            let names = try Files.list(directory, limit: Self.entryCountMax)
            guard names.count <= Self.entryCountMax else {
                throw PCIError.unreadable(
                    "\(directory) has more than \(Self.entryCountMax) entries; nothing is done")
            }
            return names
        } catch let error as PCIError {
            throw error
        } catch let error as SystemCallError {
            if error.errno == Errno.noEntry { return [] }
            throw .unreadable("\(error); nothing is done")
        } catch {
            throw .unreadable("\(directory): \(error); nothing is done")
        }
    }

    /// The lines of a file of proc; none when it is not there.
    func lines(_ path: String) throws(PCIError) -> [Substring] {
        let bytes: [UInt8]
        do {
            bytes = try Files.read(path, limit: Self.fileByteCountMax)
        } catch {
            if error.errno == Errno.noEntry { return [] }
            throw .unreadable("\(error); nothing is done")
        }
        guard bytes.count <= Self.fileByteCountMax else {
            throw .unreadable(
                "\(path) has more than \(Self.fileByteCountMax) bytes; nothing is done")
        }
        return String(decoding: bytes, as: UTF8.self).split(separator: "\n")
    }

    /// The last part of what a link says.
    func linkName(_ path: String) -> String? {
        Files.target(ofLink: path)?.lastComponent
    }
}

extension String {
    /// What comes after the last slash.
    var lastComponent: String {
        guard let slash = lastIndex(of: "/") else { return self }
        return String(self[index(after: slash)...])
    }
}
