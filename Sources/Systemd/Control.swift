// SPDX-License-Identifier: Apache-2.0
// The global actor of all control code: everything marked `@Control` runs on the main event loop.

/// The isolation of control-plane code: one thread, the one that runs ``EventLoop/main()``.
///
/// Classes that hold sessions, services or timers are annotated `@Control`; C callbacks and
/// handlers of the loop are already there, and say so with ``assumeIsolated(_:)``.
@globalActor
public actor Control {
    /// The one instance.
    public static let shared = Control()

    /// The main event loop. Stops the process when ``EventLoop/main()`` has not been called yet.
    public nonisolated var unownedExecutor: UnownedSerialExecutor {
        unsafe EventLoop.current.asUnownedSerialExecutor()
    }

    /// Runs `body` at once, on the promise that the caller is on the loop's thread.
    ///
    /// A caller on another thread stops the process: that is a mistake of the program.
    public static func assumeIsolated<Result, Failure: Error>(
        _ body: @Control () throws(Failure) -> Result
    ) throws(Failure) -> Result {
        precondition(EventLoop.current.isCurrentThread, "not on the thread of the event loop")
        // SAFETY: isolation does not change a function's representation, and was checked above.
        return try withoutActuallyEscaping(body) { (escaping) throws(Failure) -> Result in
            let plain = unsafe unsafeBitCast(
                escaping, to: (() throws(Failure) -> Result).self)
            return try plain()
        }
    }
}
