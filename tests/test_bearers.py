"""Which token opens which host."""

from cluster.proof import files_token, machine_token
from serving.bearers import Bearers

A, B = "a" * 32, "b" * 32


def test_each_host_is_opened_by_its_machines_token_and_a_stranger_gets_none() -> None:
    bearers = Bearers("secret")
    bearers.belongs("http://10.0.0.1:8100", A)
    bearers.belongs("http://10.0.0.2:8100", B)
    one, other = bearers.of("http://10.0.0.1:8100"), bearers.of("http://10.0.0.2:8100")
    assert one == f"Bearer {machine_token('secret', A)}"
    assert one != other
    assert bearers.of("http://10.0.0.1:8101") == bearers.of("https://10.0.0.1:8100") == ""
    bearers.belongs("http://10.0.0.1:8100", B)  # the address has gone to another machine
    assert bearers.of("http://10.0.0.1:8100") == other


def test_no_token_is_another_or_the_secret_itself() -> None:
    made = [machine_token("secret", A), machine_token("secret", B), machine_token("other", A)]
    made += [files_token("secret"), "secret"]
    assert len(set(made)) == len(made)
