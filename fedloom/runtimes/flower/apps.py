"""Flower's two apps around functions that know nothing of Flower."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from fedloom.errors import UserError
from fedloom.runtimes.flower.messages import from_records, quoted, to_records
from fedloom.runtimes.flower.request import Answer, Request

Config = dict[str, Any]


def make_server_app(serve: Callable[[Grid, Config], None]) -> ServerApp:
    """A ServerApp of a function that takes the grid and the run config."""
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        logging.getLogger("flwr").addFilter(in_one_line)
        serve(grid, dict(context.run_config))

    return app


def in_one_line(record: logging.LogRecord) -> bool:
    """A filter of Flower's log: a user's mistake is told in one line, not in pages of traceback."""
    error = record.exc_info[1] if record.exc_info else None
    if isinstance(error, UserError):
        record.msg, record.args, record.exc_info = "fedloom: error: %s", (error,), None
    return True


def make_client_app(answer: Callable[[Request, int], Answer]) -> ClientApp:
    """A ClientApp of a function that takes a request and the node's number.

    What the client keeps between two messages lies in the context's state.
    """
    app = ClientApp()

    def reply(message: Message, context: Context) -> Message:
        request = Request(
            kind=message.metadata.message_type,
            options=dict(context.run_config),
            node=dict(context.node_config),
            content_=from_records(message.content),
            kept=from_records(context.state),
        )
        found = answer(request, context.node_id)
        if mistake := found.content_.facts.get("mistake"):  # the owner of the client sees this log alone
            logging.getLogger("flwr").warning("fedloom: %s", quoted(mistake))
        if found.kept is not None:
            for name, record in to_records(found.kept).items():
                context.state[name] = record
        return Message(to_records(found.content_), reply_to=message)

    @app.query()
    def query(message: Message, context: Context) -> Message:
        return reply(message, context)

    @app.train()
    def train(message: Message, context: Context) -> Message:
        return reply(message, context)

    return app
