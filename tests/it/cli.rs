//! The built binary as scripts call it: exit codes, and what stands on which output.

use std::process::{Command, Output};

fn untorn(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_untorn"));
    // Keys in the environment of whoever runs the tests are none of theirs.
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("UNTORN")) {
        command.env_remove(name);
    }
    command.args(args).output().unwrap()
}

fn code(output: &Output) -> i32 {
    output.status.code().unwrap()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

#[test]
fn usage_exits_2() {
    for args in [&["nonsense"][..], &["scan"], &["explain"], &["scan", "--table", "t", "--at", "noon"], &["check"], &[]]
    {
        assert_eq!(code(&untorn(args)), 2, "{args:?}");
    }
    assert_eq!(code(&untorn(&["--version"])), 0);
}

#[test]
fn a_configuration_with_faults_exits_64_and_tells_all() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("untorn.toml");
    std::fs::write(&file, "memory_budget = 5\n[log]\nkind = \"paper\"\n[admin]\nlisten = \"0.0.0.0:1\"\n").unwrap();
    let output = untorn(&["check", "--config", file.to_str().unwrap()]);
    assert_eq!(code(&output), 64);
    assert!(output.stdout.is_empty());
    let told = text(&output.stderr);
    for key in ["memory_budget: ", "data_dir: ", "log.kind: ", "admin.listen: "] {
        assert!(told.lines().any(|line| line.starts_with(key)), "{key} in {told}");
    }
    assert_eq!(told.lines().count(), 4, "{told}");
    assert_eq!(code(&untorn(&["check", "--config", "/nonexistent/untorn.toml"])), 64);
}

#[test]
fn the_sample_configuration_is_good() {
    let sample = concat!(env!("CARGO_MANIFEST_DIR"), "/src/docs/untorn.sample.toml");
    let output = untorn(&["check", "--config", sample]);
    assert_eq!((code(&output), text(&output.stderr)), (0, ""));
    assert_eq!(
        text(&output.stdout),
        "no faults: 2 streams, 2 of them pulled here, into 3 embedded tablets; the transaction leader is here\n"
    );
}

#[test]
fn servers_that_do_not_answer_are_faults_of_their_keys() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("untorn.toml");
    let config = "data_dir = \"d\"\n[source]\nkind = \"cdc\"\n[[source.tablets]]\nname = \"a\"\nurl = \"http://127.0.0.1:1\"\n\
                  [replica]\nkind = \"grpc\"\n[[replica.tablets]]\nname = \"r0\"\nurl = \"http://127.0.0.1:1\"\n";
    std::fs::write(&file, config).unwrap();
    assert_eq!(code(&untorn(&["check", "--config", file.to_str().unwrap()])), 0);
    let output = untorn(&["check", "--connect", "--config", file.to_str().unwrap()]);
    assert_eq!(code(&output), 64);
    let told = text(&output.stderr);
    for key in ["source.tablets[0].url: ", "replica.tablets[0].url: "] {
        assert!(told.lines().any(|line| line.starts_with(key) && line.contains("Connection refused")), "{told}");
    }
}

#[test]
fn no_daemon_exits_1_with_nothing_on_standard_output() {
    let admin = ["--admin", "http://127.0.0.1:1", "--format", "json"];
    for command in [&["status"][..], &["explain", "x1"], &["scan", "--table", "public.t"]] {
        let output = untorn(&[command, &admin].concat());
        assert_eq!(code(&output), 1, "{command:?}");
        assert!(output.stdout.is_empty());
        assert!(text(&output.stderr).starts_with("no daemon answers at http://127.0.0.1:1"), "{output:?}");
    }
}
