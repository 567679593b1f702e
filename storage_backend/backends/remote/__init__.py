"""RemoteStorage: the files beneath one directory of a server reached by SSH.

Read in this order:

* `settings` checks `SSHConfig` (`openssh_config` reads ~/.ssh/config); `storage` has the verbs; `failover` chooses the endpoint and retries.
* `sftp_operations` and `sftp_directories` describe each verb as pipelined SFTP requests; `sftp_packets` encodes and decodes them;
  `sftp_session` sends them (`sftp_client_session` where a test replaced paramiko's SSHClient); `non_atomic_overwrite` is for servers without posix-rename.
* `upload`, `remote_file` and `resumable` move large contents; `batches`, `tar_upload` and `tar_download` many small ones (`tar_format`, `tar_unpacker`).
* `listing` scans. `probe` finds out what the server's `shell` can do: `commands` runs it, `scripts` are its texts, `find_output` parses its listings.
* `dialing` races the endpoints; `client_chain` logs in through jump hosts (`proxy_command`); `paramiko_transport` sets timeouts and ciphers;
  `hostkeys`, `authentication` and `private_keys` are the handshake; `connection` is what comes out. `errors` translates failures.
"""

from storage_backend.backends.remote.settings import SSHConfig
from storage_backend.backends.remote.storage import RemoteStorage

__all__ = ["RemoteStorage", "SSHConfig"]
