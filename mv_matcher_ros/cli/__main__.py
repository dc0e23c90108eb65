# SPDX-License-Identifier: Apache-2.0
"""`python -m mv_matcher_ros.cli`: the command line where no script is on the path."""

from mv_matcher_ros.cli import main

main()
