"""Directories worked on in stretches: restic makes the same tree of them, and reads ours."""

import os
from pathlib import Path

import pytest

from agent.cancel import NEVER
from agent.repository.longblob import LongTree
from tests.interop.runs import back_up, open_at, restore_latest
from tests.interop.trees import same
from tests.interop.volumes import make_volume
from tests.support.longdirs import lower_limits
from tests.support.restic import Restic

FILES = 1500
