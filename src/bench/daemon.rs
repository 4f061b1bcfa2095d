//! untorn as a competitor: this program, as a daemon.

use super::server::Server;
use std::io;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

fn config_file(database: &str, folder: &Path) -> PathBuf {
    folder.join(format!("{database}.toml"))
}

/// Writes the configuration that replicates these servers into a database of that one; each source's slot has the
/// database's name, and its number where there are several.
///
/// # Errors
/// The file cannot be written.
pub fn write_config(
    database: &str,
    durable: bool,
    sources: &[Server],
    replica: &Server,
    folder: &Path,
) -> io::Result<()> {
    let port = || Ok::<_, io::Error>(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port());
    let tablets = sources.iter().enumerate().map(|(number, source)| {
        let slot = if sources.len() > 1 { format!("{database}_{number}") } else { database.to_owned() };
        format!(
            "[[source.tablets]]\nname = \"source-{number}\"\nurl = {:?}\npublication = \"untorn\"\nslot = {slot:?}\n",
            source.url("postgres")
        )
    });
    let text = format!(
        "data_dir = {data:?}\n[source]\nkind = \"postgres\"\n{tablets}[replica]\nkind = \"postgres\"\n\
         synchronous_commit = {durable}\n[[replica.tablets]]\nname = \"replica\"\nurl = {to:?}\n[admin]\n\
         listen = \"127.0.0.1:{admin}\"\n[metrics]\nlisten = \"127.0.0.1:{metrics}\"\n",
        data = folder.join(database),
        tablets = tablets.collect::<String>(),
        to = replica.url(database),
        admin = port()?,
        metrics = port()?,
    );
    std::fs::write(config_file(database, folder), text)
}

/// A running daemon. Dropping it kills it.
pub struct Daemon(Child);

impl Daemon {
    /// Starts the one that writes to a database.
    ///
    /// # Errors
    /// The program cannot be started.
    pub fn start(database: &str, folder: &Path) -> io::Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("run").arg("--config").arg(config_file(database, folder));
        let log = std::fs::File::options().create(true).append(true).open(folder.join("untorn.log"))?;
        Ok(Self(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn()?))
    }

    /// Its process.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.0.id()
    }

    /// Has it drain and end.
    ///
    /// # Errors
    /// It does not end well.
    pub fn stop(&mut self) -> io::Result<()> {
        Command::new("kill").arg(self.0.id().to_string()).status()?;
        let ended = self.0.wait()?;
        if ended.success() { Ok(()) } else { Err(io::Error::other(format!("untorn: {ended}"))) }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}
