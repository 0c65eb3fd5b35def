// SPDX-License-Identifier: Apache-2.0
// The command line of nvmed-emulator, parsed by hand: a start takes a few milliseconds, not more.

import Glibc
import Linux
import NVMeEmulator

/// What the command line asks for.
struct Arguments {
    var options = EmulatorOptions()
    var socketPath: String?
    var controlPath: String?
    var socketMode: UInt32 = 0o600
    var showsStatistics = false

    enum Request {
        case help
        case version
        case run(Arguments)
    }

    static let help = """
        Usage: nvmed-emulator --socket PATH --namespace SPEC [OPTION]...

        Serves an NVMe controller to one vfio-user client at a time.

          --socket PATH            where to listen (or pass a listening socket as LISTEN_FDS=1)
          --socket-mode OCTAL      permissions of the socket files (0600)
          --namespace SPEC         memory=SIZE or file=PATH,size=SIZE; with block=512|4096, nsid=N,
                                   nguid=HEX, eui64=HEX, uuid=HEX, readonly; may be repeated
          --serial TEXT            serial number (NVMED0001)
          --queues N               I/O queue pairs (32)
          --msix N                 interrupt vectors (one more than queues)
          --mqes N                 entries of the largest queue (1024)
          --mdts N                 largest transfer: 2^N pages of 4 KiB (8); 0 for no limit
          --max-namespaces N       NN (64)
          --spin-us N              how long to look for work before sleeping (50)
          --doorbells MODE         shadow (default), mapped or message
          --require-bus-master     serve commands only while PCI bus mastering is on
          --keep                   go on when the client has gone: the next one finds the controller
                                   as it is, and maps its memory at the same places
          --control PATH           a SOCK_SEQPACKET socket for commands: say help there
          --fault RULE             misbehave; may be repeated
          --stats                  print the counters as JSON at the end

        Servers unlike this one:
          --no-mmap                the same as --doorbells message
          --sparse-unaligned       with mapped doorbells: areas that are no whole pages
          --short-replies          send replies in pieces
          --reply-delay-ms N       send replies late
          --dma-by-message         never map the client's memory

          --help, --version

        A fault RULE is
        \(FaultRule.vocabulary)
        """

    static func parse(_ words: [String]) throws(OptionError) -> Request {
        var arguments = Arguments()
        var hasVectorCount = false
        var index = 0
        while index < words.count {
            // Both --option value and --option=value.
            let pair = words[index].split(separator: "=", maxSplits: 1).map(String.init)
            let name = pair.first ?? ""
            index += 1
            if name == "--help" || name == "-h" { return .help }
            if name == "--version" { return .version }
            if pair.count == 1, arguments.takeFlag(name) { continue }
            var value = pair.count == 2 ? pair[1] : nil
            if value == nil, index < words.count {
                value = words[index]
                index += 1
            }
            try arguments.take(name, value)
            if name == "--msix" { hasVectorCount = true }
        }
        if !hasVectorCount { arguments.options.vectorCount = arguments.options.ioQueueCount + 1 }
        try arguments.options.validate()
        return .run(arguments)
    }

    private mutating func takeFlag(_ name: String) -> Bool {
        switch name {
        case "--no-mmap": options.doorbells = .message
        case "--sparse-unaligned":
            options.doorbells = .mapped
            options.unalignedSparseAreas = true
        case "--short-replies": options.shortReplies = true
        case "--dma-by-message": options.dmaByMessage = true
        case "--require-bus-master": options.requiresBusMaster = true
        case "--keep": options.keepsState = true
        case "--stats": showsStatistics = true
        default: return false
        }
        return true
    }

    private mutating func take(_ name: String, _ value: String?) throws(OptionError) {
        guard Self.valueOptions.contains(name) else {
            throw OptionError("unknown option '\(name)'; --help lists them")
        }
        guard let value, !value.isEmpty else { throw OptionError("\(name) needs a value") }
        switch name {
        case "--socket": socketPath = value
        case "--control": controlPath = value
        case "--serial": options.serial = value
        case "--namespace": options.namespaces.append(try NamespaceOptions(parsing: value))
        case "--fault":
            _ = try FaultRule(parsing: value)
            options.faults.append(value)
        case "--doorbells":
            guard let mode = DoorbellMode(rawValue: value) else {
                throw OptionError("--doorbells \(value): say shadow, mapped or message")
            }
            options.doorbells = mode
        case "--socket-mode":
            guard let mode = UInt32(value, radix: 8), mode <= 0o777 else {
                throw OptionError("--socket-mode \(value): give an octal mode, as 0660")
            }
            socketMode = mode
        default: try takeNumber(name, value)
        }
    }

    private static let valueOptions: Set<String> = [
        "--socket", "--control", "--serial", "--namespace", "--fault", "--doorbells",
        "--socket-mode", "--queues", "--msix", "--mqes", "--mdts", "--max-namespaces",
        "--spin-us", "--reply-delay-ms",
    ]

    private mutating func takeNumber(_ name: String, _ value: String) throws(OptionError) {
        guard let number = UInt32(value) else {
            throw OptionError("\(name) \(value): give a number")
        }
        switch name {
        case "--queues": options.ioQueueCount = Int(number)
        case "--msix": options.vectorCount = Int(number)
        case "--mqes": options.maxQueueEntryCount = number
        case "--mdts": options.mdts = UInt8(clamping: number)
        case "--max-namespaces": options.maxNamespaceCount = number
        case "--spin-us": options.spinMicroseconds = UInt64(number)
        default: options.replyDelayMilliseconds = UInt64(number)
        }
    }
}

/// The sockets to listen on: passed by the service manager, or made from paths.
struct ListeningSockets: ~Copyable {
    var listener: OwnedFD
    var control: OwnedFD?

    init(_ arguments: Arguments) throws {
        let listener = try Self.listener(arguments)
        let control = try arguments.controlPath.map {
            try UnixSocket.listen($0, kind: .sequencedPacket, mode: arguments.socketMode)
        }
        self.listener = listener
        self.control = control
    }

    private static func listener(_ arguments: Arguments) throws -> OwnedFD {
        if let passed = passedFD() {
            guard arguments.socketPath == nil else {
                throw OptionError("--socket: a listening socket was passed already (LISTEN_FDS)")
            }
            return passed
        }
        guard let path = arguments.socketPath else {
            throw OptionError("--socket PATH says where to listen; --help tells more")
        }
        return try UnixSocket.listen(path, kind: .stream, mode: arguments.socketMode)
    }

    /// Descriptor 3 when LISTEN_FDS is 1 and, where given, LISTEN_PID is ours (sd_listen_fds(3)).
    private static func passedFD() -> OwnedFD? {
        guard Program.environment("LISTEN_FDS") == "1" else { return nil }
        if let pid = Program.environment("LISTEN_PID"), pid != "\(getpid())" { return nil }
        Program.removeEnvironment("LISTEN_FDS")
        return OwnedFD(adopting: 3)
    }
}
