// SPDX-License-Identifier: Apache-2.0
// Every page: encoding and parsing agree, and no input, however short or random, traps.

import NVMeSpec
import Testing

@Suite("Every page")
struct PageTests {
    static let pages: [any Page.Type] = [
        IdentifyController.self, IdentifyNamespace.self, IdentifyIndependentNamespace.self,
        IdentifyNVMController.self, IdentifyNVMNamespace.self, NamespaceList.self,
        NamespaceDescriptors.self, ErrorInformation.self, SmartHealth.self, FirmwareSlots.self,
        CommandsSupportedAndEffects.self, SupportedLogPages.self,
    ]

    static let laidOut: [any Page.Type] = [
        IdentifyController.self, IdentifyNamespace.self, IdentifyIndependentNamespace.self,
        IdentifyNVMController.self, IdentifyNVMNamespace.self, ErrorInformation.self,
        SmartHealth.self, FirmwareSlots.self, CommandsSupportedAndEffects.self,
        SupportedLogPages.self,
    ]

    @Test("an empty page has the size of the specification", arguments: pages.indices)
    func size(index: Int) {
        let page = Self.pages[index]

        #expect(page.init().encode().count == page.pageByteCount)
    }

    @Test("a page of random bytes parses to what its encoding parses to", arguments: 1...20)
    func roundTrip(seed: UInt64) throws {
        for page in Self.laidOut {
            try expectRoundTrip(page, randomBytes(count: page.pageByteCount, seed: seed))
        }
    }

    private func expectRoundTrip<P: Page>(_: P.Type, _ input: [UInt8]) throws {
        let parsed = try P(parsing: input)
        let again = try P(parsing: parsed.encode())
        #expect(parsed == again)
        #expect(parsed.encode() == again.encode())
        #expect(parsed != P())
    }

    @Test("a page cut anywhere before its last field is refused by name, and never traps")
    func truncation() {
        for page in Self.laidOut {
            let whole = randomBytes(count: page.pageByteCount, seed: 4)
            #expect(throws: PageError.self) { try page.init(parsing: []) }
            for count in stride(from: 0, to: page.pageByteCount, by: 7) {
                _ = try? page.init(parsing: Array(whole.prefix(count)))
            }
        }
    }

    @Test("random bytes never trap any parser", arguments: 100...140)
    func hostile(seed: UInt64) {
        for page in Self.pages {
            let input = randomBytes(count: Int(seed % 7) * 700, seed: seed)
            _ = try? page.init(parsing: input)
        }
        _ = try? ChangedNamespaceList(parsing: randomBytes(count: 4096, seed: seed))
        _ = try? DatasetRange.parseAll(randomBytes(count: 4000, seed: seed), count: .max)
        _ = try? ErrorInformation.parseAll(randomBytes(count: 70_000, seed: seed))
    }

    @Test("a truncated page names the page, the field and the bytes that are missing")
    func message() {
        let page = [UInt8](repeating: 0, count: 516)

        let error = #expect(throws: PageError.self) { try IdentifyController(parsing: page) }
        #expect(
            error?.description
                == "Identify Controller ends at byte 516, before the end of NN at byte 520")
    }
}
