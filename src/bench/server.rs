//! PostgreSQL servers of a race, each in a folder of its own.

use std::io;
use std::net::TcpListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use tokio_postgres::{Client, NoTls, SimpleQueryMessage};

/// How long a server may take to start.
const START: Duration = Duration::from_secs(60);

/// What a server needs to be a source, and to be left alone.
pub const PUBLISHER: [&str; 6] = [
    "wal_level=logical",
    "max_replication_slots=20",
    "max_wal_senders=20",
    "max_prepared_transactions=20",
    "autovacuum=off",
    "max_wal_size=16GB",
];

/// A running server. Dropping it shuts it down.
pub struct Server {
    port: u16,
    process: Child,
}

/// Who runs servers: PostgreSQL refuses root, which becomes its package's user.
fn as_server(mut command: Command) -> io::Result<Command> {
    let id = |what: &str, user: &[&str]| -> io::Result<u32> {
        let output = Command::new("id").arg(what).args(user).output()?;
        String::from_utf8_lossy(&output.stdout).trim().parse().map_err(io::Error::other)
    };
    if id("-u", &[])? == 0 {
        command.uid(id("-u", &["postgres"])?).gid(id("-g", &["postgres"])?);
    }
    command.current_dir("/").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    Ok(command)
}

impl Server {
    /// Makes a cluster in a folder and starts it.
    ///
    /// # Errors
    /// A program is missing or fails.
    pub async fn start(programs: &Path, folder: &Path, settings: &[&str]) -> io::Result<Self> {
        std::fs::create_dir_all(folder)?;
        let given = Command::new("chown").arg("postgres").arg(folder).stderr(Stdio::null()).status();
        given.ok();
        let data = folder.join("data");
        let mut initdb = as_server(Command::new(programs.join("initdb")))?;
        initdb.arg("-D").arg(&data).args(["-U", "postgres", "-A", "trust", "-N", "-E", "UTF8", "--locale=C"]);
        let made = initdb.status().map_err(|error| {
            io::Error::other(format!("{}: {error}; name PostgreSQL's programs with --pg-bin", programs.display()))
        })?;
        if !made.success() {
            return Err(io::Error::other(format!("initdb in {}: {made}", data.display())));
        }
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let mut command = as_server(Command::new(programs.join("postgres")))?;
        command.arg("-D").arg(&data).args(["-p", &port.to_string(), "-h", "127.0.0.1", "-k"]).arg(folder);
        for setting in settings {
            command.args(["-c", setting]);
        }
        let server = Self { port, process: command.spawn()? };
        let deadline = tokio::time::Instant::now() + START;
        while let Err(error) = server.connect("postgres").await {
            if tokio::time::Instant::now() > deadline {
                return Err(io::Error::other(format!("{} does not start: {error}", data.display())));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(server)
    }

    /// Its first process.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// The URL of a database.
    #[must_use]
    pub fn url(&self, database: &str) -> String {
        format!("postgres://postgres@127.0.0.1:{}/{database}?sslmode=disable", self.port)
    }

    /// The same as libpq's words, for a subscription.
    #[must_use]
    pub fn words(&self, database: &str) -> String {
        format!("host=127.0.0.1 port={} user=postgres dbname={database}", self.port)
    }

    /// A session.
    ///
    /// # Errors
    /// What the server said.
    pub async fn connect(&self, database: &str) -> io::Result<Session> {
        let (client, connection) =
            tokio_postgres::connect(&self.url(database), NoTls).await.map_err(io::Error::other)?;
        let connection = tokio::spawn(async move { connection.await.ok() });
        Ok(Session { client, connection })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Immediate shutdown reaches every process of the server; a killed one would leave them behind.
        Command::new("kill").arg("-QUIT").arg(self.process.id().to_string()).status().ok();
        self.process.wait().ok();
    }
}

/// A session at a server.
pub struct Session {
    client: Client,
    connection: tokio::task::JoinHandle<Option<()>>,
}

impl Session {
    /// Runs statements and answers the first column of the last row.
    ///
    /// # Errors
    /// What the server said.
    pub async fn run(&self, sql: &str) -> io::Result<Option<String>> {
        let answers = self.client.simple_query(sql).await.map_err(|error| {
            let said = error.as_db_error().map_or_else(|| error.to_string(), ToString::to_string);
            io::Error::other(format!("{said}: {}", sql.chars().take(200).collect::<String>()))
        })?;
        Ok(answers.iter().rev().find_map(|answer| match answer {
            SimpleQueryMessage::Row(row) => row.try_get(0).ok().flatten().map(str::to_owned),
            _ => None,
        }))
    }
}

impl Session {
    /// The server's version, as `server_version_num` says it.
    ///
    /// # Errors
    /// What the server said.
    pub async fn version(&self) -> io::Result<u32> {
        let version = self.run("SHOW server_version_num").await?;
        version.and_then(|version| version.parse().ok()).ok_or_else(|| io::Error::other("a server without a version"))
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

/// A folder that is removed with everything in it.
pub struct Folder(pub PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).ok();
    }
}
