"""The connection file of `pupitre desktop viewer`, and where remote-viewer finds the authority."""

import configparser
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from pupitre.cli.remote.viewer import AUTHORITIES, add_authority, knows, write_connection
from pupitre.errors import SetupError
from tests.rigs.rest_client import Person, person
from tests.rigs.rfb_viewer import Refused, Viewer
from tests.rigs.stack import Stack

PEM = b"-----BEGIN CERTIFICATE-----\nours\n-----END CERTIFICATE-----\n"
THEIRS = b"-----BEGIN CERTIFICATE-----\ntheirs\n-----END CERTIFICATE-----\n"


@pytest.fixture
def teacher(stack: Stack) -> Iterator[Person]:
    with person(stack.url, "teacher", stack.password("teacher")) as someone:
        yield someone


def test_file_is_private_and_replaces_the_old_one(tmp_path: Path) -> None:
    """The file is for its owner alone and replaces what was there."""
    file = tmp_path / "x.vv"
    file.write_text("old")
    file.chmod(0o644)
    write_connection(file, "password=secret\n")
    assert file.read_text() == "password=secret\n"
    assert file.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == [file]


def test_what_a_link_points_to_is_not_written(tmp_path: Path) -> None:
    target, link = tmp_path / "target", tmp_path / "x.vv"
    target.write_text("kept")
    link.symlink_to(target)
    write_connection(link, "secret")
    assert target.read_text() == "kept"
    assert not link.is_symlink()


def test_a_folder_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="--output"):
        write_connection(tmp_path / "nowhere/x.vv", "secret")


def test_the_authority_is_added_once_and_others_stay(tmp_path: Path) -> None:
    file = tmp_path / AUTHORITIES
    assert not knows(tmp_path, PEM)
    file.parent.mkdir(parents=True)
    file.write_bytes(THEIRS)
    assert add_authority(tmp_path, PEM) == file
    assert add_authority(tmp_path, PEM) == file
    assert knows(tmp_path, PEM)
    assert file.read_bytes() == THEIRS + PEM


@pytest.mark.xdist_group("stack")
def test_the_command_writes_a_file_that_opens_the_screen_once(stack: Stack, teacher: Person, tmp_path: Path) -> None:
    desktop = teacher.start()
    path = tmp_path / "screen.vv"
    told = stack.pupitre("desktop", "viewer", desktop, "--as", "teacher", "--output", str(path), "--json")
    assert json.loads(told.stdout)["file"] == str(path)
    assert os.stat(path).st_mode & 0o777 == 0o600
    read = configparser.RawConfigParser()
    read.read(path)
    file = read["virt-viewer"]
    assert (file["type"], file["delete-this-file"]) == ("vnc", "1")
    authority = stack.home / "pki/ca/ca.crt"
    with Viewer(file["host"], int(file["port"]), authority) as viewer:
        viewer.authenticate(file["username"], file["password"])
        assert desktop in viewer.screen()[2]
    with Viewer(file["host"], int(file["port"]), authority) as viewer, pytest.raises(Refused, match="used"):
        viewer.authenticate(file["username"], file["password"])
    wrong = stack.pupitre("desktop", "viewer", desktop, "--as", "student", "--output", str(path), check=False)
    assert wrong.returncode
    assert "no such desktop" in wrong.stderr
