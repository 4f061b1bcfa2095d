//! Real PostgreSQL 15 servers in temporary folders.

use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};
use tempfile::TempDir;
use tokio_postgres::{Client, NoTls, SimpleQueryMessage};

/// How long a server may take to start; only a broken one takes as long.
const START_DEADLINE: Duration = Duration::from_secs(60);

/// A cluster with one server. Dropping it kills the server and removes the folder.
pub struct Postgres {
    folder: TempDir,
    port: u16,
    settings: Vec<String>,
    server: Option<Child>,
}

/// A program that ends when it is dropped.
pub struct Running(Child);

impl Running {
    /// Waits until it has done its work.
    pub fn wait(mut self) {
        assert!(self.0.wait().expect("it can be waited for").success());
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Postgres {
    /// Starts a server that suits a stream: logical WAL, prepared transactions, no fsync.
    pub async fn start() -> Self {
        Self::start_with(&[]).await
    }

    /// Starts one with further settings, each `name=value`; they win over the usual ones.
    pub async fn start_with(settings: &[&str]) -> Self {
        let usual = ["wal_level=logical", "max_prepared_transactions=20", "fsync=off", "max_connections=40"];
        Self::start_plain(&[&usual, settings].concat()).await
    }

    /// Starts one with these settings only. They are given on the command line, which `ALTER SYSTEM` does not override.
    pub async fn start_plain(settings: &[&str]) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let data = folder.path().join("data");
        run(Command::new("cp").arg("-a").arg(template()).arg(&data));
        own(folder.path());
        Self::start_in(folder, settings).await
    }

    async fn start_in(folder: TempDir, settings: &[&str]) -> Self {
        let port = TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a free port").port();
        let settings = settings.iter().map(|setting| (*setting).to_owned()).collect();
        let mut postgres = Self { folder, port, settings, server: None };
        postgres.start_server().await;
        postgres
    }

    /// Starts the server again after [`Self::stop`] or [`Self::kill`].
    pub async fn start_server(&mut self) {
        let data = self.folder.path().join("data");
        let mut command = as_server(Command::new(program("postgres")));
        command.arg("-D").arg(&data).arg("-p").arg(self.port.to_string());
        command.arg("-k").arg(self.folder.path()).arg("-h").arg("127.0.0.1");
        for setting in &self.settings {
            command.arg("-c").arg(setting);
        }
        let log = std::fs::File::create(self.folder.path().join("log")).expect("a log file");
        command.stdout(Stdio::null()).stderr(log).stdin(Stdio::null());
        self.server = Some(command.spawn().expect("postgres starts"));
        let deadline = Instant::now() + START_DEADLINE;
        while let Err(error) = tokio_postgres::connect(&self.url("postgres"), NoTls).await {
            let log = || std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default();
            assert!(Instant::now() < deadline, "the server does not start: {error}\n{}", log());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Starts one of a cluster of its own: the others are copies of one, and have one system identifier.
    pub async fn start_distinct(settings: &[&str]) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        own(folder.path());
        initdb(&folder.path().join("data"));
        Self::start_in(folder, settings).await
    }

    /// Starts a standby of this server, which streams from it.
    pub async fn standby(&self) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        own(folder.path());
        let mut backup = as_server(Command::new(program("pg_basebackup")));
        backup.args(["-h", "127.0.0.1", "-U", "postgres", "-R", "-X", "stream", "-c", "fast", "-p"]);
        backup.arg(self.port.to_string()).arg("-D").arg(folder.path().join("data"));
        run(&mut backup);
        let port = TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a free port").port();
        let mut standby = Self { folder, port, settings: self.settings.clone(), server: None };
        standby.start_server().await;
        standby
    }

    /// Gives it another server's slot, as tools do that keep slots on standbys of servers that cannot do it themselves:
    /// both are shut down while its files are copied.
    pub fn take_over_slot(&self, from: &Self, slot: &str) {
        assert!(self.server.is_none(), "it is shut down");
        let place = |of: &Self| of.folder.path().join("data/pg_replslot");
        run(Command::new("cp").arg("-a").arg(place(from).join(slot)).arg(place(self)));
    }

    /// Starts pgbench against it.
    pub fn pgbench(&self, arguments: &[&str]) -> Running {
        let mut pgbench = Command::new(program("pgbench"));
        pgbench.args(["-h", "127.0.0.1", "-U", "postgres", "-p"]).arg(self.port.to_string()).args(arguments);
        pgbench.arg("postgres").stdout(Stdio::null()).stderr(Stdio::null());
        Running(pgbench.spawn().expect("pgbench starts"))
    }

    /// Shuts it down and starts it again.
    pub async fn restart(&mut self) {
        self.stop();
        self.start_server().await;
    }

    /// Changes a setting, `name=value`, for its next start.
    pub fn set(&mut self, setting: &str) {
        self.settings.push(setting.to_owned());
    }

    /// Lets another process read a slot, taking it from whoever does.
    pub async fn take_slot(&self, slot: &str) -> Child {
        let slots = format!("FROM pg_replication_slots WHERE slot_name = '{slot}'");
        let before = self.execute(&format!("SELECT active_pid, pg_terminate_backend(active_pid) {slots}")).await;
        let deadline = Instant::now() + START_DEADLINE;
        let until = async |what: &str| {
            while self.execute(&format!("SELECT active {slots}")).await != [what] {
                assert!(Instant::now() < deadline, "slot {slot} is not taken from {before:?}");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        until("f").await;
        let mut command = Command::new(program("pg_recvlogical"));
        command.args(["-h", "127.0.0.1", "-U", "postgres", "-d", "postgres", "--start", "-f", "/dev/null"]);
        command.args(["-p", &self.port.to_string(), "-S", slot]);
        command.args(["-o", "proto_version=3", "-o", "publication_names=untorn"]).stderr(Stdio::null());
        let taker = command.spawn().expect("pg_recvlogical starts");
        until("t").await;
        taker
    }

    /// Shuts the server down, its sessions with it.
    pub fn stop(&mut self) {
        self.signal("INT");
        self.wait();
    }

    /// Kills the server with all its processes: a crash. None of them is left when this returns: one that still wrote
    /// beside the next server would damage the cluster.
    pub fn kill(&mut self) {
        let server = self.server.as_ref().expect("the server runs").id();
        // While it stands still it makes no more of them.
        self.signal("STOP");
        let children = children(server);
        self.signal("KILL");
        for child in &children {
            let _ = Command::new("kill").arg("-KILL").arg(child.to_string()).stderr(Stdio::null()).status();
        }
        self.wait();
        let deadline = Instant::now() + START_DEADLINE;
        while children.iter().any(|child| runs(*child)) {
            assert!(Instant::now() < deadline, "a process of the server does not end");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// The port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The folder that holds its Unix socket.
    pub fn socket_folder(&self) -> &Path {
        self.folder.path()
    }

    /// The URL of a database for the superuser, who is let in without a password.
    pub fn url(&self, database: &str) -> String {
        format!("postgres://postgres@127.0.0.1:{}/{database}?sslmode=disable", self.port)
    }

    /// A session of its own.
    pub async fn connect(&self) -> Client {
        self.connect_to("postgres").await
    }

    /// A session in another database.
    pub async fn connect_to(&self, database: &str) -> Client {
        let (client, connection) = tokio_postgres::connect(&self.url(database), NoTls).await.expect("a session");
        tokio::spawn(connection);
        client
    }

    /// Runs statements, one after the other, and answers the rows of the last, columns joined by `|`.
    pub async fn execute(&self, sql: &str) -> Vec<String> {
        execute(&self.connect().await, sql).await
    }

    /// From here on everybody but the superuser is asked for a password.
    pub async fn require_passwords(&self) {
        let rules = "local all postgres trust\nhost all postgres all trust\nlocal all all scram-sha-256\n\
            host all all all scram-sha-256\nlocal replication all scram-sha-256\nhost replication all all scram-sha-256\n";
        std::fs::write(self.folder.path().join("data/pg_hba.conf"), rules).expect("the rules can be written");
        self.execute("SELECT pg_reload_conf()").await;
    }

    /// From here on nobody but its administrator is let in without a certificate of this authority (PEM) that has the
    /// user's name. It must offer TLS.
    pub async fn require_certificates(&self, authority: &str) {
        let data = self.folder.path().join("data");
        std::fs::write(data.join("clients.crt"), authority).expect("the authority can be written");
        own(&data.join("clients.crt"));
        let rules = "local all postgres trust\nhost all postgres all trust\nhostssl all all all cert\n\
            hostssl replication all all cert\n";
        std::fs::write(data.join("pg_hba.conf"), rules).expect("the rules can be written");
        self.execute("ALTER SYSTEM SET ssl_ca_file = 'clients.crt'").await;
        self.execute("SELECT pg_reload_conf()").await;
    }

    /// From here on it offers TLS with this certificate and key, both PEM.
    pub async fn offer_tls(&self, certificate: &str, key: &str) {
        for (name, text) in [("server.crt", certificate), ("server.key", key)] {
            let path = self.folder.path().join("data").join(name);
            std::fs::write(&path, text).expect("the certificate can be written");
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).expect("the key can be hidden");
            own(&path);
        }
        self.execute("ALTER SYSTEM SET ssl = on").await;
        self.execute("SELECT pg_reload_conf()").await;
    }

    /// Sends a signal to the walsender of a slot.
    pub async fn signal_walsender(&self, slot: &str, signal: &str) {
        let pid =
            self.execute(&format!("SELECT active_pid FROM pg_replication_slots WHERE slot_name = '{slot}'")).await;
        run(Command::new("kill").arg(format!("-{signal}")).arg(&pid[0]));
    }

    fn signal(&self, signal: &str) {
        let server = self.server.as_ref().expect("the server runs");
        run(Command::new("kill").arg(format!("-{signal}")).arg(server.id().to_string()));
    }

    fn wait(&mut self) {
        if let Some(mut server) = self.server.take() {
            server.wait().expect("the server ends");
        }
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        if let Some(mut server) = self.server.take() {
            // Immediate shutdown reaches every process of the server; a killed one would leave them behind.
            let _ = Command::new("kill").arg("-QUIT").arg(server.id().to_string()).status();
            let _ = server.wait();
        }
    }
}

/// A process's state and its parent, while it is there.
fn state_and_parent(process: u32) -> Option<(String, u32)> {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    // The name before them stands in parentheses, and may hold anything.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().map(str::to_owned);
    Some((fields.next()?, fields.next()?.parse().ok()?))
}

fn children(of: u32) -> Vec<u32> {
    let processes = std::fs::read_dir("/proc").expect("processes are listed").flatten();
    let processes = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    processes.filter(|process| state_and_parent(*process).is_some_and(|(_, parent)| parent == of)).collect()
}

/// Whether it has not ended; what nobody has waited for has.
fn runs(process: u32) -> bool {
    state_and_parent(process).is_some_and(|(state, _)| state != "Z" && state != "X")
}

/// Runs statements on a session, as [`Postgres::execute`].
pub async fn execute(client: &Client, sql: &str) -> Vec<String> {
    let answers = client.simple_query(sql).await.unwrap_or_else(|e| panic!("{sql}: {e:?}"));
    let mut rows = Vec::new();
    for answer in answers {
        match answer {
            SimpleQueryMessage::Row(row) => {
                let cells: Vec<_> = (0..row.len()).map(|column| row.get(column).unwrap_or("NULL")).collect();
                rows.push(cells.join("|"));
            }
            SimpleQueryMessage::RowDescription(_) => rows.clear(),
            _ => {}
        }
    }
    rows
}

/// A cluster made once in a test process, to be copied: `initdb` takes seconds.
fn template() -> PathBuf {
    static TEMPLATE: OnceLock<TempDir> = OnceLock::new();
    let folder = TEMPLATE.get_or_init(|| {
        let folder = tempfile::tempdir().expect("a temporary folder");
        own(folder.path());
        initdb(&folder.path().join("data"));
        folder
    });
    folder.path().join("data")
}

fn initdb(data: &Path) {
    let mut initdb = as_server(Command::new(program("initdb")));
    initdb.arg("-D").arg(data);
    initdb.args(["-U", "postgres", "-A", "trust", "-N", "-E", "UTF8", "--locale=C"]).stdout(Stdio::null());
    run(&mut initdb);
}

/// A program of PostgreSQL 15.
fn program(name: &str) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let debian = PathBuf::from("/usr/lib/postgresql/15/bin");
    let found = std::iter::once(debian).chain(std::env::split_paths(&path)).map(|folder| folder.join(name));
    found
        .into_iter()
        .find(|path| path.exists())
        .unwrap_or_else(|| panic!("{name} of PostgreSQL 15 is not installed; run: apt-get install postgresql-15"))
}

/// PostgreSQL refuses to run as root: then it runs as the user `postgres`, which its package brings.
fn as_server(mut command: Command) -> Command {
    if let Some((user, group)) = server_user() {
        command.uid(user).gid(group);
    }
    command.current_dir("/");
    command
}

fn own(folder: &Path) {
    if let Some((user, group)) = server_user() {
        std::os::unix::fs::chown(folder, Some(user), Some(group)).expect("the folder is ours to give away");
    }
}

fn server_user() -> Option<(u32, u32)> {
    static USER: OnceLock<Option<(u32, u32)>> = OnceLock::new();
    let id = |arguments: &[&str]| {
        let output = Command::new("id").args(arguments).output().expect("id runs");
        String::from_utf8_lossy(&output.stdout).trim().parse::<u32>().ok()
    };
    *USER.get_or_init(|| {
        if id(&["-u"]) != Some(0) {
            return None;
        }
        let user = id(&["-u", "postgres"]).zip(id(&["-g", "postgres"]));
        Some(user.expect("root needs the user `postgres`; run: apt-get install postgresql-15"))
    })
}

fn run(command: &mut Command) {
    let status = command.status().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    assert!(status.success(), "{command:?}: {status}");
}
