"""Lay the library out as a kernel of the Hugging Face hub, loaded by `kernels.get_kernel`.

    python kernels/hub.py OUT    # OUT/build/torch-{cpu,cuda}/: what a kernel repository holds

Such a kernel is imported from any folder, beside other versions of itself: its imports are relative
and its operators are named after its content.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from pathlib import Path

HERE = Path(__file__).parent
BACKENDS = ("cpu", "cuda")
PACKAGE = HERE / "comal_kernels"
ABSOLUTE = re.compile(r"^( *from )comal_kernels(\.[\w.]+)? import ", re.MULTILINE)


def build(out: Path) -> None:
    """Write the layout under `out`, a variant for each of BACKENDS: the same sources."""
    sources = {p.relative_to(PACKAGE): p.read_text() for p in sorted(PACKAGE.rglob("*.py"))}
    content = "".join(f"{name}\\0{text}\\0" for name, text in sources.items())
    digest = hashlib.sha256(content.encode()).hexdigest()[:12]
    version = re.search(r'__version__ = "(\d+)', sources[Path("__init__.py")])
    assert version is not None
    for backend in BACKENDS:
        folder, unique = out / "build" / f"torch-{backend}", f"comal_kernels_{backend}_{digest}"
        for name, text in sources.items():
            dots = "." * len(name.parts)  # one for the file's own package, one for each above it
            text = ABSOLUTE.sub(lambda m, d=dots: f"{m[1]}{d}{(m[2] or '.')[1:]} import ", text)
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text.replace('"comal_kernels::', f'"{unique}::'))
        metadata = {
            "id": f"_{unique}",
            "name": "comal-kernels",
            "version": int(version[1]),
            "license": "Apache-2.0",
            "python-depends": [],
            "backend": {"type": backend},
        }
        (folder / "metadata.json").write_text(json.dumps(metadata, indent=2) + "\n")
    (out / "README.md").write_text((HERE / "README.md").read_text())
    return folder


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python kernels/hub.py OUT")
    build(Path(sys.argv[1]))
