"""Unpacks the CPU half of the libtorch wheels: python3 unpack_libtorch.py WHEELS DESTINATION."""
import os
import pathlib
import sys
import zipfile

CPU_LIBRARIES = ("libtorch_cpu.so", "libtorch.so", "libc10.so", "libgomp.so.1", "libtorch_global_deps.so")


def wanted(name: str) -> bool:
    """Headers and the libraries a CPU process loads; the wheels' own layout is kept (RUNPATH relies on it)."""
    if name.startswith("torch/include/"):
        return True
    if name.startswith("torch/lib/"):
        return os.path.basename(name) in CPU_LIBRARIES
    return name.startswith("nvidia/cu13/lib/") and ".so" in name


def main() -> None:
    """Unpacks every wheel of a folder."""
    wheels, destination = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
    for wheel in sorted(wheels.glob("*.whl")):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(destination, [n for n in archive.namelist() if wanted(n) and not n.endswith("/")])
    if not (destination / "torch/lib/libtorch_cpu.so").is_file():
        raise SystemExit("setup: the torch wheel held no torch/lib/libtorch_cpu.so")


if __name__ == "__main__":
    main()
