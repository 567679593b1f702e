"""RemoteStorage: the files beneath one directory of a server reached by SSH.

Read in this order:

* `storage` has the verbs, `hooks` what transfers ask; `settings` checks `SSHConfig` (`openssh_config` reads ~/.ssh/config).
* `failover` chooses the endpoint, and repeats what a lost connection interrupted. `connection` is one connection: SFTP session, shell, base directory.
* `sftp_operations` (with `sftp_contents`, `sftp_moves`, `sftp_directories`; paths are `remote_path`) makes each verb of pipelined requests, which
  `sftp_packets` encodes and `sftp_session` sends. `non_atomic_overwrite` is for servers that cannot replace, `sftp_client_session` for mocks.
* Large contents: `upload`, `remote_file`, `resumable`. Many small ones: `batches`, `tar_upload`, `tar_download` (`tar_unpacker`, `tar_format`).
* Scans: `scanning`, `listing`. The server's tools: `server_side`, `shell`, `commands`, `scripts`, `find_output`; `probe` finds out which work.
* Connecting: `dialing` races the endpoints, `client_chain` logs in (`proxy_command`, `hostkeys`, `authentication`, `private_keys`),
  `paramiko_transport` sets timeouts and ciphers, `library` imports paramiko. `errors` translates all failures.
"""

from storage_backend.backends.remote.settings import SSHConfig
from storage_backend.backends.remote.storage import RemoteStorage

__all__ = ["RemoteStorage", "SSHConfig"]
