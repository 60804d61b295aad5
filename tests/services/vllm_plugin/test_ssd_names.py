"""The names beside the slices on a disk: read as they were written, and never trusted for more than a name."""

from pathlib import Path

from events.base import SliceId
from services.vllm_plugin.ssd_names import NAMES_FILE, SsdNames

A, B = b"a" * 36, b"b" * 36
ONE, TWO = SliceId("1" * 32), SliceId("2" * 32)


def test_names_are_read_as_they_were_written(tmp_path: Path) -> None:
    names = SsdNames(tmp_path)
    names.append([(A, None, ONE)])
    names.append([(B, A, TWO)])
    assert names.read() == {A: (None, ONE), B: (A, TWO)}
    assert (tmp_path / NAMES_FILE).stat().st_mode & 0o777 == 0o600
    names.replace([(B, A, TWO)])
    assert names.read() == {B: (A, TWO)}


def test_last_word_about_a_slice_counts(tmp_path: Path) -> None:
    names = SsdNames(tmp_path)
    names.append([(A, None, ONE), (A, B, TWO)])
    assert names.read() == {A: (B, TWO)}


def test_lines_that_are_damaged_cost_their_own_name_alone(tmp_path: Path) -> None:
    names = SsdNames(tmp_path)
    names.append([(A, None, ONE)])
    with (tmp_path / NAMES_FILE).open("ab") as file:
        file.write(b"abc - half\nabc def 12\n\xff\xfe \n../../etc - x\n")
    names.append([(B, A, TWO)])
    assert names.read() == {A: (None, ONE), B: (A, TWO)}


def test_folder_that_refuses_is_no_error(tmp_path: Path) -> None:
    names = SsdNames(tmp_path / "no such folder")
    names.append([(A, None, ONE)])
    names.replace([(A, None, ONE)])
    assert names.read() == {}


def test_folder_in_its_place_is_no_error(tmp_path: Path) -> None:
    (tmp_path / NAMES_FILE).mkdir()
    names = SsdNames(tmp_path)
    names.append([(A, None, ONE)])
    names.replace([(A, None, ONE)])
    assert names.read() == {}


def test_name_that_no_line_can_hold_is_left_out(tmp_path: Path) -> None:
    names = SsdNames(tmp_path)
    names.append([(A, None, SliceId("\u00e9")), (B, A, TWO)])
    assert names.read() == {B: (A, TWO)}


def test_link_in_its_place_is_not_followed(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_text("mine")
    (tmp_path / NAMES_FILE).symlink_to(elsewhere)
    SsdNames(tmp_path).append([(A, None, ONE)])
    assert elsewhere.read_text() == "mine"
