"""Where state lies, and that what is written there is whole and private."""

from pathlib import Path

from cluster.paths import SOCKET_PATH_LIMIT, Paths, read_json, secret, write_private


def test_home_and_locks_come_from_the_environment(tmp_path: Path) -> None:
    env = {"HOMEPORT_HOME": str(tmp_path / "h"), "HOMEPORT_LOCKS": str(tmp_path / "l")}
    assert Paths.from_env(env) == Paths(tmp_path / "h", tmp_path / "l")


def test_without_them_home_is_the_users_state_folder() -> None:
    assert Paths.from_env({"XDG_STATE_HOME": "/state", "HOMEPORT_LOCKS": "/l"}).home == Path(
        "/state/homeport"
    )


def test_rays_folder_stays_short_enough_for_its_sockets(tmp_path: Path) -> None:
    long = Paths(tmp_path / ("x" * 60), tmp_path)
    assert long.ray_folder.name.endswith(long.run_id)
    assert not long.ray_folder.is_relative_to(long.home)
    short = Paths(Path("/h"), tmp_path)
    assert short.ray_folder == Path("/h/ray")
    assert len(str(short.ray_folder)) <= SOCKET_PATH_LIMIT


def test_two_installations_have_different_marks(tmp_path: Path) -> None:
    assert Paths(tmp_path / "a", tmp_path).run_id != Paths(tmp_path / "b", tmp_path).run_id


def test_a_secret_is_made_once_and_private(tmp_path: Path) -> None:
    first = secret(tmp_path / "token")
    assert len(first) == 64
    assert secret(tmp_path / "token") == first
    assert (tmp_path / "token").stat().st_mode & 0o777 == 0o600


def test_a_file_is_replaced_whole_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    write_private(tmp_path / "f", "one")
    write_private(tmp_path / "f", "two")
    assert (tmp_path / "f").read_text() == "two"
    assert [path.name for path in tmp_path.iterdir()] == ["f"]


def test_broken_or_missing_json_is_none(tmp_path: Path) -> None:
    (tmp_path / "broken").write_text('{"a": ')
    assert read_json(tmp_path / "broken") is None
    assert read_json(tmp_path / "missing") is None


def test_the_folders_are_the_users_own(tmp_path: Path) -> None:
    paths = Paths(tmp_path / "home", tmp_path / "locks")
    paths.make()
    assert paths.home.stat().st_mode & 0o777 == 0o700
    assert paths.locks.stat().st_mode & 0o7777 == 0o1777
