"""Memory in use moves to huge pages, and nothing else changes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from sarathi.system import huge_pages
from sarathi.system.huge_pages import anonymous_ranges, collapse_resident_memory

MB = 1 << 20
PROGRAM = """
import json, mmap
from pathlib import Path
from sarathi.system.huge_pages import collapse_resident_memory

def memory():
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()[1:]
    sizes = {name: int(size.split()[0]) * 1024 for name, size in (l.split(":") for l in lines)}
    return sizes["Anonymous"], sizes["AnonHugePages"]

# Not numpy's memory, for which it asks for huge pages by itself.
private = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
used, unused = mmap.mmap(-1, 16 << 20, private), mmap.mmap(-1, 64 << 20, private)
content = bytes(i % 251 for i in range(len(used)))
used[:] = content
for start in range(0, len(unused), 2 << 20):
    unused[start] = 1  # a page of each huge page
before = memory()
tried = collapse_resident_memory()
intact = used[:] == content
print(json.dumps({"tried": tried, "before": before, "after": memory(), "intact": intact}))
"""


def test_whole_huge_pages_of_anonymous_memory_are_found() -> None:
    maps = """\
00400000-00c00000 r-xp 00000000 fe:00 1234 /usr/bin/python3
01000000-01500000 rw-p 00000000 00:00 0 [heap]
7f0000100000-7f0000900000 rw-p 00000000 00:00 0
7f0001000000-7f0001200000 rw-p 00001000 fe:00 99 /usr/lib/lib with a blank.so
7f0002000000-7f0002800000 rw-s 00000000 00:01 77 /dev/zero (deleted)
7f0003000000-7f00031ff000 rw-p 00000000 00:00 0
7f0004000000-7f0004800000 ---p 00000000 00:00 0
7ffc00000000-7ffc00800000 rw-p 00000000 00:00 0 [stack]
"""
    found = list(anonymous_ranges(maps.splitlines()))
    assert found == [(0x01000000, 0x01400000), (0x7F0000200000, 0x7F0000800000)]


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="no such report here")
def test_only_memory_in_use_moves() -> None:
    printed = subprocess.run(
        [sys.executable, "-c", PROGRAM], check=True, capture_output=True, text=True
    ).stdout
    found = json.loads(printed)
    (anonymous, huge), (anonymous_after, huge_after) = found["before"], found["after"]
    assert found["intact"]
    assert anonymous_after - anonymous < 2 * MB
    if found["tried"]:
        assert 12 * MB < found["tried"] <= anonymous
        # Older kernels and some containers refuse.
        assert huge_after == huge or huge_after - huge > 12 * MB


@pytest.mark.parametrize("setting", ["always madvise [never]\n", None])
def test_nothing_happens_where_there_are_none(
    setting: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "enabled"
    if setting is not None:
        path.write_text(setting)
    monkeypatch.setattr(huge_pages, "_SETTING", path)
    assert collapse_resident_memory() == 0


@pytest.mark.parametrize("maps", ["", "7f0000000000-7f0000400000 rw-p 00000000 00:00 0\n", "?\n"])
def test_a_list_of_ranges_that_is_out_of_date_is_harmless(
    maps: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    setting, path = tmp_path / "enabled", tmp_path / "maps"
    setting.write_text("always [madvise] never\n")
    path.write_text(maps)
    monkeypatch.setattr(huge_pages, "_SETTING", setting)
    monkeypatch.setattr(huge_pages, "_MAPS", path)
    assert collapse_resident_memory() == 0
