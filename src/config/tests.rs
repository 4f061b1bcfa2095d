use super::*;
use crate::access::Role;

fn vars(pairs: &[(&str, &str)]) -> Vars {
    pairs.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect()
}

fn faults(text: &str) -> Vec<String> {
    match Configuration::parse(text, &Vars::new()) {
        Ok(_) => Vec::new(),
        Err(faults) => faults.list().iter().map(ToString::to_string).collect(),
    }
}

fn daemon(text: &str, pairs: &[(&str, &str)]) -> DaemonConfig {
    Configuration::parse(text, &vars(pairs)).unwrap().daemon().unwrap()
}

const SAMPLE: &str = include_str!("../docs/untorn.sample.toml");

#[test]
fn the_sample_has_no_fault_and_every_key() {
    let config = daemon(SAMPLE, &[]);
    assert_eq!(config.source.names(), ["shard-a", "shard-b"]);
    assert_eq!(config.poll, ["shard-a", "shard-b"]);
    assert_eq!(config.release(), Release::Ordered);
    for key in keys::KEYS.iter().filter(|key| !key.path.starts_with("console.")) {
        let name = key.path.rsplit('.').next().unwrap();
        let shown = SAMPLE.lines().any(|line| {
            let line = line.trim_start_matches("# ");
            line.starts_with(&format!("{name} = "))
        });
        assert!(shown, "{} is not in the sample", key.path);
    }
}

#[test]
fn a_file_with_only_a_folder_is_a_replica_without_a_source() {
    let config = daemon("data_dir = 'd'", &[]);
    assert_eq!(config.source, SourceConfig::None);
    assert_eq!(config.replica, ReplicaConfig::Embedded { tablet_count: 3 });
    assert_eq!(config.leader, LeaderConfig::Here { log: LogConfig::Sled("d/log".into()), listen: None });
    assert_eq!(config.admin.to_string(), "127.0.0.1:7100");
    assert_eq!(config.metrics.to_string(), "127.0.0.1:9464");
    assert_eq!(config.memory_budget, 512 << 20);
    assert_eq!(config.release(), Release::CommonClock);
}

#[test]
fn every_fault_is_told_at_once() {
    let text = r#"
        data_dir = 7
        memory_budget = "512MB"
        colour = "red"
        [source]
        kind = "postgres"
        gid_pattern = '^(.+)$'
        clock_skew = "soon"
        poll = ["a", "nobody"]
        [[source.tablets]]
        name = "a"
        url = "postgres://u@10.0.0.1:5432/app"
        publication = "p"
        slot = "Slot-A"
        [[source.tablets]]
        name = "a"
        url = "mysql://127.0.0.1/app"
        publication = ""
        tablet = "t"
        password_file = "/nonexistent/password"
        [replica]
        kind = "grpc"
        tablet_count = 3
        release = "sometimes"
        [[replica.tablets]]
        name = "r 0"
        url = "https://127.0.0.1:1"
        [[replica.tablets]]
        name = "r1"
        url = "http://10.0.0.1:7300"
        [log]
        kind = "kafka"
        [leader]
        listen = "nowhere"
        [admin]
        listen = "0.0.0.0:7100"
        insecure = "true"
        [metrics]
        port = 9464
        [console]
        listen = "127.0.0.1:5433"
        [tracing]
        format = "xml"
        filter = "untorn=loud"
    "#;
    let told = faults(text);
    let expected = [
        "data_dir: must be a string, not an integer; put it in quotes",
        "colour: is not a key that untorn knows; remove it, or write one of: data_dir, memory_budget, source, replica, \
         log, leader, admin, metrics, console, tablet, tracing",
        "admin.insecure: must be true or false, not a string; write true or false without quotes",
        "metrics.port: is not a key that untorn knows; remove it, or write one of: listen, tls, access, insecure",
        "console: the console is not part of this version; remove the section",
        "source.tablets[1].name: \"a\" is the name of source.tablets[0].name too; give each its own name",
        "source.gid_pattern: has no group named txn; write it as '^(?<txn>.+)$'",
        "source.clock_skew: \"soon\" is no duration; write a whole number with ms, s, m, h or d: \"500ms\"",
        "source.tablets[0].slot: \"Slot-A\" is no name of a slot; use at most 63 of a-z, 0-9 and _",
        "source.tablets[0].url: is reached beyond loopback without TLS that verifies the server; write \
         ?sslmode=verify-full in the URL, or set source.tablets[0].insecure = true",
        "source.tablets[0].url: is reached beyond loopback without credentials; set password_file (or PGPASSFILE), or \
         set source.tablets[0].insecure = true",
        "source.tablets[1].tablet: needs source.kind = \"cdc\"; set that, or remove the key",
        "source.tablets[1].slot: is missing; name the replication slot; it is created when missing",
        "source.tablets[1].publication: is empty; name the publication, made with CREATE PUBLICATION",
        "source.tablets[1].password_file: /nonexistent/password cannot be read: No such file or directory (os error 2); \
         name a file that this user can read",
        "source.tablets[1].url: does not begin with postgres://; write postgres://user@host:5432/database?sslmode=verify-full",
        "source.poll[1]: \"nobody\" is no source tablet; write a name of [[source.tablets]]",
        "replica.tablet_count: needs replica.kind = \"embedded\"; set that, or remove the key",
        "replica.tablets[0].name: \"r 0\" is no name; use at most 63 letters, digits, `_`, `-` and `.`",
        "replica.tablets[0].url: asks for TLS, and no certificates are named; add replica.tablets[0].tls with ca, cert \
         and key",
        "replica.tablets[1].url: is reached beyond loopback without TLS and credentials; write https:// and \
         replica.tablets[1].tls with ca, cert and key, or set replica.tablets[1].insecure = true",
        "replica.release: \"sometimes\" is unknown; write \"ordered\" or \"atomic\"",
        "leader.listen: \"nowhere\" is no address to listen on; write an IP address and a port: \"127.0.0.1:7200\", \
         \"[::1]:7200\"",
        "log.kind: \"kafka\" is not part of this version; write one that this build has: \"sled\", \"sqlite\", \"memory\"",
        "memory_budget: \"512MB\" is no size; write a whole number with B, KiB, MiB, GiB or TiB: \"512MiB\"",
        "admin.listen: is reached beyond loopback without TLS and credentials; listen on 127.0.0.1, add \
         [admin.tls] and [[admin.access]], or set admin.insecure = true",
        "tracing.format: \"xml\" is unknown; write \"text\" or \"json\"",
        "tracing.filter: is no filter: error parsing level filter: expected one of \"off\", \"error\", \"warn\", \"info\", \
         \"debug\", \"trace\", or a number 0-5; write as in \"info,untorn::source=debug\"",
    ];
    for fault in expected {
        assert!(told.contains(&fault.to_owned()), "missing: {fault}\ntold:\n{}", told.join("\n"));
    }
    assert_eq!(told.len(), expected.len(), "told:\n{}", told.join("\n"));
}

#[test]
fn one_fault_each() {
    let postgres = "data_dir = 'd'\n[source]\nkind = 'postgres'\n";
    let cdc = "data_dir = 'd'\n[source]\nkind = 'cdc'\n";
    let table: &[(&str, String, &str)] = &[
        ("not TOML", "data_dir = ".into(), "line 1: is not TOML"),
        ("not TOML further down", "data_dir = 'd'\n\n[source\n".into(), "line 3: is not TOML"),
        ("no folder", String::new(), "data_dir: is missing"),
        (
            "no kind",
            "data_dir='d'\n[[source.tablets]]\nname='a'\nurl='http://localhost:1'".into(),
            "source.kind: is missing",
        ),
        (
            "an unknown kind",
            "data_dir='d'\n[source]\nkind='mysql'".into(),
            "source.kind: \"mysql\" is no kind of source",
        ),
        ("a section that is none", "data_dir='d'\nsource=3".into(), "source: must be a section, not an integer"),
        (
            "entries that are none",
            "data_dir='d'\n[source]\ntablets='a'".into(),
            "source.tablets: must be an array of tables",
        ),
        ("an entry that is none", format!("{cdc}tablets=[3]"), "source.tablets[0]: must be a table, not an integer"),
        (
            "names that are none",
            "data_dir='d'\n[source]\npoll=['a', 3]".into(),
            "source.poll: must be an array of strings",
        ),
        (
            "cdc with a pattern",
            format!("{cdc}gid_pattern='xa'"),
            "source.gid_pattern: needs source.kind = \"postgres\"",
        ),
        ("a broken pattern", format!("{postgres}gid_pattern='('\n{A}"), "source.gid_pattern: is no regular expression"),
        (
            "one slot twice",
            format!("{postgres}{A}{}", A.replace("'a'", "'b'")),
            "source.tablets[1].slot: is the slot of",
        ),
        ("a stream polled twice", format!("{postgres}poll=['a','a']\n{A}"), "source.poll[1]: \"a\" is named twice"),
        ("too little memory", "data_dir='d'\nmemory_budget='1MiB'".into(), "memory_budget: is below 32 MiB"),
        ("no tablets", "data_dir='d'\n[replica]\ntablet_count=0".into(), "replica.tablet_count: 0 is not between"),
        ("embedded with entries", format!("data_dir='d'\n{R}"), "replica.tablets: needs replica.kind = \"grpc\""),
        ("grpc without", "data_dir='d'\n[replica]\nkind='grpc'".into(), "replica.tablets: has no entry"),
        (
            "a postgres replica without a server",
            "data_dir='d'\n[replica]\nkind='postgres'".into(),
            "replica.tablets: has no entry",
        ),
        (
            "a postgres replica of two servers that have every table",
            format!("data_dir='d'\n[replica]\nkind='postgres'\n{P}{}", P.replace("'p'", "'q'")),
            "replica.tablets[1].tables: is missing",
        ),
        (
            "a table on two servers",
            format!(
                "data_dir='d'\n[replica]\nkind='postgres'\n{P}tables=['s.t']\n{}tables=['s.t']\n",
                P.replace("'p'", "'q'")
            ),
            "replica.tablets[1].tables: names \"s.t\"",
        ),
        (
            "a postgres replica of a source with a common clock",
            format!(
                "data_dir='d'\n[source]\nkind='cdc'\n[[source.tablets]]\nname='a'\nurl='http://127.0.0.1:1'\n\
                 [replica]\nkind='postgres'\n{P}"
            ),
            "replica.kind: keeps one moment",
        ),
        (
            "a postgres replica's key in an embedded one",
            "data_dir='d'\n[replica]\nmissing_tables='create'".into(),
            "replica.missing_tables: needs replica.kind = \"postgres\"",
        ),
        (
            "keys that fall",
            format!("data_dir='d'\nreplica.kind='grpc'\n{R}from_key='m'\n{S}from_key='c'"),
            "replica.tablets[1].from_key: does not rise",
        ),
        (
            "a key left out",
            format!("data_dir='d'\nreplica.kind='grpc'\n{R}from_key='m'\n{S}"),
            "replica.tablets[1].from_key: is missing",
        ),
        ("memory with a path", "data_dir='d'\n[log]\nkind='memory'\npath='p'".into(), "log.path: needs log.kind"),
        ("a log of another world", "data_dir='d'\n[log]\nkind='paper'".into(), "log.kind: \"paper\" is no kind of log"),
        (
            "a shared leader with embedded tablets",
            "data_dir='d'\n[leader]\nlisten='127.0.0.1:1'".into(),
            "leader: several processes",
        ),
        (
            "a leader here and there",
            format!("data_dir='d'\nreplica.kind='grpc'\n{R}[leader]\nlisten='127.0.0.1:1'\nurl='http://127.0.0.1:1'"),
            "leader.listen: cannot stand beside",
        ),
        (
            "a poller with a log",
            format!("data_dir='d'\nreplica.kind='grpc'\n{R}[leader]\nurl='http://127.0.0.1:1'\n[log]\nkind='sled'"),
            "log: belongs to the transaction leader",
        ),
        (
            "a tablet server with a source",
            "data_dir='d'\n[tablet]\nlisten='127.0.0.1:1'\nnames=['r0']\n[source]\nkind='cdc'".into(),
            "source: does not belong in a tablet server's file",
        ),
        (
            "a tablet server without tablets",
            "data_dir='d'\n[tablet]\nlisten='127.0.0.1:1'".into(),
            "tablet.names: is missing",
        ),
        (
            "a tablet twice",
            "data_dir='d'\n[tablet]\nlisten='127.0.0.1:1'\nnames=['r','r']".into(),
            "tablet.names[1]: \"r\" is the name of",
        ),
        (
            "a tablet server without an address",
            "data_dir='d'\n[tablet]\nnames=['r']".into(),
            "tablet.listen: is missing",
        ),
    ];
    for (what, text, expected) in table {
        let told = faults(text);
        assert!(told.len() == 1 && told[0].starts_with(expected), "{what}: {told:?}");
        assert!(told[0].contains("; "), "{what}: says how to mend it");
    }
}

const A: &str = "[[source.tablets]]\nname='a'\nurl='postgres://u@localhost/app'\npublication='p'\nslot='s'\n";
const R: &str = "[[replica.tablets]]\nname='r0'\nurl='http://127.0.0.1:1'\n";
const P: &str = "[[replica.tablets]]\nname='p'\nurl='postgres://u@localhost/app'\n";
const S: &str = "[[replica.tablets]]\nname='r1'\nurl='http://127.0.0.1:2'\n";

#[test]
fn the_environment_lies_over_the_file() {
    let config = daemon(
        "data_dir = 'd'\n[replica]\ntablet_count = 3\n",
        &[
            ("UNTORN__DATA_DIR", "/e"),
            ("UNTORN__REPLICA__TABLET_COUNT", "5"),
            ("UNTORN__ADMIN__LISTEN", "0.0.0.0:7000"),
            ("UNTORN__ADMIN__INSECURE", "true"),
            ("UNTORN__SOURCE__KIND", "cdc"),
            ("UNTORN__SOURCE__TABLETS__0__NAME", "a"),
            ("UNTORN__SOURCE__TABLETS__0__URL", "http://127.0.0.1:1"),
            ("UNTORN__SOURCE__TABLETS__1__NAME", "b"),
            ("UNTORN__SOURCE__TABLETS__1__URL", "http://127.0.0.1:1"),
            ("UNTORN__SOURCE__POLL", "b, a"),
            ("UNTORN_ADMIN", "http://elsewhere:7100"),
        ],
    );
    assert_eq!(config.data_dir, PathBuf::from("/e"));
    assert_eq!(config.replica, ReplicaConfig::Embedded { tablet_count: 5 });
    assert_eq!(config.admin.to_string(), "0.0.0.0:7000");
    assert_eq!(config.source.names(), ["a", "b"]);
    assert_eq!(config.poll, ["b", "a"]);
}

#[test]
fn faults_of_the_environment_name_the_variable() {
    let pairs = [
        ("UNTORN__REPLICA__TABLET_COUNT", "three"),
        ("UNTORN__REPLICA__COLOUR", "red"),
        ("UNTORN__SOURCE__TABLETS__1__NAME", "b"),
    ];
    let faults = Configuration::parse("data_dir = 'd'", &vars(&pairs)).unwrap_err().to_string();
    assert_eq!(
        faults,
        "replica.colour: is not a key that untorn knows (from UNTORN__REPLICA__COLOUR); unset the variable\n\
         replica.tablet_count: must be an integer (from UNTORN__REPLICA__TABLET_COUNT); mend the variable\n\
         source.tablets[1].name: names entry 1, and there are only 0; number the entries from 0 without gaps"
    );
}

#[test]
fn credentials_may_come_from_a_file_or_from_libpq() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("password");
    std::fs::write(&file, "hunter2\n").unwrap();
    let tablet = |more: &str| {
        let url = "postgres://u@10.0.0.1/app?sslmode=verify-full";
        format!("data_dir='d'\n[source]\nkind='postgres'\n{}{more}", A.replace("postgres://u@localhost/app", url))
    };
    let with_file = tablet(&format!("password_file = '{}'", file.display()));
    let config = daemon(&with_file, &[]);
    let SourceConfig::Postgres(source) = &config.source else { panic!("{config:?}") };
    assert_eq!(source.tablets[0].password_file.as_deref(), Some(file.as_path()));
    std::fs::write(&file, "\n").unwrap();
    assert!(faults(&with_file)[0].starts_with("source.tablets[0].password_file: "));
    let in_url = daemon(&tablet("").replace("u@", "u:hunter2@"), &[]);
    assert!(!format!("{in_url:?}").contains("hunter2"), "a password is never printed");

    assert_eq!(faults(&tablet("")).len(), 1);
    daemon(&tablet(""), &[("PGPASSFILE", "/etc/untorn/pgpass")]);
    daemon(&tablet("insecure = true"), &[]);
}

#[test]
fn tls_needs_its_files_and_names_for_those_who_call() {
    let folder = tempfile::tempdir().unwrap();
    let own = rcgen::generate_simple_self_signed(vec!["untorn.example".into()]).unwrap();
    let [cert, key, other] = ["cert", "key", "other"].map(|name| folder.path().join(name).display().to_string());
    std::fs::write(&cert, own.cert.pem()).unwrap();
    std::fs::write(&key, own.signing_key.serialize_pem()).unwrap();
    std::fs::write(&other, rcgen::KeyPair::generate().unwrap().serialize_pem()).unwrap();
    let admin = |more: &str| format!("data_dir='d'\n[admin]\nlisten='0.0.0.0:7100'\n{more}");
    let files = format!("tls = {{ cert = '{cert}', key = '{key}', client_ca = '{cert}' }}\n");
    let access = "[[admin.access]]\nidentity='a'\nrole='viewer'\n";

    let tls = daemon(&admin(&format!("{files}{access}")), &[]).admin.tls.unwrap();
    assert_eq!((tls.grants[0].identity.as_str(), tls.grants[0].role), ("a", Role::Viewer));
    let replica = |tls: &str| {
        let entry = format!("name='r'\nurl='https://10.0.0.1:7300'\ntls = {{ {tls} }}");
        format!("data_dir='d'\n[replica]\nkind='grpc'\n[[replica.tablets]]\n{entry}\n")
    };
    let good = format!("ca = '{cert}', cert = '{cert}', key = '{key}', server_name = 'untorn.example'");
    assert!(faults(&replica(&good)).is_empty());

    let table: &[(&str, String, &str)] = &[
        ("nobody named", admin(&files), "admin.access: is missing"),
        ("names without TLS", format!("data_dir='d'\n{access}"), "admin.access: needs [admin.tls]"),
        (
            "no such role",
            admin(&format!("{files}{access}")).replace("viewer", "king"),
            "admin.access[0].role: \"king\"",
        ),
        ("named twice", admin(&format!("{files}{access}{access}")), "admin.access[1].identity: \"a\" stands"),
        (
            "no key",
            admin(&format!("tls = {{ cert = '{cert}', client_ca = '{cert}' }}\n{access}")),
            "admin.tls.key: is missing",
        ),
        ("another key", admin(&format!("{files}{access}")).replace(&key, &other), "admin.tls: "),
        ("no such file", admin(&format!("{files}{access}")).replace(&key, "/no/such"), "admin.tls: /no/such: "),
        (
            "no PEM",
            admin(&format!("{files}{access}"))
                .replace(&format!("client_ca = '{cert}'"), &format!("client_ca = '{key}'")),
            "admin.tls: ",
        ),
        (
            "keys of the other end",
            format!("data_dir='d'\nreplica.kind='grpc'\n{R}[leader]\nlisten='127.0.0.1:1'\n{files}{access}")
                .replace("tls = {", "tls = { ca = 'x',")
                .replace("admin.access", "leader.access"),
            "leader.tls.ca: needs leader.url",
        ),
        (
            "not used",
            replica(&good).replace("https", "http").replace("10.0.0.1", "127.0.0.1"),
            "replica.tablets[0].tls: is not used",
        ),
        (
            "no certificate to show",
            replica(&format!("ca = '{cert}', key = '{key}'")),
            "replica.tablets[0].tls.cert: is missing",
        ),
    ];
    for (what, text, expected) in table {
        let told = faults(text);
        assert!(told.len() == 1 && told[0].starts_with(expected), "{what}: {told:?}");
    }
}

#[test]
fn a_tablet_servers_file() {
    let text = "data_dir='d'\n[tablet]\nlisten='127.0.0.1:7300'\nnames=['r0','r1']\nwal_retention='64MiB'\n";
    let config = Configuration::parse(text, &Vars::new()).unwrap();
    assert!(config.clone().daemon().unwrap_err().to_string().contains("untorn tablet"));
    let server = config.tablet_server().unwrap();
    assert_eq!((server.names.len(), server.wal_retention, server.metrics), (2, 64 << 20, None));
    assert!(Configuration::parse("data_dir='d'", &Vars::new()).unwrap().tablet_server().is_err());
}

#[test]
fn a_servers_rules_stand_instead_of_the_shared_ones() {
    let file = |rules: [&str; 3]| {
        let [shared, a, b] = rules;
        let tablet = |name, rules| {
            format!(
                "[[source.tablets]]\nname = '{name}'\nurl = 'postgres://u@127.0.0.1/d'\npublication = 'p'\nslot = '{name}'\n\
                 {rules}\n"
            )
        };
        format!("data_dir = 'd'\n[source]\nkind = 'postgres'\n{shared}\n{}{}", tablet("a", a), tablet("b", b))
    };
    let text = file(["exclude = ['public.x']\nrename = ['shop.* -> public.*']", "", "exclude = []"]);
    let SourceConfig::Postgres(source) = daemon(&text, &[]).source else { panic!("postgres") };
    let name = |tablet: usize, schema, table| source.tablets[tablet].tables.name_of(schema, table);
    assert_eq!([name(0, "public", "x"), name(1, "public", "x")], [None, Some("public.x".into())]);
    assert_eq!([name(0, "shop", "y"), name(1, "shop", "y")], [Some("public.y".into()), Some("public.y".into())]);
    let text = file(["include = ['accounts']", "rename = ['public.a -> public.*']", ""]);
    let found = faults(&text);
    assert!(found[0].contains("source.include[0]") && found[0].contains("schema.table"), "{found:?}");
    assert!(found[1].contains("source.tablets[0].rename[0]"), "{found:?}");
    assert_eq!(found.len(), 2);
}
