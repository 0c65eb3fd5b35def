// SPDX-License-Identifier: Apache-2.0
// Where a pool gets its memory from when it is made: by itself, or through a privileged process.

internal import VFIO

/// Makes the memory of a pool.
public struct PoolSource {
    /// Where it will lie.
    public let place: PoolPlace
    /// The NUMA node that its pages are to lie on; nil: whichever.
    public var node: Int?
    /// Sees to that.
    public var nodes: NodeMemory
    private let provide:
        (_ place: PoolPlace, _ byteCount: Int, _ node: Int?) throws(PoolFileError) -> PoolFile

    /// Opens or makes what `place` says. `provide` does so where this process may not, and gets at
    /// least that many bytes.
    public init(
        _ place: PoolPlace, node: Int? = nil, nodes: NodeMemory = .kernel,
        provide: ((PoolPlace, Int, _ node: Int?) throws(PoolFileError) -> PoolFile)? = nil
    ) {
        self.place = place
        self.node = node
        self.nodes = nodes
        if let provide {
            self.provide = provide
        } else {
            // Not `provide ?? { … }`: the compiler (6.3) crashes over it.
            self.provide = { place, byteCount, node throws(PoolFileError) in
                try PoolFile.create(place, byteCount: byteCount, node: node, nodes: nodes)
            }
        }
    }

    /// Sealed memory files.
    public static var memory: PoolSource { PoolSource(.memory) }

    /// Memory with room for both zones of a layout, each on pages of its own.
    func make(_ layout: PoolLayout) throws(VFIOError) -> PoolFile {
        let file = try make(layout.byteCount(pageByteCount: place.medium.usualPageByteCount))
        let needed = layout.byteCount(pageByteCount: file.pageByteCount)
        guard file.byteCount < needed else { return file }
        // Larger pages than usual. The file is let go of first: it is locked.
        _ = consume file
        return try make(needed)
    }

    /// Memory of huge pages, whose places do not change.
    func makeHuge(_ byteCount: Int) throws(VFIOError) -> PoolFile {
        guard place.medium == .memory else { return try make(byteCount) }
        do throws(PoolFileError) {
            return try PoolFile.memoryFile(
                "nvmed-pool", byteCount, hugePages: true, node: node, nodes: nodes)
        } catch { throw .unsupported("\(error)") }
    }

    private func make(_ byteCount: Int) throws(VFIOError) -> PoolFile {
        do throws(PoolFileError) {
            return try provide(place, byteCount, node)
        } catch { throw .unsupported("\(error)") }
    }
}

extension PoolMedium {
    /// Bytes of a page, as nearly all machines have them.
    public var usualPageByteCount: Int {
        switch self {
        case .memory, .file: PoolFile.smallPageByteCount
        case .hugePages, .deviceMemory: Int(PhysicalMemory.pageByteCount)
        }
    }
}
