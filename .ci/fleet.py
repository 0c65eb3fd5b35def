# SPDX-License-Identifier: Apache-2.0
"""Several devices that go on when everything above them is stopped, for the trials of servicing:
emulators with --keep, pools in files of a tmpfs, and a service that is stopped and started again.
"""
import json, os, shutil, subprocess, tempfile

from stack import BRING_UPS, Client, Failure, Stack, ask, read, until

# Pools have to outlive the processes: a directory of a tmpfs.
SHARED_MEMORY = "/dev/shm"
# What a device counts that must not change while it is kept.
UNTOUCHED = BRING_UPS + ("submissionQueuesDeleted",)
# What a device may be asked before the first completion of a client: the probe, whose answer tells
# that it listens; and who it is and what has changed, for no client waits when all was stopped.
EARLY = {"Asynchronous Event Request", "Get Features", "Get Log Page", "Identify"}


class Device:
    """A controller in software, which its clients' end does not touch."""

    def __init__(self, fleet, name, namespaces, options=()):
        self.fleet, self.name = fleet, name
        self.socket = os.path.join(fleet.directory, name + ".v")
        self.control = os.path.join(fleet.directory, name + ".c")
        self.pool = os.path.join(fleet.memory, name + ".pool")
        words = ["--keep", "--serial", "KEPT-" + name, "--socket", self.socket, "--control",
                 self.control, *options]
        for namespace in namespaces:
            words += ["--namespace", namespace]
        self.process = fleet.start("nvmed-emulator", *words, log="emulator-" + name)

    def ask(self, command):
        return ask(self.control, command)

    @property
    def counters(self):
        return json.loads(self.ask("stats"))

    @property
    def untouched(self):
        """Counts of what is not done to a device that is kept; so are admin commands before the
        first completion of a client."""
        counters = self.counters
        early = {name: count for name, count in counters["earlyAdminCommands"].items()
                 if name not in EARLY}
        return {key: counters[key] for key in UNTOUCHED} | {"early": early}

    def end(self):
        self.process.kill()
        self.process.wait()


class Fleet(Stack):
    """Devices d0, d1, …, each with a disk dN for its first namespace and dNs for its second."""

    def __init__(self, count, namespaces=("memory=16M,block=4096",), options=(), environment=None,
                 worker=None, host=""):
        self.directory = tempfile.mkdtemp(prefix="nvs.", dir="/tmp")
        self.memory = tempfile.mkdtemp(prefix="nvs.", dir=SHARED_MEMORY)
        self.environment = dict(
            os.environ, SWIFT_BACKTRACE="enable=no", NVMED_LOG="plain", **(environment or {}))
        self.processes, self.clients, self.devices = [], [], {}
        self.public = os.path.join(self.directory, "run/nvmed.sock")
        self.manager = None
        self.starts = 0
        self.namespaces, self.options = namespaces, options
        try:
            self.make_programs(worker)
            os.mkdir(self.etc)
            # A file of its own is not needed: each device says it.
            self.write("nvmed.conf", f"[Supervisor]\n{host}")
            for number in range(count):
                self.add_device(f"d{number}")
            self.begin()
        except BaseException:
            self.end()
            raise

    # Configuration

    @property
    def etc(self):
        return os.path.join(self.directory, "etc")

    def write(self, name, text):
        with open(os.path.join(self.etc, name), "w") as file:
            file.write(text)

    def add_device(self, name, more=""):
        self.devices[name] = Device(self, name, self.namespaces, self.options)
        self.configure_device(name, more)
        for number, _ in enumerate(self.namespaces, 1):
            self.write(f"{name}{'s' * (number - 1)}.disk",
                       f"[Disk]\nDevice={name}\nNamespace={number}\nAccess=read-write\n")

    def configure_device(self, name, more="", keep="yes"):
        device = self.devices[name]
        self.write(f"{name}.device",
                   f"[Device]\nTransport=vfio-user\nSocket={device.socket}\nNVMeKeepAlive={keep}\n"
                   f"Pool=file\nPoolPath={device.pool}\n{more}")

    def forget_device(self, name):
        for file in os.listdir(self.etc):
            if file.split(".")[0].rstrip("s") == name:
                os.remove(os.path.join(self.etc, file))

    # The service

    def start(self, name, *arguments, log=None):
        path = os.path.join(self.directory, (log or name) + ".log")
        with open(path, "a") as output:
            process = subprocess.Popen(
                [os.path.join(self.programs, name), *arguments], env=self.environment,
                stdout=output, stderr=output)
        self.processes.append(process)

        def is_ready():
            if process.poll() is not None:
                raise Failure(f"{name} ended: {read(path)[-2000:]}")
            return "ready" in read(path)
        until(f"{name} ready", is_ready)
        return process

    def begin(self):
        """Starts the manager with everything."""
        self.starts += 1
        self.service_log = f"nvmed-{self.starts}"
        self.manager = self.start(
            "nvmed", "--standalone", "--config", self.etc, "--runtime",
            os.path.join(self.directory, "run"), log=self.service_log)

    def stop(self):
        """Stops all of it in order."""
        self.manager.terminate()
        self.manager.wait(60)
        self.forget_manager()

    def crash(self):
        """Kills all of it at once: the fd store is in the manager, so nothing is kept."""
        victims = self.tree()
        self.manager.kill()
        self.manager.wait()
        for pid in victims:
            self.kill(pid)
        for pid in victims:
            until(f"the end of {pid}", lambda: not os.path.exists(f"/proc/{pid}"))
        self.forget_manager()

    def forget_manager(self):
        self.processes.remove(self.manager)
        self.manager = None

    def tree(self):
        pid = self.manager.pid
        return [int(child) for child in read(f"/proc/{pid}/task/{pid}/children").split()]

    def worker_of(self, name):
        """The process of a device's worker, or None."""
        for pid in self.children("nvmed-worker"):
            if name in read(f"/proc/{pid}/cmdline").split("\0"):
                return pid
        return None

    @property
    def log_text(self):
        return read(os.path.join(self.directory, self.service_log + ".log"))

    def said(self, name):
        """Lines of the service's log about a device."""
        lines = [line for line in self.log_text.splitlines() if name in line]
        return "\n".join([line for line in lines if "session" not in line][-20:])

    # Servicing

    def ctl(self, *words, check=True):
        run = subprocess.run(
            [os.path.join(self.programs, "nvmectl"), "--socket", self.public, *words],
            env=self.environment, capture_output=True, text=True)
        if check and run.returncode:
            raise Failure(f"nvmectl {' '.join(words)}: {run.stderr}{run.stdout}")
        return run

    def save(self, *words, check=True):
        return self.ctl("service", "save", *words, check=check)

    @property
    def status(self):
        return self.nvmectl("service", "status")

    @property
    def steps(self):
        """Where each device is in servicing."""
        return {device["name"]: device["step"] for device in self.status["devices"]}

    @property
    def reasons(self):
        return {device["name"]: device.get("reason") or "" for device in self.status["devices"]}

    @property
    def saved_file(self):
        for root, _, names in os.walk(self.directory):
            if "servicing.state" in names:
                return os.path.join(root, "servicing.state")
        return None

    def wait_phase(self, phase):
        until(f"servicing {phase}", lambda: self.quiet_status().get("phase") == phase)

    def quiet_status(self):
        try:
            return self.status
        except Failure:
            return {}

    # Load

    def load(self, disk, **options):
        words = dict(way="ring", depth=8, bytes=64 << 10, first=0, exercise=400, seed=7,
                     repeat="yes", patience=120, limit=120)
        words.update(options)
        client = Client(self, disk, disk, words.pop("blocks", 512), **words)
        self.clients.append(client)
        client.wait(1)
        return client

    def drop(self, client):
        if client.process.poll() is None:
            client.kill()
        self.clients.remove(client)

    def end(self):
        for client in self.clients:
            if client.process.poll() is None:
                client.kill()
        super().end()
        if os.environ.get("KEEP"):
            print(f"fleet: {self.directory} and {self.memory} are left")
        else:
            shutil.rmtree(self.memory, ignore_errors=True)
