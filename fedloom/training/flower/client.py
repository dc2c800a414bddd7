"""The ClientApp. It loads neither torch nor a model: outside of a simulation it lives for one message."""

from fedloom.runtimes.flower.apps import make_client_app
from fedloom.runtimes.flower.request import Answer, Request
from fedloom.runtimes.flower.resident import ask_resident, one_message_per_process


def answer(request: Request, node: int) -> Answer:
    """Let the process that has the model answer: this one in a simulation, else the SuperNode's resident."""
    if one_message_per_process():
        return Answer.of(ask_resident("fedloom.training.flower.resident", request.pieces(), node))
    from fedloom.training.flower.work import answer as work

    return work(request)


app = make_client_app(answer)
