// SPDX-License-Identifier: Apache-2.0
// The units as systemd reads them: installed, complete, sandboxed. The real PID 1 is in make guest.

import Foundation
import Testing

/// An installation of Units in a directory of its own, with programs that only have their names.
private struct Installation {
    let root: URL
    var prefix: URL { root.appending(path: "usr") }
    var units: URL { prefix.appending(path: "lib/systemd/system") }

    static let programs = [
        "nvmed", "nvmectl", "nvmed-worker", "nvmed-opener", "nvmed-emulator",
    ]

    init() throws {
        root = URL(filePath: "/tmp/nvmed-units-\(UUID().uuidString.prefix(8))")
        let built = root.appending(path: "built")
        try FileManager.default.createDirectory(at: built, withIntermediateDirectories: true)
        for name in Self.programs {
            let path = built.appending(path: name).path
            let made = FileManager.default.createFile(
                atPath: path, contents: Data("#!/bin/sh\n".utf8),
                attributes: [.posixPermissions: 0o755])
            try #require(made)
        }
        let run = try SourceTree.run(
            "env",
            [
                "NVMED_BIN_DIR=\(built.path)", "SYSCONFDIR=\(root.path)/etc", ".ci/install", "",
                prefix.path,
            ])
        try #require(run.status == 0, "\(run.output)")
    }

    func remove() { try? FileManager.default.removeItem(at: root) }

    /// The installed files, by their paths below the root.
    func files() -> [String] {
        let all = FileManager.default.enumerator(atPath: root.path)
        return (all?.compactMap { $0 as? String } ?? []).filter { !$0.hasPrefix("built") }
    }

    /// The unit files with an instance in the place of a template's.
    func unitArguments() throws -> [String] {
        try FileManager.default.contentsOfDirectory(atPath: units.path).sorted().map {
            units.appending(path: $0.replacing("@.", with: "@ssd0.")).path
        }
    }

    /// The exposure that systemd-analyze computes, from 0 to 10.
    func exposure(_ unit: String) throws -> Double {
        let run = try SourceTree.run(
            "systemd-analyze",
            ["security", "--offline=yes", "--no-pager", units.appending(path: unit).path])
        let line = try #require(
            run.output.split(separator: "\n").last { $0.contains("Overall exposure level") },
            "\(run.output)")
        let number = try #require(line.firstMatch(of: #/: ([0-9.]+) /#)).output.1
        return try #require(Double(number))
    }
}

@Suite("Units")
struct UnitsTests {
    /// What each service says, or says why not: systemd.exec(5), systemd.resource-control(5).
    static let hardening = [
        "CapabilityBoundingSet", "AmbientCapabilities", "NoNewPrivileges", "UMask",
        "ProtectSystem", "ProtectHome", "PrivateTmp", "PrivateMounts", "PrivateDevices",
        "DevicePolicy", "PrivateUsers", "PrivateNetwork", "IPAddressDeny",
        "RestrictAddressFamilies", "PrivateIPC", "RemoveIPC", "KeyringMode", "Delegate",
        "ProtectKernelTunables", "ProtectKernelModules", "ProtectKernelLogs",
        "ProtectControlGroups", "ProtectClock", "ProtectHostname", "ProtectProc", "ProcSubset",
        "LockPersonality", "MemoryDenyWriteExecute", "RestrictRealtime", "RestrictSUIDSGID",
        "RestrictNamespaces", "SystemCallArchitectures", "SystemCallFilter",
        "SystemCallErrorNumber", "DynamicUser", "RootDirectory", "WatchdogSec",
        "StartLimitIntervalSec", "OOMScoreAdjust", "LimitNOFILE", "LimitCORE",
    ]

    private static func unit(_ name: String) throws -> [String] {
        try #require(SourceTree.files.first { $0.path == "Units/\(name)" }).lines
    }

    @Test("every file of Units is installed by make install")
    func installed() throws {
        let installation = try Installation()
        defer { installation.remove() }
        let installed = installation.files().map { URL(filePath: $0).lastPathComponent }

        let renamed = ["sysusers.conf": "nvmed.conf", "tmpfiles.conf": "nvmed.conf"]
        let wanted = SourceTree.files.map(\.path).filter {
            $0.hasPrefix("Units/") && !$0.hasPrefix("Units/debian/")
        }
        #expect(wanted.count > 10)
        for path in wanted {
            let name = URL(filePath: path).lastPathComponent
            #expect(installed.contains(renamed[name] ?? name), "\(path)")
        }
        for program in Installation.programs {
            #expect(installed.contains(program), "\(program)")
        }
    }

    @Test("every file is where its reader looks for it")
    func places() throws {
        let installation = try Installation()
        defer { installation.remove() }
        let installed = installation.files()
        for path in [
            "usr/bin/nvmed", "usr/bin/nvmectl", "usr/libexec/nvmed/nvmed-worker",
            "usr/lib/systemd/system/nvmed.service", "usr/lib/sysusers.d/nvmed.conf",
            "usr/lib/tmpfiles.d/nvmed.conf", "usr/lib/udev/rules.d/60-nvmed.rules",
            "usr/share/man/man8/nvmed.8", "usr/share/doc/nvmed/examples/vol0.disk",
            "etc/nvmed/nvmed.conf",
        ] {
            #expect(installed.contains(path), "\(path)")
        }
    }

    @Test("systemd-analyze verify has nothing to say about them")
    func verify() throws {
        let installation = try Installation()
        defer { installation.remove() }
        let run = try SourceTree.run(
            "systemd-analyze", ["verify", "--man=no"] + installation.unitArguments())
        #expect(run.status == 0)
        #expect(run.output.isEmpty, "\(run.output)")
    }

    @Test(
        "systemd-analyze security finds little left to take away",
        arguments: [
            ("nvmed-worker@ssd0.service", 0.5), ("nvmed.service", 1.5),
            ("nvmed-opener.service", 2.0),
        ])
    func security(unit: String, limit: Double) throws {
        let installation = try Installation()
        defer { installation.remove() }
        let exposure = try installation.exposure(unit)
        #expect(exposure <= limit, "\(unit)")
    }

    @Test("the opener reaches what pools lie in: shared memory, huge pages, DAX devices")
    func pools() throws {
        let lines = try Self.unit("nvmed-opener.service")
        #expect(lines.contains("DeviceAllow=char-dax rw"))
        // ProtectSystem=strict leaves /dev as it is, and with it /dev/shm and /dev/hugepages.
        for directive in [
            "PrivateDevices=", "InaccessiblePaths=", "ReadOnlyPaths=", "TemporaryFileSystem=",
            "User=", "DynamicUser=",
        ] {
            #expect(!lines.contains { $0.hasPrefix(directive) }, "\(directive)")
        }
    }

    @Test(
        "each directive that hardens a service is there, or the reason why not is",
        arguments: ["nvmed.service", "nvmed-worker@.service", "nvmed-opener.service"])
    func reasons(unit: String) throws {
        let lines = try Self.unit(unit)
        let comments = lines.filter { $0.hasPrefix("#") }
        for directive in Self.hardening {
            let isSet = lines.contains { $0.hasPrefix("\(directive)=") }
            #expect(
                isSet || comments.contains { $0.contains("\(directive)=") },
                "\(unit): \(directive)=")
        }
    }

    @Test("nothing of the supervisor's reaches a worker: it may be restarted at any time")
    func independence() throws {
        let forbidden = #/^(Requires|Requisite|BindsTo|PartOf|Upholds|Conflicts)=/#
        let supervisor = try Self.unit("nvmed.service").filter { $0.contains(forbidden) }
        #expect(supervisor == ["Requires=nvmed.socket"])
        let worker = try Self.unit("nvmed-worker@.service")
        #expect(worker.filter { $0.contains(forbidden) } == [])
        // A start waits for every unit it is ordered after that has a job.
        let order = worker.filter { $0.hasPrefix("After=") }
        #expect(order == ["After=dbus.service dbus.socket nvmed-workers.target"])
    }
}
