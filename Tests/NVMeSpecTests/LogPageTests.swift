// SPDX-License-Identifier: Apache-2.0
// Log pages and dataset ranges against bytes at the offsets of the specification.

import NVMeSpec
import Testing

@Suite("Log pages")
struct LogPageTests {
    @Test("SMART counters are 128 bits wide and lie at their offsets")
    func smart() throws {
        var smart = SmartHealth()
        smart.criticalWarning = 0x04
        smart.compositeTemperature = 0x0140
        smart.availableSpare = 99
        smart.dataUnitsRead = 1 << 127
        smart.powerCycles = 3
        smart.mediaErrors = 2
        smart.temperatureSensors[7] = 300

        let bytes = smart.encode()

        #expect(bytes.prefix(4) == [0x04, 0x40, 0x01, 99])
        #expect(bytes[47] == 0x80)
        #expect(bytes[112] == 3)
        #expect(bytes[160] == 2)
        #expect(bytes[214...215] == [0x2C, 0x01])
        #expect(try SmartHealth(parsing: bytes) == smart)
    }

    @Test("error entries carry the queue, the command, the status and the block")
    func errors() throws {
        var entry = ErrorInformation()
        entry.errorCount = 5
        entry.sqID = 1
        entry.commandID = 0x1234
        entry.status = .unrecoveredReadError
        entry.lba = 0x1_0000_0000
        entry.namespaceID = 2

        let expected = bytes(
            """
            05 00 00 00 00 00 00 00     # error count
            01 00  34 12                # SQID, CID
            02 05                       # SCT 2, SC 81h, above the phase tag
            00 00                       # parameter error location
            00 00 00 00 01 00 00 00     # LBA
            02 00 00 00                 # NSID
            """)
        #expect(entry.encode().prefix(28) == expected[...])
        #expect(try ErrorInformation.parseAll(entry.encode() + entry.encode()) == [entry, entry])
        #expect(try ErrorInformation.parseAll(Array(entry.encode().prefix(63))).isEmpty)
    }

    @Test("firmware slots name the revision that runs")
    func firmware() throws {
        var slots = FirmwareSlots()
        slots.afi = 0x21
        slots.revisions[0] = "1.2.3"

        #expect(slots.activeSlot == 1)
        #expect(slots.encode()[8...15] == Array("1.2.3   ".utf8)[...])
        #expect(try FirmwareSlots(parsing: slots.encode()) == slots)
    }

    @Test("supported commands lie at four bytes an opcode, I/O after admin")
    func effects() throws {
        var page = CommandsSupportedAndEffects()
        page[.identify] = .supported
        page[.write] = [.supported, .logicalBlockContentChange]

        #expect(page.encode()[0x18] == 1)
        #expect(page.encode()[1024 + 4] == 3)
        #expect(try CommandsSupportedAndEffects(parsing: page.encode()) == page)
    }

    @Test("supported log pages have bit 0 set")
    func supported() throws {
        var page = SupportedLogPages()
        page.pages = [.errorInformation, .smartHealth, .sanitizeStatus]

        #expect(page.encode()[4...11] == [1, 0, 0, 0, 1, 0, 0, 0])
        #expect(page.encode()[0x81 * 4] == 1)
        #expect(try SupportedLogPages(parsing: page.encode()) == page)
    }

    @Test("a dataset range is attributes, length and start")
    func ranges() throws {
        let range = DatasetRange(lba: 0x0102_0304_0506_0708, blockCount: 0x10, contextAttributes: 1)

        let expected = bytes(
            """
            01 00 00 00                 # context attributes
            10 00 00 00                 # length in blocks
            08 07 06 05 04 03 02 01     # starting LBA
            """)
        #expect(memory(of: range) == expected)
        #expect(DatasetRange.encodeAll([range, range]) == expected + expected)
        #expect(try DatasetRange.parseAll(expected, count: 1) == [range])
        #expect(throws: PageError.self) { try DatasetRange.parseAll(expected, count: 2) }
        #expect(try DatasetRange.parseAll(expected, count: -1).isEmpty)
    }
}
