"""Several connections of one RemoteStorage: as many as allowed, made when there is more to do than one can."""

from __future__ import annotations

import threading
from typing import cast

from storage_backend import RemoteStorage
from storage_backend.backends.remote import SSHConfig
from tests.servers import PATIENCE
from tests.ssh_servers import SSHPlace


def busy(storage: RemoteStorage, count: int, most: int) -> int:
    """Hold *count* readers open, and read on until there are *most* connections; how many there are."""
    failover = storage._failover
    seen = threading.Event()

    def connections() -> int:
        return len(failover._connections.others) + (failover._connections.current is not None)

    def read() -> None:
        with storage.open("object") as reader:
            assert reader.read(1)
            while not seen.wait(0.01):
                storage.size("object")
                if connections() >= most:
                    seen.set()

    threads = [threading.Thread(target=read) for _ in range(count)]
    for thread in threads:
        thread.start()
    found = seen.wait(PATIENCE)
    seen.set()
    for thread in threads:
        thread.join()
    assert found
    return connections()


def test_connections_are_added_up_to_the_limit(openssh_place: SSHPlace) -> None:
    config = cast(SSHConfig, openssh_place.config(max_connections=3))
    with RemoteStorage(config, openssh_place.base) as storage:
        storage.write("object", bytes(1000))
        assert storage._failover._connections.others == []
        assert busy(storage, 6, 3) == 3
        # One that dies is not used again.
        storage._failover._connections.others[0].session.close()
        assert {storage.size("object") for _ in range(20)} == {1000}
        failover = storage._failover
    assert failover._connections.others == []
    assert failover._connections.current is None


def test_one_connection_is_the_default(openssh_place: SSHPlace) -> None:
    config = cast(SSHConfig, openssh_place.config())
    with RemoteStorage(config, openssh_place.base) as storage:
        storage.write("object", bytes(1000))
        assert busy(storage, 4, 1) == 1
