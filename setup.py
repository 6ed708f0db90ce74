"""What pyproject.toml can't say: where the loss library comes from.

In a checkout it is the folder beside this file; in a release, whose sdist has no such folder, the
published version of the same number.
"""

from pathlib import Path

from setuptools import setup

HERE = Path(__file__).resolve().parent
KERNELS = HERE / "kernels"
BESIDE = (KERNELS / "pyproject.toml").is_file()
VERSION = (HERE / "comal_fast" / "__init__.py").read_text().split('"')[-2]  # of both

setup(
    install_requires=[
        f"comal-kernels @ {KERNELS.as_uri()}" if BESIDE else f"comal-kernels=={VERSION}",
        "numpy>=2.0",
        "torch>=2.11",
        "scipy>=1.14",
        "transformers>=5.17",
        "regex>=2025.10.22",
        "accelerate>=1.10",
        "gguf>=0.17",
        "safetensors>=0.8",
        "datasets>=4.0",
        "pyarrow>=20.0",
        "pydantic>=2.11",
        "packaging>=24.2",
        "pyyaml>=6.0",
        "jinja2>=3.1",
        "matplotlib>=3.9",
        "rich>=13.9",
    ]
)
