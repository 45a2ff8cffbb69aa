"""Hands an order to the site's resident trainer."""

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from curtail_pipeline.flower.client import answer

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    return answer(message, context)


@app.query()
def query(message: Message, context: Context) -> Message:
    return answer(message, context)
