"""Loading of the cluster configuration: precedence, places in errors, refused values."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from coedge.config.cluster_config import ClusterConfig
from coedge.config.key_reference import describe_keys
from coedge.config.loading import load_config
from coedge.config.sections import DeviceConfig, LinkConfig, MediumConfig, PowerConfig, ProviderConfig, RayConfig
from coedge.core.errors import ConfigError
from coedge.core.objective import Objective
from coedge.core.provider import CPU, KNOWN, Provider
from orchestrator.cli.defaults import demo_config

CONFIGS = Path(__file__).parents[2] / "configs"

TWO_DEVICES = """\
devices:
  - name: pi-1
    speed: 0.5
  - name: pi.local
    link:
      mbps: 100
source: pi-1
"""

ONE_OF_EACH = {
    "devices": [{"name": "a", "providers": [CPU]}],
    "media": [{"name": "air", "devices": ["a"], "mbps": 1.0}],
}


@pytest.fixture
def load(tmp_path: Path) -> Callable[..., ClusterConfig]:
    def load(text: str, overrides: Sequence[str] = (), **environment: str) -> ClusterConfig:
        path = tmp_path / "cluster.yaml"
        path.write_text(text, encoding="utf-8")
        return load_config(path, overrides, environment)

    return load


@pytest.fixture
def refusal(load: Callable[..., ClusterConfig], tmp_path: Path) -> Callable[..., str]:
    """Return the text of the error with the name of the file, without its folder."""

    def refusal(text: str, overrides: Sequence[str] = (), **environment: str) -> str:
        with pytest.raises(ConfigError) as caught:
            load(text, overrides, **environment)
        return str(caught.value).replace(f"{tmp_path}/", "")

    return refusal


# ---------------------------------------------------------------- values


def test_no_file_gives_the_defaults() -> None:
    assert load_config(environment={}) == ClusterConfig()


def test_a_file_gives_its_values(load: Callable[..., ClusterConfig]) -> None:
    config = load(TWO_DEVICES)
    assert [device.name for device in config.devices] == ["pi-1", "pi.local"]
    assert config.devices[0].speed == 0.5
    assert config.devices[1].link == LinkConfig(mbps=100)
    assert config.source == "pi-1"


def test_a_mapping_may_hold_models_and_is_not_changed() -> None:
    given = {"devices": [DeviceConfig(name="a"), {"name": "b"}], "cache_dir": Path("x")}
    config = load_config(given, ["devices.b.speed=0.5"], environment={})
    assert [device.speed for device in config.devices] == [None, 0.5]
    assert config.cache_dir == "x"
    assert given["devices"][1] == {"name": "b"}  # type: ignore[index]


def test_a_config_can_be_loaded_again_with_overrides() -> None:
    config = ClusterConfig(devices=(DeviceConfig(name="a"),))
    assert load_config(config, environment={}) == config
    assert load_config(config, ["devices.a.threads=2"], environment={}).devices[0].threads == 2


def test_a_config_is_frozen_and_hashable() -> None:
    config = ClusterConfig()
    with pytest.raises(ConfigError, match="ClusterConfig: scheme cannot be set"):
        config.scheme = "other"
    assert hash(config) == hash(ClusterConfig())


def test_any_source_is_accepted_while_the_devices_are_not_known(load: Callable[..., ClusterConfig]) -> None:
    assert load("source: 10.0.0.7").source == "10.0.0.7"


def test_the_cache_folder_follows_the_config_and_xdg(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ada")
    monkeypatch.setenv("XDG_CACHE_HOME", "/fast")
    assert ClusterConfig().cache_path == Path("/fast/coedge")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative/is/ignored")
    assert ClusterConfig().cache_path == Path("/home/ada/.cache/coedge")
    assert ClusterConfig(cache_dir="~/mine").cache_path == Path("/home/ada/mine")


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.name)
def test_every_example_loads(path: Path) -> None:
    config = load_config(path, environment={})
    assert len(config.devices) >= 2
    assert sum(device.speed or 0 for device in config.devices) <= 1.4, "one machine plays them all"


def test_the_expected_examples_exist() -> None:
    names = {path.name for path in CONFIGS.glob("*.yaml")}
    assert names >= {"demo.yaml", "two-boards.yaml", "home.yaml", "energy.yaml"}
    assert load_config(CONFIGS / "energy.yaml", environment={}).objective.goal == "energy"
    assert load_config(CONFIGS / "energy.yaml", environment={}).devices == (
        load_config(CONFIGS / "demo.yaml", environment={}).devices
    )


def test_the_cluster_of_the_commands_is_the_one_in_the_file() -> None:
    assert load_config(demo_config(), environment={}) == load_config(CONFIGS / "demo.yaml", environment={})


names = st.text("abcXYZ019._-", min_size=1, max_size=64)
positive = st.floats(min_value=0, exclude_min=True, allow_infinity=False)
watts = st.floats(min_value=0, allow_infinity=False)
words = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)
devices = st.builds(
    DeviceConfig,
    name=names,
    node=st.none() | words,
    speed=st.none() | st.floats(0, 1, exclude_min=True),
    link=st.builds(LinkConfig, mbps=st.none() | positive, latency_ms=watts),
    power=st.builds(PowerConfig, idle_watts=watts, compute_watts=watts, transmit_watts=watts),
    threads=st.none() | st.integers(min_value=1),
    memory_mb=st.none() | positive,
    providers=st.lists(
        st.builds(ProviderConfig, name=st.sampled_from(KNOWN), options=st.dictionaries(words, words, max_size=2)),
        max_size=2,
        unique_by=lambda provider: provider.name,
    ).map(tuple),
)
media = st.builds(MediumConfig, name=names, devices=st.lists(names, min_size=1).map(tuple), mbps=positive)
clusters = st.lists(devices, max_size=4, unique_by=lambda device: device.name).flatmap(
    lambda chosen: st.builds(
        ClusterConfig,
        devices=st.just(tuple(chosen)),
        ray=st.builds(RayConfig, address=st.sampled_from([None, "auto", "h:1", "[::1]:6379"]), namespace=words),
        source=st.none() | (st.sampled_from([device.name for device in chosen]) if chosen else words),
        media=st.just(()) if chosen else st.lists(media, max_size=2, unique_by=lambda medium: medium.name).map(tuple),
        joules=st.sampled_from(["dynamic", "total"]),
        profile_budget_seconds=positive,
        encryption=st.booleans(),
        connect_timeout_seconds=positive,
        frame_timeout_seconds=positive,
        cache_dir=st.none() | words,
        objective=st.builds(
            Objective,
            goal=st.sampled_from(["latency", "energy"]),
            deadline_ms=st.none() | positive,
            energy_weight=watts,
        ),
        scheme=words,
    )
)


@given(config=clusters)
def test_a_config_dumped_to_yaml_loads_back_equal(
    config: ClusterConfig, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "dumped.yaml"
    # With allow_unicode=True, PyYAML would write U+0085 unescaped and read it as a line end.
    path.write_text(yaml.safe_dump(config.model_dump(mode="json")), encoding="utf-8")
    assert load_config(path, environment={}) == config
    assert load_config(config.model_dump(), environment={}) == config


# ---------------------------------------------------------------- precedence


def test_overrides_win_over_environment_over_file_over_defaults(load: Callable[..., ClusterConfig]) -> None:
    text = "connect_timeout_seconds: 1\nframe_timeout_seconds: 1\nscheme: file\n"
    variable = "frame_timeout_seconds=2; scheme=environment;"
    config = load(text, ["scheme=override"], COEDGE_SET=variable)
    assert (config.connect_timeout_seconds, config.frame_timeout_seconds, config.scheme) == (1, 2, "override")
    assert config.encryption is True


def test_the_process_environment_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COEDGE_SET", "ray.address=auto")
    assert load_config().ray.address == "auto"


def test_a_later_override_wins() -> None:
    assert load_config(None, ["scheme=a", "scheme=b"], {}).scheme == "b"


@pytest.mark.parametrize(
    ("override", "read"),
    [
        ("devices.0.speed=0.25", lambda config: config.devices[0].speed == 0.25),
        ("devices.pi-1.speed=0.25", lambda config: config.devices[0].speed == 0.25),
        ("devices.pi.local.link.mbps=7", lambda config: config.devices[1].link.mbps == 7),
        ("devices.1.power.idle_watts=2", lambda config: config.devices[1].power.idle_watts == 2),
        ("devices.0.speed=", lambda config: config.devices[0].speed is None),
        ("devices.0.speed=null", lambda config: config.devices[0].speed is None),
        ("devices.0.link={mbps: 5}", lambda config: config.devices[0].link.mbps == 5),
        ("devices.0={name: pi-1}", lambda config: config.devices[0].speed is None),
        ("devices=[{name: pi-1}]", lambda config: len(config.devices) == 1),
        ("encryption=no", lambda config: config.encryption is False),
        ('cache_dir="a=b"', lambda config: config.cache_dir == "a=b"),
    ],
)
def test_an_override_reaches_its_key(
    load: Callable[..., ClusterConfig], override: str, read: Callable[[ClusterConfig], bool]
) -> None:
    assert read(load(TWO_DEVICES, [override]))


def test_an_override_of_one_alias_leaves_the_other(load: Callable[..., ClusterConfig]) -> None:
    text = "devices:\n- {name: a, link: &wire {mbps: 5}}\n- {name: b, link: *wire}\n"
    config = load(text, ["devices.a.link.mbps=9"])
    assert [device.link.mbps for device in config.devices] == [9, 5]


def test_an_override_repairs_the_file(load: Callable[..., ClusterConfig]) -> None:
    assert load("ray:\nscheme: 7\n", ["ray.address=auto", "scheme=auto"]).ray.address == "auto"


def test_merge_keys_work(load: Callable[..., ClusterConfig]) -> None:
    text = "devices:\n- &pi {name: a, speed: 0.5, threads: 2}\n- {<<: *pi, name: b}\n- {<<: *pi, name: c}\n"
    assert [(device.name, device.threads) for device in load(text).devices] == [("a", 2), ("b", 2), ("c", 2)]


def test_an_alias_of_a_merged_section_is_not_a_repeated_key(load: Callable[..., ClusterConfig]) -> None:
    text = (
        "devices:\n"
        "- {name: a, link: &slow {mbps: 1, latency_ms: 2}}\n"
        "- {name: b, link: &fast {<<: *slow, mbps: 9}}\n"
        "- {name: c, link: *fast}\n"
    )
    assert [device.link.mbps for device in load(text).devices] == [1, 9, 9]


# ---------------------------------------------------------------- execution providers


def test_providers_are_names_or_names_with_options(load: Callable[..., ClusterConfig]) -> None:
    text = (
        "devices:\n- name: a\n  providers:\n"
        "  - {name: XnnpackExecutionProvider, options: {intra_op_num_threads: 2, fast: true}}\n"
        "  - CUDAExecutionProvider\n- name: b\n- {name: c, providers: [CPUExecutionProvider, CUDAExecutionProvider]}\n"
    )
    a, b, c = load(text).devices
    options = (("fast", "True"), ("intra_op_num_threads", "2"))
    cuda = Provider("CUDAExecutionProvider")
    assert a.session_providers == (Provider("XnnpackExecutionProvider", options), cuda, Provider(CPU))
    assert (b.session_providers, c.session_providers) == ((Provider(CPU),), (Provider(CPU), cuda))
    assert [str(p) for p in a.session_providers] == ["Xnnpack(fast=True, intra_op_num_threads=2)", "CUDA", "CPU"]
    assert len({a, b, c}) == 3


@pytest.mark.parametrize(
    ("providers", "parts"),
    [
        ("[XnnpakExecutionProvider]", ["devices.0.providers.0.name", "did you mean `XnnpackExecutionProvider`?"]),
        ("[CUDA]", ["providers.0.name: is no execution provider", "given 'CUDA'", "One of ACL", *KNOWN]),
        (f"[{CPU}, {CPU}]", ["devices.0.providers.1.name: is also the name of providers.0"]),
        (f"[{{name: {CPU}, option: {{}}}}]", ["devices.0.providers.0.option", "did you mean `options`?"]),
        (f"[{{name: {CPU}, options: {{a: }}}}]", ["devices.0.providers.0.options.a: must be text"]),
        (f"[{{name: {CPU}, options: [a]}}]", ["devices.0.providers.0.options: must be a section"]),
        (CPU, ["devices.0.providers: must be a list"]),
        ("[5]", ["devices.0.providers.0: must be a section"]),
    ],
)
def test_invalid_providers_are_refused(refusal: Callable[..., str], providers: str, parts: list[str]) -> None:
    message = refusal(f"devices: [{{name: a, providers: {providers}}}]")
    assert [part for part in parts if part not in message] == []


# ---------------------------------------------------------------- refusals: the file


def test_an_unknown_key_names_line_allowed_keys_and_the_nearest(refusal: Callable[..., str]) -> None:
    assert refusal("devices:\n  - name: pi-1\n    spede: 0.5\n") == (
        "cluster.yaml:3: devices.0.spede: there is no such key; given 0.5.\n"
        "    Allowed: keys name, node, speed, link, power, threads, memory_mb, providers\n"
        "    Next: did you mean `speed`?"
    )


def test_an_unknown_section_is_found_at_its_key_not_at_its_value(refusal: Callable[..., str]) -> None:
    assert refusal("scheme: auto\nrays:\n  address: auto\n").startswith("cluster.yaml:2: rays: there is no")


def test_a_key_in_the_wrong_section_names_the_right_one(refusal: Callable[..., str]) -> None:
    assert "did you mean `ray.address`?" in refusal("address: auto")
    assert "did you mean `devices.N.link.mbps`?" in refusal("devices: [{name: a, mbps: 3}]")


def test_a_value_out_of_range_names_what_was_given_and_what_is_allowed(refusal: Callable[..., str]) -> None:
    assert refusal("devices:\n  - name: a\n    speed: 1.5\n") == (
        "cluster.yaml:3: devices.0.speed: must be less than or equal to 1; given 1.5.\n"
        "    Allowed: number > 0, <= 1, or null. Emulated fraction of the real speed. Null: not emulated.\n"
        "    Next: correct it, or remove it for the default, null"
    )


def test_all_problems_are_listed_together(refusal: Callable[..., str]) -> None:
    text = "devices:\n  - speed: 0\n  - name: b\n    threads: 0\nscheem: x\nray: {address: 5}\n"
    message = refusal(text, ["encryption=maybe", "devices.c.speed=1", "nonsense"])
    for part in (
        "cluster.yaml:2: devices.0.name: must be given",
        "cluster.yaml:2: devices.0.speed",
        "cluster.yaml:4: devices.1.threads",
        "cluster.yaml:5: scheem",
        "cluster.yaml:6: ray.address",
        "override 'encryption=maybe': encryption",
        "override 'devices.c.speed=1': `devices` has no item `c`",
        "override 'nonsense': not an override",
    ):
        assert part in message


def test_a_device_named_like_a_yaml_boolean_has_to_be_quoted(refusal: Callable[..., str]) -> None:
    message = refusal("devices:\n  - name: no\n")
    assert "cluster.yaml:2: devices.0.name: must be text; given no." in message
    assert 'YAML reads it as false; quote it: "no"' in message


@pytest.mark.parametrize(
    ("written", "read"), [("yes", "true"), ("12", "12"), ("1.5", "1.5"), ("~", "null"), ("10:20", "620")]
)
def test_other_yaml_surprises_in_a_name(refusal: Callable[..., str], written: str, read: str) -> None:
    assert f'YAML reads it as {read}; quote it: "{written}"' in refusal(f"devices: [{{name: {written}}}]")


def test_a_date_in_a_name(refusal: Callable[..., str]) -> None:
    assert 'quote it: "2026-01-02"' in refusal("devices: [{name: 2026-01-02}]")
    assert 'quote it: "2026-99-99"' in refusal("devices: [{name: 2026-99-99}]")


@pytest.mark.parametrize(("written", "better"), [("1e3", "1000"), ('"0.5"', "0.5"), ("'4'", "4"), ("1e-9", "1.0e-09")])
def test_a_number_that_yaml_reads_as_text(refusal: Callable[..., str], written: str, better: str) -> None:
    assert f"YAML reads it as text; write {better} without" in refusal(f"frame_timeout_seconds: {written}")


@pytest.mark.parametrize("value", [".nan", ".inf", "-.inf", "nan", "inf", "true", "[]", "1" + "0" * 400])
@pytest.mark.parametrize(
    "key", [row["key"].replace("N", "0") for row in describe_keys() if row["type"].startswith("number")]
)
def test_no_number_may_be_infinite_or_something_else(key: str, value: str) -> None:
    with pytest.raises(ConfigError, match=key.replace(".", r"\.")):
        load_config(ONE_OF_EACH, [f"{key}={value}"], {})


@pytest.mark.parametrize("value", ["0", "-1", "1.5", "true", '"2"'])
def test_threads_are_a_whole_number_from_one(refusal: Callable[..., str], value: str) -> None:
    assert "devices.0.threads" in refusal(f"devices: [{{name: a, threads: {value}}}]")


@pytest.mark.parametrize("name", ["", "@input", "a b", "a/b", "é", "a" * 65, "a\n", "a:b"])
def test_a_bad_device_name_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=r"devices\.0\.name: is empty, too long, or has"):
        load_config({"devices": [{"name": name}]}, environment={})


@pytest.mark.parametrize(
    "address", ["ray://head:10001", "head", ":6379", "head:", "head:0", "head:65536", "a b:1", "", "::1:6379"]
)
def test_a_bad_ray_address_is_refused(address: str) -> None:
    with pytest.raises(ConfigError, match=r'ray\.address: must be "auto" or "host:port"'):
        load_config({"ray": {"address": address}}, environment={})


def test_two_devices_of_one_name_are_refused_at_the_second(refusal: Callable[..., str]) -> None:
    message = refusal("devices:\n  - name: a\n  - name: b\n  - name: a\n")
    assert message.startswith("cluster.yaml:4: devices.2.name: is also the name of devices.0 (a)")


MEDIA = """
media:
  - name: wifi
    devices: [pi-1, pi.lokal]
    mbps: 50
  - name: wifi
    devices: [pi-1]
    mbps: 50
"""


def test_a_medium_refuses_unknown_devices(refusal: Callable[..., str]) -> None:
    message = refusal(TWO_DEVICES + MEDIA.replace("  - name: wifi\n    devices: [pi-1]\n    mbps: 50\n", ""))
    assert message.startswith("cluster.yaml:11: media.0.devices.1: must be a device: pi-1, pi.local; given pi.lokal.")
    assert message.endswith("did you mean `pi.local`?")


def test_two_media_of_one_name_are_refused_at_the_second(refusal: Callable[..., str]) -> None:
    assert "media.1.name: is also the name of media.0 (wifi)" in refusal(TWO_DEVICES + MEDIA)


def test_a_medium_without_devices_is_refused(refusal: Callable[..., str]) -> None:
    assert "media.0.devices" in refusal("media: [{name: wifi, devices: [], mbps: 50}]")


def test_any_medium_is_accepted_while_the_devices_are_not_known(load: Callable[..., ClusterConfig]) -> None:
    (medium,) = load("media: [{name: wifi, devices: [a, b], mbps: 50}]").media
    assert medium == MediumConfig(name="wifi", devices=("a", "b"), mbps=50.0)


def test_power_given_tells_given_watts_from_defaults(load: Callable[..., ClusterConfig]) -> None:
    config = load(TWO_DEVICES, ["devices.pi-1.power.compute_watts=3"])
    for loaded in (config, load_config(config, ["devices.0.speed=0.25"], {})):
        assert [device.power_given for device in loaded.devices] == [True, False]


def test_a_source_that_is_no_device_is_refused(refusal: Callable[..., str]) -> None:
    message = refusal(TWO_DEVICES, ["source=pi-l"])
    assert message.startswith("override 'source=pi-l': source: must be a device: pi-1, pi.local; given pi-l.")
    assert message.endswith("did you mean `pi-1`?")


def test_a_near_choice_is_suggested(refusal: Callable[..., str]) -> None:
    message = refusal("objective:\n  goal: enregy\n")
    assert message.startswith("cluster.yaml:2: objective.goal: must be one of the allowed values; given enregy.")
    assert message.endswith("did you mean `energy`?")


def test_the_objective_is_read_as_strictly_as_the_rest(refusal: Callable[..., str]) -> None:
    assert "must be a number; given true" in refusal("objective: {energy_weight: true}")


def test_an_empty_section_is_explained(refusal: Callable[..., str]) -> None:
    message = refusal("scheme: auto\nray:\n")
    assert message.startswith("cluster.yaml:2: ray: must be a section, with keys and values")
    assert message.endswith("put keys under it, or remove it")


def test_devices_that_are_no_list_are_explained(refusal: Callable[..., str]) -> None:
    assert "devices: must be a list" in refusal("devices: {pi-1: {speed: 0.5}}")
    assert "devices.1: must be a section" in refusal("devices:\n- name: a\n- pi-1\n")


def test_a_key_given_twice_names_both_lines(refusal: Callable[..., str]) -> None:
    assert refusal("ray:\n  address: auto\n  namespace: x\n  address: h:1\nray: {}\n") == (
        "cluster.yaml:5: `ray` is given twice, first at cluster.yaml:1.\n    Next: keep one of them\n"
        "cluster.yaml:4: `ray.address` is given twice, first at cluster.yaml:2.\n    Next: keep one of them"
    )


def test_a_key_that_yaml_does_not_read_as_text_is_refused(refusal: Callable[..., str]) -> None:
    assert refusal("scheme: auto\non: 1\n") == (
        'cluster.yaml:2: YAML reads the key `on` as bool, not as text.\n    Next: quote it: "on"'
    )


@pytest.mark.parametrize(
    ("text", "start"),
    [
        ("scheme: auto\nray: {address: auto\nsource: a\n", "cluster.yaml:3: not valid YAML"),
        ("scheme: auto\n\tray: 1\n", "cluster.yaml:2: not valid YAML"),
        ("scheme: auto\nsource: *nobody\n", "cluster.yaml:2: not valid YAML"),
        ("scheme: auto\n---\nscheme: auto\n", "cluster.yaml:2: not valid YAML"),
        ("scheme: auto\nsource: a\x00\n", "cluster.yaml:2: a character that YAML forbids"),
        ("scheme: auto\nsource: !!python/name:os.system x\n", "cluster.yaml:2: `x` cannot be read"),
        ("scheme: auto\nray: !!set {a, b}\n", "cluster.yaml:2: `ray` has the tag"),
        ("scheme: auto\n[a]: 1\n", "cluster.yaml:2: a key of `the file` is not text"),
        ("devices: &all\n  - *all\n", "cluster.yaml:1: `devices.0` contains itself"),
        ("ray: " + "[" * 5000, "cluster.yaml:1: nested too deeply"),
        ("", "cluster.yaml:1: the file must have keys and values at its top level; it has nothing"),
        ("# nothing yet\n", "cluster.yaml:1: the file must have"),
        ("- name: a\n", "cluster.yaml:1: the file must have keys and values at its top level; it has a list"),
        ("\nhello\n", "cluster.yaml:2: the file must have keys and values at its top level; it has a single"),
    ],
)
def test_a_file_other_than_yaml_keys_and_values_is_refused(refusal: Callable[..., str], text: str, start: str) -> None:
    message = refusal(text)
    assert message.startswith(start)
    assert "\n    Next: " in message


def test_a_file_that_cannot_be_read_is_explained(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no-such\.yaml: cannot be read: .+\n    Next: give the path of a YAML file"):
        load_config(tmp_path / "no-such.yaml", environment={})
    with pytest.raises(ConfigError, match="cannot be read: "):
        load_config(tmp_path, environment={})
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config("a\0b", environment={})
    (tmp_path / "latin.yaml").write_bytes(b"scheme: auto\nsource: caf\xe9\n")
    with pytest.raises(ConfigError, match=r"latin\.yaml:2: this is not UTF-8"):
        load_config(tmp_path / "latin.yaml", environment={})


def test_a_byte_order_mark_is_ignored(tmp_path: Path) -> None:
    (tmp_path / "bom.yaml").write_bytes(b"\xef\xbb\xbfscheme: coedge\n")
    assert load_config(str(tmp_path / "bom.yaml"), environment={}).scheme == "coedge"


def test_neither_path_nor_mapping_is_refused() -> None:
    with pytest.raises(ConfigError, match="a path, a mapping or a ClusterConfig"):
        load_config([], environment={})  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="the given dict: 1: a key must be text"):
        load_config({1: 2}, environment={})  # type: ignore[dict-item]


# ---------------------------------------------------------------- refusals: overrides


@pytest.mark.parametrize(
    ("override", "part"),
    [
        ("scheme", "not an override"),
        ("=1", "not an override"),
        ("ray..address=1", "not an override"),
        ("scheme=[1", "not valid YAML"),
        ("scheme.x=1", "`scheme` is a single value, it has no `x`"),
        ("devices.2.speed=1", "indices 0 to 1; names pi-1, pi.local"),
        ("devices.pi-2.speed=1", "did you mean `pi-1`?"),
        ("devices.pi-1.sped=1", "did you mean `speed`?"),
        ("ray.adress=auto", "did you mean `address`?"),
        ("rays.address=auto", "rays: there is no such key"),
        ("devices.0.name=off", 'YAML reads it as false; quote it: "off"'),
        ("devices.1.name=pi-1", "devices.1.name: is also the name of devices.0 (pi-1)"),
    ],
)
def test_a_bad_override_is_named_instead_of_the_file(refusal: Callable[..., str], override: str, part: str) -> None:
    message = refusal("scheme: auto\n" + TWO_DEVICES, [override])
    assert message.startswith(f"override {override!r}: ")
    assert part in message
    assert "cluster.yaml" not in message


def test_a_missing_key_of_a_replaced_device_names_the_override(refusal: Callable[..., str]) -> None:
    message = refusal(TWO_DEVICES, ["devices.0={speed: 0.5}", "source=pi.local"])
    assert message.startswith("override 'devices.0={speed: 0.5}': devices.0.name: must be given")


def test_a_bad_environment_override_is_named(refusal: Callable[..., str]) -> None:
    message = refusal(TWO_DEVICES, COEDGE_SET="scheme=auto; devices.0.speed=2")
    assert message.startswith("environment COEDGE_SET 'devices.0.speed=2': devices.0.speed: must be less")


def test_a_device_override_without_devices_says_to_list_them() -> None:
    with pytest.raises(ConfigError, match="devices: must be a list"):
        load_config(None, ["devices.pi-1.speed=1"], {})
    with pytest.raises(ConfigError, match="none, the list is empty"):
        load_config({"devices": []}, ["devices.pi-1.speed=1"], {})


def test_only_real_names_are_offered_for_a_device_override(refusal: Callable[..., str]) -> None:
    assert "names b\n" in refusal("devices: [{name: no}, {name: b}]", ["devices.c.speed=1"])


# ---------------------------------------------------------------- reference


def test_every_key_is_described_with_its_unit() -> None:
    rows = {row["key"]: row for row in describe_keys()}
    assert all(row["description"] and row["type"] for row in rows.values())
    assert rows["devices.N.link.mbps"] == {
        "key": "devices.N.link.mbps",
        "type": "number > 0, or null",
        "default": "null",
        "description": "Rate in Mbit/s (10^6 bit/s). Null: not emulated.",
    }
    assert rows["devices"]["default"] == "[]"
    assert rows["devices.N.name"]["default"] == "required"
    assert rows["objective.goal"]["type"] == "latency or energy or throughput"
    json.dumps(list(rows.values()))


def test_the_default_of_each_key_is_yaml_that_loads() -> None:
    for row in describe_keys():
        if row["default"] not in ("required", "[]", "{}"):
            key = row["key"].replace("N", "0")
            assert load_config(ONE_OF_EACH, [f"{key}={row['default']}"], {})
