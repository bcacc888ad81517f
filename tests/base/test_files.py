"""Files: a reader sees the old file or the new one, never a part."""

import pytest

from winnow.base.files import replacing, replacing_directory


def test_the_file_appears_only_at_the_end(tmp_path):
    path = tmp_path / "new" / "folder" / "plan"
    with replacing(path) as draft:
        draft.write_text("whole")
        assert not path.exists()
        assert draft.parent == path.parent  # a rename across file systems is not atomic
    assert path.read_text() == "whole"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("failure", [ValueError, KeyboardInterrupt])
def test_a_failed_block_leaves_the_old_file_and_no_draft(tmp_path, failure):
    path = tmp_path / "plan"
    path.write_text("old")
    with pytest.raises(failure), replacing(path) as draft:
        draft.write_text("half")
        raise failure
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_block_that_writes_nothing_fails_and_leaves_the_old_file(tmp_path):
    path = tmp_path / "plan"
    path.write_text("old")
    with pytest.raises(FileNotFoundError), replacing(path):
        pass
    assert path.read_text() == "old"


def test_a_directory_appears_whole_or_not_at_all(tmp_path):
    target = tmp_path / "new/target"
    with replacing_directory(target) as draft:
        (draft / "a").write_text("a")
        assert not target.exists()
    assert (target / "a").read_text() == "a"
    with pytest.raises(KeyboardInterrupt), replacing_directory(tmp_path / "other") as draft:
        (draft / "a").write_text("a")
        raise KeyboardInterrupt
    assert [path.name for path in tmp_path.iterdir()] == ["new"]


def test_an_empty_directory_is_taken_and_a_full_one_is_left(tmp_path):
    (tmp_path / "empty").mkdir()
    with replacing_directory(tmp_path / "empty") as draft:
        (draft / "a").write_text("a")
    with pytest.raises(OSError, match="not empty"), replacing_directory(tmp_path / "empty") as draft:
        (draft / "b").write_text("b")
    assert [path.name for path in tmp_path.rglob("*")] == ["empty", "a"]
