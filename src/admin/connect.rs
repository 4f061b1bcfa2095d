//! What `untorn check --connect` asks the servers that a configuration names: whether they answer, and whether they
//! have what the configuration says they have. All of them at once, every finding told.

use super::client::AdminClient;
use crate::access::{Address, ClientFiles, ClientKeys};
use crate::config::{
    CdcTabletConfig, DaemonConfig, Fault, Faults, GrpcTabletConfig, LeaderConfig, PostgresReplicaConfig,
    PostgresSourceConfig, PostgresTabletConfig, ReplicaConfig, SourceConfig,
};
use crate::limits;
use crate::postgres::{Finding, Target};
use crate::proto::cdc::ListTabletsRequest;
use crate::proto::cdc::cdc_service_client::CdcServiceClient;
use crate::proto::transaction::GetTransactionRecordRequest;
use crate::proto::transaction::transaction_service_client::TransactionServiceClient;
use crate::proto::transport::describe;
use crate::source::postgres::{Checked, GidPattern, Options, PostgresSource};
use crate::tablet::postgres::servers::place;
use crate::tablet::postgres::{self as replica, Missing};
use crate::wal::TableSchema;
use futures::future::join_all;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::timeout;
use tonic::Code;
use tonic::transport::Channel;

/// How long one server may take to answer.
const ANSWER: Duration = Duration::from_secs(5);

/// A tablet that a gRPC server is said to hold.
struct Expected<'a> {
    /// The entry's key, `source.tablets[0]`.
    key: String,
    url: &'a str,
    tls: Option<&'a ClientFiles>,
    tablet: &'a str,
}

/// What the servers said.
#[derive(Default, Debug, serde::Serialize)]
pub struct Asked {
    /// What they lack, each by its key, with how to mend it.
    pub faults: Faults,
    /// What is worth a mention and no fault.
    pub warnings: Faults,
    /// What each PostgreSQL server is and publishes, one line each.
    pub servers: Vec<String>,
}

/// Asks every server, all of them at once.
pub async fn ask(config: &DaemonConfig) -> Asked {
    let mut expected = Vec::new();
    if let SourceConfig::Cdc(tablets) = &config.source {
        for (i, CdcTabletConfig { url, tls, tablet, .. }) in tablets.iter().enumerate() {
            expected.push(Expected { key: format!("source.tablets[{i}]"), url, tls: tls.as_ref(), tablet });
        }
    }
    if let ReplicaConfig::Grpc(tablets) = &config.replica {
        for (i, GrpcTabletConfig { url, tls, name, .. }) in tablets.iter().enumerate() {
            expected.push(Expected { key: format!("replica.tablets[{i}]"), url, tls: tls.as_ref(), tablet: name });
        }
    }
    let mut asked = Asked::default();
    let mut tables = Vec::new();
    if let SourceConfig::Postgres(source) = &config.source {
        let answers = join_all(source.tablets.iter().map(|tablet| postgres(source, tablet))).await;
        tables = asked.tell(source, answers);
    }
    if let ReplicaConfig::Postgres(server) = &config.replica {
        asked.replica(server, &mut tables).await;
    }
    let faults = &mut asked.faults;
    if let LeaderConfig::At { url, tls } = &config.leader
        && let Err(error) = leads(url, tls.as_ref()).await
    {
        faults.push("leader.url", format!("{url} does not answer: {error}"), "start the leader, or mend the URL");
    }
    let answers = join_all(expected.iter().map(|tablet| list(tablet.url, tablet.tls))).await;
    for (Expected { key, url, tablet, .. }, answer) in expected.iter().zip(answers) {
        match answer {
            Err(error) => {
                let what = format!("{url} does not answer: {error}");
                faults.push(&format!("{key}.url"), what, "start the server, or mend the URL");
            }
            Ok(held) if !held.iter().any(|name| name == tablet) => {
                let mend = format!("name one that it holds: {}", held.join(", "));
                faults.push(key, format!("{url} holds no tablet {tablet:?}"), mend);
            }
            Ok(_) => {}
        }
    }
    asked.leaving(config).await;
    asked
}

async fn postgres(source: &PostgresSourceConfig, tablet: &PostgresTabletConfig) -> Result<Checked, String> {
    let gids = GidPattern::parse(source.gid_pattern.as_deref().unwrap_or_default())?;
    let options = Options {
        name: tablet.name.clone(),
        url: tablet.url.expose().to_owned(),
        password_file: tablet.password_file.clone(),
        publication: tablet.publication.clone(),
        slot: tablet.slot.clone(),
        tables: std::sync::Arc::clone(&tablet.tables),
        gids,
        slot_lock_timeout: limits::SLOT_LOCK_TIMEOUT,
    };
    PostgresSource::new(options)?.check().await.map_err(|error| error.to_string())
}

impl Asked {
    /// Where the daemon runs that this configuration is to be the next one of, it knows which source tablets leave. (Where it
    /// does not run, or asks who calls, the start says it.)
    async fn leaving(&mut self, config: &DaemonConfig) {
        let (listen, names) = (&config.admin, config.source.names());
        if listen.tls.is_some() || names.is_empty() {
            return;
        }
        let url = format!("http://{}", listen.address);
        let status = async { AdminClient::connect(&url).await?.status().await };
        let Ok(Ok(status)) = timeout(ANSWER, status).await else { return };
        let stay = matches!(config.replica, ReplicaConfig::Postgres(_));
        let rows = if stay { "stay as they are" } else { "are not seen from then on" };
        for gone in status.streams.iter().filter(|stream| names.iter().all(|name| *name != stream.name)) {
            self.warnings.push(
                "source.tablets",
                format!(
                    "the daemon at {url} has source tablet {:?}, which is not named here: at its next start that leaves, its rows \
                     {rows}, and what it had prepared is discarded; its slot stays on its server",
                    gone.name
                ),
                format!("leave the entry in, or run `untorn source drop --tablet {}` before you take it out", gone.name),
            );
        }
    }

    /// Asks the replica's servers about the tables that each is to have.
    async fn replica(&mut self, config: &PostgresReplicaConfig, tables: &mut Vec<TableSchema>) {
        tables.sort_by(|a, b| a.name.cmp(&b.name));
        tables.dedup_by(|a, b| a.name == b.name);
        let missing = Missing { create_tables: config.create_tables, add_columns: config.add_columns };
        let lists: Vec<&[String]> = config.servers.iter().map(|server| &server.tables[..]).collect();
        for table in tables.iter().filter(|table| place(&lists, &table.name).is_none()) {
            let what = format!("table {} is placed on no server", table.name);
            self.faults.push("replica.tablets", what, "name it in tables of one server, or leave the key out of one");
        }
        for (i, server) in config.servers.iter().enumerate() {
            let key = format!("replica.tablets[{i}]");
            let placed = tables.iter().filter(|table| place(&lists, &table.name) == Some(i));
            let placed: Vec<TableSchema> = placed.cloned().collect();
            let answer = match Target::parse(&server.name, server.url.expose(), server.password_file.clone()) {
                Ok(target) => replica::check(&target, &placed, missing, lists.len() > 1).await,
                Err(error) => Err(error),
            };
            match answer {
                Err(error) => self.faults.push(&format!("{key}.url"), error, "mend the server or the URL"),
                Ok((findings, summary)) => {
                    self.found(&key, &findings);
                    self.servers.push(summary);
                }
            }
        }
    }

    fn found(&mut self, key: &str, findings: &[Finding]) {
        for Finding { fault, text, sql } in findings {
            let mend = if sql.is_empty() { "mend it at the server" } else { "run there:" };
            let found = Fault { key: key.to_owned(), what: text.clone(), mend: mend.to_owned(), sql: sql.clone() };
            if *fault { self.faults.add(found) } else { self.warnings.add(found) }
        }
    }

    /// Sorts what the PostgreSQL servers said, and compares them with each other; answers the tables that they have.
    fn tell(&mut self, source: &PostgresSourceConfig, answers: Vec<Result<Checked, String>>) -> Vec<TableSchema> {
        let mut servers = Vec::new();
        for (i, answer) in answers.into_iter().enumerate() {
            let key = format!("source.tablets[{i}]");
            match answer {
                Err(error) => self.faults.push(&format!("{key}.url"), error, "mend the server or the URL"),
                Ok(checked) => {
                    self.found(&key, &checked.findings);
                    if !checked.summary.is_empty() {
                        self.servers.push(checked.summary.clone());
                    }
                    servers.push((i, checked));
                }
            }
        }
        for (place, (i, one)) in servers.iter().enumerate() {
            for (j, other) in &servers[..place] {
                self.compare(source, (*j, other), (*i, one));
            }
        }
        servers.into_iter().flat_map(|(_, checked)| checked.tables).collect()
    }

    /// Two servers side by side: are they two, and do their clocks agree?
    fn compare(&mut self, source: &PostgresSourceConfig, (i, one): (usize, &Checked), (j, other): (usize, &Checked)) {
        let (first, key) = (&source.tablets[i].name, format!("source.tablets[{j}]"));
        if !one.system.is_empty() && one.system == other.system {
            let (system, database) = (&one.system, &one.database);
            match (one.started == other.started, one.database == other.database) {
                (true, true) => self.faults.push(
                    &format!("{key}.url"),
                    format!("this is the same database as {first:?}'s: {database:?} of cluster {system}"),
                    "name another server or database, or remove the entry",
                ),
                (true, false) if source.gid_pattern.is_none() => self.warnings.push(
                    "source.gid_pattern",
                    format!(
                        "{first:?} and {:?} are databases of one cluster, where a gid is unique: one transaction cannot \
                         prepare the same gid in both",
                        source.tablets[j].name
                    ),
                    "name the part of the gids that their branches share",
                ),
                (true, false) => {}
                (false, _) => self.warnings.push(
                    &format!("{key}.url"),
                    format!(
                        "it has the system identifier of {first:?} ({system}), as a clone or a standby of it has: if one \
                         took the other's place behind its URL, nobody could tell"
                    ),
                    "give a clone that goes its own way an identifier of its own: pg_createsubscriber, or initdb and a \
                     restored dump",
                ),
            }
        }
        if let (Some(here), Some(there)) = (one.clock, other.clock) {
            let apart = here.differs(there);
            if apart > source.clock_skew {
                let allowed = source.clock_skew.as_millis();
                self.faults.push(
                    "source.clock_skew",
                    format!(
                        "the clocks of {first:?} and {:?} differ by {} ms at least, and {allowed} ms are allowed: uses of \
                         one gid may be taken for each other",
                        source.tablets[j].name,
                        apart.as_millis()
                    ),
                    "set the clocks right (NTP), or raise it above the difference",
                );
            }
        }
    }
}

/// The tablets that a server holds. Tablet servers serve CdcService too, so one question fits both.
async fn list(url: &str, tls: Option<&ClientFiles>) -> Result<Vec<String>, String> {
    let mut client = CdcServiceClient::new(reach(url, tls).await?);
    let asked = timeout(ANSWER, client.list_tablets(ListTabletsRequest {})).await;
    let answer = asked.map_err(|late| late.to_string())?.map_err(|status| describe(&status))?;
    Ok(answer.into_inner().tablets)
}

/// Whether a transaction leader answers. It is asked for a transaction that nobody has, because a connection alone says
/// nothing: who is turned away hears of it with the first answer.
async fn leads(url: &str, tls: Option<&ClientFiles>) -> Result<(), String> {
    let mut client = TransactionServiceClient::new(reach(url, tls).await?);
    let asked = timeout(ANSWER, client.get_transaction_record(GetTransactionRecordRequest::default())).await;
    match asked.map_err(|late| late.to_string())? {
        Err(status) if status.code() != Code::NotFound => Err(describe(&status)),
        _ => Ok(()),
    }
}

async fn reach(url: &str, tls: Option<&ClientFiles>) -> Result<Channel, String> {
    let keys = tls.map(|files| ClientKeys::load(files.clone())).transpose().map_err(|error| error.to_string())?;
    Address::new(url, keys.map(Arc::new)).connect().await
}
