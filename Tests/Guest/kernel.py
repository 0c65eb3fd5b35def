# SPDX-License-Identifier: Apache-2.0
"""Builds a kernel with iommufd and no-IOMMU mode from Debian's source, once for each configuration.

Debian's own kernels have neither. Some minutes on two processors.
"""
import fcntl, glob, hashlib, os, shutil, sys, tempfile

import image

SOURCE = "linux-source-6.12"
# Its absence would be noticed as a test that is left out, so it is looked for at once.
DEMANDED = ("CONFIG_IOMMUFD=y", "CONFIG_VFIO_NOIOMMU=y", "CONFIG_VFIO_DEVICE_CDEV=y", "CONFIG_VIRTIO_CONSOLE=y",
            "CONFIG_HUGETLBFS=y", "CONFIG_PCIEAER=y", "CONFIG_HOTPLUG_PCI_ACPI=y")


def kernel():
    """Path of the kernel; built now if this configuration was never built."""
    base, _ = image.cache_directory()
    configuration = os.path.join(image.HERE, "kernel.config")
    with open(configuration, "rb") as file:
        key = hashlib.sha256(file.read()).hexdigest()[:16]
    target = os.path.join(base, f"kernel-{key}")
    os.makedirs(base, exist_ok=True)
    with open(target + ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not os.path.exists(target):
            work = tempfile.mkdtemp(prefix=".kernel.", dir=base)
            try:
                build(work, configuration)
                os.rename(os.path.join(work, "bzImage"), target)
            finally:
                shutil.rmtree(work, ignore_errors=True)
    return target


def build(work, configuration):
    image.say("guest: building the kernel; that is done once for each configuration")
    apt = tempfile.mkdtemp(prefix="nvg-apt.")
    try:
        with image.phase("source of the kernel"):
            environment = image.private_apt(apt)
            image.run(["apt-get", "-qq", "download", SOURCE], cwd=work, env=environment)
    finally:
        shutil.rmtree(apt, ignore_errors=True)
    with image.phase("unpacking"):
        [package] = glob.glob(os.path.join(work, "*.deb"))
        image.run(["dpkg-deb", "-x", package, work + "/package"])
        [archive] = glob.glob(work + f"/package/usr/src/{SOURCE}.tar.*")
        # Other architectures and their devices are most of it.
        image.run(["tar", "-x", "--strip-components=1", "-f", archive, "-C", work,
                   "--exclude=*.rst", "--exclude=*/drivers/gpu/drm/amd/*.[ch]", "--exclude=*.dts*",
                   "--exclude=*/drivers/net/ethernet/*.c"])
        shutil.rmtree(work + "/package")
        os.unlink(package)
    with image.phase("building the kernel"):
        make = ["make", "-C", work, "-s", f"-j{os.cpu_count()}", "KBUILD_BUILD_USER=nvmed",
                "KBUILD_BUILD_HOST=guest"]
        image.run([*make, "tinyconfig"])
        image.run(["scripts/kconfig/merge_config.sh", "-m", ".config", configuration], cwd=work)
        image.run([*make, "olddefconfig"])
        with open(os.path.join(work, ".config")) as file:
            result = file.read().splitlines()
        missing = [option for option in DEMANDED if option not in result]
        if missing:
            sys.exit(f"guest: the configuration of the kernel lost {missing}")
        image.run([*make, "bzImage"])
    shutil.copy(os.path.join(work, "arch/x86/boot/bzImage"), os.path.join(work, "bzImage"))
