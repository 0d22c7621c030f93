"""`python -m export.llama_cpp.build --out DIR`: llama.cpp with the architecture `opt`, from the pinned source."""

from __future__ import annotations

import argparse
import hashlib
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path

from export.errors import ExportError
from tinydispatch.ggml.library import PIN, native_folder

_PATCH = Path(__file__).with_name("opt.patch")
_INSIDE = Path("thirdparty/llama.cpp")
_SHA256 = "c17ee1163006f70726abb9f72137830818f3d8cb60bfc34cb232d08428eaa22b"
_OPTIONS = {
    "CMAKE_BUILD_TYPE": "Release",
    "BUILD_SHARED_LIBS": "ON",
    "CMAKE_BUILD_RPATH_USE_ORIGIN": "ON",  # the libraries find each other wherever they are copied
    "GGML_NATIVE": "ON",  # what is built is run here
    "GGML_OPENMP": "OFF",
    "LLAMA_CURL": "OFF",
    "LLAMA_OPENSSL": "OFF",
    "LLAMA_BUILD_TESTS": "OFF",
    "LLAMA_BUILD_EXAMPLES": "OFF",
    "LLAMA_USE_PREBUILT_UI": "OFF",  # the server's web page would be downloaded
}


class BuildError(ExportError):
    """llama.cpp could not be built; the message says which step failed."""


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0, or 2 when a step failed."""
    arguments = _parser().parse_args(argv)
    try:
        for tool in ("cmake", "patch"):
            if shutil.which(tool) is None:
                raise BuildError(f"{tool} is not installed")
        patched = arguments.out / "llama.cpp"
        if not is_patched(patched):
            patch_source(arguments.source or download(arguments.out), patched)
        build(patched, arguments.out / "build", arguments.targets, arguments.jobs)
        if arguments.install:
            print(f"{install(arguments.out / 'build' / 'bin')}: taken from now on")
    except (ValueError, OSError) as error:
        print(f"build: {error}", file=sys.stderr)
        return 2
    print(f"{arguments.out / 'build' / 'bin'}: {', '.join(arguments.targets)}, with architecture opt")
    return 0


def download(folder: Path) -> Path:
    """Fetch the pinned source distribution and unpack it; the folder of llama.cpp in it.

    Raises:
        BuildError: it cannot be fetched, or is not what was pinned.
    """
    options = ["--no-deps", "--no-binary", ":all:", "--dest", str(folder)]
    _run([sys.executable, "-m", "pip", "download", PIN, *options], "download the source")
    archives = sorted(folder.glob("xllamacpp-*.tar.gz"))
    if not archives:
        raise BuildError(f"{folder}: pip left no archive there")
    archive = archives[-1]
    with archive.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != _SHA256:
        raise BuildError(f"{archive}: SHA-256 {found} instead of {_SHA256}")
    with tarfile.open(archive) as opened:
        opened.extractall(folder, filter="data")
    return folder / archive.name.removesuffix(".tar.gz") / _INSIDE


def is_patched(source: Path) -> bool:
    """Whether a folder holds a patched source already, with what was built from it."""
    return (source / "src" / "models" / "opt.cpp").is_file()


def patch_source(source: Path, target: Path) -> None:
    """Make a patched copy of llama.cpp's source, whole or not at all.

    Raises:
        BuildError: the patch does not fit this source.
    """
    if not (source / "src" / "llama-arch.cpp").is_file():
        raise BuildError(f"{source}: holds no source of llama.cpp")
    partial = target.with_name(target.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(source, partial)
    command = ["patch", "--strip=1", "--fuzz=0", "--directory", str(partial), "--input", str(_PATCH)]
    _run(command, f"patch {source}")
    partial.replace(target)


def build(source: Path, folder: Path, targets: Sequence[str], jobs: int) -> None:
    """Configure and compile targets.

    Raises:
        BuildError: cmake or the compiler failed.
    """
    options = [f"-D{name}={value}" for name, value in _OPTIONS.items()]
    _run(["cmake", "-S", str(source), "-B", str(folder), *options], "configure")
    _run(["cmake", "--build", str(folder), "--target", *targets, "--parallel", str(jobs)], "compile")


def install(built: Path) -> Path:
    """Copy the libraries to where tinydispatch looks for one before it takes the wheel's.

    Raises:
        BuildError: none was built.
    """
    libraries = sorted(built.glob("lib*.so*"))
    if not any(library.name == "libllama.so" for library in libraries):
        raise BuildError(f"{built}: holds no libllama.so; build the target llama")
    folder = native_folder()
    folder.mkdir(parents=True, exist_ok=True)
    for library in libraries:
        # Removed first: overwriting a library that a running process has mapped would end it.
        (folder / library.name).unlink(missing_ok=True)
        shutil.copy2(library, folder / library.name, follow_symlinks=False)
    return folder


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m export.llama_cpp.build", description=__doc__)
    parser.add_argument(
        "--out", type=Path, required=True, help="where source and build lie; a second run goes on there"
    )
    parser.add_argument("--source", type=Path, help="a folder with llama.cpp's source, instead of downloading it")
    parser.add_argument(
        "--targets",
        nargs="+",
        default=["llama"],
        help="llama (the library, default), llama-server, llama-cli, llama-bench, …",
    )
    parser.add_argument(
        "--install", action="store_true", help="put the libraries where tinydispatch takes them instead of the wheel's"
    )
    parser.add_argument("--jobs", type=int, default=1, help="compilers at once; each takes about 1 GB (default 1)")
    return parser


def _run(command: Sequence[str], step: str) -> None:
    done = subprocess.run(command, check=False)
    if done.returncode:
        raise BuildError(f"cannot {step}: {command[0]} ended with status {done.returncode}")


if __name__ == "__main__":
    sys.exit(main())
