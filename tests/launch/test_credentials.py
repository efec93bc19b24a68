"""Credentials in data.path reach the ranks through the environment, and nothing else ever sees them."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from dist_ssl.data.storage.address import Address
from dist_ssl.errors import ConfigError
from launch import credentials, forking, preparation, settings, source_commit
from launch.run_dir import PROJECT
from launch.variables import ADDRESS

WHOLE = "https://g4711:opensesame@host/set?sig=abc"
BARE = "https://host/set"


@pytest.fixture(autouse=True)
def empty(monkeypatch: pytest.MonkeyPatch) -> None:
    """No credentials in the environment, and none left behind."""
    monkeypatch.setenv(ADDRESS, "")


def restored(path: str) -> str:
    """The data.path that a rank sees for the one in its config."""
    config = {"seed": 0, "data": {"path": path, "train": "train"}}
    found = credentials.restored(config)
    assert {**found, "data": {**found["data"], "path": path}} == config
    return str(found["data"]["path"])


SPELLINGS = ("data.path={}", "data.path='{}'", 'data.path="{}"', "++data.path={}", "+data.path={}", "data={{path: {}}}")
SPELLINGS += ("data={{path: '{}', train: a}}", "data.path=[{}, x]", "name={}")


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_they_leave_the_words_and_come_back_in_the_rank(spelling: str) -> None:
    words = credentials.set_aside(["nodes=2", spelling.format(WHOLE)])
    assert words == ["nodes=2", spelling.format(BARE)]
    assert restored(BARE) == WHOLE


@pytest.mark.parametrize("password", ["open/sesame", "open?sesame", "1/2", "1?2"])
def test_a_password_that_would_be_cut_is_refused_and_not_shown(password: str) -> None:
    with pytest.raises(ConfigError, match="percent-encoded") as caught:
        credentials.set_aside([f"data.path=https://g4711:{password}@host/set"])
    assert "sesame" not in str(caught.value)
    assert "4711" not in str(caught.value)


@pytest.mark.parametrize(
    "word",
    [
        "data.path='pipe:curl https://g4711:opensesame@host/%s'",
        "data={path: 'pipe:curl https://host/%s?sig=opensesame'}",
        "+cluster.setup=[wget https://host/env.sh?sig=opensesame]",
    ],
)
def test_a_command_would_not_get_them_back_and_is_refused(word: str) -> None:
    with pytest.raises(ConfigError, match=r"The command in .* has an address with credentials or a query") as caught:
        credentials.set_aside([word])
    assert "sesame" not in str(caught.value)


@pytest.mark.parametrize(
    "spelling", ["tracker.mlflow.uri={}", "++tracker.mlflow.uri='{}'", "tracker={{mlflow: {{uri: '{}'}}}}"]
)
def test_a_tracker_would_not_get_them_back_and_its_own_variables_are_named(spelling: str) -> None:
    with pytest.raises(ConfigError, match="MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD") as caught:
        credentials.set_aside([spelling.format(WHOLE)])
    assert "sesame" not in str(caught.value)
    with pytest.raises(ConfigError, match=r"tracker\.mlflow\.uri has .*\n.*MLFLOW_TRACKING_PASSWORD"):
        credentials.check_config({"tracker": {"mlflow": {"uri": WHOLE}}})
    assert credentials.set_aside([spelling.format(BARE)]) == [spelling.format(BARE)]


@pytest.mark.parametrize(
    "command",
    [
        "curl -H 'Authorization: Bearer opensesame' https://host/%s",
        "curl --header='authorization: Basic opensesame=' https://host/%s",
        "curl -H X-Api-Key:opensesame https://host/%s",
        'curl -H "PRIVATE-TOKEN: opensesame" https://host/%s',
        "curl -u g4711:opensesame https://host/%s",
        "curl -ug4711:opensesame https://host/%s",
        "curl --user 'g4711:opensesame' https://host/%s",
        "wget --password=opensesame -O - https://host/%s",
        "wget --http-password opensesame -O - https://host/%s",
        "TOKEN=opensesame fetch %s",
        "AWS_SECRET_ACCESS_KEY=opensesame aws s3 cp s3://b/%s -",
        "sshpass -p opensesame ssh host cat %s",
        "SSHPASS=opensesame sshpass -e ssh host cat %s",
        'curl -H "Authorization: ApiKey opensesame" https://host/%s',
        "curl -H Authorization:opensesame $URL/%s",
        "curl -u 4711:opensesame https://host/%s",
        r'sh -c "curl -H \"Authorization: Bearer opensesame\" https://host/%s"',
    ],
)
def test_a_secret_in_a_command_is_refused_since_the_run_would_keep_the_command(command: str) -> None:
    for word in (f"data.path=pipe:{command}", f"++data.path='pipe:{command}'", f"+data={{path: 'pipe:{command}'}}"):
        with pytest.raises(ConfigError, match="looks like a secret") as caught:
            credentials.set_aside([word])
        assert "sesame" not in str(caught.value)
        assert "4711" not in str(caught.value)
    with pytest.raises(ConfigError, match="looks like a secret"):
        credentials.check_config({"data": {"path": ["data/demo", f"pipe:{command}"]}})


@pytest.mark.parametrize(
    "command",
    [
        *("cat /data/%s", "ssh host cat /data/%s", "aws s3 cp s3://bucket/%s -", "gsutil -u my-project cat gs://b/%s"),
        *('curl -H "Authorization: Bearer $TOKEN" https://host/%s', "curl -H @$HOME/header https://host/%s"),
        *(
            'curl -u "$LOGIN" https://host/%s',
            "curl -u ${USER}:${PASSWORD} https://host/%s",
            "curl --netrc https://h/%s",
        ),
        *("curl -K ~/.curlrc https://host/%s", "get --token-file=/etc/token %s", "get --token $(cat token) %s"),
        *(
            "sshpass -f pw ssh host cat %s",
            "tar -xOf /token/secret.tar %s",
            "PASSWORD_FILE=/x get %s",
            "ssh u@h cat %s",
        ),
        *('curl -H "Authorization: ApiKey $KEY" https://host/%s', 'curl -H "Authorization: OAuth $T" https://host/%s'),
        *("docker run -u 1000:1000 image cat %s", "docker run --user=1000:100 image cat %s"),
        *("psql --no-password -c %s", "TOKEN=~/.tok get %s", "get --token /etc/token %s", "get --password=./pw %s"),
        r'sh -c "curl -H \"Authorization: Bearer $TOKEN\" https://host/%s"',
    ],
)
def test_a_command_that_reads_its_secret_where_it_runs_is_taken(command: str) -> None:
    word = f"data.path=pipe:{command}"
    assert credentials.set_aside([word]) == [word]
    credentials.check_config({"data": {"path": f"pipe:{command}"}})


SECRETS_OF_JOBS = (
    *("[export HF_TOKEN=opensesame]", "['module load cuda', 'export WANDB_API_KEY=\"opensesame\"']"),
    *("[export HF_TOKEN=${HF_TOKEN:-opensesame}]", "[export DB_PASSWORD=123456]", "[export PASSWORD=1opensesame]"),
    *("[/usr/bin/curl -sf -u g4711:opensesame https://host/x]", "['hf login --token opensesame']"),
)


@pytest.mark.parametrize(
    "word",
    [
        *(f"{key}={value}" for key in ("cluster.setup", "++cluster.setup") for value in SECRETS_OF_JOBS),
        *(f"cluster={{setup: {value}}}" for value in SECRETS_OF_JOBS),
        *("+cluster.extra.export='ALL,HF_TOKEN=opensesame'", "+cluster.extra.api_token=opensesame"),
        "cluster.srun_args=[--export=ALL,HF_TOKEN=opensesame]",
        "cluster.python='apptainer exec --env HF_TOKEN=opensesame image.sif python'",
    ],
)
def test_a_secret_in_lines_of_a_job_is_refused_since_the_batch_file_would_show_it(word: str) -> None:
    with pytest.raises(ConfigError, match=r"cluster[\w.]* has what looks like a secret.*\n.*0600.*source") as caught:
        credentials.set_aside([word])
    assert "sesame" not in str(caught.value)


@pytest.mark.parametrize(
    "cluster",
    [
        *({"setup": ["module load cuda", f"export {name}=opensesame"]} for name in ("HF_TOKEN", "PASSWORD")),
        {"extra": {"token": "opensesame"}},
        {"extra": {"export": "ALL,HF_TOKEN=opensesame"}},
        {"srun_args": ["--export=HF_TOKEN=opensesame"]},
        {"python": "apptainer exec --env HF_TOKEN=opensesame image.sif python"},
    ],
)
def test_a_secret_in_a_config_of_a_cluster_is_refused_too(cluster: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cluster\.\w+[\w.]* has what looks like a secret") as caught:
        credentials.check_config({"cluster": cluster})
    assert "sesame" not in str(caught.value)
    (tmp_path / "cluster").mkdir()
    (tmp_path / "cluster" / "mine.yaml").write_text(yaml.safe_dump(cluster))
    with pytest.raises(ConfigError, match=r"mine\.yaml has what looks like a secret in line \d") as caught:
        credentials.check_files(tmp_path)
    assert "sesame" not in str(caught.value)


@pytest.mark.parametrize(
    "cluster",
    [
        {"setup": ["module load cuda", "export NCCL_DEBUG=INFO", "export TOKENIZERS_PARALLELISM=false", "set -u"]},
        {"setup": ["source ~/.secrets", "export HF_TOKEN=$(cat ~/.token)", 'export HF_TOKEN="$MINE"', "set -a"]},
        {"setup": ["export HF_TOKEN_PATH=/etc/token", "export SSL_CERT_FILE=/etc/x", "ulimit -u 4096"]},
        {"setup": ["export PATH=/opt/secret:$PATH", "export LD_LIBRARY_PATH=/opt/secret:lib"]},
        {"srun_args": ["-u", "--container-mounts=/data:/data,/run/secret:/run/secret:ro", "--cpu-bind=none"]},
        {"python": "apptainer exec -u --bind=/data:/data --nv image.sif python"},
        {"setup": ["rsync -u host:/data /local", "sort -u a:b", "docker run -u ssl:users image", "python -u -m x a:b"]},
        {"setup": ["export HF_HUB_DISABLE_IMPLICIT_TOKEN=1", "export MAX_TOKEN=512", "export HF_TOKEN="]},
        {
            "setup": [
                "export KEY=${NGC_API_KEY:-}",
                "test ${HF_TOKEN:?is not set}",
                "export HF_TOKEN=${HF_TOKEN:-$MINE}",
            ]
        },
        {"srun_args": [f"--container-image=docker://ubuntu:22.04@sha256:{'0a' * 32}"]},
        {"extra": {"reservation": "night", "mail-user": "me@host", "comment": "a:b", "export": "ALL,HF_TOKEN"}},
    ],
)
def test_ordinary_lines_of_a_job_are_taken(cluster: dict[str, Any], tmp_path: Path) -> None:
    credentials.check_config({"cluster": cluster})
    words = [f"+cluster.{key}={json.dumps(value)}" for key, value in cluster.items()]
    words += [f"cluster.{key}=[{','.join(value)}]" for key, value in cluster.items() if isinstance(value, list)]
    assert credentials.set_aside(words) == words
    (tmp_path / "cluster").mkdir()
    (tmp_path / "cluster" / "mine.yaml").write_text(yaml.safe_dump(cluster))
    credentials.check_files(tmp_path)


def test_an_address_without_a_host_is_refused_and_not_shown() -> None:
    with pytest.raises(ConfigError, match="names no host") as caught:
        credentials.set_aside(["data.path=https:///g4711:opensesame@host/set"])
    assert "sesame" not in str(caught.value)


LOGINS = (
    *("postgresql://g4711:opensesame@db/mlflow", "mysql+pymysql://g4711:open%2Fsesame@db:3306/x", "mssql://g4711:1@db"),
    *(
        "ftp://g4711:opensesame@host/x",
        "sftp://g4711:open/sesame@host/x",
        "SMB://g4711:opensesame@host/x",
        "redis://:pw@h",
    ),
    *("postgresql://db/mlflow?user=g4711&password=opensesame", "postgresql+psycopg://db:5432/x?sslpassword=opensesame"),
)
"""Addresses of what is neither on the web nor in an object store, with a password."""


@pytest.mark.parametrize("login", LOGINS)
@pytest.mark.parametrize(
    "spelling",
    [
        *("tracker.mlflow.uri='{}'", "tracker={{mlflow: {{uri: '{}'}}}}", "+method.x='{}'"),
        *("+cluster.setup=['export DB={}']", "data.path='pipe:curl {} | cat %s'"),
    ],
)
def test_a_login_of_any_other_kind_of_address_is_refused_and_not_shown(login: str, spelling: str) -> None:
    word = spelling.format(login)
    with pytest.raises(ConfigError) as caught:
        credentials.check_config(settings.compose(credentials.set_aside(["tracker=mlflow", word]), PROJECT / "configs"))
    assert "sesame" not in str(caught.value)
    assert "4711" not in str(caught.value)
    with pytest.raises(ConfigError, match=r"credentials|secret"):
        credentials.check_config({"x": [login], "y": "pipe:cat %s"})


@pytest.mark.parametrize("text", ["x:/?" + "pass" * 250_000, "x:/?" + "&" * 1_000_000, "x:/" + ":" * 1_000_000])
def test_a_long_text_is_searched_once(text: str) -> None:
    assert not credentials.has_password(text)  # a pattern that begins anew at each place would never end


@pytest.mark.parametrize("login", LOGINS)
def test_a_login_of_any_kind_in_a_file_of_the_configs_is_found(login: str, tmp_path: Path) -> None:
    for line in (f"uri: {login}", f"uri: null  # was {login}"):
        (tmp_path / "mine.yaml").write_text(f"a: 1\n{line}\n")
        with pytest.raises(ConfigError, match=r"mine\.yaml has an address with credentials in line 2"):
            credentials.check_files(tmp_path)


@pytest.mark.parametrize(
    "address",
    [
        *(
            "postgresql://g4711@db:5432/mlflow",
            "sqlite:////data/g4711/mlflow.db?timeout=3",
            "ssh://git@host/x:y",
            "databricks",
        ),
        *(
            "databricks://profile",
            "postgresql://db:5432/x?sslmode=require",
            "mysql://db:3306,db2:3306/x",
            "ftp://host/a@b",
        ),
    ],
)
def test_a_database_without_a_password_is_taken(address: str, tmp_path: Path) -> None:
    credentials.check_config({"tracker": {"mlflow": {"uri": address}}})
    (tmp_path / "mine.yaml").write_text(f"uri: {address}  # see {address}\n")
    credentials.check_files(tmp_path)


def test_an_encoded_password_is_decoded_where_it_is_sent_and_never_shown() -> None:
    credentials.set_aside(["data.path=https://g4711:open%2Fsesame@host:8443/a@b/set"])
    address = Address.parse(restored("https://host:8443/a@b/set"))
    assert address.login == "g4711:open%2Fsesame"
    assert address.scrub("g4711 open/sesame open%2Fsesame") == "*** *** ***"


@pytest.mark.parametrize("whole", ["https://a:b@[::1]:80/x", "https://a:b@host/x,y", "https://host/x?sig=a,b"])
def test_an_address_with_brackets_or_commas_is_one(whole: str) -> None:
    shown = Address.parse(whole).shown
    assert credentials.set_aside([f"data.path={whole}"]) == [f"data.path={shown}"]
    assert restored(shown) == whole


def test_they_may_stand_in_the_environment_instead_of_the_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ADDRESS, WHOLE)
    assert credentials.set_aside([f"data.path={BARE}"]) == [f"data.path={BARE}"]
    assert restored(BARE) == WHOLE


def test_they_are_never_sent_elsewhere() -> None:
    credentials.set_aside([f"data.path={WHOLE}"])
    for path in ("https://other/set", "http://host/set", "https://host/set2", "data/demo"):
        assert restored(path) == path


def test_newer_ones_win_and_a_sweep_keeps_all() -> None:
    credentials.set_aside([f"data.path={WHOLE}"])
    newer = WHOLE.replace("abc", "xyz")
    words = credentials.set_aside(["-m", f"data.path={newer},https://b:c@other/d"])
    assert words == ["-m", f"data.path={BARE},https://other/d"]
    assert restored(BARE) == newer
    assert restored("https://other/d") == "https://b:c@other/d"


@pytest.mark.parametrize(
    "word",
    [
        *("data.path=data/demo", "data.path=a,b", "data.path=s3://bucket/x", "name=u:p@x?y"),
        *("data.path='pipe:curl https://host/%s'", "cluster.setup=[wget https://host/env.sh]"),
    ],
)
def test_words_without_credentials_stay_as_they_are(word: str) -> None:
    assert credentials.set_aside([word]) == [word]
    assert restored("data/demo") == "data/demo"


@pytest.mark.parametrize(
    "words",
    [
        ["data.path=https://to'ken@host/x"],
        ["+data.scheme=https", "data.path='${data.scheme}://u:pw@h/x'"],
        ["data.train=https", "data.path='${data.train}://u:pw@h/x'"],
        ["""data.path='${oc.decode:"\\"https:\\""}//u:pw@h/x'"""],
        ["data.path='https://h/x?signature=pw'"],
        ["data.path=' https://u:pw@h/x'"],
        ["data.path='simplecache::https://u:pw@h/x'"],
        ["data.path='https:/u:pw@h'"],
        ["data.path='s3://key:pw@bucket/x'"],
        ["tracker=mlflow", "tracker.mlflow.uri='https://u:pw@h'"],
    ],
)
def test_a_login_that_is_put_together_in_a_config_is_refused(words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        settings.compose(words, PROJECT / "configs")
    assert "pw" not in str(caught.value).replace("put", "")
    assert "token" not in str(caught.value)


def test_a_login_in_a_file_of_the_configs_is_refused(tmp_path: Path) -> None:
    shutil.copytree(PROJECT / "configs", tmp_path / "configs")
    own = tmp_path / "configs" / "data" / "mine.yaml"
    own.write_text((tmp_path / "configs" / "data" / "shards.yaml").read_text() + "\n")
    text = own.read_text()
    own.write_text(re.sub(r"(?m)^path: .*$", "path: https://u:pw@host/x", text))
    with pytest.raises(ConfigError, match=r"data\.path is an address with credentials"):
        settings.compose(["data=mine"], tmp_path / "configs")


@pytest.mark.parametrize(
    "line",
    [
        "path: https://u:pw@host/x",
        "path: https://host/x?signature=pw",
        "# path: https://u:pw@host/x",
        "path: data/demo  # was https://pw@host/x",
        "  - 's3://u:pw@bucket/x'",
        "command: pipe:curl https://u:pw@host/%s",
    ],
)
def test_no_run_copies_a_login_from_a_config_that_it_does_not_use(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(PROJECT / "configs", tmp_path / "configs")
    credentials.check_files(tmp_path / "configs")
    mine = tmp_path / "configs" / "data" / "mine.yaml"
    mine.write_text(f"# of the institute: https://host/documents?page=3\n{line}\n")
    monkeypatch.setattr("launch.preparation.PROJECT", tmp_path)
    monkeypatch.setattr("launch.forking.PROJECT", tmp_path)
    config = {"runs": str(tmp_path / "runs"), "name": "x", "method": {"_target_": "x.X"}}
    unused: Any = None  # it is refused before it looks at anything else
    for begin in (
        lambda: preparation.begin([], config),
        lambda: forking.begin(config, [], unused, unused, unused),
    ):
        with pytest.raises(ConfigError, match=r"mine\.yaml has an address with credentials in line 2") as caught:
            begin()
        assert "pw" not in str(caught.value)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("NOTES.md", "See https://u:pw@host/x."),
        ("NOTES.txt", "See https://arxiv.org/abs/2002.05709, is it good? I think so."),
        ("NOTES.txt", "See s3://bucket/a: is it good? Ask me@host."),
        ("mine.yaml", 'doc: "https://wiki.host/page?id=7"'),
        ("mine.yaml", "docs: [https://wiki.host/page?id=7&lang=en, 'https://host/y']"),
        ("mine.yaml", "proxy: http://host:8080, mail: me@host"),
    ],
)
def test_a_file_that_tells_nothing_is_taken(name: str, text: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(f"{text}\n")
    credentials.check_files(tmp_path)


@pytest.mark.parametrize(
    "line",
    [
        *("path: https://u:my pw@host/x", 'path: "https://u:it\'s pw@host/x"', "path: https://u:pw?@host"),
        *("path: 'https://host/x?id=7&sig=pw'", "path: https://host/x?0123456789abcdef0123456789", "https:/u:pw@host"),
        *("See https://host/a?id=7, or https://u:pw@host", "doc: https://u:pw@host/x?id=7"),
    ],
)
def test_a_login_is_found_in_files_of_any_size(line: str, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("# a comment\n" * (1 << 17) + line)
    with pytest.raises(ConfigError, match=rf"in line {(1 << 17) + 1}, "):
        credentials.check_files(tmp_path)


def test_all_that_a_run_copies_is_searched_and_nothing_else(tmp_path: Path) -> None:
    mine, copied = tmp_path / "configs", tmp_path / "copy"
    for name in ("config.yaml", "a/b.yaml", "a/.hidden", "a/c.md", "__pycache__/d.yaml", "e.svg"):
        (mine / name).parent.mkdir(parents=True, exist_ok=True)
        (mine / name).write_text("x\n")
    (mine / "a" / "link.yaml").symlink_to(mine / "config.yaml")
    (mine / "linked").symlink_to(mine / "a")
    source_commit.copy_for_owner(mine, copied)
    found = {path.relative_to(copied) for path in copied.rglob("*") if path.is_file()}
    assert {path.relative_to(mine) for path in source_commit.copied_files(mine)} == found
    assert found == {Path("config.yaml"), Path("a/b.yaml"), Path("a/.hidden")}


@pytest.mark.parametrize("path", ["https://host/x", "s3://bucket/x", "data/a:b", "https://h/a b"])
def test_other_addresses_are_left_alone(path: str) -> None:
    credentials.check_config({"data": {"path": path, "more": [path, 3, None]}})


def test_places_of_a_list_without_credentials_are_left_as_they_are() -> None:
    given = ["data.path=[http://127.0.0.1:80/a,/data/b,https://host:443,c]"]
    assert credentials.set_aside(given) == given
    assert settings.compose([*given, "data=shards"], PROJECT / "configs")["data"]["path"] == [
        *("http://127.0.0.1:80/a", "/data/b", "https://host:443", "c")
    ]


def test_each_place_of_a_list_gets_its_own_back() -> None:
    other = "https://u2:secret@other/set"
    words = credentials.set_aside([f"data.path=[{WHOLE}, data/b,{other},s3://c/d]"])
    assert words == [f"data.path=[{BARE}, data/b,https://other/set,s3://c/d]"]
    config = settings.compose([*words, "data=shards"], PROJECT / "configs")
    assert config["data"]["path"] == [BARE, "data/b", "https://other/set", "s3://c/d"]
    assert credentials.restored(config)["data"]["path"] == [WHOLE, "data/b", other, "s3://c/d"]
