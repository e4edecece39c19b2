"""nginx and HAProxy from Debian's packages: one worker, sticky by a hash of the session's header, one key."""

import os
import shutil
from collections.abc import Callable
from functools import partial

from benchmarks.relay.relays import Missing, Place, Relay, Start
from tests.cluster.lab import program
from tests.cluster.packages import install, nothing_starts

NGINX = """\
daemon off;
user root;
worker_processes 1;
worker_rlimit_nofile 20000;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
events {{ worker_connections 10000; }}
http {{
  access_log off;
  client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;
  client_body_buffer_size 1m;
  keepalive_requests 1000000000;
  upstream hosts {{
    hash $http_x_session_id consistent;
{servers}
    keepalive 256;
    keepalive_requests 1000000000;
  }}
  server {{
    listen 127.0.0.1:{port} backlog=2048;
    location / {{
      if ($http_authorization != "{bearer}") {{ return 401; }}
      proxy_pass http://hosts;
      proxy_http_version 1.1;
      proxy_set_header Connection "";
      proxy_buffering off;
      proxy_read_timeout 600s;
    }}
  }}
}}
"""

HAPROXY = """\
global
  maxconn 5000
  nbthread 1
defaults
  mode http
  option http-no-delay
  timeout connect 2s
  timeout client 600s
  timeout server 600s
frontend clients
  bind 127.0.0.1:{port} backlog 2048
  http-request deny deny_status 401 unless {{ req.hdr(authorization) -m str "{bearer}" }}
  default_backend hosts
backend hosts
  balance hdr(x-session-id)
  hash-type consistent
  http-reuse always
{servers}
"""


def _get(name: str) -> None:
    if program(name) is not None:
        return
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        raise Missing(f"not installed; as root: apt-get install {name}")
    with nothing_starts():
        install([name])
    if program(name) is None:
        raise Missing(f"Debian's package {name} could not be installed")


def _written(place: Place, text: str, server: str) -> str:
    """The path of its config; `server` is the line of one host, with its number and port."""
    servers = "\n".join(server.format(number=number, port=port) for number, port in enumerate(place.hosts))
    file = place.folder / "relay.conf"
    file.write_text(text.format(folder=place.folder, port=place.port, bearer=place.bearer, servers=servers))
    return str(file)


def _nginx(place: Place) -> Start:
    return Start([_program("nginx"), "-c", _written(place, NGINX, "    server 127.0.0.1:{port};")])


def _haproxy(place: Place) -> Start:
    config = _written(place, HAPROXY, "  server host{number} 127.0.0.1:{port}")
    return Start([_program("haproxy"), "-db", "-f", config])


def _program(name: str) -> str:
    found = program(name)
    assert found is not None
    return found


def _relay(name: str, how: str, start: Callable[[Place], Start]) -> Relay:
    return Relay(name, how, start, partial(_get, name))


NGINX_RELAY = _relay(
    "nginx", "one worker, buffering off; consistent hash of the session's header, key compared", _nginx
)
HAPROXY_RELAY = _relay(
    "haproxy", "one thread, http-no-delay; consistent hash of the session's header, key compared", _haproxy
)
