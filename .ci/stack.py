# SPDX-License-Identifier: Apache-2.0
"""The whole service as real processes, for the soak and the crash matrix: an emulator, the manager
with its supervisor and workers, and clients that check what they read.

Everything is in one directory below /tmp, and nothing is left of it. Processes are found by their
parents, and ended by their ids.
"""
import json, mmap, os, shutil, signal, socket, struct, subprocess, tempfile, time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
BIN = os.environ.get("NVMED_BIN_DIR", os.path.join(ROOT, ".build/release"))
# What a loaded machine may take for anything that normally takes milliseconds.
PATIENCE_SECONDS = 60
# Between two looks at memory that clients write.
LOOK_SECONDS = 0.0005
# The emulator's counters of what a controller that is gone on with is spared.
BRING_UPS = ("controllerResets", "deviceResets", "enables", "fatals", "submissionQueuesCreated",
             "completionQueuesCreated")


class Failure(Exception):
    pass


def until(what, condition, seconds=PATIENCE_SECONDS):
    """The first true value of a condition."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise Failure(f"{what}: not within {seconds} s")
        time.sleep(LOOK_SECONDS)
    return value


def read(path):
    try:
        with open(path) as file:
            return file.read()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def usage(pid):
    """What a process holds."""
    status = dict(line.split(":", 1) for line in read(f"/proc/{pid}/status").splitlines())
    try:
        fds = len(os.listdir(f"/proc/{pid}/fd"))
    except FileNotFoundError:
        fds = 0
    return {
        "fds": fds, "mappings": read(f"/proc/{pid}/maps").count("\n"),
        "anonymous_kib": int(status.get("RssAnon", "0 kB").split()[0]),
        "threads": int(status.get("Threads", "0")),
    }


def ask(control, command):
    """What an emulator answers to a word at its control socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as end:
        end.settimeout(PATIENCE_SECONDS)
        end.connect(control)
        end.send(command.encode())
        answer = end.recv(1 << 20).decode()
    if answer.startswith("error"):
        raise Failure(f"the emulator, asked to {command}: {answer}")
    return answer


class Model:
    """A client's model file: see Sources/nvmed-bench/SoakModel.swift."""
    WORDS = {
        "command": 0, "state": 1, "kill_index": 2, "kill_time": 3, "seen_kill": 4, "pause": 5,
        "requests": 16, "errors": 17, "lost": 18, "doubled": 19, "corrupt": 20, "stale": 21,
        "issued": 22, "acknowledged": 23, "duplicate_replies": 24, "stalled": 25, "resumed": 26,
        "reopened": 27, "control": 28, "longest": 29, "checked": 30, "uncertain": 31,
        "ended": 32, "repeated": 33,
    }
    HISTORY = 4096
    BLOCK = 12 * 24

    def __init__(self, path, blocks):
        size = self.HISTORY + blocks * self.BLOCK
        with open(path, "w+b") as file:
            file.truncate(size)
            self.memory = mmap.mmap(file.fileno(), size)

    def __getitem__(self, name):
        return struct.unpack_from("<Q", self.memory, self.WORDS[name] * 8)[0]

    def __setitem__(self, name, value):
        struct.pack_into("<Q", self.memory, self.WORDS[name] * 8, value)

    @property
    def message(self):
        return self.memory[1024:3072].split(b"\0")[0].decode(errors="replace")


class Client:
    """A client process, which can be killed and started again on the same model."""
    BAD = ("errors", "lost", "doubled", "corrupt", "stale")

    def __init__(self, stack, name, disk, blocks, **options):
        self.stack, self.name, self.blocks = stack, name, blocks
        path = os.path.join(stack.directory, name + ".model")
        self.model = Model(path, blocks)
        self.options = dict(options, disk=disk, model=path, blocks=blocks, socket=stack.public)
        self.log = open(os.path.join(stack.directory, name + ".log"), "w+")
        self.starts = 0
        self.start()

    def start(self):
        self.starts += 1
        self.model["state"] = 0
        words = [os.path.join(BIN, "nvmed-bench"), "soak-client"]
        options = dict(self.options, seed=self.options["seed"] + self.starts * 1000003)
        for key, value in options.items():
            words += ["--" + key, str(value)]
        self.process = subprocess.Popen(
            words, env=self.stack.environment, stdout=self.log, stderr=self.log)

    def kill(self):
        self.process.kill()
        self.process.wait()

    def check_alive(self):
        if self.process.poll() is not None and self.model["state"] != 3:
            self.log.seek(0)
            raise Failure(f"client {self.name} ended with {self.process.returncode}: "
                          f"{self.log.read()[-2000:]} {self.model.message}")
        return True

    def wait(self, state, seconds=PATIENCE_SECONDS):
        until(f"client {self.name} in state {state}",
              lambda: self.check_alive() and self.model["state"] == state, seconds)

    def stop(self):
        self.model["command"] = 2
        self.wait(3)
        self.process.wait(PATIENCE_SECONDS)

    @property
    def bad(self):
        return {key: self.model[key] for key in self.BAD if self.model[key]}


class Stack:
    """Emulator, manager, supervisor, workers."""

    def __init__(self, namespaces, emulator=(), device="", shared=(), worker=None, environment=None):
        self.directory = tempfile.mkdtemp(prefix="nvs.", dir="/tmp")
        self.environment = dict(
            os.environ, SWIFT_BACKTRACE="enable=no", NVMED_LOG="plain", **(environment or {}))
        self.processes = []
        self.public = os.path.join(self.directory, "run/nvmed.sock")
        self.control = os.path.join(self.directory, "control")
        self.namespaces = namespaces
        try:
            self.make_programs(worker)
            self.configure(device, shared)
            self.start_emulator(emulator)
            self.manager = self.start(
                "nvmed", "--standalone", "--config", os.path.join(self.directory, "etc"),
                "--runtime", os.path.join(self.directory, "run"))
        except BaseException:
            self.end()
            raise

    def make_programs(self, worker):
        # The manager starts what lies beside it.
        self.programs = os.path.join(self.directory, "bin")
        os.mkdir(self.programs)
        for name in ("nvmed", "nvmed-worker", "nvmed-emulator", "nvmectl"):
            source = worker if worker and name == "nvmed-worker" else os.path.join(BIN, name)
            target = os.path.join(self.programs, name)
            try:
                os.link(os.path.realpath(source), target)
            except OSError:
                shutil.copy(source, target)

    def configure(self, device, shared):
        etc = os.path.join(self.directory, "etc")
        os.mkdir(etc)
        files = {"a.device": f"[Device]\nTransport=vfio-user\nSocket={self.directory}/v\n{device}"}
        for number, _ in enumerate(self.namespaces, 1):
            text = f"[Disk]\nDevice=a\nNamespace={number}\nAccess=read-write\n"
            files[f"d{number}.disk"] = text + ("Shared=yes\n" if number in shared else "")
        for name, text in files.items():
            with open(os.path.join(etc, name), "w") as file:
                file.write(text)

    def start_emulator(self, emulator):
        words = ["--socket", os.path.join(self.directory, "v"), "--control", self.control, *emulator]
        for namespace in self.namespaces:
            words += ["--namespace", namespace]
        self.emulator = self.start("nvmed-emulator", *words)

    def start(self, name, *arguments):
        path = os.path.join(self.directory, name + ".log")
        with open(path, "w") as log:
            process = subprocess.Popen(
                [os.path.join(self.programs, name), *arguments], env=self.environment, stdout=log,
                stderr=log)
        self.processes.append(process)

        def is_ready():
            if process.poll() is not None:
                raise Failure(f"{name} ended: {read(path)}")
            return "ready" in read(path)
        until(f"{name} ready", is_ready)
        return process

    # Processes

    def children(self, program):
        found = []
        pid = self.manager.pid
        for child in read(f"/proc/{pid}/task/{pid}/children").split():
            words = read(f"/proc/{child}/cmdline").split("\0")
            # A child that is not yet its program, or is dead already, has other words or none.
            if words[0].endswith("/" + program) and "--standalone" not in words:
                found.append(int(child))
        return found

    @property
    def worker(self):
        return (self.children("nvmed-worker") or [None])[-1]

    @property
    def supervisor(self):
        return (self.children("nvmed") or [None])[-1]

    def kill(self, pid, number=signal.SIGKILL):
        try:
            os.kill(pid, number)
            return True
        except ProcessLookupError:
            return False

    # Others' words

    def ask_emulator(self, command):
        return ask(self.control, command)

    def statistics(self):
        return json.loads(self.ask_emulator("stats"))

    def nvmectl(self, *words):
        run = subprocess.run(
            [os.path.join(self.programs, "nvmectl"), "--socket", self.public, *words,
             "--output", "json"], env=self.environment, capture_output=True, text=True)
        if run.returncode:
            raise Failure(f"nvmectl {' '.join(words)}: {run.stderr}")
        return json.loads(run.stdout)

    def log(self, name, lines=20):
        return "\n".join(read(os.path.join(self.directory, name + ".log")).splitlines()[-lines:])

    def end(self):
        for process in reversed(self.processes):
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if not os.environ.get("KEEP"):
            shutil.rmtree(self.directory, ignore_errors=True)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.end()
