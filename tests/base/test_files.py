"""Files: a reader sees the old file or the new one, never a part."""

import pytest

from winnow.base.files import replacing


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
