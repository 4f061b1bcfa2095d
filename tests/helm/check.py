"""Renders the chart with the real Helm engine and looks at what comes out.

    check.py CHART UNTORN      UNTORN is the binary, which checks each rendered configuration

For every file in accepted/: no lint message, every manifest valid by the schemas of Kubernetes or of the Prometheus
operator, the pod policy kept, every probe at a port that is served, every configuration good by `untorn check`. For
every file in refused/: refused, with what its first line says. Prints one line a case and ends with `N passed, N failed`.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

import helm_python as helm
import kubernetes_validate
import yaml
from cloudcoil.models.prometheus_operator import v1 as operator

HERE = Path(__file__).parent
KUBERNETES = ["1.29", "1.34"]
OPERATOR = {"ServiceMonitor": operator.ServiceMonitor, "PodMonitor": operator.PodMonitor,
            "PrometheusRule": operator.PrometheusRule}




def pair():
    """A certificate of its own authority and its key, for configurations that name such files."""
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
               "-subj", "/CN=untorn", "-addext", "subjectAltName=DNS:admin.untorn", "-days", "2", "-keyout", "/dev/stdout"]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    key, certificate = re.search(r"(-+BEGIN PRIVATE KEY.*?END PRIVATE KEY-+\n).*?(-+BEGIN CERTIFICATE.*)", text, re.S).groups()
    return {"tls.crt": certificate, "tls.key": key, "ca.crt": certificate}


PAIR = pair()


def manifests(rendered):
    """Every manifest of a rendered chart, with the file that it comes from."""
    for path, text in sorted(rendered.items()):
        if path.endswith((".yaml", ".yml")):
            for document in yaml.safe_load_all(text):
                if document:
                    yield path, document


def valid(path, manifest):
    """Valid by the schema of its kind; keys that the schema does not know are faults."""
    kind = manifest["kind"]
    if manifest["apiVersion"].startswith("monitoring.coreos.com/"):
        OPERATOR[kind].model_validate(manifest, extra="forbid")
        return
    for version in KUBERNETES:
        try:
            kubernetes_validate.validate(manifest, version, strict=True)
        except kubernetes_validate.ValidationError as error:
            raise AssertionError(f"{path}: {kind} by Kubernetes {version}: {error.message}") from error


def pod_policy(manifest):
    """What a policy that says no to everything unneeded asks of a pod, and that all it names is there."""
    spec = manifest["spec"]["template"]["spec"]
    pod = spec["securityContext"]
    assert spec["automountServiceAccountToken"] is False, "a service account token is mounted"
    assert pod["runAsNonRoot"] and pod["seccompProfile"] == {"type": "RuntimeDefault"}, pod
    assert not any(spec.get(key) for key in ("hostNetwork", "hostPID", "hostIPC")), "shares with its host"
    volumes = [volume["name"] for volume in spec["volumes"]]
    volumes += [claim["metadata"]["name"] for claim in manifest["spec"]["volumeClaimTemplates"]]
    assert len(set(volumes)) == len(volumes), f"a volume's name stands twice: {volumes}"
    for container in spec["containers"]:
        security = container["securityContext"]
        assert security["allowPrivilegeEscalation"] is False, container["name"]
        assert security["readOnlyRootFilesystem"] is True, container["name"]
        assert security["capabilities"] == {"drop": ["ALL"]}, container["name"]
        assert "memory" in container["resources"]["limits"] and "cpu" in container["resources"]["requests"]
        for mount in container["volumeMounts"]:
            assert mount["name"] in volumes, f"{mount['name']} is mounted and is no volume"
        for variable in container.get("env", []):
            assert "valueFrom" in variable or "PASSWORD" not in variable["name"], variable


def probes_reach(container, config):
    """Every probe asks a port that the container's own configuration serves beyond loopback."""
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    host, port = config["metrics"]["listen"].rsplit(":", 1)
    for kind in ("startupProbe", "livenessProbe", "readinessProbe"):
        if probe := container.get(kind):
            get = probe["httpGet"]
            assert host == "0.0.0.0" and ports[get["port"]] == int(port), f"{kind} asks where nothing is served"
            assert get["path"] in ("/livez", "/readyz"), get
            assert kind == "readinessProbe" or get["path"] == "/livez", f"{kind} would restart a healthy waiter"


def configuration(container, manifest, config_maps, untorn, serves):
    """The container's own file, as it would find it, is good by `untorn check`; with `serves`, its probes are answered."""
    spec = manifest["spec"]["template"]["spec"]
    volumes = {volume["name"]: volume for volume in spec["volumes"]}
    command, file = container["args"][0], container["args"][2]
    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder)
        config = None
        for mount in container["volumeMounts"]:
            volume = volumes.get(mount["name"], {})
            if "configMap" in volume:
                data = config_maps[volume["configMap"]["name"]]
                text = data[mount.get("subPath") or Path(file).name]
                config = tomllib.loads(text)
                text = text.replace("/etc/untorn/", f"{here}/").replace("/var/lib/untorn/", f"{here}/")
                (here / "untorn.toml").write_text(text)
            files = [item["path"] for source in volume.get("projected", {}).get("sources", [])
                     for item in source["secret"]["items"]]
            if "secret" in volume:
                files += ["tls.crt", "tls.key", "ca.crt"]
            for name in files:
                secret = here / Path(mount["mountPath"]).relative_to("/etc/untorn") / name
                secret.parent.mkdir(parents=True, exist_ok=True)
                secret.write_text(PAIR.get(name, "a secret"))
        assert config, f"{container['name']} has no configuration"
        environment = {"PATH": os.environ["PATH"]}
        for variable in container.get("env", []):
            environment[variable["name"]] = variable.get("value", "r-tablet-0")
        check = [untorn, "check", "--config", str(here / "untorn.toml")]
        checked = subprocess.run(check, env=environment, capture_output=True, text=True)
        assert checked.returncode == 0, f"{container['name']}: {checked.stdout}{checked.stderr}"
        probes_reach(container, config)
        if serves:
            probes_answer(container, command, here, environment, untorn)


def probes_answer(container, command, here, environment, untorn):
    """The real binary with this configuration answers each probe where the kubelet would ask: not on loopback."""
    import socket
    import time
    import urllib.request

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        # Nothing is sent: this only asks which address of this machine faces others.
        probe.connect(("192.0.2.1", 9))
        address = probe.getsockname()[0]
    free = [socket.create_server(("127.0.0.1", 0)) for _ in range(3)]
    ports = [taken.getsockname()[1] for taken in free]
    for taken in free:
        taken.close()
    environment = environment | {"UNTORN__METRICS__LISTEN": f"0.0.0.0:{ports[0]}"}
    environment["UNTORN__TABLET__LISTEN" if command == "tablet" else "UNTORN__ADMIN__LISTEN"] = f"127.0.0.1:{ports[1]}"
    log = (here / "log").open("w+")
    daemon = subprocess.Popen([untorn, command, "--config", str(here / "untorn.toml")], env=environment, stderr=log)
    try:
        for kind in ("startupProbe", "livenessProbe", "readinessProbe"):
            if not (probe := container.get(kind)):
                continue
            url = f"http://{address}:{ports[0]}{probe['httpGet']['path']}"
            deadline = time.monotonic() + 60
            while True:
                try:
                    assert urllib.request.urlopen(url, timeout=5).status == 200
                    break
                except OSError as error:
                    assert time.monotonic() < deadline and daemon.poll() is None, f"{kind} {url}: {error}\n" + (
                        here / "log").read_text()
                    time.sleep(0.1)
    finally:
        daemon.terminate()
        assert daemon.wait(60) == 0, "it does not end well on SIGTERM"


def looks_right(rendered, untorn, serves=False):
    """Everything that holds for every rendering."""
    found = list(manifests(rendered))
    config_maps = {m["metadata"]["name"]: m["data"] for _, m in found if m["kind"] == "ConfigMap"}
    names = [(manifest["kind"], manifest["metadata"]["name"]) for _, manifest in found]
    assert len(set(names)) == len(names), f"a manifest stands twice: {names}"
    text = "".join(rendered.values())
    assert not re.search(r"kind: (Secret|ServiceAccount|ClusterRole|Role)\b", text), "makes what it does not need"
    for path, manifest in found:
        valid(path, manifest)
        if manifest["kind"] == "StatefulSet":
            pod_policy(manifest)
            for container in manifest["spec"]["template"]["spec"]["containers"]:
                configuration(container, manifest, config_maps, untorn, serves)
    return {kind: [m for _, m in found if m["kind"] == kind] for kind, _ in names}


def lints(chart, values):
    report = helm.lint(chart, values, strict=True, with_subcharts=True)
    assert not report["messages"] and not report["errors"], report


def accepted(chart, case, untorn):
    values = yaml.safe_load(case.read_text())
    lints(chart, values)
    loaded = helm.Chart.load(chart)
    kinds = looks_right(loaded.render(values, name="r", namespace="n"), untorn, serves=case.stem in ("defaults", "bare"))
    everything = {"standalone", "sidecar"}
    if case.stem in everything:
        dashboards = [m for m in kinds["ConfigMap"] if "-dashboard-" in m["metadata"]["name"]]
        assert len(dashboards) == len(list(Path(chart).glob("dashboards/*.json"))) == 3, dashboards
        assert kinds["PrometheusRule"]
    if case.stem == "standalone":
        rules = [rule for group in kinds["PrometheusRule"][0]["spec"]["groups"] for rule in group["rules"]]
        assert "UntornCertificateExpiring" not in [rule["alert"] for rule in rules], "a disabled alert is there"
        assert all(rule["annotations"]["runbook_url"].endswith(f"#{rule['alert'].lower()}") for rule in rules)
    if case.stem == "sidecar":
        assert "StatefulSet" not in kinds and "NetworkPolicy" not in kinds, "pods of its own"
        assert kinds["PodMonitor"]
    if case.stem == "postgres-replica":
        (policy,) = kinds["NetworkPolicy"]
        ports = [sorted(port["port"] for port in rule["ports"]) for rule in policy["spec"]["egress"]]
        assert ports == [[53, 53], [5432, 5433, 5434], [6432]], ports
        assert policy["spec"]["egress"][2]["to"] == values["networkPolicy"]["replicaTo"]
    if case.stem == "tablets":
        tablets, applier = (next(m for m in kinds["StatefulSet"] if m["metadata"]["name"] == name)
                            for name in ("replica-tablet", "replica"))
        config = tomllib.loads(kinds["ConfigMap"][0]["data"]["untorn.toml"])
        named = [tablet["name"] for tablet in config["replica"]["tablets"]]
        assert named == [f"replica-tablet-{i}" for i in range(tablets["spec"]["replicas"])], named
        assert applier["spec"]["replicas"] == 1


def refused(chart, case):
    text = case.read_text()
    expected = text.splitlines()[0].removeprefix("# refused: ").strip()
    try:
        helm.Chart.load(chart).render(yaml.safe_load(text), name="r", namespace="n")
    except helm.HelmError as error:
        assert expected in str(error), f"refused by another reason: {error}"
    else:
        raise AssertionError("it is accepted")


def example(chart, untorn):
    """The worked example, with this chart as its dependency: untorn is a container of its pod, and never unready."""
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder) / "example"
        shutil.copytree(Path(chart) / "examples/replica-with-sidecar", home)
        shutil.copytree(chart, home / "charts/untorn", ignore=shutil.ignore_patterns("examples"))
        lints(home, None)
        loaded = helm.Chart.load(home)
        kinds = looks_right(loaded.render(name="r", namespace="n"), untorn)
        (pods,) = kinds["StatefulSet"]
        containers = {c["name"]: c for c in pods["spec"]["template"]["spec"]["containers"]}
        assert set(containers) == {"tablets", "untorn"}
        assert not {"readinessProbe", "startupProbe"} & set(containers["untorn"]), "the sidecar can be unready"
        selector = kinds["PodMonitor"][0]["spec"]["selector"]["matchLabels"]
        assert selector.items() <= pods["spec"]["template"]["metadata"]["labels"].items()
        for values, why in (({"untorn": {"applier": {"replicas": 2}}}, "maximum"),
                            ({"untorn": {"probes": {"readiness": "ready"}}}, "must be 'live'"),
                            ({"untorn": {"shape": "standalone", "config": {"replica": None}}}, "untorn runs twice")):
            try:
                loaded.render(values, name="r", namespace="n")
            except helm.HelmError as error:
                assert why in str(error), error
            else:
                raise AssertionError(f"accepted: {values}")


def main(chart, untorn):
    cases = [(case.stem, accepted, (chart, case, untorn)) for case in sorted(HERE.glob("accepted/*.yaml"))]
    cases += [(case.stem, refused, (chart, case)) for case in sorted(HERE.glob("refused/*.yaml"))]
    cases.append(("example", example, (chart, untorn)))
    failed = 0
    for name, check, arguments in cases:
        try:
            check(*arguments)
            print(f"ok   {check.__name__} {name}")
        except Exception as error:
            failed += 1
            print(f"FAIL {check.__name__} {name}: {type(error).__name__}: {error}")
    print(f"{len(cases) - failed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], str(Path(sys.argv[2]).resolve())))
