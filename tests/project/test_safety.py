"""Tests have no network access."""

from __future__ import annotations

import socket
import urllib.request

import pytest
from pytest_socket import SocketBlockedError
from torchvision.datasets.utils import download_url

#: Newer releases of pytest-socket warn before they raise.
BLOCKED = (SocketBlockedError, UserWarning)


def test_sockets_are_blocked_in_tests() -> None:
    with pytest.raises(BLOCKED, match="tried to use socket"):
        socket.create_connection(("127.0.0.1", 9))
    with pytest.raises(BLOCKED, match="tried to use socket"):
        urllib.request.urlopen("http://127.0.0.1:9", timeout=1)


def test_downloads_of_libraries_are_blocked_in_tests(tmp_path: str) -> None:
    with pytest.raises(BLOCKED, match="tried to use socket"):
        download_url("http://127.0.0.1:9/file", tmp_path)
