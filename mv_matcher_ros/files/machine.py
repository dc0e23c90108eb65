# SPDX-License-Identifier: Apache-2.0
"""What a run ran on and with, written beside every number."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch


def versions() -> dict[str, str]:
    """Versions of this package, Python and the libraries that the numbers depend on."""
    try:
        own = importlib.metadata.version('mv_matcher_ros')
    except importlib.metadata.PackageNotFoundError:
        own = 'not installed'
    return {
        'mv_matcher_ros': own,
        'python': platform.python_version(),
        'numpy': np.__version__,
        'torch': torch.__version__,
        'opencv': cv2.__version__,
    }


def machine() -> dict[str, Any]:
    """What the run ran on."""
    cpu = platform.processor() or platform.machine()
    try:
        lines = Path('/proc/cpuinfo').read_text(encoding='utf-8').splitlines()
        cpu = next((line.split(':', 1)[1].strip() for line in lines if 'model name' in line), cpu)
    except OSError:
        pass
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        'system': f'{platform.system()} {platform.machine()}',
        'cpu': cpu,
        'cores': os.cpu_count(),
        'torch_threads': torch.get_num_threads(),
        'opencv_threads': cv2.getNumThreads(),
        'gpu': gpu,
    }
