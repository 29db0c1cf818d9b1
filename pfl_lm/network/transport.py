"""The messages and the service of ``aggregation.proto``, and how gRPC is set up on both sides.

The one description of the service is the .proto file: ``grpcio-tools`` compiles it when this
module is imported, so nothing generated lies about.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from pfl_lm.validate import positive

try:
    import grpc
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
    from grpc_tools import protoc
except ImportError as error:
    raise ValueError(
        "the network needs gRPC: install it with `pip install pfl-lm[network]`"
    ) from error

_PROTO = Path(__file__).parent / "aggregation.proto"
SESSION = "session-bin"  # metadata key; the suffix says that its value is bytes
CHUNK_BYTES = 1 << 20
SLACK_BYTES = 1 << 16  # around a vector: headers, and any message that has none
_READ_BYTES = 8 << 10  # that gRPC takes from a connection at once

Message = Any  # of the generated classes, which exist at run time only


@dataclass(frozen=True)
class Limits:
    """What a device may ask of the server, and how long the server waits.

    Attributes:
        phase_seconds: for a phase of the protocol, from its first to its last message.
        training_seconds: from the invitation to the device's keys; it trains in between.
        grace_seconds: how long the last tenth of the devices is waited for.
        gather_seconds: how long a round waits for devices, if enough for a sum are there.
        hold_seconds: how long an empty Fetch is held before it is answered.
        burst, calls_per_second: of one device; more must wait. ``round_calls`` come on top with
            each invitation, so that quick rounds need not wait.
        calls_at_once: open calls of one device.
        strangers: open calls of callers who have not authenticated, all together; the oldest
            ends when another comes. Each ends after ``stranger_seconds``.
        upload_bytes: of messages that are read at once, of all devices together; the others wait.
        upload_seconds: after which an upload that is not whole is ended, if others wait.
        strikes: mistakes after which a device is suspended for ``suspension_seconds``; one is
            forgotten every ``strike_seconds``.
    """

    phase_seconds: float = 30.0
    training_seconds: float = 120.0
    grace_seconds: float = 10.0
    gather_seconds: float = 60.0
    hold_seconds: float = 20.0
    burst: int = 60
    calls_per_second: float = 10.0
    round_calls: int = 40
    calls_at_once: int = 8
    strangers: int = 64
    stranger_seconds: float = 5.0
    upload_bytes: int = 256 << 20
    upload_seconds: float = 10.0
    strikes: int = 3
    strike_seconds: float = 3600.0
    suspension_seconds: float = 600.0

    def __post_init__(self) -> None:
        positive(**vars(self))

    def among(self, processes: int) -> Limits:
        """Return what one of several processes may hold of what they may hold together."""
        strangers, upload_bytes = self.strangers // processes, self.upload_bytes // processes
        return replace(self, strangers=max(1, strangers), upload_bytes=max(1, upload_bytes))


def _compile() -> descriptor_pb2.FileDescriptorProto:
    """Compile the .proto file, as ``protoc`` does."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "set"
        arguments = ["protoc", f"-I{_PROTO.parent}", f"--descriptor_set_out={out}", _PROTO.name]
        if protoc.main(arguments) != 0:
            raise RuntimeError(f"{_PROTO} does not compile")
        compiled = descriptor_pb2.FileDescriptorSet.FromString(out.read_bytes())
    return compiled.file[0]


_file = _compile()
_pool = descriptor_pool.DescriptorPool()
_pool.Add(_file)
_service = _file.service[0]
messages = SimpleNamespace(
    **{
        message.name: message_factory.GetMessageClass(
            _pool.FindMessageTypeByName(f"{_file.package}.{message.name}")
        )
        for message in _file.message_type
    }
)


def stub(channel: Any) -> SimpleNamespace:
    """Return the service's methods as functions of a request, over a channel."""

    def function(method: Any) -> Callable[..., Any]:
        open_call = channel.unary_unary
        if method.client_streaming:
            open_call = channel.stream_unary
        elif method.server_streaming:
            open_call = channel.unary_stream
        return open_call(
            f"/{_file.package}.{_service.name}/{method.name}",
            request_serializer=_class(method.input_type).SerializeToString,
            response_deserializer=_class(method.output_type).FromString,
        )

    return SimpleNamespace(**{method.name: function(method) for method in _service.method})


def handler(servicer: Any) -> Any:
    """Return what lets a gRPC server answer the service by the methods of an object.

    Each method gets its requests as a stream, also where only one comes: it decides whether the
    caller may speak before it reads, so gRPC keeps no message of a caller who may not.
    """

    def answer(method: Any) -> Any:
        kind = (
            grpc.stream_stream_rpc_method_handler
            if method.server_streaming
            else grpc.stream_unary_rpc_method_handler
        )
        return kind(
            getattr(servicer, method.name),
            request_deserializer=_class(method.input_type).FromString,
            response_serializer=_class(method.output_type).SerializeToString,
        )

    return grpc.method_handlers_generic_handler(
        f"{_file.package}.{_service.name}",
        {method.name: answer(method) for method in _service.method},
    )


def _class(type_name: str) -> Any:
    return getattr(messages, type_name.rpartition(".")[2])


@dataclass(frozen=True)
class Method:
    """A method of the service: its name, the class of its requests, and which sides are streams."""

    name: str
    request: Any
    takes_stream: bool
    gives_stream: bool


def methods() -> dict[str, Method]:
    """Return the service's methods by name."""
    return {
        m.name: Method(m.name, _class(m.input_type), m.client_streaming, m.server_streaming)
        for m in _service.method
    }


def largest_frame(vector_bytes: int, devices: int) -> int:
    """Bytes beyond which a frame is refused unread: a vector, or shares among all devices."""
    return SLACK_BYTES + max(vector_bytes, 1024 * devices)


def server_options(shared: bool = False) -> list[tuple[str, int]]:
    """gRPC's settings of the server: sizes, streams, and connections that say nothing.

    Args:
        shared: other processes listen on the same port; else a second server there shall fail.
    """
    return [
        ("grpc.max_receive_message_length", CHUNK_BYTES + SLACK_BYTES),
        ("grpc.server_handshake_timeout_ms", 10_000),
        ("grpc.max_send_message_length", -1),
        ("grpc.max_metadata_size", 8192),
        ("grpc.max_concurrent_streams", 64),
        ("grpc.http2.bdp_probe", 0),  # else thousands of uploads get large windows, and fill them
        # Else each connection keeps a buffer as large as what it once received, until its end. gRPC
        # before 1.85 does not know the setting, and passes it over.
        ("grpc.experimental.tcp_max_read_buffer_size", _READ_BYTES),
        ("grpc.max_connection_idle_ms", 600_000),
        ("grpc.keepalive_time_ms", 60_000),
        ("grpc.keepalive_timeout_ms", 20_000),
        ("grpc.so_reuseport", int(shared)),
    ]


def channel_to(address: str, certificate: Path) -> Any:
    """Open a TLS channel to ``host:port``; the server must show a certificate of this root."""
    credentials = grpc.ssl_channel_credentials(Path(certificate).read_bytes())
    return grpc.secure_channel(
        address,
        credentials,
        [
            ("grpc.max_receive_message_length", 64 << 20),
            ("grpc.initial_reconnect_backoff_ms", 200),
            ("grpc.max_reconnect_backoff_ms", 5_000),
            ("grpc.use_local_subchannel_pool", 1),
        ],
    )
