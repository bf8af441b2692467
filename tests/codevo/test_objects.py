"""Templates as read from folders, and the bucket as the hub opens it."""

from __future__ import annotations

import secrets
from pathlib import Path

import pytest
from traitlets import TraitError

from codevo.embedded.s3 import S3Settings
from codevo.objects.config import Bucket, ObjectStore
from codevo.objects.templates import (
    MAX_BYTES,
    MAX_FILES,
    TemplateError,
    Tools,
    load_templates,
    read_template,
)
from pod_runtime.journal.store import NotFound, StoreError
from tests.codevo.hubs import template


def objects(s3: S3Settings, **changes: str) -> ObjectStore:
    return ObjectStore(
        **{
            "endpoint_url": s3.endpoint_url,
            "bucket": s3.bucket,
            "region": s3.region,
            "access_key_id": s3.access_key_id,
            "secret_access_key": s3.secret_access_key,
            **changes,
        }
    )


async def test_a_missing_bucket_is_made(s3: S3Settings) -> None:
    fresh = objects(s3, bucket=f"fresh-{secrets.token_hex(4)}")
    for _ in range(2):
        async with Bucket(fresh) as bucket:
            await bucket.store.put(f"k{_}", b"v")
            assert (await bucket.store.get("k0"))[0] == b"v"
    with pytest.raises(StoreError):
        _ = bucket.store


async def test_a_store_that_is_away_or_refuses_is_an_error(s3: S3Settings) -> None:
    for wrong in ({"endpoint_url": "http://127.0.0.1:9"}, {"secret_access_key": "wrong"}):
        with pytest.raises(StoreError) as e:
            async with Bucket(objects(s3, **wrong)):
                pass
        assert not isinstance(e.value, NotFound)
        assert s3.secret_access_key not in str(e.value) and "wrong" not in str(e.value)


async def test_a_worker_is_told_its_own_prefix(s3: S3Settings) -> None:
    async with Bucket(objects(s3)) as bucket:
        config = bucket.store_config("abc")
        assert config.prefix == "projects/abc/" and config.bucket == s3.bucket
        assert s3.secret_access_key not in repr(config)


def test_the_endpoint_is_a_url() -> None:
    with pytest.raises(TraitError):
        ObjectStore(endpoint_url="s3.example.org")
    assert ObjectStore(endpoint_url="https://s3.example.org/").endpoint_url == "https://s3.example.org"


def test_the_version_is_of_the_content(tmp_path: Path) -> None:
    template(tmp_path / "a", "t", [], {"x": "1", "y/z": "2"})
    template(tmp_path / "b", "t", ["other"], {"x": "1", "y/z": "2"})
    template(tmp_path / "c", "t", [], {"x": "1", "y/z": "3"})
    template(tmp_path / "d", "t", [], {"x": "12", "y/z": ""})
    one, same, *others = (read_template(tmp_path / d / "t").version for d in "abcd")
    assert one == same and len({one, *others}) == 3
    (tmp_path / "a/t/files/x").chmod(0o755)
    assert read_template(tmp_path / "a/t").version != one


def test_what_running_leaves_is_not_part_of_a_template(tmp_path: Path) -> None:
    template(tmp_path, "t", [], {"x": "1", "node_modules/m/i.js": "", "__pycache__/x.pyc": ""})
    assert [f.path for f in read_template(tmp_path / "t").files] == ["x"]


@pytest.mark.parametrize(
    "toml",
    [
        "",
        "title = 1",
        'title = "T"\nlanguage = "L"',
        'title = "T"\nlanguage = "L"\ndescription = "D"\nrequires = "sh"',
        'title = "T"\nlanguage = "L"\ndescription = "D"\nrequires = [1]',
        'title = "T"\nlanguage = "L"\ndescription = "D"\norder = "1"',
        "title =",
    ],
)
async def test_a_malformed_template_is_named_and_left_out(tmp_path: Path, toml: str) -> None:
    template(tmp_path, "good", [], {"x": "1"})
    template(tmp_path, "bad", [], {"x": "1"})
    (tmp_path / "bad/template.toml").write_text(toml)
    with pytest.raises(TemplateError, match="template bad"):
        read_template(tmp_path / "bad")
    assert [t.name for t in await load_templates(tmp_path)] == ["good"]


def test_links_empty_and_huge_templates_are_refused(tmp_path: Path) -> None:
    template(tmp_path, "link", [], {"x": "1"})
    (tmp_path / "link/files/l").symlink_to("/etc/passwd")
    template(tmp_path, "empty", [], {})
    template(tmp_path, "huge", [], {"x": "1"})
    with (tmp_path / "huge/files/big").open("wb") as f:
        f.truncate(MAX_BYTES + 1)
    template(tmp_path, "many", [], {f"f{n}": "" for n in range(MAX_FILES + 1)})
    for name in ("link", "empty", "huge", "many"):
        with pytest.raises(TemplateError, match=f"template {name}"):
            read_template(tmp_path / name)


def test_tools_are_looked_for_in_the_toolbox_and_the_system(tmp_path: Path) -> None:
    template(tmp_path, "t", ["sh", "rare-tool"], {"x": "1"})
    found = read_template(tmp_path / "t")
    toolbox = tmp_path / "bin"
    toolbox.mkdir()
    assert Tools(toolbox).missing(found) == ["rare-tool"]
    assert "rare-tool" in Tools(toolbox).why_not(found)
    (toolbox / "rare-tool").write_text("")
    assert Tools(toolbox).missing(found) == ["rare-tool"]  # not executable
    (toolbox / "rare-tool").chmod(0o755)
    assert Tools(toolbox).why_not(found) == ""


async def test_the_packaged_templates_are_well_formed() -> None:
    found = await load_templates()
    assert {"python", "flask", "node", "express", "react", "cpp", "static"} <= {t.name for t in found}
    for t in found:
        paths = {f.path for f in t.files}
        assert {"codevo.toml", "README.md"} <= paths, t.name
        assert t.hint or not t.requires
