"""What a job can explain: folders, patterns, lists, tables, archives, a real S3 server; odd ones of each."""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import tarfile
import zipfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from models.errors import ConfigError, ImageTooLarge, UnreadableImage
from models.images.decode import Limits
from pipelines.batch.sources import SourceOptions, open_source
from pipelines.errors import DataError, StoreUnavailable
from tests.support.object_store import running_s3

LIMITS = Limits()


@pytest.fixture
def pictures(butterflies, tmp_path):
    """Six pictures in two folders."""
    root = tmp_path / "pictures"
    for species in ("argus", "cincta"):
        (root / species).mkdir(parents=True)
        for path in sorted((butterflies / "val" / species).glob("*.jpg"))[:3]:
            shutil.copy(path, root / species / path.name)
    return root


def contents(source):
    """What each item reads as, after the source went to another process."""
    sent = pickle.loads(pickle.dumps(source))
    return {item.name: sent.read(item, LIMITS) for item in sent.items}


def files_of(root):
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in sorted(root.rglob("*.jpg"))}


def test_a_folder_a_pattern_and_one_file(pictures):
    assert contents(open_source(pictures)) == files_of(pictures)
    by_pattern = contents(open_source(f"{pictures}/*/argus_*.jpg"))
    assert sorted(by_pattern.values()) == sorted(path.read_bytes() for path in pictures.glob("argus/*.jpg"))
    (name,) = contents(open_source(pictures / "argus/argus_000.jpg"))
    assert name == "argus_000.jpg"


def test_a_list_names_files_relative_to_itself_and_twice_is_twice(pictures):
    (pictures / "list.txt").write_text("# chosen\nargus/argus_000.jpg\n\nargus/argus_000.jpg\nabsent.jpg\n")
    source = open_source(pictures / "list.txt")
    assert [item.name for item in source.items] == [
        "argus/argus_000.jpg",
        "argus/argus_000.jpg#2",
        "absent.jpg",
    ]
    with pytest.raises(UnreadableImage, match="No such file"):
        source.read(source.items[2], LIMITS)


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_a_table_keeps_its_other_columns_and_the_truth(pictures, suffix):
    rows = [
        {"picture": "argus/argus_000.jpg", "species": "007", "by": "Ann"},
        {"picture": "cincta/cincta_001.jpg", "species": "cincta", "by": "Bob, jr."},
    ]
    path = pictures / f"table.{suffix}"
    if suffix == "csv":
        path.write_text(
            'picture,species,by\nargus/argus_000.jpg,007,Ann\ncincta/cincta_001.jpg,cincta,"Bob, jr."\n'
        )
    elif suffix == "jsonl":
        path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    else:
        pq.write_table(pa.Table.from_pylist(rows), path)
    source = open_source(path, SourceOptions(truth="species"))
    assert [item.truth for item in source.items] == ["007", "cincta"]
    assert [json.loads(item.extra) for item in source.items] == [{"by": "Ann"}, {"by": "Bob, jr."}]
    assert contents(source)["cincta/cincta_001.jpg"] == (pictures / "cincta/cincta_001.jpg").read_bytes()
    with pytest.raises(DataError, match="no truth column 'class'; it has: picture, species, by"):
        open_source(path, SourceOptions(truth="class"))


@pytest.mark.parametrize("struct", [False, True])
def test_a_table_may_hold_the_pictures_themselves(pictures, struct):
    data = [path.read_bytes() for path in sorted(pictures.rglob("*.jpg"))]
    values = [{"bytes": item, "path": None} for item in data] if struct else data
    table = pa.table({"image": values, "label": [str(n) for n in range(6)]})
    pq.write_table(table, pictures / "all.parquet", row_group_size=4)
    source = open_source(pictures / "all.parquet", SourceOptions(truth="label"))
    assert list(contents(source).values()) == data
    assert [item.truth for item in source.items] == [str(n) for n in range(6)]


def test_a_folder_of_the_hub_is_read_by_its_metadata(pictures):
    (pictures / "metadata.csv").write_text("file_name,label\nargus/argus_001.jpg,argus\n")
    (item,) = open_source(pictures, SourceOptions(truth="label")).items
    assert (item.name, item.truth) == ("argus/argus_001.jpg", "argus")


def archived(pictures, path):
    files = files_of(pictures)
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in files.items():
                archive.writestr(name, data)
            archive.writestr("__MACOSX/._x.jpg", b"no")
    else:
        with tarfile.open(path, "w") as archive:
            for name, data in {
                **files,
                "argus/argus_000.cls": b"argus",
                "argus/argus_000.json": b'{"by": 1}',
            }.items():
                info = tarfile.TarInfo(name)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    return files


@pytest.mark.parametrize("suffix", ["zip", "tar"])
def test_archives_are_read_without_being_unpacked(pictures, tmp_path, suffix):
    files = archived(pictures, tmp_path / f"one.{suffix}")
    source = open_source(tmp_path / f"one.{suffix}")
    assert contents(source) == files
    if suffix == "tar":
        first = next(item for item in source.items if item.name == "argus/argus_000.jpg")
        assert (first.truth, json.loads(first.extra)) == ("argus", {"json": {"by": 1}})
    shutil.copy(tmp_path / f"one.{suffix}", tmp_path / f"two.{suffix}")
    both = open_source(f"{tmp_path}/*.{suffix}")
    assert len(contents(both)) == 12
    assert both.items[0].name.startswith("one.")


def test_members_with_odd_names_and_lying_sizes_are_read_by_their_place(pictures, tmp_path):
    data = (pictures / "argus/argus_000.jpg").read_bytes()
    with zipfile.ZipFile(tmp_path / "odd.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("../../etc/passwd.jpg", "/abs.jpg", "a\nb.jpg", "a.jpg"):
            archive.writestr(name, data)
        archive.writestr("bomb.jpg", bytes(40_000_000))
    source = open_source(tmp_path / "odd.zip")
    assert len({item.name for item in source.items}) == 5
    for item in source.items[:4]:
        assert source.read(item, LIMITS) == data
    with pytest.raises(ImageTooLarge):
        source.read(source.items[4], Limits(max_bytes=1_000_000))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["odd.zip", "pictures"]


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("list.txt", b"\n", "names no picture"),
        ("t.csv", b"a,b\n1,2\n", "no column of pictures by a usual name"),
        ("t.csv", b"path\n", "has no rows"),
        ("t.jsonl", b"{oops", "cannot be read"),
        ("t.parquet", b"PAR1 no", "cannot be read"),
        ("a.zip", b"PK no", "cannot be read"),
        ("a.tar", b"no", "cannot be read"),
        ("a.tar.gz", b"no", "unpack it"),
    ],
)
def test_what_cannot_be_a_source_is_refused_with_the_reason(tmp_path, name, content, reason):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=reason):
        open_source(tmp_path / name)


def test_places_that_are_not_there(tmp_path):
    with pytest.raises(DataError, match="no file or folder"):
        open_source(tmp_path / "absent")
    with pytest.raises(DataError, match="Nothing matches"):
        open_source(f"{tmp_path}/*.jpg")
    with pytest.raises(ConfigError, match="s3://"):
        open_source("ftp://host/folder")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no pictures"):
        open_source(tmp_path / "empty")


def test_a_file_whose_name_is_no_text_gets_a_name_that_can_be_printed(pictures):
    odd = os.fsencode(pictures) + b"/caf\xe9.jpg"
    shutil.copy(pictures / "argus/argus_000.jpg", odd)
    source = open_source(pictures)
    (item,) = [item for item in source.items if "caf" in item.name]
    assert item.name == "caf\\udce9.jpg" or item.name == "caf\\xe9.jpg"
    assert source.read(item, LIMITS) == (pictures / "argus/argus_000.jpg").read_bytes()
    item.name.encode()


def test_the_web_is_fetched_only_when_it_is_allowed(pictures, tmp_path):
    import functools
    import threading
    from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

    handler = functools.partial(SimpleHTTPRequestHandler, directory=pictures)
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}/argus/argus_000.jpg"
    (tmp_path / "list.txt").write_text(f"{address}\n{address}.absent\n")
    source = open_source(tmp_path / "list.txt")
    with pytest.raises(UnreadableImage, match="--allow-http"):
        source.read(source.items[0], LIMITS)
    source = open_source(tmp_path / "list.txt", SourceOptions(allow_http=True))
    assert source.read(source.items[0], LIMITS) == (pictures / "argus/argus_000.jpg").read_bytes()
    with pytest.raises(UnreadableImage, match="404"):
        source.read(source.items[1], LIMITS)
    with pytest.raises(ImageTooLarge):
        source.read(source.items[0], Limits(max_bytes=1000))
    server.shutdown()


# ---------------------------------------------------------------- an object store


@pytest.fixture(scope="module")
def s3():
    """The address of an S3 server with the bucket "bucket"; its credentials are in the environment."""
    with running_s3("bucket") as client:
        yield client


def test_pictures_lists_tables_and_archives_of_an_object_store(s3, pictures, tmp_path):
    for name, data in files_of(pictures).items():
        s3.put_object(Bucket="bucket", Key=f"in/{name}", Body=data)
    s3.put_object(
        Bucket="bucket",
        Key="in/list.txt",
        Body=b"argus/argus_000.jpg\ns3://bucket/in/cincta/cincta_000.jpg\n",
    )
    archived(pictures, tmp_path / "all.tar")
    s3.upload_file(str(tmp_path / "all.tar"), "bucket", "in/all.tar")
    archived(pictures, tmp_path / "all.zip")
    s3.upload_file(str(tmp_path / "all.zip"), "bucket", "in/all.zip")
    files = files_of(pictures)
    assert contents(open_source("s3://bucket/in")) == files
    assert list(contents(open_source("s3://bucket/in/argus/argus_000.jpg")).values()) == [
        files["argus/argus_000.jpg"]
    ]
    listed = contents(open_source("s3://bucket/in/list.txt"))
    assert list(listed.values()) == [files["argus/argus_000.jpg"], files["cincta/cincta_000.jpg"]]
    assert contents(open_source("s3://bucket/in/all.tar")) == files
    assert contents(open_source("s3://bucket/in/all.zip")) == files
    assert len(contents(open_source("s3://bucket/in/argus/*.jpg"))) == 3


def test_a_bucket_that_is_not_there_or_is_refused_is_a_sentence(s3, monkeypatch):
    with pytest.raises((StoreUnavailable, DataError), match="nowhere"):
        open_source("s3://nowhere/in")
    with pytest.raises(ConfigError, match="names no bucket"):
        open_source("s3://")


def test_a_store_that_fails_for_a_moment_is_asked_again(s3, pictures):
    from pipelines.batch.store import ObjectStore

    store = ObjectStore("s3://bucket/again")
    store.write("a.bin", b"one")
    failures = iter([OSError("SLOW_DOWN"), OSError("timeout")])
    asked = []

    def work(system, root):
        asked.append(root)
        if (error := next(failures, None)) is not None:
            raise error
        return "done"

    assert store.retried(work) == "done"
    assert len(asked) == 3
    assert store.read("a.bin") == b"one"
    with pytest.raises(FileNotFoundError):
        store.read("absent.bin")


def test_a_file_of_a_list_that_changes_is_another_item(pictures):
    name = next(iter(files_of(pictures)))
    (pictures / "list.txt").write_text(f"{name}\nmissing.jpg\n")
    before = open_source(pictures / "list.txt").items
    (pictures / name).write_bytes(b"other")
    after = open_source(pictures / "list.txt").items
    assert before[0].stamp != after[0].stamp
    assert before[1] == after[1]
