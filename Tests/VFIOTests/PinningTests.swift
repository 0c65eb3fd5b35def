// SPDX-License-Identifier: Apache-2.0
// What an operator is told when memory cannot be pinned.

import Linux
import Testing

@testable import VFIO

@Suite("Memory that cannot be pinned")
struct PinningTests {
    private let noMemory = VFIOError.system(SystemCallError("map", errno: 12))

    @Test("Under a limit the error names it, what was wanted, and where to change it")
    func limitIsNamed() {
        let told = KernelVFIODevice.explained(noMemory, 8192, 4096).description
        #expect(told.contains("8192"))
        #expect(told.contains("4096"))
        #expect(told.contains("LimitMEMLOCK="))
        #expect(told.contains("Cannot allocate memory"))
    }

    @Test("Without a limit, and for other errors, nothing is made up")
    func othersStay() {
        let invalid = VFIOError.system(SystemCallError("map", errno: 22))
        #expect(KernelVFIODevice.explained(noMemory, 8192, nil) == noMemory)
        #expect(KernelVFIODevice.explained(invalid, 8192, 4096) == invalid)
    }
}
