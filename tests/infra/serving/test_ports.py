import socket

import pytest

from components.errors import InputError
from infra.serving.ports import claimed


@pytest.mark.parametrize("shared", [False, True])
def test_a_port_that_somebody_listens_at_is_refused(shared):
    with socket.socket() as listener:
        if shared:  # as Serve's proxy listens
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        with pytest.raises(InputError, match=f"serve.port: {port} at 127.0.0.1 is taken"), claimed("127.0.0.1", port):
            pass


def test_a_port_that_another_server_is_about_to_listen_at_is_refused():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with claimed("127.0.0.1", port), pytest.raises(InputError, match="is taken"), claimed("127.0.0.1", port):
        pass
    with claimed("127.0.0.1", port):  # free again
        pass


def test_an_address_of_another_machine_is_refused():
    refused = pytest.raises(InputError, match=r"serve.port: 8000 at 192.0.2.1 cannot be listened at \(")
    with refused, claimed("192.0.2.1", 8000):
        pass


@pytest.mark.parametrize("port", [0, -1, 2**16, 99999])
def test_a_number_that_is_no_port_is_refused(port):
    with pytest.raises(InputError, match=f"--port: {port} is no port"), claimed("127.0.0.1", port, "--port"):
        pass
