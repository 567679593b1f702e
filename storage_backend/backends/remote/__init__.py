"""RemoteStorage: objects as files under one directory of an SSH server.

Read in this order:

* `storage` has the public methods, `hooks` those for transfers; `settings` checks `SSHConfig` (`openssh_config` reads ~/.ssh/config).
* `failover` keeps the connection in use, retries operations, and decides when to change it; `dialing` picks the endpoint.
  `connection` is one connection: SFTP session, shell, base directory.
* `sftp_operations` (with `sftp_contents`, `sftp_moves`, `sftp_directories`; paths are `remote_path`) makes each operation of pipelined requests,
  which `sftp_packets` encodes and `sftp_session` sends. `non_atomic_overwrite` is for servers without a replacing rename,
  `sftp_client_session` for mocks.
* Large objects: `upload`, `remote_file`, `resumable`. Many small ones: `batches`, `tar_upload`, `tar_download` (`tar_unpacker`, `tar_format`).
* Listing: `scanning`, `listing`. The server's tools: `server_side`, `shell`, `commands`, `scripts`, `find_output`; `probe` tests which work.
* Connecting: `dialing` tries the endpoints, `client_chain` authenticates (`proxy_command`, `hostkeys`, `authentication`, `private_keys`),
  `paramiko_transport` sets timeouts and ciphers, `library` imports paramiko. `errors` translates all failures.
"""

from storage_backend.backends.remote.settings import SSHConfig
from storage_backend.backends.remote.storage import RemoteStorage

__all__ = ["RemoteStorage", "SSHConfig"]
