"""Freed memory that is kept for the next tensor, seen by the pages that the system has to map for it."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys

import pytest

_FAULTS = """
import resource, sys
import torch
from models.host_memory import keep_freed_memory, return_freed_memory

def faults_of(rounds):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(rounds):
        torch.ones(12_000_000)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) // rounds

if sys.argv[1] == "kept":
    keep_freed_memory()
faults_of(20)
again = faults_of(20)
return_freed_memory()
print(again, faults_of(1))
"""


def count_faults(how: str) -> list[int]:
    printed = subprocess.check_output(
        [sys.executable, "-c", _FAULTS, how], text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    return [int(word) for word in printed.split()]


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="needs glibc")
def test_what_is_kept_serves_the_next_tensor_until_it_is_given_back():
    again, given_back = count_faults("kept")
    assert again < 100 < given_back
    assert count_faults("as it is")[0] > 10 * max(again, 1)
