#!/usr/bin/env bash
# ROS 2 Jazzy from PyPI, without a ROS install: a virtual environment with rclpy and Fast DDS, and in it a workspace
# with this package and its messages. Takes a few minutes; run again, it only builds what changed.
#
#   tools/ros/setup_env.sh [ENVIRONMENT] [PYTHON]        then: tools/ros/run COMMAND
#
# The wheels are for x86_64 and CPython 3.10 to 3.14. Elsewhere a ROS install is the way (see the README).
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
venv=$(realpath -m "${1:-$root/.venv-ros}")
python=${2:-python3}
pip="$venv/bin/python -m pip install --quiet --disable-pip-version-check"
export PIP_ROOT_USER_ACTION=ignore

if ! (command -v cmake && command -v g++ && command -v make) >/dev/null; then
	if command -v apt-get >/dev/null && [ "$(id -u)" = 0 ]; then
		apt-get update -qq && apt-get install -y -qq --no-install-recommends cmake g++ make
	else
		echo "cmake, g++ and make are needed to build the messages: sudo apt install cmake g++ make" >&2
		exit 1
	fi
fi

if [ ! -e "$venv/.installed" ]; then
	"$python" -m venv "$venv"
	# Alone and first: a plain requirement would also take the newest build, gigabytes of CUDA with it.
	$pip torch==2.13.0
	$pip -e "$root[export,ros]" pytest
	$pip 'ros-jazzy-rclpy[fastrtps]' colcon-common-extensions \
		ros-jazzy-{diagnostic-msgs,geometry-msgs,sensor-msgs,std-srvs,visualization-msgs} \
		ros-jazzy-ament-{cmake,cmake-gmock,cmake-gtest,cmake-include-directories,cmake-pytest,cmake-ros,package} \
		ros-jazzy-rosidl-{core-generators,default-generators} ros-jazzy-python-cmake-module
	# The wheels bake in the include paths of the machine they were built on.
	include=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_paths()["include"])')
	numpy=$("$venv/bin/python" -c 'import numpy; print(numpy.get_include())')
	sed -i -E "s#[^;\"]*/numpy/_?core/include#$numpy#g; s#/opt/python/[^;\"]*/include/python3[.0-9]+#$include#g" \
		"$venv"/share/*/cmake/*.cmake
	touch "$venv/.installed"
fi

# CMake refuses a source folder with the environment inside, so the package is built from a folder of links to its parts.
source="$venv/workspace/src/deformer_ros"
mkdir -p "$source"
ln -sfn "$root"/{CMakeLists.txt,package.xml,msg,deformer_core,deformer_ros,launch,config,rviz,scripts} "$source"

# tf2_msgs is not on PyPI; its one message that is needed is built from the tests' folder.
export PATH="$venv/bin:$PATH" VIRTUAL_ENV="$venv" AMENT_PREFIX_PATH="$venv" CMAKE_PREFIX_PATH="$venv"
colcon --log-base "$venv/workspace/log" --log-level error build --symlink-install \
	--paths "$source" "$root/tests/ros/interfaces/tf2_msgs" \
	--build-base "$venv/workspace/build" --install-base "$venv/workspace/install" \
	--event-handlers console_stderr-
