"""Reading and editing the rollouts of a serve_config.yaml: what changes, what stays, and what is refused where."""

from __future__ import annotations

import difflib
import errno
import tempfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from models.registry import Registry
from serve_app.cli import rollout_file
from serve_app.cli.rollout_file import MAX_BYTES, RolloutFile, RolloutFileError

ROOT = Path(__file__).parents[3]

ROLLOUT = """\
      - name: rollout                  # what runs; promoted with a command, or by hand
        num_replicas: 1
        user_config:
          kettle:                      # in block style
            stable: "2.1.0"            # since the spring

            # on trial for a week
            canary:
              version: '2.2.0'         # the one of May
              percent: 10
            # until the canary is decided
            shadow: {version: "2.0.0", sample: 0.2}
          dishwasher: {stable: "2.1.0", canary: {version: "2.2.0", percent: 10}}   # in flow style, and long
          washing_machine: {stable: "2.1.0"}

          # the last one
          microwave: {
            stable: "2.2.0",           # first
            guard: {min_windows: 100, max_error_share: 0.01},  # second
            shadow: {version: "2.1.0"}
          }
        # what follows belongs to the deployment
        ray_actor_options: {num_cpus: 0.1}

"""


def repository_config() -> str:
    """The repository's own file, with the rollouts above in place of its own."""
    blocks = (ROOT / "serve_config.yaml").read_text().split("      - name: ")
    kept = [block for block in blocks if not block.startswith("rollout")]
    return kept[0] + ROLLOUT + "".join(f"      - name: {block}" for block in kept[1:])


def minimal(user_config: str) -> str:
    """A configuration whose `user_config` begins in line 7."""
    indented = "".join(f"          {line}\n" for line in user_config.splitlines())
    return (
        "applications:\n  - name: nilm\n    args: {appliances: [kettle, microwave]}\n    deployments:\n"
        f"      - name: rollout\n        user_config:\n{indented}"
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "serve_config.yaml"
    path.write_text(repository_config())
    return path


def written(path: Path, text: str) -> Path:
    path.write_bytes(text.encode())
    return path


def changed_lines(before: str, after: str) -> list[str]:
    """Lines that went ("- ...") and came ("+ ...")."""
    lines = difflib.ndiff(before.splitlines(keepends=True), after.splitlines(keepends=True))
    return [line.rstrip("\r\n") for line in lines if line[0] in "+-"]


def edited(path: Path, change: dict[str, Any]) -> list[str]:
    """The lines that change when `change` is laid over the appliances' mappings; None takes a key away."""
    before = path.read_bytes().decode()
    file = RolloutFile.read(path)
    wanted: dict[str, Any] = file.user_config
    for appliance, keys in change.items():
        for key, value in keys.items():
            if value is None:
                del wanted[appliance][key]
            else:
                wanted[appliance][key] = value
    file.replace(wanted)
    file.write()
    after = path.read_bytes().decode()
    assert RolloutFile.read(path).user_config == wanted
    assert outside(after) == outside(before)
    return changed_lines(before, after)


def outside(text: str) -> Any:
    """All that the configuration says besides the rollouts."""
    document = yaml.safe_load(text)
    for deployment in document["applications"][0]["deployments"]:
        if deployment["name"] == "rollout":
            del deployment["user_config"]
    return document


def test_the_file_says_which_application_and_what_it_rolls_out(path: Path) -> None:
    file = RolloutFile.read(path)
    assert file.application == "nilm"
    assert file.appliances == ("kettle", "dishwasher", "washing_machine", "microwave")
    assert list(file.user_config) == list(file.appliances)
    plans = file.plans(Registry.load())
    assert plans["kettle"].canary is not None
    assert plans["kettle"].canary.percent == 10
    assert plans["microwave"].guard.min_windows == 100


def test_what_is_read_is_a_copy(path: Path) -> None:
    file = RolloutFile.read(path)
    plan: Any = file.user_config["kettle"]
    plan["stable"] = "9"
    assert file.user_config == RolloutFile.read(path).user_config


def test_nothing_wanted_is_nothing_changed(path: Path) -> None:
    before = path.read_bytes()
    file = RolloutFile.read(path)
    file.replace(file.user_config)
    file.write()
    assert path.read_bytes() == before


def test_a_number_that_only_looks_different_is_not_touched(path: Path) -> None:
    # A history of rollouts keeps every percentage with its fraction.
    assert edited(path, {"dishwasher": {"canary": {"version": "2.2.0", "percent": 10.0}}}) == []


@pytest.mark.parametrize(
    ("change", "lines"),
    [
        ({"kettle": {"stable": "2.0.0"}},
         ['-             stable: "2.1.0"            # since the spring',
          '+             stable: "2.0.0"            # since the spring']),
        ({"kettle": {"canary": {"version": "2.2.0", "percent": 12.5}}},
         ["-               percent: 10", "+               percent: 12.5"]),
        ({"kettle": {"shadow": None}}, ['-             shadow: {version: "2.0.0", sample: 0.2}']),
        ({"kettle": {"guard": {"min_windows": 5, "max_error_share": 0.00001}}},
         ["+             guard: {min_windows: 5, max_error_share: 1.0e-05}"]),
        ({"kettle": {"canary": {"version": "2.2.0", "percent": 10, "1e3": "yes"}}},
         ['+               "1e3": "yes"']),
        ({"washing_machine": {"canary": {"version": "2.0", "percent": 5.0}}},
         ['-           washing_machine: {stable: "2.1.0"}',
          '+           washing_machine: {stable: "2.1.0", canary: {version: "2.0", percent: 5}}']),
        ({"microwave": {"shadow": None}}, ['-             shadow: {version: "2.1.0"}']),
        ({"microwave": {"stable": None}}, ['-             stable: "2.2.0",           # first']),
        ({"microwave": {"guard": None}},
         ["-             guard: {min_windows: 100, max_error_share: 0.01},  # second"]),
        ({"microwave": {"guard": {"max_error_share": 0.01}}},
         ["-             guard: {min_windows: 100, max_error_share: 0.01},  # second",
          "+             guard: {max_error_share: 0.01},  # second"]),
        ({"microwave": {"canary": {"version": "2.0.0", "percent": 1}}},
         ['-             shadow: {version: "2.1.0"}',
          '+             shadow: {version: "2.1.0"}, canary: {version: "2.0.0", percent: 1}']),
        ({"microwave": {"guard": {}}},
         ["-             guard: {min_windows: 100, max_error_share: 0.01},  # second",
          "+             guard: {},  # second"]),
    ],
)  # fmt: skip
def test_only_the_line_of_the_changed_key_changes(path: Path, change: dict[str, Any], lines: list[str]) -> None:
    assert edited(path, change) == lines


def test_of_two_comments_in_a_block_only_the_removed_keys_own_goes(path: Path) -> None:
    assert edited(path, {"kettle": {"canary": None}}) == [
        "-             canary:",
        "-               version: '2.2.0'         # the one of May",
        "-               percent: 10",
    ]


def test_a_block_becomes_an_empty_mapping_in_its_place(path: Path) -> None:
    assert sorted(edited(path, {"kettle": {"canary": {}}})) == [
        "+             canary: {}",
        "-               percent: 10",
        "-               version: '2.2.0'         # the one of May",
        "-             canary:",
    ]


def test_an_appliance_comes_and_goes_whole(path: Path) -> None:
    before = path.read_text()
    file = RolloutFile.read(path)
    wanted = file.user_config
    del wanted["dishwasher"]
    file.replace(wanted | {"electric_shower": {"stable": "2.1.0", "shadow": {"version": "2.0.0"}}})
    file.write()
    gone, came = changed_lines(before, path.read_text())
    assert gone.startswith("-           dishwasher: {")
    assert came == '+           electric_shower: {stable: "2.1.0", shadow: {version: "2.0.0"}}'


def test_a_canary_in_block_style_is_promoted(path: Path) -> None:
    before = path.read_text()
    file = RolloutFile.read(path)
    assert file.promote("kettle") == "2.2.0"
    assert path.read_text() == before, "nothing is written before it is asked for"
    file.write()
    assert changed_lines(before, path.read_text()) == [
        '-             stable: "2.1.0"            # since the spring',
        '+             stable: "2.2.0"            # since the spring',
        "-             canary:",
        "-               version: '2.2.0'         # the one of May",
        "-               percent: 10",
    ]
    assert file.user_config["kettle"] == {"stable": "2.2.0", "shadow": {"version": "2.0.0", "sample": 0.2}}


def test_a_canary_in_flow_style_is_promoted(path: Path) -> None:
    before = path.read_text()
    file = RolloutFile.read(path)
    assert file.promote("dishwasher") == "2.2.0"
    file.write()
    _, line = changed_lines(before, path.read_text())
    assert line == '+           dishwasher: {stable: "2.2.0"}   # in flow style, and long'


@pytest.mark.parametrize("appliance", ["washing_machine", "toaster"])
def test_without_a_canary_there_is_nothing_to_promote(path: Path, appliance: str) -> None:
    file = RolloutFile.read(path)
    before = file.user_config
    with pytest.raises(RolloutFileError, match=rf"serve_config.yaml:\d+: {appliance}.canary: there is no canary"):
        file.promote(appliance)
    assert file.user_config == before


@pytest.mark.parametrize(
    ("rollouts", "appliance", "lines"),
    [
        ("{kettle: {canary: {version: '2'}, stable: '1'}, microwave: {stable: '1'}}", "kettle",
         "{kettle: {stable: \"2\"}, microwave: {stable: '1'}}"),
        ("kettle:\n  canary: {version: '2'}\n  stable:\nmicrowave: {}", "kettle",
         'kettle:\n  stable: "2"\nmicrowave: {}'),
        ("kettle: {\n  stable: '1', # a\n  canary: {version: '2'}}\nmicrowave:", "kettle",
         'kettle: {\n  stable: "2", # a\n  }\nmicrowave:'),
        ("kettle: {canary: {version: '2'},  # a\n  stable: '1'}", "kettle",
         "kettle: {  # a\n  stable: \"2\"}"),
        ("kettle: {canary: {\n   version: '2'}  ,  stable: '1'}", "kettle", 'kettle: {stable: "2"}'),
        ("'kettle' : {\"canary\" : {version : 2.2.0} , 'stable' : 1}", "kettle", "'kettle' : {'stable' : \"2.2.0\"}"),
        ("kettle:\n  canary: {version: '2'}", "kettle", 'kettle:\n  stable: "2"'),
        ("kettle: {canary: {version: '2'}}", "kettle", 'kettle: {stable: "2"}'),
    ],
)  # fmt: skip
def test_other_ways_to_write_the_same_are_promoted(tmp_path: Path, rollouts: str, appliance: str, lines: str) -> None:
    path = written(tmp_path / "serve_config.yaml", minimal(rollouts))
    file = RolloutFile.read(path)
    file.promote(appliance)
    file.write()
    assert path.read_text() == minimal(lines)


@pytest.mark.parametrize(
    ("rollouts", "wanted", "lines"),
    [
        ("kettle:\n  stable: '1'  # May\n  # June", {"kettle": {"stable": "1", "guard": {}}},
         "kettle:\n  stable: '1'  # May\n  guard: {}\n  # June"),
        ("kettle:\n  stable: |\n    1\n\n  canary: >-\n    2\n    3\n", {"kettle": {"stable": "1", "canary": "4"}},
         'kettle:\n  stable: "1"\n\n  canary: "4"'),
        ("kettle: {canary: {percent: true}}", {"kettle": {"canary": {"percent": 1}}},
         "kettle: {canary: {percent: 1}}"),
        ("kettle:\n- a\n- b  # c", {"kettle": {"stable": "1"}}, 'kettle: {stable: "1"}  # c'),
    ],
)  # fmt: skip
def test_whatever_stands_there_is_replaced(tmp_path: Path, rollouts: str, wanted: dict[str, Any], lines: str) -> None:
    path = written(tmp_path / "serve_config.yaml", minimal(rollouts))
    file = RolloutFile.read(path)
    file.replace(wanted)
    file.write()
    assert path.read_text() == minimal(lines)


def test_what_only_a_person_can_edit_is_refused_and_stays(tmp_path: Path) -> None:
    text = minimal("kettle: {stable: '1'\n  , canary: {version: '2'}\n  , shadow: {version: '3'}}")
    file = RolloutFile.read(written(tmp_path / "serve_config.yaml", text))
    before = file.user_config
    with pytest.raises(RolloutFileError, match=r"serve_config.yaml:8: is written in a way that only a person can edit"):
        file.promote("kettle")
    with pytest.raises(RolloutFileError, match=r"serve_config.yaml:6: is written in a way that only a person can edit"):
        file.replace({"kettle": {"stable": float("nan")}})
    assert file.user_config == before


def test_windows_line_breaks_and_a_file_without_a_last_one_keep_their_form(tmp_path: Path) -> None:
    text = minimal("kettle:\n  stable: '1'\n  canary: {version: '2', percent: 5}").rstrip("\n").replace("\n", "\r\n")
    path = written(tmp_path / "serve_config.yaml", "\ufeff" + text)
    file = RolloutFile.read(path)
    file.promote("kettle")
    file.write()
    promoted = minimal('kettle:\n  stable: "2"').rstrip("\n").replace("\n", "\r\n")
    assert path.read_bytes().decode() == "\ufeff" + promoted
    file.replace({"kettle": {"stable": "2", "shadow": {"version": "3"}}})
    file.write()
    assert path.read_bytes().decode() == "\ufeff" + promoted + '\r\n            shadow: {version: "3"}'


@pytest.mark.parametrize(
    ("rollouts", "says"),
    [
        ('kettle: {stable: "2.2.0"}\nmicrowave:\n  stable: "2.2.0"\n  canery: {}',
         ["10: microwave.canery: is not a key that we know"]),
        ('kettle:\n  stable: "2.2.0"\n  canary:\n    version: "2.1.0"\n    percent: 101\nmicrowave: {stable: "2.2.0"}',
         ["11: kettle.canary.percent: input should be less than or equal to 100"]),
        ('kettle: {stable: "2.2.0"}\n\nmicrowave:\n  # too short\n  stable: 2.2',
         ["11: microwave.stable: is not a text: write the version in quotes"]),
        ('kettle: {stable: "2.2.0"}\nmicrowave:\n  shadow: {version: "2.1.0"}', ["8: microwave.stable: is missing"]),
        ('kettle: {stable: "2.2.0"}\nmicrowave:\n  stable: "2.1.0"\n  shadow:\n    version: "7.0.0"',
         ["11: microwave.shadow.version: there is no version '7.0.0'"]),
        ('kettle: {stable: "2.2.0"}\ntoaster: {stable: "1"}',
         ["8: toaster: is not an appliance", "6: microwave: is missing"]),
        ("kettle: 3\nmicrowave:", ["7: kettle: is not a mapping", "8: microwave: is not a mapping"]),
        ('1: {stable: "1"}', ["7: 1: is not a text"]),
    ],
)  # fmt: skip
def test_every_fault_is_a_line_with_the_line_of_its_key(tmp_path: Path, rollouts: str, says: list[str]) -> None:
    path = written(tmp_path / "serve_config.yaml", minimal(rollouts))
    with pytest.raises(RolloutFileError) as refused:
        RolloutFile.read(path).plans(Registry.load())
    lines = str(refused.value).splitlines()
    assert len(lines) == len(says)
    for line, start in zip(lines, says, strict=True):
        assert line.startswith(f"{path}:{start}")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "no application has a deployment named rollout"),
        (b"[1, 2]", "no application has a deployment named rollout"),
        (b"applications: []", "no application has a deployment named rollout"),
        (b"applications: {deployments: 7}", "no application has a deployment named rollout"),
        (b"applications: [{name: a, deployments: [{name: rollout}, {name: rollout}]}]", "more than one application"),
        (b"applications:\n- name: a\n  deployments:\n  - name: rollout", ":4: the deployment rollout has no user"),
        (minimal("[kettle]").encode(), ":6: user_config is not a mapping"),
        (minimal("").encode(), ":6: user_config is not a mapping"),
        (minimal("a: 1").replace("[kettle, microwave]", "kettle").encode(), ":2: the application's args.appliances"),
        (minimal("a: 1").replace("[kettle, microwave]", "[[kettle]]").encode(), ":2: the application's args.appliance"),
        (minimal("kettle: {}\nmicrowave: {}\nkettle: {}").encode(), ":9: is not YAML: the key kettle is there twice"),
        (b"a:\n  b: 1\n  b: 2\n", ":3: is not YAML: the key b is there twice"),
        (minimal("kettle:\n\tstable: 1").encode(), ":8: is not YAML: found character '\\\\t'"),
        (b"applications: [\n", ":2: is not YAML: "),
        (b"a: 1\n---\na: 2\n", ":2: is not YAML: "),
        (b"a: 1\nb: \xff\n", ":2: is not UTF-8"),
        (b"a: 1\n\nb: \x00\x01\n", ":3: is not YAML: there is an unprintable character"),
        (b"[" * 50_000, "is nested too deeply"),
        (b"#" * (MAX_BYTES + 1), "has more than 1000000 bytes"),
        (minimal("kettle: {stable: 2026-02-31}").encode(), "is not YAML: day "),
        (minimal("kettle: &k {stable: '1'}\nmicrowave: *k").encode(), ":7: the rollouts may use no anchor"),
        (minimal("kettle: {stable: &s '1'}").encode(), ":7: the rollouts may use no anchor"),
        (minimal("&a kettle: {stable: '1'}").encode(), ":7: the rollouts may use no anchor"),
        (minimal("kettle: &loop {canary: *loop}").encode(), ":7: the rollouts may use no anchor"),
        (minimal("kettle: {<<: {stable: '1'}}").encode(), ":7: the rollouts may use no anchor"),
        (minimal("kettle: {stable: !!python/name:os.system ''}").encode(), ":7: the rollouts may use no .* or tag"),
        (minimal("kettle: {stable: !!str 2.2}").encode(), ":7: the rollouts may use no .* or tag"),
        (b"x: &x {kettle: {}}\n" + minimal("").replace("config:", "config: *x").encode(), ":1: the rollouts may use"),
        (minimal("kettle: {}").replace("- name: rollout", "- &d\n        name: rollout").encode(), ":5: the rollouts"),
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_edited_is_refused_in_a_sentence(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "serve_config.yaml"
    path.write_bytes(content)
    with pytest.raises(RolloutFileError, match=says) as refused:
        RolloutFile.read(path)
    assert str(refused.value).startswith(str(path))
    assert "\n" not in str(refused.value)


def test_a_file_that_is_not_there_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(RolloutFileError, match=r"absent.yaml: cannot be read: No such file"):
        RolloutFile.read(tmp_path / "absent.yaml")
    with pytest.raises(RolloutFileError, match="cannot be read: Is a directory"):
        RolloutFile.read(tmp_path)


def test_aliases_elsewhere_are_nobodys_business_and_a_billion_laughs_cost_nothing(tmp_path: Path) -> None:
    bomb = "a0: &a0 [lol]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 30))
    path = written(tmp_path / "serve_config.yaml", bomb + minimal("kettle: {stable: '1'}"))
    file = RolloutFile.read(path)
    file.replace({"kettle": {"stable": "2"}})
    file.write()
    assert path.read_text() == bomb + minimal('kettle: {stable: "2"}')
    text = bomb + minimal("kettle: {stable: '1'}").replace("[kettle, microwave]", "*a29")
    with pytest.raises(RolloutFileError, match=r"args.appliances is not a list of names"):
        RolloutFile.read(written(path, text))


def test_writing_keeps_the_mode_and_a_link_a_link(path: Path, tmp_path: Path) -> None:
    path.chmod(0o640)
    link = tmp_path / "link.yaml"
    link.symlink_to(path)
    file = RolloutFile.read(link)
    file.promote("kettle")
    file.write()
    assert link.is_symlink()
    assert path.stat().st_mode & 0o777 == 0o640
    assert RolloutFile.read(path).user_config == file.user_config
    file.promote("dishwasher")
    file.write()


def test_a_file_that_somebody_else_changed_meanwhile_is_not_written_over(path: Path) -> None:
    file = RolloutFile.read(path)
    file.promote("kettle")
    other = path.read_text() + "# an edit in another window\n"
    path.write_text(other)
    with pytest.raises(RolloutFileError, match="has changed since it was read; nothing is written"):
        file.write()
    assert path.read_text() == other


@pytest.mark.parametrize("damage", [b"applications: [", minimal("kettle: {stable: '1'}").encode()])
def test_a_file_that_does_not_say_what_was_meant_is_restored(
    path: Path, monkeypatch: pytest.MonkeyPatch, damage: bytes
) -> None:
    before = path.read_bytes()
    contents = iter([damage, before])
    real = rollout_file.write_atomically
    monkeypatch.setattr(rollout_file, "write_atomically", lambda to, _, mode: real(to, next(contents), mode))
    file = RolloutFile.read(path)
    file.promote("kettle")
    with pytest.raises(RolloutFileError, match="did not say what was meant after writing; it is as it was"):
        file.write()
    assert path.read_bytes() == before


def test_a_folder_that_cannot_be_written_is_a_sentence(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(rollout_file, "write_atomically", refuse)
    file = RolloutFile.read(path)
    file.promote("kettle")
    with pytest.raises(RolloutFileError, match=r"serve_config.yaml: cannot be written: Permission denied"):
        file.write()


NAMES = st.sampled_from(["kettle", "dishwasher", "washing_machine", "microwave", "on", "null", "1e3"])
VERSIONS = st.one_of(st.sampled_from(["2.2.0", "2.2", "1e3", "yes", "", "# no", "it's", "a: b", "\u2028"]), st.text())
NUMBERS = st.one_of(st.integers(), st.floats(allow_nan=False), st.booleans(), st.none())
PARTS = st.fixed_dictionaries({}, optional={"version": VERSIONS, "percent": NUMBERS, "sample": NUMBERS})
PLANS = st.fixed_dictionaries({}, optional={"stable": VERSIONS, "canary": PARTS, "shadow": PARTS, "guard": NUMBERS})


@settings(max_examples=40, deadline=None)
@given(
    steps=st.lists(st.dictionaries(NAMES, PLANS, max_size=4), min_size=1, max_size=3),
    line_break=st.sampled_from(["\n", "\r\n"]),
)
def test_any_rollouts_can_be_written_and_nothing_else_changes(steps: list[dict[str, object]], line_break: str) -> None:
    before, after = repository_config().split(ROLLOUT)
    head, _, tail = ROLLOUT.partition("        user_config:")
    _, _, tail = tail.partition("        # what follows")
    text = (before + ROLLOUT + after).replace("\n", line_break)
    with tempfile.TemporaryDirectory() as folder:
        path = written(Path(folder) / "serve_config.yaml", text)
        for wanted in steps:
            file = RolloutFile.read(path)
            file.replace(wanted)
            file.write()
            assert RolloutFile.read(path).user_config == wanted
            now = path.read_bytes().decode()
            assert now.startswith((before + head).replace("\n", line_break))
            assert now.endswith(("        # what follows" + tail + after).replace("\n", line_break))
            assert yaml.safe_load(now)["applications"][0]["deployments"], "Serve reads it as well"
