"""Packaging for pip; `package.xml` serves ROS 2."""

from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent

setup(
    name="deformer",
    version="0.1.0",
    description="3D human mesh recovery from one RGB image: DeFormer, with free weights, for robots",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=[
        *find_packages(include=["deformer_core", "deformer_core.*", "deformer_ros", "deformer_ros.*"]),
        "deformer_ros.definitions",
    ],
    package_dir={"deformer_ros.definitions": "msg"},  # bags are written without ROS, from the definitions themselves
    package_data={
        "deformer_core.body": ["data/*.safetensors"],
        "deformer_core.weights": ["*.safetensors", "*.onnx", "*.md"],
        "deformer_core.data": ["demo/*"],
        "deformer_core": ["py.typed"],
        "deformer_ros.definitions": ["*.msg"],
    },
    install_requires=[
        "torch>=2.6",
        "numpy>=1.26",
        "scipy>=1.11",
        "opencv-python-headless>=4.8,<5",
        "onnxruntime>=1.18",
        "safetensors>=0.4",
        "pyyaml>=6",
        "tqdm>=4.60",
    ],
    extras_require={
        "export": ["onnx>=1.16", "onnxscript>=0.3"],
        "train": ["moderngl>=5.11", "glcontext>=3", "deepspeed>=0.16", "fsspec>=2024.2", "tensorboard>=2.14"],
        "openvino": ["openvino>=2024.4"],
        "gpu": ["tensorrt>=10"],
        "smpl": ["smplx>=0.1.28"],
        "ros": ["rosbags>=0.11"],
        "dev": [
            "pytest>=8",
            "pytest-xdist>=3",
            "ruff>=0.8",
            "mypy>=1.13",
            "import-linter>=2.1",
            "types-PyYAML",
            "types-tqdm",
            "onnx>=1.16",
            "onnxscript>=0.3",
            "moderngl>=5.11",
            "glcontext>=3",
            "rosbags>=0.11",
            "deepspeed>=0.16",
            "fsspec>=2024.2",
            "tensorboard>=2.14",
            "h5py>=3.8",
            "webdataset>=0.2",
            "triton>=3.7; sys_platform == 'linux' and platform_machine == 'x86_64'",
        ],
    },
    entry_points={"console_scripts": ["deformer = deformer_core.cli:main"]},
)
