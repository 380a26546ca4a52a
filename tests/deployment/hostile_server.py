"""A hostile coordinator's ServerApp: it sends its ClientApp once to a site, and keeps what it got.

``test_hostile_bundle.py`` puts it into a bundle as ``server/app.py``.
"""

import json
import time
from pathlib import Path

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.serverapp import Grid, ServerApp

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Write the loot, or what went wrong, to the file that the run's configuration names."""
    site, out = str(context.run_config["site"]), Path(str(context.run_config["out"]))
    nodes: list[int] = []
    while not nodes:
        nodes = [node.node_id for node in grid.get_nodes() if node.name == site]
        time.sleep(0.2)
    content = RecordDict({"go": ConfigRecord({})})
    message = Message(content, dst_node_id=nodes[0], message_type="query")
    (reply,) = grid.send_and_receive([message], timeout=120)
    loot = {"error": str(reply.error)} if reply.has_error() else dict(reply.content["loot"])
    beside = out.with_suffix(".part")
    beside.write_text(json.dumps(loot), encoding="utf-8")
    beside.rename(out)
