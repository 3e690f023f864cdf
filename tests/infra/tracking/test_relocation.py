import sqlite3

import pytest

from components.errors import InputError
from infra.tracking.relocation import refuse_no_database, repair


def test_what_can_be_no_database_is_refused_before_mlflow_tries_for_minutes(tmp_path):
    (tmp_path / "notes.md").write_text("no database, and longer than its mark")
    for path, told in (
        (tmp_path, "a folder"),
        (tmp_path / "nowhere" / "x.db", "nowhere is no folder"),
        (tmp_path / "notes.md", "holds no SQLite database"),
    ):
        with pytest.raises(InputError, match=f"tracking.uri: .*{told}"):
            refuse_no_database(path)
        with pytest.raises(InputError, match="tracking.uri"):
            repair(path, tmp_path / "mlartifacts")
    assert not (tmp_path / "nowhere").exists()


def test_a_database_and_one_that_is_to_be_made_are_taken(tmp_path):
    refuse_no_database(tmp_path / "new.db")
    with sqlite3.connect(tmp_path / "old.db") as connection:
        connection.execute("CREATE TABLE runs (artifact_uri TEXT)")
    refuse_no_database(tmp_path / "old.db")
