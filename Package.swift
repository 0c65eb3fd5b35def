// swift-tools-version: 6.2
// SPDX-License-Identifier: Apache-2.0
// nvmed: an NVMe storage backend made of processes. See README.md for the map of the modules.

import PackageDescription

let strictSwift: [SwiftSetting] = [
    .strictMemorySafety(),
    .treatAllWarnings(as: .error),
    .enableUpcomingFeature("ExistentialAny"),
    .enableUpcomingFeature("InternalImportsByDefault"),
    .enableUpcomingFeature("MemberImportVisibility"),
    .enableUpcomingFeature("NonisolatedNonsendingByDefault"),
    .enableUpcomingFeature("InferIsolatedConformances"),
]

let strictC: [CSetting] = [
    .enableWarning("all"),
    .enableWarning("extra"),
    .treatAllWarnings(as: .error),
]

/// The commit this package was built from, for `--version` and for saved state.
let commit = Context.gitInformation?.currentCommit ?? "unknown"

func module(
    _ name: String, _ dependencies: [Target.Dependency] = [], exclude: [String] = []
) -> Target {
    .target(name: name, dependencies: dependencies, exclude: exclude, swiftSettings: strictSwift)
}

func program(_ name: String, _ dependencies: [Target.Dependency]) -> Target {
    .executableTarget(name: name, dependencies: dependencies, swiftSettings: strictSwift)
}

func tests(
    _ name: String, _ dependencies: [Target.Dependency], exclude: [String] = []
) -> Target {
    .testTarget(
        name: name, dependencies: dependencies, exclude: exclude, swiftSettings: strictSwift)
}

let package = Package(
    name: "nvmed",
    products: [
        .library(name: "NVMeClient", targets: ["NVMeClient"]),
        .executable(name: "nvmed", targets: ["nvmed"]),
        .executable(name: "nvmed-worker", targets: ["nvmed-worker"]),
        .executable(name: "nvmed-opener", targets: ["nvmed-opener"]),
        .executable(name: "nvmed-emulator", targets: ["nvmed-emulator"]),
        .executable(name: "nvmectl", targets: ["nvmectl"]),
        .executable(name: "nvmed-bench", targets: ["nvmed-bench"]),
    ],
    dependencies: [
        .package(url: "https://github.com/apple/swift-argument-parser", from: "1.8.2")
    ],
    targets: [
        // C: volatile access, system calls, system libraries.
        .target(name: "CMemory", cSettings: strictC),
        .target(name: "CRing", cSettings: strictC),
        .target(name: "CStatistics", cSettings: strictC),
        .target(name: "CLinux", cSettings: strictC),
        .systemLibrary(
            name: "CSystemd", pkgConfig: "libsystemd", providers: [.apt(["libsystemd-dev"])]),
        .target(name: "CSystemdShim", dependencies: ["CSystemd"], cSettings: strictC),
        .systemLibrary(
            name: "CProtobufC", pkgConfig: "libprotobuf-c",
            providers: [.apt(["libprotobuf-c-dev"])]),
        .target(name: "CWire", dependencies: ["CProtobufC"]),
        .target(name: "CVersion", cSettings: [.define("NVMED_COMMIT", to: "\"\(commit)\"")]),

        // Leaves.
        module("NVMeSpec"),
        module("Linux", ["CLinux", "CVersion"]),

        // The device side.
        module("VFIO", ["Linux", "CLinux", "CMemory"], exclude: ["CLOSING.md"]),
        module("NullDevice", ["NVMeSpec", "VFIO", "Linux", "CMemory"]),
        module("DMA", ["Linux", "VFIO"]),
        module("PCI", ["Linux"]),
        module(
            "NVMeDriver",
            [
                "NVMeSpec", "Linux", "VFIO", "DMA", "SavedState", "CMemory", "CRing",
                "CStatistics", "CLinux",
            ]),
        module("NVMeEmulator", ["NVMeSpec", "Linux", "CLinux", "CMemory"]),

        // Processes, messages, configuration.
        module("Systemd", ["CSystemd", "CSystemdShim", "CLinux", "Linux"]),
        module("ServiceManager", ["Systemd", "Linux", "CLinux"]),
        module("Wire", ["CWire", "CProtobufC", "Linux"]),
        module("SavedState", ["CWire", "CProtobufC", "CMemory"]),
        module("DiskConfig"),
        module(
            "Worker",
            [
                "NVMeDriver", "NVMeSpec", "NullDevice", "VFIO", "DMA", "Wire", "Systemd", "Linux",
                "CLinux", "CVersion", "SavedState",
            ], exclude: ["CRASHES.md"]),
        module(
            "Supervisor",
            ["Wire", "SavedState", "Systemd", "ServiceManager", "DiskConfig", "Linux"]),
        module("DeviceOpener", ["Wire", "Systemd", "VFIO", "DMA", "DiskConfig", "Linux"]),
        module("NVMeClient", ["Wire", "Linux", "CLinux", "CMemory", "CRing", "CStatistics"]),

        // Programs: arguments, wiring, exit code.
        program(
            "nvmed",
            ["Supervisor", "ServiceManager", "DiskConfig", "Systemd", "Linux", "CVersion"]),
        program("nvmed-worker", ["Worker", "Linux"]),
        program("nvmed-opener", ["DeviceOpener", "Linux"]),
        program("nvmed-emulator", ["NVMeEmulator", "Linux", "CVersion"]),
        program(
            "nvmectl",
            [
                "NVMeClient", "Wire", "DiskConfig", "PCI", "Systemd", "Linux", "CVersion",
                .product(name: "ArgumentParser", package: "swift-argument-parser"),
            ]),
        program(
            "nvmed-bench",
            [
                "NVMeClient", "NVMeDriver", "NullDevice", "VFIO", "DMA", "Wire", "Linux", "CLinux",
                "CMemory",
            ]),

        // Tests, and the programs they start.
        .executableTarget(
            name: "ServiceProbe",
            dependencies: ["ServiceManager", "Systemd", "VFIO", "Linux", "CLinux"],
            path: "Tests/Support/ServiceProbe", swiftSettings: strictSwift),
        .target(
            name: "FakeSystemd",
            dependencies: ["Systemd", "CSystemd", "Linux", "CLinux", "TestSupport"],
            path: "Tests/Support/FakeSystemd", swiftSettings: strictSwift),
        tests(
            "SystemdTests",
            ["ServiceProbe", "FakeSystemd", "Systemd", "Linux", "CLinux", "TestSupport"]),
        tests(
            "ServiceManagerTests",
            ["ServiceProbe", "ServiceManager", "Systemd", "Linux", "CLinux", "TestSupport"]),
        tests("NVMeSpecTests", ["NVMeSpec", "TestSupport"]),
        tests(
            "ProcessTests",
            [
                "TestSupport", "NVMeClient", "SavedState", "Wire", "Linux", "CRing", "CMemory",
                "nvmed",
                "nvmed-worker", "nvmed-emulator", "nvmectl",
            ]),
        tests(
            "SupervisorTests",
            [
                "FakeSystemd", "TestSupport", "Supervisor", "SavedState", "DiskConfig", "Wire",
                "Systemd", "Linux",
            ]),
        tests(
            "NVMeEmulatorTests",
            [
                "NVMeEmulator", "nvmed-emulator", "NVMeSpec", "Linux", "CLinux", "CMemory",
                "TestSupport",
            ]),
        tests("WireTests", ["Wire", "CWire", "CProtobufC", "Linux", "TestSupport"]),
        tests(
            "SavedStateTests", ["SavedState", "CMemory", "Linux", "TestSupport"],
            exclude: ["Golden"]),
        tests("DiskConfigTests", ["DiskConfig", "TestSupport"]),
        tests(
            "NVMeClientTests",
            ["NVMeClient", "Wire", "CLinux", "CMemory", "CRing", "Linux", "TestSupport"]),
        tests(
            "NvmectlTests",
            [
                "nvmectl", "NVMeClient", "Wire",
                .product(name: "ArgumentParser", package: "swift-argument-parser"),
            ]),
        .target(
            name: "TestSupport", dependencies: ["Linux"], path: "Tests/Support/TestSupport",
            swiftSettings: strictSwift),
        tests("PCITests", ["PCI", "Linux", "TestSupport"]),
        tests("DMATests", ["DMA", "Linux", "CLinux", "TestSupport"]),
        tests(
            "NVMeDriverTests",
            [
                "NVMeDriver", "NullDevice", "NVMeSpec", "NVMeClient", "SavedState", "DMA", "VFIO",
                "CLinux", "CMemory", "CRing", "CStatistics", "Linux", "TestSupport",
            ]),
        tests(
            "WorkerTests",
            [
                "Worker", "Wire", "NVMeDriver", "NVMeClient", "SavedState", "VFIO", "DMA",
                "Systemd", "Linux", "CLinux", "TestSupport", "nvmed-worker", "nvmed-emulator",
                "nvmed-opener",
            ]),
        tests(
            "VFIOTests",
            ["VFIO", "Linux", "CLinux", "TestSupport", "ServiceProbe", "nvmed-emulator"]),
        tests(
            "DeviceOpenerTests",
            [
                "DeviceOpener", "nvmed-opener", "DiskConfig", "DMA", "Wire", "VFIO", "Systemd",
                "Linux", "TestSupport",
            ]),
        tests("CrashTests", ["nvmed-bench", "Linux", "TestSupport"]),
        tests("TidyTests", []),
    ],
    swiftLanguageModes: [.v6],
    cLanguageStandard: .gnu17
)
