// SPDX-License-Identifier: Apache-2.0
// The validation of requests, the lifecycle table, and other values of the worker: without
// processes.

import Linux
import NVMeDriver
import Testing
import Wire

@testable import Worker

@Suite("The lifecycle table")
struct LifecycleTests {
    @Test("from every state a device can be brought back, drained or is on its way")
    func reachable() {
        for state in LifecycleState.allCases where state != .draining {
            #expect(Lifecycle.step(state, .load) != .refuse)
            #expect(Lifecycle.step(state, .drain) == .enter(.draining))
        }
    }

    @Test("only bring-up makes a device ready, and only from a state that began it")
    func ready() {
        for state in LifecycleState.allCases {
            for event in LifecycleEvent.allCases
            where Lifecycle.step(state, event) == .enter(.ready) {
                #expect(event == .started)
                #expect(state == .starting || state == .recovering)
            }
        }
    }

    @Test("a fault of a device in use always fails it, and never revives a failed one")
    func fault() {
        for state in [LifecycleState.ready, .draining, .starting, .recovering] {
            #expect(Lifecycle.step(state, .fault) == .enter(.failed))
        }
        #expect(Lifecycle.step(.failed, .fault) == .stay)
    }

    @Test("attempts count bring-ups since the last success")
    func attempts() {
        var life = Lifecycle(nowNanoseconds: 1)
        for event in [LifecycleEvent.load, .startFailed, .load, .startFailed, .recover] {
            _ = life.handle(event, reason: "why", nowNanoseconds: 2)
        }
        #expect(life.attempts == 3)
        #expect(life.state == .recovering)
        _ = life.handle(.started, reason: "", nowNanoseconds: 3)
        #expect(life.attempts == 0)
        #expect(life.sinceNanoseconds == 3)
    }
}

@Suite("What is kept and told")
struct ValueTests {
    @Test("a device configuration survives being kept")
    func configuration() throws {
        var config = DeviceConfig(name: "dev0", transport: .vfioUser(path: "/run/x.sock"))
        config.queueDepth = 128
        config.ioTimeoutMilliseconds = 1
        let bytes = try #require(KeptConfiguration.encode(config))

        #expect(KeptConfiguration.decode(bytes) == config)
        #expect(KeptConfiguration.decode(Array(bytes.dropLast())) == nil)
        #expect(KeptConfiguration.decode([]) == nil)
        #expect(KeptConfiguration.decode([0xFF, 0x00]) == nil)
    }

    @Test("pages hold what fits, and continue where they ended")
    func paging() {
        let all = (0..<1000).map {
            InspectEntry("a/\(10000 + $0)", String(repeating: "x", count: 40))
        }
        var seen: [InspectEntry] = []
        var page = Paging.page(all, after: nil)
        while page.more {
            seen += page.entries
            page = Paging.page(all, after: page.entries.last?.path)
        }
        #expect(seen + page.entries == all)
    }

    @Test("only root and the worker's own user may connect")
    func peers() {
        func peer(_ uid: UInt32) -> PeerCredentials {
            PeerCredentials(pid: 1, uid: uid, gid: 0, groups: [])
        }
        #expect(SupervisorHarness.mayConnect(peer(0), ownUID: 990))
        #expect(SupervisorHarness.mayConnect(peer(990), ownUID: 990))
        #expect(!SupervisorHarness.mayConnect(peer(991), ownUID: 990))
        #expect(!SupervisorHarness.mayConnect(peer(1000), ownUID: 0))
    }
}
