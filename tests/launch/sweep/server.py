"""A PostgreSQL server of our own on loopback."""

import contextlib
import os
import pathlib
import shutil
import subprocess
import tempfile

from tests.pairs import free_port


def programs() -> pathlib.Path | None:
    """The folder of initdb and pg_ctl; None if PostgreSQL is not installed."""
    found = sorted(pathlib.Path('/usr/lib/postgresql').glob('*/bin/initdb'))
    initdb = str(found[-1]) if found else shutil.which('initdb')
    return pathlib.Path(initdb).parent if initdb else None


class Postgres:
    """Context manager; with a `password`, the server asks for it."""

    def __init__(self, password: str = ''):
        self.password = password

    def __enter__(self):
        # pytest's own folders are closed to other users, and the server refuses to run as root
        self.folder = pathlib.Path(tempfile.mkdtemp())
        self.as_user = []
        if os.geteuid() == 0:
            self.as_user = ['runuser', '-u', 'postgres', '--']
            subprocess.run(['chown', 'postgres', self.folder], check=True)
        self.port = free_port()
        words = ['-D', self.folder / 'data', '-U', 'sweeper', '-E', 'UTF8', '-A', 'trust']
        if self.password:
            file = self.folder / 'password'
            file.write_text(self.password)
            words[-1:] = ['scram-sha-256', f'--pwfile={file}']
        self.do('initdb', *words)
        self.start()
        return self

    def __exit__(self, *_):
        with contextlib.suppress(subprocess.CalledProcessError):
            self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def url(self) -> str:
        return f'postgresql://sweeper@127.0.0.1:{self.port}/postgres'

    def start(self) -> None:
        options = f'-p {self.port} -h 127.0.0.1 -k {self.folder} -F'
        data = ['-D', self.folder / 'data', '-w', '-l', self.folder / 'log', '-o', options]
        self.do('pg_ctl', *data, 'start')

    def stop(self) -> None:
        self.do('pg_ctl', '-D', self.folder / 'data', '-m', 'immediate', 'stop')

    def restart(self) -> None:
        """Away for some seconds."""
        self.stop()
        self.start()

    def do(self, program: str, *words: object) -> None:
        command = [*self.as_user, programs() / program, *words]
        subprocess.run(command, check=True, cwd='/', stdout=subprocess.DEVNULL, timeout=120)
