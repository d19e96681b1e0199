"""ROS 2 bags without ROS, by way of rosbags: message types, reading, and writing a bag as a copy of another.

Errors of the many layers below (YAML, SQLite, zstd, files) become one `InputError` sentence here.
"""

from __future__ import annotations

import os
import sqlite3
from array import array
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from deformer_core.errors import InputError

try:
    from rosbags.interfaces import (
        Connection,
        MessageDefinitionFormat,
        Nodetype,
        Qos,
        QosDurability,
        QosHistory,
        QosLiveliness,
        QosReliability,
        QosTime,
    )
    from rosbags.rosbag2 import CompressionFormat, CompressionMode, Reader, StoragePlugin, Writer
    from rosbags.typesys import Stores, get_types_from_msg, get_typestore
except ImportError as missing:
    raise InputError("bags are read with rosbags, which is not installed: pip install 'deformer[ros]'") from missing

UNKNOWN_HASH = f"RIHS01_{'0' * 64}"
"""In place of the hash of a type that the bag does not define, and that is not of ROS either."""
_FOREVER = QosTime(9223372036, 854775807)
# What rosbags leaves out of its definitions.
_DEFAULTS = {"geometry_msgs/msg/Quaternion": {"w": 1.0}}


class DamagedBagError(InputError):
    """A bag that cannot be read to its end."""


class BagTypes:
    """`message_types.MessageTypes` of rosbags: ROS 2's own and this package's."""

    def __init__(self) -> None:
        self.store = get_typestore(Stores.ROS2_JAZZY)
        own = [get_types_from_msg(path.read_text("utf-8"), f"deformer_ros/msg/{path.stem}") for path in _definitions()]
        self.store.register({name: fields for types in own for name, fields in types.items()})
        self._constructors: dict[str, Callable[..., Any]] = {}

    def __call__(self, name: str) -> Callable[..., Any]:
        if name not in self._constructors:
            self._constructors[name] = self._constructor(name)
        return self._constructors[name]

    def serialize(self, message: Any) -> bytes:
        return bytes(self.store.serialize_cdr(message, message.__msgtype__))

    def deserialize(self, raw: bytes, name: str) -> Any:
        """Errors: `InputError` if the bytes are no message of that type."""
        try:
            return self.store.deserialize_cdr(raw, name)
        except Exception as error:  # of generated code, on bytes that may be anything
            raise InputError(f"a message of {len(raw)} bytes is damaged: it is no {name}") from error

    def reads_as(self, raw: bytes, message: Any) -> bool:
        # Compared as bytes: comparing messages that hold arrays has no single answer.
        return self.serialize(self.deserialize(raw, message.__msgtype__)) == self.serialize(message)

    def _constructor(self, name: str) -> Callable[..., Any]:
        """rosbags' class, but with defaults as in ROS, and taking `array.array` where it holds numpy arrays."""
        base: Any = self.store.types[name]
        fields, known, default = self.store.fielddefs[name][1], _DEFAULTS.get(name, {}), self._default

        class Message(base):  # the class, not a function: its constants are looked up too
            def __init__(self, **given: Any) -> None:
                values = {key: np.asarray(value) if isinstance(value, array) else value for key, value in given.items()}
                for key, kind in fields:
                    if key not in values:
                        values[key] = known[key] if key in known else default(kind)
                super().__init__(**values)

        return Message

    def _default(self, kind: Any) -> Any:
        """The value of a field that is not set. kind: a field's type as rosbags describes it."""
        node, detail = kind
        if node == Nodetype.NAME:
            return self(detail)()
        if node == Nodetype.BASE:
            return "" if detail[0] == "string" else np.zeros((), _dtype(detail[0])).item()
        (inner, name), length = detail[0], detail[1] if node == Nodetype.ARRAY else 0
        if inner == Nodetype.BASE and name[0] != "string":
            return np.zeros(length, _dtype(name[0]))
        return [self._default(detail[0]) for _ in range(length)]


def _dtype(name: str) -> str:
    return {"byte": "uint8", "char": "uint8", "octet": "uint8"}.get(name, name)


def _definitions() -> list[Path]:
    """This package's .msg files: of the installed Python package, of a checkout, or of a ROS install."""
    here = Path(__file__).parent
    prefixes = os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep)
    folders = [here / "definitions", here.parent / "msg"]
    folders += [Path(prefix) / "share" / "deformer_ros" / "msg" for prefix in prefixes if prefix]
    for folder in folders:
        if found := sorted(folder.glob("*.msg")):
            return found
    raise InputError("the message definitions of deformer_ros are not here: install the package again")


class BagReader:
    """A bag, open for reading: a folder with metadata.yaml, or one .mcap or .db3 file.

    Raises:
        InputError: it cannot be opened.
    """

    def __init__(self, path: Path):
        self.path = path
        with self._explained():
            if not path.exists():
                raise InputError(f"cannot open the bag {path}: there is no such file or folder")
            if path.is_dir() and not (path / "metadata.yaml").exists():
                raise InputError(
                    f"the bag {path} has no metadata.yaml, so its recording did not end well: "
                    f"mend it by `ros2 bag reindex {path}`, or give the .mcap or .db3 file in it"
                )
            if path.suffix == ".bag" and path.is_file():
                raise InputError(f"{path} is a bag of ROS 1: convert it by `rosbags-convert` first")
            self._reader = Reader(path)
            self._reader.open()
            self.connections: list[Connection] = list(self._reader.connections)

    def close(self) -> None:
        self._reader.close()

    def __enter__(self) -> BagReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def duration(self) -> float:
        """Seconds."""
        return max(self._reader.duration, 0) * 1e-9

    @property
    def files(self) -> list[Path]:
        """What the bag consists of."""
        return sorted(path for path in self.path.iterdir() if path.is_file()) if self.path.is_dir() else [self.path]

    @property
    def storage(self) -> StoragePlugin:
        is_mcap = any(".mcap" in path.suffixes for path in self.files)
        return StoragePlugin.MCAP if is_mcap else StoragePlugin.SQLITE3

    @property
    def compression(self) -> CompressionMode:
        storages = getattr(self._reader.storage, "storages", [self._reader.storage])
        if any(chunk.compression for storage in storages for chunk in getattr(storage, "chunks", ())):
            return CompressionMode.STORAGE
        return CompressionMode[(self._reader.compression_mode or "none").upper()]

    def messages(self, connections: Sequence[Connection] = ()) -> Generator[tuple[Connection, int, bytes], None, None]:
        """Connection, record time in nanoseconds and bytes of the messages, in the order of time; by default of all.

        Raises:
            InputError: the bag is damaged, or holds fewer messages than it says.
        """
        wanted = list(connections) or self.connections
        count = 0
        with self._explained():
            for message in self._reader.messages(wanted):
                yield message
                count += 1
            expected = sum(connection.msgcount for connection in wanted)
            if count < expected:
                raise DamagedBagError(f"the bag {self.path} is damaged: of its {expected} messages {count} can be read")

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (InputError, GeneratorExit, KeyboardInterrupt):
            raise
        except Exception as error:  # what a damaged file makes its parsers raise cannot be listed
            reason = str(error).rstrip(".") or type(error).__name__
            raise DamagedBagError(
                f"the bag {self.path} is damaged or its recording did not end well ({reason}): "
                "try `ros2 bag reindex`, or `mcap recover` for an .mcap file"
            ) from error


class BagWriter:
    """Writes a bag of the same storage and compression as another: its topics, and new ones.

    path: a folder that does not exist yet. Without an orderly end of the `with` block, what is there is no bag.
    All errors of writing are OSError.
    """

    def __init__(self, path: Path, source: BagReader, types: BagTypes):
        self._types = types
        self._writer = Writer(path, version=Writer.VERSION_LATEST, storage_plugin=source.storage)
        self._writer.set_compression(source.compression, CompressionFormat.ZSTD)
        with _as_os_error():
            self._writer.open()
            self._copies = [self._add_copy(connection) for connection in source.connections]
        self._by_source = {connection.id: copy for connection, copy in zip(source.connections, self._copies)}

    def __enter__(self) -> BagWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with _as_os_error():
            self._writer.__exit__(kind, error, trace)

    def add_topic(self, topic: str, type_name: str, depth: int, latched: bool = False) -> Connection:
        """A topic of this package's making; the original's, if it has one of that name and type."""
        for copy in self._copies:
            if (copy.topic, copy.msgtype) == (topic, type_name):
                return copy
        qos = _qos(depth, QosDurability.TRANSIENT_LOCAL if latched else QosDurability.VOLATILE)
        with _as_os_error():
            return self._writer.add_connection(
                topic, type_name, typestore=self._types.store, offered_qos_profiles=[qos]
            )

    def copy(self, source: Connection, time: int, raw: bytes) -> None:
        """Write a message of the original as it is."""
        self.write(self._by_source[source.id], time, raw)

    def write(self, topic: Connection, time: int, raw: bytes) -> None:
        """time: nanoseconds."""
        with _as_os_error():
            self._writer.write(topic, time, raw)

    def _add_copy(self, source: Connection) -> Connection:
        for known in self._writer.connections:
            if (known.topic, known.msgtype, known.ext) == (source.topic, source.msgtype, source.ext):
                return known  # a raw .mcap file may have several channels of one topic
        known_type = source.msgtype in self._types.store.types
        has_definition = source.msgdef.format != MessageDefinitionFormat.NONE
        definition = source.msgdef.data if has_definition or not known_type else None
        digest = source.digest or (self._types.store.hash_rihs01(source.msgtype) if known_type else UNKNOWN_HASH)
        ext: Any = source.ext
        return self._writer.add_connection(
            source.topic,
            source.msgtype,
            typestore=self._types.store,
            msgdef=definition,
            rihs01=digest,
            serialization_format=ext.serialization_format,
            offered_qos_profiles=ext.offered_qos_profiles,
        )


@contextmanager
def _as_os_error() -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        raise OSError(str(error)) from error


@cache
def _qos(depth: int, durability: QosDurability) -> Qos:
    return Qos(
        history=QosHistory.KEEP_LAST,
        depth=depth,
        reliability=QosReliability.RELIABLE,
        durability=durability,
        deadline=_FOREVER,
        lifespan=_FOREVER,
        liveliness=QosLiveliness.AUTOMATIC,
        liveliness_lease_duration=_FOREVER,
        avoid_ros_namespace_conventions=False,
    )
