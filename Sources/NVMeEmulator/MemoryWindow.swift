// SPDX-License-Identifier: Apache-2.0
// Bounded views of raw memory: bytes that a peer also touches, and tables allocated once.

internal import CMemory

/// A stretch of memory with checked, volatile access. It owns nothing: whoever made it keeps the
/// memory alive.
@safe
struct MemoryWindow {
    let base: UnsafeMutableRawPointer
    let byteCount: Int

    init(base: UnsafeMutableRawPointer, byteCount: Int) {
        unsafe self.base = base
        self.byteCount = byteCount
    }

    @inline(__always)
    private func pointer(_ offset: Int, _ width: Int) -> UnsafeMutableRawPointer {
        precondition(offset >= 0 && offset <= byteCount &- width, "outside the window")
        return unsafe base + offset
    }

    @inline(__always)
    func load32(_ offset: Int) -> UInt32 { unsafe nv_load32(pointer(offset, 4)) }

    @inline(__always)
    func load64(_ offset: Int) -> UInt64 { unsafe nv_load64(pointer(offset, 8)) }

    @inline(__always)
    func store32(_ offset: Int, _ value: UInt32) { unsafe nv_store32(pointer(offset, 4), value) }

    @inline(__always)
    func store64(_ offset: Int, _ value: UInt64) { unsafe nv_store64(pointer(offset, 8), value) }

    /// Stores a word that publishes everything stored before it.
    @inline(__always)
    func publish64(_ offset: Int, _ value: UInt64) {
        unsafe nv_store_release64(pointer(offset, 8), value)
    }

    /// Part of this window.
    func slice(_ offset: Int, _ count: Int) -> MemoryWindow {
        unsafe MemoryWindow(base: pointer(offset, count), byteCount: count)
    }

    func zero() { unsafe base.initializeMemory(as: UInt8.self, repeating: 0, count: byteCount) }
}

/// A fixed number of elements that live as long as the process, without copies and reference
/// counts.
@safe
struct Table<Element> {
    private let base: UnsafeMutablePointer<Element>
    let count: Int

    init(repeating element: Element, count: Int) {
        let base = UnsafeMutablePointer<Element>.allocate(capacity: count)
        unsafe base.initialize(repeating: element, count: count)
        unsafe self.base = unsafe base
        self.count = count
    }

    func free() {
        unsafe base.deinitialize(count: count)
        unsafe base.deallocate()
    }

    subscript(_ index: Int) -> Element {
        @inline(__always) unsafeAddress {
            precondition(index >= 0 && index < count, "outside the table")
            return unsafe UnsafePointer(base + index)
        }
        @inline(__always) nonmutating unsafeMutableAddress {
            precondition(index >= 0 && index < count, "outside the table")
            return unsafe base + index
        }
    }
}
