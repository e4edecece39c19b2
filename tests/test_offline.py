"""What a host finds in its environment of the world outside."""

from cluster.offline import SWITCHES, offline


def test_the_switches_are_set_whatever_was_there() -> None:
    env = offline({"HF_HUB_OFFLINE": "0", "PATH": "/bin"})
    assert env == {"PATH": "/bin", **SWITCHES}
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "VLLM_NO_USAGE_STATS", "DO_NOT_TRACK"):
        assert env[name] == "1"


def test_proxies_and_tokens_for_other_places_are_not_handed_on() -> None:
    outside = {"https_proxy": "http://p", "HTTP_PROXY": "http://p", "All_Proxy": "x", "no_proxy": "*"}
    assert offline({**outside, "HF_TOKEN": "secret", "LANG": "C"}) == {"LANG": "C", **SWITCHES}
