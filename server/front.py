"""The front: nginx, which ends TLS on the public address and lets the couriers' calls through.

SuperLink's other calls (Control, Runtime) ask nobody who is there. So what passes is a list of
exact paths, compared with the request line as it was sent, before anything is decoded or tidied:
no spelling of another path can pass for one of these.
"""

import grp
import os
import pwd
import shutil
import signal
from ipaddress import ip_address
from pathlib import Path

from common.addresses import split_address
from common.errors import ServiceError
from common.files import write_atomic
from common.processes import Service, read_status
from server.config import ServerConfig

FLEET_CALLS = (
    "activate-node",
    "confirm-message-received",
    "deactivate-node",
    "get-fab",
    "get-run",
    "pull-messages",
    "pull-object",
    "push-messages",
    "push-object",
    "send-node-heartbeat",
)
"""What a courier asks of SuperLink. Not ``register-node``: sites are enrolled by the commands."""

NAME = "front"
STOP_SECONDS = 3.0

_CONF = """\
# Written by rarefed-server at every start; changes here are lost.
{user}daemon off;
master_process on;
worker_processes 2;
worker_shutdown_timeout 60s;
pid {folder}/nginx.pid;
error_log stderr warn;
events {{ worker_connections 2048; }}

http {{
  server_tokens off;
  log_format calls '$time_iso8601 $remote_addr "$request_method $uri" $status '
                   'in=$request_length out=$bytes_sent seconds=$request_time tls=$ssl_protocol';
  access_log {log} calls;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi; uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;

  # Flower's client tries again after a 503, and after nothing else.
  limit_req_zone $binary_remote_addr zone=calls:10m rate={rate}r/s;
  limit_conn_zone $binary_remote_addr zone=connections:10m;
  limit_req_status 503;
  limit_conn_status 503;

  map "$request_method $request_uri" $passes {{
    default 0;
    # A regular expression: plain strings are compared without regard to case here.
    "~^POST /v1/fleet/({calls})$" 1;
  }}

  upstream superlink {{
    server 127.0.0.1:{superlink_port} max_fails=0;
    keepalive 16;
  }}

  server {{
    listen {listen} ssl;
    ssl_certificate "{certificate}";
    ssl_certificate_key "{key}";
    ssl_protocols TLSv1.2 TLSv1.3;
    ssl_ciphers ECDHE+AESGCM:ECDHE+CHACHA20;
    ssl_session_cache shared:sessions:1m;
    ssl_session_tickets off;

    client_max_body_size {max_body_mb}m;
    client_header_timeout 15s;
    client_body_timeout 60s;
    send_timeout 60s;
    keepalive_timeout 75s;
    large_client_header_buffers 4 8k;
    limit_conn connections {connections};
    # Evened out beyond the rate, refused beyond ten seconds' worth of it.
    limit_req zone=calls burst={burst} delay={rate};

    error_page 497 = @no_tls;
    location @no_tls {{ return 444; }}

    location / {{ return 403; }}
    location = /v1/fleet {{ return 403; }}
    location /v1/fleet/ {{
      if ($passes = 0) {{ return 403; }}
      # Couriers say how long a body is; so it can be refused before any of it has passed.
      if ($http_transfer_encoding) {{ return 411; }}
      proxy_pass https://superlink;
      proxy_ssl_trusted_certificate "{authority}";
      proxy_ssl_verify on;
      proxy_ssl_name localhost;
      proxy_ssl_server_name on;
      proxy_ssl_session_reuse on;
      proxy_http_version 1.1;
      proxy_set_header Connection "";
      proxy_set_header Host localhost;
      proxy_set_header X-Forwarded-For $remote_addr;
      proxy_set_header X-Forwarded-Proto https;
      proxy_set_header Forwarded "";
      # A model goes by in pieces; none of it is to be written down here.
      proxy_request_buffering off;
      proxy_buffering off;
      proxy_connect_timeout 5s;
      proxy_read_timeout 300s;
      proxy_next_upstream off;
    }}
  }}
}}
"""


def front_service(config: ServerConfig) -> Service | None:
    """Return nginx with its configuration written, or None where the coordinator does without.

    Raises:
        ServiceError: nginx is missing and the coordinator is to be reached from outside, or
            not where SuperLink itself listens.
    """
    nginx = program()
    if nginx is None:
        check_without_front(config)
        return None
    config.nginx.mkdir(mode=0o700, parents=True, exist_ok=True)
    file = config.nginx / "nginx.conf"
    write_atomic(file, configuration(config).encode(), mode=0o600)
    argv = [nginx, "-e", "stderr", "-p", str(config.nginx), "-c", str(file)]
    return Service(
        NAME,
        argv,
        {"PATH": os.defpath},
        _log_file(config),
        cwd=config.nginx,
        grace=STOP_SECONDS,
        orphaned=signal.SIGTERM,  # a master that is killed leaves its workers on the port
    )


def program() -> str | None:
    """Return the path of nginx, which is not on every user's path."""
    folders = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/usr/local/sbin"])
    return shutil.which("nginx", path=folders)


def configuration(config: ServerConfig) -> str:
    """Return ``nginx.conf``."""
    return _CONF.format(
        user=_worker_user(),
        folder=_quotable(config.nginx),
        log=_quotable(_log_file(config)),
        rate=config.requests_per_second,
        burst=10 * config.requests_per_second,
        connections=config.connections_per_address,
        max_body_mb=config.max_body_mb,
        calls="|".join(FLEET_CALLS),
        listen=config.listen,
        superlink_port=config.superlink_port,
        certificate=_quotable(config.server_certificate),
        key=_quotable(config.server_key),
        authority=_quotable(config.loopback_authority),
    )


def reload(config: ServerConfig) -> bool:
    """Let a front that runs take over new certificates; True when there was one to tell."""
    pid = read_status(config.processes_file).get(NAME, {}).get("pid")
    if pid is None:
        return False
    try:
        os.kill(pid, signal.SIGHUP)
    except ProcessLookupError:
        return False
    return True


def check_without_front(config: ServerConfig) -> None:
    """Refuse to do without nginx, except where only this machine can call.

    Raises:
        ServiceError: The coordinator is to be reached from outside, or the address of the kits
            is not SuperLink's own port.
    """
    install = "Install nginx (Debian and Ubuntu: apt install nginx-light) and start again."
    host = split_address(config.listen)[0]
    if not ip_address(host).is_loopback:
        raise ServiceError(
            "There is no nginx on this machine, and without it Flower's SuperLink would let "
            f"anybody who reaches {config.listen} start runs at every site.",
            remedy=f"{install} Without it, only a loopback address can be served.",
        )
    port = split_address(config.address)[1]
    if port != config.superlink_port:
        raise ServiceError(
            "There is no nginx on this machine: without it the sites call SuperLink's own port, "
            f"{config.superlink_port}, but their kits say {config.address}.",
            remedy=f"{install} For a trial on this machine alone, make a coordinator with "
            f"--address 127.0.0.1:{config.superlink_port}.",
        )


def _log_file(config: ServerConfig) -> Path:
    return config.logs / "front.log"


def _worker_user() -> str:
    """Return the line that gives nginx's workers a user without rights, where root starts it.

    They need no file: what they read, the master has opened for them.
    """
    if os.geteuid() != 0:
        return ""  # nginx does not accept the line from anybody else
    nobody = pwd.getpwnam("nobody")
    return f"user nobody {grp.getgrgid(nobody.pw_gid).gr_name};\n"


def _quotable(path: Path) -> str:
    """Return a path that nginx reads as it stands."""
    text = str(path)
    if any(character in text for character in " \"'\\;{}$\n"):
        raise ServiceError(
            f"nginx cannot be told of a folder of this name: {text}",
            remedy="Keep the coordinator in a folder whose path has no spaces, quotes or $.",
        )
    return text
