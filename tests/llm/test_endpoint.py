"""A judge and a scorer behind an OpenAI-compatible server, against a loopback one."""

from __future__ import annotations

import re
import threading

import pytest
import torch
from llm_models import trainer, untimed, weights
from llm_servers import said, serving

from bilevel_rl.errors import InvalidConfig
from bilevel_rl.levels.labels import LabelsPending
from bilevel_rl.llm.http import EndpointFailed
from bilevel_rl.llm.judges.by_name import make_gold, make_judge
from bilevel_rl.llm.judges.endpoint import parse
from bilevel_rl.llm.setup import reward_functions

QUICK = "pause=0.01"


def longer(path, body, headers):
    """Prefers the longer answer; equal ones tie."""
    text = body["messages"][0]["content"]
    first = re.search(r"\[Answer A\]\n(.*)\n\n\[Answer B\]", text, re.S).group(1)
    second = re.search(r"\[Answer B\]\n(.*)\n\nWhich", text, re.S).group(1)
    return said("C" if len(first) == len(second) else "A" if len(first) > len(second) else "The answer is B.")


def test_pairs_are_judged_whatever_order_they_are_shown_in():
    with serving(longer) as (url, seen):
        judge, gold = make_judge(f"{url}/v1@small?{QUICK}")
        assert gold is None
        pairs = [["aa", "b"], ["b", "aa"], ["cc", "dd"], *[["x" * i, "y"] for i in range(2, 9)]]
        assert judge(["p"] * len(pairs), pairs) == [0, 1, -1, *[0] * 7]
    path, body, headers = seen[0]
    assert path == "/v1/chat/completions"
    assert body["model"] == "small"
    assert "Authorization" not in headers
    # both letters have been the right one: the order is not always the one given
    swapped = ["[Answer A]\ny\n" in b["messages"][0]["content"] for _, b, _ in seen]
    assert any(swapped)
    # the pair and its mirror image are one question
    assert len(seen) == len(pairs) - 1 or len({b["messages"][0]["content"] for _, b, _ in seen}) == len(pairs) - 1


def test_the_cache_on_disk_spares_requests_and_keeps_no_key(tmp_path, monkeypatch):
    monkeypatch.setenv("MY_KEY", "secret-word")
    with serving(longer) as (url, seen):
        name = f"{url}/v1@small?cache={tmp_path}/judged&key=MY_KEY"
        make_judge(name)[0](["p", "p"], [["aa", "b"], ["c", "dd"]])
        assert seen[0][2]["Authorization"] == "Bearer secret-word"
        asked = len(seen)
        with (tmp_path / "judged/answers.jsonl").open("a") as file:
            file.write('{"digest": "torn')
        again, _ = make_judge(name)
        assert again(["p", "p"], [["aa", "b"], ["c", "dd"]]) == [0, 1]
        assert len(seen) == asked == 2
        assert again.endpoint.asked == 0
    assert "secret-word" not in (tmp_path / "judged/answers.jsonl").read_text()


def test_failures_that_may_pass_are_tried_again_and_others_are_named():
    left = [(503, {"error": "busy"}, {"Retry-After": "0"}), (429, {"error": "slow down"}, {})]
    lock = threading.Lock()

    def flaky(path, body, headers):
        with lock:
            return left.pop() if left else longer(path, body, headers)

    with serving(flaky) as (url, seen):
        judge, _ = make_judge(f"{url}/v1@small?{QUICK}")
        assert judge(["p"], [["aa", "b"]]) == [0]
        assert len(seen) == 3
    with serving(lambda *_: (401, {"error": "bad key"}, {})) as (url, seen):
        judge, _ = make_judge(f"{url}/v1@small?{QUICK}")
        with pytest.raises(EndpointFailed, match=r"status 401 .*bad key.*Check the address, the key"):
            judge(["p"], [["aa", "b"]])
        assert len(seen) == 1
    judge, _ = make_judge(f"{url}/v1@small?{QUICK}&tries=2&timeout=1")
    with pytest.raises(EndpointFailed, match=r"refused.*\(2 tries\)"):
        judge(["p"], [["aa", "b"]])


@pytest.mark.parametrize("answer", [{"nothing": 1}, [], "text", {"choices": []}])
def test_another_kind_of_server_is_named(answer):
    says = r"an answer without choices.*it ends in /v1"
    with serving(lambda *_: (200, answer, {})) as (url, _), pytest.raises(EndpointFailed, match=says):
        make_judge(f"{url}/v1@small")[0](["p"], [["aa", "b"]])


def test_a_reply_that_is_no_letter_is_a_tie_and_not_kept(tmp_path):
    with serving(lambda *_: said("Both are lovely")) as (url, seen):
        judge, _ = make_judge(f"{url}/v1@small?cache={tmp_path}")
        assert judge(["p"], [["aa", "b"]]) == [-1]
        assert judge(["p"], [["aa", "b"]]) == [-1]
        assert len(seen) == 2


def test_grades_are_numbers_and_rewards_too():
    with serving(lambda path, body, headers: said(f"Grade: {len(body['messages'][0]['content']) % 10}.5")) as (url, _):
        gold = make_gold(f"{url}/v1@small")
        (reward,) = reward_functions(f"{url}/v1@small")
        values = gold(prompts=["p", "p"], completions=["one", "three"])
        assert all(0 <= value <= 1 for value in values)
        assert reward(prompts=["p", "p"], completions=["one", "three"]) == values
    says = r"the reply 'very good'.*a number from 0 to 10"
    with serving(lambda *_: said("very good")) as (url, _), pytest.raises(EndpointFailed, match=says):
        make_gold(f"{url}/v1@small")(prompts=["p"], completions=["one"])


@pytest.mark.parametrize(
    ("name", "says"),
    [("https://host/v1", "a server is named with its model"), ("https://host/v1@m?cash=x", "Did you mean 'cache'"),
     ("https://host/v1@m?tries=many", "int is needed"), ("https://host/v1@m?tries=0", "at least 1")],
)  # fmt: skip
def test_names_of_servers_are_checked(name, says):
    with pytest.raises(InvalidConfig, match=says):
        parse(name, "config.judge")


def waits_for(moment):
    """A judge that answers only once something else has happened meanwhile."""

    class Patient:
        overlaps = True

        def __call__(self, prompts, completions, shuffle_order=False):
            assert moment.wait(20), "nothing happened while the judge was waited for"
            return [int(len(set(map(str, b))) > len(set(map(str, a)))) for a, b in completions]

    return Patient()


def test_learning_and_the_next_rows_hide_the_judge_and_change_nothing(tmp_path):
    written = threading.Event()
    judge = waits_for(written)
    options = {"estimator": "tilted", "gold": None, "objective": {"label_likelihood": 1.0, "win_rate": 0.1}, "steps": 3}
    made = trainer(judge=judge, **options)
    sampler = made.generator

    def counting(model, prompts, uniforms):
        if made.step < made.config.steps - 1 and made.updates > made.step:
            written.set()  # the next iteration's rows, while this one's labels are still out
        return sampler(model, prompts, uniforms)

    made.generator = counting

    def at_last(iterate=made.iterate):
        def go(k):
            if k == made.config.steps - 1:
                written.set()  # nothing is written after the last iteration
            else:
                written.clear()
            return iterate(k)

        return go

    made.iterate = at_last()
    made.train()
    judge.overlaps = False
    written.set()
    plain = trainer(judge=judge, **options)
    plain.train()
    assert all(torch.equal(v, weights(plain)[k]) for k, v in weights(made).items())
    assert (made.tokens, made.labels) == (plain.tokens, plain.labels)
    keys = ("samples", "labels", "kl", "learned_reward", "hyper")
    assert [[line[k] for k in keys] for line in made.history] == [[line[k] for k in keys] for line in plain.history]


@pytest.mark.parametrize("options", [
    {"estimator": "shared", "credit": "gae", "coupling": 0.1}, {"estimator": "paired", "micro_batch": 3},
    {"estimator": "fisher", "fisher_steps": 2}, {"method": "nested", "estimator": "paired", "backend": "lora"},
], ids=lambda options: " ".join(map(str, options.values())))  # fmt: skip
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated")
def test_a_policy_that_steps_with_another_computes_while_the_judge_is_waited_for(options):
    computed = threading.Event()
    judge = waits_for(computed)
    options = {"steps": 2, "objective": {"label_likelihood": 1.0, "win_rate": 0.1}} | options
    made = trainer(judge=judge, **options)
    backward, iterate = made.learner.backward, made.iterate

    def counting(f, *rest):
        backward(f, *rest)
        if f.scored.role == "policy":
            computed.set()

    def clearing(k):
        computed.clear()
        return iterate(k)

    made.learner.backward, made.iterate = counting, clearing
    made.train()
    judge.overlaps = False
    plain = trainer(judge=judge, **options)
    plain.train()
    assert all(torch.equal(v, weights(plain)[k]) for k, v in weights(made).items())
    assert untimed(made.history) == untimed(plain.history)


def test_a_judge_without_answers_can_not_be_hidden():
    class Queue:
        overlaps = True

        def __call__(self, prompts, completions, shuffle_order=False):
            raise LabelsPending("nobody is there")

    made = trainer(judge=Queue(), estimator="tilted", objective="label_likelihood")
    with pytest.raises(InvalidConfig, match=r"no answers yet \(nobody is there\), with overlaps = True.*Leave it out"):
        made.train()


def test_a_run_whose_judge_overlaps_resumes_to_the_same_bits(tmp_path):
    class Quick:
        overlaps = True

        def __call__(self, prompts, completions, shuffle_order=False):
            return [int(sum(b) > sum(a)) for a, b in completions]

    options = {"estimator": "tilted", "judge": Quick(), "gold": None, "objective": "label_likelihood"}
    whole = trainer(steps=4, **options)
    whole.train()
    trainer(steps=2, out=str(tmp_path / "run"), **options).train()
    rest = trainer(steps=4, out=str(tmp_path / "run"), resume=True, **options)
    rest.train()
    assert all(torch.equal(v, weights(rest)[k]) for k, v in weights(whole).items())
    assert rest.tokens == whole.tokens
