"""An SFTP server on loopback for one folder and one key; run by DVC's own interpreter, which has asyncssh. Prints its port.

``python ssh_server.py FOLDER HOST_KEY AUTHORIZED_KEYS``
"""

import asyncio
import sys

import asyncssh


class Server(asyncssh.SSHServer):
    """Lets in who has the key."""


async def main() -> None:
    folder, host_key, authorized = sys.argv[1:]

    def sftp(channel: object) -> asyncssh.SFTPServer:
        return asyncssh.SFTPServer(channel, chroot=folder)

    server = await asyncssh.listen(
        "127.0.0.1", 0, server_factory=Server, server_host_keys=[host_key], authorized_client_keys=authorized, sftp_factory=sftp
    )
    print(server.get_port(), flush=True)
    await server.wait_closed()


asyncio.run(main())
