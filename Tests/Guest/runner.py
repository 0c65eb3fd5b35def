# SPDX-License-Identifier: Apache-2.0
"""Runs the tests in machines and reports them, one line each.

  runner.py run             FILTER=regex of names and sentences, KEEP=1, KERNEL=full
  runner.py shell COMMAND   in the machine that a run with KEEP=1 left
"""
import concurrent.futures, glob, importlib, inspect, os, re, shutil, signal, sys, tempfile, threading
import time, traceback

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
sys.path.insert(0, HERE)
import harness, image

TEST_SECONDS = 300
RESULTS = os.path.join(ROOT, ".build/guest")
SHELL = os.path.join(RESULTS, "shell")


class Interrupted(BaseException):
    """A signal, or a test's time is over: the machine has to go."""


def on_signal(number, _):
    raise Interrupted("time is over" if number == signal.SIGALRM else signal.Signals(number).name)


def tests():
    """All (module, name, function), by file and then by their order in it."""
    for path in sorted(glob.glob(os.path.join(HERE, "test_*.py"))):
        module = importlib.import_module(os.path.basename(path)[:-3])
        functions = [(name, value) for name, value in vars(module).items()
                     if name.startswith("test_") and inspect.isfunction(value)
                     and value.__module__ == module.__name__]
        for name, function in sorted(functions, key=lambda pair: pair[1].__code__.co_firstlineno):
            yield module.__name__, name, function


def sentence(function):
    return re.split(r"\n\s*\n", function.__doc__.strip())[0].replace("\n", " ")


class Runner:
    def __init__(self):
        self.kernel_full = os.environ.get("KERNEL") == "full"
        self.keep = bool(os.environ.get("KEEP"))
        self.quick = bool(os.environ.get("GUEST_QUICK"))
        self.guest = None
        self.passed, self.failed, self.left_out, self.repeated, self.too_long = 0, 0, 0, 0, 0
        # A host that is short of processors for minutes makes an emulated machine miss bounds that
        # are no fault of what is tested. What passes only the second time is told as that.
        self.tries = max(1, int(os.environ.get("GUEST_TRIES", "1")))
        # Debian's kernel can trace itself, the small one of KERNEL=full has what is tested with it.
        self.features = ("iommufd", "noiommu") if self.kernel_full else ("trace",)

    def prepare(self):
        start = time.monotonic()
        kernel, root = image.image()
        if self.kernel_full:
            import kernel as full
            kernel = full.kernel()
        self.work = tempfile.mkdtemp(prefix="nvg.", dir="/tmp")
        path = os.path.join(self.work, "payload.cpio")
        image.payload(path, os.environ.get("NVMED_DEB"), os.environ["NVMED_BIN_DIR"])
        initramfs = os.path.join(self.work, "initramfs")
        with open(initramfs, "wb") as whole:
            for part in (root, path):
                with open(part, "rb") as file:
                    shutil.copyfileobj(file, whole, 1 << 20)
        self.machine = dict(kernel=kernel, initramfs=initramfs, results=RESULTS, features=self.features)
        image.say(f"guest: image and package: {time.monotonic() - start:.1f} s")

    def shared(self, append=""):
        if self.guest is None or not self.guest.alive or self.guest.append != append:
            self.drop()
            self.guest = harness.Guest(**self.machine, append=append)
            self.guest.boot()
            image.say(f"guest: boot: {self.guest.boot_seconds:.1f} s")
        return self.guest

    def drop(self):
        if self.guest is not None:
            self.guest.close()
            self.guest = None

    def attempt(self, name, function):
        for left in reversed(range(self.tries)):
            failed = self.failed
            self.one(name, function)
            if self.failed == failed or not left:
                return
            self.failed = failed
            self.repeated += 1
            image.say("    once more, in a new machine")
            self.drop()

    def one(self, name, function):
        own = getattr(function, "own_machine", False)
        if own:
            self.drop()
        limit = getattr(function, "seconds_limit", TEST_SECONDS)
        error = None
        try:
            signal.alarm(limit + harness.BOOT_SECONDS)
            if getattr(function, "makes_machines", False):
                guest = self.guest = harness.Guest(**self.machine)
            else:
                guest = self.shared(getattr(function, "append", ""))
            start = time.monotonic()
            signal.alarm(limit)
            function(guest)
            signal.alarm(0)
        except Interrupted as reason:
            if str(reason) != "time is over":
                raise
            error = f"took more than {limit} s\n{traceback.format_exc(limit=-3)}"
        except Exception as failure:
            lines = [f"{os.path.basename(frame.filename)}:{frame.lineno}: {frame.line}"
                     for frame in traceback.extract_tb(failure.__traceback__)
                     if os.path.basename(frame.filename).startswith("test_")]
            text = str(failure) if isinstance(failure, harness.Failure) else repr(failure)
            if isinstance(failure.__context__, harness.Failure) and failure.__cause__ is None:
                text = f"first: {failure.__context__}\nthen: {text}"
            error = "\n".join(lines[-3:] + [text])
        signal.alarm(0)
        seconds = time.monotonic() - locals().get("start", time.monotonic())
        if error is None:
            self.passed += 1
            image.say(f"ok {seconds:6.1f} s  {sentence(function)}")
        else:
            self.failed += 1
            image.say(f"FAILED {seconds:.1f} s  {sentence(function)}  ({name})")
            image.say("    " + error.replace("\n", "\n    "))
            if self.guest is not None:
                image.say("    kept: " + self.keep_failure(name))
        if own or error is not None and not self.keep:
            self.drop()

    def keep_failure(self, name):
        # The machine may not answer any more; its console is there in any case.
        signal.alarm(90)
        try:
            return self.guest.keep(name)
        except Interrupted as reason:
            if str(reason) != "time is over":
                raise
            return os.path.join(RESULTS, name)
        finally:
            signal.alarm(0)

    def run(self):
        wanted = re.compile(os.environ.get("FILTER", ""))
        start = time.monotonic()
        before = int(os.environ.get("GUEST_SECONDS_BEFORE", "0"))
        shutil.rmtree(RESULTS, ignore_errors=True)
        os.makedirs(RESULTS)
        chosen = [(name, function) for module, name, function in tests()
                  if wanted.search(f"{module}.{name} {sentence(function)}")]
        if not chosen:
            sys.exit(f"guest: no test matches {wanted.pattern!r}")
        self.prepare()
        for name, function in chosen:
            if not set(getattr(function, "needs", ())) <= set(self.features):
                self.left_out += 1
                continue
            if self.quick and getattr(function, "thorough", False):
                self.too_long += 1
                continue
            self.attempt(name, function)
            if self.failed and self.keep:
                break
        if self.keep:
            self.stay()
        left_out = f", {self.left_out} need {'the usual kernel' if self.kernel_full else 'KERNEL=full'}" if self.left_out else ""
        if self.too_long:
            left_out += f", {self.too_long} left out by GUEST_QUICK"
        repeated = f", {self.repeated} of them repeated" if self.repeated else ""
        image.say(f"{self.passed} tests passed, {self.failed} failed{repeated}{left_out}, "
                  f"{time.monotonic() - start + before:.0f} s")
        return 1 if self.failed or not self.passed else 0

    def stay(self):
        guest = self.guest if self.guest is not None and self.guest.alive else self.shared()
        os.symlink(os.path.join(guest.directory, "shell"), SHELL)
        image.say("guest: the machine is kept. In another terminal: .ci/guest shell 'COMMAND'")
        image.say(f"guest: console and sockets are in {guest.directory}; Ctrl-C ends it")
        try:
            guest.process.wait()
        except (Interrupted, KeyboardInterrupt):
            pass

    def close(self):
        signal.alarm(0)
        self.drop()
        if hasattr(self, "work"):
            shutil.rmtree(self.work, ignore_errors=True)


def run():
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGALRM):
        signal.signal(number, on_signal)
    runner = Runner()
    try:
        status = runner.run()
    except Interrupted as reason:
        status = 1
        image.say(f"guest: ended by {reason}")
    finally:
        runner.close()
    # Threads that wait for a machine that is gone must not hold up the end.
    sys.stdout.flush()
    os._exit(status)


def shell(words):
    if not os.path.exists(SHELL):
        sys.exit("guest: no machine was kept; run make guest KEEP=1 first")
    answer = harness.Agent(os.path.realpath(SHELL)).send(command=" ".join(words), timeout=600).result()
    sys.stdout.write(answer["stdout"])
    sys.stderr.write(answer["stderr"])
    sys.exit(answer["status"] & 255)


if __name__ == "__main__":
    shell(sys.argv[2:]) if sys.argv[1:2] == ["shell"] else run()
