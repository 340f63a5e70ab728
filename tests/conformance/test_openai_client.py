"""The official client against a whole server."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import openai
import pytest

pytestmark = pytest.mark.usefixtures("idle")

PARIS = [{"role": "user", "content": "What is the capital of France?"}]


def text_of(stream) -> tuple[str, str | None, openai.types.CompletionUsage | None]:
    """Text, finish reason and usage of a chat stream, having checked its form."""
    text, reason, usage, roles = "", None, None, 0
    for chunk in stream:
        assert chunk.object == "chat.completion.chunk"
        for choice in chunk.choices:
            assert reason is None
            roles += choice.delta.role == "assistant"
            text += choice.delta.content or ""
            reason = choice.finish_reason
        usage = chunk.usage or usage
    assert roles == 1
    return text, reason, usage


def test_chat(client, model):
    reply = client.chat.completions.create(model=model, messages=PARIS, temperature=0)
    (choice,) = reply.choices
    assert "Paris" in choice.message.content
    assert choice.finish_reason == "stop"
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens


def test_a_chat_stream_is_the_same_as_the_whole(client, model):
    fields = {"model": model, "messages": PARIS, "temperature": 0}
    whole = client.chat.completions.create(**fields)
    stream = client.chat.completions.create(
        **fields, stream=True, stream_options={"include_usage": True}
    )
    text, reason, usage = text_of(stream)
    assert text == whole.choices[0].message.content
    assert reason == whole.choices[0].finish_reason
    assert usage == whole.usage


def test_a_completion_stream_is_the_same_as_the_whole(client, model):
    fields = {"model": model, "prompt": "Once upon a time", "temperature": 0, "max_tokens": 20}
    whole = client.completions.create(**fields)
    assert whole.usage.completion_tokens == 20
    assert whole.choices[0].finish_reason == "length"
    chunks = list(client.completions.create(**fields, stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == whole.choices[0].text
    assert chunks[-1].choices[0].finish_reason == "length"


def test_a_response_is_what_the_chat_answers_streamed_or_not(client, model):
    fields = {"model": model, "input": PARIS, "temperature": 0}
    whole = client.responses.create(**fields)
    chat = client.chat.completions.create(model=model, messages=PARIS, temperature=0)
    assert whole.output_text == chat.choices[0].message.content
    with client.responses.stream(**fields) as stream:
        text = "".join(e.delta for e in stream if e.type == "response.output_text.delta")
        final = stream.get_final_response()
    assert text == final.output_text == whole.output_text
    assert final.usage.output_tokens == whole.usage.output_tokens == chat.usage.completion_tokens


def test_a_message_is_what_the_chat_answers(client, http, model):
    fields = {"messages": PARIS, "temperature": 0, "max_tokens": 64}
    reply = http.post("/v1/messages", json=fields).json()
    chat = client.chat.completions.create(model=model, **fields)
    assert reply["content"][0]["text"] == chat.choices[0].message.content
    usage, counted = reply["usage"], http.post("/v1/messages/count_tokens", json=fields).json()
    prompt = usage["input_tokens"] + usage["cache_read_input_tokens"]
    assert prompt == counted["input_tokens"] == chat.usage.prompt_tokens


def test_a_stream_whose_client_leaves_is_cancelled(client, http, model):
    """As the fixture `idle` asserts."""
    story = [{"role": "user", "content": "Tell me a very long story."}]
    body = {"messages": story, "stream": True}
    for path, given in (
        ("/v1/responses", {"input": story}),
        ("/v1/messages", {}),
        ("/api/chat", {}),
    ):
        with http.stream("POST", path, json={**body, **given}) as response:
            assert response.status_code == 200
            next(response.iter_lines())


def test_token_ids_and_text_are_equivalent_prompts(client, http, model):
    text = "The three primary colours are"
    ids = http.post("/tokenize", json={"prompt": text}).json()["tokens"]
    assert http.post("/detokenize", json={"tokens": ids}).json()["prompt"] == text
    fields = {"model": model, "temperature": 0, "max_tokens": 8}
    of_text = client.completions.create(prompt=text, **fields).choices[0].text
    of_ids = client.completions.create(prompt=ids, **fields).choices[0].text
    of_many = client.completions.create(prompt=[ids, ids], **fields, echo=True).choices
    assert of_ids == of_text
    assert [choice.text for choice in of_many] == [text + of_text] * 2


def test_32_concurrent_users_get_what_each_gets_alone(client, model):
    questions = [f"Name {number} animals." for number in range(2, 34)]

    def ask(question: str) -> str:
        stream = client.chat.completions.create(
            model=model,
            messages=[{"role": "user", "content": question}],
            temperature=0,
            max_tokens=24,
            stream=True,
        )
        return text_of(stream)[0]

    alone = [ask(question) for question in questions]
    assert len(set(alone)) > 1
    with ThreadPoolExecutor(len(questions)) as users:
        together = list(users.map(ask, questions))
    assert together == alone


def test_the_same_seed_gives_the_same_text(client, model):
    def sample(seed: int) -> str:
        reply = client.chat.completions.create(
            model=model, messages=PARIS, temperature=1.5, seed=seed, max_tokens=24
        )
        return reply.choices[0].message.content

    with ThreadPoolExecutor(8) as users:
        texts = list(users.map(sample, [7, 1, 2, 3, 7, 4, 5, 7]))
    assert texts[0] == texts[4] == texts[7]
    assert len(set(texts)) > 1


def test_n_choices(client, model):
    reply = client.chat.completions.create(
        model=model, messages=PARIS, n=4, temperature=1.5, seed=1, max_tokens=8
    )
    assert [choice.index for choice in reply.choices] == [0, 1, 2, 3]
    assert len({choice.message.content for choice in reply.choices}) > 1


def test_logprobs(client, model):
    reply = client.chat.completions.create(
        model=model, messages=PARIS, temperature=0, max_tokens=5, logprobs=True, top_logprobs=3
    )
    content = reply.choices[0].logprobs.content
    assert len(content) == reply.usage.completion_tokens
    text = b"".join(bytes(at.bytes) for at in content).decode()
    assert text.startswith(reply.choices[0].message.content)
    for at in content:
        assert at.logprob <= 0
        assert len(at.top_logprobs) == 3
        assert at.top_logprobs[0].token == at.token  # greedy
        assert at.top_logprobs[0].logprob == pytest.approx(at.logprob)


def test_characters_of_several_tokens_are_never_split(client, http, model):
    """An emoji has several tokens; logit_bias excludes all others."""
    emoji = "🙂🦜"
    ids = http.post("/tokenize", json={"prompt": emoji}).json()["tokens"]
    assert len(ids) > 2
    prompt = "Repeat: " + f"{emoji} " * 20
    fields = {"model": model, "prompt": prompt, "temperature": 0, "max_tokens": 12}
    fields["logit_bias"] = {str(token): 100 for token in ids}
    whole = client.completions.create(**fields).choices[0].text
    pieces = [c.choices[0].text for c in client.completions.create(**fields, stream=True)]
    assert "".join(pieces) == whole
    assert any(character in whole for character in emoji)
    # Only the last character may be cut by the limit.
    assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in pieces[:-1])


@pytest.mark.parametrize("stream", [False, True])
def test_stop_strings_split_over_tokens_never_leak(client, model, stream):
    fields = {"model": model, "prompt": "1, 2, 3, 4,", "temperature": 0, "max_tokens": 40}
    text = client.completions.create(**fields).choices[0].text
    for start in range(4, 12):
        stop = text[start : start + 7]
        place = text.index(stop)
        reply = client.completions.create(**fields, stop=stop, stream=stream)
        choices = [chunk.choices[0] for chunk in (reply if stream else [reply])]
        assert "".join(choice.text for choice in choices) == text[:place]
        assert choices[-1].finish_reason == "stop"


def test_max_tokens_is_exact(client, model):
    for limit in (1, 2, 17):
        reply = client.completions.create(
            model=model,
            prompt="Hello",
            max_tokens=limit,
            temperature=0,
            extra_body={"ignore_eos": True},
        )
        assert reply.usage.completion_tokens == limit


def test_errors_are_those_of_the_client(client, model):
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="missing", messages=PARIS)
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as wrong:
        client.chat.completions.create(model=model, messages=PARIS, temperature=-1)
    assert wrong.value.param == "temperature"
    with pytest.raises(openai.BadRequestError) as audio:
        client.chat.completions.create(model=model, messages=PARIS, modalities=["text", "audio"])
    assert audio.value.param == "modalities"
    with pytest.raises(openai.BadRequestError) as long:
        client.completions.create(model=model, prompt="word " * 20_000)
    assert long.value.code == "context_length_exceeded"


def test_models(client, model):
    assert client.models.retrieve(model).owned_by == "sarathi"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("missing")
