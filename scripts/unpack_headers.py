"""Unpacks the headers of CUDA wheels: python3 unpack_headers.py WHEELS DESTINATION."""
import pathlib
import sys
import zipfile


def main() -> None:
    """Keeps everything below an include folder."""
    for wheel in sorted(pathlib.Path(sys.argv[1]).glob("*.whl")):
        with zipfile.ZipFile(wheel) as archive:
            names = [n for n in archive.namelist() if "/include/" in n and not n.endswith("/")]
            archive.extractall(sys.argv[2], names)


if __name__ == "__main__":
    main()
