//! What `untorn check --connect` asks the servers that a configuration names: whether they answer, and whether they
//! have what the configuration says they have. All of them at once, every finding told.

use super::client;
use crate::config::{
    CdcTabletConfig, DaemonConfig, Fault, Faults, GrpcTabletConfig, LeaderConfig, PostgresSourceConfig,
    PostgresTabletConfig, ReplicaConfig, SourceConfig,
};
use crate::limits;
use crate::proto::cdc::ListTabletsRequest;
use crate::proto::cdc::cdc_service_client::CdcServiceClient;
use crate::source::postgres::{Checked, Finding, GidPattern, Options, PostgresSource};
use futures::future::join_all;
use std::time::Duration;
use tonic::transport::{Channel, Endpoint};

/// How long one server may take to answer.
const ANSWER: Duration = Duration::from_secs(5);

/// A tablet that a gRPC server is said to hold.
struct Expected<'a> {
    /// The entry's key, `source.tablets[0]`.
    key: String,
    url: &'a str,
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
        for (i, CdcTabletConfig { url, tablet, .. }) in tablets.iter().enumerate() {
            expected.push(Expected { key: format!("source.tablets[{i}]"), url, tablet });
        }
    }
    if let ReplicaConfig::Grpc(tablets) = &config.replica {
        for (i, GrpcTabletConfig { url, name, .. }) in tablets.iter().enumerate() {
            expected.push(Expected { key: format!("replica.tablets[{i}]"), url, tablet: name });
        }
    }
    let mut asked = Asked::default();
    if let SourceConfig::Postgres(source) = &config.source {
        let answers = join_all(source.tablets.iter().map(|tablet| postgres(source, tablet))).await;
        asked.tell(source, answers);
    }
    let faults = &mut asked.faults;
    if let LeaderConfig::At(url) = &config.leader
        && let Err(error) = reach(url).await
    {
        faults.push("leader.url", format!("{url} does not answer: {error}"), "start the leader, or mend the URL");
    }
    let answers = join_all(expected.iter().map(|tablet| list(tablet.url))).await;
    for (Expected { key, url, tablet }, answer) in expected.iter().zip(answers) {
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
        gids,
        slot_lock_timeout: limits::SLOT_LOCK_TIMEOUT,
    };
    PostgresSource::new(options)?.check().await.map_err(|error| error.to_string())
}

impl Asked {
    /// Sorts what the PostgreSQL servers said, and compares them with each other.
    fn tell(&mut self, source: &PostgresSourceConfig, answers: Vec<Result<Checked, String>>) {
        let mut servers = Vec::new();
        for (i, answer) in answers.into_iter().enumerate() {
            let key = format!("source.tablets[{i}]");
            match answer {
                Err(error) => self.faults.push(&format!("{key}.url"), error, "mend the server or the URL"),
                Ok(checked) => {
                    for Finding { fault, text, sql } in &checked.findings {
                        let mend = if sql.is_empty() { "mend it at the server" } else { "run there:" };
                        let found =
                            Fault { key: key.clone(), what: text.clone(), mend: mend.to_owned(), sql: sql.clone() };
                        if *fault { self.faults.add(found) } else { self.warnings.add(found) }
                    }
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
async fn list(url: &str) -> Result<Vec<String>, String> {
    let mut client = CdcServiceClient::new(reach(url).await?);
    let answer = client.list_tablets(ListTabletsRequest {}).await.map_err(|status| status.message().to_owned())?;
    Ok(answer.into_inner().tablets)
}

async fn reach(url: &str) -> Result<Channel, String> {
    let text = |error: tonic::transport::Error| client::reason(&error);
    let endpoint = Endpoint::from_shared(url.to_owned()).map_err(text)?.connect_timeout(ANSWER).timeout(ANSWER);
    endpoint.connect().await.map_err(text)
}
